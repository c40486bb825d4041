//! The Kubernetes source: the objects of a cluster, watched.
//!
//! Every kind has a watch of its own; what they tell is put together here into batches, in one order. The first batch is
//! sent when everything was listed and everything that is referred to was fetched, so that a restarted agent never
//! serves half of a configuration. After that nothing is gone unless the API server says so: while it is away, for
//! however long, the last state stays in force.

mod catalog;
mod fetch;
mod held;
mod item;
mod node;
mod references;
mod trim;

use std::{
    collections::BTreeMap,
    hash::RandomState,
    time::{Duration, Instant},
};

use kube::Client;
use serde_json::Value;
use tidegate_gateway_api::{Event, Kind, ObjectRef};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, spawn_local},
    time::{interval, sleep_until},
};
use tracing::info;

pub use self::node::NodeFacts;
use self::{
    catalog::Catalog,
    fetch::{Fetcher, Meta, Scope},
    held::{Held, problem},
    item::{Item, read_item},
};
use super::{Batch, Severity};
use crate::kube::{Failure, Resource, Target, Update, reflect};

/// Messages of watches that may wait: then the watches wait, and the API server holds what they have not read.
const BACKLOG: usize = 64;

/// Messages that are taken together: a burst becomes one batch.
const TOGETHER: usize = 1024;

/// How often it is said for what the start waits.
const SAY_WAITING: Duration = Duration::from_secs(5);

/// How long a start waits for what the API server refuses to give: one that has just been started refuses everything for
/// some seconds, until it has read the roles. A restarted agent that took that for an answer would stop serving.
pub const REFUSAL_PATIENCE: Duration = Duration::from_secs(15);

/// Kinds of Kubernetes itself that are watched as a whole.
const CORE: [Kind; 3] = [Kind::Namespace, Kind::Service, Kind::EndpointSlice];

/// What the source needs to know.
pub struct Setup {
    /// The API server.
    pub client: Client,
    /// Name of this node's Node object.
    pub node: String,
    /// Values of `GatewayClass.spec.controllerName` that are this project's.
    pub controller_names: Vec<String>,
    /// How long the start waits for what is refused, [`REFUSAL_PATIENCE`].
    pub patience: Duration,
    /// Gets every version of each object whose status is written.
    pub seen: Option<mpsc::UnboundedSender<Seen>>,
}

/// A version of an object whose status is written.
#[derive(Debug)]
pub struct Seen {
    /// The object.
    pub reference: ObjectRef,
    /// Its version.
    pub resource_version: String,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// Its status as it stands (null when it has none); `None` when the object is gone.
    pub status: Option<Value>,
}

/// What the cluster says beside objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// This node; `None` when there is no such Node, or it may not be read.
    pub node: Option<NodeFacts>,
    /// Release of the Gateway API CRDs when it is none that is known.
    pub unknown_release: Option<String>,
    /// Kinds that are served, with the version to use.
    pub served: BTreeMap<Kind, &'static str>,
}

/// What one of the watches says.
enum Message {
    Object(Kind, Update<Item>),
    Meta(Scope, Update<Meta>),
    Node(Update<NodeFacts>),
    Catalog(Catalog),
}

/// A task that ends when nobody is interested any more.
struct Task(AbortHandle);

