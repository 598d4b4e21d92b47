//! Judges a recorded history of concurrent requests.
//!
//! Every answer carries a revision, so the order of the writes is known and need not be searched
//! for: it remains to check that the order respects real time, that each read shows the state of
//! its revision, and that the watch saw exactly the writes (invariants 1, 2, 3 and 5).

use std::collections::{BTreeMap, HashMap};

use store::{Change, KeyValue, Revision};

/// What was asked and what came back.
#[derive(Clone, Debug)]
pub enum Did {
    Wrote {
        key: String,
        value: String,
        revision: Revision,
    },
    Deleted {
        key: String,
        revision: Revision,
    },
    /// A write that was refused: it expected `expected` (0: absent) and found `found`.
    Refused {
        key: String,
        expected: Revision,
        found: Option<KeyValue>,
    },
    Got {
        key: String,
        revision: Revision,
        found: Option<KeyValue>,
    },
    Listed {
        prefix: String,
        revision: Revision,
        found: Vec<KeyValue>,
    },
}

/// A request, with the ticks of one clock at which it began and ended.
#[derive(Clone, Debug)]
pub struct Record {
    pub began: u64,
    pub ended: u64,
    pub did: Did,
}

type State = BTreeMap<String, KeyValue>;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Checks `records` against the changes that a watch from the beginning delivered.
pub fn check(records: &[Record], watched: &[Change]) -> Result<(), String> {
    let states = replay(watched)?;
    writes_match(records, watched)?;
    real_time(records)?;
    for record in records {
        reads_match(record, records, &states)?;
    }
    Ok(())
}

/// The state after each revision; fails if the changes do not follow from each other.
fn replay(watched: &[Change]) -> Result<BTreeMap<Revision, State>, String> {
    let mut state = State::new();
    let mut states = BTreeMap::from([(1, State::new())]);
    let mut last = 1;
    for change in watched {
        let revision = change.revision();
        if revision <= last {
            return Err(format!("watch delivered {revision} after {last}"));
        }
        last = revision;
        let key = text(change.key());
        let before = state.get(&key).cloned();
        match change {
            Change::Put { kv, previous } => {
                if *previous != before {
                    return Err(format!("at {revision} previous is {previous:?}, not {before:?}"));
                }
                let created = before.as_ref().map_or(revision, |kv| kv.create_revision);
                if kv.create_revision != created {
                    return Err(format!("at {revision} created at {}", kv.create_revision));
                }
                state.insert(key, kv.clone());
            }
            Change::Delete { previous, .. } => {
                if before.is_none() || *previous != before {
                    return Err(format!("at {revision} deleted {previous:?}, not {before:?}"));
                }
                state.remove(&key);
            }
        }
        states.insert(revision, state.clone());
    }
    Ok(states)
}

/// Every acknowledged write was watched once, and nothing else was.
fn writes_match(records: &[Record], watched: &[Change]) -> Result<(), String> {
    let mut seen: HashMap<Revision, &Change> =
        watched.iter().map(|change| (change.revision(), change)).collect();
    for record in records {
        let (key, value, revision) = match &record.did {
            Did::Wrote { key, value, revision } => (key, Some(value), revision),
            Did::Deleted { key, revision } => (key, None, revision),
            _ => continue,
        };
        let Some(change) = seen.remove(revision) else {
            return Err(format!("{record:?} was not watched, or shares its revision"));
        };
        let same = match (change, value) {
            (Change::Put { kv, .. }, Some(value)) => kv.value == value.as_bytes(),
            (Change::Delete { .. }, None) => true,
            _ => false,
        };
        if !same || change.key() != key.as_bytes() {
            return Err(format!("{record:?} was watched as {change:?}"));
        }
    }
    match seen.into_values().next() {
        Some(change) => Err(format!("nobody wrote {change:?}")),
        None => Ok(()),
    }
}

fn revision(did: &Did) -> Option<(Revision, bool)> {
    match did {
        Did::Wrote { revision, .. } | Did::Deleted { revision, .. } => Some((*revision, true)),
        Did::Got { revision, .. } | Did::Listed { revision, .. } => Some((*revision, false)),
        Did::Refused { .. } => None,
    }
}

/// What began after another request had ended is at no lower revision; a write is above it.
fn real_time(records: &[Record]) -> Result<(), String> {
    let mut ended: Vec<&Record> = records.iter().collect();
    ended.sort_by_key(|record| record.ended);
    let mut began: Vec<&Record> = records.iter().collect();
    began.sort_by_key(|record| record.began);
    let mut highest: Option<(Revision, &Record)> = None;
    let mut done = ended.into_iter().peekable();
    for record in began {
        while let Some(earlier) = done.next_if(|earlier| earlier.ended < record.began) {
            if let Some((at, _)) = revision(&earlier.did)
                && highest.is_none_or(|(highest, _)| at > highest)
            {
                highest = Some((at, earlier));
            }
        }
        let (Some((at, write)), Some((floor, earlier))) = (revision(&record.did), highest) else {
            continue;
        };
        if at < floor || (write && at == floor) {
            return Err(format!("{record:?} began after {earlier:?} had ended"));
        }
    }
    Ok(())
}

