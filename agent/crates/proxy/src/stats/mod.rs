//! What a shard counts, in cells of its own: no atomics, no locks, no text until somebody asks.
//!
//! A scrape takes one [`Snapshot`] of each shard, adds them up and renders the sum. Cardinality is bounded by the model
//! (rules, Gateways, backends) and by reasons that are literals of this program: nothing that a client sends becomes a
//! label. The series of a rule live as long as the rule; a replaced rule keeps them.

mod render;
mod snapshot;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

pub use snapshot::{
    ConnectionCounts, DatagramCounts, ForwardCounts, HistogramCounts, ReasonCounts, RequestCounts, RequestLabels,
    Snapshot, UpstreamCounts,
};

/// Upper bounds of the buckets for durations, in nanoseconds: 0.5 ms, the time of a request to a near backend, up to
/// 60 s, beyond which requests are limited by timeouts rather than measured.
pub const DURATION_BOUNDS_NS: [u64; 14] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
    60_000_000_000,
];

/// Number of status classes: 1xx to 5xx, and whatever is none of them.
pub const STATUS_CLASSES: usize = 6;

/// A counter or gauge of one shard.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// Counts one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Counts several.
    pub fn add(&self, count: u64) {
        self.0.set(self.0.get().wrapping_add(count));
    }

    /// Takes one off a gauge.
    pub fn decrement(&self) {
        self.0.set(self.0.get().saturating_sub(1));
    }

    /// The count.
    pub fn count(&self) -> u64 {
        self.0.get()
    }
}

/// Durations by bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Not cumulative; the last is above all bounds.
    buckets: [Counter; DURATION_BOUNDS_NS.len() + 1],
    sum_ns: Counter,
}

impl Histogram {
    /// Counts a duration.
    pub fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[DURATION_BOUNDS_NS.partition_point(|&bound| bound < ns)].increment();
        self.sum_ns.add(ns);
    }
}

/// Requests of one rule through one Gateway; also those that found no rule.
#[derive(Debug, Default)]
pub struct RuleStats {
    responses: [Counter; STATUS_CLASSES],
    durations: Histogram,
    received_bytes: Counter,
    sent_bytes: Counter,
}

impl RuleStats {
    /// Counts a request that has ended: its status, the time from its head to the end of the response, the bytes of both
    /// bodies as they crossed the downstream side.
    pub fn record(&self, status: u16, duration: Duration, received_bytes: u64, sent_bytes: u64) {
        let class = usize::from(status / 100);
        self.responses[if (1..STATUS_CLASSES).contains(&class) { class } else { 0 }].increment();
        self.durations.record(duration);
        self.received_bytes.add(received_bytes);
        self.sent_bytes.add(sent_bytes);
    }
}

/// Connections or sessions of one forward through one Gateway.
#[derive(Debug, Default)]
pub struct ForwardStats {
    /// Taken by it.
    pub opened: Counter,
    /// Open now.
    pub active: Counter,
    /// Not forwarded, or broken off, by reason.
    pub failures: Reasons,
    /// Bytes from clients, as they went on.
    pub received_bytes: Counter,
    /// Bytes to clients, as they came.
    pub sent_bytes: Counter,
    /// Datagrams from clients, whatever became of them.
    pub received_datagrams: Counter,
    /// Datagrams to clients.
    pub sent_datagrams: Counter,
}

/// What happened towards one backend.
#[derive(Debug, Default)]
pub struct UpstreamStats {
    /// Attempts: requests sent, retries included.
    pub requests: Counter,
    /// Attempts that run now.
    pub active: Counter,
    /// Connections made.
    pub connects: Counter,
    /// Connections that could not be made.
    pub connect_errors: Counter,
    /// Attempts after the first of a request, by what they follow.
    pub retries: Reasons,
    /// Failures that would have been followed by another attempt, by what stood against it.
    pub retries_denied: Reasons,
    /// Attempts that failed after the connection was made, by reason.
    pub failures: Reasons,
}

/// What happened to connections of clients on this shard.
#[derive(Debug, Default)]
pub struct ConnectionStats {
    /// Accepted.
    pub opened: Counter,
    /// Open now.
    pub active: Counter,
    /// Not served, by reason.
    pub refused: Reasons,
    /// TLS handshakes that ended well.
    pub handshakes: Counter,
    /// TLS handshakes that did not, by reason.
    pub handshake_failures: Reasons,
    /// Violations of HTTP by clients, by reason.
    pub protocol_errors: Reasons,
}

/// What happened to UDP, whatever the route.
#[derive(Debug, Default)]
pub struct DatagramStats {
    /// Datagrams that did not go on, by reason.
    pub dropped: Reasons,
    /// Sessions that ended, by reason.
    pub ended: Reasons,
}

/// Everything of a shard that belongs to no rule and no backend.
#[derive(Debug, Default)]
pub struct ShardStats {
    /// Connections of clients.
    pub connections: ConnectionStats,
    /// UDP.
    pub datagrams: DatagramStats,
    /// Requests that reached no listener.
    pub unrouted: Rc<RuleStats>,
    /// Answers that the proxy gave itself, by reason.
    pub local_responses: Reasons,
}

/// Counts by reason. Reasons are literals, so there are few.
#[derive(Debug, Default)]
pub struct Reasons(RefCell<Vec<(&'static str, u64)>>);

impl Reasons {
    /// Counts one.
    pub fn increment(&self, reason: &'static str) {
        let mut counts = self.0.borrow_mut();
        match counts.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count += 1,
            None => counts.push((reason, 1)),
        }
    }

    /// The counts.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        self.0.borrow().clone()
    }
}

#[cfg(test)]
mod tests;
