//! What a domain's task does with its workers: takes them over, starts them, delivers the model, replaces those that die,
//! hang or speak another protocol.

use std::{
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant},
};

use tidegate_model::{
    Domain, Generation, Key,
    control::{FromInit, Settings, Spawn, ToInit},
};
use tracing::{error, info, warn};

use crate::{metrics, options::KernelOption, state::Applied};

use super::{
    domain::{DomainTask, RETRY, intersect},
    handover::{InheritedWorker, KeptName, WorkerName},
    node::DRAIN_DEADLINE,
    worker::{Phase, Worker, WorkerNews},
};

/// A worker that owes an answer for this long is hung and replaced: the largest model takes a fraction of it to apply.
const HUNG_AFTER: Duration = Duration::from_secs(20);

impl DomainTask {
    pub(super) fn adopt(&mut self, workers: BTreeMap<u32, InheritedWorker>) {
        let now = Instant::now();
        let newest = workers.keys().last().copied();
        for (number, InheritedWorker { pid, control, is_leaving }) in workers {
            let name = WorkerName { domain: self.name.clone(), number };
            match Worker::adopt(name.clone(), pid, control, now) {
                Ok(mut worker) => {
                    info!(worker = %name, pid, is_leaving, "worker taken over");
                    if Some(number) != newest {
                        worker.drain(DRAIN_DEADLINE, now);
                    } else if is_leaving {
                        worker.phase = Phase::Superseded;
                    }
                    self.workers.push(worker);
                }
                Err(error) => {
                    error!(worker = %name, "cannot take over the worker: {error}");
                    self.kill(&name);
                }
            }
        }
    }

    pub(super) fn take_init(&mut self, news: FromInit) {
        let now = Instant::now();
        let (name, outcome) = match news {
            FromInit::Started { name, pid } => {
                if let Some(worker) = self.workers.iter_mut().find(|worker| worker.name.to_string() == name) {
                    worker.pid = Some(pid);
                }
                return;
            }
            FromInit::Failed { name, error } => (name, error),
            FromInit::Exited { name, status } if status < 0 => (name, format!("signal {}", -status)),
            FromInit::Exited { name, status } => (name, format!("exit code {status}")),
            FromInit::Kept { .. } | FromInit::Running { .. } | FromInit::Leaving { .. } | FromInit::Ready => return,
        };
        let Some(index) = self.workers.iter().position(|worker| worker.name.to_string() == name) else { return };
        let worker = self.workers.remove(index);
        self.node.init.send(ToInit::Drop { name: KeptName::Control(worker.name.clone()).to_string() }, Vec::new());
        if matches!(worker.phase, Phase::Draining(_)) {
            info!(worker = name, "worker has ended: {outcome}");
            return;
        }
        let wait = self.respawn.wait(now);
        error!(worker = name, wait_ms = wait.as_millis() as u64, "worker has died: {outcome}; starting it again");
        self.spawn_at = Some(now + wait);
        if let Some(state) = self.node.state.domains.borrow_mut().get_mut(&self.name) {
            state.worker.restarts += 1;
            state.worker.applied = Applied::default();
        }
    }

    pub(super) async fn take_news(&mut self, index: usize, news: WorkerNews) {
        match news {
            WorkerNews::Hello { generation } => self.greeted(index, generation),
            WorkerNews::Foreign => {
                warn!(worker = %self.workers[index].name, "worker speaks another protocol; replacing it");
                self.workers[index].phase = Phase::Superseded;
            }
            WorkerNews::Applied { generation, failures } => {
                if self.workers[index].is_current() {
                    self.applied(index, generation, failures).await;
                }
            }
            // One that drains closes its channel shortly before it ends.
            WorkerNews::Gone if matches!(self.workers[index].phase, Phase::Draining(_)) => {}
            WorkerNews::Gone => {
                let name = self.workers[index].name.clone();
                self.kill(&name);
            }
        }
    }

    /// A worker has answered the greeting: it gets its settings and the whole model.
    fn greeted(&mut self, index: usize, generation: Generation) {
        let now = Instant::now();
        let worker = &mut self.workers[index];
        if !worker.is_current() {
            return;
        }
        if self.shards != 0 && worker.shards().is_some_and(|has| has != self.shards) {
            worker.phase = Phase::Superseded;
            return;
        }
        let domains = self.node.state.domains.borrow();
        let Some(state) = domains.get(&self.name) else { return };
        let (full, domain) = (state.model.to_full_delta(), state.model.domain.clone());
        drop(domains);
        info!(worker = %worker.name, serves = generation.0, "worker is there");
        let settings = self.settings(&domain);
        self.workers[index].configure(&settings);
        // A domain that has no model yet (an agent's start) must not take away what the worker serves.
        if full.generation != Generation::default() || self.shards != 0 {
            self.delivery.restart(full, now);
        }
    }

