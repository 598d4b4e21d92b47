//! Which encoding a client wants, and as which kind it wants to see objects
//! (k8s.io/apiserver `endpoints/handlers/negotiation`).

use apimachinery::status::ApiError;

/// An encoding of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    /// The media type, as Content-Type says it.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => JSON,
            Self::Yaml => YAML,
            Self::Protobuf => PROTOBUF,
        }
    }

    fn of(media_type: &str) -> Option<Self> {
        match media_type {
            JSON => Some(Self::Json),
            YAML => Some(Self::Yaml),
            PROTOBUF => Some(Self::Protobuf),
            _ => None,
        }
    }
}

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What routes of compiled kinds, and of discovery, answer in.
pub const ROUTE: &[&str] = &[JSON, YAML, PROTOBUF];
/// What those that may stream answer in beside.
const STREAMS: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];

/// Whether a client accepts any media type of a route. Parameters do not count here, and neither
/// does `application/*` (upstream: go-restful's router, before any handler).
///
/// # Errors
/// 406 in the router's words.
pub fn check_accept(accept: &str, streams: bool, produced: &[&str]) -> Result<(), ApiError> {
    let accepted = |range: &str| {
        let media_type = range.split(';').next().unwrap_or("").trim();
        media_type == "*/*" || produced.contains(&media_type)
    };
    if accept.is_empty() || accept.split(',').any(accepted) {
        return Ok(());
    }
    let more = if streams { &STREAMS[..] } else { &[] };
    let available = produced.iter().chain(more).map(|m| (*m).to_owned()).collect();
    Err(ApiError::NoRepresentation { available })
}

/// What an object is shown as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As itself.
    Itself,
    /// As a `Table` of `meta.k8s.io` in this version.
    Table(&'static str),
    /// As `PartialObjectMetadata` in this version.
    Partial(&'static str),
}

/// What a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub encoding: Encoding,
    pub shape: Shape,
    /// JSON with line breaks.
    pub pretty: bool,
}

/// What the endpoint can give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// Objects of a resource, as tables and partial metadata too.
    Object,
    /// A list; partial metadata comes as a list.
    List,
    Watch,
    /// Answers that only come as themselves.
    Plain,
}

/// One range of an Accept header.
#[derive(Debug)]
pub(crate) struct Clause<'a> {
    pub(crate) main: &'a str,
    pub(crate) sub: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl Clause<'_> {
    fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }

    /// What objects are encoded in for it.
    fn encoding(&self) -> Option<Encoding> {
        match (self.main, self.sub) {
            ("*" | "application", "*") => Some(Encoding::Json),
            (main, sub) => Encoding::of(&format!("{main}/{sub}")),
        }
    }

    fn asks_pretty(&self) -> bool {
        self.param("pretty") == Some("1")
    }
}

/// The ranges of an Accept header, what is liked best first.
pub(crate) fn clauses(accept: &str) -> Vec<Clause<'_>> {
    let mut found: Vec<Clause<'_>> = accept
        .split(',')
        .filter_map(|text| {
            let mut pieces = text.split(';').map(str::trim);
            let (main, sub) = match pieces.next()? {
                "" => return None,
                "*" => ("*", "*"),
                range => range.split_once('/')?,
            };
            let mut clause = Clause { main, sub, params: Vec::new(), quality: 1.0 };
            for (key, value) in pieces.filter_map(|p| p.split_once('=')) {
                let value = value.trim().trim_matches('"');
                match key.trim() {
                    "q" => clause.quality = value.parse().unwrap_or(1.0),
                    key => clause.params.push((key, value)),
                }
            }
            Some(clause)
        })
        .collect();
    // By quality; then the more specific first; equals stay in order.
    let specific = |c: &Clause<'_>| (c.main != "*", c.sub != "*");
    found.sort_by(|a, b| {
        b.quality
            .partial_cmp(&a.quality)
            .unwrap_or(std::cmp::Ordering::Equal)
            .then_with(|| specific(b).cmp(&specific(a)))
    });
    found
}

