//! Rows written shortly: a kind with upstream's usual shape, and what differs.

use std::sync::Arc;
use std::time::Duration;

use apimachinery::gvk::GroupVersionKind;
use apimachinery::schema;

use crate::registry::{
    Action, Column, Connect, PostHandler, Resource, SelectableField, Storage, Strategy,
    Subresource, Text, Verbs,
};

/// Paths of fields that a request does not write.
type Reset = &'static [&'static [&'static str]];

/// A row in the making.
pub struct Row(Resource);

/// Makes rows of kinds whose schemas are in `schemas`.
pub struct Rows<'a> {
    pub schemas: &'a schema::Registry,
    pub rows: Vec<Resource>,
}

impl Rows<'_> {
    /// Adds a row; a kind that the schemas do not know is left out.
    pub fn add(
        &mut self,
        (group, version): (&'static str, &'static str),
        (kind, plural): (&'static str, &'static str),
        build: impl FnOnce(Row) -> Row,
    ) {
        let gvk = GroupVersionKind::new(group, version, kind);
        if let Some(message) = self.schemas.kind(&gvk) {
            self.rows.push(build(Row::new(group, version, kind, plural, message)).0);
        }
    }
}

impl Row {
    fn new(
        group: &'static str,
        version: &'static str,
        kind: &'static str,
        plural: &'static str,
        message: schema::MessageId,
    ) -> Self {
        Self(Resource {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
            plural: plural.into(),
            singular: kind.to_lowercase().into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            message,
            custom: None,
            storage: Storage {
                prefix: plural.into(),
                version: (group.into(), version.into()),
                ttl: None,
                json: false,
            },
            strategy: Arc::new(super::Plain),
            columns: super::cells::named([super::cells::created_at_column()]),
            fields: Vec::new(),
            subresources: Vec::new(),
            verbs: Verbs::All,
            warning: None,
            delete_collection: true,
        })
    }

    pub fn cluster(mut self) -> Self {
        self.0.namespaced = false;
        self
    }

    /// Only one object is deleted at a time.
    pub fn no_delete_collection(mut self) -> Self {
        self.0.delete_collection = false;
        self
    }

    /// Objects are answered, not stored.
    pub fn create_only(mut self) -> Self {
        self.0.verbs = Verbs::CreateOnly;
        self.0.columns = Vec::new();
        self
    }

    pub fn short(mut self, names: &[&'static str]) -> Self {
        self.0.short_names = names.iter().map(|n| Text::from(*n)).collect();
        self
    }

    /// In the category `all`.
    pub fn in_all(mut self) -> Self {
        self.0.categories = vec!["all".into()];
        self
    }

    /// In a category of that name.
    pub fn category(mut self, name: &'static str) -> Self {
        self.0.categories.push(name.into());
        self
    }

    pub fn prefix(mut self, prefix: &'static str) -> Self {
        self.0.storage.prefix = prefix.into();
        self
    }

    pub fn stored_as(mut self, group: &'static str, version: &'static str) -> Self {
        self.0.storage.version = (group.into(), version.into());
        self
    }

    /// Stored as JSON.
    pub fn json(mut self) -> Self {
        self.0.storage.json = true;
        self
    }

    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.0.storage.ttl = Some(ttl);
        self
    }

    pub fn strategy(mut self, strategy: impl Strategy) -> Self {
        self.0.strategy = Arc::new(strategy);
        self
    }

    pub fn columns(mut self, columns: Vec<Column>) -> Self {
        self.0.columns = columns;
        self
    }

    pub fn fields(mut self, fields: Vec<SelectableField>) -> Self {
        self.0.fields = fields;
        self
    }

    /// `status`, which the main resource does not write.
    pub fn status(self, strategy: impl Strategy) -> Self {
        self.part("status", strategy, super::SPEC)
    }

    pub fn part(self, name: &'static str, strategy: impl Strategy, reset_fields: Reset) -> Self {
        self.any_part(name, strategy, reset_fields, false)
    }

    /// A part that can only be replaced.
    pub fn replaced_part(
        self,
        name: &'static str,
        strategy: impl Strategy,
        reset_fields: Reset,
    ) -> Self {
        self.any_part(name, strategy, reset_fields, true)
    }

    fn any_part(
        mut self,
        name: &'static str,
        strategy: impl Strategy,
        reset_fields: Reset,
        replaced_only: bool,
    ) -> Self {
        let strategy = Arc::new(strategy);
        let action = Action::Part { strategy, reset_fields, replaced_only };
        self.0.subresources.push(Subresource { name, action });
        self
    }

    /// What every request is warned of.
    pub fn deprecated(mut self, warning: &'static str) -> Self {
        self.0.warning = Some(warning.into());
        self
    }

    /// `scale`, with replicas in their usual places. `selector` is a path of names joined by dots.
    pub fn scale(mut self, selector: &'static str) -> Self {
        self.0.subresources.push(Subresource {
            name: "scale",
            action: Action::Scale {
                spec_replicas: "spec.replicas".into(),
                status_replicas: "status.replicas".into(),
                selector: selector.into(),
            },
        });
        self
    }

    pub fn post(
        mut self,
        name: &'static str,
        (group, version, kind): (&'static str, &'static str, &'static str),
        handler: PostHandler,
    ) -> Self {
        let action = Action::Post { group, version, kind, handler };
        self.0.subresources.push(Subresource { name, action });
        self
    }

    pub fn connect(mut self, name: &'static str, connect: Connect) -> Self {
        self.0.subresources.push(Subresource { name, action: Action::Connect(connect) });
        self
    }
}
