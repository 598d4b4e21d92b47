//! An object as the caches keep it: the bytes that are stored, and what was made of them so far.

use std::sync::{Arc, OnceLock};

use apimachinery::codec::{DecodeError, FieldValidation, Schema, json, proto};
use apimachinery::schema::{MessageId, Registry};
use apimachinery::{Value, object};
use bytes::Bytes;
use std::borrow::Cow;

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

/// One state of one object.
pub struct Cached {
    /// Below the resource's prefix: `name` or `namespace/name`.
    pub key: Arc<str>,
    /// The revision that clients see as resourceVersion.
    pub revision: u64,
    /// The revision of the object's creation.
    pub created: u64,
    stored: Bytes,
    raw: OnceLock<Bytes>,
    json: OnceLock<Bytes>,
    index: OnceLock<Index>,
    value: OnceLock<Arc<Value>>,
}

fn or_init<T>(
    cell: &OnceLock<T>,
    make: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<&T, DecodeError> {
    if let Some(made) = cell.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

impl Cached {
    pub fn new(key: &str, revision: u64, created: u64, stored: Bytes) -> Self {
        Self {
            key: key.into(),
            revision,
            created,
            stored,
            raw: OnceLock::new(),
            json: OnceLock::new(),
            index: OnceLock::new(),
            value: OnceLock::new(),
        }
    }

    /// The same content under another revision: what an event of its end shows.
    pub fn at(&self, revision: u64) -> Self {
        Self { created: self.created, ..Self::new(&self.key, revision, 0, self.stored.clone()) }
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
    pub fn raw(&self, codec: &Codec) -> Result<&Bytes, DecodeError> {
        or_init(&self.raw, || {
            let revision = shown(self.revision);
            match proto::open(&self.stored)? {
                Some(envelope) => Ok(super::splice::revise(envelope.raw, &revision)?.into()),
                None => {
                    let Some((registry, message)) = codec.schema else {
                        return Err(DecodeError::Malformed("has no protobuf".to_owned()));
                    };
                    let value = self.decode(codec)?;
                    Ok(proto::encode(Schema { registry, message }, &value)?.into())
                }
            }
        })
    }

    /// As JSON, in the stored version.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn json(&self, codec: &Codec) -> Result<&[u8], DecodeError> {
        let line = self.json_line(codec)?;
        Ok(line.strip_suffix(b"\n").unwrap_or(line))
    }

    /// As JSON with a line feed, as answers end.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn json_line(&self, codec: &Codec) -> Result<&Bytes, DecodeError> {
        or_init(&self.json, || {
            if let (Some((registry, message)), Some(_)) = (codec.schema, proto::open(&self.stored)?)
            {
                let raw = self.raw(codec)?;
                let mut out = Vec::with_capacity(raw.len() * 2);
                let schema = Schema { registry, message };
                proto::to_json(schema, &codec.api_version, &codec.kind, raw, &mut out)?;
                out.push(b'\n');
                out.shrink_to_fit();
                return Ok(out.into());
            }
            let value = self.decode(codec)?;
            let mut text =
                serde_json::to_vec(&value).map_err(|e| DecodeError::Malformed(e.to_string()))?;
            text.push(b'\n');
            Ok(text.into())
        })
    }

    /// Decoded, kept for later readers.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn value(&self, codec: &Codec) -> Result<&Arc<Value>, DecodeError> {
        or_init(&self.value, || self.decode(codec).map(Arc::new))
    }

    /// Decoded for the caller alone.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn decode(&self, codec: &Codec) -> Result<Value, DecodeError> {
        if let Some(value) = self.value.get() {
            return Ok(Value::clone(value));
        }
        decode(codec, &self.stored, self.revision)
    }

    /// What selectors look at.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn index(&self, codec: &Codec) -> Result<&Index, DecodeError> {
        or_init(&self.index, || match self.value.get() {
            Some(value) => Ok(Index::of(codec, value)),
            None => Ok(Index::of(codec, &self.decode(codec)?)),
        })
    }

    /// A field by its index, or nothing when the object cannot be read.
    pub fn field<'a>(&'a self, codec: &Codec, at: usize) -> Cow<'a, str> {
        self.index(codec).map_or("", |index| index.field(at)).into()
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

/// A resourceVersion; an object that was not stored (of a dry run) has none.
fn shown(revision: u64) -> String {
    if revision == 0 { String::new() } else { revision.to_string() }
}