/// Chooses by an Accept header (empty: anything).
///
/// # Errors
/// 406 with the media types that would do.
pub fn choose(
    accept: &str,
    user_agent: &str,
    pretty: Option<&str>,
    offer: Offer,
) -> Result<Wanted, ApiError> {
    let plain = Wanted {
        encoding: Encoding::Json,
        shape: Shape::Itself,
        pretty: is_pretty(pretty, user_agent),
    };
    if accept.trim().is_empty() {
        return Ok(plain);
    }
    for clause in clauses(accept) {
        let Some(encoding) = clause.encoding() else { continue };
        // Upstream does not stream YAML.
        if encoding == Encoding::Yaml && offer == Offer::Watch {
            continue;
        }
        if let Some(shape) = shape(&clause, encoding, offer) {
            let pretty = plain.pretty || clause.asks_pretty();
            return Ok(Wanted { encoding, shape, pretty });
        }
    }
    let accepted = match offer {
        Offer::Watch => &[JSON, PROTOBUF][..],
        _ => &[JSON, YAML, PROTOBUF][..],
    };
    Err(ApiError::NotAcceptable { accepted: accepted.iter().map(|m| (*m).to_owned()).collect() })
}

/// How a client gets the aggregated document of discovery; `None`: no range asks for that. A range
/// that asks for it goes before those that do not, whichever is liked best.
pub fn choose_discovery(accept: &str, user_agent: &str, pretty: Option<&str>) -> Option<Wanted> {
    let kind = [("as", "APIGroupDiscoveryList"), ("g", "apidiscovery.k8s.io"), ("v", "v2")];
    clauses(accept).iter().find_map(|clause| {
        let encoding = clause.encoding()?;
        let asks = kind.iter().all(|(name, value)| clause.param(name) == Some(*value));
        asks.then(|| Wanted {
            encoding,
            shape: Shape::Itself,
            pretty: is_pretty(pretty, user_agent) || clause.asks_pretty(),
        })
    })
}

/// The shape that a clause asks for; `None`: it cannot be had.
fn shape(clause: &Clause<'_>, encoding: Encoding, offer: Offer) -> Option<Shape> {
    let Some(kind) = clause.param("as") else { return Some(Shape::Itself) };
    let version = match (clause.param("g"), clause.param("v")) {
        (Some("meta.k8s.io"), Some("v1")) => "v1",
        (Some("meta.k8s.io"), Some("v1beta1")) => "v1beta1",
        _ => return None,
    };
    match (kind, offer) {
        (_, Offer::Plain) => None,
        ("Table", _) if encoding != Encoding::Protobuf => Some(Shape::Table(version)),
        ("PartialObjectMetadata", Offer::Object | Offer::Watch)
        | ("PartialObjectMetadataList", Offer::List) => Some(Shape::Partial(version)),
        _ => None,
    }
}

/// `?pretty=`, or a client that a person reads the output of.
fn is_pretty(pretty: Option<&str>, user_agent: &str) -> bool {
    match pretty {
        Some(text) => text == "1" || text.eq_ignore_ascii_case("true"),
        None => ["curl", "Wget", "Mozilla/5.0"].iter().any(|agent| user_agent.starts_with(agent)),
    }
}

