//! Finds the end of any body in buffered bytes: by length, by chunks or by the end of the connection. Pure.

use super::{
    chunked::{Chunked, Step},
    framing::BodyLength,
    refusal::Refusal,
};
use crate::http::head::Headers;

/// Decodes one body.
#[derive(Clone, Copy, Debug)]
pub enum Decoder {
    /// So many bytes are left; zero is the end.
    Length(u64),
    /// Chunked coding.
    Chunked(Chunked),
    /// Everything up to the end of the stream.
    UntilClose,
}

impl Decoder {
    /// A decoder for a body of that kind.
    pub fn new(length: BodyLength) -> Self {
        match length {
            BodyLength::Empty => Self::Length(0),
            BodyLength::Known(length) => Self::Length(length),
            BodyLength::Chunked => Self::Chunked(Chunked::default()),
            BodyLength::UntilClose => Self::UntilClose,
        }
    }

    /// The next step with `window` buffered.
    ///
    /// # Errors
    /// The rule that the body's coding breaks.
    pub fn step(&mut self, window: &[u8], trailers: &mut Headers) -> Result<Step, Refusal> {
        match self {
            Self::Length(0) => Ok(Step::End),
            Self::Length(_) | Self::UntilClose if window.is_empty() => Ok(Step::More),
            Self::Length(left) => Ok(Step::Data((*left).min(window.len() as u64) as usize)),
            Self::UntilClose => Ok(Step::Data(window.len())),
            Self::Chunked(chunked) => chunked.step(window, trailers),
        }
    }

    /// Reports how many bytes of data were taken.
    pub fn consumed(&mut self, count: usize) {
        match self {
            Self::Length(left) => *left -= (count as u64).min(*left),
            Self::Chunked(chunked) => chunked.consumed(count),
            Self::UntilClose => {}
        }
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// [`Refusal::Incomplete`] unless that is where the body ends.
    pub fn end_of_stream(&self) -> Result<(), Refusal> {
        match self {
            Self::UntilClose | Self::Length(0) => Ok(()),
            _ => Err(Refusal::Incomplete),
        }
    }
}
