//! The agent's state as a report: what `tidegate status` shows and `/debug/status` returns. Plain data, made from the
//! state in one go.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use tidegate_gateway_api::{Condition, Kind, ObjectRef, ObjectStatus};
use tidegate_model::{DomainName, ListenerKey, ObjectName};

use crate::{
    resolver::Resolved,
    source::SourceStatus,
    state::{Attach, DomainState, InterfaceState, Readiness, State, TierState},
};

/// Everything that the agent says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusReport {
    /// Name of the node.
    pub node: String,
    /// Name of the instance.
    pub instance: String,
    /// Version of the agent.
    pub version: String,
    /// Seconds since the agent process started.
    pub uptime_seconds: u64,
    /// Whether everything wanted is applied.
    pub readiness: Readiness,
    /// The kernel tier.
    pub kernel: TierState,
    /// The domains.
    pub domains: Vec<DomainReport>,
    /// The Gateways.
    pub gateways: Vec<GatewayReport>,
    /// The ListenerSets.
    pub listener_sets: Vec<GatewayReport>,
    /// The Routes.
    pub routes: Vec<RouteReport>,
    /// Every other object that has conditions.
    pub objects: Vec<ObjectReport>,
    /// The source.
    pub source: SourceStatus,
    /// Names of endpoints and what they lead to.
    pub names: Vec<Resolved>,
}

/// A domain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DomainReport {
    /// Its name.
    pub name: String,
    /// Its number in the kernel.
    pub id: u32,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its NICs.
    pub interfaces: Vec<InterfaceReport>,
    /// Addresses of its frontends.
    pub addresses: Vec<IpAddr>,
    /// How many frontends are reachable.
    pub frontends: usize,
    /// Generation wanted.
    pub wanted: u64,
    /// Generation applied by the kernel tier.
    pub kernel: u64,
    /// Generation applied by the worker.
    pub worker: u64,
    /// The worker's process id while it runs.
    pub worker_pid: Option<u32>,
    /// The worker's user id; `None` is the agent's own.
    pub worker_uid: Option<u32>,
    /// The worker's shards.
    pub shards: u16,
    /// Times that the worker had to be started again.
    pub restarts: u64,
    /// Predecessors of the worker that still finish their connections.
    pub draining: usize,
    /// What could not be applied, and why.
    pub failures: Vec<String>,
    /// Limits and walls that this host does not enforce, and why.
    pub unenforced: Vec<String>,
}

/// A NIC of a domain.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceReport {
    /// Its name.
    pub name: String,
    /// Index of the NIC that carries `admit`.
    pub ifindex: Option<u32>,
    /// VLAN id.
    pub vlan: Option<u16>,
    /// `native`, `generic`, `missing`, `off`, or `failed: …`.
    pub attach: String,
}

/// A Gateway or a ListenerSet.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewayReport {
    /// Namespace and name.
    pub name: String,
    /// Domain that serves it; `None` when none does.
    pub domain: Option<String>,
    /// Its addresses; none of a ListenerSet, which has those of its Gateway.
    pub addresses: Vec<IpAddr>,
    /// Its conditions.
    pub conditions: Vec<ConditionReport>,
    /// Its own listeners.
    pub listeners: Vec<ListenerReport>,
}

/// A listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerReport {
    /// Its name.
    pub name: String,
    /// Routes attached to it.
    pub attached_routes: u32,
    /// Its conditions.
    pub conditions: Vec<ConditionReport>,
}

/// A Route.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteReport {
    /// Its kind.
    pub kind: String,
    /// Namespace and name.
    pub name: String,
    /// What each parent says.
    pub parents: Vec<ParentReport>,
}

/// A Route at one of its parents.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentReport {
    /// The parent, with section or port as the reference has them.
    pub parent: String,
    /// Conditions.
    pub conditions: Vec<ConditionReport>,
}

/// Any object.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectReport {
    /// Its kind.
    pub kind: String,
    /// Namespace and name.
    pub name: String,
    /// Its conditions.
    pub conditions: Vec<ConditionReport>,
}

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionReport {
    /// Its type.
    #[serde(rename = "type")]
    pub type_: String,
    /// Whether it holds.
    pub status: bool,
    /// Reason in one word.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Whether it says that all is well.
    pub is_good: bool,
    /// `metadata.generation` that was judged.
    pub observed_generation: Option<i64>,
}

