//! Gateways: from the object to listeners with addresses, and what is said about them.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use tidegate_model::{DomainName, ListenerKey, ObjectName};

use crate::{
    addresses::Families,
    attach::GatewayView,
    generated::{
        common::SecretObjectReference,
        gateway::{Gateway, GatewaySpec},
    },
    listener::{ListenerDraft, read_listeners},
    object::created_at,
    status::{Condition, Conditions, ListenerStatus, ObjectStatus, Problem, condition},
};

/// What is said of what other nodes serve. With reason `Pending`, which tells who sums up all nodes that it is not a fault.
const NOT_HERE: &str = "the domain is not served on this node";

/// What a Gateway asks for in `spec.addresses`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AddressWish {
    /// Any address of these families.
    Any(Families),
    /// These and no others.
    These(Vec<IpAddr>),
}

/// A Gateway as it was read, before addresses are given and others are looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatewayDraft {
    pub(crate) created: i64,
    pub(crate) generation: Option<i64>,
    /// Why the Gateway as a whole is not accepted.
    pub(crate) rejection: Option<Problem>,
    pub(crate) wish: AddressWish,
    pub(crate) listeners: Vec<ListenerDraft>,
    unenforced: Vec<String>,
}

/// Reads a Gateway. `find_secret_name` gets the field and the reference.
pub(crate) fn read_gateway(
    gateway: &Gateway,
    find_secret_name: &mut dyn FnMut(&str, &SecretObjectReference) -> Result<ObjectName, Problem>,
) -> GatewayDraft {
    let spec = &gateway.spec;
    let mut unenforced = find_unenforced(spec);
    let listeners = read_listeners(spec, find_secret_name, &mut unenforced);
    let (wish, address_problem) = read_wish(spec, &mut unenforced);
    let parameters = spec.infrastructure.as_ref().and_then(|infrastructure| infrastructure.parameters_ref.as_ref());
    let rejection = parameters.map(|parameters| {
        Problem::new(
            "InvalidParameters",
            format!(
                "spec.infrastructure.parametersRef: {} {} is not read: remove it, parameters are those of the GatewayClass",
                parameters.kind, parameters.name
            ),
        )
    });
    GatewayDraft {
        created: created_at(&gateway.metadata),
        generation: gateway.metadata.generation,
        rejection: rejection.or(address_problem),
        wish,
        listeners,
        unenforced,
    }
}

fn find_unenforced(spec: &GatewaySpec) -> Vec<String> {
    let mut fields = Vec::new();
    if spec.tls.as_ref().is_some_and(|tls| tls.backend.is_some()) {
        fields.push("spec.tls.backend is not enforced yet: no certificate is shown to backends".to_owned());
    }
    if spec.allowed_listeners.is_some() {
        fields.push("spec.allowedListeners is not enforced yet: ListenerSets are not served".to_owned());
    }
    if spec.default_scope.is_some() {
        fields.push("spec.defaultScope is not enforced yet: name the Gateway in the routes' parentRefs".to_owned());
    }
    fields
}

fn read_wish(spec: &GatewaySpec, unenforced: &mut Vec<String>) -> (AddressWish, Option<Problem>) {
    let mut these = Vec::new();
    let mut any = false;
    for (index, address) in spec.addresses.iter().flatten().enumerate() {
        let field = format!("spec.addresses[{index}]");
        if address.routability.is_some() {
            unenforced.push(format!("{field}.routability is not enforced yet"));
        }
        let type_ = address.r#type.as_deref().unwrap_or("IPAddress");
        let value = address.value.as_deref().filter(|value| !value.is_empty());
        let problem = if type_ != "IPAddress" {
            Some(format!("{field}.type: {type_} is not served: use IPAddress"))
        } else if let Some(value) = value {
            match value.parse::<IpAddr>() {
                Ok(address) => {
                    let address = address.to_canonical();
                    if !these.contains(&address) {
                        these.push(address);
                    }
                    None
                }
                Err(_) => Some(format!("{field}.value: {value:?} is not an IP address")),
            }
        } else {
            any = true;
            None
        };
        if let Some(message) = problem {
            return (AddressWish::These(Vec::new()), Some(Problem::new("UnsupportedAddress", message)));
        }
    }
    match (these.is_empty(), any) {
        (true, _) => (AddressWish::Any(Families { v4: true, v6: true }), None),
        (false, false) => (AddressWish::These(these), None),
        (false, true) => (
            AddressWish::These(Vec::new()),
            Some(Problem::new(
                "UnsupportedAddress",
                "spec.addresses: addresses with and without a value cannot be mixed: write all values or none",
            )),
        ),
    }
}

/// A Gateway of this controller after everything it depends on was looked at.
#[derive(Clone, Debug)]
pub(crate) struct GatewayState {
    pub(crate) draft: Arc<GatewayDraft>,
    pub(crate) controller: Arc<str>,
    /// Domain of its class, or why there is none.
    pub(crate) domain: Result<DomainName, Problem>,
    /// Addresses, or why it has none. Empty when it is not accepted.
    pub(crate) addresses: Result<Vec<IpAddr>, Problem>,
    /// Whether the addresses are the domain's alone.
    pub(crate) owns_addresses: bool,
    pub(crate) view: Arc<GatewayView>,
    /// What each listener came to, in the order of `draft.listeners`.
    pub(crate) outcomes: Vec<ListenerOutcome>,
}

