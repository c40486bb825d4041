//! Verdicts of the kernel tier for people: who was refused, under which reason, and by which field of which object.
//!
//! What a sample costs here is bounded however fast packets come: the kernel samples by budget, and to name the field
//! behind one no long list is searched.

mod cause;
mod filter;
mod sketch;
mod summary;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tidegate_gateway_api::Subject;
use tidegate_kernel::{Reason, Sample};
use tidegate_model::DomainId;

use crate::state::State;

pub use cause::{Cause, cause, reasons_of};
pub use filter::Filter;
pub use sketch::{SLOTS, Slot, Sources, Table};
pub use summary::{Reading, SampleCounts, SourceRow, Summary, SummaryRow, summarize};

/// Answer where there is no kernel tier.
pub const NOT_JUDGED: &str = "packets are not judged on this node (--kernel=off)";

/// Longest deny list in which the entry behind a sample is looked for; that takes some 100 µs, many times a second. Behind
/// a longer one the list is named, and `tidegate explain` finds the entry.
const MAX_SEARCHED: usize = 1024;

/// One sampled verdict.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerdictRow {
    /// When it was made: seconds since the epoch, to the millisecond.
    pub time: f64,
    /// Name of the domain; empty when there is none.
    pub domain: String,
    /// Program that judged: `admit`, `steer` or `guard`.
    pub hook: String,
    /// Reason.
    pub reason: String,
    /// Whether it was refused.
    pub is_denial: bool,
    /// Source; `None` for a line that only tells of lost ones, and for a system call of a worker. For an ICMP message the
    /// ports are 0.
    pub source: Option<SocketAddr>,
    /// Destination.
    pub destination: Option<SocketAddr>,
    /// `TCP`, `UDP`, `ICMP` or a protocol number.
    pub protocol: String,
    /// Type and code of an ICMP message.
    pub icmp: Option<(u8, u8)>,
    /// Flags of a TCP segment as tcpdump writes them, e.g. `S` or `F.`; empty where they were not read.
    pub tcp_flags: String,
    /// Name of the interface; its index where it has none of this node's any more.
    pub interface: String,
    /// Index of the interface; 0 where there is none.
    pub ifindex: u32,
    /// VLAN id of the outer tag; 0 is untagged.
    pub vlan: u16,
    /// Bytes of the frame; 0 where the program sees none.
    pub length: u32,
    /// Object whose field decided, as far as it is known.
    pub object: String,
    /// The field.
    pub field: String,
    /// Verdicts that were lost before this one because the reader was too slow.
    pub lost: u64,
}

impl VerdictRow {
    /// A sample with the names that the state knows; `None` when the filter does not want it.
    pub fn of(sample: &Sample, state: &State, filter: &Filter) -> Option<Self> {
        let name = domain_name(sample.domain, state);
        if !filter.takes(sample, &name) {
            return None;
        }
        let (object, field) = find_field(sample, &name, state);
        let is_icmp = matches!(sample.protocol, ICMP | ICMP_V6);
        let port = |port| if is_icmp { 0 } else { port };
        Some(Self {
            time: to_seconds(sample.seen_at()),
            domain: name,
            hook: sample.hook.name().to_owned(),
            reason: sample.reason.name().to_owned(),
            is_denial: sample.reason.is_denial(),
            source: (!sample.source.is_unspecified() || sample.ifindex != 0)
                .then(|| SocketAddr::new(sample.source, port(sample.source_port))),
            destination: Some(SocketAddr::new(sample.destination, port(sample.destination_port))),
            protocol: show_protocol(sample.protocol),
            icmp: is_icmp.then_some((sample.source_port as u8, sample.destination_port as u8)),
            tcp_flags: if sample.protocol == TCP { show_tcp_flags(sample.tcp_flags) } else { String::new() },
            interface: show_interface(sample.ifindex),
            ifindex: sample.ifindex,
            vlan: sample.vlan,
            length: sample.len,
            object,
            field,
            lost: 0,
        })
    }

