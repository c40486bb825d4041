//! What a domain is as a whole: its NICs, addresses, sources, limits and labels.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

use crate::{DomainName, FrontendKey, SourceList};

/// The unit of isolation (object `TrafficDomain`), less what its Gateways and Routes say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Name of the `TrafficDomain`.
    pub name: DomainName,
    /// NICs by name (`wan0`, or a VLAN device such as `wan0.100`) that its frontends are reachable through.
    pub interfaces: Vec<String>,
    /// Labels put on every metric and log line, e.g. `traffic.domain`, `business.line`.
    pub labels: BTreeMap<String, String>,
    /// Who may send packets to its frontends.
    pub admission: Admission,
    /// Limits of its worker's cgroup.
    pub limits: ResourceLimits,
    /// Shards of its worker; `None` means one for each core that the limits give it, at least one.
    pub shards: Option<u16>,
}

/// The kernel's rules on sources. Denied wins over allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admission {
    /// Prefixes that are refused.
    pub deny: SourceList,
    /// When present, only these prefixes are let in: `Some` and empty refuses everybody.
    pub allow: Option<SourceList>,
    /// Rate of new connections for each source.
    pub per_source: Option<RateLimit>,
    /// Rate of new connections for the domain.
    pub total: Option<RateLimit>,
    /// Rate of echo messages that the domain's own addresses take; `None` is [`RateLimit::ECHO`], a rate of 0 takes none.
    pub echo: Option<RateLimit>,
    /// Who answers SYNs when a listener's queue is full.
    pub syn_cookies: SynCookies,
    /// Open connections of each source; not 0.
    pub open_per_source: Option<u32>,
    /// Open connections of the domain; not 0.
    pub open_total: Option<u32>,
    /// What counts as one source.
    pub source_bits: SourceBits,
}

/// Who answers SYNs with cookies when a listener's queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SynCookies {
    /// The kernel's TCP, as `net.ipv4.tcp_syncookies` says.
    #[default]
    Kernel,
    /// XDP in the driver, for what the kernel would answer with a cookie.
    Xdp,
}

/// How many leading bits of an address tell sources apart, for limits of each source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceBits {
    /// Of IPv4 addresses.
    pub v4: u8,
    /// Of IPv6 addresses.
    pub v6: u8,
}

impl Default for SourceBits {
    /// An IPv4 address; an IPv6 /64, which is what one link gets (RFC 4291 section 2.5.1).
    fn default() -> Self {
        Self { v4: 32, v6: 64 }
    }
}

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Tokens a second.
    pub rate: u32,
    /// Size of the bucket in tokens.
    pub burst: u32,
}

impl RateLimit {
    /// Echo of a domain that says nothing: more than monitors send, and as much as a host answers of errors by default
    /// (`net.ipv4.icmp_msgs_per_sec`, 1000).
    pub const ECHO: Self = Self { rate: 1000, burst: 1000 };
}

/// Limits of a worker's cgroup; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// CPU in thousandths of a core.
    pub cpu_millis: Option<u64>,
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
}

/// Addresses and frontends of a domain on this node: what the kernel tier needs beside [`Domain`]. Derived from the
/// listeners of the domain's model, see [`crate::Model::frontends`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontends {
    /// Every (address, port, protocol) that is served.
    pub keys: Vec<FrontendKey>,
    /// Addresses that belong to the domain alone (from its pool): a packet to one of them for a port that is no
    /// frontend is refused. Addresses shared with the node (`addresses: {node: …}`) are not in here.
    pub exclusive: Vec<IpAddr>,
}
