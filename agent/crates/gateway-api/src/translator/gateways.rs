//! Stage: Gateways: their addresses, what they claim, and the listeners and certificates that they put into the model.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tidegate_model::{
    CertificateKey, DomainName, FrontendKey, Key, Listener, ListenerKey, ListenerTls, ObjectName, Protocol, Resource,
    TlsMode, Transport,
};

use super::Translator;
use crate::{
    attach::GatewayView,
    claims::Claim,
    domain::AddressSource,
    gateway::{AddressWish, GatewayDraft, GatewayState, ListenerOutcome, read_gateway},
    generated::{common::SecretObjectReference, gateway::Gateway},
    grants::CrossReference,
    listener::ListenerDraft,
    object::{GATEWAY_GROUP, Kind, ObjectRef},
    status::Problem,
};

/// Reason of a Gateway for which the pool has no address left; such Gateways are asked again when one is given back.
const NOT_ASSIGNED: &str = "AddressNotAssigned";

/// What a Gateway has in the models.
#[derive(Debug)]
pub(super) struct Published {
    domain: DomainName,
    listeners: BTreeSet<ListenerKey>,
    certificates: BTreeSet<ObjectName>,
}

impl Translator {
    pub(super) fn settle_gateways(&mut self) {
        let mut work = std::mem::take(&mut self.work.gateways);
        if work.is_empty() {
            return;
        }
        let mut freed = BTreeSet::new();
        let mut read = BTreeMap::new();
        for name in &work {
            match self.read_gateway(name) {
                Some(state) => {
                    self.release_elsewhere(name, state.domain.as_ref().ok(), &mut freed);
                    read.insert(name.clone(), state);
                }
                None => {
                    self.release_elsewhere(name, None, &mut freed);
                    self.drop_gateway(name);
                }
            }
        }
        for name in self.find_waiting(&freed) {
            if let Some(state) = self.gateways.get(&name).filter(|_| !work.contains(&name)) {
                read.insert(name.clone(), state.clone());
                work.insert(name);
            }
        }
        freed.clear();
        let mut concerned = self.place_gateways(read, &mut freed);
        // Addresses given up by Gateways that ask for others now.
        let waiting = self.find_waiting(&freed);
        if !waiting.is_empty() {
            let read = waiting.into_iter().filter_map(|name| Some((name.clone(), self.gateways.get(&name)?.clone())));
            concerned.extend(self.place_gateways(read.collect(), &mut freed));
        }
        // A Gateway that is gone has left its frontends to others.
        for name in work.iter().filter(|name| !self.gateways.contains_key(*name)) {
            concerned.extend(self.claims.replace(name, 0, Vec::new()));
        }
        for name in concerned {
            self.publish_gateway(&name);
        }
    }

    /// Gateways that found no address in one of these domains' pools.
    fn find_waiting(&self, domains: &BTreeSet<DomainName>) -> Vec<ObjectName> {
        if domains.is_empty() {
            return Vec::new();
        }
        let is_waiting = |state: &GatewayState| {
            state.addresses.as_ref().is_err_and(|problem| problem.reason == NOT_ASSIGNED)
                && state.domain.as_ref().is_ok_and(|domain| domains.contains(domain))
        };
        self.gateways.iter().filter(|(_, state)| is_waiting(state)).map(|(name, _)| name.clone()).collect()
    }

    /// Gives Gateways their addresses and frontends; returns the Gateways for which something may have changed by it.
    fn place_gateways(
        &mut self,
        mut read: BTreeMap<ObjectName, GatewayState>,
        freed: &mut BTreeSet<DomainName>,
    ) -> BTreeSet<ObjectName> {
        // Addresses that are asked for by value first, so that nobody else is given one of them, then those that Gateways
        // are said to have; then the older first.
        let mut order: Vec<_> = read.keys().cloned().collect();
        order.sort_by_key(|name| {
            let draft = &read[name].draft;
            let is_new = !self.said_addresses.contains_key(name);
            (matches!(draft.wish, AddressWish::Any(_)), is_new, draft.created, name.clone())
        });
        let mut concerned = BTreeSet::new();
        for name in order {
            let Some(mut state) = read.remove(&name) else { continue };
            (state.addresses, state.owns_addresses) = self.assign_addresses(&name, &state);
            let before = self.gateways.get(&name).and_then(|known| known.addresses.as_ref().ok());
            let is_kept =
                |address: &IpAddr| state.addresses.as_ref().is_ok_and(|addresses| addresses.contains(address));
            if let (false, Ok(domain)) = (before.into_iter().flatten().all(is_kept), &state.domain) {
                freed.insert(domain.clone());
            }
            concerned.extend(self.claims.replace(&name, state.draft.created, claims_of(&state)));
            if self.gateways.get(&name).is_none_or(|known| known.view != state.view) {
                self.mark_routes_of(&name);
            }
            self.gateways.insert(name.clone(), state);
            concerned.insert(name);
        }
        concerned
    }

