//! What ends at one hop: fields about the connection are taken out of every message that passes (RFC 9110 section 7.6.1).

use super::{
    h1::framing::list_members,
    head::{Field, Headers, RequestHead},
    known::Known,
};

/// What a request wants of its next hop, read before the fields that say it are removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HopRequest {
    /// Protocol to upgrade to.
    pub upgrade: Option<Box<[u8]>>,
    /// `TE: trailers`: the client reads trailer fields. gRPC insists on it.
    pub accepts_trailers: bool,
}

/// Removes the fields of this hop from a request. `may_upgrade`: see [`super::h1::framing::RequestFraming::upgrade`].
pub fn strip_request(head: &mut RequestHead, may_upgrade: bool) -> HopRequest {
    let is_h2c = |value: &[u8]| list_members(value).any(|protocol| protocol.eq_ignore_ascii_case(b"h2c"));
    // An upgrade to HTTP/2 would take the connection out of the sight of rules: the offer is ignored.
    let upgrade = head.headers.find_known(Known::Upgrade).filter(|value| may_upgrade && !is_h2c(value)).map(Box::from);
    let accepts_trailers = head
        .headers
        .values_known(Known::Te)
        .flat_map(list_members)
        .any(|member| member.eq_ignore_ascii_case(b"trailers"));
    strip(&mut head.headers, |field| {
        field.known.is_hop_by_hop()
            || field.known.is_forwarding()
            || (field.known == Known::Other && is_forwarding_or_disguised(field.name))
    });
    HopRequest { upgrade, accepts_trailers }
}

/// Removes the fields of this hop from a response; `Upgrade` stays for a 101.
pub fn strip_response(headers: &mut Headers, is_upgrade: bool) {
    strip(headers, |field| field.known.is_hop_by_hop() && !(is_upgrade && field.known == Known::Upgrade));
}

/// Whether an unknown name is one more that says who the client is (`X-Forwarded-…`, `X-Real-IP`), or reads like a field
/// of framing or forwarding once a CGI or WSGI endpoint has made `_` of its dashes.
fn is_forwarding_or_disguised(name: &[u8]) -> bool {
    let dashed = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    let starts_with =
        |prefix: &[u8]| name.len() >= prefix.len() && name.iter().map(dashed).zip(prefix).all(|(a, b)| a == *b);
    if starts_with(b"x-forwarded-") || (name.len() == 9 && starts_with(b"x-real-ip")) {
        return true;
    }
    if memchr::memchr(b'_', name).is_none() {
        return false;
    }
    let known = Known::classify(&name.iter().map(dashed).collect::<smallvec::SmallVec<[u8; 32]>>());
    known.is_hop_by_hop() || known.is_forwarding() || matches!(known, Known::ContentLength | Known::Expect)
}

fn strip(headers: &mut Headers, is_unwanted: impl Fn(&Field<'_>) -> bool) {
    let mut nominated = smallvec::SmallVec::<[Box<[u8]>; 2]>::new();
    let mut any = false;
    for field in headers.iter() {
        any |= is_unwanted(&field);
        if field.known == Known::Connection {
            nominated.extend(list_members(field.value).filter(|option| is_nomination(option)).map(Box::from));
        }
    }
    if any {
        headers.remove_if(|field| is_unwanted(&field));
    }
    for name in nominated {
        headers.remove(name);
    }
}

/// Whether a connection option names a field to remove. Fields that route or frame a message stay: to have them removed
/// is an attack on the next hop.
fn is_nomination(option: &[u8]) -> bool {
    let is_plain = [&b"close"[..], b"keep-alive", b"upgrade"].iter().any(|plain| option.eq_ignore_ascii_case(plain));
    !is_plain && matches!(Known::classify(option), Known::Other | Known::Via | Known::Date | Known::Server)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_the_hop_and_those_it_names_are_removed() {
        let mut head = RequestHead::default();
        for (name, value) in [
            ("Host", "a.example"),
            ("Connection", "keep-alive, X-Own, Host, Content-Length"),
            ("X-Own", "1"),
            ("Keep-Alive", "timeout=5"),
            ("TE", "gzip;q=0, trailers"),
            ("Proxy-Connection", "close"),
            ("X-Forwarded-For", "6.6.6.6"),
            ("Forwarded", "for=6.6.6.6"),
            ("X-Forwarded-Client-Cert", "Subject=\"CN=root\""),
            ("X-Real-IP", "6.6.6.6"),
            ("X_Forwarded_For", "6.6.6.6"),
            ("Transfer_Encoding", "chunked"),
            ("x_plain", "4"),
            ("Content-Length", "3"),
            ("X-Kept", "2"),
        ] {
            head.headers.append(name, value);
        }
        let hop = strip_request(&mut head, false);
        assert_eq!(hop, HopRequest { upgrade: None, accepts_trailers: true });
        let left: Vec<_> = head.headers.iter().map(|field| field.name.to_vec()).collect();
        assert_eq!(left, [&b"Host"[..], b"x_plain", b"Content-Length", b"X-Kept"]);
    }

    #[test]
    fn an_upgrade_is_passed_on_but_never_to_http2() {
        let offer = |protocol: &str| {
            let mut head = RequestHead::default();
            head.headers.append("upgrade", protocol);
            strip_request(&mut head, true).upgrade
        };
        assert_eq!(offer("websocket").as_deref(), Some(&b"websocket"[..]));
        assert_eq!(offer("H2C"), None);
        assert_eq!(offer("websocket, h2c"), None);
    }
}
