//! Judges what concurrent clients of one or several API servers on one store have seen.
//!
//! Every answer carries a revision, so the order of the writes is known: it remains to check that it
//! respects real time, that each list shows the state of its revision and is as fresh as it was
//! asked to be, and that each watch delivered just what happened to what it selects.

use std::collections::{BTreeMap, HashMap};

pub type Revision = u64;

/// An object, as far as the checks go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// `namespace/name`
    pub key: String,
    pub revision: Revision,
    /// The label that selectors ask for.
    pub color: String,
    /// Unique for each attempt to write.
    pub value: String,
}

/// Which objects a list or a watch asks for; empty: all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    pub namespace: String,
    pub color: String,
}

impl Selection {
    fn holds(&self, item: &Item) -> bool {
        (self.namespace.is_empty() || item.key.starts_with(&format!("{}/", self.namespace)))
            && (self.color.is_empty() || item.color == self.color)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Added,
    Modified,
    Deleted,
}

/// What a watch delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    Event(Kind, Item),
    Bookmark(Revision),
    /// The bookmark that ends the initial events.
    InitialEnd(Revision),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    Newest,
    Any,
    NotOlderThan(Revision),
    Exact(Revision),
}

#[derive(Clone, Debug)]
pub enum Did {
    /// `value`: what was written; `None`: deleted. `on`: the revision of the state that it was to
    /// be done on (0: there must be none); `None`: on any.
    Wrote {
        key: String,
        value: Option<String>,
        on: Option<Revision>,
        revision: Revision,
    },
    /// Deleted at the revision that the object had last. The answer does not tell when.
    Deleted {
        key: String,
        last: Revision,
    },
    /// Failed in a way that leaves open whether it was done; `value` as above.
    InDoubt {
        key: String,
        value: Option<String>,
    },
    /// Answered with a conflict, or that nothing was done: must not have been done.
    Refused {
        value: String,
    },
    Got {
        key: String,
        found: Option<Item>,
    },
    Listed {
        select: Selection,
        asked: Asked,
        revision: Revision,
        items: Vec<Item>,
    },
    /// A watch, over all of its connections. `from`: events come after this revision; `None`: it
    /// began with the state as events.
    Watched {
        select: Selection,
        from: Option<Revision>,
        seen: Vec<Seen>,
    },
}

/// A request, with the ticks of one clock at which it began and ended.
#[derive(Clone, Debug)]
pub struct Record {
    pub began: u64,
    pub ended: u64,
    pub did: Did,
}

type State = BTreeMap<String, Item>;

/// All that happened, by the revision at which it did.
pub struct Truth {
    start: Revision,
    changes: Vec<(Kind, Item)>,
    states: BTreeMap<Revision, State>,
}

impl Truth {
    /// Of the events of a watch of everything from a revision at which there was nothing.
    pub fn new(start: Revision, changes: Vec<(Kind, Item)>) -> Result<Self, String> {
        let (mut state, mut last) = (State::new(), start);
        let mut states = BTreeMap::from([(start, State::new())]);
        for (kind, item) in &changes {
            if item.revision <= last {
                return Err(format!("{item:?} came after revision {last}"));
            }
            last = item.revision;
            let before = match kind {
                Kind::Deleted => state.remove(&item.key),
                _ => state.insert(item.key.clone(), item.clone()),
            };
            if before.is_none() != (*kind == Kind::Added) {
                return Err(format!("{kind:?} {item:?} after {before:?}"));
            }
            states.insert(item.revision, state.clone());
        }
        Ok(Self { start, changes, states })
    }

    fn at(&self, revision: Revision) -> &State {
        let state = self.states.range(..=revision.max(self.start)).next_back();
        state.map(|(_, state)| state).expect("the first state")
    }

    fn selected(&self, revision: Revision, select: &Selection) -> Vec<&Item> {
        self.at(revision).values().filter(|item| select.holds(item)).collect()
    }

