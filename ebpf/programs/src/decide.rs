//! The verdict: one admission function for two hooks, and the guard's question.
//!
//! Fails closed for frontends (an address of a domain's own that is not understood is refused) and judges nothing else: what
//! is not for a frontend is [`Reason::NotFrontend`], which every hook passes untouched. Order: frontend, NIC, martian, source,
//! port, and for what begins a connection its limits and rates. Must not know where tables or bytes live.

use tidegate_abi::{
    Address, AddressOwner, DialledKey, FrontendKey, InterfaceKey, Policy, Reason, SourceKey,
    sources::{ALLOWED, DENIED},
};

use crate::{
    martian::{LOOPBACK_IFINDEX, is_martian},
    open::find_open_refusal,
    packet::{Bytes, Kind, Link, Network, Transport, protocol},
    rates::{Buckets, find_rate_refusal, take},
};

/// The tables that verdicts depend on. Look-ups return references, whose absence is a null pointer: see
/// [`Transport`](crate::packet::Transport) on what the verifier makes of other options.
pub trait Tables: Buckets {
    /// Owner of an address.
    fn find_owner(&self, addr: &Address) -> Option<&AddressOwner>;
    /// Domain of a frontend.
    fn find_frontend(&self, key: &FrontendKey) -> Option<&u32>;
    /// Whether a NIC belongs to a domain.
    fn has_interface(&self, key: &InterfaceKey) -> bool;
    /// Policy of a domain.
    fn find_policy(&self, domain: u32) -> Option<&Policy>;
    /// Which lists of a table of sources have an address, as [`tidegate_abi::sources::VERDICT`] has it.
    fn find_source(&self, sources: u32, addr: &Address) -> u32;
    /// Whether a worker may dial an address.
    fn has_dialled(&self, key: &DialledKey) -> bool;
    /// Open connections of a source.
    fn count_open(&self, source: &SourceKey) -> u32;
    /// Open connections of a domain.
    fn count_open_total(&self, domain: u32) -> u32;
}

/// A verdict with the domain that it was made for; domain 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Domain.
    pub domain: u32,
    /// Reason.
    pub reason: Reason,
}

/// Where a packet or connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ingress {
    /// NIC.
    pub ifindex: u32,
    /// VLAN id of the outer tag; 0 is untagged.
    pub vlan: u16,
    /// VLAN id of the inner tag; 0 is none.
    pub inner_vlan: u16,
}

/// A judged packet: what a sample shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// The verdict.
    pub verdict: Verdict,
    /// Source.
    pub saddr: Address,
    /// Destination.
    pub daddr: Address,
    /// Source port, or type of an ICMP message.
    pub sport: u16,
    /// Destination port, or code of an ICMP message.
    pub dport: u16,
    /// Outer VLAN id.
    pub vlan: u16,
    /// IP protocol; 0 when it could not be read.
    pub protocol: u8,
    /// Flags of the TCP header.
    pub tcp_flags: u8,
}

impl Default for Verdict {
    fn default() -> Self {
        Self::NOT_FRONTEND
    }
}

impl Verdict {
    /// Nobody's: passes untouched.
    pub const NOT_FRONTEND: Self = Self { domain: 0, reason: Reason::NotFrontend };
}

/// Verdict on a frame (`admit`). `judged` comes in zeroed and is left so when the frame goes to no address of a domain or
/// cannot be read that far.
#[inline(always)]
pub fn judge_packet(bytes: &impl Bytes, ifindex: u32, tables: &impl Tables, judged: &mut Judged) {
    let Some(link) = Link::parse(bytes) else { return };
    let Some(network) = Network::parse(bytes, &link) else { return };
    let Some(&owner) = tables.find_owner(&network.daddr) else { return };
    let transport = Transport::parse(bytes, &network);
    judged.saddr = network.saddr;
    judged.daddr = network.daddr;
    judged.sport = transport.sport;
    judged.dport = transport.dport;
    judged.vlan = link.vlan;
    judged.protocol = transport.protocol;
    judged.tcp_flags = transport.tcp_flags;
    let ingress = Ingress { ifindex, vlan: link.vlan, inner_vlan: link.inner_vlan };
    judged.verdict = if transport.kind == Kind::Ports {
        let destination = Destination { addr: &network.daddr, port: transport.dport, protocol: transport.protocol };
        let stage = if is_syn(transport.protocol, transport.tcp_flags) { Stage::Begins } else { Stage::GoesOn };
        judge_port(tables, owner, &destination, &network.saddr, Some(&ingress), stage)
    } else if owner.flags & AddressOwner::EXCLUSIVE == 0 {
        // The node's own address: without a port nothing says that this is for a frontend.
        Verdict::NOT_FRONTEND
    } else {
        Verdict { domain: owner.domain, reason: judge_portless(tables, owner.domain, &network, transport, &ingress) }
    };
}

