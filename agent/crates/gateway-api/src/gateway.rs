//! Gateways: from the object to listeners with addresses, and what is said about them.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use tidegate_model::{DomainName, ListenerKey, ObjectName};

use crate::{
    addresses::Families,
    attach::ParentView,
    client_validation::ClientValidations,
    conflicts::find_conflicts,
    gateway_references::GatewayReferences,
    generated::gateway::{Gateway, GatewaySpec},
    listener::{ListenerDraft, read_listeners},
    namespaces::AllowedNamespaces,
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
    /// Something that no address here can be.
    Impossible(Problem),
}

/// Reason of a Gateway that can have no address of those that it asks for, or for which the pool has none left; the latter
/// are asked again when one is given back.
pub(crate) const NOT_ASSIGNED: &str = "AddressNotAssigned";

/// A Gateway as it was read, before addresses are given and others are looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GatewayDraft {
    pub(crate) created: i64,
    pub(crate) generation: Option<i64>,
    /// Why the Gateway as a whole is not accepted.
    pub(crate) rejection: Option<Problem>,
    pub(crate) wish: AddressWish,
    pub(crate) listeners: Vec<ListenerDraft>,
    /// Whose ListenerSets it takes.
    pub(crate) allowed_sets: AllowedNamespaces,
    /// What it asks of clients.
    pub(crate) client_validations: ClientValidations,
    /// Secret with the certificate that backends are shown, or why the reference leads to none.
    pub(crate) client_certificate: Option<Result<ObjectName, Problem>>,
    unenforced: Vec<String>,
}

/// Field of the certificate that backends are shown.
pub(crate) const CLIENT_CERTIFICATE: &str = "spec.tls.backend.clientCertificateRef";

/// Reads a Gateway. `references` says what its references lead to.
pub(crate) fn read_gateway(gateway: &Gateway, references: &mut GatewayReferences<'_>) -> GatewayDraft {
    let spec = &gateway.spec;
    let mut unenforced = find_unenforced(spec);
    let mut listeners = read_listeners(&spec.listeners, references, &mut unenforced);
    let client_validations = ClientValidations::read(spec, references);
    client_validations.demand(&mut listeners);
    let shown = spec.tls.as_ref().and_then(|tls| tls.backend.as_ref()?.client_certificate_ref.as_ref());
    let client_certificate =
        shown.map(|reference| references.find_secret(CLIENT_CERTIFICATE, reference, "InvalidClientCertificateRef"));
    find_conflicts(&mut listeners);
    let (allowed_sets, sets_problem) = AllowedNamespaces::read_for_sets(spec.allowed_listeners.as_ref());
    unenforced.extend(sets_problem.map(|problem| problem.message));
    let (wish, address_problem) = read_wish(spec);
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
        allowed_sets,
        client_validations,
        client_certificate,
        unenforced,
    }
}

fn find_unenforced(spec: &GatewaySpec) -> Vec<String> {
    let mut fields = Vec::new();
    if spec.default_scope.is_some() {
        fields.push("spec.defaultScope is not enforced yet: name the Gateway in the routes' parentRefs".to_owned());
    }
    fields
}

/// Whoever asks for an address of one reach must not be given one of another (GEP-5093).
fn refuse_routability(field: &str, routability: &str) -> Problem {
    let reason = match routability {
        "Cluster" => "it would be the ClusterIP of a Service, and nodes serve addresses of their domain only",
        _ => "no address is known by it",
    };
    let message = format!(
        "{field}.routability: {routability:?} cannot be had: {reason}: remove it to take an address of the domain"
    );
    Problem::new(NOT_ASSIGNED, message)
}

