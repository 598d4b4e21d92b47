//! The cgroups of pods: `kubepods`, one below it for each quality of service, one for each pod;
//! named for the cgroupfs or the systemd driver, on cgroup v1 or v2.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::pod::resources::PodLimits;

const MOUNT: &str = "/sys/fs/cgroup";
/// Without these, limits would silently not hold.
const REQUIRED: [&str; 2] = ["cpu", "memory"];
/// The hierarchies of v1 in which pods get a directory, where they are mounted.
const V1_CONTROLLERS: [&str; 8] =
    ["cpu", "cpuacct", "memory", "cpuset", "pids", "blkio", "devices", "freezer"];

/// Who makes cgroups below ours, and therefore how they are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    Cgroupfs,
    Systemd,
}

#[derive(Clone, Debug)]
enum Hierarchy {
    /// Mount points by controller, and those of hierarchies without one (`name=systemd`, an empty
    /// v2), in which the runtime makes a pod's cgroup all the same.
    V1(BTreeMap<String, PathBuf>, Vec<PathBuf>),
    V2(PathBuf),
}

/// The pods' part of the cgroup tree.
#[derive(Clone, Debug)]
pub struct Cgroups {
    driver: Driver,
    root: Vec<String>,
    per_qos: bool,
    hierarchy: Hierarchy,
    /// Processes of one pod; `None` without a limit.
    pids: Option<i64>,
}

/// A cgroup by its names from the root, as the cgroupfs driver writes it.
pub fn cgroupfs_path(names: &[String]) -> String {
    format!("/{}", names.join("/"))
}

/// As the systemd driver writes it: a slice within slices, each named by the whole way to it.
pub fn systemd_path(names: &[String]) -> String {
    let mut path = String::new();
    let mut stem = String::new();
    for name in names {
        if !stem.is_empty() {
            stem.push('-');
        }
        // A dash in a slice's name means nesting.
        stem.push_str(&name.replace('-', "_"));
        path.push_str(&format!("/{stem}.slice"));
    }
    path
}

/// Names from the root to a pod's cgroup.
pub fn pod_names(root: &[String], per_qos: bool, qos: &str, uid: &str) -> Vec<String> {
    let mut names = root.to_vec();
    if per_qos {
        names.push("kubepods".into());
        match qos {
            "Burstable" => names.push("burstable".into()),
            "BestEffort" => names.push("besteffort".into()),
            _ => {}
        }
        names.push(format!("pod{uid}"));
    }
    names
}

/// `cpu.weight` of v2 for `cpu.shares` of v1.
pub fn weight(shares: i64) -> i64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

impl Cgroups {
    /// Finds the hierarchies.
    ///
    /// # Errors
    /// Names the controller that is missing.
    pub fn find(driver: Driver, root: &str, per_qos: bool) -> anyhow::Result<Self> {
        let root: Vec<String> =
            root.split('/').filter(|p| !p.is_empty()).map(str::to_owned).collect();
        let mount = Path::new(MOUNT);
        let hierarchy = match mount.join("cgroup.controllers").exists() {
            true => Hierarchy::V2(mount.to_owned()),
            false => {
                let (mounts, others) = v1_mounts(&std::fs::read_to_string("/proc/mounts")?);
                Hierarchy::V1(mounts, others)
            }
        };
        let found = Self { driver, root, per_qos, hierarchy, pids: None };
        let present: Vec<String> = match &found.hierarchy {
            Hierarchy::V1(mounts, _) => mounts.keys().cloned().collect(),
            Hierarchy::V2(mount) => std::fs::read_to_string(mount.join("cgroup.controllers"))?
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
        };
        for controller in REQUIRED {
            if !present.iter().any(|p| p == controller) {
                bail!("missing cgroup controller {controller:?}: pods could not be limited");
            }
        }
        Ok(found)
    }

    /// Bounds the processes of each pod made from now on; not with a number below 1.
    pub fn limit_pids(&mut self, most: i64) {
        self.pids = Some(most).filter(|n| *n > 0);
    }