impl StatusReport {
    /// Report of a state.
    pub fn of(state: &State) -> Self {
        let domains = state.domains.borrow();
        let mut report = Self {
            node: state.node.clone(),
            instance: state.options.instance.clone(),
            version: crate::cli::VERSION.to_owned(),
            uptime_seconds: SystemTime::now().duration_since(state.started).unwrap_or_default().as_secs(),
            readiness: state.readiness(),
            kernel: state.tier.borrow().clone(),
            domains: domains.iter().map(|(name, domain)| DomainReport::of(name.as_str(), domain)).collect(),
            gateways: Vec::new(),
            listener_sets: Vec::new(),
            routes: Vec::new(),
            objects: Vec::new(),
            source: state.source.borrow().clone(),
            names: state.resolved.borrow().values().cloned().collect(),
        };
        for (reference, status) in state.translator.borrow().statuses() {
            report.push_object(reference, status);
        }
        for object in report.objects.iter_mut().filter(|object| object.kind == "TrafficDomain") {
            if let Some((_, domain)) = domains.iter().find(|(name, _)| name.as_str() == object.name) {
                object.conditions.extend(interfaces_condition(domain));
            }
        }
        for gateway in &mut report.gateways {
            let name = gateway.name.clone();
            let is_served = |key: &ListenerKey| key.gateway.to_string() == name;
            gateway.set_applied(&domains, &is_served, &|key| key.set.is_none() && is_served(key));
        }
        for set in &mut report.listener_sets {
            let name = set.name.clone();
            let is_own = |key: &ListenerKey| key.set.as_ref().is_some_and(|set| set.to_string() == name);
            set.set_applied(&domains, &is_own, &is_own);
        }
        report
    }

    /// Adds what is said of one object.
    pub fn push_object(&mut self, reference: &ObjectRef, status: &ObjectStatus) {
        let name = reference.name.to_string();
        let conditions = to_reports(&status.conditions);
        if matches!(reference.kind, Kind::Gateway | Kind::ListenerSet) {
            let listeners = status.listeners.iter().map(|listener| ListenerReport {
                name: listener.name.to_string(),
                attached_routes: listener.attached_routes,
                conditions: to_reports(&listener.conditions),
            });
            let addresses = status.addresses.clone();
            let listeners = listeners.collect();
            let report = GatewayReport { name, domain: None, addresses, conditions, listeners };
            let of_kind = if reference.kind == Kind::Gateway { &mut self.gateways } else { &mut self.listener_sets };
            of_kind.push(report);
        } else if !status.parents.is_empty() {
            let parents = status.parents.iter().map(|parent| ParentReport {
                parent: show_parent(&parent.parent, &reference.name),
                conditions: to_reports(&parent.conditions),
            });
            self.routes.push(RouteReport { kind: reference.kind.to_string(), name, parents: parents.collect() });
        } else if !conditions.is_empty() {
            self.objects.push(ObjectReport { kind: reference.kind.to_string(), name, conditions });
        }
    }
}

impl DomainReport {
    fn of(name: &str, domain: &DomainState) -> Self {
        let mut addresses: Vec<IpAddr> = domain.frontends.keys.iter().map(|frontend| frontend.addr).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut failures = domain.kernel.failures.clone();
        failures.extend(domain.worker.applied.failures.iter().cloned());
        Self {
            name: name.to_owned(),
            id: domain.id.0,
            labels: domain.model.domain.labels.clone(),
            interfaces: domain
                .interfaces
                .iter()
                .map(|interface| InterfaceReport {
                    name: interface.name.clone(),
                    ifindex: interface.ifindex,
                    vlan: interface.vlan,
                    attach: show_attach(&interface.attach),
                })
                .collect(),
            addresses,
            frontends: domain.frontends.keys.len(),
            wanted: domain.model.generation.0,
            kernel: domain.kernel.generation.0,
            worker: domain.worker.applied.generation.0,
            worker_pid: domain.worker.pid,
            worker_uid: domain.worker.uid,
            shards: domain.worker.shards,
            restarts: domain.worker.restarts,
            draining: domain.worker.draining,
            failures,
            unenforced: domain.unenforced.clone(),
        }
    }
}

impl GatewayReport {
    /// Translation says whether a Gateway can be programmed; only the agent knows whether it is.
    fn set_programmed(&mut self, is_applied: bool) {
        if is_applied {
            return;
        }
        let all =
            self.conditions.iter_mut().chain(self.listeners.iter_mut().flat_map(|listener| &mut listener.conditions));
        for condition in all.filter(|condition| condition.type_ == "Programmed" && condition.status) {
            condition.status = false;
            condition.is_good = false;
            condition.reason = "Pending".to_owned();
            condition.message = "not applied yet by kernel and worker".to_owned();
        }
    }
}

