//! Delete and deletecollection.

use std::sync::Arc;

use apimachinery::gvk::GroupResource;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use http::Response;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, json};

use super::input::{DeleteInput, read_body};
use super::write::{self, Stored};
use super::{Call, RequestBody};
use crate::admission::Operation;
use crate::api::rfc3339;
use crate::cache::Cached;
use crate::gate::{Admission, AdmittedDeletion};
use crate::negotiate::Offer;
use crate::registry::Strategy;
use crate::registry::catalog::Served;
use crate::respond::Body;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// Attempts of a deletion that others overtake.
const ATTEMPTS: usize = 10;
/// Deletions of one collection that run at the same time.
const AT_ONCE: usize = 8;

/// What a deletion came to.
struct Deleted {
    /// The object as it is or was last.
    cached: Arc<Cached>,
    uid: String,
    /// It is gone.
    gone: bool,
    /// It was marked by this request, and is shown although it is not gone.
    marked: bool,
}

pub(super) async fn delete(
    call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    let wanted = call.wanted(Offer::Object)?;
    let data = read_body(body).await?;
    let input = DeleteInput::read(call.header("content-type"), &data, &call.query)?;
    let mut warnings = call.warnings.collect();
    warnings.extend(unsaid(&served, &input));
    let name = call.name();
    let deleted = one(&call, &served, name, call.namespace(), &input, &mut warnings).await?;
    // Upstream: accepted, when dependents were to be waited for.
    let code = if !deleted.gone && input.orphan_dependents == Some(false) { 202 } else { 200 };
    let shows_object = deleted.marked || served.row.strategy.returns_deleted();
    if shows_object {
        let shown = super::read::show(&call, &served, &wanted, &deleted.cached)?;
        Ok(call.send(code, &shown.0, shown.1).await)
    } else {
        call.send_object(code, &wanted, &success(&served, &deleted)).await
    }
}

/// The warning of a delete that leaves open what becomes of dependents.
fn unsaid(served: &Served, input: &DeleteInput) -> Option<String> {
    let said = input.propagation.is_some() || input.orphan_dependents.is_some();
    served.row.strategy.deletion_warning().filter(|_| !said).map(str::to_owned)
}

