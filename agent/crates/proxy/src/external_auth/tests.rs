use super::*;
use crate::decide::ConnectionFacts;

fn names(list: &[&str]) -> Vec<Arc<str>> {
    list.iter().map(|&name| name.into()).collect()
}

fn request() -> RequestHead {
    let mut head = RequestHead::new(Method::PUT);
    head.fill_target("/a/b?c=d");
    head.fill_host("shop.example", Some(8080));
    for (name, value) in [
        ("Host", "shop.example:8080"),
        ("Authorization", "Bearer t"),
        ("X-A", "1"),
        ("x-a", "2"),
        ("X-B", "3"),
        ("Cookie", "s=1"),
        ("Content-Length", "99"),
        ("Expect", "100-continue"),
    ] {
        head.headers.append(name, value);
    }
    head
}

fn lines(headers: &Headers) -> Vec<String> {
    headers.iter().map(|field| format!("{}: {}", field.name.escape_ascii(), field.value.escape_ascii())).collect()
}

#[test]
fn the_question_over_http_has_what_is_always_sent_and_what_is_allowed() {
    let always = ["Host: shop.example:8080", "Authorization: Bearer t", "Content-Length: 0"];
    let head = http_head(&request(), "", &[], 0);
    assert_eq!((head.method.as_str(), head.target(), head.host()), ("PUT", "/a/b?c=d", "shop.example"));
    assert_eq!(lines(&head.headers), always);
    let head = http_head(&request(), "/auth", &names(&["x-a", "expect", "content-length"]), 5);
    assert_eq!(head.target(), "/auth/a/b?c=d");
    let expected = ["Host: shop.example:8080", "Authorization: Bearer t", "X-A: 1", "x-a: 2", "Content-Length: 5"];
    assert_eq!(lines(&head.headers), expected);
    let mut asterisk = RequestHead::new(Method::OPTIONS);
    asterisk.fill_target("*");
    assert_eq!(http_head(&asterisk, "/auth", &[], 0).target(), "/auth/");
}

#[test]
fn the_path_that_is_judged_is_the_one_that_rules_are_found_by() {
    for (sent, judged) in [
        ("/open/../admin?x=../y", "/check/admin?x=../y"),
        ("/open/%2e%2e/%61dmin", "/check/admin"),
        ("/a%2Fb", "/check/a%2Fb"),
    ] {
        let mut head = request();
        head.fill_target(sent);
        assert_eq!(http_head(&head, "/check", &[], 0).target(), judged);
    }
}

#[test]
fn fields_of_the_answer_replace_those_of_the_request() {
    let mut answer = Headers::default();
    for (name, value) in [
        ("X-A", "new"),
        ("X-A", "too"),
        ("X-User", "ann"),
        ("Content-Type", "text/html"),
        ("Content-Length", "5"),
        ("Transfer-Encoding", "chunked"),
        ("Host", "evil.example"),
        ("Connection", "x-user"),
        ("Date", "now"),
    ] {
        answer.append(name, value);
    }
    let apply = |allowed: &[&str]| {
        let mut head = request();
        copied(&answer, &names(allowed)).iter().for_each(|write| write.apply(&mut head.headers));
        lines(&head.headers)[2..].to_vec()
    };
    let rest = ["X-B: 3", "Cookie: s=1", "Content-Length: 99", "Expect: 100-continue"];
    assert_eq!(apply(&[]), [&["X-A: new"], &rest[..], &["x-a: too", "x-user: ann"]].concat());
    assert_eq!(apply(&["x-user", "host"]), [&["X-A: 1", "x-a: 2"], &rest[..], &["x-user: ann"]].concat());
    assert_eq!(apply(&["content-length"]), [&["X-A: 1", "x-a: 2"], &rest[..]].concat());
}

#[test]
fn the_question_in_grpc_joins_fields_and_says_who_asks() {
    let facts = ConnectionFacts {
        local: "10.0.0.1:80".parse().unwrap(),
        peer: "192.0.2.7:40000".parse().unwrap(),
        is_tls: false,
        sni: None,
    };
    let client = Client::new(facts, None);
    let head = request();
    let pool = Rc::new(Pool::default());
    let question =
        Question { pool: &pool, client: &client, head: &head, identity: &Identity::Anonymous, deadline: None };
    let target = target_of(&head);
    let all = check(question, &target, &[], (Some(99), b""));
    assert_eq!((all.method, all.path, all.scheme, all.protocol), ("PUT", "/a/b?c=d", "http", "HTTP/1.1"));
    assert_eq!(all.headers[&b"x-a"[..]], b"1,2");
    assert_eq!(all.headers[&b":authority"[..]], b"shop.example:8080");
    let some = check(question, &target, &names(&["x-b"]), (None, b""));
    assert_eq!(some.headers, [(b"x-b".to_vec(), b"3".to_vec())].into());
}

#[tokio::test]
async fn a_body_is_kept_whole_or_not_at_all() {
    let auth = ExternalAuth {
        backend: None,
        protocol: ExternalAuthProtocol::Grpc { request_headers: vec![] },
        max_body: Some(5),
    };
    let mut timer = Timer::default();
    let mut body = Body::Bytes(Bytes::from_static(b"hello"));
    assert_eq!(auth.keep(&mut body, 5, None, &mut timer).await.unwrap(), "hello");
    assert_eq!(body.length(), Some(5));
    assert_eq!(read_all(&mut body, 5, &mut timer).await.unwrap().unwrap(), "hello");
    let mut long = Body::Bytes(Bytes::from_static(b"hello!"));
    assert!(matches!(auth.keep(&mut long, 5, None, &mut timer).await, Err(Undecided::BodyTooLong)));
    assert!(read_all(&mut long, 5, &mut timer).await.unwrap().is_none());
}
