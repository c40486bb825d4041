//! Frames as a hostile network sends them: reading one never panics, never looks beyond its end, and what stands behind a
//! datagram never changes what is read of it.
//!
//! Input: the frame.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_programs::packet::{Bytes, Kind, parse};

/// Bytes that fail the run when they are asked for what they do not have.
struct Strict<'a>(&'a [u8]);

impl Bytes for Strict<'_> {
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        assert!(offset <= 0x7fff, "the programs read no header at {offset}");
        self.0.load(offset)
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

fuzz_target!(|frame: &[u8]| {
    let Some(packet) = parse(&Strict(frame)) else { return };
    let transport = packet.transport;
    let is_read = matches!(transport.kind, Kind::Ports | Kind::Icmp);
    assert!(is_read || (transport.sport, transport.dport, transport.tcp_flags) == (0, 0, 0));
    if transport.kind == Kind::Malformed {
        return;
    }
    let mut padded = frame.to_vec();
    padded.extend([0xa5; 7]);
    assert_eq!(parse(&Strict(&padded)), Some(packet), "padding was read");
});
