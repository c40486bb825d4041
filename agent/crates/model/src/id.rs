//! Names and numbers that identify things, each a type of its own so that one cannot be passed for another.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use crate::texts;

/// Name of a `TrafficDomain` object: cluster-scoped, unique, stable.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DomainName(pub Arc<str>);

impl DomainName {
    /// Makes a name from text; Kubernetes has validated it as a DNS label by then.
    pub fn new(name: impl AsRef<str>) -> Self {
        Self(Arc::from(name.as_ref()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DomainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Number of a domain on this node, as BPF maps know it. `0` is "no domain"; the agent gives out 1 and above and keeps
/// a number for as long as the kernel state of that domain exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DomainId(pub u32);

/// Number of a model's state. Grows by one with every delta of that domain; workers and kernel report the generation
/// that they have applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl Generation {
    /// The generation after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Transport protocol of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Transport {
    /// TCP (RFC 9293).
    Tcp,
    /// UDP (RFC 768).
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// One (address, port, protocol) that a domain owns on this node. Never an IPv4-mapped IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FrontendKey {
    /// Address, canonical (an IPv4 address is never written as IPv4-mapped IPv6).
    pub addr: IpAddr,
    /// Port in host byte order.
    pub port: u16,
    /// Transport protocol.
    pub transport: Transport,
}

impl fmt::Display for FrontendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.addr, self.port), self.transport)
    }
}

/// An address that a worker dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Dial {
    /// Transport protocol.
    pub transport: Transport,
    /// Where to.
    pub addr: SocketAddr,
}

impl Dial {
    /// A TCP address.
    pub fn tcp(addr: SocketAddr) -> Self {
        Self { transport: Transport::Tcp, addr }
    }

    /// A UDP address.
    pub fn udp(addr: SocketAddr) -> Self {
        Self { transport: Transport::Udp, addr }
    }
}

impl fmt::Display for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.transport)
    }
}

/// Namespace and name of an object whose kind is known from where the value stands. `namespace` is empty for a
/// cluster-scoped object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    /// Namespace; empty when cluster-scoped.
    #[serde(deserialize_with = "texts::deserialize")]
    pub namespace: Arc<str>,
    /// Name within the namespace.
    #[serde(deserialize_with = "texts::deserialize")]
    pub name: Arc<str>,
}

impl ObjectName {
    /// Makes a name from its two parts.
    pub fn new(namespace: impl AsRef<str>, name: impl AsRef<str>) -> Self {
        Self { namespace: Arc::from(namespace.as_ref()), name: Arc::from(name.as_ref()) }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

/// A host name pattern of a listener or a route: lower case, without a trailing dot. `*.example.com` matches one or
/// more labels in place of `*` (Gateway API: a wildcard label matches as a suffix match).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Hostname {
    /// One host name.
    Exact(#[serde(deserialize_with = "texts::deserialize")] Arc<str>),
    /// The part behind `*.`; matches every name that ends with `.` and this.
    Wildcard(#[serde(deserialize_with = "texts::deserialize")] Arc<str>),
}

/// Why text is not a host name pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host name: write labels of letters, digits and '-', at most with a leading '*.'")]
pub struct HostnameError(pub String);

impl Hostname {
    /// Whether `host` (lower case, no port, no trailing dot) is matched by this pattern.
    pub fn is_match(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => **name == *host,
            Self::Wildcard(suffix) => host
                .strip_suffix(&**suffix)
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|labels| !labels.is_empty()),
        }
    }

    /// The more specific of two patterns that have a host name in common; `None` when they have none.
    pub fn intersect(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Exact(host), pattern) => pattern.is_match(host).then(|| self.clone()),
            (pattern, Self::Exact(host)) => pattern.is_match(host).then(|| other.clone()),
            (Self::Wildcard(a), Self::Wildcard(b)) if a == b || Self::is_below(a, b) => Some(self.clone()),
            (Self::Wildcard(a), Self::Wildcard(b)) if Self::is_below(b, a) => Some(other.clone()),
            _ => None,
        }
    }

    fn is_below(name: &str, parent: &str) -> bool {
        name.strip_suffix(parent).is_some_and(|rest| rest.ends_with('.'))
    }
}

impl FromStr for Hostname {
    type Err = HostnameError;

    fn from_str(text: &str) -> Result<Self, HostnameError> {
        let lower = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let (wildcard, name) = match lower.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, lower.as_str()),
        };
        let label_is_valid = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if name.len() > 253 || !name.split('.').all(label_is_valid) || name.parse::<IpAddr>().is_ok() {
            return Err(HostnameError(text.to_owned()));
        }
        Ok(if wildcard { Self::Wildcard(Arc::from(name)) } else { Self::Exact(Arc::from(name)) })
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Wildcard(suffix) => write!(f, "*.{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Hostname {
        text.parse().unwrap()
    }

    #[test]
    fn wildcard_matches_one_or_more_labels_but_not_its_own_suffix() {
        let pattern = host("*.example.com");
        assert!(pattern.is_match("a.example.com"));
        assert!(pattern.is_match("a.b.example.com"));
        assert!(!pattern.is_match("example.com"));
        assert!(!pattern.is_match(".example.com"));
        assert!(!pattern.is_match("badexample.com"));
    }

    #[test]
    fn intersection_is_the_more_specific_pattern() {
        assert_eq!(host("*.example.com").intersect(&host("a.example.com")), Some(host("a.example.com")));
        assert_eq!(host("*.example.com").intersect(&host("*.b.example.com")), Some(host("*.b.example.com")));
        assert_eq!(host("*.example.com").intersect(&host("*.notexample.com")), None);
        assert_eq!(host("a.example.com").intersect(&host("b.example.com")), None);
    }

    #[test]
    fn refuses_addresses_empty_labels_and_inner_wildcards() {
        for text in ["", "*", "*.", "a..b", "10.0.0.1", "a.*.b", "-a.com", "a_b.com"] {
            assert!(text.parse::<Hostname>().is_err(), "{text} was taken");
        }
        assert_eq!(host("Shop.Example.COM."), host("shop.example.com"));
    }
}
