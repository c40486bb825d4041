//! What is known of a client's connection, and how backends are told: always from the real peer, never from what it says.

use std::net::IpAddr;

use crate::{
    decide::ConnectionFacts,
    http::{head::RequestHead, known::Known},
};

/// A client's connection.
#[derive(Debug)]
pub struct Client {
    /// What decisions depend on.
    pub facts: ConnectionFacts,
    /// Version of TLS.
    pub tls: Option<&'static str>,
    address: Box<str>,
    node: Box<str>,
    port: Box<str>,
}

impl Client {
    /// A connection with these facts.
    pub fn new(facts: ConnectionFacts, tls: Option<&'static str>) -> Self {
        let address = facts.peer.ip().to_canonical();
        Self {
            // RFC 7239 section 6: an IPv6 address is quoted and in brackets.
            node: match address {
                IpAddr::V4(address) => address.to_string().into(),
                IpAddr::V6(address) => format!("\"[{address}]\"").into(),
            },
            address: address.to_string().into(),
            port: facts.local.port().to_string().into(),
            facts,
            tls,
        }
    }

    /// Tells the backend who asks. What the client claimed in these fields has been removed before.
    pub fn push_forwarding(&self, head: &mut RequestHead) {
        let scheme = if self.facts.is_tls { "https" } else { "http" };
        head.headers.append("X-Forwarded-For", &*self.address);
        head.headers.append("X-Forwarded-Proto", scheme);
        head.headers.append("X-Forwarded-Port", &*self.port);
        // `Host` was checked to be a name or an address: no quote can be in it.
        let host = smallvec::SmallVec::<[u8; 64]>::from_slice(head.headers.find_known(Known::Host).unwrap_or_default());
        head.headers.append("X-Forwarded-Host", &host);
        let parts = [b"for=", self.node.as_bytes(), b";host=\"", &host, b"\";proto=", scheme.as_bytes()];
        head.headers.append_parts("Forwarded", &parts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_are_told_of_the_real_peer() {
        let facts = ConnectionFacts {
            local: "[2001:db8::1]:8443".parse().unwrap(),
            peer: "[2001:db8::2]:40000".parse().unwrap(),
            is_tls: true,
            sni: None,
        };
        let mut head = RequestHead::default();
        head.headers.append("host", "a.example:8443");
        Client::new(facts, None).push_forwarding(&mut head);
        let find = |name| str::from_utf8(head.headers.find(name).unwrap()).unwrap();
        assert_eq!(find("x-forwarded-for"), "2001:db8::2");
        assert_eq!(find("x-forwarded-port"), "8443");
        assert_eq!(find("forwarded"), "for=\"[2001:db8::2]\";host=\"a.example:8443\";proto=https");
    }
}
