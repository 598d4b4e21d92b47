//! Server-side apply and the bookkeeping of `metadata.managedFields` (KEP-555).
//!
//! All entries are taken to name fields of the version that the schema describes, whatever
//! version they were written in; those of a version that is served no longer are dropped.

use std::borrow::Cow;

use super::PatchError;
use super::compare::{Comparison, compare, merge, remove};
use super::fieldset::{PathElement, Set, equal_values, show};
use super::managers::{Managed, ManagerId, Operation, Owned, is_reset};
use super::typed::{TypeRef, field_set, problems_text, reconcile, validate, with_named_fields};
use crate::codec::{Schema, canonicalize};
use crate::gvk::GroupVersionKind;
use crate::object::str_at;
use crate::{Map, Value, meta, object};

/// Owner of what was there before the first apply.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The manager for which the annotation of client-side apply is kept up.
const KUBECTL: &str = "kubectl";
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who writes, for `managedFields`.
#[derive(Clone, Debug)]
pub struct Manager<'a> {
    /// `fieldManager`, at most 128 printable bytes.
    pub name: &'a str,
    /// `status` and so on; empty for the main resource.
    pub subresource: &'a str,
    /// `apiVersion` that the request used.
    pub api_version: &'a str,
    /// RFC 3339 time of this write.
    pub now: &'a str,
}

/// What applying came to.
#[derive(Clone, Debug, PartialEq)]
pub enum ApplyError {
    Patch(PatchError),
    /// (message, field path) of each field that another manager owns; upstream's wording:
    /// `conflict with "manager" using apps/v1`, `.spec.replicas`.
    Conflicts(Vec<(String, String)>),
}

impl From<PatchError> for ApplyError {
    fn from(e: PatchError) -> Self {
        Self::Patch(e)
    }
}

impl From<ApplyError> for crate::status::ApiError {
    fn from(e: ApplyError) -> Self {
        match e {
            ApplyError::Patch(e) => e.into(),
            ApplyError::Conflicts(causes) => Self::ApplyConflict { causes },
        }
    }
}

/// Field paths that a resource strips from ownership (`ResetFields`): lists of field names,
/// `["status"]`.
pub type ResetFields<'a> = &'a [&'a [&'a str]];

/// How server-side apply sees a kind.
#[derive(Clone, Copy, Debug)]
pub enum Typing<'a> {
    Schema(Schema<'a>),
    /// No schema: maps are granular, lists atomic.
    Deduced,
}

impl<'a> Typing<'a> {
    fn root(self) -> TypeRef<'a> {
        match self {
            Self::Schema(schema) => schema.into(),
            Self::Deduced => TypeRef::Deduced,
        }
    }

    /// Whether a kind is there in a version.
    fn serves(self, api_version: &str, kind: &str) -> bool {
        match self {
            // A registry of no kinds holds the types of one custom resource.
            Self::Schema(s) if !s.registry.kinds.is_empty() => {
                let gvk = GroupVersionKind::from_api_version(api_version, kind);
                s.registry.kind(&gvk).is_some()
            }
            _ => true,
        }
    }

    /// Entries of versions that are served no longer mean nothing any more.
    fn without_obsolete(self, mut managed: Managed, obj: &Value) -> Managed {
        let kind = str_at(obj, &["kind"]);
        managed.0.retain(|_, owned| self.serves(&owned.api_version, kind));
        managed
    }

    /// An object of the kind with nothing in it, as JSON shows it.
    fn empty(self, like: &Value) -> Value {
        let mut empty = Map::new();
        for name in ["apiVersion", "kind"] {
            empty.extend(like.get(name).map(|v| (name.to_owned(), v.clone())));
        }
        let mut empty = Value::Object(empty);
        if let Self::Schema(schema) = self
            && canonicalize(schema, &mut empty).is_err()
        {
            return Value::Object(Map::new());
        }
        empty
    }
}

/// Applies `config` to `live` (`None`: the object does not exist) and returns the merged object
/// with its managedFields brought up to date.
///
/// `config` is the patch as it was sent: the canonical form would own what the client left out.
/// The result is not canonical, and has no defaults yet.
pub fn apply(
    schema: Schema<'_>,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager<'_>,
    force: bool,
    reset: ResetFields<'_>,
) -> Result<Value, ApplyError> {
    apply_typed(Typing::Schema(schema), live, config, manager, force, reset)
}

