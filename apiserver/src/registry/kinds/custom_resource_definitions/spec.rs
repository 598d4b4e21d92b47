//! Rules of `spec` but for schemas. Where all versions say the same, upstream's errors stand at
//! the place that an older version of the API had for it: `spec.validation`.

use std::collections::BTreeSet;

use apimachinery::Value;
use apimachinery::field::{ErrorList, FieldError, Path};
use apimachinery::names::{dns1035_label, dns1123_subdomain};
use apimachinery::object::{bool_at, get, int_at, list_at, str_at};

use super::schemas;
use crate::apiextensions::conditions;
use crate::apiextensions::rules::field_path;
use crate::apiextensions::schema::{Schema, strings};

/// Fields that may be selected by, at most.
const MAX_SELECTABLE: usize = 8;
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const COLUMN_FORMATS: [&str; 8] =
    ["byte", "date", "date-time", "double", "float", "int32", "int64", "password"];

/// What an update need not keep to, since the object did not before.
#[derive(Clone, Debug)]
pub struct Options {
    /// A version of ConversionReview that we know must be named.
    pub reviews: bool,
    /// Each version must have a schema.
    pub schemas: bool,
    /// Schemas must be structural.
    pub structural: bool,
    /// Types must be those of OpenAPI.
    pub types: bool,
    /// Items of sets must be atomic.
    pub atomic_sets: bool,
    /// Keys of maps must be required or have defaults.
    pub map_keys: bool,
    /// Bundles of certificates must hold certificates.
    pub ca_bundles: bool,
    /// Versions whose schemas are as they were: what one of their expressions may cost was let in.
    pub unchanged: BTreeSet<String>,
    /// Versions that may keep too many selectable fields.
    pub many_fields: BTreeSet<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reviews: true,
            schemas: true,
            structural: true,
            types: true,
            atomic_sets: true,
            map_keys: true,
            ca_bundles: true,
            unchanged: BTreeSet::new(),
            many_fields: BTreeSet::new(),
        }
    }
}

impl Options {
    /// Of an update of `old`.
    pub fn of(new: &Value, old: &Value) -> Self {
        let versions = list_at(old, &["spec", "versions"]);
        let name = |version: &Value| str_at(version, &["name"]).to_owned();
        let same = |v: &&Value| {
            let before = versions.iter().find(|old| name(old) == name(v));
            before.is_some_and(|before| get(before, &["schema"]) == get(v, &["schema"]))
        };
        let all: Vec<&Value> =
            versions.iter().filter_map(|v| get(v, &["schema", "openAPIV3Schema"])).collect();
        let any = |is: fn(&Value) -> bool| all.iter().any(|schema| schemas::any(schema, is));
        let reviews = list_at(old, &["spec", "conversion", "webhook", "conversionReviewVersions"]);
        let bundle = str_at(old, &["spec", "conversion", "webhook", "clientConfig", "caBundle"]);
        let many = |v: &&Value| list_at(v, &["selectableFields"]).len() > MAX_SELECTABLE;
        Self {
            reviews: reviews.is_empty() || reviews.iter().any(|v| v == "v1" || v == "v1beta1"),
            schemas: all.len() == versions.len(),
            structural: all.iter().all(|schema| schemas::is_structural(schema)),
            types: !any(schemas::has_odd_type),
            atomic_sets: !any(schemas::is_granular_set),
            map_keys: !any(schemas::has_loose_keys),
            ca_bundles: conditions::is_true(old, "Established")
                && (bundle.is_empty() || crate::webhook::roots(bundle).is_ok()),
            unchanged: list_at(new, &["spec", "versions"]).iter().filter(same).map(name).collect(),
            many_fields: versions.iter().filter(many).map(name).collect(),
        }
    }
}

/// A part of a version that all versions say alike stands for all at a place of its own.
struct Shared<'a> {
    value: Option<&'a Value>,
    at: Path,
}

fn shared<'a>(versions: &'a [Value], field: &str, at: &Path, shown: &str) -> Shared<'a> {
    let first = versions.first().and_then(|v| get(v, &[field]));
    let same = versions.iter().all(|v| get(v, &[field]) == first);
    Shared { value: first.filter(|_| same), at: at.child(shown) }
}

