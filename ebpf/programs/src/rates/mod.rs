//! Rates of new connections: one bucket for each source, one for the domain.
//!
//! Sources have their buckets in a set-associative table of the domain's own. A place is given away only when its bucket
//! is full, which says the same as no bucket: so however many sources come, none that is being limited or measured loses
//! its state. A source that finds no place is judged by a bucket that its set shares, one for strangers and one for
//! sources that have completed a handshake before; that is counted.
//!
//! Every change is one compare-and-exchange of one word, so CPUs never add up to more than a bucket holds. What is not
//! exact: a source may, once for each CPU and time that its bucket is claimed or given away, take a token of another
//! bucket than its own, because a place's owner and its bucket are two words; and a connection is refused when
//! [`ATTEMPTS`] other CPUs in a row were faster. Must not know maps or clocks: [`Buckets`] does.

use core::sync::atomic::AtomicU64;

use tidegate_abi::{
    Address, DomainRates, Policy, Rate, RateSet, Reason,
    rates::{RATE_WAYS, hash_source, mask_source, rate_set},
};

/// How often a change of a bucket is tried. Each failure means that another CPU has changed it in the same nanoseconds.
pub const ATTEMPTS: u32 = 8;

/// [`RateSet`] as CPUs share it.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SharedSet {
    sources: [AtomicU64; RATE_WAYS],
    full_at: [AtomicU64; RATE_WAYS],
    strangers: AtomicU64,
    known: AtomicU64,
}

/// [`DomainRates`] as CPUs share it.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SharedDomain {
    /// Bucket of all new connections.
    pub total: AtomicU64,
    /// Bucket of echo requests.
    pub echo: AtomicU64,
    seed: [u64; 2],
    pad: [u64; 4],
}

const _: () =
    assert!(size_of::<SharedSet>() == size_of::<RateSet>() && align_of::<SharedSet>() == align_of::<RateSet>());
const _: () = assert!(size_of::<SharedDomain>() == size_of::<DomainRates>());

/// Where buckets lie, and how a word of them is read and changed.
pub trait Buckets {
    /// Nanoseconds since the start of the machine.
    fn now(&self) -> u64;
    /// Buckets and hash key of a domain.
    fn find_domain_rates(&self, domain: u32) -> Option<&SharedDomain>;
    /// A set of a domain's table.
    fn find_rate_set(&self, domain: u32, set: u32) -> Option<&SharedSet>;
    /// Whether a source has completed a handshake with the domain.
    fn is_known(&self, domain: u32, source: &Address) -> bool;
    /// Counts a connection that a shared bucket judges.
    fn note_overflow(&self, domain: u32);
    /// Reads a word.
    fn load(&self, word: &AtomicU64) -> u64;
    /// Replaces a word if it still is `current`; says whether it was. Who only asks replaces nothing and says yes.
    fn replace(&self, word: &AtomicU64, current: u64, new: u64) -> bool;
}

/// Takes a token for a new connection from its source's bucket and one from the domain's; the reason when either is missing.
///
/// A connection that the domain's rate refuses has cost its source a token all the same: who knocks too often while the
/// domain is flooded is limited by its own rate first.
#[inline(always)]
pub fn find_rate_refusal(buckets: &impl Buckets, domain: u32, policy: &Policy, source: &Address) -> Option<Reason> {
    if !policy.per_source.is_limited() && !policy.total.is_limited() {
        return None;
    }
    // Without its tables a limit cannot be kept: a state that user space never leaves behind. Refused.
    let Some(rates) = buckets.find_domain_rates(domain) else { return Some(Reason::RateDomain) };
    let now = buckets.now();
    let source = mask_source(source, policy.v4_bits, policy.v6_bits);
    if policy.per_source.is_limited() && !take_source(buckets, domain, &policy.per_source, rates, &source, now) {
        return Some(Reason::RateSource);
    }
    if policy.total.is_limited() && !take_total(buckets, domain, &policy.total, rates, &source, now) {
        return Some(Reason::RateDomain);
    }
    None
}

#[inline(always)]
fn take_source(
    buckets: &impl Buckets,
    domain: u32,
    rate: &Rate,
    rates: &SharedDomain,
    source: &Address,
    now: u64,
) -> bool {
    let hash = hash_source(&rates.seed, source);
    let Some(set) = buckets.find_rate_set(domain, rate_set(hash)) else { return false };
    let bucket = match find_bucket(buckets, set, hash, now) {
        Some(bucket) => bucket,
        None => {
            buckets.note_overflow(domain);
            if buckets.is_known(domain, source) { &set.known } else { &set.strangers }
        }
    };
    take(buckets, bucket, rate, 0, now)
}

/// The source's bucket, or a full one that becomes the source's.
#[inline(always)]
fn find_bucket<'a>(buckets: &impl Buckets, set: &'a SharedSet, hash: u64, now: u64) -> Option<&'a AtomicU64> {
    let mut way = 0;
    while way < RATE_WAYS {
        if buckets.load(&set.sources[way]) == hash {
            return Some(&set.full_at[way]);
        }
        way += 1;
    }
    let mut way = 0;
    while way < RATE_WAYS {
        if buckets.load(&set.full_at[way]) <= now {
            let owner = buckets.load(&set.sources[way]);
            // The same source may have come in on another CPU and have claimed the place just now.
            if owner == hash || buckets.replace(&set.sources[way], owner, hash) {
                return Some(&set.full_at[way]);
            }
        }
        way += 1;
    }
    None
}

/// A stranger leaves the reserve to sources that have completed a handshake: a flood cannot use up what they need.
#[inline(always)]
fn take_total(
    buckets: &impl Buckets,
    domain: u32,
    rate: &Rate,
    rates: &SharedDomain,
    source: &Address,
    now: u64,
) -> bool {
    if take(buckets, &rates.total, rate, rate.reserve_ns(), now) {
        return true;
    }
    buckets.is_known(domain, source) && take(buckets, &rates.total, rate, 0, now)
}

/// Takes a token from a bucket, less what is reserved.
#[inline(always)]
pub fn take(buckets: &impl Buckets, bucket: &AtomicU64, rate: &Rate, reserved_ns: u64, now: u64) -> bool {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        let full_at = buckets.load(bucket);
        let step = rate.take(full_at, now, reserved_ns);
        if step.full_at == full_at {
            return false;
        }
        if buckets.replace(bucket, full_at, step.full_at) {
            return step.is_taken;
        }
        attempt += 1;
    }
    false
}

#[cfg(test)]
mod tests;
