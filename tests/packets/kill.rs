//! The kill loop: an agent dies before each of its changing system calls, two hundred times in all, while packets are judged.
//!
//! A round forks a process that does what an agent does at its start (open, guard, sockets, attach, apply) towards another
//! state, with other programs, or with maps of another version. It is stopped before its n-th system call that changes
//! anything (seccomp, ptrace), and killed there; the next round dies one call later. All the while connections are made
//! through the NIC, frames are run through the program that the NIC's link runs, and a process in a guarded cgroup dials.
//! Whatever both states say must be said at every moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, ErrorKind},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, AsRawFd},
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use nix::{
    sys::{
        ptrace,
        signal::{Signal, kill, raise},
        socket::{self, SockaddrStorage, sockopt},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::Pid,
};
use tidegate_kernel::{Desired, DomainDesired, Kernel, KernelConfig};
use tidegate_model::{DomainId, Transport, domain::Frontends};

use crate::{
    bed::{
        Bed, CLOSED_V4, DENIED_V4, NODE_V4, PRIVATE_V4, PUBLIC, PUBLIC_V4, SHARED, STRANGER_V4, XDP_DROP, XDP_PASS,
        desired, frontend, nets, on_bed,
    },
    frame::{Link, TCP, V4, tcp},
    guard::Cgroup,
    sys::{complain, fork, open_socket, retransmits, run_attached, stop_at},
    takeover::changed_object,
    wire::{make_internet, on_the_internet},
};

/// Rounds in all.
const ROUNDS: usize = 200;
/// Beds side by side: a round mostly waits, for grace periods and for the verifier.
const BEDS: usize = 2;
/// A source that only the second state denies, and a port that only it has a frontend at.
const NEWLY_DENIED: [u8; 4] = [198, 18, 0, 7];
const NEW_PORT: u16 = 8443;
/// Between two packets of a judge, so that judging does not take the machine from what is judged.
const PACE: Duration = Duration::from_millis(5);

/// What differs between the agent that is there and the one that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Another state.
    State,
    /// Other programs.
    Programs,
    /// Maps of another version.
    Version,
}

/// One way through: kind by kind and step by step.
struct Course {
    /// Step at which the next round of a kind dies.
    next: BTreeMap<Kind, usize>,
    /// Kinds of which every step was died at.
    covered: BTreeSet<Kind>,
}

/// What an agent needs to start.
struct Agent<'a> {
    config: KernelConfig,
    state: &'a Desired,
    listener: &'a TcpListener,
    cgroup: &'a Path,
    base: &'a Path,
    wan: u32,
}

impl Agent<'_> {
    /// What the agent does when it starts.
    fn start(&self) -> Result<(), Box<dyn std::error::Error>> {
        let (mut kernel, _) = Kernel::open(&self.config)?;
        kernel.attach_steer()?;
        kernel.watch_borrowed(self.base)?;
        kernel.watch_cgroup(PUBLIC, self.cgroup)?;
        kernel.set_sockets(PUBLIC, Some(self.listener.as_fd()), None)?;
        let report = kernel.apply(self.state)?;
        if let Some(failure) = report.failures.first() {
            return Err(failure.to_string().into());
        }
        kernel.attach_interface(self.wan)?;
        Ok(())
    }

    fn fork(&self, is_traced: bool) -> Pid {
        fork(|| {
            if is_traced {
                ptrace::traceme().expect("being traced");
                raise(Signal::SIGSTOP).expect("waiting for the tracer");
                stop_at(CALLS, &COMMANDS);
            }
            match self.start() {
                Ok(()) => 0,
                Err(error) => {
                    complain(&format!("the agent failed: {error}\n"));
                    1
                }
            }
        })
    }

    /// Runs it to its end.
    fn run(&self) {
        let ended = waitpid(self.fork(false), None).expect("it is a child");
        assert!(matches!(ended, WaitStatus::Exited(_, 0)), "an agent failed: {ended:?}");
    }

    /// Runs it until it is about to make its `step`-th changing system call, and kills it; returns whether there was one.
    fn run_to(&self, step: usize) -> bool {
        let process = self.fork(true);
        waitpid(process, None).expect("it stops itself");
        ptrace::setoptions(process, ptrace::Options::PTRACE_O_TRACESECCOMP | ptrace::Options::PTRACE_O_EXITKILL)
            .expect("tracing");
        for _ in 1..=step {
            ptrace::cont(process, None).expect("it is stopped");
            match waitpid(process, None).expect("it is a child") {
                WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_SECCOMP) => {}
                WaitStatus::Exited(_, 0) => return false,
                other => panic!("an agent failed: {other:?}"),
            }
        }
        // The call that it stopped before is not made any more.
        kill(process, Signal::SIGKILL).expect("it is stopped");
        let ended = waitpid(process, None).expect("it is a child");
        assert!(matches!(ended, WaitStatus::Signaled(..)), "{ended:?}");
        true
    }
}

