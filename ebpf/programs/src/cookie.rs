//! SYN cookies: what a SYN says that its answer depends on, and the answer.
//!
//! The answer has one TCP option, the segment size. A connection that begins with it has no window scaling, selective
//! acknowledgement or time stamps: the kernel keeps those in the time stamp of its own cookies, under a secret that programs
//! do not get. Only frames without IP options and extension headers are answered; the stack gets all others. Headers are words
//! in network order: sums of them need no swapping (RFC 1071 section 2), and the compiler keeps them off the stack. Must not
//! know sockets.

use crate::packet::{Bytes, protocol};

/// Words of an IPv4 header without options.
pub const IPV4: usize = 5;
/// Words of an IPv6 header.
pub const IPV6: usize = 10;
/// Words of a TCP header with the one option.
pub const TCP: usize = 6;
/// Words of an IPv4 address.
pub const V4: usize = 1;
/// Words of an IPv6 address.
pub const V6: usize = 4;

/// Bytes of a TCP header without options.
const TCP_PLAIN: usize = 20;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const OPTION_END: u8 = 0;
const OPTION_NOP: u8 = 1;
const OPTION_MSS: u8 = 2;
/// Options that are looked through for the segment size, which every stack in use sends first.
const MAX_OPTIONS: usize = 4;
/// Segment sizes of who names none, over IPv4 and IPv6 (RFC 9293 section 3.7.1).
const DEFAULT_MSS_V4: u16 = 536;
const DEFAULT_MSS_V6: u16 = 1220;
/// TTL and hop limit, the kernel's default.
const HOPS: u32 = 64;
/// What may be sent before the first acknowledgement: the most that a header without scaling says. The first flight of a
/// client is ten segments (RFC 6928), far below.
const WINDOW: u32 = 0xffff;

/// A SYN as its answer needs it, with addresses of `W` words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn<const W: usize> {
    /// Client, in network order.
    pub saddr: [u32; W],
    /// Frontend, in network order.
    pub daddr: [u32; W],
    /// Client's and frontend's port, in network order.
    pub ports: u32,
    seq: u32,
    mss: u16,
}

/// Whether TCP flags ask for a connection.
#[inline(always)]
pub const fn is_syn(flags: u8) -> bool {
    flags & (SYN | ACK | RST | FIN) == SYN
}

impl Syn<V4> {
    /// Reads a SYN that was found sound before, from its IPv4 header at `offset` on; `None` when that has options or is of a
    /// fragment.
    #[inline(always)]
    pub fn parse(bytes: &impl Bytes, offset: usize) -> Option<Self> {
        let first: [u8; 1] = bytes.load(offset)?;
        let fragment: [u8; 2] = bytes.load(offset + 6)?;
        if first[0] != 0x45 || u16::from_be_bytes(fragment) & 0x3fff != 0 {
            return None;
        }
        let tcp = offset + IPV4 * 4;
        let mss = find_mss(bytes, tcp).unwrap_or(DEFAULT_MSS_V4);
        Self::read(bytes, offset + 12, tcp, mss)
    }

    /// IPv4 header of the answer.
    #[inline(always)]
    pub fn answer_network(&self) -> [u32; IPV4] {
        let len = 4 * (IPV4 + TCP) as u32;
        // Identification 0 is right for what is never fragmented (RFC 6864 section 4.1).
        let mut header = [
            (0x4500_0000 | len).to_be(),
            0x4000u32.to_be(),
            (HOPS << 24 | (protocol::TCP as u32) << 16).to_be(),
            self.daddr[0],
            self.saddr[0],
        ];
        header[2] |= (u32::from(checksum(sum(&header)))).to_be();
        header
    }
}

impl Syn<V6> {
    /// Reads a SYN that was found sound before, from its IPv6 header at `offset` on; `None` when extension headers follow.
    #[inline(always)]
    pub fn parse(bytes: &impl Bytes, offset: usize) -> Option<Self> {
        let next: [u8; 1] = bytes.load(offset + 6)?;
        if next[0] != protocol::TCP {
            return None;
        }
        let tcp = offset + IPV6 * 4;
        let mss = find_mss(bytes, tcp).unwrap_or(DEFAULT_MSS_V6);
        Self::read(bytes, offset + 8, tcp, mss)
    }

    /// IPv6 header of the answer.
    #[inline(always)]
    pub fn answer_network(&self) -> [u32; IPV6] {
        let (from, to) = (&self.daddr, &self.saddr);
        let lengths = ((4 * TCP as u32) << 16 | (protocol::TCP as u32) << 8 | HOPS).to_be();
        [0x6000_0000u32.to_be(), lengths, from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3]]
    }
}