    /// A line that says that `lost` verdicts are missing here.
    pub fn lost(lost: u64) -> Self {
        Self { time: to_seconds(SystemTime::now()), lost, ..Self::default() }
    }
}

/// Names of the domains by their numbers.
pub fn domain_names(state: &State) -> BTreeMap<DomainId, String> {
    state.domains.borrow().iter().map(|(name, domain)| (domain.id, name.to_string())).collect()
}

fn domain_name(id: DomainId, state: &State) -> String {
    let domains = state.domains.borrow();
    domains.iter().find(|(_, domain)| domain.id == id).map(|(name, _)| name.to_string()).unwrap_or_default()
}

/// Object and field behind a sample; the entry of a list where that is cheap to find.
fn find_field(sample: &Sample, domain: &str, state: &State) -> (String, String) {
    let domains = state.domains.borrow();
    let Some((name, domain)) = domains.iter().find(|(name, _)| name.as_str() == domain) else {
        return Default::default();
    };
    let subject = match sample.reason {
        Reason::SourceDenied if domain.model.domain.admission.deny.len() <= MAX_SEARCHED => {
            Some(Subject::SourceDenied(sample.source))
        }
        Reason::SourceNotAllowed => Some(Subject::SourceNotAllowed),
        _ => None,
    };
    match subject.and_then(|subject| state.translator.borrow().find_origin(name, &subject)) {
        Some(origin) => (origin.object.to_string(), origin.field),
        None => cause(sample.reason).place(name),
    }
}

/// IP protocol numbers.
const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;

fn show_protocol(number: u8) -> String {
    match number {
        ICMP | ICMP_V6 => "ICMP".to_owned(),
        TCP => "TCP".to_owned(),
        UDP => "UDP".to_owned(),
        other => other.to_string(),
    }
}

/// Bits from FIN up (RFC 9293 section 3.1), the letters of tcpdump.
fn show_tcp_flags(flags: u8) -> String {
    let letters = ['F', 'S', 'R', 'P', '.', 'U', 'E', 'W'];
    letters.iter().enumerate().filter(|(bit, _)| flags & (1 << bit) != 0).map(|(_, letter)| letter).collect()
}

fn show_interface(ifindex: u32) -> String {
    if ifindex == 0 {
        return String::new();
    }
    let name = nix::net::if_::if_indextoname(ifindex).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| ifindex.to_string())
}

fn to_seconds(time: SystemTime) -> f64 {
    let millis = time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    millis as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use tidegate_kernel::Hook;

    use super::*;

    /// A denied SYN.
    pub(super) fn sample(domain: u32, source: &str) -> Sample {
        Sample {
            ktime_ns: 0,
            domain: DomainId(domain),
            hook: Hook::Admit,
            reason: Reason::SourceDenied,
            source: source.parse().unwrap(),
            source_port: 40_000,
            destination: "203.0.113.1".parse().unwrap(),
            destination_port: 443,
            protocol: TCP,
            ifindex: 1,
            vlan: 0,
            len: 60,
            tcp_flags: 2,
        }
    }

    #[test]
    fn flags_read_as_in_tcpdump() {
        assert_eq!(show_tcp_flags(0x02), "S");
        assert_eq!(show_tcp_flags(0x12), "S.");
        assert_eq!(show_tcp_flags(0), "");
    }

    #[test]
    fn a_filter_takes_what_it_names() {
        let one = sample(1, "192.0.2.7");
        assert!(Filter::default().takes(&one, "public"));
        let prefix = Filter { source: "192.0.2.0/24".parse().ok(), ..Filter::default() };
        assert!(prefix.takes(&one, "public") && !prefix.takes(&sample(1, "192.0.3.7"), "public"));
        assert!(prefix.takes(&sample(1, "::ffff:192.0.2.9"), "public"));
        let both = Filter { domain: Some("public".into()), reason: Some("source_denied".into()), source: None };
        assert!(both.takes(&one, "public") && !both.takes(&one, "private"));
        assert!(!Filter { reason: Some("admitted".into()), ..Filter::default() }.takes(&one, "public"));
    }
}
