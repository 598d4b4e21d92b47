//! What a request brings: its body, and the options of its verb.

use std::sync::Arc;

use apimachinery::codec::{DecodeError, Decoded, FieldValidation, Schema, json, proto, yaml};
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::gvk::{GroupVersionKind, split_api_version};
use apimachinery::meta::validate_field_manager;
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use serde_json::json;

use super::{Call, RequestBody};
use crate::apiextensions::Custom;
use crate::negotiate::{self, Encoding};
use crate::query::Query;
use crate::registry::catalog::Served;

/// Upstream's limit on a body, in bytes.
pub(super) const MAX_BODY: usize = 3 * 1024 * 1024;

/// Reads a whole body.
///
/// # Errors
/// 413 when it is too large, 400 when it breaks off.
pub(super) async fn read_body(mut body: RequestBody) -> Result<Bytes, ApiError> {
    let mut data = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::BadRequest(format!("unable to read body: {e}")))?;
        let Ok(chunk) = frame.into_data() else { continue };
        if data.len() + chunk.len() > MAX_BODY {
            return Err(ApiError::TooLarge(format!("limit is {MAX_BODY}")));
        }
        data.extend_from_slice(&chunk);
    }
    Ok(data.freeze())
}

/// The options of a create, update or patch.
#[derive(Clone, Debug)]
pub(crate) struct Input {
    pub dry_run: bool,
    pub field_manager: String,
    pub validation: FieldValidation,
    /// Apply only.
    pub force: Option<bool>,
    /// As an options object, for admission.
    pub object: Value,
}

impl Input {
    /// Reads and checks the options. `kind`: `CreateOptions`, `UpdateOptions` or `PatchOptions`.
    ///
    /// # Errors
    /// 422 for values that do not exist.
    pub(crate) fn read(call: &Call, kind: &str, is_apply: bool) -> Result<Self, ApiError> {
        let query = &call.query;
        let mut errors = ErrorList::new();
        let dry_run = read_dry_run(query.all("dryRun"), &mut errors);
        let asked = query.text("fieldManager");
        errors.extend(validate_field_manager(asked, &Path::new("fieldManager")));
        let validation = match query.text("fieldValidation") {
            "" | "Warn" => FieldValidation::Warn,
            "Ignore" => FieldValidation::Ignore,
            "Strict" => FieldValidation::Strict,
            other => {
                let path = Path::new("fieldValidation");
                let valid = ["", "Ignore", "Strict", "Warn"];
                errors.push(FieldError::not_supported(&path, other, &valid));
                FieldValidation::Warn
            }
        };
        let force = query.get("force").map(crate::request::truthy);
        if kind == "PatchOptions" {
            if is_apply && asked.is_empty() {
                let path = Path::new("fieldManager");
                errors.push(FieldError::required(&path, "is required for apply patch"));
            }
            if !is_apply && force.is_some() {
                let path = Path::new("force");
                errors
                    .push(FieldError::forbidden(&path, "may not be specified for non-apply patch"));
            }
        }
        if !errors.is_empty() {
            return Err(invalid_options(kind, errors));
        }
        let mut object = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1"});
        if dry_run {
            object["dryRun"] = json!(["All"]);
        }
        for (key, text) in
            [("fieldManager", asked), ("fieldValidation", query.text("fieldValidation"))]
        {
            if !text.is_empty() {
                object[key] = text.into();
            }
        }
        if let Some(force) = force.filter(|_| is_apply) {
            object["force"] = force.into();
        }
        let field_manager = match asked {
            "" => manager_of(call.header("user-agent")),
            asked => asked.to_owned(),
        };
        Ok(Self { dry_run, field_manager, validation, force, object })
    }
}

pub(super) fn read_dry_run<'a>(
    values: impl Iterator<Item = &'a str>,
    errors: &mut ErrorList,
) -> bool {
    let mut any = false;
    for value in values {
        any = true;
        if value != "All" {
            errors.push(FieldError::not_supported(&Path::new("dryRun"), json!([value]), &["All"]));
        }
    }
    any
}

pub(super) fn invalid_options(kind: &str, errors: ErrorList) -> ApiError {
    ApiError::Invalid {
        group: "meta.k8s.io".to_owned(),
        kind: kind.to_owned(),
        name: String::new(),
        errors,
    }
}

/// The field manager of a client that names none: its program's name.
pub(super) fn manager_of(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or("");
    let mut manager: String = name.chars().filter(|c| !c.is_control()).collect();
    while manager.len() > apimachinery::meta::MAX_FIELD_MANAGER_BYTES {
        manager.pop();
    }
    if manager.is_empty() { "unknown".to_owned() } else { manager }
}

