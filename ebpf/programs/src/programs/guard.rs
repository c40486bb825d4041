//! `guard` (cgroup socket, bind, connect and sendmsg): which sockets a worker may open and where they may go.
//!
//! Attached to the cgroups of workers, and fails closed: an unknown cgroup, an unlisted address, another protocol than
//! TCP and UDP, any bind are refused with EPERM, whatever the worker has become.
//!
//! The kernel chooses these programs by the cgroup that a socket was *made* in, and a worker also holds sockets that the
//! agent has made: the listening ones, what was accepted from them, and those of UDP frontends. Disconnected, such a socket
//! could be connected anew, and a UDP frontend's sends to whomever it likes, past the guard on the worker's cgroup. So
//! `borrowed` stands above both, on the agent's cgroup: it judges what a worker does with any socket, and lets everybody else
//! pass. Programs of the inner cgroup run first; what they have judged, they note in `JUDGED`, so that nothing is counted twice.
//!
//! The kernel asks the sendmsg programs for each datagram whose sender names an address or a source; what goes through a
//! connected socket was judged when it was connected.

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_current_cgroup_id, bpf_get_socket_cookie},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use tidegate_abi::{Address, Hook, address::from_v4};
use tidegate_programs::{
    contain::{judge_bind, judge_socket},
    decide::{Datagram, Judged, Verdict, judge_answer, judge_datagram, judge_dial},
    packet::protocol,
};

use super::{
    maps::{JUDGED, Maps, WORKERS},
    steer::{from_words, read_words},
    verdict::{count, sample},
};

const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

/// Sockets of the internet families; others the kernel does not ask about.
#[cgroup_sock(sock_create)]
pub fn guard_socket(ctx: SockContext) -> i32 {
    // SAFETY: the kernel passes a context that is valid for the whole run.
    let (kind, protocol) =
        unsafe { ((&raw const (*ctx.sock).type_).read_volatile(), (&raw const (*ctx.sock).protocol).read_volatile()) };
    let Some(verdict) = judge_socket(find_domain(), kind, protocol) else { return ALLOW };
    let protocol = if protocol <= u8::MAX.into() { protocol as u8 } else { 0 };
    answer(&Judged { verdict, protocol, ..Judged::default() })
}

/// TCP and connected UDP over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn guard_connect4(ctx: SockAddrContext) -> i32 {
    judge(&ctx, read_v4(&ctx), Act::Dial)
}

/// TCP and connected UDP over IPv6, with IPv4-mapped destinations.
#[cgroup_sock_addr(connect6)]
pub fn guard_connect6(ctx: SockAddrContext) -> i32 {
    judge(&ctx, read_v6(&ctx), Act::Dial)
}

/// Unconnected UDP over IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn guard_sendmsg4(ctx: SockAddrContext) -> i32 {
    note_judged(&ctx);
    judge_sent(&ctx, &read_sent_v4(&ctx), find_domain(), false)
}

/// Unconnected UDP over IPv6, with IPv4-mapped destinations.
#[cgroup_sock_addr(sendmsg6)]
pub fn guard_sendmsg6(ctx: SockAddrContext) -> i32 {
    note_judged(&ctx);
    judge_sent(&ctx, &read_sent_v6(&ctx), find_domain(), false)
}

/// Addresses of this node, IPv4.
#[cgroup_sock_addr(bind4)]
pub fn guard_bind4(ctx: SockAddrContext) -> i32 {
    judge(&ctx, read_v4(&ctx), Act::Bind)
}

/// Addresses of this node, IPv6.
#[cgroup_sock_addr(bind6)]
pub fn guard_bind6(ctx: SockAddrContext) -> i32 {
    judge(&ctx, read_v6(&ctx), Act::Bind)
}

/// As `guard_connect4`, of sockets that a worker has not made itself.
#[cgroup_sock_addr(connect4)]
pub fn borrowed_connect4(ctx: SockAddrContext) -> i32 {
    judge_borrowed(&ctx, read_v4(&ctx), Act::Dial)
}

