//! The objects as they are, with the look-ups that reading them needs. Knows nothing of what they are translated to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, Secret, Service},
    discovery::v1::EndpointSlice,
};
use tidegate_model::{BackendKey, Endpoints, ObjectName, Transport};

use super::index::Index;
use crate::{
    api::{Backend, ClusterTrustBundle, TrafficDomain},
    endpoints::{
        ReadBackend, SERVICE_NAME_LABEL, check_backend, check_service, find_port, hostnames, object_of, read_backend,
        read_backend_endpoints, read_service, read_slices,
    },
    generated::{
        backend_tls_policy::BackendTlsPolicy, gateway::Gateway, gateway_class::GatewayClass, grpc_route::GrpcRoute,
        http_route::HttpRoute, listener_set::ListenerSet, reference_grant::ReferenceGrant, tcp_route::TcpRoute,
        tls_route::TlsRoute, udp_route::UdpRoute,
    },
    grants::{CrossReference, is_permitted},
    object::{Kind, Object, ObjectRef},
    status::Problem,
    tls_policy::{Target, rank_of, targets_of},
};

/// All objects and what the agent has resolved.
#[derive(Debug, Default)]
pub(crate) struct Store {
    objects: BTreeMap<ObjectRef, Object>,
    /// EndpointSlice to Service.
    slices: Index<ObjectName, ObjectName>,
    /// BackendTLSPolicy to Service or `Backend`.
    tls_policies: Index<ObjectName, ObjectRef>,
    /// `Backend` to the names that it needs.
    hostnames: Index<ObjectName, String>,
    resolved: BTreeMap<String, Vec<IpAddr>>,
}

macro_rules! finders {
    ($($finder:ident: $kind:ident -> $type:ty;)+) => {
        $(pub(crate) fn $finder(&self, name: &ObjectName) -> Option<&Arc<$type>> {
            match self.objects.get(&ObjectRef::new(Kind::$kind, name.clone()))? {
                Object::$kind(object) => Some(object),
                _ => None,
            }
        })+
    };
}

impl Store {
    finders! {
        find_domain: TrafficDomain -> TrafficDomain;
        find_class: GatewayClass -> GatewayClass;
        find_gateway: Gateway -> Gateway;
        find_listener_set: ListenerSet -> ListenerSet;
        find_http_route: HTTPRoute -> HttpRoute;
        find_grpc_route: GRPCRoute -> GrpcRoute;
        find_tls_route: TLSRoute -> TlsRoute;
        find_tcp_route: TCPRoute -> TcpRoute;
        find_udp_route: UDPRoute -> UdpRoute;
        find_backend: Backend -> Backend;
        find_namespace: Namespace -> Namespace;
        find_service: Service -> Service;
        find_secret: Secret -> Secret;
        find_config_map: ConfigMap -> ConfigMap;
        find_cluster_trust_bundle: ClusterTrustBundle -> ClusterTrustBundle;
        find_tls_policy: BackendTLSPolicy -> BackendTlsPolicy;
    }

    pub(crate) fn find(&self, reference: &ObjectRef) -> Option<&Object> {
        self.objects.get(reference)
    }

    /// Puts or removes an object; returns what was there.
    pub(crate) fn replace(&mut self, reference: &ObjectRef, object: Option<Object>) -> Option<Object> {
        let name = &reference.name;
        match reference.kind {
            Kind::EndpointSlice => {
                let service = object.as_ref().and_then(service_of_slice);
                self.slices.replace(name, service.into_iter().collect());
            }
            Kind::BackendTLSPolicy => {
                self.tls_policies.replace(name, objects_of_policy(object.as_ref()));
            }
            Kind::Backend => {
                let names = match &object {
                    Some(Object::Backend(backend)) => hostnames(backend).collect(),
                    _ => BTreeSet::new(),
                };
                for orphan in self.hostnames.replace(name, names) {
                    self.resolved.remove(&orphan);
                }
            }
            _ => {}
        }
        match object {
            Some(object) => self.objects.insert(reference.clone(), object),
            None => self.objects.remove(reference),
        }
    }

