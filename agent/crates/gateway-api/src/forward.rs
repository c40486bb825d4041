//! Routes that read nothing of what they carry: from TLSRoute, TCPRoute and UDPRoute objects to the model's forwards, before
//! they are attached.
//!
//! Nothing tells one rule of such a route from another, so the first is served and the others are named. Where a reference
//! leads nowhere its share is refused, as the Gateway API demands, and not given to the others.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tidegate_model::{BackendTarget, Forward, WeightedBackend};

use crate::{
    generated::{
        common::{BackendObjectReference, BackendRef, L4RouteRule, ParentReference},
        tcp_route::TcpRoute,
        tls_route::TlsRoute,
        udp_route::UdpRoute,
    },
    object::{Kind, created_at},
    references::Resolver,
    route::{RouteDraft, read_hostnames, read_weight},
    status::Problem,
    translator::store::Store,
};

/// Reads a TLSRoute.
pub(crate) fn read_tls_route(route: &TlsRoute, store: &Store) -> RouteDraft {
    let spec = &route.spec;
    let fields = Fields {
        metadata: &route.metadata,
        parents: spec.parent_refs.as_deref(),
        hostnames: &spec.hostnames,
        rules: &spec.rules,
        wants_default_gateways: spec.use_default_gateways.is_some(),
    };
    fields.read(Kind::TLSRoute, store)
}

/// Reads a TCPRoute.
pub(crate) fn read_tcp_route(route: &TcpRoute, store: &Store) -> RouteDraft {
    let spec = &route.spec;
    let fields = Fields {
        metadata: &route.metadata,
        parents: spec.parent_refs.as_deref(),
        hostnames: &[],
        rules: &spec.rules,
        wants_default_gateways: spec.use_default_gateways.is_some(),
    };
    fields.read(Kind::TCPRoute, store)
}

/// Reads a UDPRoute.
pub(crate) fn read_udp_route(route: &UdpRoute, store: &Store) -> RouteDraft {
    let spec = &route.spec;
    let fields = Fields {
        metadata: &route.metadata,
        parents: spec.parent_refs.as_deref(),
        hostnames: &[],
        rules: &spec.rules,
        wants_default_gateways: spec.use_default_gateways.is_some(),
    };
    fields.read(Kind::UDPRoute, store)
}

/// What the three kinds have in common.
struct Fields<'a> {
    metadata: &'a ObjectMeta,
    parents: Option<&'a [ParentReference]>,
    hostnames: &'a [String],
    rules: &'a [L4RouteRule],
    wants_default_gateways: bool,
}

impl Fields<'_> {
    fn read(&self, kind: Kind, store: &Store) -> RouteDraft {
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        let mut resolver = Resolver::new(store, kind, namespace);
        let mut faults = Vec::new();
        let mut unenforced = Vec::new();
        let hostnames = read_hostnames(self.hostnames, &mut faults);
        let forwards = self.rules.first().map(|rule| {
            let backends = read_backends(rule, &mut resolver, &mut faults);
            Forward { created: created_at(self.metadata), attachments: Vec::new(), backends }
        });
        for index in 1..self.rules.len() {
            faults.push(format!(
                "spec.rules[{index}] is left out: nothing tells a {kind}'s rules apart: merge its backendRefs into the first"
            ));
        }
        let rejection = if hostnames.is_empty() && !self.hostnames.is_empty() {
            Some(format!("no host name is valid: {}", faults.join("; ")))
        } else if forwards.is_none() {
            Some("spec.rules is empty: write one rule with backendRefs".to_owned())
        } else {
            None
        };
        if self.wants_default_gateways {
            unenforced
                .push("spec.useDefaultGateways is not enforced yet: name a Gateway in spec.parentRefs".to_owned());
        }
        RouteDraft {
            generation: self.metadata.generation,
            parents: self.parents.unwrap_or_default().to_vec(),
            hostnames,
            rules: Vec::new(),
            forwards: forwards.map(|forward| (0, forward)).into_iter().collect(),
            rejection: rejection.map(|message| Problem::new("UnsupportedValue", message)),
            faults,
            unenforced,
            uses: resolver.into_uses(),
        }
    }
}

/// Reads the `backendRefs` of the rule that is served. With a weight that is none nothing is: shares would be other than meant.
fn read_backends(rule: &L4RouteRule, resolver: &mut Resolver<'_>, faults: &mut Vec<String>) -> Vec<WeightedBackend> {
    let field = "spec.rules[0].backendRefs";
    if rule.backend_refs.is_empty() {
        faults.push(format!("{field} is empty: name a Service; until then everything is refused"));
    }
    let read = rule.backend_refs.iter().enumerate();
    let read = read.map(|(index, reference)| read_backend(&format!("{field}[{index}]"), reference, resolver));
    read.collect::<Result<_, _>>().unwrap_or_else(|fault| {
        faults.push(format!("{fault}; until then everything is refused"));
        vec![WeightedBackend { target: BackendTarget::Invalid(Arc::from(fault)), weight: 1, filters: Vec::new() }]
    })
}

fn read_backend(field: &str, reference: &BackendRef, resolver: &mut Resolver<'_>) -> Result<WeightedBackend, String> {
    let weight = read_weight(field, reference.weight)?;
    let object = BackendObjectReference {
        group: reference.group.clone(),
        kind: reference.kind.clone(),
        name: reference.name.clone(),
        namespace: reference.namespace.clone(),
        port: reference.port,
    };
    let target = match resolver.resolve(field, &object) {
        Ok(key) => BackendTarget::Backend(key),
        Err(problem) => BackendTarget::Invalid(Arc::from(problem.message.as_str())),
    };
    Ok(WeightedBackend { target, weight, filters: Vec::new() })
}
