//! Counters of requests, in Prometheus' text format, under upstream's names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use crate::request::RequestInfo;

/// Upper bounds of the histogram, in seconds (some of upstream's).
const BOUNDS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0];
/// Distinct label sets, at most: paths that clients invent must not fill the memory.
const MAX_SERIES: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Labels {
    group: String,
    resource: String,
    scope: &'static str,
    subresource: String,
    verb: String,
    version: String,
}

impl Labels {
    fn of(info: &RequestInfo) -> Self {
        let scope = match (info.is_resource, info.name.as_str(), info.namespace.as_str()) {
            (false, ..) => "",
            (_, "", "") => "cluster",
            (_, "", _) => "namespace",
            _ => "resource",
        };
        Self {
            group: info.group.clone(),
            resource: info.resource.clone(),
            scope,
            subresource: info.subresource.clone(),
            verb: info.verb.to_uppercase(),
            version: info.version.clone(),
        }
    }

    fn text(&self) -> String {
        format!(
            "group={:?},resource={:?},scope={:?},subresource={:?},verb={:?},version={:?}",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

#[derive(Default)]
struct Series {
    codes: BTreeMap<u16, u64>,
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: f64,
}

/// What was counted.
#[derive(Default)]
pub(crate) struct Metrics {
    series: Mutex<BTreeMap<Labels, Series>>,
}

impl Metrics {
    /// Counts an answer. `took`: absent for requests that last as long as the client wants.
    pub(crate) fn answered(&self, info: &RequestInfo, code: u16, took: Option<Duration>) {
        // A path that is served by nobody is counted with the others like it.
        let known = info.is_resource && code != 404;
        let labels = if known {
            Labels::of(info)
        } else {
            Labels::of(&RequestInfo { verb: info.verb.clone(), ..Default::default() })
        };
        let mut all = self.series.lock();
        if all.len() >= MAX_SERIES && !all.contains_key(&labels) {
            return;
        }
        let series = all.entry(labels).or_default();
        *series.codes.entry(code).or_default() += 1;
        if let Some(took) = took.map(|t| t.as_secs_f64()) {
            series.count += 1;
            series.sum += took;
            for (bucket, bound) in series.buckets.iter_mut().zip(BOUNDS) {
                *bucket += u64::from(took <= bound);
            }
        }
    }

    /// The text of `/metrics`, with gauges that are read now.
    pub(crate) fn text(&self, gauges: &[(&str, &str, f64)]) -> String {
        let mut out = String::new();
        for (name, labels, value) in gauges {
            let _ = writeln!(out, "{name}{{{labels}}} {value}");
        }
        let all = self.series.lock();
        out.push_str("# HELP apiserver_request_total Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.\n# TYPE apiserver_request_total counter\n");
        for (labels, series) in all.iter() {
            for (code, count) in &series.codes {
                let _ = writeln!(
                    out,
                    "apiserver_request_total{{code=\"{code}\",component=\"apiserver\",dry_run=\"\",{}}} {count}",
                    labels.text()
                );
            }
        }
        out.push_str("# HELP apiserver_request_duration_seconds Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (labels, series) in all.iter().filter(|(_, s)| s.count > 0) {
            let text = labels.text();
            let base = "apiserver_request_duration_seconds";
            for (bucket, bound) in series.buckets.iter().zip(BOUNDS) {
                let _ = writeln!(
                    out,
                    "{base}_bucket{{component=\"apiserver\",dry_run=\"\",{text},le=\"{bound}\"}} {bucket}"
                );
            }
            let _ = writeln!(
                out,
                "{base}_bucket{{component=\"apiserver\",dry_run=\"\",{text},le=\"+Inf\"}} {}",
                series.count
            );
            let _ = writeln!(
                out,
                "{base}_sum{{component=\"apiserver\",dry_run=\"\",{text}}} {}",
                series.sum
            );
            let _ = writeln!(
                out,
                "{base}_count{{component=\"apiserver\",dry_run=\"\",{text}}} {}",
                series.count
            );
        }
        out
    }
}
