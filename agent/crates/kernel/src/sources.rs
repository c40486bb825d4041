//! Source lists: filled beside the one in force, then taken into force by one write, then the old one is removed.
//!
//! A program sees the whole old list or the whole new one: it reads a domain's policy once, and the old list's elements go
//! only after a grace period. An agent that dies in between leaves a list that no policy names; the next one removes it.

use std::collections::BTreeMap;

use tidegate_abi::{
    Policy,
    map::{MAX_SOURCES, name},
};

use crate::{
    desired::AppliedReport,
    entries::{Entries, Lists, Prefix},
    tables::{Tables, explain_write},
};

/// A list that does not fit: nothing of it is left in the maps.
pub(crate) struct TooLong(pub(crate) String);

/// Policy for a domain's lists. Lists that are in force unchanged keep their id; others are filled under a new one.
pub(crate) fn fill_lists(
    tables: &mut Tables,
    applied: &mut Entries,
    current: Option<Policy>,
    lists: &Lists,
    report: &mut AppliedReport,
) -> Result<Policy, TooLong> {
    let current = current.unwrap_or_default();
    let deny = if lists.deny.is_empty() { 0 } else { fill_list(tables, applied, current.deny, &lists.deny, report)? };
    let allow = match &lists.allow {
        None => 0,
        Some(prefixes) => fill_list(tables, applied, current.allow, prefixes, report)?,
    };
    Ok(Policy { deny, allow, ..Policy::default() })
}

fn fill_list(
    tables: &mut Tables,
    applied: &mut Entries,
    current: u32,
    prefixes: &[Prefix],
    report: &mut AppliedReport,
) -> Result<u32, TooLong> {
    if current != 0 && applied.lists.get(&current).map_or(&[][..], Vec::as_slice) == prefixes {
        return Ok(current);
    }
    let list = find_free_id(&applied.lists, &applied.policies);
    for (index, &prefix) in prefixes.iter().enumerate() {
        if let Err(error) = tables.put_source(list, prefix) {
            for &prefix in &prefixes[..index] {
                let _ = tables.remove_source(list, prefix);
            }
            let map = if matches!(prefix, Prefix::V4(..)) { name::SOURCES_V4 } else { name::SOURCES_V6 };
            return Err(TooLong(explain_write(map, MAX_SOURCES, &error)));
        }
    }
    report.written += prefixes.len();
    applied.lists.insert(list, prefixes.to_vec());
    Ok(list)
}

fn find_free_id(lists: &BTreeMap<u32, Vec<Prefix>>, policies: &BTreeMap<u32, Policy>) -> u32 {
    let is_used =
        |id: u32| lists.contains_key(&id) || policies.values().any(|policy| policy.deny == id || policy.allow == id);
    let last = lists.keys().copied().chain(policies.values().flat_map(|policy| [policy.deny, policy.allow])).max();
    let mut id = last.unwrap_or(0);
    loop {
        id = id.wrapping_add(1).max(1);
        if !is_used(id) {
            return id;
        }
    }
}

/// Removes the lists that no policy names.
pub(crate) fn remove_unused(tables: &mut Tables, applied: &mut Entries, report: &mut AppliedReport) {
    let policies = &applied.policies;
    let is_used = |id: u32| policies.values().any(|policy| policy.deny == id || policy.allow == id);
    let unused: Vec<u32> = applied.lists.keys().copied().filter(|&id| !is_used(id)).collect();
    if unused.is_empty() {
        return;
    }
    // The policies that named them were replaced just before: wait for the programs that still read those.
    tables.settle();
    for list in unused {
        for prefix in applied.lists.remove(&list).unwrap_or_default() {
            // An element that cannot be removed is of a list that nobody names; reading back finds it again.
            if tables.remove_source(list, prefix).is_ok() {
                report.removed += 1;
            }
        }
    }
}
