//! Field names that the proxy itself acts on, found once for each field so that later steps compare a byte.

/// A field name known to the proxy, or [`Known::Other`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the variants are the names of the fields")]
pub enum Known {
    Other,
    Te,
    Via,
    Host,
    Date,
    Expect,
    Server,
    Origin,
    Upgrade,
    Trailer,
    Forwarded,
    Connection,
    KeepAlive,
    ContentType,
    ContentLength,
    Http2Settings,
    XForwardedFor,
    ProxyConnection,
    TransferEncoding,
    XForwardedProto,
    XForwardedHost,
    XForwardedPort,
    SecWebSocketKey,
}

impl Known {
    /// The name that `name` is, whatever its case.
    pub fn classify(name: &[u8]) -> Self {
        // Length first: most fields are told apart from all known names by it and one comparison.
        let candidates: &[(&str, Self)] = match name.len() {
            2 => &[("te", Self::Te)],
            3 => &[("via", Self::Via)],
            4 => &[("host", Self::Host), ("date", Self::Date)],
            6 => &[("expect", Self::Expect), ("server", Self::Server), ("origin", Self::Origin)],
            7 => &[("upgrade", Self::Upgrade), ("trailer", Self::Trailer)],
            9 => &[("forwarded", Self::Forwarded)],
            10 => &[("connection", Self::Connection), ("keep-alive", Self::KeepAlive)],
            12 => &[("content-type", Self::ContentType)],
            14 => &[("content-length", Self::ContentLength), ("http2-settings", Self::Http2Settings)],
            15 => &[("x-forwarded-for", Self::XForwardedFor)],
            16 => &[
                ("proxy-connection", Self::ProxyConnection),
                ("x-forwarded-host", Self::XForwardedHost),
                ("x-forwarded-port", Self::XForwardedPort),
            ],
            17 => &[
                ("transfer-encoding", Self::TransferEncoding),
                ("x-forwarded-proto", Self::XForwardedProto),
                ("sec-websocket-key", Self::SecWebSocketKey),
            ],
            _ => return Self::Other,
        };
        candidates
            .iter()
            .find(|(text, _)| name.eq_ignore_ascii_case(text.as_bytes()))
            .map_or(Self::Other, |&(_, known)| known)
    }

    /// Whether the field belongs to one hop and is never passed on (RFC 9110 section 7.6.1). `Upgrade` is among them: the
    /// side that really upgrades writes it anew.
    pub fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection
                | Self::KeepAlive
                | Self::ProxyConnection
                | Self::Te
                | Self::Trailer
                | Self::TransferEncoding
                | Self::Upgrade
                | Self::Http2Settings
        )
    }

    /// Whether the field says who the client is: the proxy writes these itself and trusts none from outside.
    pub fn is_forwarding(self) -> bool {
        matches!(
            self,
            Self::Forwarded | Self::XForwardedFor | Self::XForwardedProto | Self::XForwardedHost | Self::XForwardedPort
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_whatever_their_case() {
        assert_eq!(Known::classify(b"hOsT"), Known::Host);
        assert_eq!(Known::classify(b"Transfer-Encoding"), Known::TransferEncoding);
        assert_eq!(Known::classify(b"X-Forwarded-Proto"), Known::XForwardedProto);
        assert_eq!(Known::classify(b"X-Forwarded-Prota"), Known::Other);
        assert_eq!(Known::classify(b""), Known::Other);
    }
}