fn joined(messages: &[String]) -> String {
    messages.join(",")
}

/// All rules.
pub fn check(crd: &Value, options: &Options, errors: &mut ErrorList) {
    let at = Path::new("spec");
    let spec = get(crd, &["spec"]).unwrap_or(&Value::Null);
    group_and_scope(spec, &at, errors);
    let versions = list_at(spec, &["versions"]);
    let keeps = bool_at(spec, &["preserveUnknownFields"]);
    let schema = shared(versions, "schema", &at, "validation");
    let subresources = shared(versions, "subresources", &at, "subresources");
    let columns = shared(versions, "additionalPrinterColumns", &at, "additionalPrinterColumns");
    let fields = shared(versions, "selectableFields", &at, "selectableFields");
    for (i, version) in versions.iter().enumerate() {
        let has = get(version, &["schema", "openAPIV3Schema"]).is_some();
        let path = at.child("versions").index(i).child("schema").child("openAPIV3Schema");
        if options.schemas && !has {
            errors.push(FieldError::required(&path, ""));
        } else if !has && !keeps && bool_at(version, &["served"]) {
            let text = "because otherwise all fields are pruned";
            errors.push(FieldError::required(&path, text));
        }
    }
    for (i, version) in versions.iter().enumerate() {
        let path = at.child("versions").index(i);
        let name = str_at(version, &["name"]);
        let messages = dns1035_label(name);
        if !messages.is_empty() {
            errors.push(FieldError::invalid(&path.child("name"), name, joined(&messages)));
        }
        deprecation(version, &path, errors);
        let status = version.pointer("/subresources/status").is_some_and(|s| !s.is_null());
        if schema.value.is_none() {
            let at = path.child("schema");
            schemas::check(get(version, &["schema"]), (name, status), options, &at, errors);
        }
        if subresources.value.is_none() {
            scale(get(version, &["subresources"]), &path.child("subresources"), errors);
        }
        if columns.value.is_none() {
            printer_columns(
                list_at(version, &["additionalPrinterColumns"]),
                &path.child("additionalPrinterColumns"),
                errors,
            );
        }
        if fields.value.is_none() {
            selectable(version, &path.child("selectableFields"), options, errors);
        }
    }
    let names_of: BTreeSet<&str> = versions.iter().map(|v| str_at(v, &["name"])).collect();
    let at_versions = at.child("versions");
    if names_of.len() != versions.len() {
        let text = "must contain unique version names";
        errors.push(FieldError::invalid(&at_versions, versions.to_vec(), text));
    }
    if versions.iter().filter(|v| bool_at(v, &["storage"])).count() != 1 {
        let text = "must have exactly one version marked as storage version";
        errors.push(FieldError::invalid(&at_versions, versions.to_vec(), text));
    }
    let own = get(spec, &["names"]).unwrap_or(&Value::Null);
    for name in ["plural", "singular", "kind", "listKind"] {
        if str_at(own, &[name]).is_empty() {
            errors.push(FieldError::required(&at.child("names").child(name), ""));
        }
    }
    names(own, &at.child("names"), errors);
    let any_status =
        versions.iter().any(|v| v.pointer("/subresources/status").is_some_and(|s| !s.is_null()));
    if let Some(value) = schema.value {
        let first = versions.first().map_or("", |v| str_at(v, &["name"]));
        schemas::check(Some(value), (first, any_status), options, &schema.at, errors);
    }
    scale(subresources.value, &subresources.at, errors);
    if let Some(Value::Array(list)) = columns.value {
        printer_columns(list, &columns.at, errors);
    }
    if fields.value.is_some()
        && let Some(version) = versions.first()
    {
        selectable(version, &fields.at, options, errors);
    }
    conversion(spec, keeps, options, &at.child("conversion"), errors);
}

fn group_and_scope(spec: &Value, at: &Path, errors: &mut ErrorList) {
    let group = str_at(spec, &["group"]);
    let at_group = at.child("group");
    let messages = dns1123_subdomain(group);
    if group.is_empty() {
        errors.push(FieldError::required(&at_group, ""));
    } else if !messages.is_empty() {
        errors.push(FieldError::invalid(&at_group, group, joined(&messages)));
    } else if !group.contains('.') {
        let text = "should be a domain with at least one dot";
        errors.push(FieldError::invalid(&at_group, group, text));
    }
    one_of(str_at(spec, &["scope"]), &["Cluster", "Namespaced"], &at.child("scope"), errors);
}

