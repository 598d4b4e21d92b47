//! The rows that a server serves, with their caches, found by path.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use apimachinery::codec::{self, DecodeError, Schema, proto};
use apimachinery::gvk::{GroupResource, GroupVersionKind, api_version};
use apimachinery::patch::apply::Typing;
use apimachinery::schema::{MessageId, Registry};
use apimachinery::status::ApiError;
use apimachinery::{Value, object};
use bytes::Bytes;
use store::SharedStore;

use super::{Action, Resource, SelectableField, Subresource, Verbs};
use crate::apiextensions::{self, Custom, Definition, Memory};
use crate::cache::{Cache, Cached, Codec, splice};

/// A row in service.
pub struct Served {
    pub row: Resource,
    /// Schemas of the served and of the stored version.
    registry: &'static Registry,
    stored_message: MessageId,
    pub gvk: GroupVersionKind,
    pub gr: GroupResource,
    /// `v1`, `apps/v1`
    pub api_version: String,
    /// Kind of its lists.
    pub list_kind: String,
    /// Stored in the version that it is served in.
    pub same_version: bool,
    /// Objects that are never stored have none.
    pub cache: Option<Arc<Cache>>,
    /// Objects that a webhook has converted.
    memory: Memory,
}

impl Served {
    /// A version of a custom resource.
    pub fn custom(definition: Arc<Definition>, version: usize, cache: Arc<Cache>) -> Self {
        let custom = Custom { definition, version };
        let same_version = custom.is_stored() && !custom.may_convert();
        let list_kind = custom.definition.names.list_kind.clone();
        let row = apiextensions::row(custom);
        let gvk = GroupVersionKind::new(&row.group, &row.version, &row.kind);
        Self {
            gr: GroupResource::new(&row.group, &row.plural),
            api_version: gvk.api_version(),
            list_kind,
            registry: Registry::builtin(),
            stored_message: row.message,
            gvk,
            same_version,
            cache: Some(cache),
            memory: Memory::default(),
            row,
        }
    }