/// What a body is encoded in, by its Content-Type (absent: JSON).
///
/// # Errors
/// 415 with the media types that would do.
pub fn body_encoding(content_type: &str) -> Result<Encoding, ApiError> {
    let media_type = content_type.split(';').next().unwrap_or("").trim();
    match media_type {
        "" => Ok(Encoding::Json),
        media_type => Encoding::of(media_type).ok_or_else(|| ApiError::UnsupportedMediaType {
            accepted: [JSON, YAML, PROTOBUF].map(str::to_owned).to_vec(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_headers_are_read_as_upstream_reads_them() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        let partial = "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
        let cases = [
            ("", Offer::Object, Some((Encoding::Json, Shape::Itself))),
            ("*/*", Offer::List, Some((Encoding::Json, Shape::Itself))),
            ("application/*", Offer::List, Some((Encoding::Json, Shape::Itself))),
            ("text/html", Offer::List, None),
            ("text/html,*/*;q=0.1", Offer::List, Some((Encoding::Json, Shape::Itself))),
            (
                "application/json;q=0.1,application/yaml;q=0.9",
                Offer::Object,
                Some((Encoding::Yaml, Shape::Itself)),
            ),
            ("application/yaml", Offer::Watch, None),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                Offer::Watch,
                Some((Encoding::Protobuf, Shape::Itself)),
            ),
            (
                "application/vnd.kubernetes.protobuf;stream=watch",
                Offer::Watch,
                Some((Encoding::Protobuf, Shape::Itself)),
            ),
            (table, Offer::List, Some((Encoding::Json, Shape::Table("v1")))),
            (table, Offer::Plain, Some((Encoding::Json, Shape::Itself))),
            (partial, Offer::List, Some((Encoding::Protobuf, Shape::Partial("v1")))),
            (partial, Offer::Object, Some((Encoding::Json, Shape::Itself))),
            ("application/json;as=Table;v=v2;g=meta.k8s.io", Offer::List, None),
            ("application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io", Offer::List, None),
        ];
        for (accept, offer, want) in cases {
            let got = choose(accept, "", None, offer).ok().map(|w| (w.encoding, w.shape));
            assert_eq!(got, want, "{accept}");
        }
        assert_eq!(choose("text/html", "", None, Offer::Object).map_err(|e| e.code()), Err(406));
    }

    #[test]
    fn aggregated_discovery_is_for_those_who_ask() {
        let kind = "g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let old = "g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList";
        let cases = [
            (String::new(), None),
            ("*/*".to_owned(), None),
            ("application/json".to_owned(), None),
            (format!("application/json;{kind}"), Some(Encoding::Json)),
            (format!("application/json;{old}"), None),
            (format!("application/json;{old},application/json;{kind}"), Some(Encoding::Json)),
            (format!("application/json,application/json;{kind}"), Some(Encoding::Json)),
            (format!("*/*;{kind}"), Some(Encoding::Json)),
            (format!("application/yaml;{kind}"), Some(Encoding::Yaml)),
            (
                format!("application/vnd.kubernetes.protobuf;{kind},application/json;{kind}"),
                Some(Encoding::Protobuf),
            ),
            (format!("text/html;{kind}"), None),
        ];
        for (accept, want) in cases {
            let got = choose_discovery(&accept, "", None).map(|w| w.encoding);
            assert_eq!(got, want, "{accept}");
        }
    }

    #[test]
    fn routes_are_chosen_by_bare_media_types() {
        let cases = [
            ("", true),
            ("*/*", true),
            ("text/html, application/yaml;q=0.1", true),
            ("application/json;as=Nothing;v=v9", true),
            ("application/*", false),
            ("text/html", false),
        ];
        for (accept, want) in cases {
            assert_eq!(check_accept(accept, false, ROUTE).is_ok(), want, "{accept}");
        }
        let refused = check_accept("a/b", true, &[JSON]).map_err(|e| e.message());
        let text = "406: Not Acceptable\n\nAvailable representations: application/json, application/json;stream=watch, application/vnd.kubernetes.protobuf;stream=watch";
        assert_eq!(refused, Err(text.to_owned()));
    }

    #[test]
    fn people_get_pretty_answers() {
        assert!(is_pretty(Some("true"), "") && is_pretty(None, "curl/8"));
        assert!(!is_pretty(Some("false"), "curl/8") && !is_pretty(None, "kubectl/v1.35"));
    }

    #[test]
    fn bodies_are_json_unless_they_say_otherwise() {
        assert_eq!(body_encoding(""), Ok(Encoding::Json));
        assert_eq!(body_encoding("application/yaml; charset=utf-8"), Ok(Encoding::Yaml));
        assert_eq!(body_encoding("text/plain").map_err(|e| e.code()), Err(415));
    }
}
