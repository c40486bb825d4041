//! UDP: datagrams of clients to endpoints and back.
//!
//! A client at a frontend is a session: it has an endpoint of its own for as long as datagrams go to and fro, and a connected
//! socket towards it, which tells the endpoint's answers from anybody else's. Datagrams go on whole and one by one; what cannot
//! go on at once is dropped and counted, never kept: the only queues are those of the sockets.

pub mod frontend;
pub mod session;
pub mod sessions;
mod sys;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Instant,
};

use hashbrown::HashMap;
use tidegate_model::FrontendKey;

use self::sessions::{From, Full, Sessions};
pub use self::{frontend::FrontendSocket, session::Session, sessions::SessionKey};
use crate::{shard::Shard, timeouts};

/// Longest datagram: what the length fields of IP and UDP can say, and more.
const MAX_DATAGRAM: usize = 64 * 1024;

/// Part of the node's ports that the sessions of one worker may have, each one for its socket towards the endpoint: four
/// domains that are flooded at once leave each other theirs.
const PORT_SHARE: usize = 4;

/// The UDP half of a shard.
#[derive(Debug)]
pub struct Datagrams {
    sessions: RefCell<Sessions<Rc<Session>>>,
    frontends: RefCell<HashMap<FrontendKey, Rc<FrontendSocket>>>,
    /// Where every datagram passes through; held by nobody across a wait.
    buffer: RefCell<Box<[u8]>>,
    /// What the queues of sockets that are closed by now have dropped.
    dropped_before: Cell<u64>,
    is_draining: Cell<bool>,
}

impl Datagrams {
    /// Room for `limit` sessions.
    pub fn new(limit: usize) -> Self {
        Self {
            sessions: RefCell::new(Sessions::new(limit)),
            frontends: RefCell::default(),
            buffer: RefCell::default(),
            dropped_before: Cell::default(),
            is_draining: Cell::default(),
        }
    }

    /// Number of sessions.
    pub fn len(&self) -> usize {
        self.sessions.borrow().len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Datagrams that came in faster than they were read, at all frontends, since their sockets were made.
    pub fn count_overrun(&self) -> u64 {
        let open: u64 = self.frontends.borrow().values().map(|frontend| frontend.count_overrun()).sum();
        self.dropped_before.get() + open
    }

    /// Takes a frontend's socket, in place of an earlier one.
    pub fn open(&self, frontend: Rc<FrontendSocket>) {
        self.allocate();
        if let Some(old) = self.frontends.borrow_mut().insert(frontend.key, frontend) {
            self.dropped_before.set(self.dropped_before.get() + old.count_overrun());
        }
    }

    /// Gives a frontend up: its sessions end.
    pub fn close(&self, shard: &Shard, key: FrontendKey) {
        if let Some(old) = self.frontends.borrow_mut().remove(&key) {
            self.dropped_before.set(self.dropped_before.get() + old.count_overrun());
        }
        let ended = self.sessions.borrow_mut().remove_of(Some(key));
        ended.iter().for_each(|session| session.end(shard, "listener_removed"));
    }

    /// From now on sessions end soon after their last datagram. Nothing is read from clients any more.
    pub fn drain(&self) {
        self.is_draining.set(true);
    }

    /// Ends the sessions that are idle.
    pub fn sweep(&self, shard: &Shard, now: Instant) {
        let is_draining = self.is_draining.get();
        let (idle, reason) =
            if is_draining { (timeouts::DRAIN_IDLE, "drained") } else { (timeouts::DATAGRAM_IDLE, "idle") };
        loop {
            let Some(session) = self.sessions.borrow_mut().pop_idle(now, idle) else { return };
            session.end(shard, reason);
        }
    }

    /// Ends every session.
    pub fn clear(&self, shard: &Shard) {
        let ended = self.sessions.borrow_mut().remove_of(None);
        ended.iter().for_each(|session| session.end(shard, "drained"));
    }

    /// A client's datagram.
    fn take(&self, shard: &Rc<Shard>, frontend: &Rc<FrontendSocket>, client: std::net::SocketAddr, payload: &[u8]) {
        let now = Instant::now();
        let key = SessionKey { client, frontend: frontend.key };
        let known = self.sessions.borrow_mut().touch(&key, From::Client, now).cloned();
        let session = match known {
            Some(session) => session,
            None => match self.begin(shard, frontend, key, now) {
                Ok(session) => session,
                Err(reason) => return shard.stats.datagrams.dropped.increment(reason),
            },
        };
        session.send(shard, payload);
    }

    fn begin(
        &self,
        shard: &Rc<Shard>,
        frontend: &Rc<FrontendSocket>,
        key: SessionKey,
        now: Instant,
    ) -> Result<Rc<Session>, &'static str> {
        let way = session::Way::find(shard, key.frontend)?;
        let evicted = self.sessions.borrow_mut().make_room(now).map_err(|Full| "session_limit")?;
        if let Some(evicted) = evicted {
            evicted.end(shard, "evicted");
        }
        let session = Session::begin(shard, frontend.clone(), key, way).ok_or("connection_limit")?;
        self.sessions.borrow_mut().insert(key, session.clone(), now);
        Ok(session)
    }

    fn touch_answered(&self, key: &SessionKey) {
        self.sessions.borrow_mut().touch(key, From::Endpoint, Instant::now());
    }

    /// Makes the buffer: a shard without UDP needs none.
    fn allocate(&self) {
        let mut buffer = self.buffer.borrow_mut();
        if buffer.is_empty() {
            *buffer = vec![0; MAX_DATAGRAM].into();
        }
    }
}

/// Sessions that a worker may have, by the ports that the node gives to sockets (`net.ipv4.ip_local_port_range`) and the
/// worker's limit of open files; each shard has its part.
pub fn session_limit(files: usize, shards: u16) -> usize {
    let ports = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|text| count_ports(&text))
        // The kernel's default.
        .unwrap_or(28_232);
    ((ports / PORT_SHARE).min(files / 2) / usize::from(shards.max(1))).max(1)
}

fn count_ports(range: &str) -> Option<usize> {
    let mut bounds = range.split_whitespace().map(str::parse::<usize>);
    let (Ok(first), Ok(last)) = (bounds.next()?, bounds.next()?) else { return None };
    last.checked_sub(first).map(|difference| difference + 1)
}

#[cfg(test)]
mod tests;
