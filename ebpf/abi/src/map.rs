//! Maps: their names, sizes, keys and values.
//!
//! Sizes are capacities, not memory: hash maps and tries of this project are created without preallocation. Ports are in
//! host order, addresses in the form of [`Address`]. `pad` fields are zero: they are part of a key's bytes.

use crate::{
    Address, Connections, DomainRates, Hook, Instance, KnownSet, Mark, Plain, RateSet, Reason, SourceKey, SourceLine,
};

/// Names of the maps, as pinned and as in the object.
pub mod name {
    /// [`crate::Address`] -> [`super::AddressOwner`].
    pub const ADDRESSES: &str = "ADDRESSES";
    /// [`super::FrontendKey`] -> domain.
    pub const FRONTENDS: &str = "FRONTENDS";
    /// [`super::InterfaceKey`] -> presence.
    pub const INTERFACES: &str = "INTERFACES";
    /// Interface index -> presence: `admit` judges what comes in here.
    pub const ADMITTING: &str = "ADMITTING";
    /// Domain -> [`super::Policy`].
    pub const DOMAINS: &str = "DOMAINS";
    /// [`super::sources_slot`] -> a table of [`crate::sources::SourceLine`]s.
    pub const SOURCES: &str = "SOURCES";
    /// [`super::counter_index`] -> [`super::Counter`], per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring buffer of [`super::Sample`].
    pub const SAMPLES: &str = "SAMPLES";
    /// [`super::SampleClass`] -> [`super::SampleBudget`].
    pub const SAMPLE_BUDGETS: &str = "SAMPLE_BUDGETS";
    /// [`super::SampleClass`] -> [`super::SampleState`], per CPU.
    pub const SAMPLE_STATES: &str = "SAMPLE_STATES";
    /// [`super::socket_index`] -> listening socket.
    pub const SOCKETS: &str = "SOCKETS";
    /// Id of a worker's cgroup -> domain.
    pub const WORKERS: &str = "WORKERS";
    /// [`super::DialledKey`] -> presence.
    pub const DIALLED: &str = "DIALLED";
    /// Domain -> its table of [`crate::RateSet`], where new connections are limited for each source.
    pub const RATE_TABLES: &str = "RATE_TABLES";
    /// Domain -> [`crate::DomainRates`].
    pub const RATE_DOMAINS: &str = "RATE_DOMAINS";
    /// Domain -> connections judged by a shared bucket, per CPU.
    pub const RATE_OVERFLOWS: &str = "RATE_OVERFLOWS";
    /// One element per CPU: cookie of the socket that `guard` has judged last, so that `borrowed` does not do it again.
    pub const JUDGED: &str = "JUDGED";
    /// 0 -> the program `cookie`, which `admit` goes on to.
    pub const COOKIE: &str = "COOKIE";

    pub use crate::connections::name::{CONNECTIONS, INSTANCE, KNOWN, MARKS, OPEN_DOMAINS, OPEN_SOURCES};

    /// Every map.
    pub const ALL: [&str; 24] = [
        ADDRESSES,
        FRONTENDS,
        INTERFACES,
        ADMITTING,
        DOMAINS,
        SOURCES,
        COUNTERS,
        SAMPLES,
        SAMPLE_BUDGETS,
        SAMPLE_STATES,
        SOCKETS,
        WORKERS,
        DIALLED,
        RATE_TABLES,
        RATE_DOMAINS,
        RATE_OVERFLOWS,
        JUDGED,
        INSTANCE,
        OPEN_DOMAINS,
        OPEN_SOURCES,
        MARKS,
        CONNECTIONS,
        KNOWN,
        COOKIE,
    ];
}

