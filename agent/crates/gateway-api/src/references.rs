//! References of routes and listeners to backends: which backend a `backendRef` means, and whether it may be used.

use std::{collections::BTreeSet, sync::Arc};

use tidegate_model::{BackendKey, ObjectName};

use crate::{
    generated::common::BackendObjectReference,
    grants::CrossReference,
    object::{ENVOY_GROUP, GATEWAY_GROUP, Kind, OWN_GROUP},
    status::Problem,
    translator::store::Store,
};

/// What an object refers to: what it depends on, and what of it can be used.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Uses {
    /// Backends that are named, whether they exist or not.
    pub(crate) named: BTreeSet<BackendKey>,
    /// Backends that requests may be sent to.
    pub(crate) usable: BTreeSet<BackendKey>,
    /// Namespaces whose grants matter.
    pub(crate) grants: BTreeSet<Arc<str>>,
    /// References that lead nowhere.
    pub(crate) problems: Vec<Problem>,
}

/// Resolves the references of one object.
#[derive(Debug)]
pub(crate) struct Resolver<'a> {
    store: &'a Store,
    kind: Kind,
    namespace: &'a str,
    uses: Uses,
}

impl<'a> Resolver<'a> {
    pub(crate) fn new(store: &'a Store, kind: Kind, namespace: &'a str) -> Self {
        Self { store, kind, namespace, uses: Uses::default() }
    }

    pub(crate) fn into_uses(self) -> Uses {
        self.uses
    }

    /// Takes what was noted of references that lead nowhere.
    pub(crate) fn take_problems(&mut self) -> Vec<Problem> {
        std::mem::take(&mut self.uses.problems)
    }

    /// Finds the backend that the reference in `field` leads to. A reference that leads nowhere is noted.
    pub(crate) fn resolve(&mut self, field: &str, reference: &BackendObjectReference) -> Result<BackendKey, Problem> {
        self.resolve_as(field, reference, self.kind == Kind::GRPCRoute)
    }

    /// As [`Self::resolve`], for a backend that is asked in gRPC, whatever the route speaks.
    pub(crate) fn resolve_grpc(
        &mut self,
        field: &str,
        reference: &BackendObjectReference,
    ) -> Result<BackendKey, Problem> {
        self.resolve_as(field, reference, true)
    }

    fn resolve_as(
        &mut self,
        field: &str,
        reference: &BackendObjectReference,
        is_grpc: bool,
    ) -> Result<BackendKey, Problem> {
        let resolved = self.find(field, reference, is_grpc);
        match &resolved {
            Ok(key) => {
                self.uses.usable.insert(key.clone());
            }
            Err(problem) => self.uses.problems.push(problem.clone()),
        }
        resolved
    }

    fn find(&mut self, field: &str, reference: &BackendObjectReference, is_grpc: bool) -> Result<BackendKey, Problem> {
        let group = reference.group.as_deref().unwrap_or_default();
        let kind = reference.kind.as_deref().unwrap_or("Service");
        let namespace = reference.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or(self.namespace);
        let name = ObjectName::new(namespace, &reference.name);
        let (key, wrong_port) = match (group, kind) {
            ("" | "core", "Service") => {
                let port = reference.port.and_then(|port| u16::try_from(port).ok()).unwrap_or_default();
                let key = match self.kind {
                    Kind::UDPRoute => BackendKey::UdpService { name, port },
                    _ if is_grpc => BackendKey::GrpcService { name, port },
                    _ => BackendKey::Service { name, port },
                };
                (key, (port == 0).then_some(reference.port))
            }
            (OWN_GROUP | ENVOY_GROUP, "Backend") if is_grpc => (BackendKey::GrpcBackend { name }, None),
            (OWN_GROUP | ENVOY_GROUP, "Backend") => (BackendKey::Backend { name }, None),
            _ => {
                let shown = if group.is_empty() { "the core group" } else { group };
                return Err(Problem::new(
                    "InvalidKind",
                    format!(
                        "{field}: kind {kind} of {shown} cannot be a backend: use a Service, or a Backend of {OWN_GROUP}"
                    ),
                ));
            }
        };
        if namespace != self.namespace {
            self.uses.grants.insert(Arc::from(namespace));
            let cross = CrossReference {
                from_group: GATEWAY_GROUP,
                from_kind: self.kind.as_str(),
                from_namespace: self.namespace,
                to_group: if kind == "Service" { "" } else { group },
                to_kind: kind,
                to_name: &reference.name,
            };
            if !self.store.is_granted(namespace, cross) {
                return Err(Problem::new(
                    "RefNotPermitted",
                    format!(
                        "{field}: {kind} {namespace}/{} is in another namespace: make a ReferenceGrant in {namespace} from {} of {}",
                        reference.name, self.kind, self.namespace
                    ),
                ));
            }
        }
        if let Some(port) = wrong_port {
            let wrong = port.map_or_else(|| " is missing".to_owned(), |port| format!(": {port} is no port"));
            return Err(Problem::new(
                "BackendNotFound",
                format!("{field}.port{wrong}: write the port of the Service, 1 to 65535"),
            ));
        }
        self.uses.named.insert(key.clone());
        let verdict = match self.kind {
            Kind::TLSRoute | Kind::TCPRoute | Kind::UDPRoute => self.store.check_backend(&key),
            _ => self.store.read_backend(&key).map(|_| ()),
        };
        match verdict {
            Ok(()) => Ok(key),
            Err(problem) => Err(Problem::new(problem.reason, format!("{field}: {}", problem.message))),
        }
    }
}
