//! The programs: loaded, compared with what an earlier agent pinned, and kept or replaced.
//!
//! A program is the same when its tag (a hash of its instructions) and its maps are: then the pinned one goes on and no link
//! is touched. Otherwise links are updated in place, so no packet meets two programs or none. When all of them come of the
//! object that an earlier agent has loaded, which the pins say, nothing is loaded: verification is most of a start's time.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    time::{Duration, Instant},
};

use aya::{
    Ebpf,
    programs::{Program, ProgramError, ProgramInfo},
};

use crate::{
    KernelError,
    pins::{Pins, pin_error, remove_pin},
    probe::is_older_than,
    sys::{self, AttachType},
};

macro_rules! programs {
    ($($program:ident, $name:literal, $attach_type:ident;)+) => {
        /// The programs of the object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum ProgramName {
            $($program),+
        }

        impl ProgramName {
            pub(crate) const ALL: &[Self] = &[$(Self::$program),+];

            /// Name in the object and of the pin.
            pub(crate) fn as_str(self) -> &'static str {
                match self {
                    $(Self::$program => $name),+
                }
            }

            pub(crate) fn attach_type(self) -> AttachType {
                match self {
                    $(Self::$program => AttachType::$attach_type),+
                }
            }
        }
    };
}

programs! {
    Admit, "admit", Xdp;
    Explain, "explain", Xdp;
    Cookie, "cookie", Xdp;
    Steer, "steer", SkLookup;
    Observe, "observe", SockOps;
    GuardSocket, "guard_socket", SockCreate;
    GuardBind4, "guard_bind4", Bind4;
    GuardBind6, "guard_bind6", Bind6;
    GuardConnect4, "guard_connect4", Connect4;
    GuardConnect6, "guard_connect6", Connect6;
    GuardSendmsg4, "guard_sendmsg4", Sendmsg4;
    GuardSendmsg6, "guard_sendmsg6", Sendmsg6;
    BorrowedBind4, "borrowed_bind4", Bind4;
    BorrowedBind6, "borrowed_bind6", Bind6;
    BorrowedConnect4, "borrowed_connect4", Connect4;
    BorrowedConnect6, "borrowed_connect6", Connect6;
    BorrowedSendmsg4, "borrowed_sendmsg4", Sendmsg4;
    BorrowedSendmsg6, "borrowed_sendmsg6", Sendmsg6;
}

impl ProgramName {
    /// The programs on a worker's cgroup.
    pub(crate) const GUARDS: [Self; 7] = [
        Self::GuardSocket,
        Self::GuardBind4,
        Self::GuardBind6,
        Self::GuardConnect4,
        Self::GuardConnect6,
        Self::GuardSendmsg4,
        Self::GuardSendmsg6,
    ];

    /// The programs on the cgroup in which the agent makes sockets for workers.
    pub(crate) const BORROWED: [Self; 6] = [
        Self::BorrowedBind4,
        Self::BorrowedBind6,
        Self::BorrowedConnect4,
        Self::BorrowedConnect6,
        Self::BorrowedSendmsg4,
        Self::BorrowedSendmsg6,
    ];

    /// The program with this name.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|program| program.as_str() == text)
    }
}

/// One loaded program.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) name: ProgramName,
    pub(crate) id: u32,
    /// Whether it is the one that was pinned.
    pub(crate) is_kept: bool,
    fd: OwnedFd,
}

impl Loaded {
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What `steer` is on kernels whose sk_lookup context has no ingress interface.
const STEER_BLIND: &str = "steer_blind";
/// The first release whose context has it (commit f89315650ba3).
pub(crate) const INGRESS_SINCE: (u32, u32) = (5, 17);

/// How long a program is loaded again and again while the verifier is interrupted: it gives up with EAGAIN when the thread has a
/// signal to handle (`do_check` in kernel/bpf/verifier.c). Verifying takes milliseconds.
const INTERRUPTED: Duration = Duration::from_secs(2);

/// Every program of the object.
#[derive(Debug)]
pub(crate) struct Programs {
    all: Vec<Loaded>,
    /// Whether `steer` judges connections without knowing where they came in.
    pub(crate) is_steer_blind: bool,
}

impl Programs {
    /// Loads every program, or takes the pinned one where it is the same. Nothing is pinned yet.
    pub(crate) fn load(ebpf: &mut Ebpf, pins: &Pins) -> Result<Self, KernelError> {
        let mut all = Vec::new();
        let mut is_steer_blind = false;
        for &name in ProgramName::ALL {
            let error = |source| KernelError::Program { program: name.as_str(), source: Box::new(source) };
            let (info, fd) = match load(find(ebpf, name.as_str())?) {
                Err(_) if name == ProgramName::Steer && is_older_than(INGRESS_SINCE) => {
                    is_steer_blind = true;
                    load(find(ebpf, STEER_BLIND)?).map_err(error)?
                }
                result => result.map_err(error)?,
            };
            let pin = pins.programs().join(name.as_str());
            let (id, fd, is_kept) = match open_same(&info, fd.as_fd(), &pin).map_err(error)? {
                Some((id, pinned)) => (id, pinned, true),
                None => (info.id(), fd, false),
            };
            all.push(Loaded { name, id, is_kept, fd });
        }
        Ok(Self { all, is_steer_blind })
    }

