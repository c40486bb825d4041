//! The models of all domains, and what has changed in them since it was last taken.
//!
//! Putting an equal resource changes nothing. Backends, certificates and authorities live in a model as long as something
//! of that model uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tidegate_model::{
    Backend, BackendKey, BackendProtocol, BackendTls, CaBundle, CaBundleKey, Certificate, CertificateKey, Change,
    Delta, Domain, DomainName, Endpoints, Generation, Key, Model, Resource,
};

use crate::translator::{DomainChange, DomainEvent};

/// Models by domain.
#[derive(Debug, Default)]
pub(crate) struct Models {
    entries: BTreeMap<DomainName, Entry>,
    events: BTreeMap<DomainName, DomainEvent>,
    /// Generations reached by domains that are gone: one that comes back goes on from there.
    generations: BTreeMap<DomainName, Generation>,
    /// Authorities that can be used: models get those that their resources name.
    bundles: BTreeMap<CaBundleKey, Arc<CaBundle>>,
}

#[derive(Debug)]
struct Entry {
    model: Model,
    /// What is to become of a resource; `None` removes it.
    pending: BTreeMap<Key, Option<Resource>>,
    /// How many routes use a backend.
    backends: BTreeMap<BackendKey, usize>,
    certificates: BTreeMap<CertificateKey, usize>,
    /// How many resources of `model` name a bundle of authorities.
    bundles: BTreeMap<CaBundleKey, usize>,
}

/// A backend as it is now, for the models that use it.
#[derive(Clone, Debug)]
pub(crate) struct CurrentBackend {
    /// `None`: as the routes speak.
    pub(crate) protocol: Option<BackendProtocol>,
    pub(crate) tls: Option<BackendTls>,
    pub(crate) endpoints: Arc<Endpoints>,
}

impl Models {
    pub(crate) fn find(&self, domain: &DomainName) -> Option<&Model> {
        self.entries.get(domain).map(|entry| &entry.model)
    }

    pub(crate) fn is_here(&self, domain: &DomainName) -> bool {
        self.entries.contains_key(domain)
    }

    /// Makes a domain's model, or gives it new data.
    pub(crate) fn put_domain(&mut self, domain: &Arc<Domain>) {
        if let Some(entry) = self.entries.get_mut(&domain.name) {
            if entry.model.domain != *domain {
                entry.model.domain = domain.clone();
                self.events.insert(domain.name.clone(), DomainEvent::Updated(domain.clone()));
            }
            return;
        }
        let mut model = Model::new(domain.clone());
        model.generation = self.generations.remove(&domain.name).unwrap_or_default();
        self.entries.insert(
            domain.name.clone(),
            Entry {
                model,
                pending: BTreeMap::new(),
                backends: BTreeMap::new(),
                certificates: BTreeMap::new(),
                bundles: BTreeMap::new(),
            },
        );
        self.events.insert(domain.name.clone(), DomainEvent::New(domain.clone()));
    }

    /// Drops a domain with all that is in its model.
    pub(crate) fn remove_domain(&mut self, name: &DomainName) {
        if let Some(entry) = self.entries.remove(name) {
            self.generations.insert(name.clone(), entry.model.generation);
            self.events.insert(name.clone(), DomainEvent::Removed);
        }
    }

    pub(crate) fn put(&mut self, domain: &DomainName, resource: Resource) {
        if let Some(entry) = self.entries.get_mut(domain) {
            entry.put(resource);
        }
    }

    pub(crate) fn remove(&mut self, domain: &DomainName, key: Key) {
        if let Some(entry) = self.entries.get_mut(domain) {
            entry.remove(key);
        }
    }

    /// Counts one more user of a backend.
    pub(crate) fn use_backend(&mut self, domain: &DomainName, key: &BackendKey, now: &CurrentBackend) {
        let Some(entry) = self.entries.get_mut(domain) else { return };
        let users = entry.backends.entry(key.clone()).or_default();
        *users += 1;
        if *users == 1 {
            entry.put_backend(key, now);
        }
    }

    /// Counts one user of a backend less; the last one takes it out of the model.
    pub(crate) fn release_backend(&mut self, domain: &DomainName, key: &BackendKey) {
        let Some(entry) = self.entries.get_mut(domain) else { return };
        let Some(users) = entry.backends.get_mut(key) else { return };
        *users = users.saturating_sub(1);
        if *users == 0 {
            entry.backends.remove(key);
            entry.remove(Key::Backend(key.clone()));
            entry.remove(Key::Endpoints(key.clone()));
        }
    }

    /// Gives every model that uses a backend its present state.
    pub(crate) fn update_backend(&mut self, key: &BackendKey, now: &CurrentBackend) {
        for entry in self.entries.values_mut().filter(|entry| entry.backends.contains_key(key)) {
            entry.put_backend(key, now);
        }
    }

    /// Gives every model that uses a backend its present endpoints.
    pub(crate) fn update_endpoints(&mut self, key: &BackendKey, endpoints: &Arc<Endpoints>) {
        for entry in self.entries.values_mut().filter(|entry| entry.backends.contains_key(key)) {
            entry.put(Resource::Endpoints(key.clone(), endpoints.clone()));
        }
    }

