//! How long a message's body is and whether its connection persists: the rules that smuggling attacks. Pure.
//!
//! What two parsers could read differently is refused, not repaired, also where RFC 9112 would allow a repair.

use http::Method;

use super::refusal::Refusal;
use crate::http::{
    head::{Headers, RequestHead, ResponseHead, Version},
    known::Known,
};

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// No body.
    Empty,
    /// This many bytes, at least one.
    Known(u64),
    /// By chunked coding.
    Chunked,
    /// Where the connection ends (responses only).
    UntilClose,
}

/// Framing of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestFraming {
    /// Its body.
    pub body: BodyLength,
    /// Whether the client wants the connection to persist.
    pub keep_alive: bool,
    /// Whether the client waits for `100 (Continue)`.
    pub expects_continue: bool,
    /// Whether the client offers to upgrade (`Connection: upgrade` and `Upgrade`).
    pub upgrade: bool,
}

/// Framing of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseFraming {
    /// Its body.
    pub body: BodyLength,
    /// Whether the upstream keeps the connection.
    pub keep_alive: bool,
}

/// Judges a request's framing.
///
/// # Errors
/// The rule of RFC 9110 or RFC 9112 that it breaks.
pub fn request(head: &RequestHead) -> Result<RequestFraming, Refusal> {
    let fields = Framing::collect(&head.headers, head.version)?;
    let expects_continue = match head.headers.find_known(Known::Expect) {
        // RFC 9110 section 10.1.1: an HTTP/1.0 client cannot mean it.
        _ if head.version == Version::Http10 => false,
        None => false,
        Some(value) if value.eq_ignore_ascii_case(b"100-continue") => true,
        Some(_) => return Err(Refusal::Expectation),
    };
    let body = match (fields.is_chunked, fields.length) {
        (true, _) => BodyLength::Chunked,
        (false, None | Some(0)) => BodyLength::Empty,
        (false, Some(length)) => BodyLength::Known(length),
    };
    Ok(RequestFraming {
        body,
        keep_alive: fields.keep_alive,
        expects_continue: expects_continue && body != BodyLength::Empty,
        upgrade: fields.upgrade && head.version == Version::Http11 && head.headers.find_known(Known::Upgrade).is_some(),
    })
}

/// Judges the framing of a response to a request of `method` (RFC 9112 section 6.3).
///
/// # Errors
/// The rule that it breaks; the connection is then of no use any more.
pub fn response(method: &Method, head: &ResponseHead) -> Result<ResponseFraming, Refusal> {
    let fields = Framing::collect(&head.headers, head.version)?;
    let body = match (fields.is_chunked, fields.length) {
        _ if !may_have_body(method, head.status) => BodyLength::Empty,
        (true, _) => BodyLength::Chunked,
        (false, Some(0)) => BodyLength::Empty,
        (false, Some(length)) => BodyLength::Known(length),
        (false, None) => BodyLength::UntilClose,
    };
    Ok(ResponseFraming { body, keep_alive: fields.keep_alive && body != BodyLength::UntilClose })
}

/// Whether a response with that status to that method can have a body (RFC 9110 section 6.4.1).
pub fn may_have_body(method: &Method, status: u16) -> bool {
    *method != Method::HEAD && status >= 200 && status != 204 && status != 304
}

/// A `Content-Length` value: digits only, below 2^63.
pub fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    // 19 digits fit a u64.
    let length = value.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    (length < 1 << 63).then_some(length)
}

/// Members of a comma-separated list, without white space around them and without empty ones (RFC 9110 section 5.6.1).
pub fn list_members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

struct Framing {
    length: Option<u64>,
    is_chunked: bool,
    keep_alive: bool,
    upgrade: bool,
}

impl Framing {
    fn collect(headers: &Headers, version: Version) -> Result<Self, Refusal> {
        let mut length = None;
        let mut encoding = Encoding::default();
        let (mut close, mut keep_alive, mut upgrade) = (false, false, false);
        for field in headers.iter() {
            match field.known {
                Known::ContentLength => {
                    if length.is_some() || memchr::memchr(b',', field.value).is_some() {
                        return Err(Refusal::LengthRepeated);
                    }
                    length = Some(parse_length(field.value).ok_or(Refusal::LengthInvalid)?);
                }
                Known::TransferEncoding => encoding.push(field.value),
                Known::Connection => {
                    for option in list_members(field.value) {
                        close |= option.eq_ignore_ascii_case(b"close");
                        keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                        upgrade |= option.eq_ignore_ascii_case(b"upgrade");
                    }
                }
                _ => {}
            }
        }
        let is_chunked = encoding.is_chunked(version)?;
        if encoding.is_present && length.is_some() {
            return Err(Refusal::LengthAndEncoding);
        }
        let keep_alive = !close && (version == Version::Http11 || keep_alive);
        Ok(Self { length, is_chunked, keep_alive, upgrade })
    }
}

#[derive(Default)]
struct Encoding {
    is_present: bool,
    chunked: usize,
    others: usize,
    is_last_chunked: bool,
}

impl Encoding {
    fn push(&mut self, value: &[u8]) {
        self.is_present = true;
        for coding in list_members(value) {
            self.is_last_chunked = coding.eq_ignore_ascii_case(b"chunked");
            if self.is_last_chunked {
                self.chunked += 1;
            } else {
                self.others += 1;
            }
        }
    }

    fn is_chunked(&self, version: Version) -> Result<bool, Refusal> {
        if !self.is_present {
            return Ok(false);
        }
        if version == Version::Http10 {
            return Err(Refusal::EncodingInHttp10);
        }
        match (self.chunked, self.others) {
            (1, 0) => Ok(true),
            (0, 0) | (2.., _) => Err(Refusal::EncodingInvalid),
            (1, _) if !self.is_last_chunked => Err(Refusal::EncodingInvalid),
            _ => Err(Refusal::EncodingUnknown),
        }
    }
}

#[cfg(test)]
#[path = "framing_tests.rs"]
mod tests;
