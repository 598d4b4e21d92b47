//! `/healthz`, `/livez` and `/readyz`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Response;

use crate::api::Api;
use crate::query::Query;
use crate::respond::{self, Body};

/// How long the store may take to answer.
const STORE: Duration = Duration::from_secs(2);

/// What the checks look at beside the server's state.
#[derive(Default)]
pub(crate) struct Health {
    bootstrapped: AtomicBool,
}

impl Health {
    /// The objects that every cluster starts with are there.
    pub(crate) fn set_bootstrapped(&self) {
        self.bootstrapped.store(true, Ordering::Release);
    }
}

/// A check's name, and whether it holds.
struct Check {
    name: &'static str,
    result: Result<(), String>,
}

async fn checks(api: &Api, what: &str) -> Vec<Check> {
    let store = match tokio::time::timeout(STORE, api.store.current_revision()).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("timed out".to_owned()),
    };
    let mut all = vec![
        Check { name: "ping", result: Ok(()) },
        Check { name: "log", result: Ok(()) },
        Check { name: "etcd", result: store.clone() },
    ];
    if what == "readyz" {
        all.push(Check { name: "etcd-readiness", result: store });
        let lagging: Vec<String> = api
            .catalog()
            .caches()
            .iter()
            .filter(|cache| !cache.is_ready())
            .map(|cache| cache.prefix().to_owned())
            .collect();
        let result = match lagging.as_slice() {
            [] => Ok(()),
            some => Err(format!("not synced: {}", some.join(", "))),
        };
        all.push(Check { name: "informer-sync", result });
    }
    let bootstrapped = api.health.bootstrapped.load(Ordering::Acquire);
    let started = if bootstrapped { Ok(()) } else { Err("not finished".to_owned()) };
    let settled = match api.extensions.is_settled() {
        true => Ok(()),
        false => Err("not all definitions are in service".to_owned()),
    };
    all.push(Check { name: "poststarthook/crd-informer-synced", result: settled });
    all.push(Check { name: "poststarthook/start-apiserver-admission-initializer", result: Ok(()) });
    all.push(Check { name: "poststarthook/rbac/bootstrap-roles", result: started.clone() });
    all.push(Check { name: "poststarthook/bootstrap-controller", result: started });
    if what == "readyz" {
        let result = if api.draining.is_cancelled() {
            Err("process is shutting down".to_owned())
        } else {
            Ok(())
        };
        all.push(Check { name: "shutdown", result });
    }
    all
}

/// Answers a health path; `None`: there is no such check.
pub(crate) async fn answer(api: &Api, path: &str, query: &Query) -> Option<Response<Body>> {
    let mut parts = path.strip_prefix('/')?.splitn(2, '/');
    let what = parts.next().filter(|w| matches!(*w, "healthz" | "livez" | "readyz"))?;
    let all = checks(api, what).await;
    if let Some(one) = parts.next() {
        let check = all.iter().find(|c| c.name == one)?;
        return Some(match &check.result {
            Ok(()) => respond::text(200, "ok"),
            Err(why) => respond::text(500, format!("internal server error: {why}\n")),
        });
    }
    let excluded: Vec<&str> = query.all("exclude").collect();
    let unknown = unknown_names(&excluded, &all);
    let (mut report, mut failed) = (String::new(), false);
    for check in all {
        if excluded.contains(&check.name) {
            report.push_str(&format!("[+]{} excluded: ok\n", check.name));
            continue;
        }
        match check.result {
            Ok(()) => report.push_str(&format!("[+]{} ok\n", check.name)),
            Err(why) => {
                tracing::debug!(check = check.name, why, "health check failed");
                failed = true;
                report.push_str(&format!("[-]{} failed: reason withheld\n", check.name));
            }
        }
    }
    report.push_str(&unknown);
    let mut response = if failed {
        respond::text(500, format!("{report}{what} check failed\n"))
    } else if query.get("verbose").is_some() {
        respond::text(200, format!("{report}{what} check passed\n"))
    } else {
        respond::text(200, "ok")
    };
    respond::no_sniffing(&mut response);
    Some(response)
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
    fn names_without_a_check_are_told() {
        let checks = [Check { name: "etcd", result: Ok(()) }];
        assert_eq!(unknown_names(&["etcd"], &checks), "");
        assert_eq!(
            unknown_names(&["foo", "etcd", "bar", "foo"], &checks),
            "warn: some health checks cannot be excluded: no matches for \"bar\",\"foo\"\n"
        );
    }
}