/// Verdict on a new connection or datagram (`steer`). `ingress` is `None` on kernels that do not tell it: then the source
/// alone is judged. With `is_judged`, `admit` has judged NIC and source of its packet already.
#[inline(always)]
pub fn judge_connection(
    tables: &impl Tables,
    destination: &Destination<'_>,
    saddr: &Address,
    ingress: Option<&Ingress>,
    is_judged: bool,
) -> Verdict {
    match tables.find_owner(destination.addr) {
        None => Verdict::NOT_FRONTEND,
        Some(&owner) => {
            let stage = match destination.protocol {
                _ if is_judged => Stage::Judged,
                protocol::TCP => Stage::Begins,
                _ => Stage::GoesOn,
            };
            judge_port(tables, owner, destination, saddr, ingress, stage)
        }
    }
}

/// Verdict on an address that a worker dials (`guard`); `domain` is `None` when its cgroup is not known.
#[inline(always)]
pub fn judge_dial(
    tables: &impl Tables,
    domain: Option<&u32>,
    destination: &Address,
    port: u16,
    protocol: u8,
) -> Verdict {
    let Some(&domain) = domain else { return Verdict { domain: 0, reason: Reason::DialDenied } };
    let key = DialledKey { addr: *destination, domain, port, transport: protocol, pad: 0 };
    Verdict { domain, reason: if tables.has_dialled(&key) { Reason::DialAllowed } else { Reason::DialDenied } }
}

/// Verdict on a datagram that a worker sends to an address of its choice (`guard`): as for what it dials, and only as coming
/// from where its socket is bound to, since a sender may name another address of the node (`IP_PKTINFO`).
#[inline(always)]
pub fn judge_datagram(tables: &impl Tables, domain: Option<&u32>, datagram: &Datagram<'_>) -> Verdict {
    if datagram.claimed != datagram.bound {
        let domain = if let Some(&domain) = domain { domain } else { 0 };
        return Verdict { domain, reason: Reason::DialDenied };
    }
    judge_dial(tables, domain, datagram.to, datagram.to_port, protocol::UDP)
}

/// Verdict on a datagram that a worker sends through a socket that it has not made (`borrowed`). Where the socket is that of a
/// frontend of its domain, the datagram is an answer: it may go wherever the domain lets a client be, from the frontend's own
/// address. Any other socket dials.
#[inline(always)]
pub fn judge_answer(tables: &impl Tables, domain: Option<&u32>, datagram: &Datagram<'_>) -> Verdict {
    let Some(&number) = domain else { return Verdict { domain: 0, reason: Reason::DialDenied } };
    let key = FrontendKey { addr: *datagram.bound, port: datagram.bound_port, transport: protocol::UDP, pad: 0 };
    if tables.find_frontend(&key).is_none_or(|&owner| owner != number) {
        return judge_datagram(tables, domain, datagram);
    }
    let loopback = InterfaceKey { ifindex: LOOPBACK_IFINDEX, domain: number, vlan: 0, inner_vlan: 0 };
    // A client on the node itself has an address of the node's; there is one only where the domain names loopback.
    let ifindex = if tables.has_interface(&loopback) { LOOPBACK_IFINDEX } else { 0 };
    let client = Ingress { ifindex, vlan: 0, inner_vlan: 0 };
    let is_allowed = datagram.claimed == datagram.bound
        && !is_martian(tables, datagram.to, Some(&client), false)
        && find_list_refusal(tables, tables.find_policy(number), datagram.to, true).is_none();
    Verdict { domain: number, reason: if is_allowed { Reason::DialAllowed } else { Reason::AnswerDenied } }
}

/// A datagram as a worker sends it.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Address that its socket is bound to; unspecified when it is not bound.
    pub bound: &'a Address,
    /// Port that its socket is bound to.
    pub bound_port: u16,
    /// Source address that it is to carry; unspecified leaves it to the route.
    pub claimed: &'a Address,
    /// Destination.
    pub to: &'a Address,
    /// Port of the destination.
    pub to_port: u16,
}

