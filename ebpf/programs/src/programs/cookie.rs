//! `cookie` (XDP, called by `admit`): answers an admitted SYN in its own frame when the listener's queue is full.
//!
//! The kernel makes the cookie for the domain's listening socket and takes the client's acknowledgement as one of its own, so
//! nothing is kept between the two packets: no connection tracking, no proxy. Whenever anything is missing for that, the SYN
//! goes to the stack, which has cookies as well. A frame is changed last: what is passed on is untouched. A program of its
//! own, because a tail call brings a fresh stack and `admit` has none to spare; it ends as `admit` would, counting included.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{bpf_sock_tuple, xdp_action, xdp_md},
    helpers::{
        bpf_map_lookup_elem,
        generated::{bpf_check_mtu, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_gen_syncookie, bpf_xdp_adjust_tail},
    },
    macros::xdp,
    programs::XdpContext,
};
use tidegate_abi::{FrontendKey, Hook, Policy, Reason, map::socket_index};
use tidegate_programs::{
    cookie::{IPV4, IPV6, Syn, TCP, V4, V6, is_syn},
    decide::{Judged, Tables, Verdict},
    packet::{Bytes, Link, Network, Transport, protocol},
};

use super::{
    admit::Frame,
    maps::{Maps, SOCKETS},
    verdict::count,
};

/// `BPF_TCP_LISTEN` of include/uapi/linux/bpf.h.
const LISTEN: u32 = 10;
/// `BPF_F_CURRENT_NETNS`: that of the NIC.
const CURRENT_NETNS: u64 = -1i64 as u64;
/// Shortest Ethernet frame less its checksum: drivers need not pad what XDP sends.
const SHORTEST_FRAME: usize = 60;
/// Where the NIC's size is not told, that of Ethernet.
const DEFAULT_MTU: u32 = 1500;
/// Bytes of a TCP header without options, which is what segment sizes leave room for (RFC 6691).
const TCP_PLAIN: u32 = 20;

/// Whether a packet is an admitted SYN of a domain that wants them answered in the driver.
#[inline(always)]
pub(super) fn is_wanted(judged: &Judged) -> bool {
    judged.verdict.reason == Reason::Admitted
        && judged.protocol == protocol::TCP
        && is_syn(judged.tcp_flags)
        && Maps::ASKING.find_policy(judged.verdict.domain).is_some_and(|policy| policy.flags & Policy::COOKIES != 0)
}

/// The program. Only `admit` calls it, for frames that it has found to be such a SYN.
#[xdp]
pub fn cookie(ctx: XdpContext) -> u32 {
    let frame = Frame::of(&ctx);
    let len = frame.len();
    let Some((domain, is_v6, offset)) = find_frontend(&ctx) else { return xdp_action::XDP_PASS };
    let is_answered = if is_v6 { answer_v6(&ctx, domain, offset, len) } else { answer_v4(&ctx, domain, offset, len) };
    let reason = if is_answered { Reason::CookieSent } else { Reason::Admitted };
    count(Hook::Admit, Verdict { domain, reason }, len as u64);
    if is_answered { xdp_action::XDP_TX } else { xdp_action::XDP_PASS }
}

/// Whether the program would answer the SYN of a new connection, found to be such a SYN. Counts nothing and changes no frame;
/// that the addresses and ports have no socket yet is taken for granted, since the look-up would be counted.
#[inline(always)]
pub(super) fn would_answer(ctx: &XdpContext) -> bool {
    let Some((domain, is_v6, offset)) = find_frontend(ctx) else { return false };
    if is_v6 { would_answer_v6(ctx, domain, offset) } else { would_answer_v4(ctx, domain, offset) }
}

#[inline(never)]
fn would_answer_v4(ctx: &XdpContext, domain: u32, offset: usize) -> bool {
    let Some(syn) = Syn::<V4>::parse(&Frame::of(ctx), offset) else { return false };
    let network = [0x4500_0000u32.to_be(), 0, 0, syn.saddr[0], syn.daddr[0]];
    make_cookie(socket_index(domain, false), &network, &syn.header()).is_some()
}

#[inline(never)]
fn would_answer_v6(ctx: &XdpContext, domain: u32, offset: usize) -> bool {
    let Some(syn) = Syn::<V6>::parse(&Frame::of(ctx), offset) else { return false };
    let (s, d) = (&syn.saddr, &syn.daddr);
    let network = [0x6000_0000u32.to_be(), 0, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]];
    make_cookie(socket_index(domain, true), &network, &syn.header()).is_some()
}

/// Domain of the frontend that a frame is for, its address family, and where the IP header begins.
#[inline(always)]
fn find_frontend(ctx: &XdpContext) -> Option<(u32, bool, usize)> {
    let frame = &Frame::of(ctx);
    let link = Link::parse(frame)?;
    let network = Network::parse(frame, &link)?;
    // Another frame, so that the compiler does not find its bounds checked by those of the network header: the verifier would
    // not follow.
    let transport = Transport::parse(&Frame::of(ctx), &network);
    let key = FrontendKey { addr: network.daddr, port: transport.dport, transport: transport.protocol, pad: 0 };
    let domain = *Maps::ASKING.find_frontend(&key)?;
    Some((domain, network.is_v6(), link.offset()))
}

