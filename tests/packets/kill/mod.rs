//! The kill loop: an agent dies before each of its changing system calls, again and again, while packets are judged.
//!
//! A round forks a process that does what an agent does at its start ([`agent`]) towards another state, with other programs, or
//! with maps of another version. What it changes is known beforehand, call by call, from one that was let live; it is stopped
//! before the n-th of these calls, which must be the one that is known, and killed there. So every step is died at because it
//! is on the list, in the first rounds; the others die in the middle of a change of state, some of them twice in a row. All
//! the while connections are made through the NIC, frames are run through the program that the NIC's link runs, and a process
//! in a guarded cgroup dials ([`judges`]): each of them at least twice while an agent is dead. Whatever both states say must
//! be said at every moment.
//!
//! Loading programs costs most of a second of CPU. Fewer deaths than [`WHOLE`] leave out steps of agents that load them, as many of
//! each bed's, and nothing else; `cargo xtask test packets --only kill --kills 1000` leaves out none.

mod agent;
mod judges;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    thread,
};

use tidegate_kernel::{Desired, DomainDesired, KernelConfig};
use tidegate_model::{Dial, DomainId, Transport, domain::Frontends};

use self::{
    agent::{Agent, Step},
    judges::{Judges, Worker, listen},
};
use crate::{
    bed::{Bed, PUBLIC, PUBLIC_V4, SHARED, desired, frontend, nets, on_bed},
    guard::{Cgroup, own_cgroup},
    takeover::changed_object,
    wire::make_internet,
};

/// Deaths in all, unless the environment says how many.
const ROUNDS: usize = 250;
const ROUNDS_VARIABLE: &str = "TIDEGATE_TEST_KILLS";
/// Deaths with which no step is left out.
const WHOLE: usize = 1000;
/// Beds side by side: a round mostly waits, for grace periods.
const BEDS: usize = 8;
/// A source that only the second state denies, and a port that only it has a frontend at.
const NEWLY_DENIED: [u8; 4] = [198, 18, 0, 7];
const NEW_PORT: u16 = 8443;

/// What differs between the agent that is there and the one that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// From the first state to the second.
    Forth,
    /// From the second state to the first.
    Back,
    /// Other programs.
    Programs,
    /// Maps of another version.
    Version,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Forth, Self::Back, Self::Programs, Self::Version];

    /// Whether an agent loads programs, which the verifier goes through.
    fn loads(self) -> bool {
        matches!(self, Self::Programs | Self::Version)
    }
}

