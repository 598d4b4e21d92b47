//! The resources: one row of data each, and a strategy for what is particular to the kind.
//! Nothing outside this folder names a kind.

pub mod allocate;
pub mod catalog;
pub mod kinds;
pub mod strategy;

use std::borrow::Cow;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::schema::MessageId;

use crate::apiextensions::Custom;

pub use strategy::{Context, Strategy};

/// Text that built-in rows write as literals and custom resources own.
pub type Text = Cow<'static, str>;

/// A resource as the pipeline knows it.
pub struct Resource {
    pub group: Text,
    /// Served version of this row. A resource served in several versions (Event in v1 and
    /// events.k8s.io/v1) has a row for each, with the same `storage_prefix`.
    pub version: Text,
    pub kind: Text,
    /// Plural; the path segment.
    pub plural: Text,
    pub singular: Text,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub namespaced: bool,
    /// Schema of the served version; of a custom resource, that of nothing but metadata.
    pub message: MessageId,
    /// What a custom resource has instead of a compiled schema, columns and fields.
    pub custom: Option<Custom>,
    pub storage: Storage,
    pub strategy: Arc<dyn Strategy>,
    pub columns: Vec<Column>,
    /// Field labels that field selectors may use beside `metadata.name` and
    /// `metadata.namespace`, with how to read them.
    pub fields: Vec<SelectableField>,
    pub subresources: Vec<Subresource>,
    pub verbs: Verbs,
    /// What every request for it is warned of: that it is deprecated.
    pub warning: Option<Text>,
    /// Whether a whole collection may be deleted.
    pub delete_collection: bool,
}

/// Where and as what objects are stored.
pub struct Storage {
    /// Below `/registry/`: `pods`, `services/specs`, `minions`, `leases`, `deployments`.
    pub prefix: Text,
    /// Version they are stored in, when it is not the row's own: group, version.
    pub version: (Text, Text),
    /// Objects expire (Events).
    pub ttl: Option<std::time::Duration>,
    /// Stored as JSON, as upstream stores what its extensions serve.
    pub json: bool,
}

/// Which verbs a resource has. Objects that are only created (TokenReview) have no storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbs {
    All,
    /// Create only, answered by [`Strategy`]'s owner in `verbs/virtual`.
    CreateOnly,
}

/// A column of `Table`: what `kubectl get` prints.
pub struct Column {
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `date`...
    pub ty: &'static str,
    pub format: &'static str,
    pub description: &'static str,
    /// 0 is shown always; higher with `-o wide`.
    pub priority: u8,
    /// The cell, given the object and the present time.
    pub cell: fn(&Value, jiff::Timestamp) -> Value,
}

/// A field that selectors may name.
pub struct SelectableField {
    pub label: &'static str,
    pub get: fn(&Value) -> Cow<'_, str>,
}

/// A subresource of a resource.
pub struct Subresource {
    pub name: &'static str,
    pub action: Action,
}

/// What a subresource does.
pub enum Action {
    /// get, update and patch of the object, of which only a part may change.
    Part {
        strategy: Arc<dyn Strategy>,
        /// Field paths that server-side apply of this subresource owns nothing of.
        reset_fields: &'static [&'static [&'static str]],
        /// It can be updated, and neither read nor patched.
        replaced_only: bool,
    },
    /// `autoscaling/v1` Scale, over these paths in the object.
    Scale {
        spec_replicas: Text,
        status_replicas: Text,
        /// JSON path of the status selector, or of `spec.selector`, as a LabelSelector. Empty:
        /// there is none.
        selector: Text,
    },
    /// Create of another kind (`pods/binding`, `pods/eviction`, `serviceaccounts/token`): handled
    /// by name of the action in `verbs/action`.
    Post { group: &'static str, version: &'static str, kind: &'static str, handler: PostHandler },
    /// Streams to the kubelet or a backend: `log`, `exec`, `attach`, `portforward`, `proxy`.
    Connect(Connect),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PostHandler {
    Binding,
    Eviction,
    Token,
}

impl PostHandler {
    /// Versions that a body may be of beside the one that is served: those that oldest clients send.
    pub fn accepts_too(self) -> &'static [&'static str] {
        match self {
            Self::Eviction => &["policy/v1beta1"],
            Self::Binding | Self::Token => &[],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    Log,
    Exec,
    Attach,
    PortForward,
    Proxy,
}
