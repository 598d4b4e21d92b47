//! Lists and watch streams made of objects that are encoded already: the bytes are copied.

use std::io::Write;

use super::proto::wire::{put_bytes, put_int, put_tag, put_varint, varint_len};
use super::{gojson, proto};

/// `metav1.ListMeta`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListMeta<'a> {
    pub resource_version: &'a str,
    /// Token of the next page; empty on the last.
    pub continue_token: &'a str,
    pub remaining_item_count: Option<i64>,
}

/// Writes a list as JSON: `begin`, then `item` for each, then `end`.
#[derive(Debug)]
pub struct JsonList {
    /// What the items' own text begins with and the list leaves out.
    type_meta: Vec<u8>,
    first: bool,
}

impl JsonList {
    /// Writes all that stands before the items. `kind` is the list's (`PodList`).
    ///
    /// The items of a typed list do not repeat their kind: give `item_kind`, and items that begin
    /// with it, as [`proto::to_json`] writes them, lose it. Custom resources keep theirs: give
    /// `None`.
    pub fn begin(
        api_version: &str,
        kind: &str,
        item_kind: Option<&str>,
        meta: &ListMeta<'_>,
        out: &mut Vec<u8>,
    ) -> Self {
        put_type_meta(kind, api_version, out);
        out.extend_from_slice(b",\"metadata\":{");
        let mut comma = "";
        for (name, value) in
            [("resourceVersion", meta.resource_version), ("continue", meta.continue_token)]
        {
            if !value.is_empty() {
                let _ = write!(out, "{comma}\"{name}\":");
                gojson::string(value, out);
                comma = ",";
            }
        }
        if let Some(n) = meta.remaining_item_count {
            let _ = write!(out, "{comma}\"remainingItemCount\":{n}");
        }
        out.extend_from_slice(b"},\"items\":[");
        let mut type_meta = Vec::new();
        if let Some(kind) = item_kind {
            put_type_meta(kind, api_version, &mut type_meta);
        }
        Self { type_meta, first: true }
    }

    /// Copies an item's JSON object.
    pub fn item(&mut self, json: &[u8], out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.first, false) {
            out.push(b',');
        }
        match json.strip_prefix(&self.type_meta[..]) {
            Some(rest) if !self.type_meta.is_empty() => {
                out.push(b'{');
                out.extend_from_slice(rest.strip_prefix(b",").unwrap_or(rest));
            }
            _ => out.extend_from_slice(json),
        }
    }

    /// Writes all that stands after the items.
    pub fn end(self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"]}");
    }
}

/// Writes `{"kind":"Pod","apiVersion":"v1"`.
fn put_type_meta(kind: &str, api_version: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"kind\":");
    gojson::string(kind, out);
    out.extend_from_slice(b",\"apiVersion\":");
    gojson::string(api_version, out);
}

/// Writes a list as an enveloped protobuf message: `begin`, then `item` for each, then `end`.
/// The message's length stands before it, so the items' lengths must be known at the beginning.
#[derive(Debug)]
pub struct ProtoList {
    _begun: (),
}

impl ProtoList {
    /// Bytes that an item takes in a list.
    pub fn item_size(raw_len: usize) -> usize {
        1 + varint_len(raw_len as u64) + raw_len
    }

    /// Writes all that stands before the items; `items_size` is the sum of their
    /// [`ProtoList::item_size`]s.
    pub fn begin(
        api_version: &str,
        kind: &str,
        meta: &ListMeta<'_>,
        items_size: usize,
        out: &mut Vec<u8>,
    ) -> Self {
        let mut head = Vec::with_capacity(64);
        put_bytes(&mut head, 1, &[]);
        put_bytes(&mut head, 2, meta.resource_version.as_bytes());
        put_bytes(&mut head, 3, meta.continue_token.as_bytes());
        if let Some(n) = meta.remaining_item_count {
            put_int(&mut head, 4, n);
        }
        out.extend_from_slice(proto::MAGIC);
        proto::put_type_meta(out, api_version, kind);
        put_tag(out, 2, 2);
        put_varint(out, (Self::item_size(head.len()) + items_size) as u64);
        put_bytes(out, 1, &head);
        Self { _begun: () }
    }

    /// Copies an item's bare message.
    pub fn item(&mut self, raw: &[u8], out: &mut Vec<u8>) {
        put_bytes(out, 2, raw);
    }

    /// Writes all that stands after the items.
    pub fn end(self, out: &mut Vec<u8>) {
        proto::put_trailer(out);
    }
}

