//! Heads between hyper's types and the proxy's. What HTTP/2 may not carry (RFC 9113 section 8.2.2) is not carried over.

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, uri};

use crate::http::{
    h1::{chunked, parse, refusal::Refusal, target},
    head::{Headers, RequestHead, ResponseHead, Version},
    hop::HopRequest,
    known::Known,
};

/// Fills a cleared head from a request of a client.
///
/// # Errors
/// The rule of RFC 9113 section 8.3.1 or RFC 9110 that it breaks.
pub fn fill_request<B>(request: &Request<B>, head: &mut RequestHead) -> Result<(), Refusal> {
    head.version = Version::Http2;
    head.method = request.method().clone();
    let path = request.uri().path_and_query().map_or("/", uri::PathAndQuery::as_str);
    if path.len() > parse::MAX_TARGET {
        return Err(Refusal::TargetTooLong);
    }
    head.fill_target(target::parse(&head.method, path.as_bytes())?.path_and_query);
    let mut hosts = request.headers().get_all(http::header::HOST).iter();
    let field = hosts.next().map(HeaderValue::as_bytes);
    if hosts.next().is_some() {
        return Err(Refusal::HostRepeated);
    }
    let authority = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    if let (Some(authority), Some(field)) = (authority, field)
        && !authority.eq_ignore_ascii_case(field)
    {
        // RFC 9113 section 8.3.1: they must not differ; one proxy would route by one, the next by the other.
        return Err(Refusal::HostInvalid);
    }
    let authority = authority.or(field).ok_or(Refusal::HostMissing)?;
    let (host, port) = target::parse_host(authority)?;
    head.fill_host(host, port);
    head.headers.append("host", authority);
    push_fields(request.headers(), &mut head.headers)
}

/// Fills a cleared head from a response of an endpoint.
///
/// # Errors
/// The limit that it exceeds.
pub fn fill_response<B>(response: &Response<B>, head: &mut ResponseHead) -> Result<(), Refusal> {
    head.version = Version::Http2;
    head.status = response.status().as_u16();
    push_fields(response.headers(), &mut head.headers)
}

fn push_fields(map: &HeaderMap, headers: &mut Headers) -> Result<(), Refusal> {
    if map.len() > parse::MAX_FIELDS {
        return Err(Refusal::TooManyFields);
    }
    for (name, value) in map {
        if parse::has_control(value.as_bytes()) {
            return Err(Refusal::FieldValue);
        }
        if name != http::header::HOST && name != http::header::COOKIE {
            headers.append(name.as_str(), value.as_bytes());
        }
    }
    push_cookies(map, headers);
    Ok(())
}

/// One `cookie` field of what HTTP/2 allows to be several (RFC 9113 section 8.2.3).
fn push_cookies(map: &HeaderMap, headers: &mut Headers) {
    let mut cookies = map.get_all(http::header::COOKIE).iter().map(HeaderValue::as_bytes);
    match (cookies.next(), cookies.next()) {
        (None, _) => {}
        (Some(cookie), None) => headers.append("cookie", cookie),
        (Some(first), Some(second)) => {
            let all: Vec<&[u8]> = [first, second].into_iter().chain(cookies).collect();
            headers.append("cookie", all.join(&b"; "[..]));
        }
    }
}

/// Makes a request for an endpoint.
///
/// # Errors
/// [`Refusal::Target`] when path or host cannot stand in a URI.
pub fn make_request<B>(head: &RequestHead, hop: &HopRequest, is_tls: bool, body: B) -> Result<Request<B>, Refusal> {
    let authority = head.headers.find_known(Known::Host).filter(|host| !host.is_empty()).unwrap_or(b"localhost");
    let uri = Uri::builder()
        .scheme(if is_tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP })
        .authority(authority)
        .path_and_query(head.target())
        .build()
        .map_err(|_| Refusal::Target)?;
    let mut request = Request::new(body);
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri;
    *request.version_mut() = http::Version::HTTP_2;
    // The endpoint's leave to send is never waited for: HTTP/2 has flow control for it.
    copy_fields(&head.headers, request.headers_mut(), |known| matches!(known, Known::Host | Known::Expect));
    if hop.accepts_trailers {
        request.headers_mut().insert(http::header::TE, HeaderValue::from_static("trailers"));
    }
    Ok(request)
}

