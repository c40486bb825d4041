//! What is said about objects: conditions, and what else a status of Gateway API holds.
//!
//! A status is what the translation knows; whether it is in force is the agent's to add (`Programmed`). Times of
//! transition are added where a status is written, which keeps this crate without a clock.

use std::{borrow::Cow, net::IpAddr, sync::Arc};

use crate::generated::common::ParentReference;

/// Type of a condition. Text as in Gateway API.
pub mod condition {
    /// The object is valid and taken on.
    pub const ACCEPTED: &str = "Accepted";
    /// The object's configuration is ready to serve traffic.
    pub const PROGRAMMED: &str = "Programmed";
    /// Every reference leads to an object that exists and may be used.
    pub const RESOLVED_REFS: &str = "ResolvedRefs";
    /// A listener is at odds with another one.
    pub const CONFLICTED: &str = "Conflicted";
    /// The installed CRDs have a version that is known.
    pub const SUPPORTED_VERSION: &str = "SupportedVersion";
    /// Parts of the object are left out, the rest is served.
    pub const PARTIALLY_INVALID: &str = "PartiallyInvalid";
    /// Clients without a valid certificate are let in where one is asked for.
    pub const INSECURE_FRONTEND_VALIDATION_MODE: &str = "InsecureFrontendValidationMode";
    /// Whether everything that the object asks for is done; `False` names the fields that are not.
    pub const ENFORCED: &str = "Enforced";
}

/// A condition, less the time of its last transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Type, see [`condition`].
    pub type_: &'static str,
    /// Whether it holds.
    pub status: bool,
    /// Reason in one word.
    pub reason: Cow<'static, str>,
    /// For people: object, field, and what mends it.
    pub message: String,
    /// `metadata.generation` of the object that was judged.
    pub observed_generation: Option<i64>,
}

/// Everything that is said about one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectStatus {
    /// Conditions of the object itself. Routes have them by parent; one that names no parent in a folder of files has its own.
    pub conditions: Vec<Condition>,
    /// Gateway: its addresses.
    pub addresses: Vec<IpAddr>,
    /// Gateway and ListenerSet: its own listeners in their order.
    pub listeners: Vec<ListenerStatus>,
    /// Gateway: how many ListenerSets are attached to it.
    pub attached_listener_sets: Option<u32>,
    /// Routes: one for each parent that is this controller's.
    pub parents: Vec<ParentStatus>,
}

/// Status of a listener.
#[derive(Clone, Debug, PartialEq)]
pub struct ListenerStatus {
    /// Name of the listener.
    pub name: Arc<str>,
    /// Kinds of group `gateway.networking.k8s.io` that may be attached.
    pub supported_kinds: Vec<&'static str>,
    /// Routes attached.
    pub attached_routes: u32,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

/// Status of a route at one parent.
#[derive(Clone, Debug, PartialEq)]
pub struct ParentStatus {
    /// The reference as written.
    pub parent: ParentReference,
    /// Controller that says so: `spec.controllerName` of the parent's GatewayClass.
    pub controller: Arc<str>,
    /// Conditions.
    pub conditions: Vec<Condition>,
}

impl ObjectStatus {
    /// The condition of a type, of the object itself.
    pub fn find(&self, type_: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// Whether no condition anywhere says that something is wrong: what makes `tidegate check` succeed.
    pub fn is_good(&self) -> bool {
        let all = self
            .conditions
            .iter()
            .chain(self.listeners.iter().flat_map(|listener| &listener.conditions))
            .chain(self.parents.iter().flat_map(|parent| &parent.conditions));
        all.into_iter().all(Condition::is_good)
    }
}

impl Condition {
    /// Whether the condition says that all is well. `Conflicted` and `PartiallyInvalid` are good when they do not hold;
    /// `Enforced` and `InsecureFrontendValidationMode` are remarks, not faults.
    pub fn is_good(&self) -> bool {
        match self.type_ {
            condition::CONFLICTED | condition::PARTIALLY_INVALID => !self.status,
            condition::ENFORCED | condition::INSECURE_FRONTEND_VALIDATION_MODE => true,
            _ => self.status,
        }
    }
}

/// What is wrong and under which reason: the material of a condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Problem {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

impl Problem {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// One problem that tells of all of these, with the reason of the first; `None` when there is none.
    pub(crate) fn join(problems: &[Self]) -> Option<Self> {
        let messages: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
        problems.first().map(|first| Self::new(first.reason, messages.join("; ")))
    }
}

/// Collects the conditions of one object, all with the generation that was judged.
#[derive(Debug)]
pub(crate) struct Conditions {
    generation: Option<i64>,
    list: Vec<Condition>,
}

impl Conditions {
    pub(crate) fn new(generation: Option<i64>) -> Self {
        Self { generation, list: Vec::new() }
    }

    /// A condition as it is.
    pub(crate) fn push(
        &mut self,
        type_: &'static str,
        status: bool,
        reason: &'static str,
        message: impl Into<String>,
    ) -> &mut Self {
        self.list.push(Condition {
            type_,
            status,
            reason: Cow::Borrowed(reason),
            message: message.into(),
            observed_generation: self.generation,
        });
        self
    }

    /// A condition that holds under `reason`, or does not because of `problem`.
    pub(crate) fn judge(&mut self, type_: &'static str, reason: &'static str, problem: Option<&Problem>) -> &mut Self {
        match problem {
            None => self.push(type_, true, reason, ""),
            Some(problem) => self.push(type_, false, problem.reason, &*problem.message),
        }
    }

    /// `Enforced`: only said when fields are not.
    pub(crate) fn enforced(&mut self, notes: &[String]) -> &mut Self {
        if !notes.is_empty() {
            self.push(condition::ENFORCED, false, "NotEnforced", notes.join("; "));
        }
        self
    }

    /// `PartiallyInvalid`: only said when something was left out.
    pub(crate) fn partially_invalid(&mut self, problems: &[String]) -> &mut Self {
        if !problems.is_empty() {
            self.push(condition::PARTIALLY_INVALID, true, "UnsupportedValue", problems.join("; "));
        }
        self
    }

    /// The conditions, without room for more: thousands of routes keep theirs.
    pub(crate) fn into_list(mut self) -> Vec<Condition> {
        self.list.shrink_to_fit();
        self.list
    }
}
