//! ImageLocality: nodes that have the pod's large images score higher.

use std::collections::HashMap;

use crate::framework::{ClusterEvent, MAX_SCORE, Plugin, Prepared, Refusal};
use crate::snapshot::{NodeInfo, PodInfo, Snapshot};

/// Images count from this size on, up to that for each container (upstream's 23 MB and 1 GB).
const SMALLEST: i64 = 23 * 1024 * 1024;
const LARGEST: i64 = 1000 * 1024 * 1024;

pub struct ImageLocality;

struct Images {
    /// Image name, and the share of nodes that have it.
    wanted: HashMap<String, f64>,
    containers: i64,
}

impl Plugin for ImageLocality {
    fn name(&self) -> &'static str {
        "ImageLocality"
    }

    fn prepare<'a>(
        &self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Result<Option<Box<dyn Prepared + 'a>>, Refusal> {
        let Some(spec) = &pod.pod.spec else { return Ok(None) };
        let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let names: Vec<String> = all.filter_map(|c| c.image.as_deref()).map(normalize).collect();
        let nodes = snapshot.len().max(1);
        let share = |name: &String| {
            let have = snapshot.nodes().filter(|n| n.images.contains_key(name)).count();
            #[expect(clippy::cast_precision_loss, reason = "a share")]
            let share = have as f64 / nodes as f64;
            (name.clone(), share)
        };
        let containers = i64::try_from(names.len()).unwrap_or(i64::MAX).max(1);
        let wanted = names.iter().map(share).collect();
        Ok(Some(Box::new(Images { wanted, containers })))
    }

    fn helps(&self, _event: ClusterEvent) -> bool {
        false
    }
}

/// With the tag that is meant when none is written.
fn normalize(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.contains([':', '@']) {
        true => name.to_owned(),
        false => format!("{name}:latest"),
    }
}

impl Prepared for Images {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "sizes are far below 2^52"
    )]
    fn score(&self, node: &NodeInfo) -> Option<i64> {
        let sum: i64 = self
            .wanted
            .iter()
            .filter_map(|(name, share)| Some((*node.images.get(name)? as f64 * share) as i64))
            .sum();
        let most = LARGEST.saturating_mul(self.containers);
        let counted = sum.clamp(SMALLEST, most);
        Some(MAX_SCORE * (counted - SMALLEST) / (most - SMALLEST))
    }
}
