//! The control channel: messages of the agent in, answers out. Blocking, on the main thread; no request waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    time::Duration,
};

use tidegate_model::{
    Delta, Generation,
    codec::{self, CodecError, Decoder},
    control::{FromWorker, Listening, PROTOCOL, SocketRole, ToWorker},
};

use super::{
    shard::{Command, ShardHandle},
    sys,
};
use crate::stats::Snapshot;

/// How long a shard may take to answer. It answers between two requests; a whole model of 100,000 routes takes seconds.
const SHARD_ANSWER: Duration = Duration::from_secs(60);

/// How long connections may take to end when nobody is left to speak to the worker.
const ORPHAN_DRAIN: Duration = Duration::from_secs(5);

/// Why the control channel failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The socket failed.
    #[error("socket: {0}")]
    Socket(#[from] io::Error),
    /// A message cannot be encoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A shard's thread has ended or does not answer.
    #[error("a shard does not answer")]
    Shard,
}

/// The worker's end of the control channel.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
    shards: Vec<ShardHandle>,
    decoder: Decoder,
    /// Descriptors that came with the packets of the message under way.
    received: Vec<OwnedFd>,
    listening: BTreeSet<Listening>,
    labels: BTreeMap<String, String>,
    generation: Generation,
}

impl Control {
    /// A channel for these shards.
    pub fn new(socket: OwnedFd, shards: Vec<ShardHandle>) -> Self {
        Self {
            socket,
            shards,
            decoder: Decoder::default(),
            received: Vec::new(),
            listening: BTreeSet::new(),
            labels: BTreeMap::new(),
            generation: Generation::default(),
        }
    }

    /// Serves the agent until the worker has drained.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub fn run(mut self) -> Result<(), ControlError> {
        let mut packet = vec![0; codec::MAX_PACKET];
        loop {
            let (len, mut descriptors) = match sys::receive(self.socket.as_fd(), &mut packet) {
                Ok(received) => received,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The agent that wrote died with data unread; the next one comes over the same pair.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => continue,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    tracing::error!(%error, "message of the agent dropped");
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            if len == 0 {
                tracing::warn!("control channel has ended: draining");
                return self.drain(ORPHAN_DRAIN);
            }
            if packet[0] & codec::FIRST != 0 {
                self.received.clear();
            }
            self.received.append(&mut descriptors);
            match self.decoder.push_packet(&packet[..len]) {
                Ok(None) => {}
                Ok(Some(ToWorker::Drain { deadline_ms })) => return self.drain(Duration::from_millis(deadline_ms)),
                Ok(Some(message)) => self.take(message)?,
                // An agent of another version: it learns so from the answer to its Hello.
                Err(error) => tracing::error!(%error, "message of the agent dropped"),
            }
        }
    }

    fn take(&mut self, message: ToWorker) -> Result<(), ControlError> {
        match message {
            ToWorker::Hello { .. } => self.send(&FromWorker::Hello {
                protocol: PROTOCOL,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                pid: std::process::id(),
                generation: self.generation,
                listening: self.listening.iter().copied().collect(),
            }),
            ToWorker::Configure(settings) => {
                self.labels = settings.labels.clone();
                let settings = Arc::new(settings);
                self.tell_all(|| Command::Configure(settings.clone()))
            }
            ToWorker::Listen { sockets } => self.listen(sockets),
            ToWorker::Unlisten { sockets } => {
                for socket in sockets {
                    self.listening.remove(&socket);
                    self.tell(socket.shard, Command::Unlisten(socket.role))?;
                }
                Ok(())
            }
            ToWorker::Apply(delta) => self.apply(delta),
            ToWorker::Scrape { id } => self.scrape(id),
            ToWorker::Ping => {
                self.ask_all(Command::Ping)?.collect::<Result<(), _>>()?;
                self.send(&FromWorker::Pong)
            }
            ToWorker::Drain { .. } => unreachable!("taken by the loop"),
        }
    }

    fn listen(&mut self, sockets: Vec<Listening>) -> Result<(), ControlError> {
        let descriptors = std::mem::take(&mut self.received);
        if descriptors.len() != sockets.len() {
            tracing::error!(
                named = sockets.len(),
                received = descriptors.len(),
                "sockets and descriptors do not match: none is listened on"
            );
            return Ok(());
        }
        for (socket, descriptor) in sockets.into_iter().zip(descriptors) {
            if usize::from(socket.shard) >= self.shards.len() {
                tracing::error!(shard = socket.shard, "there is no such shard: its socket is closed");
                continue;
            }
            if let SocketRole::Steered { transport: tidegate_model::Transport::Udp, .. } = socket.role {
                tracing::error!("UDP frontends have sockets of their own: the socket is closed");
                continue;
            }
            self.listening.insert(socket);
            self.tell(socket.shard, Command::Listen(socket.role, descriptor))?;
        }
        Ok(())
    }

    fn apply(&mut self, delta: Delta) -> Result<(), ControlError> {
        let generation = delta.generation;
        let delta = Arc::new(delta);
        // Every shard finds the same failures.
        let mut failures = Vec::new();
        for answer in self.ask_all(|answer| Command::Apply(delta.clone(), answer))? {
            failures = answer?;
        }
        self.generation = generation;
        self.send(&FromWorker::Applied { generation, failures })
    }

    fn scrape(&self, id: u64) -> Result<(), ControlError> {
        let mut sum = Snapshot::default();
        for answer in self.ask_all(Command::Scrape)? {
            sum.add(answer?);
        }
        let mut result = Ok(());
        sum.render(&self.labels, &mut |text, is_last| {
            if result.is_ok() {
                result = self.send(&FromWorker::Metrics { id, text, is_last });
            }
        });
        result
    }

    fn drain(mut self, limit: Duration) -> Result<(), ControlError> {
        self.tell_all(|| Command::Drain(limit))?;
        for shard in std::mem::take(&mut self.shards) {
            drop(shard.commands);
            shard.thread.join().map_err(|_| ControlError::Shard)?;
        }
        // Whoever asked may be gone by now.
        let _ = self.send(&FromWorker::Drained);
        Ok(())
    }

    /// Asks every shard at once; gives their answers as they come.
    fn ask_all<T>(
        &self,
        command: impl Fn(mpsc::Sender<T>) -> Command,
    ) -> Result<impl Iterator<Item = Result<T, ControlError>>, ControlError> {
        let (answer, answers) = mpsc::channel();
        self.tell_all(|| command(answer.clone()))?;
        let receive = move |_| answers.recv_timeout(SHARD_ANSWER).map_err(|_| ControlError::Shard);
        Ok(self.shards.iter().map(receive))
    }

    fn tell_all(&self, command: impl Fn() -> Command) -> Result<(), ControlError> {
        self.shards.iter().try_for_each(|shard| shard.commands.send(command()).map_err(|_| ControlError::Shard))
    }

    fn tell(&self, shard: u16, command: Command) -> Result<(), ControlError> {
        match self.shards.get(usize::from(shard)) {
            Some(shard) => shard.commands.send(command).map_err(|_| ControlError::Shard),
            None => Ok(()),
        }
    }

    fn send(&self, message: &FromWorker) -> Result<(), ControlError> {
        for packet in codec::encode(message)? {
            match sys::send(self.socket.as_fd(), &packet) {
                Ok(()) => {}
                // The agent is gone; the next one asks anew.
                Err(error) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
                    return Ok(());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
