//! The second edition's document as protobuf: the message `openapi.v2.Document` of gnostic.
//!
//! It is made from the JSON form while that is read: one path and one definition at a time are in
//! memory beside the result.

use std::fmt;
use std::io::Read;

use apimachinery::Value;
use serde::de::{DeserializeSeed, Deserializer as _, Error as _, MapAccess, Visitor};
use serde_json::{Deserializer, Map};

/// Fields of a message: the name in JSON, the number on the wire, how the value is written.
type Fields = &'static [(&'static str, u32, Form)];

/// How a value in JSON stands on the wire.
#[derive(Clone, Copy)]
enum Form {
    Text,
    Texts,
    Bool,
    Integer,
    Double,
    /// Any value: its text in YAML, of which JSON is a part.
    Any,
    Anys,
    Message(&'static Shape),
    Messages(&'static Shape),
    /// A map that is a message with a list of pairs.
    Pairs(&'static Shape),
    /// `type`: one text or several.
    Types,
    /// `items`: one schema or several.
    Items,
    /// `additionalProperties`: a schema or a bool.
    Additional,
    /// Lists of texts by name.
    Requirements,
}

/// What a message is made of.
struct Shape {
    fields: Fields,
    /// The field that values of `x-…` go to; 0: none.
    extensions: u32,
    /// Messages around it, by field number, outermost first, when the value has what is asked.
    wrap: fn(&Map<String, Value>) -> &'static [u32],
    /// Where all fields that have no number of their own go as pairs, and what they hold.
    rest: Option<(u32, &'static Self)>,
}

/// Stands alone.
fn bare(_: &Map<String, Value>) -> &'static [u32] {
    &[]
}

/// The first of alternatives.
fn first(_: &Map<String, Value>) -> &'static [u32] {
    &[1]
}

/// An item of `parameters`: a reference, the body, or what is elsewhere.
fn parameter_item(value: &Map<String, Value>) -> &'static [u32] {
    if value.contains_key("$ref") {
        return &[2];
    }
    match value.get("in").and_then(Value::as_str) {
        Some("body") => &[1, 1],
        Some("header") => &[1, 2, 1],
        Some("formData") => &[1, 2, 2],
        Some("path") => &[1, 2, 4],
        _ => &[1, 2, 3],
    }
}

/// The kinds of security definitions that are known.
fn security(value: &Map<String, Value>) -> &'static [u32] {
    match value.get("type").and_then(Value::as_str) {
        Some("basic") => &[1],
        _ => &[2],
    }
}

const fn plain(fields: Fields, extensions: u32) -> Shape {
    Shape { fields, extensions, wrap: bare, rest: None }
}

static INFO: Shape = plain(
    &[
        ("title", 1, Form::Text),
        ("version", 2, Form::Text),
        ("description", 3, Form::Text),
        ("termsOfService", 4, Form::Text),
    ],
    7,
);

static DOCS: Shape = plain(&[("description", 1, Form::Text), ("url", 2, Form::Text)], 3);

static SCHEMA: Shape = plain(
    &[
        ("$ref", 1, Form::Text),
        ("format", 2, Form::Text),
        ("title", 3, Form::Text),
        ("description", 4, Form::Text),
        ("default", 5, Form::Any),
        ("multipleOf", 6, Form::Double),
        ("maximum", 7, Form::Double),
        ("exclusiveMaximum", 8, Form::Bool),
        ("minimum", 9, Form::Double),
        ("exclusiveMinimum", 10, Form::Bool),
        ("maxLength", 11, Form::Integer),
        ("minLength", 12, Form::Integer),
        ("pattern", 13, Form::Text),
        ("maxItems", 14, Form::Integer),
        ("minItems", 15, Form::Integer),
        ("uniqueItems", 16, Form::Bool),
        ("maxProperties", 17, Form::Integer),
        ("minProperties", 18, Form::Integer),
        ("required", 19, Form::Texts),
        ("enum", 20, Form::Anys),
        ("additionalProperties", 21, Form::Additional),
        ("type", 22, Form::Types),
        ("items", 23, Form::Items),
        ("allOf", 24, Form::Messages(&SCHEMA)),
        ("properties", 25, Form::Pairs(&SCHEMA)),
        ("discriminator", 26, Form::Text),
        ("readOnly", 27, Form::Bool),
        ("externalDocs", 29, Form::Message(&DOCS)),
        ("example", 30, Form::Any),
    ],
    31,
);

