//! Floods: packets that no client sends, with sources that need not exist, from an island at a stated rate.
//!
//! Raw IPv4 sockets, so routes and neighbours are the island's own and the sources are free. Checksums are right: what is
//! refused is refused for what it is. A flood ends when it is dropped.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
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

/// `IPPROTO_RAW`: the sender writes the IP header.
const PROTOCOL_RAW: i32 = 255;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const IP: usize = 20;
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
    pub destination: SocketAddrV4,
    /// First source.
    pub source: Ipv4Addr,
    /// Sources from the first one on, taken by chance.
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
        let socket = island
            .call(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(PROTOCOL_RAW))))
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
    let destination = plan.destination.into();
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
        let source = Ipv4Addr::from(u32::from(self.source).wrapping_add(random.next() % self.sources.max(1)));
        let port = 1024 + (random.next() % 60_000) as u16;
        let number = random.next();
        let (protocol, fragment, mut payload) = match self.pattern {
            Pattern::Syn => (TCP, 0, self.tcp(port, number, 0x02, 6)),
            Pattern::Ack => (TCP, 0, self.tcp(port, number, 0x10, 6)),
            Pattern::Rst => (TCP, 0, self.tcp(port, number, 0x04, 6)),
            Pattern::Malformed => (TCP, 0, self.tcp(port, number, 0x02, 4)),
            Pattern::Udp => (UDP, 0, self.udp(port)),
            // More fragments follow, at an offset between 8 and 8,192 bytes.
            Pattern::Fragment => (UDP, 0x2000 | (1 + number % 1024) as u16, vec![0; 64]),
            Pattern::Echo => (ICMP, 0, echo(number)),
        };
        let at = match protocol {
            TCP => Some(16),
            UDP if fragment == 0 => Some(6),
            ICMP => Some(2),
            _ => None,
        };
        if let Some(at) = at {
            let pseudo = match protocol {
                ICMP => 0,
                _ => {
                    let addresses = [source.octets(), self.destination.ip().octets()].concat();
                    sum(&addresses) + u32::from(protocol) + payload.len() as u32
                }
            };
            let checksum = fold(pseudo + sum(&payload));
            payload[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
        }
        let mut packet = vec![0x45, 0];
        packet.extend(((IP + payload.len()) as u16).to_be_bytes());
        packet.extend((number as u16 | 1).to_be_bytes());
        packet.extend(u16::to_be_bytes(fragment));
        // The kernel fills in the header's checksum.
        packet.extend([64, protocol, 0, 0]);
        packet.extend(source.octets());
        packet.extend(self.destination.ip().octets());
        packet.extend(payload);
        packet
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

fn echo(number: u32) -> Vec<u8> {
    let mut message = vec![8, 0, 0, 0];
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

    fn plan(pattern: Pattern, sources: u32) -> FloodPlan {
        let destination = SocketAddrV4::new(Ipv4Addr::new(203, 0, 113, 1), 80);
        FloodPlan { pattern, destination, source: FOREIGN_FIRST, sources, rate: 1 }
    }

    #[test]
    fn packets_are_as_long_as_they_say_and_have_right_checksums() {
        let mut random = Random(1);
        for pattern in Pattern::ALL {
            for _ in 0..100 {
                let packet = plan(pattern, FOREIGN_COUNT).packet(&mut random);
                assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
                let pseudo = match pattern {
                    Pattern::Fragment => continue,
                    Pattern::Echo => 0,
                    _ => sum(&packet[12..20]) + u32::from(packet[9]) + (packet.len() - IP) as u32,
                };
                assert_eq!(fold(pseudo + sum(&packet[IP..])), 0, "{pattern:?}");
            }
        }
    }

    #[test]
    fn sources_are_one_or_many() {
        let mut random = Random(1);
        let mut sources = |count| {
            let plan = plan(Pattern::Syn, count);
            let all: std::collections::BTreeSet<_> =
                (0..1000).map(|_| plan.packet(&mut random)[12..16].to_vec()).collect();
            all.len()
        };
        assert_eq!(sources(1), 1);
        assert!(sources(FOREIGN_COUNT) > 900);
    }
}
