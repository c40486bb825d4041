//! What the agent knows about itself, in one place: written by supervision and the kernel tier's driver, read by the
//! admin server.
//!
//! Everything runs on the agent's one thread, so this is plain data behind `RefCell`; no borrow is held across an await.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};
use tidegate_gateway_api::Translator;
use tidegate_model::{DomainId, DomainName, FrontendKey, Generation, Key, Model, domain::Frontends};
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::{
    options::RunOptions,
    resolver::Resolved,
    source::{SourceStatus, kube::Facts},
    tier::Tier,
    verdicts::Sources,
};

/// Samples kept for a reader of `verdicts --follow` that falls behind; older ones are lost and counted.
pub const SAMPLE_BACKLOG: usize = 1024;

/// How long a change may be on its way before the node counts as not ready: several times what a loaded node needs.
pub const CHANGE_PATIENCE: Duration = Duration::from_secs(5);

/// The agent's state. Shared as `Rc<State>`.
pub struct State {
    /// Options of this process.
    pub options: RunOptions,
    /// Name of the node.
    pub node: String,
    /// When this agent process started.
    pub started: SystemTime,
    /// The objects, their conditions and what they mean.
    pub translator: RefCell<Translator>,
    /// Whether the source has delivered everything it had at the start.
    pub is_source_synced: Cell<bool>,
    /// What the source has and what it could not read.
    pub source: RefCell<SourceStatus>,
    /// What the cluster says beside objects; nothing where the source is a folder.
    pub facts: RefCell<Facts>,
    /// Names of endpoints as they were last resolved.
    pub resolved: RefCell<BTreeMap<String, Resolved>>,
    /// The domains by name.
    pub domains: RefCell<BTreeMap<DomainName, DomainState>>,
    /// What is said about the kernel tier as a whole.
    pub tier: RefCell<TierState>,
    /// The kernel tier itself.
    pub kernel: RefCell<Tier>,
    /// Sampled verdicts of the kernel tier as they come.
    pub samples: broadcast::Sender<tidegate_kernel::Sample>,
    /// The sources in them since this process started.
    pub sources: RefCell<Sources>,
    /// Metrics of the agent itself; `render()` is cheap.
    pub metrics: metrics_exporter_prometheus::PrometheusHandle,
    /// Requests to supervision.
    pub requests: mpsc::UnboundedSender<Request>,
}

/// A text in Prometheus' exposition format, in pieces of whole lines: that of thousands of routes is long, and is never one
/// allocation.
pub type Pieces = Vec<String>;

/// What the admin side may ask of supervision.
pub enum Request {
    /// Metrics of every worker that answers in time: (domain, Prometheus text).
    ScrapeWorkers(oneshot::Sender<Vec<(DomainName, Pieces)>>),
}

/// State of the kernel tier as a whole.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TierState {
    /// Whether packets are judged in the kernel.
    pub is_on: bool,
    /// What is missing or not enforced on this host, with the mend; empty when nothing is.
    pub degraded: Vec<String>,
    /// What is wrong now and cannot be put right by the agent, with the mend; looked for every few seconds.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// One domain: what it wants and what is really applied.
#[derive(Debug)]
pub struct DomainState {
    /// Number of the domain on this node.
    pub id: DomainId,
    /// The domain's model; its generation is the one wanted.
    pub model: Model,
    /// What the kernel tier has applied (the frontends bound, with `--kernel=off`).
    pub kernel: Applied,
    /// What the worker has applied.
    pub worker: WorkerState,
    /// Frontends that are reachable now.
    pub frontends: Rc<Frontends>,
    /// Frontends that could not be made reachable and why; tried again until they are.
    pub unreachable: BTreeMap<FrontendKey, String>,
    /// The domain's NICs.
    pub interfaces: Vec<InterfaceState>,
    /// Limits and walls of the domain that this host does not enforce, with the reason.
    pub unenforced: Vec<String>,
    /// Since when a change is not applied everywhere.
    pub pending_since: Option<Instant>,
}

