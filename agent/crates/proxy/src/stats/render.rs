//! Counters as Prometheus text (exposition format 0.0.4): base units, `_total` on counters, `HELP` and `TYPE` once for
//! each family, the domain's labels first on every series. The text is handed on in pieces of whole lines: with thousands of
//! routes it is longer than all that the worker holds of them.

use std::{collections::BTreeMap, fmt::Write};

use tidegate_model::RuleKind;

use super::{DURATION_BOUNDS_NS, HistogramCounts, RequestLabels, Snapshot, snapshot::ReasonCounts};

/// Label names that families use themselves; a domain's label of such a name gets [`OWN_LABEL_PREFIX`] before it.
const RESERVED: [&str; 10] =
    ["gateway", "kind", "route", "rule", "status", "le", "backend", "state", "reason", "direction"];
const OWN_LABEL_PREFIX: &str = "domain_";

/// Bytes after which a piece ends with its line: with that line it still goes into one packet of the control channel.
const PIECE: usize = 48 * 1024;

const CLASSES: [&str; super::STATUS_CLASSES] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Labels and value of a series.
type Series = (String, u64);

impl Snapshot {
    /// Renders all counters with the domain's labels, whose names may be any text (`traffic.domain` becomes
    /// `traffic_domain`). A rule without a single request yet has no series: a model may hold thousands. `take` is given the
    /// text in pieces of whole lines, with whether one is the last.
    pub fn render(&self, labels: &BTreeMap<String, String>, take: &mut dyn FnMut(String, bool)) {
        let mut page = Page { domain: domain_labels(labels), text: String::new(), take };
        self.render_requests(&mut page);
        self.render_forwards(&mut page);
        self.render_datagrams(&mut page);
        self.render_connections(&mut page);
        self.render_upstreams(&mut page);
        (page.take)(page.text, true);
    }

    fn render_requests(&self, page: &mut Page<'_>) {
        let seen = || self.requests.iter().filter(|(_, counts)| !counts.is_empty());
        let responses = seen().flat_map(|(labels, counts)| {
            CLASSES
                .iter()
                .zip(counts.responses)
                .filter(|(_, count)| *count > 0)
                .map(move |(class, count)| (format!("{},status=\"{class}\"", request_labels(labels)), count))
        });
        page.counter("tidegate_requests_total", "Requests answered, by status class.", responses);
        page.histogram(
            "tidegate_request_duration_seconds",
            "Time from a request's head to the end of its response.",
            seen().map(|(labels, counts)| (request_labels(labels), &counts.durations)),
        );
        let received = seen().map(|(labels, counts)| (request_labels(labels), counts.received_bytes));
        page.counter("tidegate_request_body_bytes_total", "Bytes of request bodies received.", received);
        let sent = seen().map(|(labels, counts)| (request_labels(labels), counts.sent_bytes));
        page.counter("tidegate_response_body_bytes_total", "Bytes of response bodies sent.", sent);
        page.counter(
            "tidegate_local_responses_total",
            "Answers that no backend gave, by reason.",
            reason_series("", &self.local_responses),
        );
        page.counter(
            "tidegate_access_log_dropped_total",
            "Lines of the access log dropped because its writer fell behind.",
            [(String::new(), self.log_lines_dropped)],
        );
        page.gauge("tidegate_rules", "Rules and forwards in force.", [(String::new(), self.rules)]);
    }

    fn render_forwards(&self, page: &mut Page<'_>) {
        let forwards: Vec<_> = self.forwards.iter().map(|(labels, counts)| (request_labels(labels), counts)).collect();
        let mut family = |name, help, is_gauge, value: fn(&super::ForwardCounts) -> u64| {
            let series = forwards.iter().map(|(labels, counts)| (labels.clone(), value(counts)));
            page.family(name, help, if is_gauge { "gauge" } else { "counter" }, series);
        };
        family("tidegate_forwards_total", "Connections and sessions taken by a route.", false, |counts| counts.opened);
        family("tidegate_forwards_active", "Connections and sessions that are open.", true, |counts| counts.active);
        family("tidegate_forward_received_bytes_total", "Bytes passed on from clients.", false, |counts| {
            counts.received_bytes
        });
        family("tidegate_forward_sent_bytes_total", "Bytes passed on to clients.", false, |counts| counts.sent_bytes);
        let failures = forwards.iter().flat_map(|(labels, counts)| reason_series(labels, &counts.failures));
        page.counter(
            "tidegate_forward_failures_total",
            "Connections and sessions not forwarded or broken off, by reason.",
            failures,
        );
    }