/// Where a connection goes to.
#[derive(Clone, Copy, Debug)]
pub struct Destination<'a> {
    /// Address.
    pub addr: &'a Address,
    /// Port.
    pub port: u16,
    /// IP protocol: TCP or UDP.
    pub protocol: u8,
}

/// What is known of a packet's connection.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Stage {
    /// The packet asks for a new one.
    Begins,
    /// It belongs to one, or to none: datagrams are not rated.
    GoesOn,
    /// `admit` has judged and charged it.
    Judged,
}

/// Flags of the TCP header (RFC 9293 section 3.1).
const TCP_SYN: u8 = 1 << 1;
const TCP_ACK: u8 = 1 << 4;

/// Whether a packet asks for a new connection. Every SYN counts, also one sent again.
#[inline(always)]
fn is_syn(protocol: u8, tcp_flags: u8) -> bool {
    protocol == protocol::TCP && tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

#[inline(always)]
fn judge_port(
    tables: &impl Tables,
    owner: AddressOwner,
    destination: &Destination<'_>,
    saddr: &Address,
    ingress: Option<&Ingress>,
    stage: Stage,
) -> Verdict {
    let is_exclusive = owner.flags & AddressOwner::EXCLUSIVE != 0;
    let key = FrontendKey { addr: *destination.addr, port: destination.port, transport: destination.protocol, pad: 0 };
    let frontend = tables.find_frontend(&key);
    let domain = match frontend {
        _ if is_exclusive => owner.domain,
        Some(&domain) => domain,
        None => return Verdict::NOT_FRONTEND,
    };
    // A frontend of another domain at an exclusive address is a state that user space never writes: refused.
    let is_frontend = frontend.is_some_and(|&owner| owner == domain);
    let reason = judge_source(tables, domain, saddr, ingress, stage, is_frontend);
    Verdict { domain, reason }
}

#[inline(always)]
fn judge_source(
    tables: &impl Tables,
    domain: u32,
    saddr: &Address,
    ingress: Option<&Ingress>,
    stage: Stage,
    is_frontend: bool,
) -> Reason {
    let found = if is_frontend { Reason::Admitted } else { Reason::NoFrontend };
    if stage == Stage::Judged {
        return found;
    }
    let policy = tables.find_policy(domain);
    if let Some(reason) = find_refusal(tables, domain, policy, saddr, ingress, true) {
        return reason;
    }
    match policy {
        Some(policy) if is_frontend && stage == Stage::Begins => {
            match find_open_refusal(tables, domain, policy, saddr) {
                // A connection that may not be open takes no token.
                Some(reason) => reason,
                None => find_rate_refusal(tables, domain, policy, saddr).unwrap_or(found),
            }
        }
        _ => found,
    }
}

/// What has no port, at an address of a domain's own.
#[inline(always)]
fn judge_portless(
    tables: &impl Tables,
    domain: u32,
    network: &Network,
    transport: Transport,
    ingress: &Ingress,
) -> Reason {
    let message = Message::of(&transport, network.hops);
    if message == Message::Neighbour {
        // Without an answer to neighbour solicitations nothing reaches the address; ARP, its counterpart, is not IP and
        // passes as well.
        return Reason::Admitted;
    }
    // An error comes from a router on the way, which no allow list of clients names; a deny list is meant for anybody.
    let policy = tables.find_policy(domain);
    let needs_allowed = message != Message::Error;
    if let Some(reason) = find_refusal(tables, domain, policy, &network.saddr, Some(ingress), needs_allowed) {
        return reason;
    }
    match transport.kind {
        Kind::Malformed => Reason::Malformed,
        // Judged by NIC and source; its datagram is only put together if the first fragment, which has the ports, was let in.
        Kind::Fragment => Reason::Admitted,
        Kind::Icmp if message == Message::Refused => Reason::IcmpDenied,
        Kind::Icmp if message == Message::Echo => judge_echo(tables, domain, policy),
        Kind::Icmp => Reason::Admitted,
        Kind::Other | Kind::Ports => Reason::ProtocolDenied,
    }
}

/// Echo, requests and replies, has one bucket for the domain: it reaches no worker, so no source has a claim of its own.
#[inline(always)]
fn judge_echo(tables: &impl Tables, domain: u32, policy: Option<&Policy>) -> Reason {
    let Some(policy) = policy else { return Reason::DomainUnknown };
    if policy.flags & Policy::NO_ECHO != 0 {
        return Reason::EchoRate;
    }
    if !policy.echo.is_limited() {
        return Reason::Admitted;
    }
    let Some(rates) = tables.find_domain_rates(domain) else { return Reason::EchoRate };
    if take(tables, &rates.echo, &policy.echo, 0, tables.now()) { Reason::Admitted } else { Reason::EchoRate }
}

/// NIC and source: what every packet of a domain has to pass.
#[inline(always)]
fn find_refusal(
    tables: &impl Tables,
    domain: u32,
    policy: Option<&Policy>,
    saddr: &Address,
    ingress: Option<&Ingress>,
    needs_allowed: bool,
) -> Option<Reason> {
    if let Some(ingress) = ingress {
        let key = InterfaceKey { ifindex: ingress.ifindex, domain, vlan: ingress.vlan, inner_vlan: ingress.inner_vlan };
        if !tables.has_interface(&key) {
            return Some(Reason::WrongInterface);
        }
    }
    if is_martian(tables, saddr, ingress, !needs_allowed) {
        return Some(Reason::Martian);
    }
    find_list_refusal(tables, policy, saddr, needs_allowed)
}

/// What a domain's lists of sources say.
#[inline(always)]
fn find_list_refusal(
    tables: &impl Tables,
    policy: Option<&Policy>,
    saddr: &Address,
    needs_allowed: bool,
) -> Option<Reason> {
    let Some(policy) = policy else { return Some(Reason::DomainUnknown) };
    let found = if policy.sources == 0 { 0 } else { tables.find_source(policy.sources, saddr) };
    if found & DENIED != 0 {
        return Some(Reason::SourceDenied);
    }
    if needs_allowed && policy.flags & Policy::CLOSED != 0 && found & ALLOWED == 0 {
        return Some(Reason::SourceNotAllowed);
    }
    None
}

/// What an ICMP message is to a frontend.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Message {
    /// Echo.
    Echo,
    /// An error about a packet sent earlier; without them path MTU discovery fails (RFC 1191, RFC 8201).
    Error,
    /// Neighbour solicitation or advertisement (RFC 4861).
    Neighbour,
    /// Anything else, also what is no ICMP message.
    Refused,
}

