//! The way of a packet by the model. The order and the reasons are those of the kernel's `admit`, written down a second
//! time on purpose: the loaded program is asked as well, so a difference shows. Pure.
//!
//! Order: frontend → NIC → martian → deny list → allow list → port or ICMP message → open connections → rates of new
//! connections → admission.

use std::net::IpAddr;

use tidegate_gateway_api::{Origin, Subject};
use tidegate_kernel::{RateState, Reason};
use tidegate_model::{DomainId, DomainName, FrontendKey, RateLimit, SourceList, SynCookies, Transport};

use super::Step;
use crate::{
    admin::protocol::{Payload, Question},
    state::{Attach, DomainState, InterfaceState},
    verdicts::cause,
};

/// Finds the object and field behind something of a domain.
pub(super) type FindOrigin<'a> = &'a dyn Fn(&DomainName, &Subject) -> Option<Origin>;

/// Reads what the buckets of a domain hold now for a source; `None` when that is not known.
pub(super) type ReadRates<'a> = &'a dyn Fn(DomainId, IpAddr) -> Option<RateState>;

/// Open connections of the source that an address belongs to, and of the domain; `None` when that is not known.
pub(super) type CountOpen<'a> = &'a dyn Fn(DomainId, IpAddr) -> Option<(u64, u64)>;

/// A domain as the walk sees it.
#[derive(Clone, Copy)]
pub struct Facts<'a> {
    /// Its name.
    pub name: &'a DomainName,
    /// Its state.
    pub domain: &'a DomainState,
}

/// What a walk goes through.
#[derive(Clone, Copy)]
pub(super) struct Scene<'a> {
    /// The domains.
    pub(super) domains: &'a [Facts<'a>],
    /// Interface that the packet arrives on; one of the domain's own when `None`.
    pub(super) arrival: Option<&'a InterfaceState>,
    /// Whether packets are judged in the kernel.
    pub(super) is_kernel_on: bool,
    /// Finds the object and field behind something of a domain.
    pub(super) find_origin: FindOrigin<'a>,
    /// Reads buckets.
    pub(super) read_rates: ReadRates<'a>,
    /// Whether the source has completed a handshake with the domain, so that the domain's reserve is its too.
    pub(super) is_known: bool,
    /// Counts open connections.
    pub(super) count_open: CountOpen<'a>,
    /// When the kernel answers SYNs with cookies.
    pub(super) cookies: Cookies,
}

/// When the kernel makes SYN cookies (`net.ipv4.tcp_syncookies`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cookies {
    /// Never: 0.
    Never,
    /// While a listener's queue is full, as the one in question is or is not now: 1.
    WhenFull {
        /// Whether it is.
        is_full: bool,
    },
    /// For every SYN: 2.
    Always,
}

impl Cookies {
    /// What the setting says in this network namespace; the kernel's default where it cannot be read.
    pub(super) fn read(is_full: bool) -> Self {
        match std::fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies").as_deref().map(str::trim) {
            Ok("0") => Self::Never,
            Ok("2") => Self::Always,
            _ => Self::WhenFull { is_full },
        }
    }

    fn setting(self) -> &'static str {
        match self {
            Self::Never => "net.ipv4.tcp_syncookies = 0",
            Self::WhenFull { .. } => "net.ipv4.tcp_syncookies = 1",
            Self::Always => "net.ipv4.tcp_syncookies = 2",
        }
    }
}

/// Where a walk led to.
#[derive(Debug)]
pub(super) struct Way {
    /// The decisions in their order.
    pub(super) steps: Vec<Step>,
    /// The verdict.
    pub(super) reason: Reason,
    /// Domain that it was made for.
    pub(super) owner: Option<DomainName>,
}