/// A body's object, in the resource's served version, with its own apiVersion and kind.
pub(super) struct Body {
    pub object: Value,
    pub warnings: Vec<String>,
}

/// Decodes an object of a kind out of a body. `also`: further versions that it may be of, which
/// have the same fields.
///
/// # Errors
/// 415 for an unknown Content-Type; 400 for what is not an object of the kind.
pub(super) fn decode(
    content_type: &str,
    data: &[u8],
    schema: Schema<'_>,
    (gvk, also): (&GroupVersionKind, &[&str]),
    validation: FieldValidation,
) -> Result<Body, ApiError> {
    let encoding = negotiate::body_encoding(content_type)?;
    let (found, result) = match encoding {
        Encoding::Protobuf => decode_protobuf(data, schema),
        Encoding::Json => (type_of_json(data), json::decode(schema, data, validation)),
        Encoding::Yaml => (type_of_yaml(data), yaml::decode(schema, data, validation)),
    };
    let (api_version, kind) = (&found.0, &found.1);
    let (_, version) = split_api_version(if api_version.is_empty() { "" } else { api_version });
    let version = if version.is_empty() { gvk.version.as_str() } else { version };
    let shown_kind = if kind.is_empty() { gvk.kind.as_str() } else { kind };
    let cannot = |why: String| {
        ApiError::BadRequest(format!(
            "{shown_kind} in version {version:?} cannot be handled as a {}: {why}",
            gvk.kind
        ))
    };
    let expected = gvk.api_version();
    if api_version.matches('/').count() > 1 {
        let why = format!("unexpected GroupVersion string: {api_version}");
        return Err(unrecognized(&gvk.kind, data, &why));
    }
    let named = if api_version.is_empty() { &expected } else { api_version };
    let known = GroupVersionKind::from_api_version(named, shown_kind);
    if known != *gvk && schema.registry.kind(&known).is_none() {
        return Err(cannot(format!(
            "no kind {shown_kind:?} is registered for version {named:?} in scheme \"{SCHEME}\""
        )));
    }
    if !api_version.is_empty() && *api_version != expected && !also.contains(&api_version.as_str())
    {
        return Err(ApiError::BadRequest(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({expected})"
        )));
    }
    if !kind.is_empty() && *kind != gvk.kind {
        let package = gvk.group.split('.').next().filter(|g| !g.is_empty()).unwrap_or("core");
        return Err(cannot(format!(
            "converting ({version}.{kind}) to ({package}.{}): unknown conversion",
            gvk.kind
        )));
    }
    let Decoded { mut object, warnings } = result.map_err(|error| match error {
        DecodeError::Unread(_) => unrecognized(&gvk.kind, data, &error.to_string()),
        DecodeError::Malformed(_) | DecodeError::Strict(_) => cannot(error.to_string()),
    })?;
    object::set(&mut object, &["apiVersion"], expected);
    object::set(&mut object, &["kind"], gvk.kind.as_str());
    Ok(Body { object, warnings })
}

/// Where upstream's scheme of compiled kinds says that it was made.
const SCHEME: &str = "pkg/runtime/scheme.go:111";

/// 400 for a body of which it cannot be told what it is; its beginning is shown, as text if it
/// looks like JSON.
fn unrecognized(kind: &str, data: &[u8], why: &str) -> ApiError {
    let shown = match data {
        [] => "<empty>".to_owned(),
        _ => {
            let begin = data.get(..30).unwrap_or(data);
            let text = match begin.first() {
                Some(b'{') => String::from_utf8_lossy(begin).into_owned(),
                _ => crate::discovery::hex(begin),
            };
            if data.len() > 30 { format!("{text} ...") } else { text }
        }
    };
    ApiError::BadRequest(format!(
        "the object provided is unrecognized (must be of type {kind}): {why} ({shown})"
    ))
}

type Found = (String, String);

fn decode_protobuf(data: &[u8], schema: Schema<'_>) -> (Found, Result<Decoded, DecodeError>) {
    let envelope = match proto::open(data) {
        Ok(Some(envelope)) => envelope,
        Ok(None) => {
            let text = "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]";
            return (Found::default(), Err(DecodeError::Unread(text.to_owned())));
        }
        Err(error) => return (Found::default(), Err(error)),
    };
    let found = (envelope.api_version.to_owned(), envelope.kind.to_owned());
    let decoded = proto::decode(schema, envelope.raw);
    (found, decoded.map(|object| Decoded { object, warnings: Vec::new() }))
}

