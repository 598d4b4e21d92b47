//! How the revisioned space is laid out in tables, and what reads and changes it.
//!
//! Values live once, in [`LOG`], under the revision that wrote them. [`INDEX`] points from a live
//! key to its newest row, [`VERSIONS`] from a key to its superseded rows and the revision at which
//! each ended. So a write appends one value whatever the key's age, and forgetting history visits
//! only the rows between the old and the new compaction revision.

use std::ops::Bound;

use bytes::Bytes;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, Table, TableDefinition, TableError,
    WriteTransaction,
};

use crate::{
    Change, Expect, KeyValue, ListRequest, ListResponse, Revision, StoreError, prefix_end,
};

/// Numbers about the store as a whole; the names are the `META_…` constants.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
/// Live key → (create revision, modification revision).
pub(super) const INDEX: TableDefinition<'static, &[u8], (u64, u64)> = TableDefinition::new("index");
/// (key, modification revision) → (create revision, revision that superseded it).
pub(super) const VERSIONS: TableDefinition<'static, (&[u8], u64), (u64, u64)> =
    TableDefinition::new("versions");
/// Revision → the change it made, see [`Row`].
pub(super) const LOG: TableDefinition<'static, u64, &[u8]> = TableDefinition::new("log");
/// (deadline in milliseconds since the epoch, key) → modification revision it applies to.
pub(super) const EXPIRY: TableDefinition<'static, (u64, &[u8]), u64> =
    TableDefinition::new("expiry");

/// Layout number; a file with another one is refused.
const META_FORMAT: &str = "format";
const FORMAT: u64 = 1;
/// Newest revision.
const META_REVISION: &str = "revision";
/// Oldest revision that can still be read.
const META_OLDEST: &str = "oldest";
/// Rows of revisions below this have been removed; trails `META_OLDEST` while removal goes on.
const META_CLEANED: &str = "cleaned";

/// An empty store is at revision 1, as etcd's is; the first write makes revision 2.
pub(super) const FIRST_REVISION: Revision = 1;

/// Makes a [`StoreError`] of an engine error that had no effect on the data.
pub(super) fn fault<E: Into<redb::Error>>(error: E) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(what) => StoreError::Damaged(what),
        error @ (redb::Error::TableTypeMismatch { .. }
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TableDoesNotExist(_)
        | redb::Error::UpgradeRequired(_)) => StoreError::Damaged(error.to_string()),
        error => StoreError::Unavailable(error.to_string()),
    }
}

fn damaged(what: impl Into<String>) -> StoreError {
    StoreError::Damaged(what.into())
}

/// One row of [`LOG`]: a kind byte, three numbers, the key and the value.
#[derive(Debug, PartialEq, Eq)]
struct Row<'a> {
    delete: bool,
    create_revision: Revision,
    /// Modification revision of the value this change superseded; 0: there was none.
    previous: Revision,
    key: &'a [u8],
    value: &'a [u8],
}

impl<'a> Row<'a> {
    const HEAD: usize = 1 + 8 + 8 + 4;

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::HEAD + self.key.len() + self.value.len());
        out.push(u8::from(self.delete));
        out.extend_from_slice(&self.create_revision.to_be_bytes());
        out.extend_from_slice(&self.previous.to_be_bytes());
        // Keys are bounded by the request limit, far below 4 GiB.
        out.extend_from_slice(&(self.key.len() as u32).to_be_bytes());
        out.extend_from_slice(self.key);
        out.extend_from_slice(self.value);
        out
    }

    fn decode(bytes: &'a [u8], revision: Revision) -> Result<Self, StoreError> {
        let bad = || damaged(format!("row of revision {revision} cannot be read"));
        let (kind, rest) = bytes.split_first().ok_or_else(bad)?;
        let (create, rest) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
        let (previous, rest) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
        let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(bad)?;
        let length = u32::from_be_bytes(*length) as usize;
        if *kind > 1 || rest.len() < length {
            return Err(bad());
        }
        let (key, value) = rest.split_at(length);
        Ok(Row {
            delete: *kind == 1,
            create_revision: u64::from_be_bytes(*create),
            previous: u64::from_be_bytes(*previous),
            key,
            value,
        })
    }
}

