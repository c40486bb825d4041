//! Request targets and hosts (RFC 9112 section 3.2, RFC 3986 section 3.2). Pure.

use http::Method;

use super::refusal::Refusal;

/// A request target taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Path and query; `/` when an absolute form has none, `*` for the asterisk form.
    pub path_and_query: &'a str,
    /// Authority of the absolute form: it wins over `Host` (RFC 9112 section 3.2.2).
    pub authority: Option<&'a str>,
    /// Whether path and query need a `/` in front (absolute form with a query only).
    pub needs_slash: bool,
}

/// Takes a target apart.
///
/// # Errors
/// [`Refusal::Target`] and [`Refusal::Connect`].
pub fn parse<'a>(method: &Method, target: &'a [u8]) -> Result<Target<'a>, Refusal> {
    // Visible ASCII only; a fragment never goes over the wire (RFC 9110 section 4.2.5).
    if target.is_empty() || !target.iter().all(|byte| byte.is_ascii_graphic() && *byte != b'#') {
        return Err(Refusal::Target);
    }
    let target = str::from_utf8(target).map_err(|_| Refusal::Target)?;
    if *method == Method::CONNECT {
        return Err(Refusal::Connect);
    }
    if target.starts_with('/') {
        return Ok(Target { path_and_query: target, authority: None, needs_slash: false });
    }
    if target == "*" {
        let taken = *method == Method::OPTIONS;
        return taken
            .then_some(Target { path_and_query: "*", authority: None, needs_slash: false })
            .ok_or(Refusal::Target);
    }
    let rest = strip_scheme(target).ok_or(Refusal::Target)?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path_and_query) = rest.split_at(end);
    Ok(Target {
        path_and_query: if path_and_query.is_empty() { "/" } else { path_and_query },
        authority: Some(authority),
        needs_slash: path_and_query.starts_with('?'),
    })
}

fn strip_scheme(target: &str) -> Option<&str> {
    let (scheme, rest) = target.split_once("://")?;
    (scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")).then_some(rest)
}

/// Takes `host[:port]` apart: a name of letters, digits, `-`, `.` and `_`, an IPv4 address, or an IPv6 address in brackets.
/// Other characters that RFC 3986 allows in a name occur in no name that a listener can have.
///
/// # Errors
/// [`Refusal::HostInvalid`].
pub fn parse_host(authority: &[u8]) -> Result<(&str, Option<u16>), Refusal> {
    const MAX: usize = 255 + 6;
    let text = str::from_utf8(authority).map_err(|_| Refusal::HostInvalid)?;
    if text.len() > MAX {
        return Err(Refusal::HostInvalid);
    }
    let host_end = match text.strip_prefix('[') {
        Some(rest) => {
            let inner = rest.find(']').ok_or(Refusal::HostInvalid)?;
            rest[..inner].parse::<std::net::Ipv6Addr>().map_err(|_| Refusal::HostInvalid)?;
            inner + 2
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            let is_valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            if end == 0 || !text.as_bytes()[..end].iter().copied().all(is_valid) || text.starts_with('.') {
                return Err(Refusal::HostInvalid);
            }
            end
        }
    };
    let (host, rest) = text.split_at(host_end);
    let port = match rest.strip_prefix(':') {
        None if rest.is_empty() => None,
        // RFC 3986 section 3.2.3: an empty port is the default one.
        Some("") => None,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(digits.parse().map_err(|_| Refusal::HostInvalid)?)
        }
        _ => return Err(Refusal::HostInvalid),
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_the_four_forms_apart() {
        let origin = parse(&Method::GET, b"/a?b").unwrap();
        assert_eq!((origin.path_and_query, origin.authority), ("/a?b", None));
        let absolute = parse(&Method::GET, b"http://a.example:80/x?y").unwrap();
        assert_eq!((absolute.path_and_query, absolute.authority), ("/x?y", Some("a.example:80")));
        let bare = parse(&Method::GET, b"HTTPS://a.example").unwrap();
        assert_eq!((bare.path_and_query, bare.authority), ("/", Some("a.example")));
        let query = parse(&Method::GET, b"http://a.example?q").unwrap();
        assert_eq!((query.path_and_query, query.needs_slash), ("?q", true));
        assert_eq!(parse(&Method::OPTIONS, b"*").unwrap().path_and_query, "*");
        assert_eq!(parse(&Method::CONNECT, b"a.example:443"), Err(Refusal::Connect));
        for bad in ["*", "", "a.example/x", "ftp://a/", "/a#b", "/a\u{e9}", "/a\x7f", "/a b"] {
            assert_eq!(parse(&Method::GET, bad.as_bytes()), Err(Refusal::Target), "{bad:?}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses_with_an_optional_port() {
        assert_eq!(parse_host(b"a.example"), Ok(("a.example", None)));
        assert_eq!(parse_host(b"A_b-1.example.:8080"), Ok(("A_b-1.example.", Some(8080))));
        assert_eq!(parse_host(b"[::1]:80"), Ok(("[::1]", Some(80))));
        assert_eq!(parse_host(b"10.0.0.1:"), Ok(("10.0.0.1", None)));
        for bad in ["", ":80", "a b", "a@b", "a,b", "a/b", "[::1", "[x]", "a:+1", "a:99999", "a:1:2", ".", "\u{e9}"] {
            assert_eq!(parse_host(bad.as_bytes()), Err(Refusal::HostInvalid), "{bad:?}");
        }
    }
}
