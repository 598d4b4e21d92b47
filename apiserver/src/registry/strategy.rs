//! What is particular to a kind (k8s.io/apiserver `registry/rest`, strategies).

use apimachinery::Value;
use apimachinery::field::ErrorList;

/// What a strategy may ask of its surroundings.
pub struct Context<'a> {
    pub now: jiff::Timestamp,
    pub reader: &'a dyn crate::reader::Reader,
}

/// Default methods suit a kind with nothing particular.
///
/// Order of a create: `default`, metadata is filled in, `prepare_for_create`, mutating admission
/// (then canonicalize and `default` again), `validate`, `warnings`, validating admission, store.
/// Metadata (names, labels, annotations, ownerReferences, finalizers) is validated by the
/// pipeline, `name` excepted.
pub trait Strategy: Send + Sync + 'static {
    /// Defaults beyond those that the schema declares. Runs on every decoded object of the
    /// served version.
    fn default(&self, _object: &mut Value) {}

    /// Writes down who creates the object, for kinds that say so. Called before
    /// `prepare_for_create`.
    fn created_by(&self, _object: &mut Value, _user: &crate::authentication::User) {}

    /// Drops what a client may not set (status), sets `metadata.generation`.
    fn prepare_for_create(&self, _context: &Context<'_>, _object: &mut Value) {}

    /// Restores from `old` what may not change this way (status), bumps `metadata.generation`.
    fn prepare_for_update(&self, _context: &Context<'_>, _object: &mut Value, _old: &Value) {}

    fn validate(&self, _context: &Context<'_>, _object: &Value) -> ErrorList {
        ErrorList::new()
    }

    /// Called instead of `validate` for updates; validates the whole object.
    fn validate_update(&self, context: &Context<'_>, object: &Value, _old: &Value) -> ErrorList {
        self.validate(context, object)
    }

    /// Messages for names that the kind does not take; `prefix`: the name is a generateName.
    fn validate_name(&self, name: &str, prefix: bool) -> Vec<String> {
        apimachinery::names::name_is_subdomain(name, prefix)
    }

    /// What to say of a new object as it was sent, before `prepare_for_create` changes it.
    fn early_warnings(&self, _object: &Value) -> Vec<String> {
        Vec::new()
    }

    fn warnings(&self, _object: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// An update of an object that does not exist creates it.
    fn allow_create_on_update(&self) -> bool {
        false
    }

    /// An update without resourceVersion overwrites.
    fn allow_unconditional_update(&self) -> bool {
        true
    }

    /// Grace of a delete that names none, in seconds. `None`: deletes are immediate. Given the
    /// object and the grace that the client asked for.
    fn grace_period(&self, _object: &Value, _asked: Option<i64>) -> Option<i64> {
        None
    }

    /// Upstream's default propagation for deletes: dependents are garbage-collected, or orphaned
    /// by the oldest kinds.
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// Fields that server-side apply of the main resource owns nothing of (`status`).
    fn reset_fields(&self) -> &'static [&'static [&'static str]] {
        &[]
    }

    /// From the served version to the stored one, where they differ. Validation, table cells and
    /// selectable fields see either.
    fn to_storage(&self, _object: &mut Value) {}

    /// The inverse of [`Strategy::to_storage`].
    fn to_served(&self, _object: &mut Value) {}

    /// What grants to objects of the kind (addresses, ports). Its `create` and `update` run after
    /// mutating admission and before `prepare_for_*` and `validate`; the reservation is committed
    /// when the object is stored, and abandoned when it is not.
    fn allocator(&self) -> Option<&dyn super::allocate::Allocator> {
        None
    }

    /// Something of the object's own, beside `metadata.finalizers`, keeps a deleted object for
    /// now.
    fn is_held(&self, _object: &Value) -> bool {
        false
    }

    /// The object was marked as deleted and is kept for now: what else changes of it.
    fn begin_deletion(&self, _object: &mut Value) {}

    /// Why no object may be created at present.
    fn refuses_new(&self) -> Option<&'static str> {
        None
    }

    /// The first deletion of an object: what is to hold it.
    fn hold(&self, _object: &mut Value) {}

    /// What a delete is warned of that does not say what becomes of dependents.
    fn deletion_warning(&self) -> Option<&'static str> {
        None
    }

    /// A delete answers with the object, where others answer with a `Status`.
    fn returns_deleted(&self) -> bool {
        false
    }
}
