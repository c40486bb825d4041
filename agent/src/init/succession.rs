//! Succession: the init of a new pod, or service, takes over from the one that runs on this node, without a connection lost.
//!
//! The one that runs (the predecessor) has a door: a socket at a path that only root reaches. The new one (the successor) knocks;
//! the predecessor ends its agent, as for a restart, and hands over everything that an agent leaves to the next: descriptors,
//! workers, and the lock of the instance. It keeps its workers, which serve on, until the successor's agent has replaced
//! them. From then on it only waits to be stopped. A successor that goes away before has changed nothing: the predecessor
//! starts its agent again, with what it has been told of meanwhile.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        linux::net::SocketAddrExt,
        unix::{
            fs::PermissionsExt,
            net::{SocketAddr, UnixListener},
        },
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::Signal,
        signalfd::SignalFd,
        socket::{
            AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, socket,
            sockopt::PeerCredentials,
        },
    },
    unistd::geteuid,
};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::control::{Channel, ChannelError, Incoming};

/// Version of the two messages below. Inits of different versions do not succeed each other: the new one waits for the old.
const PROTOCOL: u32 = 1;

/// How long a new init waits for an instance that is taken: longer than an orderly stop takes, shorter than anybody's patience
/// with a pod that does not start.
const PATIENCE: Duration = Duration::from_secs(90);

/// How often it tries.
const RETRY: Duration = Duration::from_millis(200);

/// How long a predecessor may take to end its agent and hand over: that is 2 s at most, and then a killed agent.
const HANDING_OVER: Duration = Duration::from_secs(10);

/// Successors that may wait to be let in; the second one is refused.
const BACKLOG: i32 = 4;

/// From a successor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToPredecessor {
    /// First message.
    TakeOver {
        /// [`PROTOCOL`].
        protocol: u32,
    },
    /// The new agent has something more to keep (comes with the message), in case the predecessor must go on.
    Keep {
        /// Its name.
        name: String,
    },
    /// Close what is kept under this name.
    Drop {
        /// Its name.
        name: String,
    },
    /// Send a signal to a worker.
    Kill {
        /// Its name.
        name: String,
        /// Number of the signal.
        signal: i32,
    },
}

/// To a successor.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToSuccessor {
    /// Not now.
    Refused {
        /// Why.
        reason: String,
    },
    /// The lock of the instance (comes with the message).
    Lock,
    /// A kept descriptor (comes with the message).
    Kept {
        /// Its name.
        name: String,
    },
    /// A worker that runs.
    Running {
        /// Its name.
        name: String,
        /// Its process id as the predecessor sees it.
        pid: u32,
    },
    /// That was all; no agent runs any more.
    Ready,
    /// A worker has ended.
    Exited {
        /// Its name.
        name: String,
        /// Exit code, or the negative number of the signal that ended it.
        status: i32,
    },
}

/// How an init comes to its instance.
pub(super) enum Claim {
    /// Nobody else has it.
    First(UnixListener),
    /// Another init has handed it over.
    After(Box<Estate>),
    /// Another init has it, and does not hand it over.
    Refused(String),
    /// This init was told to stop meanwhile.
    Stopped,
}

/// What a predecessor hands over.
pub(super) struct Estate {
    /// The lock of the instance.
    pub(super) lock: UnixListener,
    /// Descriptors that agents keep.
    pub(super) kept: BTreeMap<String, OwnedFd>,
    /// The line to the predecessor.
    pub(super) predecessor: Predecessor,
}

/// Takes an instance: at once when it is free, from the init that has it when there is a door, and refused otherwise.
///
/// # Errors
/// When sockets cannot be made.
pub(super) fn claim(instance: &str, door: Option<&Path>, signals: &SignalFd) -> anyhow::Result<Claim> {
    let deadline = Instant::now() + PATIENCE;
    let mut said = String::new();
    loop {
        if let Some(lock) = lock_instance(instance)? {
            return Ok(Claim::First(lock));
        }
        let Some(door) = door else { return Ok(Claim::Refused("it does not hand over (no --handover)".to_owned())) };
        let reason = match knock(door, signals)? {
            Knock::Received(estate) => return Ok(Claim::After(estate)),
            Knock::Stopped => return Ok(Claim::Stopped),
            Knock::Nothing(reason) => reason,
        };
        if Instant::now() > deadline {
            return Ok(Claim::Refused(reason));
        }
        if reason != said {
            info!("the instance runs already and is not handed over yet: {reason}");
            said = reason;
        }
        if is_stopped(signals)? {
            return Ok(Claim::Stopped);
        }
        thread::sleep(RETRY);
    }
}

enum Knock {
    Received(Box<Estate>),
    Nothing(String),
    Stopped,
}

