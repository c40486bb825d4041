//! TrafficDomains: from the object to the model's `Domain`, and which of two with overlapping pools is served.
//!
//! A faulty entry of a list is left out and named. Only what makes the whole domain meaningless (no NIC, no addresses)
//! refuses it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::ConfigMap;
use tidegate_model::{Admission, Domain, DomainName, ObjectName, RateLimit, ResourceLimits, SourceBits, SynCookies};

use crate::{
    api::{AdmissionSpec, RateSpec, SourcePrefixLength, SourcesSpec, SynCookiesSpec, TrafficDomain, TrafficDomainSpec},
    object::created_at,
    prefixes::{config_map_name, read_list, read_prefix},
    quantity::{read_cpu, read_memory},
    status::{Condition, Conditions, Problem, condition},
    translator::Settings,
};

/// Longest name of a NIC: IFNAMSIZ less the terminating zero (linux/if.h).
const MAX_INTERFACE_NAME: usize = 15;

/// Where the Gateways of a domain get their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AddressSource {
    /// Prefixes that are the domain's own.
    Pool(Vec<IpNet>),
    /// Addresses of the node, which everything on the node shares.
    Node(Vec<IpAddr>),
}

/// A TrafficDomain as it was read, before it is compared with others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DomainDraft {
    pub(crate) created: i64,
    pub(crate) generation: Option<i64>,
    pub(crate) domain: Arc<Domain>,
    /// Where addresses come from, or why the domain cannot be served.
    pub(crate) addresses: Result<AddressSource, Problem>,
    /// Whether this node serves the domain.
    pub(crate) is_here: bool,
    pub(crate) config_maps: BTreeSet<ObjectName>,
    faults: Vec<String>,
    unenforced: Vec<String>,
}

/// Reads a TrafficDomain.
pub(crate) fn read_domain<'a>(
    name: &DomainName,
    object: &TrafficDomain,
    settings: &Settings,
    find_config_map: &dyn Fn(&ObjectName) -> Option<&'a Arc<ConfigMap>>,
) -> DomainDraft {
    let spec = &object.spec;
    let mut faults = Vec::new();
    let interfaces = read_interfaces(spec, &mut faults);
    let addresses = if interfaces.is_empty() {
        Err(Problem::new("Invalid", "spec.interfaces names no NIC: name at least one, e.g. [eth0]"))
    } else {
        read_addresses(spec, settings, &mut faults)
    };
    let sources = spec.sources.clone().unwrap_or_default();
    let domain = Domain {
        name: name.clone(),
        interfaces,
        labels: spec.labels.clone().unwrap_or_default(),
        admission: read_admission(spec, &sources, find_config_map, &mut faults),
        limits: read_limits(spec, &mut faults),
        shards: spec.shards.filter(|&shards| shards > 0),
    };
    if spec.shards == Some(0) {
        faults.push("spec.shards: 0 is no number of threads, the default is used: write 1 or more".to_owned());
    }
    let references = sources.allow_from.iter().chain(&sources.deny_from).flatten();
    DomainDraft {
        created: created_at(&object.metadata),
        generation: object.metadata.generation,
        domain: Arc::new(domain),
        addresses,
        is_here: is_selected(spec.node_selector.as_ref(), &settings.node_labels),
        config_maps: references.map(config_map_name).collect(),
        faults,
        unenforced: find_unenforced(spec),
    }
}

