//! The paths of a resource and what can be done at them.

use apimachinery::Value;
use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema::MessageId;
use serde_json::{Map, json};

use super::schemas::{Edition, gvk};
use crate::registry::catalog::Served;
use crate::registry::{Action, Verbs};

/// What a value is described by.
#[derive(Clone)]
pub(super) enum SchemaOf {
    Type(MessageId),
    /// A schema that is no compiled type's.
    Name(String),
}

/// What a resource's paths need to know.
pub(super) struct Context<'a> {
    pub(super) edition: Edition,
    /// Gives the name of a type's schema.
    pub(super) name_of: &'a mut dyn FnMut(MessageId) -> String,
    /// The resource itself.
    pub(super) own: Option<SchemaOf>,
    pub(super) list: Option<SchemaOf>,
    pub(super) patch: Option<SchemaOf>,
    pub(super) status: Option<SchemaOf>,
    pub(super) delete_options: Option<SchemaOf>,
    pub(super) event: Option<SchemaOf>,
    /// The type of a kind.
    pub(super) kind: &'a dyn Fn(&GroupVersionKind) -> Option<MessageId>,
}

const JSON: [&str; 3] =
    ["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const STREAMS: [&str; 2] =
    ["application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"];
const PATCHES: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

const NAMESPACE: (&str, &str, &str) =
    ("namespace", "string", "object name and auth scope, such as for teams and projects");
const PRETTY: (&str, &str, &str) = (
    "pretty",
    "string",
    "If 'true', then the output is pretty printed. Defaults to 'false' unless the user-agent indicates a browser or command-line HTTP tool (curl and wget).",
);
const DRY_RUN: (&str, &str, &str) = (
    "dryRun",
    "string",
    "When present, indicates that modifications should not be persisted. An invalid or unrecognized dryRun directive will result in an error response and no further processing of the request. Valid values are: - All: all dry run stages will be processed",
);
const MANAGER: (&str, &str, &str) = (
    "fieldManager",
    "string",
    "fieldManager is a name associated with the actor or entity that is making these changes. The value must be less than or 128 characters long, and only contain printable characters, as defined by https://golang.org/pkg/unicode/#IsPrint.",
);
const VALIDATION: (&str, &str, &str) = (
    "fieldValidation",
    "string",
    "fieldValidation instructs the server on how to handle objects in the request (POST/PUT/PATCH) containing unknown or duplicate fields. Valid values are: - Ignore - Warn - Strict",
);
const FORCE: (&str, &str, &str) = (
    "force",
    "boolean",
    "Force is going to \"force\" Apply requests. It means user will re-acquire conflicting fields owned by other people. Force flag must be unset for non-apply patch requests.",
);
const WRITES: [(&str, &str, &str); 3] = [DRY_RUN, MANAGER, VALIDATION];
const LISTS: [(&str, &str, &str); 10] = [
    (
        "allowWatchBookmarks",
        "boolean",
        "allowWatchBookmarks requests watch events with type \"BOOKMARK\". Servers that do not implement bookmarks may ignore this flag.",
    ),
    (
        "continue",
        "string",
        "The continue option should be set when retrieving more results from the server.",
    ),
    (
        "fieldSelector",
        "string",
        "A selector to restrict the list of returned objects by their fields. Defaults to everything.",
    ),
    (
        "labelSelector",
        "string",
        "A selector to restrict the list of returned objects by their labels. Defaults to everything.",
    ),
    ("limit", "integer", "limit is a maximum number of responses to return for a list call."),
    (
        "resourceVersion",
        "string",
        "resourceVersion sets a constraint on what resource versions a request may be served from.",
    ),
    (
        "resourceVersionMatch",
        "string",
        "resourceVersionMatch determines how resourceVersion is applied to list calls.",
    ),
    ("sendInitialEvents", "boolean", "sendInitialEvents=true may be set together with watch=true."),
    (
        "timeoutSeconds",
        "integer",
        "Timeout for the list/watch call. This limits the duration of the call, regardless of any activity or inactivity.",
    ),
    (
        "watch",
        "boolean",
        "Watch for changes to the described resources and return them as a stream of add, update, and remove notifications. Specify resourceVersion.",
    ),
];
const DELETES: [(&str, &str, &str); 4] = [
    DRY_RUN,
    (
        "gracePeriodSeconds",
        "integer",
        "The duration in seconds before the object should be deleted. Value must be non-negative integer. The value zero indicates delete immediately.",
    ),
    (
        "orphanDependents",
        "boolean",
        "Deprecated: please use the PropagationPolicy, this field will be deprecated in 1.7. Should the dependent objects be orphaned.",
    ),
    ("propagationPolicy", "string", "Whether and how garbage collection will be performed."),
];

type Parameter = (&'static str, &'static str, &'static str);

impl Context<'_> {
    fn parameter(&self, (name, ty, description): Parameter, place: &str) -> Value {
        let mut parameter = json!({"name": name, "in": place, "description": description});
        match self.edition {
            Edition::V2 => parameter["type"] = ty.into(),
            Edition::V3 => parameter["schema"] = json!({"type": ty}),
        }
        if place == "query" {
            parameter["uniqueItems"] = true.into();
            if self.edition == Edition::V3
                && let Some(map) = parameter.as_object_mut()
            {
                let unique = map.remove("uniqueItems");
                if let (Some(unique), Some(schema)) = (unique, map.get_mut("schema")) {
                    schema["uniqueItems"] = unique;
                }
            }
        } else {
            parameter["required"] = true.into();
        }
        parameter
    }

    fn query(&self, all: &[&[Parameter]]) -> Vec<Value> {
        all.concat().into_iter().map(|p| self.parameter(p, "query")).collect()
    }

    fn reference(&mut self, to: Option<SchemaOf>) -> Value {
        let name = match to {
            Some(SchemaOf::Type(id)) => (self.name_of)(id),
            Some(SchemaOf::Name(name)) => name,
            None => return json!({"type": "object"}),
        };
        json!({"$ref": self.edition.reference(&name)})
    }

    fn of_kind(&self, kind: &GroupVersionKind) -> Option<SchemaOf> {
        (self.kind)(kind).map(SchemaOf::Type)
    }

    fn content(types: &[&str], schema: &Value) -> Value {
        let entries = types.iter().map(|t| ((*t).to_owned(), json!({"schema": schema})));
        Value::Object(entries.collect())
    }

    /// One operation.
    #[expect(clippy::too_many_arguments, reason = "an operation is what these say")]
    fn operation(
        &mut self,
        served: &Served,
        id: String,
        description: String,
        action: &str,
        kind: &GroupVersionKind,
        parameters: Vec<Value>,
        body: Option<(Option<SchemaOf>, &[&str], bool)>,
        (codes, answer, streams): (&[&str], Option<SchemaOf>, bool),
    ) -> Value {
        let tag = if served.row.group.is_empty() {
            format!("core_{}", served.row.version)
        } else {
            let group = served.row.group.trim_end_matches(".k8s.io");
            format!("{}_{}", camel(group, false), served.row.version)
        };
        let answer = self.reference(answer);
        let mut types: Vec<&str> = types(served).to_vec();
        if streams && served.row.custom.is_none() {
            types.extend(STREAMS);
        }
        let mut responses = Map::new();
        for code in codes {
            let text = match *code {
                "201" => "Created",
                "202" => "Accepted",
                "401" => "Unauthorized",
                _ => "OK",
            };
            let mut response = json!({"description": text});
            match self.edition {
                Edition::V2 => response["schema"] = answer.clone(),
                Edition::V3 => response["content"] = Self::content(&types, &answer),
            }
            responses.insert((*code).to_owned(), response);
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        let mut operation = json!({
            "tags": [tag], "description": description, "operationId": id,
            "responses": responses, "x-kubernetes-action": action,
            "x-kubernetes-group-version-kind": gvk(kind),
        });
        let mut parameters = parameters;
        if let Some((body, body_types, required)) = body {
            let schema = self.reference(body);
            match self.edition {
                Edition::V2 => {
                    let mut parameter = json!({"name": "body", "in": "body", "schema": schema});
                    if required {
                        parameter["required"] = true.into();
                    }
                    parameters.insert(0, parameter);
                    operation["consumes"] =
                        json!(if body_types == JSON { &["*/*"] } else { body_types });
                }
                Edition::V3 => {
                    let content = match body_types == JSON {
                        true => Self::content(&["*/*"], &schema),
                        false => Self::content(body_types, &schema),
                    };
                    operation["requestBody"] = json!({"content": content});
                    if required {
                        operation["requestBody"]["required"] = true.into();
                    }
                }
            }
        }
        if self.edition == Edition::V2 {
            operation["produces"] = json!(types);
            operation["schemes"] = json!(["https"]);
        }
        if !parameters.is_empty() {
            operation["parameters"] = parameters.into();
        }
        operation
    }

    /// All paths of a resource.
    pub(super) fn paths(&mut self, served: &Served, out: &mut Map<String, Value>) {
        let row = &served.row;
        let base = match &*row.group {
            "" => format!("/api/{}", row.version),
            group => format!("/apis/{group}/{}", row.version),
        };
        let plural = &row.plural;
        let namespaced = row.namespaced;
        let collection = match namespaced {
            true => format!("{base}/namespaces/{{namespace}}/{plural}"),
            false => format!("{base}/{plural}"),
        };
        let mut common = vec![self.parameter(PRETTY, "query")];
        if namespaced {
            common.insert(0, self.parameter(NAMESPACE, "path"));
        }
        let mut at_collection = self.collection(served, namespaced);
        at_collection.insert("parameters".to_owned(), common.clone().into());
        out.insert(collection.clone(), at_collection.into());
        if row.verbs == Verbs::CreateOnly {
            return;
        }
        if namespaced {
            let list = self.list(served, "ForAllNamespaces", "");
            let parameters = self.query(&[&[PRETTY]]);
            out.insert(format!("{base}/{plural}"), json!({"get": list, "parameters": parameters}));
        }
        common.insert(0, self.name(served));
        let mut at_object = self.object(served, namespaced);
        at_object.insert("parameters".to_owned(), common.clone().into());
        out.insert(format!("{collection}/{{name}}"), at_object.into());
        for sub in &row.subresources {
            let mut at_sub = self.subresource(served, sub.name, &sub.action, namespaced);
            at_sub.insert("parameters".to_owned(), common.clone().into());
            out.insert(format!("{collection}/{{name}}/{}", sub.name), at_sub.into());
        }
        // Custom resources never had them.
        if row.custom.is_none() {
            self.watches(served, &base, out);
        }
    }

    /// The old paths of watches.
    fn watches(&mut self, served: &Served, base: &str, out: &mut Map<String, Value>) {
        let plural = &served.row.plural;
        let all = format!("{base}/watch/{plural}");
        let within = format!("{base}/watch/namespaces/{{namespace}}/{plural}");
        // The path, whether it is of one namespace and of one object, and the end of its name.
        let places = match served.row.namespaced {
            true => vec![
                (all, false, false, "ListForAllNamespaces"),
                (within.clone(), true, false, "List"),
                (format!("{within}/{{name}}"), true, true, ""),
            ],
            false => {
                vec![
                    (all.clone(), false, false, "List"),
                    (format!("{all}/{{name}}"), false, true, ""),
                ]
            }
        };
        for (path, namespaced, single, suffix) in places {
            let kind = &served.row.kind;
            let (action, text) = if single {
                let text = format!(
                    "watch changes to an object of kind {kind}. deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter."
                );
                ("watch", text)
            } else {
                let text = format!(
                    "watch individual changes to a list of {kind}. deprecated: use the 'watch' parameter with a list operation instead."
                );
                ("watchlist", text)
            };
            let id = Self::id(served, "watch", namespaced, suffix);
            let answer = (&["200"][..], self.event.clone(), true);
            let get =
                self.operation(served, id, text, action, &served.gvk, Vec::new(), None, answer);
            // By name.
            let mut parameters = self.query(&[&LISTS[..5]]);
            if single {
                parameters.push(self.name(served));
            }
            if namespaced {
                parameters.push(self.parameter(NAMESPACE, "path"));
            }
            parameters.extend(self.query(&[&[PRETTY], &LISTS[5..]]));
            out.insert(path, json!({"get": get, "parameters": parameters}));
        }
    }

    /// The parameter that names an object.
    fn name(&self, served: &Served) -> Value {
        let mut name = self.parameter(("name", "string", ""), "path");
        name["description"] = format!("name of the {}", served.row.kind).into();
        name
    }

    fn id(served: &Served, verb: &str, namespaced: bool, suffix: &str) -> String {
        let group = if served.row.group.is_empty() {
            "Core".to_owned()
        } else {
            camel(served.row.group.trim_end_matches(".k8s.io"), true)
        };
        let scope = if namespaced { "Namespaced" } else { "" };
        format!(
            "{verb}{group}{}{scope}{}{suffix}",
            camel(&served.row.version, true),
            served.row.kind
        )
    }

    fn list(&mut self, served: &Served, suffix: &str, scope: &str) -> Value {
        let row = &served.row;
        let id = Self::id(served, "list", !scope.is_empty(), suffix);
        let text = format!("list or watch objects of kind {}", row.kind);
        let parameters = self.query(&[&LISTS]);
        let list = self.list.clone();
        let answer = (&["200"][..], list, true);
        self.operation(served, id, text, "list", &served.gvk, parameters, None, answer)
    }

    fn collection(&mut self, served: &Served, namespaced: bool) -> Map<String, Value> {
        let own = self.own.clone();
        let kind = &served.row.kind;
        let mut at = Map::new();
        let id = |verb: &str| Self::id(served, verb, namespaced, "");
        let parameters = self.query(&[&WRITES]);
        at.insert(
            "post".into(),
            self.operation(
                served,
                id("create"),
                format!("create {}", article(kind)),
                "post",
                &served.gvk,
                parameters,
                Some((own.clone(), types(served), true)),
                (&["200", "201", "202"], own, false),
            ),
        );
        if served.row.verbs == Verbs::CreateOnly {
            return at;
        }
        let list = self.list(served, "", if namespaced { "Namespaced" } else { "" });
        at.insert("get".into(), list);
        if !served.row.delete_collection {
            return at;
        }
        let parameters = self.query(&[&LISTS[1..9], &DELETES]);
        let (options, status) = (self.delete_options.clone(), self.status.clone());
        at.insert(
            "delete".into(),
            self.operation(
                served,
                Self::id(served, "deleteCollection", namespaced, "").replacen(
                    "deleteCollection",
                    "delete",
                    1,
                ) + "Collection",
                format!("delete collection of {kind}"),
                "deletecollection",
                &served.gvk,
                parameters,
                Some((options, types(served), false)),
                (&["200"], status, false),
            ),
        );
        at
    }

    fn object(&mut self, served: &Served, namespaced: bool) -> Map<String, Value> {
        let own = self.own.clone();
        let kind = served.row.kind.to_string();
        let mut at = self.part(served, "", own, &served.gvk, namespaced);
        let parameters = self.query(&[&DELETES]);
        let (options, status) = (self.delete_options.clone(), self.status.clone());
        at.insert(
            "delete".into(),
            self.operation(
                served,
                Self::id(served, "delete", namespaced, ""),
                format!("delete {}", article(&kind)),
                "delete",
                &served.gvk,
                parameters,
                Some((options, types(served), false)),
                (&["200", "202"], status, false),
            ),
        );
        at
    }

    /// get, put and patch.
    fn part(
        &mut self,
        served: &Served,
        sub: &str,
        own: Option<SchemaOf>,
        kind: &GroupVersionKind,
        namespaced: bool,
    ) -> Map<String, Value> {
        let suffix = camel(sub, true);
        let of = if sub.is_empty() { String::new() } else { format!("{sub} of ") };
        let name = article(&served.row.kind);
        let mut at = Map::new();
        let id = |verb: &str| Self::id(served, verb, namespaced, &suffix);
        at.insert(
            "get".into(),
            self.operation(
                served,
                id("read"),
                format!("read {of}the specified {}", served.row.kind),
                "get",
                kind,
                Vec::new(),
                None,
                (&["200"], own.clone(), false),
            ),
        );
        let parameters = self.query(&[&WRITES]);
        at.insert(
            "put".into(),
            self.operation(
                served,
                id("replace"),
                format!("replace {of}the specified {}", served.row.kind),
                "put",
                kind,
                parameters,
                Some((own.clone(), types(served), true)),
                (&["200", "201"], own.clone(), false),
            ),
        );
        let parameters = self.query(&[&WRITES, &[FORCE]]);
        let patch = self.patch.clone();
        at.insert(
            "patch".into(),
            self.operation(
                served,
                id("patch"),
                format!("partially update {of}{name}"),
                "patch",
                kind,
                parameters,
                Some((patch, patches(served), true)),
                (&["200", "201"], own, false),
            ),
        );
        at
    }

    fn subresource(
        &mut self,
        served: &Served,
        name: &str,
        action: &Action,
        namespaced: bool,
    ) -> Map<String, Value> {
        match action {
            Action::Part { replaced_only, .. } => {
                let mut at = self.part(served, name, self.own.clone(), &served.gvk, namespaced);
                if *replaced_only {
                    at.retain(|verb, _| verb != "get" && verb != "patch");
                }
                at
            }
            Action::Scale { .. } => {
                let scale = GroupVersionKind::new("autoscaling", "v1", "Scale");
                let own = self.of_kind(&scale);
                self.part(served, name, own, &scale, namespaced)
            }
            Action::Post { group, version, kind, .. } => {
                let gvk = GroupVersionKind::new(group, version, kind);
                let own = self.of_kind(&gvk);
                let id = Self::id(served, "create", namespaced, &camel(name, true));
                let text = format!("create {name} of {}", article(&served.row.kind));
                let parameters = self.query(&[&WRITES]);
                let answer = (&["200", "201", "202"][..], own.clone(), false);
                let body = Some((own, types(served), true));
                let post = self.operation(served, id, text, "post", &gvk, parameters, body, answer);
                Map::from_iter([("post".to_owned(), post)])
            }
            Action::Connect(_) => {
                let id = Self::id(served, "connectGet", namespaced, &camel(name, true));
                let text = format!("connect GET requests to {name} of {}", served.row.kind);
                let answer = (&["200"][..], None, false);
                let get = self.operation(
                    served,
                    id,
                    text,
                    "connect",
                    &served.gvk,
                    Vec::new(),
                    None,
                    answer,
                );
                Map::from_iter([("get".to_owned(), get)])
            }
        }
    }
}

/// Custom resources have no protobuf.
fn types(served: &Served) -> &'static [&'static str] {
    const PLAIN: [&str; 2] = [JSON[0], JSON[1]];
    if served.row.custom.is_some() { &PLAIN } else { &JSON }
}

fn patches(served: &Served) -> &'static [&'static str] {
    const PLAIN: [&str; 3] = [PATCHES[0], PATCHES[1], PATCHES[3]];
    if served.row.custom.is_some() { &PLAIN } else { &PATCHES }
}

/// `a Pod`, `an Endpoints`.
fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['A', 'E', 'I', 'O', 'U']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}

/// `rbac.authorization` → `rbacAuthorization`.
fn camel(text: &str, first_up: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut up = first_up;
    for c in text.chars() {
        if !c.is_alphanumeric() {
            up = true;
        } else if up {
            out.extend(c.to_uppercase());
            up = false;
        } else {
            out.push(c);
        }
    }
    out
}