fn knock(door: &Path, signals: &SignalFd) -> anyhow::Result<Knock> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let stream = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).context("cannot make a socket")?;
    let address = UnixAddr::new(door).with_context(|| format!("--handover {}", door.display()))?;
    if let Err(error) = connect(stream.as_raw_fd(), &address) {
        return Ok(Knock::Nothing(format!("nobody answers at {}: {error}", door.display())));
    }
    let mut channel = Channel::new(stream);
    channel.push(&ToPredecessor::TakeOver { protocol: PROTOCOL }, Vec::new())?;
    let deadline = Instant::now() + HANDING_OVER;
    let (mut lock, mut kept, mut workers) = (None, BTreeMap::new(), BTreeMap::new());
    loop {
        let message = match channel.flush().and_then(|_| channel.receive::<ToSuccessor>()) {
            Ok(Incoming::Message(message, descriptors)) => Some((message, descriptors.into_iter().next())),
            Ok(Incoming::Nothing) => None,
            Ok(Incoming::Closed) => return Ok(Knock::Nothing("it ends".to_owned())),
            Err(error) => return Ok(Knock::Nothing(format!("it says what is not understood ({error})"))),
        };
        match message {
            Some((ToSuccessor::Refused { reason }, _)) => return Ok(Knock::Nothing(reason)),
            Some((ToSuccessor::Lock, descriptor)) => lock = descriptor.map(UnixListener::from),
            Some((ToSuccessor::Kept { name }, Some(descriptor))) => drop(kept.insert(name, descriptor)),
            Some((ToSuccessor::Running { name, pid }, _)) => drop(workers.insert(name, pid)),
            Some((ToSuccessor::Exited { name, .. }, _)) => drop(workers.remove(&name)),
            Some((ToSuccessor::Kept { name }, None)) => warn!("{name:?} was handed over without its descriptor"),
            Some((ToSuccessor::Ready, _)) => {
                let Some(lock) = lock else { return Ok(Knock::Nothing("it keeps the lock".to_owned())) };
                info!(descriptors = kept.len(), workers = workers.len(), "the instance was handed over");
                let predecessor = Predecessor { channel, workers };
                return Ok(Knock::Received(Box::new(Estate { lock, kept, predecessor })));
            }
            None => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(Knock::Nothing("it does not answer".to_owned()));
                }
                let mut wanted =
                    [PollFd::new(channel.as_fd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
                match poll(&mut wanted, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error).context("poll"),
                }
                if is_stopped(signals)? {
                    return Ok(Knock::Stopped);
                }
            }
        }
    }
}

