//! Stage: routes: attached to listeners, their rules and forwards put into the models of the domains they reach.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidegate_model::{
    Attachment, BackendKey, DomainName, Forward, Key, ListenerKey, ObjectName, Resource, Rule, RuleKey, RuleKind,
};

use super::{Translator, sorted::SortedSet};
use crate::{
    attach::{Applicant, ParentView, find_attachments},
    forward::{read_tcp_route, read_tls_route, read_udp_route},
    generated::common::ParentReference,
    httproute::{read_grpc_route, read_http_route},
    object::{GATEWAY_GROUP, Kind, ObjectRef},
    route::RouteDraft,
    status::{Conditions, ObjectStatus, ParentStatus, Problem, condition},
};

/// What a route has in the models.
#[derive(Debug, Default)]
pub(super) struct RouteState {
    /// Rules or forwards.
    rules: SortedSet<(DomainName, Key)>,
    backends: SortedSet<(DomainName, BackendKey)>,
    pub(super) attached: SortedSet<ListenerKey>,
    /// Whether the labels of its namespace decide about an attachment.
    pub(super) reads_labels: bool,
}

/// What a parent reference of a route came to.
struct Parent {
    reference: ParentReference,
    controller: Arc<str>,
    outcome: Result<(DomainName, Vec<Attachment>), Problem>,
}

impl Translator {
    pub(super) fn settle_routes(&mut self) {
        for route in std::mem::take(&mut self.work.routes) {
            self.settle_route(&route);
        }
    }

    fn settle_route(&mut self, route: &ObjectRef) {
        let Some(draft) = self.read_route(route) else {
            self.drop_route(route);
            return;
        };
        self.translated += 1;
        let parents = self.find_parents(route, &draft);
        let (mut rules, mut backends, mut attached) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut attachments: BTreeMap<DomainName, BTreeMap<ListenerKey, Attachment>> = BTreeMap::new();
        for parent in &parents {
            let Ok((domain, found)) = &parent.outcome else { continue };
            for attachment in found {
                attached.insert(attachment.listener.clone());
                let of_domain = attachments.entry(domain.clone()).or_default();
                of_domain.insert(attachment.listener.clone(), attachment.clone());
            }
        }
        let named: BTreeSet<_> = draft.parents.iter().filter_map(|parent| parent_of(parent, route)).collect();
        let reads_labels = named.iter().any(|name| self.find_view(name).is_some_and(|view| view.reads_labels()));
        self.edges.route_parents.replace(route, named);
        self.edges.route_grants.replace(route, draft.uses.grants.clone());
        self.note_backends(route, draft.uses.named.clone());
        // What is put into a model that is not here would be missing when it comes.
        attachments.retain(|domain, _| self.models.is_here(domain));
        for (domain, attachments) in attachments {
            backends.extend(draft.uses.usable.iter().map(|key| (domain.clone(), key.clone())));
            let attachments: Vec<_> = attachments.into_values().collect();
            let resources = find_resources(route, &draft, &attachments);
            rules.extend(resources.iter().map(|resource| (domain.clone(), resource.key())));
            resources.into_iter().for_each(|resource| self.models.put(&domain, resource));
        }
        self.set_route_status(route, &draft, parents);
        let state =
            RouteState { rules: rules.into(), backends: backends.into(), attached: attached.into(), reads_labels };
        self.replace_route(route, state);
    }

    fn drop_route(&mut self, route: &ObjectRef) {
        self.edges.route_parents.replace(route, BTreeSet::new());
        self.edges.route_grants.replace(route, BTreeSet::new());
        self.note_backends(route, BTreeSet::new());
        self.set_status(route, None);
        self.replace_route(route, RouteState::default());
        self.routes.remove(route);
    }

