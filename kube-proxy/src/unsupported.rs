//! Upstream's flags that have no effect here, with what is so anyway: any other value is refused.
//! That is upstream's default, but for node ports on loopback addresses, which do not answer.

#[derive(Clone, Debug, Default)]
pub struct Unsupported;

impl component::cli::Table for Unsupported {
    const FLAGS: &'static [(&'static str, &'static str)] = &[
        ("bind-address", "0.0.0.0"),
        ("bind-address-hard-fail", "false"),
        ("config-sync-period", "15m0s"),
        ("healthz-port", "10256"),
        ("init-only", "false"),
        ("iptables-localhost-nodeports", "false"),
        ("ipvs-exclude-cidrs", ""),
        ("ipvs-min-sync-period", "1s"),
        ("ipvs-scheduler", ""),
        ("ipvs-strict-arp", "false"),
        ("ipvs-sync-period", "30s"),
        ("ipvs-tcp-timeout", "0s"),
        ("ipvs-tcpfin-timeout", "0s"),
        ("ipvs-udp-timeout", "0s"),
        ("kube-api-burst", "10"),
        ("kube-api-qps", "5"),
        ("metrics-port", "10249"),
        ("oom-score-adj", "-999"),
        ("profiling", "false"),
        ("write-config-to", ""),
    ];
}
