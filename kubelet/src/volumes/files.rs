//! Directories, tmpfs mounts and host paths.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;

/// Makes a directory with exactly these permission bits, if it is not there.
///
/// # Errors
/// The file system's.
pub fn directory(path: &Path, mode: u32) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode))
}

/// Whether something is mounted on a directory.
pub fn is_mount(path: &Path) -> bool {
    let device = |p: &Path| std::fs::symlink_metadata(p).map(|m| m.dev());
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(parent))) => own != parent,
        _ => false,
    }
}

/// Mounts a tmpfs, unless one is there.
///
/// # Errors
/// The kernel refuses.
pub fn tmpfs(path: &Path, size: Option<i64>, mode: u32) -> io::Result<()> {
    directory(path, mode)?;
    if is_mount(path) {
        return Ok(());
    }
    let options = match size {
        Some(bytes) => format!("size={bytes},mode={mode:o}"),
        None => format!("mode={mode:o}"),
    };
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
    Ok(())
}

/// Checks, and makes where the type asks for it, the path of a hostPath volume.
///
/// # Errors
/// Upstream's text for a path that is not of the type.
pub fn host_path(path: &Path, kind: &str) -> Result<(), String> {
    let fail =
        |what: &str| Err(format!("hostPath type check failed: {} is not {what}", path.display()));
    let meta = std::fs::metadata(path).ok();
    let make = |made: io::Result<()>| made.map_err(|error| error.to_string());
    match kind {
        "DirectoryOrCreate" => match meta {
            Some(meta) if !meta.is_dir() => fail("a directory"),
            Some(_) => Ok(()),
            None => make(directory(path, 0o755)),
        },
        "FileOrCreate" => {
            match meta {
                Some(meta) if !meta.is_file() => fail("a file"),
                Some(_) => Ok(()),
                None => make(std::fs::write(path, b"").and_then(|()| {
                    std::fs::set_permissions(path, PermissionsExt::from_mode(0o644))
                })),
            }
        }
        "Directory" if !meta.as_ref().is_some_and(|m| m.is_dir()) => fail("a directory"),
        "File" if !meta.as_ref().is_some_and(|m| m.is_file()) => fail("a file"),
        "Socket" if !meta.as_ref().is_some_and(|m| m.file_type().is_socket()) => {
            fail("a socket file")
        }
        "CharDevice" if !meta.as_ref().is_some_and(|m| m.file_type().is_char_device()) => {
            fail("a character device")
        }
        "BlockDevice" if !meta.as_ref().is_some_and(|m| m.file_type().is_block_device()) => {
            fail("a block device")
        }
        _ => Ok(()),
    }
}

fn open_beneath(
    base: &std::fs::File,
    path: &Path,
    flags: OFlag,
) -> io::Result<std::os::fd::OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(Mode::empty())
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    Ok(openat2(base, path, how)?)
}

/// Binds a path below a volume to `target`, without following a link out of the volume, however
/// the pod changes its files meanwhile. A missing path becomes a directory.
///
/// # Errors
/// The path leads out of the volume, or the kernel refuses.
pub fn bind_subpath(volume: &Path, subpath: &str, target: &Path) -> io::Result<()> {
    let base = std::fs::File::open(volume)?;
    let relative = Path::new(subpath);
    let source = match open_beneath(&base, relative, OFlag::O_PATH) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_beneath(&base, relative)?;
            open_beneath(&base, relative, OFlag::O_PATH)?
        }
        Err(error) => return Err(error),
    };
    let opened = PathBuf::from(format!("/proc/self/fd/{}", source.as_raw_fd()));
    let meta = std::fs::metadata(&opened)?;
    if is_mounted(target)? {
        let there = std::fs::metadata(target);
        if there.is_ok_and(|t| (t.dev(), t.ino()) == (meta.dev(), meta.ino())) {
            return Ok(());
        }
        umount2(target, MntFlags::MNT_DETACH)?;
    }
    if let Some(parent) = target.parent() {
        directory(parent, 0o750)?;
    }
    match meta.is_dir() {
        true => directory(target, 0o750)?,
        false if !target.exists() => std::fs::write(target, b"")?,
        false => {}
    }
    mount(Some(&opened), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Makes directories component by component, each opened beneath the volume.
fn make_beneath(base: &std::fs::File, path: &Path) -> io::Result<()> {
    let mode = base.metadata()?.permissions().mode();
    let mut done = PathBuf::from(".");
    for component in path.components() {
        let parent = open_beneath(base, &done, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
        let at = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(component);
        match std::fs::create_dir(&at) {
            Ok(()) => std::fs::set_permissions(&at, PermissionsExt::from_mode(mode & 0o7777))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
        done.push(component);
    }
    Ok(())
}

fn is_mounted(path: &Path) -> io::Result<bool> {
    Ok(mounts_under(path)?.iter().any(|m| m == path))
}

/// The mount points at and below a directory, deepest first.
///
/// # Errors
/// The kernel's table cannot be read.
pub fn mounts_under(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(unescape(path)))
        .filter(|path| path.starts_with(directory))
        .collect();
    found.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
    Ok(found)
}

/// The kernel writes blanks in paths as octal.
fn unescape(path: &str) -> String {
    path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Unmounts all below a pod's directory and removes it. Nothing is removed while anything is
/// still mounted there: it could be a directory of the host.
///
/// # Errors
/// A mount that does not go away.
pub fn remove(directory: &Path) -> io::Result<()> {
    for path in mounts_under(directory)? {
        umount2(&path, MntFlags::MNT_DETACH)?;
    }
    if let Some(left) = mounts_under(directory)?.first() {
        return Err(io::Error::other(format!("{} is still mounted", left.display())));
    }
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
