//! One worker process as the agent sees it: its name, its control channel and what it has said.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use tidegate_model::{
    Delta, Generation, codec,
    control::{FromWorker, Listening, PROTOCOL, Settings, Spawn, ToInit, ToWorker},
};
use tokio::sync::oneshot;
use tracing::warn;

use crate::{
    control::{self, AsyncChannel, ChannelError},
    state::Pieces,
};

use super::{
    handover::{KeptName, WorkerName},
    init_link::InitLink,
    sockets::Sockets,
};

/// Sockets in one message: below the kernel's limit of 253 descriptors (`SCM_MAX_FD`).
const SOCKETS_PER_MESSAGE: usize = 128;

/// Time beyond its deadline in which a draining worker can end by itself.
const DRAIN_MARGIN: Duration = Duration::from_secs(2);

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Was greeted; has not answered, or not applied its first model.
    Starting,
    /// Serves the newest model.
    Serving,
    /// Serves on until its successor does.
    Superseded,
    /// Finishes its connections; is killed at this time.
    Draining(Instant),
}

/// One worker process.
pub(super) struct Worker {
    /// Its name.
    pub(super) name: WorkerName,
    /// Its process id, once init has told it.
    pub(super) pid: Option<u32>,
    /// What it is doing.
    pub(super) phase: Phase,
    /// Sockets it listens on.
    pub(super) listening: BTreeSet<Listening>,
    /// Whether it has answered the greeting.
    pub(super) has_answered: bool,
    /// Since when it owes an answer to anything: it does one thing after the other, so any answer shows that it lives.
    pub(super) owes_since: Option<Instant>,
    spawned_shards: Option<u16>,
    channel: AsyncChannel,
    is_open: bool,
    scrapes: BTreeMap<u64, Scrape>,
    last_scrape: u64,
}

/// A scrape that is not answered wholly yet.
struct Scrape {
    pieces: Pieces,
    /// Bytes that the pieces take.
    length: usize,
    answer: oneshot::Sender<Pieces>,
}

/// What [`Worker::next`] reports; the rest it handles itself.
#[derive(Debug)]
pub(super) enum WorkerNews {
    /// It answers the greeting and can be used.
    Hello {
        /// Generation that it serves.
        generation: Generation,
    },
    /// It speaks another protocol and must be replaced.
    Foreign,
    /// It has applied a generation.
    Applied {
        /// The generation.
        generation: Generation,
        /// What it could not use.
        failures: Vec<(tidegate_model::Key, String)>,
    },
    /// Its channel is gone: it has ended or will be killed.
    Gone,
}

impl Worker {
    /// Asks init for a new worker and greets it. Init keeps our end of its control channel from before it starts.
    pub(super) fn spawn(name: WorkerName, spawn: Spawn, init: &InitLink, now: Instant) -> io::Result<Self> {
        let (ours, theirs) = control::pair()?;
        let kept = KeptName::Control(name.clone()).to_string();
        init.send(ToInit::Keep { name: kept }, vec![ours.try_clone()?]);
        let shards = Some(spawn.shards);
        init.send(ToInit::Spawn(spawn), vec![theirs]);
        Self::greet(name, ours, None, shards, now)
    }

    /// Takes over a worker that an earlier agent has started.
    pub(super) fn adopt(name: WorkerName, pid: u32, control: OwnedFd, now: Instant) -> io::Result<Self> {
        Self::greet(name, control, Some(pid), None, now)
    }

    fn greet(
        name: WorkerName,
        control: OwnedFd,
        pid: Option<u32>,
        shards: Option<u16>,
        now: Instant,
    ) -> io::Result<Self> {
        let mut worker = Self {
            name,
            pid,
            phase: Phase::Starting,
            spawned_shards: shards,
            listening: BTreeSet::new(),
            has_answered: false,
            owes_since: Some(now),
            channel: AsyncChannel::new(control)?,
            is_open: true,
            scrapes: BTreeMap::new(),
            last_scrape: 0,
        };
        worker.push(&ToWorker::Hello { protocol: PROTOCOL }, Vec::new());
        Ok(worker)
    }

