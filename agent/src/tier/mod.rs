//! Driver of the kernel tier: what the domains want of the kernel, applied so that an agent that takes over never removes
//! what it has not yet learned of.
//!
//! All calls are short system calls without waiting, so supervision of one domain does not hold up another.

mod open;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::BorrowedFd,
    path::Path,
    sync::Arc,
};

use tidegate_kernel::{
    ApplyFailure, AttachMode, ConnectionRow, CounterRow, Desired, Interface, Kernel, KernelError, MapFill, RateFill,
    RateState, SampleLosses, SourceUse, Verdict,
};
use tidegate_model::{Dial, Domain, DomainId, FrontendKey, domain::Frontends};
use tracing::{debug, info, warn};

use crate::{
    net::link::Attachment,
    state::{Attach, InterfaceState},
};

pub use open::{Opened, Refusal, open};

/// Subject of a failure that nothing was applied for.
const EVERYTHING: &str = "kernel";

/// The kernel tier, or the lack of it.
pub enum Tier {
    /// `--kernel=off`, or degraded to it.
    Off,
    /// Packets are judged in the kernel.
    On(Box<KernelTier>),
}

/// The kernel tier when there is one.
pub struct KernelTier {
    kernel: Kernel,
    desired: Desired,
    sources: BTreeMap<DomainId, Arc<Domain>>,
    /// Whether nothing is applied yet, because domains that an earlier agent has left may not be in `desired` so far and
    /// would be removed.
    is_held: bool,
    failures: BTreeMap<DomainId, Vec<ApplyFailure>>,
    attached: BTreeMap<u32, Result<AttachMode, String>>,
}

/// What a domain wants of the kernel, beside the addresses that it dials.
pub struct DomainUpdate<'a> {
    /// The domain.
    pub domain: &'a Arc<Domain>,
    /// Its interfaces by name, with their place when they exist.
    pub interfaces: &'a [(String, Option<Attachment>)],
    /// What is to be reachable.
    pub frontends: &'a Frontends,
}

/// What became of a [`DomainUpdate`].
#[derive(Debug, Default)]
pub struct UpdateOutcome {
    /// Whether it waits for domains that are not heard of yet; to be repeated then.
    pub is_deferred: bool,
    /// What could not be applied.
    pub failures: Vec<String>,
    /// Frontends that are among it.
    pub unreachable: BTreeMap<FrontendKey, String>,
    /// Addresses of the domain alone that could not be put under the kernel's judgement.
    pub unjudged: BTreeSet<IpAddr>,
    /// The interfaces.
    pub interfaces: Vec<InterfaceState>,
}

impl Tier {
    /// Whether packets are judged in the kernel.
    pub fn is_on(&self) -> bool {
        matches!(self, Self::On(_))
    }

    /// The kernel tier when there is one.
    pub fn kernel(&mut self) -> Option<&mut KernelTier> {
        match self {
            Self::On(kernel) => Some(kernel),
            Self::Off => None,
        }
    }
}

