//! Hooks and reasons: every verdict has a name, and the numbers are what counters and samples carry.

/// Where a verdict was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Hook {
    /// XDP, every packet of a NIC.
    Admit = 0,
    /// sk_lookup, each new connection or datagram without a connected socket.
    Steer = 1,
    /// cgroup connect and sendmsg, each address that a worker dials.
    Guard = 2,
}

impl Hook {
    /// All hooks in the order of their numbers.
    pub const ALL: [Self; 3] = [Self::Admit, Self::Steer, Self::Guard];

    /// Name in metrics, samples and the CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admit => "admit",
            Self::Steer => "steer",
            Self::Guard => "guard",
        }
    }

    /// The hook of a number.
    pub const fn from_number(number: u8) -> Option<Self> {
        if (number as usize) < Self::ALL.len() { Some(Self::ALL[number as usize]) } else { None }
    }
}

/// Why a verdict is what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Reason {
    /// Passed untouched: not for a frontend. Counted under domain 0.
    NotFrontend = 0,
    /// Let in.
    Admitted = 1,
    /// Came through a NIC or VLAN that is not the domain's.
    WrongInterface = 2,
    /// The source is on the domain's deny list.
    SourceDenied = 3,
    /// The domain has an allow list and the source is not on it.
    SourceNotAllowed = 4,
    /// The address belongs to a domain, which has no frontend at this port.
    NoFrontend = 5,
    /// Truncated, contradictory or a dangerous fragment (RFC 1858, RFC 7112).
    Malformed = 6,
    /// An ICMP type that frontends do not take.
    IcmpDenied = 7,
    /// Neither TCP, UDP nor ICMP.
    ProtocolDenied = 8,
    /// The domain has no policy: refused until it has one.
    DomainUnknown = 9,
    /// Let in, but the domain has no listening socket of that address family.
    NoWorker = 10,
    /// The worker may dial this address.
    DialAllowed = 11,
    /// The worker may not dial this address.
    DialDenied = 12,
    /// The source cannot be one: unspecified, loopback, multicast, broadcast, or an address that domains own themselves.
    Martian = 13,
    /// The source opens connections faster than the domain allows each source.
    RateSource = 14,
    /// Connections are opened faster than the domain allows in all.
    RateDomain = 15,
    /// The source has as many open connections as the domain allows each source.
    OpenSource = 16,
    /// The domain has as many open connections as it allows in all.
    OpenDomain = 17,
    /// More echo requests than the domain answers.
    EchoRate = 18,
    /// Answered in the driver with a SYN cookie: the connection begins when the client proves that it is there.
    CookieSent = 19,
    /// A worker may not bind this address.
    BindDenied = 20,
    /// A worker may not open a socket of this family or type.
    SocketDenied = 21,
    /// A worker may not send this through the socket of a UDP frontend: to somebody who may be no client of it, or under another
    /// source address than the frontend's.
    AnswerDenied = 22,
}

impl Reason {
    /// All reasons in the order of their numbers.
    pub const ALL: [Self; 23] = [
        Self::NotFrontend,
        Self::Admitted,
        Self::WrongInterface,
        Self::SourceDenied,
        Self::SourceNotAllowed,
        Self::NoFrontend,
        Self::Malformed,
        Self::IcmpDenied,
        Self::ProtocolDenied,
        Self::DomainUnknown,
        Self::NoWorker,
        Self::DialAllowed,
        Self::DialDenied,
        Self::Martian,
        Self::RateSource,
        Self::RateDomain,
        Self::OpenSource,
        Self::OpenDomain,
        Self::EchoRate,
        Self::CookieSent,
        Self::BindDenied,
        Self::SocketDenied,
        Self::AnswerDenied,
    ];

    /// Name in metrics, samples and the CLI.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NotFrontend => "not_frontend",
            Self::Admitted => "admitted",
            Self::WrongInterface => "wrong_interface",
            Self::SourceDenied => "source_denied",
            Self::SourceNotAllowed => "source_not_allowed",
            Self::NoFrontend => "no_frontend",
            Self::Malformed => "malformed",
            Self::IcmpDenied => "icmp_denied",
            Self::ProtocolDenied => "protocol_denied",
            Self::DomainUnknown => "domain_unknown",
            Self::NoWorker => "no_worker",
            Self::DialAllowed => "dial_allowed",
            Self::DialDenied => "dial_denied",
            Self::Martian => "martian",
            Self::RateSource => "rate_source",
            Self::RateDomain => "rate_domain",
            Self::OpenSource => "open_source",
            Self::OpenDomain => "open_domain",
            Self::EchoRate => "echo_rate",
            Self::CookieSent => "cookie_sent",
            Self::BindDenied => "bind_denied",
            Self::SocketDenied => "socket_denied",
            Self::AnswerDenied => "answer_denied",
        }
    }

    /// Whether the packet or connection is refused.
    #[inline(always)]
    pub const fn is_denial(self) -> bool {
        !matches!(self, Self::NotFrontend | Self::Admitted | Self::DialAllowed | Self::CookieSent)
    }

    /// The reason of a number.
    pub const fn from_number(number: u8) -> Option<Self> {
        if (number as usize) < Self::ALL.len() { Some(Self::ALL[number as usize]) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_unique_and_come_back() {
        for (index, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            assert_eq!(Reason::from_number(reason as u8), Some(reason));
            assert_eq!(Reason::ALL.iter().filter(|other| other.name() == reason.name()).count(), 1);
        }
        assert_eq!(Reason::from_number(Reason::ALL.len() as u8), None);
        for (index, hook) in Hook::ALL.into_iter().enumerate() {
            assert_eq!(hook as usize, index);
        }
    }
}