    fn read_route(&self, route: &ObjectRef) -> Option<RouteDraft> {
        let (store, name) = (&self.store, &route.name);
        match route.kind {
            Kind::GRPCRoute => store.find_grpc_route(name).map(|found| read_grpc_route(found, store)),
            Kind::TLSRoute => store.find_tls_route(name).map(|found| read_tls_route(found, store)),
            Kind::TCPRoute => store.find_tcp_route(name).map(|found| read_tcp_route(found, store)),
            Kind::UDPRoute => store.find_udp_route(name).map(|found| read_udp_route(found, store)),
            _ => store.find_http_route(name).map(|found| read_http_route(found, store)),
        }
    }

    /// Replaces the record of what a route has in the models, and brings everything counted in line with it.
    fn replace_route(&mut self, route: &ObjectRef, state: RouteState) {
        let before = self.routes.remove(route).unwrap_or_default();
        for (domain, key) in state.backends.difference(&before.backends) {
            if let Some(current) = self.backends.get(key).and_then(|backend| backend.current()) {
                self.models.use_backend(domain, key, &current);
            }
        }
        for (domain, key) in before.backends.difference(&state.backends) {
            self.models.release_backend(domain, key);
        }
        for (domain, key) in before.rules.difference(&state.rules) {
            self.models.remove(domain, key.clone());
        }
        let (new, old) = (&state.attached, &before.attached);
        for key in new.difference(old).chain(old.difference(new)) {
            let count = self.attached.entry(key.clone()).or_default();
            if state.attached.contains(key) {
                *count += 1;
            } else {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    self.attached.remove(key);
                }
            }
            match &key.set {
                None => self.work.gateway_statuses.insert(key.gateway.clone()),
                Some(set) => self.work.set_statuses.insert(ObjectName::clone(set)),
            };
        }
        self.routes.insert(route.clone(), state);
    }

    /// What routes see of a Gateway or a ListenerSet; `None` when it is not this controller's.
    pub(super) fn find_view(&self, parent: &ObjectRef) -> Option<&ParentView> {
        match parent.kind {
            Kind::ListenerSet => Some(&self.listener_sets.get(&parent.name)?.standing.as_ref()?.view),
            _ => Some(&self.gateways.get(&parent.name)?.view),
        }
    }

    /// Finds what each parent reference comes to; those of other controllers are left out.
    fn find_parents(&self, route: &ObjectRef, draft: &RouteDraft) -> Vec<Parent> {
        let unknown = |reference: &ParentReference, message: String| {
            self.settings.reports_missing_parents.then(|| Parent {
                reference: reference.clone(),
                controller: Arc::from(self.settings.controller_names.first().map_or("", String::as_str)),
                outcome: Err(Problem::new("NoMatchingParent", message)),
            })
        };
        let find = |reference: &ParentReference| {
            let Some(name) = parent_of(reference, route) else {
                let shown = show_parent(reference.kind.as_deref(), reference.group.as_deref());
                return unknown(
                    reference,
                    format!("spec.parentRefs: {shown} as parent is not served: name a Gateway or a ListenerSet"),
                );
            };
            let Some(view) = self.find_view(&name) else {
                return unknown(
                    reference,
                    format!(
                        "spec.parentRefs: {name} does not exist, or its class is of another controller: change name or namespace"
                    ),
                );
            };
            let applicant = Applicant {
                kind: route.kind,
                namespace: &route.name.namespace,
                namespace_labels: self.store.namespace_labels(&route.name.namespace),
                hostnames: &draft.hostnames,
            };
            let outcome = match (&view.domain, &draft.rejection) {
                (_, Some(problem)) => Err(problem.clone()),
                (Err(problem), None) => Err(problem.clone()),
                (Ok(domain), None) => {
                    find_attachments(view, reference, applicant).map(|attachments| (domain.clone(), attachments))
                }
            };
            Some(Parent { reference: reference.clone(), controller: view.controller.clone(), outcome })
        };
        draft.parents.iter().filter_map(find).collect()
    }

    fn set_route_status(&mut self, route: &ObjectRef, draft: &RouteDraft, parents: Vec<Parent>) {
        let refs_problem = Problem::join(&draft.uses.problems);
        let judge = |parent: Parent| {
            let mut conditions = Conditions::new(draft.generation);
            let problem = parent.outcome.as_ref().err();
            conditions.judge(condition::ACCEPTED, "Accepted", problem).judge(
                condition::RESOLVED_REFS,
                "ResolvedRefs",
                refs_problem.as_ref(),
            );
            if problem.is_none() {
                conditions.partially_invalid(&draft.faults).enforced(&draft.unenforced);
            }
            ParentStatus { parent: parent.reference, controller: parent.controller, conditions: conditions.into_list() }
        };
        let mut parents: Vec<_> = parents.into_iter().map(judge).collect();
        // Made in place, they keep the room of what they are made from; thousands of routes keep theirs.
        parents.shrink_to_fit();
        // In Kubernetes a status without a parent has no place to say so.
        let conditions = if draft.parents.is_empty() && self.settings.reports_missing_parents {
            let problem = Problem::new(
                "NoMatchingParent",
                "spec.parentRefs is empty, so nothing is served: name a Gateway or a ListenerSet",
            );
            let mut conditions = Conditions::new(draft.generation);
            conditions.judge(condition::ACCEPTED, "Accepted", Some(&problem)).enforced(&draft.unenforced);
            conditions.into_list()
        } else {
            Vec::new()
        };
        // A route that had parents here and has none now keeps an empty status, so that what was written is taken back.
        let is_known = self.statuses.contains_key(route) || !parents.is_empty() || !conditions.is_empty();
        let status = is_known.then(|| ObjectStatus { conditions, parents, ..ObjectStatus::default() });
        self.set_status(route, status);
    }
}

