//! Where pairs are kept: `PREFIX-DATE.pem` each, with `PREFIX-current.pem` pointing to the one in
//! use (upstream: `client-go/util/certificate/certificate_store.go`).

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use component::files;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::pair::Pair;

/// Pairs of one purpose.
#[derive(Clone, Debug)]
pub struct Store {
    directory: PathBuf,
    prefix: &'static str,
    /// Certificate and key that somebody else keeps, for the beginning.
    given: Option<(PathBuf, PathBuf)>,
}

impl Store {
    /// Finishes what an earlier process was killed at.
    ///
    /// # Errors
    /// Names the file that is not what it should be.
    pub fn open(
        directory: &Path,
        prefix: &'static str,
        given: Option<(PathBuf, PathBuf)>,
    ) -> anyhow::Result<Self> {
        // The link is followed from other places too.
        let directory = std::path::absolute(directory).context("--cert-dir")?;
        let store = Self { directory, prefix, given };
        let (current, updated) = (store.current_path(), store.path("updated"));
        if !exists(&current)? && is_link(&updated)? {
            std::fs::rename(&updated, &current).with_context(|| current.display().to_string())?;
        }
        Ok(store)
    }

    fn path(&self, qualifier: &str) -> PathBuf {
        self.directory.join(format!("{}-{qualifier}.pem", self.prefix))
    }

    /// The file with the pair in use, certificates and key in one; a link.
    pub fn current_path(&self) -> PathBuf {
        self.path("current")
    }

    /// The pair in use, expired or not.
    ///
    /// # Errors
    /// Names the file that cannot be read.
    pub fn current(&self) -> anyhow::Result<Option<Pair>> {
        let bare = |ending: &str| self.directory.join(format!("{}.{ending}", self.prefix));
        let current = (self.current_path(), self.current_path());
        let places = [Some(current), self.given.clone(), Some((bare("crt"), bare("key")))];
        for (certificate, key) in places.into_iter().flatten() {
            if !exists(&certificate)? || !exists(&key)? {
                continue;
            }
            let read = |path: &Path| {
                std::fs::read_to_string(path).with_context(|| path.display().to_string())
            };
            let pair = Pair::read(&read(&certificate)?, &read(&key)?);
            let whence = || format!("certificate {}, key {}", certificate.display(), key.display());
            return pair.with_context(whence).map(Some);
        }
        Ok(None)
    }

    /// Keeps a pair, which is the one in use from then on.
    ///
    /// # Errors
    /// It is no pair, or cannot be written; then the one before is still in use.
    pub fn update(&self, certificates: &str, key: &str, now: Timestamp) -> anyhow::Result<Pair> {
        let pair = Pair::read(certificates, key)?;
        let whence = || format!("cannot keep a certificate in {}", self.directory.display());
        std::fs::create_dir_all(&self.directory).with_context(whence)?;
        let (current, updated) = (self.current_path(), self.path("updated"));
        // Somebody's file is not replaced by a link.
        is_link(&current)?;
        if is_link(&updated)? {
            std::fs::remove_file(&updated).with_context(whence)?;
        }
        let date = now.to_zoned(TimeZone::system()).strftime("%Y-%m-%d-%H-%M-%S").to_string();
        let fresh = self.path(&date);
        let text = format!("{}{}", pair.chain, pair.key);
        files::write(&fresh, text.as_bytes(), 0o600).with_context(whence)?;
        std::os::unix::fs::symlink(&fresh, &updated).with_context(whence)?;
        std::fs::rename(&updated, &current).with_context(whence)?;
        files::sync_folder_of(&current).with_context(whence)?;
        Ok(pair)
    }
}

/// Whether there is a file, where the path leads.
fn exists(path: &Path) -> anyhow::Result<bool> {
    path.try_exists().with_context(|| path.display().to_string())
}

/// Whether there is a link.
///
/// # Errors
/// There is something else.
fn is_link(path: &Path) -> anyhow::Result<bool> {
    match path.symlink_metadata() {
        Ok(meta) if meta.is_symlink() => Ok(true),
        Ok(_) => bail!("expected {path:?} to be a symlink but it is a file"),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::tests::Authority;
    use super::*;

    #[test]
    fn pairs_are_kept_and_found_again() {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Authority::new());
        let pki = dir.path().join("pki");
        let store = Store::open(&pki, "kubelet-client", None).unwrap();
        assert!(store.current().unwrap().is_none());
        let now: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let until = now + jiff::SignedDuration::from_hours(1);
        let (first, second) = (ca.pair("a", now, until), ca.pair("a", now, until));
        for (pair, at) in [(&first, now), (&second, now + jiff::SignedDuration::from_secs(1))] {
            store.update(&pair.0, &pair.1, at).unwrap();
            let kept = store.current().unwrap().unwrap();
            assert_eq!((&kept.chain, &kept.key), (&pair.0, &pair.1));
        }
        let current = store.current_path();
        let target = std::fs::read_link(&current).unwrap();
        let name = target.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("kubelet-client-2026-01-0") && name.ends_with(".pem"), "{name}");
        assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
        // Another's key changes nothing.
        assert!(store.update(&first.0, &second.1, now).is_err());
        assert_eq!(store.current().unwrap().unwrap().chain, second.0);
        assert_eq!(std::fs::read_dir(&pki).unwrap().count(), 3);
    }

    #[test]
    fn what_was_interrupted_is_finished() {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Authority::new());
        let open = || Store::open(dir.path(), "kubelet-server", None);
        let now = Timestamp::UNIX_EPOCH;
        let pair = ca.pair("a", now, now + jiff::SignedDuration::from_hours(1));
        open().unwrap().update(&pair.0, &pair.1, now).unwrap();
        let link = |name: &str| dir.path().join(format!("kubelet-server-{name}.pem"));
        // Upstream removes the one before it renames the other.
        std::fs::rename(link("current"), link("updated")).unwrap();
        assert!(open().unwrap().current().unwrap().is_some());
        // What was about to replace it is left from before.
        symlink("/nowhere", link("updated")).unwrap();
        let store = open().unwrap();
        assert!(store.current().unwrap().is_some());
        store.update(&pair.0, &pair.1, now).unwrap();
        assert!(!link("updated").is_symlink());
        // Nothing of somebody else's is overwritten.
        std::fs::remove_file(link("current")).unwrap();
        std::fs::write(link("current"), "mine").unwrap();
        assert!(store.current().is_err());
        let error = store.update(&pair.0, &pair.1, now).unwrap_err().to_string();
        assert!(error.contains("to be a symlink but it is a file"), "{error}");
    }

    #[test]
    fn others_pairs_will_do_for_the_beginning() {
        let (dir, ca) = (tempfile::tempdir().unwrap(), Authority::new());
        let now = Timestamp::UNIX_EPOCH;
        let pair = |node: &str| ca.pair(node, now, now + jiff::SignedDuration::from_hours(1));
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let given = pair("given");
        let given = (write("tls.crt", &given.0), write("tls.key", &given.1));
        let store = Store::open(dir.path(), "kubelet-server", Some(given)).unwrap();
        let name = || store.current().unwrap().unwrap().leaf.common_name;
        let bare = pair("bare");
        write("kubelet-server.crt", &bare.0);
        write("kubelet-server.key", &bare.1);
        assert_eq!(name(), "system:node:given");
        std::fs::remove_file(dir.path().join("tls.key")).unwrap();
        assert_eq!(name(), "system:node:bare");
        let own = pair("own");
        store.update(&own.0, &own.1, now).unwrap();
        assert_eq!(name(), "system:node:own");
    }
}