impl<const W: usize> Syn<W> {
    #[inline(always)]
    fn read(bytes: &impl Bytes, addresses: usize, tcp: usize, mss: u16) -> Option<Self> {
        let mut syn = Self { saddr: [0; W], daddr: [0; W], ports: load(bytes, tcp)?, seq: 0, mss };
        syn.seq = u32::from_be(load(bytes, tcp + 4)?);
        let mut index = 0;
        while index < W {
            syn.saddr[index] = load(bytes, addresses + 4 * index)?;
            syn.daddr[index] = load(bytes, addresses + 4 * (W + index))?;
            index += 1;
        }
        Some(syn)
    }

    /// The SYN's own header in the form that cookies are made from: its ports, its number, and its segment size as the only
    /// option.
    #[inline(always)]
    pub fn header(&self) -> [u32; TCP] {
        write_tcp(self.ports, self.seq, 0, SYN, self.mss)
    }

    /// TCP header of the answer; `mss` is what this side takes.
    #[inline(always)]
    pub fn answer(&self, cookie: u32, mss: u16) -> [u32; TCP] {
        let mut tcp = write_tcp(self.ports.rotate_left(16), cookie, self.seq.wrapping_add(1), SYN | ACK, mss);
        let pseudo = u64::from((protocol::TCP as u32 + 4 * TCP as u32).to_be());
        let total = pseudo + sum(&self.saddr) + sum(&self.daddr) + sum(&tcp);
        tcp[4] = (u32::from(checksum(total)) << 16).to_be();
        tcp
    }
}

#[inline(always)]
fn load(bytes: &impl Bytes, offset: usize) -> Option<u32> {
    bytes.load(offset).map(u32::from_ne_bytes)
}

/// Segment size among the options of the TCP header at `tcp`.
#[inline(always)]
fn find_mss(bytes: &impl Bytes, tcp: usize) -> Option<u16> {
    let words: [u8; 1] = bytes.load(tcp + 12)?;
    let end = usize::from(words[0] >> 4) * 4;
    let mut at = TCP_PLAIN;
    for _ in 0..MAX_OPTIONS {
        if at + 4 > end {
            return None;
        }
        let option: [u8; 4] = bytes.load(tcp + at)?;
        match option[0] {
            OPTION_END => return None,
            OPTION_NOP => at += 1,
            OPTION_MSS if option[1] == 4 => return Some(u16::from_be_bytes([option[2], option[3]])),
            _ if option[1] < 2 => return None,
            _ => at += usize::from(option[1]),
        }
    }
    None
}

#[inline(always)]
fn write_tcp(ports: u32, seq: u32, ack: u32, flags: u8, mss: u16) -> [u32; TCP] {
    let len = TCP as u32;
    [
        ports,
        seq.to_be(),
        ack.to_be(),
        (len << 28 | (flags as u32) << 16 | WINDOW).to_be(),
        0,
        ((OPTION_MSS as u32) << 24 | 4 << 16 | mss as u32).to_be(),
    ]
}

#[inline(always)]
fn sum<const N: usize>(words: &[u32; N]) -> u64 {
    let mut total = 0;
    let mut index = 0;
    while index < N {
        total += u64::from(words[index]);
        index += 1;
    }
    total
}

