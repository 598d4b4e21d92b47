//! `/healthz`, `/livez` and `/readyz` (upstream: k8s.io/apiserver `server/healthz`, and the hooks of
//! kube-apiserver that are done after its start, under their names there).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Response;

use crate::api::Api;
use crate::query::Query;
use crate::respond::{self, Body};

/// How long the store may take to answer.
const STORE: Duration = Duration::from_secs(2);

/// The ways to ask.
const WAYS: [&str; 3] = ["healthz", "livez", "readyz"];

/// What is made at the start, and has to be there before the server is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Namespaces,
    Trust,
    Roles,
    PriorityClasses,
    Flow,
    Service,
    ServiceRange,
}

const STEPS: usize = 7;

/// What a hook of the start waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaits {
    /// Nothing: what it stands for begins before the server listens.
    Nothing,
    /// Definitions are in service.
    Definitions,
    Step(Step),
}

/// Hooks in upstream's order, without `poststarthook/`. Those of what this server does not do are
/// not there.
const HOOKS: [(&str, Awaits); 22] = [
    ("start-apiserver-admission-initializer", Awaits::Nothing),
    ("generic-apiserver-start-informers", Awaits::Nothing),
    ("max-in-flight-filter", Awaits::Nothing),
    ("start-apiextensions-informers", Awaits::Nothing),
    ("start-apiextensions-controllers", Awaits::Nothing),
    ("crd-informer-synced", Awaits::Definitions),
    ("start-system-namespaces-controller", Awaits::Step(Step::Namespaces)),
    ("start-cluster-authentication-info-controller", Awaits::Step(Step::Trust)),
    ("start-kube-apiserver-identity-lease-controller", Awaits::Nothing),
    ("start-kube-apiserver-identity-lease-garbage-collector", Awaits::Nothing),
    ("start-legacy-token-tracking-controller", Awaits::Nothing),
    ("rbac/bootstrap-roles", Awaits::Step(Step::Roles)),
    ("scheduling/bootstrap-system-priority-classes", Awaits::Step(Step::PriorityClasses)),
    ("priority-and-fairness-config-producer", Awaits::Step(Step::Flow)),
    ("bootstrap-controller", Awaits::Step(Step::Service)),
    ("start-kubernetes-service-cidr-controller", Awaits::Step(Step::ServiceRange)),
    ("start-kube-aggregator-informers", Awaits::Nothing),
    ("apiservice-status-remote-available-controller", Awaits::Nothing),
    ("apiservice-registration-controller", Awaits::Nothing),
    ("apiservice-discovery-controller", Awaits::Nothing),
    ("kube-apiserver-autoregistration", Awaits::Nothing),
    ("apiservice-openapiv3-controller", Awaits::Nothing),
];
/// The one before which it is said whether all APIServices of ours are there.
const BEFORE_COMPLETION: &str = "kube-apiserver-autoregistration";

/// What the checks look at beside the server's state.
pub(crate) struct Health {
    /// Whether roles are kept at all.
    roles: bool,
    done: [AtomicBool; STEPS],
}

impl Health {
    pub(crate) fn new(roles: bool) -> Self {
        Self { roles, done: Default::default() }
    }

    /// A step has been done, for the first time or again.
    pub(crate) fn set_done(&self, step: Step) {
        if let Some(done) = self.done.get(step as usize) {
            done.store(true, Ordering::Release);
        }
    }

    fn is_done(&self, step: Step) -> bool {
        self.done.get(step as usize).is_some_and(|done| done.load(Ordering::Acquire))
    }
}

/// A check's name, and whether it holds.
struct Check {
    name: String,
    result: Result<(), String>,
}

impl Check {
    fn new(name: &str, result: Result<(), String>) -> Self {
        Self { name: name.to_owned(), result }
    }

    fn hook(name: &str, finished: bool) -> Self {
        let result = if finished { Ok(()) } else { Err("not finished".to_owned()) };
        Self { name: format!("poststarthook/{name}"), result }
    }
}

/// Whether the store answers.
async fn ask_store(api: &Api) -> Result<(), String> {
    match tokio::time::timeout(STORE, api.store.current_revision()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("timed out".to_owned()),
    }
}

fn checks(api: &Api, what: &str, store: Result<(), String>) -> Vec<Check> {
    let mut all = vec![
        Check::new("ping", Ok(())),
        Check::new("log", Ok(())),
        Check::new("etcd", store.clone()),
    ];
    if what == "readyz" {
        all.push(Check::new("etcd-readiness", store));
        all.push(Check::new("informer-sync", synced(api)));
    }
    for (name, awaits) in HOOKS {
        let finished = match awaits {
            Awaits::Step(Step::Roles) if !api.health.roles => continue,
            Awaits::Nothing => true,
            Awaits::Definitions => api.extensions.is_settled(),
            Awaits::Step(step) => api.health.is_done(step),
        };
        all.push(Check::hook(name, finished));
        if name == BEFORE_COMPLETION {
            let result = match api.aggregation.missing(api).as_slice() {
                [] => Ok(()),
                names => Err(format!("missing APIService: [{}]", names.join(" "))),
            };
            all.push(Check::new("autoregister-completion", result));
        }
    }
    if what == "readyz" {
        let result = if api.draining.is_cancelled() {
            Err("process is shutting down".to_owned())
        } else {
            Ok(())
        };
        all.push(Check::new("shutdown", result));
    }
    all
}

