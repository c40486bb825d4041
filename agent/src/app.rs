//! The composition root: puts the agent together (source → translator → supervision and kernel tier; admin beside them)
//! and runs it on one thread. Nothing else knows all of the parts.

use std::{
    cell::{Cell, RefCell},
    net::IpAddr,
    os::fd::AsFd,
    process::ExitCode,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use ::kube::Client;
use anyhow::Context;
use caps::Capability;
use tidegate_gateway_api::{Changes, DomainEvent, ObjectRef, Settings, Translator};
use tidegate_kernel::Samples;
use tidegate_model::{Delta, DomainName};
use tidegate_proxy::worker::{WorkerConfig, sandbox::Sandbox};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, mpsc, watch},
    task::{LocalSet, spawn_local},
    time::timeout,
};
use tracing::{error, info, warn};

use crate::{
    admin,
    cgroup::Cgroups,
    cli::init_logging,
    control::AsyncChannel,
    init::EXIT_REFUSED,
    kube::{self, ConnectError},
    metrics,
    net::{address::LocalAddresses, link::Links},
    options::{RunOptions, SourceOption, WorkerOptions},
    privileges, resolver,
    source::{self, Source, kube::Facts},
    state::{SAMPLE_BACKLOG, State},
    status,
    supervise::{Command, DomainChange, Setup, SuperviseError, run_supervision},
    sys, tier,
};

/// Batches of the source that may wait: it is the source that waits then, and merges what it sees meanwhile.
const BATCH_BACKLOG: usize = 16;

/// How long an agent that ends waits until the Lease for writing status is given back.
const STATUS_PATIENCE: Duration = Duration::from_secs(1);

/// Samples that are read at once before other tasks have their turn.
const SAMPLES_AT_ONCE: usize = 256;

/// Runs the agent. Init has started it and holds what it leaves.
///
/// # Errors
/// When a part cannot start.
pub fn run_agent(options: RunOptions) -> anyhow::Result<ExitCode> {
    let control = sys::take_control_fd().context("no control socket: start `tidegate run`, which starts the agent")?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot make a runtime")?;
    LocalSet::new().block_on(&runtime, async {
        let control = AsyncChannel::new(control).context("control socket")?;
        Box::pin(run(options, control)).await
    })
}

/// Runs a worker. Init has started it without any right.
///
/// # Errors
/// When it cannot start.
pub fn run_worker(options: WorkerOptions) -> anyhow::Result<ExitCode> {
    init_logging(&options.log, options.log_format)?;
    let control = sys::take_control_fd().context("no control socket: workers are started by `tidegate run`")?;
    tidegate_proxy::worker::run_worker(WorkerConfig {
        domain: DomainName::new(options.domain),
        shards: options.shards,
        cores: options.cores,
        control,
        sandbox: if options.is_unprivileged { Sandbox::Unprivileged } else { Sandbox::Strict },
    })?;
    Ok(ExitCode::SUCCESS)
}

