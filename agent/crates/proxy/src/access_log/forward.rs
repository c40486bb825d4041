//! One line of the access log for a connection that was forwarded, or that no route took.

use std::{io::Write, net::SocketAddr, time::Duration};

use tidegate_model::{ListenerKey, RuleKey};

use super::line::{millis, push_listener, push_route, push_text};

/// What is logged of a connection.
#[derive(Clone, Debug)]
pub struct ForwardLine<'a> {
    /// Listener that took it.
    pub listener: &'a ListenerKey,
    /// Rule of the route that took it.
    pub route: Option<&'a RuleKey>,
    /// The client.
    pub peer: SocketAddr,
    /// Frontend that it connected to.
    pub local: SocketAddr,
    /// Name of the server that it asked for.
    pub server_name: Option<&'a str>,
    /// TLS version, where that ends here.
    pub tls: Option<&'static str>,
    /// Why it was not forwarded or broke off.
    pub reason: Option<&'a str>,
    /// More on the reason.
    pub detail: Option<&'a str>,
    /// Endpoint that it was connected to last.
    pub endpoint: Option<SocketAddr>,
    /// Endpoints tried.
    pub attempts: u32,
    /// Bytes passed on from the client.
    pub received: u64,
    /// Bytes passed on to the client.
    pub sent: u64,
    /// From accept to the end.
    pub duration: Duration,
}

impl ForwardLine<'_> {
    /// Appends the line. `labels` are members with a comma behind each.
    pub(super) fn render(&self, labels: &str, out: &mut Vec<u8>) {
        // Writing to a Vec cannot fail, here and below.
        let _ = write!(out, "{{\"time\":\"{:.3}\",{labels}", jiff::Timestamp::now());
        push_listener(out, self.listener);
        if let Some(route) = self.route {
            push_route(out, route);
        }
        let _ = write!(out, "\"client\":\"{}\",\"frontend\":\"{}\",", self.peer, self.local);
        push_text(out, "protocol", if self.server_name.is_some() || self.tls.is_some() { "TLS" } else { "TCP" });
        if let Some(name) = self.server_name {
            push_text(out, "server_name", name);
        }
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
        let _ = writeln!(
            out,
            "\"attempts\":{},\"received_bytes\":{},\"sent_bytes\":{},\"duration_ms\":{}}}",
            self.attempts,
            self.received,
            self.sent,
            millis(self.duration)
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tidegate_model::{ObjectName, RuleKind};

    use super::*;
    use crate::access_log::line::label_members;

    #[test]
    fn a_line_is_one_json_object() {
        let line = ForwardLine {
            listener: &ListenerKey::of_gateway(ObjectName::new("infra", "edge"), "tls"),
            route: Some(&RuleKey { kind: RuleKind::TLSRoute, route: ObjectName::new("shop", "db"), index: 0 }),
            peer: ([10, 0, 0, 1], 40000).into(),
            local: ([10, 0, 0, 2], 443).into(),
            server_name: Some("a.example"),
            tls: None,
            reason: Some("tunnel_closed"),
            detail: Some("\"\n"),
            endpoint: Some(([10, 0, 0, 3], 80).into()),
            attempts: 1,
            received: 7,
            sent: 9,
            duration: Duration::from_micros(1500),
        };
        let mut out = Vec::new();
        line.render(&label_members(&BTreeMap::new()), &mut out);
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["route"], "TLSRoute/shop/db");
        assert_eq!(value["gateway"], "infra/edge");
        assert_eq!(value["protocol"], "TLS");
        assert_eq!(value["server_name"], "a.example");
        assert_eq!(value["detail"], "\"\n");
        assert_eq!((&value["received_bytes"], &value["duration_ms"]), (&7.into(), &1.5.into()));
    }
}