/// Domain numbers are below this; 0 is "no domain". Counters take 512 bytes a domain, hook and CPU.
pub const MAX_DOMAINS: u32 = 256;
/// Capacity of `ADDRESSES`.
pub const MAX_ADDRESSES: u32 = 65_536;
/// Capacity of `FRONTENDS`.
pub const MAX_FRONTENDS: u32 = 131_072;
/// Capacity of `INTERFACES`.
pub const MAX_INTERFACES: u32 = 8_192;
/// Capacity of `ADMITTING`.
pub const MAX_ADMITTING: u32 = 4_096;
/// Elements of `SOURCES`: two for each domain, one in force and one that is filled next.
pub const MAX_SOURCES: u32 = MAX_DOMAINS * 2;
/// Capacity of `WORKERS`: draining predecessors have cgroups of their own.
pub const MAX_WORKERS: u32 = 1_024;
/// Capacity of `DIALLED`.
pub const MAX_DIALLED: u32 = 1_048_576;
/// Bytes of the ring buffer of samples: 3,640 of them (64 bytes and an 8-byte header each).
pub const SAMPLES_BYTES: u32 = 262_144;
/// Room for reasons in `COUNTERS`, so that a new reason moves no counter.
pub const REASON_SLOTS: u32 = 32;
/// Elements of `COUNTERS`.
pub const MAX_COUNTERS: u32 = MAX_DOMAINS * Hook::ALL.len() as u32 * REASON_SLOTS;
/// Elements of `SOCKETS`.
pub const MAX_SOCKETS: u32 = MAX_DOMAINS * 2;

/// Index of a counter. A domain out of range (which user space never writes) counts as none.
#[inline(always)]
pub const fn counter_index(domain: u32, hook: Hook, reason: Reason) -> u32 {
    let domain = if domain < MAX_DOMAINS { domain } else { 0 };
    (domain * Hook::ALL.len() as u32 + hook as u32) * REASON_SLOTS + reason as u32
}

/// Index of the listening socket of a domain and address family.
#[inline(always)]
pub const fn socket_index(domain: u32, is_v6: bool) -> u32 {
    domain * 2 + is_v6 as u32
}

/// Index of a table of sources of a domain; those of numbered domains are not 0.
#[inline(always)]
pub const fn sources_slot(domain: u32, side: bool) -> u32 {
    domain * 2 + side as u32
}

/// Value of `ADDRESSES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct AddressOwner {
    /// Domain that owns an exclusive address; 0 for a shared one, whose frontends say their domain.
    pub domain: u32,
    /// [`AddressOwner::EXCLUSIVE`] or 0.
    pub flags: u32,
}

impl AddressOwner {
    /// The address belongs to the domain alone: what is not for a frontend is refused.
    pub const EXCLUSIVE: u32 = 1;
}

/// Key of `FRONTENDS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct FrontendKey {
    /// Destination.
    pub addr: Address,
    /// Destination port.
    pub port: u16,
    /// [`crate::Transport`] as a number.
    pub transport: u8,
    /// Zero.
    pub pad: u8,
}

/// Key of `INTERFACES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct InterfaceKey {
    /// NIC.
    pub ifindex: u32,
    /// Domain that the NIC belongs to.
    pub domain: u32,
    /// VLAN id of the outer tag; 0 is untagged.
    pub vlan: u16,
    /// VLAN id of the inner tag (802.1ad); 0 is none.
    pub inner_vlan: u16,
}

/// Value of `DOMAINS`: an element is replaced whole, so a reader sees either the old or the new one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Policy {
    /// New connections of each source.
    pub per_source: Rate,
    /// New connections of all sources.
    pub total: Rate,
    /// Echo requests.
    pub echo: Rate,
    /// Open connections of each source; 0 is no limit.
    pub open_per_source: u32,
    /// Open connections of all sources; 0 is no limit.
    pub open_total: u32,
    /// Element of `SOURCES` with the domain's lists; 0 is none.
    pub sources: u32,
    /// Bits set below.
    pub flags: u32,
    /// Bits of an IPv4 address that tell sources apart, for rates and limits of each source.
    pub v4_bits: u8,
    /// Bits of an IPv6 address that tell sources apart.
    pub v6_bits: u8,
    /// Zero.
    pub pad: [u8; 6],
}

impl Policy {
    /// Only sources on the allow list are let in; without a table nobody is on it.
    pub const CLOSED: u32 = 2;
    /// SYNs are answered in the driver when the listener's queue is full.
    pub const COOKIES: u32 = 1;
    /// No echo is let in, whatever [`Policy::echo`] says.
    pub const NO_ECHO: u32 = 1 << 16;
}

