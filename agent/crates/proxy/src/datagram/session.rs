//! One session: which route, backend and endpoint it has, and its datagrams in both directions.
//!
//! The endpoint stays as long as it is in the model and answers; then the next datagram goes to another one. A session whose
//! share of the weights leads nowhere (an invalid reference, a backend without endpoints) lasts as well, so that its client's
//! datagrams are dropped in the proportion of the weights and not until it is lucky.

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    time::Instant,
};

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tidegate_model::{FrontendKey, Generation};
use tokio::{io::Interest, net::UdpSocket, task::AbortHandle};

use super::{FrontendSocket, SessionKey};
use crate::{
    access_log::SessionLine,
    balance::{BackendState, EndpointState, InFlight},
    shard::{Connections, Place, Shard},
    stats::Counter,
    tables::{FoundForward, ListenerState, Target},
};

/// Answers taken in one go, as for [`super::frontend`].
const BATCH: usize = 32;

/// Endpoints that one datagram is tried on: a socket tells that its port was unreachable when the next datagram is sent.
const ATTEMPTS: usize = 3;

/// A session. Whoever takes it out of the table ends it, once.
#[derive(Debug)]
pub struct Session {
    key: SessionKey,
    frontend: Rc<FrontendSocket>,
    started: Instant,
    way: RefCell<Way>,
    received: Traffic,
    sent: Traffic,
    dropped: Counter,
    last_drop: Cell<Option<&'static str>>,
    _place: Place,
}

/// Where a session leads.
#[derive(Debug)]
pub(super) struct Way {
    /// State of the tables that it was found in.
    generation: Generation,
    listener: Rc<ListenerState>,
    found: FoundForward,
    /// Which of the route's backends has the session.
    target: Target,
    upstream: Option<Upstream>,
}

/// The endpoint of a session.
#[derive(Debug)]
struct Upstream {
    socket: Rc<UdpSocket>,
    endpoint: InFlight,
    /// Whether the endpoint's host has said that nobody is there.
    is_refused: Cell<bool>,
    answers: AbortHandle,
}

#[derive(Debug, Default)]
struct Traffic {
    datagrams: Counter,
    bytes: Counter,
}

impl Traffic {
    fn count(&self, length: usize) {
        self.datagrams.increment();
        self.bytes.add(length as u64);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.answers.abort();
    }
}

impl Way {
    /// The way of a new session.
    ///
    /// # Errors
    /// Why there is none, as in the counter of dropped datagrams.
    pub(super) fn find(shard: &Shard, frontend: FrontendKey) -> Result<Self, &'static str> {
        let (generation, listener, found) = find_forward(shard, frontend)?;
        let target = found.forward.choose().ok_or("no_backend")?.clone();
        Ok(Self { generation, listener, found, target, upstream: None })
    }

    /// Follows a change of the model. The backend stays if the route that is in force now sends anything there.
    fn follow(&mut self, shard: &Shard, frontend: FrontendKey) -> Result<(), &'static str> {
        if shard.tables.borrow().generation() == self.generation {
            return Ok(());
        }
        let (generation, listener, found) = find_forward(shard, frontend).inspect_err(|_| self.upstream = None)?;
        let is_same = Rc::ptr_eq(&found.forward, &self.found.forward);
        let is_kept = |backend| found.forward.sends_to(backend);
        if !is_same && !matches!(&self.target, Target::Backend(backend) if is_kept(backend)) {
            self.upstream = None;
            self.target = found.forward.choose().ok_or("no_backend")?.clone();
        }
        self.found.stats.active.decrement();
        found.stats.active.increment();
        (self.generation, self.listener, self.found) = (generation, listener, found);
        Ok(())
    }
}

fn find_forward(
    shard: &Shard,
    frontend: FrontendKey,
) -> Result<(Generation, Rc<ListenerState>, FoundForward), &'static str> {
    let tables = shard.tables.borrow();
    let (listener, found) = tables.find_datagram_forward(&frontend).ok_or("no_route")?;
    Ok((tables.generation(), listener, found))
}

