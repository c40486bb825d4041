//! Counters of one or more shards at one moment: plain numbers that can leave the shard and be added up.

use std::collections::BTreeMap;

use tidegate_model::{BackendKey, ObjectName, RuleKey};

use super::{
    ConnectionStats, DURATION_BOUNDS_NS, DatagramStats, ForwardStats, Histogram, Reasons, RuleStats, STATUS_CLASSES,
    UpstreamStats,
};

/// What requests are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestLabels {
    /// Gateway; `None` for requests that reached no listener.
    pub gateway: Option<ObjectName>,
    /// Rule; `None` for requests that found none.
    pub rule: Option<RuleKey>,
}

/// Counts of durations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramCounts {
    /// Not cumulative; the last is above all bounds.
    pub buckets: [u64; DURATION_BOUNDS_NS.len() + 1],
    /// Sum in nanoseconds.
    pub sum_ns: u64,
}

/// Counts of requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestCounts {
    /// By status class.
    pub responses: [u64; STATUS_CLASSES],
    /// Durations.
    pub durations: HistogramCounts,
    /// Bytes of request bodies.
    pub received_bytes: u64,
    /// Bytes of response bodies.
    pub sent_bytes: u64,
}

/// Counts by reason.
pub type ReasonCounts = BTreeMap<&'static str, u64>;

/// Counts of a forward.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForwardCounts {
    /// See [`ForwardStats::opened`].
    pub opened: u64,
    /// See [`ForwardStats::active`].
    pub active: u64,
    /// See [`ForwardStats::failures`].
    pub failures: ReasonCounts,
    /// See [`ForwardStats::received_bytes`].
    pub received_bytes: u64,
    /// See [`ForwardStats::sent_bytes`].
    pub sent_bytes: u64,
    /// See [`ForwardStats::received_datagrams`].
    pub received_datagrams: u64,
    /// See [`ForwardStats::sent_datagrams`].
    pub sent_datagrams: u64,
}

/// Counts of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamCounts {
    /// See [`UpstreamStats::requests`].
    pub requests: u64,
    /// See [`UpstreamStats::active`].
    pub active: u64,
    /// See [`UpstreamStats::connects`].
    pub connects: u64,
    /// See [`UpstreamStats::connect_errors`].
    pub connect_errors: u64,
    /// See [`UpstreamStats::retries`].
    pub retries: ReasonCounts,
    /// See [`UpstreamStats::retries_denied`].
    pub retries_denied: ReasonCounts,
    /// See [`UpstreamStats::failures`].
    pub failures: ReasonCounts,
    /// Endpoints that are ready. The same on every shard: not added up.
    pub ready_endpoints: u64,
    /// Endpoints that are terminating. Not added up.
    pub terminating_endpoints: u64,
}

/// Counts of connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectionCounts {
    /// See [`ConnectionStats::opened`].
    pub opened: u64,
    /// See [`ConnectionStats::active`].
    pub active: u64,
    /// See [`ConnectionStats::refused`].
    pub refused: ReasonCounts,
    /// See [`ConnectionStats::handshakes`].
    pub handshakes: u64,
    /// See [`ConnectionStats::handshake_failures`].
    pub handshake_failures: ReasonCounts,
    /// See [`ConnectionStats::protocol_errors`].
    pub protocol_errors: ReasonCounts,
}

/// Counts of UDP, whatever the route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatagramCounts {
    /// See [`DatagramStats::dropped`].
    pub dropped: ReasonCounts,
    /// See [`DatagramStats::ended`].
    pub ended: ReasonCounts,
}

/// All counters of one or more shards.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Requests.
    pub requests: BTreeMap<RequestLabels, RequestCounts>,
    /// Forwards.
    pub forwards: BTreeMap<RequestLabels, ForwardCounts>,
    /// Backends.
    pub upstreams: BTreeMap<BackendKey, UpstreamCounts>,
    /// Connections.
    pub connections: ConnectionCounts,
    /// UDP.
    pub datagrams: DatagramCounts,
    /// Answers of the proxy itself.
    pub local_responses: ReasonCounts,
    /// Lines of the access log dropped because its writer fell behind.
    pub log_lines_dropped: u64,
    /// Rules and forwards that are in force. The same on every shard: not added up.
    pub rules: u64,
}

impl Snapshot {
    /// Adds another shard's counters.
    pub fn add(&mut self, other: Self) {
        for (labels, counts) in other.requests {
            self.requests.entry(labels).or_default().add(&counts);
        }
        for (labels, counts) in other.forwards {
            self.forwards.entry(labels).or_default().add(counts);
        }
        for (key, counts) in other.upstreams {
            self.upstreams.entry(key).or_default().add(counts);
        }
        self.connections.add(other.connections);
        self.datagrams.add(other.datagrams);
        add_reasons(&mut self.local_responses, other.local_responses);
        self.log_lines_dropped += other.log_lines_dropped;
        self.rules = self.rules.max(other.rules);
    }
}

