//! What a domain's task does to the host: sockets, cgroups, guard, addresses, and frontends made reachable or not.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    rc::Rc,
};

use tidegate_model::{Dial, Domain, FrontendKey, Generation, control::Listening, domain::Frontends};
use tracing::{info, warn};

use crate::{
    net::{link::Attachment, listen::ListenError},
    state::{Attach, InterfaceState},
    tier::{DomainUpdate, UpdateOutcome},
};

use super::{domain::DomainTask, sockets::BindPlan, worker::Phase};

impl DomainTask {
    /// Brings cgroups, guard and listening sockets to what the domain needs before a worker runs.
    pub(super) fn prepare(&mut self, domain: &Domain) {
        self.groups = self.node.cgroups.prepare(&self.name, &domain.limits);
        if self.node.worker_id(self.id).is_none() {
            self.groups.unenforced.push("user id: not root, the worker runs as the agent's user".into());
        }
        let mut tier = self.node.state.kernel.borrow_mut();
        let Some(kernel) = tier.kernel() else { return };
        kernel.expect(self.id);
        self.socket_problems = self.sockets.open_steered(self.shards, self.needs_v6());
        let (v4, v6) = self.sockets.steered();
        if let Err(error) = kernel.set_sockets(self.id, v4, v6) {
            self.socket_problems.push(format!("steering: {error}"));
        }
        self.guard_problem = match &self.groups.guard {
            Some(group) => kernel.watch_cgroup(self.id, group).err().map(|error| format!("guard: {error}")),
            None => Some("guard: the worker has no cgroup of version 2".into()),
        };
    }

    /// Whether a frontend is an IPv6 address.
    fn needs_v6(&self) -> bool {
        self.wanted.keys.iter().any(|frontend| frontend.addr.is_ipv6())
    }

    /// Whether the sockets are not those that the domain needs, or something could not be prepared.
    pub(super) fn is_unprepared(&self) -> bool {
        let lacks_v6 = self.node.state.kernel.borrow().is_on() && self.needs_v6() && self.sockets.steered().1.is_none();
        lacks_v6 || !self.socket_problems.is_empty() || self.guard_problem.is_some()
    }

    /// Changes which addresses the guard lets the workers dial.
    pub(super) fn dial(&mut self, added: &[Dial], removed: &[Dial]) {
        if added.is_empty() && removed.is_empty() {
            return;
        }
        if let Some(kernel) = self.node.state.kernel.borrow_mut().kernel() {
            for failure in kernel.set_dialled(self.id, added, removed) {
                warn!(domain = %self.name, "{failure}");
            }
        }
    }

    /// Makes exactly these frontends reachable: those of the kernel tier by its maps, others and those of UDP on bound sockets.
    /// Their addresses become local last: what comes for an address that nothing judges yet would reach whoever listens on the
    /// node for any address.
    pub(super) async fn expose(&mut self, frontends: Rc<Frontends>, generation: Generation) {
        let Some(domain) = self.domain() else { return };
        self.exposed = Some(frontends.clone());
        self.exposed_generation = generation;
        let interfaces: Vec<_> = {
            let links = self.node.links.borrow();
            domain.interfaces.iter().map(|name| (name.clone(), links.find(name))).collect()
        };
        let bound = self.bind(&frontends);
        // Without a socket of its own a UDP frontend is not let in: another program's that is bound to its port for any
        // address would get its datagrams.
        let admitted = without(&frontends, &bound.failures);
        let update = DomainUpdate { domain: &domain, interfaces: &interfaces, frontends: &admitted };
        let updated = self.node.state.kernel.borrow_mut().kernel().map(|kernel| kernel.update(self.id, &update));
        let UpdateOutcome { is_deferred, mut failures, mut unreachable, unjudged, interfaces } = updated
            .unwrap_or_else(|| {
                let interfaces = interfaces.into_iter().map(without_kernel).collect();
                UpdateOutcome { interfaces, ..UpdateOutcome::default() }
            });
        if !is_deferred {
            self.close(&bound.closing);
            let judged = frontends.exclusive.iter().filter(|address| !unjudged.contains(*address)).copied();
            self.make_local(judged).await;
        }
        failures.extend(bound.failures.values().cloned());
        unreachable.extend(bound.failures);
        failures.extend(self.address_problems.iter().chain(&self.socket_problems).cloned());
        self.retry(!failures.is_empty() || self.guard_problem.is_some());
        if let Some(state) = self.node.state.domains.borrow_mut().get_mut(&self.name) {
            // Tried again every few seconds, said once.
            for failure in failures.iter().filter(|failure| !state.kernel.failures.contains(failure)) {
                warn!(domain = %self.name, "{failure}");
            }
            if failures.is_empty() && !state.kernel.failures.is_empty() {
                info!(domain = %self.name, "what could not be applied is applied now");
            }
            state.kernel.failures = failures;
            state.unreachable = unreachable;
            state.interfaces = interfaces;
        }
        if !is_deferred {
            self.mark_exposed();
        }
        self.node.heard(&self.name);
    }