/// Walks a packet through the decisions. Addresses are canonical (no IPv4-mapped IPv6) and of one family.
pub(super) fn walk(scene: &Scene<'_>, question: &Question) -> Way {
    let Some(place) = find_place(scene.domains, question) else {
        let what = if matches!(question.payload, Payload::Icmp { .. }) {
            format!("{} belongs to no domain alone", question.destination.ip())
        } else {
            format!("{} is no frontend of any domain", question.destination)
        };
        let step = Step::new("frontend", format!("{what}: the packet passes untouched"));
        return Way { steps: vec![step.deciding()], reason: Reason::NotFrontend, owner: None };
    };
    let mut walk = Walk { scene, question, owner: place.owner, steps: Vec::new() };
    walk.push_place(&place);
    let reason = match walk.judge(&place) {
        Err(reason) => reason,
        Ok(()) => match walk.judge_cookies() {
            Some(reason) => reason,
            None => {
                let step = if scene.is_kernel_on {
                    Step::new("admission", format!("the packet {}", cause(Reason::Admitted).words))
                } else {
                    Step::new("admission", "not judged: --kernel=off")
                };
                walk.steps.push(step.deciding());
                Reason::Admitted
            }
        },
    };
    Way { steps: walk.steps, reason, owner: Some(walk.owner.name.clone()) }
}

/// Whose the destination is.
struct Place<'a> {
    owner: &'a Facts<'a>,
    /// What it is sent to; `None` for what has no port.
    key: Option<FrontendKey>,
    /// Whether that is a frontend of the owner.
    is_frontend: bool,
}

fn find_place<'a>(domains: &'a [Facts<'a>], question: &Question) -> Option<Place<'a>> {
    let transport = match question.payload {
        Payload::Tcp => Some(Transport::Tcp),
        Payload::Udp => Some(Transport::Udp),
        Payload::Icmp { .. } => None,
    };
    let addr = question.destination.ip();
    let key = transport.map(|transport| FrontendKey { addr, port: question.destination.port(), transport });
    let serves = |facts: &Facts<'_>| key.is_some_and(|key| facts.domain.frontends.keys.contains(&key));
    let owner = domains
        .iter()
        .find(|facts| facts.domain.frontends.exclusive.contains(&addr))
        .or_else(|| domains.iter().find(|facts| serves(facts)))?;
    Some(Place { owner, key, is_frontend: serves(owner) })
}

struct Walk<'a> {
    scene: &'a Scene<'a>,
    question: &'a Question,
    owner: &'a Facts<'a>,
    steps: Vec<Step>,
}

