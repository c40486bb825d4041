//! Chunked transfer coding (RFC 9112 section 7.1), decoded line by line from what is buffered. Pure.

use super::{parse, refusal::Refusal};
use crate::http::{head::Headers, known::Known};

/// Longest line of a chunk's size with its extensions, in bytes. Extensions are ignored, as every known server does.
pub const MAX_LINE: usize = 1024;

/// Most bytes of trailer fields.
pub const MAX_TRAILERS: usize = 16 * 1024;

/// What comes next in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// This many bytes at the start of the window are framing: consume them and step again.
    Skip(usize),
    /// This many bytes at the start of the window are data: report with `Decoder::consumed` how many were taken.
    Data(usize),
    /// More bytes are needed.
    More,
    /// The body has ended.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Size,
    Data(u64),
    DataEnd,
    Trailers(usize),
    End,
}

/// Decodes one chunked body.
#[derive(Clone, Copy, Debug)]
pub struct Chunked {
    state: State,
}

impl Default for Chunked {
    fn default() -> Self {
        Self { state: State::Size }
    }
}

impl Chunked {
    /// The next step with `window` buffered. Trailer fields are added to `trailers`.
    ///
    /// # Errors
    /// The rule that the coding breaks.
    pub fn step(&mut self, window: &[u8], trailers: &mut Headers) -> Result<Step, Refusal> {
        match self.state {
            State::Size => {
                let Some(line) = find_line(window, MAX_LINE, Refusal::ChunkExtension)? else { return Ok(Step::More) };
                let size = parse_size(line)?;
                self.state = if size == 0 { State::Trailers(0) } else { State::Data(size) };
                Ok(Step::Skip(line.len() + 2))
            }
            State::Data(left) => match window.len() as u64 {
                0 => Ok(Step::More),
                buffered => Ok(Step::Data(buffered.min(left) as usize)),
            },
            State::DataEnd => {
                if window.starts_with(b"\r\n") {
                    self.state = State::Size;
                    Ok(Step::Skip(2))
                } else if window.is_empty() || window == b"\r" {
                    Ok(Step::More)
                } else {
                    Err(Refusal::ChunkEnd)
                }
            }
            State::Trailers(before) => {
                let limit = MAX_TRAILERS - before;
                let Some(line) = find_line(window, limit, Refusal::TrailersTooLarge)? else { return Ok(Step::More) };
                if line.is_empty() {
                    self.state = State::End;
                } else {
                    push_trailer(line, trailers)?;
                    self.state = State::Trailers(before + line.len() + 2);
                }
                Ok(Step::Skip(line.len() + 2))
            }
            State::End => Ok(Step::End),
        }
    }

    /// Reports how many bytes of data were taken.
    pub fn consumed(&mut self, count: usize) {
        if let State::Data(left) = &mut self.state {
            *left -= (count as u64).min(*left);
            if *left == 0 {
                self.state = State::DataEnd;
            }
        }
    }
}

/// The line at the start of the window without its CRLF; `None` while its end is missing.
fn find_line(window: &[u8], limit: usize, too_long: Refusal) -> Result<Option<&[u8]>, Refusal> {
    let searched = &window[..window.len().min(limit)];
    match memchr::memchr(b'\n', searched) {
        Some(end) if end > 0 && window[end - 1] == b'\r' => Ok(Some(&window[..end - 1])),
        Some(_) => Err(Refusal::BareLf),
        None if window.len() >= limit => Err(too_long),
        None => Ok(None),
    }
}

fn parse_size(line: &[u8]) -> Result<u64, Refusal> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    // 15 digits keep sums of sizes far from overflow.
    if digits == 0 || digits > 15 {
        return Err(Refusal::ChunkSize);
    }
    let extension = &line[digits..];
    let is_extension = match extension.trim_ascii_start().first() {
        // White space before an extension is "bad" but allowed (RFC 9112 section 7.1.1); without extension it is not.
        None => extension.is_empty(),
        Some(byte) => *byte == b';',
    };
    if !is_extension {
        return Err(Refusal::ChunkSize);
    }
    if parse::has_control(extension) {
        return Err(Refusal::ChunkExtension);
    }
    let nibble = |byte: &u8| char::from(*byte).to_digit(16).map_or(0, u64::from);
    Ok(line[..digits].iter().fold(0, |sum, byte| sum << 4 | nibble(byte)))
}

fn push_trailer(line: &[u8], trailers: &mut Headers) -> Result<(), Refusal> {
    let (name, value) = parse::parse_field(line)?;
    if is_forbidden_trailer(name) {
        return Err(Refusal::TrailerForbidden);
    }
    if trailers.len() == parse::MAX_FIELDS {
        return Err(Refusal::TrailersTooLarge);
    }
    trailers.append(name, value);
    Ok(())
}

