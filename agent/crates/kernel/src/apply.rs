//! From what is applied to what is desired: only what differs is written, in an order that misjudges no packet.
//!
//! Removals of frontends come first (stop new work), then policies and NICs, then addresses, then new frontends; what only
//! stood behind removed frontends goes last. Between two steps a packet meets either the old or the new rule for it, or is
//! refused: never another domain's rule, never an open door. One element that cannot be written is reported by name and does
//! not stop the rest.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    os::fd::BorrowedFd,
};

use aya::maps::MapError;
use tidegate_abi::{
    Hook, Policy, Reason,
    address::to_ip,
    map::{self, counter_index, name, socket_index},
};
use tidegate_model::{Dial, DomainId};

use crate::{
    Kernel, KernelError,
    desired::{AppliedReport, ApplyFailure, Desired},
    entries::{Claims, decide_claims, dialled_key, interface_keys},
    limits::limits_of,
    sources::Lists,
    tables::{explain_write, map_error},
};

/// What the maps shall hold.
#[derive(Default)]
struct Target {
    claims: Claims,
    interfaces: BTreeSet<tidegate_abi::InterfaceKey>,
    /// Lists by domain; `None` leaves them as they are.
    lists: BTreeMap<u32, Option<Lists>>,
    /// Policies less their lists, by domain.
    limits: BTreeMap<u32, Policy>,
    /// VLAN devices by the NIC that they are on.
    devices: BTreeSet<(u32, u32)>,
}

fn fail(report: &mut AppliedReport, domain: u32, subject: String, error: String) {
    report.failures.push(ApplyFailure { domain: DomainId(domain), subject, error });
}

impl Kernel {
    /// Leads from what is applied to what is desired. Domains that are not in `desired` are removed, their sockets and guards
    /// too.
    ///
    /// # Errors
    /// Only when a domain's number is out of range or a link cannot be moved to new programs; nothing is changed in the first
    /// case. Everything else that fails is in the report.
    pub fn apply(&mut self, desired: &Desired) -> Result<AppliedReport, KernelError> {
        if let Some(domain) = desired.domains.keys().find(|domain| domain.0 == 0 || domain.0 >= map::MAX_DOMAINS) {
            return Err(KernelError::Domain(domain.0));
        }
        let mut target = Target { claims: decide_claims(desired, &self.applied), ..Target::default() };
        for (&domain, wanted) in &desired.domains {
            target.interfaces.extend(interface_keys(domain, wanted));
            let is_same = self.admissions.get(&domain.0) == Some(&wanted.admission);
            target.lists.insert(domain.0, (!is_same).then(|| Lists::of(&wanted.admission)));
            target.limits.insert(domain.0, limits_of(&wanted.admission));
            let devices = wanted.interfaces.iter().filter_map(|each| Some((each.ifindex, each.device?)));
            target.devices.extend(devices);
        }
        let mut report =
            AppliedReport { failures: std::mem::take(&mut target.claims.failures), ..AppliedReport::default() };
        let gone: Vec<DomainId> = self.domains()?.into_iter().filter(|id| !desired.domains.contains_key(id)).collect();
        self.lead_to(target, &mut report);
        self.note_admissions(desired);
        self.lead_dialled(desired, &mut report);
        for domain in gone {
            self.forget_domain(domain)?;
        }
        self.commit_programs()?;
        self.tables.begin_settling();
        Ok(report)
    }