/// Creates the tables of a new file, or checks those of an old one; `true` if it was new.
pub(super) fn initialize(txn: &WriteTransaction) -> Result<bool, StoreError> {
    let mut meta = txn.open_table(META).map_err(fault)?;
    let format = number(&meta, META_FORMAT)?;
    match format {
        Some(FORMAT) => {
            for name in [META_REVISION, META_OLDEST, META_CLEANED] {
                if number(&meta, name)?.is_none() {
                    return Err(damaged(format!("the {name} number is missing")));
                }
            }
        }
        Some(other) => {
            return Err(damaged(format!("layout {other} is unknown, expected {FORMAT}")));
        }
        None => {
            for (name, value) in [
                (META_FORMAT, FORMAT),
                (META_REVISION, FIRST_REVISION),
                (META_OLDEST, FIRST_REVISION),
                (META_CLEANED, FIRST_REVISION),
            ] {
                meta.insert(name, value).map_err(fault)?;
            }
        }
    }
    txn.open_table(INDEX).map_err(fault)?;
    txn.open_table(VERSIONS).map_err(fault)?;
    txn.open_table(LOG).map_err(fault)?;
    txn.open_table(EXPIRY).map_err(fault)?;
    Ok(format.is_none())
}

/// The newest committed state.
pub(super) fn snapshot(db: &Database) -> Result<Snapshot, StoreError> {
    Snapshot::new(db.begin_read().map_err(fault)?)
}

/// What an opened store has still to do: whether forgotten rows are to be removed, and the
/// earliest deadline of a key.
pub(super) fn chores(db: &Database) -> Result<(bool, Option<u64>), StoreError> {
    let txn = db.begin_write().map_err(fault)?;
    let tables = Tables::open(&txn)?;
    let found = (tables.unclean()?, tables.next_deadline()?);
    drop(tables);
    txn.abort().map_err(fault)?;
    Ok(found)
}

fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<Option<u64>, StoreError> {
    Ok(meta.get(name).map_err(fault)?.map(|guard| guard.value()))
}

