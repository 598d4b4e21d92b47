//! An object as the caches keep it: the bytes that are stored, and what was made of them so far.

use std::sync::{Arc, OnceLock};

use apimachinery::codec::{DecodeError, FieldValidation, Schema, json, proto};
use apimachinery::schema::{MessageId, Registry};
use apimachinery::{Value, object};
use bytes::Bytes;
use std::borrow::Cow;

use super::made::{Made, ROOM, Room, Taker};
use crate::registry::SelectableField;

/// How objects without a compiled schema are read.
pub trait Reading: Send + Sync + 'static {
    /// Makes an object of the store what its readers see.
    ///
    /// # Errors
    /// It is not of this kind.
    fn read(&self, object: &mut Value) -> Result<(), DecodeError>;

    /// Fields that selectors may name.
    fn labels(&self) -> &[String];

    /// A field, by its index in [`labels`](Self::labels).
    fn field(&self, at: usize, object: &Value) -> String;
}

/// How objects under one prefix of the store are read.
pub struct Codec {
    /// `None`: objects are JSON without a schema.
    pub schema: Option<(&'static Registry, MessageId)>,
    /// Version and kind that are stored.
    pub api_version: String,
    pub kind: String,
    /// Fields that selectors may name.
    pub fields: Vec<SelectableField>,
    /// Of objects without a schema.
    pub custom: Option<Arc<dyn Reading>>,
}

impl Codec {
    /// The index of a field that selectors may name.
    pub fn field_at(&self, label: &str) -> Option<usize> {
        let custom = || self.custom.as_ref()?.labels().iter().position(|l| l == label);
        self.fields.iter().position(|f| f.label == label).or_else(custom)
    }
}

/// What selectors look at.
#[derive(Debug, Default)]
pub struct Index {
    labels: Box<[(Box<str>, Box<str>)]>,
    /// In the order of [`Codec::fields`].
    fields: Box<[Box<str>]>,
}

impl Index {
    /// A label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        let at = self.labels.binary_search_by(|(k, _)| (**k).cmp(key)).ok()?;
        self.labels.get(at).map(|(_, v)| &**v)
    }

    /// A field's value, by its index in [`Codec::fields`].
    pub fn field(&self, at: usize) -> &str {
        self.fields.get(at).map_or("", |v| v)
    }

    fn of(codec: &Codec, value: &Value) -> Self {
        let labels = object::map_at(value, &["metadata", "labels"]);
        let mut labels: Vec<(Box<str>, Box<str>)> = labels
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.as_str().into(), v.as_str().unwrap_or("").into()))
            .collect();
        labels.sort();
        let mut fields: Vec<Box<str>> =
            codec.fields.iter().map(|f| Box::from(&*(f.get)(value))).collect();
        if let Some(custom) = &codec.custom {
            let custom = (0..custom.labels().len()).map(|at| custom.field(at, value).into());
            fields.extend(custom);
        }
        Self { labels: labels.into(), fields: fields.into() }
    }
}

/// What a decoded object takes in memory as a multiple of its stored bytes, about: every field is a
/// name and a value of their own.
const DECODED: usize = 8;

/// One state of one object.
pub struct Cached {
    /// Below the resource's prefix: `name` or `namespace/name`.
    pub key: Arc<str>,
    /// The revision that clients see as resourceVersion.
    pub revision: u64,
    /// The revision of the object's creation.
    pub created: u64,
    stored: Bytes,
    raw: Made<Bytes>,
    json: Made<Bytes>,
    value: Made<Arc<Value>>,
    /// What the three above take room of.
    room: &'static Room,
    /// Small, and looked at whenever somebody selects.
    index: OnceLock<Index>,
}

impl Cached {
    pub fn new(key: &str, revision: u64, created: u64, stored: Bytes) -> Self {
        Self::within(&ROOM, key.into(), revision, created, stored)
    }

    pub(super) fn within(
        room: &'static Room,
        key: Arc<str>,
        revision: u64,
        created: u64,
        stored: Bytes,
    ) -> Self {
        Self {
            key,
            revision,
            created,
            stored,
            raw: Made::empty(),
            json: Made::empty(),
            value: Made::empty(),
            room,
            index: OnceLock::new(),
        }
    }

    /// Lets go of what was made and not asked for since the last call; the stored bytes and what
    /// selectors look at stay.
    pub(super) fn age(&self) {
        self.raw.age(self.room);
        self.json.age(self.room);
        self.value.age(self.room);
    }

    /// The same content under another revision: what an event of its end shows.
    pub fn at(&self, revision: u64) -> Self {
        Self::within(self.room, self.key.clone(), revision, self.created, self.stored.clone())
    }

    /// Whether protobuf, JSON and the decoded object are there.
    #[cfg(test)]
    pub(super) fn made(&self) -> [bool; 3] {
        [self.raw.is_kept(), self.json.is_kept(), self.value.is_kept()]
    }

    /// Namespace (empty for cluster-scoped objects) and name.
    pub fn names(&self) -> (&str, &str) {
        self.key.split_once('/').unwrap_or(("", &self.key))
    }

    /// The bytes in the store.
    pub fn stored(&self) -> &Bytes {
        &self.stored
    }