/// Commands of bpf(2) that change what outlives the process: elements written, removed, in batches, pins, links made,
/// moved, ended.
const COMMANDS: [u32; 8] = [2, 3, 26, 27, 6, 28, 29, 34];

/// Other system calls that do.
const CALLS: &[libc::c_long] = &[
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_fchmodat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
];

#[test]
fn an_agent_that_is_killed_at_any_step_leaves_no_packet_misjudged() {
    let courses: Vec<Course> = thread::scope(|scope| {
        let beds: Vec<_> = (0..BEDS)
            .map(|index| {
                scope.spawn(move || {
                    let mut course = Course {
                        // The beds share the steps among them.
                        next: [Kind::State, Kind::Programs, Kind::Version].map(|kind| (kind, 1 + index)).into(),
                        covered: BTreeSet::new(),
                    };
                    on_bed(|bed| run_course(bed, &mut course));
                    course
                })
            })
            .collect();
        beds.into_iter().map(|bed| bed.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    for (index, course) in courses.iter().enumerate() {
        assert_eq!(course.covered.len(), 3, "bed {index} did not die at every step: {:?}", course.next);
    }
}

fn run_course(bed: &mut Bed, course: &mut Course) {
    let internet = make_internet();
    let [listener, allowed, refused] = [(); 3].map(|()| listen());
    let addr = |listener: &TcpListener| listener.local_addr().expect("an address");
    let states = [false, true].map(|is_second| state(bed, is_second, addr(&allowed)));
    let (cgroup, base) = (Cgroup::new(bed, "killed"), crate::guard::own_cgroup(bed));
    let (wan, config) = (bed.wan, bed.config.clone());
    let objects = [config.object, changed_object(&config)];
    let agent = |second: bool, object: usize| Agent {
        config: KernelConfig { object: objects[object], ..config.clone() },
        state: &states[usize::from(second)],
        listener: &listener,
        cgroup: &cgroup.0,
        base: &base,
        wan,
    };
    agent(false, 0).run();
    let root = config.bpffs.join("tidegate").join(&config.instance);
    let link = root.join("links").join(format!("xdp-{wan}-native"));
    let judges = Judges::default();
    let worker = Worker(fork(|| dial_on(&cgroup.0, addr(&allowed), addr(&refused))));
    thread::scope(|scope| {
        let _stop = StopOnDrop(&judges.is_done);
        scope.spawn(|| judges.connect_through(&internet));
        scope.spawn(|| judges.accept(&listener));
        scope.spawn(|| judges.run_frames(&link, wan));
        scope.spawn(|| judges.accept_dials(&allowed));
        let (mut is_second, mut object) = (false, 0);
        for round in 0..ROUNDS / BEDS {
            // One kind after the other until all its steps were died at, so that few rounds begin with loading everything;
            // then states, which change most often in life.
            let kind =
                [Kind::State, Kind::Programs, Kind::Version].into_iter().find(|kind| !course.covered.contains(kind));
            let kind = kind.unwrap_or(Kind::State);
            match kind {
                Kind::State => is_second = !is_second,
                Kind::Programs => object = 1 - object,
                Kind::Version => age_maps(&root),
            }
            let step = course.next.get_mut(&kind).expect("every kind is there");
            let has_died = agent(is_second, object).run_to(*step);
            if has_died {
                *step += BEDS;
            } else {
                course.covered.insert(kind);
                *step = 1 + *step % BEDS;
            }
            if has_died {
                // Often the next one dies too, and begins with what two have left. But where each step is to be died at once,
                // it has to begin where there is everything to do; new maps are that by themselves.
                let is_covered = kind == Kind::Version || course.covered.len() == 3;
                if is_covered && round % 4 != 3 {
                    continue;
                }
                agent(is_second, object).run();
            }
            judges.assert_complete(&link, wan, is_second, &format!("round {round}, {kind:?}"));
            assert_eq!(
                waitpid(worker.0, Some(WaitPidFlag::WNOHANG)),
                Ok(WaitStatus::StillAlive),
                "a dial was misjudged in round {round}, {kind:?}"
            );
        }
    });
    drop(worker);
    drop(cgroup);
    let judged = [&judges.connected, &judges.frames, &judges.dialled].map(|count| count.load(Ordering::Relaxed));
    assert!(judged.iter().all(|count| *count as usize > ROUNDS / BEDS), "hardly anything was judged: {judged:?}");
}

/// A listener whose queue holds what comes while the machine is busy elsewhere: a full one loses segments.
fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binding");
    socket::listen(&listener, socket::Backlog::new(4096).expect("a size")).expect("a longer queue");
    listener
}

/// The state of the bed with a NIC and endpoints, and another that differs in frontends, domains and lists.
fn state(bed: &Bed, is_second: bool, endpoint: SocketAddr) -> Desired {
    let mut state = desired(bed.wan, bed.lan);
    let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
    public.dialled.insert(endpoint);
    if is_second {
        public.admission.deny.extend(nets(&["198.18.0.0/24"]).iter());
        public.frontends.keys.push(frontend(PUBLIC_V4, NEW_PORT, Transport::Tcp));
        public.frontends.keys.retain(|key| key.port != 53);
        let shared = state.domains.remove(&SHARED).expect("in every bed");
        let newcomer = DomainDesired {
            frontends: Frontends { keys: vec![frontend([203, 0, 113, 9], 80, Transport::Tcp)], ..Frontends::default() },
            ..shared
        };
        state.domains.insert(DomainId(9), newcomer);
    }
    state
}

/// Makes the maps that are there those of another version.
fn age_maps(root: &Path) {
    let (current, old) = (root.join(format!("maps-v{}", tidegate_abi::ABI_VERSION)), root.join("maps-v0"));
    if current.exists() {
        if old.exists() {
            fs::remove_dir_all(&old).expect("removing");
        }
        fs::rename(current, old).expect("renaming");
    }
}

/// What a guarded process does until it is killed; ends when a dial is misjudged.
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
        count => Err(io::Error::other(format!("{count} segments were lost"))),
    }
}

