//! Which plugins run, and in which order (upstream: `kubeapiserver/options/plugins.go`).

use std::sync::Arc;

use super::Plugin;
use super::limit_ranger::LimitRanger;
use super::lookup::{Live, Lookup};
use super::namespace_lifecycle::NamespaceLifecycle;
use super::node_restriction::NodeRestriction;
use super::node_taint::TaintNodesByCondition;
use super::pod_security::PodSecurity;
use super::priority::Priority;
use super::resource_quota::{ResourceQuota, ledger::Ledger};
use super::runtime_class::RuntimeClass;
use super::service_account::ServiceAccount;
use super::tolerations::DefaultTolerationSeconds;
use super::topology_labels::PodTopologyLabels;
use super::{certificates, storage};
use crate::authentication::Clock;
use crate::authorization::Authorizer;
use crate::reader::Reader;

/// All plugins that upstream knows, in the order that they run, and whether they run by default.
pub const ORDER: [(&str, bool); 37] = [
    ("AlwaysAdmit", false),
    ("NamespaceAutoProvision", false),
    ("NamespaceLifecycle", true),
    ("NamespaceExists", false),
    ("LimitPodHardAntiAffinityTopology", false),
    ("LimitRanger", true),
    ("ServiceAccount", true),
    ("NodeRestriction", false),
    ("TaintNodesByCondition", true),
    ("AlwaysPullImages", false),
    ("ImagePolicyWebhook", false),
    ("PodSecurity", true),
    ("PodNodeSelector", false),
    ("Priority", true),
    ("DefaultTolerationSeconds", true),
    ("PodTolerationRestriction", false),
    ("EventRateLimit", false),
    ("ExtendedResourceToleration", false),
    ("DefaultStorageClass", true),
    ("StorageObjectInUseProtection", true),
    ("OwnerReferencesPermissionEnforcement", false),
    ("PersistentVolumeClaimResize", true),
    ("RuntimeClass", true),
    ("CertificateApproval", true),
    ("CertificateSigning", true),
    ("ClusterTrustBundleAttest", true),
    ("CertificateSubjectRestriction", true),
    ("DefaultIngressClass", true),
    ("DenyServiceExternalIPs", false),
    ("PodTopologyLabels", true),
    ("NodeDeclaredFeatureValidator", true),
    ("MutatingAdmissionPolicy", true),
    ("MutatingAdmissionWebhook", true),
    ("ValidatingAdmissionPolicy", true),
    ("ValidatingAdmissionWebhook", true),
    ("ResourceQuota", true),
    ("AlwaysDeny", false),
];

/// What plugins are made of, and which are wanted.
pub struct Config {
    pub reader: Arc<dyn Reader>,
    /// Reads past the caches, for what was written a moment ago.
    pub live: Option<Arc<dyn Live>>,
    pub authorizer: Arc<dyn Authorizer>,
    /// Where quotas are charged; without one they are not.
    pub quotas: Option<Arc<dyn Ledger>>,
    pub clock: Clock,
    /// `--enable-admission-plugins`
    pub enable: Vec<String>,
    /// `--disable-admission-plugins`
    pub disable: Vec<String>,
    /// `--default-not-ready-toleration-seconds`
    pub not_ready_toleration_seconds: i64,
    /// `--default-unreachable-toleration-seconds`
    pub unreachable_toleration_seconds: i64,
    /// Plugins that are made elsewhere; each runs in its place by its name.
    pub others: Vec<Arc<dyn Plugin>>,
}

/// Flags that name plugins which cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{flag} plugin {plugin:?} is unknown")]
    Unknown { flag: &'static str, plugin: String },
    #[error("{0:?} in enable-admission-plugins and disable-admission-plugins overlapped")]
    Overlap(Vec<String>),
    #[error("enable-admission-plugins plugin {0:?} is not implemented")]
    NotImplemented(String),
}