fn required(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, StoreError> {
    number(meta, name)?.ok_or_else(|| damaged(format!("the {name} number is missing")))
}

/// The value that revision `at` wrote.
fn load(
    log: &impl ReadableTable<u64, &'static [u8]>,
    at: Revision,
) -> Result<Option<KeyValue>, StoreError> {
    let Some(guard) = log.get(at).map_err(fault)? else {
        return Ok(None);
    };
    let row = Row::decode(guard.value(), at)?;
    if row.delete {
        return Err(damaged(format!("revision {at} should hold a value and holds a deletion")));
    }
    Ok(Some(KeyValue {
        key: Bytes::copy_from_slice(row.key),
        value: Bytes::copy_from_slice(row.value),
        create_revision: row.create_revision,
        mod_revision: at,
    }))
}

fn must_load(
    log: &impl ReadableTable<u64, &'static [u8]>,
    at: Revision,
) -> Result<KeyValue, StoreError> {
    load(log, at)?.ok_or_else(|| damaged(format!("the row of revision {at} is missing")))
}

/// Reads one consistent state.
pub(super) struct Snapshot {
    txn: ReadTransaction,
    /// Newest revision of this state.
    pub(super) revision: Revision,
    /// Oldest revision readable in this state.
    pub(super) oldest: Revision,
}

/// A stretch of replayed history.
pub(super) struct Replay {
    pub(super) changes: Vec<(Revision, Change)>,
    /// Where to go on.
    pub(super) next: Revision,
}

impl Snapshot {
    pub(super) fn new(txn: ReadTransaction) -> Result<Self, StoreError> {
        let (revision, oldest) = {
            let meta = txn.open_table(META).map_err(fault)?;
            (required(&meta, META_REVISION)?, required(&meta, META_OLDEST)?)
        };
        Ok(Snapshot { txn, revision, oldest })
    }

    fn check(&self, asked: Option<Revision>) -> Result<Revision, StoreError> {
        match asked {
            None => Ok(self.revision),
            Some(asked) if asked > self.revision => {
                Err(StoreError::Future { asked, current: self.revision })
            }
            Some(asked) if asked < self.oldest => {
                Err(StoreError::Compacted { oldest: self.oldest })
            }
            Some(asked) => Ok(asked),
        }
    }

    pub(super) fn get(
        &self,
        key: &[u8],
        revision: Option<Revision>,
    ) -> Result<Option<KeyValue>, StoreError> {
        let at = self.check(revision)?;
        let index = self.txn.open_table(INDEX).map_err(fault)?;
        let log = self.txn.open_table(LOG).map_err(fault)?;
        if let Some(guard) = index.get(key).map_err(fault)? {
            let (_, modified) = guard.value();
            if modified <= at {
                return must_load(&log, modified).map(Some);
            }
        }
        if at == self.revision {
            return Ok(None);
        }
        let versions = self.txn.open_table(VERSIONS).map_err(fault)?;
        let mut older = versions.range((key, 0)..=(key, at)).map_err(fault)?;
        let Some(entry) = older.next_back() else {
            return Ok(None);
        };
        let (found, ended) = entry.map_err(fault)?;
        if ended.value().1 <= at {
            return Ok(None);
        }
        must_load(&log, found.value().1).map(Some)
    }

    pub(super) fn list(&self, request: &ListRequest) -> Result<ListResponse, StoreError> {
        let at = self.check(request.revision)?;
        let log = self.txn.open_table(LOG).map_err(fault)?;
        let mut response = ListResponse { revision: at, ..ListResponse::default() };
        for modified in self.rows_at(request, at)? {
            response.count += 1;
            if request.limit == 0 || response.kvs.len() < request.limit {
                response.kvs.push(must_load(&log, modified)?);
            }
        }
        response.more = response.count > response.kvs.len() as u64;
        Ok(response)
    }

    /// Keys of the range with their modification revisions, and the revision of the state.
    pub(super) fn revisions(
        &self,
        request: &ListRequest,
    ) -> Result<(Revision, Vec<(Bytes, Revision)>), StoreError> {
        let at = self.check(request.revision)?;
        Ok((at, self.keys_at(request, at)?))
    }

    /// Modification revisions of the keys of the range as it was at `at`, in key order.
    fn rows_at(&self, request: &ListRequest, at: Revision) -> Result<Vec<Revision>, StoreError> {
        if at != self.revision {
            let keys = self.keys_at(request, at)?;
            return Ok(keys.into_iter().map(|(_, modified)| modified).collect());
        }
        let Some((lower, upper)) = bounds(request) else {
            return Ok(Vec::new());
        };
        let index = self.txn.open_table(INDEX).map_err(fault)?;
        let newest = index.range::<&[u8]>((as_slice(&lower), as_slice(&upper))).map_err(fault)?;
        newest.map(|entry| Ok(entry.map_err(fault)?.1.value().1)).collect()
    }

    /// The same with the keys.
    fn keys_at(
        &self,
        request: &ListRequest,
        at: Revision,
    ) -> Result<Vec<(Bytes, Revision)>, StoreError> {
        let Some((lower, upper)) = bounds(request) else {
            return Ok(Vec::new());
        };
        // The state at an older revision is the live keys that have not changed since, merged
        // with the superseded values that were in force; a key is in only one of the two.
        let index = self.txn.open_table(INDEX).map_err(fault)?;
        let newest = index.range::<&[u8]>((as_slice(&lower), as_slice(&upper))).map_err(fault)?;
        let mut keys = Vec::new();
        for entry in newest {
            let (key, row) = entry.map_err(fault)?;
            if row.value().1 <= at {
                keys.push((Bytes::copy_from_slice(key.value()), row.value().1));
            }
        }
        if at == self.revision {
            return Ok(keys);
        }
        let versions = self.txn.open_table(VERSIONS).map_err(fault)?;
        let range = (
            match as_slice(&lower) {
                Bound::Included(key) => Bound::Included((key, 0)),
                Bound::Excluded(key) => Bound::Excluded((key, u64::MAX)),
                Bound::Unbounded => Bound::Unbounded,
            },
            match as_slice(&upper) {
                Bound::Included(key) => Bound::Included((key, u64::MAX)),
                Bound::Excluded(key) => Bound::Excluded((key, 0)),
                Bound::Unbounded => Bound::Unbounded,
            },
        );
        for entry in versions.range(range).map_err(fault)? {
            let (found, row) = entry.map_err(fault)?;
            let (key, modified) = found.value();
            if modified <= at && at < row.value().1 {
                keys.push((Bytes::copy_from_slice(key), modified));
            }
        }
        keys.sort_unstable();
        Ok(keys)
    }

    /// Changes under `prefix` at revisions from `from` to `to`, at most `limit` of them and after
    /// visiting at most `scan` rows.
    pub(super) fn replay(
        &self,
        prefix: &[u8],
        from: Revision,
        to: Revision,
        limit: usize,
        scan: usize,
    ) -> Result<Replay, StoreError> {
        if from < self.oldest {
            return Err(StoreError::Compacted { oldest: self.oldest });
        }
        // The first revision is that of the empty store; nothing wrote it.
        let from = from.max(FIRST_REVISION + 1);
        let log = self.txn.open_table(LOG).map_err(fault)?;
        let mut replay = Replay { changes: Vec::new(), next: to + 1 };
        let mut bytes = 0;
        if from > to {
            return Ok(replay);
        }
        for (visited, entry) in log.range(from..=to).map_err(fault)?.enumerate() {
            let (revision, guard) = entry.map_err(fault)?;
            let revision = revision.value();
            if revision != from + visited as u64 {
                return Err(damaged(format!("the row of revision {} is missing", revision - 1)));
            }
            if visited >= scan || replay.changes.len() >= limit || bytes > REPLAY_BYTES {
                replay.next = revision;
                break;
            }
            let row = Row::decode(guard.value(), revision)?;
            if !row.key.starts_with(prefix) {
                continue;
            }
            bytes += row.value.len();
            let previous = match row.previous {
                0 => None,
                at => load(&log, at)?,
            };
            let key = Bytes::copy_from_slice(row.key);
            let change = if row.delete {
                Change::Delete { key, revision, previous }
            } else {
                let kv = KeyValue {
                    key,
                    value: Bytes::copy_from_slice(row.value),
                    create_revision: row.create_revision,
                    mod_revision: revision,
                };
                Change::Put { kv, previous }
            };
            replay.changes.push((revision, change));
        }
        Ok(replay)
    }
}

/// A stretch of replayed history stops growing at so many bytes of values.
const REPLAY_BYTES: usize = 1 << 20;

fn as_slice(bound: &Bound<Bytes>) -> Bound<&[u8]> {
    bound.as_ref().map(AsRef::as_ref)
}

/// The range a request asks for; `None` if it is empty.
fn bounds(request: &ListRequest) -> Option<(Bound<Bytes>, Bound<Bytes>)> {
    let end = prefix_end(&request.prefix);
    let upper = if end.is_empty() { Bound::Unbounded } else { Bound::Excluded(end.clone()) };
    let prefix = &request.prefix;
    let lower = match &request.start {
        Bound::Included(key) | Bound::Excluded(key) if key >= prefix => {
            if !end.is_empty() && *key >= end {
                return None;
            }
            request.start.clone()
        }
        _ => Bound::Included(prefix.clone()),
    };
    Some((lower, upper))
}

/// What one write came to inside its batch.
pub(super) enum Applied {
    Changed(Change),
    Mismatch(Option<KeyValue>),
}

/// The tables, open for the writes of one batch.
pub(super) struct Tables<'txn> {
    meta: Table<'txn, &'static str, u64>,
    index: Table<'txn, &'static [u8], (u64, u64)>,
    versions: Table<'txn, (&'static [u8], u64), (u64, u64)>,
    log: Table<'txn, u64, &'static [u8]>,
    expiry: Table<'txn, (u64, &'static [u8]), u64>,
    /// Newest revision, the batch's own writes included.
    pub(super) revision: Revision,
}