impl KernelTier {
    fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            desired: Desired::default(),
            sources: BTreeMap::new(),
            is_held: true,
            failures: BTreeMap::new(),
            attached: BTreeMap::new(),
        }
    }

    /// Every domain has said what it wants: applies it, and from now on each update at once.
    pub fn release(&mut self) {
        self.is_held = false;
        self.apply();
        self.attach();
    }

    /// A domain is going to be served: the guard and the sockets that are set for it now stay when others are applied before
    /// it has said what it wants.
    pub fn expect(&mut self, domain: DomainId) {
        self.desired.domains.entry(domain).or_default();
    }

    /// Puts the guard on a worker's cgroup.
    ///
    /// # Errors
    /// The kernel's.
    pub fn watch_cgroup(&mut self, domain: DomainId, cgroup: &Path) -> Result<(), KernelError> {
        self.kernel.watch_cgroup(domain, cgroup)
    }

    /// Takes the guard off a cgroup that is no more used.
    pub fn unwatch_cgroup(&mut self, cgroup: &Path) {
        if let Err(error) = self.kernel.unwatch_cgroup(cgroup) {
            warn!("guard of {}: {error}", cgroup.display());
        }
    }

    /// Sets the sockets that `steer` gives the domain's new connections to; without any they are refused.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_sockets(
        &mut self,
        domain: DomainId,
        v4: Option<BorrowedFd<'_>>,
        v6: Option<BorrowedFd<'_>>,
    ) -> Result<(), KernelError> {
        self.kernel.set_sockets(domain, v4, v6)
    }

    /// Changes which addresses the domain's workers may dial. Returns what failed.
    pub fn set_dialled(&mut self, domain: DomainId, added: &[Dial], removed: &[Dial]) -> Vec<String> {
        let desired = &mut self.desired.domains.entry(domain).or_default().dialled;
        desired.extend(added);
        for dial in removed {
            desired.remove(dial);
        }
        self.kernel.set_dialled(domain, added, removed).iter().map(ToString::to_string).collect()
    }

    /// Brings the kernel to what a domain wants.
    pub fn update(&mut self, id: DomainId, update: &DomainUpdate<'_>) -> UpdateOutcome {
        let desired = self.desired.domains.entry(id).or_default();
        let present = update.interfaces.iter().filter_map(|(_, attachment)| *attachment);
        desired.interfaces = present.map(interface).collect();
        desired.frontends = update.frontends.clone();
        // Lists of a million prefixes are copied when they change, not when an endpoint does.
        if !self.sources.get(&id).is_some_and(|source| Arc::ptr_eq(source, update.domain)) {
            desired.admission = update.domain.admission.clone();
            self.sources.insert(id, update.domain.clone());
        }
        if !self.is_held {
            self.apply();
        }
        self.attach();
        let interfaces = update.interfaces.iter().map(|(name, attachment)| self.interface_state(name, *attachment));
        let interfaces: Vec<InterfaceState> = interfaces.collect();
        let failures = self.failures.get(&id).map(Vec::as_slice).unwrap_or_default();
        // A NIC that refuses is a failure like others: it is asked again until it does not.
        let refusals = interfaces.iter().filter_map(|interface| match &interface.attach {
            Attach::Failed(error) => Some(error.clone()),
            _ => None,
        });
        UpdateOutcome {
            is_deferred: self.is_held,
            failures: failures.iter().map(ToString::to_string).chain(refusals).collect(),
            interfaces,
            unreachable: find_unreachable(failures, update.frontends),
            unjudged: find_unjudged(failures, update.frontends),
        }
    }

    /// Removes everything of a domain.
    pub fn remove(&mut self, id: DomainId) {
        self.desired.domains.remove(&id);
        self.sources.remove(&id);
        self.failures.remove(&id);
        if let Err(error) = self.kernel.remove_domain(id) {
            warn!(domain = id.0, "cannot remove the domain from the kernel: {error}");
        }
        self.attach();
    }

    /// Forgets NICs that are gone.
    pub fn sweep_interfaces(&mut self) {
        let gone = self.kernel.sweep_interfaces();
        for ifindex in gone.inspect_err(|error| warn!("interfaces that are gone: {error}")).unwrap_or_default() {
            info!(ifindex, "interface is gone");
            self.attached.remove(&ifindex);
        }
    }

    /// Puts back what somebody else has taken away. Returns what cannot be put back, and whether a NIC is among it: then the
    /// domains are to ask for theirs again.
    pub fn keep_up(&mut self) -> (Vec<String>, bool) {
        let upkeep = self.kernel.keep_up();
        upkeep.repaired.iter().for_each(|repaired| warn!("put back: {repaired}"));
        let attached = self.kernel.attached();
        let count = self.attached.len();
        self.attached.retain(|ifindex, outcome| outcome.is_err() || attached.contains_key(ifindex));
        (upkeep.problems, self.attached.len() < count)
    }

    /// Every counter of the kernel tier that is not zero.
    ///
    /// # Errors
    /// The kernel's.
    pub fn counters(&self) -> Result<Vec<CounterRow>, KernelError> {
        self.kernel.counters()
    }

    /// How full the tables of buckets are, one for each domain that limits each source.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rate_fill(&self) -> Result<Vec<RateFill>, KernelError> {
        self.kernel.rate_fill()
    }

    /// What the buckets of a domain hold now for a source.
    ///
    /// # Errors
    /// The kernel's.
    pub fn rate_state(&self, domain: DomainId, source: IpAddr) -> Result<RateState, KernelError> {
        self.kernel.rate_state(domain, source)
    }

    /// Connections of every domain.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connections(&self) -> Result<Vec<ConnectionRow>, KernelError> {
        self.kernel.connections()
    }

    /// Open connections of the source that an address belongs to, and of the domain.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open_connections(&self, domain: DomainId, source: IpAddr) -> Result<(u64, u64), KernelError> {
        self.kernel.open_connections(domain, source)
    }

    /// Samples that did not get through.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sample_losses(&self) -> Result<SampleLosses, KernelError> {
        self.kernel.sample_losses()
    }

    /// What the source lists of each domain take.
    pub fn source_use(&self) -> Vec<SourceUse> {
        self.kernel.source_use()
    }

    /// How full the maps are.
    pub fn map_fill(&self) -> Vec<MapFill> {
        self.kernel.map_fill()
    }

    /// The kernel's own verdict on a packet that comes in on a NIC; nothing is counted.
    ///
    /// # Errors
    /// The kernel's.
    pub fn explain(&self, packet: &[u8], ifindex: u32) -> Result<Verdict, KernelError> {
        self.kernel.explain(packet, ifindex)
    }

    fn apply(&mut self) {
        let failures = match self.kernel.apply(&self.desired) {
            Ok(report) => report.failures,
            Err(error) => {
                let ids = self.desired.domains.keys();
                ids.map(|id| ApplyFailure { domain: *id, subject: EVERYTHING.into(), error: error.to_string() })
                    .collect()
            }
        };
        self.failures.clear();
        for failure in failures {
            self.failures.entry(failure.domain).or_default().push(failure);
        }
    }

    /// Attaches `admit` to every NIC that a domain names, and detaches it from those that none does any more.
    fn attach(&mut self) {
        let wanted: BTreeSet<u32> =
            self.desired.domains.values().flat_map(|domain| &domain.interfaces).map(|nic| nic.ifindex).collect();
        for ifindex in &wanted {
            // A NIC that refused is asked again: its driver's settings may have changed.
            if !matches!(self.attached.get(ifindex), Some(Ok(_))) {
                let attached = self.kernel.attach_interface(*ifindex).map_err(|error| error.to_string());
                match &attached {
                    Ok(mode) => info!(ifindex, ?mode, "admit attached"),
                    // Said by the domains that want it, once.
                    Err(error) => debug!(ifindex, "cannot attach admit: {error}"),
                }
                self.attached.insert(*ifindex, attached);
            }
        }
        if self.is_held {
            return;
        }
        let unwanted: BTreeSet<u32> =
            self.kernel.attached().keys().copied().filter(|ifindex| !wanted.contains(ifindex)).collect();
        for ifindex in unwanted {
            match self.kernel.detach_interface(ifindex) {
                Ok(()) => info!(ifindex, "admit detached"),
                Err(error) => warn!(ifindex, "cannot detach admit: {error}"),
            }
            self.attached.remove(&ifindex);
        }
        self.attached.retain(|ifindex, _| wanted.contains(ifindex));
    }

    fn interface_state(&self, name: &str, attachment: Option<Attachment>) -> InterfaceState {
        let attach = match attachment.and_then(|attachment| self.attached.get(&attachment.ifindex)) {
            None => Attach::Missing,
            Some(Ok(AttachMode::Native)) => Attach::Native,
            Some(Ok(AttachMode::Generic)) => Attach::Generic,
            Some(Err(error)) => Attach::Failed(error.clone()),
        };
        InterfaceState {
            name: name.to_owned(),
            ifindex: attachment.map(|attachment| attachment.ifindex),
            vlan: attachment.and_then(|attachment| attachment.vlan),
            attach,
        }
    }
}

/// Frontends that a failure is about, by themselves or by their address.
fn find_unreachable(failures: &[ApplyFailure], frontends: &Frontends) -> BTreeMap<FrontendKey, String> {
    let mut unreachable = BTreeMap::new();
    for failure in failures {
        for key in &frontends.keys {
            if failure.subject == format!("frontend {key}") || failure.subject == format!("address {}", key.addr) {
                unreachable.insert(*key, failure.error.clone());
            }
        }
    }
    unreachable
}

/// Addresses of the domain alone that a failure is about.
fn find_unjudged(failures: &[ApplyFailure], frontends: &Frontends) -> BTreeSet<IpAddr> {
    let is_failed = |address: &&IpAddr| {
        let subject = format!("address {address}");
        failures.iter().any(|failure| failure.subject == subject || failure.subject == EVERYTHING)
    };
    frontends.exclusive.iter().filter(is_failed).copied().collect()
}

fn interface(attachment: Attachment) -> Interface {
    match attachment.vlan {
        Some(vlan) => Interface::tagged(attachment.ifindex, vlan, attachment.ingress),
        None => Interface::untagged(attachment.ifindex),
    }
}
