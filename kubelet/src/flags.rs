//! Flags that stand for a field of the config file: they are laid over the file before it is
//! judged, so that a flag is held to the same rules as the field. Flags without a field are
//! accepted only where they ask for nothing.

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};
use serde_json::{Map, Value, json};

/// How a flag's text becomes a field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Bool,
    Number,
    Text,
    /// Separated by commas.
    List,
    /// `a=b,c=d`.
    Map,
    /// `a<b,c<d`.
    Less,
    /// `a=true,b=false`.
    Bools,
    /// It has no field: the texts that ask for nothing.
    Inert(&'static [&'static str]),
    /// As `Inert`, and it takes no value of its own.
    InertBool(&'static [&'static str]),
}

use Kind::{Bool, Bools, Inert, InertBool, Less, List, Map as Pairs, Number, Text};

/// Flags by name, with the path of their field.
const FLAGS: &[(&str, &str, Kind)] = &[
    ("allowed-unsafe-sysctls", "allowedUnsafeSysctls", List),
    ("authentication-token-webhook-cache-ttl", "authentication.webhook.cacheTTL", Text),
    (
        "authorization-webhook-cache-authorized-ttl",
        "authorization.webhook.cacheAuthorizedTTL",
        Text,
    ),
    (
        "authorization-webhook-cache-unauthorized-ttl",
        "authorization.webhook.cacheUnauthorizedTTL",
        Text,
    ),
    ("cloud-config", "", Inert(&[""])),
    ("cloud-provider", "", Inert(&[""])),
    ("config-dir", "", Inert(&[""])),
    ("container-log-max-files", "containerLogMaxFiles", Number),
    ("container-log-max-size", "containerLogMaxSize", Text),
    ("contention-profiling", "enableContentionProfiling", Bool),
    ("cpu-cfs-quota", "cpuCFSQuota", Bool),
    ("cpu-cfs-quota-period", "cpuCFSQuotaPeriod", Text),
    ("cpu-manager-policy", "cpuManagerPolicy", Text),
    ("cpu-manager-policy-options", "cpuManagerPolicyOptions", Pairs),
    ("cpu-manager-reconcile-period", "cpuManagerReconcilePeriod", Text),
    ("enable-controller-attach-detach", "enableControllerAttachDetach", Bool),
    ("enable-debugging-handlers", "enableDebuggingHandlers", Bool),
    ("enable-server", "enableServer", Bool),
    ("enforce-node-allocatable", "enforceNodeAllocatable", List),
    ("event-burst", "eventBurst", Number),
    ("event-qps", "eventRecordQPS", Number),
    ("eviction-hard", "evictionHard", Less),
    ("eviction-max-pod-grace-period", "evictionMaxPodGracePeriod", Number),
    ("eviction-minimum-reclaim", "evictionMinimumReclaim", Pairs),
    ("eviction-pressure-transition-period", "evictionPressureTransitionPeriod", Text),
    ("eviction-soft", "evictionSoft", Less),
    ("eviction-soft-grace-period", "evictionSoftGracePeriod", Pairs),
    ("exit-on-lock-contention", "", InertBool(&["false"])),
    ("experimental-allocatable-ignore-eviction", "", InertBool(&["false"])),
    ("experimental-mounter-path", "", Inert(&[""])),
    ("fail-cgroupv1", "failCgroupV1", Bool),
    ("feature-gates", "featureGates", Bools),
    ("file-check-frequency", "fileCheckFrequency", Text),
    ("hairpin-mode", "hairpinMode", Text),
    ("housekeeping-interval", "", Inert(&["10s"])),
    ("http-check-frequency", "httpCheckFrequency", Text),
    ("image-credential-provider-bin-dir", "", Inert(&[""])),
    ("image-credential-provider-config", "", Inert(&[""])),
    ("image-gc-high-threshold", "imageGCHighThresholdPercent", Number),
    ("image-gc-low-threshold", "imageGCLowThresholdPercent", Number),
    ("kernel-memcg-notification", "kernelMemcgNotification", Bool),
    ("kube-api-burst", "kubeAPIBurst", Number),
    ("kube-api-content-type", "contentType", Text),
    ("kube-api-qps", "kubeAPIQPS", Number),
    ("kube-reserved", "kubeReserved", Pairs),
    ("kube-reserved-cgroup", "kubeReservedCgroup", Text),
    ("kubelet-cgroups", "kubeletCgroups", Text),
    ("local-storage-capacity-isolation", "localStorageCapacityIsolation", Bool),
    ("lock-file", "", Inert(&[""])),
    ("log-flush-frequency", "", Inert(&["5s"])),
    ("log-json-info-buffer-size", "", Inert(&["0"])),
    ("log-json-split-stream", "", InertBool(&["false"])),
    ("log-text-info-buffer-size", "", Inert(&["0"])),
    ("log-text-split-stream", "", InertBool(&["false"])),
    ("logging-format", "", Inert(&["text"])),
    ("make-iptables-util-chains", "makeIPTablesUtilChains", Bool),
    ("manifest-url", "staticPodURL", Text),
    ("manifest-url-header", "", Inert(&[""])),
    ("max-open-files", "maxOpenFiles", Number),
    ("maximum-dead-containers", "", Inert(&["-1"])),
    ("maximum-dead-containers-per-container", "", Inert(&["1"])),
    ("memory-manager-policy", "memoryManagerPolicy", Text),
    ("minimum-container-ttl-duration", "", Inert(&["0s", "0"])),
    ("minimum-image-ttl-duration", "imageMinimumGCAge", Text),
    ("node-status-max-images", "nodeStatusMaxImages", Number),
    ("oom-score-adj", "oomScoreAdj", Number),
    ("pod-max-pids", "podPidsLimit", Number),
    ("pods-per-core", "podsPerCore", Number),
    ("protect-kernel-defaults", "protectKernelDefaults", Bool),
    ("qos-reserved", "qosReserved", Pairs),
    ("read-only-port", "readOnlyPort", Number),
    ("registry-burst", "registryBurst", Number),
    ("registry-qps", "registryPullQPS", Number),
    ("reserved-cpus", "reservedSystemCPUs", Text),
    ("reserved-memory", "", Inert(&[""])),
    ("rotate-certificates", "rotateCertificates", Bool),
    ("rotate-server-certificates", "serverTLSBootstrap", Bool),
    ("runonce", "runOnce", Bool),
    ("runtime-cgroups", "", Inert(&[""])),
    ("runtime-request-timeout", "runtimeRequestTimeout", Text),
    ("seccomp-default", "seccompDefault", Bool),
    ("serialize-image-pulls", "serializeImagePulls", Bool),
    ("streaming-connection-idle-timeout", "streamingConnectionIdleTimeout", Text),
    ("system-cgroups", "systemCgroups", Text),
    ("system-reserved", "systemReserved", Pairs),
    ("system-reserved-cgroup", "systemReservedCgroup", Text),
    ("tls-cipher-suites", "tlsCipherSuites", List),
    ("tls-min-version", "tlsMinVersion", Text),
    ("topology-manager-policy", "topologyManagerPolicy", Text),
    ("topology-manager-policy-options", "topologyManagerPolicyOptions", Pairs),
    ("topology-manager-scope", "topologyManagerScope", Text),
    ("vmodule", "", Inert(&[""])),
    ("volume-plugin-dir", "volumePluginDir", Text),
    ("volume-stats-agg-period", "volumeStatsAggPeriod", Text),
];