impl<'txn> Tables<'txn> {
    pub(super) fn open(txn: &'txn WriteTransaction) -> Result<Self, StoreError> {
        let open = |error: TableError| fault(error);
        let meta = txn.open_table(META).map_err(open)?;
        let revision = required(&meta, META_REVISION)?;
        Ok(Tables {
            meta,
            index: txn.open_table(INDEX).map_err(open)?,
            versions: txn.open_table(VERSIONS).map_err(open)?,
            log: txn.open_table(LOG).map_err(open)?,
            expiry: txn.open_table(EXPIRY).map_err(open)?,
            revision,
        })
    }

    /// Writes the newest revision down; the last step before the commit.
    pub(super) fn finish(mut self) -> Result<(), StoreError> {
        self.meta.insert(META_REVISION, self.revision).map_err(fault)?;
        Ok(())
    }

    fn current(&self, key: &[u8]) -> Result<Option<KeyValue>, StoreError> {
        let modified = match self.index.get(key).map_err(fault)? {
            Some(guard) => guard.value().1,
            None => return Ok(None),
        };
        must_load(&self.log, modified).map(Some)
    }

    pub(super) fn put(
        &mut self,
        key: &Bytes,
        value: &Bytes,
        expect: Expect,
        deadline_ms: Option<u64>,
    ) -> Result<Applied, StoreError> {
        let previous = self.current(key)?;
        let holds = match (&previous, expect) {
            (None, Expect::Absent) => true,
            (Some(kv), Expect::At(revision)) => kv.mod_revision == revision,
            _ => false,
        };
        if !holds {
            return Ok(Applied::Mismatch(previous));
        }
        let revision = self.revision + 1;
        let create_revision = previous.as_ref().map_or(revision, |kv| kv.create_revision);
        self.supersede(previous.as_ref(), revision)?;
        let row = Row {
            delete: false,
            create_revision,
            previous: previous.as_ref().map_or(0, |kv| kv.mod_revision),
            key,
            value,
        };
        self.log.insert(revision, row.encode().as_slice()).map_err(fault)?;
        self.index.insert(key.as_ref(), (create_revision, revision)).map_err(fault)?;
        if let Some(deadline) = deadline_ms {
            self.expiry.insert((deadline, key.as_ref()), revision).map_err(fault)?;
        }
        self.revision = revision;
        let kv = KeyValue {
            key: key.clone(),
            value: value.clone(),
            create_revision,
            mod_revision: revision,
        };
        Ok(Applied::Changed(Change::Put { kv, previous }))
    }

