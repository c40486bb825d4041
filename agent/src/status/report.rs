//! What this node has applied, written into its NodeReport when it changes and from time to time to say that it lives.
//!
//! A Gateway or a ListenerSet counts as applied once kernel and worker have the generation of the model that it was translated into. The
//! model's own generations are not reported: they count on each node by itself.

use std::{collections::BTreeMap, rc::Rc};

use kube::{
    Client,
    core::{
        Request,
        params::{Patch, PatchParams},
    },
};
use serde_json::{Value, json};
use tidegate_gateway_api::{
    Kind, ObjectRef, ObjectStatus,
    api::{DomainReport, InterfaceReport, NodeReportSpec, NotProgrammed},
};
use tidegate_model::{DomainName, Generation, ObjectName};
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, sleep, timeout},
};
use tracing::warn;

use super::times::now_micro;
use crate::{
    admin::report::show_attach,
    kube::{Backoff, Failure, REQUEST_TIMEOUT, Resource, jitter},
    state::{DomainState, State},
};

/// How often a report is renewed although nothing has changed.
pub const RENEW: Duration = Duration::from_secs(30);

/// How often it is looked whether what is pending was applied: well below what a change takes in all.
const LOOK: Duration = Duration::from_millis(10);

/// How often it is looked for what changes by itself: NICs that come and go, addresses that cannot be bound.
const LOOK_AT_REST: Duration = Duration::from_secs(1);

/// Least time between two writes: a burst of changes becomes one.
const SPACING: Duration = Duration::from_millis(100);

/// Under which name the fields of a report are owned.
const MANAGER: &str = "tidegate-node";

/// Messages of one kind that a report holds at most, and characters of each.
const MAX_MESSAGES: usize = 32;
const MAX_MESSAGE: usize = 512;