/// A function of its own for each family: together their headers are more than one stack frame takes.
#[inline(never)]
fn answer_v4(ctx: &XdpContext, domain: u32, offset: usize, len: usize) -> bool {
    let Some(syn) = Syn::<V4>::parse(&Frame::of(ctx), offset) else { return false };
    // The kernel reads version and addresses only.
    let network = [0x4500_0000u32.to_be(), 0, 0, syn.saddr[0], syn.daddr[0]];
    let Some(cookie) = make_cookie(socket_index(domain, false), &network, &syn.header()) else { return false };
    if !is_new(ctx, &[syn.saddr[0], syn.daddr[0], syn.ports]) {
        return false;
    }
    let tcp = syn.answer(cookie, find_mss(ctx, IPV4));
    write(ctx, offset, len, &syn.answer_network(), &tcp)
}

#[inline(never)]
fn answer_v6(ctx: &XdpContext, domain: u32, offset: usize, len: usize) -> bool {
    let Some(syn) = Syn::<V6>::parse(&Frame::of(ctx), offset) else { return false };
    let (s, d) = (&syn.saddr, &syn.daddr);
    let network = [0x6000_0000u32.to_be(), 0, s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]];
    let Some(cookie) = make_cookie(socket_index(domain, true), &network, &syn.header()) else { return false };
    if !is_new(ctx, &[s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3], syn.ports]) {
        return false;
    }
    let tcp = syn.answer(cookie, find_mss(ctx, IPV6));
    write(ctx, offset, len, &syn.answer_network(), &tcp)
}

/// A cookie when the queue of the domain's listener is full (or `net.ipv4.tcp_syncookies` is 2). The kernel then also notes
/// at the listener's group that acknowledgements of cookies are to be expected.
#[inline(always)]
fn make_cookie<const N: usize>(index: u32, network: &[u32; N], tcp: &[u32; TCP]) -> Option<u32> {
    // SAFETY: the map's key is a `u32`, the headers are as long as said and only read, and the socket is given back before it
    // goes out of sight.
    let made = unsafe {
        let socket = bpf_map_lookup_elem((&raw const SOCKETS).cast_mut().cast(), (&raw const index).cast());
        if socket.is_null() {
            return None;
        }
        let made = bpf_tcp_gen_syncookie(
            socket,
            network.as_ptr().cast_mut().cast(),
            4 * N as u32,
            tcp.as_ptr().cast_mut().cast(),
            4 * TCP as u32,
        );
        bpf_sk_release(socket);
        made
    };
    if made < 0 { None } else { Some(made as u32) }
}

/// Whether no socket has these addresses and ports already: a connection that is open, begins or has just ended is the
/// stack's to answer. The look-up ends at the listener, which `steer` finds, and counts, as for a SYN in the stack. The words
/// are a `struct bpf_sock_tuple`: source, destination, ports, in network order.
#[inline(always)]
fn is_new<const N: usize>(ctx: &XdpContext, tuple: &[u32; N]) -> bool {
    // SAFETY: the tuple is as long as said and only read; the socket is given back before it goes out of sight.
    unsafe {
        let tuple = tuple.as_ptr().cast_mut().cast::<bpf_sock_tuple>();
        let socket = bpf_skc_lookup_tcp(ctx.as_ptr(), tuple, 4 * N as u32, CURRENT_NETNS, 0);
        if socket.is_null() {
            return false;
        }
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast::<c_void>());
        state == LISTEN
    }
}

/// Turns the frame of `len` bytes into the answer. The length is asked for and not computed again: the compiler would take it
/// apart into sums with the frame's end, which the verifier forbids.
#[inline(always)]
fn write<const N: usize>(ctx: &XdpContext, offset: usize, len: usize, network: &[u32; N], tcp: &[u32; TCP]) -> bool {
    let behind = offset + 4 * (N + TCP);
    let wanted = if behind > SHORTEST_FRAME { behind } else { SHORTEST_FRAME };
    let delta = wanted as i32 - len as i32;
    // SAFETY: the context is valid for the whole run, and no pointer into the frame is kept.
    if unsafe { bpf_xdp_adjust_tail(ctx.as_ptr().cast::<xdp_md>(), delta) } != 0 {
        return false;
    }
    let frame = Frame::of(ctx);
    // Nothing is written unless all of it fits.
    let (Some(place), Some(_)) = (frame.words::<N>(offset), frame.words::<TCP>(offset + 4 * N)) else { return false };
    for (word, value) in place.iter_mut().zip(network) {
        *word = value.to_ne_bytes();
    }
    let Some(place) = frame.words::<TCP>(offset + 4 * N) else { return false };
    for (word, value) in place.iter_mut().zip(tcp) {
        *word = value.to_ne_bytes();
    }
    // The destination's and the source's hardware address change places; tags stay.
    let Some(link) = frame.words::<3>(0) else { return false };
    let [[d0, d1, d2, d3], [d4, d5, s0, s1], [s2, s3, s4, s5]] = *link;
    *link = [[s0, s1, s2, s3], [s4, s5, d0, d1], [d2, d3, d4, d5]];
    true
}

/// The segment size that this side takes: what the NIC does, less `network` words of IP header.
#[inline(always)]
fn find_mss(ctx: &XdpContext, network: usize) -> u16 {
    let mut mtu = 0u32;
    // SAFETY: the context is valid for the whole run, interface 0 is the frame's own; the kernel writes one word.
    let result = unsafe { bpf_check_mtu(ctx.as_ptr(), 0, &raw mut mtu, 0, 0) };
    let mtu = if result < 0 || mtu == 0 { DEFAULT_MTU } else { mtu };
    let mss = mtu.saturating_sub(4 * network as u32 + TCP_PLAIN);
    if mss > u16::MAX as u32 { u16::MAX } else { mss as u16 }
}
