//! A token bucket: so many at once, and so many a second.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

struct State {
    tokens: f64,
    at: Instant,
}

/// Bounds how often something is done. Time is an argument.
pub struct Bucket {
    /// `None`: without bound.
    per_second: Option<f64>,
    burst: f64,
    state: Mutex<State>,
}

impl Bucket {
    /// `per_second` of 0 means no bound.
    pub fn new(per_second: i32, burst: i32, now: Instant) -> Self {
        let burst = f64::from(burst.max(1));
        Self {
            per_second: (per_second > 0).then(|| f64::from(per_second)),
            burst,
            state: Mutex::new(State { tokens: burst, at: now }),
        }
    }

    /// Takes a token, or says how long until there is one.
    ///
    /// # Errors
    /// The time until the next token.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        let Some(per_second) = self.per_second else { return Ok(()) };
        let mut state = self.state.lock();
        let earned = now.saturating_duration_since(state.at).as_secs_f64() * per_second;
        state.tokens = (state.tokens + earned).min(self.burst);
        state.at = now;
        if state.tokens >= 1.0 {
            state.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - state.tokens) / per_second))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_steady_flow() {
        let start = Instant::now();
        let bucket = Bucket::new(2, 3, start);
        let taken = |after: u64| bucket.take(start + Duration::from_millis(after));
        assert_eq!([0, 0, 0].map(|t| taken(t).is_ok()), [true; 3]);
        assert_eq!(taken(0), Err(Duration::from_millis(500)));
        assert!(taken(500).is_ok());
        assert!(taken(600).is_err());
        let free = Bucket::new(0, 1, start);
        assert!((0..100).all(|_| free.take(start).is_ok()));
    }
}
