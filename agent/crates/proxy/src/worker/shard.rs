//! A shard's thread: one runtime, one set of tables, and the commands that change them.

use std::{
    collections::HashMap,
    io,
    net::TcpListener,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use tidegate_model::{
    Delta, FrontendKey, Transport,
    control::{Settings, SocketRole},
};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::{JoinHandle, LocalSet},
    time::{Instant, MissedTickBehavior, interval},
};

use super::sys;
use crate::{
    access_log::{self, LogBuffer, LogSender},
    certificates::TlsContext,
    datagram::{self, FrontendSocket},
    downstream::accept,
    shard::{Limits, Shard},
    stats::Snapshot,
    tables::{Failures, Tables},
    timeouts,
};

/// Part of the open-file limit that clients may use, in percent; the rest is for connections to endpoints. Clients that
/// idle cost only one descriptor, so they get most.
const CLIENT_SHARE: usize = 85;

/// What the control thread asks of a shard.
#[derive(Debug)]
pub enum Command {
    /// Takes settings.
    Configure(Arc<Settings>),
    /// Accepts on a socket.
    Listen(SocketRole, OwnedFd),
    /// Stops accepting on a socket and closes it.
    Unlisten(SocketRole),
    /// Applies a delta; answers what could not be used.
    Apply(Arc<Delta>, mpsc::Sender<Failures>),
    /// Answers the counters.
    Scrape(mpsc::Sender<Snapshot>),
    /// Answers.
    Ping(mpsc::Sender<()>),
    /// Stops accepting, finishes what runs within the time, and ends.
    Drain(Duration),
}

/// A running shard.
#[derive(Debug)]
pub struct ShardHandle {
    /// Takes commands.
    pub commands: UnboundedSender<Command>,
    /// Ends after [`Command::Drain`].
    pub thread: thread::JoinHandle<()>,
}

/// What a shard needs to start.
#[derive(Debug)]
pub struct Start {
    /// Its number.
    pub index: u16,
    /// Core to pin it to.
    pub core: Option<u16>,
    /// TLS of the worker.
    pub tls: TlsContext,
    /// The access log's writer.
    pub log: LogSender,
    /// How much it serves at once.
    pub limits: Limits,
}

/// How much one shard of a worker serves at once, by the worker's limit of open files.
pub fn limits(files: usize, shards: u16) -> Limits {
    Limits {
        clients: (files / 100 * CLIENT_SHARE / usize::from(shards)).max(1),
        sessions: datagram::session_limit(files, shards),
    }
}

/// Starts a shard's thread.
///
/// # Errors
/// The system's, when there can be no thread or no runtime.
pub fn start(start: Start) -> io::Result<ShardHandle> {
    let (commands, receiver) = unbounded_channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let thread = thread::Builder::new().name(format!("shard-{}", start.index)).spawn(move || {
        if let Some(core) = start.core
            && let Err(error) = sys::pin_thread(core)
        {
            tracing::warn!(shard = start.index, core, %error, "shard is not pinned");
        }
        let shard = Shard::new(Tables::new(start.tls), LogBuffer::new(start.log), start.limits);
        LocalSet::new().block_on(&runtime, run(shard, receiver));
    })?;
    Ok(ShardHandle { commands, thread })
}

async fn run(shard: Rc<Shard>, mut commands: UnboundedReceiver<Command>) {
    let mut listening = HashMap::<SocketRole, JoinHandle<()>>::new();
    let housekeeping = tokio::task::spawn_local(keep_house(shard.clone()));
    while let Some(command) = commands.recv().await {
        match command {
            Command::Configure(settings) => shard.log.configure(&settings),
            Command::Listen(role, socket) => match listen(&shard, role, socket) {
                Ok(task) => {
                    if let Some(old) = listening.insert(role, task) {
                        stop(old).await;
                    }
                }
                Err(error) => tracing::error!(?role, %error, "socket cannot be listened on"),
            },
            Command::Unlisten(role) => {
                if let Some(task) = listening.remove(&role) {
                    stop(task).await;
                    if let SocketRole::Bound(key) = role {
                        shard.datagrams.close(&shard, key);
                    }
                }
            }
            Command::Apply(delta, answer) => {
                let failures = shard.tables.borrow_mut().apply(&delta);
                // The control thread waits for it unless the worker ends.
                let _ = answer.send(failures);
            }
            Command::Scrape(answer) => {
                let mut counts = shard.tables.borrow().snapshot();
                counts.log_lines_dropped = shard.log.dropped();
                let overrun = shard.datagrams.count_overrun();
                if overrun > 0 {
                    counts.datagrams.dropped.insert("receive_queue", overrun);
                }
                let _ = answer.send(counts);
            }
            Command::Ping(answer) => {
                let _ = answer.send(());
            }
            Command::Drain(limit) => {
                for (_, task) in listening.drain() {
                    stop(task).await;
                }
                drain(&shard, limit).await;
                break;
            }
        }
    }
    housekeeping.abort();
    shard.pool.clear();
    shard.datagrams.clear(&shard);
    shard.log.flush();
}

fn listen(shard: &Rc<Shard>, role: SocketRole, socket: OwnedFd) -> io::Result<JoinHandle<()>> {
    if let SocketRole::Bound(key @ FrontendKey { transport: Transport::Udp, .. }) = role {
        let frontend = FrontendSocket::new(key, socket)?;
        shard.datagrams.open(frontend.clone());
        return Ok(tokio::task::spawn_local(datagram::frontend::run(shard.clone(), frontend)));
    }
    let listener = TcpListener::from(socket);
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    Ok(tokio::task::spawn_local(accept::run(shard.clone(), listener, role)))
}

/// Ends a loop that accepts or receives; the socket of one that accepts is closed when this returns.
async fn stop(task: JoinHandle<()>) {
    task.abort();
    // Aborted is what it is meant to be.
    let _ = task.await;
}

/// Waits for the connections to end; those that take longer end with the thread.
async fn drain(shard: &Rc<Shard>, limit: Duration) {
    shard.connections.drain();
    shard.datagrams.drain();
    let ended = std::future::poll_fn(|cx| shard.connections.poll_empty(cx));
    if tokio::time::timeout_at(Instant::now() + limit, ended).await.is_err() {
        tracing::info!(connections = shard.connections.len(), "drain took too long: connections are closed");
    }
}

async fn keep_house(shard: Rc<Shard>) {
    let mut sweep = interval(timeouts::UPSTREAM_SWEEP);
    let mut flush = interval(access_log::FLUSH_EVERY);
    let mut sessions = interval(timeouts::DATAGRAM_SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    flush.set_missed_tick_behavior(MissedTickBehavior::Delay);
    sessions.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = sweep.tick() => shard.pool.sweep(),
            _ = sessions.tick() => shard.datagrams.sweep(&shard, std::time::Instant::now()),
            _ = flush.tick(), if shard.log.is_on() => shard.log.flush(),
        }
    }
}