/// Reports for as long as the agent runs.
pub async fn run(
    state: Rc<State>,
    client: Client,
    mut changed: mpsc::UnboundedReceiver<Vec<ObjectRef>>,
    mut stop: watch::Receiver<bool>,
) {
    let mut applied = AppliedGateways::default();
    let mut written: Option<(NodeReportSpec, Instant)> = None;
    let mut not_before = Instant::now();
    let mut backoff = Backoff::default();
    loop {
        let look = if applied.pending.is_empty() { LOOK_AT_REST } else { LOOK };
        tokio::select! {
            Some(references) = changed.recv() => references.iter().for_each(|reference| applied.note(&state, reference)),
            () = sleep(look) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        applied.settle(&state);
        let now = Instant::now();
        if now < not_before || !state.is_source_synced.get() {
            continue;
        }
        let spec = applied.to_spec(&state);
        let is_due = |(before, at): &(NodeReportSpec, Instant)| *before != spec || at.elapsed() >= RENEW;
        if !written.as_ref().is_none_or(is_due) {
            continue;
        }
        match write(&client, &state, &spec).await {
            Ok(()) => {
                // A little apart each time, so that many nodes do not renew together.
                let renewed = now - RENEW.mul_f64(jitter() / 5.0);
                written = Some((spec, renewed));
                not_before = Instant::now() + SPACING;
                backoff.reset();
            }
            Err(failure) => {
                if backoff.failures() == 1 {
                    warn!("NodeReport/{} cannot be written: {failure}", state.node);
                }
                not_before = Instant::now() + backoff.next_wait();
            }
        }
    }
}

async fn write(client: &Client, state: &State, spec: &NodeReportSpec) -> Result<(), Failure> {
    let mut spec = serde_json::to_value(spec).map_err(|error| Failure::Other(error.to_string()))?;
    spec["renewTime"] = now_micro().into();
    let mut metadata = json!({"name": state.node});
    let uid = state.facts.borrow().node.as_ref().map(|node| node.uid.clone()).filter(|uid| !uid.is_empty());
    if let Some(uid) = uid {
        // A Node that is deleted takes the report with it.
        metadata["ownerReferences"] = json!([{"apiVersion": "v1", "kind": "Node", "name": state.node, "uid": uid}]);
    }
    let report: Value = json!({
        "apiVersion": "tidegate.dev/v1alpha1",
        "kind": "NodeReport",
        "metadata": metadata,
        "spec": spec,
    });
    let reports = Resource::new("tidegate.dev", "v1alpha1", "nodereports", "NodeReport");
    let request = Request::new(reports.path(None))
        .patch(&state.node, &PatchParams::apply(MANAGER).force(), &Patch::Apply(report))
        .map_err(kube::Error::BuildRequest)?;
    timeout(REQUEST_TIMEOUT, client.request::<Value>(request)).await??;
    Ok(())
}

/// Which generation of each Gateway and ListenerSet is applied on this node.
#[derive(Debug, Default)]
struct AppliedGateways {
    pending: BTreeMap<ObjectRef, Pending>,
    applied: BTreeMap<ObjectRef, i64>,
}

#[derive(Debug)]
struct Pending {
    generation: i64,
    domain: DomainName,
    /// Generation of the model that the object was translated into.
    model: Generation,
}

impl AppliedGateways {
    /// Something else is said of an object: a Gateway or a ListenerSet may have to be applied anew.
    fn note(&mut self, state: &State, reference: &ObjectRef) {
        if !matches!(reference.kind, Kind::Gateway | Kind::ListenerSet) {
            return;
        }
        let translator = state.translator.borrow();
        let place = translator.find_place(reference);
        let model = place.as_ref().and_then(|place| translator.model(&place.domain));
        let status = translator.find_status(reference);
        let (Some(place), Some(model), Some(status)) = (place, model, status) else {
            self.pending.remove(reference);
            self.applied.remove(reference);
            return;
        };
        let generation = judged_generation(status).unwrap_or_default();
        if self.applied.get(reference) != Some(&generation) {
            let pending = Pending { generation, domain: place.domain, model: model.generation };
            self.pending.insert(reference.clone(), pending);
        }
    }

    /// Looks what of the pending was applied meanwhile.
    fn settle(&mut self, state: &State) {
        let domains = state.domains.borrow();
        let has = |domain: &DomainState, generation| {
            let is = |applied: &crate::state::Applied| applied.has_any && applied.generation >= generation;
            is(&domain.kernel) && is(&domain.worker.applied)
        };
        self.pending.retain(|name, pending| {
            let is_applied = domains.get(&pending.domain).is_some_and(|domain| has(domain, pending.model));
            if is_applied {
                self.applied.insert(name.clone(), pending.generation);
            }
            !is_applied
        });
    }

    fn to_spec(&self, state: &State) -> NodeReportSpec {
        let domains = state.domains.borrow();
        let translator = state.translator.borrow();
        let applied_of = |kind: Kind| {
            let own = self.applied.iter().filter(move |(reference, _)| reference.kind == kind);
            own.map(|(reference, generation)| (reference.name.to_string(), *generation)).collect()
        };
        let mut spec = NodeReportSpec {
            renew_time: None,
            version: crate::cli::VERSION.to_owned(),
            addresses: translator.node_addresses().iter().map(ToString::to_string).collect(),
            gateways: applied_of(Kind::Gateway),
            listener_sets: applied_of(Kind::ListenerSet),
            ..NodeReportSpec::default()
        };
        for (name, domain) in domains.iter() {
            let reference = ObjectRef::new(Kind::TrafficDomain, ObjectName::new("", name.as_str()));
            let judged = translator.find_status(&reference).and_then(judged_generation);
            let mut problems: Vec<_> = domain.kernel.failures.clone();
            problems.extend(domain.worker.applied.failures.iter().cloned());
            problems.extend(domain.worker.refused.iter().map(|(key, reason)| format!("{key:?}: {reason}")));
            spec.domains.push(DomainReport {
                name: name.to_string(),
                observed_generation: judged.filter(|_| domain.kernel.has_any && domain.worker.applied.has_any),
                interfaces: domain
                    .interfaces
                    .iter()
                    .map(|nic| InterfaceReport { name: nic.name.clone(), attach: show_attach(&nic.attach) })
                    .collect(),
                not_enforced: bounded(&domain.unenforced),
                problems: bounded(&problems),
            });
            for (key, listener) in domain.model.listeners() {
                let reason = listener.frontends.iter().find_map(|frontend| domain.unreachable.get(frontend));
                spec.not_programmed.extend(reason.map(|reason| NotProgrammed {
                    gateway: key.gateway.to_string(),
                    listener_set: key.set.as_ref().map(ToString::to_string),
                    listener: key.name.to_string(),
                    message: bounded(std::slice::from_ref(reason)).concat(),
                }));
            }
        }
        spec
    }
}

/// Generation of the object that a status is about.
fn judged_generation(status: &ObjectStatus) -> Option<i64> {
    status.conditions.first().and_then(|condition| condition.observed_generation)
}

/// Messages, as many and as long as a report may hold.
fn bounded(messages: &[String]) -> Vec<String> {
    messages.iter().take(MAX_MESSAGES).map(|message| message.chars().take(MAX_MESSAGE).collect()).collect()
}
