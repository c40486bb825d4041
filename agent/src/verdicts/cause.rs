//! What is behind each reason: the field that decides and words for people. One place for the command line, samples and
//! `explain`, complete by construction: a reason without its words does not compile.

use tidegate_kernel::{Hook, Reason};
use tidegate_model::DomainName;

/// What is behind a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cause {
    /// Field of the TrafficDomain that decides; empty when none does.
    pub field: &'static str,
    /// What the reason says, as the rest of a sentence about the packet.
    pub words: &'static str,
}

impl Cause {
    /// The object and field of a domain.
    pub fn place(&self, domain: &DomainName) -> (String, String) {
        if self.field.is_empty() {
            (String::new(), String::new())
        } else {
            (format!("TrafficDomain/{domain}"), self.field.to_owned())
        }
    }
}

/// What is behind a reason.
pub fn cause(reason: Reason) -> Cause {
    let (field, words) = match reason {
        Reason::NotFrontend => ("", "is for no frontend and passes untouched"),
        Reason::Admitted => ("", "is let in"),
        Reason::WrongInterface => ("spec.interfaces", "came through a NIC or VLAN that is not the domain's"),
        Reason::SourceDenied => ("spec.sources.deny", "comes from a source on the deny list"),
        Reason::SourceNotAllowed => ("spec.sources.allow", "comes from a source that is not on the allow list"),
        Reason::NoFrontend => ("spec.addresses", "is for a port that no listener of the domain has"),
        Reason::Malformed => ("", "is truncated, contradicts itself or is a dangerous fragment"),
        Reason::IcmpDenied => ("", "is an ICMP message that frontends do not take"),
        Reason::ProtocolDenied => ("", "is neither TCP, UDP nor ICMP"),
        Reason::DomainUnknown => ("", "is for a domain whose policy is not applied yet"),
        Reason::NoWorker => ("", "found no listening socket: the domain's worker is not up"),
        Reason::DialAllowed => ("", "goes to an endpoint of the domain"),
        Reason::DialDenied => ("spec.egress", "goes to an address that the domain's workers may not dial"),
        Reason::Martian => ("", "has a source that no client can have"),
        Reason::RateSource => {
            ("spec.admission.newConnections.perSource", "opens connections faster than the domain lets one source")
        }
        Reason::RateDomain => {
            ("spec.admission.newConnections.total", "opens a connection while the domain's own rate is used up")
        }
        Reason::OpenSource => {
            ("spec.admission.openConnections.perSource", "has as many open connections as the domain lets one source")
        }
        Reason::OpenDomain => {
            ("spec.admission.openConnections.total", "comes while the domain has as many connections as it may")
        }
        Reason::EchoRate => ("spec.admission.icmp.echo", "is an echo request beyond the rate that the domain answers"),
        Reason::CookieSent => ("spec.admission.synCookies", "is answered in the driver with a SYN cookie"),
        Reason::BindDenied => ("", "is a bind, which workers may not do to this address"),
        Reason::SocketDenied => ("", "is a socket of a family or type that workers may not open"),
        Reason::AnswerDenied => ("spec.sources", "is an answer to somebody who may be no client, or in another's name"),
    };
    Cause { field, words }
}

/// The reasons that a hook can give, for a domain or for none.
pub fn reasons_of(hook: Hook, is_for_domain: bool) -> impl Iterator<Item = Reason> {
    Reason::ALL.into_iter().filter(move |reason| {
        let is_guards = matches!(
            reason,
            Reason::DialAllowed | Reason::DialDenied | Reason::BindDenied | Reason::SocketDenied | Reason::AnswerDenied
        );
        match (hook, is_for_domain) {
            // The guard of a cgroup that is not known refuses for no domain.
            (Hook::Guard, true) => is_guards,
            (Hook::Guard, false) => is_guards && reason.is_denial() && *reason != Reason::AnswerDenied,
            (_, false) => *reason == Reason::NotFrontend,
            (_, true) if is_guards || *reason == Reason::NotFrontend => false,
            (Hook::Admit, true) => *reason != Reason::NoWorker,
            (Hook::Steer, true) => !matches!(
                reason,
                Reason::Malformed | Reason::IcmpDenied | Reason::ProtocolDenied | Reason::EchoRate | Reason::CookieSent
            ),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_can_be_given_somewhere_and_has_words() {
        for reason in Reason::ALL {
            assert!(!cause(reason).words.is_empty());
            let is_given = Hook::ALL.into_iter().any(|hook| {
                [true, false].into_iter().any(|is_for_domain| reasons_of(hook, is_for_domain).any(|one| one == reason))
            });
            assert!(is_given, "{reason:?}");
        }
        assert!(reasons_of(Hook::Steer, true).any(|reason| reason == Reason::NoWorker));
        assert!(!reasons_of(Hook::Admit, true).any(|reason| reason == Reason::DialDenied));
    }
}
