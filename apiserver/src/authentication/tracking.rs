//! The ConfigMap that says since when servers track the use of tokens in Secrets: who cleans up
//! unused ones must not take those for unused that nobody watched (KEP-2799; upstream:
//! `controlplane/controller/legacytokentracking`).

use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::GroupResource;
use apimachinery::legacy_tokens::{SINCE, TRACKING, day, read_day};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use http::Method;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::Api;
use crate::pipeline::local;
use crate::reader::Reader as _;

/// One that was taken away is not made again sooner: servers that do not track take it away, and
/// the two kinds would fight.
const BETWEEN: Duration = Duration::from_secs(30 * 60);
/// After a write that failed.
const RETRY: Duration = Duration::from_millis(500);
/// How long the cache is waited for, each time.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is to be done about the ConfigMap.
#[derive(Debug, PartialEq)]
enum Step {
    /// Nothing, until it changes or this time has passed.
    Wait(Option<Duration>),
    /// There is none.
    Create(Value),
    /// It says no day.
    Replace(Value),
}

/// `made`: how long ago this server made one.
fn step(map: Option<&Value>, made: Option<Duration>, today: &str) -> Step {
    let (namespace, name) = TRACKING;
    let Some(map) = map else {
        let left = made.and_then(|ago| BETWEEN.checked_sub(ago)).filter(|left| !left.is_zero());
        return match left {
            Some(left) => Step::Wait(Some(left)),
            None => Step::Create(json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"namespace": namespace, "name": name}, "data": {SINCE: today}})),
        };
    };
    if read_day(object::str_at(map, &["data", SINCE])).is_some() {
        return Step::Wait(None);
    }
    let mut repaired = map.clone();
    object::set(&mut repaired, &["apiVersion"], "v1");
    object::set(&mut repaired, &["kind"], "ConfigMap");
    object::set(&mut repaired, &["data", SINCE], today);
    Step::Replace(repaired)
}

/// Keeps the ConfigMap, until it is cancelled.
pub(crate) async fn run(api: Arc<Api>, stop: CancellationToken) {
    let maps = GroupResource::new("", "configmaps");
    let Some(cache) = api.catalog().cache(&maps).cloned() else { return };
    let following = async {
        while cache.wait_ready(PATIENCE).await.is_err() {
            tracing::warn!(prefix = cache.prefix(), "the cache is not ready yet");
        }
        let mut changes = api.caches.changes(std::slice::from_ref(&maps));
        let mut made = None;
        let mut again = None;
        loop {
            tokio::select! {
                () = changes.next() => {}
                () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => {}
            }
            again = keep(&api, &maps, &mut made).await;
        }
    };
    stop.run_until_cancelled(following).await;
}

/// Does what is to be done. Returns when to look again if nothing changes.
async fn keep(
    api: &Arc<Api>,
    maps: &GroupResource,
    made: &mut Option<Instant>,
) -> Option<Duration> {
    let (namespace, name) = TRACKING;
    let found = api.caches.get(maps, namespace, name);
    let collection = format!("/api/v1/namespaces/{namespace}/configmaps");
    // What somebody else was faster with will be seen.
    let failed = match step(found.as_deref(), made.map(|at| at.elapsed()), &day(api.now())) {
        Step::Wait(time) => return time,
        Step::Create(map) => match local(api, Method::POST, &collection, Some(map)).await {
            Ok(_) | Err(ApiError::AlreadyExists { .. }) => {
                *made = Some(Instant::now());
                return None;
            }
            Err(error) => error,
        },
        Step::Replace(map) => {
            match local(api, Method::PUT, &format!("{collection}/{name}"), Some(map)).await {
                Ok(_) | Err(ApiError::Conflict { .. } | ApiError::NotFound { .. }) => return None,
                Err(error) => error,
            }
        }
    };
    tracing::debug!(error = %failed, name, "the ConfigMap cannot be written");
    Some(RETRY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_or_repaired_when_it_says_no_day() {
        const TODAY: &str = "2026-02-01";
        enum Want {
            Wait(Option<u64>),
            Create,
            Replace,
        }
        let (some, minutes) = (|data: Value| Some(json!({"data": data})), 60);
        for (map, made, want) in [
            (None, None, Want::Create),
            (None, Some(10), Want::Wait(Some(20))),
            (None, Some(30), Want::Create),
            (None, Some(31), Want::Create),
            (some(json!({"since": "2026-01-31"})), None, Want::Wait(None)),
            (some(json!({"since": "2026-01-31"})), Some(1), Want::Wait(None)),
            (some(json!({"since": "2026-01-32", "other": "x"})), Some(1), Want::Replace),
            (some(json!({"other": "2026-01-31"})), None, Want::Replace),
            (Some(json!({})), None, Want::Replace),
        ] {
            let ago = made.map(|n| Duration::from_secs(n * minutes));
            match (step(map.as_ref(), ago, TODAY), want) {
                (Step::Wait(got), Want::Wait(left)) => {
                    assert_eq!(got, left.map(|n| Duration::from_secs(n * minutes)), "{made:?}");
                }
                (Step::Create(new), Want::Create) => {
                    assert_eq!(new["data"], json!({"since": TODAY}));
                    assert_eq!((object::namespace(&new), object::name(&new)), TRACKING);
                }
                (Step::Replace(new), Want::Replace) => {
                    assert_eq!(new["data"]["since"], TODAY);
                    let old = map.unwrap_or_default();
                    assert_eq!(new["data"]["other"], old["data"]["other"]);
                }
                (got, _) => panic!("{map:?} {made:?}: {got:?}"),
            }
        }
    }
}