    fn render_datagrams(&self, page: &mut Page<'_>) {
        let seen = self.forwards.iter().filter(|(_, counts)| counts.received_datagrams > 0);
        let series = seen.flat_map(|(labels, counts)| {
            let labels = request_labels(labels);
            [("received", counts.received_datagrams), ("sent", counts.sent_datagrams)]
                .map(|(direction, count)| (format!("{labels},{}", label("direction", direction)), count))
        });
        page.counter("tidegate_forward_datagrams_total", "Datagrams from clients and to them.", series);
        page.counter(
            "tidegate_datagrams_dropped_total",
            "Datagrams that did not go on, by reason.",
            reason_series("", &self.datagrams.dropped),
        );
        page.counter(
            "tidegate_datagram_sessions_ended_total",
            "UDP sessions that ended, by reason.",
            reason_series("", &self.datagrams.ended),
        );
    }

    fn render_connections(&self, page: &mut Page<'_>) {
        let one = |count| [(String::new(), count)];
        let connections = &self.connections;
        page.counter("tidegate_connections_total", "Connections accepted from clients.", one(connections.opened));
        page.gauge("tidegate_connections_active", "Connections of clients that are open.", one(connections.active));
        page.counter(
            "tidegate_connections_refused_total",
            "Connections closed unserved, by reason.",
            reason_series("", &connections.refused),
        );
        page.counter("tidegate_tls_handshakes_total", "TLS handshakes completed.", one(connections.handshakes));
        page.counter(
            "tidegate_tls_handshake_failures_total",
            "TLS handshakes that failed, by reason.",
            reason_series("", &connections.handshake_failures),
        );
        page.counter(
            "tidegate_protocol_errors_total",
            "Violations of HTTP by clients, by reason.",
            reason_series("", &connections.protocol_errors),
        );
    }

    fn render_upstreams(&self, page: &mut Page<'_>) {
        let upstreams: Vec<_> =
            self.upstreams.iter().map(|(key, counts)| (label("backend", &key.to_string()), counts)).collect();
        let mut family = |name, help, is_gauge, value: fn(&super::UpstreamCounts) -> u64| {
            let series = upstreams.iter().map(|(labels, counts)| (labels.clone(), value(counts)));
            page.family(name, help, if is_gauge { "gauge" } else { "counter" }, series);
        };
        family("tidegate_upstream_requests_total", "Attempts at a backend.", false, |counts| counts.requests);
        family("tidegate_upstream_requests_active", "Attempts that run.", true, |counts| counts.active);
        family("tidegate_upstream_connects_total", "Connections made.", false, |counts| counts.connects);
        family("tidegate_upstream_connect_errors_total", "Connections not made.", false, |counts| {
            counts.connect_errors
        });
        let retries = upstreams.iter().flat_map(|(labels, counts)| reason_series(labels, &counts.retries));
        page.counter("tidegate_upstream_retries_total", "Attempts after a first one, by what failed.", retries);
        let denied = upstreams.iter().flat_map(|(labels, counts)| reason_series(labels, &counts.retries_denied));
        page.counter("tidegate_upstream_retries_denied_total", "Failures without another attempt, by reason.", denied);
        let failures = upstreams.iter().flat_map(|(labels, counts)| reason_series(labels, &counts.failures));
        page.counter("tidegate_upstream_failures_total", "Attempts that failed, by reason.", failures);
        let endpoints = upstreams.iter().flat_map(|(labels, counts)| {
            [("ready", counts.ready_endpoints), ("terminating", counts.terminating_endpoints)]
                .map(|(state, count)| (format!("{labels},state=\"{state}\""), count))
        });
        page.gauge("tidegate_upstream_endpoints", "Endpoints known, by state.", endpoints);
    }
}

struct Page<'a> {
    /// The domain's labels, each followed by a comma.
    domain: String,
    /// The piece under way.
    text: String,
    take: &'a mut dyn FnMut(String, bool),
}