/// Brings `new`'s managedFields up to date after an update by `manager` (create, update, or any
/// other patch): what differs from `live` now belongs to it.
pub fn track_update(
    schema: Schema<'_>,
    live: Option<&Value>,
    new: &mut Value,
    manager: &Manager<'_>,
    reset: ResetFields<'_>,
) {
    track_update_typed(Typing::Schema(schema), live, new, manager, reset);
}

/// [`apply`] for kinds with a schema or without.
pub fn apply_typed(
    typing: Typing<'_>,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager<'_>,
    force: bool,
    reset: ResetFields<'_>,
) -> Result<Value, ApplyError> {
    check_version(typing, config, manager)?;
    if object::get(config, &["metadata", "managedFields"]).is_some() {
        let text = "metadata.managedFields must be nil";
        return Err(PatchError::Malformed(text.to_owned()).into());
    }
    let empty = typing.empty(config);
    let mut live = live.cloned().unwrap_or_else(|| empty.clone());
    let managed = Managed::decode(&live)
        .map_err(|e| PatchError::Internal(format!("failed to decode managed fields: {e}")))?;
    object::remove(&mut live, &["metadata", "managedFields"]);
    let t = typing.root();
    validate(t, config).map_err(|problems| {
        PatchError::Internal(format!(
            "failed to create typed patch object ({}): {}",
            describe(config),
            problems_text(&problems)
        ))
    })?;
    let write = Write { t, manager, reset: reset_set(reset) };
    let managed = if managed.0.is_empty() {
        let before = Manager { name: BEFORE_FIRST_APPLY, ..manager.clone() };
        let write = Write { manager: &before, reset: write.reset.clone(), t };
        write.update(&empty, &live, managed)?
    } else {
        typing.without_obsolete(managed, config)
    };
    let outcome = write.apply(&live, config, managed.clone(), force)?;
    let (merged, mut managed) = match outcome {
        Ok(done) => done,
        Err(mut conflicts) => {
            if manager.name == KUBECTL
                && let Some(excused) = write.last_applied(&live)
            {
                conflicts.retain(|(_, path)| !excused.has(path));
            } else {
                return Err(conflict_error(&conflicts));
            }
            if !conflicts.is_empty() {
                return Err(conflict_error(&conflicts));
            }
            match write.apply(&live, config, managed, true)? {
                Ok(done) => done,
                Err(conflicts) => return Err(conflict_error(&conflicts)),
            }
        }
    };
    let changed = !equal_values(&merged, &live);
    if let Some(owned) = managed.0.get_mut(&write.id(Operation::Apply))
        && changed
    {
        owned.time = Some(manager.now.to_owned());
    }
    let mut result = if changed { merged } else { live };
    if manager.name == KUBECTL {
        refresh_last_applied(&mut result, config);
    }
    managed.encode(&mut result);
    Ok(result)
}

/// [`track_update`] for kinds with a schema or without.
pub fn track_update_typed(
    typing: Typing<'_>,
    live: Option<&Value>,
    new: &mut Value,
    manager: &Manager<'_>,
    reset: ResetFields<'_>,
) {
    let empty = typing.empty(new);
    let live = live.unwrap_or(&empty);
    let of_live = || Managed::decode(live).unwrap_or_default();
    let managed = if !manager.subresource.is_empty() {
        of_live()
    } else if is_reset(new) {
        Managed::default()
    } else {
        // A client that does not know the field must not delete it by leaving it out.
        match Managed::decode(new) {
            Ok(managed) if !managed.0.is_empty() => managed,
            _ => of_live(),
        }
    };
    object::remove(new, &["metadata", "managedFields"]);
    // Fields of objects that are not tracked so far are not from here on either.
    if managed.0.is_empty() && !object::uid(live).is_empty() {
        return;
    }
    let mut live: Cow<'_, Value> = Cow::Borrowed(live);
    if object::get(&live, &["metadata", "managedFields"]).is_some() {
        object::remove(live.to_mut(), &["metadata", "managedFields"]);
    }
    let write = Write { t: typing.root(), manager, reset: reset_set(reset) };
    // What cannot be tracked is not: an update does not fail for that.
    let managed = typing.without_obsolete(managed, new);
    if let Ok(managed) = write.update(&live, new, managed) {
        managed.encode(new);
    }
}