/// `apiVersion` and `kind`, before the object is read by its schema.
fn type_of_json(data: &[u8]) -> Found {
    #[derive(serde::Deserialize)]
    struct TypeMeta<'a> {
        #[serde(borrow, rename = "apiVersion", default)]
        api_version: Option<std::borrow::Cow<'a, str>>,
        #[serde(borrow, default)]
        kind: Option<std::borrow::Cow<'a, str>>,
    }
    let text = |t: Option<std::borrow::Cow<'_, str>>| t.unwrap_or_default().into_owned();
    match serde_json::from_slice::<TypeMeta<'_>>(data) {
        Ok(meta) => (text(meta.api_version), text(meta.kind)),
        Err(_) => Found::default(),
    }
}

fn type_of_yaml(data: &[u8]) -> Found {
    let decoded = yaml::decode_untyped(data, FieldValidation::Ignore);
    let value = decoded.map_or(Value::Null, |d| d.object);
    let text = |key: &str| object::str_at(&value, &[key]).to_owned();
    (text("apiVersion"), text("kind"))
}

/// Reads and decodes an object of the resource from a body.
///
/// # Errors
/// As [`decode`] and [`read_body`].
pub(super) async fn read_object(
    call: &Call,
    served: &Arc<Served>,
    body: RequestBody,
    validation: FieldValidation,
) -> Result<Body, ApiError> {
    let data = read_body(body).await?;
    let content_type = call.header("content-type");
    let mut read = match (&served.row.custom, served.schema()) {
        (Some(custom), _) => decode_custom(content_type, &data, custom, served, validation)?,
        (None, Some(schema)) => {
            decode(content_type, &data, schema, (&served.gvk, &[]), validation)?
        }
        (None, None) => return Err(served.not_allowed("create")),
    };
    served.apply_defaults(&mut read.object);
    Ok(read)
}

/// Decodes a custom resource out of a body.
fn decode_custom(
    content_type: &str,
    data: &[u8],
    custom: &Custom,
    served: &Served,
    validation: FieldValidation,
) -> Result<Body, ApiError> {
    let decoded = match negotiate::body_encoding(content_type)? {
        Encoding::Json => json::decode_untyped(data, validation),
        Encoding::Yaml => yaml::decode_untyped(data, validation),
        Encoding::Protobuf => {
            return Err(ApiError::UnsupportedMediaType {
                accepted: [negotiate::JSON, negotiate::YAML].map(str::to_owned).to_vec(),
            });
        }
    };
    let unrecognized = |why: String| unrecognized(&served.gvk.kind, data, &why);
    let cannot = |kind: &str, api_version: &str, why: String| {
        let (_, version) = split_api_version(api_version);
        ApiError::BadRequest(format!(
            "{kind} in version {version:?} cannot be handled as a {}: {why}",
            served.gvk.kind
        ))
    };
    let decoded = match decoded {
        Ok(decoded) if decoded.object.is_object() => decoded,
        Ok(decoded) => {
            let kind = match decoded.object {
                Value::Array(_) => "array",
                Value::String(_) => "string",
                Value::Bool(_) => "bool",
                // Upstream finds no fields in a null.
                Value::Null => {
                    return Err(unrecognized("Object 'Kind' is missing in 'null'".to_owned()));
                }
                _ => "number",
            };
            return Err(unrecognized(format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {kind} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
            )));
        }
        Err(error @ DecodeError::Strict(_)) => {
            return Err(cannot(&served.gvk.kind, &served.api_version, error.to_string()));
        }
        Err(error) => return Err(unrecognized(error.to_string())),
    };
    let text = |name: &str| object::str_at(&decoded.object, &[name]).to_owned();
    let (kind, api_version) = (text("kind"), text("apiVersion"));
    if kind.is_empty() {
        let body = String::from_utf8_lossy(data);
        return Err(unrecognized(format!("Object 'Kind' is missing in '{body}'")));
    }
    if api_version != served.api_version {
        return Err(ApiError::BadRequest(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            served.api_version
        )));
    }
    let sent = custom.definition.sent(decoded, validation);
    let Decoded { object, warnings } =
        sent.map_err(|error| cannot(&kind, &api_version, error.to_string()))?;
    Ok(Body { object, warnings })
}