impl Message {
    #[inline(always)]
    fn of(transport: &Transport, hops: u8) -> Self {
        if transport.kind != Kind::Icmp {
            return Self::Refused;
        }
        match (transport.protocol, transport.sport) {
            (protocol::ICMP, 0 | 8) | (protocol::ICMP_V6, 128 | 129) => Self::Echo,
            // Unreachable (with fragmentation needed), time exceeded, parameter problem.
            (protocol::ICMP, 3 | 11 | 12) => Self::Error,
            // Unreachable, packet too big, time exceeded, parameter problem.
            (protocol::ICMP_V6, 1..=4) => Self::Error,
            // Hop limit 255 proves that no router forwarded it (RFC 4861 section 7.1).
            (protocol::ICMP_V6, 135 | 136) if hops == 255 && transport.dport == 0 => Self::Neighbour,
            _ => Self::Refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicU64, Ordering};

    use tidegate_abi::Rate;

    use super::*;
    use crate::rates::{SharedDomain, SharedSet};

    /// One domain on loopback that allows everything, and one address that it may dial. Of connections it lets one in, when
    /// limited.
    #[derive(Default)]
    struct Open {
        buckets: SharedDomain,
        owner: Option<AddressOwner>,
        frontend: Option<u32>,
        policy: Policy,
        open: u32,
        open_total: u32,
        found: u32,
        /// Whether loopback is none of its NICs.
        is_remote: bool,
        dials_udp: bool,
    }

    const DOMAIN: u32 = 7;
    const ADDR: Address = [9; 16];
    const SOURCE: Address = [3; 16];

    impl Tables for Open {
        fn find_owner(&self, _addr: &Address) -> Option<&AddressOwner> {
            self.owner.as_ref()
        }

        fn find_frontend(&self, key: &FrontendKey) -> Option<&u32> {
            self.frontend.as_ref().filter(|_| key.port == 443)
        }

        fn has_interface(&self, key: &InterfaceKey) -> bool {
            key.ifindex == LOOPBACK_IFINDEX && key.domain == DOMAIN && !self.is_remote
        }

        fn find_policy(&self, domain: u32) -> Option<&Policy> {
            (domain == DOMAIN).then_some(&self.policy)
        }

        fn find_source(&self, _sources: u32, _addr: &Address) -> u32 {
            self.found
        }

        fn has_dialled(&self, key: &DialledKey) -> bool {
            let transport = if self.dials_udp { protocol::UDP } else { protocol::TCP };
            (key.domain, key.port, key.transport) == (DOMAIN, 8080, transport)
        }

        fn count_open(&self, source: &SourceKey) -> u32 {
            if *source == (SourceKey { addr: SOURCE, domain: DOMAIN }) { self.open } else { 0 }
        }

        fn count_open_total(&self, domain: u32) -> u32 {
            if domain == DOMAIN { self.open_total } else { 0 }
        }
    }

    impl Buckets for Open {
        fn now(&self) -> u64 {
            1
        }

        fn find_domain_rates(&self, _domain: u32) -> Option<&SharedDomain> {
            Some(&self.buckets)
        }

        fn find_rate_set(&self, _domain: u32, _set: u32) -> Option<&SharedSet> {
            None
        }

        fn is_known(&self, _domain: u32, _source: &Address) -> bool {
            false
        }

        fn note_overflow(&self, _domain: u32) {}

        fn load(&self, word: &AtomicU64) -> u64 {
            word.load(Ordering::Relaxed)
        }

        fn replace(&self, word: &AtomicU64, current: u64, new: u64) -> bool {
            word.compare_exchange(current, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        }
    }

    /// `ifindex` is `None` for a connection that `admit` has judged.
    fn judge(tables: &Open, port: u16, ifindex: Option<u32>) -> Verdict {
        let ingress = Ingress { ifindex: ifindex.unwrap_or(2), vlan: 0, inner_vlan: 0 };
        let destination = Destination { addr: &ADDR, port, protocol: protocol::TCP };
        judge_connection(tables, &destination, &SOURCE, Some(&ingress), ifindex.is_none())
    }

    #[test]
    fn without_an_ingress_interface_the_source_alone_is_judged() {
        let owner = AddressOwner { domain: DOMAIN, flags: AddressOwner::EXCLUSIVE };
        let tables = Open { owner: Some(owner), frontend: Some(DOMAIN), ..Open::default() };
        let destination = Destination { addr: &ADDR, port: 443, protocol: protocol::TCP };
        assert_eq!(judge_connection(&tables, &destination, &SOURCE, None, false).reason, Reason::Admitted);
        let unknown = Open {
            owner: Some(AddressOwner { domain: DOMAIN + 1, ..owner }),
            frontend: Some(DOMAIN + 1),
            ..Open::default()
        };
        assert_eq!(judge_connection(&unknown, &destination, &SOURCE, None, false).reason, Reason::DomainUnknown);
    }

    #[test]
    fn a_connection_judged_by_admit_is_not_asked_for_its_nic_again() {
        let owner = AddressOwner { domain: DOMAIN, flags: AddressOwner::EXCLUSIVE };
        let tables = Open { owner: Some(owner), frontend: Some(DOMAIN), ..Open::default() };
        assert_eq!(judge(&tables, 443, Some(1)).reason, Reason::Admitted);
        assert_eq!(judge(&tables, 443, Some(2)).reason, Reason::WrongInterface);
        assert_eq!(judge(&tables, 443, None).reason, Reason::Admitted);
        assert_eq!(judge(&tables, 22, None).reason, Reason::NoFrontend);
    }

    #[test]
    fn a_new_connection_is_charged_once_and_only_if_all_else_lets_it_in() {
        let owner = AddressOwner { domain: DOMAIN, flags: AddressOwner::EXCLUSIVE };
        let policy = Policy { total: Rate::per_second(1, 1), ..Policy::default() };
        let tables = Open { owner: Some(owner), frontend: Some(DOMAIN), policy, ..Open::default() };
        let ingress = Ingress { ifindex: 1, vlan: 0, inner_vlan: 0 };
        let datagram = Destination { addr: &ADDR, port: 443, protocol: protocol::UDP };
        // Refused for other reasons, not rated, or charged by `admit`: none of them takes the token.
        assert_eq!(judge(&tables, 22, Some(1)).reason, Reason::NoFrontend);
        assert_eq!(judge(&tables, 443, Some(2)).reason, Reason::WrongInterface);
        assert_eq!(judge(&tables, 443, None).reason, Reason::Admitted);
        let verdict = judge_connection(&tables, &datagram, &SOURCE, Some(&ingress), false);
        assert_eq!(verdict.reason, Reason::Admitted);
        assert_eq!(judge(&tables, 443, Some(1)).reason, Reason::Admitted);
        assert_eq!(judge(&tables, 443, Some(1)).reason, Reason::RateDomain);
        assert_eq!(judge(&tables, 443, None).reason, Reason::Admitted);
    }

    #[test]
    fn limits_on_open_connections_hold_for_what_begins_one_and_was_not_judged() {
        let owner = Some(AddressOwner { domain: DOMAIN, flags: AddressOwner::EXCLUSIVE });
        let policy = Policy { open_per_source: 2, open_total: 5, v4_bits: 32, v6_bits: 128, ..Policy::default() };
        let tables =
            |open, open_total| Open { owner, frontend: Some(DOMAIN), policy, open, open_total, ..Open::default() };
        let datagram = Destination { addr: &ADDR, port: 443, protocol: protocol::UDP };
        let ingress = Ingress { ifindex: 1, vlan: 0, inner_vlan: 0 };
        for (open, total, reason) in [
            (0, 0, Reason::Admitted),
            (1, 4, Reason::Admitted),
            (2, 4, Reason::OpenSource),
            (0, 5, Reason::OpenDomain),
            (9, 9, Reason::OpenSource),
        ] {
            let tables = tables(open, total);
            assert_eq!(judge(&tables, 443, Some(1)).reason, reason, "{open} of the source, {total} in all");
            assert_eq!(judge(&tables, 443, None).reason, Reason::Admitted, "`admit` has judged it");
            let verdict = judge_connection(&tables, &datagram, &SOURCE, Some(&ingress), false);
            assert_eq!(verdict.reason, Reason::Admitted, "UDP has no connections");
        }
        assert_eq!(judge(&tables(9, 9), 22, Some(1)).reason, Reason::NoFrontend);
        let unlimited = Open { policy: Policy::default(), ..tables(u32::MAX, u32::MAX) };
        assert_eq!(judge(&unlimited, 443, Some(1)).reason, Reason::Admitted);
    }

    #[test]
    fn only_a_syn_begins_a_connection() {
        for (flags, begins) in [(0x02, true), (0xc2, true), (0x12, false), (0x10, false), (0x04, false), (0, false)] {
            assert_eq!(is_syn(protocol::TCP, flags), begins, "{flags:#x}");
        }
        assert!(!is_syn(protocol::UDP, 0x02));
    }

    #[test]
    fn another_domains_frontend_at_an_exclusive_address_is_refused() {
        let owner = AddressOwner { domain: DOMAIN, flags: AddressOwner::EXCLUSIVE };
        let tables = Open { owner: Some(owner), frontend: Some(DOMAIN + 1), ..Open::default() };
        assert_eq!(judge(&tables, 443, Some(1)), Verdict { domain: DOMAIN, reason: Reason::NoFrontend });
    }

    #[test]
    fn a_shared_address_is_judged_at_its_frontends_only() {
        let tables = Open { owner: Some(AddressOwner::default()), frontend: Some(DOMAIN), ..Open::default() };
        assert_eq!(judge(&tables, 443, Some(1)).reason, Reason::Admitted);
        assert_eq!(judge(&tables, 22, Some(2)), Verdict::NOT_FRONTEND);
        let nowhere = Open { owner: None, frontend: Some(DOMAIN), ..Open::default() };
        assert_eq!(judge(&nowhere, 443, Some(1)), Verdict::NOT_FRONTEND);
    }

    const CLIENT: Address = [5; 16];

    /// A datagram from a socket bound to the frontend, to a client, with what the test changes of it.
    fn answer<'a>(tables: &Open, domain: u32, change: impl FnOnce(&mut Datagram<'a>)) -> Reason {
        let mut datagram = Datagram { bound: &ADDR, bound_port: 443, claimed: &ADDR, to: &CLIENT, to_port: 9 };
        change(&mut datagram);
        judge_answer(tables, Some(&domain), &datagram).reason
    }

