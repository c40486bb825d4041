//! The ClientHello of a TLS client: no panic, one meaning however the bytes were split, and only real names as names.
//!
//! The pure file of the proxy is compiled in as it is, without its TLS and its runtime.
#![no_main]

#[allow(
    dead_code,
    unfulfilled_lint_expectations,
    reason = "the fuzz target takes one file of the proxy, not the package with its lints"
)]
#[path = "../../../agent/crates/proxy/src/downstream/hello.rs"]
mod hello;

use libfuzzer_sys::fuzz_target;

use crate::hello::{ClientHello, HelloError, HelloScanner, MAX_HELLO};

fuzz_target!(|input: &[u8]| {
    // A reader holds no more than this.
    let input = &input[..input.len().min(MAX_HELLO)];
    let at_once = HelloScanner::default().find(input);
    let bytewise = find_bytewise(input);
    match (&at_once, &bytewise) {
        // Byte by byte a fault is seen as soon as it is there, which may be before the length that is too long.
        (Err(_), Err(_)) => {}
        (a, b) => assert_eq!(a, b),
    }
    if let Ok(Some(hello)) = at_once {
        assert_is_name(&hello);
    } else if input.len() == MAX_HELLO {
        assert!(at_once.is_err(), "a full buffer waits for ever");
    }
});

fn find_bytewise(input: &[u8]) -> Result<Option<ClientHello>, HelloError> {
    let mut scanner = HelloScanner::default();
    for end in 1..=input.len() {
        if let Some(hello) = scanner.find(&input[..end])? {
            return Ok(Some(hello));
        }
    }
    Ok(None)
}

fn assert_is_name(hello: &ClientHello) {
    let Some(name) = &hello.server_name else { return };
    assert!((1..=253).contains(&name.len()));
    assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte)));
    assert!(name.split('.').all(|label| (1..=63).contains(&label.len())));
    assert!(name.parse::<std::net::IpAddr>().is_err());
}