/// Folds a sum of words in network order to the checksum, in host order.
#[inline(always)]
fn checksum(total: u64) -> u16 {
    let total = (total & 0xffff_ffff) + (total >> 32);
    let total = (total & 0xffff) + (total >> 16 & 0xffff) + (total >> 32);
    let total = (total & 0xffff) + (total >> 16);
    let total = (total & 0xffff) + (total >> 16);
    u16::from_be(!(total as u16))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where the IP header begins.
    const AT: usize = 18;

    /// Ethernet, a VLAN tag, IPv4, TCP with the options that Linux sends.
    fn frame() -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x81, 0, 0, 100, 0x08, 0, 0x45, 0, 0, 60, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend([198, 51, 100, 10, 203, 0, 113, 1]);
        frame.extend([0x9c, 0x40, 0x01, 0xbb, 0, 0, 0, 9, 0, 0, 0, 0, 0xa0, SYN, 0xff, 0xff, 0, 0, 0, 0]);
        frame.extend([2, 4, 0x05, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7]);
        frame
    }

    fn frame_v6() -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x81, 0, 0, 100, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 40, 6, 64]);
        frame.extend([[0xfe; 16], [0x21; 16]].concat());
        frame.extend(&super::tests::frame()[38..]);
        frame
    }

    fn read(frame: &[u8]) -> Option<Syn<V4>> {
        Syn::<V4>::parse(&frame, AT)
    }

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// RFC 1071 over bytes, with nothing in common with the code above: 0xffff when the checksum in them is right.
    fn total(bytes: &[u8]) -> u64 {
        bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum::<u64>() % 0xffff
    }

    #[test]
    fn reads_what_an_answer_needs() {
        let syn = read(&frame()).unwrap();
        assert_eq!(
            bytes(&[syn.saddr[0], syn.daddr[0], syn.ports]),
            [198, 51, 100, 10, 203, 0, 113, 1, 0x9c, 0x40, 1, 0xbb]
        );
        assert_eq!((syn.seq, syn.mss), (9, 1460));
        let header = bytes(&syn.header());
        assert_eq!(header[..12], frame()[38..50]);
        assert_eq!(header[12..], [0x60, SYN, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4]);
    }

    #[test]
    fn headers_that_an_answer_would_have_to_repeat_are_left_to_the_stack() {
        for (at, value) in [(AT, 0x46), (AT + 6, 0x20), (AT + 7, 1)] {
            let mut frame = frame();
            frame[at] = value;
            assert_eq!(read(&frame), None, "{at}");
        }
        let mut extended = frame_v6();
        assert!(Syn::<V6>::parse(&&extended[..], AT).is_some());
        extended[AT + 6] = 60;
        assert_eq!(Syn::<V6>::parse(&&extended[..], AT), None);
    }

    #[test]
    fn the_segment_size_is_found_behind_other_options_or_taken_as_the_default() {
        for (options, mss) in [
            (&[1, 1, 2, 4, 5, 0xb4][..], 1460),
            (&[3, 3, 7, 2, 4, 1, 0], 256),
            (&[2, 3, 5, 0xb4], 536),
            (&[0, 2, 4, 5, 0xb4], 536),
            (&[4, 0, 2, 4, 5, 0xb4], 536),
            (&[], 536),
        ] {
            let mut frame = frame();
            frame.truncate(58);
            let words = options.len().div_ceil(4);
            frame.extend(options);
            frame.resize(58 + words * 4, 0);
            frame[50] = ((5 + words) << 4) as u8;
            assert_eq!(read(&frame).unwrap().mss, mss, "{options:?}");
        }
    }

    #[test]
    fn answers_have_checksums_that_a_receiver_takes() {
        // Cookies and sizes that make sums carry at every place.
        for (cookie, mss) in [(0xfeed_beef, 1400), (0, 0), (u32::MAX, u16::MAX), (0xffff_0000, 1), (0x0001_ffff, 536)] {
            let syn = read(&frame()).unwrap();
            let (ip, tcp) = (bytes(&syn.answer_network()), bytes(&syn.answer(cookie, mss)));
            assert_eq!(total(&ip), 0);
            assert_eq!(total(&[&ip[12..], &[0, 6, 0, 24], &tcp].concat()), 0);
            assert_eq!(ip[..10], [0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6]);
            assert_eq!(ip[12..], [203, 0, 113, 1, 198, 51, 100, 10]);
            assert_eq!(tcp[..4], [0x01, 0xbb, 0x9c, 0x40]);
            assert_eq!(tcp[4..8], cookie.to_be_bytes());
            assert_eq!(tcp[8..16], [0, 0, 0, 10, 0x60, SYN | ACK, 0xff, 0xff]);
            assert_eq!(tcp[20..], [&[2, 4], &mss.to_be_bytes()[..]].concat());

            let syn = Syn::<V6>::parse(&&frame_v6()[..], AT).unwrap();
            let (ip, tcp) = (bytes(&syn.answer_network()), bytes(&syn.answer(cookie, mss)));
            assert_eq!(total(&[&ip[8..], &[0, 0, 0, 24, 0, 0, 0, 6], &tcp].concat()), 0);
            assert_eq!(ip[..8], [0x60, 0, 0, 0, 0, 24, 6, 64]);
            assert_eq!(ip[8..], [[0x21; 16], [0xfe; 16]].concat());
        }
    }

    #[test]
    fn only_a_bare_syn_asks_for_a_connection() {
        let cases =
            [(SYN, true), (SYN | 0xc0, true), (SYN | ACK, false), (SYN | FIN, false), (SYN | RST, false), (0, false)];
        for (flags, expected) in cases {
            assert_eq!(is_syn(flags), expected, "{flags:x}");
        }
    }
}
