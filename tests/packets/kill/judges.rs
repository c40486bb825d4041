//! Those that judge while agents die: clients, frames and a process that dials.

use std::{
    collections::VecDeque,
    fs,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        socket::{self, SockaddrStorage, sockopt},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};

use super::{NEW_PORT, NEWLY_DENIED};
use crate::{
    bed::{CLOSED_V4, DENIED_V4, NODE_V4, PRIVATE_V4, PUBLIC_V4, STRANGER_V4, StopOnDrop, XDP_DROP, XDP_PASS},
    frame::{Link, TCP, V4, tcp},
    sys::{complain, fork, open_socket, retransmits, run_attached},
    wire::on_the_internet,
};

/// Between two packets of a judge, so that judging does not take the machine from what is judged.
const PACE: Duration = Duration::from_millis(5);
/// How long a judge may take for two packets, on a machine with a lot else to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// Connections that wait to be accepted: more than clients make while the machine is busy elsewhere. A full queue loses segments,
/// as the 128 of a socket's default did on a machine that was shared with eight builds.
const BACKLOG: i32 = 4096;

/// All of one bed.
pub(super) struct Judges {
    /// The NIC's link, and the NIC.
    link: PathBuf,
    wan: u32,
    is_done: AtomicBool,
    connected: AtomicU64,
    frames: AtomicU64,
    dialled: AtomicU64,
    /// What went wrong with a client's connection.
    lost: Mutex<Option<String>>,
}

impl Judges {
    pub(super) fn new(link: PathBuf, wan: u32) -> Self {
        let counts = [(); 3].map(|()| AtomicU64::new(0));
        let [connected, frames, dialled] = counts;
        Self { link, wan, is_done: AtomicBool::new(false), connected, frames, dialled, lost: Mutex::new(None) }
    }

    pub(super) fn stop_on_drop(&self) -> StopOnDrop<'_> {
        StopOnDrop(&self.is_done)
    }

    fn goes_on(&self) -> bool {
        !self.is_done.load(Ordering::Relaxed)
    }

    /// Waits until each has judged twice: the first may have begun before.
    pub(super) fn judge_twice(&self) {
        let counts = [&self.connected, &self.frames, &self.dialled];
        let begun = counts.map(|count| count.load(Ordering::Relaxed));
        let deadline = Instant::now() + PATIENCE;
        while counts.iter().zip(begun).any(|(count, begun)| count.load(Ordering::Relaxed) < begun + 2) {
            self.assert_judging();
            assert!(Instant::now() < deadline, "clients, frames, dials since {begun:?}: {counts:?}");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// A judge that has seen a wrong verdict has ended all of them.
    fn assert_judging(&self) {
        if let Some(lost) = self.lost.lock().expect("no judge panics with it").take() {
            panic!("{lost}\nthe node: {}", losses());
        }
        assert!(self.goes_on(), "a judge has ended");
    }

    /// Clients at the other end of the NIC: one that is let in, one that is denied and shows at `accept` if it is not.
    pub(super) fn connect_through(&self, internet: &fs::File) {
        let _stop = self.stop_on_drop();
        let frontend = SocketAddr::new(PUBLIC_V4.into(), 443);
        on_the_internet(internet, || {
            let mut denied = VecDeque::new();
            while self.goes_on() {
                let begun = Instant::now();
                if let Err(error) = connect_and_reset(Some(STRANGER_V4), frontend) {
                    let text = format!("a client: {error} after {:?}; its side: {}", begun.elapsed(), losses());
                    *self.lost.lock().expect("no judge panics with it") = Some(text);
                    return;
                }
                let socket = open_socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0).expect("a socket");
                socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(DENIED_V4.into(), 0)))
                    .expect("binding");
                let begun = socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(frontend));
                assert_eq!(begun, Err(nix::errno::Errno::EINPROGRESS));
                denied.push_back(socket);
                if denied.len() > 8 {
                    denied.pop_front();
                }
                thread::sleep(PACE);
            }
        });
    }

    pub(super) fn accept(&self, listener: &TcpListener) {
        let _stop = self.stop_on_drop();
        for stream in self.accept_on(listener) {
            // A client that has closed already has no address any more.
            if let Ok(peer) = stream.peer_addr() {
                assert_ne!(peer.ip(), std::net::IpAddr::from(DENIED_V4), "a denied source was let in");
            }
            self.connected.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn accept_dials(&self, listener: &TcpListener) {
        let _stop = self.stop_on_drop();
        for _ in self.accept_on(listener) {
            self.dialled.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn accept_on<'a>(&'a self, listener: &'a TcpListener) -> impl Iterator<Item = TcpStream> + 'a {
        listener.set_nonblocking(true).expect("setting a mode");
        std::iter::from_fn(move || {
            while self.goes_on() {
                match listener.accept() {
                    Ok((stream, _)) => return Some(stream),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(PACE),
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => panic!("accepting: {error}"),
                }
            }
            None
        })
    }

    /// Frames of which both states say the same.
    pub(super) fn run_frames(&self) {
        let _stop = self.stop_on_drop();
        let frame = |source, destination, port| V4::new(source, destination, TCP, tcp(port)).on(Link::untagged());
        let cases = [
            ("a frontend", frame(STRANGER_V4, PUBLIC_V4, 443), XDP_PASS),
            ("a denied source", frame(DENIED_V4, PUBLIC_V4, 443), XDP_DROP),
            ("no frontend", frame(STRANGER_V4, PUBLIC_V4, 22), XDP_DROP),
            ("a foreign NIC", frame(STRANGER_V4, PRIVATE_V4, 80), XDP_DROP),
            ("a closed domain", frame(STRANGER_V4, CLOSED_V4, 80), XDP_DROP),
            ("the node's own", frame(STRANGER_V4, NODE_V4, 22), XDP_PASS),
        ];
        while self.goes_on() {
            for (name, frame, action) in &cases {
                assert_eq!(run_attached(&self.link, frame, self.wan), *action, "{name}");
            }
            self.frames.fetch_add(1, Ordering::Relaxed);
            thread::sleep(PACE);
        }
    }

    /// After an agent that was not killed, its state is in force.
    pub(super) fn assert_complete(&self, is_second: bool, round: &str) {
        self.assert_judging();
        let denied = V4::new(NEWLY_DENIED, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        let port = V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(NEW_PORT)).on(Link::untagged());
        let (first, second) = if is_second { (XDP_DROP, XDP_PASS) } else { (XDP_PASS, XDP_DROP) };
        assert_eq!(run_attached(&self.link, &denied, self.wan), first, "the list, {round}");
        assert_eq!(run_attached(&self.link, &port, self.wan), second, "the frontend, {round}");
    }
}

/// A listener with a long queue.
pub(super) fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binding");
    socket::listen(&listener, socket::Backlog::new(BACKLOG).expect("a size")).expect("a longer queue");
    listener
}

/// Connects and closes by a reset, which leaves no port behind in TIME_WAIT; fails if anything had to be sent twice.
fn connect_and_reset(source: Option<[u8; 4]>, destination: SocketAddr) -> io::Result<()> {
    let socket = open_socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    if let Some(source) = source {
        socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source.into(), 0)))?;
    }
    socket::setsockopt(&socket, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 })?;
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(destination))?;
    match retransmits(socket.as_fd()) {
        0 => Ok(()),
        count => Err(io::Error::other(format!("{count} segments were sent again"))),
    }
}