    pub(super) fn delete(&mut self, key: &Bytes, at: Revision) -> Result<Applied, StoreError> {
        match self.current(key)? {
            Some(kv) if kv.mod_revision == at => self.remove(kv).map(Applied::Changed),
            other => Ok(Applied::Mismatch(other)),
        }
    }

    fn remove(&mut self, kv: KeyValue) -> Result<Change, StoreError> {
        let revision = self.revision + 1;
        self.supersede(Some(&kv), revision)?;
        let row = Row {
            delete: true,
            create_revision: kv.create_revision,
            previous: kv.mod_revision,
            key: &kv.key,
            value: &[],
        };
        self.log.insert(revision, row.encode().as_slice()).map_err(fault)?;
        self.index.remove(kv.key.as_ref()).map_err(fault)?;
        self.revision = revision;
        Ok(Change::Delete { key: kv.key.clone(), revision, previous: Some(kv) })
    }

    fn supersede(&mut self, old: Option<&KeyValue>, by: Revision) -> Result<(), StoreError> {
        if let Some(kv) = old {
            self.versions
                .insert((kv.key.as_ref(), kv.mod_revision), (kv.create_revision, by))
                .map_err(fault)?;
        }
        Ok(())
    }

    /// The earliest deadline there is.
    pub(super) fn next_deadline(&self) -> Result<Option<u64>, StoreError> {
        Ok(self.expiry.first().map_err(fault)?.map(|(due, _)| due.value().0))
    }

