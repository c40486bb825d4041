//! What one agent leaves to the next through init: descriptors under speaking names, and the numbers of the domains.

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read, Seek, Write},
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    str::FromStr,
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tidegate_model::{
    DomainId, DomainName, FrontendKey, Transport,
    control::{FromInit, Listening, SocketRole},
};
use tracing::warn;

use crate::control::{AsyncChannel, ChannelError};

/// Name of a descriptor that init keeps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum KeptName {
    /// The [`Numbers`] of the domains.
    Numbers,
    /// Agent's end of a worker's control channel.
    Control(WorkerName),
    /// A listening socket.
    Listen(DomainName, Listening),
}

/// Name of a worker process: unique on the node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct WorkerName {
    /// Its domain.
    pub(super) domain: DomainName,
    /// Counts the domain's workers.
    pub(super) number: u32,
}

impl fmt::Display for WorkerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.domain, self.number)
    }
}

impl FromStr for WorkerName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (domain, number) = text.rsplit_once('.').ok_or(())?;
        Ok(Self { domain: DomainName::new(domain), number: number.parse().map_err(|_| ())? })
    }
}

impl fmt::Display for KeptName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Numbers => f.write_str("numbers"),
            Self::Control(worker) => write!(f, "control/{worker}"),
            Self::Listen(domain, Listening { shard, role: SocketRole::Steered { transport, is_v6 } }) => {
                write!(f, "listen/{domain}/{shard}/steered/{transport}/{}", if *is_v6 { 6 } else { 4 })
            }
            Self::Listen(domain, Listening { shard, role: SocketRole::Bound(frontend) }) => {
                let address = SocketAddr::new(frontend.addr, frontend.port);
                write!(f, "listen/{domain}/{shard}/bound/{}/{address}", frontend.transport)
            }
        }
    }
}

impl FromStr for KeptName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            ["numbers"] => Ok(Self::Numbers),
            ["control", worker] => Ok(Self::Control(worker.parse()?)),
            ["listen", domain, shard, kind, transport, rest] => {
                let transport = match *transport {
                    "TCP" => Transport::Tcp,
                    "UDP" => Transport::Udp,
                    _ => return Err(()),
                };
                let role = match (*kind, *rest) {
                    ("steered", "4") => SocketRole::Steered { transport, is_v6: false },
                    ("steered", "6") => SocketRole::Steered { transport, is_v6: true },
                    ("bound", address) => {
                        let address: SocketAddr = address.parse().map_err(|_| ())?;
                        let addr: IpAddr = address.ip();
                        SocketRole::Bound(FrontendKey { addr, port: address.port(), transport })
                    }
                    _ => return Err(()),
                };
                let shard = shard.parse().map_err(|_| ())?;
                Ok(Self::Listen(DomainName::new(domain), Listening { shard, role }))
            }
            _ => Err(()),
        }
    }
}

/// Numbers of the domains on this node; a number is given again only after its domain is gone.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Numbers {
    by_name: BTreeMap<DomainName, DomainId>,
}

/// Largest number of a domain: as many as the kernel tier has room for.
const MAX_DOMAINS: u32 = 255;

impl Numbers {
    /// Number of a domain, given now when it has none; `None` when all are taken.
    pub(super) fn give(&mut self, domain: &DomainName) -> Option<DomainId> {
        if let Some(id) = self.by_name.get(domain) {
            return Some(*id);
        }
        let id = (1..=MAX_DOMAINS).map(DomainId).find(|id| !self.by_name.values().any(|taken| taken == id))?;
        self.by_name.insert(domain.clone(), id);
        Some(id)
    }

    /// Takes the number of a domain that is gone.
    pub(super) fn take_back(&mut self, domain: &DomainName) {
        self.by_name.remove(domain);
    }

    /// Every domain that has a number.
    pub(super) fn domains(&self) -> impl Iterator<Item = &DomainName> {
        self.by_name.keys()
    }

    /// Writes the numbers to a new anonymous file, for init to keep. A new one each time: an agent that dies while it
    /// writes leaves the old one whole.
    pub(super) fn save(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(memfd_create("tidegate-numbers", MFdFlags::MFD_CLOEXEC)?);
        file.write_all(&serde_json::to_vec(self)?)?;
        Ok(file.into())
    }