static REFERENCE: Shape = plain(&[("$ref", 1, Form::Text), ("description", 2, Form::Text)], 0);

static BODY: Shape = plain(
    &[
        ("description", 1, Form::Text),
        ("name", 2, Form::Text),
        ("in", 3, Form::Text),
        ("required", 4, Form::Bool),
        ("schema", 5, Form::Message(&SCHEMA)),
    ],
    6,
);

/// Parameters in headers and paths.
static NAMED: Shape = plain(
    &[
        ("required", 1, Form::Bool),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("type", 5, Form::Text),
        ("format", 6, Form::Text),
        ("default", 9, Form::Any),
        ("pattern", 16, Form::Text),
        ("uniqueItems", 19, Form::Bool),
        ("enum", 20, Form::Anys),
    ],
    22,
);

/// Parameters in queries and forms.
static QUERY: Shape = plain(
    &[
        ("required", 1, Form::Bool),
        ("in", 2, Form::Text),
        ("description", 3, Form::Text),
        ("name", 4, Form::Text),
        ("allowEmptyValue", 5, Form::Bool),
        ("type", 6, Form::Text),
        ("format", 7, Form::Text),
        ("default", 10, Form::Any),
        ("pattern", 17, Form::Text),
        ("uniqueItems", 20, Form::Bool),
        ("enum", 21, Form::Anys),
    ],
    23,
);

/// Its fields are those that [`parameter_fields`] chooses.
static PARAMETER: Shape = Shape { fields: &[], extensions: 0, wrap: parameter_item, rest: None };

static RESPONSE_SCHEMA: Shape =
    Shape { fields: SCHEMA.fields, extensions: 31, wrap: first, rest: None };

static RESPONSE: Shape = Shape {
    fields: &[("description", 1, Form::Text), ("schema", 2, Form::Message(&RESPONSE_SCHEMA))],
    extensions: 5,
    wrap: first,
    rest: None,
};

static RESPONSES: Shape =
    Shape { fields: &[], extensions: 2, wrap: bare, rest: Some((1, &RESPONSE)) };

static OPERATION: Shape = plain(
    &[
        ("tags", 1, Form::Texts),
        ("summary", 2, Form::Text),
        ("description", 3, Form::Text),
        ("externalDocs", 4, Form::Message(&DOCS)),
        ("operationId", 5, Form::Text),
        ("produces", 6, Form::Texts),
        ("consumes", 7, Form::Texts),
        ("parameters", 8, Form::Messages(&PARAMETER)),
        ("responses", 9, Form::Message(&RESPONSES)),
        ("schemes", 10, Form::Texts),
        ("deprecated", 11, Form::Bool),
        ("security", 12, Form::Requirements),
    ],
    13,
);

static PATH: Shape = plain(
    &[
        ("$ref", 1, Form::Text),
        ("get", 2, Form::Message(&OPERATION)),
        ("put", 3, Form::Message(&OPERATION)),
        ("post", 4, Form::Message(&OPERATION)),
        ("delete", 5, Form::Message(&OPERATION)),
        ("options", 6, Form::Message(&OPERATION)),
        ("head", 7, Form::Message(&OPERATION)),
        ("patch", 8, Form::Message(&OPERATION)),
        ("parameters", 9, Form::Messages(&PARAMETER)),
    ],
    10,
);

