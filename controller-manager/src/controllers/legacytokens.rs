//! Tokens that Secrets hold and nobody asked for are refused when they have not been used for long,
//! and deleted when they have been refused for long (KEP-2799,
//! `pkg/controller/serviceaccount/legacy_serviceaccount_token_cleaner.go`).
//!
//! Each Secret is looked at when it appears, and once a day from then on, but not when it changes:
//! who lets a refused token be used again has a day to use it.

use std::time::Duration;

use apimachinery::legacy_tokens::{INVALID_SINCE, LAST_USED, SINCE, TRACKING, day, read_day};
use client::{Cache, Key, Queue};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::ResourceExt;
use serde_json::json;

use super::tokens;
use crate::action::{Action, Plan, Target, Unless};
use crate::runner::{Context, Controller};

/// Its name for `--controllers`.
pub const NAME: &str = "legacy-serviceaccount-token-cleaner-controller";
/// How often a Secret is looked at.
const PERIOD: Duration = Duration::from_secs(24 * 3600);
const DAY: SignedDuration = SignedDuration::from_hours(24);

pub struct Cleaner {
    secrets: Cache<Secret>,
    accounts: Cache<ServiceAccount>,
    maps: Cache<ConfigMap>,
    unused: SignedDuration,
}

impl Cleaner {
    /// `unused`: how long a token may be so, and how long it is refused before it is deleted.
    pub fn new(context: &Context, unused: Duration) -> Self {
        let caches = &context.caches;
        Self {
            secrets: caches.selected(tokens::TYPE),
            accounts: caches.of(),
            maps: caches.of(),
            unused: SignedDuration::try_from(unused).unwrap_or(SignedDuration::MAX),
        }
    }
}

impl Controller for Cleaner {
    fn name(&self) -> &'static str {
        "legacy-service-account-token-cleaner"
    }

    fn wire(&self, queue: &Queue<Key>) {
        let q = queue.clone();
        self.secrets.on_change(move |change| {
            if change.old.is_none() {
                q.add(change.key.clone());
            }
        });
    }

    fn plan(&self, key: &Key, now: Timestamp) -> Plan {
        let Some(secret) = self.secrets.get(key) else { return Plan::default() };
        let account = self.accounts.get(&Key::new(&key.namespace, tokens::account_name(&secret)));
        let map = self.maps.get(&Key::new(TRACKING.0, TRACKING.1));
        let verdict = judge(&secret, account.as_deref(), map.as_deref(), self.unused, now);
        plan(&secret, verdict)
    }

    fn workers(&self) -> usize {
        1
    }
}

/// What becomes of a Secret.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Stays(Because),
    /// It is marked with this day, from which on its token is refused.
    Refused(String),
    Goes,
}

/// Why a Secret stays as it is.
#[derive(Debug, PartialEq, Eq)]
enum Because {
    /// Nothing says since when the use of tokens is tracked.
    Untracked,
    /// The use of tokens has not been tracked for long enough.
    NotTrackedForLong,
    /// It was made not long ago.
    New,
    /// It is being deleted.
    Ending,
    /// It was used not long ago.
    Used,
    /// Nobody can tell when it was used.
    UseUnknown,
    /// Its service account is gone, or does not list it, so that somebody made it.
    Manual,
    /// It has not been refused for long.
    RefusedNotForLong,
}

/// `unused` is how long a token may be so. Uses are known by the day: one on the first day that
/// counts is late enough.
fn judge(
    secret: &Secret,
    account: Option<&ServiceAccount>,
    map: Option<&ConfigMap>,
    unused: SignedDuration,
    now: Timestamp,
) -> Verdict {
    let since = map.and_then(|m| m.data.as_ref()?.get(SINCE)).and_then(|day| read_day(day));
    // Of its first day nobody knows when tracking began.
    let since = since.and_then(|day| day.to_zoned(jiff::tz::TimeZone::UTC).ok());
    let since = since.and_then(|day| day.timestamp().checked_add(DAY).ok());
    let Some(since) = since else { return Verdict::Stays(Because::Untracked) };
    let from = now.checked_sub(unused).unwrap_or(Timestamp::MIN);
    if from < since {
        return Verdict::Stays(Because::NotTrackedForLong);
    }
    if secret.metadata.creation_timestamp.as_ref().is_some_and(|at| at.0 >= from) {
        return Verdict::Stays(Because::New);
    }
    if secret.metadata.deletion_timestamp.is_some() {
        return Verdict::Stays(Because::Ending);
    }
    let from = day(from);
    let label = |key: &str| secret.labels().get(key).map(String::as_str);
    if let Some(used) = label(LAST_USED) {
        if read_day(used).is_none() {
            return Verdict::Stays(Because::UseUnknown);
        }
        if *used >= *from {
            return Verdict::Stays(Because::Used);
        }
    }
    if !is_listed(secret, account) {
        return Verdict::Stays(Because::Manual);
    }
    match label(INVALID_SINCE).filter(|since| read_day(since).is_some()) {
        None => Verdict::Refused(day(now)),
        Some(since) if *since >= *from => Verdict::Stays(Because::RefusedNotForLong),
        Some(_) => Verdict::Goes,
    }
}