    /// References of all objects of a kind in a namespace.
    pub(crate) fn references_in(&self, kind: Kind, namespace: &str) -> impl Iterator<Item = &ObjectRef> {
        let start = ObjectRef::new(kind, ObjectName::new(namespace, ""));
        let namespace = start.name.namespace.clone();
        self.objects
            .range(start..)
            .map(|(reference, _)| reference)
            .take_while(move |reference| reference.kind == kind && reference.name.namespace == namespace)
    }

    /// References of all objects of a kind.
    pub(crate) fn references_of(&self, kind: Kind) -> impl Iterator<Item = &ObjectRef> {
        let start = ObjectRef::new(kind, ObjectName::new("", ""));
        self.objects.range(start..).map(|(reference, _)| reference).take_while(move |reference| reference.kind == kind)
    }

    /// Labels of a namespace; none when there is no such object.
    pub(crate) fn namespace_labels(&self, namespace: &str) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let found = self.find_namespace(&ObjectName::new("", namespace));
        found.and_then(|namespace| namespace.metadata.labels.as_ref()).unwrap_or(&NONE)
    }

    /// Whether a reference into another namespace is granted there.
    pub(crate) fn is_granted(&self, to_namespace: &str, reference: CrossReference<'_>) -> bool {
        let grants =
            self.references_in(Kind::ReferenceGrant, to_namespace).filter_map(|grant| match self.find(grant) {
                Some(Object::ReferenceGrant(grant)) => Some(grant as &Arc<ReferenceGrant>),
                _ => None,
            });
        is_permitted(grants, reference)
    }

    /// Checks that bytes can be sent to a backend, whatever they say.
    pub(crate) fn check_backend(&self, key: &BackendKey) -> Result<(), Problem> {
        let check = |name: &ObjectName, port, transport| {
            check_service(name, port, transport, self.find_service(name).map(|service| &**service)).map(|_| ())
        };
        match key {
            BackendKey::Service { name, port } | BackendKey::GrpcService { name, port } => {
                check(name, *port, Transport::Tcp)
            }
            BackendKey::UdpService { name, port } => check(name, *port, Transport::Udp),
            BackendKey::Backend { name } | BackendKey::GrpcBackend { name } => {
                check_backend(name, self.find_backend(name).map(|backend| &**backend)).map(|_| ())
            }
        }
    }

    /// Checks that requests can be sent to a backend.
    pub(crate) fn read_backend(&self, key: &BackendKey) -> ReadBackend {
        let read = match key {
            BackendKey::Backend { name } | BackendKey::GrpcBackend { name } => {
                read_backend(name, self.find_backend(name).map(|backend| &**backend))
            }
            BackendKey::Service { name, port } | BackendKey::GrpcService { name, port } => {
                read_service(name, *port, Transport::Tcp, self.find_service(name).map(|service| &**service))
            }
            BackendKey::UdpService { name, port } => {
                read_service(name, *port, Transport::Udp, self.find_service(name).map(|service| &**service))
            }
        }?;
        if read.is_tls && self.find_tls_policy_of(key).is_none() {
            return Err(Problem::new(
                "UnsupportedProtocol",
                format!(
                    "{key} speaks TLS by its appProtocol, and no BackendTLSPolicy says whom to trust: make one for it; nothing is sent in clear"
                ),
            ));
        }
        Ok(read)
    }

    /// BackendTLSPolicies that name an object.
    pub(crate) fn tls_policies_of(&self, object: &ObjectRef) -> impl Iterator<Item = &ObjectName> {
        self.tls_policies.sources_of(object)
    }

    /// The BackendTLSPolicy that decides about a backend: one for its port before one for the whole object, then the
    /// older one, then by name.
    pub(crate) fn find_tls_policy_of(&self, key: &BackendKey) -> Option<ObjectName> {
        if matches!(key, BackendKey::UdpService { .. }) {
            return None;
        }
        let (kind, name) = object_of(key);
        let object = ObjectRef::new(kind, name.clone());
        let policies = self.tls_policies_of(&object).filter_map(|policy| {
            let policy = self.find_tls_policy(policy)?;
            let sections =
                targets_of(policy).filter(|target| target.object == object).filter_map(|target| {
                    match &target.section {
                        None => Some(true),
                        Some(section) => self.is_port(key, section).then_some(false),
                    }
                });
            Some((sections.min()?, rank_of(policy)))
        });
        policies.min().map(|(_, (_, name))| name)
    }

    /// Whether the target of a policy means a backend: its port, or all ports of which this is one without a policy of its
    /// own.
    pub(crate) fn is_meant(&self, target: &Target, key: &BackendKey) -> bool {
        match &target.section {
            Some(section) => self.is_port(key, section),
            None => {
                let policies = self.tls_policies_of(&target.object).filter_map(|policy| self.find_tls_policy(policy));
                let mut others = policies.flat_map(|policy| targets_of(policy));
                !others.any(|other| {
                    other.object == target.object && other.section.is_some_and(|section| self.is_port(key, &section))
                })
            }
        }
    }

    /// Whether a backend is the port of that name.
    fn is_port(&self, key: &BackendKey, section: &str) -> bool {
        let (BackendKey::Service { name, port } | BackendKey::GrpcService { name, port }) = key else { return false };
        let port = self.find_service(name).and_then(|service| find_port(service, *port, Transport::Tcp));
        port.is_some_and(|port| port.name.as_deref() == Some(section))
    }

    /// Whether a Service has a port of that name.
    pub(crate) fn has_port(&self, service: &ObjectName, section: &str) -> bool {
        let ports = self.find_service(service).and_then(|service| service.spec.as_ref()?.ports.as_ref());
        ports.into_iter().flatten().any(|port| port.name.as_deref() == Some(section))
    }

    /// Endpoints of a backend.
    pub(crate) fn read_endpoints(&self, key: &BackendKey) -> Endpoints {
        match key {
            BackendKey::Backend { name } | BackendKey::GrpcBackend { name } => self
                .find_backend(name)
                .map(|backend| read_backend_endpoints(backend, &self.resolved))
                .unwrap_or_default(),
            BackendKey::Service { name, port }
            | BackendKey::GrpcService { name, port }
            | BackendKey::UdpService { name, port } => {
                let is_udp = matches!(key, BackendKey::UdpService { .. });
                let transport = if is_udp { Transport::Udp } else { Transport::Tcp };
                let Some(service) = self.find_service(name) else { return Endpoints::default() };
                let slices = self.slices.sources_of(name).filter_map(|slice| {
                    match self.find(&ObjectRef::new(Kind::EndpointSlice, slice.clone())) {
                        Some(Object::EndpointSlice(slice)) => Some(&**slice as &EndpointSlice),
                        _ => None,
                    }
                });
                read_slices(*port, transport, service, slices)
            }
        }
    }

    /// Takes the addresses of a name; returns the `Backend` objects that need them, none when nothing changed.
    pub(crate) fn resolve(&mut self, hostname: &str, addresses: Vec<IpAddr>) -> Vec<ObjectName> {
        let hostname = hostname.to_owned();
        if !self.hostnames.is_target(&hostname) || self.resolved.get(&hostname) == Some(&addresses) {
            return Vec::new();
        }
        let users = self.hostnames.sources_of(&hostname).cloned().collect();
        self.resolved.insert(hostname, addresses);
        users
    }

    /// Names that must be resolved.
    pub(crate) fn hostnames(&self) -> impl Iterator<Item = &String> {
        self.hostnames.targets()
    }
}

/// The Service that an EndpointSlice belongs to.
pub(crate) fn service_of_slice(object: &Object) -> Option<ObjectName> {
    let Object::EndpointSlice(slice) = object else { return None };
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    Some(ObjectName::new(slice.metadata.namespace.as_deref()?, service))
}

/// The objects that a BackendTLSPolicy is for.
pub(crate) fn objects_of_policy(object: Option<&Object>) -> BTreeSet<ObjectRef> {
    let Some(Object::BackendTLSPolicy(policy)) = object else { return BTreeSet::new() };
    targets_of(policy).map(|target| target.object).collect()
}