/// The process that dials. Ended on drop, before its cgroup is removed.
struct Worker(Pid);

impl Drop for Worker {
    fn drop(&mut self) {
        // One that has ended by itself was waited for already.
        let _ = kill(self.0, Signal::SIGKILL);
        let _ = waitpid(self.0, None);
    }
}

/// Those that judge while agents die.
#[derive(Default)]
struct Judges {
    is_done: AtomicBool,
    connected: AtomicU64,
    frames: AtomicU64,
    dialled: AtomicU64,
}

/// Ends the judges when the rounds end, also by a panic.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Judges {
    fn goes_on(&self) -> bool {
        !self.is_done.load(Ordering::Relaxed)
    }

    /// Clients at the other end of the NIC: one that is let in, one that is denied and shows at `accept` if it is not.
    fn connect_through(&self, internet: &fs::File) {
        let frontend = SocketAddr::new(PUBLIC_V4.into(), 443);
        on_the_internet(internet, || {
            let mut denied = std::collections::VecDeque::new();
            while self.goes_on() {
                connect_and_reset(Some(STRANGER_V4), frontend).expect("a connection was refused or a packet lost");
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

    fn accept(&self, listener: &TcpListener) {
        for stream in self.accept_on(listener) {
            // A client that has closed already has no address any more.
            if let Ok(peer) = stream.peer_addr() {
                assert_ne!(peer.ip(), std::net::IpAddr::from(DENIED_V4), "a denied source was let in");
            }
            self.connected.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn accept_dials(&self, listener: &TcpListener) {
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
    fn run_frames(&self, link: &Path, wan: u32) {
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
                assert_eq!(run_attached(link, frame, wan), *action, "{name}");
                self.frames.fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(PACE);
        }
    }

    /// After an agent that was not killed, its state is in force.
    fn assert_complete(&self, link: &Path, wan: u32, is_second: bool, round: &str) {
        let denied = V4::new(NEWLY_DENIED, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        let port = V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(NEW_PORT)).on(Link::untagged());
        let (first, second) = if is_second { (XDP_DROP, XDP_PASS) } else { (XDP_PASS, XDP_DROP) };
        assert_eq!(run_attached(link, &denied, wan), first, "the list, {round}");
        assert_eq!(run_attached(link, &port, wan), second, "the frontend, {round}");
    }
}
