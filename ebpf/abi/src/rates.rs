//! Token buckets: where they lie, how a source finds its own, and what taking a token does to one.
//!
//! A bucket is one word, the time at which it is full again, in nanoseconds of `bpf_ktime_get_ns` (CLOCK_MONOTONIC, which
//! nobody can set): the theoretical arrival time of the generic cell rate algorithm (ITU-T I.371). A bucket that is full
//! carries no information, so its place can be given to another source and nothing is lost. Everything here is arithmetic
//! on values; who may change a word, and how, is the programs' affair.

use crate::{Address, Rate, address::V4_MAPPED_PREFIX};

/// Buckets of one set: with the two shared ones of [`RateSet`] they fill two cache lines.
pub const RATE_WAYS: usize = 7;
/// Sets of a domain's table (a power of two): 114,688 sources that are not at rest at the same time, 2 MiB.
pub const RATE_SETS: u32 = 16_384;
/// Buckets of a domain's table.
pub const MAX_RATE_BUCKETS: u32 = RATE_SETS * RATE_WAYS as u32;

/// Element of a domain's table of buckets, chosen by the hash of a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RateSet {
    /// Hash of the source that each bucket belongs to.
    pub sources: [u64; RATE_WAYS],
    /// The buckets.
    pub full_at: [u64; RATE_WAYS],
    /// Bucket that sources share which find no place in the set.
    pub strangers: u64,
    /// The same for sources that have completed a handshake.
    pub known: u64,
}

/// Value of `RATE_DOMAINS`: one cache line, so that domains do not slow each other down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct DomainRates {
    /// Bucket of all new connections.
    pub total: u64,
    /// Bucket of echo requests.
    pub echo: u64,
    /// Random key of the domain's hash, so that nobody can choose sources that fall into one set.
    pub seed: [u64; 2],
    /// Zero.
    pub pad: [u64; 4],
}

/// What a request for a token does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the bucket is from now on.
    pub full_at: u64,
    /// Whether there was a token.
    pub is_taken: bool,
}

impl Rate {
    /// A rate of so many a second, of which `burst` may come at once. The interval is rounded to whole nanoseconds, which
    /// is exact to 0.1 % up to a million a second. A rate or burst of 0 counts as 1.
    pub const fn per_second(rate: u32, burst: u32) -> Self {
        let rate = if rate == 0 { 1 } else { rate as u64 };
        let interval_ns = (1_000_000_000 + rate / 2) / rate;
        let interval_ns = if interval_ns == 0 { 1 } else { interval_ns };
        Self { interval_ns, burst_ns: interval_ns * (if burst == 0 { 0 } else { burst as u64 - 1 }) }
    }

    /// Whether there is a limit at all.
    #[inline(always)]
    pub const fn is_limited(&self) -> bool {
        self.interval_ns != 0
    }

    /// The part of a bucket that only known sources may draw on, in nanoseconds: a quarter.
    #[inline(always)]
    pub const fn reserve_ns(&self) -> u64 {
        self.burst_ns >> 2
    }

    /// Takes a token if one is there beside what is reserved.
    ///
    /// A bucket that is emptier than this rate can make one was drawn on under a slower rate, whose debt does not hold any
    /// more: it becomes an empty bucket of this rate.
    #[inline(always)]
    pub const fn take(&self, full_at: u64, now: u64, reserved_ns: u64) -> Step {
        let empty = now + self.burst_ns + self.interval_ns;
        if full_at > empty {
            return Step { full_at: empty, is_taken: false };
        }
        if full_at > now + (self.burst_ns - reserved_ns) {
            return Step { full_at, is_taken: false };
        }
        let start = if full_at > now { full_at } else { now };
        Step { full_at: start + self.interval_ns, is_taken: true }
    }