impl Walk<'_> {
    fn object(&self) -> String {
        format!("TrafficDomain/{}", self.owner.name)
    }

    /// A step by the object and field behind something, or by a field of the domain where that is not known.
    fn step(&self, step: Step, subject: &Subject, field: &str, value: impl Into<String>) -> Step {
        match (self.scene.find_origin)(self.owner.name, subject) {
            Some(origin) => step.by(origin.object.to_string(), origin.field, value),
            None if field.is_empty() => step.by("", "", value),
            None => step.by(self.object(), field, value),
        }
    }

    fn deny(&mut self, step: Step, reason: Reason) -> Result<(), Reason> {
        self.steps.push(step.denial());
        Err(reason)
    }

    fn push_place(&mut self, place: &Place<'_>) {
        let name = self.owner.name;
        let step = match place.key {
            Some(key) if place.is_frontend => {
                let listeners = self.owner.domain.model.listeners();
                let has_it = listeners.filter(|(_, listener)| listener.frontends.contains(&key));
                let names: Vec<String> = has_it.map(|(name, _)| name.to_string()).collect();
                let step = Step::new("frontend", format!("{key} is a frontend of domain {name}"));
                self.step(step, &Subject::Frontend(key), "", names.join(", "))
            }
            _ => {
                let addr = self.question.destination.ip();
                let step = Step::new("frontend", format!("{addr} belongs to domain {name} alone"));
                self.step(step, &Subject::Address(addr), "spec.addresses", addr.to_string())
            }
        };
        self.steps.push(step);
    }

    fn judge(&mut self, place: &Place<'_>) -> Result<(), Reason> {
        let message = Message::of(self.question);
        if self.scene.is_kernel_on {
            self.judge_interface()?;
            self.judge_martian(message)?;
            self.judge_deny_list()?;
            self.judge_allow_list(message)?;
        }
        match (place.key, message) {
            (Some(key), _) if !place.is_frontend => self.refuse_port(&key),
            (None, Message::Refused) if self.scene.is_kernel_on => {
                let step = Step::new("icmp", "frontends take echo, and the errors that path MTU discovery needs");
                self.deny(step, Reason::IcmpDenied)
            }
            (None, Message::Echo) if self.scene.is_kernel_on => self.judge_echo(),
            _ if self.scene.is_kernel_on && self.question.payload == Payload::Tcp => {
                self.judge_open_connections()?;
                self.judge_rates()
            }
            _ => Ok(()),
        }
    }

    fn judge_interface(&mut self) -> Result<(), Reason> {
        let named = self.owner.domain.model.domain.interfaces.join(", ");
        let Some(arrival) = self.scene.arrival else {
            let words = "taken as arriving on an interface of the domain (name another with --iface)";
            self.steps.push(Step::new("interface", words).by(self.object(), "spec.interfaces", named));
            return Ok(());
        };
        let Some(own) = self.owner.domain.interfaces.iter().find(|interface| interface.name == arrival.name) else {
            let words = format!("{} is not an interface of domain {}", arrival.name, self.owner.name);
            let step = Step::new("interface", words).by(self.object(), cause(Reason::WrongInterface).field, named);
            return self.deny(step, Reason::WrongInterface);
        };
        let how = match &own.attach {
            Attach::Native => "judged in the driver (XDP native)".to_owned(),
            Attach::Generic => "judged in the generic XDP path".to_owned(),
            Attach::Missing => "which does not exist now".to_owned(),
            Attach::Failed(reason) => format!("but admission is not attached there: {reason}"),
            Attach::Off => "not judged".to_owned(),
        };
        let step = Step::new("interface", format!("{} belongs to the domain, {how}", arrival.name));
        self.steps.push(self.step(step, &Subject::Interface(arrival.name.clone()), "spec.interfaces", &arrival.name));
        Ok(())
    }

    /// What becomes of a connection's first packet when the listener's queue is full, and whether that is so now: who answers,
    /// and when. A SYN that the driver answers is one more verdict; what the stack does with one that is let in is not.
    fn judge_cookies(&mut self) -> Option<Reason> {
        if !self.scene.is_kernel_on || !matches!(self.question.payload, Payload::Tcp) {
            return None;
        }
        let is_xdp = self.owner.domain.model.domain.admission.syn_cookies == SynCookies::Xdp;
        let (who, value) = if is_xdp { ("the driver", "XDP") } else { ("the stack", "Kernel") };
        let words = format!("{who} answers SYNs for which the kernel makes a cookie");
        self.steps.push(Step::new("syn cookies", words).by(self.object(), cause(Reason::CookieSent).field, value));
        let cookies = self.scene.cookies;
        let (is_sent, words) = match cookies {
            Cookies::Never => (false, "it makes none: SYNs beyond a full queue are dropped".to_owned()),
            Cookies::WhenFull { is_full: false } if is_xdp => {
                (false, "the listener's queue is not full now".to_owned())
            }
            Cookies::WhenFull { is_full: false } => (false, "it does so while the listener's queue is full".to_owned()),
            Cookies::WhenFull { is_full: true } => (true, format!("the listener's queue is full: {who} sends one")),
            Cookies::Always => (true, format!("it makes one for every SYN: {who} sends it")),
        };
        let step = Step::new("cookie", words).by("", "", cookies.setting());
        if is_xdp && is_sent {
            self.steps.push(step.deciding());
            return Some(Reason::CookieSent);
        }
        self.steps.push(step);
        None
    }

    /// Whether anybody can have the source at all. The packet comes from outside: nobody asks about the node itself.
    fn judge_martian(&mut self, message: Message) -> Result<(), Reason> {
        let source = self.question.source;
        if let Some(range) = find_impossible(source, message == Message::Error) {
            let step = Step::new("martian", format!("no client can have {source}")).by("", "", range);
            return self.deny(step, Reason::Martian);
        }
        let has_it = |facts: &&Facts<'_>| {
            let frontends = &facts.domain.frontends;
            frontends.exclusive.contains(&source) || frontends.keys.iter().any(|key| key.addr == source)
        };
        if let Some(owner) = self.scene.domains.iter().find(has_it) {
            let words = format!("{source} is an address of domain {} itself", owner.name);
            let step = match (self.scene.find_origin)(owner.name, &Subject::Address(source)) {
                Some(origin) => {
                    Step::new("martian", words).by(origin.object.to_string(), origin.field, source.to_string())
                }
                None => Step::new("martian", words).by(
                    format!("TrafficDomain/{}", owner.name),
                    "spec.addresses",
                    source.to_string(),
                ),
            };
            return self.deny(step, Reason::Martian);
        }
        self.steps.push(Step::new("martian", format!("a client can have {source}")));
        Ok(())
    }

    fn judge_deny_list(&mut self) -> Result<(), Reason> {
        let (source, field) = (self.question.source, cause(Reason::SourceDenied).field);
        let deny = &self.owner.domain.model.domain.admission.deny;
        if let Some(prefix) = deny.find_longest(source) {
            let step = Step::new("deny list", format!("{source} is on it"));
            let step = self.step(step, &Subject::SourceDenied(source), field, prefix.to_string());
            return self.deny(step, Reason::SourceDenied);
        }
        let step = Step::new("deny list", format!("{source} is not on it"));
        self.steps.push(step.by(self.object(), field, format!("{} prefixes", deny.len())));
        Ok(())
    }

    fn judge_allow_list(&mut self, message: Message) -> Result<(), Reason> {
        let (source, field) = (self.question.source, cause(Reason::SourceNotAllowed).field);
        let Some(allow) = &self.owner.domain.model.domain.admission.allow else {
            let step = Step::new("allow list", "there is none: every other source is let in");
            self.steps.push(step.by(self.object(), field, ""));
            return Ok(());
        };
        let shown = show_prefixes(allow);
        if message == Message::Error {
            let words = "does not hold for errors, which come from routers on the way";
            self.steps.push(Step::new("allow list", words).by(self.object(), field, shown));
            return Ok(());
        }
        match allow.find_longest(source) {
            Some(prefix) => {
                let step = Step::new("allow list", format!("{source} is on it"));
                self.steps.push(self.step(step, &Subject::SourceAllowed(source), field, prefix.to_string()));
                Ok(())
            }
            None => {
                let words = if allow.is_empty() {
                    format!("{source} is not on it: it is empty, which closes the domain to everybody")
                } else {
                    format!("{source} is not on it, and it closes the domain to all others")
                };
                let step = self.step(Step::new("allow list", words), &Subject::SourceNotAllowed, field, shown);
                self.deny(step, Reason::SourceNotAllowed)
            }
        }
    }

    /// What is left in the buckets at this moment; asking takes nothing from them.
    fn judge_rates(&mut self) -> Result<(), Reason> {
        let admission = &self.owner.domain.model.domain.admission;
        let (per_source, total) = (admission.per_source, admission.total);
        if per_source.is_none() && total.is_none() {
            return Ok(());
        }
        let Some(held) = (self.scene.read_rates)(self.owner.domain.id, self.question.source) else {
            self.steps.push(Step::new("rates", "cannot be read from the kernel"));
            return Ok(());
        };
        let shared = if held.is_shared { ", in a bucket that it shares: all places of its set are in use" } else { "" };
        self.judge_bucket(per_source, held.source, Reason::RateSource, |left| {
            format!("the source may open {left} more at once now{shared}")
        })?;
        let left = if self.scene.is_known { held.total_known } else { held.total };
        let (strangers, known) = (held.total.unwrap_or_default(), held.total_known.unwrap_or_default());
        self.judge_bucket(total, left, Reason::RateDomain, |_| {
            format!("the domain takes {strangers} more at once now, and {known} of sources that it knows")
        })
    }

    /// Echo has one bucket for all sources.
    fn judge_echo(&mut self) -> Result<(), Reason> {
        let limit = self.owner.domain.model.domain.admission.echo.unwrap_or(RateLimit::ECHO);
        let Some(held) = (self.scene.read_rates)(self.owner.domain.id, self.question.source) else {
            self.steps.push(Step::new("rates", "cannot be read from the kernel"));
            return Ok(());
        };
        self.judge_bucket(Some(limit), held.echo, Reason::EchoRate, |left| {
            if limit.rate == 0 {
                "the domain takes no echo at all".to_owned()
            } else {
                format!("the domain takes {left} more echo messages at once now")
            }
        })
    }

    fn judge_bucket(
        &mut self,
        limit: Option<RateLimit>,
        left: Option<u64>,
        reason: Reason,
        say: impl Fn(u64) -> String,
    ) -> Result<(), Reason> {
        let (Some(limit), Some(left)) = (limit, left) else { return Ok(()) };
        let value = format!("{} a second, {} at once", limit.rate, limit.burst);
        let step = Step::new("rate", say(left)).by(self.object(), cause(reason).field, value);
        if left == 0 {
            return self.deny(step, reason);
        }
        self.steps.push(step);
        Ok(())
    }

    fn judge_open_connections(&mut self) -> Result<(), Reason> {
        let admission = &self.owner.domain.model.domain.admission;
        let limits = [
            (admission.open_per_source, Reason::OpenSource, "the source"),
            (admission.open_total, Reason::OpenDomain, "the domain"),
        ];
        if limits.iter().all(|(limit, ..)| limit.is_none()) {
            return Ok(());
        }
        let Some((by_source, total)) = (self.scene.count_open)(self.owner.domain.id, self.question.source) else {
            self.steps.push(Step::new("open connections", "cannot be read from the kernel"));
            return Ok(());
        };
        for ((limit, reason, whose), open) in limits.into_iter().zip([by_source, total]) {
            let Some(limit) = limit else { continue };
            let step = Step::new("open connections", format!("{whose} has {open} of {limit}"));
            let step = step.by(self.object(), cause(reason).field, limit.to_string());
            if open >= limit.into() {
                return self.deny(step, reason);
            }
            self.steps.push(step);
        }
        Ok(())
    }

    fn refuse_port(&mut self, key: &FrontendKey) -> Result<(), Reason> {
        let served = self.owner.domain.frontends.keys.iter().filter(|frontend| frontend.addr == key.addr);
        let ports: Vec<String> = served.map(|frontend| format!("{}/{}", frontend.port, frontend.transport)).collect();
        let step = Step::new("port", format!("no listener of the domain has {}/{} there", key.port, key.transport));
        let value = format!("served: {}", ports.join(", "));
        let step = step.by(self.object(), cause(Reason::NoFrontend).field, value);
        self.deny(step, Reason::NoFrontend)
    }
}

