//! HTTP/1.1 framing: what is taken has one meaning only, and how it was split on its way never changes that meaning.
//!
//! The pure files of the proxy are compiled in as they are, without its TLS and its runtime.
#![no_main]

/// The proxy's module tree, as far as its files without I/O need it.
#[allow(
    dead_code,
    unfulfilled_lint_expectations,
    reason = "the fuzz target takes some files of the proxy, not the package with its TLS, its runtime and its lints"
)]
#[path = "../../../agent/crates/proxy/src/http"]
mod http {
    pub mod head;
    pub mod known;

    pub mod h1 {
        pub mod chunked;
        pub mod decoder;
        pub mod framing;
        pub mod parse;
        pub mod refusal;
        pub mod target;
    }
}

use ::http::Method;
use libfuzzer_sys::fuzz_target;

use crate::http::{
    h1::{
        chunked::Step,
        decoder::Decoder,
        framing::{self, RequestFraming},
        parse::{self, Scanner},
        refusal::Refusal,
    },
    head::{Headers, RequestHead, ResponseHead},
    known::Known,
};

/// A request taken apart: its head, its framing, its body if all of it came, and what follows it.
type Taken = (RequestHead, RequestFraming, Option<(Vec<u8>, Vec<u8>)>);

fuzz_target!(|input: &[u8]| {
    let whole = take(&[input]);
    let pieces: Vec<&[u8]> = input.chunks(1).collect();
    let bytewise = take(&pieces);
    match (&whole, &bytewise) {
        (Ok(Some(whole)), Ok(Some(bytewise))) => {
            assert_eq!(whole.1, bytewise.1);
            if let (Some(a), Some(b)) = (&whole.2, &bytewise.2) {
                assert_eq!(a.0, b.0);
            }
            judge(&whole.0);
        }
        (Ok(None), Ok(None)) => {}
        (Err(a), Err(b)) => assert_eq!(a, b),
        (a, b) => panic!("{:?} at once, {:?} in pieces", outcome(a), outcome(b)),
    }
    let mut response = ResponseHead::default();
    if let Ok(Some(end)) = Scanner::default().find_end(input)
        && parse::parse_response(&input[..end], &mut response).is_ok()
    {
        let _ = framing::response(&Method::GET, &response);
    }
});

fn outcome(taken: &Result<Option<Taken>, Refusal>) -> String {
    match taken {
        Ok(Some((head, framing, _))) => format!("{} {framing:?}", head.target()),
        Ok(None) => "nothing yet".to_owned(),
        Err(refusal) => refusal.name().to_owned(),
    }
}

/// What holds of every head that is taken.
fn judge(head: &RequestHead) {
    assert!(head.path().starts_with('/') || head.path() == "*");
    assert!(head.target().bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(head.headers.values_known(Known::Host).count() <= 1);
    assert!(head.headers.values_known(Known::ContentLength).count() <= 1);
    let both = head.headers.find_known(Known::ContentLength).and(head.headers.find_known(Known::TransferEncoding));
    assert!(both.is_none());
    assert!(head.headers.iter().all(|field| parse::is_token(field.name) && !parse::has_control(field.value)));
}

fn take(pieces: &[&[u8]]) -> Result<Option<Taken>, Refusal> {
    let mut window = Vec::new();
    let mut scanner = Scanner::default();
    let mut pieces = pieces.iter();
    let end = loop {
        if scanner.is_fresh() {
            window.drain(..parse::leading_empty_lines(&window));
        }
        if window != b"\r"
            && let Some(end) = scanner.find_end(&window)?
        {
            break end;
        }
        match pieces.next() {
            Some(piece) => window.extend_from_slice(piece),
            None => return Ok(None),
        }
    };
    let mut head = RequestHead::default();
    parse::parse_request(&window[..end], &mut head)?;
    window.drain(..end);
    let framing = framing::request(&head)?;
    let mut decoder = Decoder::new(framing.body);
    let (mut trailers, mut data) = (Headers::default(), Vec::new());
    loop {
        match decoder.step(&window, &mut trailers)? {
            Step::Skip(count) => drop(window.drain(..count)),
            Step::Data(count) => {
                data.extend(window.drain(..count));
                decoder.consumed(count);
            }
            Step::End => return Ok(Some((head, framing, Some((data, window))))),
            Step::More => match pieces.next() {
                Some(piece) => window.extend_from_slice(piece),
                None => return Ok(Some((head, framing, None))),
            },
        }
    }
}