    /// Tokens that can be taken at once, beside what is reserved.
    pub const fn left(&self, full_at: u64, now: u64, reserved_ns: u64) -> u64 {
        let reach = now + (self.burst_ns - reserved_ns);
        let start = if full_at > now { full_at } else { now };
        if self.interval_ns == 0 || start > reach { 0 } else { (reach - start) / self.interval_ns + 1 }
    }
}

/// The source as limits know it: with the bits beyond the stated lengths zero.
#[inline(always)]
pub const fn mask_source(source: &Address, v4_bits: u8, v6_bits: u8) -> Address {
    let (high, low) = to_words(source);
    let mapped =
        u32::from_be_bytes([V4_MAPPED_PREFIX[8], V4_MAPPED_PREFIX[9], V4_MAPPED_PREFIX[10], V4_MAPPED_PREFIX[11]]);
    let bits = if high == 0 && (low >> 32) as u32 == mapped { 96 + v4_bits as u32 } else { v6_bits as u32 };
    let high = high & high_bits(bits);
    let low = low & high_bits(bits.saturating_sub(64));
    let (high, low) = (high.to_be_bytes(), low.to_be_bytes());
    [
        high[0], high[1], high[2], high[3], high[4], high[5], high[6], high[7], low[0], low[1], low[2], low[3], low[4],
        low[5], low[6], low[7],
    ]
}

/// A word with this many of its upper bits set; all of them from 64 on.
#[inline(always)]
const fn high_bits(bits: u32) -> u64 {
    match bits {
        0 => 0,
        1..64 => u64::MAX << (64 - bits),
        _ => u64::MAX,
    }
}

#[inline(always)]
const fn to_words(addr: &Address) -> (u64, u64) {
    (
        u64::from_be_bytes([addr[0], addr[1], addr[2], addr[3], addr[4], addr[5], addr[6], addr[7]]),
        u64::from_be_bytes([addr[8], addr[9], addr[10], addr[11], addr[12], addr[13], addr[14], addr[15]]),
    )
}

/// Hash of a masked source: SipHash-1-3 of its sixteen bytes under the domain's key.
#[inline(always)]
pub const fn hash_source(seed: &[u64; 2], source: &Address) -> u64 {
    let (high, low) = to_words(source);
    let mut state = [
        seed[0] ^ 0x736f_6d65_7073_6575,
        seed[1] ^ 0x646f_7261_6e64_6f6d,
        seed[0] ^ 0x6c79_6765_6e65_7261,
        seed[1] ^ 0x7465_6462_7974_6573,
    ];
    // The message is little-endian words, and its length in the upper byte of the last one.
    state = compress(state, high.swap_bytes());
    state = compress(state, low.swap_bytes());
    state = compress(state, 16 << 56);
    state[2] ^= 0xff;
    state = mix(mix(mix(state)));
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline(always)]
const fn compress(mut state: [u64; 4], word: u64) -> [u64; 4] {
    state[3] ^= word;
    state = mix(state);
    state[0] ^= word;
    state
}

