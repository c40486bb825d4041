//! `observe` (sock_ops): counts the open connections of sources and domains, and notes what they were like when they end.
//!
//! Attached to the cgroup that the listening sockets were made in, which connections inherit from their listener. Looks at
//! connections to frontends in the instance's network namespace and changes nothing about any socket. A mark on the socket
//! says what was counted, so that exactly this is taken back once, whatever changed in between: policies, programs, agents.
//! TCP calls it twice in a connection's life: when the handshake is complete, and when the socket is closed (TIME-WAIT is
//! no socket any more).

use core::{
    intrinsics::{AtomicOrdering::SeqCst, atomic_cxchg, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    bindings::{
        BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE, bpf_sock_ops,
    },
    helpers::{
        bpf_ktime_get_ns,
        generated::{bpf_get_netns_cookie, bpf_sk_storage_get},
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use tidegate_abi::{
    Address, Connections, FrontendKey, Instance, Mark, SourceKey, Transport,
    address::from_v4,
    connections::{DURATION_BUCKETS, OPEN_SOURCES_ELEMENTS, RTT_BUCKETS, duration_bound_us, open_word, rtt_bound_us},
    rates::hash_source,
};
use tidegate_programs::{
    decide::Tables,
    known::{is_known, note, set_of, ticks_of},
    open::{Raised, Word, lower, raise, source_of},
};

use super::{
    maps::{CONNECTIONS, INSTANCE, KNOWN, MARKS, Maps, OPEN_DOMAINS, OPEN_SOURCES},
    steer::{from_words, read_words},
};

const AF_INET6: u32 = 10;
/// Look-ups of a source whose element another CPU is removing, which takes that some hundred nanoseconds.
const LOOK_UPS: u32 = 8;

/// The program. 1 says that nothing went wrong.
#[sock_ops]
pub fn observe(ctx: SockOpsContext) -> u32 {
    let op = ctx.op();
    if op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        open(&ctx);
    } else if op == BPF_SOCK_OPS_STATE_CB && ctx.arg(1) == BPF_TCP_CLOSE {
        close(&ctx);
    }
    1
}

/// A handshake is complete.
#[inline(always)]
fn open(ctx: &SockOpsContext) {
    let Some(instance) = INSTANCE.get(0) else { return };
    // SAFETY: the helper takes the context that the kernel has passed.
    if unsafe { bpf_get_netns_cookie(ctx.ops.cast()) } != instance.netns {
        return;
    }
    let (saddr, daddr, port) = read_flow(ctx.ops);
    let key = FrontendKey { addr: daddr, port, transport: Transport::Tcp as u8, pad: 0 };
    let Some(&domain) = Maps::JUDGING.find_frontend(&key) else { return };
    let Some(policy) = Maps::JUDGING.find_policy(domain) else { return };
    let source = source_of(policy, domain, &saddr);
    let Some(connections) = CONNECTIONS.get_ptr_mut(domain) else { return };
    // Without a mark, and without being called at the end, what is counted would stay counted.
    let mark = find_mark(ctx, BPF_SK_STORAGE_GET_F_CREATE.into());
    if mark.is_null() || ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).is_err() {
        // SAFETY: a field of a map's element.
        unsafe { add(&raw mut (*connections).uncounted, 1) };
        return;
    }
    // SAFETY: the element is this socket's, and TCP holds the socket's lock.
    let mark = unsafe { &mut *mark };
    if mark.flags & Mark::OPEN != 0 {
        // Attached to a cgroup above this one too: counted already.
        return;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    let hash = hash(instance, &source);
    note_known(hash, now);
    add_open(domain, 1);
    let by_source = if raise_source(&source, hash) { Mark::BY_SOURCE } else { 0 };
    *mark = Mark { opened_ns: now, epoch: instance.epoch, source, flags: Mark::OPEN | by_source };
    // SAFETY: fields of a map's element.
    unsafe {
        add(&raw mut (*connections).opened, 1);
        add(&raw mut (*connections).uncounted, (by_source == 0) as u64);
    }
}

/// A socket is closed.
#[inline(always)]
fn close(ctx: &SockOpsContext) {
    let Some(instance) = INSTANCE.get(0) else { return };
    let mark = find_mark(ctx, 0);
    if mark.is_null() {
        return;
    }
    // SAFETY: as in `open`.
    let mark = unsafe { &mut *mark };
    let flags = mark.flags;
    mark.flags = 0;
    if flags & Mark::OPEN == 0 || mark.epoch != instance.epoch {
        return;
    }
    let source = mark.source;
    let hash = hash(instance, &source);
    add_open(source.domain, u64::MAX);
    if flags & Mark::BY_SOURCE != 0 {
        lower_source(&source, hash);
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    note_known(hash, now);
    let duration_us = now.saturating_sub(mark.opened_ns) / 1000;
    let Some(connections) = CONNECTIONS.get_ptr_mut(source.domain) else { return };
    // SAFETY: the context is valid for the whole run; fields of a map's element.
    unsafe {
        // The kernel keeps eight times the average.
        let rtt_us = u64::from((&raw const (*ctx.ops).srtt_us).read_volatile()) / 8;
        note_end(connections, rtt_us, duration_us);
        add(&raw mut (*connections).retransmits, (&raw const (*ctx.ops).total_retrans).read_volatile().into());
        add(&raw mut (*connections).bytes_received, (&raw const (*ctx.ops).bytes_received).read_volatile());
        add(&raw mut (*connections).bytes_acked, (&raw const (*ctx.ops).bytes_acked).read_volatile());
    }
}

/// # Safety
/// `connections` is an element of a map.
#[inline(always)]
unsafe fn note_end(connections: *mut Connections, rtt_us: u64, duration_us: u64) {
    // None was measured, e.g. behind a SYN cookie without time stamps.
    if rtt_us != 0 {
        let mut bucket = 0;
        while bucket < RTT_BUCKETS - 1 && rtt_us > rtt_bound_us(bucket) {
            bucket += 1;
        }
        // SAFETY: fields of the element.
        unsafe {
            add((&raw mut (*connections).rtt).cast::<u64>().add(bucket), 1);
            add(&raw mut (*connections).rtt_us, rtt_us);
        }
    }
    let mut bucket = 0;
    while bucket < DURATION_BUCKETS - 1 && duration_us > duration_bound_us(bucket) {
        bucket += 1;
    }
    // SAFETY: fields of the element.
    unsafe {
        add((&raw mut (*connections).duration).cast::<u64>().add(bucket), 1);
        add(&raw mut (*connections).duration_us, duration_us);
    }
}

/// The mark of the connection's socket; null when it has none, or none can be made.
#[inline(always)]
fn find_mark(ctx: &SockOpsContext, flags: u64) -> *mut Mark {
    // SAFETY: the context is valid for the whole run; its socket is null or one that the kernel holds.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if socket.is_null() {
        return ptr::null_mut();
    }
    let map = ptr::from_ref(&MARKS).cast_mut().cast();
    // SAFETY: a map, its kind of socket, and no value, which makes it zeroes.
    unsafe { bpf_sk_storage_get(map, socket.cast(), ptr::null_mut(), flags).cast() }
}

/// Counts a connection for its source; `false` when the map is full or the source too busy.
#[inline(always)]
fn raise_source(source: &SourceKey, hash: u64) -> bool {
    let mut look_ups = 0;
    while look_ups < LOOK_UPS {
        match OPEN_SOURCES.get_ptr_mut(source) {
            Some(word) => match raise(&Shared(word), hash) {
                Raised::Yes => return true,
                Raised::Busy => return false,
                Raised::Gone => {}
            },
            None => {
                if OPEN_SOURCES.insert(source, open_word(hash, 1), BPF_NOEXIST.into()).is_ok() {
                    add_open(OPEN_SOURCES_ELEMENTS, 1);
                    return true;
                }
            }
        }
        look_ups += 1;
    }
    false
}

#[inline(always)]
fn lower_source(source: &SourceKey, hash: u64) {
    let Some(word) = OPEN_SOURCES.get_ptr_mut(source) else { return };
    if lower(&Shared(word), hash) {
        // Nobody else removes it, and none of its key is inserted while it is there.
        let _ = OPEN_SOURCES.remove(source);
        add_open(OPEN_SOURCES_ELEMENTS, u64::MAX);
    }
}

/// Domains share the table, so theirs is a part of the key.
#[inline(always)]
fn hash(instance: &Instance, source: &SourceKey) -> u64 {
    hash_source(&[instance.seed[0] ^ source.domain as u64, instance.seed[1]], &source.addr)
}

/// Whether a source, cut to the bits that count, completed a handshake with the domain not long ago.
#[inline(always)]
pub(super) fn has_known(domain: u32, source: &Address) -> bool {
    let Some(instance) = INSTANCE.get(0) else { return false };
    let hash = hash(instance, &SourceKey { addr: *source, domain });
    let Some(set) = KNOWN.get(set_of(hash)) else { return false };
    // SAFETY: a helper without arguments.
    is_known(set, hash, ticks_of(unsafe { bpf_ktime_get_ns() }))
}

#[inline(always)]
fn note_known(hash: u64, now: u64) {
    if let Some(set) = KNOWN.get_ptr_mut(set_of(hash)) {
        // SAFETY: words that are read and written one by one; `note` says what two CPUs at once do.
        note(unsafe { &mut *set }, hash, ticks_of(now));
    }
}

#[inline(always)]
fn add_open(domain: u32, change: u64) {
    if let Some(open) = OPEN_DOMAINS.get_ptr_mut(domain) {
        // SAFETY: a map's element.
        unsafe { add(open, change) };
    }
}

/// Adds in one step: close(2) can be interrupted by a packet that ends another connection.
///
/// # Safety
/// `word` is in an element of a map.
#[inline(always)]
unsafe fn add(word: *mut u64, change: u64) {
    // SAFETY: the caller's promise; such words are aligned.
    unsafe { atomic_xadd::<u64, u64, { SeqCst }>(word, change) };
}

/// A word in an element of a map. `AtomicU64` would be these instructions too, but the target's description keeps them from
/// `core`, as Linux before 5.12 did not have them.
struct Shared(*mut u64);

impl Word for Shared {
    #[inline(always)]
    fn load(&self) -> u64 {
        // SAFETY: the element was looked up in this run; eight aligned bytes are read whole.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    fn replace(&self, current: u64, new: u64) -> bool {
        // SAFETY: as in `load`.
        unsafe { atomic_cxchg::<u64, { SeqCst }, { SeqCst }>(self.0, current, new).1 }
    }

    #[inline(always)]
    fn decrement(&self) {
        // SAFETY: as in `load`.
        unsafe { add(self.0, u64::MAX) };
    }
}

/// Remote address, local address and local port.
#[inline(always)]
fn read_flow(ops: *const bpf_sock_ops) -> (Address, Address, u16) {
    // SAFETY: the kernel passes a context that is valid for the whole run. All words are read before the family is looked
    // at, as in `steer`.
    let (family, remote_v4, local_v4, remote_v6, local_v6, port) = unsafe {
        (
            (&raw const (*ops).family).read_volatile(),
            (&raw const (*ops).remote_ip4).read_volatile(),
            (&raw const (*ops).local_ip4).read_volatile(),
            read_words(&raw const (*ops).remote_ip6),
            read_words(&raw const (*ops).local_ip6),
            (&raw const (*ops).local_port).read_volatile(),
        )
    };
    if family == AF_INET6 {
        (from_words(remote_v6), from_words(local_v6), port as u16)
    } else {
        (from_v4(remote_v4.to_ne_bytes()), from_v4(local_v4.to_ne_bytes()), port as u16)
    }
}
