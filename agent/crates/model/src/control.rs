//! Messages between the agent and a worker, and between the agent and init.
//!
//! Both run over `SOCK_SEQPACKET` socket pairs whose agent side init keeps, so a message is either whole or absent when
//! one side dies, and the next agent goes on where the last one stopped. [`PROTOCOL`] tells two versions apart: an agent
//! that adopts a worker of another protocol replaces it.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Delta, FrontendKey, Generation, Key, Transport};

/// Version of everything in this module and in the model as it stands on the wire.
pub const PROTOCOL: u32 = 5;

/// From the agent to a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToWorker {
    /// First message of each agent. The worker answers [`FromWorker::Hello`].
    Hello {
        /// [`PROTOCOL`] of the agent.
        protocol: u32,
    },
    /// Settings; first once after the first `Hello`, later whenever they change.
    Configure(Settings),
    /// Listening sockets, in the order of the file descriptors that come with the message.
    Listen {
        /// What each socket is.
        sockets: Vec<Listening>,
    },
    /// Stop accepting on these sockets and close them.
    Unlisten {
        /// Sockets given earlier.
        sockets: Vec<Listening>,
    },
    /// A change of the model. The worker answers [`FromWorker::Applied`].
    Apply(Delta),
    /// Asks for the worker's metrics. The worker answers with [`FromWorker::Metrics`], as many as it takes.
    Scrape {
        /// Comes back in the answer.
        id: u64,
    },
    /// Asks for a sign of life of every shard. The worker answers [`FromWorker::Pong`].
    Ping,
    /// Stop accepting, finish what runs, then exit.
    Drain {
        /// Connections still open after this time are closed, in milliseconds.
        deadline_ms: u64,
    },
}

/// From a worker to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromWorker {
    /// Answer to [`ToWorker::Hello`].
    Hello {
        /// [`PROTOCOL`] of the worker.
        protocol: u32,
        /// Version of the program.
        version: String,
        /// Process id.
        pid: u32,
        /// Generation that is being served; 0 when the worker is new and knows nothing.
        generation: Generation,
        /// Sockets that it listens on.
        listening: Vec<Listening>,
    },
    /// A delta is in force on every shard. New requests see it.
    Applied {
        /// Generation of the delta.
        generation: Generation,
        /// Resources that could not be used and why; everything else is in force.
        failures: Vec<(Key, String)>,
    },
    /// A piece of the answer to [`ToWorker::Scrape`]: the text of thousands of routes is nowhere held as a whole for it.
    Metrics {
        /// From the question.
        id: u64,
        /// Whole lines in Prometheus' text exposition format, the domain's labels on every series.
        text: String,
        /// Whether no other piece follows.
        is_last: bool,
    },
    /// Answer to [`ToWorker::Ping`]: every shard takes commands.
    Pong,
    /// Draining has ended; the worker exits.
    Drained,
}

/// A listening socket of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Listening {
    /// Shard that accepts on it.
    pub shard: u16,
    /// What it receives.
    pub role: SocketRole,
}

/// What a listening socket receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SocketRole {
    /// Everything that `steer` gives the domain over this address family. A connection's own local address says which
    /// frontend it is for; one whose local address is no frontend did not come through admission and is closed.
    Steered {
        /// Transport protocol.
        transport: Transport,
        /// Address family: IPv6 or IPv4.
        is_v6: bool,
    },
    /// One frontend: every one with `--kernel=off`, and those of UDP in any case, since `steer` cannot choose the source port
    /// of an answer.
    Bound(FrontendKey),
}

/// What a worker is told about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Labels for every metric and access-log line.
    pub labels: BTreeMap<String, String>,
    /// Whether the access log is written (JSON lines on standard output).
    pub access_log: bool,
}

/// From the agent to init.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToInit {
    /// Keep the file descriptor that comes with the message under this name and give it to the next agent.
    Keep {
        /// Unique; a descriptor kept under the same name is replaced.
        name: String,
    },
    /// Close a kept descriptor.
    Drop {
        /// Name of [`ToInit::Keep`].
        name: String,
    },
    /// Start a worker with the descriptor that comes with the message as its control socket (its fd 3).
    Spawn(Spawn),
    /// Send a signal to a worker that init has started.
    Kill {
        /// Name of [`Spawn`].
        name: String,
        /// Signal number.
        signal: i32,
    },
}

/// A worker to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spawn {
    /// Unique name of the process, e.g. `public.3`.
    pub name: String,
    /// Domain, for `ps`.
    pub domain: String,
    /// User id to run as; `None` keeps the caller's (not root, `--kernel=off`).
    pub uid: Option<u32>,
    /// Group id to run as.
    pub gid: Option<u32>,
    /// `cgroup.procs` files to enter before anything else runs.
    pub cgroups: Vec<PathBuf>,
    /// Shards to run.
    pub shards: u16,
    /// Cores to pin the shards to, in order, reused when there are fewer cores than shards. Empty: not pinned.
    pub cores: Vec<u16>,
}

/// From init to the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromInit {
    /// At start: a kept descriptor (comes with the message).
    Kept {
        /// Name of [`ToInit::Keep`].
        name: String,
    },
    /// At start: a worker that runs.
    Running {
        /// Name of [`Spawn`].
        name: String,
        /// Process id.
        pid: u32,
    },
    /// At start: nothing more is handed over.
    Ready,
    /// A worker was started.
    Started {
        /// Name of [`Spawn`].
        name: String,
        /// Process id.
        pid: u32,
    },
    /// A worker could not be started.
    Failed {
        /// Name of [`Spawn`].
        name: String,
        /// Why.
        error: String,
    },
    /// A worker has ended.
    Exited {
        /// Name of [`Spawn`].
        name: String,
        /// Exit code, or the negative number of the signal that ended it.
        status: i32,
    },
    /// At start: a worker that runs under an init which is about to end. It serves until another one has taken its place.
    Leaving {
        /// Name of [`Spawn`].
        name: String,
        /// Process id, where that init sees it.
        pid: u32,
    },
}