    /// The compiled schema; a custom resource has none.
    pub fn schema(&self) -> Option<Schema<'static>> {
        let compiled = Schema { registry: self.registry, message: self.row.message };
        self.row.custom.is_none().then_some(compiled)
    }

    /// How server-side apply sees objects of the served version.
    pub fn typing(&self) -> Typing<'_> {
        match (&self.row.custom, self.schema()) {
            (Some(custom), _) => custom.definition.typing(custom.version),
            (None, Some(schema)) => Typing::Schema(schema),
            (None, None) => Typing::Deduced,
        }
    }

    /// Makes an object that was changed in memory what its schema allows.
    ///
    /// # Errors
    /// It does not fit the schema.
    pub fn canonicalize(&self, object: &mut Value) -> Result<(), DecodeError> {
        match (&self.row.custom, self.schema()) {
            (Some(custom), _) => custom.definition.settle(object),
            (None, Some(schema)) => codec::canonicalize(schema, object),
            (None, None) => Ok(()),
        }
    }

    /// Defaults of the schema and of the strategy.
    pub fn apply_defaults(&self, object: &mut Value) {
        if let Some(schema) = self.schema() {
            codec::apply_defaults(schema, object);
        }
        self.row.strategy.default(object);
    }

    /// Whether objects that are read may have to be [brought](Self::bring) to the served version.
    pub fn may_convert(&self) -> bool {
        self.row.custom.as_ref().is_some_and(Custom::may_convert)
    }

    /// Objects in the served version, where a webhook must convert them.
    ///
    /// # Errors
    /// As the webhook fails.
    pub async fn bring(&self, objects: Vec<Arc<Cached>>) -> Result<Vec<Arc<Cached>>, ApiError> {
        match (&self.row.custom, &self.cache) {
            (Some(custom), Some(cache)) if custom.may_convert() => {
                custom.bring(&cache.codec, objects, &self.memory).await
            }
            _ => Ok(objects),
        }
    }

    /// One object, as [`bring`](Self::bring) brings them.
    ///
    /// # Errors
    /// As [`bring`](Self::bring).
    pub async fn bring_one(&self, object: Arc<Cached>) -> Result<Arc<Cached>, ApiError> {
        if !self.may_convert() {
            return Ok(object);
        }
        let brought = self.bring(vec![object]).await?;
        brought.into_iter().next().ok_or_else(|| ApiError::Internal("nothing came".to_owned()))
    }

    /// An object in the version that is stored, where a webhook must convert it.
    ///
    /// # Errors
    /// As the webhook fails.
    pub async fn before_storing(&self, object: Value) -> Result<Value, ApiError> {
        match &self.row.custom {
            Some(custom) => custom.before_storing(object).await,
            None => Ok(object),
        }
    }

    fn stored_schema(&self) -> Schema<'static> {
        Schema { registry: self.registry, message: self.stored_message }
    }

    /// The cache of the objects.
    ///
    /// # Errors
    /// Objects of this kind are not stored.
    pub fn cache(&self) -> Result<&Arc<Cache>, ApiError> {
        self.cache.as_ref().ok_or_else(|| self.not_allowed("get"))
    }

    /// 405 for a verb that the resource does not have.
    pub fn not_allowed(&self, verb: &str) -> ApiError {
        ApiError::MethodNotAllowed { resource: self.gr.clone(), verb: verb.to_owned() }
    }

    /// 404 for an object.
    pub fn not_found(&self, name: &str) -> ApiError {
        ApiError::NotFound { resource: self.gr.clone(), name: name.to_owned() }
    }

    /// 409 for an object.
    pub fn conflict(&self, name: &str, reason: impl Into<String>) -> ApiError {
        ApiError::Conflict {
            resource: self.gr.clone(),
            name: name.to_owned(),
            reason: reason.into(),
        }
    }

    /// 422 for an object. Of the groups that serve a kind, it names the one that the kind is stored
    /// in.
    pub fn invalid(&self, name: &str, errors: apimachinery::field::ErrorList) -> ApiError {
        ApiError::Invalid {
            group: self.row.storage.version.0.to_string(),
            kind: self.gvk.kind.clone(),
            name: name.to_owned(),
            errors,
        }
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.row.subresources.iter().find(|s| s.name == name)
    }

    /// Key of an object below the resource's prefix.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        if self.row.namespaced { format!("{namespace}/{name}") } else { name.to_owned() }
    }

    /// The bytes to store for an object of the served version. resourceVersion is not stored.
    ///
    /// # Errors
    /// The object does not fit its schema.
    pub fn to_stored(&self, object: &Value) -> Result<Bytes, DecodeError> {
        let mut object = object.clone();
        object::remove(&mut object, &["metadata", "resourceVersion"]);
        if let Some(custom) = &self.row.custom {
            custom.to_storage(&mut object)?;
            return to_json(&object);
        }
        if !self.same_version {
            self.row.strategy.to_storage(&mut object);
            let (group, version) = &self.row.storage.version;
            object::set(&mut object, &["apiVersion"], api_version(group, version));
        }
        if self.row.storage.json {
            return to_json(&object);
        }
        proto::encode_enveloped(self.stored_schema(), &object).map(Bytes::from)
    }

    /// An object of the served version.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn decode(&self, cached: &Cached) -> Result<Value, DecodeError> {
        let Some(cache) = &self.cache else {
            return Err(DecodeError::Malformed("is not stored".to_owned()));
        };
        let mut object = cached.decode(&cache.codec)?;
        if !self.same_version {
            self.convert(&mut object)?;
        }
        Ok(object)
    }

    fn convert(&self, object: &mut Value) -> Result<(), DecodeError> {
        if let Some(custom) = &self.row.custom {
            return custom.definition.to_version(object, custom.version);
        }
        self.row.strategy.to_served(object);
        object::set(object, &["apiVersion"], self.api_version.as_str());
        object::set(object, &["kind"], &*self.row.kind);
        self.canonicalize(object)
    }

    /// The object's JSON in the served version, with a line feed.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn json_line(&self, cached: &Cached) -> Result<Bytes, DecodeError> {
        match &self.cache {
            Some(cache) if self.same_version => cached.json_line(&cache.codec),
            _ if self.row.custom.is_some() => {
                let mut text = to_json(&self.decode(cached)?)?.to_vec();
                text.push(b'\n');
                Ok(text.into())
            }
            _ => {
                // By way of protobuf the fields come in the order in which lists expect them.
                let raw = self.raw(cached)?;
                let mut out = Vec::with_capacity(raw.len() * 2);
                let schema = self.compiled()?;
                proto::to_json(schema, &self.api_version, &self.row.kind, &raw, &mut out)?;
                out.push(b'\n');
                Ok(out.into())
            }
        }
    }

    /// The object's JSON in the served version.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn json(&self, cached: &Cached) -> Result<Bytes, DecodeError> {
        let line = self.json_line(cached)?;
        Ok(line.slice(..line.len().saturating_sub(1)))
    }

    /// The object's bare protobuf message in the served version.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn raw(&self, cached: &Cached) -> Result<Bytes, DecodeError> {
        match &self.cache {
            Some(cache) if self.same_version => cached.raw(&cache.codec),
            _ => proto::encode(self.compiled()?, &self.decode(cached)?).map(Bytes::from),
        }
    }

    fn compiled(&self) -> Result<Schema<'static>, DecodeError> {
        self.schema().ok_or_else(|| DecodeError::Malformed("has no protobuf".to_owned()))
    }

    /// The object's metadata as a bare `PartialObjectMetadata`.
    ///
    /// # Errors
    /// The stored bytes are not of this kind.
    pub fn partial_raw(&self, cached: &Cached) -> Result<Bytes, DecodeError> {
        // Metadata is the same in all versions.
        let Some(cache) = &self.cache else {
            return Err(DecodeError::Malformed("is not stored".to_owned()));
        };
        if self.row.custom.is_some() {
            return self.partial_of(&self.decode(cached)?);
        }
        splice::partial(&cached.raw(&cache.codec)?).map(Bytes::from)
    }

    /// The metadata of an object in memory as a bare `PartialObjectMetadata`.
    ///
    /// # Errors
    /// The metadata does not fit its type.
    pub fn partial_of(&self, object: &Value) -> Result<Bytes, DecodeError> {
        let partial = "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata";
        let Some(message) = self.registry.by_name(partial) else {
            return Err(DecodeError::Malformed("metadata has no schema".to_owned()));
        };
        let metadata = object.get("metadata").cloned().unwrap_or_default();
        let object = serde_json::json!({ "metadata": metadata });
        proto::encode(Schema { registry: self.registry, message }, &object).map(Bytes::from)
    }

    /// Whether `/namespaces/x/...` paths or such without are right for the resource.
    pub fn fits_path(&self, namespace: &str) -> bool {
        self.row.namespaced || namespace.is_empty() || self.row.plural == "namespaces"
    }

    /// The verbs of the resource as discovery lists them.
    pub fn verbs(&self) -> &'static [&'static str] {
        let ending =
            self.row.custom.as_ref().is_some_and(|custom| custom.definition.is_terminating());
        match self.row.verbs {
            Verbs::All if ending => &["delete", "deletecollection", "get", "list", "watch"],
            Verbs::All if self.row.custom.is_some() => {
                &["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"]
            }
            Verbs::All if !self.row.delete_collection => {
                &["create", "delete", "get", "list", "patch", "update", "watch"]
            }
            Verbs::All => {
                &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
            }
            Verbs::CreateOnly => &["create"],
        }
    }
}

