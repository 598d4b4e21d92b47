//! From what metrics call for to what is done: recent recommendations and changes slow it down
//! (KEP-853; `pkg/controller/podautoscaler/horizontal.go`).

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{
    HPAScalingPolicy, HPAScalingRules, HorizontalPodAutoscalerBehavior,
};

/// What was recommended and done for an autoscaler, as far as it still matters.
#[derive(Clone, Debug, Default)]
pub struct History {
    recommendations: Vec<(Timestamp, i32)>,
    ups: Vec<(Timestamp, i32)>,
    downs: Vec<(Timestamp, i32)>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Wish {
    pub current: i32,
    pub desired: i32,
    pub least: i32,
    pub most: i32,
}

/// What came of it: replicas, and reason and message of the conditions AbleToScale (which is true)
/// and ScalingLimited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub replicas: i32,
    pub able: (&'static str, &'static str),
    pub limited: bool,
    pub limit: (&'static str, &'static str),
}

const READY: (&str, &str) = ("ReadyForNewScale", "recommended size matches current size");
const DOWN_STABILIZED: (&str, &str) = (
    "ScaleDownStabilized",
    "recent recommendations were higher than current one, applying the highest recent recommendation",
);
const UP_STABILIZED: (&str, &str) = (
    "ScaleUpStabilized",
    "recent recommendations were lower than current one, applying the lowest recent recommendation",
);
const WITHIN: (&str, &str) =
    ("DesiredWithinRange", "the desired count is within the acceptable range");
const TOO_FEW: (&str, &str) =
    ("TooFewReplicas", "the desired replica count is less than the minimum replica count");
const TOO_MANY: (&str, &str) =
    ("TooManyReplicas", "the desired replica count is more than the maximum replica count");
const UP_LIMIT: (&str, &str) =
    ("ScaleUpLimit", "the desired replica count is increasing faster than the maximum scale rate");
const DOWN_LIMIT: (&str, &str) = (
    "ScaleDownLimit",
    "the desired replica count is decreasing faster than the maximum scale rate",
);

/// Rules for one direction, with the API's defaults.
struct Rules {
    window: Duration,
    select: Select,
    policies: Vec<HPAScalingPolicy>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Select {
    Largest,
    Smallest,
    Disabled,
}

fn seconds(n: i32) -> Duration {
    Duration::from_secs(u64::try_from(n).unwrap_or(0))
}

impl Rules {
    fn new(rules: Option<&HPAScalingRules>, window: Duration, defaults: &[(&str, i32)]) -> Self {
        let given = rules.and_then(|r| r.stabilization_window_seconds).map(seconds);
        let select = match rules.and_then(|r| r.select_policy.as_deref()) {
            Some("Disabled") => Select::Disabled,
            Some("Min") => Select::Smallest,
            _ => Select::Largest,
        };
        let policies = rules.and_then(|r| r.policies.clone()).filter(|p| !p.is_empty());
        let default = |(type_, value): &(&str, i32)| HPAScalingPolicy {
            type_: (*type_).to_owned(),
            value: *value,
            period_seconds: 15,
        };
        let policies = policies.unwrap_or_else(|| defaults.iter().map(default).collect());
        Self { window: given.unwrap_or(window), select, policies }
    }

    fn up(behavior: &HorizontalPodAutoscalerBehavior) -> Self {
        let defaults = [("Pods", 4), ("Percent", 100)];
        Self::new(behavior.scale_up.as_ref(), Duration::ZERO, &defaults)
    }

    fn down(behavior: &HorizontalPodAutoscalerBehavior, window: Duration) -> Self {
        Self::new(behavior.scale_down.as_ref(), window, &[("Percent", 100)])
    }

    fn longest_period(&self) -> Duration {
        self.policies.iter().map(|p| seconds(p.period_seconds)).max().unwrap_or_default()
    }
}

fn before(now: Timestamp, span: Duration) -> Timestamp {
    let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    now.checked_sub(span).unwrap_or(Timestamp::MIN)
}

impl History {
    /// Before anything was recommended, what is there counts as recommended.
    pub fn begin(&mut self, current: i32, now: Timestamp) {
        if self.recommendations.is_empty() {
            self.recommendations.push((now, current));
        }
    }

    fn recommend(&mut self, replicas: i32, now: Timestamp, window: Duration) {
        let oldest = before(now, window);
        self.recommendations.retain(|(at, _)| *at >= oldest);
        self.recommendations.push((now, replicas));
    }

    /// Remembers a change, where rules count them.
    pub fn scaled(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        (from, to): (i32, i32),
        now: Timestamp,
    ) {
        let Some(behavior) = behavior else { return };
        let (list, rules) = match to > from {
            true => (&mut self.ups, Rules::up(behavior)),
            false => (&mut self.downs, Rules::down(behavior, Duration::ZERO)),
        };
        let oldest = before(now, rules.longest_period());
        list.retain(|(at, _)| *at >= oldest);
        list.push((now, to.abs_diff(from).try_into().unwrap_or(i32::MAX)));
    }

