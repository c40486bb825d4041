//! The sources that occur most in a stream, in memory that does not grow with it: the space-saving algorithm (Metwally,
//! Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements in data streams", 2005). Pure.
//!
//! Each domain and reason has a table of its own, so a flood of one hides no source of another. Of a table that has seen
//! N samples, every source with more than N / [`SLOTS`] of them is in it, and no count is too high by more than its error.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use tidegate_kernel::{Reason, Sample};
use tidegate_model::DomainId;

/// Sources that a table holds: 2 KiB each table, and at most 255 domains × 21 reasons of them.
pub const SLOTS: usize = 48;

/// Bits of an IPv6 address that make a source: whoever has one address has the whole /64.
const V6_BITS: u8 = 64;

/// The tables.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    tables: BTreeMap<(DomainId, Reason), Table>,
    seen: u64,
}

/// One table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    slots: Vec<Slot>,
    seen: u64,
}

/// A source in a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The source.
    pub source: IpNet,
    /// Its samples, at most.
    pub count: u64,
    /// How many of them may have been another's, whose slot it took.
    pub error: u64,
}

impl Sources {
    /// Takes a sample.
    pub fn push(&mut self, sample: &Sample) {
        self.seen += 1;
        // A system call of a worker comes from no source.
        if !sample.source.is_unspecified() {
            self.tables.entry((sample.domain, sample.reason)).or_default().push(source_of(sample.source));
        }
    }

    /// Samples taken, also those without a source.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Every table.
    pub fn tables(&self) -> impl Iterator<Item = (DomainId, Reason, &Table)> {
        self.tables.iter().map(|(&(domain, reason), table)| (domain, reason, table))
    }

    /// Forgets a domain that is gone: its number is given to another.
    pub fn forget(&mut self, gone: DomainId) {
        self.tables.retain(|(domain, _), _| *domain != gone);
    }
}

impl Table {
    fn push(&mut self, source: IpNet) {
        self.seen += 1;
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.source == source) {
            slot.count += 1;
        } else if self.slots.len() < SLOTS {
            self.slots.push(Slot { source, count: 1, error: 0 });
        } else if let Some(least) = self.slots.iter_mut().min_by_key(|slot| slot.count) {
            *least = Slot { source, count: least.count + 1, error: least.count };
        }
    }

    /// Samples that the table has seen.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The sources with the most samples, most first.
    pub fn top(&self, limit: usize) -> Vec<Slot> {
        let mut slots = self.slots.clone();
        slots.sort_by_key(|slot| (std::cmp::Reverse(slot.count), slot.error, slot.source));
        slots.truncate(limit);
        slots
    }
}

/// What counts as one source.
fn source_of(address: IpAddr) -> IpNet {
    let net = IpNet::from(address.to_canonical());
    match net {
        IpNet::V4(_) => net,
        IpNet::V6(v6) => ipnet::Ipv6Net::new_assert(v6.addr(), V6_BITS).trunc().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;
    use tidegate_kernel::Hook;

    use super::*;

    fn sample(domain: u32, source: IpAddr) -> Sample {
        Sample {
            ktime_ns: 0,
            domain: DomainId(domain),
            hook: Hook::Admit,
            reason: Reason::SourceDenied,
            source,
            source_port: 1,
            destination: source,
            destination_port: 2,
            protocol: 6,
            ifindex: 1,
            vlan: 0,
            len: 60,
            tcp_flags: 2,
        }
    }

    #[test]
    fn a_flood_from_random_sources_hides_no_steady_one_and_no_other_domain() {
        let mut sources = Sources::default();
        for round in 0..100_000u32 {
            sources.push(&sample(1, IpAddr::from((round.wrapping_mul(2_654_435_761)).to_be_bytes())));
            if round % 20 == 0 {
                sources.push(&sample(1, IpAddr::from([192, 0, 2, 7])));
            }
        }
        sources.push(&sample(2, IpAddr::from([198, 51, 100, 1])));
        let tables: Vec<_> = sources.tables().collect();
        assert_eq!(tables.len(), 2);
        let first = tables[0].2.top(1)[0];
        assert_eq!(first.source, "192.0.2.7/32".parse().unwrap());
        assert!(first.count - first.error <= 5_000 && first.count >= 5_000, "{first:?}");
        assert_eq!(tables[1].2.top(5).len(), 1);
        assert_eq!(sources.seen(), 105_001);
        sources.forget(DomainId(1));
        assert_eq!(sources.tables().count(), 1);
    }

    #[test]
    fn an_ipv6_source_is_its_64_and_a_mapped_address_is_ipv4() {
        assert_eq!(source_of("2001:db8::1:2:3:4".parse().unwrap()), "2001:db8::/64".parse().unwrap());
        assert_eq!(source_of("::ffff:192.0.2.1".parse().unwrap()), "192.0.2.1/32".parse().unwrap());
    }

    proptest! {
        #[test]
        fn counts_are_right_within_their_error_and_memory_is_bounded(
            stream in proptest::collection::vec((0u8..200).prop_map(|x| x / (1 + x % 7)), 1..2000)
        ) {
            let mut table = Table::default();
            let mut truth: HashMap<IpNet, u64> = HashMap::new();
            for host in &stream {
                let source = source_of(IpAddr::from([10, 0, 0, *host]));
                table.push(source);
                *truth.entry(source).or_default() += 1;
            }
            let top = table.top(usize::MAX);
            prop_assert!(top.len() <= SLOTS);
            for slot in &top {
                let real = truth[&slot.source];
                prop_assert!(slot.count >= real && slot.count - slot.error <= real, "{slot:?} {real}");
            }
            for (source, real) in truth {
                let is_there = top.iter().any(|slot| slot.source == source);
                prop_assert!(is_there || real <= table.seen() / SLOTS as u64);
            }
        }
    }
}
