//! Writes status while this agent leads: what differs from what stands there, once, and nothing else.
//!
//! What stands there is known from the watches as a hash of the own part, so an idle cluster costs nothing and 5,000
//! routes take little memory. An object is read before its status is changed (its times of transition and what others
//! wrote there are kept), unless it has no status yet. At most one write of an object is under way; what changes
//! meanwhile goes into the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use kube::Client;
use serde_json::Value;
use tidegate_gateway_api::{Kind, ObjectRef};
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, sleep_until},
};
use tracing::{debug, warn};

use super::{
    desired::{Desired, find_desired},
    nodes::{Nodes, Report, read_report},
    normal::{digest, normalize},
    write::{Outcome, Writing, write},
};
use crate::{
    kube::{Backoff, Failure, Resource, Target, Update, reflect},
    source::kube::Seen,
    state::State,
};

/// Writes under way at the same time.
const AT_ONCE: usize = 8;

/// Least time between two writes of one object: counts of attached routes change with each route of a burst.
const SPACING: Duration = Duration::from_millis(500);

/// How long a status waits for nodes that are still applying, so that one write says what two would.
const GRACE: Duration = Duration::from_millis(1500);

/// How often reports are looked at for nodes that have become silent.
const LOOK_FOR_SILENT: Duration = Duration::from_secs(10);

/// What is known of an object.
#[derive(Default)]
struct Subject {
    /// Version seen last.
    version: String,
    generation: Option<i64>,
    /// Hash of the own part of its status.
    found: u64,
    has_status: bool,
    /// What was wanted at the last write and what came of it: an API server may drop or fill in fields.
    last: Option<(u64, u64)>,
    is_writing: bool,
    not_before: Option<Instant>,
    /// Since when only nodes that are still applying keep it from being better, and for which generation.
    pending: Option<(Option<i64>, Instant)>,
    backoff: Backoff,
}

/// Writes for as long as the agent runs.
pub async fn run(
    state: Rc<State>,
    client: Client,
    mut seen: mpsc::UnboundedReceiver<Seen>,
    mut changed: mpsc::UnboundedReceiver<Vec<ObjectRef>>,
    mut leading: watch::Receiver<Option<Instant>>,
) {
    let (sender, mut reports) = mpsc::channel(16);
    let target = Target::all(Resource::new("tidegate.dev", "v1alpha1", "nodereports", "NodeReport"));
    let watch = reflect(client.clone(), target, read_report, |update: Update<Report>| update, sender);
    let controllers = state.options.controllers();
    let mut writer = Writer {
        state,
        client,
        controllers,
        nodes: Nodes::default(),
        subjects: BTreeMap::new(),
        dirty: BTreeSet::new(),
        until: None,
    };
    let serve = async {
        let mut writes = FuturesUnordered::new();
        let mut next_look = Instant::now() + LOOK_FOR_SILENT;
        loop {
            let wake = writer.next_wake().map_or(next_look, |wake| wake.min(next_look));
            tokio::select! {
                Some(one) = seen.recv() => {
                    writer.take_seen(one);
                    while let Ok(one) = seen.try_recv() {
                        writer.take_seen(one);
                    }
                }
                Some(references) = changed.recv() => writer.dirty.extend(references),
                Some(update) = reports.recv() => {
                    writer.nodes.take(update);
                    writer.mark_what_nodes_decide();
                }
                Ok(()) = leading.changed() => writer.set_leading(*leading.borrow_and_update()),
                Some((object, wanted, outcome)) = writes.next() => writer.take_outcome(&object, wanted, outcome),
                () = sleep_until(wake) => {
                    if Instant::now() >= next_look {
                        next_look = Instant::now() + LOOK_FOR_SILENT;
                        writer.mark_what_nodes_decide();
                    }
                }
            }
            if !writer.is_leading() {
                continue;
            }
            for (wanted, writing) in writer.next_writes(AT_ONCE.saturating_sub(writes.len())) {
                let client = writer.client.clone();
                writes.push(async move {
                    let object = writing.object.clone();
                    (object, wanted, write(&client, writing).await)
                });
            }
        }
    };
    tokio::select! {
        () = watch => {}
        () = serve => {}
    }
}

struct Writer {
    state: Rc<State>,
    client: Client,
    controllers: Vec<String>,
    nodes: Nodes,
    subjects: BTreeMap<ObjectRef, Subject>,
    /// Objects that are to be looked at.
    dirty: BTreeSet<ObjectRef>,
    /// Until when this agent may write.
    until: Option<Instant>,
}

impl Writer {
    fn is_leading(&self) -> bool {
        self.until.is_some_and(|until| until > Instant::now())
    }

    fn set_leading(&mut self, until: Option<Instant>) {
        if !self.is_leading() && until.is_some() {
            self.dirty.extend(self.subjects.keys().cloned());
        }
        self.until = until;
    }

    fn mark_what_nodes_decide(&mut self) {
        let is_decided =
            |object: &&ObjectRef| matches!(object.kind, Kind::Gateway | Kind::ListenerSet | Kind::TrafficDomain);
        self.dirty.extend(self.subjects.keys().filter(is_decided).cloned());
    }

