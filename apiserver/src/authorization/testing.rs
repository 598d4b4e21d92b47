//! Objects in a map, for tests of what reads the caches.

use std::collections::BTreeMap;
use std::sync::Arc;

use apimachinery::Value;
use apimachinery::gvk::GroupResource;
use apimachinery::object;
use parking_lot::RwLock;

use crate::authentication::User;
use crate::reader::{Object, Reader};

type Objects = BTreeMap<(String, String), Object>;

#[derive(Default)]
pub(crate) struct Memory(RwLock<(u64, BTreeMap<GroupResource, Objects>)>);

impl Memory {
    pub fn with(objects: &[(&str, &str, Value)]) -> Arc<Self> {
        let memory = Arc::new(Self::default());
        for (group, resource, value) in objects {
            memory.put(group, resource, value.clone());
        }
        memory
    }

    pub fn put(&self, group: &str, resource: &str, value: Value) {
        let key = (object::namespace(&value).to_owned(), object::name(&value).to_owned());
        let mut inner = self.0.write();
        inner.0 += 1;
        inner.1.entry(GroupResource::new(group, resource)).or_default().insert(key, value.into());
    }

    pub fn remove(&self, group: &str, resource: &str, namespace: &str, name: &str) {
        let mut inner = self.0.write();
        inner.0 += 1;
        if let Some(all) = inner.1.get_mut(&GroupResource::new(group, resource)) {
            all.remove(&(namespace.to_owned(), name.to_owned()));
        }
    }
}

impl Reader for Memory {
    fn get(&self, resource: &GroupResource, namespace: &str, name: &str) -> Option<Object> {
        let inner = self.0.read();
        inner.1.get(resource)?.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    fn list(&self, resource: &GroupResource, namespace: &str) -> Vec<Object> {
        let inner = self.0.read();
        let Some(all) = inner.1.get(resource) else { return Vec::new() };
        all.iter()
            .filter(|((ns, _), _)| namespace.is_empty() || ns == namespace)
            .map(|(_, o)| o.clone())
            .collect()
    }

    fn version(&self, _resource: &GroupResource) -> u64 {
        self.0.read().0
    }
}

pub(crate) fn user(name: &str, groups: &[&str]) -> User {
    User {
        name: name.into(),
        groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        ..User::default()
    }
}
