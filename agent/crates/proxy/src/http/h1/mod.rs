//! HTTP/1.1 (RFC 9112): strict parsing, framing, chunked bodies and writing. Knows bytes, not sockets' owners.

pub mod chunked;
pub mod decoder;
pub mod framing;
pub mod parse;
pub mod receive;
pub mod refusal;
pub mod target;
pub mod write;
