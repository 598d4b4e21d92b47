//! Selectors of a request, ready to be held against cached objects.

use apimachinery::selector::{FieldSelector, LabelSelector};
use apimachinery::status::ApiError;

use crate::apiextensions::Custom;
use crate::cache::{Cached, Codec, Scope};
use crate::query::Query;
use crate::registry::catalog::Served;

/// What the label and field selectors of a request ask for.
pub(super) struct Select {
    labels: LabelSelector,
    fields: FieldSelector,
    namespace: String,
}

impl Select {
    /// # Errors
    /// 400 for what is no selector, and for fields that may not be selected by.
    pub(super) fn read(served: &Served, namespace: &str, query: &Query) -> Result<Self, ApiError> {
        let bad = |e: apimachinery::selector::ParseError| ApiError::BadRequest(e.0);
        let labels = LabelSelector::parse(query.text("labelSelector")).map_err(bad)?;
        let fields = FieldSelector::parse(query.text("fieldSelector")).map_err(bad)?;
        for term in &fields.terms {
            let custom = served.row.custom.as_ref().and_then(Custom::version);
            let known = matches!(term.field.as_str(), "metadata.name" | "metadata.namespace")
                || served.row.fields.iter().any(|f| f.label == term.field)
                || custom.is_some_and(|v| v.selectable.contains(&term.field));
            if !known {
                let none = served.row.fields.is_empty() && custom.is_none();
                return Err(ApiError::BadRequest(if none {
                    format!(
                        "{:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"",
                        term.field
                    )
                } else {
                    format!("field label not supported: {}", term.field)
                }));
            }
        }
        let namespace = if served.row.namespaced { namespace } else { "" };
        Ok(Self { labels, fields, namespace: namespace.to_owned() })
    }

    /// Everything in the namespace is selected.
    pub(super) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Keys that can be selected begin with this.
    pub(super) fn prefix(&self) -> String {
        if self.namespace.is_empty() { String::new() } else { format!("{}/", self.namespace) }
    }

    /// The only key that can be selected, if there is but one.
    pub(super) fn only(&self, served: &Served) -> Option<String> {
        let name = self.fields.exact("metadata.name")?;
        let namespace = match self.namespace.as_str() {
            "" => self.fields.exact("metadata.namespace").unwrap_or(""),
            namespace => namespace,
        };
        (!served.row.namespaced || !namespace.is_empty()).then(|| served.key(namespace, name))
    }

    /// The narrowest scope that holds all that can be selected.
    pub(super) fn scope(&self, served: &Served, codec: &Codec) -> Scope {
        if let Some(key) = self.only(served) {
            return Scope::Object(key);
        }
        // Of objects that are to be converted, the fields are not known yet.
        let terms = self.fields.terms.iter().filter(|_| !served.may_convert());
        let field = terms.into_iter().find_map(|term| {
            let at = codec.field_at(&term.field)?;
            self.fields.exact(&term.field).map(|value| Scope::Field(at, value.to_owned()))
        });
        match field {
            Some(scope) => scope,
            None if self.namespace.is_empty() => Scope::All,
            None => Scope::Namespace(self.namespace.clone()),
        }
    }

    /// Whether an object is selected.
    pub(super) fn matches(&self, cached: &Cached, codec: &Codec) -> bool {
        let (namespace, name) = cached.names();
        if !self.namespace.is_empty() && namespace != self.namespace {
            return false;
        }
        if self.is_everything() {
            return true;
        }
        let index = match cached.index(codec) {
            Ok(index) => index,
            Err(error) => {
                tracing::error!(key = &*cached.key, %error, "stored object cannot be read");
                return false;
            }
        };
        self.labels.matches(|key| index.label(key))
            && self.fields.matches(|field| match field {
                "metadata.name" => name.into(),
                "metadata.namespace" => namespace.into(),
                field => codec.field_at(field).map_or("", |at| index.field(at)).into(),
            })
    }
}