impl Session {
    /// Begins a session; `None` when the shard has as many clients as it may.
    pub(super) fn begin(
        shard: &Rc<Shard>,
        frontend: Rc<FrontendSocket>,
        key: SessionKey,
        way: Way,
    ) -> Option<Rc<Self>> {
        let place = Connections::hold(shard)?;
        way.found.stats.opened.increment();
        way.found.stats.active.increment();
        Some(Rc::new(Self {
            key,
            frontend,
            started: Instant::now(),
            way: RefCell::new(way),
            received: Traffic::default(),
            sent: Traffic::default(),
            dropped: Counter::default(),
            last_drop: Cell::default(),
            _place: place,
        }))
    }

    /// Sends a client's datagram on.
    pub(super) fn send(self: &Rc<Self>, shard: &Rc<Shard>, payload: &[u8]) {
        self.received.count(payload.len());
        let followed = self.way.borrow_mut().follow(shard, self.key.frontend);
        let stats = self.way.borrow().found.stats.clone();
        stats.received_datagrams.increment();
        stats.received_bytes.add(payload.len() as u64);
        if let Err(reason) = followed.and_then(|()| self.try_send(shard, payload)) {
            self.drop_one(shard, reason);
        }
    }

    fn try_send(self: &Rc<Self>, shard: &Rc<Shard>, payload: &[u8]) -> Result<(), &'static str> {
        let mut outcome = Err("no_endpoint");
        for _ in 0..ATTEMPTS {
            let socket = self.reach(shard)?;
            // Straight to the socket: tokio knows of a new one only later that it takes anything.
            match SockRef::from(&*socket).send(payload) {
                Ok(_) => return Ok(()),
                Err(error) => outcome = Err(self.fail(&error)),
            }
            if outcome != Err(UNREACHABLE) {
                break;
            }
        }
        outcome
    }

    /// The socket towards the session's endpoint, which is chosen now if there is none that can be used.
    fn reach(self: &Rc<Self>, shard: &Rc<Shard>) -> Result<Rc<UdpSocket>, &'static str> {
        let mut way = self.way.borrow_mut();
        let present = way.upstream.as_ref().filter(|upstream| !upstream.endpoint.endpoint().is_removed());
        if let Some(upstream) = present.filter(|upstream| !upstream.is_refused.get()) {
            return Ok(upstream.socket.clone());
        }
        let refused = present.map(|upstream| upstream.endpoint.endpoint().addr);
        let backend = match &way.target {
            Target::Backend(backend) => backend.clone(),
            Target::Invalid(_) => return Err("invalid_backend"),
        };
        let Some(endpoint) = pick(&backend, refused) else {
            way.upstream = None;
            return Err("no_endpoint");
        };
        if let Some(upstream) = way.upstream.as_ref().filter(|_| refused == Some(endpoint.addr)) {
            // The only one that there is.
            upstream.is_refused.set(false);
            return Ok(upstream.socket.clone());
        }
        way.upstream = None;
        let socket = connect(endpoint.addr).map_err(|error| {
            backend.stats.connect_errors.increment();
            endpoint.report_failure();
            // Connecting takes a port, and the node may have no more.
            if error.kind() == io::ErrorKind::WouldBlock { "ports" } else { refusal(&error, "endpoint_connect") }
        })?;
        backend.stats.connects.increment();
        let socket = Rc::new(socket);
        let answers = tokio::task::spawn_local(run_answers(shard.clone(), self.clone(), socket.clone()));
        way.upstream = Some(Upstream {
            socket: socket.clone(),
            endpoint: endpoint.enter(),
            is_refused: Cell::new(false),
            answers: answers.abort_handle(),
        });
        Ok(socket)
    }

    /// Notes what a socket towards an endpoint has said; returns it as a reason.
    fn fail(&self, error: &io::Error) -> &'static str {
        let reason = refusal(error, "endpoint_send");
        let way = self.way.borrow();
        if let (Some(upstream), Target::Backend(backend)) = (&way.upstream, &way.target) {
            backend.stats.failures.increment(reason);
            if reason == UNREACHABLE {
                upstream.is_refused.set(true);
                upstream.endpoint.endpoint().report_failure();
            }
        }
        reason
    }

    /// Sends an endpoint's answer to the client.
    fn answer(&self, shard: &Shard, payload: &[u8]) {
        match self.frontend.socket.try_send_to(payload, self.key.client) {
            Ok(_) => {
                self.sent.count(payload.len());
                let way = self.way.borrow();
                way.found.stats.sent_datagrams.increment();
                way.found.stats.sent_bytes.add(payload.len() as u64);
                shard.datagrams.touch_answered(&self.key);
            }
            Err(error) => self.drop_one(shard, refusal(&error, "client_send")),
        }
    }

    fn drop_one(&self, shard: &Shard, reason: &'static str) {
        self.dropped.increment();
        self.last_drop.set(Some(reason));
        shard.stats.datagrams.dropped.increment(reason);
    }

    /// Ends the session: nothing more comes from its endpoint. It is counted and logged.
    pub(super) fn end(&self, shard: &Shard, reason: &'static str) {
        let mut way = self.way.borrow_mut();
        way.found.stats.active.decrement();
        shard.stats.datagrams.ended.increment(reason);
        let upstream = way.upstream.take();
        if !shard.log.is_on() {
            return;
        }
        shard.log.push_session(&SessionLine {
            listener: &way.listener.key,
            rule: &way.found.forward.key,
            client: self.key.client,
            frontend: SocketAddr::new(self.key.frontend.addr, self.key.frontend.port),
            endpoint: upstream.as_ref().map(|upstream| upstream.endpoint.endpoint().addr),
            reason,
            dropped_reason: self.last_drop.get(),
            received: (self.received.datagrams.count(), self.received.bytes.count()),
            sent: (self.sent.datagrams.count(), self.sent.bytes.count()),
            dropped: self.dropped.count(),
            duration: self.started.elapsed(),
        });
    }
}