    /// Whether the unified hierarchy is in use.
    pub fn is_v2(&self) -> bool {
        matches!(self.hierarchy, Hierarchy::V2(_))
    }

    fn path(&self, names: &[String]) -> String {
        match self.driver {
            Driver::Cgroupfs => cgroupfs_path(names),
            Driver::Systemd => systemd_path(names),
        }
    }

    /// What the runtime is told: the parent of a pod's containers.
    pub fn runtime_parent(&self, qos: &str, uid: &str) -> String {
        if !self.per_qos {
            return String::new();
        }
        let path = self.path(&pod_names(&self.root, self.per_qos, qos, uid));
        match self.driver {
            Driver::Cgroupfs => path,
            Driver::Systemd => path.rsplit('/').next().unwrap_or_default().to_owned(),
        }
    }

    fn directories(&self, path: &str) -> Vec<(&str, PathBuf)> {
        let relative = path.trim_start_matches('/');
        match &self.hierarchy {
            Hierarchy::V1(mounts, _) => {
                mounts.iter().map(|(name, mount)| (name.as_str(), mount.join(relative))).collect()
            }
            Hierarchy::V2(mount) => vec![("", mount.join(relative))],
        }
    }

    /// A cgroup in every hierarchy, those included that we do not make it in.
    fn everywhere(&self, path: &str) -> Vec<PathBuf> {
        let relative = path.trim_start_matches('/');
        match &self.hierarchy {
            Hierarchy::V1(mounts, others) => {
                mounts.values().chain(others).map(|mount| mount.join(relative)).collect()
            }
            Hierarchy::V2(mount) => vec![mount.join(relative)],
        }
    }

    /// The directory that has a pod's memory and CPU accounting: (memory, cpu).
    pub fn accounting(&self, qos: &str, uid: &str) -> (PathBuf, PathBuf) {
        let path = self.path(&pod_names(&self.root, self.per_qos, qos, uid));
        let relative = path.trim_start_matches('/');
        match &self.hierarchy {
            Hierarchy::V1(mounts, _) => {
                let at =
                    |name: &str| mounts.get(name).map(|m| m.join(relative)).unwrap_or_default();
                let cpu = if mounts.contains_key("cpuacct") { "cpuacct" } else { "cpu" };
                (at("memory"), at(cpu))
            }
            Hierarchy::V2(mount) => (mount.join(relative), mount.join(relative)),
        }
    }

    /// The processes of a pod.
    pub fn processes(&self, qos: &str, uid: &str) -> u64 {
        let path = self.path(&pod_names(&self.root, self.per_qos, qos, uid));
        let mut folders = self.directories(&path).into_iter();
        let counted = folders.find_map(|(controller, folder)| {
            matches!(controller, "pids" | "").then(|| folder.join("pids.current"))
        });
        let text = counted.and_then(|file| std::fs::read_to_string(file).ok());
        text.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    }

    fn create(&self, names: &[String]) -> anyhow::Result<()> {
        for depth in 1..=names.len() {
            let path = self.path(&names[..depth]);
            for (controller, directory) in self.directories(&path) {
                if let Hierarchy::V2(_) = self.hierarchy
                    && let Some(parent) = directory.parent()
                {
                    enable_controllers(parent);
                }
                match std::fs::create_dir(&directory) {
                    Ok(()) if controller == "cpuset" => inherit_cpuset(&directory),
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(error) => {
                        return Err(error).with_context(|| {
                            format!("cannot create cgroup {}", directory.display())
                        });
                    }
                }
            }
        }
        Ok(())
    }

