//! Objects of every kind as upstream encodes them, for tests. `hack/schema` makes them.

use std::io::Read;
use std::sync::LazyLock;

use super::Schema;
use crate::gvk::GroupVersionKind;
use crate::schema::Registry;

/// One object.
pub(crate) struct Golden {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) json: String,
    /// None for a kind that protobuf does not carry.
    pub(crate) proto: Option<Vec<u8>>,
}

impl Golden {
    pub(crate) fn schema(&self) -> Schema<'static> {
        schema(&self.api_version, &self.kind)
    }
}

pub(crate) fn all() -> &'static [Golden] {
    static ALL: LazyLock<Vec<Golden>> = LazyLock::new(load);
    &ALL
}

/// What upstream's strict decoder made of a changed object.
pub(crate) struct Decoding {
    pub(crate) api_version: String,
    pub(crate) kind: String,
    pub(crate) input: String,
    /// `ok`, `strict ERROR` or `error ERROR`.
    pub(crate) result: String,
    /// The object, unless it was an error.
    pub(crate) json: Option<String>,
}

pub(crate) fn schema(api_version: &str, kind: &str) -> Schema<'static> {
    let registry = Registry::builtin();
    let gvk = GroupVersionKind::from_api_version(api_version, kind);
    let message = registry.kind(&gvk).unwrap_or_else(|| panic!("{gvk} is not registered"));
    Schema { registry, message }
}

fn unpack(packed: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("a gzip file");
    text
}

/// The encoder's JSON as an API server shows it: its conversion gives the claims of a StatefulSet
/// their version and kind.
fn shown(json: &str) -> String {
    const LIST: &str = "\"volumeClaimTemplates\":[";
    const META: &str = "\"kind\":\"PersistentVolumeClaim\",\"apiVersion\":\"v1\",";
    let (mut out, mut rest) = (String::new(), json);
    while let Some(at) = rest.find(LIST) {
        let (before, list) = rest.split_at(at + LIST.len());
        out += before;
        rest = list;
        let (mut depth, mut quoted, mut escaped, mut from) = (0, false, false, 0);
        for (i, c) in list.char_indices() {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                '"' => quoted = !quoted,
                _ if quoted => {}
                '{' | '[' => {
                    depth += 1;
                    if depth == 1 {
                        out = out + &list[from..=i] + META;
                        from = i + 1;
                        for name in ["\"kind\":", "\"apiVersion\":"] {
                            let own = list[from..].strip_prefix(name);
                            let end = own.and_then(|own| own.find(',').map(|at| at + 1));
                            from += end.map_or(0, |end| name.len() + end);
                        }
                    }
                }
                '}' | ']' if depth > 0 => depth -= 1,
                ']' => {
                    out += &list[from..i];
                    rest = &list[i..];
                    break;
                }
                _ => {}
            }
        }
    }
    out + rest
}

pub(crate) fn decodings() -> Vec<Decoding> {
    let text = unpack(include_bytes!("decodings.txt.gz"));
    let lines: Vec<&str> = text.lines().collect();
    let cases = lines.chunks_exact(4).map(|lines| {
        let (api_version, kind) = lines[0].split_once(' ').expect("apiVersion and kind");
        Decoding {
            api_version: api_version.into(),
            kind: kind.into(),
            input: lines[1].into(),
            result: lines[2].into(),
            json: (lines[3] != "-").then(|| shown(lines[3])),
        }
    });
    cases.collect()
}

fn load() -> Vec<Golden> {
    let text = unpack(include_bytes!("golden.txt.gz"));
    let lines: Vec<&str> = text.lines().collect();
    let objects = lines.chunks_exact(3).map(|lines| {
        let (api_version, kind) = lines[0].split_once(' ').expect("apiVersion and kind");
        let proto = (lines[2] != "-").then(|| unhex(lines[2]));
        Golden { api_version: api_version.into(), kind: kind.into(), json: shown(lines[1]), proto }
    });
    objects.collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |b: u8| (b as char).to_digit(16).expect("a hexadecimal digit") as u8;
    text.as_bytes().chunks_exact(2).map(|two| digit(two[0]) << 4 | digit(two[1])).collect()
}

/// The surroundings of the first difference between two texts.
pub(crate) fn difference(ours: &str, theirs: &str) -> String {
    let at = ours.bytes().zip(theirs.bytes()).take_while(|(a, b)| a == b).count();
    let part = |text: &str| {
        let bytes = text.as_bytes();
        let part = &bytes[at.saturating_sub(120).min(bytes.len())..(at + 60).min(bytes.len())];
        String::from_utf8_lossy(part).into_owned()
    };
    format!("  {}\n  {}", part(ours), part(theirs))
}
