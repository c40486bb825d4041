//! Source lists in the kernel: each domain has two tables, one in force and one that the next change is written to.
//!
//! A table that programs may read is never written. A change goes to the other one, which is as many changes behind as
//! there were since it was in force, so it costs what differs; then the domain's policy names that one. The policy is one
//! element, so a packet meets both old lists or both new ones. Before a table is written again a grace period has passed since the
//! policy named it. A new agent knows of neither table what it holds: it builds the one that is not in force anew and swaps.

mod arena;
mod exact;
mod lists;
mod long;
mod ranges;
mod sys;
mod table;
mod v4;
mod v6;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::maps::Map;
use tidegate_abi::{
    SourceLine,
    map::{MAX_SOURCES, name, sources_slot},
    sources::MAX_LINES,
};
use tidegate_model::DomainId;

pub(crate) use lists::Lists;

use crate::{KernelError, maps::Maps, tables::Tables};
use sys::Lines;
use table::{Plan, Table};

/// Most prefixes of one list of a domain.
pub const MAX_PREFIXES: usize = 1_000_000;
const LINE_BYTES: u64 = size_of::<SourceLine>() as u64;

const MIB: u64 = 1 << 20;

/// Why lists were not taken; those before stay in force.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(
        "{list} list has {count} prefixes, the limit is {MAX_PREFIXES}: merge neighbouring prefixes or shorten the list"
    )]
    TooLong { list: &'static str, count: usize },
    #[error("deny and allow list take a table of {} MiB, the limit is {} MiB: use fewer different IPv6 prefix lengths, or fewer prefixes",
        .lines * LINE_BYTES / MIB, u64::from(MAX_LINES) * LINE_BYTES / MIB)]
    TooLarge { lines: u64 },
    #[error("the kernel gives no table of {} KiB for deny and allow list: {source} (free memory, raise the agent's memory limit, or shorten the list)",
        .lines * LINE_BYTES / 1024)]
    Memory { lines: u64, source: io::Error },
    #[error("BPF map {}: {_0}", name::SOURCES)]
    Map(#[source] io::Error),
}

/// What the source lists of one domain take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceUse {
    /// The domain.
    pub domain: DomainId,
    /// Kernel memory of its tables.
    pub bytes: u64,
    /// Prefixes in force: list (`deny`, `allow`), family (`ipv4`, `ipv6`), number.
    pub prefixes: [(&'static str, &'static str, usize); 4],
}

/// A table and what is known of it.
struct Side {
    lines: Lines,
    table: Table,
}

/// The tables of all domains.
pub(crate) struct Sources {
    map: OwnedFd,
    /// Elements that have a table.
    occupied: BTreeSet<u32>,
    /// Tables by element, of those that this agent has built.
    sides: BTreeMap<u32, Side>,
}

impl Sources {
    /// Takes the map; looks which tables an earlier agent has left.
    pub(crate) fn take(maps: &mut Maps) -> Result<Self, KernelError> {
        let map = match maps.take_map(name::SOURCES) {
            Some(Map::ArrayOfMaps(map)) => map,
            _ => return Err(KernelError::Object { kind: "map", name: name::SOURCES }),
        };
        let file = |source| KernelError::File { path: name::SOURCES.into(), source };
        let map = map.fd().as_fd().try_clone_to_owned().map_err(file)?;
        let mut occupied = BTreeSet::new();
        for slot in 0..MAX_SOURCES {
            if sys::has_table(map.as_fd(), slot).map_err(file)? {
                occupied.insert(slot);
            }
        }
        Ok(Self { map, occupied, sides: BTreeMap::new() })
    }