/// JSON as upstream's extensions store it.
fn to_json(object: &Value) -> Result<Bytes, DecodeError> {
    let text = serde_json::to_vec(object).map_err(|e| DecodeError::Malformed(e.to_string()))?;
    Ok(text.into())
}

/// Verbs of a subresource as discovery lists them.
pub fn subresource_verbs(action: &Action) -> &'static [&'static str] {
    match action {
        Action::Part { replaced_only: true, .. } => &["update"],
        Action::Part { .. } | Action::Scale { .. } => &["get", "patch", "update"],
        Action::Post { .. } => &["create"],
        Action::Connect(super::Connect::Log) => &["get"],
        Action::Connect(super::Connect::Proxy) => &["create", "delete", "get", "patch", "update"],
        Action::Connect(_) => &["create", "get"],
    }
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// All rows in service.
pub struct Catalog {
    /// No other catalog of this process has it.
    id: u64,
    rows: Vec<Arc<Served>>,
    by_path: HashMap<(String, String, String), Arc<Served>>,
    caches: HashMap<GroupResource, Arc<Cache>>,
}

impl Default for Catalog {
    fn default() -> Self {
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            rows: Vec::new(),
            by_path: HashMap::new(),
            caches: HashMap::new(),
        }
    }
}

impl Catalog {
    /// What documents made of the catalog are known by.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The rows that are compiled in, and these. A row whose path is taken is left out.
    pub fn with_custom(&self, custom: impl IntoIterator<Item = Arc<Served>>) -> Self {
        let mut catalog = Self::default();
        let compiled = self.rows.iter().filter(|s| s.row.custom.is_none()).cloned();
        compiled.for_each(|served| catalog.add(served));
        for served in custom {
            let row = &served.row;
            if catalog.find(&row.group, &row.version, &row.plural).is_none() {
                catalog.add(served);
            }
        }
        catalog
    }

