//! Supervision: one task for each domain, fed with changes of its model and news of its workers, its NICs and init.
//!
//! One task that waits or fails does not hold up another. One that panics ends the agent, which costs nothing: workers serve
//! on, and the next agent begins with a sound state. An agent that starts takes over what
//! the last one left, and removes nothing before every domain was heard.

mod delivery;
mod dialled;
mod domain;
mod expose;
mod handover;
mod init_link;
mod lifecycle;
mod node;
mod respawn;
mod sockets;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tidegate_model::{
    Admission, Delta, Domain, DomainId, DomainName, ResourceLimits,
    control::{FromInit, ToInit},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tracing::{Instrument, error, error_span, info, warn};

use crate::{
    cgroup::Cgroups,
    control::AsyncChannel,
    net::{
        address::LocalAddresses,
        link::{LinkNews, Links},
    },
    state::{Pieces, Request, State},
    tier,
};

use self::{
    domain::{DomainMessage, DomainTask},
    handover::{Inheritance, KeptName, Numbers, WorkerName, take_over},
    init_link::InitLink,
    node::{Node, NodeParts},
};

pub use node::DRAIN_DEADLINE;

/// How long a worker may take to answer a scrape: less than Prometheus' default timeout of 10 s by far, so that a hung
/// worker does not hide the others.
const SCRAPE_DEADLINE: Duration = Duration::from_secs(1);

/// How often is looked whether somebody has taken away what the kernel tier has pinned and attached: some hundred system
/// calls, and less time than anybody needs to notice.
const UPKEEP: Duration = Duration::from_secs(2);

/// What supervision is told.
pub enum Command {
    /// Models change. The first one is complete: domains that are not in it are gone.
    Apply {
        /// The changes.
        changes: Vec<DomainChange>,
        /// When the source saw the first of them.
        changed: Instant,
    },
    /// Drain every worker, leave nothing behind, then end.
    Stop,
    /// End at once, without waiting for connections.
    StopNow,
}

/// Change of one domain.
pub enum DomainChange {
    /// The domain is served: how its model changes.
    Put(Arc<Domain>, Delta),
    /// The domain is not served any more.
    Remove(DomainName),
}

/// What supervision needs.
pub struct Setup {
    /// The agent's state.
    pub state: Rc<State>,
    /// Channel to init.
    pub init: AsyncChannel,
    /// Control groups.
    pub cgroups: Cgroups,
    /// Frontend addresses; `None` without the right to add any.
    pub addresses: Option<LocalAddresses>,
    /// NICs and news of them.
    pub links: (Links, LinkNews),
    /// Commands.
    pub commands: mpsc::UnboundedReceiver<Command>,
    /// Requests of the admin server.
    pub requests: mpsc::UnboundedReceiver<Request>,
}

/// Why supervision ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Init is gone, and the workers with it.
    #[error("init is gone")]
    InitGone,
    /// The task of a domain panicked.
    #[error("the task of a domain failed: {0}")]
    Task(#[from] tokio::task::JoinError),
    /// Nothing could be taken over.
    #[error("cannot take over from init: {0}")]
    Handover(#[from] crate::control::ChannelError),
}

/// Runs supervision until it is told to stop.
///
/// # Errors
/// [`SuperviseError`] when init is gone.
pub async fn run_supervision(mut setup: Setup) -> Result<(), SuperviseError> {
    let handover = take_over(&mut setup.init).await?;
    let (init, from_init) = InitLink::start(setup.init);
    for name in &handover.strays {
        init.send(ToInit::Drop { name: name.clone() }, Vec::new());
    }
    let node = Node::new(NodeParts {
        state: setup.state,
        init,
        cgroups: setup.cgroups,
        addresses: setup.addresses,
        links: setup.links.0,
    });
    let supervisor = Supervisor {
        node,
        numbers: handover.numbers,
        inheritances: handover.domains,
        tasks: BTreeMap::new(),
        running: JoinSet::new(),
        is_first: true,
        is_stopping: false,
    };
    let channels = Channels { from_init, commands: setup.commands, requests: setup.requests, link_news: setup.links.1 };
    supervisor.run(channels).await
}

struct Channels {
    from_init: mpsc::UnboundedReceiver<FromInit>,
    commands: mpsc::UnboundedReceiver<Command>,
    requests: mpsc::UnboundedReceiver<Request>,
    link_news: LinkNews,
}

struct Supervisor {
    node: Rc<Node>,
    numbers: Numbers,
    /// What the last agent left for domains that have no task yet.
    inheritances: BTreeMap<DomainName, Inheritance>,
    tasks: BTreeMap<DomainName, mpsc::UnboundedSender<DomainMessage>>,
    running: JoinSet<DomainName>,
    is_first: bool,
    is_stopping: bool,
}

impl Supervisor {
    async fn run(mut self, mut channels: Channels) -> Result<(), SuperviseError> {
        let mut settled = self.node.is_settled.subscribe();
        let mut upkeep = tokio::time::interval(UPKEEP);
        upkeep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                news = channels.from_init.recv() => match news {
                    Some(news) => self.take_init(news),
                    None => return Err(SuperviseError::InitGone),
                },
                command = channels.commands.recv() => match command {
                    Some(Command::Apply { changes, changed }) => self.apply(changes, changed),
                    Some(Command::Stop) | None => self.stop(|| DomainMessage::Remove),
                    Some(Command::StopNow) => self.stop(|| DomainMessage::RemoveNow),
                },
                Some(request) = channels.requests.recv() => match request {
                    Request::ScrapeWorkers(answer) => self.scrape(answer),
                },
                news = channels.link_news.next() => {
                    if self.node.links.borrow_mut().take(news) {
                        self.links_changed();
                    }
                }
                Some(ended) = self.running.join_next() => self.ended(&ended?),
                _ = upkeep.tick() => self.keep_up(),
                Ok(()) = settled.changed() => self.settle().await,
            }
            if self.is_stopping && self.tasks.is_empty() {
                self.node.cgroups.remove_instance();
                return Ok(());
            }
        }
    }

