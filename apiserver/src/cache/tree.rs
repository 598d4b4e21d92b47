//! An ordered set of objects by key whose copies are cheap: a copy shares everything, and a change
//! copies one chunk and the list of chunks (some microseconds for a hundred thousand objects).

use std::ops::Bound;
use std::sync::Arc;

use super::object::Cached;

/// Objects in a chunk, at most.
const CHUNK: usize = 256;

type Chunk = Vec<Arc<Cached>>;

/// Objects ordered by key.
#[derive(Clone, Default)]
pub struct Tree {
    chunks: Arc<Vec<Arc<Chunk>>>,
    len: usize,
}

/// A place between two objects.
#[derive(Clone, Copy)]
struct Place {
    chunk: usize,
    at: usize,
}

impl Tree {
    /// From objects in the order of their keys.
    pub fn from_sorted(objects: Vec<Arc<Cached>>) -> Self {
        let len = objects.len();
        let mut chunks = Vec::with_capacity(len.div_ceil(CHUNK / 2));
        let mut objects = objects.into_iter();
        loop {
            let chunk: Chunk = objects.by_ref().take(CHUNK / 2).collect();
            if chunk.is_empty() {
                return Self { chunks: Arc::new(chunks), len };
            }
            chunks.push(Arc::new(chunk));
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The chunk that holds a key or would hold it.
    fn chunk_of(&self, key: &str) -> usize {
        let after = self.chunks.partition_point(|c| c.first().is_some_and(|o| *o.key <= *key));
        after.saturating_sub(1)
    }

    fn find(&self, key: &str) -> Result<Place, Place> {
        let chunk = self.chunk_of(key);
        let Some(objects) = self.chunks.get(chunk) else { return Err(Place { chunk, at: 0 }) };
        match objects.binary_search_by(|o| (*o.key).cmp(key)) {
            Ok(at) => Ok(Place { chunk, at }),
            Err(at) => Err(Place { chunk, at }),
        }
    }

    pub fn get(&self, key: &str) -> Option<&Arc<Cached>> {
        let place = self.find(key).ok()?;
        self.chunks.get(place.chunk)?.get(place.at)
    }

    /// Puts an object in, and gives back what stood under its key.
    pub fn insert(&mut self, object: Arc<Cached>) -> Option<Arc<Cached>> {
        let found = self.find(&object.key);
        let chunks = Arc::make_mut(&mut self.chunks);
        match found {
            Ok(place) => {
                let slot = Arc::make_mut(chunks.get_mut(place.chunk)?).get_mut(place.at)?;
                Some(std::mem::replace(slot, object))
            }
            Err(place) => {
                self.len += 1;
                let Some(chunk) = chunks.get_mut(place.chunk) else {
                    chunks.push(Arc::new(vec![object]));
                    return None;
                };
                let chunk = Arc::make_mut(chunk);
                chunk.insert(place.at, object);
                if chunk.len() > CHUNK {
                    // Keys mostly come in order: the first half stays almost full then.
                    let upper = chunk.split_off(CHUNK / 2);
                    chunks.insert(place.chunk + 1, Arc::new(upper));
                }
                None
            }
        }
    }

    pub fn remove(&mut self, key: &str) -> Option<Arc<Cached>> {
        let place = self.find(key).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(chunks.get_mut(place.chunk)?);
        let removed = chunk.remove(place.at);
        if chunk.is_empty() {
            chunks.remove(place.chunk);
        }
        self.len -= 1;
        Some(removed)
    }

    /// The first place whose key is not below `key` (above it, when `after`).
    fn lower(&self, key: &str, after: bool) -> Place {
        match self.find(key) {
            Ok(place) if after => Place { at: place.at + 1, ..place },
            Ok(place) | Err(place) => place,
        }
    }

    /// All objects, in order.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Cached>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    fn end_of(&self, prefix: &str) -> Place {
        match store::prefix_end(prefix.as_bytes()) {
            end if end.is_empty() => Place { chunk: self.chunks.len(), at: 0 },
            // Prefixes end in an ASCII slash, so that the next text is UTF-8 too.
            end => match std::str::from_utf8(&end) {
                Ok(end) => self.lower(end, false),
                Err(_) => Place { chunk: self.chunks.len(), at: 0 },
            },
        }
    }

    fn places(&self, prefix: &str, start: Bound<&str>) -> (Place, Place) {
        let begin = match start {
            Bound::Unbounded => self.lower(prefix, false),
            Bound::Included(key) => self.lower(key.max(prefix), false),
            Bound::Excluded(key) if key < prefix => self.lower(prefix, false),
            Bound::Excluded(key) => self.lower(key, true),
        };
        (begin, self.end_of(prefix))
    }

    /// Objects whose keys begin with `prefix`, from `start` on, in order.
    pub fn range<'a>(
        &'a self,
        prefix: &str,
        start: Bound<&str>,
    ) -> impl Iterator<Item = &'a Arc<Cached>> + 'a {
        let (begin, end) = self.places(prefix, start);
        let last = end.chunk.min(self.chunks.len().saturating_sub(1));
        (begin.chunk..=last).flat_map(move |i| {
            let chunk: &[Arc<Cached>] = self.chunks.get(i).map_or(&[], |c| c.as_slice());
            let from = if i == begin.chunk { begin.at.min(chunk.len()) } else { 0 };
            let to = if i == end.chunk { end.at.min(chunk.len()) } else { chunk.len() };
            chunk.get(from..to.max(from)).unwrap_or_default()
        })
    }