/// What a route puts into a model where it has these attachments.
fn find_resources(route: &ObjectRef, draft: &RouteDraft, attachments: &[Attachment]) -> Vec<Resource> {
    let kind = match route.kind {
        Kind::GRPCRoute => RuleKind::GRPCRoute,
        Kind::TLSRoute => RuleKind::TLSRoute,
        Kind::TCPRoute => RuleKind::TCPRoute,
        Kind::UDPRoute => RuleKind::UDPRoute,
        _ => RuleKind::HTTPRoute,
    };
    let key = |index: u16| RuleKey { kind, route: route.name.clone(), index };
    let rules = draft.rules.iter().map(|(index, rule)| {
        let rule = Rule { attachments: attachments.to_vec(), ..rule.clone() };
        Resource::Rule(key(*index), Arc::new(rule))
    });
    let forwards = draft.forwards.iter().map(|(index, forward)| {
        let forward = Forward { attachments: attachments.to_vec(), ..forward.clone() };
        Resource::Forward(key(*index), Arc::new(forward))
    });
    rules.chain(forwards).collect()
}

/// A parent of a kind that can be none, as messages show it; without a group it is of Gateway API's.
pub(super) fn show_parent(kind: Option<&str>, group: Option<&str>) -> String {
    let group = group.map(|group| format!(" of group {group:?}")).unwrap_or_default();
    format!("a {}{group}", kind.unwrap_or("Gateway"))
}

/// The Gateway or ListenerSet that a parent reference names; `None` for a parent of another kind.
pub(super) fn parent_of(reference: &ParentReference, route: &ObjectRef) -> Option<ObjectRef> {
    let kind = match reference.kind.as_deref().unwrap_or("Gateway") {
        "Gateway" => Kind::Gateway,
        "ListenerSet" => Kind::ListenerSet,
        _ => return None,
    };
    let is_own_group = reference.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP;
    let namespace = reference.namespace.as_deref().filter(|name| !name.is_empty()).unwrap_or(&route.name.namespace);
    is_own_group.then(|| ObjectRef::new(kind, ObjectName::new(namespace, &reference.name)))
}
