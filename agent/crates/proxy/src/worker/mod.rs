//! The worker process: sandbox, shards, and the control channel to the agent.
//!
//! The main thread only listens to the agent. The agent may die and come back at any time: the worker serves on. When the
//! control channel itself ends, nobody can speak to the worker any more (init is gone) and it drains.

pub mod control;
pub mod sandbox;
pub mod shard;
mod sys;

use std::os::fd::OwnedFd;

use tidegate_model::DomainName;

use crate::certificates;

/// How a worker is run.
#[derive(Debug)]
pub struct WorkerConfig {
    /// Domain that it serves, for logs.
    pub domain: DomainName,
    /// Shards to run; at least one.
    pub shards: u16,
    /// Cores to pin shards to, in order, reused when there are fewer than shards. Empty: not pinned.
    pub cores: Vec<u16>,
    /// `SOCK_SEQPACKET` socket to the agent.
    pub control: OwnedFd,
    /// What is taken from the process before it serves.
    pub sandbox: sandbox::Sandbox,
}

/// Why a worker cannot run.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The sandbox cannot be closed.
    #[error(transparent)]
    Sandbox(#[from] sandbox::SandboxError),
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// TLS cannot be used.
    #[error("cannot make TLS keys: {0}")]
    Tls(#[from] rustls::Error),
    /// The control channel failed.
    #[error("control channel: {0}")]
    Control(#[from] control::ControlError),
}

/// Runs a worker until it has drained or its control channel has ended.
///
/// # Errors
/// See [`WorkerError`].
pub fn run_worker(config: WorkerConfig) -> Result<(), WorkerError> {
    let file_limit = sandbox::raise_file_limit();
    // Read before the sandbox closes, which lists no folders. Backends that public authorities vouch for are rare, but
    // there is no other moment.
    let authorities = certificates::load_system_authorities();
    config.sandbox.close()?;
    let tls = certificates::TlsContext::new()?.with_system_authorities(&authorities);
    drop(authorities);
    let (log, writer) = crate::access_log::start_writer(std::io::stdout()).map_err(WorkerError::Thread)?;
    let count = config.shards.max(1);
    let limits = shard::limits(file_limit, count);
    let shards = (0..count)
        .map(|index| {
            let core = config.cores.get(usize::from(index) % config.cores.len().max(1)).copied();
            shard::start(shard::Start { index, core, tls: tls.clone(), log: log.clone(), limits })
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(WorkerError::Thread)?;
    drop(log);
    let result = control::Control::new(config.control, shards).run();
    if writer.join().is_err() {
        tracing::error!("the access log's writer panicked");
    }
    result.map_err(WorkerError::Control)
}