impl RequestCounts {
    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.responses.iter().all(|&count| count == 0)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        add_each(&mut self.responses, &other.responses);
        add_each(&mut self.durations.buckets, &other.durations.buckets);
        self.durations.sum_ns = self.durations.sum_ns.wrapping_add(other.durations.sum_ns);
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
    }
}

impl ForwardCounts {
    /// Whether nothing was counted.
    pub fn is_empty(&self) -> bool {
        self.opened == 0
    }

    fn add(&mut self, other: Self) {
        self.opened += other.opened;
        self.active += other.active;
        add_reasons(&mut self.failures, other.failures);
        self.received_bytes += other.received_bytes;
        self.sent_bytes += other.sent_bytes;
        self.received_datagrams += other.received_datagrams;
        self.sent_datagrams += other.sent_datagrams;
    }
}

impl DatagramCounts {
    fn add(&mut self, other: Self) {
        add_reasons(&mut self.dropped, other.dropped);
        add_reasons(&mut self.ended, other.ended);
    }
}

impl From<&DatagramStats> for DatagramCounts {
    fn from(stats: &DatagramStats) -> Self {
        Self { dropped: reason_counts(&stats.dropped), ended: reason_counts(&stats.ended) }
    }
}

impl UpstreamCounts {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.active += other.active;
        self.connects += other.connects;
        self.connect_errors += other.connect_errors;
        add_reasons(&mut self.retries, other.retries);
        add_reasons(&mut self.retries_denied, other.retries_denied);
        add_reasons(&mut self.failures, other.failures);
        self.ready_endpoints = self.ready_endpoints.max(other.ready_endpoints);
        self.terminating_endpoints = self.terminating_endpoints.max(other.terminating_endpoints);
    }
}

impl ConnectionCounts {
    fn add(&mut self, other: Self) {
        self.opened += other.opened;
        self.active += other.active;
        add_reasons(&mut self.refused, other.refused);
        self.handshakes += other.handshakes;
        add_reasons(&mut self.handshake_failures, other.handshake_failures);
        add_reasons(&mut self.protocol_errors, other.protocol_errors);
    }
}

impl From<&RuleStats> for RequestCounts {
    fn from(stats: &RuleStats) -> Self {
        Self {
            responses: stats.responses.each_ref().map(super::Counter::count),
            durations: (&stats.durations).into(),
            received_bytes: stats.received_bytes.count(),
            sent_bytes: stats.sent_bytes.count(),
        }
    }
}

impl From<&Histogram> for HistogramCounts {
    fn from(histogram: &Histogram) -> Self {
        Self { buckets: histogram.buckets.each_ref().map(super::Counter::count), sum_ns: histogram.sum_ns.count() }
    }
}

impl From<&ForwardStats> for ForwardCounts {
    fn from(stats: &ForwardStats) -> Self {
        Self {
            opened: stats.opened.count(),
            active: stats.active.count(),
            failures: reason_counts(&stats.failures),
            received_bytes: stats.received_bytes.count(),
            sent_bytes: stats.sent_bytes.count(),
            received_datagrams: stats.received_datagrams.count(),
            sent_datagrams: stats.sent_datagrams.count(),
        }
    }
}

impl From<&UpstreamStats> for UpstreamCounts {
    fn from(stats: &UpstreamStats) -> Self {
        Self {
            requests: stats.requests.count(),
            active: stats.active.count(),
            connects: stats.connects.count(),
            connect_errors: stats.connect_errors.count(),
            retries: reason_counts(&stats.retries),
            retries_denied: reason_counts(&stats.retries_denied),
            failures: reason_counts(&stats.failures),
            ready_endpoints: 0,
            terminating_endpoints: 0,
        }
    }
}

impl From<&ConnectionStats> for ConnectionCounts {
    fn from(stats: &ConnectionStats) -> Self {
        Self {
            opened: stats.opened.count(),
            active: stats.active.count(),
            refused: reason_counts(&stats.refused),
            handshakes: stats.handshakes.count(),
            handshake_failures: reason_counts(&stats.handshake_failures),
            protocol_errors: reason_counts(&stats.protocol_errors),
        }
    }
}

pub(crate) fn reason_counts(reasons: &Reasons) -> ReasonCounts {
    reasons.counts().into_iter().collect()
}

fn add_each<const N: usize>(sum: &mut [u64; N], other: &[u64; N]) {
    sum.iter_mut().zip(other).for_each(|(sum, count)| *sum += count);
}

fn add_reasons(sum: &mut ReasonCounts, other: ReasonCounts) {
    for (reason, count) in other {
        *sum.entry(reason).or_default() += count;
    }
}