#[inline(always)]
const fn mix(state: [u64; 4]) -> [u64; 4] {
    let [mut a, mut b, mut c, mut d] = state;
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// The set that a source's bucket is in.
#[inline(always)]
pub const fn rate_set(hash: u64) -> u32 {
    hash as u32 & (RATE_SETS - 1)
}

#[cfg(test)]
mod tests {
    use core::net::IpAddr;

    use super::*;
    use crate::address::from_ip;

    fn masked(text: &str, v4_bits: u8, v6_bits: u8) -> IpAddr {
        let ip: IpAddr = text.parse().unwrap();
        crate::address::to_ip(&mask_source(&from_ip(ip), v4_bits, v6_bits))
    }

    #[test]
    fn sources_are_told_apart_by_the_bits_that_count() {
        for (source, v4_bits, v6_bits, expected) in [
            ("198.51.100.7", 32, 64, "198.51.100.7"),
            ("198.51.100.7", 24, 64, "198.51.100.0"),
            ("198.51.100.7", 1, 64, "128.0.0.0"),
            ("198.51.100.7", 0, 64, "0.0.0.0"),
            ("2001:db8:1:2:3:4:5:6", 32, 64, "2001:db8:1:2::"),
            ("2001:db8:1:2:3:4:5:6", 32, 128, "2001:db8:1:2:3:4:5:6"),
            ("2001:db8:1:2:3:4:5:6", 32, 48, "2001:db8:1::"),
            ("2001:db8:1:2:ffff:4:5:6", 32, 65, "2001:db8:1:2:8000::"),
            ("2001:db8:1:2:3:4:5:6", 32, 0, "::"),
        ] {
            assert_eq!(masked(source, v4_bits, v6_bits), expected.parse::<IpAddr>().unwrap(), "{source}");
        }
    }

    /// Rust's standard library has SipHash-1-3 too, with a key of zeroes.
    #[test]
    fn hashes_as_siphash_does() {
        use std::hash::{DefaultHasher, Hasher};
        for text in ["198.51.100.7", "2001:db8::1", "::"] {
            let addr = from_ip(text.parse().unwrap());
            let mut reference = DefaultHasher::new();
            reference.write(&addr);
            assert_eq!(hash_source(&[0, 0], &addr), reference.finish());
            assert_ne!(hash_source(&[0, 1], &addr), reference.finish());
        }
    }

    #[test]
    fn a_burst_at_once_then_one_each_interval() {
        let rate = Rate::per_second(200, 400);
        let (mut full_at, mut now) = (0, 1_000_000_000_000);
        for taken in 0..400 {
            assert_eq!(rate.left(full_at, now, 0), 400 - taken);
            let step = rate.take(full_at, now, 0);
            assert!(step.is_taken);
            full_at = step.full_at;
        }
        assert_eq!(rate.left(full_at, now, 0), 0);
        assert_eq!(rate.take(full_at, now, 0), Step { full_at, is_taken: false });
        now += 4_999_999;
        assert!(!rate.take(full_at, now, 0).is_taken);
        now += 1;
        let step = rate.take(full_at, now, 0);
        assert!(step.is_taken);
        assert!(!rate.take(step.full_at, now, 0).is_taken);
    }

    #[test]
    fn the_last_quarter_of_a_bucket_is_for_known_sources() {
        let rate = Rate::per_second(100, 41);
        let (mut full_at, now) = (0, 5_000_000_000);
        let mut strangers = 0;
        while rate.take(full_at, now, rate.reserve_ns()).is_taken {
            full_at = rate.take(full_at, now, rate.reserve_ns()).full_at;
            strangers += 1;
        }
        assert_eq!(strangers, 31);
        assert_eq!(rate.left(full_at, now, 0), 10);
    }

    #[test]
    fn a_debt_made_under_a_slower_rate_ends_with_it() {
        let (slow, fast) = (Rate::per_second(1, 100), Rate::per_second(1000, 10));
        let now = 1_000_000_000_000;
        let mut full_at = 0;
        for _ in 0..100 {
            full_at = slow.take(full_at, now, 0).full_at;
        }
        assert_eq!(full_at, now + 100_000_000_000);
        let step = fast.take(full_at, now, 0);
        assert_eq!(step, Step { full_at: now + 10_000_000, is_taken: false });
        assert!(fast.take(step.full_at, now + 1_000_000, 0).is_taken);
    }

    #[test]
    fn extreme_rates_do_not_overflow() {
        for rate in [Rate::per_second(1, u32::MAX), Rate::per_second(u32::MAX, u32::MAX), Rate::per_second(0, 0)] {
            // Three hundred years of uptime.
            let now = 1 << 63;
            let step = rate.take(u64::MAX, now, rate.reserve_ns());
            assert!(!step.is_taken);
            assert!(rate.take(0, now, rate.reserve_ns()).is_taken);
            assert!(rate.left(0, now, 0) >= 1);
        }
    }
}