    #[test]
    fn a_frontends_socket_answers_from_its_own_address_and_nobody_elses() {
        const UNSPECIFIED: Address = [0; 16];
        const OTHER: Address = [8; 16];
        let tables = Open { frontend: Some(DOMAIN), is_remote: true, ..Open::default() };
        assert_eq!(answer(&tables, DOMAIN, |_| ()), Reason::DialAllowed);
        assert_eq!(answer(&tables, DOMAIN, |datagram| datagram.claimed = &OTHER), Reason::AnswerDenied);
        assert_eq!(answer(&tables, DOMAIN, |datagram| datagram.claimed = &UNSPECIFIED), Reason::AnswerDenied);
        // Of another domain, of none, or a port that is no frontend (any more).
        assert_eq!(answer(&tables, DOMAIN + 1, |_| ()), Reason::DialDenied);
        assert_eq!(answer(&Open::default(), DOMAIN, |_| ()), Reason::DialDenied);
        assert_eq!(answer(&tables, DOMAIN, |datagram| datagram.bound_port = 444), Reason::DialDenied);
        let datagram = Datagram { bound: &ADDR, bound_port: 443, claimed: &ADDR, to: &CLIENT, to_port: 9 };
        assert_eq!(judge_answer(&tables, None, &datagram), Verdict { domain: 0, reason: Reason::DialDenied });
    }

