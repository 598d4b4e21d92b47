//! Whether a cache holds what the store holds at the same revision (KEP-4988): an event that was
//! lost or taken in wrongly would otherwise stay unseen for as long as the server runs.
//!
//! Upstream compares digests of a list from each side; here both sides are at hand, so that keys and
//! revisions are compared themselves, and values need not be read.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use store::{Revision, StoreError};

use super::{Cache, Tree};

/// Upstream's period.
pub(super) const EVERY: Duration = Duration::from_secs(300);

/// How the checks of a cache have ended, in upstream's terms.
#[derive(Debug, Default)]
pub struct Checks {
    success: AtomicU64,
    failure: AtomicU64,
    error: AtomicU64,
}

impl Checks {
    /// How many ended in which way.
    pub fn counts(&self) -> [(&'static str, u64); 3] {
        let all = [("success", &self.success), ("failure", &self.failure), ("error", &self.error)];
        all.map(|(status, count)| (status, count.load(Ordering::Relaxed)))
    }
}

impl Cache {
    /// How the checks have ended.
    pub fn checks(&self) -> &Checks {
        &self.checks
    }

    /// Holds the cache to the store; whether it must begin anew.
    pub(super) async fn is_wrong(&self) -> bool {
        let cut = self.cut();
        let at = Some(cut.revision);
        let (count, wrong) = match self.store.revisions(self.prefix.clone().into(), at).await {
            Ok((_, held)) => match difference(&self.prefix, &cut.objects, &held) {
                None => (&self.checks.success, None),
                Some(what) => (&self.checks.failure, Some(what)),
            },
            // A store that was set back to an earlier state.
            Err(error @ StoreError::Future { .. }) => {
                (&self.checks.failure, Some(error.to_string()))
            }
            Err(error) => {
                tracing::warn!(prefix = self.prefix, %error, "cannot check the cache");
                (&self.checks.error, None)
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        let Some(what) = wrong else { return false };
        let revision = cut.revision;
        tracing::error!(prefix = self.prefix, revision, what, "the cache differs from the store");
        true
    }
}

/// The first difference between a cache's objects and what the store holds, in words.
fn difference(prefix: &str, objects: &Tree, held: &[(Bytes, Revision)]) -> Option<String> {
    let mut cached = objects.all().map(|object| (&*object.key, object.revision));
    let mut stored = held.iter().filter_map(|(key, revision)| {
        // A key that is no text is not an object's.
        Some((std::str::from_utf8(key.get(prefix.len()..)?).ok()?, *revision))
    });
    loop {
        match (cached.next(), stored.next()) {
            (None, None) => return None,
            (Some(cached), Some(stored)) if cached == stored => {}
            (cached, stored) => {
                let side = |side: Option<(&str, Revision)>| match side {
                    Some((key, revision)) => format!("{key} at {revision}"),
                    None => "no more".to_owned(),
                };
                return Some(format!("cached: {}; stored: {}", side(cached), side(stored)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::Cached;
    use super::*;

    #[test]
    fn a_difference_is_named() {
        let cached = [("a/1", 3), ("a/2", 5)];
        let objects = cached.map(|(key, at)| Arc::new(Cached::new(key, at, at, Bytes::new())));
        let objects = Tree::from_sorted(objects.to_vec());
        type Case<'a> = (&'a [(&'a [u8], Revision)], Option<&'a str>);
        let cases: [Case<'_>; 6] = [
            (&[(b"/p/a/1", 3), (b"/p/a/2", 5)], None),
            (&[(b"/p/a/1", 3), (b"/p/\xff", 4), (b"/p/a/2", 5)], None),
            (&[(b"/p/a/1", 3)], Some("cached: a/2 at 5; stored: no more")),
            (&[(b"/p/a/1", 3), (b"/p/a/2", 4)], Some("cached: a/2 at 5; stored: a/2 at 4")),
            (&[(b"/p/a/0", 2), (b"/p/a/1", 3)], Some("cached: a/1 at 3; stored: a/0 at 2")),
            (&[], Some("cached: a/1 at 3; stored: no more")),
        ];
        for (held, want) in cases {
            let held: Vec<_> =
                held.iter().map(|(key, at)| (Bytes::copy_from_slice(key), *at)).collect();
            assert_eq!(difference("/p/", &objects, &held).as_deref(), want, "{held:?}");
        }
    }
}
