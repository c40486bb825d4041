//! What of each kind is in force, as far as it takes to tell what an update changes.
//!
//! Objects themselves are the translator's; here are their names and hashes. An object that cannot be read stays in force
//! as it last could.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    path::PathBuf,
};

use serde_json::Value;
use tidegate_gateway_api::{Event, Kind, Object, ObjectRef};
use tidegate_model::ObjectName;
use tokio::sync::mpsc;
use tracing::warn;

use super::{Seen, item::Item, references::Referrers};
use crate::{
    kube::{Failure, Update},
    source::{Problem, Severity, SourceStatus},
};

/// Where problems are said to be.
pub(super) const PLACE: &str = "kubernetes";

/// Everything that is in force.
pub(super) struct Held {
    kinds: BTreeMap<Kind, KindState>,
    /// What is wrong with objects.
    troubles: BTreeMap<ObjectRef, Vec<(Severity, String)>>,
    pub(super) referrers: Referrers,
    controller_names: Vec<String>,
    seen: Option<mpsc::UnboundedSender<Seen>>,
    /// Addresses that the status of Gateways shows.
    addresses: BTreeMap<ObjectName, Vec<IpAddr>>,
    /// Those of them that changed.
    pub(super) changed_addresses: Vec<(ObjectName, Vec<IpAddr>)>,
    /// Whether something changed that [`Held::status`] shows.
    pub(super) is_status_changed: bool,
    /// Whether something changed that decides which Secrets and ConfigMaps are wanted.
    pub(super) is_wanted_changed: bool,
}

#[derive(Default)]
struct KindState {
    objects: HashMap<ObjectName, Entry>,
    /// Counts lists: what a list did not show was not in it.
    round: u32,
    is_synced: bool,
    failure: Option<Failure>,
}

struct Entry {
    /// Hash of the version in force; `None` when there is none.
    fingerprint: Option<u64>,
    round: u32,
    /// Whether the newest version could be read.
    is_good: bool,
}

impl Held {
    pub(super) fn new(controller_names: Vec<String>, seen: Option<mpsc::UnboundedSender<Seen>>) -> Self {
        Self {
            kinds: BTreeMap::new(),
            troubles: BTreeMap::new(),
            referrers: Referrers::default(),
            controller_names,
            seen,
            addresses: BTreeMap::new(),
            changed_addresses: Vec::new(),
            is_status_changed: true,
            is_wanted_changed: false,
        }
    }

    /// A kind is watched from now on.
    pub(super) fn expect(&mut self, kind: Kind) {
        self.kinds.entry(kind).or_default();
    }

    /// Kinds of which it is not known yet what there is, and why; those that are refused may count as known.
    pub(super) fn waiting(&self, is_refusal_final: bool) -> impl Iterator<Item = (Kind, Option<&Failure>)> {
        let is_waiting = move |state: &KindState| {
            let is_refused = matches!(state.failure, Some(Failure::Forbidden(_) | Failure::NotFound(_)));
            !(state.is_synced || is_refused && is_refusal_final)
        };
        self.kinds
            .iter()
            .filter(move |(_, state)| is_waiting(state))
            .map(|(kind, state)| (*kind, state.failure.as_ref()))
    }

    /// Takes what happened to the objects of a kind; `events` gets what follows.
    pub(super) fn take(&mut self, kind: Kind, update: Update<Item>, events: &mut Vec<Event>) {
        match update {
            Update::Begin => self.state(kind).round += 1,
            Update::Page(items) => items.into_iter().for_each(|item| self.put(kind, item, events)),
            Update::Synced => {
                let state = self.state(kind);
                state.is_synced = true;
                let round = state.round;
                let is_gone = |entry: &Entry| entry.round != round;
                let gone: Vec<_> =
                    state.objects.iter().filter(|(_, entry)| is_gone(entry)).map(|(name, _)| name.clone()).collect();
                gone.iter().for_each(|name| self.delete(kind, name, events));
            }
            Update::Put(item) => self.put(kind, item, events),
            Update::Delete(name) => self.delete(kind, &name, events),
            Update::Failing(failure) => {
                self.state(kind).failure = Some(failure);
                self.is_status_changed = true;
            }
            Update::Recovered => {
                self.state(kind).failure = None;
                self.is_status_changed = true;
            }
        }
    }

    /// A kind is not there any more, and with it all its objects.
    pub(super) fn forget(&mut self, kind: Kind, events: &mut Vec<Event>) {
        let Some(state) = self.kinds.get(&kind) else { return };
        let names: Vec<_> = state.objects.keys().cloned().collect();
        names.iter().for_each(|name| self.delete(kind, name, events));
        self.kinds.remove(&kind);
        self.is_status_changed = true;
    }

    fn state(&mut self, kind: Kind) -> &mut KindState {
        self.kinds.entry(kind).or_default()
    }