async fn run(options: RunOptions, control: AsyncChannel) -> anyhow::Result<ExitCode> {
    let mut stop = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut restart = signal(SignalKind::hangup()).context("SIGHUP")?;

    let client = match connect(&options.source).await {
        Ok(client) => client,
        Err(error) => {
            error!("--source: {error}");
            return Ok(ExitCode::from(EXIT_REFUSED));
        }
    };
    let opened = match tier::open(&options) {
        Ok(opened) => opened,
        Err(refusal) => {
            error!("{refusal}");
            return Ok(ExitCode::from(EXIT_REFUSED));
        }
    };
    let (links, link_news, netlink) = Links::watch().await.context("cannot watch interfaces")?;
    let addresses = if privileges::has(Capability::CAP_NET_ADMIN) {
        let adopted = LocalAddresses::adopt(netlink, &options.instance).await;
        Some(adopted.context("cannot list the addresses of an earlier agent")?)
    } else {
        warn!("without CAP_NET_ADMIN: frontend addresses must be this node's already");
        None
    };
    let (requests, request_receiver) = mpsc::unbounded_channel();
    let state = Rc::new(State {
        node: options.node_name(),
        started: SystemTime::now(),
        translator: RefCell::new(Translator::new(settings(&options, None))),
        source: RefCell::default(),
        facts: RefCell::default(),
        resolved: RefCell::default(),
        is_source_synced: Cell::new(false),
        domains: RefCell::default(),
        tier: RefCell::new(opened.state),
        kernel: RefCell::new(opened.tier),
        samples: broadcast::Sender::new(SAMPLE_BACKLOG),
        sources: RefCell::default(),
        metrics: metrics::install()?,
        requests,
        options,
    });

    if let Some(samples) = opened.samples {
        spawn_local(run_samples(samples, state.clone()));
    }
    let (commands, command_receiver) = mpsc::unbounded_channel();
    let mut supervision = spawn_local(run_supervision(Setup {
        state: state.clone(),
        init: control,
        cgroups: Cgroups::discover(&state.options.instance),
        addresses,
        links: (links, link_news),
        commands: command_receiver,
        requests: request_receiver,
    }));
    let (batch_sender, mut batches) = mpsc::channel(BATCH_BACKLOG);
    let (stop_status, is_stopping) = watch::channel(false);
    let (source, status) = find_source(&state, client, is_stopping);
    let mut source = spawn_local(source.run(batch_sender));
    let (told, status) = status.map(|(told, setup)| (told, spawn_local(status::run(setup)))).unzip();
    let (wanted_names, wanted_receiver) = mpsc::unbounded_channel();
    let (resolved_sender, mut resolved) = mpsc::unbounded_channel();
    spawn_local(resolver::run(wanted_receiver, resolved_sender));
    let mut admin = spawn_local(admin::serve(state.clone()));

    let flow = Flow { state: state.clone(), commands, wanted_names, told: told.unwrap_or_default() };
    let mut stops = 0;
    loop {
        tokio::select! {
            Some(batch) = batches.recv() => {
                let mut burst = vec![batch];
                while let Ok(batch) = batches.try_recv() {
                    burst.push(batch);
                }
                flow.take_batches(burst);
            }
            Some(resolved) = resolved.recv() => flow.take_resolved(resolved),
            ended = &mut source => {
                let error = ended.context("the source's task failed")?.err();
                let reason = error.map_or("it ended".to_owned(), |error| error.to_string());
                error!("--source: {reason}");
                return Ok(ExitCode::from(EXIT_REFUSED));
            }
            ended = &mut admin => {
                if let Err(error) = ended.context("the admin server's task failed")? {
                    error!("{error:#}");
                }
                return Ok(ExitCode::from(EXIT_REFUSED));
            }
            ended = &mut supervision => return finish(&state, ended.context("supervision failed")?),
            Some(()) = stop.recv() => {
                stops += 1;
                stop_status.send_replace(true);
                info!("{}", if stops == 1 { "stopping: workers finish their connections" } else { "stopping at once" });
                let _ = flow.commands.send(if stops == 1 { Command::Stop } else { Command::StopNow });
            }
            Some(()) = restart.recv() => {
                // Workers, maps, programs and sockets stay for the next agent, as after a crash.
                info!("ending for the next agent");
                stop_status.send_replace(true);
                if let Some(status) = status {
                    let _ = timeout(STATUS_PATIENCE, status).await;
                }
                return Ok(ExitCode::SUCCESS);
            }
        }
    }
}

/// Supervision has ended: with an orderly stop nothing is left in the kernel.
fn finish(state: &State, outcome: Result<(), SuperviseError>) -> anyhow::Result<ExitCode> {
    outcome?;
    if state.kernel.borrow().is_on() {
        let options = &state.options;
        tidegate_kernel::detach_all(&options.bpffs, &options.instance).context("cannot remove the BPF pins")?;
    }
    info!("stopped");
    Ok(ExitCode::SUCCESS)
}

/// The way of a change from the source to supervision.
struct Flow {
    state: Rc<State>,
    commands: mpsc::UnboundedSender<Command>,
    wanted_names: mpsc::UnboundedSender<std::collections::BTreeSet<String>>,
    /// Who wants to know about which objects something else is said now.
    told: Vec<mpsc::UnboundedSender<Vec<ObjectRef>>>,
}

impl Flow {
    fn take_batches(&self, batches: Vec<source::Batch>) {
        let changed = batches.iter().map(|batch| batch.changed).min().unwrap_or_else(Instant::now);
        let mut events = Vec::new();
        for batch in batches {
            if let Some(facts) = batch.facts {
                self.take_facts(*facts, changed);
            }
            for (gateway, addresses) in batch.addresses {
                self.state.translator.borrow_mut().set_said_addresses(&gateway, addresses);
            }
            let mut status = self.state.source.borrow_mut();
            // Sorted: each problem is logged once, when it appears.
            for problem in batch.status.problems.iter().filter(|one| status.problems.binary_search(one).is_err()) {
                warn!("{problem}");
            }
            *status = batch.status;
            events.extend(batch.events);
        }
        let changes = self.state.translator.borrow_mut().apply(events);
        self.pass_on(changes, changed);
        self.state.is_source_synced.set(true);
        let wanted = self.state.translator.borrow().hostnames_wanted();
        self.state.resolved.borrow_mut().retain(|name, _| wanted.contains(name));
        let _ = self.wanted_names.send(wanted);
    }

    fn take_facts(&self, facts: Facts, changed: Instant) {
        let changes = self.state.translator.borrow_mut().set_settings(settings(&self.state.options, Some(&facts)));
        *self.state.facts.borrow_mut() = facts;
        // Before the first batch there is no object that settings could mean anything to.
        if self.state.is_source_synced.get() {
            self.pass_on(changes, changed);
        }
    }

    fn take_resolved(&self, resolved: resolver::Resolved) {
        if let Some(error) = &resolved.error {
            warn!(name = resolved.name, "cannot be resolved, its last addresses stay: {error}");
        }
        let changes = self.state.translator.borrow_mut().set_resolved(&resolved.name, resolved.addresses.clone());
        self.state.resolved.borrow_mut().insert(resolved.name.clone(), resolved);
        self.pass_on(changes, Instant::now());
    }