    /// What is to be done. `window`: how long high recommendations hold, where the autoscaler does
    /// not say.
    pub fn limit(
        &mut self,
        behavior: Option<&HorizontalPodAutoscalerBehavior>,
        wish: Wish,
        window: Duration,
        now: Timestamp,
    ) -> Outcome {
        match behavior {
            None => self.by_default(wish, window, now),
            Some(behavior) => {
                let (up, down) = (Rules::up(behavior), Rules::down(behavior, window));
                self.by_rules(&up, &down, wish, now)
            }
        }
    }

    fn by_default(&mut self, wish: Wish, window: Duration, now: Timestamp) -> Outcome {
        let oldest = before(now, window);
        let recent = self.recommendations.iter().filter(|(at, _)| *at >= oldest);
        let stable = recent.map(|(_, n)| *n).fold(wish.desired, i32::max);
        self.recommend(wish.desired, now, window);
        let able = if stable == wish.desired { READY } else { DOWN_STABILIZED };
        // Metrics of pods that start are not to be trusted too far.
        let fastest = wish.current.saturating_mul(2).max(4);
        let (most, reason) = match wish.most > fastest {
            true => (fastest, UP_LIMIT),
            false => (wish.most, TOO_MANY),
        };
        let (replicas, limit) = if stable < wish.least {
            (wish.least, TOO_FEW)
        } else if stable > most {
            (most, reason)
        } else {
            (stable, WITHIN)
        };
        Outcome { replicas, able, limited: replicas != stable, limit }
    }

    fn by_rules(&mut self, up: &Rules, down: &Rules, wish: Wish, now: Timestamp) -> Outcome {
        let since = |rules: &Rules| before(now, rules.window);
        let (up_since, down_since) = (since(up), since(down));
        let (mut lowest, mut highest) = (wish.desired, wish.desired);
        for (at, replicas) in &self.recommendations {
            if *at > up_since {
                lowest = lowest.min(*replicas);
            }
            if *at > down_since {
                highest = highest.max(*replicas);
            }
        }
        let stable = wish.current.max(lowest).min(highest);
        self.recommend(wish.desired, now, up.window.max(down.window));
        let able = if stable == wish.desired {
            READY
        } else if wish.desired >= wish.current {
            UP_STABILIZED
        } else {
            DOWN_STABILIZED
        };
        let (replicas, limit) = self.at_rate(up, down, Wish { desired: stable, ..wish }, now);
        Outcome { replicas, able, limited: replicas != stable, limit }
    }

    /// No faster than policies have it.
    fn at_rate(
        &self,
        up: &Rules,
        down: &Rules,
        wish: Wish,
        now: Timestamp,
    ) -> (i32, (&'static str, &'static str)) {
        if wish.desired > wish.current {
            let fastest = self.bound(up, wish.current, true, now).max(wish.current);
            let (most, reason) = match wish.most > fastest {
                true => (fastest, UP_LIMIT),
                false => (wish.most, TOO_MANY),
            };
            if wish.desired > most {
                return (most, reason);
            }
        } else if wish.desired < wish.current {
            let fastest = self.bound(down, wish.current, false, now).min(wish.current);
            let (least, reason) = match wish.least < fastest {
                true => (fastest, DOWN_LIMIT),
                false => (wish.least, TOO_FEW),
            };
            if wish.desired < least {
                return (least, reason);
            }
        }
        (wish.desired, WITHIN)
    }

    /// Where the policy that counts leads to, from what was there when its period began.
    fn bound(&self, rules: &Rules, current: i32, upwards: bool, now: Timestamp) -> i32 {
        let changed = |events: &[(Timestamp, i32)], period: i32| {
            let since = before(now, seconds(period));
            let recent = events.iter().filter(|(at, _)| *at > since);
            recent.fold(0_i32, |sum, (_, by)| sum.saturating_add(*by))
        };
        let proposals = rules.policies.iter().map(|policy| {
            let period = policy.period_seconds;
            let (added, removed) = (changed(&self.ups, period), changed(&self.downs, period));
            let start = current.saturating_sub(added).saturating_add(removed);
            let part = f64::from(policy.value) / 100.0;
            match (policy.type_.as_str(), upwards) {
                ("Pods", true) => start.saturating_add(policy.value),
                ("Pods", false) => start.saturating_sub(policy.value),
                // Rounded up, or a single replica would stay one.
                (_, true) => (f64::from(start) * (1.0 + part)).ceil() as i32,
                (_, false) => (f64::from(start) * (1.0 - part)) as i32,
            }
        });
        // The largest change is the highest bound on the way up and the lowest on that down.
        let bound = match (rules.select, upwards) {
            (Select::Disabled, _) => None,
            (Select::Largest, true) | (Select::Smallest, false) => proposals.max(),
            (Select::Smallest, true) | (Select::Largest, false) => proposals.min(),
        };
        bound.unwrap_or(current)
    }
}