    /// Removes everything of one domain: its frontends first, then its guard, sockets and counters.
    ///
    /// # Errors
    /// When a guard or socket cannot be removed.
    pub fn remove_domain(&mut self, domain: DomainId) -> Result<AppliedReport, KernelError> {
        let mut report = AppliedReport::default();
        let applied = &self.applied;
        let mut target = Target { devices: self.vlan_devices.clone(), ..Target::default() };
        target.interfaces = applied.interfaces.iter().copied().filter(|key| key.domain != domain.0).collect();
        target.claims.frontends = applied
            .frontends
            .iter()
            .filter(|(_, owner)| **owner != domain.0)
            .map(|(key, owner)| (*key, *owner))
            .collect();
        let shared: BTreeSet<_> = target.claims.frontends.keys().map(|key| key.addr).collect();
        target.claims.addresses = applied
            .addresses
            .iter()
            .filter(|(addr, owner)| if owner.domain == 0 { shared.contains(*addr) } else { owner.domain != domain.0 })
            .map(|(addr, owner)| (*addr, *owner))
            .collect();
        target.lists = applied.policies.keys().filter(|id| **id != domain.0).map(|id| (*id, None)).collect();
        self.admissions.remove(&domain.0);
        self.lead_to(target, &mut report);
        let dialled: Vec<_> = self.applied.dialled.iter().copied().filter(|key| key.domain == domain.0).collect();
        for key in dialled {
            self.remove_dialled_key(key, &mut report);
        }
        self.forget_domain(domain)?;
        Ok(report)
    }

    /// Adds and removes addresses that a domain's workers may dial; costs as much as the change. Connections that are open
    /// stay open.
    pub fn set_dialled(&mut self, domain: DomainId, added: &[Dial], removed: &[Dial]) -> Vec<ApplyFailure> {
        let mut report = AppliedReport::default();
        for dial in removed.iter().filter(|dial| !added.contains(dial)) {
            self.remove_dialled_key(dialled_key(domain, dial), &mut report);
        }
        for dial in added {
            self.put_dialled_key(dialled_key(domain, dial), &mut report);
        }
        report.failures
    }

