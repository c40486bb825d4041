//! ListenerSets: listeners that others add to a Gateway, and what is said about them.

use std::sync::Arc;

use tidegate_model::{ListenerKey, ObjectName};

use crate::{
    attach::ParentView,
    gateway::{GatewayState, ListenerOutcome, judge_listeners, no_valid_listener},
    gateway_references::GatewayReferences,
    generated::listener_set::ListenerSet,
    listener::{ListenerDraft, read_listeners},
    object::{GATEWAY_GROUP, created_at},
    status::{Conditions, ObjectStatus, Problem, condition},
};

/// A ListenerSet as it was read, before its Gateway is looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SetDraft {
    pub(crate) created: i64,
    pub(crate) generation: Option<i64>,
    pub(crate) listeners: Vec<ListenerDraft>,
    unenforced: Vec<String>,
}

/// What a ListenerSet is at its Gateway.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    /// Why the Gateway does not take it; it has no listeners then.
    pub(crate) refusal: Option<Problem>,
    /// Its listeners among all of the Gateway.
    pub(crate) listeners: Arc<Vec<ListenerDraft>>,
    /// What each of them came to.
    pub(crate) outcomes: Vec<ListenerOutcome>,
    pub(crate) view: Arc<ParentView>,
}

/// Reads a ListenerSet. `references` says what its references lead to.
pub(crate) fn read_listener_set(set: &ListenerSet, references: &mut GatewayReferences<'_>) -> SetDraft {
    let mut unenforced = Vec::new();
    SetDraft {
        created: created_at(&set.metadata),
        generation: set.metadata.generation,
        listeners: read_listeners(&set.spec.listeners, references, &mut unenforced),
        unenforced,
    }
}

/// The Gateway that a ListenerSet names; `None` when its parent is of another kind.
pub(crate) fn gateway_of(name: &ObjectName, set: &ListenerSet) -> Option<ObjectName> {
    let parent = &set.spec.parent_ref;
    let is_gateway = parent.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP
        && parent.kind.as_deref().unwrap_or("Gateway") == "Gateway";
    let namespace = parent.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or(&name.namespace);
    is_gateway.then(|| ObjectName::new(namespace, &parent.name))
}

impl Standing {
    /// Whether the set counts as attached, provided that the Gateway itself is accepted: one of its listeners can be used.
    pub(crate) fn is_usable(&self) -> bool {
        self.refusal.is_none() && self.outcomes.iter().any(|outcome| outcome.is_usable)
    }
}

/// The status of a ListenerSet at its Gateway, with `attached` telling how many routes each listener has.
pub(crate) fn status(
    draft: &SetDraft,
    standing: &Standing,
    gateway: &GatewayState,
    key_of: &dyn Fn(&ListenerDraft) -> ListenerKey,
    attached: &dyn Fn(&ListenerKey) -> u32,
) -> ObjectStatus {
    let mut conditions = Conditions::new(draft.generation);
    let mut both = |accepted: &'static str, programmed: &'static str, message: &str| {
        conditions.push(condition::ACCEPTED, false, accepted, message);
        conditions.push(condition::PROGRAMMED, false, programmed, message);
    };
    if let Some(refusal) = &standing.refusal {
        both(refusal.reason, refusal.reason, &refusal.message);
        return ObjectStatus { conditions: conditions.into_list(), ..ObjectStatus::default() };
    }
    let listeners =
        judge_listeners(gateway, draft.generation, &standing.listeners, &standing.outcomes, key_of, attached);
    if let Some(problem) = gateway.rejection() {
        both("ParentNotAccepted", "ParentNotProgrammed", &format!("the Gateway is not accepted: {}", problem.message));
        return ObjectStatus { conditions: conditions.into_list(), listeners, ..ObjectStatus::default() };
    }
    let pairs = standing.listeners.iter().zip(&standing.outcomes);
    let faulty: Vec<_> =
        pairs.filter(|(draft, outcome)| outcome.is_faulty(draft)).map(|(draft, _)| &*draft.name).collect();
    let named = faulty.join(", ");
    if !standing.is_usable() {
        let message = no_valid_listener(&named);
        both("ListenersNotValid", "ListenersNotValid", &message);
    } else {
        if faulty.is_empty() {
            conditions.push(condition::ACCEPTED, true, "Accepted", "");
        } else {
            let message = format!("listeners with faults: {named}: see their conditions");
            conditions.push(condition::ACCEPTED, true, "ListenersNotValid", message);
        }
        let served = standing.outcomes.iter().filter(|outcome| outcome.is_served).count();
        gateway.push_programmed(&mut conditions, served, "ParentNotProgrammed");
    }
    conditions.enforced(&draft.unenforced);
    ObjectStatus { conditions: conditions.into_list(), listeners, ..ObjectStatus::default() }
}
