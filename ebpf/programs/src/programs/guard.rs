//! `guard` (cgroup connect and sendmsg): which addresses a worker may dial.
//!
//! Attached to the cgroups of workers only, and fails closed: an unknown cgroup, an unlisted address, another protocol than
//! TCP and UDP are refused with EPERM, whatever the worker has become.

use aya_ebpf::{helpers::bpf_get_current_cgroup_id, macros::cgroup_sock_addr, programs::SockAddrContext};
use tidegate_abi::{Address, Hook, Reason, address::from_v4};
use tidegate_programs::decide::{Judged, judge_dial};

use super::{
    maps::{Maps, WORKERS},
    steer::{from_words, read_words},
    verdict::{count, sample},
};

/// TCP and connected UDP over IPv4.
#[cgroup_sock_addr(connect4)]
pub fn guard_connect4(ctx: SockAddrContext) -> i32 {
    judge_v4(&ctx)
}

/// TCP and connected UDP over IPv6, with IPv4-mapped destinations.
#[cgroup_sock_addr(connect6)]
pub fn guard_connect6(ctx: SockAddrContext) -> i32 {
    judge_v6(&ctx)
}

/// Unconnected UDP over IPv4.
#[cgroup_sock_addr(sendmsg4)]
pub fn guard_sendmsg4(ctx: SockAddrContext) -> i32 {
    judge_v4(&ctx)
}

/// Unconnected UDP over IPv6, with IPv4-mapped destinations.
#[cgroup_sock_addr(sendmsg6)]
pub fn guard_sendmsg6(ctx: SockAddrContext) -> i32 {
    judge_v6(&ctx)
}

#[inline(always)]
fn judge_v4(ctx: &SockAddrContext) -> i32 {
    // SAFETY: the kernel passes a context that is valid for the whole run.
    let addr = unsafe { (*ctx.sock_addr).user_ip4 };
    judge(ctx, from_v4(addr.to_ne_bytes()))
}

#[inline(always)]
fn judge_v6(ctx: &SockAddrContext) -> i32 {
    // SAFETY: as in `judge_v4`.
    let words = unsafe { read_words(&raw const (*ctx.sock_addr).user_ip6) };
    judge(ctx, from_words(words))
}

#[inline(always)]
fn judge(ctx: &SockAddrContext, daddr: Address) -> i32 {
    // SAFETY: as in `judge_v4`.
    let (port, protocol) = unsafe { ((*ctx.sock_addr).user_port, (*ctx.sock_addr).protocol) };
    // The context holds the port in network order in its first two bytes.
    let port = u16::from_be(port as u16);
    let protocol = if protocol <= u8::MAX.into() { protocol as u8 } else { 0 };
    // SAFETY: a helper without arguments; the element is read as `Maps` says.
    let domain = unsafe { WORKERS.get(bpf_get_current_cgroup_id()) };
    let verdict = judge_dial(&Maps::JUDGING, domain, &daddr, port, protocol);
    count(Hook::Guard, verdict, 0);
    if verdict.reason != Reason::DialDenied {
        return 1;
    }
    let judged = Judged { verdict, saddr: [0; 16], daddr, sport: 0, dport: port, vlan: 0, protocol, tcp_flags: 0 };
    sample(Hook::Guard, &judged, 0, 0);
    0
}