static SECURITY: Shape = Shape {
    fields: &[
        ("type", 1, Form::Text),
        ("name", 2, Form::Text),
        ("in", 3, Form::Text),
        ("description", 4, Form::Text),
    ],
    extensions: 5,
    wrap: security,
    rest: None,
};

static DOCUMENT: Shape = plain(
    &[
        ("swagger", 1, Form::Text),
        ("info", 2, Form::Message(&INFO)),
        ("host", 3, Form::Text),
        ("basePath", 4, Form::Text),
        ("schemes", 5, Form::Texts),
        ("consumes", 6, Form::Texts),
        ("produces", 7, Form::Texts),
        ("security", 12, Form::Requirements),
        ("securityDefinitions", 13, Form::Pairs(&SECURITY)),
        ("externalDocs", 15, Form::Message(&DOCS)),
    ],
    16,
);

/// The large parts, of which one entry at a time is read: number, number of a pair, its value.
const PARTS: [(&str, u32, u32, &Shape); 2] =
    [("paths", 8, 2, &PATH), ("definitions", 9, 1, &SCHEMA)];

/// Writes the document that `json` holds as protobuf.
///
/// # Errors
/// It is no JSON, or it cannot be read.
pub(super) fn encode(json: impl Read) -> Result<Vec<u8>, serde_json::Error> {
    let mut out = Vec::new();
    let mut source = Deserializer::from_reader(json);
    source.deserialize_map(Top { out: &mut out })?;
    source.end()?;
    Ok(out)
}

struct Top<'a> {
    out: &'a mut Vec<u8>,
}

impl<'de> Visitor<'de> for Top<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an OpenAPI document")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<String>()? {
            if let Some((_, number, pair, shape)) = PARTS.iter().find(|p| p.0 == name) {
                let mut part = Vec::new();
                map.next_value_seed(Part { out: &mut part, pair: *pair, shape })?;
                length(self.out, *number, part.len());
                self.out.extend_from_slice(&part);
            } else {
                let one = Map::from_iter([(name, map.next_value()?)]);
                fields(self.out, &DOCUMENT, &one).map_err(A::Error::custom)?;
            }
        }
        Ok(())
    }
}

