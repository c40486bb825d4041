//! Waiting before another try: longer each time, and never in step with other agents.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// First wait.
const FIRST: Duration = Duration::from_millis(250);

/// Longest wait: an API server that is back is noticed within this time.
const LONGEST: Duration = Duration::from_secs(30);

/// How long to wait before the next try.
#[derive(Clone, Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Wait before the next try: doubled each time up to 30 seconds, less a random part of up to half.
    pub fn next_wait(&mut self) -> Duration {
        let wait = FIRST.saturating_mul(1 << self.failures.min(10)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        wait.mul_f64(1.0 - jitter() / 2.0)
    }

    /// What was tried has worked.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures in a row.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// A random number from 0 to 1, so that agents that were started or disconnected together do not act together. Not for
/// secrets.
pub fn jitter() -> f64 {
    // Each `RandomState` of a thread has other keys.
    let random = RandomState::new().hash_one(0u8);
    (random >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_differ() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..40).map(|_| backoff.next_wait()).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2);
        assert!(waits[10..].iter().all(|wait| *wait <= LONGEST && *wait >= LONGEST / 2));
        assert!(waits[10..].windows(2).any(|pair| pair[0] != pair[1]), "no jitter: {waits:?}");
        backoff.reset();
        assert!(backoff.next_wait() <= FIRST);
    }
}
