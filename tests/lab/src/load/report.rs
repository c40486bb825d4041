//! What became of the requests of a load.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::client::{Failure, Reply};

/// Counts and latencies.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without a whole answer, by kind.
    pub failures: BTreeMap<&'static str, u64>,
    /// Answers by the backend that gave them.
    pub backends: BTreeMap<String, u64>,
    /// Latency of each answer.
    pub latencies: Vec<Duration>,
    /// The first failure in words, for a test's message.
    pub first_failure: Option<String>,
}

impl LoadReport {
    /// Counts one request.
    pub(super) fn push(&mut self, latency: Duration, outcome: &Result<Reply, Failure>) {
        match outcome {
            Ok(reply) => {
                *self.statuses.entry(reply.status).or_default() += 1;
                self.latencies.push(latency);
                if let Some(backend) = reply.backend() {
                    *self.backends.entry(backend.to_owned()).or_default() += 1;
                }
                if reply.status >= 500 && self.first_failure.is_none() {
                    self.first_failure = Some(format!("status {}: {}", reply.status, reply.text()));
                }
            }
            Err(failure) => {
                *self.failures.entry(failure.kind()).or_default() += 1;
                self.first_failure.get_or_insert_with(|| failure.to_string());
            }
        }
    }

    /// Adds another report.
    pub fn merge(&mut self, other: &Self) {
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        for (kind, count) in &other.failures {
            *self.failures.entry(kind).or_default() += count;
        }
        for (backend, count) in &other.backends {
            *self.backends.entry(backend.clone()).or_default() += count;
        }
        self.latencies.extend_from_slice(&other.latencies);
        if self.first_failure.is_none() {
            self.first_failure.clone_from(&other.first_failure);
        }
    }

    /// Requests sent.
    pub fn requests(&self) -> u64 {
        self.statuses.values().sum::<u64>() + self.failures.values().sum::<u64>()
    }

    /// Answers with status 200.
    pub fn ok(&self) -> u64 {
        self.statuses.get(&200).copied().unwrap_or(0)
    }

    /// Requests that did not end with status 200.
    pub fn errors(&self) -> u64 {
        self.requests() - self.ok()
    }

    /// Share of a backend in all answers, 0 to 1.
    pub fn share(&self, backend: &str) -> f64 {
        let all: u64 = self.backends.values().sum();
        let own = self.backends.get(backend).copied().unwrap_or(0);
        if all == 0 { 0.0 } else { own as f64 / all as f64 }
    }

    /// Latency that this part (0 to 1) of the answers did not exceed.
    pub fn percentile(&self, part: f64) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let index = ((sorted.len() as f64 * part).ceil() as usize).saturating_sub(1);
        sorted.get(index).copied().unwrap_or_default()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests, {} errors", self.requests(), self.errors())?;
        if self.errors() > 0 {
            write!(f, " (statuses {:?}, failures {:?}", self.statuses, self.failures)?;
            if let Some(first) = &self.first_failure {
                write!(f, ", first: {first}")?;
            }
            write!(f, ")")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_latencies_that_occurred() {
        let report =
            LoadReport { latencies: (1..=100).rev().map(Duration::from_millis).collect(), ..LoadReport::default() };
        assert_eq!(report.percentile(0.5), Duration::from_millis(50));
        assert_eq!(report.percentile(0.99), Duration::from_millis(99));
        assert_eq!(report.percentile(1.0), Duration::from_millis(100));
        assert_eq!(LoadReport::default().percentile(0.5), Duration::ZERO);
    }

    #[test]
    fn everything_but_200_is_an_error() {
        let mut report = LoadReport::default();
        report.push(Duration::ZERO, &Err(Failure::Reset));
        report.statuses.insert(200, 3);
        report.statuses.insert(503, 1);
        assert_eq!((report.requests(), report.ok(), report.errors()), (5, 3, 2));
    }
}
