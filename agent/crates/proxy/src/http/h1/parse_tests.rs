//! One row for each rule of RFC 9112 that a head can break, and what split or random input does.

use proptest::prelude::*;

use super::*;

fn parse(text: &[u8]) -> Result<RequestHead, Refusal> {
    let start = leading_empty_lines(text);
    let text = &text[start..];
    let end = Scanner::default().find_end(text)?.ok_or(Refusal::Incomplete)?;
    let mut head = RequestHead::default();
    parse_request(&text[..end], &mut head).map(|()| head)
}

#[test]
fn a_head_is_taken_as_it_came() {
    let head = parse(b"\r\nGET /a%20b/../c?x=1 HTTP/1.1\r\nHost: Shop.Example.:8080\r\nX-A:  1\t \r\nX-A:\r\n\r\nrest")
        .unwrap();
    assert_eq!((head.path(), head.query()), ("/a%20b/../c", Some("x=1")));
    assert_eq!((head.host(), head.port()), ("shop.example", Some(8080)));
    assert_eq!(head.headers.values("x-a").collect::<Vec<_>>(), [&b"1"[..], b""]);
    let absolute = parse(b"GET http://a.example:81/x HTTP/1.1\r\nHost: b.example\r\n\r\n").unwrap();
    assert_eq!((absolute.host(), absolute.port(), absolute.path()), ("a.example", Some(81), "/x"));
    assert_eq!(absolute.headers.find("host"), Some(&b"a.example:81"[..]));
    assert_eq!(parse(b"GET http://a?b HTTP/1.0\r\n\r\n").unwrap().target(), "/?b");
    assert_eq!(parse(b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().method.as_str(), "BREW");
}

#[test]
fn each_rule_refuses_what_breaks_it() {
    for (section, text, refusal) in [
        ("2.2", &b"GET / HTTP/1.1\nHost: a\r\n\r\n"[..], Refusal::BareLf),
        ("2.2", b"GET / HTTP/1.1\r\nHost: a\n\r\n", Refusal::BareLf),
        ("2.2", b"GET / HTTP/1.1\r\nHost: a\r\n\n", Refusal::BareLf),
        ("2.2", b"GET / HTTP/1.1\r\nX: a\rb\r\n\r\n", Refusal::BareCr),
        ("2.2", b"GET /\r HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::BareCr),
        ("2.2", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", Refusal::Folded),
        ("5.2", b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n", Refusal::Folded),
        ("3", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("3", b"GET /\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("3", b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("3", b"GET / http/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("3", b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::RequestLine),
        ("3.1", b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Method),
        ("3.2", b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("3.2", b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("3.2", b"GET /\xc3\xa4 HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("3.2.4", b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Target),
        ("9110 9.3.6", b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::Connect),
        ("2.3", b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", Refusal::Version),
        ("2.3", b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", Refusal::Version),
        ("5.1", b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", Refusal::SpaceBeforeColon),
        ("5", b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", Refusal::FieldName),
        ("5", b"GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n", Refusal::FieldName),
        ("5", b"GET / HTTP/1.1\r\nHost: a\r\nX\x00: x\r\n\r\n", Refusal::FieldName),
        ("9110 5.5", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n", Refusal::FieldValue),
        ("9110 5.5", b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x7fb\r\n\r\n", Refusal::FieldValue),
        ("3.2", b"GET / HTTP/1.1\r\n\r\n", Refusal::HostMissing),
        ("3.2", b"GET http://a/ HTTP/1.1\r\n\r\n", Refusal::HostMissing),
        ("3.2", b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", Refusal::HostRepeated),
        ("3.2", b"GET / HTTP/1.1\r\nHost:\r\n\r\n", Refusal::HostInvalid),
        ("3.2", b"GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", Refusal::HostInvalid),
        ("3.2", b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", Refusal::HostInvalid),
        ("3.2", b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", Refusal::HostInvalid),
    ] {
        assert_eq!(parse(text).err(), Some(refusal), "{section}: {}", text.escape_ascii());
    }
}

#[test]
fn large_heads_are_refused_before_they_are_whole() {
    let mut scanner = Scanner::default();
    assert_eq!(scanner.find_end(&[b'a'; MAX_HEAD]), Err(Refusal::TargetTooLong));
    let head = [&b"GET / HTTP/1.1\r\nX: "[..], &[b'a'; MAX_HEAD]].concat();
    assert_eq!(Scanner::default().find_end(&head), Err(Refusal::HeadTooLarge));
    let long = format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "a".repeat(MAX_TARGET));
    assert_eq!(parse(long.as_bytes()).err(), Some(Refusal::TargetTooLong));
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: 1\r\n".repeat(MAX_FIELDS));
    assert_eq!(parse(many.as_bytes()).err(), Some(Refusal::TooManyFields));
}

#[test]
fn the_end_is_found_whatever_the_split() {
    let text = b"GET / HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\nGET";
    let mut scanner = Scanner::default();
    let mut found = None;
    for len in 1..=text.len() {
        found = scanner.find_end(&text[..len]).unwrap();
        if found.is_some() {
            assert_eq!(len, text.len() - 3);
            break;
        }
    }
    assert_eq!(found, Some(text.len() - 3));
}

proptest! {
    #[test]
    fn random_heads_never_panic(
        bytes in proptest::collection::vec(
            prop_oneof![Just(b'\r'), Just(b'\n'), Just(b' '), Just(b':'), Just(b'/'), any::<u8>()], 0..96)
    ) {
        let text = [b"GET / HTTP/1.1\r\nHost: a\r\n", &bytes[..], b"\r\n\r\n"].concat();
        for input in [&bytes[..], &text] {
            if let Ok(head) = parse(input) {
                prop_assert!(head.path().starts_with('/') || head.path() == "*");
                prop_assert!(head.headers.iter().all(|field| is_token(field.name) && !has_control(field.value)));
            }
        }
    }
}
