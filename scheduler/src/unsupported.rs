//! Upstream's flags that have no effect here, with upstream's defaults: any other value is refused.

#[derive(Clone, Debug)]
pub struct Unsupported;

impl component::cli::Table for Unsupported {
    const FLAGS: &'static [(&'static str, &'static str)] = &[
        ("allow-metric-labels", ""),
        ("allow-metric-labels-manifest", ""),
        ("authentication-tolerate-lookup-failure", "true"),
        ("cert-dir", ""),
        ("disable-http2-serving", "false"),
        ("disabled-metrics", ""),
        ("emulated-version", ""),
        ("http2-max-streams-per-connection", "0"),
        ("kube-api-burst", "100"),
        ("kube-api-qps", "50"),
        ("min-compatibility-version", ""),
        ("permit-address-sharing", "false"),
        ("permit-port-sharing", "false"),
        ("pod-max-in-unschedulable-pods-duration", "5m0s"),
        ("tls-cipher-suites", ""),
        ("tls-min-version", ""),
        ("tls-sni-cert-key", ""),
        ("write-config-to", ""),
    ];
}