/// A token bucket as a generic cell rate (ITU-T I.371), so the programs need no division.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Rate {
    /// Nanoseconds between two at a steady pace; 0 is no limit.
    pub interval_ns: u64,
    /// How far ahead of that pace a source may be, in nanoseconds.
    pub burst_ns: u64,
}

/// Key of `DIALLED`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct DialledKey {
    /// Destination.
    pub addr: Address,
    /// Domain of the worker.
    pub domain: u32,
    /// Destination port.
    pub port: u16,
    /// [`crate::Transport`] as a number.
    pub transport: u8,
    /// Zero.
    pub pad: u8,
}

/// Value of `COUNTERS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets (`admit`), connections or datagrams (`steer`), dialled addresses (`guard`).
    pub packets: u64,
    /// Bytes of the frames; only `admit` knows them.
    pub bytes: u64,
}

/// One sampled verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Sample {
    /// Time of `bpf_ktime_get_ns` (CLOCK_MONOTONIC).
    pub ktime_ns: u64,
    /// Source; zero at `guard`.
    pub saddr: Address,
    /// Destination.
    pub daddr: Address,
    /// Domain; 0 is none.
    pub domain: u32,
    /// NIC.
    pub ifindex: u32,
    /// Bytes of the frame; 0 where the hook sees none.
    pub len: u32,
    /// Source port; the type of an ICMP message.
    pub sport: u16,
    /// Destination port; the code of an ICMP message.
    pub dport: u16,
    /// Outer VLAN id.
    pub vlan: u16,
    /// IP protocol number; 0 when it could not be read.
    pub protocol: u8,
    /// [`Hook`] as a number.
    pub hook: u8,
    /// [`Reason`] as a number.
    pub reason: u8,
    /// Flags of the TCP header (RFC 9293 section 3.1), `admit` only.
    pub tcp_flags: u8,
    /// Zero.
    pub pad: u16,
}

/// Denials and admissions are sampled from budgets of their own: a flood of one does not hide the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SampleClass {
    /// Refused.
    Denial = 0,
    /// Let in: new connections at `steer`.
    Admission = 1,
}

/// Elements of `SAMPLE_BUDGETS` and `SAMPLE_STATES`.
pub const SAMPLE_CLASSES: u32 = 2;

/// Value of `SAMPLE_BUDGETS`: a generic cell rate (ITU-T I.371), so the programs need no division.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SampleBudget {
    /// Nanoseconds between samples of one CPU; 0 samples everything.
    pub interval_ns: u64,
    /// How far ahead of that pace a CPU may be, in nanoseconds.
    pub burst_ns: u64,
}

/// Value of `SAMPLE_STATES`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SampleState {
    /// When the next sample is due.
    pub due_ns: u64,
    /// Verdicts not sampled because the budget was used up.
    pub over_budget: u64,
    /// Samples lost because the ring buffer was full.
    pub lost: u64,
}

macro_rules! plain {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: `layout` asserts that the fields fill the type; all are integers or arrays of them.
            #[expect(unsafe_code, reason = "the promise of `Plain`")]
            unsafe impl Plain for $type {}
        )+
    };
}

plain!(
    AddressOwner,
    FrontendKey,
    InterfaceKey,
    Policy,
    Rate,
    RateSet,
    DomainRates,
    SourceLine,
    DialledKey,
    Counter,
    Sample,
    SampleBudget,
    SampleState,
    Instance,
    SourceKey,
    Mark,
    Connections,
    KnownSet,
    u32,
    u64,
    [u8; 16],
);

/// A verdict in one word, as the program `explain` returns it: bit 31 tells it from a program that did not run.
#[inline(always)]
pub const fn explained(domain: u32, reason: Reason) -> u32 {
    1 << 31 | (domain & 0xffff) << 8 | reason as u32
}

/// Domain and reason of [`explained`].
pub const fn from_explained(word: u32) -> Option<(u32, Reason)> {
    if word >> 31 == 0 {
        return None;
    }
    match Reason::from_number(word as u8) {
        Some(reason) => Some((word >> 8 & 0xffff, reason)),
        None => None,
    }
}