    /// Whether it is, or is about to be, the one that serves new connections.
    pub(super) fn is_current(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Serving)
    }

    /// Number of its shards; that of a worker of an earlier agent is seen from its sockets, if it has any.
    pub(super) fn shards(&self) -> Option<u16> {
        self.spawned_shards.or_else(|| self.listening.iter().map(|listening| listening.shard + 1).max())
    }

    /// Queues a message.
    pub(super) fn push(&mut self, message: &ToWorker, descriptors: Vec<OwnedFd>) {
        if let Err(error) = self.channel.push(message, descriptors) {
            warn!(worker = %self.name, "cannot send to the worker: {error}");
        }
    }

    /// Sends settings.
    pub(super) fn configure(&mut self, settings: &Settings) {
        self.push(&ToWorker::Configure(settings.clone()), Vec::new());
    }

    /// Makes the worker listen on all sockets of its domain and on no others.
    pub(super) fn listen(&mut self, sockets: &Sockets) {
        let wanted = sockets.listening();
        let extra: Vec<Listening> = self.listening.difference(&wanted).copied().collect();
        self.unlisten(&extra);
        let missing: Vec<Listening> = wanted.difference(&self.listening).copied().collect();
        for part in missing.chunks(SOCKETS_PER_MESSAGE) {
            let (sockets, descriptors) = sockets.duplicate(part);
            self.listening.extend(&sockets);
            self.push(&ToWorker::Listen { sockets }, descriptors);
        }
    }

    /// Makes the worker close sockets.
    pub(super) fn unlisten(&mut self, sockets: &[Listening]) {
        let closed: Vec<Listening> = sockets.iter().copied().filter(|socket| self.listening.remove(socket)).collect();
        if !closed.is_empty() {
            self.push(&ToWorker::Unlisten { sockets: closed }, Vec::new());
        }
    }

    /// Tells the worker to finish; it is to be killed when the deadline is over.
    pub(super) fn drain(&mut self, deadline: Duration, now: Instant) {
        self.push(
            &ToWorker::Drain { deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX) },
            Vec::new(),
        );
        self.phase = Phase::Draining(now + deadline + DRAIN_MARGIN);
    }

    /// Asks for metrics. A worker that is gone drops the sender.
    pub(super) fn scrape(&mut self, answer: oneshot::Sender<Pieces>) {
        self.scrapes.retain(|_, waiting| !waiting.answer.is_closed());
        self.last_scrape += 1;
        self.scrapes.insert(self.last_scrape, Scrape { pieces: Pieces::new(), length: 0, answer });
        self.owes_since.get_or_insert_with(Instant::now);
        self.push(&ToWorker::Scrape { id: self.last_scrape }, Vec::new());
    }

    /// Asks for a sign of life.
    pub(super) fn ping(&mut self) {
        self.owes_since.get_or_insert_with(Instant::now);
        self.push(&ToWorker::Ping, Vec::new());
    }

    /// Takes a piece of an answer. Pieces that nobody waits for any more are dropped, and so is an answer without an end: a
    /// worker may be taken over.
    fn take_piece(&mut self, id: u64, text: String, is_last: bool) {
        let Some(mut scrape) = self.scrapes.remove(&id).filter(|scrape| !scrape.answer.is_closed()) else { return };
        scrape.length += text.len() + size_of::<String>();
        scrape.pieces.push(text);
        if is_last {
            let _ = scrape.answer.send(scrape.pieces);
        } else if scrape.length <= codec::MAX_MESSAGE {
            self.scrapes.insert(id, scrape);
        } else {
            warn!(worker = %self.name, "its metrics are longer than {} bytes: dropped", codec::MAX_MESSAGE);
        }
    }

    /// Sends a change of the model.
    pub(super) fn apply(&mut self, delta: Delta) {
        self.owes_since.get_or_insert_with(Instant::now);
        self.push(&ToWorker::Apply(delta), Vec::new());
    }

    /// Waits for news. Cancel-safe. Never returns after [`WorkerNews::Gone`].
    pub(super) async fn next(&mut self) -> WorkerNews {
        if !self.is_open {
            return std::future::pending().await;
        }
        loop {
            let message = match self.channel.next::<FromWorker>().await {
                Ok(Some((message, _))) => message,
                Ok(None) => {
                    self.is_open = false;
                    return WorkerNews::Gone;
                }
                Err(ChannelError::Codec(error)) if !self.has_answered => {
                    warn!(worker = %self.name, "its greeting cannot be read: {error}");
                    return WorkerNews::Foreign;
                }
                Err(error) => {
                    // A worker may be taken over: what it says is not trusted, and one that says nonsense is ended.
                    warn!(worker = %self.name, "its control channel failed: {error}");
                    self.is_open = false;
                    return WorkerNews::Gone;
                }
            };
            self.owes_since = None;
            match message {
                FromWorker::Hello { protocol, generation, listening, .. } => {
                    self.has_answered = true;
                    self.listening = listening.into_iter().collect();
                    return if protocol == PROTOCOL { WorkerNews::Hello { generation } } else { WorkerNews::Foreign };
                }
                // What it says before it has answered the greeting was meant for an earlier agent.
                FromWorker::Applied { .. } if !self.has_answered => {}
                FromWorker::Applied { generation, failures } => return WorkerNews::Applied { generation, failures },
                FromWorker::Metrics { id, text, is_last } => self.take_piece(id, text, is_last),
                FromWorker::Pong | FromWorker::Drained => {}
            }
        }
    }
}