/// What a socket says when the endpoint's host has answered that nobody is there (ICMP port unreachable).
const UNREACHABLE: &str = "port_unreachable";

/// Receives an endpoint's answers until the task is aborted. Waits first until they can go on to the client, so that they
/// queue in the socket towards the endpoint and are lost only when that is full.
async fn run_answers(shard: Rc<Shard>, session: Rc<Session>, upstream: Rc<UdpSocket>) {
    let arrival = Interest::READABLE | Interest::ERROR;
    while session.frontend.socket.writable().await.is_ok()
        && let Ok(ready) = upstream.ready(arrival).await
    {
        if ready.is_error()
            && let Err(error) = upstream.try_io(Interest::ERROR, || take_error(&upstream))
            && error.kind() != io::ErrorKind::WouldBlock
        {
            session.fail(&error);
        }
        for _ in 0..BATCH {
            let mut buffer = shard.datagrams.buffer.borrow_mut();
            match upstream.try_recv(&mut buffer) {
                Ok(length) => session.answer(&shard, &buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => drop(session.fail(&error)),
            }
        }
        tokio::task::yield_now().await;
    }
}

/// The error that waits at a socket; none is one that would block, so that tokio waits for the next.
fn take_error(socket: &UdpSocket) -> io::Result<()> {
    Err(SockRef::from(socket).take_error()?.unwrap_or_else(|| io::ErrorKind::WouldBlock.into()))
}

/// An endpoint, if possible another than the one that has refused.
fn pick(backend: &BackendState, refused: Option<SocketAddr>) -> Option<Rc<EndpointState>> {
    backend.pick(refused.as_slice()).or_else(|| backend.pick(&[]))
}

/// A socket that sends to one address and receives from it alone.
fn connect(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    socket.connect(&addr.into())?;
    UdpSocket::from_std(socket.into())
}

/// Why a datagram cannot go on, as it is counted; `other` where nothing more is known.
fn refusal(error: &io::Error, other: &'static str) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => UNREACHABLE,
        // The kernel's guard, or a packet filter.
        Some(libc::EPERM) => "guard",
        Some(libc::EMSGSIZE) => "too_large",
        Some(libc::EMFILE | libc::ENFILE) => "file_descriptors",
        Some(libc::ENOBUFS | libc::ENOMEM) => "memory",
        Some(libc::EHOSTUNREACH | libc::ENETUNREACH) => "no_way",
        _ if error.kind() == io::ErrorKind::WouldBlock => "send_queue",
        _ => other,
    }
}