fn reads_match(
    record: &Record,
    records: &[Record],
    states: &BTreeMap<Revision, State>,
) -> Result<(), String> {
    let state_at = |at: Revision| states.range(..=at).next_back().map(|(_, state)| state);
    match &record.did {
        Did::Got { key, revision, found } => {
            let held = state_at(*revision).and_then(|state| state.get(key));
            if held != found.as_ref() {
                return Err(format!("{record:?} should have found {held:?}"));
            }
        }
        Did::Listed { prefix, revision, found } => {
            let held: Vec<&KeyValue> = state_at(*revision)
                .into_iter()
                .flatten()
                .filter(|(key, _)| key.starts_with(prefix))
                .map(|(_, kv)| kv)
                .collect();
            if held != found.iter().collect::<Vec<_>>() {
                return Err(format!("{record:?} should have listed {held:?}"));
            }
        }
        Did::Refused { key, expected, found } => {
            if found.as_ref().map_or(0, |kv| kv.mod_revision) == *expected {
                return Err(format!("{record:?} was refused although it held"));
            }
            // What was found must have been in force at some moment of the request.
            let floor = records
                .iter()
                .filter(|earlier| earlier.ended < record.began)
                .filter_map(|earlier| revision(&earlier.did))
                .map(|(at, _)| at)
                .max()
                .unwrap_or(1);
            let ceiling = records
                .iter()
                .filter(|later| later.began > record.ended)
                .filter_map(|later| revision(&later.did))
                .map(|(at, write)| if write { at - 1 } else { at })
                .min()
                .unwrap_or(Revision::MAX);
            let first = states.range(..=floor).next_back().map_or(1, |(at, _)| *at);
            let held = first <= ceiling
                && states.range(first..=ceiling).any(|(_, state)| state.get(key) == found.as_ref());
            if !held {
                return Err(format!("{record:?} found what was not there at {floor}..={ceiling}"));
            }
        }
        Did::Wrote { .. } | Did::Deleted { .. } => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(value: &str, created: Revision, modified: Revision) -> KeyValue {
        KeyValue {
            key: "k".into(),
            value: value.to_owned().into(),
            create_revision: created,
            mod_revision: modified,
        }
    }

    fn at(began: u64, ended: u64, did: Did) -> Record {
        Record { began, ended, did }
    }

    fn wrote(value: &str, revision: Revision) -> Did {
        Did::Wrote { key: "k".into(), value: value.into(), revision }
    }

    fn got(revision: Revision, found: Option<KeyValue>) -> Did {
        Did::Got { key: "k".into(), revision, found }
    }

    #[test]
    fn good_histories_pass_and_bad_ones_do_not() {
        let (a, b) = (kv("a", 2, 2), kv("b", 2, 3));
        let watched = [
            Change::Put { kv: a.clone(), previous: None },
            Change::Put { kv: b.clone(), previous: Some(a.clone()) },
        ];
        let writes = [at(0, 1, wrote("a", 2)), at(2, 5, wrote("b", 3))];
        let refused = |found| Did::Refused { key: "k".into(), expected: 0, found };
        for (name, more, good) in [
            ("nothing else", vec![], true),
            ("a read beside the write sees the old", vec![at(3, 4, got(2, Some(a.clone())))], true),
            ("or the new", vec![at(3, 4, got(3, Some(b.clone())))], true),
            ("a stale read", vec![at(6, 7, got(2, Some(a.clone())))], false),
            ("a read of another revision", vec![at(3, 4, got(3, Some(a.clone())))], false),
            (
                "a read goes back",
                vec![at(3, 4, got(3, Some(b.clone()))), at(5, 6, got(2, Some(a.clone())))],
                false,
            ),
            ("a lost write", vec![at(6, 7, wrote("c", 4))], false),
            ("two writes of one revision", vec![at(6, 7, wrote("b", 3))], false),
            ("refused by the present value", vec![at(6, 7, refused(Some(b.clone())))], true),
            ("refused by a former value", vec![at(6, 7, refused(Some(a.clone())))], false),
            ("refused for no reason", vec![at(6, 7, refused(None))], false),
        ] {
            let records: Vec<Record> = writes.iter().cloned().chain(more).collect();
            let verdict = check(&records, &watched);
            assert_eq!(verdict.is_ok(), good, "{name}: {verdict:?}");
        }
        assert!(check(&writes, &watched[..1]).is_err(), "a write that was not watched");
        let wrong_previous = [watched[0].clone(), Change::Put { kv: b, previous: None }];
        assert!(check(&writes, &wrong_previous).is_err());
    }
}