    /// What a watch must deliver after a revision.
    fn events(&self, select: &Selection, after: Revision) -> Vec<(Kind, Item)> {
        let mut events = Vec::new();
        for (kind, item) in self.changes.iter().filter(|(_, item)| item.revision > after) {
            let before = self.at(item.revision - 1).get(&item.key);
            let was = before.filter(|before| select.holds(before));
            let is = *kind != Kind::Deleted && select.holds(item);
            let event = match (was, is) {
                (None, false) => continue,
                (None, true) => (Kind::Added, item.clone()),
                (Some(_), true) => (Kind::Modified, item.clone()),
                (Some(was), false) => {
                    (Kind::Deleted, Item { revision: item.revision, ..was.clone() })
                }
            };
            events.push(event);
        }
        events
    }
}

/// A deletion as a write at the revision at which it happened.
fn resolved(record: &Record, truth: &Truth) -> Result<Record, String> {
    let Did::Deleted { key, last } = &record.did else { return Ok(record.clone()) };
    let ended = truth.changes.iter().find(|(kind, item)| {
        let before = || truth.at(item.revision - 1).get(key).map(|item| item.revision);
        *kind == Kind::Deleted && item.key == *key && before() == Some(*last)
    });
    let (_, item) = ended.ok_or_else(|| format!("did not happen: {record:?}"))?;
    let (key, on) = (key.clone(), Some(*last));
    let did = Did::Wrote { key, value: None, on, revision: item.revision };
    Ok(Record { did, ..record.clone() })
}

/// Checks what was done against what happened.
pub fn check(records: &[Record], truth: &Truth) -> Result<(), String> {
    let records: Result<Vec<Record>, _> = records.iter().map(|r| resolved(r, truth)).collect();
    let records = &records?[..];
    writes_match(records, truth)?;
    for record in records {
        let floor = floor(records, record, truth.start);
        let ceiling = ceiling(records, record);
        let verdict = match &record.did {
            Did::Wrote { revision, .. } => {
                (*revision > floor).then_some(()).ok_or(format!("is not above {floor}"))
            }
            Did::Refused { .. } | Did::InDoubt { .. } | Did::Deleted { .. } => Ok(()),
            Did::Got { key, found } => got(truth, key, found.as_ref(), floor, ceiling),
            Did::Listed { select, asked, revision, items } => {
                fresh(*asked, *revision, floor, ceiling)
                    .and_then(|()| same(&truth.selected(*revision, select), items))
            }
            Did::Watched { select, from, seen } => watched(truth, select, *from, seen),
        };
        verdict.map_err(|why| format!("{why}: {record:?}"))?;
    }
    Ok(())
}

/// Every acknowledged write happened once, and nothing else did.
fn writes_match(records: &[Record], truth: &Truth) -> Result<(), String> {
    let mut happened: HashMap<Revision, &(Kind, Item)> =
        truth.changes.iter().map(|change| (change.1.revision, change)).collect();
    for record in records {
        match &record.did {
            Did::Wrote { key, value, on, revision } => {
                let Some((kind, item)) = happened.remove(revision) else {
                    return Err(format!("did not happen, or shares its revision: {record:?}"));
                };
                let same = match value {
                    Some(value) => *kind != Kind::Deleted && item.value == *value,
                    None => *kind == Kind::Deleted,
                };
                let before = truth.at(revision - 1).get(key).map_or(0, |item| item.revision);
                if on.is_some_and(|on| on != before) {
                    return Err(format!("was done on {before}: {record:?}"));
                }
                if !same || item.key != *key {
                    return Err(format!("happened as {kind:?} {item:?}: {record:?}"));
                }
            }
            Did::Refused { value }
                if truth.changes.iter().any(|(_, item)| item.value == *value) =>
            {
                return Err(format!("was refused and happened: {record:?}"));
            }
            _ => {}
        }
    }
    let in_doubt = |(kind, item): &(Kind, Item)| {
        records.iter().any(|record| match &record.did {
            Did::InDoubt { key, value: Some(value) } => item.key == *key && item.value == *value,
            Did::InDoubt { key, value: None } => item.key == *key && *kind == Kind::Deleted,
            _ => false,
        })
    };
    match happened.into_values().find(|change| !in_doubt(change)) {
        Some(change) => Err(format!("nobody wrote {change:?}")),
        None => Ok(()),
    }
}

/// The revision that a request shows, if it must be the newest then.
fn linear(did: &Did) -> Option<Revision> {
    match did {
        Did::Wrote { revision, .. } => Some(*revision),
        Did::Listed { asked: Asked::Newest, revision, .. } => Some(*revision),
        _ => None,
    }
}