fn read_wish(spec: &GatewaySpec) -> (AddressWish, Option<Problem>) {
    let mut these = Vec::new();
    let mut any = false;
    let mut impossible = None;
    for (index, address) in spec.addresses.iter().flatten().enumerate() {
        let field = format!("spec.addresses[{index}]");
        if let Some(routability) = address.routability.as_deref().filter(|text| !text.is_empty()) {
            impossible.get_or_insert_with(|| refuse_routability(&field, routability));
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
    if let Some(problem) = impossible {
        return (AddressWish::Impossible(problem), None);
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
    /// Domain of its class, or why there is none.
    pub(crate) domain: Result<DomainName, Problem>,
    /// Addresses, or why it has none. Empty when it is not accepted.
    pub(crate) addresses: Result<Vec<IpAddr>, Problem>,
    /// Whether the addresses are the domain's alone.
    pub(crate) owns_addresses: bool,
    pub(crate) view: Arc<ParentView>,
    /// What is wrong with the certificate that backends are shown.
    pub(crate) identity_problem: Option<Problem>,
    /// What each listener came to, in the order of `draft.listeners`.
    pub(crate) outcomes: Vec<ListenerOutcome>,
    /// The ListenerSets that it takes, in the order of precedence.
    pub(crate) sets: Arc<Vec<ObjectName>>,
}

/// What a listener came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ListenerOutcome {
    /// A listener of another Gateway that has its address, port and host name.
    pub(crate) lost: Option<Problem>,
    /// Why it cannot be served by what it refers to.
    pub(crate) rejection: Option<Problem>,
    /// What is wrong with its certificates and authorities.
    pub(crate) refs_problem: Option<Problem>,
    /// Whether something could be served with it, given an address.
    pub(crate) is_usable: bool,
    /// Whether it is served where its domain is.
    pub(crate) is_served: bool,
}

impl ListenerOutcome {
    /// Whether anything is wrong with a listener, though it may be served all the same.
    pub(crate) fn is_faulty(&self, draft: &ListenerDraft) -> bool {
        !draft.is_valid() || self.lost.is_some() || self.refs_problem.is_some()
    }
}

/// What a Gateway's ListenerSets add to what is said of it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SetsSummary {
    /// Sets that are accepted.
    pub(crate) attached: u32,
    /// Listeners of theirs that are served where the domain is.
    pub(crate) served: usize,
}

impl GatewayState {
    /// Why the Gateway is not accepted, if it is not.
    pub(crate) fn rejection(&self) -> Option<&Problem> {
        self.domain.as_ref().err().or(self.draft.rejection.as_ref())
    }

    /// The status, with `attached` telling how many routes each listener has.
    pub(crate) fn status(
        &self,
        name: &ObjectName,
        sets: SetsSummary,
        attached: &dyn Fn(&ListenerKey) -> u32,
    ) -> ObjectStatus {
        let generation = self.draft.generation;
        let drafts = &self.draft.listeners;
        let key_of = |draft: &ListenerDraft| ListenerKey::of_gateway(name.clone(), draft.name.clone());
        let listeners = judge_listeners(self, generation, drafts, &self.outcomes, &key_of, attached);
        let mut conditions = Conditions::new(generation);
        let pairs = drafts.iter().zip(&self.outcomes);
        let faulty: BTreeSet<_> =
            pairs.filter(|(draft, outcome)| outcome.is_faulty(draft)).map(|(draft, _)| &*draft.name).collect();
        let mut pairs = drafts.iter().zip(&self.outcomes);
        let has_valid =
            sets.attached > 0 || pairs.any(|(draft, outcome)| draft.is_valid() && outcome.rejection.is_none());
        let served = sets.served + self.outcomes.iter().filter(|outcome| outcome.is_served).count();
        let named = faulty.iter().copied().collect::<Vec<_>>().join(", ");
        match self.rejection() {
            Some(problem) => {
                conditions.push(condition::ACCEPTED, false, problem.reason, &*problem.message);
            }
            None if !has_valid => {
                let message = no_valid_listener(&named);
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
        match self.rejection() {
            Some(_) => {
                conditions.push(condition::PROGRAMMED, false, "Invalid", "the Gateway is not accepted");
            }
            None => {
                let reason = self.addresses.as_ref().err().map_or("Invalid", |problem| problem.reason);
                self.push_programmed(&mut conditions, served, reason);
            }
        }
        conditions.judge(condition::RESOLVED_REFS, "ResolvedRefs", self.refs_problem().as_ref());
        if self.draft.client_validations.is_insecure() {
            conditions.push(
                condition::INSECURE_FRONTEND_VALIDATION_MODE,
                true,
                "ConfigurationChanged",
                "spec.tls.frontend: AllowInsecureFallback lets in clients without a valid certificate",
            );
        }
        conditions.enforced(&self.draft.unenforced);
        ObjectStatus {
            conditions: conditions.into_list(),
            addresses: self.addresses.as_ref().ok().filter(|_| self.rejection().is_none()).cloned().unwrap_or_default(),
            listeners,
            attached_listener_sets: Some(if self.rejection().is_none() { sets.attached } else { 0 }),
            parents: Vec::new(),
        }
    }

    /// What is wrong with references of the Gateway itself, else which listeners have such faults.
    fn refs_problem(&self) -> Option<Problem> {
        let faulty = self
            .draft
            .listeners
            .iter()
            .zip(&self.outcomes)
            .filter(|(draft, outcome)| draft.kinds_problem.is_some() || outcome.refs_problem.is_some());
        let names: BTreeSet<_> = faulty.map(|(draft, _)| &*draft.name).collect();
        let of_listeners = || {
            let names = names.iter().copied().collect::<Vec<_>>().join(", ");
            Problem::new("ListenersNotResolved", format!("listeners with faults: {names}: see their conditions"))
        };
        self.identity_problem.clone().or_else(|| (!names.is_empty()).then(of_listeners))
    }

    /// Says whether an accepted object with so many served listeners is programmed. `no_address` is the reason when the
    /// Gateway has no address.
    pub(crate) fn push_programmed(&self, conditions: &mut Conditions, served: usize, no_address: &'static str) {
        match &self.addresses {
            Err(problem) => conditions.push(condition::PROGRAMMED, false, no_address, &*problem.message),
            Ok(_) if served == 0 => {
                let message = "no listener is served: see the listeners' conditions";
                conditions.push(condition::PROGRAMMED, false, "Invalid", message)
            }
            Ok(_) if !self.view.is_here => conditions.push(condition::PROGRAMMED, false, "Pending", NOT_HERE),
            Ok(_) => conditions.push(condition::PROGRAMMED, true, "Programmed", ""),
        };
    }
}

/// What is said of a Gateway or a set of which no listener can be served. `faulty` names those that it has.
pub(crate) fn no_valid_listener(faulty: &str) -> String {
    match faulty {
        "" => "spec.listeners is empty: write at least one".to_owned(),
        _ => format!("no listener is valid ({faulty}): see the listeners' conditions"),
    }
}

/// What is said of the listeners of a Gateway, or of one of its sets.
pub(crate) fn judge_listeners(
    gateway: &GatewayState,
    generation: Option<i64>,
    drafts: &[ListenerDraft],
    outcomes: &[ListenerOutcome],
    key_of: &dyn Fn(&ListenerDraft) -> ListenerKey,
    attached: &dyn Fn(&ListenerKey) -> u32,
) -> Vec<ListenerStatus> {
    let pairs = drafts.iter().zip(outcomes);
    let listeners = pairs.map(|(draft, outcome)| ListenerStatus {
        name: draft.name.clone(),
        supported_kinds: draft.kinds.clone(),
        attached_routes: if draft.is_duplicate { 0 } else { attached(&key_of(draft)) },
        conditions: listener_conditions(gateway, generation, draft, outcome),
    });
    listeners.collect()
}

fn listener_conditions(
    gateway: &GatewayState,
    generation: Option<i64>,
    draft: &ListenerDraft,
    outcome: &ListenerOutcome,
) -> Vec<Condition> {
    let mut conditions = Conditions::new(generation);
    let conflict = draft.conflict.as_ref().or(outcome.lost.as_ref());
    let rejection = conflict.or(draft.rejection.as_ref()).or(outcome.rejection.as_ref());
    conditions.judge(condition::ACCEPTED, "Accepted", rejection);
    let refs_problem = draft.kinds_problem.as_ref().or(outcome.refs_problem.as_ref());
    conditions.judge(condition::RESOLVED_REFS, "ResolvedRefs", refs_problem);
    match conflict {
        None => conditions.push(condition::CONFLICTED, false, "NoConflicts", ""),
        Some(problem) => conditions.push(condition::CONFLICTED, true, problem.reason, &*problem.message),
    };
    let cause = rejection.or(refs_problem).or(gateway.rejection()).or(gateway.addresses.as_ref().err());
    match cause {
        _ if outcome.is_served && gateway.view.is_here => {
            conditions.push(condition::PROGRAMMED, true, "Programmed", "");
        }
        Some(problem) if !outcome.is_served => {
            let reason = conflict.map_or("Invalid", |conflict| conflict.reason);
            conditions.push(condition::PROGRAMMED, false, reason, &*problem.message);
        }
        _ => {
            conditions.push(condition::PROGRAMMED, false, "Pending", NOT_HERE);
        }
    }
    conditions.into_list()
}