/// Whether the Secret's service account lists it, as controllers of old had it for what they made.
fn is_listed(secret: &Secret, account: Option<&ServiceAccount>) -> bool {
    let account = account.filter(|account| tokens::is_of(secret, account));
    let listed = account.and_then(|account| account.secrets.as_ref());
    listed.is_some_and(|all| all.iter().any(|one| one.name == secret.metadata.name))
}

fn plan(secret: &Secret, verdict: Verdict) -> Plan {
    let key = Key::of(secret);
    let target = Target::of::<Secret>(&key);
    let mut plan = Plan::default();
    plan.again(PERIOD);
    match verdict {
        Verdict::Stays(because) => {
            tracing::debug!(secret = %key, ?because, "stays");
            return plan;
        }
        Verdict::Refused(today) => {
            tracing::info!(secret = %key, since = today, "an unused token is marked invalid");
            let meta = json!({"uid": secret.metadata.uid, "labels": {INVALID_SINCE: today}});
            plan.push(Action::Patch(target, "", json!({"metadata": meta})));
        }
        Verdict::Goes => {
            tracing::info!(secret = %key, "an invalid token that nobody uses is deleted");
            let seen = secret.resource_version().unwrap_or_default();
            plan.push(Action::DeleteAsSeen(target, seen));
        }
    }
    plan.unless = Some(Unless::Mounted(key));
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    const CREATED: &str = "2020-01-01T00:00:00Z";

    /// A Secret of type, made long ago, of the account `sa`.
    fn secret(meta: Value) -> Secret {
        let mut whole = json!({"namespace": "ns", "name": "s", "uid": "us",
            "resourceVersion": "7", "creationTimestamp": CREATED,
            "annotations": {"kubernetes.io/service-account.name": "sa",
                "kubernetes.io/service-account.uid": "ua"}});
        for (key, value) in meta.as_object().into_iter().flatten() {
            whole[key] = value.clone();
        }
        let whole = json!({"metadata": whole, "type": "kubernetes.io/service-account-token"});
        serde_json::from_value(whole).expect("a secret")
    }

    fn account(secrets: Value) -> ServiceAccount {
        let meta = json!({"namespace": "ns", "name": "sa", "uid": "ua"});
        serde_json::from_value(json!({"metadata": meta, "secrets": secrets})).expect("an account")
    }

    fn tracked(data: Value) -> ConfigMap {
        serde_json::from_value(json!({"data": data})).expect("a map")
    }

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    /// Thirty days before the first of May at noon: the first of April at noon.
    const UNUSED: SignedDuration = SignedDuration::from_hours(30 * 24);
    const NOW: &str = "2026-05-01T12:00:00Z";

    #[test]
    fn tracking_has_to_be_long_enough() {
        use Because::{NotTrackedForLong, Untracked};
        let marked = || Verdict::Refused("2026-05-01".into());
        for (data, now, want) in [
            (None, NOW, Verdict::Stays(Untracked)),
            (Some(json!({})), NOW, Verdict::Stays(Untracked)),
            (Some(json!({"since": "2026-03-01-1"})), NOW, Verdict::Stays(Untracked)),
            (Some(json!({"since": "2026-03-31"})), NOW, marked()),
            (Some(json!({"since": "2026-04-01"})), NOW, Verdict::Stays(NotTrackedForLong)),
            // From midnight after the first day on.
            (Some(json!({"since": "2026-03-31"})), "2026-05-01T00:00:00Z", marked()),
            (
                Some(json!({"since": "2026-03-31"})),
                "2026-04-30T23:59:59Z",
                Verdict::Stays(NotTrackedForLong),
            ),
        ] {
            let map = data.clone().map(tracked);
            let account = account(json!([{"name": "s"}]));
            let got = judge(&secret(json!({})), Some(&account), map.as_ref(), UNUSED, at(now));
            assert_eq!(got, want, "{data:?} {now}");
        }
        // More time than there is.
        let (map, account) = (tracked(json!({"since": "2020-01-01"})), account(json!([])));
        let all = SignedDuration::MAX;
        let got = judge(&secret(json!({})), Some(&account), Some(&map), all, at(NOW));
        assert_eq!(got, Verdict::Stays(NotTrackedForLong));
    }

    #[test]
    fn unused_tokens_are_refused_and_then_go() {
        use Because::*;
        let labels = |used: Option<&str>, invalid: Option<&str>| {
            let mut all = json!({});
            for (key, value) in [(LAST_USED, used), (INVALID_SINCE, invalid)] {
                if let Some(value) = value {
                    all[key] = value.into();
                }
            }
            json!({"labels": all})
        };
        let marked = || Verdict::Refused("2026-05-01".into());
        let cases = [
            (json!({}), marked()),
            (json!({"creationTimestamp": null}), marked()),
            (json!({"creationTimestamp": "2026-04-01T11:59:59Z"}), marked()),
            (json!({"creationTimestamp": "2026-04-01T12:00:00Z"}), Verdict::Stays(New)),
            (json!({"deletionTimestamp": CREATED}), Verdict::Stays(Ending)),
            (labels(Some("2026-03-31"), None), marked()),
            (labels(Some("2026-04-01"), None), Verdict::Stays(Used)),
            (labels(Some("2027-01-01"), None), Verdict::Stays(Used)),
            (labels(Some("2026-03-31-1"), None), Verdict::Stays(UseUnknown)),
            (labels(Some(""), None), Verdict::Stays(UseUnknown)),
            (labels(None, Some("")), marked()),
            (labels(None, Some("2026-03-32")), marked()),
            (labels(None, Some("2026-04-01")), Verdict::Stays(RefusedNotForLong)),
            (labels(None, Some("2026-03-31")), Verdict::Goes),
            (labels(Some("2026-03-31"), Some("2026-03-31")), Verdict::Goes),
            // It is refused, and still tried.
            (labels(Some("2026-04-01"), Some("2026-03-31")), Verdict::Stays(Used)),
        ];
        let map = tracked(json!({"since": "2021-01-01"}));
        let account = account(json!([{"name": "other"}, {"name": "s"}]));
        for (meta, want) in cases {
            let secret = secret(meta.clone());
            let got = judge(&secret, Some(&account), Some(&map), UNUSED, at(NOW));
            assert_eq!(got, want, "{meta}");
        }
    }

    #[test]
    fn what_somebody_made_stays() {
        let listed = json!([{"name": "s"}]);
        let name = "kubernetes.io/service-account.name";
        let uid = "kubernetes.io/service-account.uid";
        let map = tracked(json!({"since": "2021-01-01"}));
        for (annotations, account, stays) in [
            (json!({name: "sa", uid: "ua"}), Some(account(listed.clone())), false),
            (json!({name: "sa"}), Some(account(listed.clone())), false),
            (json!({name: "sa", uid: ""}), Some(account(listed.clone())), false),
            (json!({name: "sa", uid: "before"}), Some(account(listed)), true),
            (json!({name: "sa", uid: "ua"}), Some(account(json!([{"name": "s2"}]))), true),
            (json!({name: "sa", uid: "ua"}), Some(account(json!(null))), true),
            (json!({name: "sa", uid: "ua"}), None, true),
            (json!({}), None, true),
        ] {
            let secret = secret(json!({"annotations": annotations}));
            let got = judge(&secret, account.as_ref(), Some(&map), UNUSED, at(NOW));
            assert_eq!(got == Verdict::Stays(Because::Manual), stays, "{annotations} {got:?}");
        }
    }

    #[test]
    fn nothing_is_done_to_what_pods_use_or_what_has_changed() {
        let secret = secret(json!({}));
        let key = Key::new("ns", "s");
        let target = || Target::of::<Secret>(&key);
        let patch = json!({"metadata": {"uid": "us", "labels": {INVALID_SINCE: "2026-05-01"}}});
        for (verdict, action) in [
            (Verdict::Refused("2026-05-01".into()), Action::Patch(target(), "", patch)),
            (Verdict::Goes, Action::DeleteAsSeen(target(), "7".into())),
        ] {
            let plan = plan(&secret, verdict);
            assert_eq!(plan.actions, [action]);
            assert_eq!(plan.unless, Some(Unless::Mounted(key.clone())));
            assert_eq!(plan.again, Some(PERIOD));
        }
        let plan = plan(&secret, Verdict::Stays(Because::New));
        assert_eq!((plan.actions.len(), plan.again), (0, Some(PERIOD)));
    }
}