/// Whether this init was told to stop before it had anything to stop.
fn is_stopped(signals: &SignalFd) -> anyhow::Result<bool> {
    while let Some(info) = signals.read_signal().context("signal descriptor")? {
        if matches!(Signal::try_from(info.ssi_signo as i32), Ok(Signal::SIGTERM | Signal::SIGINT)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Where successors knock.
pub(super) struct Door {
    path: PathBuf,
    listener: UnixListener,
}

impl Door {
    /// Opens the door at a path, in place of whatever door was there: that of an init that has ended or handed over.
    ///
    /// # Errors
    /// When no socket can be made there.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let mut draft: OsString = path.into();
        draft.push(".new");
        match fs::remove_file(&draft) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        bind(socket.as_raw_fd(), &UnixAddr::new(Path::new(&draft))?)?;
        // Whoever gets in gets every socket of every domain. Nobody connects before it listens.
        fs::set_permissions(&draft, fs::Permissions::from_mode(0o600))?;
        listen(&socket, Backlog::new(BACKLOG)?)?;
        fs::rename(&draft, path)?;
        // The type knows nothing of packets, and accepts all the same.
        Ok(Self { path: path.to_owned(), listener: UnixListener::from(socket) })
    }

    /// Lets in who knocks; whoever runs as another user is turned away.
    pub(super) fn accept(&self) -> Option<Channel> {
        loop {
            let stream = OwnedFd::from(self.listener.accept().ok()?.0);
            match getsockopt(&stream, PeerCredentials) {
                Ok(peer) if peer.uid() == geteuid().as_raw() => return Some(Channel::new(stream)),
                Ok(peer) => warn!(uid = peer.uid(), "somebody else knocks at {}: turned away", self.path.display()),
                Err(error) => warn!("{}: {error}", self.path.display()),
            }
        }
    }

    /// What to wait for.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)
    }
}

/// The init that takes over from this one.
pub(super) struct Successor {
    channel: Channel,
    /// Whether it has everything.
    pub(super) is_served: bool,
}

/// What a successor wants.
pub(super) enum Wish {
    /// Nothing at the moment.
    Nothing,
    /// It is gone.
    Gone,
    /// A descriptor is to be kept.
    Keep(String, OwnedFd),
    /// A kept descriptor is to be closed.
    Drop(String),
    /// A worker gets a signal.
    Kill(String, i32),
}

impl Successor {
    /// Reads the first message of who has been let in; `None` when it is no successor. `refusal` says why it is none now.
    pub(super) fn greet(mut channel: Channel, refusal: Option<&str>) -> Option<Self> {
        // It sends before it waits, so the message is there, or comes in a moment from a process that is alive.
        let mut wanted = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut wanted, PollTimeout::from(GREETING_MS));
        let reason = match channel.receive::<ToPredecessor>() {
            Ok(Incoming::Message(ToPredecessor::TakeOver { protocol: PROTOCOL }, _)) => match refusal {
                None => return Some(Self { channel, is_served: false }),
                Some(refusal) => refusal.to_owned(),
            },
            Ok(Incoming::Message(ToPredecessor::TakeOver { protocol }, _)) => {
                format!("it speaks protocol {PROTOCOL} of handing over, the new one {protocol}: end it first")
            }
            _ => return None,
        };
        info!("not handed over: {reason}");
        let refused = channel.push(&ToSuccessor::Refused { reason }, Vec::new()).and_then(|()| channel.flush());
        if let Err(error) = refused {
            warn!("who knocked is gone: {error}");
        }
        None
    }

    /// Hands everything over.
    ///
    /// # Errors
    /// When a descriptor cannot be duplicated, or the channel fails.
    pub(super) fn serve<'a>(
        &mut self,
        lock: &UnixListener,
        kept: &BTreeMap<String, OwnedFd>,
        workers: impl Iterator<Item = (&'a str, u32)>,
    ) -> Result<(), ChannelError> {
        self.is_served = true;
        self.channel.push(&ToSuccessor::Lock, vec![lock.try_clone()?.into()])?;
        for (name, descriptor) in kept {
            self.channel.push(&ToSuccessor::Kept { name: name.clone() }, vec![descriptor.try_clone()?])?;
        }
        for (name, pid) in workers {
            self.channel.push(&ToSuccessor::Running { name: name.to_owned(), pid }, Vec::new())?;
        }
        self.channel.push(&ToSuccessor::Ready, Vec::new())?;
        self.channel.flush().map(drop)
    }

    /// Tells that a worker has ended.
    pub(super) fn tell_exit(&mut self, name: &str, status: i32) {
        let message = ToSuccessor::Exited { name: name.to_owned(), status };
        // A successor that is gone shows in `next`.
        let _ = self.channel.push(&message, Vec::new()).and_then(|()| self.channel.flush());
    }

    /// What it wants next.
    pub(super) fn next(&mut self) -> Wish {
        match self.channel.flush().and_then(|_| self.channel.receive::<ToPredecessor>()) {
            Ok(Incoming::Nothing) => Wish::Nothing,
            Ok(Incoming::Message(ToPredecessor::Keep { name }, descriptors)) => match descriptors.into_iter().next() {
                Some(descriptor) => Wish::Keep(name, descriptor),
                None => self.next(),
            },
            Ok(Incoming::Message(ToPredecessor::Drop { name }, _)) => Wish::Drop(name),
            Ok(Incoming::Message(ToPredecessor::Kill { name, signal }, _)) => Wish::Kill(name, signal),
            Ok(Incoming::Message(ToPredecessor::TakeOver { .. }, _)) => self.next(),
            Ok(Incoming::Closed) | Err(_) => Wish::Gone,
        }
    }

    /// What to wait for.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        poll_fd(&self.channel)
    }
}

/// How long who knocks may take to say why, in milliseconds: it has nothing else to do.
const GREETING_MS: u16 = 500;

/// The init that this one takes over from.
pub(super) struct Predecessor {
    channel: Channel,
    /// Its workers that still run.
    pub(super) workers: BTreeMap<String, u32>,
}

impl Predecessor {
    /// The next worker of it that has ended, with its status; an error when the predecessor is gone.
    pub(super) fn next(&mut self) -> Result<Option<(String, i32)>, ()> {
        loop {
            match self.channel.flush().and_then(|_| self.channel.receive::<ToSuccessor>()) {
                Ok(Incoming::Nothing) => return Ok(None),
                Ok(Incoming::Message(ToSuccessor::Exited { name, status }, _)) => {
                    if self.workers.remove(&name).is_some() {
                        return Ok(Some((name, status)));
                    }
                }
                Ok(Incoming::Message(..)) => {}
                Ok(Incoming::Closed) | Err(_) => return Err(()),
            }
        }
    }

