//! Reading counters and how full the maps are.

use tidegate_abi::{
    Hook, Reason,
    map::{self, SampleClass, counter_index, name},
};
use tidegate_model::DomainId;

use crate::{Kernel, KernelError, sources::SourceUse};

/// Verdicts of one domain, hook and reason, summed over the CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterRow {
    /// Domain; 0 is none (what was not for a frontend).
    pub domain: DomainId,
    /// Where the verdict was made.
    pub hook: Hook,
    /// Why it is what it is.
    pub reason: Reason,
    /// Packets (`admit`), connections and datagrams (`steer`), dialled addresses (`guard`).
    pub packets: u64,
    /// Bytes of the frames; 0 at hooks that see none.
    pub bytes: u64,
}

/// Verdicts that were counted but not sampled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SampleLosses {
    /// The budget of their class was used up.
    pub over_budget: u64,
    /// The ring buffer was full.
    pub lost: u64,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// The map.
    pub map: &'static str,
    /// Elements in it.
    pub entries: u64,
    /// Elements that it can hold.
    pub capacity: u64,
}

impl Kernel {
    /// Every counter that is not zero.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn counters(&self) -> Result<Vec<CounterRow>, KernelError> {
        let mut rows = Vec::new();
        let domains = std::iter::once(DomainId(0)).chain(self.domains()?);
        for domain in domains {
            for hook in Hook::ALL {
                for reason in Reason::ALL {
                    let counter = self.tables.counter(counter_index(domain.0, hook, reason))?;
                    if counter.packets > 0 {
                        rows.push(CounterRow { domain, hook, reason, packets: counter.packets, bytes: counter.bytes });
                    }
                }
            }
        }
        Ok(rows)
    }

    /// What was not sampled, since the maps were made.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn sample_losses(&self) -> Result<SampleLosses, KernelError> {
        let mut losses = SampleLosses::default();
        for class in [SampleClass::Denial, SampleClass::Admission] {
            for state in self.tables.sample_states(class as u32)? {
                losses.over_budget += state.over_budget;
                losses.lost += state.lost;
            }
        }
        Ok(losses)
    }

    /// How full the maps are that can fill up.
    pub fn map_fill(&self) -> Vec<MapFill> {
        let applied = &self.applied;
        let fill =
            |map, entries: usize, capacity: u32| MapFill { map, entries: entries as u64, capacity: capacity.into() };
        vec![
            fill(name::ADDRESSES, applied.addresses.len(), map::MAX_ADDRESSES),
            fill(name::FRONTENDS, applied.frontends.len(), map::MAX_FRONTENDS),
            fill(name::INTERFACES, applied.interfaces.len(), map::MAX_INTERFACES),
            fill(name::ADMITTING, applied.admitting.len(), map::MAX_ADMITTING),
            fill(name::DOMAINS, applied.policies.len(), map::MAX_DOMAINS),
            fill(name::DIALLED, applied.dialled.len(), map::MAX_DIALLED),
            self.connections.fill(),
        ]
    }

    /// Number of tables of sources in the kernel: up to two for each domain with lists.
    pub fn source_tables(&self) -> usize {
        self.sources.count()
    }

    /// What the source lists of each domain take, of those that this agent has applied.
    pub fn source_use(&self) -> Vec<SourceUse> {
        self.sources.usage(self.applied.policies.iter().map(|(domain, policy)| (*domain, policy.sources)))
    }
}
