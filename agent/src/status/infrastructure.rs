//! One Service for each Gateway, in the Gateway's namespace: what its `spec.infrastructure` gives labels and annotations to,
//! and what tools look for under the label `gateway.networking.k8s.io/gateway-name`.
//!
//! The data plane is the nodes, so the Service leads nowhere: headless, without selector, ports and endpoints, it has no
//! address, no proxy forwards to it and no load balancer is made for it. It is owned by its Gateway and goes with it. A
//! Service that this agent's instance has not made is never taken over.

use std::{collections::BTreeMap, rc::Rc};

use kube::{
    Client,
    core::{
        Request,
        params::{Patch, PatchParams},
    },
};
use serde_json::{Value, json};
use tidegate_gateway_api::{Infrastructure, Kind, ObjectRef};
use tidegate_model::ObjectName;
use tokio::{
    sync::{mpsc, watch},
    time::{Duration, Instant, sleep_until, timeout},
};
use tracing::warn;

use crate::{
    kube::{Backoff, Failure, REQUEST_TIMEOUT, Resource, Target, Update, name_of, reflect},
    state::State,
};

/// Under which name the fields of a Service are owned.
const MANAGER: &str = "tidegate-infrastructure";

/// Label with the Gateway's name, as Gateway API has it for everything that is made for a Gateway.
const GATEWAY_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// Annotation with the instance that has made a Service and a hash of what it was made from.
const MADE_FROM: &str = "tidegate.dev/infrastructure";

/// Most characters of a Service's name and of a label's value (DNS labels, RFC 1123).
const MAX_LABEL: usize = 63;

/// When nothing is due.
const FAR: Duration = Duration::from_secs(3600);

/// Makes Services while this agent leads, for as long as it runs.
pub async fn run(
    state: Rc<State>,
    client: Client,
    mut changed: mpsc::UnboundedReceiver<Vec<ObjectRef>>,
    mut leading: watch::Receiver<Option<Instant>>,
) {
    let services = Resource::of(Kind::Service, "v1");
    let (sender, mut updates) = mpsc::channel(16);
    let mut target = Target::all(services.clone()).labelled(GATEWAY_LABEL);
    target.is_metadata_only = true;
    let watch = reflect(client.clone(), target, read_found, |update: Update<Found>| update, sender);
    let mut keeper = Keeper::default();
    let serve = async {
        loop {
            let until = *leading.borrow();
            let is_leading = until.is_some_and(|until| until > Instant::now());
            let wake = keeper.next_due().filter(|_| is_leading).unwrap_or_else(|| Instant::now() + FAR);
            tokio::select! {
                Some(references) = changed.recv() => {
                    for reference in references.into_iter().filter(|reference| reference.kind == Kind::Gateway) {
                        let found = state.translator.borrow().find_infrastructure(&reference.name);
                        let wanted = found.and_then(|found| Wanted::new(&reference.name, &found, &state.options.instance));
                        keeper.want(&reference.name, wanted);
                    }
                }
                Some(update) = updates.recv() => keeper.take(update),
                Ok(()) = leading.changed() => {}
                () = sleep_until(wake) => {}
            }
            while leading.borrow().is_some_and(|until| until > Instant::now())
                && let Some((gateway, wanted, is_own)) = keeper.take_due(Instant::now())
            {
                let outcome = apply(&client, &services, &wanted, is_own).await;
                keeper.take_outcome(&gateway, &wanted, outcome);
            }
        }
    };
    tokio::select! {
        () = watch => {}
        () = serve => {}
    }
}

async fn apply(client: &Client, services: &Resource, wanted: &Wanted, is_own: bool) -> Result<(), Failure> {
    let mut params = PatchParams::apply(MANAGER);
    // What others have written into the own Service is put right; what is not the own one is left alone.
    params.force = is_own;
    let request = Request::new(services.path(Some(&wanted.service.namespace)))
        .patch(&wanted.service.name, &params, &Patch::Apply(&wanted.object))
        .map_err(kube::Error::BuildRequest)?;
    timeout(REQUEST_TIMEOUT, client.request::<Value>(request)).await??;
    Ok(())
}