    fn limit(&self, names: &[String], limits: &PodLimits) -> anyhow::Result<()> {
        let path = self.path(names);
        for (controller, directory) in self.directories(&path) {
            let set = |file: &str, value: String| -> anyhow::Result<()> {
                let file = directory.join(file);
                std::fs::write(&file, &value)
                    .with_context(|| format!("cannot set {} to {value}", file.display()))
            };
            match controller {
                "cpu" => {
                    set("cpu.shares", limits.shares.max(2).to_string())?;
                    if let Some(quota) = limits.quota {
                        set("cpu.cfs_period_us", limits.period.to_string())?;
                        set("cpu.cfs_quota_us", quota.to_string())?;
                    }
                }
                "memory" => {
                    if let Some(bytes) = limits.memory {
                        set("memory.limit_in_bytes", bytes.to_string())?;
                    }
                }
                "" => {
                    set("cpu.weight", weight(limits.shares).to_string())?;
                    if let Some(quota) = limits.quota {
                        set("cpu.max", format!("{quota} {}", limits.period))?;
                    }
                    if let Some(bytes) = limits.memory {
                        set("memory.max", bytes.to_string())?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn qos_root(&self) -> Vec<String> {
        let mut names = self.root.clone();
        names.push("kubepods".into());
        names
    }

    /// Makes the tree down to the classes of service, bounded by what pods may use in all.
    ///
    /// # Errors
    /// A cgroup cannot be made or limited.
    pub fn set_up(&self, milli_cpu: i64, memory: Option<i64>) -> anyhow::Result<()> {
        if !self.per_qos {
            return Ok(());
        }
        let root = self.qos_root();
        self.create(&root)?;
        let shares = crate::pod::resources::shares(milli_cpu);
        self.limit(&root, &PodLimits { shares, memory, ..PodLimits::default() })?;
        for class in ["burstable", "besteffort"] {
            let mut names = root.clone();
            names.push(class.into());
            self.create(&names)?;
        }
        self.balance(0)
    }

    /// Gives the burstable class the shares that its pods ask for together.
    ///
    /// # Errors
    /// A limit cannot be set.
    pub fn balance(&self, burstable_milli_cpu: i64) -> anyhow::Result<()> {
        if !self.per_qos {
            return Ok(());
        }
        let shares = crate::pod::resources::shares(burstable_milli_cpu);
        for (class, shares) in [("burstable", shares), ("besteffort", 2)] {
            let mut names = self.qos_root();
            names.push(class.into());
            self.limit(&names, &PodLimits { shares, ..PodLimits::default() })?;
        }
        Ok(())
    }

    /// Makes a pod's cgroup, if it is not there, and limits it.
    ///
    /// # Errors
    /// It cannot be made or limited.
    pub fn ensure_pod(&self, qos: &str, uid: &str, limits: &PodLimits) -> anyhow::Result<()> {
        if !self.per_qos {
            return Ok(());
        }
        let names = pod_names(&self.root, self.per_qos, qos, uid);
        let path = self.path(&names);
        if self.directories(&path).iter().all(|(_, d)| d.exists()) {
            return Ok(());
        }
        self.create(&names)?;
        if let Some(pids) = self.pids {
            for (controller, directory) in self.directories(&path) {
                if matches!(controller, "pids" | "") {
                    let file = directory.join("pids.max");
                    std::fs::write(&file, pids.to_string())
                        .with_context(|| format!("cannot set {} to {pids}", file.display()))?;
                }
            }
        }
        self.limit(&names, limits)
    }

    /// Sets the limits of a pod's cgroup anew.
    ///
    /// # Errors
    /// The kernel refuses, or there is no such cgroup.
    pub fn change_pod(&self, qos: &str, uid: &str, limits: &PodLimits) -> anyhow::Result<()> {
        match self.per_qos {
            true => self.limit(&pod_names(&self.root, self.per_qos, qos, uid), limits),
            false => Ok(()),
        }
    }

    /// The memory that a pod uses now, in bytes, if it can be read.
    pub fn memory_used(&self, qos: &str, uid: &str) -> Option<i64> {
        let file = if self.is_v2() { "memory.current" } else { "memory.usage_in_bytes" };
        let text = std::fs::read_to_string(self.accounting(qos, uid).0.join(file)).ok()?;
        text.trim().parse().ok()
    }

    /// Removes a pod's cgroup. Its processes must have ended.
    ///
    /// # Errors
    /// It is still in use.
    pub fn remove_pod(&self, uid: &str) -> anyhow::Result<()> {
        if !self.per_qos {
            return Ok(());
        }
        for qos in ["Guaranteed", "Burstable", "BestEffort"] {
            let path = self.path(&pod_names(&self.root, self.per_qos, qos, uid));
            for directory in self.everywhere(&path) {
                remove_tree(&directory)
                    .with_context(|| format!("cannot remove cgroup {}", directory.display()))?;
            }
        }
        Ok(())
    }

    /// The uids of pods that have a cgroup.
    pub fn pods(&self) -> Vec<String> {
        let mut uids = std::collections::BTreeSet::new();
        for class in ["", "burstable", "besteffort"] {
            let mut names = self.qos_root();
            if !class.is_empty() {
                names.push(class.into());
            }
            for directory in self.everywhere(&self.path(&names)) {
                let Ok(entries) = std::fs::read_dir(directory) else { continue };
                for entry in entries.flatten() {
                    let name = entry.file_name().to_string_lossy().into_owned();
                    let stem = name.strip_suffix(".slice").unwrap_or(&name);
                    let last = stem.rsplit('-').next().unwrap_or(stem);
                    let uid = match self.driver {
                        Driver::Cgroupfs => stem.strip_prefix("pod").map(str::to_owned),
                        Driver::Systemd => last.strip_prefix("pod").map(|u| u.replace('_', "-")),
                    };
                    uids.extend(uid);
                }
            }
        }
        uids.into_iter().collect()
    }
}

fn v1_mounts(text: &str) -> (BTreeMap<String, PathBuf>, Vec<PathBuf>) {
    let (mut mounts, mut others) = (BTreeMap::new(), Vec::new());
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, path, kind @ ("cgroup" | "cgroup2"), options, ..] = fields[..] else { continue };
        let known = |o: &&str| kind == "cgroup" && V1_CONTROLLERS.contains(o);
        let mut controllers = options.split(',').filter(known).peekable();
        if controllers.peek().is_none() {
            others.push(PathBuf::from(path));
        }
        for controller in controllers {
            mounts.entry(controller.to_owned()).or_insert_with(|| PathBuf::from(path));
        }
    }
    (mounts, others)
}

/// A child of v1's cpuset takes no process until it has CPUs and memory nodes.
fn inherit_cpuset(directory: &Path) {
    let Some(parent) = directory.parent() else { return };
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let copied = std::fs::read(parent.join(file))
            .and_then(|value| std::fs::write(directory.join(file), value));
        if let Err(error) = copied {
            tracing::debug!(%error, directory = %directory.display(), "cpuset not inherited");
        }
    }
}

fn enable_controllers(directory: &Path) {
    let controllers =
        std::fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        // One by one: those that cannot be enabled do not matter to the others.
        let enabled =
            std::fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
        if let Err(error) = enabled {
            tracing::debug!(%error, controller, "controller not enabled");
        }
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    match std::fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_both_drivers() {
        let root = ["node-1".to_owned()];
        for (root, qos, fs, systemd) in [
            (&[][..], "Guaranteed", "/kubepods/poda-b", "/kubepods.slice/kubepods-poda_b.slice"),
            (
                &root[..],
                "Burstable",
                "/node-1/kubepods/burstable/poda-b",
                "/node_1.slice/node_1-kubepods.slice/node_1-kubepods-burstable.slice/node_1-kubepods-burstable-poda_b.slice",
            ),
        ] {
            let names = pod_names(root, true, qos, "a-b");
            assert_eq!(cgroupfs_path(&names), fs);
            assert_eq!(systemd_path(&names), systemd);
        }
    }

    #[test]
    fn weights_of_shares() {
        for (shares, want) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000)] {
            assert_eq!(weight(shares), want, "{shares}");
        }
    }

    #[test]
    fn mounts_are_found_by_controller() {
        let (mounts, others) = v1_mounts(
            "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\ncgroup2 /x cgroup2 rw 0 0\n\
             cgroup /s cgroup rw,name=systemd 0 0\ntmpfs /t tmpfs rw 0 0\n",
        );
        assert_eq!(mounts.keys().collect::<Vec<_>>(), ["cpu", "cpuacct"]);
        assert_eq!(others, [Path::new("/x"), Path::new("/s")]);
    }
}