    fn note_addresses(&mut self, gateway: &ObjectName, status: &Value) {
        let shown = status["addresses"].as_array().into_iter().flatten();
        let shown: Vec<IpAddr> = shown.filter_map(|address| address["value"].as_str()?.parse().ok()).collect();
        if self.addresses.get(gateway).map_or(&[][..], Vec::as_slice) == shown {
            return;
        }
        self.changed_addresses.push((gateway.clone(), shown.clone()));
        if shown.is_empty() {
            self.addresses.remove(gateway);
        } else {
            self.addresses.insert(gateway.clone(), shown);
        }
    }

    fn put(&mut self, kind: Kind, item: Item, events: &mut Vec<Event>) {
        let reference = ObjectRef::new(kind, item.name.clone());
        if kind == Kind::Gateway {
            self.note_addresses(&item.name, &item.status);
        }
        if let Some(seen) = self.seen.as_ref().filter(|_| kind.has_status()) {
            let _ = seen.send(Seen {
                reference: reference.clone(),
                resource_version: item.resource_version,
                generation: item.generation,
                status: Some(item.status),
            });
        }
        let state = self.state(kind);
        let round = state.round;
        let entry = state.objects.entry(item.name).or_insert(Entry { fingerprint: None, round, is_good: false });
        entry.round = round;
        if entry.is_good && entry.fingerprint == Some(item.fingerprint) {
            return;
        }
        entry.is_good = item.object.is_ok();
        let mut troubles = Vec::new();
        match item.object {
            Err(error) => {
                let kept = if entry.fingerprint.is_some() { "; its last good version stays in force" } else { "" };
                troubles.push((Severity::Error, format!("{error}{kept}")));
            }
            Ok(object) => {
                entry.fingerprint = Some(item.fingerprint);
                troubles.extend(item.unknown_fields.iter().map(|field| {
                    (Severity::Warning, format!("field {field} is unknown and has no effect: correct or remove it"))
                }));
                self.note_references(&reference, &object, item.references);
                events.push(Event::Put(object));
            }
        }
        self.set_troubles(reference, troubles);
    }

    fn set_troubles(&mut self, reference: ObjectRef, troubles: Vec<(Severity, String)>) {
        let before = if troubles.is_empty() {
            self.troubles.remove(&reference).unwrap_or_default()
        } else {
            self.troubles.insert(reference.clone(), troubles).unwrap_or_default()
        };
        self.is_status_changed |= self.troubles.get(&reference).map_or(&[][..], Vec::as_slice) != before;
    }

    fn note_references(&mut self, reference: &ObjectRef, object: &Object, references: super::references::References) {
        if let Object::GatewayClass(class) = object {
            let is_own = self.controller_names.contains(&class.spec.controller_name);
            self.is_wanted_changed |= self.referrers.set_class(&reference.name.name, is_own);
        }
        self.is_wanted_changed |= self.referrers.replace(reference, Some(references));
    }

    fn delete(&mut self, kind: Kind, name: &ObjectName, events: &mut Vec<Event>) {
        let Some(entry) = self.state(kind).objects.remove(name) else { return };
        let reference = ObjectRef::new(kind, name.clone());
        self.set_troubles(reference.clone(), Vec::new());
        if kind == Kind::Gateway {
            self.note_addresses(name, &Value::Null);
        }
        if kind == Kind::GatewayClass {
            self.is_wanted_changed |= self.referrers.set_class(&name.name, false);
        }
        self.is_wanted_changed |= self.referrers.replace(&reference, None);
        if let Some(seen) = self.seen.as_ref().filter(|_| kind.has_status()) {
            let gone =
                Seen { reference: reference.clone(), resource_version: String::new(), generation: None, status: None };
            let _ = seen.send(gone);
        }
        if entry.fingerprint.is_some() {
            events.push(Event::Delete(reference));
        }
    }

    /// State of everything, with further problems.
    pub(super) fn status(&self, further: impl Iterator<Item = Problem>) -> SourceStatus {
        let mut problems: Vec<_> = further.collect();
        let mut objects = 0;
        for (kind, state) in &self.kinds {
            if let Some(failure) = &state.failure {
                let message = format!("cannot be watched, what is in force stays: {failure}");
                problems.push(problem(Severity::Error, Some(kind.to_string()), message));
            }
            objects += state.objects.len();
        }
        for (reference, troubles) in &self.troubles {
            let found = troubles.iter();
            problems.extend(
                found.map(|(severity, message)| problem(*severity, Some(reference.to_string()), message.clone())),
            );
        }
        problems.sort();
        SourceStatus { files: 0, objects, problems }
    }

    /// Says once for each kind for what the start waits.
    pub(super) fn log_waiting(&self) {
        for (kind, failure) in self.waiting(true) {
            if let Some(failure) = failure {
                warn!("waiting for {kind} objects: {failure}");
            }
        }
    }
}

/// A problem that is not one of a file.
pub(super) fn problem(severity: Severity, object: Option<String>, message: String) -> Problem {
    Problem { file: PathBuf::from(PLACE), line: 0, column: 0, severity, object, message }
}