    fn apply(&mut self, changes: Vec<DomainChange>, changed: Instant) {
        if self.is_stopping {
            return;
        }
        if std::mem::take(&mut self.is_first) {
            let served: BTreeSet<DomainName> = changes
                .iter()
                .filter_map(|change| match change {
                    DomainChange::Put(domain, _) => Some(domain.name.clone()),
                    DomainChange::Remove(_) => None,
                })
                .collect();
            self.remove_unserved(&served);
            self.node.await_domains(served);
        }
        for change in changes {
            match change {
                DomainChange::Put(domain, delta) => {
                    let name = domain.name.clone();
                    if let Some(task) = self.task(&domain) {
                        let _ = task.send(DomainMessage::Change { domain, delta, changed });
                    } else {
                        // Without a number nothing of it can be told apart from others in the kernel.
                        error!(domain = %name, "not served: this node has as many domains as it can have (255)");
                        self.node.heard(&name);
                    }
                }
                DomainChange::Remove(name) => {
                    if let Some(task) = self.tasks.get(&name) {
                        let _ = task.send(DomainMessage::Remove);
                    }
                }
            }
        }
    }

    /// Starts to remove what the last agent left of domains that are no more.
    fn remove_unserved(&mut self, served: &BTreeSet<DomainName>) {
        let known: BTreeSet<DomainName> = self.numbers.domains().chain(self.inheritances.keys()).cloned().collect();
        for name in known.difference(served) {
            info!(domain = %name, "domain is gone since the last agent; removing it");
            let nothing = Domain {
                name: name.clone(),
                interfaces: Vec::new(),
                labels: BTreeMap::new(),
                admission: Admission::default(),
                limits: ResourceLimits::default(),
                shards: None,
            };
            if let Some(task) = self.task(&Arc::new(nothing)) {
                let _ = task.send(DomainMessage::Remove);
            }
        }
    }

