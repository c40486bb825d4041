//! Verdicts of the kernel tier for people: who was refused, under which reason, and by which field of which object.

use std::{
    net::{IpAddr, SocketAddr},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use tidegate_gateway_api::Subject;
use tidegate_kernel::{CounterRow, Reason, Sample};
use tidegate_model::{DomainId, DomainName};

use crate::{admin::report::seconds, state::State};

/// Answer where there is no kernel tier.
pub const NOT_JUDGED: &str = "packets are not judged on this node (--kernel=off)";

/// One sampled verdict.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VerdictRow {
    /// Seconds since the epoch at which the agent has seen it.
    pub time: u64,
    /// Name of the domain; empty when there is none.
    pub domain: String,
    /// Program that judged: `admit`, `steer` or `guard`.
    pub hook: String,
    /// Reason.
    pub reason: String,
    /// Whether it was refused.
    pub is_denial: bool,
    /// Source; `None` for a line that only tells of lost ones.
    pub source: Option<SocketAddr>,
    /// Destination.
    pub destination: Option<SocketAddr>,
    /// `TCP`, `UDP`, `ICMP` or a protocol number.
    pub protocol: String,
    /// Index of the interface.
    pub ifindex: u32,
    /// Object whose field decided, as far as it is known.
    pub object: String,
    /// The field.
    pub field: String,
    /// Verdicts that were lost before this one because the reader was too slow.
    pub lost: u64,
}

/// Counters of all verdicts since the maps exist.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Summary {
    /// One row for each domain, hook and reason that has occurred.
    pub rows: Vec<SummaryRow>,
}

/// A counter.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SummaryRow {
    /// Name of the domain; empty when there is none.
    pub domain: String,
    /// Program that judged.
    pub hook: String,
    /// Reason.
    pub reason: String,
    /// Whether it is a refusal.
    pub is_denial: bool,
    /// Packets (admit) or connections (steer, guard).
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Object whose field decides.
    pub object: String,
    /// The field.
    pub field: String,
}

impl VerdictRow {
    /// A sample with the names that the state knows.
    pub fn of(sample: &Sample, state: &State) -> Self {
        let (domain, object, field) = name(sample.domain, sample.reason, Some(sample.source), state);
        Self {
            time: seconds(SystemTime::now()),
            domain,
            hook: sample.hook.name().to_owned(),
            reason: sample.reason.name().to_owned(),
            is_denial: sample.reason.is_denial(),
            source: Some(SocketAddr::new(sample.source, sample.source_port)),
            destination: Some(SocketAddr::new(sample.destination, sample.destination_port)),
            protocol: show_protocol(sample.protocol),
            ifindex: sample.ifindex,
            object,
            field,
            lost: 0,
        }
    }

    /// A line that says that `lost` verdicts are missing here.
    pub fn lost(lost: u64) -> Self {
        Self {
            time: seconds(SystemTime::now()),
            domain: String::new(),
            hook: String::new(),
            reason: String::new(),
            is_denial: false,
            source: None,
            destination: None,
            protocol: String::new(),
            ifindex: 0,
            object: String::new(),
            field: String::new(),
            lost,
        }
    }
}

/// Counters of the kernel tier with the names that the state knows.
///
/// # Errors
/// When there is no kernel tier, or it cannot be read, in words.
pub fn summarize(state: &State) -> Result<Summary, String> {
    let counters = match state.kernel.borrow_mut().kernel() {
        Some(kernel) => kernel.counters().map_err(|error| error.to_string())?,
        None => return Err(NOT_JUDGED.to_owned()),
    };
    let to_row = |row: &CounterRow| {
        let (domain, object, field) = name(row.domain, row.reason, None, state);
        SummaryRow {
            domain,
            hook: row.hook.name().to_owned(),
            reason: row.reason.name().to_owned(),
            is_denial: row.reason.is_denial(),
            packets: row.packets,
            bytes: row.bytes,
            object,
            field,
        }
    };
    Ok(Summary { rows: counters.iter().map(to_row).collect() })
}

/// Domain, object and field behind a reason; the exact field where the source of the packet tells it.
fn name(id: DomainId, reason: Reason, source: Option<IpAddr>, state: &State) -> (String, String, String) {
    let domains = state.domains.borrow();
    let Some((name, _)) = domains.iter().find(|(_, domain)| domain.id == id) else {
        return (String::new(), String::new(), String::new());
    };
    let translator = state.translator.borrow();
    let subject = match (reason, source) {
        (Reason::SourceDenied, Some(source)) => Some(Subject::SourceDenied(source)),
        (Reason::SourceNotAllowed, _) => Some(Subject::SourceNotAllowed),
        (Reason::WrongInterface, _) => Some(Subject::WrongInterface),
        _ => None,
    };
    let (object, field) = match subject.and_then(|subject| translator.find_origin(name, &subject)) {
        Some(origin) => (origin.object.to_string(), origin.field),
        None => {
            let (object, field) = deciding_field(name, reason);
            (object, field.to_owned())
        }
    };
    (name.to_string(), object, field)
}

/// The object and field by which a reason decides in a domain, as far as the reason alone tells it.
pub fn deciding_field(domain: &DomainName, reason: Reason) -> (String, &'static str) {
    let field = match reason {
        Reason::WrongInterface => "spec.interfaces",
        Reason::SourceDenied => "spec.sources.deny",
        Reason::SourceNotAllowed => "spec.sources.allow",
        Reason::NoFrontend => "spec.addresses",
        Reason::DialDenied => "spec.egress",
        _ => return (String::new(), ""),
    };
    (format!("TrafficDomain/{domain}"), field)
}

fn show_protocol(number: u8) -> String {
    match number {
        1 | 58 => "ICMP".to_owned(),
        6 => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        other => other.to_string(),
    }
}
