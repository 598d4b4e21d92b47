//! The registry of message schemas: facts about every built-in type, loaded from one data file
//! that `hack/schema` generates (JSON names, protobuf numbers, list types, merge keys, defaults).

mod load;
pub(crate) mod shape;
mod shown;

pub use shown::shown;

use std::collections::HashMap;
use std::sync::{LazyLock, OnceLock};

use crate::Value;
use crate::gvk::GroupVersionKind;
use shape::Shape;

/// Index of a message in its [`Registry`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MessageId(pub u32);

/// Schemas of one set of types.
#[derive(Debug, Default)]
pub struct Registry {
    pub messages: Vec<Message>,
    pub by_name: HashMap<String, MessageId>,
    pub kinds: HashMap<GroupVersionKind, MessageId>,
    /// What the codecs derive from `messages`, made at their first use.
    pub(crate) shapes: OnceLock<Vec<Shape>>,
}

/// A message: Go struct, JSON object, protobuf message.
#[derive(Debug)]
pub struct Message {
    /// OpenAPI name: `io.k8s.api.core.v1.Pod`.
    pub name: String,
    /// Fields in declaration order. `kind` and `apiVersion` of an object are fields of it with
    /// number 0.
    pub fields: Vec<Field>,
    /// `+structType=atomic` on the type itself: server-side apply owns it as a whole.
    pub atomic: bool,
    /// It may have fields beside those declared (of custom resources only).
    pub open: bool,
}

/// A field of a message.
#[derive(Clone, Debug)]
pub struct Field {
    /// Name in JSON. For an inlined message, the protobuf name, which JSON does not show.
    pub json: String,
    /// Field number in protobuf; 0 when protobuf does not carry the field.
    pub number: u32,
    pub ty: Type,
    /// A Go pointer (or slice or map): absent differs from zero.
    pub pointer: bool,
    /// A list that upstream's rules tell from none when it is given and empty.
    pub empty_counts: bool,
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
    /// The list is a message of its own in protobuf, `{1: repeated}`, so that nil and empty
    /// differ there. A list that is a map's value always is one.
    pub wrapped: bool,
    /// Version and kind that the objects in this list show, whatever they came with. (Objects
    /// within others show none as a rule.)
    pub shows: Option<(Box<str>, Box<str>)>,
    /// Go's name of the type where it does not follow from `ty` (`v1.DNSPolicy`), for the text of
    /// type errors. A named list or map has its own type after a `=`.
    pub go: Option<Box<str>>,
    /// The texts that it, or each item of the list or value of the map, may be, as OpenAPI
    /// documents tell them; none: any.
    pub values: Box<[Box<str>]>,
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
    /// A JSON schema or something simpler in its place; the message is `JSONSchemaProps`.
    SchemaOr(SchemaOr, MessageId),
}

/// What may stand in the place of a JSON schema. In protobuf `{1: schema, 2: repeated other}`,
/// except for a bool: `{1: allows, 2: schema}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaOr {
    Bool,
    /// A list of schemas.
    Array,
    /// A list of strings.
    Strings,
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

static BUILTIN: LazyLock<Registry> = LazyLock::new(|| {
    load::parse(include_str!("types.txt")).unwrap_or_else(|e| panic!("built-in schema: {e}"))
});

impl Registry {
    /// The types of Kubernetes v1.35, loaded once.
    pub fn builtin() -> &'static Registry {
        &BUILTIN
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

    /// The fields of a message's JSON object, in the order in which Go writes them: inlined
    /// messages are flattened.
    pub fn json_fields(&self, id: MessageId) -> impl Iterator<Item = &Field> {
        self.shape(id).slots.iter().map(|slot| slot.field(self))
    }

    /// The field that a message's JSON object shows under a name.
    pub fn json_field(&self, id: MessageId, name: &str) -> Option<&Field> {
        let shape = self.shape(id);
        shape.find(self, name).map(|i| shape.slots[i].field(self))
    }

    pub(crate) fn shape(&self, id: MessageId) -> &Shape {
        &self.shapes.get_or_init(|| Shape::all(self))[id.0 as usize]
    }
}

impl Message {
    /// The name without its package: `Pod`.
    pub fn short_name(&self) -> &str {
        self.name.rsplit_once('.').map_or(self.name.as_str(), |(_, name)| name)
    }

    /// The type as Go prints it: `v1.Pod`.
    pub fn go_name(&self) -> &str {
        match self.name.rmatch_indices('.').nth(1) {
            Some((dot, _)) => &self.name[dot + 1..],
            None => &self.name,
        }
    }
}

#[cfg(test)]
mod tests;