impl Task {
    fn spawn(future: impl Future<Output = ()> + 'static) -> Self {
        Self(spawn_local(future).abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Watches a cluster and sends what changes; first everything that is there, even when that is nothing. Returns when
/// nobody receives any more. Dropping the future ends all watches.
pub async fn watch(setup: Setup, out: mpsc::Sender<Batch>) {
    let (sender, mut messages) = mpsc::channel(BACKLOG);
    let patience = setup.patience;
    let mut source = Source::new(setup, sender);
    let mut say = interval(SAY_WAITING.min(patience));
    say.reset();
    let mut is_first = true;
    let started = Instant::now();
    loop {
        let retry = source.fetcher.retry_at();
        let message = tokio::select! {
            () = out.closed() => return,
            message = messages.recv() => message,
            () = sleep_until(retry.unwrap_or_else(tokio::time::Instant::now)), if retry.is_some() => None,
            _ = say.tick(), if is_first => {
                source.log_waiting();
                None
            }
        };
        let changed = Instant::now();
        if let Some(message) = message {
            source.take(message);
            for _ in 1..TOGETHER {
                let Ok(message) = messages.try_recv() else { break };
                source.take(message);
            }
        }
        let is_refusal_final = started.elapsed() >= patience;
        if is_first && !source.is_ready(is_refusal_final).await {
            continue;
        }
        let Some(batch) = source.take_batch(changed, is_first).await else { continue };
        if is_first {
            info!(objects = batch.status.objects, "everything is listed");
        }
        is_first = false;
        if out.send(batch).await.is_err() {
            return;
        }
    }
}

struct Source {
    client: Client,
    sender: mpsc::Sender<Message>,
    hasher: RandomState,
    held: Held,
    fetcher: Fetcher,
    watches: BTreeMap<Kind, (&'static str, Task)>,
    _tasks: [Task; 2],
    catalog: Option<Catalog>,
    node_name: String,
    node: Option<NodeFacts>,
    node_failure: Option<Failure>,
    is_node_known: bool,
    events: Vec<Event>,
    facts: Facts,
}

impl Source {
    fn new(setup: Setup, sender: mpsc::Sender<Message>) -> Self {
        let Setup { client, node: node_name, controller_names, seen, patience: _ } = setup;
        let nodes = Target { name: Some(node_name.clone()), ..Target::all(Resource::new("", "v1", "nodes", "Node")) };
        let read_node = |value: Value| NodeFacts::of(&value);
        let tasks = [
            Task::spawn(catalog::run(client.clone(), Message::Catalog, sender.clone())),
            Task::spawn(reflect(client.clone(), nodes, read_node, Message::Node, sender.clone())),
        ];
        let mut source = Self {
            fetcher: Fetcher::new(client.clone(), sender.clone()),
            client,
            sender,
            hasher: RandomState::new(),
            held: Held::new(controller_names, seen),
            watches: BTreeMap::new(),
            _tasks: tasks,
            catalog: None,
            node_name,
            node: None,
            node_failure: None,
            is_node_known: false,
            events: Vec::new(),
            facts: Facts::default(),
        };
        CORE.iter().for_each(|&kind| source.watch_kind(kind, "v1"));
        source
    }

    /// Watches a kind at a version, instead of the version before.
    fn watch_kind(&mut self, kind: Kind, version: &'static str) {
        if self.watches.get(&kind).is_some_and(|(watched, _)| *watched == version) {
            return;
        }
        self.held.expect(kind);
        let resource = Resource::of(kind, version);
        let target = Target { is_metadata_only: kind == Kind::Namespace, ..Target::all(resource.clone()) };
        let hasher = self.hasher.clone();
        let read = move |value| read_item(kind, &resource, &hasher, value);
        let wrap = move |update| Message::Object(kind, update);
        let task = Task::spawn(reflect(self.client.clone(), target, read, wrap, self.sender.clone()));
        self.watches.insert(kind, (version, task));
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Object(kind, update) => self.held.take(kind, update, &mut self.events),
            Message::Meta(scope, update) => {
                self.held.is_status_changed |= matches!(update, Update::Failing(_) | Update::Recovered);
                self.fetcher.take(&scope, update, &mut self.events);
            }
            Message::Node(update) => self.take_node(update),
            Message::Catalog(catalog) => self.take_catalog(catalog),
        }
    }

    fn take_node(&mut self, update: Update<NodeFacts>) {
        match update {
            Update::Put(facts) => self.node = Some(facts),
            Update::Page(page) => self.node = page.into_iter().next().or(self.node.take()),
            Update::Synced => {
                self.is_node_known = true;
                self.held.is_status_changed = true;
            }
            Update::Failing(failure) => {
                self.node_failure = Some(failure);
                self.held.is_status_changed = true;
            }
            Update::Recovered => {
                self.node_failure = None;
                self.held.is_status_changed = true;
            }
            // A Node that is deleted while its agent runs comes back with the kubelet; until then it is as it was.
            Update::Begin | Update::Delete(_) => {}
        }
    }

    fn take_catalog(&mut self, catalog: Catalog) {
        for (&kind, &version) in &catalog.served {
            if !CORE.contains(&kind) && kind != Kind::ClusterTrustBundle {
                self.watch_kind(kind, version);
            }
        }
        for &kind in &catalog.undefined {
            if self.watches.remove(&kind).is_some() {
                info!(kind = kind.as_str(), "is not defined any more");
            }
            self.held.forget(kind, &mut self.events);
        }
        let trust_bundles = catalog.served.get(&Kind::ClusterTrustBundle).copied();
        self.fetcher.set_trust_bundles(trust_bundles, &mut self.events);
        self.held.is_status_changed = true;
        self.catalog = Some(catalog);
    }

    /// Whether everything that there is was listed, and everything that it refers to fetched.
    async fn is_ready(&mut self, is_refusal_final: bool) -> bool {
        let is_node_known =
            self.is_node_known || (is_refusal_final && matches!(self.node_failure, Some(Failure::Forbidden(_))));
        if self.catalog.is_none() || !is_node_known || self.held.waiting(is_refusal_final).next().is_some() {
            return false;
        }
        self.fetch().await;
        is_refusal_final || !self.fetcher.lacks_any()
    }

    async fn fetch(&mut self) {
        if std::mem::take(&mut self.held.is_wanted_changed) {
            self.fetcher.set_wanted(&self.held.referrers.wanted(), &mut self.events);
        }
        self.held.is_status_changed |= self.fetcher.fetch(&mut self.events).await;
    }

    fn log_waiting(&self) {
        if self.catalog.is_none() {
            tracing::warn!("waiting for the API server to say what it serves");
        }
        if let (false, Some(failure)) = (self.is_node_known, &self.node_failure) {
            tracing::warn!("waiting for Node {}: {failure}", self.node_name);
        }
        self.held.log_waiting();
    }

    /// Everything that has changed since the last batch; `None` when that is nothing.
    async fn take_batch(&mut self, changed: Instant, is_first: bool) -> Option<Batch> {
        self.fetch().await;
        let facts = Facts {
            node: self.node.clone(),
            unknown_release: self.catalog.as_ref().and_then(|catalog| catalog.unknown_release.clone()),
            served: self.catalog.as_ref().map(|catalog| catalog.served.clone()).unwrap_or_default(),
        };
        let is_new = is_first || facts != self.facts;
        let addresses = std::mem::take(&mut self.held.changed_addresses);
        if !is_new && self.events.is_empty() && addresses.is_empty() && !self.held.is_status_changed {
            return None;
        }
        self.held.is_status_changed = false;
        let facts = is_new.then(|| {
            self.facts = facts.clone();
            Box::new(facts)
        });
        let problems = self.problems().collect::<Vec<_>>();
        let status = self.held.status(problems.into_iter().chain(self.fetcher.problems()));
        Some(Batch { events: std::mem::take(&mut self.events), changed, status, facts, addresses })
    }

    fn problems(&self) -> impl Iterator<Item = super::Problem> {
        let node = match (&self.node_failure, &self.node) {
            (Some(failure), _) => Some(format!("cannot be watched: {failure}")),
            (None, None) => Some("does not exist, so it has no labels: name this node with --node".to_owned()),
            (None, Some(_)) => None,
        };
        let node = node.map(|message| problem(Severity::Error, Some(format!("Node/{}", self.node_name)), message));
        let served = self.catalog.as_ref().map(|catalog| &catalog.served);
        let missing = [Kind::GatewayClass, Kind::Gateway, Kind::TrafficDomain].into_iter().filter_map(move |kind| {
            let is_missing = served.is_some_and(|served| !served.contains_key(&kind));
            let message = format!("kind {kind} of group {} is not defined: install its CRD", kind.group());
            is_missing.then(|| problem(Severity::Warning, None, message))
        });
        node.into_iter().chain(missing)
    }
}

#[cfg(test)]
mod tests;