    /// Takes the pinned programs, all of them, because they come of the same object.
    pub(crate) fn of_pins(pins: &Pins) -> Result<Self, KernelError> {
        let mut all = Vec::new();
        let mut is_steer_blind = false;
        for &name in ProgramName::ALL {
            let pin = pins.programs().join(name.as_str());
            let error = |source| KernelError::Program { program: name.as_str(), source: Box::new(source) };
            let info = ProgramInfo::from_pin(&pin).map_err(error)?;
            is_steer_blind |= info.name_as_str() == Some(STEER_BLIND);
            let fd = sys::open_pin(&pin).map_err(pin_error(&pin))?;
            all.push(Loaded { name, id: info.id(), is_kept: true, fd });
        }
        Ok(Self { all, is_steer_blind })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Loaded> {
        self.all.iter()
    }

    pub(crate) fn find(&self, name: ProgramName) -> &Loaded {
        self.all.iter().find(|program| program.name == name).expect("`load` loads every name or fails")
    }

    /// Pins the programs that are new. Done after the links run them: a pin says "the links run this".
    pub(crate) fn pin(&self, pins: &Pins) -> Result<(), KernelError> {
        for program in self.all.iter().filter(|program| !program.is_kept) {
            let path = pins.programs().join(program.name.as_str());
            let fresh = pins.programs().join(format!("{}-new", program.name.as_str()));
            remove_pin(&fresh)?;
            sys::pin(program.fd(), &fresh).map_err(pin_error(&fresh))?;
            std::fs::rename(&fresh, &path).map_err(pin_error(&path))?;
        }
        Ok(())
    }
}

fn find<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program, KernelError> {
    ebpf.program_mut(name).ok_or(KernelError::Object { kind: "program", name })
}

/// Loads a program, again while signals interrupt the verifier, as libbpf does.
fn load(program: &mut Program) -> Result<(ProgramInfo, OwnedFd), ProgramError> {
    let deadline = Instant::now() + INTERRUPTED;
    loop {
        match load_once(program) {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) && Instant::now() < deadline => {}
            result => return result,
        }
    }
}

fn load_once(program: &mut Program) -> Result<(ProgramInfo, OwnedFd), ProgramError> {
    let clone = |fd: &aya::programs::ProgramFd| fd.as_fd().try_clone_to_owned().map_err(ProgramError::IOError);
    match program {
        Program::Xdp(program) => {
            program.load()?;
            Ok((program.info()?, clone(program.fd()?)?))
        }
        Program::SkLookup(program) => {
            program.load()?;
            Ok((program.info()?, clone(program.fd()?)?))
        }
        Program::SockOps(program) => {
            program.load()?;
            Ok((program.info()?, clone(program.fd()?)?))
        }
        Program::CgroupSock(program) => {
            program.load()?;
            Ok((program.info()?, clone(program.fd()?)?))
        }
        Program::CgroupSockAddr(program) => {
            program.load()?;
            Ok((program.info()?, clone(program.fd()?)?))
        }
        _ => Err(ProgramError::UnexpectedProgramType),
    }
}

/// The pinned program if it has the same instructions and the same maps.
fn open_same(info: &ProgramInfo, fd: BorrowedFd<'_>, pin: &Path) -> Result<Option<(u32, OwnedFd)>, ProgramError> {
    if !pin.exists() {
        return Ok(None);
    }
    let pinned = ProgramInfo::from_pin(pin)?;
    let pinned_fd = sys::open_pin(pin).map_err(ProgramError::IOError)?;
    let maps = |fd| sys::program_maps(fd).map_err(ProgramError::IOError);
    if pinned.tag() != info.tag() || maps(pinned_fd.as_fd())? != maps(fd)? {
        return Ok(None);
    }
    Ok(Some((pinned.id(), pinned_fd)))
}
