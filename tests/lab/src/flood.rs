//! Floods: packets that no client sends, with sources that need not exist, from an island at a stated rate.
//!
//! Raw sockets of either family, so routes and neighbours are the island's own and the sources are free. Checksums are right: what
//! is refused is refused for what it is. A flood ends when it is dropped.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use socket2::{Domain, Protocol, Socket, Type};

use crate::island::Island;

/// Where sources come from that nobody has: the range for benchmarks (RFC 2544). The node needs a route to it, or it answers
/// none of them.
pub const FOREIGN: &str = "198.18.0.0/15";
/// The first of them.
pub const FOREIGN_FIRST: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// How many there are.
pub const FOREIGN_COUNT: u32 = 1 << 17;
/// Where IPv6 sources come from that nobody has, each in a /64 of its own: documentation (RFC 9637).
pub const FOREIGN6: &str = "3fff:f00::/32";
/// The first of them.
pub const FOREIGN6_FIRST: Ipv6Addr = Ipv6Addr::new(0x3fff, 0xf00, 0, 0, 0, 0, 0, 1);

/// `IPPROTO_RAW`: the sender writes the IP header.
const PROTOCOL_RAW: i32 = 255;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// The fragment header of IPv6 (RFC 8200 section 4.5).
const FRAGMENT: u8 = 44;
const IP: usize = 20;
#[cfg(test)]
const IP_V6: usize = 40;
/// How long the sender sleeps when it is ahead: short against every limit of a test, long against a system call.
const PAUSE: Duration = Duration::from_millis(1);

/// What a flood consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// TCP SYNs, as connections begin.
    Syn,
    /// TCP ACKs of no connection.
    Ack,
    /// TCP RSTs of no connection.
    Rst,
    /// UDP datagrams.
    Udp,
    /// Fragments of UDP datagrams that never become whole.
    Fragment,
    /// TCP headers that say to be shorter than they can be.
    Malformed,
    /// ICMP echo requests.
    Echo,
}

impl Pattern {
    /// Every pattern.
    pub const ALL: [Self; 7] =
        [Self::Syn, Self::Ack, Self::Rst, Self::Udp, Self::Fragment, Self::Malformed, Self::Echo];
}

/// A flood to come.
#[derive(Clone, Copy, Debug)]
pub struct FloodPlan {
    /// What.
    pub pattern: Pattern,
    /// Where to.
    pub destination: SocketAddr,
    /// First source, of the same family.
    pub source: IpAddr,
    /// Sources from the first one on, taken by chance: addresses, of IPv6 those of as many /64s.
    pub sources: u32,
    /// Packets a second.
    pub rate: u32,
}

