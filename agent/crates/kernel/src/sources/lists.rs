//! Both lists of a domain as one sequence, and what differs between two states of them: pure.

use std::{cmp::Ordering, net::Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use tidegate_abi::sources::{ALLOWED, DENIED};
use tidegate_model::{Admission, SourceList};

/// What a table is made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lists {
    /// Sources refused.
    pub(crate) deny: SourceList,
    /// Sources let in, where there is such a list.
    pub(crate) allow: SourceList,
    /// Whether only those are let in.
    pub(crate) is_closed: bool,
}

impl Lists {
    pub(crate) fn of(admission: &Admission) -> Self {
        Self {
            deny: admission.deny.clone(),
            allow: admission.allow.clone().unwrap_or_default(),
            is_closed: admission.allow.is_some(),
        }
    }

    /// Whether a table of these lists is one of the others as well.
    pub(crate) fn are_same(&self, other: &Self) -> bool {
        self.deny == other.deny && self.allow == other.allow
    }

    /// Whether no table is needed.
    pub(crate) fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty()
    }
}

/// A prefix as numbers.
pub(crate) trait Prefix: Copy + Ord {
    /// Whether another prefix lies in this one or is the same.
    fn covers(&self, other: &Self) -> bool;
}

impl Prefix for Ipv4Net {
    fn covers(&self, other: &Self) -> bool {
        self.contains(other)
    }
}

impl Prefix for Ipv6Net {
    fn covers(&self, other: &Self) -> bool {
        self.contains(other)
    }
}

/// The two halves of an IPv6 address.
pub(crate) fn halves(addr: Ipv6Addr) -> (u64, u64) {
    let bits = u128::from(addr);
    ((bits >> 64) as u64, bits as u64)
}

/// The prefixes of two sorted lists in order, each with the lists that have it.
pub(crate) fn merge<'a, P: Prefix>(deny: &'a [P], allow: &'a [P]) -> impl Iterator<Item = (P, u32)> + 'a {
    let (mut deny, mut allow) = (deny.iter().copied().peekable(), allow.iter().copied().peekable());
    std::iter::from_fn(move || {
        let order = match (deny.peek(), allow.peek()) {
            (Some(first), Some(second)) => first.cmp(second),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        match order {
            Ordering::Less => deny.next().map(|prefix| (prefix, DENIED)),
            Ordering::Greater => allow.next().map(|prefix| (prefix, ALLOWED)),
            Ordering::Equal => {
                allow.next();
                deny.next().map(|prefix| (prefix, DENIED | ALLOWED))
            }
        }
    })
}

/// Prefixes compared at once where nothing differs.
const STRIDE: usize = 64;

/// Prefixes that only one of two sorted lists has.
pub(crate) fn differing<P: Prefix>(old: &[P], new: &[P]) -> Vec<P> {
    let mut differing = Vec::new();
    if std::ptr::eq(old, new) {
        return differing;
    }
    let (mut old, mut new) = (old, new);
    loop {
        // Almost everything is equal in a long list that changed a little.
        while let (Some(first), Some(second)) = (old.get(..STRIDE), new.get(..STRIDE))
            && first == second
        {
            (old, new) = (&old[STRIDE..], &new[STRIDE..]);
        }
        let (Some(&first), Some(&second)) = (old.first(), new.first()) else { break };
        match first.cmp(&second) {
            Ordering::Less => {
                differing.push(first);
                old = &old[1..];
            }
            Ordering::Greater => {
                differing.push(second);
                new = &new[1..];
            }
            Ordering::Equal => (old, new) = (&old[1..], &new[1..]),
        }
    }
    differing.extend(old);
    differing.extend(new);
    differing
}

/// The part of a sorted list that lies in a prefix, it included.
pub(crate) fn within<'a, P: Prefix>(list: &'a [P], prefix: &P) -> &'a [P] {
    let start = list.partition_point(|each| each < prefix);
    let end = start + list[start..].partition_point(|each| prefix.covers(each));
    &list[start..end]
}

/// The lists that have a prefix itself.
pub(crate) fn own<P: Prefix>(deny: &[P], allow: &[P], prefix: &P) -> u32 {
    let has = |list: &[P]| list.binary_search(prefix).is_ok();
    (if has(deny) { DENIED } else { 0 }) | (if has(allow) { ALLOWED } else { 0 })
}