    /// Counts one more user of a certificate.
    pub(crate) fn use_certificate(
        &mut self,
        domain: &DomainName,
        key: &CertificateKey,
        certificate: &Arc<Certificate>,
    ) {
        let Some(entry) = self.entries.get_mut(domain) else { return };
        let users = entry.certificates.entry(key.clone()).or_default();
        *users += 1;
        if *users == 1 {
            entry.put(Resource::Certificate(key.clone(), certificate.clone()));
        }
    }

    /// Counts one user of a certificate less; the last one takes it out of the model.
    pub(crate) fn release_certificate(&mut self, domain: &DomainName, key: &CertificateKey) {
        let Some(entry) = self.entries.get_mut(domain) else { return };
        let Some(users) = entry.certificates.get_mut(key) else { return };
        *users = users.saturating_sub(1);
        if *users == 0 {
            entry.certificates.remove(key);
            entry.remove(Key::Certificate(key.clone()));
        }
    }

    /// Gives every model that uses a certificate its present state.
    pub(crate) fn update_certificate(&mut self, key: &CertificateKey, certificate: &Arc<Certificate>) {
        for entry in self.entries.values_mut().filter(|entry| entry.certificates.contains_key(key)) {
            entry.put(Resource::Certificate(key.clone(), certificate.clone()));
        }
    }

    /// Takes the present state of a bundle of authorities, for the models whose resources name it; `None` when it cannot be
    /// used or is not referred to any more.
    pub(crate) fn set_bundle(&mut self, key: &CaBundleKey, bundle: Option<&Arc<CaBundle>>) {
        match bundle {
            Some(bundle) => {
                for entry in self.entries.values_mut().filter(|entry| entry.bundles.contains_key(key)) {
                    entry.put(Resource::CaBundle(key.clone(), bundle.clone()));
                }
                self.bundles.insert(key.clone(), bundle.clone());
            }
            None => {
                self.bundles.remove(key);
            }
        }
    }

    /// Applies what is pending, and returns it.
    pub(crate) fn take_changes(&mut self) -> BTreeMap<DomainName, DomainChange> {
        let mut events = std::mem::take(&mut self.events);
        let mut changes = BTreeMap::new();
        for (name, entry) in &mut self.entries {
            entry.count_bundles(&self.bundles);
            let delta = entry.take_delta();
            let event = events.remove(name);
            if delta.is_some() || event.is_some() {
                changes.insert(name.clone(), DomainChange { event: event.unwrap_or(DomainEvent::Same), delta });
            }
        }
        // What is left has no model any more.
        changes.extend(events.into_iter().map(|(name, event)| (name, DomainChange { event, delta: None })));
        changes
    }
}

impl Entry {
    fn put(&mut self, resource: Resource) {
        let key = resource.key();
        if self.model.find(&key) == Some(&resource) {
            self.pending.remove(&key);
        } else {
            self.pending.insert(key, Some(resource));
        }
    }

    fn remove(&mut self, key: Key) {
        if self.model.find(&key).is_some() {
            self.pending.insert(key, None);
        } else {
            self.pending.remove(&key);
        }
    }

    fn put_backend(&mut self, key: &BackendKey, now: &CurrentBackend) {
        let usual = if key.is_grpc() { BackendProtocol::Http2 } else { BackendProtocol::Http1 };
        let backend = Backend { protocol: now.protocol.unwrap_or(usual), tls: now.tls.clone() };
        self.put(Resource::Backend(key.clone(), Arc::new(backend)));
        self.put(Resource::Endpoints(key.clone(), now.endpoints.clone()));
    }

    /// Brings the bundles of authorities in line with the resources that are about to change.
    fn count_bundles(&mut self, bundles: &BTreeMap<CaBundleKey, Arc<CaBundle>>) {
        let mut changed = BTreeSet::new();
        for (key, resource) in &self.pending {
            for bundle in resource.iter().flat_map(Resource::ca_bundles) {
                *self.bundles.entry(bundle.clone()).or_default() += 1;
                changed.insert(bundle.clone());
            }
            for bundle in self.model.find(key).into_iter().flat_map(Resource::ca_bundles) {
                // Counted when the resource was put.
                *self.bundles.entry(bundle.clone()).or_default() -= 1;
                changed.insert(bundle.clone());
            }
        }
        for key in changed {
            let is_used = self.bundles.get(&key).is_some_and(|count| *count > 0);
            if !is_used {
                self.bundles.remove(&key);
            }
            match bundles.get(&key).filter(|_| is_used) {
                Some(bundle) => self.put(Resource::CaBundle(key, bundle.clone())),
                None => self.remove(Key::CaBundle(key)),
            }
        }
    }

    /// Additions in the order of keys (what is referred to first), then removals the other way round.
    fn take_delta(&mut self) -> Option<Delta> {
        if self.pending.is_empty() {
            return None;
        }
        let mut removed = BTreeSet::new();
        let mut changes = Vec::with_capacity(self.pending.len());
        for (key, resource) in std::mem::take(&mut self.pending) {
            match resource {
                Some(resource) => changes.push(Change::Put(resource)),
                None => {
                    removed.insert(key);
                }
            }
        }
        changes.extend(removed.into_iter().rev().map(Change::Remove));
        let delta = Delta { generation: self.model.generation.next(), is_full: false, changes };
        self.model.apply(&delta);
        Some(delta)
    }
}
