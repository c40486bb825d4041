//! Metrics of connections, as the kernel tier's `observe` has counted them.
//!
//! How long a connection was open, its round-trip time, bytes and repeats are known when it ends, and counted then: what is
//! open for days shows in `tidegate_kernel_open_connections` alone. Cardinality: domains × buckets.

use std::collections::BTreeMap;

use tidegate_kernel::{ConnectionRow, Histogram};
use tidegate_model::DomainId;

use super::page::{Kind, Labels, Page};

/// Writes what is counted of each domain's connections.
pub(super) fn render(domains: &BTreeMap<DomainId, Labels>, rows: &[ConnectionRow], page: &mut Page) {
    let each = || rows.iter().filter_map(|row| Some((domains.get(&row.domain)?, row)));
    let by_domain = |of: fn(&ConnectionRow) -> u64| each().map(move |(labels, row)| (labels.clone(), of(row)));
    page.family(
        "tidegate_kernel_open_connections",
        "TCP connections from clients that are open now.",
        Kind::Gauge,
        by_domain(|row| row.open),
    );
    page.family(
        "tidegate_kernel_connections_opened_total",
        "TCP connections whose handshake was completed.",
        Kind::Counter,
        by_domain(|row| row.opened),
    );
    page.family(
        "tidegate_kernel_connections_uncounted_total",
        "TCP connections that limits on open connections do not see, for lack of room or memory.",
        Kind::Counter,
        by_domain(|row| row.uncounted),
    );
    page.family(
        "tidegate_kernel_tcp_retransmits_total",
        "Segments sent again to clients, counted when a connection ends.",
        Kind::Counter,
        by_domain(|row| row.retransmits),
    );
    page.family(
        "tidegate_kernel_tcp_bytes_total",
        "Bytes received from clients and acknowledged by them, counted when a connection ends.",
        Kind::Counter,
        each().flat_map(|(labels, row)| {
            [("received", row.bytes_received), ("sent", row.bytes_acked)]
                .map(|(direction, bytes)| (labels.clone().with("direction", direction), bytes))
        }),
    );
    let histogram = |of: fn(&ConnectionRow) -> &Histogram| each().map(move |(labels, row)| (labels.clone(), of(row)));
    page.histogram(
        "tidegate_kernel_tcp_rtt_seconds",
        "Smoothed round-trip time to the client at the end of a connection.",
        histogram(|row| &row.rtt).map(|(labels, histogram)| (labels, histogram.buckets.as_slice(), histogram.sum)),
    );
    page.histogram(
        "tidegate_kernel_connection_duration_seconds",
        "Time from the end of the handshake until the connection was closed.",
        histogram(|row| &row.duration).map(|(labels, histogram)| (labels, histogram.buckets.as_slice(), histogram.sum)),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_is_cumulative_and_a_domain_that_is_gone_is_not_shown() {
        let histogram = Histogram { buckets: vec![(0.001, 2), (0.004, 0), (f64::INFINITY, 1)], sum: 0.5 };
        let row = |domain| ConnectionRow {
            domain: DomainId(domain),
            open: 3,
            opened: 6,
            uncounted: 0,
            retransmits: 4,
            bytes_received: 100,
            bytes_acked: 200,
            rtt: histogram.clone(),
            duration: histogram.clone(),
        };
        let domains = [(DomainId(1), Labels::default().with("domain", "public"))].into();
        let mut page = Page::default();
        render(&domains, &[row(1), row(2)], &mut page);
        let text = page.into_text();
        for line in [
            "tidegate_kernel_open_connections{domain=\"public\"} 3",
            "tidegate_kernel_tcp_bytes_total{domain=\"public\",direction=\"sent\"} 200",
            "# TYPE tidegate_kernel_tcp_rtt_seconds histogram",
            "tidegate_kernel_tcp_rtt_seconds_bucket{domain=\"public\",le=\"0.001\"} 2",
            "tidegate_kernel_tcp_rtt_seconds_bucket{domain=\"public\",le=\"0.004\"} 2",
            "tidegate_kernel_tcp_rtt_seconds_bucket{domain=\"public\",le=\"+Inf\"} 3",
            "tidegate_kernel_tcp_rtt_seconds_sum{domain=\"public\"} 0.5",
            "tidegate_kernel_tcp_rtt_seconds_count{domain=\"public\"} 3",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert_eq!(text.matches("tidegate_kernel_open_connections{").count(), 1);
    }
}
