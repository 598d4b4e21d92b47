//! What the runtime has of a pod, in the form that decisions are made from.

use k8s_cri::v1::{LinuxContainerResources, LinuxContainerUser};

/// A container's state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    #[default]
    Unknown,
}

impl State {
    pub fn of(state: i32) -> Self {
        match state {
            0 => Self::Created,
            1 => Self::Running,
            2 => Self::Exited,
            _ => Self::Unknown,
        }
    }
}

/// A container. Times are nanoseconds since 1970, 0 when unset.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerView {
    pub id: String,
    pub name: String,
    pub sandbox: String,
    pub state: State,
    pub created_at: i64,
    pub started_at: i64,
    pub finished_at: i64,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub hash: u64,
    pub restart_count: u32,
    pub log_path: String,
    pub resources: Option<LinuxContainerResources>,
    pub user: Option<LinuxContainerUser>,
}

/// A sandbox.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SandboxView {
    pub id: String,
    pub attempt: u32,
    pub created_at: i64,
    pub ready: bool,
    pub host_network: bool,
    /// Addresses; the first is the pod's primary one. Only of a ready sandbox.
    pub ips: Vec<String>,
}

/// All that the runtime has of one pod, newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodView {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub sandboxes: Vec<SandboxView>,
    pub containers: Vec<ContainerView>,
}

impl PodView {
    /// The newest container of a name.
    pub fn container(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|c| c.name == name)
    }

    pub fn ips(&self) -> &[String] {
        self.sandboxes.first().filter(|s| s.ready).map_or(&[], |s| &s.ips)
    }

    /// Whether anything of the pod may still run.
    pub fn is_alive(&self) -> bool {
        self.containers.iter().any(|c| matches!(c.state, State::Running | State::Unknown))
            || self.sandboxes.iter().any(|s| s.ready)
    }

    /// Whether a new sandbox is needed, with its attempt number, and the sandbox otherwise
    /// (upstream's `PodSandboxChanged`).
    pub fn sandbox_needed(&self, host_network: bool) -> SandboxNeed {
        let Some(newest) = self.sandboxes.first() else {
            return SandboxNeed { create: true, attempt: 0, id: String::new() };
        };
        let ready = self.sandboxes.iter().filter(|s| s.ready).count();
        let next = newest.attempt + 1;
        if ready > 1 || !newest.ready {
            return SandboxNeed { create: true, attempt: next, id: newest.id.clone() };
        }
        if newest.host_network != host_network {
            return SandboxNeed { create: true, attempt: next, id: String::new() };
        }
        if !host_network && newest.ips.is_empty() {
            return SandboxNeed { create: true, attempt: next, id: newest.id.clone() };
        }
        SandboxNeed { create: false, attempt: newest.attempt, id: newest.id.clone() }
    }
}

/// See [`PodView::sandbox_needed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxNeed {
    pub create: bool,
    pub attempt: u32,
    pub id: String,
}