/// What an ICMP message is to a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Message {
    /// It is none.
    No,
    /// Echo, request or reply.
    Echo,
    /// An error about a packet sent earlier.
    Error,
    /// Anything else. Neighbour messages are among them: those that count have never been forwarded.
    Refused,
}

impl Message {
    fn of(question: &Question) -> Self {
        let Payload::Icmp { kind, .. } = question.payload else { return Self::No };
        match (question.destination.is_ipv4(), kind) {
            (true, 0 | 8) | (false, 128 | 129) => Self::Echo,
            (true, 3 | 11 | 12) | (false, 1..=4) => Self::Error,
            _ => Self::Refused,
        }
    }
}

/// The range of addresses that no source can have and that an address is in. Routers may send errors from link-local ones.
fn find_impossible(source: IpAddr, is_error: bool) -> Option<&'static str> {
    match source {
        IpAddr::V4(v4) if v4.octets()[0] == 0 => Some("0.0.0.0/8"),
        IpAddr::V4(v4) if v4.is_loopback() => Some("127.0.0.0/8"),
        IpAddr::V4(v4) if v4.is_link_local() => (!is_error).then_some("169.254.0.0/16"),
        // Multicast, class E and broadcast.
        IpAddr::V4(v4) => (v4.octets()[0] >= 224).then_some("224.0.0.0/3"),
        IpAddr::V6(v6) if v6.is_multicast() => Some("ff00::/8"),
        IpAddr::V6(v6) if v6.is_unicast_link_local() => (!is_error).then_some("fe80::/10"),
        IpAddr::V6(v6) if v6.is_loopback() => Some("::1"),
        // Unspecified and IPv4-compatible.
        IpAddr::V6(v6) => (v6.to_bits() >> 32 == 0).then_some("::/96"),
    }
}

/// Prefixes that are shown of a list; more only say how many there are.
const SHOWN_PREFIXES: usize = 4;

fn show_prefixes(prefixes: &SourceList) -> String {
    let mut shown: Vec<String> = prefixes.iter().take(SHOWN_PREFIXES).map(|prefix| prefix.to_string()).collect();
    if prefixes.len() > SHOWN_PREFIXES {
        shown.push(format!("… {} in all", prefixes.len()));
    }
    shown.join(", ")
}