    /// The task of a domain, started when there is none.
    fn task(&mut self, domain: &Arc<Domain>) -> Option<&mpsc::UnboundedSender<DomainMessage>> {
        let is_running = self.tasks.get(&domain.name).is_some_and(|task| !task.is_closed());
        if !is_running {
            let id = self.number(&domain.name)?;
            let (sender, inbox) = mpsc::unbounded_channel();
            let inheritance = self.inheritances.remove(&domain.name).unwrap_or_default();
            let task = DomainTask::new(self.node.clone(), domain.clone(), id, inheritance, inbox);
            // Every line that the task logs carries the labels that the domain had when it began.
            let labels: Vec<String> = domain.labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
            let span = error_span!("task", domain = %domain.name, labels = labels.join(","));
            self.running.spawn_local(task.run().instrument(span));
            self.tasks.insert(domain.name.clone(), sender);
        }
        self.tasks.get(&domain.name)
    }

    fn number(&mut self, name: &DomainName) -> Option<DomainId> {
        let id = self.numbers.give(name)?;
        self.save_numbers();
        Some(id)
    }

    fn save_numbers(&self) {
        match self.numbers.save() {
            Ok(file) => self.node.init.send(ToInit::Keep { name: KeptName::Numbers.to_string() }, vec![file]),
            Err(error) => warn!("numbers of the domains cannot be kept for the next agent: {error}"),
        }
    }

    fn take_init(&self, news: FromInit) {
        let (FromInit::Started { name, .. } | FromInit::Failed { name, .. } | FromInit::Exited { name, .. }) = &news
        else {
            return;
        };
        let worker = name.parse::<WorkerName>();
        if let Some(task) = worker.ok().and_then(|worker| self.tasks.get(&worker.domain)) {
            let _ = task.send(DomainMessage::Init(news));
        }
    }

    fn links_changed(&self) {
        if let Some(kernel) = self.node.state.kernel.borrow_mut().kernel() {
            kernel.sweep_interfaces();
        }
        for task in self.tasks.values() {
            let _ = task.send(DomainMessage::Links);
        }
    }

    fn keep_up(&self) {
        let state = &self.node.state;
        let kept = state.kernel.borrow_mut().kernel().map(tier::KernelTier::keep_up);
        let Some((problems, has_lost_interface)) = kept else { return };
        if has_lost_interface {
            self.links_changed();
        }
        let known = &mut state.tier.borrow_mut().problems;
        problems.iter().filter(|problem| !known.contains(problem)).for_each(|problem| error!("{problem}"));
        *known = problems;
    }

    /// Asks all workers at once; each has until the deadline.
    fn scrape(&self, answer: oneshot::Sender<Vec<(DomainName, Pieces)>>) {
        let questions: Vec<_> = self
            .tasks
            .iter()
            .map(|(name, task)| {
                let (sender, receiver) = oneshot::channel();
                let _ = task.send(DomainMessage::Scrape(sender));
                let name = name.clone();
                async move {
                    let pieces = tokio::time::timeout(SCRAPE_DEADLINE, receiver).await.ok()?.ok()?;
                    Some((name, pieces))
                }
            })
            .collect();
        tokio::task::spawn_local(async move {
            let answers = futures_util::future::join_all(questions).await;
            let _ = answer.send(answers.into_iter().flatten().collect());
        });
    }

    fn stop(&mut self, message: impl Fn() -> DomainMessage) {
        self.is_stopping = true;
        for task in self.tasks.values() {
            let _ = task.send(message());
        }
    }

    fn ended(&mut self, name: &DomainName) {
        // A task that was started again for the same domain is not the one that has ended.
        if self.tasks.get(name).is_some_and(mpsc::UnboundedSender::is_closed) {
            self.tasks.remove(name);
            self.numbers.take_back(name);
            self.save_numbers();
            info!(domain = %name, "domain removed");
        }
    }

    /// Every domain of the start was heard: what no domain needs may go.
    async fn settle(&self) {
        if let Some(addresses) = self.node.addresses.lock().await.as_mut() {
            addresses.remove_unwanted().await;
        }
        self.node.cgroups.remove_stale(|name| self.tasks.keys().any(|domain| domain.as_str() == name));
    }
}
