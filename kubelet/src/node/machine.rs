//! What the machine is and has.

use std::path::Path;

/// The machine, as it was when the kubelet started.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub cpus: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of the file system under the root directory.
    pub disk: i64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
    pub architecture: String,
}

fn line(path: &str) -> String {
    std::fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

/// The value of a line `Key:   123 kB` of /proc/meminfo, in bytes.
pub fn meminfo(text: &str, key: &str) -> Option<i64> {
    let rest = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    let kilobytes: i64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// The value of a `KEY="value"` line of os-release.
fn os_release(text: &str, key: &str) -> Option<String> {
    let value = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

/// Go's name for the processor.
pub fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

impl Machine {
    /// Looks at the machine.
    pub fn look(root: &Path) -> Self {
        let memory = line("/proc/meminfo");
        let os = std::fs::read_to_string("/etc/os-release")
            .or_else(|_| std::fs::read_to_string("/usr/lib/os-release"))
            .unwrap_or_default();
        let disk = nix::sys::statvfs::statvfs(root).map_or(0, |s| {
            i64::try_from(u128::from(s.blocks()) * u128::from(s.fragment_size()))
                .unwrap_or(i64::MAX)
        });
        let machine_id = line("/etc/machine-id");
        let uuid = line("/sys/class/dmi/id/product_uuid");
        Self {
            cpus: std::thread::available_parallelism().map_or(1, |n| n.get() as i64),
            memory: meminfo(&memory, "MemTotal").unwrap_or(0),
            disk,
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: line("/proc/sys/kernel/random/boot_id"),
            kernel: line("/proc/sys/kernel/osrelease"),
            os_image: os_release(&os, "PRETTY_NAME").unwrap_or_else(|| "Linux".to_owned()),
            architecture: go_arch().to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system() {
        let text = "MemTotal:       2048 kB\nSwapTotal:         0 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(2 << 20));
        assert_eq!(meminfo(text, "Mem"), None);
        let os = "NAME=x\nPRETTY_NAME=\"X 12\"\n";
        assert_eq!(os_release(os, "PRETTY_NAME").as_deref(), Some("X 12"));
    }
}