/// Where the network of the calling thread has lost packets, or thinks so: counters that are not 0.
fn losses() -> String {
    const COUNTERS: [&str; 7] = [
        "ListenOverflows",
        "ListenDrops",
        "TCPBacklogDrop",
        "TCPReqQFullDrop",
        "TCPReqQFullDoCookies",
        "TCPSynRetrans",
        "TCPTimeouts",
    ];
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("TcpExt:")).collect();
    let mut found = Vec::new();
    if let [names, values] = lines[..] {
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            if COUNTERS.contains(&name) && value != "0" {
                found.push(format!("{name} {value}"));
            }
        }
    }
    let devices = fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    found
        .extend(devices.lines().filter(|line| line.trim_start().starts_with("wan")).map(|line| line.trim().to_owned()));
    let queues = fs::read_to_string("/proc/net/softnet_stat").unwrap_or_default();
    let dropped = queues.lines().filter_map(|line| line.split_whitespace().nth(1)).collect::<Vec<_>>();
    found.push(format!("dropped by full queues of CPUs {dropped:?}"));
    found.join(", ")
}

/// The process that dials. Ended on drop, before its cgroup is removed.
pub(super) struct Worker(Pid);

impl Worker {
    /// Starts it in a cgroup; it ends when a dial is misjudged.
    pub(super) fn start(cgroup: &Path, allowed: SocketAddr, refused: SocketAddr) -> Self {
        Self(fork(|| dial_on(cgroup, allowed, refused)))
    }

    pub(super) fn assert_alive(&self, round: &str) {
        let status = waitpid(self.0, Some(WaitPidFlag::WNOHANG));
        assert_eq!(status, Ok(WaitStatus::StillAlive), "a dial was misjudged: {round}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // One that has ended by itself was waited for already.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

fn dial_on(cgroup: &Path, allowed: SocketAddr, refused: SocketAddr) -> i32 {
    if fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).is_err() {
        complain("the dialling process cannot enter its cgroup\n");
        return 1;
    }
    loop {
        if let Err(error) = connect_and_reset(None, allowed) {
            complain(&format!("an endpoint cannot be dialled: {error}\n"));
            return 2;
        }
        match connect_and_reset(None, refused) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            other => {
                complain(&format!("a foreign address was dialled: {other:?}\n"));
                return 3;
            }
        }
        thread::sleep(PACE);
    }
}
