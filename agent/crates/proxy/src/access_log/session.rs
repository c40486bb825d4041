//! The line of a UDP session, written when it ends.

use std::{io::Write, net::SocketAddr, time::Duration};

use tidegate_model::{ListenerKey, RuleKey};

use super::line::{millis, push_listener, push_route, push_text};

/// What is logged of a session.
#[derive(Clone, Debug)]
pub struct SessionLine<'a> {
    /// Listener that took it.
    pub listener: &'a ListenerKey,
    /// Route that it had last.
    pub rule: &'a RuleKey,
    /// The client.
    pub client: SocketAddr,
    /// Frontend that it spoke to.
    pub frontend: SocketAddr,
    /// Endpoint that it had last.
    pub endpoint: Option<SocketAddr>,
    /// Why it ended.
    pub reason: &'static str,
    /// Why a datagram of it was dropped, the last time.
    pub dropped_reason: Option<&'static str>,
    /// Datagrams and bytes of the client.
    pub received: (u64, u64),
    /// Datagrams and bytes sent to the client.
    pub sent: (u64, u64),
    /// Datagrams dropped.
    pub dropped: u64,
    /// From the first datagram to the end.
    pub duration: Duration,
}

impl SessionLine<'_> {
    /// Appends the line. `labels` are members with a comma behind each.
    pub fn render(&self, labels: &str, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail, here and below.
        let _ = write!(out, "{{\"time\":\"{:.3}\",{labels}", jiff::Timestamp::now());
        push_listener(out, self.listener);
        push_route(out, self.rule);
        let _ = write!(out, "\"client\":\"{}\",\"frontend\":\"{}\",", self.client, self.frontend);
        push_text(out, "protocol", "UDP");
        push_text(out, "reason", self.reason);
        if let Some(endpoint) = self.endpoint {
            let _ = write!(out, "\"upstream\":\"{endpoint}\",");
        }
        if let Some(reason) = self.dropped_reason {
            push_text(out, "dropped_reason", reason);
        }
        let ((received, received_bytes), (sent, sent_bytes)) = (self.received, self.sent);
        let _ = writeln!(
            out,
            "\"received_datagrams\":{received},\"received_bytes\":{received_bytes},\"sent_datagrams\":{sent},\
             \"sent_bytes\":{sent_bytes},\"dropped_datagrams\":{},\"duration_ms\":{}}}",
            self.dropped,
            millis(self.duration)
        );
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::{ObjectName, RuleKind};

    use super::*;

    #[test]
    fn a_line_is_one_json_object() {
        let line = SessionLine {
            listener: &ListenerKey::of_gateway(ObjectName::new("gw", "edge"), "dns"),
            rule: &RuleKey { kind: RuleKind::UDPRoute, route: ObjectName::new("dns", "zone"), index: 0 },
            client: "[2001:db8::1]:40000".parse().unwrap(),
            frontend: ([203, 0, 113, 1], 53).into(),
            endpoint: None,
            reason: "idle",
            dropped_reason: Some("no_endpoint"),
            received: (2, 100),
            sent: (0, 0),
            dropped: 2,
            duration: Duration::from_millis(1500),
        };
        let mut out = Vec::new();
        line.render("\"traffic.domain\":\"public\",", &mut out);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
        for (member, text) in [
            ("traffic.domain", "public"),
            ("gateway", "gw/edge"),
            ("route", "UDPRoute/dns/zone"),
            ("client", "[2001:db8::1]:40000"),
            ("reason", "idle"),
            ("dropped_reason", "no_endpoint"),
        ] {
            assert_eq!(value[member], text);
        }
        assert_eq!((value["received_bytes"].as_u64(), value["duration_ms"].as_f64()), (Some(100), Some(1500.0)));
        assert!(value.get("upstream").is_none());
    }
}
