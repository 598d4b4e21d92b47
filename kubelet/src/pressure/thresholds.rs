//! `evictionHard`, `evictionSoft` and what goes with them: how much of which resource must stay
//! free (upstream: `pkg/kubelet/eviction/helpers.go`).

use std::collections::BTreeMap;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;

use crate::duration;
use crate::quantity::{binary, decimal};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    MemoryAvailable,
    NodefsAvailable,
    NodefsInodesFree,
    ImagefsAvailable,
    ImagefsInodesFree,
    PidAvailable,
}

/// A shortage that the node shows as a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    Memory,
    Disk,
    Pid,
}

impl Condition {
    /// As the node's status names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }
}

impl Signal {
    pub const ALL: [Signal; 6] = [
        Self::MemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    /// As the configuration names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    fn find(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| format!("unsupported eviction signal {name}"))
    }

    pub fn condition(self) -> Condition {
        match self {
            Self::MemoryAvailable => Condition::Memory,
            Self::PidAvailable => Condition::Pid,
            Self::NodefsAvailable
            | Self::NodefsInodesFree
            | Self::ImagefsAvailable
            | Self::ImagefsInodesFree => Condition::Disk,
        }
    }

    /// The resource that runs short, as messages name it.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// An amount of it, as messages show it.
    pub fn shown(self, amount: u64) -> Text {
        let amount = i64::try_from(amount).unwrap_or(i64::MAX);
        match self {
            Self::MemoryAvailable | Self::NodefsAvailable | Self::ImagefsAvailable => {
                binary(amount)
            }
            _ => decimal(amount),
        }
    }
}

/// Bytes, inodes or processes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    Of(u64),
    /// Of the capacity; 0.1 is a tenth.
    Share(f64),
}

impl Amount {
    /// The amount of a capacity.
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Of(amount) => amount,
            // Precise enough: a capacity below 2^53 is exact, and a share is a guess anyhow.
            Self::Share(share) => (capacity as f64 * share) as u64,
        }
    }

    /// `None`: to be ignored.
    fn parse(signal: Signal, text: &str) -> Result<Option<Self>, String> {
        let name = signal.name();
        let Some(percent) = text.strip_suffix('%') else {
            let quantity: Quantity = text.parse().map_err(|e| format!("{name}: {e}"))?;
            return match u64::try_from(quantity.value()) {
                Ok(amount) if amount > 0 => Ok(Some(Self::Of(amount))),
                _ => Err(format!("eviction threshold {name} must be positive: {quantity}")),
            };
        };
        if matches!(percent, "0" | "100") {
            return Ok(None);
        }
        let share: f64 = percent.parse().map_err(|e| format!("{name}: {text:?}: {e}"))?;
        match share / 100.0 {
            share if share < 0.0 => {
                Err(format!("eviction percentage threshold {name} must be >= 0%: {text}"))
            }
            share if share <= 1.0 => Ok(Some(Self::Share(share))),
            _ => Err(format!("eviction percentage threshold {name} must be <= 100%: {text}")),
        }
    }
}

/// Below so much of a signal pods are evicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
    /// For so long it has to be below; zero for hard thresholds.
    pub grace: Duration,
    /// Once below, so much more has to become free.
    pub reclaim: Option<Amount>,
}

impl Threshold {
    pub fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }
}

type Texts = BTreeMap<String, String>;

/// Upstream's `evictionHard` on Linux.
pub fn default_hard() -> Texts {
    let rows = [
        ("memory.available", "100Mi"),
        ("nodefs.available", "10%"),
        ("nodefs.inodesFree", "5%"),
        ("imagefs.available", "15%"),
        ("imagefs.inodesFree", "5%"),
    ];
    rows.map(|(name, text)| (name.to_owned(), text.to_owned())).into()
}

fn amounts(texts: &Texts) -> Result<Vec<(Signal, Option<Amount>)>, String> {
    let one = |(name, text): (&String, &String)| {
        let signal = Signal::find(name)?;
        Ok((signal, Amount::parse(signal, text)?))
    };
    texts.iter().map(one).collect()
}

/// All thresholds of a configuration.
///
/// # Errors
/// Names the entry that is wrong, or a soft threshold without its period.
pub fn parse(
    hard: &Texts,
    soft: &Texts,
    soft_grace: &Texts,
    reclaim: &Texts,
) -> Result<Vec<Threshold>, String> {
    let reclaim: BTreeMap<Signal, Option<Amount>> = amounts(reclaim)?.into_iter().collect();
    let mut graces = BTreeMap::new();
    for (name, text) in soft_grace {
        let grace = duration::parse(text).map_err(|e| format!("{name}: {e}"))?;
        graces.insert(Signal::find(name)?, grace);
    }
    let mut all = Vec::new();
    let mut add = |signal: Signal, amount: Option<Amount>, grace| {
        let reclaim = reclaim.get(&signal).copied().flatten();
        all.extend(amount.map(|amount| Threshold { signal, amount, grace, reclaim }));
    };
    for (signal, amount) in amounts(hard)? {
        add(signal, amount, Duration::ZERO);
    }
    for (signal, amount) in amounts(soft)? {
        let Some(grace) = graces.get(&signal) else {
            return Err(format!(
                "grace period must be specified for the soft eviction threshold {}",
                signal.name()
            ));
        };
        add(signal, amount, *grace);
    }
    Ok(all)
}

/// What the hard thresholds keep of a resource from pods.
pub fn kept(thresholds: &[Threshold], signal: Signal, capacity: u64) -> u64 {
    let hard = thresholds.iter().filter(|t| t.is_hard() && t.signal == signal);
    hard.map(|t| t.amount.of(capacity)).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(rows: &[(&str, &str)]) -> Texts {
        rows.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect()
    }

    #[test]
    fn thresholds_are_read() {
        let none = Texts::new();
        let hard = parse(&default_hard(), &none, &none, &none).expect("defaults");
        assert_eq!(hard.len(), 5);
        assert_eq!(kept(&hard, Signal::MemoryAvailable, 1 << 30), 100 << 20);
        assert_eq!(kept(&hard, Signal::NodefsAvailable, 1000), 100);
        let soft = texts(&[("memory.available", "1Gi"), ("nodefs.available", "0%")]);
        let graces = texts(&[("memory.available", "1m30s"), ("nodefs.available", "1m")]);
        let reclaim = texts(&[("memory.available", "500Mi")]);
        assert_eq!(
            parse(&none, &soft, &graces, &reclaim),
            Ok(vec![Threshold {
                signal: Signal::MemoryAvailable,
                amount: Amount::Of(1 << 30),
                grace: Duration::from_secs(90),
                reclaim: Some(Amount::Of(500 << 20)),
            }])
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let none = Texts::new();
        for (name, text, want) in [
            ("memory.free", "1Gi", "unsupported eviction signal memory.free"),
            ("memory.available", "0", "eviction threshold memory.available must be positive: 0"),
            (
                "nodefs.available",
                "-5%",
                "eviction percentage threshold nodefs.available must be >= 0%: -5%",
            ),
            (
                "nodefs.available",
                "110%",
                "eviction percentage threshold nodefs.available must be <= 100%: 110%",
            ),
        ] {
            assert_eq!(parse(&texts(&[(name, text)]), &none, &none, &none), Err(want.to_owned()));
        }
        let soft = texts(&[("memory.available", "1Gi")]);
        assert_eq!(
            parse(&none, &soft, &none, &none),
            Err("grace period must be specified for the soft eviction threshold memory.available"
                .to_owned())
        );
    }
}