fn success(served: &Served, deleted: &Deleted) -> Value {
    let mut details = Map::new();
    let parts = [
        ("name", deleted.cached.names().1),
        ("group", &*served.row.group),
        ("kind", &*served.row.plural),
        ("uid", deleted.uid.as_str()),
    ];
    for (key, value) in parts.into_iter().filter(|(_, v)| !v.is_empty()) {
        details.insert(key.to_owned(), value.into());
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": details})
}

/// Releases what a deleted object had.
pub(super) async fn after(served: &Served, object: &Value, dry_run: bool) {
    if let Some(allocator) = served.row.strategy.allocator().filter(|_| !dry_run) {
        allocator.deleted(object).await;
    }
}

async fn one(
    call: &Call,
    served: &Arc<Served>,
    name: &str,
    namespace: &str,
    input: &DeleteInput,
    warnings: &mut Vec<String>,
) -> Result<Deleted, ApiError> {
    let key = served.key(namespace, name);
    let admission = Admission {
        api: &call.api,
        authorized: &call.authorized,
        served,
        operation: Operation::Delete,
        kind: &served.gvk,
        subresource: "",
        namespace,
        name,
        options: &input.object,
        dry_run: input.dry_run,
    };
    for _ in 0..ATTEMPTS {
        let Some(old) = write::load(&call.api, served, &key).await? else {
            return Err(served.not_found(name));
        };
        check_preconditions(served, &old, input)?;
        let mut said = Vec::new();
        let admitted = admission.admit_deletion(&old.object, &mut said).await;
        if admitted.is_err() {
            warnings.append(&mut said);
        }
        let admitted = admitted?;
        let step = plan(&*served.row.strategy, &old.object, input, call.api.now());
        if let Some(deleted) = carry_out(call, served, &key, old, step, admitted, input).await? {
            warnings.append(&mut said);
            return Ok(deleted);
        }
    }
    Err(served.conflict(name, write::MODIFIED))
}

/// `None`: the object changed meanwhile.
async fn carry_out(
    call: &Call,
    served: &Arc<Served>,
    key: &str,
    old: Stored,
    step: Step,
    admitted: AdmittedDeletion,
    input: &DeleteInput,
) -> Result<Option<Deleted>, ApiError> {
    let api = &call.api;
    let uid = object::uid(&old.object).to_owned();
    match step {
        Step::Pending => {
            let cached = write::written(key, old.revision, old.created, old.bytes);
            let cached = served.bring_one(cached).await?;
            Ok(Some(Deleted { cached, uid, gone: false, marked: false }))
        }
        Step::Mark(object) => {
            let marked = admitted.marked(object);
            let stored = write::replace(api, served, key, &old, marked, input.dry_run).await?;
            Ok(stored.map(|cached| Deleted { cached, uid, gone: false, marked: true }))
        }
        Step::Remove(object) => {
            let bytes = write::encode(served, &object).await?;
            let dry_run = input.dry_run;
            let removed = write::remove(api, served, key, old.revision, &admitted, dry_run).await?;
            let Some(revision) = removed else { return Ok(None) };
            after(served, &old.object, dry_run).await;
            let cached = write::written(key, revision, old.created, bytes);
            let cached = served.bring_one(cached).await?;
            Ok(Some(Deleted { cached, uid, gone: true, marked: false }))
        }
    }
}

fn check_preconditions(served: &Served, old: &Stored, input: &DeleteInput) -> Result<(), ApiError> {
    let name = object::name(&old.object);
    // Upstream names the kind here where the resource belongs.
    let conflict = |reason: String| ApiError::Conflict {
        resource: GroupResource::new(&served.gvk.group, &served.gvk.kind),
        name: name.to_owned(),
        reason,
    };
    let uid = object::uid(&old.object);
    if let Some(asked) = input.uid.as_deref().filter(|asked| *asked != uid) {
        return Err(conflict(format!(
            "the UID in the precondition ({asked}) does not match the UID in record ({uid}). The object might have been deleted and then recreated"
        )));
    }
    let version = old.revision.to_string();
    if let Some(asked) = input.resource_version.as_deref().filter(|asked| *asked != version) {
        return Err(conflict(format!(
            "the ResourceVersion in the precondition ({asked}) does not match the ResourceVersion in record ({version}). The object might have been modified"
        )));
    }
    Ok(())
}

/// What a delete does to an object.
#[derive(Debug, PartialEq)]
enum Step {
    /// It is being deleted already, and this delete is no faster.
    Pending,
    /// It is marked and kept for now.
    Mark(Value),
    /// It goes; this is what it was last.
    Remove(Value),
}

/// Decides on one delete (upstream: `rest.BeforeDelete`, `Store.Delete`).
fn plan(strategy: &dyn Strategy, old: &Value, input: &DeleteInput, now: Timestamp) -> Step {
    let mut object = old.clone();
    let asked = input.grace.map(|seconds| if seconds < 0 { 1 } else { seconds });
    let deleting = !object::deletion_timestamp(old).is_empty();
    if !deleting {
        strategy.hold(&mut object);
    }
    let grace = strategy.grace_period(old, asked);
    let mut graceful = None;
    if deleting && grace.is_some() {
        let own = object::int_at(old, &["metadata", "deletionGracePeriodSeconds"]).unwrap_or(0);
        if own != 0 {
            match asked {
                Some(shorter) if shorter < own.max(1) => {
                    graceful = Some(shorten(&mut object, own, shorter, now));
                }
                _ => return Step::Pending,
            }
        }
    } else if deleting && strategy.is_held(old) {
        return Step::Pending;
    } else if let Some(seconds) = grace {
        mark(&mut object, now, seconds);
        graceful = Some(seconds);
    }
    let finalizers = finalizers(strategy, &object, input);
    set_finalizers(&mut object, finalizers);
    let held = object::finalizers(&object).next().is_some() || strategy.is_held(&object);
    match graceful {
        Some(seconds) if seconds > 0 || held => Step::Mark(begun(strategy, object, deleting)),
        _ if held => {
            mark(&mut object, now, 0);
            Step::Mark(begun(strategy, object, deleting))
        }
        _ => Step::Remove(object),
    }
}

fn begun(strategy: &dyn Strategy, mut object: Value, deleting: bool) -> Value {
    if !deleting {
        strategy.begin_deletion(&mut object);
    }
    object
}

/// Sets when the object is to go, and counts the generation up at first.
fn mark(object: &mut Value, now: Timestamp, seconds: i64) {
    let present = object::deletion_timestamp(object).to_owned();
    let generation = object::generation(object);
    if present.is_empty() && generation > 0 {
        object::set(object, &["metadata", "generation"], generation + 1);
    }
    let until = now + SignedDuration::from_secs(seconds);
    let later = present.parse::<Timestamp>().is_ok_and(|present| present <= until);
    if !later {
        object::set_deletion_timestamp(object, &rfc3339(until));
    }
    object::set(object, &["metadata", "deletionGracePeriodSeconds"], seconds);
}

/// Moves the end of a deletion that has begun forward. Gives the seconds that remain to be shown.
fn shorten(object: &mut Value, own: i64, asked: i64, now: Timestamp) -> i64 {
    let present = object::deletion_timestamp(object).parse::<Timestamp>().unwrap_or(now);
    let mut until = present + SignedDuration::from_secs(asked - own);
    let mut seconds = asked;
    if until < now {
        until = now;
        if seconds != 0 {
            seconds = 1;
        }
    }
    object::set_deletion_timestamp(object, &rfc3339(until));
    object::set(object, &["metadata", "deletionGracePeriodSeconds"], seconds);
    seconds
}

/// The finalizers of a deleted object: those of garbage collection as the options say.
fn finalizers(strategy: &dyn Strategy, old: &Value, input: &DeleteInput) -> Vec<Value> {
    let has = |name: &str| object::finalizers(old).any(|f| f == name);
    let policy = input.propagation.as_deref();
    let orphan = match (input.orphan_dependents, policy) {
        (Some(orphan), _) => orphan,
        (None, Some(policy)) => policy == "Orphan",
        (None, None) if has(ORPHAN) => true,
        (None, None) if has(FOREGROUND) => false,
        (None, None) => strategy.orphans_by_default(),
    };
    let foreground = match (input.orphan_dependents, policy) {
        (Some(_), _) => false,
        (None, Some(policy)) => policy == "Foreground",
        (None, None) => has(FOREGROUND),
    };
    let mut names: Vec<Value> = object::finalizers(old)
        .filter(|f| *f != ORPHAN && *f != FOREGROUND)
        .map(Value::from)
        .collect();
    names.extend(orphan.then(|| ORPHAN.into()));
    names.extend(foreground.then(|| FOREGROUND.into()));
    let same = names.len() == object::finalizers(old).count()
        && object::finalizers(old).all(|f| names.iter().any(|n| n == f));
    if same { object::list_at(old, &["metadata", "finalizers"]).to_vec() } else { names }
}

fn set_finalizers(object: &mut Value, finalizers: Vec<Value>) {
    if finalizers.is_empty() {
        object::remove(object, &["metadata", "finalizers"]);
    } else {
        object::set(object, &["metadata", "finalizers"], finalizers);
    }
}

pub(super) async fn delete_collection(
    call: Call,
    served: Arc<Served>,
    body: RequestBody,
) -> Result<Response<Body>, ApiError> {
    use futures::StreamExt as _;

    let wanted = call.wanted(Offer::Plain)?;
    let data = read_body(body).await?;
    let mut input = DeleteInput::read(call.header("content-type"), &data, &call.query)?;
    let mut warnings = call.warnings.collect();
    warnings.extend(unsaid(&served, &input));
    let page = super::list::matching(&call, &served).await?;
    // They are answered as they were before.
    let mut items = Vec::with_capacity(page.objects.len());
    for cached in &page.objects {
        let mut item = served.decode(cached).map_err(|e| super::unreadable(&e))?;
        // As in every list of a compiled kind.
        if served.row.custom.is_none() {
            object::remove(&mut item, &["apiVersion"]);
            object::remove(&mut item, &["kind"]);
        }
        items.push(item);
    }
    let list = json!({
        "kind": served.list_kind, "apiVersion": served.api_version,
        "metadata": page.metadata(), "items": items,
    });
    // Preconditions are of one object, not of many.
    (input.uid, input.resource_version) = (None, None);
    let (call, input, served) = (&call, &input, &served);
    let mut deletions = Vec::with_capacity(page.objects.len());
    for cached in page.objects {
        let deletion = async move {
            let (namespace, name) = cached.names();
            let mut said = Vec::new();
            match one(call, served, name, namespace, input, &mut said).await {
                // Somebody else was faster.
                Err(ApiError::NotFound { .. }) => Ok(Vec::new()),
                result => result.map(|_| said),
            }
        };
        deletions.push(deletion);
    }
    let results: Vec<_> = futures::stream::iter(deletions).buffered(AT_ONCE).collect().await;
    for result in results {
        warnings.extend(result?);
    }
    call.send_object(200, &wanted, &list).await
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain;
    impl Strategy for Plain {}

    struct Graceful;
    impl Strategy for Graceful {
        fn grace_period(&self, _: &Value, asked: Option<i64>) -> Option<i64> {
            Some(asked.unwrap_or(30))
        }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn ask(grace: Option<i64>, propagation: Option<&str>) -> DeleteInput {
        let propagation = propagation.map(str::to_owned);
        DeleteInput { grace, propagation, ..DeleteInput::default() }
    }

    #[test]
    fn plain_objects_go_at_once_or_wait_for_finalizers() {
        let object = json!({"metadata": {"name": "a", "generation": 1}});
        assert_eq!(plan(&Plain, &object, &ask(None, None), at(0)), Step::Remove(object.clone()));
        let Step::Mark(marked) = plan(&Plain, &object, &ask(None, Some("Foreground")), at(0))
        else {
            panic!("is marked")
        };
        assert_eq!(
            marked["metadata"],
            json!({"name": "a", "generation": 2, "finalizers": ["foregroundDeletion"],
                "deletionTimestamp": "1970-01-01T00:00:00Z", "deletionGracePeriodSeconds": 0})
        );
        let Step::Remove(gone) = plan(&Plain, &marked, &ask(None, Some("Background")), at(9))
        else {
            panic!("is removed")
        };
        assert_eq!(gone["metadata"].get("finalizers"), None);
    }

    #[test]
    fn grace_is_only_ever_shortened() {
        let object = json!({"metadata": {"name": "a"}});
        let Step::Mark(marked) = plan(&Graceful, &object, &ask(None, None), at(100)) else {
            panic!("is marked")
        };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "1970-01-01T00:02:10Z");
        assert_eq!(plan(&Graceful, &marked, &ask(Some(60), None), at(101)), Step::Pending);
        assert_eq!(plan(&Graceful, &marked, &ask(None, None), at(101)), Step::Pending);
        let Step::Mark(shorter) = plan(&Graceful, &marked, &ask(Some(10), None), at(101)) else {
            panic!("is marked")
        };
        assert_eq!(shorter["metadata"]["deletionTimestamp"], "1970-01-01T00:01:50Z");
        let Step::Remove(_) = plan(&Graceful, &marked, &ask(Some(0), None), at(101)) else {
            panic!("is removed")
        };
        assert!(matches!(plan(&Graceful, &object, &ask(Some(0), None), at(0)), Step::Remove(_)));
    }
}