/// As `guard_connect6`, of sockets that a worker has not made itself.
#[cgroup_sock_addr(connect6)]
pub fn borrowed_connect6(ctx: SockAddrContext) -> i32 {
    judge_borrowed(&ctx, read_v6(&ctx), Act::Dial)
}

/// As `guard_sendmsg4`, of sockets that a worker has not made itself: a frontend's answers its clients.
#[cgroup_sock_addr(sendmsg4)]
pub fn borrowed_sendmsg4(ctx: SockAddrContext) -> i32 {
    let domain = find_domain();
    if domain.is_none() || is_noted(&ctx) {
        return ALLOW;
    }
    judge_sent(&ctx, &read_sent_v4(&ctx), domain, true)
}

/// As `guard_sendmsg6`, of sockets that a worker has not made itself: a frontend's answers its clients.
#[cgroup_sock_addr(sendmsg6)]
pub fn borrowed_sendmsg6(ctx: SockAddrContext) -> i32 {
    let domain = find_domain();
    if domain.is_none() || is_noted(&ctx) {
        return ALLOW;
    }
    judge_sent(&ctx, &read_sent_v6(&ctx), domain, true)
}

/// As `guard_bind4`, of sockets that a worker has not made itself.
#[cgroup_sock_addr(bind4)]
pub fn borrowed_bind4(ctx: SockAddrContext) -> i32 {
    judge_borrowed(&ctx, read_v4(&ctx), Act::Bind)
}

/// As `guard_bind6`, of sockets that a worker has not made itself.
#[cgroup_sock_addr(bind6)]
pub fn borrowed_bind6(ctx: SockAddrContext) -> i32 {
    judge_borrowed(&ctx, read_v6(&ctx), Act::Bind)
}

/// What a process does with an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    /// Connects or sends to it.
    Dial,
    /// Binds to it.
    Bind,
}

#[inline(always)]
fn read_v4(ctx: &SockAddrContext) -> Address {
    // SAFETY: the kernel passes a context that is valid for the whole run.
    let addr = unsafe { (*ctx.sock_addr).user_ip4 };
    from_v4(addr.to_ne_bytes())
}

#[inline(always)]
fn read_v6(ctx: &SockAddrContext) -> Address {
    // SAFETY: as in `read_v4`.
    let words = unsafe { read_words(&raw const (*ctx.sock_addr).user_ip6) };
    from_words(words)
}

/// Domain of the process; `None` when it is no worker.
#[inline(always)]
fn find_domain() -> Option<&'static u32> {
    // SAFETY: a helper without arguments; the element is read as `Maps` says.
    unsafe { WORKERS.get(bpf_get_current_cgroup_id()) }
}

/// Addresses and ports of a datagram that is about to be sent.
struct Sent {
    bound: Address,
    bound_port: u16,
    claimed: Address,
    to: Address,
}

#[inline(always)]
fn read_sent_v4(ctx: &SockAddrContext) -> Sent {
    // SAFETY: as in `read_v4`; the kernel sets the socket for every run of these programs (5.3).
    let (claimed, bound, bound_port) = unsafe {
        let sock = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (
            (&raw const (*ctx.sock_addr).msg_src_ip4).read_volatile(),
            (&raw const (*sock).src_ip4).read_volatile(),
            (&raw const (*sock).src_port).read_volatile(),
        )
    };
    Sent {
        bound: from_v4(bound.to_ne_bytes()),
        bound_port: bound_port as u16,
        claimed: from_v4(claimed.to_ne_bytes()),
        to: read_v4(ctx),
    }
}

#[inline(always)]
fn read_sent_v6(ctx: &SockAddrContext) -> Sent {
    // SAFETY: as in `read_sent_v4`.
    let (claimed, bound, bound_port) = unsafe {
        let sock = (*ctx.sock_addr).__bindgen_anon_1.sk;
        (
            read_words(&raw const (*ctx.sock_addr).msg_src_ip6),
            read_words(&raw const (*sock).src_ip6),
            (&raw const (*sock).src_port).read_volatile(),
        )
    };
    Sent { bound: from_words(bound), bound_port: bound_port as u16, claimed: from_words(claimed), to: read_v6(ctx) }
}

