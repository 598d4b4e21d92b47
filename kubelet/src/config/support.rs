//! Which settings this kubelet does not act on, and which of their values it can still accept:
//! those that ask for nothing else than what it does. Anything else is an error that names the
//! field, so that nobody relies on a setting that is not there.

use serde_json::{Map, Value};

use crate::duration;

/// A field without effect, by its path in the file, and the values that may be given for it, as
/// JSON: upstream's default first, then what upstream takes for the default (an empty value where
/// the type has no null), then values that describe what this kubelet does anyway.
type Row = (&'static str, &'static [&'static str]);

const ZERO: &[&str] = &["\"\""];
const NO_LIST: &[&str] = &["[]"];
const NO_MAP: &[&str] = &["{}"];
/// Neither is there, whatever is asked for; the default says so where it matters.
const EITHER: &[&str] = &["true", "false"];

/// All fields without effect.
pub const UNSUPPORTED: &[Row] = &[
    ("containerLogMaxWorkers", &["1"]),
    ("contentType", &["\"application/vnd.kubernetes.protobuf\"", "\"\"", "\"application/json\""]),
    ("cpuManagerPolicy", &["\"none\"", "\"\""]),
    ("cpuManagerPolicyOptions", NO_MAP),
    ("cpuManagerReconcilePeriod", &["\"10s\"", "\"0s\""]),
    ("enableContentionProfiling", &["false"]),
    ("enableControllerAttachDetach", &["true"]),
    ("enableDebugFlagsHandler", EITHER),
    ("enableProfilingHandler", EITHER),
    ("enableSystemLogHandler", EITHER),
    ("enableSystemLogQuery", &["false"]),
    ("featureGates", NO_MAP),
    ("hairpinMode", &["\"promiscuous-bridge\"", "\"\""]),
    ("httpCheckFrequency", &["\"20s\"", "\"0s\""]),
    (
        "imagePullCredentialsVerificationPolicy",
        &["\"NeverVerifyPreloadedImages\"", "\"\"", "\"NeverVerify\""],
    ),
    ("iptablesDropBit", &["15"]),
    ("iptablesMasqueradeBit", &["14"]),
    ("kernelMemcgNotification", &["false"]),
    ("kubeAPIBurst", &["100", "0"]),
    ("kubeAPIQPS", &["50"]),
    ("kubeReservedCgroup", ZERO),
    ("kubeletCgroups", ZERO),
    ("localStorageCapacityIsolation", &["true"]),
    ("logging.flushFrequency", &["\"5s\"", "0", "\"0s\"", "5000000000"]),
    ("logging.format", &["\"text\"", "\"\""]),
    ("logging.options.json.infoBufferSize", &["\"0\"", "0", "\"\""]),
    ("logging.options.json.splitStream", &["false"]),
    ("logging.options.text.infoBufferSize", &["\"0\"", "0", "\"\""]),
    ("logging.options.text.splitStream", &["false"]),
    ("logging.verbosity", &["0"]),
    ("logging.vmodule", NO_LIST),
    ("makeIPTablesUtilChains", EITHER),
    ("maxOpenFiles", &["1000000", "0"]),
    ("memoryManagerPolicy", &["\"None\"", "\"\""]),
    ("memorySwap.swapBehavior", &["\"\"", "\"NoSwap\""]),
    ("memoryThrottlingFactor", &["0.9"]),
    ("oomScoreAdj", &["-999"]),
    ("preloadedImagesVerificationAllowlist", NO_LIST),
    ("protectKernelDefaults", &["false"]),
    ("qosReserved", NO_MAP),
    ("reservedMemory", NO_LIST),
    ("reservedSystemCPUs", ZERO),
    ("runOnce", &["false"]),
    ("showHiddenMetricsForVersion", ZERO),
    ("singleProcessOOMKill", &[]),
    ("staticPodURL", ZERO),
    ("staticPodURLHeader", NO_MAP),
    ("systemCgroups", ZERO),
    ("systemReservedCgroup", ZERO),
    ("tlsCipherSuites", NO_LIST),
    ("tlsMinVersion", &["\"\"", "\"VersionTLS12\""]),
    ("topologyManagerPolicy", &["\"none\"", "\"\""]),
    ("topologyManagerPolicyOptions", NO_MAP),
    ("topologyManagerScope", &["\"container\"", "\"\""]),
    ("tracing", NO_MAP),
    ("userNamespaces.idsPerPod", &["65536"]),
    ("volumePluginDir", &["\"/usr/libexec/kubernetes/kubelet-plugins/volume/exec/\"", "\"\""]),
    ("volumeStatsAggPeriod", &["\"1m\"", "\"0s\""]),
];

/// What the fields of a file come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    /// This kubelet acts on it.
    Acts,
    /// A row of [`UNSUPPORTED`].
    Listed(&'static Row),
    /// An object whose fields are listed.
    Above,
    No,
}

fn find(path: &str, acts: &dyn Fn(&str) -> bool) -> Known {
    if acts(path) {
        return Known::Acts;
    }
    if let Some(row) = UNSUPPORTED.iter().find(|(field, _)| *field == path) {
        return Known::Listed(row);
    }
    let below = |field: &str| field.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'));
    match UNSUPPORTED.iter().any(|(field, _)| below(field)) {
        true => Known::Above,
        false => Known::No,
    }
}

/// Whether two values say the same, durations in whatever units.
fn same(given: &Value, accepted: &Value) -> bool {
    if given == accepted {
        return true;
    }
    match (given, accepted) {
        (Value::String(a), Value::String(b)) if !a.is_empty() && !b.is_empty() => {
            matches!((duration::parse(a), duration::parse(b)), (Ok(a), Ok(b)) if a == b)
        }
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        _ => false,
    }
}

/// Holds the fields of a config file to what is supported. `acts` tells the names of the fields
/// that have an effect. Nulls must have been removed.
///
/// # Errors
/// Names a field that is unknown, or whose value asks for what this kubelet does not do.
pub fn check(fields: &Map<String, Value>, acts: &dyn Fn(&str) -> bool) -> Result<(), String> {
    below("", fields, acts)
}

fn below(
    above: &str,
    fields: &Map<String, Value>,
    acts: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    for (name, value) in fields {
        let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match (find(&path, acts), value) {
            (Known::Acts, _) => {}
            (Known::Listed((_, accepted)), value) => one(&path, value, accepted)?,
            (Known::Above, Value::Object(inner)) => below(&path, inner, acts)?,
            (Known::Above, _) => return Err(format!("strict decoding error: {path}: not a map")),
            (Known::No, _) => {
                return Err(format!("strict decoding error: unknown field {path:?}"));
            }
        }
    }
    Ok(())
}

fn one(path: &str, value: &Value, accepted: &[&str]) -> Result<(), String> {
    let parsed = accepted.iter().filter_map(|text| serde_json::from_str::<Value>(text).ok());
    if parsed.into_iter().any(|accepted| same(value, &accepted)) {
        return Ok(());
    }
    let default = accepted.first().copied().unwrap_or("unset");
    Err(format!(
        "invalid configuration: {path}: {value} is not supported by this kubelet, only the default, {default}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn checked(value: Value) -> Result<(), String> {
        let Value::Object(fields) = value else { unreachable!() };
        check(&fields, &|name| name == "maxPods")
    }

    #[test]
    fn defaults_are_accepted_and_other_values_are_not() {
        for (value, refused) in [
            (json!({"maxPods": 5}), None),
            (json!({"hairpinMode": "promiscuous-bridge"}), None),
            (json!({"hairpinMode": "none"}), Some("hairpinMode")),
            (json!({"volumeStatsAggPeriod": "60s"}), None),
            (json!({"volumeStatsAggPeriod": "0s"}), None),
            (json!({"volumeStatsAggPeriod": "2m"}), Some("volumeStatsAggPeriod")),
            (json!({"memoryThrottlingFactor": 0.9}), None),
            (json!({"kubeAPIQPS": 0}), Some("kubeAPIQPS")),
            (
                json!({"logging": {"options": {"json": {"infoBufferSize": "0"}}, "verbosity": 0}}),
                None,
            ),
            (json!({"logging": {"format": "json"}}), Some("logging.format")),
            (json!({"logging": {"colour": true}}), Some("unknown field \"logging.colour\"")),
            (json!({"memorySwap": {}}), None),
            (
                json!({"memorySwap": {"swapBehavior": "LimitedSwap"}}),
                Some("memorySwap.swapBehavior"),
            ),
            (json!({"singleProcessOOMKill": true}), Some("only the default, unset")),
            (json!({"maxPod": 5}), Some("strict decoding error: unknown field \"maxPod\"")),
        ] {
            match (checked(value.clone()), refused) {
                (Ok(()), None) => {}
                (Err(error), Some(part)) if error.contains(part) => {}
                (result, _) => panic!("{value}: {result:?}"),
            }
        }
    }

    #[test]
    fn rows_are_json_and_in_order() {
        for (field, accepted) in UNSUPPORTED {
            for text in *accepted {
                assert!(serde_json::from_str::<Value>(text).is_ok(), "{field}: {text}");
            }
        }
        assert!(UNSUPPORTED.windows(2).all(|pair| pair[0].0 < pair[1].0));
    }
}