    /// Writes lists to the table of a domain that is not `current` (0 is none); returns its element. Nothing changes for
    /// packets until a policy names it.
    pub(crate) fn prepare(
        &mut self,
        domain: u32,
        current: u32,
        lists: &Lists,
        tables: &mut Tables,
    ) -> Result<u32, Refusal> {
        for (list, prefixes) in [("deny", &lists.deny), ("allow", &lists.allow)] {
            if prefixes.len() > MAX_PREFIXES {
                return Err(Refusal::TooLong { list, count: prefixes.len() });
            }
        }
        if lists.is_empty() {
            return Ok(0);
        }
        if self.sides.get(&current).is_some_and(|side| side.table.lists().are_same(lists)) {
            return Ok(current);
        }
        let slot = sources_slot(domain, current == sources_slot(domain, false));
        // Programs that read this table began before the policy that names the other one.
        tables.settle();
        if let Some(side) = self.sides.get_mut(&slot)
            && side.table.update(lists, side.lines.as_mut()).is_ok()
        {
            return Ok(slot);
        }
        // The half-changed table is nobody's; its memory may be needed for the new one.
        self.sides.remove(&slot);
        let (side, map) = build(domain, lists)?;
        sys::set_table(self.map.as_fd(), slot, map.as_fd()).map_err(Refusal::Map)?;
        self.occupied.insert(slot);
        self.sides.insert(slot, side);
        Ok(slot)
    }

    /// Frees the tables of domains whose policies (domain, element) name none, and those that an earlier agent has left.
    pub(crate) fn remove_unused(&mut self, policies: &BTreeMap<u32, u32>, tables: &mut Tables) -> usize {
        let is_used = |slot: u32| match policies.get(&(slot / 2)) {
            None | Some(0) => false,
            Some(&named) => named == slot || self.sides.contains_key(&slot),
        };
        let unused: Vec<u32> = self.occupied.iter().copied().filter(|&slot| !is_used(slot)).collect();
        if unused.is_empty() {
            return 0;
        }
        tables.settle();
        for slot in &unused {
            self.sides.remove(slot);
            // One that stays is found again by the next change or the next agent.
            if sys::clear_table(self.map.as_fd(), *slot).is_ok() {
                self.occupied.remove(slot);
            }
        }
        unused.len()
    }

    /// Number of tables.
    pub(crate) fn count(&self) -> usize {
        self.occupied.len()
    }

    /// What domains take whose policies (domain, element) name a table that this agent has built.
    pub(crate) fn usage(&self, policies: impl Iterator<Item = (u32, u32)>) -> Vec<SourceUse> {
        let usage = policies.filter_map(|(domain, slot)| {
            let Lists { deny, allow, .. } = self.sides.get(&slot)?.table.lists();
            let sides = [false, true].into_iter().filter_map(|side| self.sides.get(&sources_slot(domain, side)));
            Some(SourceUse {
                domain: DomainId(domain),
                bytes: sides.map(|side| side.lines.as_ref().len() as u64 * LINE_BYTES).sum(),
                prefixes: [
                    ("deny", "ipv4", deny.v4().len()),
                    ("deny", "ipv6", deny.v6().len()),
                    ("allow", "ipv4", allow.v4().len()),
                    ("allow", "ipv6", allow.v6().len()),
                ],
            })
        });
        usage.collect()
    }
}

/// A new table of a domain.
fn build(domain: u32, lists: &Lists) -> Result<(Side, OwnedFd), Refusal> {
    let mut plan = Plan::of(lists);
    for tries in 1.. {
        let count = plan.lines();
        if !plan.fits() {
            return Err(Refusal::TooLarge { lines: count });
        }
        let memory = |source| Refusal::Memory { lines: count, source };
        let map = sys::create_table(domain, count as u32).map_err(memory)?;
        let mut lines = Lines::map(map.as_fd(), count as usize).map_err(memory)?;
        match Table::build(lists, &plan, lines.as_mut()) {
            Ok(table) => return Ok((Side { lines, table }, map)),
            Err(arena::Full) => plan = plan.grown(tries).ok_or(Refusal::TooLarge { lines: count })?,
        }
    }
    unreachable!("the loop has no end of its own")
}

/// A table in an array of one: for the bench.
#[cfg(feature = "trial")]
pub(crate) struct TrialTable(Side);

#[cfg(feature = "trial")]
impl TrialTable {
    /// Builds a table into the first element of a map.
    pub(crate) fn build(lists: &Lists, map: std::os::fd::BorrowedFd<'_>) -> Result<Self, Refusal> {
        let (side, table) = build(0, lists)?;
        sys::set_table(map, 0, table.as_fd()).map_err(Refusal::Map)?;
        Ok(Self(side))
    }

    /// Its memory.
    pub(crate) fn bytes(&self) -> u64 {
        self.0.lines.as_ref().len() as u64 * LINE_BYTES
    }
}
