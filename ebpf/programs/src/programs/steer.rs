//! `steer` (sk_lookup): which socket takes a new connection to a frontend.
//!
//! Fails open for what is not for a frontend and closed for what is: a frontend without a socket is dropped, never handed to
//! whatever else listens on the port. To a drop here TCP answers with a reset, as if nobody listened. A connection that came
//! around `admit` (another interface, loopback, a tunnel) is judged here by the same function. Runs for look-ups of listeners
//! and unconnected UDP sockets only (kernel 5.9), so established traffic does not pay for it.

use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use tidegate_abi::{Address, Hook, Reason, Transport, address::from_v4, map::socket_index};
use tidegate_programs::decide::{Destination, Ingress, Judged, Verdict, judge_connection};

use super::{
    maps::{ADMITTING, Maps, SOCKETS},
    verdict::{count, sample},
};

const AF_INET6: u32 = 10;

/// The program.
#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    // SAFETY: the kernel passes a context that is valid for the whole run.
    let ifindex = unsafe { (*ctx.lookup).ingress_ifindex };
    choose(&ctx, Some(ifindex))
}

/// The program for kernels before 5.17, whose context has no ingress interface: it cannot tell whether a connection came
/// around `admit`, so it judges every source and no NIC. Whoever loads it says so.
#[sk_lookup]
pub fn steer_blind(ctx: SkLookupContext) -> u32 {
    choose(&ctx, None)
}

#[inline(always)]
fn choose(ctx: &SkLookupContext, ifindex: Option<u32>) -> u32 {
    // SAFETY: as in `steer`.
    let (family, protocol, local_port, remote_port) = unsafe {
        let lookup = ctx.lookup;
        ((*lookup).family, (*lookup).protocol, (*lookup).local_port, (*lookup).remote_port)
    };
    let is_v6 = family == AF_INET6;
    let Some(transport) = transport_of(protocol) else { return sk_action::SK_PASS };
    let (saddr, daddr) = addresses(ctx.lookup, is_v6);
    let destination = Destination { addr: &daddr, port: local_port as u16, protocol: transport as u8 };
    let verdict = match ifindex {
        Some(ifindex) => {
            let ingress = Ingress { ifindex, vlan: 0, inner_vlan: 0 };
            let is_judged = ADMITTING.get_ptr(ifindex).is_some();
            judge_connection(&Maps::JUDGING, &destination, &saddr, Some(&ingress), is_judged)
        }
        None => judge_connection(&Maps::JUDGING, &destination, &saddr, None, false),
    };
    if verdict.reason == Reason::NotFrontend {
        return sk_action::SK_PASS;
    }
    let verdict = match verdict.reason {
        Reason::Admitted if !assign(ctx, verdict.domain, is_v6, transport) => {
            Verdict { domain: verdict.domain, reason: Reason::NoWorker }
        }
        _ => verdict,
    };
    count(Hook::Steer, verdict, 0);
    let judged = Judged {
        verdict,
        saddr,
        daddr,
        // The context's remote port is in network order (kernel 5.18 says so in its type; the bytes were always these).
        sport: u16::from_be(remote_port),
        dport: destination.port,
        vlan: 0,
        protocol: transport as u8,
        tcp_flags: 0,
    };
    sample(Hook::Steer, &judged, ifindex.unwrap_or(0), 0);
    if verdict.reason.is_denial() { sk_action::SK_DROP } else { sk_action::SK_PASS }
}

/// Gives the connection to the domain's sockets; the kernel chooses within the reuseport group. UDP frontends have sockets
/// bound to their own address, which the kernel finds by itself.
#[inline(always)]
fn assign(ctx: &SkLookupContext, domain: u32, is_v6: bool, transport: Transport) -> bool {
    match transport {
        Transport::Udp => true,
        Transport::Tcp => SOCKETS.redirect_sk_lookup(ctx, socket_index(domain, is_v6), 0).is_ok(),
    }
}

#[inline(always)]
fn transport_of(protocol: u32) -> Option<Transport> {
    match protocol {
        6 => Some(Transport::Tcp),
        17 => Some(Transport::Udp),
        _ => None,
    }
}

/// Remote and local address.
///
/// All words are read before the family is looked at: read in branches, the compiler joins the branches to one load at an
/// address that it computes, and the verifier takes context loads at constant offsets only.
#[inline(always)]
fn addresses(lookup: *const bpf_sk_lookup, is_v6: bool) -> (Address, Address) {
    // SAFETY: the kernel passes a context that is valid for the whole run; reading a field of it has no other condition.
    let (remote_v4, local_v4, remote_v6, local_v6) = unsafe {
        (
            (&raw const (*lookup).remote_ip4).read_volatile(),
            (&raw const (*lookup).local_ip4).read_volatile(),
            read_words(&raw const (*lookup).remote_ip6),
            read_words(&raw const (*lookup).local_ip6),
        )
    };
    if is_v6 {
        (from_words(remote_v6), from_words(local_v6))
    } else {
        (from_v4(remote_v4.to_ne_bytes()), from_v4(local_v4.to_ne_bytes()))
    }
}

/// Reads an address of a context word by word: contexts have no wider loads.
///
/// # Safety
/// `words` points into a context that the kernel has passed.
#[inline(always)]
pub(super) unsafe fn read_words(words: *const [u32; 4]) -> [u32; 4] {
    let first: *const u32 = words.cast();
    // SAFETY: the caller's promise; the four words lie in the array.
    unsafe {
        [
            first.read_volatile(),
            first.add(1).read_volatile(),
            first.add(2).read_volatile(),
            first.add(3).read_volatile(),
        ]
    }
}

/// Words in network order, as contexts have IPv6 addresses.
#[inline(always)]
pub(super) fn from_words(words: [u32; 4]) -> Address {
    let mut addr = [0; 16];
    let mut index = 0;
    while index < 4 {
        let bytes = words[index].to_ne_bytes();
        addr[index * 4] = bytes[0];
        addr[index * 4 + 1] = bytes[1];
        addr[index * 4 + 2] = bytes[2];
        addr[index * 4 + 3] = bytes[3];
        index += 1;
    }
    addr
}
