//! One line of the access log. Text from clients is escaped, so that no request can forge a line.

use std::{collections::BTreeMap, io::Write, net::SocketAddr, time::Duration};

use tidegate_model::{ListenerKey, RuleKey};

/// What is logged of a request.
#[derive(Clone, Debug)]
pub struct Line<'a> {
    /// Listener that took the request.
    pub listener: Option<&'a ListenerKey>,
    /// Rule that took it.
    pub rule: Option<&'a RuleKey>,
    /// Method, host, path with query, and version, as received.
    pub method: &'a str,
    #[expect(missing_docs, reason = "see `method`")]
    pub host: &'a str,
    #[expect(missing_docs, reason = "see `method`")]
    pub target: &'a str,
    #[expect(missing_docs, reason = "see `method`")]
    pub protocol: &'static str,
    /// TLS version of the client's connection.
    pub tls: Option<&'static str>,
    /// The client.
    pub peer: SocketAddr,
    /// Frontend that it connected to.
    pub local: SocketAddr,
    /// Status sent.
    pub status: u16,
    /// Why, where the proxy itself answered or broke off.
    pub reason: Option<&'a str>,
    /// More on the reason.
    pub detail: Option<&'a str>,
    /// From the request's head to the end of the response.
    pub duration: Duration,
    /// From the request's head to the response's head.
    pub response_after: Option<Duration>,
    /// Bytes of the request's body.
    pub received: u64,
    /// Bytes of the response's body.
    pub sent: u64,
    /// Endpoint of the last attempt.
    pub endpoint: Option<SocketAddr>,
    /// Attempts made.
    pub attempts: u32,
}

impl Line<'_> {
    /// Appends the line. `labels` are members with a comma behind each, see `label_members`.
    pub fn render(&self, labels: &str, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail, here and below.
        let _ = write!(out, "{{\"time\":\"{:.3}\",{labels}", jiff::Timestamp::now());
        if let Some(listener) = self.listener {
            push_listener(out, listener);
        }
        if let Some(rule) = self.rule {
            push_route(out, rule);
        }
        let _ = write!(out, "\"client\":\"{}\",\"frontend\":\"{}\",", self.peer, self.local);
        push_text(out, "method", self.method);
        push_text(out, "host", self.host);
        push_text(out, "path", self.target);
        push_text(out, "protocol", self.protocol);
        if let Some(tls) = self.tls {
            push_text(out, "tls", tls);
        }
        if let Some(reason) = self.reason {
            push_text(out, "reason", reason);
        }
        if let Some(detail) = self.detail {
            push_text(out, "detail", detail);
        }
        if let Some(endpoint) = self.endpoint {
            let _ = write!(out, "\"upstream\":\"{endpoint}\",");
        }
        if let Some(after) = self.response_after {
            let _ = write!(out, "\"upstream_ms\":{},", millis(after));
        }
        let _ = writeln!(
            out,
            "\"attempts\":{},\"received_bytes\":{},\"sent_bytes\":{},\"duration_ms\":{},\"status\":{}}}",
            self.attempts,
            self.received,
            self.sent,
            millis(self.duration),
            self.status
        );
    }

    #[cfg(test)]
    pub(super) fn example() -> Self {
        Self {
            listener: None,
            rule: None,
            method: "GET",
            host: "a.example",
            target: "/\"\\\n\u{1}",
            protocol: "HTTP/1.1",
            tls: Some("TLS 1.3"),
            peer: ([10, 0, 0, 1], 40000).into(),
            local: ([10, 0, 0, 2], 443).into(),
            status: 502,
            reason: Some("upstream_connect"),
            detail: None,
            duration: Duration::from_micros(1234),
            response_after: None,
            received: 0,
            sent: 16,
            endpoint: Some(([10, 0, 0, 3], 80).into()),
            attempts: 2,
        }
    }
}

/// Labels as JSON members with a comma behind each.
pub(super) fn label_members(labels: &BTreeMap<String, String>) -> String {
    let mut out = Vec::new();
    for (name, value) in labels {
        push_json(&mut out, name);
        out.push(b':');
        push_json(&mut out, value);
        out.push(b',');
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Which listener took it, with a comma behind.
pub(super) fn push_listener(out: &mut Vec<u8>, listener: &ListenerKey) {
    let _ = write!(out, "\"gateway\":\"{}\",", listener.gateway);
    if let Some(set) = &listener.set {
        let _ = write!(out, "\"listener_set\":\"{set}\",");
    }
    let _ = write!(out, "\"listener\":\"{}\",", listener.name);
}

/// Which rule took it, with a comma behind.
pub(super) fn push_route(out: &mut Vec<u8>, rule: &RuleKey) {
    let _ = write!(out, "\"route\":\"{:?}/{}\",\"rule\":{},", rule.kind, rule.route, rule.index);
}

pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

pub(super) fn push_text(out: &mut Vec<u8>, name: &str, value: &str) {
    let _ = write!(out, "\"{name}\":");
    push_json(out, value);
    out.push(b',');
}

fn push_json(out: &mut Vec<u8>, text: &str) {
    // A string always has a JSON form.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_object_whatever_the_client_sent() {
        let labels = BTreeMap::from([("traffic.domain".to_owned(), "pub\"lic".to_owned())]);
        let mut out = Vec::new();
        Line::example().render(&label_members(&labels), &mut out);
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["traffic.domain"], "pub\"lic");
        assert_eq!(value["path"], "/\"\\\n\u{1}");
        assert_eq!(value["duration_ms"], 1.234);
        assert_eq!(value["upstream"], "10.0.0.3:80");
    }
}
