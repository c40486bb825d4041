//! Waiting for a condition with a deadline: the only way that tests wait.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;

/// Time between two looks: short beside what is waited for, long beside the cost of a look.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until `look` returns `Some`.
///
/// # Errors
/// Says that `what` did not come within `limit`.
pub fn wait_until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if start.elapsed() >= limit {
            bail!("waited {limit:?} in vain for: {what}");
        }
        thread::sleep(PAUSE);
    }
}

/// Looks until `look` succeeds, and reports its last failure when it never does.
///
/// # Errors
/// Says that `what` did not come within `limit`, and why the last look failed.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let mut last = None;
    wait_until(what, limit, || look().map_err(|error| last = Some(error)).ok())
        .map_err(|error| last.map_or_else(|| anyhow::anyhow!("{error}"), |last| last.context(error.to_string())))
}
