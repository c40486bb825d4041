//! The way of a packet by the model: address → interface → source → port. The order and the reasons are those of the kernel's
//! `admit`; the loaded program is asked as well, so a difference shows. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use tidegate_gateway_api::{Origin, Subject};
use tidegate_kernel::Reason;
use tidegate_model::{DomainName, FrontendKey, Transport};

use super::Step;
use crate::{
    admin::protocol::Question,
    state::{Attach, DomainState, InterfaceState},
};

/// Finds the object and field behind something of a domain.
pub(super) type FindOrigin<'a> = &'a dyn Fn(&DomainName, &Subject) -> Option<Origin>;

/// A domain as the walk sees it.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// Its name.
    pub name: &'a DomainName,
    /// Its state.
    pub domain: &'a DomainState,
}

/// Walks a packet through the decisions. Returns the steps, the reason that ends them, and the domain whose frontend it is.
pub(super) fn walk(
    domains: &[Facts<'_>],
    question: &Question,
    arrival: Option<&InterfaceState>,
    is_kernel_on: bool,
    find_origin: FindOrigin<'_>,
) -> (Vec<Step>, Reason, Option<DomainName>) {
    let destination = question.destination;
    let transport = if question.is_udp { Transport::Udp } else { Transport::Tcp };
    let key = FrontendKey { addr: destination.ip(), port: destination.port(), transport };
    let is_served = |facts: &&Facts<'_>| facts.domain.frontends.keys.contains(&key);
    let owns_address = |facts: &&Facts<'_>| facts.domain.frontends.exclusive.contains(&key.addr);
    let Some(owner) = domains.iter().find(owns_address).or_else(|| domains.iter().find(is_served)) else {
        let step = Step::new("frontend", format!("{key} is no frontend of any domain: the packet passes untouched"));
        return (vec![step], Reason::NotFrontend, None);
    };
    let is_frontend = is_served(&owner);
    let mut steps = vec![if is_frontend {
        frontend_step(owner, &key, find_origin)
    } else {
        let outcome = format!("{} belongs to domain {} alone", key.addr, owner.name);
        Step::new("address", outcome).by(format!("TrafficDomain/{}", owner.name), "spec.addresses", "")
    }];
    let mut reason = Reason::Admitted;
    if is_kernel_on {
        reason = judge_arrival(owner, question.source, arrival, find_origin, &mut steps);
    } else {
        steps.push(Step::new("admission", "not judged: --kernel=off"));
    }
    if reason == Reason::Admitted && !is_frontend {
        steps.push(port_step(owner, &key));
        reason = Reason::NoFrontend;
    }
    if reason == Reason::Admitted && is_kernel_on {
        steps.push(Step::new("admission", "the packet is let in"));
    }
    (steps, reason, Some(owner.name.clone()))
}

/// NIC and source: what every packet of a domain has to pass.
fn judge_arrival(
    owner: &Facts<'_>,
    source: IpAddr,
    arrival: Option<&InterfaceState>,
    find_origin: FindOrigin<'_>,
    steps: &mut Vec<Step>,
) -> Reason {
    let (step, is_own) = interface_step(owner, arrival);
    steps.push(step);
    if !is_own {
        return Reason::WrongInterface;
    }
    let (more, reason) = source_steps(owner, source, find_origin);
    steps.extend(more);
    reason
}

fn port_step(owner: &Facts<'_>, key: &FrontendKey) -> Step {
    let served = owner.domain.frontends.keys.iter().filter(|frontend| frontend.addr == key.addr);
    let ports: Vec<String> = served.map(|frontend| format!("{}/{}", frontend.port, frontend.transport)).collect();
    Step::new("frontend", format!("the domain serves other ports of {} only", key.addr))
        .by(format!("TrafficDomain/{}", owner.name), "spec.addresses", format!("served: {}", ports.join(", ")))
        .denial()
}

fn frontend_step(owner: &Facts<'_>, key: &FrontendKey, find_origin: FindOrigin<'_>) -> Step {
    let listeners = owner.domain.model.listeners().filter(|(_, listener)| listener.frontends.contains(key));
    let names: Vec<String> = listeners.map(|(name, _)| name.to_string()).collect();
    let step = Step::new("frontend", format!("{key} is a frontend of domain {}", owner.name));
    match find_origin(owner.name, &Subject::Frontend(*key)) {
        Some(origin) => step.by(origin.object.to_string(), origin.field, names.join(", ")),
        None => step.by("", "", names.join(", ")),
    }
}

fn interface_step(owner: &Facts<'_>, arrival: Option<&InterfaceState>) -> (Step, bool) {
    let object = format!("TrafficDomain/{}", owner.name);
    let named = owner.domain.model.domain.interfaces.join(", ");
    let Some(arrival) = arrival else {
        let step =
            Step::new("interface", "taken as arriving on an interface of the domain (name another with --iface)");
        return (step.by(object, "spec.interfaces", named), true);
    };
    let own = owner.domain.interfaces.iter().find(|interface| interface.name == arrival.name);
    match own {
        Some(interface) => {
            let how = match &interface.attach {
                Attach::Native => "judged in the driver (XDP native)".to_owned(),
                Attach::Generic => "judged in the generic XDP path".to_owned(),
                Attach::Missing => "which does not exist now".to_owned(),
                Attach::Failed(reason) => format!("but admission is not attached there: {reason}"),
                Attach::Off => "not judged".to_owned(),
            };
            (
                Step::new("interface", format!("{} belongs to the domain, {how}", arrival.name)).by(
                    object,
                    "spec.interfaces",
                    named,
                ),
                true,
            )
        }
        None => {
            let outcome = format!("{} is not an interface of domain {}", arrival.name, owner.name);
            (Step::new("interface", outcome).by(object, "spec.interfaces", named).denial(), false)
        }
    }
}

fn source_steps(owner: &Facts<'_>, source: IpAddr, find_origin: FindOrigin<'_>) -> (Vec<Step>, Reason) {
    let object = format!("TrafficDomain/{}", owner.name);
    let admission = &owner.domain.model.domain.admission;
    if let Some(prefix) = longest_match(&admission.deny, source) {
        let step = Step::new("source", format!("{source} is on the deny list"));
        let step = match find_origin(owner.name, &Subject::SourceDenied(source)) {
            Some(origin) => step.by(origin.object.to_string(), origin.field, prefix.to_string()),
            None => step.by(object, "spec.sources.deny", prefix.to_string()),
        };
        return (vec![step.denial()], Reason::SourceDenied);
    }
    let denied = Step::new("source", format!("{source} is not on the deny list"));
    let mut steps = vec![denied.by(&*object, "spec.sources.deny", format!("{} prefixes", admission.deny.len()))];
    match &admission.allow {
        None => steps.push(Step::new("source", "there is no allow list: every other source is let in").by(
            object,
            "spec.sources.allow",
            "",
        )),
        Some(allow) => match longest_match(allow, source) {
            Some(prefix) => {
                let step = Step::new("source", format!("{source} is on the allow list"));
                steps.push(step.by(object, "spec.sources.allow", prefix.to_string()));
            }
            None => {
                let step = Step::new(
                    "source",
                    format!("{source} is not on the allow list, which closes the domain to all others"),
                );
                steps.push(step.by(object, "spec.sources.allow", show_prefixes(allow)).denial());
                return (steps, Reason::SourceNotAllowed);
            }
        },
    }
    (steps, Reason::Admitted)
}

fn longest_match(prefixes: &[IpNet], address: IpAddr) -> Option<IpNet> {
    prefixes.iter().filter(|prefix| prefix.contains(&address)).max_by_key(|prefix| prefix.prefix_len()).copied()
}

/// Prefixes that are shown of a list; more only say how many there are.
const SHOWN_PREFIXES: usize = 4;

fn show_prefixes(prefixes: &[IpNet]) -> String {
    let mut shown: Vec<String> = prefixes.iter().take(SHOWN_PREFIXES).map(ToString::to_string).collect();
    if prefixes.len() > SHOWN_PREFIXES {
        shown.push(format!("… {} in all", prefixes.len()));
    }
    shown.join(", ")
}