/// Notes that a socket is judged by the worker's own cgroup.
#[inline(always)]
fn note_judged(ctx: &SockAddrContext) {
    if let Some(judged) = JUDGED.get_ptr_mut(0) {
        // SAFETY: the element is this CPU's own. A task that interrupts between here and `is_noted` and judges a socket
        // of its own makes this one be counted twice; it cannot make `borrowed` pass over one that was not judged, because
        // cookies are never used again.
        unsafe { *judged = bpf_get_socket_cookie(ctx.as_ptr()) };
    }
}

/// Whether a socket was judged by the worker's own cgroup just before.
#[inline(always)]
fn is_noted(ctx: &SockAddrContext) -> bool {
    // SAFETY: as in `note_judged`.
    unsafe { JUDGED.get(0).is_some_and(|judged| *judged == bpf_get_socket_cookie(ctx.as_ptr())) }
}

#[inline(always)]
fn judge(ctx: &SockAddrContext, addr: Address, act: Act) -> i32 {
    note_judged(ctx);
    judge_address(ctx, addr, act, find_domain())
}

#[inline(always)]
fn judge_borrowed(ctx: &SockAddrContext, addr: Address, act: Act) -> i32 {
    let domain = find_domain();
    if domain.is_none() || is_noted(ctx) {
        return ALLOW;
    }
    judge_address(ctx, addr, act, domain)
}

/// Answers that are let through are not counted: they are the traffic itself, which the worker counts.
#[inline(always)]
fn judge_sent(ctx: &SockAddrContext, sent: &Sent, domain: Option<&u32>, is_borrowed: bool) -> i32 {
    // SAFETY: as in `read_v4`.
    let to_port = unsafe { (*ctx.sock_addr).user_port };
    let to_port = u16::from_be(to_port as u16);
    let Sent { bound, bound_port, claimed, to } = sent;
    let datagram = Datagram { bound, bound_port: *bound_port, claimed, to, to_port };
    let verdict = if is_borrowed {
        judge_answer(&Maps::JUDGING, domain, &datagram)
    } else {
        judge_datagram(&Maps::JUDGING, domain, &datagram)
    };
    if is_borrowed && !verdict.reason.is_denial() {
        return ALLOW;
    }
    answer(&Judged {
        verdict,
        saddr: *claimed,
        sport: *bound_port,
        daddr: *to,
        dport: to_port,
        protocol: protocol::UDP,
        ..Judged::default()
    })
}

#[inline(always)]
fn judge_address(ctx: &SockAddrContext, addr: Address, act: Act, domain: Option<&u32>) -> i32 {
    // SAFETY: as in `read_v4`.
    let (port, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    // The context holds the port in network order in its first two bytes.
    let port = u16::from_be(port as u16);
    let protocol = if protocol <= u8::MAX.into() { protocol as u8 } else { 0 };
    let verdict = match act {
        Act::Dial => judge_dial(&Maps::JUDGING, domain, &addr, port, protocol),
        Act::Bind => judge_bind(domain),
    };
    let judged = Judged { verdict, protocol, ..Judged::default() };
    answer(&match act {
        Act::Dial => Judged { daddr: addr, dport: port, ..judged },
        Act::Bind => Judged { saddr: addr, sport: port, ..judged },
    })
}

/// Counts the verdict, samples a refusal, and says it in the kernel's words.
#[inline(always)]
fn answer(judged: &Judged) -> i32 {
    let Verdict { reason, .. } = judged.verdict;
    count(Hook::Guard, judged.verdict, 0);
    if !reason.is_denial() {
        return ALLOW;
    }
    sample(Hook::Guard, judged, 0, 0);
    REFUSE
}
