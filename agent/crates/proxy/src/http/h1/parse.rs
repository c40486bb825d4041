//! Heads of messages, strictly by RFC 9112: a line ends with CRLF, a field is `name: value`, nothing is folded or repaired.

use http::Method;

use super::{refusal::Refusal, target};
use crate::http::{
    head::{Headers, RequestHead, ResponseHead, Version},
    known::Known,
};

/// Largest head in bytes, with its first line.
pub const MAX_HEAD: usize = 64 * 1024;

/// Most fields of a head. Browsers send under 30.
pub const MAX_FIELDS: usize = 128;

/// Longest request target in bytes; RFC 9112 section 3 asks for 8,000 at least.
pub const MAX_TARGET: usize = 16 * 1024;

/// Looks for the end of a head in what has arrived, never at a byte twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scanner {
    scanned: usize,
    line_start: usize,
}

impl Scanner {
    /// Whether no byte of a head has been seen.
    pub fn is_fresh(&self) -> bool {
        self.scanned == 0
    }

    /// Length of the head with its empty line, once it is all there. `window` begins with the same byte at each call.
    ///
    /// # Errors
    /// A bare LF, or a head that is too large.
    pub fn find_end(&mut self, window: &[u8]) -> Result<Option<usize>, Refusal> {
        while let Some(offset) = memchr::memchr(b'\n', &window[self.scanned..]) {
            let end = self.scanned + offset;
            if end == 0 || window[end - 1] != b'\r' {
                return Err(Refusal::BareLf);
            }
            self.scanned = end + 1;
            if end - 1 == self.line_start {
                // The caller has skipped empty lines in front, so an empty line is the end.
                return if end < MAX_HEAD { Ok(Some(end + 1)) } else { Err(Refusal::HeadTooLarge) };
            }
            self.line_start = end + 1;
        }
        self.scanned = window.len();
        if window.len() < MAX_HEAD {
            return Ok(None);
        }
        Err(if self.line_start == 0 { Refusal::TargetTooLong } else { Refusal::HeadTooLarge })
    }
}

/// Number of bytes of empty lines before a request (RFC 9112 section 2.2: ignore at least one).
pub fn leading_empty_lines(window: &[u8]) -> usize {
    let mut start = 0;
    while window[start..].starts_with(b"\r\n") {
        start += 2;
    }
    start
}

/// Parses a request head that [`Scanner`] has found, with its empty line, into a cleared `head`.
///
/// # Errors
/// The rule that it breaks.
pub fn parse_request(bytes: &[u8], head: &mut RequestHead) -> Result<(), Refusal> {
    let line_end = first_line(bytes)?;
    let line = &bytes[..line_end];
    let mut parts = line.split(|&byte| byte == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Refusal::RequestLine);
    };
    head.version = parse_version(version).ok_or_else(|| bad_version(version, Refusal::RequestLine))?;
    if !is_token(method) {
        return Err(Refusal::Method);
    }
    head.method = Method::from_bytes(method).map_err(|_| Refusal::Method)?;
    if target.len() > MAX_TARGET {
        return Err(Refusal::TargetTooLong);
    }
    let target = target::parse(&head.method, target)?;
    if target.needs_slash {
        head.fill_target(&format!("/{}", target.path_and_query));
    } else {
        head.fill_target(target.path_and_query);
    }
    parse_fields(bytes, line_end + 2, &mut head.headers)?;
    take_host(head, target.authority)
}

/// Parses a response head that [`Scanner`] has found into a cleared `head`.
///
/// # Errors
/// The rule that it breaks.
pub fn parse_response(bytes: &[u8], head: &mut ResponseHead) -> Result<(), Refusal> {
    let line_end = first_line(bytes)?;
    let line = &bytes[..line_end];
    if line.len() < 12 || line[8] != b' ' {
        return Err(Refusal::StatusLine);
    }
    head.version = parse_version(&line[..8]).ok_or_else(|| bad_version(&line[..8], Refusal::StatusLine))?;
    let digits = &line[9..12];
    if !digits.iter().all(u8::is_ascii_digit) || digits[0] == b'0' || !matches!(line.get(12), None | Some(b' ')) {
        return Err(Refusal::StatusLine);
    }
    if has_control(&line[12..]) {
        return Err(Refusal::StatusLine);
    }
    head.status = digits.iter().fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
    parse_fields(bytes, line_end + 2, &mut head.headers)
}