    /// Reads a Gateway of this controller and notes what it refers to.
    fn read_gateway(&mut self, name: &ObjectName) -> Option<GatewayState> {
        let gateway = self.store.find_gateway(name).cloned();
        let class_name = gateway.as_ref().map(|gateway| ObjectName::new("", &gateway.spec.gateway_class_name));
        self.edges.gateway_classes.replace(name, class_name.iter().cloned().collect());
        let class = self.classes.get(&class_name?)?.clone();
        let gateway = gateway?;
        self.translated += 1;
        let (draft, secrets, grants) = self.read_draft(name, &gateway);
        for orphan in self.edges.gateway_secrets.replace(name, secrets.clone()) {
            self.certificates.remove(&orphan);
        }
        self.edges.gateway_grants.replace(name, grants);
        for secret in secrets {
            if !self.certificates.contains_key(&secret) {
                let certificate = self.read_certificate(&secret);
                self.certificates.insert(secret, certificate);
            }
        }
        let domain = class.domain.map_err(|problem| {
            Problem::new(
                "Pending",
                format!("GatewayClass/{} is not accepted: {}", gateway.spec.gateway_class_name, problem.message),
            )
        });
        let seen = match &draft.rejection {
            Some(problem) => {
                Err(Problem::new("Pending", format!("Gateway/{name} is not accepted: {}", problem.message)))
            }
            None => domain
                .clone()
                .map_err(|problem| Problem::new("Pending", format!("Gateway/{name}: {}", problem.message))),
        };
        let is_here = seen.as_ref().is_ok_and(|domain| self.models.is_here(domain));
        let view = GatewayView::new(&draft, seen, class.controller.clone(), is_here);
        Some(GatewayState {
            outcomes: vec![ListenerOutcome::default(); draft.listeners.len()],
            draft: Arc::new(draft),
            controller: class.controller,
            domain,
            addresses: Ok(Vec::new()),
            owns_addresses: false,
            view: Arc::new(view),
        })
    }

    fn read_draft(
        &self,
        name: &ObjectName,
        gateway: &Gateway,
    ) -> (GatewayDraft, BTreeSet<ObjectName>, BTreeSet<Arc<str>>) {
        let mut secrets = BTreeSet::new();
        let mut grants = BTreeSet::new();
        let mut find_secret_name = |field: &str, reference: &SecretObjectReference| {
            let kind = reference.kind.as_deref().unwrap_or("Secret");
            let group = reference.group.as_deref().unwrap_or_default();
            if kind != "Secret" || !group.is_empty() {
                return Err(Problem::new(
                    "InvalidCertificateRef",
                    format!("{field}: {kind} of group {group:?} holds no certificate: name a Secret"),
                ));
            }
            let namespace = reference.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or(&name.namespace);
            if namespace != &*name.namespace {
                grants.insert(Arc::from(namespace));
                let cross = CrossReference {
                    from_group: GATEWAY_GROUP,
                    from_kind: "Gateway",
                    from_namespace: &name.namespace,
                    to_group: "",
                    to_kind: "Secret",
                    to_name: &reference.name,
                };
                if !self.store.is_granted(namespace, cross) {
                    return Err(Problem::new(
                        "RefNotPermitted",
                        format!(
                            "{field}: Secret {namespace}/{} is in another namespace: make a ReferenceGrant in {namespace} from Gateway of {}",
                            reference.name, name.namespace
                        ),
                    ));
                }
            }
            let secret = ObjectName::new(namespace, &reference.name);
            secrets.insert(secret.clone());
            Ok(secret)
        };
        let draft = read_gateway(gateway, &mut find_secret_name);
        (draft, secrets, grants)
    }

    /// Takes back what a Gateway has of a domain that is not its own any more.
    fn release_elsewhere(&mut self, name: &ObjectName, domain: Option<&DomainName>, freed: &mut BTreeSet<DomainName>) {
        let Some(Ok(before)) = self.gateways.get(name).map(|state| &state.domain) else { return };
        if Some(before) != domain
            && let Some(pool) = self.pools.get_mut(before)
        {
            pool.release(name);
            freed.insert(before.clone());
        }
    }