fn is_selected(selector: Option<&BTreeMap<String, String>>, labels: &BTreeMap<String, String>) -> bool {
    selector.into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

fn read_interfaces(spec: &TrafficDomainSpec, faults: &mut Vec<String>) -> Vec<String> {
    let mut interfaces = Vec::new();
    for (index, name) in spec.interfaces.iter().enumerate() {
        let is_name = !name.is_empty()
            && name.len() <= MAX_INTERFACE_NAME
            && !matches!(name.as_str(), "." | "..")
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
        if !is_name {
            faults.push(format!(
                "spec.interfaces[{index}]: {name:?} cannot be a NIC's name, it is left out: at most {MAX_INTERFACE_NAME} printable characters without '/' and ':'"
            ));
        } else if !interfaces.contains(name) {
            interfaces.push(name.clone());
        }
    }
    interfaces
}

fn read_addresses(
    spec: &TrafficDomainSpec,
    settings: &Settings,
    faults: &mut Vec<String>,
) -> Result<AddressSource, Problem> {
    match (&spec.addresses.pool, spec.addresses.node) {
        (Some(pool), None) => {
            let mut prefixes = Vec::new();
            for (index, text) in pool.iter().enumerate() {
                match read_prefix(text) {
                    Some(prefix) if !prefixes.contains(&prefix) => prefixes.push(prefix),
                    Some(_) => {}
                    None => faults.push(format!(
                        "spec.addresses.pool[{index}]: {text:?} is not a prefix, it is left out: write it like 203.0.113.0/28"
                    )),
                }
            }
            if prefixes.is_empty() {
                return Err(Problem::new(
                    "Invalid",
                    "spec.addresses.pool holds no prefix: write at least one, e.g. [203.0.113.0/28]",
                ));
            }
            Ok(AddressSource::Pool(prefixes))
        }
        (None, Some(_)) => Ok(AddressSource::Node(settings.node_addresses.clone())),
        (None, None) => {
            Err(Problem::new("Invalid", "spec.addresses is empty: set pool: [PREFIX, …] or node: InternalIP"))
        }
        (Some(_), Some(_)) => Err(Problem::new("Invalid", "spec.addresses has both pool and node: remove one of them")),
    }
}

fn read_admission<'a>(
    spec: &TrafficDomainSpec,
    sources: &SourcesSpec,
    find_config_map: &dyn Fn(&ObjectName) -> Option<&'a Arc<ConfigMap>>,
    faults: &mut Vec<String>,
) -> Admission {
    let mut list = |field, inline: &Option<Vec<String>>, from: &Option<Vec<_>>| {
        let (prefixes, mut found) = read_list(
            field,
            inline.as_deref().unwrap_or_default(),
            from.as_deref().unwrap_or_default(),
            find_config_map,
        );
        faults.append(&mut found);
        prefixes
    };
    let deny = list("deny", &sources.deny, &sources.deny_from);
    let allow = list("allow", &sources.allow, &sources.allow_from);
    let is_closed = sources.allow.is_some() || sources.allow_from.is_some();
    if is_closed && allow.is_empty() {
        faults.push(
            "spec.sources.allow holds no prefix, so nobody is let in: name who is, or remove the field".to_owned(),
        );
    }
    let limits = spec.admission.clone().unwrap_or_default();
    let rates = limits.new_connections.clone().unwrap_or_default();
    let mut rate = |field, rate: Option<RateSpec>| rate.and_then(|rate| read_rate(field, rate, faults));
    let (per_source, total) = (rate("perSource", rates.per_source), rate("total", rates.total));
    let open = limits.open_connections.clone().unwrap_or_default();
    let mut open_limit = |field, limit: Option<u64>| limit.and_then(|limit| read_open_limit(field, limit, faults));
    Admission {
        deny,
        allow: is_closed.then_some(allow),
        per_source,
        total,
        open_per_source: open_limit("perSource", open.per_source),
        open_total: open_limit("total", open.total),
        source_bits: read_source_bits(&limits, faults),
        echo: read_echo(&limits, faults),
        syn_cookies: match limits.syn_cookies {
            None | Some(SynCookiesSpec::Kernel) => SynCookies::Kernel,
            Some(SynCookiesSpec::Xdp) => SynCookies::Xdp,
        },
    }
}

/// Echo may be refused altogether, unlike connections; a burst without a rate means nothing.
fn read_echo(limits: &AdmissionSpec, faults: &mut Vec<String>) -> Option<RateLimit> {
    let rate = limits.icmp?.echo?;
    if rate.rate > MAX_RATE {
        faults.push(format!(
            "spec.admission.icmp.echo.rate: {} is no rate that can be kept, the default holds: write at most {MAX_RATE} a second",
            rate.rate
        ));
        return None;
    }
    Some(RateLimit { rate: rate.rate, burst: rate.burst.unwrap_or(rate.rate) })
}

/// The most that a rate may be, in connections a second. Up to here the kernel's intervals are exact to 0.1 %.
const MAX_RATE: u32 = 1_000_000;

/// A rate that cannot be meant is a fault, and none: the domain goes on being served, and the condition says what to mend.
fn read_rate(field: &str, rate: RateSpec, faults: &mut Vec<String>) -> Option<RateLimit> {
    let field = format!("spec.admission.newConnections.{field}");
    if rate.rate == 0 || rate.rate > MAX_RATE {
        faults.push(format!(
            "{field}.rate: {} is no rate that can be kept, there is no limit: write 1 to {MAX_RATE} connections a second",
            rate.rate
        ));
        return None;
    }
    let burst = match rate.burst {
        Some(0) => {
            faults.push(format!("{field}.burst: with 0 nobody could connect, the rate is used: write 1 or more"));
            rate.rate
        }
        burst => burst.unwrap_or(rate.rate),
    };
    Some(RateLimit { rate: rate.rate, burst })
}