    /// The worker serves a generation: its frontends may be reached, and what they replace may go.
    async fn applied(&mut self, index: usize, generation: Generation, failures: Vec<(Key, String)>) {
        let texts: Vec<String> = failures.iter().map(|(key, error)| format!("{}: {error}", describe(key))).collect();
        texts.iter().for_each(|text| warn!(domain = %self.name, "the worker cannot use {text}"));
        if let Some(state) = self.node.state.domains.borrow_mut().get_mut(&self.name) {
            state.worker.applied.has_any = true;
            state.worker.applied.generation = generation;
            state.worker.applied.failures = texts;
            state.worker.refused = failures;
        }
        let Some(under_way) = self.delivery.acknowledge(generation) else { return };
        self.is_patience_over = false;
        let frontends = if Rc::ptr_eq(&under_way.frontends, &self.wanted) {
            self.wanted.clone()
        } else {
            Rc::new(intersect(&under_way.frontends, &self.wanted))
        };
        self.workers[index].listen(&self.sockets);
        if self.workers[index].phase == Phase::Starting {
            self.workers[index].phase = Phase::Serving;
            for worker in self.workers.iter_mut().filter(|worker| worker.phase == Phase::Superseded) {
                worker.drain(DRAIN_DEADLINE, Instant::now());
            }
        }
        let is_as_before = self.exposed.as_ref().is_some_and(|exposed| **exposed == *frontends);
        if is_as_before && self.retry_at.is_none() {
            self.exposed_generation = generation;
            self.mark_exposed();
        } else {
            self.expose(frontends, generation).await;
        }
        self.release_addresses().await;
        if let Some(state) = self.node.state.domains.borrow().get(&self.name)
            && state.kernel.has_any
            && state.kernel.generation >= generation
        {
            metrics::change_applied(&state.model.domain, under_way.changed.elapsed());
        }
    }

    /// Kills workers that are hung or whose time to drain is over.
    pub(super) fn end_the_overdue(&mut self, now: Instant) {
        let mut overdue = Vec::new();
        for worker in &mut self.workers {
            if overdue_at(worker).is_some_and(|at| at <= now) {
                overdue.push(worker.name.clone());
                // Once is enough; init reports its end.
                match &mut worker.phase {
                    Phase::Draining(at) => *at = now + HUNG_AFTER,
                    _ => worker.owes_since = Some(now),
                }
            }
        }
        for name in overdue {
            warn!(worker = %name, "worker is overdue; killing it");
            self.kill(&name);
        }
    }

    pub(super) fn spawn(&mut self, now: Instant) {
        self.spawn_at = None;
        let Some(domain) = self.domain() else { return };
        self.prepare(&domain);
        if let Some(problem) =
            self.guard_problem.as_ref().filter(|_| self.node.state.options.kernel == KernelOption::Require)
        {
            error!(domain = %self.name, "worker not started: --kernel=require, but {problem}");
            self.spawn_at = Some(now + RETRY);
            return;
        }
        let name = WorkerName { domain: self.name.clone(), number: self.next_number };
        self.next_number += 1;
        let id = self.node.worker_id(self.id);
        let spawn = Spawn {
            name: name.to_string(),
            domain: self.name.to_string(),
            uid: id,
            gid: id,
            cgroups: self.groups.procs.clone(),
            shards: self.shards,
            cores: self.node.cores(self.id, self.shards),
        };
        match Worker::spawn(name.clone(), spawn, &self.node.init, now) {
            Ok(worker) => self.workers.push(worker),
            Err(error) => {
                error!(worker = %name, "cannot start the worker: {error}");
                self.spawn_at = Some(now + RETRY);
            }
        }
    }

    pub(super) fn kill(&self, name: &WorkerName) {
        self.node.init.send(ToInit::Kill { name: name.to_string(), signal: libc::SIGKILL }, Vec::new());
    }

    pub(super) fn settings(&self, domain: &Domain) -> Settings {
        Settings { labels: metrics::domain_labels(domain), access_log: self.node.state.options.access_log }
    }
}

/// A resource as its objects are called.
fn describe(key: &Key) -> String {
    match key {
        Key::Certificate(key) => format!("Secret/{key}"),
        Key::CaBundle(key) => key.to_string(),
        Key::Backend(key) => key.to_string(),
        Key::Endpoints(key) => format!("endpoints of {key}"),
        Key::Listener(key) => format!("listener {key}"),
        Key::Rule(key) | Key::Forward(key) => key.to_string(),
    }
}

/// When a worker has had its time.
pub(super) fn overdue_at(worker: &Worker) -> Option<Instant> {
    match worker.phase {
        Phase::Draining(at) => Some(at),
        _ => worker.owes_since.map(|since| since + HUNG_AFTER),
    }
}
