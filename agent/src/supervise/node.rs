//! What the tasks of all domains share on this node.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc, time::Duration};

use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::{Pid, geteuid},
};
use tidegate_model::{Domain, DomainId, DomainName};
use tokio::sync::{Mutex, watch};

use crate::{
    cgroup::Cgroups,
    net::{address::LocalAddresses, link::Links},
    state::State,
};

use super::init_link::InitLink;

/// Most shards of a worker: more than any node has cores for one domain, and few enough for one table of sockets.
const MAX_SHARDS: u16 = 128;

/// What the tasks of all domains share.
pub(super) struct Node {
    /// The agent's state.
    pub(super) state: Rc<State>,
    /// Line to init.
    pub(super) init: InitLink,
    /// Control groups.
    pub(super) cgroups: Cgroups,
    /// Frontend addresses; `None` without the right to add any.
    pub(super) addresses: Mutex<Option<LocalAddresses>>,
    /// Whether frontend addresses are made local by routes of this agent's.
    pub(super) is_routing: bool,
    /// NICs.
    pub(super) links: RefCell<Links>,
    /// Whether every domain of the start was heard, see [`Self::heard`].
    pub(super) is_settled: watch::Sender<bool>,
    unheard: RefCell<BTreeSet<DomainName>>,
    cores: Vec<u16>,
}

/// How long workers may take to finish their connections, at a removed domain, a replaced worker and an orderly stop.
pub const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// Parts of a [`Node`].
pub(super) struct NodeParts {
    pub(super) state: Rc<State>,
    pub(super) init: InitLink,
    pub(super) cgroups: Cgroups,
    pub(super) addresses: Option<LocalAddresses>,
    pub(super) links: Links,
}

impl Node {
    /// Puts the parts together.
    pub(super) fn new(parts: NodeParts) -> Rc<Self> {
        Rc::new(Self {
            state: parts.state,
            init: parts.init,
            cgroups: parts.cgroups,
            is_routing: parts.addresses.is_some(),
            addresses: Mutex::new(parts.addresses),
            links: RefCell::new(parts.links),
            is_settled: watch::Sender::new(false),
            unheard: RefCell::default(),
            cores: usable_cores(),
        })
    }

    /// Sets the domains that must be heard before anything of the last agent is removed.
    pub(super) fn await_domains(&self, names: BTreeSet<DomainName>) {
        *self.unheard.borrow_mut() = names;
        self.settle();
    }

    /// A domain has said what it wants, or is gone.
    pub(super) fn heard(&self, name: &DomainName) {
        if self.unheard.borrow_mut().remove(name) {
            self.settle();
        }
    }

    fn settle(&self) {
        if self.unheard.borrow().is_empty() && !*self.is_settled.borrow() {
            if let Some(kernel) = self.state.kernel.borrow_mut().kernel() {
                kernel.release();
            }
            self.is_settled.send_replace(true);
        }
    }

    /// User and group id of a domain's workers; `None` when this process may not change ids.
    pub(super) fn worker_id(&self, id: DomainId) -> Option<u32> {
        geteuid().is_root().then(|| self.state.options.worker_uid_base.saturating_add(id.0))
    }

    /// Number of shards of a domain's worker.
    pub(super) fn shards(&self, domain: &Domain) -> u16 {
        let cores = u16::try_from(self.cores.len()).unwrap_or(MAX_SHARDS).max(1);
        let by_limit = domain
            .limits
            .cpu_millis
            .map_or(cores, |millis| u16::try_from(millis.div_ceil(1000)).unwrap_or(cores).min(cores));
        domain.shards.unwrap_or(by_limit).clamp(1, MAX_SHARDS)
    }

    /// Cores of a domain's shards. Domains begin at different cores, so that small ones do not all share the first.
    pub(super) fn cores(&self, id: DomainId, shards: u16) -> Vec<u16> {
        let first = id.0.saturating_sub(1) as usize;
        self.cores.iter().cycle().skip(first % self.cores.len().max(1)).take(shards.into()).copied().collect()
    }
}

/// Cores that this process may run on.
fn usable_cores() -> Vec<u16> {
    let Ok(set) = sched_getaffinity(Pid::from_raw(0)) else { return Vec::new() };
    (0..CpuSet::count())
        .filter(|core| set.is_set(*core).unwrap_or(false))
        .filter_map(|core| u16::try_from(core).ok())
        .collect()
}
