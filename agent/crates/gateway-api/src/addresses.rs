//! Addresses for Gateways out of a domain's pool.
//!
//! Every node gives a Gateway the same address without asking another: the search starts at a place that is a hash of
//! the Gateway's name and goes on to the first address that is free. An address once given is kept while the Gateway
//! wants any; one that it asked for by value goes when it no longer asks, or a restart would change it. What a Gateway's
//! status says in a cluster comes first: it outlives agents, and every node reads the same. No other part decides who has
//! which address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use tidegate_model::ObjectName;

/// Addresses of one prefix beyond this many are not used: nobody has as many Gateways, and sums stay within `u64`.
const MAX_USED_OF_A_PREFIX: u64 = 1 << 32;

/// The addresses of a domain and who has them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pool {
    prefixes: Vec<IpNet>,
    holders: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
    held: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// Gateways that have their addresses because they asked for them by value.
    asked: BTreeSet<ObjectName>,
}

impl Pool {
    /// Gives the pool other prefixes. Addresses that are no longer in it are taken back when their Gateways are asked again.
    pub(crate) fn set_prefixes(&mut self, prefixes: &[IpNet]) {
        if self.prefixes != prefixes {
            self.prefixes = prefixes.to_vec();
        }
    }

    /// Whether an address may be given to a Gateway that asks for it.
    pub(crate) fn is_usable(&self, address: IpAddr) -> bool {
        self.prefixes.iter().any(|prefix| prefix.contains(&address) && !is_reserved(prefix, address))
    }

    /// Gives a Gateway exactly these addresses, which others may have as well.
    pub(crate) fn hold(&mut self, gateway: &ObjectName, addresses: &[IpAddr]) {
        self.give(gateway, addresses);
        self.asked.insert(gateway.clone());
    }

    fn give(&mut self, gateway: &ObjectName, addresses: &[IpAddr]) {
        self.release(gateway);
        for address in addresses {
            self.holders.entry(*address).or_default().insert(gateway.clone());
        }
        self.held.insert(gateway.clone(), addresses.to_vec());
    }

    /// Prefers addresses for a Gateway that wants any: those that it is said to have, as far as they are usable and nobody
    /// else's. They become its own; [`Pool::allocate`] then keeps them.
    pub(crate) fn adopt(&mut self, gateway: &ObjectName, said: &[IpAddr]) {
        let is_free = |address: &&IpAddr| {
            let holders = self.holders.get(*address);
            self.is_usable(**address) && holders.is_none_or(|holders| holders.iter().all(|holder| holder == gateway))
        };
        let said: Vec<_> = said.iter().filter(is_free).copied().collect();
        if said.is_empty() {
            return;
        }
        let earlier = self.held.get(gateway).filter(|_| !self.asked.contains(gateway)).cloned().unwrap_or_default();
        let other_family = earlier.into_iter().filter(|held| said.iter().all(|said| said.is_ipv6() != held.is_ipv6()));
        let addresses: Vec<_> = other_family.chain(said.iter().copied()).collect();
        self.give(gateway, &addresses);
    }

    /// Gives a Gateway an address of each family that the pool has, keeping the ones it has. `None`: no family has an
    /// address left. `wants` tells which families are asked for.
    pub(crate) fn allocate(&mut self, gateway: &ObjectName, wants: Families) -> Option<Vec<IpAddr>> {
        if self.asked.contains(gateway) {
            self.release(gateway);
        }
        let earlier = self.held.get(gateway).cloned().unwrap_or_default();
        let mut addresses = Vec::new();
        for is_v6 in [false, true] {
            if !(if is_v6 { wants.v6 } else { wants.v4 }) {
                continue;
            }
            let kept = earlier.iter().find(|address| address.is_ipv6() == is_v6 && self.is_usable(**address));
            match kept {
                Some(address) => addresses.push(*address),
                None => addresses.extend(self.find_free(gateway, is_v6)),
            }
        }
        if addresses.is_empty() {
            self.release(gateway);
            return None;
        }
        self.give(gateway, &addresses);
        Some(addresses)
    }

    /// Takes a Gateway's addresses back.
    pub(crate) fn release(&mut self, gateway: &ObjectName) {
        self.asked.remove(gateway);
        for address in self.held.remove(gateway).unwrap_or_default() {
            if let Some(holders) = self.holders.get_mut(&address) {
                holders.remove(gateway);
                if holders.is_empty() {
                    self.holders.remove(&address);
                }
            }
        }
    }

    fn find_free(&self, gateway: &ObjectName, is_v6: bool) -> Option<IpAddr> {
        let prefixes: Vec<_> = self.prefixes.iter().filter(|prefix| matches!(prefix, IpNet::V6(_)) == is_v6).collect();
        let total = prefixes.iter().fold(0u64, |sum, prefix| sum.saturating_add(usable_count(prefix)));
        if total == 0 {
            return None;
        }
        let start = hash(gateway) % total;
        // Among one more candidates than there are addresses taken, one is free.
        let probes = total.min(self.holders.len() as u64 + 1);
        (0..probes)
            .map(|step| (u128::from(start) + u128::from(step)) % u128::from(total))
            .filter_map(|index| nth_usable(&prefixes, index as u64))
            .find(|address| !self.holders.contains_key(address))
    }
}

/// Address families that a Gateway asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Families {
    pub(crate) v4: bool,
    pub(crate) v6: bool,
}

/// Addresses at the start of a prefix that no host has: the network's own in IPv4, the routers' anycast address in IPv6
/// (RFC 4291 section 2.6.1). Prefixes of one or two addresses have none (RFC 3021, RFC 6164).
fn reserved_at_start(prefix: &IpNet) -> u64 {
    u64::from(prefix.max_prefix_len() - prefix.prefix_len() > 1)
}