/// Parses one field line without its CRLF.
///
/// # Errors
/// The rule that it breaks.
pub fn parse_field(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Refusal::Folded);
    }
    let colon = memchr::memchr(b':', line).ok_or(Refusal::FieldName)?;
    let name = &line[..colon];
    if !is_token(name) {
        let is_space = matches!(name.last(), Some(b' ' | b'\t')) && is_token(name.trim_ascii_end());
        return Err(if is_space { Refusal::SpaceBeforeColon } else { Refusal::FieldName });
    }
    let value = trim_space(&line[colon + 1..]);
    if has_control(value) {
        return Err(if value.contains(&b'\r') { Refusal::BareCr } else { Refusal::FieldValue });
    }
    Ok((name, value))
}

fn first_line(bytes: &[u8]) -> Result<usize, Refusal> {
    let end = memchr::memchr(b'\n', bytes).ok_or(Refusal::Incomplete)?;
    let end = end.checked_sub(1).filter(|&end| bytes[end] == b'\r').ok_or(Refusal::BareLf)?;
    if memchr::memchr(b'\r', &bytes[..end]).is_some() {
        return Err(Refusal::BareCr);
    }
    Ok(end)
}

fn parse_fields(bytes: &[u8], mut start: usize, headers: &mut Headers) -> Result<(), Refusal> {
    headers.fill_block(bytes);
    loop {
        let end = start + memchr::memchr(b'\n', &bytes[start..]).ok_or(Refusal::Incomplete)?;
        let line_end = end.checked_sub(1).filter(|&at| at >= start && bytes[at] == b'\r').ok_or(Refusal::BareLf)?;
        let line = &bytes[start..line_end];
        if line.is_empty() {
            return Ok(());
        }
        let (name, value) = parse_field(line)?;
        if headers.len() == MAX_FIELDS {
            return Err(Refusal::TooManyFields);
        }
        // Both lie in `line`, which lies in `bytes`: the offsets are those of the block.
        let value_start = value.as_ptr() as usize - bytes.as_ptr() as usize;
        headers.push_in_block(start..start + name.len(), value_start..value_start + value.len());
        start = end + 1;
    }
}

fn take_host(head: &mut RequestHead, authority: Option<&str>) -> Result<(), Refusal> {
    if head.headers.values_known(Known::Host).count() > 1 {
        return Err(Refusal::HostRepeated);
    }
    let field = head.headers.find_known(Known::Host);
    let has_field = field.is_some();
    let parsed = field.map(target::parse_host).transpose()?;
    let (host, port) = match (authority, parsed) {
        (Some(authority), _) => target::parse_host(authority.as_bytes())?,
        (None, Some(parsed)) => parsed,
        (None, None) if head.version == Version::Http10 => ("", None),
        (None, None) => return Err(Refusal::HostMissing),
    };
    if authority.is_some() && !has_field && head.version == Version::Http11 {
        return Err(Refusal::HostMissing);
    }
    let host = smallvec::SmallVec::<[u8; 128]>::from_slice(host.as_bytes());
    head.fill_host(str::from_utf8(&host).map_err(|_| Refusal::HostInvalid)?, port);
    if let Some(authority) = authority {
        head.headers.set("host", authority);
    }
    Ok(())
}

fn parse_version(bytes: &[u8]) -> Option<Version> {
    match bytes {
        b"HTTP/1.1" => Some(Version::Http11),
        b"HTTP/1.0" => Some(Version::Http10),
        _ => None,
    }
}

fn bad_version(bytes: &[u8], otherwise: Refusal) -> Refusal {
    match bytes {
        [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Refusal::Version
        }
        _ => otherwise,
    }
}

/// Whether `bytes` is a token (RFC 9110 section 5.6.2).
pub fn is_token(bytes: &[u8]) -> bool {
    const TOKEN: [bool; 256] = {
        let mut table = [false; 256];
        let mut byte = 0;
        while byte < 128 {
            table[byte] = (byte as u8).is_ascii_alphanumeric();
            byte += 1;
        }
        let marks = b"!#$%&'*+-.^_`|~";
        let mut index = 0;
        while index < marks.len() {
            table[marks[index] as usize] = true;
            index += 1;
        }
        table
    };
    !bytes.is_empty() && bytes.iter().all(|&byte| TOKEN[byte as usize])
}

/// Whether a control character other than HTAB is in `bytes`. Without early return, so that it is vectorized.
pub fn has_control(bytes: &[u8]) -> bool {
    bytes.iter().fold(false, |found, &byte| found | ((byte < 0x20) & (byte != b'\t')) | (byte == 0x7f))
}

fn trim_space(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
