//! Open connections: what `observe` counts of them, and what it knows of their sources.
//!
//! A source is an address cut to the bits that its domain's policy tells sources apart by. [`Mark`] hangs on a socket and
//! says what was counted for it, so that exactly that is taken back when it closes. Times are of CLOCK_MONOTONIC.

use crate::{Address, map::MAX_DOMAINS};

/// Names of the maps, as pinned and as in the object.
pub mod name {
    /// Zero -> [`super::Instance`].
    pub const INSTANCE: &str = "INSTANCE";
    /// Domain -> open connections.
    pub const OPEN_DOMAINS: &str = "OPEN_DOMAINS";
    /// [`super::SourceKey`] -> [`super::open_word`].
    pub const OPEN_SOURCES: &str = "OPEN_SOURCES";
    /// Socket -> [`super::Mark`].
    pub const MARKS: &str = "MARKS";
    /// Domain -> [`super::Connections`], per CPU.
    pub const CONNECTIONS: &str = "CONNECTIONS";
    /// Sets of known sources -> [`super::KnownSet`].
    pub const KNOWN: &str = "KNOWN";
}

/// Elements of `OPEN_DOMAINS` and `CONNECTIONS`.
pub const MAX_OPEN_DOMAINS: u32 = MAX_DOMAINS;
/// Element of `OPEN_DOMAINS` that is no domain's: how many elements `OPEN_SOURCES` has.
pub const OPEN_SOURCES_ELEMENTS: u32 = 0;
/// Capacity of `OPEN_SOURCES`: sources with an open connection. Its buckets take 8 MiB, an element 96 bytes.
pub const MAX_OPEN_SOURCES: u32 = 524_288;
/// Sets of `KNOWN`, a power of two: 262,144 sources in 2 MiB.
pub const KNOWN_SETS: u32 = 32_768;
/// Ways of a set, which fill a cache line.
pub const KNOWN_WAYS: usize = 8;

/// Value of `INSTANCE`: what the programs need to know of the agent that loaded them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Instance {
    /// Random and secret: nobody outside can aim at a set of a hashed table.
    pub seed: [u64; 2],
    /// Network namespace whose sockets are counted (SO_NETNS_COOKIE of socket(7)).
    pub netns: u64,
    /// Raised when counting begins anew: marks of another epoch are of counts that are no more.
    pub epoch: u64,
}

/// Key of `OPEN_SOURCES`; hashed, the place in tables of sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct SourceKey {
    /// First address of the source's prefix.
    pub addr: Address,
    /// Domain.
    pub domain: u32,
}

/// Value of `MARKS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Mark {
    /// When the handshake was complete.
    pub opened_ns: u64,
    /// Epoch that it was counted in.
    pub epoch: u64,
    /// What it was counted for.
    pub source: SourceKey,
    /// [`Mark::OPEN`], [`Mark::BY_SOURCE`].
    pub flags: u32,
}

impl Mark {
    /// Counted for its domain; cleared when that is taken back.
    pub const OPEN: u32 = 1;
    /// Counted for its source too.
    pub const BY_SOURCE: u32 = 2;
}

/// Value of `CONNECTIONS`. Histograms count each value once, in the first bucket whose bound it does not pass; the last one
/// has no bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Connections {
    /// Smoothed round-trip times at the end of connections, see [`rtt_bound_us`].
    pub rtt: [u64; RTT_BUCKETS],
    /// How long connections were open, see [`duration_bound_us`].
    pub duration: [u64; DURATION_BUCKETS],
    /// Sum of the round-trip times in microseconds.
    pub rtt_us: u64,
    /// Sum of the durations in microseconds.
    pub duration_us: u64,
    /// Connections that were opened.
    pub opened: u64,
    /// Segments that were sent again.
    pub retransmits: u64,
    /// Bytes received in order; a FIN is one.
    pub bytes_received: u64,
    /// Bytes sent that the client has acknowledged; a FIN is one.
    pub bytes_acked: u64,
    /// Connections not counted for their source, because `OPEN_SOURCES` was full or busy.
    pub uncounted: u64,
}

/// Buckets of round-trip times.
pub const RTT_BUCKETS: usize = 18;
/// Buckets of durations.
pub const DURATION_BUCKETS: usize = 15;

/// Upper bound of a bucket of round-trip times but the last: from 64 microseconds, each twice the one before, to 4 seconds.
#[inline(always)]
pub const fn rtt_bound_us(bucket: usize) -> u64 {
    64 << bucket
}

/// Upper bound of a bucket of durations but the last: from a millisecond, each four times the one before, to 18 hours.
#[inline(always)]
pub const fn duration_bound_us(bucket: usize) -> u64 {
    1000 << (2 * bucket)
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            rtt: [0; RTT_BUCKETS],
            duration: [0; DURATION_BUCKETS],
            rtt_us: 0,
            duration_us: 0,
            opened: 0,
            retransmits: 0,
            bytes_received: 0,
            bytes_acked: 0,
            uncounted: 0,
        }
    }
}

/// Value of `KNOWN`: each way 0, or what [`known_word`] makes of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KnownSet {
    /// The sources.
    pub ways: [u64; KNOWN_WAYS],
}

/// A source in `KNOWN`: the upper half of its hash, and when it was seen in ticks of 2^30 ns; never 0.
#[inline(always)]
pub const fn known_word(hash: u64, ticks: u32) -> u64 {
    hash & !0xffff_ffff | ticks as u64
}

/// Value of `OPEN_SOURCES`: half a hash of the key, and the connections. A program that still holds a removed element's
/// address sees by the hash that the memory is another key's now.
#[inline(always)]
pub const fn open_word(hash: u64, open: u32) -> u64 {
    hash & !0xffff_ffff | open as u64
}

/// Connections in an [`open_word`] of an element that is being removed.
pub const OPEN_REMOVED: u32 = u32::MAX;

/// Connections of an [`open_word`].
#[inline(always)]
pub const fn open_of_word(word: u64) -> u32 {
    match word as u32 {
        OPEN_REMOVED => 0,
        open => open,
    }
}
