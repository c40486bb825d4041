//! Comparing noisy sides: alternate them within a round (A B B A), then compare medians and show the spread.

use std::time::Duration;

/// What one run of a side came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Requests answered.
    pub(crate) requests: u64,
    /// CPU time of the proxy's process.
    pub(crate) cpu: Duration,
    /// Context switches of the proxy's threads.
    pub(crate) switches: u64,
}

impl Run {
    /// CPU microseconds for each request.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.requests as f64
    }

    /// Context switches for each request.
    pub(crate) fn switches_each(&self) -> f64 {
        self.switches as f64 / self.requests as f64
    }
}

/// Runs every side in each round forwards and then backwards; returns the runs of each side in order.
///
/// # Errors
/// That of the first run which fails.
pub(crate) fn alternate(
    sides: usize,
    rounds: usize,
    mut run: impl FnMut(usize) -> anyhow::Result<Run>,
) -> anyhow::Result<Vec<Vec<Run>>> {
    let mut runs = vec![Vec::new(); sides];
    for side in 0..sides {
        // Warm caches and pools; not counted.
        run(side)?;
    }
    for _ in 0..rounds {
        for side in (0..sides).chain((0..sides).rev()) {
            runs[side].push(run(side)?);
        }
    }
    Ok(runs)
}

/// The middle of the values; the mean of the two middle ones when there is an even number.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// Ratio of the medians, and the smallest and largest ratio of two runs at the same place.
pub(crate) fn ratio(numerator: &[f64], denominator: &[f64]) -> (f64, f64, f64) {
    let each: Vec<f64> = numerator.iter().zip(denominator).map(|(a, b)| a / b).collect();
    let of_medians = median(numerator.iter().copied()) / median(denominator.iter().copied());
    (of_medians, each.iter().copied().fold(f64::INFINITY, f64::min), each.iter().copied().fold(0.0, f64::max))
}

/// A ratio with its spread, for a table.
pub(crate) fn show((ratio, low, high): (f64, f64, f64)) -> String {
    format!("{ratio:.2} ({low:.2}–{high:.2})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_one_wild_value() {
        assert_eq!(median([3.0, 1.0, 1000.0]), 3.0);
        assert_eq!(median([4.0, 1.0, 2.0, 1000.0]), 3.0);
        assert!(median([]).is_nan());
    }

    #[test]
    fn sides_alternate_so_that_a_drift_hits_each_alike() {
        let mut order = Vec::new();
        alternate(2, 1, |side| {
            order.push(side);
            Ok(Run { requests: 1, cpu: Duration::ZERO, switches: 0 })
        })
        .unwrap();
        assert_eq!(order, [0, 1, 0, 1, 1, 0]);
    }
}
