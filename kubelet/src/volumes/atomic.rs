//! Directories whose files change all at once: the files are in a directory named by the time,
//! `..data` points to it, and what the containers see are links through `..data`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path};

use jiff::Timestamp;

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// A file of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// Owner, where it is not root.
    pub uid: Option<u32>,
}

/// Files by their path below the volume.
pub type Payload = BTreeMap<String, File>;

/// Makes `directory` show exactly `payload`. Whether anything changed.
///
/// `own` is called for the new files' directory before it becomes visible.
///
/// # Errors
/// A path that would leave the directory, or the file system's.
pub fn write(
    directory: &Path,
    payload: &Payload,
    now: Timestamp,
    own: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<bool> {
    for path in payload.keys() {
        check(path)?;
    }
    let link = directory.join(DATA);
    let old = std::fs::read_link(&link).ok();
    if let Some(old) = &old
        && same(&directory.join(old), payload)
    {
        publish(directory, payload)?;
        return Ok(false);
    }
    let fresh = format!("..{}", now.strftime("%Y_%m_%d_%H_%M_%S.%N"));
    let fresh_path = directory.join(&fresh);
    std::fs::create_dir_all(&fresh_path)?;
    std::fs::set_permissions(&fresh_path, PermissionsExt::from_mode(0o755))?;
    for (path, file) in payload {
        let target = fresh_path.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(&target, &file.data)?;
        // Not by the creation mode: the umask would have its say.
        std::fs::set_permissions(&target, PermissionsExt::from_mode(file.mode))?;
        if file.uid.is_some() {
            std::os::unix::fs::chown(&target, file.uid, None)?;
        }
    }
    own(&fresh_path)?;
    let temporary = directory.join(DATA_TMP);
    if temporary.symlink_metadata().is_ok() {
        std::fs::remove_file(&temporary)?;
    }
    symlink(&fresh, &temporary)?;
    std::fs::rename(&temporary, &link)?;
    publish(directory, payload)?;
    // What no longer is pointed to, this time's or a broken earlier one's.
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("..") && name != DATA && name != fresh.as_str() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(true)
}

fn check(path: &str) -> io::Result<()> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    match plain && !path.is_empty() && !path.starts_with("..") {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("invalid path: must be relative and may not contain '..': {path:?}"),
        )),
    }
}

/// Links for the first component of each path, and none besides.
fn publish(directory: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().map(|p| p.split('/').next().unwrap_or(p)).collect();
    for name in &wanted {
        let link = directory.join(name);
        if link.symlink_metadata().is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(&*name) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn same(directory: &Path, payload: &Payload) -> bool {
    let mut found = 0;
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&next) else { return false };
        for entry in entries.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                pending.push(path);
                continue;
            }
            let relative = path.strip_prefix(directory).unwrap_or(&path);
            let Some(file) = payload.get(&*relative.to_string_lossy()) else { return false };
            if std::fs::read(&path).ok().as_ref() != Some(&file.data) {
                return false;
            }
            found += 1;
        }
    }
    found == payload.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.into(), mode: 0o640, uid: None };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn files_change_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let none = |_: &Path| Ok(());
        let read = |p: &str| std::fs::read_to_string(dir.path().join(p)).ok();
        let first = payload(&[("a", "1"), ("d/b", "2")]);
        assert!(write(dir.path(), &first, at(1), none).unwrap());
        assert_eq!((read("a").as_deref(), read("d/b").as_deref()), (Some("1"), Some("2")));
        assert!(!write(dir.path(), &first, at(2), none).unwrap(), "nothing changed");
        let second = payload(&[("a", "3"), ("c", "4")]);
        assert!(write(dir.path(), &second, at(3), none).unwrap());
        assert_eq!((read("a").as_deref(), read("c").as_deref()), (Some("3"), Some("4")));
        assert_eq!(read("d/b"), None);
        let names = std::fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(names, 4, "..data, its target, a, c");
        let mode = std::fs::metadata(dir.path().join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
    }

    #[test]
    fn paths_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["../x", "/x", "..x", "a/../b", ""] {
            assert!(write(dir.path(), &payload(&[(bad, "")]), at(1), |_| Ok(())).is_err(), "{bad}");
        }
    }
}
