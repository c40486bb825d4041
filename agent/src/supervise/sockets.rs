//! The sockets of one domain that its clients reach. They belong to the domain, not to a worker: a worker that dies leaves them, with
//! every connection and datagram that waits in them, to the next.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use tidegate_model::{
    DomainName, FrontendKey, Transport,
    control::{Listening, SocketRole, ToInit},
};
use tracing::warn;

use crate::net::listen::{Binding, ListenError, open_bound, open_steered, port_of};

use super::{handover::KeptName, init_link::InitLink};

/// The sockets of one domain, each also kept by init.
pub(super) struct Sockets {
    domain: DomainName,
    init: InitLink,
    open: BTreeMap<Listening, OwnedFd>,
}

/// What [`Sockets::bind`] is to do.
#[derive(Clone, Copy, Debug)]
pub(super) struct BindPlan<'a> {
    /// Everything that is to be reachable.
    pub(super) frontends: &'a [FrontendKey],
    /// Sockets of each.
    pub(super) shards: u16,
    /// Whether `steer` gives TCP connections to sockets of its own, so that only UDP frontends are bound.
    pub(super) is_steered: bool,
    /// Whether addresses are made local by routes.
    pub(super) is_routed: bool,
}

impl BindPlan<'_> {
    fn binds(&self, transport: Transport) -> bool {
        !self.is_steered || transport == Transport::Udp
    }
}

/// What [`Sockets::bind`] did.
#[derive(Debug, Default)]
pub(super) struct BindOutcome {
    /// New sockets.
    pub(super) opened: Vec<Listening>,
    /// Sockets to close; they stay open here until [`Sockets::close`].
    pub(super) closing: Vec<Listening>,
    /// Frontends that have no sockets and why.
    pub(super) failures: Vec<(FrontendKey, ListenError)>,
}

impl Sockets {
    /// Takes the sockets that an earlier agent has left.
    pub(super) fn new(domain: DomainName, init: InitLink, inherited: BTreeMap<Listening, OwnedFd>) -> Self {
        Self { domain, init, open: inherited }
    }

    /// Makes the sockets for `steer`: one for each shard and family, TCP. IPv6 only where it `needs_v6`: a host may have none.
    /// Returns what could not be opened.
    pub(super) fn open_steered(&mut self, shards: u16, needs_v6: bool) -> Vec<String> {
        let mut failures = Vec::new();
        for is_v6 in [false, true].into_iter().filter(|is_v6| !is_v6 || needs_v6) {
            let role = SocketRole::Steered { transport: Transport::Tcp, is_v6 };
            let missing: Vec<Listening> = (0..shards)
                .map(|shard| Listening { shard, role })
                .filter(|listening| !self.open.contains_key(listening))
                .collect();
            let port = self.find_role(role).and_then(|socket| port_of(socket).ok()).unwrap_or(0);
            match open_steered(missing.len(), is_v6, port) {
                Ok(opened) => {
                    missing.into_iter().zip(opened).for_each(|(listening, socket)| self.put(listening, socket))
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        let unwanted = self
            .open
            .keys()
            .copied()
            .filter(|listening| listening.shard >= shards || is_bound(listening, Transport::Tcp));
        let unwanted: Vec<Listening> = unwanted.collect();
        self.close(&unwanted);
        failures
    }

    /// One socket of each family's group, for the kernel's socket map.
    pub(super) fn steered(&self) -> (Option<BorrowedFd<'_>>, Option<BorrowedFd<'_>>) {
        let find = |is_v6| self.find_role(SocketRole::Steered { transport: Transport::Tcp, is_v6 }).map(AsFd::as_fd);
        (find(false), find(true))
    }

    /// Makes bound sockets for exactly the frontends of a plan.
    pub(super) fn bind(&mut self, plan: &BindPlan<'_>) -> BindOutcome {
        let mut outcome = BindOutcome::default();
        let shards = plan.shards;
        let wanted: BTreeSet<FrontendKey> =
            plan.frontends.iter().filter(|frontend| plan.binds(frontend.transport)).copied().collect();
        outcome.closing = self
            .open
            .keys()
            .copied()
            .filter(|listening| match listening.role {
                SocketRole::Bound(frontend) => listening.shard >= shards || !wanted.contains(&frontend),
                SocketRole::Steered { .. } => !plan.is_steered,
            })
            .collect();
        for frontend in wanted {
            let role = SocketRole::Bound(frontend);
            let missing: Vec<u16> =
                (0..shards).filter(|shard| !self.open.contains_key(&Listening { shard: *shard, role })).collect();
            if missing.is_empty() {
                continue;
            }
            // Asking for the port alone would meet our own sockets when only some are missing.
            let is_joining = missing.len() < usize::from(shards);
            match open_bound(frontend, missing.len(), Binding { is_joining, is_routed: plan.is_routed }) {
                Ok(opened) => {
                    for (shard, socket) in missing.into_iter().zip(opened) {
                        let listening = Listening { shard, role };
                        self.put(listening, socket);
                        outcome.opened.push(listening);
                    }
                }
                Err(error) => outcome.failures.push((frontend, error)),
            }
        }
        outcome
    }

    /// Closes sockets; connections that wait in them are reset once the worker has closed them too.
    pub(super) fn close(&mut self, sockets: &[Listening]) {
        for listening in sockets {
            if self.open.remove(listening).is_some() {
                let name = KeptName::Listen(self.domain.clone(), *listening).to_string();
                self.init.send(ToInit::Drop { name }, Vec::new());
            }
        }
    }

    /// Closes all sockets.
    pub(super) fn close_all(&mut self) {
        let all: Vec<Listening> = self.open.keys().copied().collect();
        self.close(&all);
    }

    /// Every socket that is open.
    pub(super) fn listening(&self) -> BTreeSet<Listening> {
        self.open.keys().copied().collect()
    }

    /// Duplicates of sockets, to be passed to a worker; those that cannot be duplicated are left out and logged.
    pub(super) fn duplicate(&self, sockets: &[Listening]) -> (Vec<Listening>, Vec<OwnedFd>) {
        let mut duplicated = (Vec::new(), Vec::new());
        for listening in sockets {
            match self.open.get(listening).map(OwnedFd::try_clone) {
                Some(Ok(duplicate)) => {
                    duplicated.0.push(*listening);
                    duplicated.1.push(duplicate);
                }
                Some(Err(error)) => warn!(domain = %self.domain, ?listening, "cannot pass the socket on: {error}"),
                None => {}
            }
        }
        duplicated
    }

    fn find_role(&self, role: SocketRole) -> Option<&OwnedFd> {
        self.open.iter().find(|(listening, _)| listening.role == role).map(|(_, socket)| socket)
    }

    fn put(&mut self, listening: Listening, socket: OwnedFd) {
        match socket.try_clone() {
            Ok(duplicate) => {
                let name = KeptName::Listen(self.domain.clone(), listening).to_string();
                self.init.send(ToInit::Keep { name }, vec![duplicate]);
            }
            Err(error) => warn!(domain = %self.domain, ?listening, "cannot be kept for the next agent: {error}"),
        }
        self.open.insert(listening, socket);
    }
}

fn is_bound(listening: &Listening, transport: Transport) -> bool {
    matches!(listening.role, SocketRole::Bound(frontend) if frontend.transport == transport)
}