/// Writes one event of a JSON watch: `{"type":"ADDED","object":{...}}` and a line feed.
pub fn watch_json(event_type: &str, object: &[u8], out: &mut Vec<u8>) {
    out.reserve(object.len() + 32);
    out.extend_from_slice(b"{\"type\":");
    gojson::string(event_type, out);
    out.extend_from_slice(b",\"object\":");
    out.extend_from_slice(object);
    out.extend_from_slice(b"}\n");
}

/// Writes one event of a protobuf watch (`application/vnd.kubernetes.protobuf;stream=watch`): four
/// bytes of length, most significant first, then a bare `WatchEvent`, as upstream's raw
/// serializer frames it. `object` is enveloped.
pub fn watch_proto(event_type: &str, object: &[u8], out: &mut Vec<u8>) {
    let extension = 1 + varint_len(object.len() as u64) + object.len();
    let event =
        ProtoList::item_size(event_type.len()) + 1 + varint_len(extension as u64) + extension;
    out.reserve(event + 4);
    out.extend_from_slice(&u32::try_from(event).unwrap_or(u32::MAX).to_be_bytes());
    put_bytes(out, 1, event_type.as_bytes());
    put_tag(out, 2, 2);
    put_varint(out, extension as u64);
    put_bytes(out, 1, object);
}

/// An event of a protobuf watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchFrame<'a> {
    pub event_type: &'a str,
    /// The object with its envelope.
    pub object: &'a [u8],
    /// Bytes of the whole frame.
    pub size: usize,
}

/// Reads one frame of a protobuf watch off the front of `bytes`; `None` while it is not complete.
pub fn read_watch_proto(bytes: &[u8]) -> Result<Option<WatchFrame<'_>>, super::DecodeError> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_be_bytes(*length) as usize;
    let Some(event) = rest.get(..length) else { return Ok(None) };
    let (event_type, object) = proto::watch_event(event)?;
    Ok(Some(WatchFrame { event_type, object, size: length + 4 }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Value;
    use crate::codec::{FieldValidation, Schema, json};
    use crate::gvk::GroupVersionKind;
    use crate::schema::Registry;

    fn schema(kind: &str) -> Schema<'static> {
        let registry = Registry::builtin();
        let message = registry.kind(&GroupVersionKind::new("", "v1", kind)).expect("a kind");
        Schema { registry, message }
    }

    #[test]
    fn lists_are_those_of_whole_objects() {
        let text = r#"{"kind":"SecretList","apiVersion":"v1","metadata":{"resourceVersion":"7","continue":"c","remainingItemCount":3},"items":[{"metadata":{"name":"a"}},{"metadata":{"name":"b"},"type":"x"}]}"#;
        let list = json::decode(schema("SecretList"), text.as_bytes(), FieldValidation::Strict);
        let list = list.expect("a list").object;
        let meta =
            ListMeta { resource_version: "7", continue_token: "c", remaining_item_count: Some(3) };
        let secret = schema("Secret");
        let items = list["items"].as_array().expect("items");
        let raw: Vec<Vec<u8>> =
            items.iter().map(|item| proto::encode(secret, item).expect("protobuf")).collect();

        let size = raw.iter().map(|r| ProtoList::item_size(r.len())).sum();
        let mut out = Vec::new();
        let mut writer = ProtoList::begin("v1", "SecretList", &meta, size, &mut out);
        raw.iter().for_each(|r| writer.item(r, &mut out));
        writer.end(&mut out);
        assert_eq!(out, proto::encode_enveloped(schema("SecretList"), &list).expect("protobuf"));

        let mut out = Vec::new();
        let mut writer = JsonList::begin("v1", "SecretList", Some("Secret"), &meta, &mut out);
        for r in &raw {
            let mut item = Vec::new();
            proto::to_json(secret, "v1", "Secret", r, &mut item).expect("JSON");
            writer.item(&item, &mut out);
        }
        writer.end(&mut out);
        assert_eq!(String::from_utf8_lossy(&out), text);
    }

    #[test]
    fn watch_frames() {
        let mut out = Vec::new();
        watch_json("ADDED", b"{}", &mut out);
        assert_eq!(out, b"{\"type\":\"ADDED\",\"object\":{}}\n");

        let object = proto::seal("v1", "Secret", &[0; 200]);
        let mut out = Vec::new();
        watch_proto("MODIFIED", &object, &mut out);
        let event: Value = serde_json::json!({"type": "MODIFIED", "object": null});
        let expected = proto::encode(schema("WatchEvent"), &event).expect("protobuf");
        // Up to the object's length the same as an event without one.
        assert_eq!(out[4..15], expected[..11]);
        assert_eq!(
            read_watch_proto(&out),
            Ok(Some(WatchFrame { event_type: "MODIFIED", object: &object, size: out.len() }))
        );
        assert_eq!(read_watch_proto(&out[..out.len() - 1]), Ok(None));
    }
}