#[test]
fn an_agent_that_is_killed_at_any_step_leaves_no_packet_misjudged() {
    let rounds = std::env::var(ROUNDS_VARIABLE)
        .map_or(ROUNDS, |text| text.parse().unwrap_or_else(|_| panic!("{ROUNDS_VARIABLE}: {text:?} is no number")));
    let deaths: Vec<usize> = thread::scope(|scope| {
        let beds: Vec<_> = (0..BEDS)
            .map(|index| {
                scope.spawn(move || {
                    let mut deaths = 0;
                    on_bed(|bed| deaths = run_course(bed, index, rounds.div_ceil(BEDS)));
                    deaths
                })
            })
            .collect();
        beds.into_iter().map(|bed| bed.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    println!("deaths in each bed: {deaths:?}");
    assert!(deaths.iter().sum::<usize>() >= rounds, "{deaths:?}");
}

/// One bed: its part of all steps, then deaths in the middle of changes of state, `rounds` in all or more. Returns how often an
/// agent died.
fn run_course(bed: &mut Bed, index: usize, rounds: usize) -> usize {
    let internet = make_internet();
    let [listener, allowed, refused] = [(); 3].map(|()| listen());
    let addr = |listener: &TcpListener| listener.local_addr().expect("an address");
    let states = [false, true].map(|is_second| state(bed, is_second, addr(&allowed)));
    let (cgroup, base) = (Cgroup::new(bed, "killed"), own_cgroup(bed));
    let (wan, config) = (bed.wan, bed.config.clone());
    let objects = [config.object, changed_object(&config)];
    let root = config.bpffs.join("tidegate").join(&config.instance);
    let agent = |is_second: bool, object: usize| Agent {
        config: KernelConfig { object: objects[object], ..config.clone() },
        state: &states[usize::from(is_second)],
        listener: &listener,
        cgroup: &cgroup.0,
        base: &base,
        wan,
    };
    agent(false, 0).run();
    let judges = Judges::new(root.join("links").join(format!("xdp-{wan}-native")), wan);
    let worker = Worker::start(&cgroup.0, addr(&allowed), addr(&refused));
    let mut deaths = 0;
    thread::scope(|scope| {
        let _stop = judges.stop_on_drop();
        scope.spawn(|| judges.connect_through(&internet));
        scope.spawn(|| judges.accept(&listener));
        scope.spawn(|| judges.run_frames());
        scope.spawn(|| judges.accept_dials(&allowed));
        let mut course = Course {
            agent,
            root: &root,
            judges: &judges,
            worker: &worker,
            is_second: false,
            object: 0,
            is_dead: false,
        };
        // What an agent changes, from one that lives.
        let steps = Kind::ALL.map(|kind| (kind, course.begin(kind).list_steps()));
        for (kind, steps) in &steps {
            let stride = if kind.loads() { (WHOLE / BEDS).div_ceil(rounds) } else { 1 };
            for (turn, step) in (index..steps.len()).step_by(BEDS * stride).enumerate() {
                // A change of state begins at the other one.
                if course.is_second != (*kind == Kind::Back) && matches!(kind, Kind::Forth | Kind::Back) {
                    course.agent(!course.is_second).run();
                    course.is_second = !course.is_second;
                }
                let round = format!("{kind:?}, step {step} of {}: {}", steps.len(), steps[step]);
                course.die(*kind, steps, step);
                deaths += 1;
                // Loading programs takes longer than all else: mostly the next one that loads them is the next that dies.
                if !kind.loads() || turn % 5 == 4 {
                    course.complete(&round);
                }
            }
            course.complete(&format!("after the last step of {kind:?}"));
        }
        // Those that are left, without loading anything. Every third time the next agent dies, too, where it has got to.
        let mut at = index;
        while deaths < rounds {
            let (kind, steps) = &steps[usize::from(course.is_second)];
            let step = at % steps.len();
            course.die(*kind, steps, step);
            deaths += 1;
            if at.is_multiple_of(3) && course.agent(course.is_second).run_to(1 + at % 7).is_some() {
                judges.judge_twice();
                deaths += 1;
            }
            course.complete(&format!("{kind:?}, step {step} again: {}", steps[step]));
            at += BEDS + 1;
        }
    });
    drop(worker);
    deaths
}

/// Where a bed has got to.
struct Course<'a, F> {
    agent: F,
    root: &'a Path,
    judges: &'a Judges,
    worker: &'a Worker,
    /// The state that the agent who came last has applied, or was to apply.
    is_second: bool,
    /// The programs that it has loaded.
    object: usize,
    /// The last agent has died.
    is_dead: bool,
}

impl<'a, F: Fn(bool, usize) -> Agent<'a>> Course<'a, F> {
    fn agent(&self, is_second: bool) -> Agent<'a> {
        (self.agent)(is_second, self.object)
    }

    /// The agent that a kind of round begins with.
    fn begin(&mut self, kind: Kind) -> Agent<'a> {
        match kind {
            Kind::Forth => self.is_second = true,
            Kind::Back => self.is_second = false,
            // One that has died has still to bring its programs.
            Kind::Programs if self.is_dead => {}
            Kind::Programs => self.object = 1 - self.object,
            Kind::Version => age_maps(self.root),
        }
        self.agent(self.is_second)
    }

    /// Lets an agent die at a step, and everybody judge what it leaves.
    fn die(&mut self, kind: Kind, steps: &[Step], step: usize) {
        let mut made = self.begin(kind).run_to(step + 1);
        if self.is_dead && made.as_deref() != Some(&steps[..=step]) {
            // What the one before has left is more to do, or less: this one begins where everything is to be done.
            self.complete("another way than the agent that lived");
            made = self.begin(kind).run_to(step + 1);
        }
        let made = made.unwrap_or_else(|| panic!("{kind:?} has no step {step} of {} this time", steps.len()));
        assert_eq!(made, steps[..=step], "{kind:?} went another way than the agent that lived");
        self.is_dead = true;
        self.judges.judge_twice();
    }

    /// Lets the next agent finish what others have left; its state is in force then.
    fn complete(&mut self, round: &str) {
        self.agent(self.is_second).run();
        self.is_dead = false;
        self.judges.assert_complete(self.is_second, round);
        self.worker.assert_alive(round);
    }
}

/// The state of the bed with a NIC and endpoints, and another that differs in frontends, domains and lists.
fn state(bed: &Bed, is_second: bool, endpoint: SocketAddr) -> Desired {
    let mut state = desired(bed.wan, bed.lan);
    let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
    public.dialled.insert(Dial::tcp(endpoint));
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

/// Makes the maps that are there those of another version. New ones that an agent has left half filled go: the next would throw
/// them away first, which is a step for each.
fn age_maps(root: &Path) {
    let folder = |suffix: &str| root.join(format!("maps-v{}{suffix}", tidegate_abi::ABI_VERSION));
    let (current, old) = (folder(""), root.join("maps-v0"));
    for folder in [folder("-new"), folder("-old")] {
        if folder.exists() {
            fs::remove_dir_all(&folder).expect("removing");
        }
    }
    if current.exists() {
        if old.exists() {
            fs::remove_dir_all(&old).expect("removing");
        }
        fs::rename(current, old).expect("renaming");
    }
}
