//! The translator: takes changes of objects, looks again at what depends on them and at nothing else, and gives back what
//! changes in the models and in what is said about objects.
//!
//! A change marks work (`mark.rs`); the stages do it in an order in which each sees the finished results of those before
//! it: domains, classes, certificates, authorities, TLS policies, backends, ListenerSets,
//! Gateways, routes, statuses. The outcome depends on the objects and not
//! on the order in which they came, except that an address once given is kept.

mod backends;
mod classes;
mod domains;
mod gateways;
pub(crate) mod index;
mod listener_sets;
mod mark;
mod published;
mod routes;
mod sorted;
pub(crate) mod store;
mod tls_policies;
mod unserved;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tidegate_model::{BackendKey, CaBundleKey, Delta, Domain, DomainName, ListenerKey, Model, ObjectName};

use self::{backends::BackendState, classes::ClassState, index::Index, mark::Work, routes::RouteState, store::Store};
use crate::{
    addresses::Pool,
    certificate,
    claims::Claims,
    domain::{DomainDraft, DomainState},
    gateway::GatewayState,
    models::Models,
    object::{Kind, Object, ObjectRef},
    origin::{self, Origin, Subject},
    status::ObjectStatus,
};

/// What the translation must know beside the objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Values of `GatewayClass.spec.controllerName` that are this project's.
    pub controller_names: Vec<String>,
    /// Name of this node, for messages.
    pub node_name: String,
    /// Addresses of this node, for domains with `addresses: {node: InternalIP}`.
    pub node_addresses: Vec<IpAddr>,
    /// Labels of this node, for `nodeSelector`.
    pub node_labels: BTreeMap<String, String>,
    /// Whether a route is told that its Gateway does not exist. True where no other controller can own that Gateway (a
    /// folder of files), false in Kubernetes.
    pub reports_missing_parents: bool,
    /// Release of the installed Gateway API definitions when it is none that is known; `None` for a folder of files.
    pub unknown_release: Option<String>,
}

/// A change of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The object is new or has changed.
    Put(Object),
    /// The object is gone.
    Delete(ObjectRef),
}

/// What follows from a batch of events.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Domains of which something changed.
    pub domains: BTreeMap<DomainName, DomainChange>,
    /// Objects about which something else is said now, see [`Translator::find_status`]; an object that is gone has none.
    pub statuses: Vec<ObjectRef>,
    /// How many objects were looked at again: the measure of what a change costs.
    pub translated: usize,
}

/// What changes in a domain.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainChange {
    /// What happened to the domain itself.
    pub event: DomainEvent,
    /// What happened to its model; `None` when nothing did.
    pub delta: Option<Delta>,
}

/// What happened to a domain itself.
#[derive(Clone, Debug, PartialEq)]
pub enum DomainEvent {
    /// It is served from now on. Its model starts with the delta.
    New(Arc<Domain>),
    /// Its own data changed.
    Updated(Arc<Domain>),
    /// Nothing.
    Same,
    /// It is not served any more; its model is gone.
    Removed,
}

/// Where a Gateway or a ListenerSet has its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Domain that serves it.
    pub domain: DomainName,
    /// Whether its addresses are those of the nodes.
    pub shares_node_addresses: bool,
}

/// What a Gateway asks of objects that are made for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Infrastructure {
    /// `metadata.uid` of the Gateway.
    pub uid: Option<String>,
    /// `spec.infrastructure.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.infrastructure.annotations`.
    pub annotations: BTreeMap<String, String>,
}

/// Translates objects into models and statuses.
#[derive(Debug)]
pub struct Translator {
    settings: Settings,
    store: Store,
    work: Work,
    drafts: BTreeMap<DomainName, Arc<DomainDraft>>,
    domains: BTreeMap<DomainName, DomainState>,
    classes: BTreeMap<ObjectName, ClassState>,
    pools: BTreeMap<DomainName, Pool>,
    /// Addresses that the status of Gateways shows.
    said_addresses: BTreeMap<ObjectName, Vec<IpAddr>>,
    listener_sets: BTreeMap<ObjectName, listener_sets::SetState>,
    gateways: BTreeMap<ObjectName, GatewayState>,
    claims: Claims,
    certificates: BTreeMap<ObjectName, Result<Arc<tidegate_model::Certificate>, String>>,
    bundles: BTreeMap<CaBundleKey, tls_policies::ReadBundle>,
    tls_policies: BTreeMap<ObjectName, tls_policies::PolicyState>,
    published: BTreeMap<ObjectName, published::Published>,
    backends: BTreeMap<BackendKey, BackendState>,
    routes: BTreeMap<ObjectRef, RouteState>,
    attached: BTreeMap<ListenerKey, u32>,
    edges: Edges,
    models: Models,
    statuses: BTreeMap<ObjectRef, ObjectStatus>,
    changed_statuses: BTreeSet<ObjectRef>,
    translated: usize,
}