impl GatewayReport {
    /// Adds what only the agent knows: which domain serves the object (the one with a listener that `is_served`), whether
    /// that has applied it, and which of its own listeners cannot be reached.
    fn set_applied(
        &mut self,
        domains: &BTreeMap<DomainName, DomainState>,
        is_served: &dyn Fn(&ListenerKey) -> bool,
        is_own: &dyn Fn(&ListenerKey) -> bool,
    ) {
        let served = domains.iter().find(|(_, domain)| domain.model.listeners().any(|(key, _)| is_served(key)));
        self.domain = served.map(|(name, _)| name.to_string());
        self.set_programmed(served.is_some_and(|(_, domain)| domain.is_applied()));
        if let Some((_, domain)) = served {
            self.set_unreachable(domain, is_own);
        }
    }

    /// Listeners with a frontend that could not be made reachable are not programmed, whatever else is.
    fn set_unreachable(&mut self, domain: &DomainState, is_own: &dyn Fn(&ListenerKey) -> bool) {
        for (key, listener) in domain.model.listeners().filter(|(key, _)| is_own(key)) {
            let reason = listener.frontends.iter().find_map(|frontend| domain.unreachable.get(frontend));
            let report = self.listeners.iter_mut().find(|report| report.name == *key.name);
            let (Some(reason), Some(report)) = (reason, report) else { continue };
            for condition in report.conditions.iter_mut().filter(|condition| condition.type_ == "Programmed") {
                condition.status = false;
                condition.is_good = false;
                condition.reason = "Pending".to_owned();
                condition.message.clone_from(reason);
            }
        }
    }
}

/// Whether every NIC of a domain judges packets in its driver: the condition `InterfacesNative` of its TrafficDomain, whose
/// reason is the worst of what its NICs do. A NIC that judges in the stack is slower and judges the same.
fn interfaces_condition(domain: &DomainState) -> Option<ConditionReport> {
    let rank = |interface: &&InterfaceState| match interface.attach {
        Attach::Native => 0,
        Attach::Generic => 1,
        Attach::Off => 2,
        Attach::Missing => 3,
        Attach::Failed(_) => 4,
    };
    let worst = domain.interfaces.iter().max_by_key(rank)?;
    let (reason, message) = match &worst.attach {
        Attach::Native => ("Native", "packets are judged in the drivers".to_owned()),
        Attach::Generic => (
            "Generic",
            "the driver has no XDP (or not with its settings, such as a large MTU): the same verdicts at a higher cost"
                .to_owned(),
        ),
        Attach::Off => ("Off", "--kernel=off".to_owned()),
        Attach::Missing => ("Missing", "there is no interface of that name".to_owned()),
        Attach::Failed(error) => ("Refused", error.clone()),
    };
    let is_native = worst.attach == Attach::Native;
    Some(ConditionReport {
        type_: "InterfacesNative".to_owned(),
        status: is_native,
        reason: reason.to_owned(),
        message: if is_native { message } else { format!("{}: {message}", worst.name) },
        is_good: is_native,
        observed_generation: None,
    })
}

/// Conditions as they are reported.
pub fn to_reports(conditions: &[Condition]) -> Vec<ConditionReport> {
    conditions
        .iter()
        .map(|condition| ConditionReport {
            type_: condition.type_.to_owned(),
            status: condition.status,
            reason: condition.reason.to_string(),
            message: condition.message.clone(),
            is_good: condition.is_good(),
            observed_generation: condition.observed_generation,
        })
        .collect()
}

/// Seconds since the epoch.
pub fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// `native`, `generic`, `missing`, `off`, or `failed: …`.
pub fn show_attach(attach: &Attach) -> String {
    match attach {
        Attach::Native => "native".to_owned(),
        Attach::Generic => "generic".to_owned(),
        Attach::Missing => "missing".to_owned(),
        Attach::Off => "off".to_owned(),
        Attach::Failed(reason) => format!("failed: {reason}"),
    }
}

fn show_parent(parent: &tidegate_gateway_api::generated::common::ParentReference, route: &ObjectName) -> String {
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    let mut shown = format!("{}/{namespace}/{}", parent.kind.as_deref().unwrap_or("Gateway"), parent.name);
    if let Some(section) = &parent.section_name {
        shown.push_str(&format!(" listener {section}"));
    }
    if let Some(port) = parent.port {
        shown.push_str(&format!(" port {port}"));
    }
    shown
}