    /// Puts rows into service: rows with the same prefix share a cache, which reads the stored
    /// version. `root` is `--etcd-prefix`.
    pub fn new(
        rows: Vec<Resource>,
        registry: &'static Registry,
        store: &SharedStore,
        root: &str,
    ) -> Self {
        let mut caches: BTreeMap<String, Arc<Cache>> = BTreeMap::new();
        let mut fields: HashMap<String, Vec<SelectableField>> = HashMap::new();
        for row in &rows {
            let known = fields.entry(row.storage.prefix.to_string()).or_default();
            for field in &row.fields {
                if !known.iter().any(|k| k.label == field.label) {
                    known.push(SelectableField { label: field.label, get: field.get });
                }
            }
        }
        let mut catalog = Self::default();
        for row in rows {
            let gvk = GroupVersionKind::new(&row.group, &row.version, &row.kind);
            let (group, version) = &row.storage.version;
            let stored_gvk = GroupVersionKind::new(group, version, &row.kind);
            let same_version = gvk == stored_gvk;
            let stored_message = registry.kind(&stored_gvk).unwrap_or(row.message);
            let prefix = row.storage.prefix.to_string();
            let cache = (row.verbs == Verbs::All).then(|| {
                let make = || {
                    let codec = Codec {
                        schema: Some((registry, stored_message)),
                        api_version: stored_gvk.api_version(),
                        kind: row.kind.to_string(),
                        fields: fields.remove(&prefix).unwrap_or_default(),
                        custom: None,
                    };
                    Cache::new(store.clone(), format!("{root}/{prefix}/"), codec)
                };
                caches.entry(prefix.clone()).or_insert_with(make).clone()
            });
            let served = Served {
                gr: GroupResource::new(&row.group, &row.plural),
                api_version: gvk.api_version(),
                list_kind: format!("{}List", row.kind),
                registry,
                stored_message,
                gvk,
                same_version,
                cache,
                memory: Memory::default(),
                row,
            };
            catalog.add(Arc::new(served));
        }
        catalog
    }

    fn add(&mut self, served: Arc<Served>) {
        let row = &served.row;
        let path = (row.group.to_string(), row.version.to_string(), row.plural.to_string());
        if let Some(cache) = &served.cache {
            self.caches.entry(served.gr.clone()).or_insert_with(|| cache.clone());
        }
        self.by_path.insert(path, served.clone());
        self.rows.push(served);
    }

    pub fn rows(&self) -> &[Arc<Served>] {
        &self.rows
    }

