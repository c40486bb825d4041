//! Messages as packets: postcard, split over packets small enough for any `SOCK_SEQPACKET` buffer.
//!
//! Each packet is a one-byte header and a piece of the message. [`FIRST`] marks its first piece and discards what an
//! earlier, dead sender left unfinished; [`LAST`] its last. Pure: no socket is known here. Input is hostile (a worker may
//! be taken over): sizes are bounded and nothing panics.

use bytes::BytesMut;
use serde::{Serialize, de::DeserializeOwned};

use crate::texts::Texts;

/// Largest packet with its header, in bytes: well below the smallest default of `net.core.wmem_default` (212,992).
pub const MAX_PACKET: usize = 64 * 1024;

/// Largest message in bytes: a whole model of 100,000 routes fits; a sender that goes on beyond it is cut off.
pub const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// Header bit of the first packet of a message.
pub const FIRST: u8 = 1;
/// Header bit of the last packet of a message.
pub const LAST: u8 = 2;

/// Why packets make no message.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// A packet without a header, or with unknown bits in it.
    #[error("packet without a valid header")]
    Header,
    /// A packet that continues nothing.
    #[error("packet continues a message that never began")]
    NotBegun,
    /// More than [`MAX_MESSAGE`] bytes.
    #[error("message longer than {MAX_MESSAGE} bytes")]
    TooLong,
    /// Not the message expected: the other side has another protocol, or was taken over.
    #[error("message cannot be decoded: {0}")]
    Decode(#[from] postcard::Error),
    /// Bytes after the end of the message.
    #[error("{0} bytes follow the message")]
    Trailing(usize),
}

/// Encodes a message as packets, to be sent in order. Descriptors go with the first.
///
/// # Errors
/// [`CodecError::Decode`] carries postcard's reason when a value cannot be encoded.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<Vec<u8>>, CodecError> {
    let body = postcard::to_stdvec(message)?;
    let mut pieces = body.chunks(MAX_PACKET - 1).peekable();
    let mut packets = Vec::with_capacity(body.len() / MAX_PACKET + 1);
    let mut header = FIRST;
    loop {
        let piece = pieces.next().unwrap_or_default();
        let is_last = pieces.peek().is_none();
        let mut packet = Vec::with_capacity(piece.len() + 1);
        packet.push(if is_last { header | LAST } else { header });
        packet.extend_from_slice(piece);
        packets.push(packet);
        if is_last {
            return Ok(packets);
        }
        header = 0;
    }
}

/// Puts packets together again.
#[derive(Debug, Default)]
pub struct Decoder {
    partial: Option<BytesMut>,
    texts: Texts,
}

impl Decoder {
    /// Takes one packet; returns the message that it completes.
    ///
    /// # Errors
    /// See [`CodecError`]. The message under way is dropped; the next one that begins is read again.
    pub fn push_packet<T: DeserializeOwned>(&mut self, packet: &[u8]) -> Result<Option<T>, CodecError> {
        let (&header, piece) = packet.split_first().ok_or(CodecError::Header)?;
        if header & !(FIRST | LAST) != 0 {
            self.partial = None;
            return Err(CodecError::Header);
        }
        if header & FIRST != 0 {
            if header & LAST != 0 {
                self.partial = None;
                return self.texts.share(|| decode(piece)).map(Some);
            }
            self.partial = Some(BytesMut::with_capacity(2 * MAX_PACKET));
        }
        let mut message = self.partial.take().ok_or(CodecError::NotBegun)?;
        if message.len() + piece.len() > MAX_MESSAGE {
            return Err(CodecError::TooLong);
        }
        message.extend_from_slice(piece);
        if header & LAST != 0 {
            return self.texts.share(|| decode(&message)).map(Some);
        }
        self.partial = Some(message);
        Ok(None)
    }
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    let (message, rest) = postcard::take_from_bytes(body)?;
    if rest.is_empty() { Ok(message) } else { Err(CodecError::Trailing(rest.len())) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_message_survives_the_wire(length in 0..300_000usize, seed in any::<u8>()) {
            let body: Vec<u8> = (0..length).map(|i| (i % 251) as u8 ^ seed).collect();
            let mut decoder = Decoder::default();
            let packets = encode(&body).unwrap();
            let (last, first) = packets.split_last().unwrap();
            for packet in first {
                prop_assert!(packet.len() <= MAX_PACKET);
                prop_assert!(decoder.push_packet::<Vec<u8>>(packet).unwrap().is_none());
            }
            prop_assert_eq!(decoder.push_packet::<Vec<u8>>(last).unwrap(), Some(body));
        }

        #[test]
        fn random_packets_never_panic(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..16)) {
            let mut decoder = Decoder::default();
            for packet in &packets {
                let _ = decoder.push_packet::<crate::control::ToWorker>(packet);
            }
        }
    }

    #[test]
    fn a_new_sender_discards_what_a_dead_one_left_unfinished() {
        let mut decoder = Decoder::default();
        let unfinished = encode(&vec![7u8; 3 * MAX_PACKET]).unwrap();
        assert!(decoder.push_packet::<Vec<u8>>(&unfinished[0]).unwrap().is_none());
        let whole = encode(&vec![9u8; 10]).unwrap();
        assert_eq!(decoder.push_packet::<Vec<u8>>(&whole[0]).unwrap(), Some(vec![9u8; 10]));
    }

    #[test]
    fn a_continuation_of_nothing_is_refused() {
        assert!(matches!(Decoder::default().push_packet::<u8>(&[0, 1]), Err(CodecError::NotBegun)));
    }
}