fn one_of(text: &str, valid: &[&str], at: &Path, errors: &mut ErrorList) {
    if text.is_empty() {
        errors.push(FieldError::required(at, ""));
    } else if !valid.contains(&text) {
        errors.push(FieldError::not_supported(at, text, valid));
    }
}

fn deprecation(version: &Value, path: &Path, errors: &mut ErrorList) {
    let Some(warning) = get(version, &["deprecationWarning"]).and_then(Value::as_str) else {
        return;
    };
    let at = path.child("deprecationWarning");
    let mut wrong = |text: String| errors.push(FieldError::invalid(&at, warning, text));
    if !bool_at(version, &["deprecated"]) {
        return wrong("can only be set for deprecated versions".to_owned());
    }
    if warning.len() > 256 {
        wrong("must be <= 256 characters long".to_owned());
    }
    if warning.is_empty() {
        wrong("must not be an empty string".to_owned());
    }
    let odd = warning.char_indices().find(|(_, c)| !apimachinery::field::is_print(*c));
    if let Some((i, _)) = odd {
        wrong(format!(
            "must only contain printable UTF-8 characters; non-printable character found at index {i}"
        ));
    }
}

/// `spec.names` or `status.acceptedNames`.
pub fn names(names: &Value, at: &Path, errors: &mut ErrorList) {
    let text = |name: &str| str_at(names, &[name]);
    for name in ["plural", "singular"] {
        let messages = dns1035_label(text(name));
        if !text(name).is_empty() && !messages.is_empty() {
            errors.push(FieldError::invalid(&at.child(name), text(name), joined(&messages)));
        }
    }
    for name in ["kind", "listKind"] {
        let messages = dns1035_label(&text(name).to_lowercase());
        if !text(name).is_empty() && !messages.is_empty() {
            let shown =
                format!("may have mixed case, but should otherwise match: {}", joined(&messages));
            errors.push(FieldError::invalid(&at.child(name), text(name), shown));
        }
    }
    for list in ["shortNames", "categories"] {
        if list == "categories" && !text("kind").is_empty() && text("kind") == text("listKind") {
            let shown = "kind and listKind may not be the same";
            errors.push(FieldError::invalid(&at.child("listKind"), text("listKind"), shown));
        }
        for (i, name) in strings(list_at(names, &[list])).iter().enumerate() {
            let messages = dns1035_label(name);
            if !messages.is_empty() {
                let at = at.child(list).index(i);
                errors.push(FieldError::invalid(&at, name.as_str(), joined(&messages)));
            }
        }
    }
}

fn simple_path(text: &str, at: &Path, errors: &mut ErrorList) -> bool {
    if text.starts_with('.') {
        return true;
    }
    errors.push(FieldError::invalid(at, text, "must be a simple json path starting with ."));
    false
}

fn scale(subresources: Option<&Value>, at: &Path, errors: &mut ErrorList) {
    let Some(scale) = subresources.and_then(|s| get(s, &["scale"])) else { return };
    for (name, root) in [("specReplicasPath", ".spec."), ("statusReplicasPath", ".status.")] {
        let path = str_at(scale, &[name]);
        let at = at.child(&format!("scale.{name}"));
        if path.is_empty() {
            errors.push(FieldError::required(&at, ""));
        } else if simple_path(path, &at, errors) && !path.starts_with(root) {
            let text = format!("should be a json path under {}", root.trim_end_matches('.'));
            errors.push(FieldError::invalid(&at, path, text));
        }
    }
    let path = str_at(scale, &["labelSelectorPath"]);
    let at = at.child("scale.labelSelectorPath");
    if !path.is_empty()
        && simple_path(path, &at, errors)
        && !path.starts_with(".spec.")
        && !path.starts_with(".status.")
    {
        let text = "should be a json path under either .spec or .status";
        errors.push(FieldError::invalid(&at, path, text));
    }
}