    /// The bare protobuf message with its resourceVersion.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn raw(&self, codec: &Codec) -> Result<Bytes, DecodeError> {
        self.raw_for(Taker::Reader, codec)
    }

    /// As [`raw`](Self::raw).
    ///
    /// # Errors
    /// As [`raw`](Self::raw).
    pub fn raw_for(&self, taker: Taker, codec: &Codec) -> Result<Bytes, DecodeError> {
        self.raw.or_make(self.room, taker, || weighed(self.to_raw(codec)?))
    }

    fn to_raw(&self, codec: &Codec) -> Result<Bytes, DecodeError> {
        let revision = shown(self.revision);
        match proto::open(&self.stored)? {
            Some(envelope) => Ok(compact(super::splice::revise(envelope.raw, &revision)?)),
            None => {
                let Some((registry, message)) = codec.schema else {
                    return Err(DecodeError::Malformed("has no protobuf".to_owned()));
                };
                let value = self.decode(codec)?;
                Ok(compact(proto::encode(Schema { registry, message }, &value)?))
            }
        }
    }

    /// As JSON, in the stored version.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn json(&self, codec: &Codec) -> Result<Bytes, DecodeError> {
        self.json_for(Taker::Reader, codec)
    }

    /// As [`json`](Self::json).
    ///
    /// # Errors
    /// As [`json`](Self::json).
    pub fn json_for(&self, taker: Taker, codec: &Codec) -> Result<Bytes, DecodeError> {
        let line = self.line_for(taker, codec)?;
        Ok(line.slice(..line.len().saturating_sub(1)))
    }

    /// As JSON with a line feed, as answers end.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn json_line(&self, codec: &Codec) -> Result<Bytes, DecodeError> {
        self.line_for(Taker::Reader, codec)
    }

    fn line_for(&self, taker: Taker, codec: &Codec) -> Result<Bytes, DecodeError> {
        self.json.or_make(self.room, taker, || {
            if let (Some((registry, message)), Some(_)) = (codec.schema, proto::open(&self.stored)?)
            {
                // On the way only: who wants JSON seldom wants protobuf as well.
                let raw = self.to_raw(codec)?;
                let mut out = Vec::with_capacity(raw.len() * 2);
                let schema = Schema { registry, message };
                proto::to_json(schema, &codec.api_version, &codec.kind, &raw, &mut out)?;
                out.push(b'\n');
                return weighed(compact(out));
            }
            let value = self.decode(codec)?;
            let mut text =
                serde_json::to_vec(&value).map_err(|e| DecodeError::Malformed(e.to_string()))?;
            text.push(b'\n');
            weighed(compact(text))
        })
    }

    /// Decoded, kept for later readers.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn value(&self, codec: &Codec) -> Result<Arc<Value>, DecodeError> {
        self.value.or_make(self.room, Taker::Reader, || {
            let value = decode(codec, &self.stored, self.revision)?;
            Ok((Arc::new(value), self.stored.len().saturating_mul(DECODED)))
        })
    }

    /// Decoded for the caller alone.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn decode(&self, codec: &Codec) -> Result<Value, DecodeError> {
        match self.value.known() {
            Some(value) => Ok(Arc::unwrap_or_clone(value)),
            None => decode(codec, &self.stored, self.revision),
        }
    }

    /// What selectors look at.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn index(&self, codec: &Codec) -> Result<&Index, DecodeError> {
        if let Some(index) = self.index.get() {
            return Ok(index);
        }
        let index = match self.value.known() {
            Some(value) => Index::of(codec, &value),
            None => Index::of(codec, &decode(codec, &self.stored, self.revision)?),
        };
        Ok(self.index.get_or_init(|| index))
    }

    /// A field by its index, or nothing when the object cannot be read.
    pub fn field<'a>(&'a self, codec: &Codec, at: usize) -> Cow<'a, str> {
        self.index(codec).map_or("", |index| index.field(at)).into()
    }
}

impl Drop for Cached {
    fn drop(&mut self) {
        let bytes = self.raw.bytes() + self.json.bytes() + self.value.bytes();
        if bytes > 0 {
            self.room.give_back(bytes);
        }
    }
}

/// An object of the store in memory, with its resourceVersion.
///
/// # Errors
/// The bytes are not of this kind.
pub fn decode(codec: &Codec, stored: &[u8], revision: u64) -> Result<Value, DecodeError> {
    let mut value = match (proto::open(stored)?, codec.schema) {
        (Some(envelope), Some((registry, message))) => {
            let mut value = proto::decode(Schema { registry, message }, envelope.raw)?;
            object::set(&mut value, &["apiVersion"], codec.api_version.as_str());
            object::set(&mut value, &["kind"], codec.kind.as_str());
            value
        }
        (Some(_), None) => return Err(DecodeError::Malformed("unexpected protobuf".to_owned())),
        (None, Some((registry, message))) => {
            json::decode(Schema { registry, message }, stored, FieldValidation::Ignore)?.object
        }
        (None, None) => {
            let mut value = serde_json::from_slice(stored)
                .map_err(|e| DecodeError::Malformed(e.to_string()))?;
            if let Some(custom) = &codec.custom {
                custom.read(&mut value)?;
            }
            value
        }
    };
    if revision == 0 {
        object::remove(&mut value, &["metadata", "resourceVersion"]);
    } else {
        object::set_resource_version(&mut value, &revision.to_string());
    }
    Ok(value)
}

/// An encoding, with the room that it takes.
fn weighed(encoded: Bytes) -> Result<(Bytes, usize), DecodeError> {
    let bytes = encoded.len();
    Ok((encoded, bytes))
}

/// Without the room that was left for more.
fn compact(mut bytes: Vec<u8>) -> Bytes {
    bytes.shrink_to_fit();
    bytes.into()
}

/// A resourceVersion; an object that was not stored (of a dry run) has none.
fn shown(revision: u64) -> String {
    if revision == 0 { String::new() } else { revision.to_string() }
}
