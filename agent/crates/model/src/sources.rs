//! A list of source prefixes: sorted, each once, shared rather than copied.
//!
//! Lists may be long (a million prefixes), so a clone is two counters, and comparing a list with its own clone looks at
//! nothing. IPv4-mapped IPv6 prefixes count as IPv4, since that is what packets carry.

use std::{net::IpAddr, sync::Arc};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Prefixes with host bits zero, in the order of their first address, then of their length.
#[derive(Clone, Debug)]
pub struct SourceList {
    v4: Arc<[Ipv4Net]>,
    v6: Arc<[Ipv6Net]>,
}

impl SourceList {
    /// The IPv4 prefixes.
    pub fn v4(&self) -> &[Ipv4Net] {
        &self.v4
    }

    /// The IPv6 prefixes; none of them lies in ::ffff:0:0/96.
    pub fn v6(&self) -> &[Ipv6Net] {
        &self.v6
    }

    /// Number of prefixes.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All prefixes, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.v4.iter().copied().map(IpNet::V4).chain(self.v6.iter().copied().map(IpNet::V6))
    }

    /// The longest prefix that has an address. Takes a binary search for each length, so it may be asked of long lists.
    pub fn find_longest(&self, address: IpAddr) -> Option<IpNet> {
        match address.to_canonical() {
            IpAddr::V4(address) => (0..=32).rev().find_map(|len| {
                let prefix = Ipv4Net::new(address, len).ok()?.trunc();
                self.v4.binary_search(&prefix).is_ok().then_some(IpNet::V4(prefix))
            }),
            IpAddr::V6(address) => (0..=128).rev().find_map(|len| {
                let prefix = Ipv6Net::new(address, len).ok()?.trunc();
                self.v6.binary_search(&prefix).is_ok().then_some(IpNet::V6(prefix))
            }),
        }
    }
}

impl Default for SourceList {
    fn default() -> Self {
        Self { v4: Arc::from([]), v6: Arc::from([]) }
    }
}

impl PartialEq for SourceList {
    fn eq(&self, other: &Self) -> bool {
        (Arc::ptr_eq(&self.v4, &other.v4) || self.v4 == other.v4)
            && (Arc::ptr_eq(&self.v6, &other.v6) || self.v6 == other.v6)
    }
}

impl Eq for SourceList {}

/// IPv4-mapped prefixes as the IPv4 ones that they mean; host bits zero.
fn canonical(prefix: IpNet) -> IpNet {
    match prefix.trunc() {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(IpNet::V6(v6), IpNet::V4),
            None => IpNet::V6(v6),
        },
        prefix => prefix,
    }
}

impl FromIterator<IpNet> for SourceList {
    fn from_iter<T: IntoIterator<Item = IpNet>>(prefixes: T) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for prefix in prefixes {
            match canonical(prefix) {
                IpNet::V4(prefix) => v4.push(prefix),
                IpNet::V6(prefix) => v6.push(prefix),
            }
        }
        // Numbers sort several times faster than addresses do.
        v4.sort_unstable_by_key(|prefix| (u64::from(u32::from(prefix.addr())) << 8) | u64::from(prefix.prefix_len()));
        v6.sort_unstable_by_key(|prefix| (u128::from(prefix.addr()), prefix.prefix_len()));
        v4.dedup();
        v6.dedup();
        Self { v4: v4.into(), v6: v6.into() }
    }
}

impl From<Vec<IpNet>> for SourceList {
    fn from(prefixes: Vec<IpNet>) -> Self {
        prefixes.into_iter().collect()
    }
}

impl Extend<IpNet> for SourceList {
    fn extend<T: IntoIterator<Item = IpNet>>(&mut self, prefixes: T) {
        *self = self.iter().chain(prefixes).collect();
    }
}

impl Serialize for SourceList {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de> Deserialize<'de> for SourceList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Vec::<IpNet>::deserialize(deserializer)?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(texts: &[&str]) -> SourceList {
        texts.iter().map(|text| text.parse().expect("a prefix")).collect()
    }

    #[test]
    fn lists_are_canonical_whatever_they_were_written_like() {
        let written =
            list(&["10.1.2.3/8", "2001:db8::1/32", "10.0.0.0/8", "::ffff:192.0.2.0/120", "0.0.0.0/0", "::/0"]);
        let shown: Vec<String> = written.iter().map(|prefix| prefix.to_string()).collect();
        assert_eq!(shown, ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.0/24", "::/0", "2001:db8::/32"]);
        assert_eq!(written, list(&["::/0", "2001:db8::/32", "192.0.2.0/24", "10.0.0.0/8", "0.0.0.0/0"]));
    }

    #[test]
    fn the_longest_prefix_is_found_among_overlapping_ones() {
        let list = list(&["10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "2001:db8::/32", "::/0"]);
        let find = |text: &str| list.find_longest(text.parse().expect("an address")).map(|prefix| prefix.to_string());
        assert_eq!(find("10.1.0.7").as_deref(), Some("10.1.0.0/24"));
        assert_eq!(find("10.1.1.7").as_deref(), Some("10.1.0.0/16"));
        assert_eq!(find("::ffff:10.2.0.1").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(find("11.0.0.0"), None);
        assert_eq!(find("2001:db8:1::").as_deref(), Some("2001:db8::/32"));
        assert_eq!(find("2001:db9::").as_deref(), Some("::/0"));
    }
}