    /// What was asked for last is reachable.
    pub(super) fn mark_exposed(&mut self) {
        if let Some(state) = self.node.state.domains.borrow_mut().get_mut(&self.name) {
            state.kernel.has_any = true;
            state.kernel.generation = self.exposed_generation;
            state.frontends = self.exposed.clone().unwrap_or_default();
        }
    }

    /// Opens sockets at the addresses of frontends that need their own, and has the worker receive on them.
    fn bind(&mut self, frontends: &Frontends) -> Bound {
        let outcome = self.sockets.bind(&BindPlan {
            frontends: &frontends.keys,
            shards: self.shards,
            is_steered: self.node.state.kernel.borrow().is_on(),
            is_routed: self.node.is_routing,
        });
        if !outcome.opened.is_empty()
            && let Some(worker) = self.workers.iter_mut().find(|worker| worker.phase == Phase::Serving)
        {
            worker.listen(&self.sockets);
        }
        let name_listeners = |(frontend, error): (FrontendKey, ListenError)| {
            let domains = self.node.state.domains.borrow();
            let listeners = domains.get(&self.name).map(|state| {
                let with = state.model.listeners().filter(|(_, listener)| listener.frontends.contains(&frontend));
                with.map(|(key, _)| key.to_string()).collect::<Vec<_>>().join(", ")
            });
            (frontend, format!("Gateway listener {}: {error}", listeners.unwrap_or_default()))
        };
        Bound { closing: outcome.closing, failures: outcome.failures.into_iter().map(name_listeners).collect() }
    }

    /// Ends what is received on sockets of frontends that are gone.
    fn close(&mut self, closing: &[Listening]) {
        for worker in &mut self.workers {
            worker.unlisten(closing);
        }
        self.sockets.close(closing);
    }

    /// Keeps the addresses from being given up that are reachable or are about to be.
    pub(super) async fn keep_addresses(&mut self) {
        let exposed = self.exposed.iter().flat_map(|exposed| &exposed.exclusive);
        let addresses: BTreeSet<_> = self.wanted.exclusive.iter().chain(exposed).copied().collect();
        if let Some(local) = self.node.addresses.lock().await.as_mut() {
            local.set_wanted(&self.name, addresses);
        }
    }

    async fn make_local(&mut self, addresses: impl Iterator<Item = IpAddr>) {
        let node = self.node.clone();
        let mut local = node.addresses.lock().await;
        let Some(local) = local.as_mut() else { return };
        let errors = local.add(&self.name, addresses).await;
        self.address_problems = errors.iter().map(ToString::to_string).collect();
    }

    /// Gives up addresses that are no more reachable.
    pub(super) async fn release_addresses(&mut self) {
        let node = self.node.clone();
        if !*node.is_settled.borrow() {
            return;
        }
        if let Some(local) = node.addresses.lock().await.as_mut() {
            let wanted: BTreeSet<_> = self.wanted.exclusive.iter().copied().collect();
            local.set_wanted(&self.name, wanted);
            local.remove_unwanted().await;
        }
    }

    /// New connections find no socket any more; those that are open go on.
    pub(super) fn refuse_new_connections(&mut self) {
        let mut tier = self.node.state.kernel.borrow_mut();
        if let Some(kernel) = tier.kernel()
            && let Err(error) = kernel.set_sockets(self.id, None, None)
        {
            warn!(domain = %self.name, "steering: {error}");
        }
        self.sockets.close_all();
    }

    /// Removes everything of the domain from this host; its workers have ended. Its addresses go while they are judged.
    pub(super) async fn leave_nothing(&mut self) {
        self.wanted = Rc::default();
        self.exposed = None;
        self.release_addresses().await;
        if let Some(kernel) = self.node.state.kernel.borrow_mut().kernel() {
            kernel.remove(self.id);
            if let Some(group) = &self.groups.guard {
                kernel.unwatch_cgroup(group);
            }
        }
        self.sockets.close_all();
        self.node.cgroups.remove(&self.name);
        self.node.state.domains.borrow_mut().remove(&self.name);
        self.node.state.sources.borrow_mut().forget(self.id);
        self.node.heard(&self.name);
    }
}

/// What [`DomainTask::bind`] did.
struct Bound {
    /// Sockets of frontends that are gone, to be closed when nothing is let in for them any more.
    closing: Vec<Listening>,
    /// Frontends without a socket, and why.
    failures: BTreeMap<FrontendKey, String>,
}

/// Frontends less those that failed.
fn without<'a>(frontends: &'a Frontends, failed: &BTreeMap<FrontendKey, String>) -> Cow<'a, Frontends> {
    if failed.is_empty() {
        return Cow::Borrowed(frontends);
    }
    let keys = frontends.keys.iter().filter(|key| !failed.contains_key(key)).copied().collect();
    Cow::Owned(Frontends { keys, exclusive: frontends.exclusive.clone() })
}

/// An interface's state with `--kernel=off`.
fn without_kernel((name, attachment): (String, Option<Attachment>)) -> InterfaceState {
    InterfaceState {
        name,
        ifindex: attachment.map(|at| at.ifindex),
        vlan: attachment.and_then(|at| at.vlan),
        attach: if attachment.is_some() { Attach::Off } else { Attach::Missing },
    }
}