impl Page<'_> {
    fn counter(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = Series>) {
        self.family(name, help, "counter", series);
    }

    fn gauge(&mut self, name: &str, help: &str, series: impl IntoIterator<Item = Series>) {
        self.family(name, help, "gauge", series);
    }

    fn family(&mut self, name: &str, help: &str, kind: &str, series: impl IntoIterator<Item = Series>) {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return;
        }
        self.head(name, help, kind);
        for (labels, value) in series {
            self.sample(name, "", &labels, value);
        }
    }

    fn histogram<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl IntoIterator<Item = (String, &'a HistogramCounts)>,
    ) {
        let mut series = series.into_iter().peekable();
        if series.peek().is_none() {
            return;
        }
        self.head(name, help, "histogram");
        for (labels, counts) in series {
            let mut cumulated = 0;
            let bounds = DURATION_BOUNDS_NS.iter().map(|&bound| seconds(bound)).chain(["+Inf".to_owned()]);
            for (bound, count) in bounds.zip(counts.buckets) {
                cumulated += count;
                self.sample(name, "_bucket", &format!("{labels},le=\"{bound}\""), cumulated);
            }
            self.sample(name, "_sum", &labels, seconds(counts.sum_ns));
            self.sample(name, "_count", &labels, cumulated);
        }
    }

    fn head(&mut self, name: &str, help: &str, kind: &str) {
        write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n").expect("a String takes all text");
    }

    fn sample(&mut self, name: &str, suffix: &str, labels: &str, value: impl std::fmt::Display) {
        let domain = if labels.is_empty() { self.domain.trim_end_matches(',') } else { &self.domain };
        let line = if domain.is_empty() && labels.is_empty() {
            writeln!(self.text, "{name}{suffix} {value}")
        } else {
            writeln!(self.text, "{name}{suffix}{{{domain}{labels}}} {value}")
        };
        line.expect("a String takes all text");
        if self.text.len() >= PIECE {
            (self.take)(std::mem::take(&mut self.text), false);
        }
    }
}

fn request_labels(labels: &RequestLabels) -> String {
    let gateway = labels.gateway.as_ref().map(ToString::to_string).unwrap_or_default();
    let (kind, route, rule) = match &labels.rule {
        Some(key) => {
            let kind = match key.kind {
                RuleKind::HTTPRoute => "HTTPRoute",
                RuleKind::GRPCRoute => "GRPCRoute",
                RuleKind::TLSRoute => "TLSRoute",
                RuleKind::TCPRoute => "TCPRoute",
                RuleKind::UDPRoute => "UDPRoute",
            };
            (kind, key.route.to_string(), key.index.to_string())
        }
        None => ("", String::new(), String::new()),
    };
    [label("gateway", &gateway), label("kind", kind), label("route", &route), label("rule", &rule)].join(",")
}

fn reason_series(labels: &str, counts: &ReasonCounts) -> Vec<Series> {
    let with = |reason: &str| match labels {
        "" => label("reason", reason),
        labels => format!("{labels},{}", label("reason", reason)),
    };
    counts.iter().map(|(reason, &count)| (with(reason), count)).collect()
}

fn label(name: &str, value: &str) -> String {
    let mut text = format!("{name}=\"");
    for character in value.chars() {
        match character {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            other => text.push(other),
        }
    }
    text.push('"');
    text
}

/// The domain's labels with names that Prometheus takes, each once and followed by a comma.
fn domain_labels(labels: &BTreeMap<String, String>) -> String {
    let mut renamed = BTreeMap::<String, &str>::new();
    for (name, value) in labels {
        let mut safe: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if safe.starts_with(|c: char| c.is_ascii_digit()) || safe.starts_with("__") || safe.is_empty() {
            safe.insert_str(0, OWN_LABEL_PREFIX);
        }
        if RESERVED.contains(&safe.as_str()) {
            safe.insert_str(0, OWN_LABEL_PREFIX);
        }
        renamed.entry(safe).or_insert(value);
    }
    renamed.iter().map(|(name, value)| label(name, value) + ",").collect()
}

/// Nanoseconds as seconds, without the rounding of a float.
fn seconds(ns: u64) -> String {
    let text = format!("{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