/// A flood under way.
#[derive(Debug)]
pub struct Flood {
    sent: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Flood {
    /// Starts a flood from an island.
    ///
    /// # Errors
    /// When there is no raw socket (not root) or no thread.
    pub fn start(island: &Island, plan: FloodPlan) -> anyhow::Result<Self> {
        let family = Domain::for_address(plan.destination);
        let socket = island
            .call(|| Socket::new(family, Type::RAW, Some(Protocol::from(PROTOCOL_RAW))))
            .context("a raw socket")?;
        let (sent, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counted, stopped) = (sent.clone(), stop.clone());
        let thread =
            thread::Builder::new().name("flood".to_owned()).spawn(move || send(&socket, &plan, &counted, &stopped))?;
        Ok(Self { sent, stop, thread: Some(thread) })
    }

    /// Packets sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn send(socket: &Socket, plan: &FloodPlan, sent: &AtomicU64, stop: &AtomicBool) {
    // Raw IPv6 sockets take a port for a protocol.
    let destination = SocketAddr::new(plan.destination.ip(), 0).into();
    let begun = Instant::now();
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let mut tried = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let due = (begun.elapsed().as_secs_f64() * f64::from(plan.rate)) as u64;
        if tried >= due {
            thread::sleep(PAUSE);
            continue;
        }
        tried += 1;
        let packet = plan.packet(&mut random);
        // A full queue on the way is part of a flood.
        if socket.send_to(&packet, &destination).is_ok() {
            sent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// xorshift64 (Marsaglia 2003): the same packets in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as u32
    }
}

impl FloodPlan {
    fn packet(&self, random: &mut Random) -> Vec<u8> {
        let source = self.draw_source(random);
        let port = 1024 + (random.next() % 60_000) as u16;
        let number = random.next();
        let icmp = if source.is_ipv4() { ICMP } else { ICMP_V6 };
        let (protocol, mut payload) = match self.pattern {
            Pattern::Syn => (TCP, self.tcp(port, number, 0x02, 6)),
            Pattern::Ack => (TCP, self.tcp(port, number, 0x10, 6)),
            Pattern::Rst => (TCP, self.tcp(port, number, 0x04, 6)),
            Pattern::Malformed => (TCP, self.tcp(port, number, 0x02, 4)),
            Pattern::Udp => (UDP, self.udp(port)),
            Pattern::Fragment => (UDP, vec![0; 64]),
            Pattern::Echo => (icmp, echo(number, icmp)),
        };
        let at = match protocol {
            TCP => Some(16),
            UDP if self.pattern != Pattern::Fragment => Some(6),
            ICMP | ICMP_V6 => Some(2),
            _ => None,
        };
        if let Some(at) = at {
            let checksum = fold(self.pseudo(source, protocol, payload.len()) + sum(&payload));
            payload[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        // More fragments follow, at an offset between 8 and 8,192 bytes.
        let offset = (1 + number % 1024) as u16;
        match (source, self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let fragment = if self.pattern == Pattern::Fragment { 0x2000 | offset } else { 0 };
                let mut packet = vec![0x45, 0];
                packet.extend(((IP + payload.len()) as u16).to_be_bytes());
                packet.extend((number as u16 | 1).to_be_bytes());
                packet.extend(u16::to_be_bytes(fragment));
                // The kernel fills in the header's checksum.
                packet.extend([64, protocol, 0, 0]);
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet.extend(payload);
                packet
            }
            (source, destination) => {
                let mut next = protocol;
                if self.pattern == Pattern::Fragment {
                    let mut header = vec![protocol, 0];
                    header.extend((offset << 3 | 1).to_be_bytes());
                    header.extend(number.to_be_bytes());
                    payload.splice(0..0, header);
                    next = FRAGMENT;
                }
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend((payload.len() as u16).to_be_bytes());
                packet.extend([next, 64]);
                packet.extend(octets(source));
                packet.extend(octets(destination));
                packet.extend(payload);
                packet
            }
        }
    }

    fn draw_source(&self, random: &mut Random) -> IpAddr {
        let number = random.next() % self.sources.max(1);
        match self.source {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first).wrapping_add(number)).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).wrapping_add(u128::from(number) << 64)).into(),
        }
    }

    /// The sum of what a checksum covers beside the payload; ICMP of IPv4 covers nothing more.
    fn pseudo(&self, source: IpAddr, protocol: u8, length: usize) -> u32 {
        if protocol == ICMP {
            return 0;
        }
        sum(&octets(source)) + sum(&octets(self.destination.ip())) + u32::from(protocol) + length as u32
    }

    /// A TCP header with a segment size, that says to be `words` long.
    fn tcp(&self, port: u16, number: u32, flags: u8, words: u8) -> Vec<u8> {
        let mut header = port.to_be_bytes().to_vec();
        header.extend(self.destination.port().to_be_bytes());
        header.extend(number.to_be_bytes());
        header.extend(if flags & 0x10 == 0 { 0 } else { !number }.to_be_bytes());
        header.extend([words << 4, flags, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 0x05, 0xb4]);
        header
    }

    fn udp(&self, port: u16) -> Vec<u8> {
        let mut datagram = port.to_be_bytes().to_vec();
        datagram.extend(self.destination.port().to_be_bytes());
        datagram.extend([0, 40, 0, 0]);
        datagram.resize(40, 7);
        datagram
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn echo(number: u32, protocol: u8) -> Vec<u8> {
    let mut message = vec![if protocol == ICMP { 8 } else { 128 }, 0, 0, 0];
    message.extend(number.to_be_bytes());
    message.resize(64, 0);
    message
}

fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum()
}

fn fold(mut total: u32) -> u16 {
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans(pattern: Pattern, sources: u32) -> [FloodPlan; 2] {
        let plan = |destination: IpAddr, source| FloodPlan {
            pattern,
            destination: SocketAddr::new(destination, 80),
            source,
            sources,
            rate: 1,
        };
        [
            plan(Ipv4Addr::new(203, 0, 113, 1).into(), FOREIGN_FIRST.into()),
            plan(Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, 1).into(), FOREIGN6_FIRST.into()),
        ]
    }

    #[test]
    fn packets_are_as_long_as_they_say_and_have_right_checksums() {
        let mut random = Random(1);
        for pattern in Pattern::ALL {
            let [v4, v6] = plans(pattern, FOREIGN_COUNT);
            for _ in 0..100 {
                let packet = v4.packet(&mut random);
                assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
                let pseudo = match pattern {
                    Pattern::Fragment => continue,
                    Pattern::Echo => 0,
                    _ => sum(&packet[12..20]) + u32::from(packet[9]) + (packet.len() - IP) as u32,
                };
                assert_eq!(fold(pseudo + sum(&packet[IP..])), 0, "{pattern:?}");
            }
            for _ in 0..100 {
                let packet = v6.packet(&mut random);
                let payload = packet.len() - IP_V6;
                assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), payload);
                if pattern == Pattern::Fragment {
                    assert_eq!((packet[6], packet[IP_V6], packet[IP_V6 + 3] & 1), (FRAGMENT, UDP, 1));
                    continue;
                }
                let pseudo = sum(&packet[8..40]) + u32::from(packet[6]) + payload as u32;
                assert_eq!(fold(pseudo + sum(&packet[IP_V6..])), 0, "{pattern:?} over IPv6");
            }
        }
    }

    #[test]
    fn sources_are_one_or_many() {
        let mut random = Random(1);
        let mut sources = |count| {
            plans(Pattern::Syn, count).map(|plan| {
                // Of IPv6 the /64s.
                let source = if plan.source.is_ipv4() { 12..16 } else { 8..16 };
                let all: std::collections::BTreeSet<_> =
                    (0..1000).map(|_| plan.packet(&mut random)[source.clone()].to_vec()).collect();
                all.len()
            })
        };
        assert_eq!(sources(1), [1, 1]);
        assert!(sources(FOREIGN_COUNT).iter().all(|count| *count > 900));
    }
}