    /// Tells it something; a predecessor that is gone shows in [`Self::next`].
    pub(super) fn tell(&mut self, message: &ToPredecessor, descriptors: Vec<OwnedFd>) {
        let _ = self.channel.push(message, descriptors).and_then(|()| self.channel.flush());
    }

    /// What to wait for.
    pub(super) fn poll_fd(&self) -> PollFd<'_> {
        poll_fd(&self.channel)
    }
}

fn poll_fd(channel: &Channel) -> PollFd<'_> {
    let mut flags = PollFlags::POLLIN;
    flags.set(PollFlags::POLLOUT, channel.has_unsent());
    PollFd::new(channel.as_fd(), flags)
}

/// Abstract name of the socket that an instance's init holds as its lock.
pub fn lock_name(instance: &str) -> String {
    format!("tidegate/{instance}")
}

/// Makes sure that this network namespace has no other init of this instance: it would take away what the other one judges
/// by. An abstract socket leaves no file behind and is gone with its process, however that ends.
fn lock_instance(instance: &str) -> anyhow::Result<Option<UnixListener>> {
    let name = SocketAddr::from_abstract_name(lock_name(instance)).context("name of the instance's lock")?;
    match UnixListener::bind_addr(&name) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error).context("cannot make the instance's lock"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> (tempfile::TempDir, Door) {
        let folder = tempfile::tempdir().unwrap();
        let door = Door::open(&folder.path().join("run/door.sock")).unwrap();
        (folder, door)
    }

    fn knocking(door: &Door) -> Channel {
        let stream = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_NONBLOCK, None).unwrap();
        connect(stream.as_raw_fd(), &UnixAddr::new(&door.path).unwrap()).unwrap();
        Channel::new(stream)
    }

    #[test]
    fn a_new_door_takes_the_place_of_an_old_one_and_only_its_owner_may_knock() {
        let (_folder, old) = door();
        let new = Door::open(&old.path).unwrap();
        let mode = fs::metadata(&new.path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
        let _knocking = knocking(&new);
        assert!(new.accept().is_some());
        assert!(old.accept().is_none());
    }

    #[test]
    fn what_is_no_successor_is_not_let_in() {
        let (_folder, door) = door();
        let mut stranger = knocking(&door);
        stranger.push(&"hello", Vec::new()).unwrap();
        stranger.flush().unwrap();
        assert!(Successor::greet(door.accept().unwrap(), None).is_none());
        let mut newer = knocking(&door);
        newer.push(&ToPredecessor::TakeOver { protocol: PROTOCOL + 1 }, Vec::new()).unwrap();
        newer.flush().unwrap();
        assert!(Successor::greet(door.accept().unwrap(), None).is_none());
        let Ok(Incoming::Message(ToSuccessor::Refused { reason }, _)) = newer.receive() else { panic!("no answer") };
        assert!(reason.contains("protocol"), "{reason}");
    }

    #[test]
    fn a_successor_gets_everything_and_is_heard() {
        let (_folder, door) = door();
        let mut channel = knocking(&door);
        channel.push(&ToPredecessor::TakeOver { protocol: PROTOCOL }, Vec::new()).unwrap();
        channel.flush().unwrap();
        let mut successor = Successor::greet(door.accept().unwrap(), None).unwrap();
        let name = SocketAddr::from_abstract_name(format!("tidegate-test/{}", std::process::id())).unwrap();
        let lock = UnixListener::bind_addr(&name).unwrap();
        let kept = BTreeMap::from([("a".to_owned(), OwnedFd::from(tempfile::tempfile().unwrap()))]);
        successor.serve(&lock, &kept, [("w.1", 7)].into_iter()).unwrap();
        successor.tell_exit("w.1", -9);
        let mut next = || match channel.receive::<ToSuccessor>() {
            Ok(Incoming::Message(message, descriptors)) => (message, descriptors.len()),
            _ => panic!("nothing comes"),
        };
        assert!(matches!(next(), (ToSuccessor::Lock, 1)));
        assert!(matches!(next(), (ToSuccessor::Kept { name }, 1) if name == "a"));
        assert!(matches!(next(), (ToSuccessor::Running { name, pid: 7 }, 0) if name == "w.1"));
        assert!(matches!(next(), (ToSuccessor::Ready, 0)));
        assert!(matches!(next(), (ToSuccessor::Exited { name, status: -9 }, 0) if name == "w.1"));
        assert!(matches!(successor.next(), Wish::Nothing));
        channel.push(&ToPredecessor::Kill { name: "w.1".to_owned(), signal: 9 }, Vec::new()).unwrap();
        channel.flush().unwrap();
        assert!(matches!(successor.next(), Wish::Kill(name, 9) if name == "w.1"));
        drop(channel);
        assert!(matches!(successor.next(), Wish::Gone));
    }
}