/// What a listener came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ListenerOutcome {
    /// A listener of another Gateway that has its address, port and host name.
    pub(crate) lost: Option<Problem>,
    /// What is wrong with its certificates.
    pub(crate) refs_problem: Option<Problem>,
    /// Whether it is served where its domain is.
    pub(crate) is_served: bool,
}

impl GatewayState {
    /// Why the Gateway is not accepted, if it is not.
    pub(crate) fn rejection(&self) -> Option<&Problem> {
        self.domain.as_ref().err().or(self.draft.rejection.as_ref())
    }

    /// The status, with `attached` telling how many routes each listener has.
    pub(crate) fn status(&self, name: &ObjectName, attached: &dyn Fn(&ListenerKey) -> u32) -> ObjectStatus {
        let generation = self.draft.generation;
        let listeners: Vec<_> = self
            .draft
            .listeners
            .iter()
            .zip(&self.outcomes)
            .map(|(draft, outcome)| {
                let key = ListenerKey { gateway: name.clone(), name: draft.name.clone() };
                ListenerStatus {
                    name: draft.name.clone(),
                    supported_kinds: draft.kinds.clone(),
                    attached_routes: if draft.is_duplicate { 0 } else { attached(&key) },
                    conditions: self.listener_conditions(draft, outcome),
                }
            })
            .collect();
        let mut conditions = Conditions::new(generation);
        let faulty: BTreeSet<_> = self
            .draft
            .listeners
            .iter()
            .zip(&self.outcomes)
            .filter(|(draft, outcome)| !draft.is_valid() || outcome.lost.is_some() || outcome.refs_problem.is_some())
            .map(|(draft, _)| &*draft.name)
            .collect();
        let valid = self.draft.listeners.iter().filter(|draft| draft.is_valid()).count();
        let served = self.outcomes.iter().filter(|outcome| outcome.is_served).count();
        let named = faulty.iter().copied().collect::<Vec<_>>().join(", ");
        match self.rejection() {
            Some(problem) => {
                conditions.push(condition::ACCEPTED, false, problem.reason, &*problem.message);
            }
            None if valid == 0 => {
                let message = format!("no listener is valid ({named}): see the listeners' conditions");
                conditions.push(condition::ACCEPTED, false, "ListenersNotValid", message);
            }
            None if !faulty.is_empty() => {
                let message = format!("listeners with faults: {named}: see their conditions");
                conditions.push(condition::ACCEPTED, true, "ListenersNotValid", message);
            }
            None => {
                conditions.push(condition::ACCEPTED, true, "Accepted", "");
            }
        }
        match &self.addresses {
            _ if self.rejection().is_some() => {
                conditions.push(condition::PROGRAMMED, false, "Invalid", "the Gateway is not accepted");
            }
            Err(problem) => {
                conditions.push(condition::PROGRAMMED, false, problem.reason, &*problem.message);
            }
            Ok(_) if served == 0 => {
                conditions.push(
                    condition::PROGRAMMED,
                    false,
                    "Invalid",
                    "no listener is served: see the listeners' conditions",
                );
            }
            Ok(_) if !self.view.is_here => {
                conditions.push(condition::PROGRAMMED, false, "Pending", NOT_HERE);
            }
            Ok(_) => {
                conditions.push(condition::PROGRAMMED, true, "Programmed", "");
            }
        }
        conditions.enforced(&self.draft.unenforced);
        ObjectStatus {
            conditions: conditions.into_list(),
            addresses: self.addresses.as_ref().ok().filter(|_| self.rejection().is_none()).cloned().unwrap_or_default(),
            listeners,
            parents: Vec::new(),
        }
    }

    fn listener_conditions(&self, draft: &ListenerDraft, outcome: &ListenerOutcome) -> Vec<Condition> {
        let mut conditions = Conditions::new(self.draft.generation);
        let conflict = draft.conflict.as_ref().or(outcome.lost.as_ref());
        let rejection = draft.rejection.as_ref().or(conflict);
        conditions.judge(condition::ACCEPTED, "Accepted", rejection);
        let refs_problem = draft.kinds_problem.as_ref().or(outcome.refs_problem.as_ref());
        conditions.judge(condition::RESOLVED_REFS, "ResolvedRefs", refs_problem);
        match conflict {
            None => conditions.push(condition::CONFLICTED, false, "NoConflicts", ""),
            Some(problem) => conditions.push(condition::CONFLICTED, true, problem.reason, &*problem.message),
        };
        let cause = rejection.or(refs_problem).or(self.rejection()).or(self.addresses.as_ref().err());
        match cause {
            _ if outcome.is_served && self.view.is_here => {
                conditions.push(condition::PROGRAMMED, true, "Programmed", "");
            }
            Some(problem) if !outcome.is_served => {
                conditions.push(condition::PROGRAMMED, false, "Invalid", &*problem.message);
            }
            _ => {
                conditions.push(condition::PROGRAMMED, false, "Pending", NOT_HERE);
            }
        }
        conditions.into_list()
    }
}