fn printer_columns(columns: &[Value], at: &Path, errors: &mut ErrorList) {
    for (i, column) in columns.iter().enumerate() {
        let at = at.index(i);
        let text = |name: &str| str_at(column, &[name]);
        if text("name").is_empty() {
            errors.push(FieldError::required(&at.child("name"), ""));
        }
        let types = format!("must be one of {}", COLUMN_TYPES.join(","));
        match text("type") {
            "" => errors.push(FieldError::required(&at.child("type"), types)),
            ty if !COLUMN_TYPES.contains(&ty) => {
                errors.push(FieldError::invalid(&at.child("type"), ty, types));
            }
            _ => {}
        }
        let format = text("format");
        if !format.is_empty() && !COLUMN_FORMATS.contains(&format) {
            let mut all = COLUMN_FORMATS;
            all.sort_unstable();
            let shown = format!("must be one of {}", all.join(","));
            errors.push(FieldError::invalid(&at.child("format"), format, shown));
        }
        let at_path = at.child("JSONPath");
        match text("jsonPath") {
            "" => errors.push(FieldError::required(&at_path, "")),
            path => {
                simple_path(path, &at_path, errors);
            }
        }
    }
}

fn selectable(version: &Value, at: &Path, options: &Options, errors: &mut ErrorList) {
    let fields = list_at(version, &["selectableFields"]);
    if fields.is_empty() {
        return;
    }
    let Some(props) = get(version, &["schema", "openAPIV3Schema"]) else {
        let text = "may only be set when `version.schema.openAPIV3Schema` is not included";
        return errors.push(FieldError::invalid(at, "", text));
    };
    let schema = match Schema::read(props) {
        Ok(schema) => schema,
        Err(text) => return errors.push(FieldError::invalid(at, "", text)),
    };
    let mut seen = BTreeSet::new();
    for (i, field) in fields.iter().enumerate() {
        let at = at.index(i).child("jsonPath");
        let path = str_at(field, &["jsonPath"]);
        if path.is_empty() {
            errors.push(FieldError::required(&at, ""));
            continue;
        }
        let (found, schema) = match field_path(path, &schema, false) {
            Ok(found) => found,
            Err(error) => {
                let text = format!("is an invalid path: {error}");
                errors.push(FieldError::invalid(&at, path, text));
                continue;
            }
        };
        let shown = found.as_str();
        if shown == "metadata" || shown.starts_with("metadata.") {
            errors.push(FieldError::invalid(&at, path, "must not point to fields in metadata"));
        }
        if !matches!(schema.ty.as_str(), "string" | "boolean" | "integer") {
            let text = "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
            errors.push(FieldError::invalid(&at, path, text));
        }
        if !seen.insert(shown.to_owned()) {
            errors.push(FieldError::duplicate(&at, path));
        }
    }
    if seen.len() > MAX_SELECTABLE && !options.many_fields.contains(str_at(version, &["name"])) {
        errors.push(FieldError::too_many(at, seen.len(), MAX_SELECTABLE));
    }
}

fn conversion(spec: &Value, keeps: bool, options: &Options, at: &Path, errors: &mut ErrorList) {
    let Some(conversion) = get(spec, &["conversion"]) else { return };
    let strategy = str_at(conversion, &["strategy"]);
    if strategy != "None" && keeps {
        let text = "must be None if spec.preserveUnknownFields is true";
        errors.push(FieldError::invalid(&at.child("strategy"), strategy, text));
    }
    one_of(strategy, &["None", "Webhook"], &at.child("strategy"), errors);
    let config = get(conversion, &["webhook", "clientConfig"]);
    let reviews = strings(list_at(conversion, &["webhook", "conversionReviewVersions"]));
    let at_config = at.child("webhookClientConfig");
    let at_reviews = at.child("conversionReviewVersions");
    if strategy != "Webhook" {
        let text = "should not be set when strategy is not set to Webhook";
        if config.is_some() {
            errors.push(FieldError::forbidden(&at_config, text));
        }
        if !reviews.is_empty() {
            errors.push(FieldError::forbidden(&at_reviews, text));
        }
        return;
    }
    match config {
        None => {
            let text = "required when strategy is set to Webhook";
            errors.push(FieldError::required(&at_config, text));
        }
        Some(config) => client_config(config, options, &at_config, errors),
    }
    review_versions(&reviews, options, &at_reviews, errors);
}

