//! A real worker inside the test's process, fed over its control channel like any other, with sockets on loopback.

pub(crate) mod backend;
pub(crate) mod client;
pub(crate) mod model;
pub(crate) mod pki;

use std::{
    io::{IoSlice, IoSliceMut},
    net::{SocketAddr, TcpListener, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, setsockopt, socketpair, sockopt,
};
use tidegate_model::{
    Change, Delta, DomainName, FrontendKey, Generation, Key, Transport,
    codec::{self, Decoder},
    control::{FromWorker, Listening, Settings, SocketRole, ToWorker},
};
use tidegate_proxy::worker::{WorkerConfig, run_worker, sandbox::Sandbox};

/// How long anything may take before a test fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// A worker that runs.
pub(crate) struct Worker {
    control: OwnedFd,
    decoder: Decoder,
    thread: Option<JoinHandle<()>>,
    generation: u64,
    pub(crate) shards: u16,
}

impl Worker {
    pub(crate) fn start(shards: u16) -> Self {
        let (control, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        setsockopt(&control, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(10, 0)).unwrap();
        let config = WorkerConfig {
            domain: DomainName::new("test"),
            shards,
            cores: Vec::new(),
            control: theirs,
            sandbox: Sandbox::Open,
        };
        let thread = std::thread::spawn(move || run_worker(config).unwrap());
        let mut worker = Self { control, decoder: Decoder::default(), thread: Some(thread), generation: 0, shards };
        worker.send(&ToWorker::Hello { protocol: tidegate_model::control::PROTOCOL }, &[]);
        assert!(matches!(worker.receive(), FromWorker::Hello { generation: Generation(0), .. }));
        let settings = Settings { labels: [("traffic.domain".into(), "test".into())].into(), access_log: false };
        worker.send(&ToWorker::Configure(settings), &[]);
        worker
    }

    /// A new frontend on loopback, listened on by every shard.
    pub(crate) fn listen(&mut self) -> SocketAddr {
        let first = bind("127.0.0.1:0".parse().unwrap());
        let addr = first.local_addr().unwrap();
        let key = FrontendKey { addr: addr.ip(), port: addr.port(), transport: Transport::Tcp };
        let mut sockets = vec![first];
        sockets.extend((1..self.shards).map(|_| bind(addr)));
        let named = (0..self.shards).map(|shard| Listening { shard, role: SocketRole::Bound(key) }).collect();
        let descriptors: Vec<i32> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        self.send(&ToWorker::Listen { sockets: named }, &descriptors);
        addr
    }

    /// A new UDP frontend on loopback, received on by every shard.
    pub(crate) fn listen_udp(&mut self) -> SocketAddr {
        let first = bind_udp("127.0.0.1:0".parse().unwrap());
        let addr = first.local_addr().unwrap();
        let key = FrontendKey { addr: addr.ip(), port: addr.port(), transport: Transport::Udp };
        let mut sockets = vec![first];
        sockets.extend((1..self.shards).map(|_| bind_udp(addr)));
        let named = (0..self.shards).map(|shard| Listening { shard, role: SocketRole::Bound(key) }).collect();
        let descriptors: Vec<i32> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
        self.send(&ToWorker::Listen { sockets: named }, &descriptors);
        addr
    }

    /// Applies changes; returns what the worker could not use.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) -> Vec<(Key, String)> {
        self.generation += 1;
        let generation = Generation(self.generation);
        self.send(&ToWorker::Apply(Delta { generation, is_full: self.generation == 1, changes }), &[]);
        match self.receive() {
            FromWorker::Applied { generation: applied, failures } if applied == generation => failures,
            other => panic!("{other:?} in place of the answer to a delta"),
        }
    }

    /// The worker's metrics.
    pub(crate) fn scrape(&mut self) -> String {
        self.send(&ToWorker::Scrape { id: 7 }, &[]);
        let mut page = String::new();
        loop {
            match self.receive() {
                FromWorker::Metrics { id: 7, text, is_last } => {
                    page.push_str(&text);
                    if is_last {
                        return page;
                    }
                }
                other => panic!("{other:?} in place of metrics"),
            }
        }
    }

    /// Sum of the samples whose line begins with `name` and contains all of `parts`.
    pub(crate) fn metric(&mut self, name: &str, parts: &[&str]) -> f64 {
        let text = self.scrape();
        let is_wanted = |line: &&str| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with(['{', ' '])) && parts.iter().all(|part| line.contains(part))
        };
        text.lines().filter(is_wanted).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    }

    /// Waits until a metric has at least that value.
    pub(crate) fn wait_for_metric(&mut self, name: &str, parts: &[&str], value: f64) {
        let deadline = Instant::now() + PATIENCE;
        while self.metric(name, parts) < value {
            assert!(Instant::now() < deadline, "{name} {parts:?} stays below {value}:\n{}", self.scrape());
            std::thread::yield_now();
        }
    }

    /// Asks the worker to drain, without waiting.
    pub(crate) fn begin_drain(&mut self, limit: Duration) {
        self.send(&ToWorker::Drain { deadline_ms: limit.as_millis() as u64 }, &[]);
    }

    /// Waits for the end of a drain.
    pub(crate) fn wait_drained(mut self) {
        assert_eq!(self.receive(), FromWorker::Drained);
        self.thread.take().unwrap().join().unwrap();
    }

    pub(crate) fn send(&self, message: &ToWorker, descriptors: &[i32]) {
        for (index, packet) in codec::encode(message).unwrap().iter().enumerate() {
            let rights = [ControlMessage::ScmRights(descriptors)];
            let control = if index == 0 && !descriptors.is_empty() { &rights[..] } else { &[] };
            sendmsg::<()>(self.control.as_raw_fd(), &[IoSlice::new(packet)], control, MsgFlags::empty(), None).unwrap();
        }
    }

    pub(crate) fn receive(&mut self) -> FromWorker {
        let mut packet = vec![0; codec::MAX_PACKET];
        loop {
            let len = {
                let mut slices = [IoSliceMut::new(&mut packet)];
                recvmsg::<()>(self.control.as_raw_fd(), &mut slices, None, MsgFlags::empty()).unwrap().bytes
            };
            if let Some(message) = self.decoder.push_packet(&packet[..len]).unwrap() {
                return message;
            }
        }
    }
}

fn bind_udp(addr: SocketAddr) -> UdpSocket {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::DGRAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&addr.into()).unwrap();
    socket.into()
}

fn bind(addr: SocketAddr) -> TcpListener {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&addr.into()).unwrap();
    socket.listen(1024).unwrap();
    socket.into()
}
