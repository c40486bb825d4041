//! A whole worker over real sockets on loopback: what clients send, what endpoints get, and what goes wrong between them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod datagrams;
mod external_auth;
mod faults;
mod http1;
mod http2;
mod lifecycle;
mod mutual_tls;
mod retries;
mod sessions;
mod smuggling;
mod streams;
mod support;
mod tls;
mod weights;