/// A Service that a Gateway is to have.
#[derive(Clone, Debug, PartialEq)]
struct Wanted {
    service: ObjectName,
    /// Value of [`MADE_FROM`].
    made_from: String,
    object: Value,
}

impl Wanted {
    /// `None` when the Gateway's identity is not known, without which nothing could belong to it.
    fn new(gateway: &ObjectName, infrastructure: &Infrastructure, instance: &str) -> Option<Self> {
        let uid = infrastructure.uid.as_deref()?;
        let mut labels = infrastructure.labels.clone();
        labels.insert(GATEWAY_LABEL.to_owned(), shortened(&gateway.name, &gateway.name));
        let mut annotations = infrastructure.annotations.clone();
        let made_from = format!("{instance}/{:016x}", hash(&json!([uid, labels, annotations]).to_string()));
        annotations.insert(MADE_FROM.to_owned(), made_from.clone());
        let name = service_name(gateway);
        let object = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": gateway.namespace,
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [{
                    "apiVersion": "gateway.networking.k8s.io/v1",
                    "kind": "Gateway",
                    "name": gateway.name,
                    "uid": uid,
                    "controller": true,
                }],
            },
            "spec": {"type": "ClusterIP", "clusterIP": "None"},
        });
        Some(Self { service: ObjectName::new(&gateway.namespace, name), made_from, object })
    }

    fn instance(&self) -> &str {
        self.made_from.split('/').next().unwrap_or_default()
    }
}

/// Name of a Gateway's Service: the Gateway's, made a DNS label, with a hash so that two Gateways have two and nobody has it
/// by chance.
fn service_name(gateway: &ObjectName) -> String {
    let mut label: String = gateway.name.chars().map(|c| if c == '.' { '-' } else { c }).collect();
    // Names of Services begin with a letter (RFC 1035), those of Gateways need not.
    if !label.starts_with(|c: char| c.is_ascii_lowercase()) {
        label.insert_str(0, "gateway-");
    }
    with_hash(&label, &gateway.to_string())
}

/// A label's value for a text: the text itself where it fits.
fn shortened(text: &str, hashed: &str) -> String {
    if text.len() <= MAX_LABEL { text.to_owned() } else { with_hash(text, hashed) }
}

fn with_hash(text: &str, hashed: &str) -> String {
    let suffix = format!("-{:010x}", hash(hashed) & 0xff_ffff_ffff);
    let kept: String = text.chars().take(MAX_LABEL - suffix.len()).collect();
    format!("{kept}{suffix}")
}

/// FNV-1a (64 bits): the same in every process and version.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A Service with the label of a Gateway, as it stands.
#[derive(Debug)]
struct Found {
    service: ObjectName,
    /// What its annotation [`MADE_FROM`] says.
    made_from: String,
    /// Everything that this agent may have written, to see what was changed by hand.
    metadata: Value,
}

fn read_found(mut value: Value) -> Found {
    let metadata = json!({
        "labels": value["metadata"]["labels"].take(),
        "annotations": value["metadata"]["annotations"].take(),
    });
    let made_from = metadata["annotations"][MADE_FROM].as_str().unwrap_or_default().to_owned();
    Found { service: name_of(&value), made_from, metadata }
}

impl Found {
    /// Whether everything that is wanted stands there.
    fn has(&self, wanted: &Wanted) -> bool {
        self.made_from == wanted.made_from
            && ["labels", "annotations"].iter().all(|field| {
                let wanted = wanted.object["metadata"][field].as_object();
                wanted.into_iter().flatten().all(|(key, value)| self.metadata[field][key] == *value)
            })
    }

    fn is_of_instance(&self, instance: &str) -> bool {
        self.made_from.split('/').next() == Some(instance)
    }
}