fn build(name: &str, config: &Config) -> Option<Arc<dyn Plugin>> {
    if let Some(other) = config.others.iter().find(|p| p.name() == name) {
        return Some(other.clone());
    }
    let lookup = || Lookup { reader: config.reader.clone(), live: config.live.clone() };
    Some(match name {
        "NamespaceLifecycle" => Arc::new(NamespaceLifecycle::new(lookup(), config.clock.clone())),
        "LimitRanger" => Arc::new(LimitRanger(config.reader.clone())),
        "ResourceQuota" => {
            let ledger = config.quotas.clone()?;
            Arc::new(ResourceQuota::new(lookup(), ledger, config.clock.clone()))
        }
        "ServiceAccount" => Arc::new(ServiceAccount::new(lookup())),
        "NodeRestriction" => {
            Arc::new(NodeRestriction::new(config.reader.clone(), config.authorizer.clone()))
        }
        "TaintNodesByCondition" => Arc::new(TaintNodesByCondition),
        "PodSecurity" => Arc::new(PodSecurity::new(lookup())),
        "Priority" => Arc::new(Priority::new(config.reader.clone())),
        "DefaultTolerationSeconds" => Arc::new(DefaultTolerationSeconds {
            not_ready: config.not_ready_toleration_seconds,
            unreachable: config.unreachable_toleration_seconds,
        }),
        "DefaultStorageClass" => Arc::new(storage::DefaultStorageClass(config.reader.clone())),
        "DefaultIngressClass" => Arc::new(storage::DefaultIngressClass(config.reader.clone())),
        "StorageObjectInUseProtection" => Arc::new(storage::StorageObjectInUseProtection),
        "PersistentVolumeClaimResize" => {
            Arc::new(storage::PersistentVolumeClaimResize(config.reader.clone()))
        }
        "CertificateApproval" => {
            Arc::new(certificates::CertificateApproval(config.authorizer.clone()))
        }
        "CertificateSigning" => {
            Arc::new(certificates::CertificateSigning(config.authorizer.clone()))
        }
        "CertificateSubjectRestriction" => Arc::new(certificates::CertificateSubjectRestriction),
        "PodTopologyLabels" => Arc::new(PodTopologyLabels(config.reader.clone())),
        "RuntimeClass" => Arc::new(RuntimeClass::new(lookup())),
        _ => return None,
    })
}

/// The plugins to run, in upstream's order. Defaults that do not exist yet are left out.
///
/// # Errors
/// A flag names what upstream does not know, names a plugin both ways, or asks for one that does
/// not exist.
pub fn plugins(config: &Config) -> Result<Vec<Arc<dyn Plugin>>, ConfigError> {
    let known = |name: &String| ORDER.iter().any(|(n, _)| n == name);
    let flags = [
        ("enable-admission-plugins", &config.enable),
        ("disable-admission-plugins", &config.disable),
    ];
    for (flag, names) in flags {
        if let Some(plugin) = names.iter().find(|name| !known(name)) {
            return Err(ConfigError::Unknown { flag, plugin: plugin.clone() });
        }
    }
    let both: Vec<String> =
        config.enable.iter().filter(|name| config.disable.contains(name)).cloned().collect();
    if !both.is_empty() {
        return Err(ConfigError::Overlap(both));
    }
    let mut plugins = Vec::new();
    for (name, default) in ORDER {
        let is = |n: &String| n == name;
        let enabled = config.enable.iter().any(is);
        if !(enabled || default) || config.disable.iter().any(is) {
            continue;
        }
        match build(name, config) {
            Some(plugin) => plugins.push(plugin),
            None if enabled => return Err(ConfigError::NotImplemented(name.to_owned())),
            None => tracing::debug!(plugin = name, "admission plugin left out"),
        }
    }
    Ok(plugins)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authorization::AlwaysAllow;
    use crate::authorization::testing::Memory;

    fn names(enable: &[&str], disable: &[&str]) -> Result<Vec<&'static str>, String> {
        let owned = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let config = Config {
            reader: Arc::new(Memory::default()),
            live: None,
            authorizer: Arc::new(AlwaysAllow),
            quotas: None,
            clock: Arc::new(|| jiff::Timestamp::UNIX_EPOCH),
            enable: owned(enable),
            disable: owned(disable),
            not_ready_toleration_seconds: 300,
            unreachable_toleration_seconds: 300,
            others: Vec::new(),
        };
        let made = plugins(&config).map_err(|e| e.to_string())?;
        Ok(made.iter().map(|p| p.name()).collect())
    }

    #[test]
    fn flags_choose_plugins() {
        let default = [
            "NamespaceLifecycle",
            "LimitRanger",
            "ServiceAccount",
            "TaintNodesByCondition",
            "PodSecurity",
            "Priority",
            "DefaultTolerationSeconds",
            "DefaultStorageClass",
            "StorageObjectInUseProtection",
            "PersistentVolumeClaimResize",
            "RuntimeClass",
            "CertificateApproval",
            "CertificateSigning",
            "CertificateSubjectRestriction",
            "DefaultIngressClass",
            "PodTopologyLabels",
        ];
        assert_eq!(names(&[], &[]).as_deref(), Ok(&default[..]));
        let restricted = names(&["NodeRestriction", "Priority"], &["PodSecurity"]).expect("valid");
        assert_eq!(restricted.get(3), Some(&"NodeRestriction"));
        assert!(!restricted.contains(&"PodSecurity"));
        let cases: [(&[&str], &[&str], &str); 4] = [
            (&["Foo"], &[], r#"enable-admission-plugins plugin "Foo" is unknown"#),
            (&[], &["Foo"], r#"disable-admission-plugins plugin "Foo" is unknown"#),
            (
                &["AlwaysPullImages"],
                &[],
                r#"enable-admission-plugins plugin "AlwaysPullImages" is not implemented"#,
            ),
            (
                &["Priority"],
                &["Priority"],
                r#"["Priority"] in enable-admission-plugins and disable-admission-plugins overlapped"#,
            ),
        ];
        for (enable, disable, want) in cases {
            assert_eq!(names(enable, disable).err().as_deref(), Some(want));
        }
    }
}
