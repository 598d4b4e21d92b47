//! Gives a volume to a pod's `fsGroup`.

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown};
use std::path::Path;

/// Makes everything below `path` belong to the group and be writable (or only readable) by it;
/// directories hand the group on.
///
/// # Errors
/// The file system's.
pub fn give(path: &Path, group: u32, read_only: bool) -> io::Result<()> {
    let meta = path.symlink_metadata()?;
    if meta.file_type().is_symlink() {
        return lchown(path, None, Some(group));
    }
    if meta.gid() != group {
        lchown(path, None, Some(group))?;
    }
    let mut add = if read_only { 0o440 } else { 0o660 };
    if meta.is_dir() {
        // The group may enter, and new files belong to it.
        add |= 0o2110;
    }
    let mode = meta.permissions().mode();
    if mode & add != add {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode | add))?;
    }
    if meta.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give(&entry?.path(), group, read_only)?;
        }
    }
    Ok(())
}
