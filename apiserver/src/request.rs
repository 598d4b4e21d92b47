//! What a request asks for, read from its method and path
//! (k8s.io/apiserver `endpoints/request`, RequestInfo).

use http::Method;

use crate::query::Query;

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

/// A path that looks like a resource's and is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unable to determine kind and namespace from url, {0}")]
pub struct BadPath(pub String);

/// Subresources of namespaces; anything else after a namespace's name is a resource in it.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Reads method, path (percent-decoded) and query.
    ///
    /// # Errors
    /// The path ends where a resource should stand.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Result<Self, BadPath> {
        let mut info = Self {
            verb: method.as_str().to_ascii_lowercase(),
            path: path.to_owned(),
            ..Self::default()
        };
        let trimmed = path.trim_matches('/');
        let parts: Vec<&str> =
            if trimmed.is_empty() { Vec::new() } else { trimmed.split('/').collect() };
        let rest = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => {
                info.version = (*version).to_owned();
                rest
            }
            ["apis", group, version, rest @ ..] if !rest.is_empty() => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                rest
            }
            _ => return Ok(info),
        };
        info.is_resource = true;
        let (rest, by_prefix) = match rest {
            [verb @ ("watch" | "proxy"), rest @ ..] => {
                info.verb = (*verb).to_owned();
                if rest.is_empty() {
                    return Err(BadPath(path.to_owned()));
                }
                (rest, true)
            }
            rest => {
                info.verb = verb_of(method).to_owned();
                (rest, false)
            }
        };
        info.read_names(rest);
        info.read_collection(query, by_prefix);
        Ok(info)
    }

    fn read_names(&mut self, rest: &[&str]) {
        let mut parts = rest;
        if let ["namespaces", namespace, after @ ..] = rest {
            self.namespace = (*namespace).to_owned();
            if after.first().is_some_and(|next| !NAMESPACE_SUBRESOURCES.contains(next)) {
                parts = after;
            }
        }
        let mut parts = parts.iter().map(|p| (*p).to_owned());
        self.resource = parts.next().unwrap_or_default();
        self.name = parts.next().unwrap_or_default();
        if self.verb != "proxy" && self.verb != "watch" {
            self.subresource = parts.next().unwrap_or_default();
        }
        self.trailing = parts.collect();
    }

    fn read_collection(&mut self, query: &Query, by_prefix: bool) {
        if self.name.is_empty() && self.verb == "get" {
            let watch = query.get("watch").is_some_and(truthy);
            self.verb = if watch { "watch" } else { "list" }.to_owned();
            let name = query
                .get("fieldSelector")
                .and_then(|text| apimachinery::selector::FieldSelector::parse(text).ok())
                .and_then(|selector| selector.exact("metadata.name").map(str::to_owned));
            if let Some(name) = name.filter(|n| is_path_segment(n)) {
                self.name = name;
            }
        }
        if self.name.is_empty() && self.verb == "delete" {
            self.verb = "deletecollection".to_owned();
        }
        if !by_prefix && matches!(self.verb.as_str(), "list" | "watch" | "deletecollection") {
            self.field_selector = query.get("fieldSelector").unwrap_or_default().to_owned();
            self.label_selector = query.get("labelSelector").unwrap_or_default().to_owned();
        }
    }
}

fn verb_of(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "create",
        "GET" | "HEAD" => "get",
        "PUT" => "update",
        "PATCH" => "patch",
        "DELETE" => "delete",
        _ => "",
    }
}

/// A query parameter as upstream reads bools: absent or `false` or `0` is false, the rest true.
pub fn truthy(text: &str) -> bool {
    !matches!(text.to_ascii_lowercase().as_str(), "false" | "0")
}

/// Whether a name can stand as one segment of a path.
pub fn is_path_segment(name: &str) -> bool {
    !matches!(name, "" | "." | "..") && !name.contains('/') && !name.contains('%')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, url: &str) -> RequestInfo {
        let (path, query) = url.split_once('?').unwrap_or((url, ""));
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        RequestInfo::parse(&method, path, &Query::parse(query)).expect("a path")
    }

    #[test]
    fn paths_are_read_as_upstream_reads_them() {
        // method, path, then: verb, group, version, namespace, resource, subresource, name, rest
        #[rustfmt::skip]
        let cases = [
            ("GET", "/api/v1/namespaces", "list||v1||namespaces|||"),
            ("GET", "/api/v1/namespaces/other", "get||v1|other|namespaces||other|"),
            ("GET", "/api/v1/namespaces/other/pods", "list||v1|other|pods|||"),
            ("GET", "/api/v1/namespaces/other/pods/foo", "get||v1|other|pods||foo|"),
            ("HEAD", "/api/v1/namespaces/other/pods/foo", "get||v1|other|pods||foo|"),
            ("GET", "/api/v1/pods", "list||v1||pods|||"),
            ("GET", "/api/v1/pods?watch=false", "list||v1||pods|||"),
            ("GET", "/api/v1/pods?watch=true", "watch||v1||pods|||"),
            ("GET", "/api/v1/watch/namespaces/other/pods", "watch||v1|other|pods|||"),
            ("GET", "/api/v1/watch/pods", "watch||v1||pods|||"),
            ("GET", "/api/v1/namespaces/other/pods/foo/status", "get||v1|other|pods|status|foo|"),
            ("GET", "/api/v1/namespaces/other/pods/foo/proxy/a/b", "get||v1|other|pods|proxy|foo|a/b"),
            ("PUT", "/api/v1/namespaces/other/finalize", "update||v1|other|namespaces|finalize|other|"),
            ("PUT", "/api/v1/namespaces/other/status", "update||v1|other|namespaces|status|other|"),
            ("DELETE", "/api/v1/namespaces/other/pods", "deletecollection||v1|other|pods|||"),
            ("DELETE", "/api/v1/namespaces/other/pods/foo", "delete||v1|other|pods||foo|"),
            ("POST", "/apis/batch/v1/namespaces/other/jobs", "create|batch|v1|other|jobs|||"),
            ("PATCH", "/apis/batch/v1/namespaces/other/jobs/a", "patch|batch|v1|other|jobs||a|"),
            ("GET", "/api/v1/pods?fieldSelector=metadata.name=foo", "list||v1||pods||foo|"),
            ("OPTIONS", "/api/v1/pods", "||v1||pods|||"),
        ];
        for (method, url, want) in cases {
            let i = parse(method, url);
            assert!(i.is_resource, "{url}");
            let parts: [&str; 7] =
                [&i.verb, &i.group, &i.version, &i.namespace, &i.resource, &i.subresource, &i.name];
            let got = format!("{}|{}", parts.join("|"), i.trailing.join("/"));
            assert_eq!(got, want, "{method} {url}");
        }
    }

    #[test]
    fn other_paths_are_no_resources() {
        for path in
            ["/", "/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/healthz/x/y/z"]
        {
            let info = parse("GET", path);
            assert!(!info.is_resource, "{path}");
            assert_eq!(info.verb, "get");
        }
        assert!(RequestInfo::parse(&Method::GET, "/api/v1/watch", &Query::default()).is_err());
    }

    #[test]
    fn selectors_are_kept_for_authorization() {
        let info = parse("GET", "/api/v1/pods?fieldSelector=spec.nodeName%3Dn&labelSelector=a");
        assert_eq!(
            (info.field_selector.as_str(), info.label_selector.as_str()),
            ("spec.nodeName=n", "a")
        );
        let info = parse("GET", "/api/v1/namespaces/a/pods/p?fieldSelector=x");
        assert_eq!(info.field_selector, "");
    }
}
