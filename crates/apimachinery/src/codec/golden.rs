//! Objects of every kind as upstream encodes them, for tests. `hack/schema` makes them.

use std::io::Read;

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
        let registry = Registry::builtin();
        let gvk = GroupVersionKind::from_api_version(&self.api_version, &self.kind);
        let message = registry.kind(&gvk).unwrap_or_else(|| panic!("{gvk} is not registered"));
        Schema { registry, message }
    }
}

pub(crate) fn all() -> Vec<Golden> {
    let packed: &[u8] = include_bytes!("golden.txt.gz");
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed).read_to_string(&mut text).expect("a gzip file");
    let lines: Vec<&str> = text.lines().collect();
    let objects = lines.chunks_exact(3).map(|lines| {
        let (api_version, kind) = lines[0].split_once(' ').expect("apiVersion and kind");
        let proto = (lines[2] != "-").then(|| unhex(lines[2]));
        Golden { api_version: api_version.into(), kind: kind.into(), json: lines[1].into(), proto }
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
