//! ImageLocality: nodes that have the pod's large images score higher.

use std::collections::HashMap;

use crate::framework::{MAX_SCORE, Plugin, PreScore, Score};
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

    fn pre_score(&self) -> Option<&dyn PreScore> {
        Some(self)
    }
}

impl PreScore for ImageLocality {
    fn prepare<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        _nodes: &[&NodeInfo],
    ) -> Option<Box<dyn Score + 'a>> {
        let spec = pod.pod.spec.as_ref()?;
        let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let names: Vec<String> = all.filter_map(|c| c.image.as_deref()).map(normalize).collect();
        let nodes = snapshot.len().max(1);
        let share = |name: &String| {
            let have = snapshot.nodes_with_image(name);
            #[expect(clippy::cast_precision_loss, reason = "a share")]
            let share = have as f64 / nodes as f64;
            (have > 0).then(|| (name.clone(), share))
        };
        let containers = i64::try_from(names.len()).unwrap_or(i64::MAX).max(1);
        let wanted: HashMap<String, f64> = names.iter().filter_map(share).collect();
        // Nobody has any: all are as good.
        (!wanted.is_empty()).then(|| Box::new(Images { wanted, containers }) as Box<dyn Score>)
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

impl Score for Images {
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