    /// Reads what an agent before this one has saved.
    pub(super) fn load(descriptor: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(descriptor);
        file.rewind()?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Everything that init hands to a new agent.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// Numbers of the domains.
    pub(super) numbers: Numbers,
    /// By domain.
    pub(super) domains: BTreeMap<DomainName, Inheritance>,
    /// Names that this version does not know, or that belong to nothing: to be dropped.
    pub(super) strays: Vec<String>,
}

/// What a domain inherits.
#[derive(Debug, Default)]
pub(super) struct Inheritance {
    /// Its listening sockets.
    pub(super) sockets: BTreeMap<Listening, OwnedFd>,
    /// Its workers by number.
    pub(super) workers: BTreeMap<u32, InheritedWorker>,
}

/// A worker that an earlier agent has started.
#[derive(Debug)]
pub(super) struct InheritedWorker {
    /// Process id.
    pub(super) pid: u32,
    /// Agent's end of its control channel.
    pub(super) control: OwnedFd,
    /// Whether it is to be replaced, because the init that it runs under is about to end.
    pub(super) is_leaving: bool,
}

/// Reads what init hands over, until it says that this was all.
///
/// # Errors
/// When the channel fails or init is gone.
pub(super) async fn take_over(channel: &mut AsyncChannel) -> Result<Handover, ChannelError> {
    let mut handover = Handover::default();
    let mut controls: BTreeMap<WorkerName, OwnedFd> = BTreeMap::new();
    loop {
        let Some((message, descriptors)) = channel.next::<FromInit>().await? else {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        };
        match message {
            FromInit::Ready => break,
            FromInit::Kept { name } => {
                let (Ok(kept), Some(descriptor)) = (name.parse::<KeptName>(), descriptors.into_iter().next()) else {
                    handover.strays.push(name);
                    continue;
                };
                match kept {
                    KeptName::Numbers => match Numbers::load(descriptor) {
                        Ok(numbers) => handover.numbers = numbers,
                        Err(error) => warn!("numbers of the domains are lost: {error}"),
                    },
                    KeptName::Control(worker) => drop(controls.insert(worker, descriptor)),
                    KeptName::Listen(domain, listening) => {
                        handover.domains.entry(domain).or_default().sockets.insert(listening, descriptor);
                    }
                }
            }
            FromInit::Running { ref name, pid } | FromInit::Leaving { ref name, pid } => {
                let Ok(worker) = name.parse::<WorkerName>() else { continue };
                if let Some(control) = controls.remove(&worker) {
                    let inheritance = handover.domains.entry(worker.domain).or_default();
                    let is_leaving = matches!(message, FromInit::Leaving { .. });
                    inheritance.workers.insert(worker.number, InheritedWorker { pid, control, is_leaving });
                }
            }
            // Nothing was asked for yet; what comes for the last agent's requests is in `Running` too.
            FromInit::Started { .. } | FromInit::Failed { .. } | FromInit::Exited { .. } => {}
        }
    }
    handover.strays.extend(controls.into_keys().map(|worker| KeptName::Control(worker).to_string()));
    Ok(handover)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive_their_text() {
        let domain = DomainName::new("shop.public");
        let frontend = FrontendKey { addr: "2001:db8::1".parse().unwrap(), port: 443, transport: Transport::Tcp };
        let steered = SocketRole::Steered { transport: Transport::Udp, is_v6: true };
        for name in [
            KeptName::Numbers,
            KeptName::Control(WorkerName { domain: domain.clone(), number: 7 }),
            KeptName::Listen(domain.clone(), Listening { shard: 3, role: steered }),
            KeptName::Listen(domain, Listening { shard: 0, role: SocketRole::Bound(frontend) }),
        ] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert!("listen/a/0/bound/TCP/nowhere".parse::<KeptName>().is_err());
    }

    #[test]
    fn a_number_stays_with_its_domain_across_agents() {
        let mut numbers = Numbers::default();
        let (a, b, c) = (DomainName::new("a"), DomainName::new("b"), DomainName::new("c"));
        assert_eq!(numbers.give(&a), Some(DomainId(1)));
        assert_eq!(numbers.give(&b), Some(DomainId(2)));
        numbers.take_back(&a);
        let mut next = Numbers::load(numbers.save().unwrap()).unwrap();
        assert_eq!(next.give(&b), Some(DomainId(2)));
        assert_eq!(next.give(&c), Some(DomainId(1)));
        for number in 0..300 {
            next.give(&DomainName::new(format!("d{number}")));
        }
        assert_eq!(next.give(&DomainName::new("one too many")), None);
    }
}
