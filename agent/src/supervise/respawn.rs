//! When a worker that has died is started again: at once, unless it keeps dying.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// Deaths within [`WINDOW`] from which a worker keeps dying rather than has had an accident.
const TOLERATED: usize = 5;
/// See [`TOLERATED`].
const WINDOW: Duration = Duration::from_secs(10);
/// Wait after each further death: a domain whose worker cannot live must not take CPU from the others.
const WAITS: [Duration; 4] =
    [Duration::from_millis(500), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(5)];

/// The deaths of one domain's workers.
#[derive(Debug, Default)]
pub(super) struct Respawn {
    deaths: VecDeque<Instant>,
    waits: usize,
}

impl Respawn {
    /// A worker has died: how long to wait before the next is started.
    pub(super) fn wait(&mut self, now: Instant) -> Duration {
        // Waiting thins the deaths out; the window grows with it.
        let window = WINDOW
            + WAITS[self.waits.saturating_sub(1).min(WAITS.len() - 1)] * (TOLERATED as u32) * u32::from(self.waits > 0);
        while self.deaths.pop_front_if(|death| now.duration_since(*death) > window).is_some() {}
        self.deaths.push_back(now);
        if self.deaths.len() < TOLERATED {
            self.waits = 0;
            return Duration::ZERO;
        }
        if self.deaths.len() > TOLERATED {
            self.deaths.pop_front();
        }
        let wait = WAITS[self.waits.min(WAITS.len() - 1)];
        self.waits += 1;
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_only_when_a_worker_keeps_dying_and_forgets_it_when_it_lives() {
        let mut respawn = Respawn::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..9 {
            let wait = respawn.wait(now);
            waits.push(wait.as_millis());
            now += wait + Duration::from_millis(10);
        }
        assert_eq!(waits, [0, 0, 0, 0, 500, 1000, 2000, 5000, 5000]);
        now += Duration::from_secs(60);
        assert!(respawn.wait(now).is_zero());
    }
}