fn describe(obj: &Value) -> String {
    let or_unknown = |name| match str_at(obj, &["metadata", name]) {
        "" if name == "name" => "",
        text => text,
    };
    let gvk = gvk_of(obj);
    format!("{}/{}; {gvk}", or_unknown("namespace"), or_unknown("name"))
}

fn gvk_of(obj: &Value) -> GroupVersionKind {
    GroupVersionKind::from_api_version(str_at(obj, &["apiVersion"]), str_at(obj, &["kind"]))
}

fn check_version(
    typing: Typing<'_>,
    config: &Value,
    manager: &Manager<'_>,
) -> Result<(), PatchError> {
    let gvk = gvk_of(config);
    let known = match typing {
        Typing::Schema(s) => s.registry.kinds.get(&gvk).is_none_or(|id| *id == s.message),
        Typing::Deduced => true,
    };
    if known && gvk.api_version() == manager.api_version {
        return Ok(());
    }
    Err(PatchError::Malformed(format!("invalid object type: {gvk}")))
}

fn reset_set(reset: ResetFields<'_>) -> Set {
    let mut set = Set::default();
    for path in reset {
        set.insert_fields(path);
    }
    set
}

/// What nobody owns: identity, and what the server keeps.
fn never_owned() -> Set {
    let mut set = Set::default();
    for name in ["apiVersion", "kind", "metadata"] {
        set.insert_fields(&[name]);
    }
    for name in [
        "name",
        "namespace",
        "creationTimestamp",
        "selfLink",
        "uid",
        "clusterName",
        "generation",
        "managedFields",
        "resourceVersion",
    ] {
        set.insert_fields(&["metadata", name]);
    }
    set
}

type Conflicts = Vec<(ManagerId, Vec<PathElement>)>;

fn conflict_error(conflicts: &Conflicts) -> ApplyError {
    let cause = |(id, path): &(ManagerId, Vec<PathElement>)| {
        (format!("conflict with {}", id.describe()), show(path))
    };
    ApplyError::Conflicts(conflicts.iter().map(cause).collect())
}

/// One write to an object.
struct Write<'a> {
    t: TypeRef<'a>,
    manager: &'a Manager<'a>,
    reset: Set,
}

