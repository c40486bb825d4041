//! The wire format of Protocol Buffers (protobuf.dev/programming-guides/encoding), as far as two small messages need it.
//!
//! Written here, since a generator with its run-time library would be more code than this and would bring every message of
//! Envoy's API along. Input is hostile: nothing panics, and what is read is borrowed from it.

/// Writes fields behind each other.
#[derive(Debug, Default)]
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    /// A number; zero is what an absent field means, and is left out.
    pub(super) fn push_number(&mut self, field: u32, number: u64) {
        if number != 0 {
            self.push_varint(u64::from(field) << 3);
            self.push_varint(number);
        }
    }

    /// A text or bytes; empty ones are left out.
    pub(super) fn push_bytes(&mut self, field: u32, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        if !bytes.is_empty() {
            self.push_field(field, bytes);
        }
    }

    /// A message, also an empty one.
    pub(super) fn push_message(&mut self, field: u32, fill: impl FnOnce(&mut Self)) {
        let mut message = Self::default();
        fill(&mut message);
        self.push_field(field, &message.0);
    }

    /// An entry of a map from text to text: its key and value are there even when empty.
    pub(super) fn push_entry(&mut self, field: u32, key: &[u8], value: &[u8]) {
        self.push_message(field, |entry| {
            entry.push_field(1, key);
            entry.push_field(2, value);
        });
    }

    /// What was written.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn push_field(&mut self, field: u32, bytes: &[u8]) {
        self.push_varint(u64::from(field) << 3 | 2);
        self.push_varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn push_varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a message of Protocol Buffers")]
pub(super) struct Malformed;

/// Value of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A number, truth value or enum.
    Number(u64),
    /// A text, bytes or message.
    Bytes(&'a [u8]),
    /// A number of fixed size, which no message read here has.
    Fixed,
}

impl<'a> Value<'a> {
    /// The bytes.
    ///
    /// # Errors
    /// The field has another type.
    pub(super) fn bytes(self) -> Result<&'a [u8], Malformed> {
        if let Self::Bytes(bytes) = self { Ok(bytes) } else { Err(Malformed) }
    }

    /// The number.
    ///
    /// # Errors
    /// The field has another type.
    pub(super) fn number(self) -> Result<u64, Malformed> {
        if let Self::Number(number) = self { Ok(number) } else { Err(Malformed) }
    }
}

/// Calls `take` with number and value of each field of a message.
///
/// # Errors
/// The message is cut short or has what no message has; or `take` says so.
pub(super) fn read_fields<'a>(
    mut bytes: &'a [u8],
    mut take: impl FnMut(u32, Value<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes)?;
        let field = u32::try_from(tag >> 3).ok().filter(|&field| field > 0).ok_or(Malformed)?;
        let value = match tag & 7 {
            0 => Value::Number(take_varint(&mut bytes)?),
            1 => take_bytes(&mut bytes, 8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(take_varint(&mut bytes)?).map_err(|_| Malformed)?;
                Value::Bytes(take_bytes(&mut bytes, length)?)
            }
            5 => take_bytes(&mut bytes, 4).map(|_| Value::Fixed)?,
            // Groups are gone since version 2.
            _ => return Err(Malformed),
        };
        take(field, value)?;
    }
    Ok(())
}

fn take_bytes<'a>(bytes: &mut &'a [u8], count: usize) -> Result<&'a [u8], Malformed> {
    let (taken, rest) = bytes.split_at_checked(count).ok_or(Malformed)?;
    *bytes = rest;
    Ok(taken)
}

fn take_varint(bytes: &mut &[u8]) -> Result<u64, Malformed> {
    let mut number = 0u64;
    for shift in (0..70).step_by(7) {
        let (&byte, rest) = bytes.split_first().ok_or(Malformed)?;
        *bytes = rest;
        // The tenth byte holds the last bit of 64.
        if shift == 63 && byte > 1 {
            return Err(Malformed);
        }
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<(u32, Value<'_>)>, Malformed> {
        let mut fields = Vec::new();
        read_fields(bytes, |field, value| {
            fields.push((field, value));
            Ok(())
        })
        .map(|()| fields)
    }

    #[test]
    fn writes_the_examples_of_the_specification() {
        let mut encoder = Encoder::default();
        encoder.push_number(1, 150);
        encoder.push_bytes(2, "testing");
        encoder.push_message(3, |message| message.push_number(1, 150));
        let expected = b"\x08\x96\x01\x12\x07testing\x1a\x03\x08\x96\x01";
        assert_eq!(encoder.into_bytes(), expected);
        let fields = [(1, Value::Number(150)), (2, Value::Bytes(b"testing")), (3, Value::Bytes(b"\x08\x96\x01"))];
        assert_eq!(read(expected).unwrap(), fields);
    }

    #[test]
    fn negative_numbers_take_ten_bytes() {
        let mut encoder = Encoder::default();
        encoder.push_number(9, -1i64 as u64);
        let bytes = encoder.into_bytes();
        assert_eq!(bytes, b"\x48\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01");
        assert_eq!(read(&bytes).unwrap(), [(9, Value::Number(u64::MAX))]);
    }

    #[test]
    fn what_is_cut_short_or_impossible_is_refused() {
        for bytes in [
            &b"\x08"[..],
            b"\x12\x05abc",
            b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
            b"\x00\x01",
            b"\x0b\x0c",
            b"\x0d\x00\x00\x00",
            b"\x09\x00",
        ] {
            assert_eq!(read(bytes), Err(Malformed), "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read(&bytes);
        }
    }
}