/// Makes a response for a client.
pub fn make_response<B>(head: &ResponseHead, body: B) -> Response<B> {
    let mut response = Response::new(body);
    // A status outside 100..=999 is refused where it is parsed.
    *response.status_mut() = http::StatusCode::from_u16(head.status).unwrap_or(http::StatusCode::BAD_GATEWAY);
    // RFC 9110 section 8.6: a 204 has no length.
    copy_fields(&head.headers, response.headers_mut(), |known| head.status == 204 && known == Known::ContentLength);
    response
}

/// Fields as hyper's map; what the map cannot hold has been refused before and is left out.
pub fn copy_fields(headers: &Headers, map: &mut HeaderMap, is_left_out: impl Fn(Known) -> bool) {
    map.reserve(headers.len());
    for field in headers.iter() {
        if field.known.is_hop_by_hop() || is_left_out(field.known) {
            continue;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(field.name), HeaderValue::from_bytes(field.value)) {
            map.append(name, value);
        }
    }
}

/// Trailer fields from hyper's map, without those that may not be trailers.
pub fn trailers_from(map: &HeaderMap) -> Headers {
    let mut trailers = Headers::default();
    let may_pass = |(name, _): &(&HeaderName, &HeaderValue)| !chunked::is_forbidden_trailer(name.as_str().as_bytes());
    for (name, value) in map.iter().filter(may_pass).take(parse::MAX_FIELDS) {
        trailers.append(name.as_str(), value.as_bytes());
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(request: http::request::Builder) -> Result<RequestHead, Refusal> {
        let mut head = RequestHead::default();
        fill_request(&request.body(()).unwrap(), &mut head).map(|()| head)
    }

    #[test]
    fn authority_becomes_host_and_back() {
        let request = Request::builder().uri("https://Shop.Example:8443/a?b").header("x-a", "1");
        let head = fill(request).unwrap();
        assert_eq!((head.host(), head.port(), head.target()), ("shop.example", Some(8443), "/a?b"));
        assert_eq!(head.headers.find("host"), Some(&b"Shop.Example:8443"[..]));
        let made = make_request(&head, &HopRequest::default(), false, ()).unwrap();
        assert_eq!(made.uri().to_string(), "http://Shop.Example:8443/a?b");
        assert!(made.headers().get("host").is_none());
        assert_eq!(made.headers()["x-a"], "1");
    }

    #[test]
    fn crumbs_of_a_cookie_become_one_field() {
        let request = Request::builder().uri("https://a.example/").header("cookie", "a=1").header("cookie", "b=2");
        let head = fill(request).unwrap();
        assert_eq!(head.headers.values("cookie").collect::<Vec<_>>(), [&b"a=1; b=2"[..]]);
    }

    #[test]
    fn trailers_that_route_or_authenticate_are_left_out() {
        let mut map = HeaderMap::new();
        for name in ["host", "x-forwarded-for", "authorization", "cookie", "grpc-status"] {
            map.insert(name, HeaderValue::from_static("0"));
        }
        let trailers = trailers_from(&map);
        assert_eq!(trailers.iter().map(|field| field.name.to_vec()).collect::<Vec<_>>(), [b"grpc-status".to_vec()]);
    }

    #[test]
    fn an_authority_that_differs_from_host_is_refused() {
        let request = Request::builder().uri("https://a.example/").header("host", "b.example");
        assert_eq!(fill(request).unwrap_err(), Refusal::HostInvalid);
        assert_eq!(fill(Request::builder().uri("/")).unwrap_err(), Refusal::HostMissing);
    }
}
