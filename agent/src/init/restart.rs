//! When an agent that has ended is started again: at once after it ran for a while, later and later when it keeps dying.

use std::time::{Duration, Instant};

/// First wait after an agent that died again at once.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait: an agent that cannot start tries often enough to be back soon after its cause is gone.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// An agent that ran this long is healthy: its end is an accident, not a loop.
const HEALTHY: Duration = Duration::from_secs(10);

/// The plan for the next start.
#[derive(Debug, Default)]
pub(super) struct Restart {
    started: Option<Instant>,
    due: Option<Instant>,
    next_wait: Duration,
}

impl Restart {
    /// The agent was started.
    pub(super) fn started(&mut self, now: Instant) {
        self.started = Some(now);
        self.due = None;
    }

    /// The agent has ended: plans its start and returns the wait until then.
    pub(super) fn plan(&mut self, now: Instant) -> Duration {
        if self.started.is_some_and(|at| now.duration_since(at) >= HEALTHY) {
            self.next_wait = Duration::ZERO;
        }
        let wait = self.next_wait;
        self.next_wait = (wait * 2).clamp(FIRST_WAIT, LONGEST_WAIT);
        self.due = Some(now + wait);
        wait
    }

    /// The next end is wanted: no wait after it.
    pub(super) fn forget(&mut self) {
        self.next_wait = Duration::ZERO;
    }

    /// Whether the time has come.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_none_or(|due| now >= due)
    }

    /// Time until then.
    pub(super) fn remaining(&self, now: Instant) -> Duration {
        self.due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_again_at_once_then_ever_later_until_it_ran_well() {
        let mut restart = Restart::default();
        let mut now = Instant::now();
        restart.started(now);
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = restart.plan(now);
            assert!(!restart.is_due(now) || wait.is_zero());
            now += wait;
            assert!(restart.is_due(now));
            restart.started(now);
            waits.push(wait.as_millis());
        }
        assert_eq!(waits, [0, 100, 200, 400, 800, 1600, 3200, 5000]);
        now += HEALTHY;
        assert!(restart.plan(now).is_zero());
    }
}
