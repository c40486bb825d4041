//! Stage: ListenerSets: read on their own, then placed among the listeners of the Gateway that each names.
//!
//! A set is read again only when it or a grant changes. Its Gateway decides whether it is taken and which of its listeners
//! come too late; that is judged whenever something about the Gateway or one of its sets changes.

use std::{collections::BTreeSet, sync::Arc};

use tidegate_model::{ListenerKey, ObjectName};

use super::{Translator, routes::show_parent};
use crate::{
    attach::{ParentView, Seen},
    conflicts::Ports,
    gateway::{GatewayDraft, GatewayState, ListenerOutcome, SetsSummary},
    gateway_references::GatewayReferences,
    listener::ListenerDraft,
    listener_set::{self, SetDraft, Standing, read_listener_set},
    namespaces::AllowedNamespaces,
    object::{Kind, ObjectRef},
    status::{Conditions, ObjectStatus, Problem, condition},
};

/// A ListenerSet that names a Gateway.
#[derive(Debug)]
pub(super) struct SetState {
    draft: Arc<SetDraft>,
    /// Secrets that its listeners refer to.
    secrets: BTreeSet<ObjectName>,
    /// What it is at its Gateway; `None` when that is not this controller's.
    pub(super) standing: Option<Standing>,
}

impl Translator {
    /// Reads the sets that have changed, and marks the Gateways that they name or have named.
    pub(super) fn settle_listener_sets(&mut self) {
        for name in std::mem::take(&mut self.work.listener_sets) {
            let set = self.store.find_listener_set(&name).cloned();
            let gateway = set.as_ref().and_then(|set| listener_set::gateway_of(&name, set));
            self.work.gateways.extend(self.edges.set_gateways.targets_of(&name).cloned());
            self.work.gateways.extend(gateway.clone());
            let is_moved = self.edges.set_gateways.targets_of(&name).ne(&gateway);
            let mut state = gateway.is_some().then(|| set.map(|set| self.read_set(&name, &set))).flatten();
            self.edges.set_gateways.replace(&name, gateway.into_iter().collect());
            if is_moved {
                self.mark_routes_of(&ObjectRef::new(Kind::ListenerSet, name.clone()));
            } else if let Some(state) = &mut state {
                state.standing = self.listener_sets.remove(&name).and_then(|known| known.standing);
            }
            match state {
                Some(state) => {
                    self.listener_sets.insert(name.clone(), state);
                }
                None => {
                    self.edges.set_grants.replace(&name, BTreeSet::new());
                    self.note_backends(&ObjectRef::new(Kind::ListenerSet, name.clone()), BTreeSet::new());
                    self.listener_sets.remove(&name);
                }
            }
            self.work.set_statuses.insert(name);
        }
    }

    fn read_set(&mut self, name: &ObjectName, set: &crate::generated::listener_set::ListenerSet) -> SetState {
        self.translated += 1;
        let mut references = GatewayReferences::new(&self.store, Kind::ListenerSet, &name.namespace);
        let draft = read_listener_set(set, &mut references);
        let GatewayReferences { secrets, mut grants, backends, .. } = references;
        let uses = backends.into_uses();
        grants.extend(uses.grants);
        self.edges.set_grants.replace(name, grants);
        self.note_backends(&ObjectRef::new(Kind::ListenerSet, name.clone()), uses.named);
        SetState { draft: Arc::new(draft), secrets, standing: None }
    }

    /// Decides which sets a Gateway takes and what their listeners are among all of them. Returns the sets in the order of
    /// precedence, and adds their Secrets.
    pub(super) fn place_sets(
        &mut self,
        gateway: &ObjectName,
        draft: &GatewayDraft,
        seen: &Seen,
        secrets: &mut BTreeSet<ObjectName>,
    ) -> Vec<ObjectName> {
        let mut sets: Vec<_> = self
            .edges
            .set_gateways
            .sources_of(gateway)
            .filter_map(|set| Some((self.listener_sets.get(set)?.draft.created, set.clone())))
            .collect();
        sets.sort();
        let mut ports = Ports::of_gateway(&draft.listeners);
        let mut taken = Vec::with_capacity(sets.len());
        for (_, set) in sets {
            let labels = self.store.namespace_labels(&set.namespace);
            let is_allowed = draft.allowed_sets.allows(&gateway.namespace, &set.namespace, labels);
            let Some(state) = self.listener_sets.get_mut(&set) else { continue };
            let (refusal, listeners) = if is_allowed {
                let mut listeners = state.draft.listeners.clone();
                draft.client_validations.demand(&mut listeners);
                ports.add_set(&set, &mut listeners);
                secrets.extend(state.secrets.iter().cloned());
                (None, listeners)
            } else {
                (Some(not_allowed(gateway, &set, &draft.allowed_sets)), Vec::new())
            };
            let mut seen = seen.clone();
            if let Some(refusal) = &refusal {
                seen.domain =
                    Err(Problem::new("Pending", format!("ListenerSet/{set} is not accepted: {}", refusal.message)));
                seen.is_here = false;
            }
            let view = Arc::new(ParentView::new(gateway, Some(&set), &listeners, seen));
            let is_same = state.standing.as_ref().is_some_and(|known| known.view == view);
            let outcomes = vec![ListenerOutcome::default(); listeners.len()];
            if refusal.is_none() {
                taken.push(set.clone());
            }
            state.standing = Some(Standing { refusal, listeners: Arc::new(listeners), outcomes, view });
            if !is_same {
                self.mark_users_of_set(set);
            }
        }
        taken
    }