    fn drop_gateway(&mut self, name: &ObjectName) {
        for orphan in self.edges.gateway_secrets.replace(name, BTreeSet::new()) {
            self.certificates.remove(&orphan);
        }
        self.edges.gateway_grants.replace(name, BTreeSet::new());
        if self.gateways.remove(name).is_some() {
            self.mark_routes_of(name);
            self.unpublish(name, None);
            self.work.gateway_statuses.insert(name.clone());
        }
    }

    fn mark_routes_of(&mut self, name: &ObjectName) {
        for route in self.edges.route_gateways.sources_of(name) {
            match route.kind {
                Kind::HTTPRoute | Kind::GRPCRoute => self.work.routes.insert(route.clone()),
                _ => self.work.unserved.insert(route.clone()),
            };
        }
    }

    /// Gives a Gateway its addresses; also whether they are the domain's alone.
    fn assign_addresses(&mut self, name: &ObjectName, state: &GatewayState) -> (Result<Vec<IpAddr>, Problem>, bool) {
        let domain = match (&state.domain, &state.draft.rejection) {
            (Ok(domain), None) => domain,
            _ => return (Ok(Vec::new()), false),
        };
        match self.domains.get(domain).and_then(|state| state.addresses()) {
            None => (Ok(Vec::new()), false),
            Some(AddressSource::Node(addresses)) => {
                (choose_node_addresses(addresses, &state.draft.wish, &self.settings.node_name), false)
            }
            Some(AddressSource::Pool(prefixes)) => {
                let prefixes = prefixes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let Some(pool) = self.pools.get_mut(domain) else { return (Ok(Vec::new()), true) };
                let addresses = match &state.draft.wish {
                    AddressWish::Any(families) => {
                        pool.adopt(name, self.said_addresses.get(name).map_or(&[], Vec::as_slice));
                        pool.allocate(name, *families).ok_or_else(|| {
                        let message = format!("the pool of TrafficDomain/{domain} ({prefixes}) has no address left: enlarge spec.addresses.pool or delete a Gateway");
                        Problem::new(NOT_ASSIGNED, message)
                    })
                    }
                    AddressWish::These(addresses) => {
                        match addresses.iter().find(|address| !pool.is_usable(**address)) {
                            Some(address) => {
                                pool.release(name);
                                let message = format!(
                                    "spec.addresses: {address} is not a usable address of TrafficDomain/{domain} ({prefixes}): choose one of its pool"
                                );
                                Err(Problem::new("AddressNotUsable", message))
                            }
                            None => {
                                pool.hold(name, addresses);
                                Ok(addresses.clone())
                            }
                        }
                    }
                };
                (addresses, true)
            }
        }
    }

    /// Puts a Gateway's listeners and certificates into the model, and takes out what it has no more.
    fn publish_gateway(&mut self, name: &ObjectName) {
        let Some(state) = self.gateways.get(name) else { return };
        let addresses = state.addresses.clone().unwrap_or_default();
        let domain = state.domain.clone().ok().filter(|_| state.draft.rejection.is_none());
        let is_here = domain.as_ref().is_some_and(|domain| self.models.is_here(domain));
        let draft = state.draft.clone();
        let owns_addresses = state.owns_addresses;
        let mut outcomes = Vec::with_capacity(draft.listeners.len());
        let mut listeners = BTreeMap::new();
        let mut certificates = BTreeSet::new();
        for listener in &draft.listeners {
            let key = ListenerKey { gateway: name.clone(), name: listener.name.clone() };
            let frontends = frontends(&addresses, listener.port);
            let lost = self.claims.find_lost(&key, &frontends).cloned().filter(|_| listener.is_valid());
            let (usable, refs_problem) = self.find_certificates(listener);
            let mut outcome = ListenerOutcome { lost, refs_problem, is_served: false };
            if let Some(protocol) = listener.protocol
                && domain.is_some()
                && listener.is_valid()
                && outcome.lost.is_none()
                && !frontends.is_empty()
                && (protocol == Protocol::Http || !usable.is_empty())
            {
                outcome.is_served = true;
                if is_here {
                    certificates.extend(usable.iter().cloned());
                    let tls = (protocol == Protocol::Https).then(|| ListenerTls {
                        mode: TlsMode::Terminate,
                        certificates: usable.into_iter().map(CertificateKey).collect(),
                    });
                    let hostname = listener.hostname.clone();
                    listeners.insert(key, Arc::new(Listener { frontends, owns_addresses, protocol, hostname, tls }));
                }
            }
            outcomes.push(outcome);
        }
        self.work.gateway_statuses.insert(name.clone());
        if let Some(state) = self.gateways.get_mut(name) {
            state.outcomes = outcomes;
        }
        let published = domain.map(|domain| Published {
            domain,
            listeners: listeners.keys().cloned().collect(),
            certificates: certificates.clone(),
        });
        if let Some(published) = &published {
            for secret in &certificates {
                if let Some(Ok(certificate)) = self.certificates.get(secret) {
                    self.models.use_certificate(&published.domain, &CertificateKey(secret.clone()), certificate);
                }
            }
            for (key, listener) in listeners {
                self.models.put(&published.domain, Resource::Listener(key, listener));
            }
        }
        self.unpublish(name, published);
    }

