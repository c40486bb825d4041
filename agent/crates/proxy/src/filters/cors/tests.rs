//! The cases of the conformance suite's CORS tests, and those of Fetch that it leaves out.

use tidegate_model::CorsOrigin;

use super::*;

fn rules(origins: &[CorsOrigin]) -> tidegate_model::Cors {
    tidegate_model::Cors {
        allow_origins: origins.to_vec(),
        allow_methods: vec![],
        allow_headers: vec![],
        expose_headers: vec![],
        allow_credentials: false,
        max_age: 5,
    }
}

fn wildcard(scheme: &str, suffix: &str) -> CorsOrigin {
    CorsOrigin::Wildcard { scheme: scheme.into(), suffix: suffix.into(), port: None }
}

fn request(method: http::Method, fields: &[(&str, &str)]) -> RequestHead {
    let mut head = RequestHead::default();
    head.method = method;
    for (name, value) in fields {
        head.headers.append(name, value);
    }
    head
}

fn preflight(origin: &str, method: &str, headers: Option<&str>) -> RequestHead {
    let mut head = request(http::Method::OPTIONS, &[("Origin", origin), ("Access-Control-Request-Method", method)]);
    if let Some(headers) = headers {
        head.headers.append("Access-Control-Request-Headers", headers);
    }
    head
}

fn value<'a>(fields: &'a Fields, name: &str) -> Option<&'a str> {
    fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
}

fn is_allowed(cors: &Cors, origin: &str) -> bool {
    cors.grant(&request(http::Method::GET, &[("origin", origin)])) != Grant::Nothing
}

#[test]
fn origins_match_by_scheme_host_and_port() {
    let exact = CorsOrigin::Exact("https://www.foo.com".into());
    let port = CorsOrigin::Exact("http://a.com:8080".into());
    let cors = Cors::compile(&rules(&[exact, wildcard("https", "bar.com"), port, wildcard("*", "any.com")]));
    for origin in [
        "https://www.foo.com",
        "https://www.foo.com:443",
        "https://www.bar.com",
        "https://xpto.www.bar.com",
        "http://a.com:8080",
        "http://x.any.com",
        "https://x.any.com",
    ] {
        assert!(is_allowed(&cors, origin), "{origin}");
    }
    for origin in [
        "http://www.foo.com",
        "https://www.foo.com:8443",
        "https://bar.com",
        "https://evilbar.com",
        "https://www.bar.com.evil.example",
        "http://a.com",
        "ftp://x.any.com",
        "https://x.any.com:99999",
        "null",
        "",
    ] {
        assert!(!is_allowed(&cors, origin), "{origin}");
    }
}

#[test]
fn a_preflight_is_answered_with_what_the_rules_list() {
    let cors = Cors::compile(&tidegate_model::Cors {
        allow_methods: vec!["GET".into(), "OPTIONS".into()],
        allow_headers: vec!["x-header-1".into(), "x-header-2".into()],
        expose_headers: vec!["x-header-3".into()],
        allow_credentials: true,
        max_age: 3600,
        ..rules(&[CorsOrigin::Exact("https://www.foo.com".into())])
    });
    let head = preflight("https://www.foo.com", "GET", Some("x-header-1"));
    assert!(Cors::is_preflight(&head));
    let fields = cors.answer_preflight(&head).unwrap();
    assert_eq!(value(&fields, ALLOW_ORIGIN), Some("https://www.foo.com"));
    assert_eq!(value(&fields, ALLOW_METHODS), Some("GET, OPTIONS"));
    assert_eq!(value(&fields, ALLOW_HEADERS), Some("x-header-1, x-header-2"));
    assert_eq!(value(&fields, EXPOSE_HEADERS), Some("x-header-3"));
    assert_eq!(value(&fields, ALLOW_CREDENTIALS), Some("true"));
    assert_eq!(value(&fields, MAX_AGE), Some("3600"));
    assert_eq!(cors.answer_preflight(&preflight("https://foobar.com", "GET", None)), None);
    assert!(!Cors::is_preflight(&request(http::Method::OPTIONS, &[("origin", "https://www.foo.com")])));
}

#[test]
fn with_credentials_wildcards_become_what_was_asked_for() {
    let source = tidegate_model::Cors {
        allow_methods: vec!["*".into()],
        allow_headers: vec!["*".into()],
        expose_headers: vec!["*".into()],
        ..rules(&[CorsOrigin::Any])
    };
    let head = preflight("https://a.com:12345", "PUT", Some("x-1, x-2"));
    let open = Cors::compile(&source).answer_preflight(&head).unwrap();
    assert_eq!(value(&open, ALLOW_ORIGIN), Some("*"));
    assert_eq!((value(&open, ALLOW_METHODS), value(&open, ALLOW_HEADERS)), (Some("*"), Some("*")));
    assert_eq!(value(&open, ALLOW_CREDENTIALS), None);

    let closed = Cors::compile(&tidegate_model::Cors { allow_credentials: true, ..source });
    let fields = closed.answer_preflight(&head).unwrap();
    assert_eq!(value(&fields, ALLOW_ORIGIN), Some("https://a.com:12345"));
    assert_eq!((value(&fields, ALLOW_METHODS), value(&fields, ALLOW_HEADERS)), (Some("PUT"), Some("x-1, x-2")));
    let fields = closed.answer_preflight(&preflight("https://a.com", "PUT", None)).unwrap();
    assert_eq!(value(&fields, ALLOW_HEADERS), None);

    let mut headers = Headers::default();
    headers.append("X-Own", "1");
    closed.edit_response(&Grant::Allowed("https://a.com".into()), &mut headers);
    assert_eq!(headers.find(EXPOSE_HEADERS), Some(&b"X-Own, vary"[..]));
}

#[test]
fn a_response_says_only_what_the_rules_say() {
    let cors = Cors::compile(&tidegate_model::Cors {
        allow_credentials: true,
        ..rules(&[CorsOrigin::Exact("https://app.example".into())])
    });
    for (origin, expected) in [("https://app.example", Some(&b"https://app.example"[..])), ("http://app.example", None)]
    {
        let mut headers = Headers::default();
        headers.append("Access-Control-Allow-Origin", "*");
        headers.append("Access-Control-Allow-Credentials", "true");
        cors.edit_response(&cors.grant(&request(http::Method::GET, &[("origin", origin)])), &mut headers);
        assert_eq!(headers.find(ALLOW_ORIGIN), expected);
        assert_eq!(headers.contains(ALLOW_CREDENTIALS), expected.is_some());
        assert_eq!(headers.find(VARY), Some(&b"Origin"[..]));
    }
    let mut headers = Headers::default();
    cors.edit_response(&cors.grant(&request(http::Method::GET, &[])), &mut headers);
    assert_eq!(headers.len(), 1);
}