/// Whether a field may not come as a trailer, because it frames, routes or authenticates the message (RFC 9110 section
/// 6.5.1): who reads it late would act on it unchecked.
pub fn is_forbidden_trailer(name: &[u8]) -> bool {
    let known = Known::classify(name);
    known.is_hop_by_hop()
        || known.is_forwarding()
        || matches!(known, Known::ContentLength | Known::Host | Known::Expect | Known::ContentType)
        || name.eq_ignore_ascii_case(b"authorization")
        || name.eq_ignore_ascii_case(b"cookie")
        || name.eq_ignore_ascii_case(b"set-cookie")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Decoded = (Vec<u8>, Headers, Vec<u8>);

    /// Decodes input that arrives in pieces; returns data, trailers and what follows the body.
    fn decode(pieces: &[&[u8]]) -> Result<Option<Decoded>, Refusal> {
        let (mut chunked, mut trailers) = (Chunked::default(), Headers::default());
        let (mut window, mut data) = (Vec::new(), Vec::new());
        for piece in pieces {
            window.extend_from_slice(piece);
            loop {
                match chunked.step(&window, &mut trailers)? {
                    Step::Skip(count) => drop(window.drain(..count)),
                    Step::Data(count) => {
                        data.extend(window.drain(..count));
                        chunked.consumed(count);
                    }
                    Step::More => break,
                    Step::End => return Ok(Some((data, trailers, window))),
                }
            }
        }
        Ok(None)
    }

    #[test]
    fn decodes_whatever_the_split() {
        let input = b"4\r\nWiki\r\n6;name=\"v\"\r\npedia \r\nE\r\nin \r\n\r\nchunks.\r\n0\r\nX-Sum: 1\r\n\r\nGET";
        let whole = decode(&[input]).unwrap().unwrap();
        assert_eq!(whole.0, b"Wikipedia in \r\n\r\nchunks.");
        assert_eq!(whole.1.find("x-sum"), Some(&b"1"[..]));
        assert_eq!(whole.2, b"GET");
        let bytes: Vec<&[u8]> = input[..input.len() - 3].chunks(1).collect();
        assert_eq!(decode(&bytes).unwrap().unwrap().0, whole.0);
    }

    #[test]
    fn refuses_what_another_parser_might_read_differently() {
        for (input, refusal) in [
            (&b"4\nWiki\r\n0\r\n\r\n"[..], Refusal::BareLf),
            (b"4 \r\nWiki\r\n", Refusal::ChunkSize),
            (b"0x4\r\nWiki\r\n", Refusal::ChunkSize),
            (b"-1\r\n", Refusal::ChunkSize),
            (b"+4\r\nWiki\r\n", Refusal::ChunkSize),
            (b"\r\n", Refusal::ChunkSize),
            (b"1000000000000000\r\n", Refusal::ChunkSize),
            (b"4;a\x00b\r\nWiki\r\n", Refusal::ChunkExtension),
            (b"4;a\rb\r\nWiki\r\n", Refusal::ChunkExtension),
            (b"4\r\nWikipedia\r\n", Refusal::ChunkEnd),
            (b"4\r\nWiki\n0\r\n\r\n", Refusal::ChunkEnd),
            (b"0\r\nContent-Length: 5\r\n\r\n", Refusal::TrailerForbidden),
            (b"0\r\nTransfer-Encoding: x\r\n\r\n", Refusal::TrailerForbidden),
            (b"0\r\nbad name: x\r\n\r\n", Refusal::FieldName),
            (b"0\r\nX: a\r\n b\r\n\r\n", Refusal::Folded),
            (b"0\r\nX: a\n\r\n", Refusal::BareLf),
        ] {
            assert_eq!(decode(&[input]).err(), Some(refusal), "{}", input.escape_ascii());
        }
        let long = [&b"1;"[..], &[b'x'; MAX_LINE]].concat();
        assert_eq!(decode(&[&long]).err(), Some(Refusal::ChunkExtension));
        let long = [&b"0\r\nX: "[..], &[b'x'; MAX_TRAILERS]].concat();
        assert_eq!(decode(&[&long]).err(), Some(Refusal::TrailersTooLarge));
    }

    proptest! {
        #[test]
        fn random_input_never_panics_and_the_split_never_matters(
            input in proptest::collection::vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'0'), Just(b'2'), Just(b';'), any::<u8>()], 0..64)
        ) {
            let at_once = decode(&[&input]);
            let split: Vec<&[u8]> = input.chunks(1).collect();
            let bytewise = decode(&split);
            match (at_once, bytewise) {
                (Ok(Some(a)), Ok(Some(b))) => prop_assert_eq!(a.0, b.0),
                (Ok(None), Ok(None)) => {}
                (Err(a), Err(b)) => prop_assert_eq!(a, b),
                (a, b) => prop_assert!(false, "{:?} but {:?} in pieces", a.map(|x| x.is_some()), b.map(|x| x.is_some())),
            }
        }
    }
}
