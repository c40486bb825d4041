//! The pure decision over plain tables: what the loaded programs are compared with.

use std::sync::atomic::AtomicU64;

use tidegate_abi::{
    Address, AddressOwner, DialledKey, FrontendKey, InterfaceKey, Policy, Reason, SourceKey, Transport,
    address::{from_ip, to_ip},
    sources::{ALLOWED, DENIED},
};
use tidegate_kernel::Desired;
use tidegate_model::{self as model, DomainId, SourceList};
use tidegate_programs::{
    decide::{Judged, Tables, judge_packet},
    rates::{Buckets, SharedDomain, SharedSet},
};

/// Tables made from a desired state by the obvious way: scans, no maps. A table of sources has its domain's number.
pub(crate) struct Mirror<'a> {
    desired: &'a Desired,
    owners: Vec<(Address, AddressOwner)>,
    frontends: Vec<(FrontendKey, u32)>,
    policies: Vec<(u32, Policy)>,
}

impl<'a> Mirror<'a> {
    pub(crate) fn new(desired: &'a Desired) -> Self {
        let (mut owners, mut frontends, mut policies) = (Vec::new(), Vec::new(), Vec::new());
        for (domain, wanted) in &desired.domains {
            for addr in &wanted.frontends.exclusive {
                owners.push((from_ip(*addr), AddressOwner { domain: domain.0, flags: AddressOwner::EXCLUSIVE }));
            }
            for key in &wanted.frontends.keys {
                let transport = match key.transport {
                    model::Transport::Tcp => Transport::Tcp,
                    model::Transport::Udp => Transport::Udp,
                };
                let key = FrontendKey { addr: from_ip(key.addr), port: key.port, transport: transport as u8, pad: 0 };
                frontends.push((key, domain.0));
                owners.push((key.addr, AddressOwner::default()));
            }
            let flags = if wanted.admission.allow.is_some() { Policy::CLOSED } else { 0 };
            policies.push((domain.0, Policy { sources: domain.0, flags, ..Policy::default() }));
        }
        Self { desired, owners, frontends, policies }
    }

    /// The verdict on a frame.
    pub(crate) fn judge(&self, frame: &[u8], ifindex: u32) -> (DomainId, Reason) {
        let mut judged = Judged::default();
        judge_packet(&frame, ifindex, self, &mut judged);
        (DomainId(judged.verdict.domain), judged.verdict.reason)
    }
}

/// No bed of random frames has rates: what buckets hold is the matter of tests of their own.
impl Buckets for Mirror<'_> {
    fn now(&self) -> u64 {
        unreachable!("asked for without a rate")
    }

    fn find_domain_rates(&self, _domain: u32) -> Option<&SharedDomain> {
        None
    }

    fn find_rate_set(&self, _domain: u32, _set: u32) -> Option<&SharedSet> {
        None
    }

    fn is_known(&self, _domain: u32, _source: &Address) -> bool {
        false
    }

    fn note_overflow(&self, _domain: u32) {}

    fn load(&self, _word: &AtomicU64) -> u64 {
        0
    }

    fn replace(&self, _word: &AtomicU64, _current: u64, _new: u64) -> bool {
        false
    }
}

impl Tables for Mirror<'_> {
    fn find_owner(&self, addr: &Address) -> Option<&AddressOwner> {
        self.owners.iter().find(|(owned, _)| owned == addr).map(|(_, owner)| owner)
    }

    fn find_frontend(&self, key: &FrontendKey) -> Option<&u32> {
        self.frontends.iter().find(|(frontend, _)| frontend == key).map(|(_, domain)| domain)
    }

    fn has_interface(&self, key: &InterfaceKey) -> bool {
        self.desired.domains[&DomainId(key.domain)].interfaces.iter().any(|interface| {
            (interface.ifindex, interface.vlan, interface.inner_vlan) == (key.ifindex, key.vlan, key.inner_vlan)
        })
    }

    fn find_policy(&self, domain: u32) -> Option<&Policy> {
        self.policies.iter().find(|(id, _)| *id == domain).map(|(_, policy)| policy)
    }

    fn find_source(&self, sources: u32, addr: &Address) -> u32 {
        let admission = &self.desired.domains[&DomainId(sources)].admission;
        let has = |list: &SourceList| list.iter().any(|prefix| prefix.contains(&to_ip(addr)));
        let is_allowed = admission.allow.as_ref().is_some_and(has);
        (if has(&admission.deny) { DENIED } else { 0 }) | (if is_allowed { ALLOWED } else { 0 })
    }

    fn has_dialled(&self, _key: &DialledKey) -> bool {
        false
    }

    fn count_open(&self, _source: &SourceKey) -> u32 {
        unreachable!("asked for without a limit")
    }

    fn count_open_total(&self, _domain: u32) -> u32 {
        unreachable!("asked for without a limit")
    }
}