    /// How many objects `range` would give.
    pub fn count(&self, prefix: &str, start: Bound<&str>) -> usize {
        let (begin, end) = self.places(prefix, start);
        let upto = |place: Place| -> usize {
            let before: usize = self.chunks.iter().take(place.chunk).map(|c| c.len()).sum();
            before + place.at
        };
        upto(end).saturating_sub(upto(begin))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn object(key: &str, revision: u64) -> Arc<Cached> {
        Arc::new(Cached::new(key, revision, revision, bytes::Bytes::new()))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn behaves_as_a_plain_map(ops in prop::collection::vec((0u16..600, any::<bool>()), 0..1500)) {
            let (mut tree, mut twin) = (Tree::default(), BTreeMap::new());
            let mut cut = None;
            for (i, (n, put)) in ops.iter().enumerate() {
                let key = format!("ns{}/{n:03}", n % 3);
                let revision = i as u64 + 1;
                if i == ops.len() / 2 {
                    cut = Some((tree.clone(), twin.clone()));
                }
                if *put {
                    let old = tree.insert(object(&key, revision)).map(|o| o.revision);
                    prop_assert_eq!(old, twin.insert(key, revision));
                } else {
                    let old = tree.remove(&key).map(|o| o.revision);
                    prop_assert_eq!(old, twin.remove(&key));
                }
            }
            let cuts = cut.into_iter().chain([(tree, twin)]);
            for (tree, twin) in cuts {
                prop_assert_eq!(tree.len(), twin.len());
                for prefix in ["", "ns0/", "ns1/", "ns2/", "ns3/"] {
                    for start in [Bound::Unbounded, Bound::Included("ns1/100"), Bound::Excluded("ns1/301")] {
                        let after = |k: &str| match start {
                            Bound::Unbounded => true,
                            Bound::Included(s) => k >= s,
                            Bound::Excluded(s) => k > s,
                        };
                        let want: Vec<u64> = twin.iter()
                            .filter(|(k, _)| k.starts_with(prefix) && after(k))
                            .map(|(_, r)| *r).collect();
                        let got: Vec<u64> = tree.range(prefix, start).map(|o| o.revision).collect();
                        prop_assert_eq!(tree.count(prefix, start), want.len());
                        prop_assert_eq!(got, want);
                    }
                }
            }
        }
    }
}
