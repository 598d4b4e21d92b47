//! The registry of message schemas: facts about every built-in type, loaded from one data file
//! that `hack/schema` generates (JSON names, protobuf numbers, list types, merge keys, defaults).

use std::collections::HashMap;

use crate::Value;
use crate::gvk::GroupVersionKind;

/// Index of a message in its [`Registry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(pub u32);

/// Schemas of one set of types.
#[derive(Debug, Default)]
pub struct Registry {
    pub messages: Vec<Message>,
    pub by_name: HashMap<String, MessageId>,
    pub kinds: HashMap<GroupVersionKind, MessageId>,
}

/// A message: Go struct, JSON object, protobuf message.
#[derive(Debug)]
pub struct Message {
    /// OpenAPI name: `io.k8s.api.core.v1.Pod`.
    pub name: String,
    /// Fields in declaration order.
    pub fields: Vec<Field>,
}

/// A field of a message.
#[derive(Debug)]
pub struct Field {
    /// Name in JSON. For an inlined message, the protobuf name, which JSON does not show.
    pub json: String,
    /// Field number in protobuf.
    pub number: u32,
    pub ty: Type,
    /// A Go pointer (or slice or map): absent differs from zero.
    pub pointer: bool,
    /// JSON leaves the field out when it is zero (`omitempty`, `omitzero`).
    pub omitempty: bool,
    /// The message's fields stand in the parent's JSON object.
    pub inline: bool,
    /// Not marked optional: OpenAPI lists it under `required`.
    pub required: bool,
    pub list: ListType,
    /// `x-kubernetes-map-type: atomic`, for maps and messages.
    pub atomic: bool,
    /// Strategic merge patch: `patchMergeKey`.
    pub merge_key: Option<String>,
    /// Strategic merge patch: `patchStrategy` (`merge`, `replace`, `retainKeys`).
    pub patch_strategy: Vec<String>,
    /// Declared default (`+default=`), applied by decoding of a versioned object.
    pub default: Option<Value>,
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Type {
    Bool,
    Int32,
    Int64,
    Double,
    String,
    /// Base64 in JSON.
    Bytes,
    Message(MessageId),
    List(Box<Type>),
    /// String keys.
    Map(Box<Type>),
    /// `resource.Quantity`: a string in JSON, `{1: string}` in protobuf.
    Quantity,
    /// `intstr.IntOrString`.
    IntOrString,
    /// `metav1.Time`: RFC 3339 seconds.
    Time,
    /// `metav1.MicroTime`: RFC 3339 microseconds.
    MicroTime,
    /// `metav1.Duration`: `1h30m` in JSON, nanoseconds in protobuf.
    Duration,
    /// `metav1.FieldsV1`: any JSON object; `{1: bytes}` of JSON in protobuf.
    FieldsV1,
    /// `runtime.RawExtension`: any JSON; `{1: bytes}` of JSON in protobuf.
    RawExtension,
    /// `apiextensions.JSON`: any JSON value; `{1: bytes}` of JSON in protobuf.
    Json,
}

/// `+listType`, for server-side apply.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum ListType {
    #[default]
    Atomic,
    Set,
    /// Keyed by these fields of its elements.
    Map(Vec<String>),
}

impl Registry {
    /// The types of Kubernetes v1.35, loaded once.
    pub fn builtin() -> &'static Registry {
        todo!()
    }

    pub fn message(&self, id: MessageId) -> &Message {
        &self.messages[id.0 as usize]
    }

    pub fn by_name(&self, name: &str) -> Option<MessageId> {
        self.by_name.get(name).copied()
    }

    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<MessageId> {
        self.kinds.get(gvk).copied()
    }
}
