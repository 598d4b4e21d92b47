//! What a request asks for, read from its method and path
//! (k8s.io/apiserver `endpoints/request`, RequestInfo).

/// The verb as authorization names it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RequestInfo {
    /// Whether the path is below `/api/<version>` or `/apis/<group>/<version>`.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, or, for
    /// paths that are no resources, the HTTP method in lower case.
    pub verb: String,
    pub path: String,
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub namespace: String,
    /// Plural name.
    pub resource: String,
    pub subresource: String,
    /// Empty for collections.
    pub name: String,
    /// Path segments after resource, name and subresource (`proxy`).
    pub trailing: Vec<String>,
    /// Parsed selectors of list, watch and deletecollection, for authorization by selector.
    pub field_selector: String,
    pub label_selector: String,
}