    fn pass_on(&self, changes: Changes, changed: Instant) {
        for told in self.told.iter().filter(|_| !changes.statuses.is_empty()) {
            let _ = told.send(changes.statuses.clone());
        }
        let translator = self.state.translator.borrow();
        let change_of = |(name, change): (DomainName, tidegate_gateway_api::DomainChange)| {
            let model = match change.event {
                DomainEvent::Removed => None,
                _ => translator.model(&name),
            };
            let Some(model) = model else { return DomainChange::Remove(name) };
            let delta = match (change.event, change.delta) {
                (DomainEvent::New(_), _) => model.to_full_delta(),
                (_, Some(delta)) => delta,
                (_, None) => Delta { generation: model.generation, is_full: false, changes: Vec::new() },
            };
            DomainChange::Put(Arc::clone(&model.domain), delta)
        };
        let changes: Vec<DomainChange> = changes.domains.into_iter().map(change_of).collect();
        // The first one counts even when it is empty: it says that there is nothing.
        if !changes.is_empty() || !self.state.is_source_synced.get() {
            let _ = self.commands.send(Command::Apply { changes, changed });
        }
    }
}

/// Makes the client that the source needs, if it does.
async fn connect(source: &SourceOption) -> Result<Option<Client>, ConnectError> {
    match source {
        SourceOption::Directory(_) => Ok(None),
        SourceOption::Kube(context) => Ok(Some(kube::connect(context.as_deref()).await?)),
    }
}

/// Who is told about changed statuses, and what writes them.
type StatusPart = (Vec<mpsc::UnboundedSender<Vec<ObjectRef>>>, status::Setup);

/// The source, and what goes with it: a cluster is told what became of its objects, a folder is not.
fn find_source(state: &Rc<State>, client: Option<Client>, stop: watch::Receiver<bool>) -> (Source, Option<StatusPart>) {
    let Some(client) = client else {
        let SourceOption::Directory(folder) = &state.options.source else {
            unreachable!("`connect` makes a client for a cluster")
        };
        return (Source::Directory(folder.clone()), None);
    };
    let (seen, seen_receiver) = mpsc::unbounded_channel();
    let (to_report, reporter) = mpsc::unbounded_channel();
    let (to_write, writer) = mpsc::unbounded_channel();
    let (to_infrastructure, infrastructure) = mpsc::unbounded_channel();
    let source = source::kube::Setup {
        client: client.clone(),
        node: state.node.clone(),
        controller_names: state.options.controllers(),
        patience: source::kube::REFUSAL_PATIENCE,
        seen: Some(seen),
    };
    let changed = [reporter, writer, infrastructure];
    let status = status::Setup { state: state.clone(), client, seen: seen_receiver, changed, stop };
    (Source::Kube(Box::new(source)), Some((vec![to_report, to_write, to_infrastructure], status)))
}

fn settings(options: &RunOptions, facts: Option<&Facts>) -> Settings {
    let node = facts.and_then(|facts| facts.node.clone()).unwrap_or_default();
    Settings {
        controller_names: options.controllers(),
        node_name: options.node_name(),
        node_addresses: [&options.node_addresses, &node.addresses]
            .into_iter()
            .find(|addresses| !addresses.is_empty())
            .cloned()
            .unwrap_or_else(own_addresses),
        node_labels: node.labels,
        // A folder of files says nothing of nodes, and whoever wrote it has written all of it.
        reports_missing_parents: matches!(options.source, SourceOption::Directory(_)),
        unknown_release: facts.and_then(|facts| facts.unknown_release.clone()),
    }
}

/// The first IPv4 and the first IPv6 address of this host that others can reach.
fn own_addresses() -> Vec<IpAddr> {
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses: Vec<IpAddr> = interfaces
        .filter_map(|interface| interface.address)
        .filter_map(|address| {
            let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        })
        .filter(|address| match address {
            IpAddr::V4(address) => !address.is_loopback() && !address.is_link_local(),
            IpAddr::V6(address) => !address.is_loopback() && !address.is_unicast_link_local(),
        })
        .collect();
    let first = |is_v4: bool| addresses.iter().find(|address| address.is_ipv4() == is_v4).copied();
    first(true).into_iter().chain(first(false)).collect()
}

/// Reads sampled verdicts, notes their sources and gives them to whoever follows them.
async fn run_samples(mut samples: Samples, state: Rc<State>) {
    let watched = samples.as_fd().try_clone_to_owned().and_then(sys::watch);
    let ready = match watched {
        Ok(ready) => ready,
        Err(error) => return warn!("sampled verdicts cannot be read: {error}"),
    };
    loop {
        let Ok(mut guard) = ready.readable().await else { return };
        let is_more = samples.drain(SAMPLES_AT_ONCE, |sample| {
            state.sources.borrow_mut().push(&sample);
            // Without a reader the send fails, which is as it should be.
            let _ = state.samples.send(sample);
        });
        if !is_more {
            guard.clear_ready();
        }
        tokio::task::yield_now().await;
    }
}