/// `paths` or `definitions`.
struct Part<'a> {
    out: &'a mut Vec<u8>,
    pair: u32,
    shape: &'static Shape,
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, source: D) -> Result<(), D::Error> {
        source.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            pair(self.out, self.pair, &name, self.shape, &value).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

/// A value does not have the type that the description asks for.
#[derive(Debug, thiserror::Error)]
#[error("field {0} of the OpenAPI document has the wrong type")]
struct WrongType(String);

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn length(out: &mut Vec<u8>, number: u32, len: usize) {
    varint(out, u64::from(number) << 3 | 2);
    varint(out, len as u64);
}

fn text(out: &mut Vec<u8>, number: u32, value: &str) {
    length(out, number, value.len());
    out.extend_from_slice(value.as_bytes());
}

/// Writes a message whose length is known when it is done.
fn nested<E>(
    out: &mut Vec<u8>,
    number: u32,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let mut inner = Vec::new();
    write(&mut inner)?;
    length(out, number, inner.len());
    out.extend_from_slice(&inner);
    Ok(())
}

fn pair(
    out: &mut Vec<u8>,
    number: u32,
    name: &str,
    shape: &'static Shape,
    value: &Value,
) -> Result<(), WrongType> {
    nested(out, number, |out| {
        text(out, 1, name);
        message(out, 2, shape, name, value)
    })
}

fn any(out: &mut Vec<u8>, number: u32, value: &Value) -> Result<(), WrongType> {
    nested(out, number, |out| {
        text(out, 2, &format!("{value}\n"));
        Ok(())
    })
}

fn message(
    out: &mut Vec<u8>,
    number: u32,
    shape: &'static Shape,
    name: &str,
    value: &Value,
) -> Result<(), WrongType> {
    let map = value.as_object().ok_or_else(|| WrongType(name.to_owned()))?;
    let wrap = (shape.wrap)(map);
    wrapped(out, number, wrap, &mut |out| fields(out, parameter_fields(shape, wrap), map))
}

/// The fields of a parameter depend on which alternative it is.
fn parameter_fields(shape: &'static Shape, wrap: &[u32]) -> &'static Shape {
    if !std::ptr::eq(shape, &PARAMETER) {
        return shape;
    }
    match wrap {
        [2] => &REFERENCE,
        [1, 1] => &BODY,
        [1, 2, 1 | 4] => &NAMED,
        _ => &QUERY,
    }
}

type Write<'a> = dyn FnMut(&mut Vec<u8>) -> Result<(), WrongType> + 'a;

fn wrapped(
    out: &mut Vec<u8>,
    number: u32,
    wrap: &[u32],
    write: &mut Write<'_>,
) -> Result<(), WrongType> {
    nested(out, number, |out| match wrap {
        [] => write(out),
        [next, rest @ ..] => wrapped(out, *next, rest, write),
    })
}

fn fields(
    out: &mut Vec<u8>,
    shape: &'static Shape,
    map: &Map<String, Value>,
) -> Result<(), WrongType> {
    for (name, number, form) in shape.fields {
        if let Some(value) = map.get(*name) {
            field(out, *number, *form, name, value)?;
        }
    }
    for (name, value) in map {
        if name.starts_with("x-") {
            if shape.extensions > 0 {
                nested(out, shape.extensions, |out| {
                    text(out, 1, name);
                    any(out, 2, value)
                })?;
            }
        } else if let Some((number, rest)) = shape.rest {
            pair(out, number, name, rest, value)?;
        }
    }
    Ok(())
}

fn field(
    out: &mut Vec<u8>,
    number: u32,
    form: Form,
    name: &str,
    value: &Value,
) -> Result<(), WrongType> {
    let wrong = || WrongType(name.to_owned());
    let list = || value.as_array().ok_or_else(wrong);
    match form {
        // What is zero or empty is left out, as everywhere in proto3.
        Form::Text => match value.as_str().ok_or_else(wrong)? {
            "" => {}
            value => text(out, number, value),
        },
        Form::Texts => {
            for one in list()? {
                text(out, number, one.as_str().ok_or_else(wrong)?);
            }
        }
        Form::Bool => {
            if value.as_bool().ok_or_else(wrong)? {
                varint(out, u64::from(number) << 3);
                out.push(1);
            }
        }
        Form::Integer => {
            let value = value.as_i64().ok_or_else(wrong)?;
            if value != 0 {
                varint(out, u64::from(number) << 3);
                varint(out, value as u64);
            }
        }
        Form::Double => {
            let value = value.as_f64().ok_or_else(wrong)?;
            if value != 0.0 {
                varint(out, u64::from(number) << 3 | 1);
                out.extend_from_slice(&value.to_le_bytes());
            }
        }
        Form::Any => any(out, number, value)?,
        Form::Anys => list()?.iter().try_for_each(|one| any(out, number, one))?,
        Form::Message(shape) => message(out, number, shape, name, value)?,
        Form::Messages(shape) => {
            list()?.iter().try_for_each(|one| message(out, number, shape, name, one))?;
        }
        Form::Pairs(shape) => {
            let map = value.as_object().ok_or_else(wrong)?;
            nested(out, number, |out| {
                map.iter().try_for_each(|(name, value)| pair(out, 1, name, shape, value))
            })?;
        }
        Form::Types => nested(out, number, |out| match value {
            Value::String(one) => {
                text(out, 1, one);
                Ok(())
            }
            several => field(out, 1, Form::Texts, name, several),
        })?,
        Form::Items => nested(out, number, |out| match value {
            Value::Array(_) => field(out, 1, Form::Messages(&SCHEMA), name, value),
            one => message(out, 1, &SCHEMA, name, one),
        })?,
        Form::Additional => nested(out, number, |out| match value {
            // Set in a choice, so it stands even when it is false.
            Value::Bool(b) => {
                out.extend_from_slice(&[2 << 3, u8::from(*b)]);
                Ok(())
            }
            schema => message(out, 1, &SCHEMA, name, schema),
        })?,
        Form::Requirements => {
            for requirement in list()? {
                let map = requirement.as_object().ok_or_else(wrong)?;
                nested(out, number, |out| {
                    map.iter().try_for_each(|(name, scopes)| {
                        nested(out, 1, |out| {
                            text(out, 1, name);
                            nested(out, 2, |out| field(out, 1, Form::Texts, name, scopes))
                        })
                    })
                })?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use serde_json::json;

    use super::*;

    /// The part of the message's definition that the document below uses.
    const DEFINITION: &str = r#"
        syntax = "proto3"; package openapi.v2;
        message Any { string yaml = 2; }
        message NamedAny { string name = 1; Any value = 2; }
        message Info { string title = 1; string version = 2; }
        message TypeItem { repeated string value = 1; }
        message ItemsItem { repeated Schema schema = 1; }
        message AdditionalPropertiesItem { oneof oneof { Schema schema = 1; bool boolean = 2; } }
        message NamedSchema { string name = 1; Schema value = 2; }
        message Properties { repeated NamedSchema additional_properties = 1; }
        message Definitions { repeated NamedSchema additional_properties = 1; }
        message Schema {
            string _ref = 1; string format = 2; string description = 4; double maximum = 7;
            int64 max_length = 11; repeated string required = 19;
            AdditionalPropertiesItem additional_properties = 21; TypeItem type = 22;
            ItemsItem items = 23; Properties properties = 25;
            repeated NamedAny vendor_extension = 31;
        }
        message BodyParameter { string name = 2; string in = 3; bool required = 4; Schema schema = 5; }
        message Query { string in = 2; string description = 3; string name = 4; string type = 6;
            bool unique_items = 20; }
        message Path { bool required = 1; string in = 2; string description = 3; string name = 4;
            string type = 5; }
        message NonBody { oneof oneof { Query query = 3; Path path = 4; } }
        message Parameter { oneof oneof { BodyParameter body = 1; NonBody non_body = 2; } }
        message ParametersItem { oneof oneof { Parameter parameter = 1; } }
        message SchemaItem { oneof oneof { Schema schema = 1; } }
        message Response { string description = 1; SchemaItem schema = 2; }
        message ResponseValue { oneof oneof { Response response = 1; } }
        message NamedResponseValue { string name = 1; ResponseValue value = 2; }
        message Responses { repeated NamedResponseValue response_code = 1; }
        message Operation { string operation_id = 5; repeated string produces = 6;
            repeated ParametersItem parameters = 8; Responses responses = 9;
            repeated NamedAny vendor_extension = 13; }
        message PathItem { Operation get = 2; repeated ParametersItem parameters = 9; }
        message NamedPathItem { string name = 1; PathItem value = 2; }
        message Paths { repeated NamedPathItem path = 2; }
        message StringArray { repeated string value = 1; }
        message NamedStringArray { string name = 1; StringArray value = 2; }
        message SecurityRequirement { repeated NamedStringArray additional_properties = 1; }
        message ApiKey { string type = 1; string name = 2; string in = 3; }
        message SecurityItem { oneof oneof { ApiKey api_key = 2; } }
        message NamedSecurity { string name = 1; SecurityItem value = 2; }
        message SecurityDefinitions { repeated NamedSecurity additional_properties = 1; }
        message Document { string swagger = 1; Info info = 2; Paths paths = 8;
            Definitions definitions = 9; repeated SecurityRequirement security = 12;
            SecurityDefinitions security_definitions = 13; }
    "#;

    const DECODED: &str = r#"
        swagger: "2.0" info { title: "K" version: "v1" }
        paths { path { name: "/api" value {
          get { operation_id: "read" produces: "a" produces: "b"
            parameters { parameter { body { name: "body" in: "body" required: true
              schema { _ref: "\#/definitions/A" } } } }
            parameters { parameter { non_body { query { in: "query" name: "pretty" type: "string"
              unique_items: true } } } }
            responses { response_code { name: "200" value { response { description: "OK"
              schema { schema { _ref: "\#/definitions/A" } } } } } }
            vendor_extension { name: "x-act" value { yaml: "\"get\"\n" } } }
          parameters { parameter { non_body { path { required: true in: "path" name: "name"
            type: "string" } } } } } } }
        definitions { additional_properties { name: "A" value {
          description: "d" maximum: 1.5 max_length: 300 required: "p" type { value: "object" }
          properties {
            additional_properties { name: "p" value { type { value: "array" }
              items { schema { format: "int32" type { value: "integer" } } } } }
            additional_properties { name: "q" value {
              additional_properties { schema { type { value: "string" } } } } }
            additional_properties { name: "r" value { additional_properties { boolean: false } } } }
          vendor_extension { name: "x-gvk" value { yaml: "[{\"kind\":\"A\"}]\n" } } } } }
        security { additional_properties { name: "T" value { } } }
        security_definitions { additional_properties { name: "T" value {
          api_key { type: "apiKey" name: "authorization" in: "header" } } } }
    "#;

    /// Text without what only lays it out.
    fn words(text: &str) -> String {
        text.replace("\\#", "#").split_whitespace().collect()
    }

    #[test]
    fn another_decoder_reads_it() {
        let document = json!({
            "swagger": "2.0", "info": {"title": "K", "version": "v1"},
            "paths": {"/api": {
                "get": {"operationId": "read", "produces": ["a", "b"],
                    "parameters": [
                        {"name": "body", "in": "body", "required": true,
                            "schema": {"$ref": "#/definitions/A"}},
                        {"name": "pretty", "in": "query", "type": "string", "uniqueItems": true}],
                    "responses": {"200": {"description": "OK",
                        "schema": {"$ref": "#/definitions/A"}}},
                    "x-act": "get"},
                "parameters": [
                    {"name": "name", "in": "path", "type": "string", "required": true}]}},
            "definitions": {"A": {"type": "object", "description": "d", "maximum": 1.5,
                "maxLength": 300, "required": ["p"], "x-gvk": [{"kind": "A"}],
                "properties": {
                    "p": {"type": "array", "items": {"type": "integer", "format": "int32"}},
                    "q": {"additionalProperties": {"type": "string"}},
                    "r": {"additionalProperties": false}}}},
            "security": [{"T": []}],
            "securityDefinitions": {
                "T": {"type": "apiKey", "name": "authorization", "in": "header"}},
        });
        let data = encode(document.to_string().as_bytes()).expect("protobuf");
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join("v2.proto"), DEFINITION).expect("a file");
        let mut protoc = Command::new("protoc")
            .arg(format!("--proto_path={}", dir.path().display()))
            .args(["--decode=openapi.v2.Document", "v2.proto"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("protoc, of the package protobuf-compiler");
        protoc.stdin.take().expect("a pipe").write_all(&data).expect("written");
        let output = protoc.wait_with_output().expect("protoc's answer");
        assert!(output.status.success());
        let got = String::from_utf8(output.stdout).expect("text");
        assert_eq!(words(&got), words(DECODED));
    }

    #[test]
    fn what_is_no_document_is_an_error() {
        for text in ["", "[]", "{\"swagger\":2}", "{\"paths\":{\"a\":1}}", "{} x"] {
            assert!(encode(text.as_bytes()).is_err(), "{text}");
        }
    }
}