/// The newest revision that was known before a request began.
fn floor(records: &[Record], record: &Record, start: Revision) -> Revision {
    let before = records.iter().filter(|earlier| earlier.ended < record.began);
    before.filter_map(|earlier| linear(&earlier.did)).max().unwrap_or(start)
}

/// What a request can have seen at most: the state before writes that began after it ended.
fn ceiling(records: &[Record], record: &Record) -> Revision {
    let after = records.iter().filter(|later| later.began > record.ended);
    let write = |did: &Did| match did {
        Did::Wrote { revision, .. } => Some(revision - 1),
        _ => None,
    };
    after.filter_map(|later| write(&later.did)).min().unwrap_or(Revision::MAX)
}

fn fresh(
    asked: Asked,
    revision: Revision,
    floor: Revision,
    ceiling: Revision,
) -> Result<(), String> {
    let good = match asked {
        Asked::Newest => revision >= floor,
        Asked::Any => true,
        Asked::NotOlderThan(at) => revision >= at,
        Asked::Exact(at) => revision == at,
    };
    match good && revision <= ceiling {
        true => Ok(()),
        false => Err(format!("must be within {floor}..={ceiling}")),
    }
}

/// A read of one object shows a state that held at some moment of the request.
fn got(
    truth: &Truth,
    key: &str,
    found: Option<&Item>,
    floor: Revision,
    ceiling: Revision,
) -> Result<(), String> {
    let first = truth.at(floor).get(key);
    let later = truth.states.range(floor..).take_while(|(at, _)| **at <= ceiling);
    let held = first == found || later.into_iter().any(|(_, state)| state.get(key) == found);
    if held { Ok(()) } else { Err(format!("did not hold within {floor}..={ceiling}")) }
}

fn same(held: &[&Item], listed: &[Item]) -> Result<(), String> {
    if held.iter().copied().eq(listed) { Ok(()) } else { Err(format!("should be {held:?}")) }
}