fn client_config(config: &Value, options: &Options, at: &Path, errors: &mut ErrorList) {
    match (get(config, &["url"]), get(config, &["service"])) {
        (None, None) | (Some(_), Some(_)) => {
            errors.push(FieldError::required(at, "exactly one of url or service is required"));
        }
        (Some(url), None) => webhook_url(url.as_str().unwrap_or(""), &at.child("url"), errors),
        (None, Some(service)) => webhook_service(service, &at.child("service"), errors),
    }
    let bundle = str_at(config, &["caBundle"]);
    if options.ca_bundles
        && !bundle.is_empty()
        && let Err(error) = crate::webhook::roots(bundle)
    {
        let text = format!("unable to load root certificates: {error}");
        errors.push(FieldError::invalid(&at.child("caBundle"), bundle, text));
    }
}

/// `https://host/path` and nothing more (upstream: apiserver `util/webhook`).
fn webhook_url(text: &str, at: &Path, errors: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let Some((scheme, rest)) = text.split_once("://") else {
        let shown = format!("'https' is the only allowed URL scheme{FORM}");
        return errors.push(FieldError::invalid(at, text, shown));
    };
    if scheme != "https" {
        let shown = format!("'https' is the only allowed URL scheme{FORM}");
        errors.push(FieldError::invalid(at, scheme, shown));
    }
    let (authority, path) = rest.split_once(['/', '?', '#']).unwrap_or((rest, ""));
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        errors.push(FieldError::invalid(at, host, format!("host must be specified{FORM}")));
    }
    if !user.is_empty() {
        let shown = "user information is not permitted in the URL";
        errors.push(FieldError::invalid(at, user, shown));
    }
    let path = if path.is_empty() { rest } else { path };
    if let Some((_, fragment)) = path.split_once('#') {
        errors.push(FieldError::invalid(at, fragment, "fragments are not permitted in the URL"));
    }
    if let Some((_, query)) = rest.split_once('?') {
        let shown = "query parameters are not permitted in the URL";
        errors.push(FieldError::invalid(at, query, shown));
    }
}

fn webhook_service(service: &Value, at: &Path, errors: &mut ErrorList) {
    // Each is told of at the other's place, as upstream tells of them.
    for (name, shown) in [("name", "namespace"), ("namespace", "name")] {
        if str_at(service, &[name]).is_empty() {
            errors.push(FieldError::required(&at.child(shown), ""));
        }
    }
    if let Some(port) = int_at(service, &["port"]).filter(|p| !(1..=65535).contains(p)) {
        let text = "port is not valid: must be between 1 and 65535, inclusive";
        errors.push(FieldError::invalid(&at.child("port"), port, text));
    }
    let Some(path) = get(service, &["path"]).and_then(Value::as_str) else { return };
    let at = at.child("path");
    if !path.starts_with('/') {
        errors.push(FieldError::invalid(&at, path, "must start with a '/'"));
    }
    let rest = path.get(1..).unwrap_or("");
    let inside = rest.strip_suffix('/').unwrap_or(rest);
    for (i, step) in inside.split('/').enumerate().filter(|_| path != "/") {
        if step.is_empty() {
            let text = format!("segment[{i}] may not be empty");
            errors.push(FieldError::invalid(&at, path, text));
            continue;
        }
        for message in dns1123_subdomain(step) {
            let text = format!("segment[{i}]: {message}");
            errors.push(FieldError::invalid(&at, path, text));
        }
    }
}

fn review_versions(versions: &[String], options: &Options, at: &Path, errors: &mut ErrorList) {
    if versions.is_empty() {
        return errors.push(FieldError::required(at, ""));
    }
    for (i, version) in versions.iter().enumerate() {
        let at = at.index(i);
        if versions.get(..i).is_some_and(|before| before.contains(version)) {
            errors.push(FieldError::invalid(&at, version.as_str(), "duplicate version"));
            continue;
        }
        for message in dns1035_label(version) {
            errors.push(FieldError::invalid(&at, version.as_str(), message));
        }
    }
    if options.reviews && !versions.iter().any(|v| v == "v1" || v == "v1beta1") {
        let text = "must include at least one of v1, v1beta1";
        errors.push(FieldError::invalid(at, versions.to_vec(), text));
    }
}