    #[test]
    fn answers_go_where_clients_may_be() {
        const MULTICAST: Address = [0xff; 16];
        let mut loopback = [0; 16];
        loopback[15] = 1;
        let tables = Open { frontend: Some(DOMAIN), is_remote: true, ..Open::default() };
        for martian in [&MULTICAST, &loopback] {
            assert_eq!(answer(&tables, DOMAIN, |datagram| datagram.to = martian), Reason::AnswerDenied);
        }
        let owned = Open { owner: Some(AddressOwner { domain: DOMAIN, flags: 0 }), ..tables };
        assert_eq!(answer(&owned, DOMAIN, |_| ()), Reason::AnswerDenied, "an address of a frontend is no client's");
        let lists = Policy { sources: 1, ..Policy::default() };
        let denied = Open { frontend: Some(DOMAIN), policy: lists, found: DENIED, is_remote: true, ..Open::default() };
        assert_eq!(answer(&denied, DOMAIN, |_| ()), Reason::AnswerDenied);
        let closed = Policy { flags: Policy::CLOSED, ..lists };
        let closed = |found| Open { frontend: Some(DOMAIN), policy: closed, found, is_remote: true, ..Open::default() };
        assert_eq!(answer(&closed(0), DOMAIN, |_| ()), Reason::AnswerDenied);
        assert_eq!(answer(&closed(ALLOWED), DOMAIN, |_| ()), Reason::DialAllowed);
        let at_home = Open { frontend: Some(DOMAIN), ..Open::default() };
        assert_eq!(answer(&at_home, DOMAIN, |datagram| datagram.to = &loopback), Reason::DialAllowed);
        assert_eq!(answer(&at_home, DOMAIN, |datagram| datagram.to = &MULTICAST), Reason::AnswerDenied);
    }

