//! Which work a changed object makes.

use std::collections::BTreeSet;

use tidegate_model::{BackendKey, CaBundleKey, DomainName, ObjectName};

use super::{
    Translator,
    store::{objects_of_policy, service_of_slice},
};
use crate::object::{Kind, Object, ObjectRef};

/// Kinds of routes.
pub(super) const ROUTE_KINDS: [Kind; 5] =
    [Kind::HTTPRoute, Kind::GRPCRoute, Kind::TLSRoute, Kind::TCPRoute, Kind::UDPRoute];

/// What must be looked at again.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) domains: BTreeSet<DomainName>,
    pub(super) classes: BTreeSet<ObjectName>,
    pub(super) secrets: BTreeSet<ObjectName>,
    pub(super) bundles: BTreeSet<CaBundleKey>,
    pub(super) tls_policies: BTreeSet<ObjectName>,
    pub(super) tls_policy_statuses: BTreeSet<ObjectName>,
    pub(super) gateways: BTreeSet<ObjectName>,
    pub(super) gateway_statuses: BTreeSet<ObjectName>,
    pub(super) listener_sets: BTreeSet<ObjectName>,
    pub(super) set_statuses: BTreeSet<ObjectName>,
    pub(super) backends: BTreeSet<BackendKey>,
    pub(super) endpoints: BTreeSet<BackendKey>,
    pub(super) routes: BTreeSet<ObjectRef>,
    pub(super) unserved: BTreeSet<ObjectRef>,
}

/// Keys of a `Backend` object.
pub(super) fn keys_of_backend(name: &ObjectName) -> [BackendKey; 2] {
    [BackendKey::Backend { name: name.clone() }, BackendKey::GrpcBackend { name: name.clone() }]
}

impl Translator {
    /// Puts or removes an object and marks the work that follows.
    pub(super) fn replace(&mut self, reference: &ObjectRef, object: Option<Object>) {
        if self.store.find(reference) == object.as_ref() {
            return;
        }
        let before = self.store.replace(reference, object);
        let name = &reference.name;
        match reference.kind {
            Kind::TrafficDomain => {
                self.work.domains.insert(DomainName(name.name.clone()));
            }
            Kind::GatewayClass => {
                self.work.classes.insert(name.clone());
            }
            Kind::Gateway => {
                self.work.gateways.insert(name.clone());
            }
            Kind::HTTPRoute | Kind::GRPCRoute | Kind::TLSRoute | Kind::TCPRoute | Kind::UDPRoute => {
                self.work.routes.insert(reference.clone());
            }
            Kind::ListenerSet => {
                self.work.listener_sets.insert(name.clone());
            }
            Kind::BackendTLSPolicy => {
                self.work.tls_policies.insert(name.clone());
                let after = objects_of_policy(self.store.find(reference));
                for object in after.union(&objects_of_policy(before.as_ref())) {
                    self.mark_backends_of(object);
                    self.work.tls_policy_statuses.extend(self.store.tls_policies_of(object).cloned());
                }
            }
            Kind::ReferenceGrant => {
                let namespace = &name.namespace;
                self.work.gateways.extend(self.edges.gateway_grants.sources_of(namespace).cloned());
                self.work.listener_sets.extend(self.edges.set_grants.sources_of(namespace).cloned());
                self.work.routes.extend(self.edges.route_grants.sources_of(namespace).cloned());
            }
            Kind::Backend => {
                self.work.backends.extend(keys_of_backend(name));
                self.work.unserved.insert(reference.clone());
                self.work.tls_policy_statuses.extend(self.store.tls_policies_of(reference).cloned());
            }
            Kind::Namespace => self.mark_namespace(before.as_ref(), reference),
            Kind::Service => {
                self.mark_service(name, false);
                self.work.tls_policy_statuses.extend(self.store.tls_policies_of(reference).cloned());
            }
            Kind::EndpointSlice => {
                self.work.unserved.insert(reference.clone());
                let after = self.store.find(reference).and_then(service_of_slice);
                for service in [before.as_ref().and_then(service_of_slice), after].iter().flatten() {
                    self.mark_service(service, true);
                }
            }
            Kind::Secret => {
                if self.edges.gateway_secrets.is_target(name) {
                    self.work.secrets.insert(name.clone());
                }
                self.work.bundles.insert(CaBundleKey::Secret(name.clone()));
            }
            Kind::ClusterTrustBundle => {
                self.work.bundles.insert(CaBundleKey::ClusterTrustBundle(name.name.clone()));
            }
            Kind::ConfigMap => {
                self.work.bundles.insert(CaBundleKey::ConfigMap(name.clone()));
                self.work.domains.extend(self.edges.domain_config_maps.sources_of(name).cloned());
            }
        }
    }

    /// The TCP ports of a Service that routes refer to.
    pub(super) fn tcp_ports_of(&self, name: &ObjectName) -> impl Iterator<Item = &BackendKey> {
        let plain = |port| BackendKey::Service { name: name.clone(), port };
        let grpc = |port| BackendKey::GrpcService { name: name.clone(), port };
        let targets = &self.edges.backend_users;
        targets.targets_in(plain(0)..=plain(u16::MAX)).chain(targets.targets_in(grpc(0)..=grpc(u16::MAX)))
    }

    /// Marks the ports of a Service that routes refer to, or only where their endpoints are.
    pub(super) fn mark_service(&mut self, name: &ObjectName, endpoints_only: bool) {
        let udp = |port| BackendKey::UdpService { name: name.clone(), port };
        let keys = self.tcp_ports_of(name).chain(self.edges.backend_users.targets_in(udp(0)..=udp(u16::MAX)));
        let keys: Vec<_> = keys.cloned().collect();
        if endpoints_only {
            self.work.endpoints.extend(keys);
        } else {
            self.work.backends.extend(keys);
        }
    }

    /// Labels of a namespace matter to its routes and ListenerSets only, and only where a parent selects by labels.
    fn mark_namespace(&mut self, before: Option<&Object>, reference: &ObjectRef) {
        let labels = |object: Option<&Object>| object.and_then(|object| object.metadata().labels.clone());
        if labels(before).unwrap_or_default() == labels(self.store.find(reference)).unwrap_or_default() {
            return;
        }
        self.mark_sets_of_namespace(&reference.name.name);
        for kind in ROUTE_KINDS {
            let routes = self.store.references_in(kind, &reference.name.name);
            let reads = routes.filter(|route| self.routes.get(route).is_none_or(|state| state.reads_labels));
            self.work.routes.extend(reads.cloned());
        }
    }

    /// Marks what the settings decide about; the rest follows from what changes.
    pub(super) fn mark_everything(&mut self) {
        self.work.domains.extend(self.drafts.keys().cloned());
        let of = |kind| self.store.references_of(kind);
        self.work.classes.extend(of(Kind::GatewayClass).map(|reference| reference.name.clone()));
        for kind in ROUTE_KINDS {
            self.work.routes.extend(of(kind).cloned());
        }
    }
}
