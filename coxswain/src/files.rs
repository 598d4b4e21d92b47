//! Reading and writing files, with their paths in the errors.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
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
    if let Some(dir) = path.parent() {
        make_dir(dir)?;
    }
    component::files::write(path, text.as_bytes(), mode).with_context(|| path.display().to_string())
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