    #[test]
    fn a_datagram_of_a_workers_own_socket_goes_to_endpoints_under_no_borrowed_name() {
        const UNSPECIFIED: Address = [0; 16];
        let tables = Open { dials_udp: true, ..Open::default() };
        let send = |claimed: &Address, to_port| {
            let datagram = Datagram { bound: &UNSPECIFIED, bound_port: 0, claimed, to: &ADDR, to_port };
            judge_datagram(&tables, Some(&DOMAIN), &datagram).reason
        };
        assert_eq!(send(&UNSPECIFIED, 8080), Reason::DialAllowed);
        assert_eq!(send(&UNSPECIFIED, 8081), Reason::DialDenied);
        assert_eq!(send(&ADDR, 8080), Reason::DialDenied);
    }

    #[test]
    fn a_worker_dials_what_is_listed_for_its_own_domain() {
        let tables = Open { owner: None, frontend: None, ..Open::default() };
        let dial =
            |domain: Option<u32>, port, protocol| judge_dial(&tables, domain.as_ref(), &ADDR, port, protocol).reason;
        assert_eq!(dial(Some(DOMAIN), 8080, protocol::TCP), Reason::DialAllowed);
        assert_eq!(dial(Some(DOMAIN), 8081, protocol::TCP), Reason::DialDenied);
        assert_eq!(dial(Some(DOMAIN), 8080, protocol::UDP), Reason::DialDenied);
        assert_eq!(dial(Some(DOMAIN + 1), 8080, protocol::TCP), Reason::DialDenied);
        assert_eq!(dial(None, 8080, protocol::TCP), Reason::DialDenied);
    }
}