/// Makes the object's namespace that of the request.
///
/// # Errors
/// 400 when it is another.
pub(super) fn check_namespace(
    served: &Served,
    namespace: &str,
    object: &mut Value,
) -> Result<(), ApiError> {
    let expected = if served.row.namespaced { namespace } else { "" };
    let found = object::namespace(object);
    if found == expected {
        return Ok(());
    }
    if found.is_empty() {
        object::set_namespace(object, expected);
        return Ok(());
    }
    if expected.is_empty() {
        object::remove(object, &["metadata", "namespace"]);
        return Ok(());
    }
    Err(ApiError::BadRequest(
        "the namespace of the provided object does not match the namespace sent on the request"
            .to_owned(),
    ))
}

/// The options of a deletion.
#[derive(Clone, Debug, Default)]
pub(super) struct DeleteInput {
    pub dry_run: bool,
    pub grace: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub orphan_dependents: Option<bool>,
    /// `Orphan`, `Foreground`, `Background`.
    pub propagation: Option<String>,
    /// For admission.
    pub object: Value,
}

impl DeleteInput {
    /// From the body, if there is one, else from the query.
    ///
    /// # Errors
    /// 400 for what cannot be read, 422 for values that do not exist.
    pub(super) fn read(content_type: &str, data: &[u8], query: &Query) -> Result<Self, ApiError> {
        let mut options = if data.iter().all(u8::is_ascii_whitespace) {
            from_query(query)?
        } else {
            from_body(content_type, data)?
        };
        object::set(&mut options, &["kind"], "DeleteOptions");
        object::set(&mut options, &["apiVersion"], "meta.k8s.io/v1");
        let mut errors = ErrorList::new();
        let dry = object::list_at(&options, &["dryRun"]).iter().filter_map(Value::as_str);
        let dry_run = read_dry_run(dry, &mut errors);
        let text =
            |path: &[&str]| object::get(&options, path).and_then(Value::as_str).map(str::to_owned);
        let read = Self {
            dry_run,
            grace: object::int_at(&options, &["gracePeriodSeconds"]),
            uid: text(&["preconditions", "uid"]),
            resource_version: text(&["preconditions", "resourceVersion"]),
            orphan_dependents: object::get(&options, &["orphanDependents"])
                .and_then(Value::as_bool),
            propagation: text(&["propagationPolicy"]),
            object: options.clone(),
        };
        let policy = Path::new("propagationPolicy");
        if let Some(found) = &read.propagation
            && !matches!(found.as_str(), "Foreground" | "Background" | "Orphan")
        {
            let valid = ["Foreground", "Background", "Orphan", "nil"];
            errors.push(FieldError::not_supported(&policy, found.as_str(), &valid));
        }
        if read.propagation.is_some() && read.orphan_dependents.is_some() {
            let text = "orphanDependents and deletionPropagation cannot be both set";
            errors.push(FieldError::invalid(&policy, read.propagation.clone(), text));
        }
        if errors.is_empty() { Ok(read) } else { Err(invalid_options("DeleteOptions", errors)) }
    }
}

fn from_query(query: &Query) -> Result<Value, ApiError> {
    let mut options = json!({});
    if let Some(seconds) = query.integer("gracePeriodSeconds")? {
        options["gracePeriodSeconds"] = seconds.into();
    }
    if let Some(orphan) = query.get("orphanDependents") {
        options["orphanDependents"] = crate::request::truthy(orphan).into();
    }
    if let Some(policy) = query.get("propagationPolicy").filter(|p| !p.is_empty()) {
        options["propagationPolicy"] = policy.into();
    }
    let dry: Vec<&str> = query.all("dryRun").collect();
    if !dry.is_empty() {
        options["dryRun"] = json!(dry);
    }
    Ok(options)
}

