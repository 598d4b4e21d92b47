//! Files that are there wholly or not at all, whenever a process or the machine ends.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Writes a file with this mode in the place of the one that is there, durably. Its folder must
/// exist.
///
/// # Errors
/// The file system's; nothing half-made is left behind.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = path.with_file_name(name);
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&fresh)
        .and_then(|mut file| {
            // One that a killed process left may have another mode, and the umask has its say.
            file.set_permissions(PermissionsExt::from_mode(mode))?;
            file.write_all(content)?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&fresh, path))
        .and_then(|()| sync_folder_of(path));
    if written.is_err() {
        // The first error is the one to show.
        let _ = fs::remove_file(&fresh);
    }
    written
}

/// Makes what was done to the entry of a file (made, renamed) durable.
///
/// # Errors
/// The file system's.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