    fn take_seen(&mut self, seen: Seen) {
        let Some(status) = &seen.status else {
            self.subjects.remove(&seen.reference);
            self.dirty.remove(&seen.reference);
            return;
        };
        let subject = self.subjects.entry(seen.reference.clone()).or_default();
        // The answer to a write may come before the watch tells of it, and then the watch tells of the past.
        if is_older(&seen.resource_version, &subject.version) {
            return;
        }
        subject.found = digest(&normalize(seen.reference.kind, &self.controllers, status));
        subject.has_status = has_content(status);
        subject.version = seen.resource_version;
        subject.generation = seen.generation;
        self.dirty.insert(seen.reference);
    }

    /// When something that waits may be looked at again.
    fn next_wake(&self) -> Option<Instant> {
        if !self.is_leading() {
            return None;
        }
        let waiting = self.dirty.iter().filter_map(|object| self.subjects.get(object));
        waiting.filter(|subject| !subject.is_writing).filter_map(|subject| subject.not_before).min()
    }

    /// Statuses to write now, at most so many, each with the hash of its own part.
    fn next_writes(&mut self, room: usize) -> Vec<(u64, Writing)> {
        if room == 0 {
            return Vec::new();
        }
        let now = Instant::now();
        let is_due = |subject: &Subject| !subject.is_writing && subject.not_before.is_none_or(|at| at <= now);
        // What the watch has not shown yet is nothing to write to; the watch marks it again.
        let subjects = &self.subjects;
        self.dirty.retain(|object| subjects.contains_key(object));
        let due: Vec<_> =
            self.dirty.iter().filter(|object| subjects.get(*object).is_some_and(is_due)).cloned().collect();
        let mut writes = Vec::new();
        for object in due {
            if writes.len() >= room {
                break;
            }
            let version = self.state.facts.borrow().served.get(&object.kind).copied();
            let desired = find_desired(&self.state, &self.nodes, &object);
            let (Some(subject), Some(version), Some(desired)) = (self.subjects.get_mut(&object), version, desired)
            else {
                self.dirty.remove(&object);
                continue;
            };
            let wanted = digest(&normalize(object.kind, &self.controllers, &desired.status));
            if wanted == subject.found || subject.last == Some((wanted, subject.found)) {
                subject.pending = None;
                self.dirty.remove(&object);
                continue;
            }
            subject.not_before = subject.wait_for_nodes(&desired, now);
            if subject.not_before.is_some() {
                continue;
            }
            self.dirty.remove(&object);
            subject.is_writing = true;
            let base = (!subject.has_status).then(|| subject.version.clone());
            writes.push((wanted, Writing { object, version, base, controllers: self.controllers.clone(), desired }));
        }
        writes
    }

    fn take_outcome(&mut self, object: &ObjectRef, wanted: u64, outcome: Outcome) {
        let Some(subject) = self.subjects.get_mut(object) else { return };
        let now = Instant::now();
        subject.is_writing = false;
        match outcome {
            Outcome::Stands(value) => {
                subject.backoff.reset();
                subject.not_before = Some(now + SPACING);
                let found = digest(&normalize(object.kind, &self.controllers, &value["status"]));
                subject.last = Some((wanted, found));
                let version = value["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                if !is_older(version, &subject.version) {
                    subject.found = found;
                    subject.has_status = true;
                    version.clone_into(&mut subject.version);
                }
                // What was wanted may be another meanwhile.
                self.dirty.insert(object.clone());
            }
            // The watch will show the newer generation, and the translation what is to be said of it.
            Outcome::Outdated => {
                subject.not_before = Some(now + SPACING);
            }
            Outcome::Gone => {}
            Outcome::Failed(failure) => {
                let wait = match &failure {
                    Failure::Throttled { after, .. } => *after + subject.backoff.next_wait(),
                    _ => subject.backoff.next_wait(),
                };
                // A conflict is how the API server says that somebody else wrote first.
                match failure {
                    Failure::Conflict(message) => debug!("status of {object}: {message}"),
                    failure if subject.backoff.failures() == 1 => {
                        warn!("status of {object} cannot be written: {failure}")
                    }
                    failure => debug!("status of {object} cannot be written: {failure}"),
                }
                subject.not_before = Some(now + wait);
                // What is known of it may be what was wrong.
                subject.has_status = true;
                self.dirty.insert(object.clone());
            }
        }
    }
}

impl Subject {
    /// Until when to wait for nodes that are still applying; `None` when there is nothing to wait for.
    fn wait_for_nodes(&mut self, desired: &Desired, now: Instant) -> Option<Instant> {
        if !desired.is_pending {
            self.pending = None;
            return None;
        }
        let since = match self.pending {
            Some((generation, since)) if generation == desired.generation => since,
            _ => {
                self.pending = Some((desired.generation, now));
                now
            }
        };
        let until = since + GRACE;
        (until > now).then_some(until)
    }
}

/// Whether a version of an object is older than another. Versions are numbers that grow, as far as they are numbers at all.
fn is_older(version: &str, than: &str) -> bool {
    match (version.parse::<u64>(), than.parse::<u64>()) {
        (Ok(version), Ok(than)) => version < than,
        _ => false,
    }
}

/// Whether a status says anything: API servers fill in conditions of which nothing is known.
fn has_content(status: &Value) -> bool {
    let Some(fields) = status.as_object() else { return false };
    fields.iter().any(|(name, value)| match (name.as_str(), value.as_array()) {
        ("conditions", Some(conditions)) => conditions.iter().any(|condition| condition["status"] != "Unknown"),
        (_, Some(list)) => !list.is_empty(),
        (_, None) => !value.is_null(),
    })
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
