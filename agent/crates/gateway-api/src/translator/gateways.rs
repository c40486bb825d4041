//! Stage: Gateways: the ListenerSets that they take, their addresses, and what they claim.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tidegate_model::{DomainName, ObjectName};

use super::Translator;
use crate::{
    attach::{ParentView, Seen},
    domain::AddressSource,
    gateway::{AddressWish, GatewayState, ListenerOutcome, NOT_ASSIGNED, read_gateway},
    gateway_references::GatewayReferences,
    object::{Kind, ObjectRef},
    status::Problem,
};

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
            let claims = self.claims_of(&name, &state);
            concerned.extend(self.claims.replace(&name, state.draft.created, claims));
            if self.gateways.get(&name).is_none_or(|known| known.view != state.view) {
                self.mark_routes_of(&ObjectRef::new(Kind::Gateway, name.clone()));
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
        let mut references = GatewayReferences::new(&self.store, Kind::Gateway, &name.namespace);
        let draft = read_gateway(&gateway, &mut references);
        let GatewayReferences { mut secrets, bundles, mut grants, backends, .. } = references;
        let uses = backends.into_uses();
        grants.extend(uses.grants);
        self.edges.gateway_grants.replace(name, grants);
        self.note_backends(&ObjectRef::new(Kind::Gateway, name.clone()), uses.named);
        let orphans = self.edges.gateway_bundles.replace(name, bundles.clone());
        self.forget_bundles(orphans);
        bundles.iter().for_each(|key| self.require_bundle(key));
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
        let seen = Seen { domain: seen, controller: class.controller.clone(), is_here };
        let sets = self.place_sets(name, &draft, &seen, &mut secrets);
        for orphan in self.edges.gateway_secrets.replace(name, secrets.clone()) {
            self.certificates.remove(&orphan);
        }
        for secret in secrets {
            if !self.certificates.contains_key(&secret) {
                let certificate = self.read_certificate(&secret);
                self.certificates.insert(secret, certificate);
            }
        }
        let view = ParentView::new(name, None, &draft.listeners, seen);
        Some(GatewayState {
            outcomes: vec![ListenerOutcome::default(); draft.listeners.len()],
            draft: Arc::new(draft),
            domain,
            addresses: Ok(Vec::new()),
            owns_addresses: false,
            view: Arc::new(view),
            identity_problem: None,
            sets: Arc::new(sets),
        })
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
        self.note_backends(&ObjectRef::new(Kind::Gateway, name.clone()), BTreeSet::new());
        let orphans = self.edges.gateway_bundles.replace(name, BTreeSet::new());
        self.forget_bundles(orphans);
        self.drop_sets_of(name);
        if self.gateways.remove(name).is_some() {
            self.mark_routes_of(&ObjectRef::new(Kind::Gateway, name.clone()));
            self.unpublish(name, None);
            self.work.gateway_statuses.insert(name.clone());
        }
    }

    /// Marks the routes that name a Gateway or a ListenerSet.
    pub(super) fn mark_routes_of(&mut self, parent: &ObjectRef) {
        self.work.routes.extend(self.edges.route_parents.sources_of(parent).cloned());
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
                    AddressWish::Impossible(problem) => {
                        pool.release(name);
                        Err(problem.clone())
                    }
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
}

fn choose_node_addresses(addresses: &[IpAddr], wish: &AddressWish, node: &str) -> Result<Vec<IpAddr>, Problem> {
    match wish {
        AddressWish::Impossible(problem) => Err(problem.clone()),
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