/// A number of open connections that cannot be meant is a fault, and no limit.
fn read_open_limit(field: &str, limit: u64, faults: &mut Vec<String>) -> Option<u32> {
    let read = u32::try_from(limit).ok().filter(|&limit| limit > 0);
    if read.is_none() {
        let why = if limit == 0 { "lets nobody connect" } else { "is more than a node can have" };
        faults.push(format!(
            "spec.admission.openConnections.{field}: {limit} {why}, there is no limit: write 1 to {}",
            u32::MAX
        ));
    }
    read
}

fn read_source_bits(limits: &AdmissionSpec, faults: &mut Vec<String>) -> SourceBits {
    let SourcePrefixLength { v4, v6 } = limits.source_prefix_length.unwrap_or_default();
    let default = SourceBits::default();
    let mut read = |family, given: Option<u8>, longest, default| match given {
        Some(bits) if bits == 0 || bits > longest => {
            faults.push(format!(
                "spec.admission.sourcePrefixLength.{family}: {bits} is no length of a source's prefix, {default} is used: write 1 to {longest}"
            ));
            default
        }
        bits => bits.unwrap_or(default),
    };
    SourceBits { v4: read("v4", v4, 32, default.v4), v6: read("v6", v6, 128, default.v6) }
}

fn read_limits(spec: &TrafficDomainSpec, faults: &mut Vec<String>) -> ResourceLimits {
    let resources = spec.resources.clone().unwrap_or_default();
    let cpu_millis = resources.cpu.as_ref().and_then(read_cpu);
    let memory_bytes = resources.memory.as_ref().and_then(read_memory);
    if resources.cpu.is_some() && cpu_millis.is_none() {
        faults.push("spec.resources.cpu is no quantity, there is no limit: write cores like \"2\" or 500m".to_owned());
    }
    if resources.memory.is_some() && memory_bytes.is_none() {
        faults.push("spec.resources.memory is no quantity, there is no limit: write bytes like 512Mi".to_owned());
    }
    ResourceLimits { cpu_millis, memory_bytes }
}

/// Fields that are read but that nothing acts on yet.
fn find_unenforced(spec: &TrafficDomainSpec) -> Vec<String> {
    let mut fields = Vec::new();
    if spec.egress.is_some() {
        fields.push("spec.egress");
    }
    fields.into_iter().map(|field| format!("{field} is not enforced yet")).collect()
}

/// A domain's share of the world after comparison with the others.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DomainState {
    pub(crate) draft: Arc<DomainDraft>,
    /// Why the domain is not served: its own fault or an overlap.
    pub(crate) refusal: Option<Problem>,
}

impl DomainState {
    /// Where addresses come from, if the domain is served.
    pub(crate) fn addresses(&self) -> Option<&AddressSource> {
        self.draft.addresses.as_ref().ok().filter(|_| self.refusal.is_none())
    }

    pub(crate) fn conditions(&self) -> Vec<Condition> {
        let mut conditions = Conditions::new(self.draft.generation);
        conditions
            .judge(condition::ACCEPTED, "Accepted", self.refusal.as_ref())
            .partially_invalid(&self.draft.faults)
            .enforced(&self.draft.unenforced);
        conditions.into_list()
    }
}

/// Compares all domains: of two with overlapping pools the older one (then the first by name) keeps its pool.
pub(crate) fn judge_domains(drafts: &BTreeMap<DomainName, Arc<DomainDraft>>) -> BTreeMap<DomainName, DomainState> {
    let mut order: Vec<_> = drafts.iter().collect();
    order.sort_by_key(|(name, draft)| (draft.created, (*name).clone()));
    let mut kept: Vec<(&DomainName, IpNet)> = Vec::new();
    let mut states = BTreeMap::new();
    for (name, draft) in order {
        let refusal = match &draft.addresses {
            Err(problem) => Some(problem.clone()),
            Ok(AddressSource::Node(_)) => None,
            Ok(AddressSource::Pool(prefixes)) => find_overlap(prefixes, &kept).or_else(|| {
                kept.extend(prefixes.iter().map(|prefix| (name, *prefix)));
                None
            }),
        };
        states.insert(name.clone(), DomainState { draft: draft.clone(), refusal });
    }
    states
}

fn find_overlap(prefixes: &[IpNet], kept: &[(&DomainName, IpNet)]) -> Option<Problem> {
    prefixes.iter().enumerate().find_map(|(index, prefix)| {
        let (owner, other) =
            kept.iter().find(|(_, other)| other.contains(prefix) || prefix.contains(other))?;
        Some(Problem::new(
            "AddressesOverlap",
            format!(
                "spec.addresses.pool[{index}]: {prefix} overlaps {other} of TrafficDomain/{owner}, which is older: give each domain prefixes of its own"
            ),
        ))
    })
}
