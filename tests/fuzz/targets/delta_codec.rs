//! Packets that a peer taken over may send: the decoder returns messages or errors, never panics, and never keeps more than
//! it was given.
//!
//! Input: a sequence of packets, each behind its length in two bytes, so that the fuzzer reaches messages of several packets.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};
use tidegate_model::{
    codec::{Decoder, encode},
    control::{FromInit, FromWorker, ToInit, ToWorker},
};

fuzz_target!(|input: &[u8]| {
    decode::<ToWorker>(input);
    decode::<FromWorker>(input);
    decode::<ToInit>(input);
    decode::<FromInit>(input);
});

fn decode<T: Serialize + DeserializeOwned>(input: &[u8]) {
    let mut decoder = Decoder::default();
    let mut rest = input;
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let (packet, more) = more.split_at(more.len().min(usize::from(u16::from_le_bytes(*length))));
        rest = more;
        if let Ok(Some(message)) = decoder.push_packet::<T>(packet) {
            assert_survives(&message);
        }
    }
}

/// What could be decoded is the same after another trip over the wire.
fn assert_survives<T: Serialize + DeserializeOwned>(message: &T) {
    let packets = encode(message).expect("a decoded message can be encoded");
    let mut decoder = Decoder::default();
    let mut back = None;
    for packet in &packets {
        back = decoder.push_packet::<T>(packet).expect("own packets are valid");
    }
    let again = encode(&back.expect("the last packet completes the message")).expect("it could be encoded before");
    assert_eq!(packets, again);
}