fn usable_count(prefix: &IpNet) -> u64 {
    let bits = u32::from(prefix.max_prefix_len() - prefix.prefix_len());
    let all = if bits >= 32 { MAX_USED_OF_A_PREFIX } else { 1u64 << bits };
    let broadcast = u64::from(matches!(prefix, IpNet::V4(_)) && bits > 1);
    all - reserved_at_start(prefix) - broadcast
}

fn is_reserved(prefix: &IpNet, address: IpAddr) -> bool {
    reserved_at_start(prefix) == 1
        && (address == prefix.network() || (address.is_ipv4() && address == prefix.broadcast()))
}

fn nth_usable(prefixes: &[&IpNet], mut index: u64) -> Option<IpAddr> {
    for prefix in prefixes {
        let count = usable_count(prefix);
        if index < count {
            let offset = index + reserved_at_start(prefix);
            return Some(match prefix.network() {
                IpAddr::V4(network) => IpAddr::V4(Ipv4Addr::from_bits(network.to_bits().wrapping_add(offset as u32))),
                IpAddr::V6(network) => {
                    IpAddr::V6(Ipv6Addr::from_bits(network.to_bits().wrapping_add(u128::from(offset))))
                }
            });
        }
        index -= count;
    }
    None
}

/// FNV-1a (64 bits) of `namespace/name`: the same on every node and in every version, which std's hashers do not promise.
fn hash(name: &ObjectName) -> u64 {
    let bytes = name.namespace.bytes().chain([b'/']).chain(name.name.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Families = Families { v4: true, v6: true };

    fn pool(prefixes: &[&str]) -> Pool {
        let mut pool = Pool::default();
        pool.set_prefixes(&prefixes.iter().map(|prefix| prefix.parse().unwrap()).collect::<Vec<_>>());
        pool
    }

    fn gateway(index: usize) -> ObjectName {
        ObjectName::new("ns", format!("gateway-{index}"))
    }

    #[test]
    fn what_is_said_of_a_gateway_comes_before_the_search() {
        let mut pool = Pool::default();
        pool.set_prefixes(&["203.0.113.0/28".parse().unwrap()]);
        let (one, other) = (ObjectName::new("n", "one"), ObjectName::new("n", "other"));
        let any = Families { v4: true, v6: true };
        let address = |last: u8| IpAddr::from([203, 0, 113, last]);
        pool.adopt(&one, &[address(14), address(15), "2001:db8::1".parse().unwrap()]);
        assert_eq!(pool.allocate(&one, any), Some(vec![address(14)]), "15 is the broadcast address");
        pool.adopt(&other, &[address(14)]);
        assert_ne!(pool.allocate(&other, any), Some(vec![address(14)]), "it is another's");
        pool.adopt(&one, &[address(3)]);
        assert_eq!(pool.allocate(&one, any), Some(vec![address(3)]));
    }

    #[test]
    fn gives_every_usable_address_once_then_none() {
        let mut pool = pool(&["203.0.113.0/28"]);
        let mut given = BTreeSet::new();
        for index in 0..14 {
            let addresses = pool.allocate(&gateway(index), BOTH).unwrap();
            assert_eq!(addresses.len(), 1);
            assert!(given.insert(addresses[0]), "{} was given twice", addresses[0]);
        }
        assert!(!given.contains(&"203.0.113.0".parse().unwrap()));
        assert!(!given.contains(&"203.0.113.15".parse().unwrap()));
        assert_eq!(pool.allocate(&gateway(14), BOTH), None);
        pool.release(&gateway(3));
        assert!(pool.allocate(&gateway(14), BOTH).is_some());
    }

    #[test]
    fn keeps_an_address_once_given_and_gives_the_same_after_a_restart() {
        let mut first = pool(&["10.0.0.0/16", "2001:db8::/64"]);
        let mut second = first.clone();
        let addresses = first.allocate(&gateway(1), BOTH).unwrap();
        assert_eq!(addresses.len(), 2);
        assert!(addresses[0].is_ipv4() && addresses[1].is_ipv6());
        assert_eq!(first.allocate(&gateway(1), BOTH).unwrap(), addresses);
        assert_eq!(second.allocate(&gateway(1), BOTH).unwrap(), addresses);
    }

    #[test]
    fn an_address_asked_for_by_value_is_not_kept_when_it_is_no_longer_asked_for() {
        let mut pool = pool(&["10.0.0.0/16"]);
        let own = pool.clone().allocate(&gateway(1), BOTH).unwrap();
        pool.hold(&gateway(1), &["10.0.77.7".parse().unwrap()]);
        assert_eq!(pool.allocate(&gateway(1), BOTH).unwrap(), own);
        assert!(!pool.holders.contains_key(&"10.0.77.7".parse::<IpAddr>().unwrap()));
    }

    #[test]
    fn uses_both_addresses_of_a_31_and_the_one_of_a_32() {
        let mut pool = pool(&["192.0.2.0/31", "192.0.2.7/32"]);
        let given: BTreeSet<_> = (0..3).map(|index| pool.allocate(&gateway(index), BOTH).unwrap()[0]).collect();
        assert_eq!(given.len(), 3);
        assert!(pool.is_usable("192.0.2.0".parse().unwrap()));
        assert!(!pool.is_usable("192.0.2.2".parse().unwrap()));
    }

    #[test]
    fn survives_the_largest_prefixes() {
        let mut pool = pool(&["0.0.0.0/0", "::/0", "128.0.0.0/1"]);
        for index in 0..100 {
            assert!(pool.allocate(&gateway(index), BOTH).is_some());
        }
    }
}