fn from_body(content_type: &str, data: &[u8]) -> Result<Value, ApiError> {
    let registry = apimachinery::schema::Registry::builtin();
    let name = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
    let Some(message) = registry.by_name(name) else {
        return Err(ApiError::Internal("DeleteOptions have no schema".to_owned()));
    };
    let schema = Schema { registry, message };
    let bad = |e: DecodeError| ApiError::BadRequest(e.to_string());
    match negotiate::body_encoding(content_type)? {
        Encoding::Json => json::decode(schema, data, FieldValidation::Ignore).map(|d| d.object),
        Encoding::Yaml => yaml::decode(schema, data, FieldValidation::Ignore).map(|d| d.object),
        Encoding::Protobuf => decode_protobuf(data, schema).1.map(|d| d.object),
    }
    .map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managers_are_named_by_their_program() {
        assert_eq!(manager_of("kubectl/v1.35.0 (linux)"), "kubectl");
        assert_eq!(manager_of("a\u{7}b"), "ab");
        assert_eq!(manager_of(&"x".repeat(300)).len(), 128);
        assert_eq!(manager_of(""), "unknown");
    }

    #[test]
    fn delete_options_come_in_body_or_query() {
        let query = Query::parse("gracePeriodSeconds=3&propagationPolicy=Orphan&dryRun=All");
        let read = DeleteInput::read("", b"", &query).expect("options");
        assert_eq!(
            (read.grace, read.propagation.as_deref(), read.dry_run),
            (Some(3), Some("Orphan"), true)
        );
        let body = br#"{"kind":"DeleteOptions","apiVersion":"v1","preconditions":{"uid":"u"}}"#;
        let read = DeleteInput::read("application/json", body, &query).expect("options");
        assert_eq!((read.grace, read.uid.as_deref()), (None, Some("u")));
        for (query, code) in [("propagationPolicy=Foo", 422), ("gracePeriodSeconds=x", 400)] {
            let wrong = DeleteInput::read("", b"", &Query::parse(query));
            assert_eq!(wrong.map_err(|e| e.code()).map(|_| ()), Err(code), "{query}");
        }
    }

    #[test]
    fn some_bodies_may_be_of_an_older_version() {
        let gvk = GroupVersionKind::new("policy", "v1", "Eviction");
        let registry = apimachinery::schema::Registry::builtin();
        let schema = Schema { registry, message: registry.kind(&gvk).expect("a kind") };
        let body = br#"{"apiVersion":"policy/v1beta1","kind":"Eviction","metadata":{"name":"p"}}"#;
        let cases: [(&[&str], Option<&str>); 2] =
            [(&["policy/v1beta1"], Some("policy/v1")), (&[], None)];
        for (also, want) in cases {
            let got = decode("", body, schema, (&gvk, also), FieldValidation::Strict);
            let version = got.ok().map(|b| object::str_at(&b.object, &["apiVersion"]).to_owned());
            assert_eq!(version.as_deref(), want);
        }
    }

    #[test]
    fn bodies_are_refused_in_upstreams_words() {
        const TYPE: &str = "Go value of type struct { APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }";
        let gvk = GroupVersionKind::new("", "v1", "ConfigMap");
        let registry = apimachinery::schema::Registry::builtin();
        let schema = Schema { registry, message: registry.kind(&gvk).expect("a kind") };
        let unrecognized = "the object provided is unrecognized (must be of type ConfigMap): ";
        let cannot = "in version \"v1\" cannot be handled as a ConfigMap: ";
        let cases = [
            (
                "",
                format!(
                    "{unrecognized}couldn't get version/kind; json parse error: unexpected end of JSON input (<empty>)"
                ),
            ),
            (
                "7",
                format!(
                    "{unrecognized}couldn't get version/kind; json parse error: json: cannot unmarshal number into {TYPE} (37)"
                ),
            ),
            (
                r#"{"apiVersion":"a/b/c","kind":"ConfigMap"}"#,
                format!(
                    r#"{unrecognized}unexpected GroupVersion string: a/b/c ({{"apiVersion":"a/b/c","kind":" ...)"#
                ),
            ),
            (
                r#"{"apiVersion":"v1","kind":"Foo"}"#,
                format!(
                    r#"Foo {cannot}no kind "Foo" is registered for version "v1" in scheme "pkg/runtime/scheme.go:111""#
                ),
            ),
            (
                r#"{"apiVersion":"apps/v1"}"#,
                format!(
                    r#"ConfigMap {cannot}no kind "ConfigMap" is registered for version "apps/v1" in scheme "pkg/runtime/scheme.go:111""#
                ),
            ),
            (
                r#"{"apiVersion":"v1","kind":"Secret"}"#,
                format!(
                    "Secret {cannot}converting (v1.Secret) to (core.ConfigMap): unknown conversion"
                ),
            ),
            (
                r#"{"data":{"a":1}}"#,
                format!(
                    "ConfigMap {cannot}json: cannot unmarshal number into Go struct field ConfigMap.data of type string"
                ),
            ),
        ];
        for (body, want) in cases {
            let got = decode(
                "application/json",
                body.as_bytes(),
                schema,
                (&gvk, &[]),
                FieldValidation::Warn,
            );
            assert_eq!(got.map(|_| ()).map_err(|e| e.message()), Err(want), "{body}");
        }
    }
}