    /// Replaces the record of what a Gateway has in the models; takes out what is in the old record only.
    fn unpublish(&mut self, name: &ObjectName, now: Option<Published>) {
        let before = self.published.remove(name);
        if let Some(before) = before {
            for secret in before.certificates {
                self.models.release_certificate(&before.domain, &CertificateKey(secret));
            }
            for key in before.listeners {
                let is_kept =
                    now.as_ref().is_some_and(|now| now.domain == before.domain && now.listeners.contains(&key));
                if !is_kept {
                    self.models.remove(&before.domain, Key::Listener(key));
                }
            }
        }
        if let Some(now) = now {
            self.published.insert(name.clone(), now);
        }
    }

    /// The Secrets that a listener can serve with, and what is wrong with the others.
    fn find_certificates(&self, listener: &ListenerDraft) -> (Vec<ObjectName>, Option<Problem>) {
        if listener.protocol != Some(Protocol::Https) {
            return (Vec::new(), None);
        }
        let mut usable = Vec::new();
        let mut problem = None;
        for (index, reference) in listener.certificates.iter().enumerate() {
            let field = format!("spec.listeners[{}].tls.certificateRefs[{index}]", listener.index);
            let fault = match reference {
                Err(problem) => Some(problem.clone()),
                Ok(secret) => match self.certificates.get(secret) {
                    Some(Ok(_)) => {
                        if !usable.contains(secret) {
                            usable.push(secret.clone());
                        }
                        None
                    }
                    Some(Err(error)) => Some(Problem::new("InvalidCertificateRef", format!("{field}: {error}"))),
                    None => {
                        Some(Problem::new("InvalidCertificateRef", format!("{field}: Secret/{secret} was not read")))
                    }
                },
            };
            problem = problem.or(fault);
        }
        if listener.certificates.is_empty() {
            problem = Some(Problem::new(
                "InvalidCertificateRef",
                format!(
                    "spec.listeners[{}].tls.certificateRefs is empty: name a Secret of type kubernetes.io/tls",
                    listener.index
                ),
            ));
        }
        (usable, problem)
    }

    pub(super) fn settle_gateway_statuses(&mut self) {
        for name in std::mem::take(&mut self.work.gateway_statuses) {
            let attached = |key: &ListenerKey| self.attached.get(key).copied().unwrap_or_default();
            let status = self.gateways.get(&name).map(|state| state.status(&name, &attached));
            self.set_status(&ObjectRef::new(Kind::Gateway, name), status);
        }
    }
}

fn frontends(addresses: &[IpAddr], port: u16) -> Vec<FrontendKey> {
    addresses.iter().map(|&addr| FrontendKey { addr, port, transport: Transport::Tcp }).collect()
}

fn claims_of(state: &GatewayState) -> Vec<(FrontendKey, Claim)> {
    let (Ok(domain), Ok(addresses)) = (&state.domain, &state.addresses) else { return Vec::new() };
    let valid = state.draft.listeners.iter().filter(|listener| listener.is_valid());
    valid
        .filter_map(|listener| Some((listener, listener.protocol?)))
        .flat_map(|(listener, protocol)| {
            frontends(addresses, listener.port).into_iter().map(move |frontend| {
                let claim = Claim {
                    listener: listener.name.clone(),
                    domain: domain.clone(),
                    protocol,
                    hostname: listener.hostname.clone(),
                };
                (frontend, claim)
            })
        })
        .collect()
}

fn choose_node_addresses(addresses: &[IpAddr], wish: &AddressWish, node: &str) -> Result<Vec<IpAddr>, Problem> {
    match wish {
        AddressWish::Any(_) if addresses.is_empty() => Err(Problem::new(
            NOT_ASSIGNED,
            format!(
                "node {node} has no address of type InternalIP: see status.addresses of the Node, or --node-address"
            ),
        )),
        AddressWish::Any(_) => Ok(addresses.to_vec()),
        AddressWish::These(wanted) => match wanted.iter().find(|address| !addresses.contains(address)) {
            Some(address) => Err(Problem::new(
                "AddressNotUsable",
                format!("spec.addresses: {address} is not an address of node {node}: choose one of its own, or none"),
            )),
            None => Ok(wanted.clone()),
        },
    }
}
