//! Opening and creating the file, and saying clearly what is wrong with it.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redb::backends::FileBackend;
use redb::{BackendError, Builder, Database, DatabaseError, StorageBackend, StorageError};

use super::layout;
use crate::StoreError;

/// How the database under the engine is opened, also again after a failure.
pub(super) struct Opener {
    /// Names the store in errors.
    pub(super) name: String,
    /// Set for good when the storage failed to sync: what the system then shows of the file may
    /// not be what is on the disk, so nothing may be built upon it.
    pub(super) sync_failed: Arc<AtomicBool>,
    open: Box<dyn Fn() -> Result<Database, StoreError> + Send>,
    size: Box<dyn Fn() -> io::Result<u64> + Send + Sync>,
}

/// How much memory the page cache may take, and whether to verify the whole file.
#[derive(Clone, Copy)]
pub(super) struct Tuning {
    pub(super) cache_bytes: usize,
    pub(super) verify: bool,
}

type Size = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;

impl Opener {
    /// A store in the file `path`, made if there is none.
    pub(super) fn file(path: &Path, tuning: Tuning) -> Self {
        let sync_failed = Arc::new(AtomicBool::new(false));
        let (path, flag) = (path.to_owned(), sync_failed.clone());
        let measured = path.clone();
        Opener {
            name: path.display().to_string(),
            sync_failed,
            open: Box::new(move || open_file(&path, tuning, &flag)),
            size: Box::new(move || Ok(std::fs::metadata(&measured)?.len())),
        }
    }

    /// A store in whatever `make` gives, which must be the same storage each time.
    pub(super) fn backend<B: StorageBackend>(
        make: impl Fn() -> B + Send + Sync + Clone + 'static,
        tuning: Tuning,
    ) -> Self {
        let sync_failed = Arc::new(AtomicBool::new(false));
        let flag = sync_failed.clone();
        let measured = make.clone();
        Opener {
            name: "storage".into(),
            sync_failed,
            open: Box::new(move || open_backend(make(), tuning, &flag, "storage")),
            size: Box::new(move || {
                let storage = measured();
                storage.len().map_err(|error| io::Error::other(format!("{error:?}")))
            }),
        }
    }

    pub(super) fn open(&self) -> Result<Database, StoreError> {
        if self.sync_failed.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable(format!(
                "{}: the disk failed to sync; restart once it is sound",
                self.name
            )));
        }
        (self.open)()
    }

    /// Takes out the function that measures the storage.
    pub(super) fn take_size(&mut self) -> Size {
        std::mem::replace(&mut self.size, Box::new(|| Ok(0)))
    }
}

fn open_file(path: &Path, tuning: Tuning, flag: &Arc<AtomicBool>) -> Result<Database, StoreError> {
    let name = path.display().to_string();
    let unreadable = |error: io::Error| StoreError::Unavailable(format!("{name}: {error}"));
    let opened = OpenOptions::new().read(true).write(true).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_file(path, tuning)?;
            OpenOptions::new().read(true).write(true).open(path).map_err(unreadable)?
        }
        other => other.map_err(unreadable)?,
    };
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(StoreError::Unavailable(format!("{name}: is not a regular file")));
    }
    if metadata.len() == 0 {
        return Err(StoreError::Damaged(format!("{name}: the file is empty")));
    }
    let backend = FileBackend::new(file).map_err(|error| wrap(&name, error))?;
    open_backend(backend, tuning, flag, &name)
}

/// Makes a complete store under another name and moves it into place, so that a crash leaves
/// either no file or a usable one.
fn create_file(path: &Path, tuning: Tuning) -> Result<(), StoreError> {
    let name = path.display().to_string();
    let unreadable = |error: io::Error| StoreError::Unavailable(format!("{name}: {error}"));
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".new.{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unreadable(error)),
        _ => {}
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)
        .map_err(unreadable)?;
    let made = FileBackend::new(file)
        .map_err(|error| wrap(&name, error))
        .and_then(|backend| open_backend(backend, tuning, &Arc::default(), &name))
        .and_then(|db| db.close().map_err(|error| wrap(&name, error)));
    // A link never replaces a store that another process has just put there.
    let linked = made.and_then(|()| match std::fs::hard_link(&fresh, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.map_err(unreadable),
    });
    let removed = std::fs::remove_file(&fresh).map_err(unreadable);
    linked?;
    removed?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(unreadable)
}

fn open_backend<B: StorageBackend>(
    backend: B,
    tuning: Tuning,
    flag: &Arc<AtomicBool>,
    name: &str,
) -> Result<Database, StoreError> {
    let backend = Guarded { inner: backend, sync_failed: flag.clone() };
    // The engine asserts on some kinds of damage; to the caller these are damage like any other.
    let opened = catch_unwind(AssertUnwindSafe(|| {
        let db = Builder::new()
            .set_cache_size(tuning.cache_bytes)
            .set_check_integrity_on_open(tuning.verify)
            .create_with_backend(backend)
            .map_err(|error| wrap(name, error))?;
        let txn = db.begin_write().map_err(layout::fault)?;
        let new = layout::initialize(&txn)?;
        if new {
            txn.commit().map_err(layout::fault)?;
        } else {
            txn.abort().map_err(layout::fault)?;
        }
        Ok(db)
    }));
    match opened {
        Ok(result) => result.map_err(|error| named(name, error)),
        Err(panic) => {
            let what = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown");
            Err(StoreError::Damaged(format!("{name}: {what}")))
        }
    }
}

fn wrap(name: &str, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            StoreError::Unavailable(format!("{name}: is in use by another process"))
        }
        DatabaseError::Storage(StorageError::Io(error))
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData
                    | io::ErrorKind::UnexpectedEof
                    | io::ErrorKind::InvalidInput
            ) =>
        {
            StoreError::Damaged(format!("{name}: {error}"))
        }
        error => named(name, layout::fault(error)),
    }
}

/// Puts the store's name in front of what is wrong with it.
pub(super) fn named(name: &str, error: StoreError) -> StoreError {
    let add = |what: String| if what.starts_with(name) { what } else { format!("{name}: {what}") };
    match error {
        StoreError::Damaged(what) => StoreError::Damaged(add(what)),
        StoreError::Unavailable(what) => StoreError::Unavailable(add(what)),
        other => other,
    }
}

/// Passes everything through and remembers whether a sync failed.
#[derive(Debug)]
struct Guarded<B> {
    inner: B,
    sync_failed: Arc<AtomicBool>,
}

impl<B: StorageBackend> StorageBackend for Guarded<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data().inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}