/// The flags that were given, with their texts.
#[derive(Clone, Debug, Default)]
pub struct Given(Vec<(&'static str, String)>);

impl FromArgMatches for Given {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for (name, _, _) in FLAGS {
            for text in matches.get_many::<String>(name).into_iter().flatten() {
                given.push((*name, text.clone()));
            }
        }
        Ok(Self(given))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Given {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, (name, _, kind)| {
            let arg = Arg::new(*name).long(*name).hide(true).action(clap::ArgAction::Append);
            command.arg(match kind {
                Bool | InertBool(_) => {
                    arg.num_args(0..=1).require_equals(true).default_missing_value("true")
                }
                _ => arg.num_args(1).allow_hyphen_values(true),
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl Given {
    /// Lays the flags over a file's fields.
    ///
    /// # Errors
    /// Names the flag whose text is none of its kind, or which has no effect here.
    pub fn overlay(&self, fields: &mut Map<String, Value>) -> Result<(), String> {
        for (name, text) in &self.0 {
            let row = FLAGS.iter().find(|(flag, _, _)| flag == name);
            let Some((_, path, kind)) = row else { continue };
            if let Inert(accepted) | InertBool(accepted) = kind {
                if !accepted.contains(&text.as_str()) {
                    return Err(format!("--{name}={text} is not supported by this kubelet"));
                }
                continue;
            }
            let value = value(*kind, text)
                .map_err(|why| format!("invalid argument {text:?} for \"--{name}\" flag: {why}"))?;
            put(fields, path, value);
        }
        Ok(())
    }
}

fn put(fields: &mut Map<String, Value>, path: &str, value: Value) {
    match path.split_once('.') {
        None => {
            fields.insert(path.to_owned(), value);
        }
        Some((above, rest)) => {
            let entry = fields.entry(above).or_insert_with(|| json!({}));
            if !entry.is_object() {
                *entry = json!({});
            }
            if let Value::Object(inner) = entry {
                put(inner, rest, value);
            }
        }
    }
}

fn value(kind: Kind, text: &str) -> Result<Value, String> {
    let pairs = |separator: char| -> Result<Vec<(String, String)>, String> {
        let pieces = text.split(',').filter(|piece| !piece.is_empty());
        pieces
            .map(|piece| {
                let (key, value) = piece
                    .split_once(separator)
                    .ok_or_else(|| format!("malformed pair, expect string{separator}string"))?;
                Ok((key.trim().to_owned(), value.trim().to_owned()))
            })
            .collect()
    };
    let texts = |pairs: Vec<(String, String)>| {
        Value::Object(pairs.into_iter().map(|(k, v)| (k, Value::String(v))).collect())
    };
    let bool = |text: &str| match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("strconv.ParseBool: parsing {text:?}: invalid syntax")),
    };
    match kind {
        Bool => bool(text).map(Value::Bool),
        Number => text
            .parse::<i64>()
            .map(Value::from)
            .map_err(|_| format!("strconv.ParseInt: parsing {text:?}: invalid syntax")),
        List => Ok(Value::from(text.split(',').filter(|t| !t.is_empty()).collect::<Vec<_>>())),
        Pairs => pairs('=').map(texts),
        Less => pairs('<').map(texts),
        Bools => {
            let each = pairs('=')?.into_iter().map(|(k, v)| Ok((k, Value::Bool(bool(&v)?))));
            each.collect::<Result<Map<_, _>, String>>().map(Value::Object)
        }
        Text | Inert(_) | InertBool(_) => Ok(Value::String(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_fields() {
        let given = Given(vec![
            ("kube-reserved", "cpu=100m,memory=1Gi".into()),
            ("eviction-hard", "memory.available<1Gi".into()),
            ("authorization-webhook-cache-authorized-ttl", "1m".into()),
            ("pods-per-core", "3".into()),
            ("tls-cipher-suites", "A,B".into()),
            ("lock-file", String::new()),
        ]);
        let mut fields = Map::new();
        given.overlay(&mut fields).unwrap();
        assert_eq!(
            Value::Object(fields),
            json!({
                "kubeReserved": {"cpu": "100m", "memory": "1Gi"},
                "evictionHard": {"memory.available": "1Gi"},
                "authorization": {"webhook": {"cacheAuthorizedTTL": "1m"}},
                "podsPerCore": 3,
                "tlsCipherSuites": ["A", "B"],
            })
        );
        for (flag, text, part) in [
            ("lock-file", "/x", "--lock-file=/x is not supported"),
            ("pods-per-core", "many", "invalid argument \"many\" for \"--pods-per-core\" flag"),
            ("kube-reserved", "cpu", "malformed pair"),
            ("seccomp-default", "maybe", "ParseBool"),
        ] {
            let error = Given(vec![(flag, text.into())]).overlay(&mut Map::new()).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn fields_of_flags_exist() {
        let known = serde_json::to_value(crate::KubeletConfiguration::default()).unwrap();
        for (flag, path, _) in FLAGS.iter().filter(|(_, path, _)| !path.is_empty()) {
            let top = path.split('.').next().unwrap_or_default();
            let listed = crate::config::support::UNSUPPORTED.iter().any(|(f, _)| f == path);
            assert!(listed || known.get(top).is_some(), "{flag}: {path}");
        }
        assert!(FLAGS.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
