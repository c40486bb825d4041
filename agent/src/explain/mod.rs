//! `tidegate explain`: the way of one packet, and of the request in it, through the decisions of this node, each with the
//! object and the field that decides.
//!
//! The model is walked step by step (`packet`), the loaded program is asked for its own verdict on the same packet, and
//! the request is decided by the very code that workers run (`request`). That model and kernel agree is checked, not
//! assumed.

mod packet;
mod request;

use serde::{Deserialize, Serialize};
use tidegate_kernel::{PacketSpec, craft};
use tidegate_model::Transport;

use crate::{
    admin::protocol::Question,
    state::{InterfaceState, State},
    verdicts::NOT_JUDGED,
};

pub use packet::Facts;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The decisions in their order; the last one ends the way.
    pub steps: Vec<Step>,
    /// Reason that the model leads to, e.g. `admitted`.
    pub verdict: String,
    /// Whether the packet is refused.
    pub is_denied: bool,
    /// What the loaded program says to the same packet.
    pub kernel: KernelAnswer,
    /// What becomes of the request.
    pub request: Option<RequestAnswer>,
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// What is decided, e.g. `source`.
    pub step: String,
    /// How it turns out, for people.
    pub outcome: String,
    /// Object that decides; empty when none does.
    pub object: String,
    /// Field of it.
    pub field: String,
    /// Value there.
    pub value: String,
    /// Whether the way ends here with a refusal.
    pub is_denial: bool,
}

/// What the loaded program says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum KernelAnswer {
    /// Its verdict on each interface that was asked about.
    Verdicts(Vec<KernelVerdict>),
    /// It was not asked, and why.
    NotAsked(String),
}

/// The program's verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KernelVerdict {
    /// Interface.
    pub interface: String,
    /// Reason.
    pub reason: String,
    /// Whether that is what the model says.
    pub agrees: bool,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestAnswer {
    /// Status that the proxy answers itself; `None` when a backend answers.
    pub status: Option<u16>,
    /// Backend that gets it (of a weighted rule: one of them by chance).
    pub backend: Option<String>,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// No such interface, so nothing can arrive there.
    #[error("there is no interface {0:?} on this node; name one that exists or leave --iface out")]
    NoInterface(String),
}

impl Explanation {
    /// Whether the program says something else than the model.
    pub fn is_contradicted(&self) -> bool {
        matches!(&self.kernel, KernelAnswer::Verdicts(verdicts) if verdicts.iter().any(|verdict| !verdict.agrees))
    }
}

impl Step {
    fn new(step: &str, outcome: impl Into<String>) -> Self {
        Self {
            step: step.to_owned(),
            outcome: outcome.into(),
            object: String::new(),
            field: String::new(),
            value: String::new(),
            is_denial: false,
        }
    }

    fn by(mut self, object: impl Into<String>, field: impl Into<String>, value: impl Into<String>) -> Self {
        (self.object, self.field, self.value) = (object.into(), field.into(), value.into());
        self
    }

    fn denial(mut self) -> Self {
        self.is_denial = true;
        self
    }
}

/// Explains what would happen.
///
/// # Errors
/// See [`ExplainError`].
pub fn explain(state: &State, question: &Question) -> Result<Explanation, ExplainError> {
    let is_kernel_on = state.tier.borrow().is_on;
    let arrival = question.interface.as_deref().map(|name| find_interface(state, name)).transpose()?;
    let (mut steps, reason, owner) = {
        let (domains, translator) = (state.domains.borrow(), state.translator.borrow());
        let facts = domains.iter().map(|(name, domain)| Facts { name, domain }).collect::<Vec<_>>();
        packet::walk(&facts, question, arrival.as_ref(), is_kernel_on, &|name, subject| {
            translator.find_origin(name, subject)
        })
    };
    let mut explanation = Explanation {
        verdict: reason.name().to_owned(),
        is_denied: reason.is_denial(),
        kernel: ask_kernel(state, question, arrival, owner.as_ref(), reason.name()),
        request: None,
        steps: Vec::new(),
    };
    if let (Some(owner), Some(asked), false) = (owner, &question.request, reason.is_denial()) {
        let model = state.domains.borrow().get(&owner).map(|domain| domain.model.clone());
        if let Some(model) = model {
            let (more, answer) = request::decide(&model, question, asked);
            steps.extend(more);
            explanation.request = Some(answer);
        }
    }
    explanation.steps = steps;
    Ok(explanation)
}

fn find_interface(state: &State, name: &str) -> Result<InterfaceState, ExplainError> {
    let domains = state.domains.borrow();
    let known = domains.values().flat_map(|domain| &domain.interfaces).find(|interface| interface.name == name);
    if let Some(known) = known {
        return Ok(known.clone());
    }
    let ifindex = nix::net::if_::if_nametoindex(name).map_err(|_| ExplainError::NoInterface(name.to_owned()))?;
    Ok(InterfaceState { name: name.to_owned(), ifindex: Some(ifindex), vlan: None, attach: crate::state::Attach::Off })
}

/// Asks the loaded program about the packet on the interface named, else on each of the domain's.
fn ask_kernel(
    state: &State,
    question: &Question,
    arrival: Option<InterfaceState>,
    owner: Option<&tidegate_model::DomainName>,
    expected: &str,
) -> KernelAnswer {
    let mut tier = state.kernel.borrow_mut();
    let Some(kernel) = tier.kernel() else {
        return KernelAnswer::NotAsked(NOT_JUDGED.to_owned());
    };
    let interfaces: Vec<InterfaceState> = match arrival {
        Some(interface) => vec![interface],
        None => {
            let domains = state.domains.borrow();
            let domain = owner.and_then(|owner| domains.get(owner));
            domain.map(|domain| domain.interfaces.clone()).unwrap_or_default()
        }
    };
    let mut verdicts = Vec::new();
    for interface in interfaces {
        let Some(ifindex) = interface.ifindex else { continue };
        let packet = craft(&PacketSpec {
            source: (question.source, question.source_port).into(),
            destination: question.destination,
            transport: if question.is_udp { Transport::Udp } else { Transport::Tcp },
            vlan: interface.vlan,
        });
        match kernel.explain(&packet, ifindex) {
            Ok(verdict) => verdicts.push(KernelVerdict {
                interface: interface.name,
                agrees: verdict.reason.name() == expected,
                reason: verdict.reason.name().to_owned(),
            }),
            Err(error) => return KernelAnswer::NotAsked(error.to_string()),
        }
    }
    if verdicts.is_empty() {
        return KernelAnswer::NotAsked("no interface of the domain exists on this node".to_owned());
    }
    KernelAnswer::Verdicts(verdicts)
}

#[cfg(test)]
mod tests;
