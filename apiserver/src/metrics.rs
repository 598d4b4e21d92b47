//! What `/metrics` shows, under upstream's names: counts of requests, and what is read when it is
//! asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use component::metrics::{Histogram, Kind, Page};
use parking_lot::Mutex;

use crate::api::Api;
use crate::request::RequestInfo;

/// Upper bounds of the histogram, in seconds.
const BOUNDS: [f64; 23] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
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

    fn all(&self) -> [(&'static str, &str); 8] {
        [
            ("component", "apiserver"),
            ("dry_run", ""),
            ("group", &self.group),
            ("resource", &self.resource),
            ("scope", self.scope),
            ("subresource", &self.subresource),
            ("verb", &self.verb),
            ("version", &self.version),
        ]
    }
}

struct Series {
    codes: BTreeMap<u16, u64>,
    took: Histogram,
}

impl Default for Series {
    fn default() -> Self {
        Self { codes: BTreeMap::new(), took: Histogram::new(&BOUNDS) }
    }
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
        if let Some(took) = took {
            series.took.observe(took.as_secs_f64());
        }
    }

    /// Puts them on a page.
    fn write(&self, page: &mut Page) {
        let all = self.series.lock();
        let family = "apiserver_request_total";
        page.family(family, Kind::Counter, "Counter of apiserver requests broken out for each verb, dry run value, group, version, resource, scope, component, and HTTP response code.");
        for (labels, series) in all.iter() {
            for (code, count) in &series.codes {
                let code = code.to_string();
                let labels = [&[("code", code.as_str())][..], &labels.all()].concat();
                page.sample(family, &labels, *count as f64);
            }
        }
        let family = "apiserver_request_duration_seconds";
        page.family(family, Kind::Histogram, "Response latency distribution in seconds for each verb, dry run value, group, version, resource, subresource, scope and component.");
        for (labels, series) in all.iter().filter(|(_, s)| s.took.count() > 0) {
            page.histogram(family, &labels.all(), &series.took);
        }
    }
}

/// The text of `/metrics`.
pub(crate) async fn text(api: &Api) -> String {
    let mut page = Page::default();
    page.process();
    let size = api.store.size().await.unwrap_or(0);
    let family = "apiserver_storage_size_bytes";
    let help = "Size of the storage database file physically allocated in bytes.";
    page.family(family, Kind::Gauge, help);
    page.sample(family, &[("storage_cluster_id", "etcd-0")], size as f64);
    write_caches(api, &mut page);
    api.token_uses.write(&mut page);
    api.metrics.write(&mut page);
    page.text()
}

/// What the caches tell of their resources, a family after the other.
fn write_caches(api: &Api, page: &mut Page) {
    let catalog = api.catalog();
    let cached =
        || catalog.rows().iter().filter_map(|s| Some((s.gr.to_string(), s.cache.as_ref()?, s)));
    let family = "apiserver_storage_objects";
    page.family(family, Kind::Gauge, "[DEPRECATED, consider using apiserver_resource_objects instead] Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.");
    for (resource, cache, _) in cached() {
        page.sample(family, &[("resource", &resource)], cache.cut().objects.len() as f64);
    }
    let family = "apiserver_resource_objects";
    page.family(family, Kind::Gauge, "Number of stored objects at the time of last check split by kind. In case of a fetching error, the value will be -1.");
    for (_, cache, served) in cached() {
        let labels = [("group", served.gr.group.as_str()), ("resource", &served.gr.resource)];
        page.sample(family, &labels, cache.cut().objects.len() as f64);
    }
    let family = "apiserver_longrunning_requests";
    page.family(family, Kind::Gauge, "Gauge of all active long-running apiserver requests broken out by verb, group, version, resource, scope and component. Not all requests are tracked this way.");
    for (resource, cache, _) in cached() {
        page.sample(family, &[("resource", &resource)], cache.watchers() as f64);
    }
    let family = "apiserver_storage_consistency_checks_total";
    let help = "Counter for status of consistency checks between etcd and watch cache";
    page.family(family, Kind::Counter, help);
    for (_, cache, served) in cached() {
        let (group, resource) = (served.gr.group.as_str(), served.gr.resource.as_str());
        for (status, count) in cache.checks().counts() {
            let labels = [("group", group), ("resource", resource), ("status", status)];
            page.sample(family, &labels, count as f64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_they_ask() {
        let metrics = Metrics::default();
        let info = RequestInfo {
            is_resource: true,
            verb: "list".to_owned(),
            version: "v1".to_owned(),
            resource: "pods".to_owned(),
            ..RequestInfo::default()
        };
        metrics.answered(&info, 200, Some(Duration::from_millis(300)));
        metrics.answered(&info, 200, None);
        // Paths that nobody serves are counted together.
        let nowhere =
            RequestInfo { path: "/a\"b".to_owned(), verb: "get".to_owned(), ..<_>::default() };
        metrics.answered(&nowhere, 404, None);
        let mut page = Page::default();
        metrics.write(&mut page);
        let text = page.text();
        let of = |verb: &str, rest: [&str; 3]| {
            let [resource, scope, version] = rest;
            format!(
                "component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"{resource}\",\
                 scope=\"{scope}\",subresource=\"\",verb=\"{verb}\",version=\"{version}\""
            )
        };
        let (list, get) = (of("LIST", ["pods", "cluster", "v1"]), of("GET", ["", "", ""]));
        for line in [
            format!("apiserver_request_total{{code=\"200\",{list}}} 2\n"),
            format!("apiserver_request_total{{code=\"404\",{get}}} 1\n"),
            format!("apiserver_request_duration_seconds_bucket{{{list},le=\"0.2\"}} 0\n"),
            format!("apiserver_request_duration_seconds_bucket{{{list},le=\"0.4\"}} 1\n"),
            format!("apiserver_request_duration_seconds_count{{{list}}} 1\n"),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
        assert!(!text.contains(&format!("apiserver_request_duration_seconds_count{{{get}}}")));
    }
}
