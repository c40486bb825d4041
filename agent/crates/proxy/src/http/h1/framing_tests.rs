//! One row for each rule, with its section.

use super::*;
use crate::http::h1::parse;

fn judge_request(fields: &str) -> Result<RequestFraming, Refusal> {
    judge(&format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n"))
}

fn judge(text: &str) -> Result<RequestFraming, Refusal> {
    let mut head = RequestHead::default();
    parse::parse_request(text.as_bytes(), &mut head)?;
    request(&head)
}

fn judge_response(method: Method, text: &str) -> Result<ResponseFraming, Refusal> {
    let mut head = ResponseHead::default();
    parse::parse_response(text.as_bytes(), &mut head)?;
    response(&method, &head)
}

#[test]
fn bodies_of_requests_end_where_rfc_9112_says() {
    for (section, fields, body) in [
        ("9112 6.3 rule 7", "", BodyLength::Empty),
        ("9112 6.3 rule 6", "Content-Length: 5\r\n", BodyLength::Known(5)),
        ("9110 8.6", "Content-Length: 0\r\n", BodyLength::Empty),
        ("9110 8.6", "Content-Length: 0005\r\n", BodyLength::Known(5)),
        ("9112 6.3 rule 4", "Transfer-Encoding: chunked\r\n", BodyLength::Chunked),
        ("9112 7", "Transfer-Encoding: CHUNKED\r\n", BodyLength::Chunked),
        ("9110 5.6.1", "Transfer-Encoding: ,chunked,\r\n", BodyLength::Chunked),
    ] {
        assert_eq!(judge_request(fields).map(|framing| framing.body), Ok(body), "{section}: {fields:?}");
    }
}

#[test]
fn what_could_be_read_differently_is_refused() {
    for (section, fields, refusal) in [
        ("9112 6.1", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Refusal::LengthAndEncoding),
        ("9112 6.1", "Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", Refusal::LengthAndEncoding),
        ("9112 6.3 rule 5", "Content-Length: 5\r\nContent-Length: 6\r\n", Refusal::LengthRepeated),
        ("9112 6.3 rule 5", "Content-Length: 5\r\nContent-Length: 5\r\n", Refusal::LengthRepeated),
        ("9110 8.6", "Content-Length: 5, 5\r\n", Refusal::LengthRepeated),
        ("9110 8.6", "Content-Length: +5\r\n", Refusal::LengthInvalid),
        ("9110 8.6", "Content-Length: -1\r\n", Refusal::LengthInvalid),
        ("9110 8.6", "Content-Length: 0x5\r\n", Refusal::LengthInvalid),
        ("9110 8.6", "Content-Length: 5 5\r\n", Refusal::LengthInvalid),
        ("9110 8.6", "Content-Length:\r\n", Refusal::LengthInvalid),
        ("9110 8.6", "Content-Length: 9223372036854775808\r\n", Refusal::LengthInvalid),
        ("9110 8.6", "Content-Length: 18446744073709551616\r\n", Refusal::LengthInvalid),
        ("9112 6.3 rule 4", "Transfer-Encoding: chunked, gzip\r\n", Refusal::EncodingInvalid),
        ("9112 6.1", "Transfer-Encoding: chunked, chunked\r\n", Refusal::EncodingInvalid),
        ("9112 6.1", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Refusal::EncodingInvalid),
        ("9112 6.1", "Transfer-Encoding:\r\n", Refusal::EncodingInvalid),
        ("9112 6.1", "Transfer-Encoding: gzip, chunked\r\n", Refusal::EncodingUnknown),
        ("9112 6.1", "Transfer-Encoding: identity\r\n", Refusal::EncodingUnknown),
        ("9112 6.1", "Transfer-Encoding: xchunked\r\n", Refusal::EncodingUnknown),
        ("9112 6.1", "Transfer-Encoding: chunked;q=1\r\n", Refusal::EncodingUnknown),
        ("9112 6.1", "Transfer-Encoding: \"chunked\"\r\n", Refusal::EncodingUnknown),
        ("9112 5.1", "Transfer-Encoding : chunked\r\n", Refusal::SpaceBeforeColon),
        ("9112 5.2", "X: a\r\n Transfer-Encoding: chunked\r\n", Refusal::Folded),
        ("9110 5.5", "Transfer-Encoding: \x0bchunked\r\n", Refusal::FieldValue),
        ("9110 10.1.1", "Expect: 200-maybe\r\n", Refusal::Expectation),
    ] {
        assert_eq!(judge_request(fields), Err(refusal), "{section}: {fields:?}");
    }
    let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(judge(old), Err(Refusal::EncodingInHttp10), "9112 6.1");
}

#[test]
fn persistence_follows_version_and_options() {
    for (text, keep_alive) in [
        ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n", false),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", true),
        ("GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", false),
    ] {
        assert_eq!(judge(text).map(|framing| framing.keep_alive), Ok(keep_alive), "9112 9.3: {text:?}");
    }
}

#[test]
fn an_expectation_counts_only_with_a_body_in_http11() {
    let expects = |text| judge(text).unwrap().expects_continue;
    assert!(expects("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n"));
    assert!(!expects("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n"));
    assert!(!expects("POST / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"));
}

#[test]
fn bodies_of_responses_end_where_rfc_9112_says() {
    for (section, method, text, body) in [
        ("6.3 rule 1", Method::HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", BodyLength::Empty),
        ("6.3 rule 1", Method::GET, "HTTP/1.1 204 No Content\r\n\r\n", BodyLength::Empty),
        ("6.3 rule 1", Method::GET, "HTTP/1.1 304 x\r\nContent-Length: 5\r\n\r\n", BodyLength::Empty),
        ("6.3 rule 4", Method::GET, "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n", BodyLength::Chunked),
        ("6.3 rule 6", Method::GET, "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", BodyLength::Known(5)),
        ("6.3 rule 8", Method::GET, "HTTP/1.1 200 OK\r\n\r\n", BodyLength::UntilClose),
    ] {
        assert_eq!(judge_response(method, text).map(|framing| framing.body), Ok(body), "{section}: {text:?}");
    }
    let until_close = judge_response(Method::GET, "HTTP/1.1 200 OK\r\n\r\n").unwrap();
    assert!(!until_close.keep_alive);
}

#[test]
fn an_endpoint_is_held_to_the_same_rules() {
    for (text, refusal) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::LengthAndEncoding),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", Refusal::LengthRepeated),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", Refusal::EncodingInHttp10),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", Refusal::EncodingUnknown),
        ("HTTP/2.0 200 OK\r\n\r\n", Refusal::Version),
        ("HTTP/1.1 20 OK\r\n\r\n", Refusal::StatusLine),
        ("HTTP/1.1 099 OK\r\n\r\n", Refusal::StatusLine),
        ("HTTP/1.1 2000\r\n\r\n", Refusal::StatusLine),
        ("HTTP/1.1 200 a\x00b\r\n\r\n", Refusal::StatusLine),
        ("ICY 200 OK\r\n\r\n", Refusal::StatusLine),
    ] {
        assert_eq!(judge_response(Method::GET, text), Err(refusal), "{text:?}");
    }
}