    /// The row of a path.
    pub fn find(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Served>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), resource.to_owned()))
    }

    /// The row of a resource in the version that it is best read in: the stored one.
    pub fn stored(&self, resource: &GroupResource) -> Option<&Arc<Served>> {
        let of = |s: &&Arc<Served>| s.gr == *resource;
        self.rows.iter().find(|s| of(s) && s.same_version).or_else(|| self.rows.iter().find(of))
    }

    /// The cache of a resource.
    pub fn cache(&self, resource: &GroupResource) -> Option<&Arc<Cache>> {
        self.caches.get(resource)
    }

    /// Each cache once.
    pub fn caches(&self) -> Vec<Arc<Cache>> {
        let mut all: Vec<Arc<Cache>> = Vec::new();
        for cache in self.rows.iter().filter_map(|s| s.cache.as_ref()) {
            if !all.iter().any(|c| Arc::ptr_eq(c, cache)) {
                all.push(cache.clone());
            }
        }
        all
    }

    /// Whether a group has kinds that are compiled in.
    pub fn is_compiled(&self, group: &str) -> bool {
        self.rows.iter().any(|s| *s.row.group == *group && s.row.custom.is_none())
    }

    /// Groups with their versions, the preferred one first, in upstream's order.
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for row in self.rows.iter().map(|s| &s.row) {
            let versions = match groups.iter_mut().find(|(g, _)| *g == *row.group) {
                Some((_, versions)) => versions,
                None => {
                    groups.push((row.group.to_string(), Vec::new()));
                    match groups.last_mut() {
                        Some((_, versions)) => versions,
                        None => continue,
                    }
                }
            };
            if !versions.iter().any(|v| *v == *row.version) {
                versions.push(row.version.to_string());
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        }
        groups.sort_by(|(a, _), (b, _)| group_priority(b).cmp(&group_priority(a)).then(a.cmp(b)));
        groups
    }
}

/// `v2` over `v1`, stable over beta over alpha.
pub fn version_rank(version: &str) -> (u8, u32, u32) {
    let numbers = |text: &str| text.parse().unwrap_or(0);
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    if let Some((major, minor)) = rest.split_once("beta") {
        return (2, numbers(major), numbers(minor));
    }
    if let Some((major, minor)) = rest.split_once("alpha") {
        return (1, numbers(major), numbers(minor));
    }
    (3, numbers(rest), 0)
}

/// The priority of a group among groups, as upstream's APIServices give it; 1000 for custom ones.
pub fn group_priority(group: &str) -> i64 {
    match group {
        // It is our own, and no APIService's.
        "apiregistration.k8s.io" => 20_001,
        "" => 18_000,
        "apps" => 17_800,
        "events.k8s.io" => 17_750,
        "authentication.k8s.io" => 17_700,
        "authorization.k8s.io" => 17_600,
        "autoscaling" => 17_500,
        "batch" => 17_400,
        "certificates.k8s.io" => 17_300,
        "networking.k8s.io" => 17_200,
        "policy" => 17_100,
        "rbac.authorization.k8s.io" => 17_000,
        "storage.k8s.io" => 16_800,
        "admissionregistration.k8s.io" | "apiextensions.k8s.io" => 16_700,
        "scheduling.k8s.io" => 16_600,
        "coordination.k8s.io" => 16_500,
        "node.k8s.io" => 16_300,
        "discovery.k8s.io" | "resource.k8s.io" => 16_200,
        "flowcontrol.apiserver.k8s.io" => 16_100,
        "internal.apiserver.k8s.io" => 16_000,
        "storagemigration.k8s.io" => 15_800,
        _ => 1000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ranked() {
        let mut versions = ["v1beta1", "v1", "v2", "v1alpha2", "v2beta2", "v1beta2"];
        versions.sort_by_key(|v| std::cmp::Reverse(version_rank(v)));
        assert_eq!(versions, ["v2", "v1", "v2beta2", "v1beta2", "v1beta1", "v1alpha2"]);
    }
}
