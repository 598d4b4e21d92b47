//! How much the kernel tracks: connections at once, and how long idle ones are remembered. Upstream's
//! settings of `conntrack`, which only ever raise what the kernel has.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// 0 leaves what the kernel has, in all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections for each core, but at least `min`.
    pub per_core: u32,
    pub min: u32,
    /// Seconds, here and below.
    pub tcp_established: u64,
    pub tcp_close_wait: u64,
    pub tcp_be_liberal: bool,
    pub udp: u64,
    pub udp_stream: u64,
}

/// A number to be raised, below `/proc/sys/net/netfilter`.
type Setting = (&'static str, u64);

const MAX: &str = "nf_conntrack_max";

impl Limits {
    /// What to raise, on a machine with so many cores.
    fn settings(&self, cores: u64) -> Vec<Setting> {
        let max = match u64::from(self.per_core) {
            0 => 0,
            per_core => (per_core * cores).max(u64::from(self.min)),
        };
        let all = [
            (MAX, max),
            ("nf_conntrack_tcp_timeout_established", self.tcp_established),
            ("nf_conntrack_tcp_timeout_close_wait", self.tcp_close_wait),
            ("nf_conntrack_tcp_be_liberal", u64::from(self.tcp_be_liberal)),
            ("nf_conntrack_udp_timeout", self.udp),
            ("nf_conntrack_udp_timeout_stream", self.udp_stream),
        ];
        all.into_iter().filter(|(_, value)| *value > 0).collect()
    }

    /// Raises what is lower.
    ///
    /// # Errors
    /// Names the file that cannot be written. In a network namespace that is not the machine's own,
    /// that is `nf_conntrack_max`: whoever runs there sets `maxPerCore` to 0, as with upstream's.
    pub fn raise(&self) -> anyhow::Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        self.raise_in(Path::new("/proc/sys/net/netfilter"), Path::new(HASH_SIZE), cores)
    }

    fn raise_in(&self, folder: &Path, buckets: &Path, cores: u64) -> anyhow::Result<()> {
        for (name, wanted) in self.settings(cores) {
            raise(&folder.join(name), wanted)?;
            if name == MAX
                && let Err(error) = raise(buckets, wanted / 4)
            {
                // Some runtimes mount /sys so: fewer buckets are slower, and that is all.
                if !is_read_only(&error) {
                    return Err(error);
                }
                tracing::warn!(
                    error = format!("{error:#}"),
                    "conntrack: fewer buckets than wanted"
                );
            }
        }
        Ok(())
    }
}

/// Buckets of the kernel's table: a quarter of the connections.
const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";

fn is_read_only(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|e| e.kind() == std::io::ErrorKind::ReadOnlyFilesystem)
}

fn raise(path: &Path, wanted: u64) -> anyhow::Result<()> {
    let whence = |what: &str, path: &PathBuf| format!("cannot {what} {}", path.display());
    let path = path.to_path_buf();
    let text = std::fs::read_to_string(&path).with_context(|| whence("read", &path))?;
    let Ok(have) = text.trim().parse::<u64>() else {
        bail!("{}: {:?} is not a number", path.display(), text.trim());
    };
    if have < wanted {
        tracing::info!(path = %path.display(), have, wanted, "raised");
        std::fs::write(&path, wanted.to_string()).with_context(|| whence("write", &path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPSTREAM: Limits = Limits {
        per_core: 32_768,
        min: 131_072,
        tcp_established: 86_400,
        tcp_close_wait: 3600,
        tcp_be_liberal: false,
        udp: 0,
        udp_stream: 0,
    };

    #[test]
    fn the_table_grows_with_the_cores() {
        let max = |limits: Limits, cores| {
            limits.settings(cores).into_iter().find(|(name, _)| *name == MAX).map(|(_, n)| n)
        };
        assert_eq!(max(UPSTREAM, 2), Some(131_072));
        assert_eq!(max(UPSTREAM, 64), Some(2_097_152));
        assert_eq!(max(Limits { per_core: 0, ..UPSTREAM }, 64), None);
        let all = Limits { tcp_be_liberal: true, udp: 60, udp_stream: 120, ..UPSTREAM };
        assert_eq!(all.settings(1).len(), 6);
        assert!(Limits::default().settings(1).is_empty());
    }

    #[test]
    fn nothing_is_lowered() {
        let dir = tempfile::tempdir().expect("a folder");
        let (folder, buckets) = (dir.path(), dir.path().join("hashsize"));
        let write = |name: &str, value: &str| {
            std::fs::write(folder.join(name), value).expect("written");
        };
        write(MAX, "65536\n");
        write("hashsize", "65536\n");
        write("nf_conntrack_tcp_timeout_established", "432000\n");
        write("nf_conntrack_tcp_timeout_close_wait", "60\n");
        UPSTREAM.raise_in(folder, &buckets, 2).expect("raised");
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect("read");
        assert_eq!(read(MAX), "131072");
        assert_eq!(read("hashsize"), "65536\n");
        assert_eq!(read("nf_conntrack_tcp_timeout_established"), "432000\n");
        assert_eq!(read("nf_conntrack_tcp_timeout_close_wait"), "3600");
        let error =
            UPSTREAM.raise_in(Path::new("/nowhere"), &buckets, 2).expect_err("no such file");
        assert!(format!("{error:#}").contains("/nowhere/nf_conntrack_max"), "{error:#}");
    }
}
