//! Upstream's controllers by name (`cmd/kube-controller-manager/names`), for `--controllers`.

use std::str::FromStr;

/// Each controller's name and its older one. Those that do not run here are known all the same, so
/// that command lines need not be changed.
const KNOWN: &[(&str, &str)] = &[
    ("bootstrap-signer-controller", "bootstrapsigner"),
    ("certificatesigningrequest-approving-controller", "csrapproving"),
    ("certificatesigningrequest-cleaner-controller", "csrcleaner"),
    ("certificatesigningrequest-signing-controller", "csrsigning"),
    ("cloud-node-lifecycle-controller", "cloud-node-lifecycle"),
    ("clusterrole-aggregation-controller", "clusterrole-aggregation"),
    ("cronjob-controller", "cronjob"),
    ("daemonset-controller", "daemonset"),
    ("deployment-controller", "deployment"),
    ("device-taint-eviction-controller", ""),
    ("disruption-controller", "disruption"),
    ("endpoints-controller", "endpoint"),
    ("endpointslice-controller", "endpointslice"),
    ("endpointslice-mirroring-controller", "endpointslicemirroring"),
    ("ephemeral-volume-controller", "ephemeral-volume"),
    ("garbage-collector-controller", "garbagecollector"),
    ("horizontal-pod-autoscaler-controller", "horizontalpodautoscaling"),
    ("job-controller", "job"),
    ("kube-apiserver-serving-clustertrustbundle-publisher-controller", ""),
    ("legacy-serviceaccount-token-cleaner-controller", "legacy-service-account-token-cleaner"),
    ("namespace-controller", "namespace"),
    ("node-ipam-controller", "nodeipam"),
    ("node-lifecycle-controller", "nodelifecycle"),
    ("node-route-controller", "route"),
    ("persistentvolume-attach-detach-controller", "attachdetach"),
    ("persistentvolume-binder-controller", "persistentvolume-binder"),
    ("persistentvolume-expander-controller", "persistentvolume-expander"),
    ("persistentvolume-protection-controller", "pv-protection"),
    ("persistentvolumeclaim-protection-controller", "pvc-protection"),
    ("pod-garbage-collector-controller", "podgc"),
    ("podcertificaterequest-cleaner-controller", ""),
    ("replicaset-controller", "replicaset"),
    ("replicationcontroller-controller", "replicationcontroller"),
    ("resourceclaim-controller", "resource-claim-controller"),
    ("resourcequota-controller", "resourcequota"),
    ("root-ca-certificate-publisher-controller", "root-ca-cert-publisher"),
    ("selinux-warning-controller", ""),
    ("service-cidr-controller", ""),
    ("service-lb-controller", "service"),
    ("serviceaccount-controller", "serviceaccount"),
    ("serviceaccount-token-controller", "serviceaccount-token"),
    ("statefulset-controller", "statefulset"),
    ("storage-version-migrator-controller", "svm"),
    ("storageversion-garbage-collector-controller", "storage-version-gc"),
    ("taint-eviction-controller", ""),
    ("token-cleaner-controller", "tokencleaner"),
    ("ttl-after-finished-controller", "ttl-after-finished"),
    ("ttl-controller", "ttl"),
    ("validatingadmissionpolicy-status-controller", ""),
    ("volumeattributesclass-protection-controller", ""),
];

/// Those that run only when they are named.
const OFF: &[&str] =
    &["bootstrap-signer-controller", "selinux-warning-controller", "token-cleaner-controller"];

/// Whether `*` is not for a controller.
pub fn is_off_by_default(name: &str) -> bool {
    OFF.contains(&name)
}

/// One entry of `--controllers`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// `*`: all that run by default.
    All,
    Run(&'static str),
    LeaveOut(&'static str),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::All);
        }
        let name = text.strip_prefix('-').unwrap_or(text);
        let found = KNOWN.iter().find(|(n, old)| *n == name || (*old == name && !old.is_empty()));
        match found {
            Some((known, _)) if text.starts_with('-') => Ok(Self::LeaveOut(known)),
            Some((known, _)) => Ok(Self::Run(known)),
            None => Err(format!("{name:?} is not in the list of known controllers")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_old_and_new_are_known_and_others_refused() {
        for (text, want) in [
            ("*", Ok(Choice::All)),
            ("job", Ok(Choice::Run("job-controller"))),
            ("-job-controller", Ok(Choice::LeaveOut("job-controller"))),
            ("bootstrapsigner", Ok(Choice::Run("bootstrap-signer-controller"))),
            ("-jobs", Err("\"jobs\" is not in the list of known controllers".to_owned())),
            ("", Err("\"\" is not in the list of known controllers".to_owned())),
        ] {
            assert_eq!(text.parse::<Choice>(), want, "{text}");
        }
    }
}