/// What one consumer of the model has applied.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Applied {
    /// Whether any generation is in force.
    pub has_any: bool,
    /// Generation in force.
    pub generation: Generation,
    /// What could not be applied and why.
    pub failures: Vec<String>,
}

/// A domain's worker.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WorkerState {
    /// Name of the process, e.g. `public.3`.
    pub name: String,
    /// Process id while it runs.
    pub pid: Option<u32>,
    /// User id; `None` is the agent's own.
    pub uid: Option<u32>,
    /// Shards.
    pub shards: u16,
    /// What it has applied; its failures by resource are in `refused`.
    pub applied: Applied,
    /// Resources that it could not use and why; the rest is in force.
    #[serde(skip)]
    pub refused: Vec<(Key, String)>,
    /// Times it had to be started again.
    pub restarts: u64,
    /// Predecessors that still finish their connections.
    pub draining: usize,
}

/// A NIC of a domain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceState {
    /// Name as the domain gives it.
    pub name: String,
    /// Index of the NIC that carries `admit` (the parent of a VLAN device).
    pub ifindex: Option<u32>,
    /// VLAN id when the name is a VLAN device.
    pub vlan: Option<u16>,
    /// Whether packets are judged on it.
    pub attach: Attach,
}

/// How `admit` is attached to a NIC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Attach {
    /// In the driver.
    Native,
    /// In the generic path, because the driver has no XDP: slower, same verdicts.
    Generic,
    /// There is no interface of that name (yet).
    Missing,
    /// The kernel refused, with its reason.
    Failed(String),
    /// `--kernel=off`.
    Off,
}

/// Whether the agent is ready, and if not, for what it waits.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Readiness {
    /// Everything wanted was applied in kernel and workers at least once since the last change of a domain's state.
    pub is_ready: bool,
    /// One line for each thing that is not applied.
    pub waiting: Vec<String>,
}

impl DomainState {
    /// A domain of which nothing is applied yet.
    pub fn new(id: DomainId, model: Model) -> Self {
        Self {
            id,
            model,
            kernel: Applied::default(),
            worker: WorkerState::default(),
            frontends: Rc::default(),
            unreachable: BTreeMap::new(),
            interfaces: Vec::new(),
            unenforced: Vec::new(),
            pending_since: None,
        }
    }

    /// Whether kernel and worker have applied the generation wanted.
    pub fn is_applied(&self) -> bool {
        let has = |applied: &Applied| applied.has_any && applied.generation >= self.model.generation;
        has(&self.kernel) && has(&self.worker.applied)
    }
}

impl State {
    /// Whether what the source says is served: every domain was applied in kernel and worker, and no change of one has
    /// waited for longer than [`CHANGE_PATIENCE`]. A change on its way does not make a node unready.
    pub fn readiness(&self) -> Readiness {
        let mut waiting = Vec::new();
        if !self.is_source_synced.get() {
            waiting.push("source: not read yet".to_owned());
        }
        for (name, domain) in self.domains.borrow().iter() {
            let wanted = domain.model.generation;
            let is_late = domain.pending_since.is_some_and(|since| since.elapsed() > CHANGE_PATIENCE);
            for (what, applied) in [("kernel", &domain.kernel), ("worker", &domain.worker.applied)] {
                let has = applied.generation;
                if !applied.has_any || (is_late && has < wanted) {
                    waiting.push(format!("domain {name}: {what} has generation {has} of {wanted}"));
                }
            }
        }
        Readiness { is_ready: waiting.is_empty(), waiting }
    }

    /// Metrics of every worker that answers within the time that supervision allows.
    pub async fn scrape_workers(&self) -> Vec<(DomainName, Pieces)> {
        let (answer, answered) = oneshot::channel();
        if self.requests.send(Request::ScrapeWorkers(answer)).is_err() {
            return Vec::new();
        }
        answered.await.unwrap_or_default()
    }
}
