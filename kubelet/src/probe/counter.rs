//! When a row of results becomes a verdict: pure.

use k8s_openapi::api::core::v1::Probe;

/// Counts equal results in a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    last: Option<bool>,
    row: i32,
}

impl Counter {
    /// Counts a result; the verdict, once the probe's threshold is reached.
    pub fn count(&mut self, result: bool, probe: &Probe) -> Option<bool> {
        if self.last == Some(result) {
            self.row = self.row.saturating_add(1);
        } else {
            self.last = Some(result);
            self.row = 1;
        }
        let threshold = match result {
            true => probe.success_threshold.unwrap_or(1),
            false => probe.failure_threshold.unwrap_or(3),
        };
        (self.row >= threshold.max(1)).then_some(result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_hold() {
        let probe =
            Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut counter = Counter::default();
        let verdicts: Vec<Option<bool>> = [true, true, false, false, true, false, false, false]
            .into_iter()
            .map(|result| counter.count(result, &probe))
            .collect();
        let (t, f) = (Some(true), Some(false));
        assert_eq!(verdicts, [None, t, None, None, None, None, None, f]);
    }
}
