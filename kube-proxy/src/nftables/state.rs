//! What the kernel has, and the smallest change from that to what it should have.
//!
//! Pure. Fragments are set owner by owner; only what differs between an owner's old and new fragment
//! is looked at, so a change costs what it changes, whatever the number of services.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use smallvec::SmallVec;

use super::{Chain, Change, Declaration, Fragment, Key, Value};
use crate::table::PortName;

/// The owner of what is there without any service: before all others.
pub fn base_owner() -> PortName {
    PortName { namespace: String::new(), service: String::new(), port: String::new() }
}

type Element = (&'static str, Key);

/// The rules of one family.
#[derive(Debug, Default)]
pub struct Rules {
    fragments: BTreeMap<Arc<PortName>, Arc<Fragment>>,
    /// Who wants an element, in the order of their names: the first gets it.
    elements: HashMap<Element, SmallVec<[(Arc<PortName>, Value); 1]>>,
    touched: Touched,
}

/// What may have changed since the last [`Rules::take`]: before, and after where one owner says.
#[derive(Debug, Default)]
struct Touched {
    chains: BTreeMap<String, (Option<Chain>, Option<Chain>)>,
    sets: BTreeMap<String, (Option<Declaration>, Option<Declaration>)>,
    elements: BTreeMap<Element, Option<Value>>,
}

/// Differences between two maps: key, old, new.
fn differences<'a, K: Ord, V: PartialEq>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let changed = new.iter().map(|(k, v)| (k, old.get(k), Some(v)));
    let gone = old.iter().filter(|(k, _)| !new.contains_key(*k)).map(|(k, v)| (k, Some(v), None));
    changed.chain(gone).filter(|(_, old, new)| old != new)
}

fn touch<V: Clone>(
    touched: &mut BTreeMap<String, (Option<V>, Option<V>)>,
    name: &str,
    old: Option<&V>,
    new: Option<&V>,
) {
    if let Some(have) = touched.get_mut(name) {
        have.1 = new.cloned();
    } else {
        touched.insert(name.to_owned(), (old.cloned(), new.cloned()));
    }
}

impl Rules {
    /// Owners with a fragment.
    pub fn owners(&self) -> impl Iterator<Item = &Arc<PortName>> {
        self.fragments.keys()
    }

    /// Sets what an owner wants.
    pub fn set(&mut self, owner: &PortName, new: Fragment) {
        let have = self.fragments.get_key_value(owner);
        let owner = have.map_or_else(|| Arc::new(owner.clone()), |(owner, _)| Arc::clone(owner));
        let old = have.map(|(_, fragment)| Arc::clone(fragment)).unwrap_or_default();
        for (name, old, new) in differences(&old.chains, &new.chains) {
            touch(&mut self.touched.chains, name, old, new);
        }
        for (name, old, new) in differences(&old.sets, &new.sets) {
            touch(&mut self.touched.sets, name, old, new);
        }
        for (key, _, value) in differences(&old.elements, &new.elements) {
            self.element(&owner, key, value);
        }
        if new == Fragment::default() {
            self.fragments.remove(&owner);
        } else {
            self.fragments.insert(owner, Arc::new(new));
        }
    }

    fn element(&mut self, owner: &Arc<PortName>, key: &Element, value: Option<&Value>) {
        let wanted = self.elements.entry(key.clone()).or_default();
        if !self.touched.elements.contains_key(key) {
            let before = wanted.first().map(|(_, value)| value.clone());
            self.touched.elements.insert(key.clone(), before);
        }
        match (wanted.binary_search_by(|(other, _)| other.cmp(owner)), value) {
            (Ok(at), Some(value)) => wanted[at].1 = value.clone(),
            (Ok(at), None) => drop(wanted.remove(at)),
            (Err(at), Some(value)) => wanted.insert(at, (Arc::clone(owner), value.clone())),
            (Err(_), None) => {}
        }
        if wanted.is_empty() {
            self.elements.remove(key);
        }
    }

    /// What there is now of an element.
    fn winner(&self, key: &Element) -> Option<&Value> {
        self.elements.get(key).and_then(|wanted| wanted.first()).map(|(_, value)| value)
    }

    /// The changes since the last time, in an order in which nothing is used before it is there or
    /// removed while it is used.
    pub fn take(&mut self) -> Vec<Change> {
        let touched = std::mem::take(&mut self.touched);
        let mut out = Vec::new();
        let mut add: BTreeMap<&'static str, Vec<(Key, Value)>> = BTreeMap::new();
        let mut delete: BTreeMap<&'static str, Vec<Key>> = BTreeMap::new();
        for (element, old) in touched.elements {
            let new = self.winner(&element);
            if old.as_ref() == new {
                continue;
            }
            let new = new.cloned();
            let (set, key) = element;
            if let Some(value) = new {
                add.entry(set).or_default().push((key.clone(), value));
            }
            if old.is_some() {
                delete.entry(set).or_default().push(key);
            }
        }
        let chains: Vec<_> =
            touched.chains.into_iter().filter(|(_, (old, new))| old != new).collect();
        let sets: Vec<_> = touched.sets.into_iter().filter(|(_, (old, new))| old != new).collect();
        out.extend(delete.into_iter().map(|(set, keys)| Change::DeleteElements(set, keys)));
        let there = |(_, (old, _)): &&(String, (Option<Chain>, _))| old.is_some();
        let empty = |chain: &Option<Chain>| chain.as_ref().is_none_or(|c| c.rules.is_empty());
        for (name, (old, _)) in chains.iter().filter(there) {
            if !empty(old) {
                out.push(Change::FlushChain(name.clone()));
            }
        }
        for (name, _) in sets.iter().filter(|(_, (old, _))| old.is_some()) {
            out.push(Change::DeleteSet(name.clone()));
        }
        for (name, (_, new)) in &sets {
            out.extend(new.clone().map(|set| Change::AddSet(name.clone(), set)));
        }
        for (name, (old, new)) in &chains {
            if let (None, Some(new)) = (old, new) {
                out.push(Change::AddChain(name.clone(), new.hook));
            }
        }
        let mut gone = Vec::new();
        for (name, (_, new)) in chains {
            match new {
                Some(new) => out
                    .extend(new.rules.into_iter().map(|rule| Change::AddRule(name.clone(), rule))),
                None => gone.push(name),
            }
        }
        out.extend(add.into_iter().map(|(set, elements)| Change::AddElements(set, elements)));
        out.extend(gone.into_iter().map(Change::DeleteChain));
        out
    }

    /// All there is, as changes from nothing: what was there before goes in the same transaction.
    pub fn whole(fragments: impl IntoIterator<Item = (PortName, Fragment)>) -> (Self, Vec<Change>) {
        let mut rules = Self::default();
        for (owner, fragment) in fragments {
            rules.set(&owner, fragment);
        }
        let mut changes = vec![Change::AddTable, Change::DeleteTable, Change::AddTable];
        changes.extend(rules.take());
        (rules, changes)
    }

    /// Owners that have a fragment and are not in `stay`.
    pub fn without(&self, stay: &BTreeSet<&PortName>) -> Vec<Arc<PortName>> {
        self.owners().filter(|owner| !stay.contains(owner.as_ref())).cloned().collect()
    }
}