    /// Puts listening sockets, one of each domain's reuseport groups, where `steer` finds them; `None` takes one out. A new
    /// socket takes the old one's place in one step.
    ///
    /// # Errors
    /// When the domain's number is out of range or the kernel refuses a socket: it must listen already.
    pub fn set_sockets(
        &mut self,
        domain: DomainId,
        v4: Option<BorrowedFd<'_>>,
        v6: Option<BorrowedFd<'_>>,
    ) -> Result<(), KernelError> {
        if domain.0 == 0 || domain.0 >= map::MAX_DOMAINS {
            return Err(KernelError::Domain(domain.0));
        }
        for (socket, is_v6) in [(v4, false), (v6, true)] {
            let index = socket_index(domain.0, is_v6);
            let result = match socket {
                Some(socket) => self.tables.sockets().set(index, &socket, 0),
                None => match self.tables.sockets().clear_index(&index) {
                    // The map says EINVAL for an empty place (kernel/net/core/sock_map.c).
                    Err(MapError::SyscallError(error))
                        if matches!(error.io_error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT)) =>
                    {
                        Ok(())
                    }
                    result => result,
                },
            };
            result.map_err(map_error(name::SOCKETS))?;
        }
        Ok(())
    }

    /// Every domain that the maps know.
    pub(crate) fn domains(&self) -> Result<BTreeSet<DomainId>, KernelError> {
        let applied = &self.applied;
        let owners = applied.addresses.values().map(|owner| owner.domain);
        let interfaces = applied.interfaces.iter().map(|key| key.domain);
        let workers = self.tables.workers()?;
        let known = applied.policies.keys().copied().chain(applied.frontends.values().copied());
        let all = known.chain(owners).chain(interfaces).chain(workers.into_values());
        Ok(all.filter(|&domain| domain != 0).map(DomainId).collect())
    }

    fn lead_to(&mut self, target: Target, report: &mut AppliedReport) {
        self.vlan_devices = target.devices;
        self.remove_frontends(&target.claims, report);
        self.lead_policies(target.lists, &target.limits, report);
        self.put_interfaces(&target.interfaces, report);
        self.lead_admitting(report);
        self.put_addresses(&target.claims, report);
        self.put_frontends(&target.claims, report);
        self.remove_addresses(&target.claims, report);
        self.remove_interfaces(&target.interfaces, report);
        let named = self.applied.policies.iter().map(|(domain, policy)| (*domain, policy.sources)).collect();
        report.removed += self.sources.remove_unused(&named, &mut self.tables);
        if let Err(error) = self.remove_unused_rates() {
            fail(report, 0, "removed tables of rates".to_owned(), error.to_string());
        }
    }

    fn remove_frontends(&mut self, claims: &Claims, report: &mut AppliedReport) {
        let gone: Vec<_> = self
            .applied
            .frontends
            .iter()
            .filter(|(key, domain)| claims.frontends.get(key) != Some(domain))
            .map(|(key, domain)| (*key, *domain))
            .collect();
        for (key, domain) in gone {
            match self.tables.remove_frontend(key) {
                Ok(()) => {
                    self.applied.frontends.remove(&key);
                    report.removed += 1;
                }
                Err(error) => {
                    let subject = format!("removed frontend {}", frontend_name(&key));
                    fail(report, domain, subject, explain_write(name::FRONTENDS, map::MAX_FRONTENDS, &error));
                }
            }
        }
    }

    /// Remembers what was asked for where it is in force, so that a long list that did not change costs one comparison.
    fn note_admissions(&mut self, desired: &Desired) {
        self.admissions.retain(|domain, _| desired.domains.contains_key(&DomainId(*domain)));
        for (domain, wanted) in &desired.domains {
            if self.failed_policies.contains(&domain.0) {
                self.admissions.remove(&domain.0);
            } else if self.admissions.get(&domain.0) != Some(&wanted.admission) {
                self.admissions.insert(domain.0, wanted.admission.clone());
            }
        }
    }

    fn lead_policies(
        &mut self,
        lists: BTreeMap<u32, Option<Lists>>,
        limits: &BTreeMap<u32, Policy>,
        report: &mut AppliedReport,
    ) {
        let gone: Vec<u32> = self.applied.policies.keys().copied().filter(|id| !lists.contains_key(id)).collect();
        for domain in gone {
            match self.tables.remove_policy(domain) {
                Ok(()) => {
                    self.applied.policies.remove(&domain);
                    report.removed += 1;
                }
                Err(error) => {
                    let error = explain_write(name::DOMAINS, map::MAX_DOMAINS, &error);
                    fail(report, domain, "removed admission policy".to_owned(), error);
                }
            }
        }
        self.failed_policies.clear();
        for (domain, lists) in lists {
            let Some(lists) = lists else { continue };
            let current = self.applied.policies.get(&domain).copied();
            let limits = limits.get(&domain).copied().unwrap_or_default();
            if limits.per_source.is_limited()
                && let Err(error) = self.put_rates(domain)
            {
                fail(report, domain, "rate of each source".to_owned(), error.to_string());
                self.failed_policies.insert(domain);
                continue;
            }
            let before = current.unwrap_or_default();
            let (sources, closed) = match self.sources.prepare(domain, before.sources, &lists, &mut self.tables) {
                Ok(sources) => (sources, if lists.is_closed { Policy::CLOSED } else { 0 }),
                Err(refusal) => {
                    let outcome = if current.is_some() { "the lists before stay in force" } else { "nobody is let in" };
                    fail(report, domain, "source lists".to_owned(), format!("{refusal}; {outcome}"));
                    self.failed_policies.insert(domain);
                    if current.is_none() {
                        continue;
                    }
                    (before.sources, before.flags & Policy::CLOSED)
                }
            };
            let policy = Policy { sources, flags: limits.flags | closed, ..limits };
            if current == Some(policy) {
                continue;
            }
            match self.tables.put_policy(domain, policy, current.is_some()) {
                Ok(()) => {
                    self.applied.policies.insert(domain, policy);
                    report.written += 1;
                }
                Err(error) => {
                    let error = explain_write(name::DOMAINS, map::MAX_DOMAINS, &error);
                    fail(report, domain, "admission policy".to_owned(), error);
                    self.failed_policies.insert(domain);
                }
            }
        }
    }

    fn put_interfaces(&mut self, interfaces: &BTreeSet<tidegate_abi::InterfaceKey>, report: &mut AppliedReport) {
        let new: Vec<_> = interfaces.difference(&self.applied.interfaces).copied().collect();
        for key in new {
            match self.tables.put_interface(key) {
                Ok(()) => {
                    self.applied.interfaces.insert(key);
                    report.written += 1;
                }
                Err(error) => {
                    let subject = format!("interface {} VLAN {}", key.ifindex, key.vlan);
                    fail(report, key.domain, subject, explain_write(name::INTERFACES, map::MAX_INTERFACES, &error));
                }
            }
        }
    }

    fn remove_interfaces(&mut self, interfaces: &BTreeSet<tidegate_abi::InterfaceKey>, report: &mut AppliedReport) {
        let gone: Vec<_> = self.applied.interfaces.difference(interfaces).copied().collect();
        for key in gone {
            match self.tables.remove_interface(key) {
                Ok(()) => {
                    self.applied.interfaces.remove(&key);
                    report.removed += 1;
                }
                Err(error) => {
                    let subject = format!("removed interface {} VLAN {}", key.ifindex, key.vlan);
                    fail(report, key.domain, subject, explain_write(name::INTERFACES, map::MAX_INTERFACES, &error));
                }
            }
        }
    }

    /// Brings `ADMITTING` in line with where `admit` runs: attached NICs and the VLAN devices on them.
    pub(crate) fn lead_admitting(&mut self, report: &mut AppliedReport) {
        let covered =
            self.vlan_devices.iter().filter(|(nic, _)| self.attached.contains_key(nic)).map(|(_, device)| *device);
        let wanted: BTreeSet<u32> = self.attached.keys().copied().chain(covered).collect();
        let gone: Vec<u32> = self.applied.admitting.difference(&wanted).copied().collect();
        for ifindex in gone {
            match self.tables.remove_admitting(ifindex) {
                Ok(()) => {
                    self.applied.admitting.remove(&ifindex);
                    report.removed += 1;
                }
                Err(error) => {
                    let error = explain_write(name::ADMITTING, map::MAX_ADMITTING, &error);
                    fail(report, 0, format!("interface {ifindex} without admit"), error);
                }
            }
        }
        let new: Vec<u32> = wanted.difference(&self.applied.admitting).copied().collect();
        for ifindex in new {
            // Should this fail, `steer` judges what `admit` has judged: the same verdict twice.
            if self.tables.put_admitting(ifindex).is_ok() {
                self.applied.admitting.insert(ifindex);
                report.written += 1;
            }
        }
    }

    fn put_addresses(&mut self, claims: &Claims, report: &mut AppliedReport) {
        for (&addr, &owner) in &claims.addresses {
            let current = self.applied.addresses.get(&addr);
            if current == Some(&owner) {
                continue;
            }
            match self.tables.put_address(addr, owner, current.is_some()) {
                Ok(()) => {
                    self.applied.addresses.insert(addr, owner);
                    report.written += 1;
                }
                Err(error) => {
                    let domain = match owner.domain {
                        0 => claims.frontends.iter().find(|(key, _)| key.addr == addr).map_or(0, |(_, domain)| *domain),
                        domain => domain,
                    };
                    let error = explain_write(name::ADDRESSES, map::MAX_ADDRESSES, &error);
                    fail(report, domain, format!("address {}", to_ip(&addr)), error);
                }
            }
        }
    }

    fn remove_addresses(&mut self, claims: &Claims, report: &mut AppliedReport) {
        let gone: Vec<_> =
            self.applied.addresses.keys().copied().filter(|addr| !claims.addresses.contains_key(addr)).collect();
        for addr in gone {
            match self.tables.remove_address(addr) {
                Ok(()) => {
                    self.applied.addresses.remove(&addr);
                    report.removed += 1;
                }
                Err(error) => {
                    let error = explain_write(name::ADDRESSES, map::MAX_ADDRESSES, &error);
                    fail(report, 0, format!("removed address {}", to_ip(&addr)), error);
                }
            }
        }
    }

    fn put_frontends(&mut self, claims: &Claims, report: &mut AppliedReport) {
        for (&key, &domain) in &claims.frontends {
            if self.applied.frontends.contains_key(&key) {
                // Of this domain, or one that could not be removed and was reported.
                continue;
            }
            match self.tables.put_frontend(key, domain) {
                Ok(()) => {
                    self.applied.frontends.insert(key, domain);
                    report.written += 1;
                }
                Err(error) => {
                    let error = explain_write(name::FRONTENDS, map::MAX_FRONTENDS, &error);
                    fail(report, domain, format!("frontend {}", frontend_name(&key)), error);
                }
            }
        }
    }

    fn lead_dialled(&mut self, desired: &Desired, report: &mut AppliedReport) {
        let wanted: BTreeSet<_> = desired
            .domains
            .iter()
            .flat_map(|(&domain, wanted)| wanted.dialled.iter().map(move |dial| dialled_key(domain, dial)))
            .collect();
        let gone: Vec<_> = self.applied.dialled.difference(&wanted).copied().collect();
        let new: Vec<_> = wanted.difference(&self.applied.dialled).copied().collect();
        for key in gone {
            self.remove_dialled_key(key, report);
        }
        for key in new {
            self.put_dialled_key(key, report);
        }
    }

    fn put_dialled_key(&mut self, key: tidegate_abi::DialledKey, report: &mut AppliedReport) {
        if self.applied.dialled.contains(&key) {
            return;
        }
        match self.tables.put_dialled(key) {
            Ok(()) => {
                self.applied.dialled.insert(key);
                report.written += 1;
            }
            Err(error) => {
                let subject = format!("endpoint {}", name_of(&key.addr, key.port, key.transport));
                fail(report, key.domain, subject, explain_write(name::DIALLED, map::MAX_DIALLED, &error));
            }
        }
    }

    fn remove_dialled_key(&mut self, key: tidegate_abi::DialledKey, report: &mut AppliedReport) {
        if !self.applied.dialled.contains(&key) {
            return;
        }
        match self.tables.remove_dialled(key) {
            Ok(()) => {
                self.applied.dialled.remove(&key);
                report.removed += 1;
            }
            Err(error) => {
                let subject = format!("removed endpoint {}", name_of(&key.addr, key.port, key.transport));
                fail(report, key.domain, subject, explain_write(name::DIALLED, map::MAX_DIALLED, &error));
            }
        }
    }

    /// What hangs on a domain's number beside the entries: a later domain of the same number starts clean.
    fn forget_domain(&mut self, domain: DomainId) -> Result<(), KernelError> {
        self.unwatch_domain(domain)?;
        self.set_sockets(domain, None, None)?;
        self.rates.forget(domain.0, &self.pins.current_maps(self.is_uncommitted)?)?;
        self.connections.forget(domain.0)?;
        for hook in Hook::ALL {
            for reason in Reason::ALL {
                self.tables.clear_counter(counter_index(domain.0, hook, reason))?;
            }
        }
        Ok(())
    }
}

fn frontend_name(key: &tidegate_abi::FrontendKey) -> String {
    name_of(&key.addr, key.port, key.transport)
}

fn name_of(addr: &tidegate_abi::Address, port: u16, transport: u8) -> String {
    let transport = if transport == tidegate_abi::Transport::Udp as u8 { "UDP" } else { "TCP" };
    format!("{}/{transport}", SocketAddr::new(to_ip(addr), port))
}
