//! Reading and writing files, with their paths in the errors.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::Context;

/// Reads a text file.
///
/// # Errors
/// Names the file.
pub fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Makes a folder that only root can enter, and those above it.
///
/// # Errors
/// Names the folder.
pub fn make_dir(path: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .with_context(|| path.display().to_string())
}

/// Writes a file with mode 0600: wholly or not at all, and durably.
///
/// # Errors
/// Names the file.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    write(path, text, 0o600)
}

/// Writes a file that everybody may read, wholly or not at all.
///
/// # Errors
/// Names the file.
pub fn write_public(path: &Path, text: &str) -> anyhow::Result<()> {
    write(path, text, 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let whence = || path.display().to_string();
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = path.with_file_name(name);
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&fresh)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| fs::rename(&fresh, path));
    if written.is_err() {
        // Nothing half-made is left behind; the first error is the one to show.
        let _ = fs::remove_file(&fresh);
    }
    written.with_context(whence)
}

/// Writes a file only if its content differs; returns whether it did.
///
/// # Errors
/// Names the file.
pub fn update_public(path: &Path, text: &str) -> anyhow::Result<bool> {
    if fs::read_to_string(path).is_ok_and(|have| have == text) {
        return Ok(false);
    }
    write_public(path, text)?;
    Ok(true)
}