/// Who refers to what.
#[derive(Debug, Default)]
struct Edges {
    domain_config_maps: Index<DomainName, ObjectName>,
    class_domains: Index<ObjectName, DomainName>,
    gateway_classes: Index<ObjectName, ObjectName>,
    gateway_secrets: Index<ObjectName, ObjectName>,
    gateway_bundles: Index<ObjectName, CaBundleKey>,
    gateway_grants: Index<ObjectName, Arc<str>>,
    set_gateways: Index<ObjectName, ObjectName>,
    set_grants: Index<ObjectName, Arc<str>>,
    policy_bundles: Index<ObjectName, CaBundleKey>,
    /// Routes to the Gateways and ListenerSets that they name.
    route_parents: Index<ObjectRef, ObjectRef>,
    /// Routes, Gateways and ListenerSets to the backends that they name.
    backend_users: Index<ObjectRef, BackendKey>,
    route_grants: Index<ObjectRef, Arc<str>>,
}

impl Translator {
    /// A translator that knows no object.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            store: Store::default(),
            work: Work::default(),
            drafts: BTreeMap::new(),
            domains: BTreeMap::new(),
            classes: BTreeMap::new(),
            pools: BTreeMap::new(),
            said_addresses: BTreeMap::new(),
            listener_sets: BTreeMap::new(),
            gateways: BTreeMap::new(),
            claims: Claims::default(),
            certificates: BTreeMap::new(),
            bundles: BTreeMap::new(),
            tls_policies: BTreeMap::new(),
            published: BTreeMap::new(),
            backends: BTreeMap::new(),
            routes: BTreeMap::new(),
            attached: BTreeMap::new(),
            edges: Edges::default(),
            models: Models::default(),
            statuses: BTreeMap::new(),
            changed_statuses: BTreeSet::new(),
            translated: 0,
        }
    }

    /// Takes changes of objects. Events of one call count as one moment: only their outcome is seen.
    pub fn apply(&mut self, events: impl IntoIterator<Item = Event>) -> Changes {
        for event in events {
            match event {
                Event::Put(object) => self.replace(&object.reference(), Some(object)),
                Event::Delete(reference) => self.replace(&reference, None),
            }
        }
        self.settle()
    }

    /// Takes the addresses of a name of [`Self::hostnames_wanted`]; an empty list leaves its endpoints out. The order of
    /// the addresses does not matter.
    pub fn set_resolved(&mut self, hostname: &str, mut addresses: Vec<IpAddr>) -> Changes {
        addresses.sort_unstable();
        addresses.dedup();
        for name in self.store.resolve(&crate::endpoints::normalize(hostname), addresses) {
            self.work.endpoints.extend(mark::keys_of_backend(&name));
        }
        self.settle()
    }

    /// Takes the addresses that a Gateway's status shows in a cluster: they come before those that would be found for it. In
    /// force with the next call of [`Self::apply`].
    pub fn set_said_addresses(&mut self, gateway: &ObjectName, addresses: Vec<IpAddr>) {
        let has = self.gateways.get(gateway).and_then(|state| state.addresses.as_ref().ok());
        if !addresses.is_empty() && has.is_some_and(|has| *has != addresses) {
            self.work.gateways.insert(gateway.clone());
        }
        if addresses.is_empty() {
            self.said_addresses.remove(gateway);
        } else {
            self.said_addresses.insert(gateway.clone(), addresses);
        }
    }

    /// Takes other settings: the node's addresses or labels have changed.
    pub fn set_settings(&mut self, settings: Settings) -> Changes {
        if self.settings != settings {
            self.settings = settings;
            self.mark_everything();
        }
        self.settle()
    }

    /// Names that the agent must resolve: those of `Backend` objects' `fqdn` endpoints, lower case, without a trailing dot.
    pub fn hostnames_wanted(&self) -> BTreeSet<String> {
        self.store.hostnames().cloned().collect()
    }

    /// The model of a domain that is served on this node.
    pub fn model(&self, domain: &DomainName) -> Option<&Model> {
        self.models.find(domain)
    }

    /// Where a Gateway of this controller, or a ListenerSet that such a one takes, has its place; `None` when it has none.
    pub fn find_place(&self, object: &ObjectRef) -> Option<Place> {
        let gateway = match object.kind {
            Kind::ListenerSet => self.edges.set_gateways.targets_of(&object.name).next()?,
            _ => &object.name,
        };
        let state = self.gateways.get(gateway)?;
        if object.kind == Kind::ListenerSet && !state.sets.contains(&object.name) {
            return None;
        }
        Some(Place { domain: state.domain.clone().ok()?, shares_node_addresses: !state.owns_addresses })
    }

    /// What a Gateway of this controller asks of objects that are made for it; `None` when it is not accepted.
    pub fn find_infrastructure(&self, gateway: &ObjectName) -> Option<Infrastructure> {
        self.gateways.get(gateway).filter(|state| state.rejection().is_none())?;
        let object = self.store.find_gateway(gateway)?;
        let asked = object.spec.infrastructure.clone().unwrap_or_default();
        Some(Infrastructure {
            uid: object.metadata.uid.clone(),
            labels: asked.labels.unwrap_or_default(),
            annotations: asked.annotations.unwrap_or_default(),
        })
    }

    /// Addresses of this node, as domains with `addresses: {node: InternalIP}` have them.
    pub fn node_addresses(&self) -> &[IpAddr] {
        &self.settings.node_addresses
    }

    /// What is said about an object; `None` when it is not this project's or nothing is to be said.
    pub fn find_status(&self, reference: &ObjectRef) -> Option<&ObjectStatus> {
        self.statuses.get(reference)
    }

    /// What is said about every object, by kind and name.
    pub fn statuses(&self) -> impl Iterator<Item = (&ObjectRef, &ObjectStatus)> {
        self.statuses.iter()
    }

    /// Finds the object and field behind something of a domain.
    pub fn find_origin(&self, domain: &DomainName, subject: &Subject) -> Option<Origin> {
        match subject {
            Subject::Resource(key) => {
                self.models.find(domain)?.find(key)?;
                Some(origin::find_resource(&self.store, key))
            }
            Subject::Frontend(frontend) => {
                let mut listeners = self.models.find(domain)?.listeners();
                let (key, _) = listeners.find(|(_, listener)| listener.frontends.contains(frontend))?;
                Some(origin::find_listener(&self.store, key))
            }
            _ => origin::find_admission(&self.store, domain, subject),
        }
    }

    /// Does all work that is marked.
    fn settle(&mut self) -> Changes {
        self.settle_domains();
        self.settle_classes();
        self.settle_certificates();
        self.settle_bundles();
        self.settle_tls_policies();
        self.settle_backends();
        self.settle_listener_sets();
        self.settle_gateways();
        self.settle_routes();
        self.settle_unserved();
        self.settle_tls_policy_statuses();
        self.settle_gateway_statuses();
        self.settle_set_statuses();
        Changes {
            domains: self.models.take_changes(),
            statuses: std::mem::take(&mut self.changed_statuses).into_iter().collect(),
            translated: std::mem::take(&mut self.translated),
        }
    }

    /// Reads again the Secrets that Gateways refer to.
    fn settle_certificates(&mut self) {
        for name in std::mem::take(&mut self.work.secrets) {
            if !self.edges.gateway_secrets.is_target(&name) {
                self.certificates.remove(&name);
                continue;
            }
            let before = self.certificates.remove(&name);
            let now = self.read_certificate(&name);
            match (&before, &now) {
                (Some(Ok(_)), Ok(certificate)) => {
                    self.models.update_certificate(&tidegate_model::CertificateKey(name.clone()), certificate);
                }
                (Some(Err(before)), Err(now)) if before == now => {}
                _ => self.work.gateways.extend(self.edges.gateway_secrets.sources_of(&name).cloned()),
            }
            self.certificates.insert(name, now);
        }
    }

    fn read_certificate(&mut self, name: &ObjectName) -> Result<Arc<tidegate_model::Certificate>, String> {
        self.translated += 1;
        match self.store.find_secret(name) {
            None => Err(format!("Secret/{name} does not exist: create it or change the reference")),
            Some(secret) => {
                certificate::read_certificate(secret).map(Arc::new).map_err(|error| format!("Secret/{name}: {error}"))
            }
        }
    }

    /// Notes what is said about an object; `None` when the object is gone or not this project's.
    fn set_status(&mut self, reference: &ObjectRef, status: Option<ObjectStatus>) {
        let known = self.statuses.get(reference);
        if known == status.as_ref() {
            return;
        }
        match status {
            Some(status) => self.statuses.insert(reference.clone(), status),
            None => self.statuses.remove(reference),
        };
        self.changed_statuses.insert(reference.clone());
    }
}
