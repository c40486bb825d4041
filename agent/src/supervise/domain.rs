//! One domain's task: keeps its worker, its sockets, its cgroups and its part of the kernel tier at what its model says.
//!
//! Order on add: addresses that may be dialled, the worker's model, frontends, then their addresses. On delete the other way round. Nothing
//! here waits for another domain; the only exception is an agent's start, see [`super::node::Node::heard`].

use std::{
    collections::BTreeSet,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_model::{Delta, Domain, DomainId, DomainName, Generation, Model, control::FromInit, domain::Frontends};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::warn;

use crate::{
    cgroup::DomainGroups,
    state::{Applied, DomainState, Pieces, WorkerState},
};

use super::{
    delivery::Delivery,
    dialled::Dialled,
    handover::{Inheritance, WorkerName},
    lifecycle::overdue_at,
    node::{DRAIN_DEADLINE, Node},
    respawn::Respawn,
    sockets::Sockets,
    worker::{Phase, Worker, WorkerNews},
};

/// How often is tried again what failed: a port in use, an address or map entry that was refused.
pub(super) const RETRY: Duration = Duration::from_secs(2);

/// How often a worker that serves is asked for a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What a domain's task is told.
pub(super) enum DomainMessage {
    /// The domain's model changes.
    Change {
        /// The domain after the change.
        domain: Arc<Domain>,
        /// The change.
        delta: Delta,
        /// When the source saw it.
        changed: Instant,
    },
    /// News of a worker process.
    Init(FromInit),
    /// NICs have changed.
    Links,
    /// Asks for the worker's metrics.
    Scrape(oneshot::Sender<Pieces>),
    /// The domain is gone, or everything stops: drain, then leave nothing behind.
    Remove,
    /// Do not wait for connections to finish.
    RemoveNow,
}

/// One domain's task.
pub(super) struct DomainTask {
    pub(super) node: Rc<Node>,
    pub(super) name: DomainName,
    pub(super) id: DomainId,
    inbox: mpsc::UnboundedReceiver<DomainMessage>,
    settled: watch::Receiver<bool>,
    pub(super) sockets: Sockets,
    pub(super) workers: Vec<Worker>,
    pub(super) next_number: u32,
    pub(super) delivery: Delivery,
    dialled: Dialled,
    pub(super) respawn: Respawn,
    pub(super) spawn_at: Option<Instant>,
    pub(super) retry_at: Option<Instant>,
    heartbeat_at: Instant,
    pub(super) groups: DomainGroups,
    pub(super) guard_problem: Option<String>,
    pub(super) socket_problems: Vec<String>,
    pub(super) address_problems: Vec<String>,
    pub(super) shards: u16,
    /// Frontends of the newest generation.
    pub(super) wanted: Rc<Frontends>,
    /// Frontends that were last asked to be reachable; `None` before the first time.
    pub(super) exposed: Option<Rc<Frontends>>,
    /// Generation that they belong to.
    pub(super) exposed_generation: Generation,
    pub(super) is_patience_over: bool,
    is_removed: bool,
}

impl DomainTask {
    /// Makes the task of a domain that has no model yet.
    pub(super) fn new(
        node: Rc<Node>,
        domain: Arc<Domain>,
        id: DomainId,
        inheritance: Inheritance,
        inbox: mpsc::UnboundedReceiver<DomainMessage>,
    ) -> Self {
        let name = domain.name.clone();
        let state = DomainState::new(id, Model::new(domain));
        node.state.domains.borrow_mut().insert(name.clone(), state);
        let mut task = Self {
            sockets: Sockets::new(name.clone(), node.init.clone(), inheritance.sockets),
            settled: node.is_settled.subscribe(),
            workers: Vec::new(),
            next_number: inheritance.workers.keys().last().map_or(1, |last| last + 1),
            delivery: Delivery::default(),
            dialled: Dialled::default(),
            respawn: Respawn::default(),
            spawn_at: None,
            retry_at: None,
            heartbeat_at: Instant::now() + HEARTBEAT,
            groups: DomainGroups::default(),
            guard_problem: None,
            socket_problems: Vec::new(),
            address_problems: Vec::new(),
            shards: 0,
            wanted: Rc::default(),
            exposed: None,
            exposed_generation: Generation::default(),
            is_patience_over: false,
            is_removed: false,
            node,
            name,
            id,
            inbox,
        };
        task.adopt(inheritance.workers);
        task
    }

    /// Runs until the domain is removed and nothing of it is left; returns its name.
    pub(super) async fn run(mut self) -> DomainName {
        loop {
            let deadline = self.next_deadline();
            tokio::select! {
                message = self.inbox.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => return self.name,
                },
                (index, news) = next_news(&mut self.workers) => self.take_news(index, news).await,
                Ok(()) = self.settled.changed() => self.repeat().await,
                () = sleep_until(deadline) => {}
            }
            self.step().await;
            if self.is_removed && self.workers.is_empty() {
                self.leave_nothing().await;
                // A domain that came back meanwhile goes on with this task.
                let Ok(message) = self.inbox.try_recv() else { break };
                self.take(message).await;
            }
            self.publish();
        }
        self.name
    }

    async fn take(&mut self, message: DomainMessage) {
        match message {
            DomainMessage::Change { domain, delta, changed } => self.change(domain, delta, changed).await,
            DomainMessage::Init(news) => self.take_init(news),
            DomainMessage::Links => self.repeat().await,
            DomainMessage::Scrape(answer) => {
                if let Some(worker) = self.workers.iter_mut().find(|worker| worker.phase == Phase::Serving) {
                    worker.scrape(answer);
                }
            }
            DomainMessage::Remove => self.remove(),
            DomainMessage::RemoveNow => {
                self.remove();
                let names: Vec<WorkerName> = self.workers.iter().map(|worker| worker.name.clone()).collect();
                names.iter().for_each(|name| self.kill(name));
            }
        }
    }

    async fn change(&mut self, domain: Arc<Domain>, mut delta: Delta, changed: Instant) {
        let now = Instant::now();
        let is_first = self.shards == 0 || self.is_removed;
        let (added, before) = {
            let mut domains = self.node.state.domains.borrow_mut();
            let Some(state) = domains.get_mut(&self.name) else { return };
            if self.is_removed {
                state.model = Model::new(domain.clone());
                state.kernel = Applied::default();
            }
            delta.is_full |= is_first;
            let added = self.dialled.count(&state.model, &delta, now).added;
            let before = std::mem::replace(&mut state.model.domain, domain.clone());
            state.model.apply(&delta);
            state.pending_since.get_or_insert(now);
            if is_first || delta.is_full || touches_listeners(&delta) {
                let frontends = state.model.frontends();
                if frontends != *self.wanted {
                    self.wanted = Rc::new(frontends);
                }
            }
            (added, before)
        };
        self.is_removed = false;
        self.dial(&added, &[]);
        let shards = self.node.shards(&domain);
        if is_first || shards != self.shards || domain.limits != before.limits || self.is_unprepared() {
            self.shards = shards;
            self.prepare(&domain);
            for worker in self.workers.iter_mut().filter(|worker| worker.is_current()) {
                if worker.shards().is_some_and(|has| has != shards) {
                    worker.phase = Phase::Superseded;
                }
            }
        }
        if domain.labels != before.labels {
            let settings = self.settings(&domain);
            self.workers.iter_mut().filter(|worker| worker.has_answered).for_each(|worker| worker.configure(&settings));
        }
        self.keep_addresses().await;
        if let Some(exposed) = self.exposed.clone() {
            let remaining = intersect(&exposed, &self.wanted);
            if remaining != *exposed || !Arc::ptr_eq(&domain, &before) {
                let generation = self.exposed_generation;
                self.expose(Rc::new(remaining), generation).await;
            }
        }
        self.delivery.push(delta, changed, now);
    }

    /// Does what is due.
    async fn step(&mut self) {
        let now = Instant::now();
        let expired = self.dialled.expired(now);
        self.dial(&[], &expired);
        self.end_the_overdue(now);
        if self.is_removed {
            return;
        }
        if self.shards != 0 && !self.workers.iter().any(Worker::is_current) && self.spawn_at.is_none_or(|at| at <= now)
        {
            self.spawn(now);
        }
        if let Some(index) = self.workers.iter().position(|worker| worker.is_current() && worker.has_answered)
            && let Some(delta) = self.delivery.next(&self.wanted)
        {
            self.workers[index].apply(delta);
        }
        if self.heartbeat_at <= now {
            self.heartbeat_at = now + HEARTBEAT;
            for worker in self.workers.iter_mut().filter(|worker| worker.phase == Phase::Serving) {
                worker.ping();
            }
        }
        if !self.is_patience_over && self.delivery.patience_ends().is_some_and(|at| at <= now) {
            warn!(domain = %self.name, "the worker does not acknowledge in time; its frontends are opened all the same");
            self.is_patience_over = true;
            let generation = self.generation();
            self.expose(self.wanted.clone(), generation).await;
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            if let Some(domain) = self.domain().filter(|_| self.is_unprepared()) {
                self.prepare(&domain);
            }
            self.repeat().await;
        }
    }

    fn remove(&mut self) {
        if self.is_removed {
            return;
        }
        self.is_removed = true;
        self.refuse_new_connections();
        let now = Instant::now();
        for worker in &mut self.workers {
            if !matches!(worker.phase, Phase::Draining(_)) {
                worker.drain(DRAIN_DEADLINE, now);
            }
        }
    }

    /// Asks again for what was asked for last: NICs have changed, or something failed.
    async fn repeat(&mut self) {
        if let Some(exposed) = self.exposed.clone().filter(|_| !self.is_removed) {
            let generation = self.exposed_generation;
            self.expose(exposed, generation).await;
        }
    }

    /// Whether something failed and is to be tried again.
    pub(super) fn retry(&mut self, has_failures: bool) {
        self.retry_at = has_failures.then(|| Instant::now() + RETRY);
    }

    fn next_deadline(&self) -> Option<Instant> {
        let patience = if self.is_patience_over { None } else { self.delivery.patience_ends() };
        let spawn = self.spawn_at.filter(|_| !self.is_removed);
        let workers = self.workers.iter().filter_map(overdue_at);
        let own = [patience, spawn, self.retry_at, Some(self.heartbeat_at), self.dialled.next_expiry()];
        own.into_iter().flatten().chain(workers).min()
    }

    pub(super) fn domain(&self) -> Option<Arc<Domain>> {
        self.node.state.domains.borrow().get(&self.name).map(|state| state.model.domain.clone())
    }

    fn generation(&self) -> Generation {
        self.node.state.domains.borrow().get(&self.name).map_or(Generation::default(), |state| state.model.generation)
    }

    /// Writes what has changed into the agent's state.
    fn publish(&self) {
        let mut domains = self.node.state.domains.borrow_mut();
        let Some(state) = domains.get_mut(&self.name) else { return };
        let newest = self.workers.iter().find(|worker| worker.is_current());
        state.worker = WorkerState {
            name: newest.map(|worker| worker.name.to_string()).unwrap_or_default(),
            pid: newest.and_then(|worker| worker.pid),
            uid: self.node.worker_id(self.id),
            shards: self.shards,
            draining: self.workers.iter().filter(|worker| !worker.is_current()).count(),
            ..std::mem::take(&mut state.worker)
        };
        state.unenforced = self.groups.unenforced.iter().chain(&self.guard_problem).cloned().collect();
        if state.is_applied() {
            state.pending_since = None;
        }
    }
}

/// Waits for news of any of the workers.
async fn next_news(workers: &mut [Worker]) -> (usize, WorkerNews) {
    if workers.is_empty() {
        return std::future::pending().await;
    }
    let all = workers.iter_mut().map(|worker| Box::pin(worker.next()));
    let (news, index, _) = futures_util::future::select_all(all).await;
    (index, news)
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn touches_listeners(delta: &Delta) -> bool {
    use tidegate_model::{Change, Key, Resource};
    delta
        .changes
        .iter()
        .any(|change| matches!(change, Change::Put(Resource::Listener(..)) | Change::Remove(Key::Listener(_))))
}

/// Frontends that are in both.
pub(super) fn intersect(one: &Frontends, other: &Frontends) -> Frontends {
    let keys: BTreeSet<_> = other.keys.iter().collect();
    let exclusive: BTreeSet<_> = other.exclusive.iter().collect();
    Frontends {
        keys: one.keys.iter().filter(|key| keys.contains(key)).copied().collect(),
        exclusive: one.exclusive.iter().filter(|address| exclusive.contains(address)).copied().collect(),
    }
}
