//! Leader election as flags and config files tell it (component-base's
//! `LeaderElectionConfiguration`).

use std::time::Duration;

use anyhow::bail;
use serde::Deserialize;

use crate::cli::duration;

/// Flags. What is not given is left to the file, then to the default.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct LeaderFlags {
    /// Only the leader works
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub leader_elect: Option<bool>,
    /// A lease that was not renewed for so long is free [default: 15s]
    #[arg(long, value_parser = duration)]
    pub leader_elect_lease_duration: Option<Duration>,
    /// A leader that could not renew for so long stops [default: 10s]
    #[arg(long, value_parser = duration)]
    pub leader_elect_renew_deadline: Option<Duration>,
    /// Pause between attempts [default: 2s]
    #[arg(long, value_parser = duration)]
    pub leader_elect_retry_period: Option<Duration>,
    /// Kind of the lock: leases
    #[arg(long)]
    pub leader_elect_resource_lock: Option<String>,
    /// Name of the lock [default: the component's]
    #[arg(long)]
    pub leader_elect_resource_name: Option<String>,
    /// Namespace of the lock [default: kube-system]
    #[arg(long)]
    pub leader_elect_resource_namespace: Option<String>,
}

/// The part of a config file.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LeaderFile {
    pub leader_elect: Option<bool>,
    pub lease_duration: Option<String>,
    pub renew_deadline: Option<String>,
    pub retry_period: Option<String>,
    pub resource_lock: Option<String>,
    pub resource_name: Option<String>,
    pub resource_namespace: Option<String>,
}

/// What is settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    pub lease: Duration,
    pub deadline: Duration,
    pub retry: Duration,
    pub namespace: String,
    pub name: String,
}

impl LeaderFlags {
    /// Settles flags over file over defaults; `None` when there is no election. `name` is the
    /// component's.
    ///
    /// # Errors
    /// Names the flag or field that is wrong.
    pub fn settle(&self, file: &LeaderFile, name: &str) -> anyhow::Result<Option<Leader>> {
        if !self.leader_elect.or(file.leader_elect).unwrap_or(true) {
            return Ok(None);
        }
        let lock = self.leader_elect_resource_lock.as_ref().or(file.resource_lock.as_ref());
        if let Some(lock) = lock.filter(|lock| *lock != "leases") {
            bail!("--leader-elect-resource-lock: {lock:?} is not supported, only \"leases\"");
        }
        let time = |flag: Option<Duration>, field: &Option<String>, default| match (flag, field) {
            (Some(given), _) => Ok(given),
            (None, Some(text)) => match duration(text) {
                // As an absent field.
                Ok(zero) if zero.is_zero() => Ok(Duration::from_secs(default)),
                parsed => parsed.map_err(|e| anyhow::anyhow!("leaderElection: {e}")),
            },
            (None, None) => Ok(Duration::from_secs(default)),
        };
        let pick = |flag: &Option<String>, field: &Option<String>, default: &str| {
            flag.clone().or_else(|| field.clone()).unwrap_or_else(|| default.to_owned())
        };
        let leader = Leader {
            lease: time(self.leader_elect_lease_duration, &file.lease_duration, 15)?,
            deadline: time(self.leader_elect_renew_deadline, &file.renew_deadline, 10)?,
            retry: time(self.leader_elect_retry_period, &file.retry_period, 2)?,
            namespace: pick(
                &self.leader_elect_resource_namespace,
                &file.resource_namespace,
                "kube-system",
            ),
            name: pick(&self.leader_elect_resource_name, &file.resource_name, name),
        };
        if leader.namespace.is_empty() || leader.name.is_empty() {
            bail!("leader election: the lock needs a name and a namespace");
        }
        Ok(Some(leader))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_go_before_the_file_and_that_before_defaults() -> anyhow::Result<()> {
        let mut flags = LeaderFlags::default();
        let mut file = LeaderFile::default();
        let seconds = Duration::from_secs;
        let settled = flags.settle(&file, "kube-x")?;
        let wanted = Leader {
            lease: seconds(15),
            deadline: seconds(10),
            retry: seconds(2),
            namespace: "kube-system".into(),
            name: "kube-x".into(),
        };
        assert_eq!(settled, Some(wanted.clone()));
        file.lease_duration = Some("1m".into());
        file.renew_deadline = Some("40s".into());
        flags.leader_elect_renew_deadline = Some(seconds(20));
        let wanted = Leader { lease: seconds(60), deadline: seconds(20), ..wanted };
        assert_eq!(flags.settle(&file, "kube-x")?, Some(wanted));
        file.resource_lock = Some("endpoints".into());
        assert!(flags.settle(&file, "kube-x").is_err());
        flags.leader_elect = Some(false);
        assert_eq!(flags.settle(&file, "kube-x")?, None);
        Ok(())
    }
}