    /// Deletes up to `limit` keys whose deadline is at or before `now_ms`.
    pub(super) fn expire(&mut self, now_ms: u64, limit: usize) -> Result<Vec<Change>, StoreError> {
        let mut due = Vec::new();
        let end: (u64, &[u8]) = (now_ms.saturating_add(1), &[]);
        for entry in self.expiry.range(..end).map_err(fault)?.take(limit) {
            let (at, revision) = entry.map_err(fault)?;
            let (deadline, key) = at.value();
            due.push((deadline, Bytes::copy_from_slice(key), revision.value()));
        }
        let mut changes = Vec::new();
        for (deadline, key, revision) in due {
            self.expiry.remove((deadline, key.as_ref())).map_err(fault)?;
            // A later write of the key has a deadline of its own, or none.
            if let Some(kv) = self.current(&key)?
                && kv.mod_revision == revision
            {
                changes.push(self.remove(kv)?);
            }
        }
        Ok(changes)
    }

    /// Makes `revision` the oldest readable one. The rows below go by [`Tables::clean`].
    pub(super) fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        let oldest = required(&self.meta, META_OLDEST)?;
        if revision > self.revision {
            return Err(StoreError::Future { asked: revision, current: self.revision });
        }
        if revision <= oldest {
            return Err(StoreError::Compacted { oldest });
        }
        self.meta.insert(META_OLDEST, revision).map_err(fault)?;
        Ok(())
    }

    pub(super) fn oldest(&self) -> Result<Revision, StoreError> {
        required(&self.meta, META_OLDEST)
    }

    /// Removes up to `limit` forgotten rows; `true` when none is left.
    pub(super) fn clean(&mut self, limit: usize) -> Result<bool, StoreError> {
        let oldest = self.oldest()?;
        let cleaned = required(&self.meta, META_CLEANED)?;
        let mut next = oldest;
        let mut doomed = Vec::new();
        for entry in self.log.range(cleaned..oldest).map_err(fault)? {
            let (revision, guard) = entry.map_err(fault)?;
            if doomed.len() == limit {
                next = revision.value();
                break;
            }
            let row = Row::decode(guard.value(), revision.value())?;
            doomed.push((revision.value(), row.delete, row.previous, row.key.to_vec()));
        }
        for (revision, delete, previous, key) in doomed {
            if previous != 0 {
                self.log.remove(previous).map_err(fault)?;
                self.versions.remove((key.as_slice(), previous)).map_err(fault)?;
            }
            if delete {
                self.log.remove(revision).map_err(fault)?;
            }
        }
        self.meta.insert(META_CLEANED, next).map_err(fault)?;
        Ok(next >= oldest)
    }

    /// Whether forgotten rows are waiting to be removed.
    pub(super) fn unclean(&self) -> Result<bool, StoreError> {
        Ok(required(&self.meta, META_CLEANED)? < self.oldest()?)
    }
}
