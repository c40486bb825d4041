//! `tidegate explain`: the way of one packet, and of the request in it, through the decisions of this node, each with the
//! object and the field that decides.
//!
//! The model is walked step by step (`packet`), the loaded program is asked for its own verdict on the same packet, and
//! the request is decided by the very code that workers run (`request`). That model and kernel agree is checked, not
//! assumed.

mod packet;
mod request;

use serde::{Deserialize, Serialize};
use tidegate_kernel::{PacketSpec, Payload as CraftedPayload, Reason, craft};
use tidegate_model::{DomainId, DomainName};

use crate::{
    admin::protocol::{Payload, Question},
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
    /// Whether this is where the verdict on the packet is made.
    pub is_deciding: bool,
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
    /// No packet has such a pair of addresses.
    #[error("source and destination are of two address families: name two IPv4 or two IPv6 addresses")]
    TwoFamilies,
}

impl Explanation {
    /// Whether the program says something else than the model.
    pub fn is_contradicted(&self) -> bool {
        is_contradicted(&self.kernel)
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
            is_deciding: false,
        }
    }

    fn by(mut self, object: impl Into<String>, field: impl Into<String>, value: impl Into<String>) -> Self {
        (self.object, self.field, self.value) = (object.into(), field.into(), value.into());
        self
    }

    fn deciding(mut self) -> Self {
        self.is_deciding = true;
        self
    }

    /// Ends the packet's way.
    fn denial(mut self) -> Self {
        (self.is_denial, self.is_deciding) = (true, true);
        self
    }
}

/// Times that a verdict which depends on traffic is looked at again when model and program differ.
const LOOKS: usize = 3;

/// Explains what would happen.
///
/// # Errors
/// See [`ExplainError`].
pub fn explain(state: &State, question: &Question) -> Result<Explanation, ExplainError> {
    let mut question = question.clone();
    // An IPv4-mapped IPv6 address is IPv4 to every rule.
    question.source = question.source.to_canonical();
    question.destination.set_ip(question.destination.ip().to_canonical());
    if question.source.is_ipv4() != question.destination.is_ipv4() {
        return Err(ExplainError::TwoFamilies);
    }
    let arrival = question.interface.as_deref().map(|name| find_interface(state, name)).transpose()?;
    let (mut way, mut kernel) = walk_and_ask(state, &question, arrival.as_ref(), true, false);
    for _ in 0..LOOKS {
        let agrees = !is_contradicted(&kernel);
        if agrees || !depends_on_traffic(way.reason, &kernel) {
            break;
        }
        // What was read and what the program saw are two moments; whether the source is known and whether a queue is full shows
        // in the verdict alone.
        for (is_known, is_full) in [(true, false), (false, false), (true, true), (false, true)] {
            (way, kernel) = walk_and_ask(state, &question, arrival.as_ref(), is_known, is_full);
            if !is_contradicted(&kernel) {
                break;
            }
        }
    }
    let mut explanation = Explanation {
        steps: way.steps,
        verdict: way.reason.name().to_owned(),
        is_denied: way.reason.is_denial(),
        kernel,
        request: None,
    };
    if let (Some(owner), Some(asked), false) = (way.owner, &question.request, way.reason.is_denial()) {
        let model = state.domains.borrow().get(&owner).map(|domain| domain.model.clone());
        if let Some(model) = model {
            let (more, answer) = request::decide(&model, &question, asked);
            explanation.steps.extend(more);
            explanation.request = Some(answer);
        }
    }
    Ok(explanation)
}

/// Walks by the model, and asks the loaded program.
fn walk_and_ask(
    state: &State,
    question: &Question,
    arrival: Option<&InterfaceState>,
    is_known: bool,
    is_full: bool,
) -> (packet::Way, KernelAnswer) {
    let way = {
        let (domains, translator) = (state.domains.borrow(), state.translator.borrow());
        let facts = domains.iter().map(|(name, domain)| Facts { name, domain }).collect::<Vec<_>>();
        let scene = packet::Scene {
            domains: &facts,
            arrival,
            is_kernel_on: state.tier.borrow().is_on,
            find_origin: &|name, subject| translator.find_origin(name, subject),
            count_open: &|domain, source| state.kernel.borrow_mut().kernel()?.open_connections(domain, source).ok(),
            read_rates: &|domain, source| state.kernel.borrow_mut().kernel()?.rate_state(domain, source).ok(),
            is_known,
            cookies: packet::Cookies::read(is_full),
        };
        packet::walk(&scene, question)
    };
    let kernel = ask_kernel(state, question, arrival.cloned(), way.owner.as_ref(), way.reason);
    (way, kernel)
}

fn is_contradicted(answer: &KernelAnswer) -> bool {
    matches!(answer, KernelAnswer::Verdicts(verdicts) if verdicts.iter().any(|verdict| !verdict.agrees))
}

/// Whether one of the verdicts changes with what others send: then two of them may differ without any fault.
fn depends_on_traffic(reason: Reason, answer: &KernelAnswer) -> bool {
    let changes = |name: &str| {
        ["rate_source", "rate_domain", "open_source", "open_domain", "echo_rate", "cookie_sent"].contains(&name)
    };
    changes(reason.name())
        || matches!(answer, KernelAnswer::Verdicts(verdicts) if verdicts.iter().any(|verdict| changes(&verdict.reason)))
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

/// Asks the loaded program about the packet on the interface named, else on each of the domain's; about a packet that is
/// nobody's on any interface where packets are judged.
fn ask_kernel(
    state: &State,
    question: &Question,
    arrival: Option<InterfaceState>,
    owner: Option<&DomainName>,
    expected: Reason,
) -> KernelAnswer {
    let mut tier = state.kernel.borrow_mut();
    let Some(kernel) = tier.kernel() else {
        return KernelAnswer::NotAsked(NOT_JUDGED.to_owned());
    };
    let domains = state.domains.borrow();
    let domain = owner.and_then(|owner| domains.get(owner));
    let expected = (domain.map_or(DomainId(0), |domain| domain.id), expected);
    let interfaces: Vec<InterfaceState> = match (arrival, domain) {
        (Some(interface), _) => vec![interface],
        (None, Some(domain)) => domain.interfaces.clone(),
        (None, None) => {
            let mut all = domains.values().flat_map(|domain| &domain.interfaces);
            all.find(|interface| interface.ifindex.is_some()).cloned().into_iter().collect()
        }
    };
    let mut verdicts = Vec::new();
    for interface in interfaces {
        let Some(ifindex) = interface.ifindex else { continue };
        let packet = craft(&PacketSpec {
            source: (question.source, question.source_port).into(),
            destination: question.destination,
            payload: match question.payload {
                Payload::Tcp => CraftedPayload::Tcp,
                Payload::Udp => CraftedPayload::Udp,
                Payload::Icmp { kind, code } => CraftedPayload::Icmp { kind, code },
            },
            vlan: interface.vlan,
        });
        match kernel.explain(&packet, ifindex) {
            Ok(verdict) => verdicts.push(KernelVerdict {
                interface: interface.name,
                agrees: (verdict.domain, verdict.reason) == expected,
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
