//! Named formats (upstream: `cel/library/format.go`).

use apimachinery::names;
use base64::Engine as _;

/// A format of texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cel) struct Format(&'static str);

const NAMES: [&str; 13] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime",
];

impl Format {
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|n| **n == name).map(|n| Self(n))
    }

    /// What is wrong with a text.
    pub fn validate(self, text: &str) -> Vec<String> {
        let unless = |fits: bool, why: String| if fits { Vec::new() } else { vec![why] };
        match self.0 {
            "dns1123Label" => names::name_is_label(text, false),
            "dns1123Subdomain" => names::name_is_subdomain(text, false),
            "dns1035Label" => names::name_is_dns1035_label(text, false),
            "dns1123LabelPrefix" => names::name_is_label(text, true),
            "dns1123SubdomainPrefix" => names::name_is_subdomain(text, true),
            "dns1035LabelPrefix" => names::name_is_dns1035_label(text, true),
            "qualifiedName" => names::qualified_name(text),
            "labelValue" => names::label_value(text),
            "uri" => match super::urls::parse(text) {
                Ok(_) => Vec::new(),
                Err(error) => vec![error],
            },
            "uuid" => unless(
                uuid::Uuid::parse_str(text).is_ok(),
                "does not match the UUID format".to_owned(),
            ),
            "byte" => {
                let decoded = base64::engine::general_purpose::STANDARD.decode(text);
                unless(decoded.is_ok(), "invalid base64".to_owned())
            }
            "date" => unless(text.parse::<jiff::civil::Date>().is_ok(), "invalid date".to_owned()),
            _ => {
                let parsed = text.parse::<jiff::Timestamp>();
                unless(parsed.is_ok(), "invalid datetime".to_owned())
            }
        }
    }
}