    /// The Gateway is gone or another controller's: its sets are nobody's.
    pub(super) fn drop_sets_of(&mut self, gateway: &ObjectName) {
        let sets: Vec<_> = self.edges.set_gateways.sources_of(gateway).cloned().collect();
        for set in sets {
            let Some(state) = self.listener_sets.get_mut(&set) else { continue };
            if state.standing.take().is_some() {
                self.mark_users_of_set(set.clone());
            }
            self.work.set_statuses.insert(set);
        }
    }

    /// Marks what depends on whether and how a Gateway takes a set: its routes, and what is said of the policies of the backends
    /// that it asks.
    fn mark_users_of_set(&mut self, set: ObjectName) {
        let set = ObjectRef::new(Kind::ListenerSet, set);
        self.mark_routes_of(&set);
        let asked: Vec<_> = self.edges.backend_users.targets_of(&set).cloned().collect();
        self.mark_policies_of(&asked);
    }

    /// Whether the Gateway that a set names takes it.
    pub(super) fn is_taken(&self, set: &ObjectName) -> bool {
        let standing = self.listener_sets.get(set).and_then(|state| state.standing.as_ref());
        standing.is_some_and(|standing| standing.refusal.is_none())
    }

    /// What the sets of a Gateway add to what is said of it.
    pub(super) fn sum_up_sets(&self, state: &GatewayState) -> SetsSummary {
        let mut summary = SetsSummary::default();
        let sets = state.sets.iter().filter_map(|set| self.listener_sets.get(set)?.standing.as_ref());
        for standing in sets {
            summary.attached += u32::from(standing.is_usable());
            summary.served += standing.outcomes.iter().filter(|outcome| outcome.is_served).count();
        }
        summary
    }

    pub(super) fn settle_set_statuses(&mut self) {
        for name in std::mem::take(&mut self.work.set_statuses) {
            let status = self.judge_set(&name);
            self.set_status(&ObjectRef::new(Kind::ListenerSet, name), status);
        }
    }

    fn judge_set(&self, name: &ObjectName) -> Option<ObjectStatus> {
        let gateway = self.edges.set_gateways.targets_of(name).next();
        let state = self.listener_sets.get(name);
        let found = gateway.and_then(|gateway| Some((gateway, self.gateways.get(gateway)?)));
        if let Some((gateway, gateway_state)) = found
            && let Some(SetState { draft, standing: Some(standing), .. }) = state
        {
            let key_of = |draft: &ListenerDraft| ListenerKey::of_set(gateway.clone(), name.clone(), draft.name.clone());
            let attached = |key: &ListenerKey| self.attached.get(key).copied().unwrap_or_default();
            return Some(listener_set::status(draft, standing, gateway_state, &key_of, &attached));
        }
        // Nothing is said of what may be another controller's.
        let set = self.store.find_listener_set(name).filter(|_| self.settings.reports_missing_parents)?;
        let message = match gateway {
            Some(gateway) => format!(
                "spec.parentRef: Gateway/{gateway} does not exist, or its class is of another controller: change name or namespace"
            ),
            None => {
                let parent = &set.spec.parent_ref;
                let shown = show_parent(parent.kind.as_deref(), parent.group.as_deref());
                format!("spec.parentRef: {shown} as parent is not served: name a Gateway")
            }
        };
        let mut conditions = Conditions::new(set.metadata.generation);
        conditions.push(condition::ACCEPTED, false, "ParentNotAccepted", &*message);
        conditions.push(condition::PROGRAMMED, false, "ParentNotProgrammed", message);
        Some(ObjectStatus { conditions: conditions.into_list(), ..ObjectStatus::default() })
    }

    /// Marks the Gateways for which the labels of a namespace decide about ListenerSets in it.
    pub(super) fn mark_sets_of_namespace(&mut self, namespace: &str) {
        let sets = self.store.references_in(Kind::ListenerSet, namespace);
        let gateways = sets.flat_map(|set| self.edges.set_gateways.targets_of(&set.name));
        let reads = gateways.filter(|gateway| {
            let state = self.gateways.get(*gateway);
            state.is_some_and(|state| matches!(state.draft.allowed_sets, AllowedNamespaces::Selector(_)))
        });
        self.work.gateways.extend(reads.cloned());
    }
}

fn not_allowed(gateway: &ObjectName, set: &ObjectName, allowed: &AllowedNamespaces) -> Problem {
    let whom = match allowed {
        AllowedNamespaces::Same => "those of its own namespace",
        AllowedNamespaces::Selector(_) => "those of namespaces with certain labels",
        AllowedNamespaces::All | AllowedNamespaces::Nothing => "none",
    };
    Problem::new(
        "NotAllowed",
        format!(
            "Gateway/{gateway} takes no ListenerSets of namespace {}, but {whom}: change its spec.allowedListeners.namespaces",
            set.namespace
        ),
    )
}