fn watched(
    truth: &Truth,
    select: &Selection,
    from: Option<Revision>,
    seen: &[Seen],
) -> Result<(), String> {
    let (mut seen, mut reached) = (seen, from.unwrap_or(0));
    if from.is_none() {
        let end = seen.iter().position(|s| matches!(s, Seen::InitialEnd(_)));
        let Some((initial, [Seen::InitialEnd(at), rest @ ..])) = end.map(|end| seen.split_at(end))
        else {
            return Err("has no end of the initial events".to_owned());
        };
        let state: Vec<Seen> = truth
            .selected(*at, select)
            .into_iter()
            .map(|item| Seen::Event(Kind::Added, item.clone()))
            .collect();
        if initial != state {
            return Err(format!("should have begun with {state:?}"));
        }
        (seen, reached) = (rest, *at);
    }
    let mut due = truth.events(select, reached).into_iter().peekable();
    for one in seen {
        match one {
            Seen::Event(kind, item) => {
                let next = due.next();
                if next.as_ref() != Some(&(*kind, item.clone())) {
                    return Err(format!("{one:?} should have been {next:?}"));
                }
                reached = item.revision;
            }
            Seen::Bookmark(at) | Seen::InitialEnd(at) => {
                if *at < reached {
                    return Err(format!("{one:?} goes back behind {reached}"));
                }
                if let Some(late) = due.peek().filter(|(_, item)| item.revision <= *at) {
                    return Err(format!("{one:?} came before {late:?}"));
                }
                reached = *at;
            }
        }
    }
    match due.next() {
        Some(missing) => Err(format!("did not deliver {missing:?}")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, revision: Revision, color: &str) -> Item {
        let value = format!("{key}{revision}");
        Item { key: key.into(), revision, color: color.into(), value }
    }

    fn record(began: u64, ended: u64, did: Did) -> Record {
        Record { began, ended, did }
    }

    fn listed(asked: Asked, revision: Revision, items: &[&Item]) -> Did {
        let items = items.iter().copied().cloned().collect();
        Did::Listed { select: Selection::default(), asked, revision, items }
    }

    #[test]
    fn good_histories_pass_and_bad_ones_do_not() {
        let (a, b, blue) =
            (item("n/a", 11, "red"), item("n/b", 12, "red"), item("n/a", 13, "blue"));
        let gone = Item { revision: 13, ..a.clone() };
        let changes = [(Kind::Added, &a), (Kind::Added, &b), (Kind::Modified, &blue)]
            .map(|(k, i)| (k, i.clone()));
        let truth = Truth::new(10, changes.to_vec()).expect("a history");
        let wrote = |item: &Item, at: u64| {
            let value = Some(item.value.clone());
            let (key, revision) = (item.key.clone(), item.revision);
            record(at, at + 1, Did::Wrote { key, value, on: None, revision })
        };
        let writes = [wrote(&a, 0), wrote(&b, 10), wrote(&blue, 20)];
        let red = Selection { color: "red".into(), ..Selection::default() };
        let watch =
            |from, seen: &[Seen]| Did::Watched { select: red.clone(), from, seen: seen.to_vec() };
        let added = |item: &Item| Seen::Event(Kind::Added, item.clone());
        let deleted = Seen::Event(Kind::Deleted, gone.clone());
        let got = |found: Option<&Item>| Did::Got { key: "n/a".into(), found: found.cloned() };
        let refused = |value: &str| Did::Refused { value: value.into() };
        let all = [added(&a), added(&b), deleted.clone()];
        let early = [added(&a), Seen::Bookmark(12), added(&b), deleted.clone()];
        let exact = [added(&a), added(&b), Seen::Bookmark(12), deleted.clone(), Seen::Bookmark(13)];
        let state = [added(&a), Seen::InitialEnd(11), added(&b), deleted.clone()];
        let ahead = [added(&a), Seen::InitialEnd(12), added(&b), deleted.clone()];
        for (name, at, did, good) in [
            ("the state then", 15, listed(Asked::Newest, 12, &[&a, &b]), true),
            ("a stale list", 15, listed(Asked::Newest, 11, &[&a]), false),
            ("as old as asked for", 15, listed(Asked::NotOlderThan(11), 11, &[&a]), true),
            ("older", 15, listed(Asked::NotOlderThan(12), 11, &[&a]), false),
            ("from the future", 15, listed(Asked::Newest, 13, &[&blue, &b]), false),
            ("a part", 15, listed(Asked::Exact(12), 12, &[&a]), false),
            ("two times in one", 25, listed(Asked::Any, 13, &[&a, &b]), false),
            ("the present", 15, got(Some(&a)), true),
            ("nothing", 15, got(None), false),
            ("the past", 25, got(Some(&a)), false),
            ("deleted", 15, Did::Deleted { key: "n/a".into(), last: 11 }, false),
            ("in doubt", 15, Did::InDoubt { key: "n/c".into(), value: None }, true),
            ("refused", 15, refused("other"), true),
            ("refused and done", 15, refused(&b.value), false),
            ("all events", 25, watch(Some(10), &all), true),
            ("one missing", 25, watch(Some(10), &all[..2]), false),
            ("one skipped", 25, watch(Some(10), &[added(&a), deleted.clone()]), false),
            ("twice", 25, watch(Some(11), &all), false),
            ("a bookmark ahead", 25, watch(Some(10), &early), false),
            ("bookmarks", 25, watch(Some(10), &exact), true),
            ("begins with the state", 25, watch(None, &state), true),
            ("with a part of it", 25, watch(None, &ahead), false),
        ] {
            let mut records = writes.to_vec();
            records.push(record(at, at + 1, did));
            let verdict = check(&records, &truth);
            assert_eq!(verdict.is_ok(), good, "{name}: {verdict:?}");
        }
        assert!(check(&writes[..2], &truth).is_err(), "a change that nobody made");
        for (on, good) in [(None, true), (Some(11), true), (Some(10), false), (Some(0), false)] {
            let (key, value, revision) = ("n/a".into(), Some(blue.value.clone()), 13);
            let last = record(20, 21, Did::Wrote { key, value, on, revision });
            let records = [writes[0].clone(), writes[1].clone(), last];
            assert_eq!(check(&records, &truth).is_ok(), good, "on {on:?}");
        }
        let in_doubt = Did::InDoubt { key: "n/a".into(), value: Some(blue.value.clone()) };
        let records = [writes[0].clone(), writes[1].clone(), record(20, 21, in_doubt)];
        assert!(check(&records, &truth).is_ok(), "a change that may have been made");
    }
}