/// Whether the caches have what there is.
fn synced(api: &Api) -> Result<(), String> {
    let catalog = api.catalog();
    let caches = catalog.caches();
    let lagging = caches.iter().filter(|cache| !cache.is_ready());
    let lagging: Vec<&str> = lagging.map(|cache| cache.prefix()).collect();
    match lagging.len() {
        0 => Ok(()),
        count => Err(format!("{count} informers not started yet: [{}]", lagging.join(" "))),
    }
}

/// All health paths.
pub(crate) fn paths(api: &Api) -> Vec<String> {
    let mut paths = Vec::new();
    for what in WAYS {
        paths.push(format!("/{what}"));
        let checks = checks(api, what, Ok(()));
        paths.extend(checks.iter().map(|check| format!("/{what}/{}", check.name)));
    }
    paths
}

/// Answers a health path; `None`: there is no such check.
pub(crate) async fn answer(api: &Api, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.strip_prefix('/')?.splitn(2, '/');
    let what = parts.next().filter(|w| WAYS.contains(w))?;
    let all = checks(api, what, ask_store(api).await);
    if let Some(one) = parts.next() {
        let check = all.iter().find(|c| c.name == one)?;
        return Some(match &check.result {
            Ok(()) => respond::text(200, "ok"),
            Err(why) => respond::text(500, format!("internal server error: {why}\n")),
        });
    }
    for check in &all {
        if let Err(why) = &check.result {
            tracing::debug!(check = check.name, why, "health check failed");
        }
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let (code, text) = report(what, &all, &excluded, query.get("verbose").is_some());
    let mut response = respond::text(code, text);
    respond::no_sniffing(&mut response);
    Some(response)
}

/// What is said of all checks: everything when one fails or it is asked for. Why one fails is for
/// those alone who may ask it by its name.
fn report(what: &str, checks: &[Check], excluded: &[&str], verbose: bool) -> (u16, String) {
    let (mut text, mut failed) = (String::new(), false);
    for check in checks {
        let name = &check.name;
        let line = match &check.result {
            _ if excluded.contains(&name.as_str()) => format!("[+]{name} excluded: ok\n"),
            Ok(()) => format!("[+]{name} ok\n"),
            Err(_) => {
                failed = true;
                format!("[-]{name} failed: reason withheld\n")
            }
        };
        text.push_str(&line);
    }
    text.push_str(&unknown_names(excluded, checks));
    match (failed, verbose) {
        (true, _) => (500, format!("{text}{what} check failed\n")),
        (false, true) => (200, format!("{text}{what} check passed\n")),
        (false, false) => (200, "ok".to_owned()),
    }
}

/// A line about names that are to be left out and that no check has.
fn unknown_names(excluded: &[&str], checks: &[Check]) -> String {
    let mut names: Vec<&str> =
        excluded.iter().copied().filter(|e| checks.iter().all(|c| c.name != *e)).collect();
    if names.is_empty() {
        return String::new();
    }
    names.sort_unstable();
    names.dedup();
    let quoted: Vec<String> = names.into_iter().map(apimachinery::field::quote).collect();
    format!("warn: some health checks cannot be excluded: no matches for {}\n", quoted.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_are_as_upstream_writes_them() {
        let good = [Check::new("ping", Ok(())), Check::hook("a/b", true)];
        let bad = [Check::new("ping", Ok(())), Check::hook("a/b", false)];
        let hook = "poststarthook/a/b";
        let cases: [(&[Check], &[&str], bool, u16, &str); 6] = [
            (&good, &[], false, 200, "ok"),
            (&good, &[], true, 200, "[+]ping ok\n[+]poststarthook/a/b ok\nreadyz check passed\n"),
            (
                &bad,
                &[],
                false,
                500,
                "[+]ping ok\n[-]poststarthook/a/b failed: reason withheld\nreadyz check failed\n",
            ),
            (&bad, &[hook], false, 200, "ok"),
            (
                &bad,
                &[hook],
                true,
                200,
                "[+]ping ok\n[+]poststarthook/a/b excluded: ok\nreadyz check passed\n",
            ),
            (
                &good,
                &["foo", "ping", "bar", "foo"],
                true,
                200,
                "[+]ping excluded: ok\n[+]poststarthook/a/b ok\n\
                 warn: some health checks cannot be excluded: no matches for \"bar\",\"foo\"\n\
                 readyz check passed\n",
            ),
        ];
        for (checks, excluded, verbose, code, text) in cases {
            let got = report("readyz", checks, excluded, verbose);
            assert_eq!(got, (code, text.to_owned()), "{excluded:?} {verbose}");
        }
    }

    #[test]
    fn each_step_is_awaited_once() {
        let health = Health::new(true);
        let steps: Vec<Step> = HOOKS
            .iter()
            .filter_map(|(_, awaits)| match awaits {
                Awaits::Step(step) => Some(*step),
                _ => None,
            })
            .collect();
        assert_eq!(steps.len(), STEPS);
        for step in steps {
            assert!(!health.is_done(step), "{step:?}");
            health.set_done(step);
            assert!(health.is_done(step), "{step:?}");
        }
    }
}