impl Write<'_> {
    fn id(&self, operation: Operation) -> ManagerId {
        let name = if self.manager.name.is_empty() { "unknown" } else { self.manager.name };
        ManagerId::new(name, operation, self.manager.api_version, self.manager.subresource)
    }

    fn compare(&self, old: &Value, new: &Value) -> Result<Comparison, PatchError> {
        compare(self.t, old, new).map(|c| c.without(&self.reset)).map_err(|problems| {
            let text = problems_text(&problems);
            PatchError::Internal(format!("failed to compare objects: {text}"))
        })
    }

    fn reconciled(&self, mut managed: Managed) -> Managed {
        for owned in managed.0.values_mut() {
            owned.set = reconcile(&owned.set, self.t);
        }
        managed
    }

    /// Takes what changed away from the other managers; conflicts are what they owned of it.
    fn take(
        &self,
        old: &Value,
        new: &Value,
        managed: &mut Managed,
        id: Option<&ManagerId>,
    ) -> Result<(Comparison, Conflicts), PatchError> {
        let diff = self.compare(old, new)?;
        let written = diff.modified.union(&diff.added);
        let mut conflicts = Conflicts::new();
        for (other, owned) in managed.0.iter_mut().filter(|(other, _)| Some(*other) != id) {
            let taken = owned.set.intersection(&written);
            conflicts.extend(taken.paths().into_iter().map(|path| (other.clone(), path)));
            owned.set = owned.set.difference(&taken).difference(&diff.removed);
        }
        managed.0.retain(|_, owned| !owned.set.is_empty());
        Ok((diff, conflicts))
    }

    /// Gives what differs to the updating manager.
    fn update(&self, old: &Value, new: &Value, managed: Managed) -> Result<Managed, PatchError> {
        let mut managed = self.reconciled(managed);
        let (diff, _) = self.take(old, new, &mut managed, None)?;
        let set = diff.modified.union(&diff.added).recursive_difference(&self.reset);
        let set = set.difference(&never_owned());
        if !set.is_empty() {
            let id = self.id(Operation::Update);
            let set = managed.0.get(&id).map_or_else(|| set.clone(), |had| set.union(&had.set));
            let owned = Owned {
                set,
                api_version: self.manager.api_version.to_owned(),
                time: Some(self.manager.now.to_owned()),
            };
            managed.0.insert(id, owned);
        }
        managed.cap();
        Ok(managed)
    }

    /// The merged object and its managers, or the conflicts.
    fn apply(
        &self,
        live: &Value,
        config: &Value,
        managed: Managed,
        force: bool,
    ) -> Result<Result<(Value, Managed), Conflicts>, PatchError> {
        let mut managed = self.reconciled(managed);
        let merged = merge(self.t, live, config).map_err(|problems| {
            let text = problems_text(&problems);
            PatchError::Internal(format!("failed to merge config: {text}"))
        })?;
        let set = field_set(self.t, config).recursive_difference(&self.reset);
        let id = self.id(Operation::Apply);
        let last = managed.0.remove(&id);
        let owned = Owned {
            set,
            api_version: self.manager.api_version.to_owned(),
            time: last.as_ref().and_then(|l| l.time.clone()),
        };
        managed.0.insert(id.clone(), owned);
        let merged = match &last {
            Some(last) if !last.set.is_empty() => self.prune(merged, &managed, &last.set),
            _ => merged,
        };
        let (_, conflicts) = self.take(live, &merged, &mut managed, Some(&id))?;
        if !force && !conflicts.is_empty() {
            return Ok(Err(conflicts));
        }
        if let Some(owned) = managed.0.get_mut(&id) {
            owned.set = owned.set.difference(&never_owned());
        }
        managed.0.retain(|_, owned| !owned.set.is_empty());
        Ok(Ok((merged, managed)))
    }

    /// Removes what the manager applied last time and applies no longer, except what others own.
    fn prune(&self, merged: Value, managed: &Managed, last: &Set) -> Value {
        let named = |set: &Set| with_named_fields(set, Some(self.t));
        let last = named(last);
        let pruned = remove(self.t, &merged, &last);
        let merged_set = named(&field_set(self.t, &merged));
        let owned = managed.0.values().fold(Set::default(), |all, o| all.union(&o.set));
        // Removing a field took what lies below it along; what is owned comes back.
        let keep = named(&field_set(self.t, &pruned)).union(&named(&owned));
        let pruned = remove(self.t, &merged, &merged_set.difference(&keep));
        // What the manager did not own comes back, too.
        let gone = merged_set.difference(&named(&field_set(self.t, &pruned)));
        remove(self.t, &merged, &gone.intersection(&last))
    }

    /// Fields that client-side apply set last and nobody has changed since: to take those over
    /// is no conflict.
    fn last_applied(&self, live: &Value) -> Option<Set> {
        let text = object::annotation(live, LAST_APPLIED).filter(|t| !t.is_empty())?;
        let last: Value = serde_json::from_str(text).ok()?;
        if str_at(&last, &["apiVersion"]) != self.manager.api_version {
            return None;
        }
        validate(self.t, &last).ok()?;
        let diff = compare(self.t, &last, live).ok()?;
        let set = field_set(self.t, &last);
        Some(set.difference(&diff.modified).difference(&diff.added).difference(&diff.removed))
    }
}

/// Writes what was applied into the annotation of client-side apply, where there is one, so
/// that client-side apply can go on from there.
fn refresh_last_applied(obj: &mut Value, config: &Value) {
    if object::annotation(obj, LAST_APPLIED).is_none_or(str::is_empty) {
        return;
    }
    let mut applied = config.clone();
    object::remove(&mut applied, &["metadata", "annotations", LAST_APPLIED]);
    let annotations = object::map_mut(obj, &["metadata", "annotations"]);
    annotations.insert(LAST_APPLIED.to_owned(), format!("{applied}\n").into());
    if meta::annotation_bytes(annotations) > meta::MAX_ANNOTATION_BYTES {
        annotations.remove(LAST_APPLIED);
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