/// What is wanted and what stands.
#[derive(Debug, Default)]
struct Keeper {
    wanted: BTreeMap<ObjectName, Wanted>,
    found: BTreeMap<ObjectName, Found>,
    /// What a list shows that is still being read.
    listed: Option<BTreeMap<ObjectName, Found>>,
    is_synced: bool,
    /// Gateways to look at, and when.
    due: BTreeMap<ObjectName, Instant>,
    failures: BTreeMap<ObjectName, Backoff>,
}

impl Keeper {
    /// Notes what a Gateway is to have.
    fn want(&mut self, gateway: &ObjectName, wanted: Option<Wanted>) {
        match wanted {
            Some(wanted) if self.wanted.get(gateway) == Some(&wanted) => {}
            Some(wanted) => {
                self.wanted.insert(gateway.clone(), wanted);
                self.failures.remove(gateway);
                self.due.insert(gateway.clone(), Instant::now());
            }
            // Its Service goes with it, or stays without harm until it does.
            None => {
                self.wanted.remove(gateway);
                self.failures.remove(gateway);
                self.due.remove(gateway);
            }
        }
    }

    /// Takes what happened to Services.
    fn take(&mut self, update: Update<Found>) {
        match update {
            Update::Begin => self.listed = Some(BTreeMap::new()),
            Update::Page(page) => {
                let listed = self.listed.get_or_insert_default();
                listed.extend(page.into_iter().map(|found| (found.service.clone(), found)));
            }
            Update::Synced => {
                self.found = self.listed.take().unwrap_or_default();
                self.is_synced = true;
                let now = Instant::now();
                self.due.extend(self.wanted.keys().map(|gateway| (gateway.clone(), now)));
            }
            Update::Put(found) => {
                let service = found.service.clone();
                self.found.insert(service.clone(), found);
                self.mark(&service);
            }
            Update::Delete(service) => {
                self.found.remove(&service);
                self.mark(&service);
            }
            Update::Failing(_) | Update::Recovered => {}
        }
    }

    /// Marks the Gateway of a Service, unless a failure makes it wait.
    fn mark(&mut self, service: &ObjectName) {
        let owner =
            self.wanted.iter().find(|(_, wanted)| wanted.service == *service).map(|(gateway, _)| gateway.clone());
        if let Some(gateway) = owner {
            self.due.entry(gateway).or_insert_with(Instant::now);
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.due.values().min().copied().filter(|_| self.is_synced)
    }

    /// A Gateway whose Service differs from what is wanted, with whether that is its own already.
    fn take_due(&mut self, now: Instant) -> Option<(ObjectName, Wanted, bool)> {
        while self.is_synced {
            let (gateway, _) = self.due.iter().find(|(_, at)| **at <= now)?;
            let gateway = gateway.clone();
            self.due.remove(&gateway);
            let Some(wanted) = self.wanted.get(&gateway) else { continue };
            let found = self.found.get(&wanted.service);
            if found.is_none_or(|found| !found.has(wanted)) {
                let is_own = found.is_some_and(|found| found.is_of_instance(wanted.instance()));
                return Some((gateway, wanted.clone(), is_own));
            }
        }
        None
    }

    fn take_outcome(&mut self, gateway: &ObjectName, wanted: &Wanted, outcome: Result<(), Failure>) {
        let Err(failure) = outcome else {
            self.failures.remove(gateway);
            return;
        };
        let backoff = self.failures.entry(gateway.clone()).or_default();
        let wait = match &failure {
            Failure::Throttled { after, .. } => *after + backoff.next_wait(),
            _ => backoff.next_wait(),
        };
        if backoff.failures() == 1 {
            warn!("Service/{} of Gateway/{gateway} cannot be written: {failure}", wanted.service);
        }
        self.due.insert(gateway.clone(), Instant::now() + wait);
    }
}

#[cfg(test)]
#[path = "infrastructure_tests.rs"]
mod tests;
