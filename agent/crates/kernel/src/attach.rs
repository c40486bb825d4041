//! Links: where the programs hang. Every link is pinned, so it outlives the agent.
//!
//! Names say what a link is: `xdp-<ifindex>-<native|generic>`, `steer`, `guard-<domain>-<cgroup id>-<program>`,
//! `borrowed-<cgroup id>-<program>`, `observe-<cgroup id>`. A link whose interface, cgroup or namespace is gone runs nothing; its pin is removed
//! when it is met.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
};

use tidegate_abi::map::name;
use tidegate_model::DomainId;

use crate::{
    Kernel, KernelError,
    desired::AppliedReport,
    interfaces::{describe_program, find_xdp, interface_name},
    pins::{pin_error, remove_link},
    programs::ProgramName,
    sys::{self, LinkInfo},
    tables::map_error,
};

/// The namespace of the calling thread: tests give theirs to single threads.
const NETNS: &str = "/proc/thread-self/ns/net";

/// How `admit` is attached to a NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AttachMode {
    /// In the driver, before the kernel has made anything of the frame.
    Native,
    /// In the stack, because the driver has no XDP: the same verdicts at a higher cost.
    Generic,
}

impl fmt::Display for AttachMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// What the name of a link's pin says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LinkName {
    Xdp { ifindex: u32, mode: AttachMode },
    Steer,
    Guard { domain: u32, cgroup: u64, program: ProgramName },
    Borrowed { cgroup: u64, program: ProgramName },
    Observe { cgroup: u64 },
}

impl LinkName {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text == "steer" {
            return Some(Self::Steer);
        }
        if let Some(rest) = text.strip_prefix("xdp-") {
            let (ifindex, mode) = rest.split_once('-')?;
            let mode = [AttachMode::Native, AttachMode::Generic].into_iter().find(|each| each.to_string() == mode)?;
            return Some(Self::Xdp { ifindex: ifindex.parse().ok()?, mode });
        }
        if let Some(rest) = text.strip_prefix("borrowed-") {
            let (cgroup, program) = rest.split_once('-')?;
            let program = ProgramName::parse(program).filter(|program| ProgramName::BORROWED.contains(program))?;
            return Some(Self::Borrowed { cgroup: cgroup.parse().ok()?, program });
        }
        if let Some(cgroup) = text.strip_prefix("observe-") {
            return Some(Self::Observe { cgroup: cgroup.parse().ok()? });
        }
        let mut parts = text.strip_prefix("guard-")?.splitn(3, '-');
        let (domain, cgroup, program) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?);
        let program = ProgramName::parse(program).filter(|program| ProgramName::GUARDS.contains(program))?;
        Some(Self::Guard { domain, cgroup, program })
    }

    /// Whether a link of this name hangs on the right thing.
    fn is_target(self, target: u64) -> bool {
        match self {
            Self::Xdp { ifindex, .. } => target == u64::from(ifindex),
            // Which namespace is looked at when it is attached.
            Self::Steer => target != 0,
            Self::Guard { cgroup, .. } | Self::Borrowed { cgroup, .. } | Self::Observe { cgroup } => target == cgroup,
        }
    }

    /// Id of the cgroup that it hangs on.
    pub(crate) fn cgroup(self) -> Option<u64> {
        match self {
            Self::Guard { cgroup, .. } | Self::Borrowed { cgroup, .. } | Self::Observe { cgroup } => Some(cgroup),
            Self::Xdp { .. } | Self::Steer => None,
        }
    }

    pub(crate) fn program(self) -> ProgramName {
        match self {
            Self::Xdp { .. } => ProgramName::Admit,
            Self::Steer => ProgramName::Steer,
            Self::Observe { .. } => ProgramName::Observe,
            Self::Guard { program, .. } | Self::Borrowed { program, .. } => program,
        }
    }
}

impl fmt::Display for LinkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xdp { ifindex, mode } => write!(f, "xdp-{ifindex}-{mode}"),
            Self::Steer => f.write_str("steer"),
            Self::Guard { domain, cgroup, program } => write!(f, "guard-{domain}-{cgroup}-{}", program.as_str()),
            Self::Borrowed { cgroup, program } => write!(f, "borrowed-{cgroup}-{}", program.as_str()),
            Self::Observe { cgroup } => write!(f, "observe-{cgroup}"),
        }
    }
}

impl Kernel {
    /// Runs `admit` on a NIC, in the driver if it can, else generically. Does nothing where it runs already.
    ///
    /// # Errors
    /// When the kernel refuses both ways, e.g. because another XDP program is there.
    pub fn attach_interface(&mut self, ifindex: u32) -> Result<AttachMode, KernelError> {
        if let Some(mode) = self.attached.get(&ifindex) {
            return Ok(*mode);
        }
        let program = self.program(ProgramName::Admit);
        let create = |flags| sys::create_link(program, ifindex, ProgramName::Admit.attach_type(), flags);
        let (link, mode) = match create(sys::XDP_NATIVE) {
            Ok(link) => (link, AttachMode::Native),
            // What is in the way of the native mode only: no driver support, or a setting (such as a large MTU or LRO) that
            // the driver does not take together with it.
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EBUSY | libc::ENODEV | libc::EPERM)) => {
                (create(sys::XDP_GENERIC).map_err(|error| self.explain_refusal(ifindex, error))?, AttachMode::Generic)
            }
            Err(error) => return Err(self.explain_refusal(ifindex, error)),
        };
        self.pin_link(link, LinkName::Xdp { ifindex, mode })?;
        self.attached.insert(ifindex, mode);
        self.lead_admitting(&mut AppliedReport::default());
        Ok(mode)
    }

    /// Why `admit` could not be attached. Another program there is never replaced: it is named.
    fn explain_refusal(&self, ifindex: u32, source: io::Error) -> KernelError {
        let target = interface_name(ifindex);
        match find_xdp(ifindex) {
            Ok(Some(id)) if source.raw_os_error() == Some(libc::EBUSY) => {
                KernelError::Occupied { target, program: describe_program(self.pins.bpffs(), id) }
            }
            _ => KernelError::Attach { program: ProgramName::Admit.as_str(), target, source },
        }
    }

    /// Takes `admit` off a NIC, which may be gone already. Connections that come in there are judged by `steer` from now on.
    ///
    /// # Errors
    /// When the pin cannot be removed.
    pub fn detach_interface(&mut self, ifindex: u32) -> Result<(), KernelError> {
        let Some(mode) = self.attached.remove(&ifindex) else { return Ok(()) };
        // First nothing relies on `admit` there, then it goes.
        self.lead_admitting(&mut AppliedReport::default());
        self.end_link(&LinkName::Xdp { ifindex, mode }.to_string())
    }

    /// Where `admit` runs, by interface index.
    pub fn attached(&self) -> &BTreeMap<u32, AttachMode> {
        &self.attached
    }

    /// Removes what is left of NICs that are gone; returns their indices.
    ///
    /// # Errors
    /// When a pin cannot be read or removed.
    pub fn sweep_interfaces(&mut self) -> Result<Vec<u32>, KernelError> {
        let mut gone = Vec::new();
        for (&ifindex, &mode) in &self.attached {
            if self.find_link(&LinkName::Xdp { ifindex, mode }.to_string())?.is_none() {
                gone.push(ifindex);
            }
        }
        for &ifindex in &gone {
            self.detach_interface(ifindex)?;
        }
        Ok(gone)
    }

    /// Runs `steer` in the network namespace of the calling thread. Does nothing where it runs already.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn attach_steer(&mut self) -> Result<(), KernelError> {
        let file_error = |source| KernelError::File { path: PathBuf::from(NETNS), source };
        let netns = fs::File::open(NETNS).map_err(file_error)?;
        let inode = netns.metadata().map_err(file_error)?.ino();
        if let Some(info) = self.find_link(&LinkName::Steer.to_string())? {
            if info.target == inode {
                return Ok(());
            }
            self.end_link(&LinkName::Steer.to_string())?;
        }
        let program = ProgramName::Steer;
        let target = netns.as_fd().as_raw_fd() as u32;
        let link = sys::create_link(self.program(program), target, program.attach_type(), 0)
            .map_err(|source| KernelError::Attach { program: program.as_str(), target: NETNS.to_owned(), source })?;
        self.pin_link(link, LinkName::Steer)
    }

    /// Guards a worker's cgroup: from now on its processes dial only what their domain may. Does nothing where it does so
    /// already.
    ///
    /// # Errors
    /// When the folder is no cgroup of version 2 or the kernel refuses a program; what was attached stays.
    pub fn watch_cgroup(&mut self, domain: DomainId, cgroup: &Path) -> Result<(), KernelError> {
        let (folder, id) = open_cgroup(cgroup)?;
        self.tables.put_worker(id, domain.0).map_err(map_error(name::WORKERS))?;
        for program in ProgramName::GUARDS {
            self.attach_cgroup(LinkName::Guard { domain: domain.0, cgroup: id, program }, &folder, cgroup)?;
        }
        self.guarded.insert(cgroup.to_owned(), Some(domain));
        Ok(())
    }

    /// Guards what workers do with sockets that the agent has made for them: `cgroup` is the agent's own, or one above it
    /// and the workers'. Whoever is no worker passes. Does nothing where it does so already. The guard of another cgroup
    /// stays as long as that cgroup has a process or a socket: workers of the pod before this one may be in it.
    ///
    /// # Errors
    /// As for [`Kernel::watch_cgroup`].
    pub fn watch_borrowed(&mut self, cgroup: &Path) -> Result<(), KernelError> {
        let (folder, id) = open_cgroup(cgroup)?;
        for program in ProgramName::BORROWED {
            self.attach_cgroup(LinkName::Borrowed { cgroup: id, program }, &folder, cgroup)?;
        }
        for text in self.pins.link_names()? {
            let is_other = matches!(LinkName::parse(&text), Some(LinkName::Borrowed { cgroup, .. }) if cgroup != id);
            if is_other && self.find_link(&text)?.is_none() {
                self.end_link(&text)?;
            }
        }
        self.guarded.retain(|_, domain| domain.is_some());
        self.guarded.insert(cgroup.to_owned(), None);
        Ok(())
    }

    fn attach_cgroup(&mut self, link_name: LinkName, folder: &fs::File, path: &Path) -> Result<(), KernelError> {
        let (LinkName::Guard { cgroup: id, program, .. } | LinkName::Borrowed { cgroup: id, program }) = link_name
        else {
            return Ok(());
        };
        if self.find_link(&link_name.to_string())?.is_some_and(|info| info.target == id) {
            return Ok(());
        }
        let target = folder.as_fd().as_raw_fd() as u32;
        let link = sys::create_link(self.program(program), target, program.attach_type(), 0).map_err(|source| {
            KernelError::Attach { program: program.as_str(), target: path.display().to_string(), source }
        })?;
        self.pin_link(link, link_name)
    }

    /// Ends the guard on a worker's cgroup. A cgroup that is gone is no error: what is left of it is removed.
    ///
    /// # Errors
    /// When a pin cannot be read or removed.
    pub fn unwatch_cgroup(&mut self, cgroup: &Path) -> Result<(), KernelError> {
        let id = fs::metadata(cgroup).map(|metadata| metadata.ino()).ok();
        self.guarded.remove(cgroup);
        self.remove_guards(|link, info| {
            info.target == 0 || matches!(link, LinkName::Guard { cgroup, .. } if Some(cgroup) == id)
        })
    }

    /// The cgroups that are guarded, by id, with their domains.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn watched(&self) -> Result<Vec<(u64, DomainId)>, KernelError> {
        Ok(self.tables.workers()?.into_iter().map(|(cgroup, domain)| (cgroup, DomainId(domain))).collect())
    }

    /// Ends the guard on all cgroups of a domain.
    pub(crate) fn unwatch_domain(&mut self, id: DomainId) -> Result<(), KernelError> {
        self.guarded.retain(|_, domain| *domain != Some(id));
        self.remove_guards(|link, _| matches!(link, LinkName::Guard { domain, .. } if domain == id.0))
    }

    fn remove_guards(&mut self, is_meant: impl Fn(LinkName, LinkInfo) -> bool) -> Result<(), KernelError> {
        for text in self.pins.link_names()? {
            let Some(link @ LinkName::Guard { cgroup, .. }) = LinkName::parse(&text) else { continue };
            let info = self.find_link(&text)?.unwrap_or(LinkInfo { program: 0, target: 0 });
            if is_meant(link, info) {
                // The link first: a guard that no longer knows its cgroup refuses everything.
                self.end_link(&text)?;
                self.tables.remove_worker(cgroup).map_err(map_error(name::WORKERS))?;
            }
        }
        Ok(())
    }

    /// Takes note of the links that an earlier agent left; removes those that hang on nothing any more.
    pub(crate) fn adopt_links(&mut self) -> Result<(), KernelError> {
        for text in self.pins.link_names()? {
            let pin = self.pins.link(&text);
            let Some(link) = LinkName::parse(&text) else {
                remove_link(&pin)?;
                continue;
            };
            match open_link(&pin)? {
                Some((held, info)) if link.is_target(info.target) => {
                    if let LinkName::Xdp { ifindex, mode } = link {
                        self.attached.insert(ifindex, mode);
                    }
                    self.links.insert(text, held);
                }
                _ => {
                    remove_link(&pin)?;
                    if let LinkName::Guard { cgroup, .. } = link {
                        self.tables.remove_worker(cgroup).map_err(map_error(name::WORKERS))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves a link to the program loaded now; returns whether it ran another one.
    pub(crate) fn update_link(&mut self, text: &str) -> Result<bool, KernelError> {
        let Some(link_name) = LinkName::parse(text) else { return Ok(false) };
        let (Some(link), Some(info)) = (self.links.get(text), self.find_link(text)?) else { return Ok(false) };
        let program = self.programs.find(link_name.program());
        if info.program == program.id {
            return Ok(false);
        }
        sys::update_link(link.as_fd(), program.fd())
            .map_err(|source| KernelError::Update { link: text.to_owned(), source })?;
        Ok(true)
    }

    pub(crate) fn pin_link(&mut self, link: OwnedFd, link_name: LinkName) -> Result<(), KernelError> {
        let name = link_name.to_string();
        let path = self.pins.link(&name);
        // A link of that name hangs on something that is gone, or it would have been adopted.
        remove_link(&path)?;
        sys::pin(link.as_fd(), &path).map_err(pin_error(&path))?;
        self.links.insert(name, link);
        Ok(())
    }

    /// What a link is; `None` when there is none of this name, or what it hung on is gone.
    pub(crate) fn find_link(&self, name: &str) -> Result<Option<LinkInfo>, KernelError> {
        let Some(link) = self.links.get(name) else { return Ok(None) };
        let info = sys::link_info(link.as_fd()).map_err(pin_error(&self.pins.link(name)))?;
        Ok((info.target != 0).then_some(info))
    }

    /// Ends a link and removes its pin.
    pub(crate) fn end_link(&mut self, name: &str) -> Result<(), KernelError> {
        if let Some(link) = self.links.remove(name) {
            // A link that has ended already cannot be ended again.
            let _ = sys::detach_link(link.as_fd());
        }
        remove_link(&self.pins.link(name))
    }
}

/// The folder of a cgroup and its id: the inode, which is what programs see (kernfs, 64 bit).
pub(crate) fn open_cgroup(path: &Path) -> Result<(fs::File, u64), KernelError> {
    let file_error = |source| KernelError::File { path: path.to_owned(), source };
    let folder = fs::File::open(path).map_err(file_error)?;
    let id = folder.metadata().map_err(file_error)?.ino();
    Ok((folder, id))
}

fn open_link(pin: &Path) -> Result<Option<(OwnedFd, LinkInfo)>, KernelError> {
    let link = match sys::open_pin(pin) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result.map_err(pin_error(pin))?,
    };
    let info = sys::link_info(link.as_fd()).map_err(pin_error(pin))?;
    Ok(Some((link, info)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_come_back_as_they_were_written() {
        let names = [
            LinkName::Xdp { ifindex: 7, mode: AttachMode::Generic },
            LinkName::Steer,
            LinkName::Observe { cgroup: 1 },
            LinkName::Guard { domain: 3, cgroup: u64::MAX, program: ProgramName::GuardSendmsg6 },
            LinkName::Borrowed { cgroup: 9, program: ProgramName::BorrowedBind4 },
        ];
        for name in names {
            let text = name.to_string();
            assert!(!text.contains('.'), "bpffs refuses dots");
            assert_eq!(LinkName::parse(&text), Some(name));
        }
        for text in [
            "",
            "xdp-",
            "xdp-1",
            "xdp-x-native",
            "guard-1-2",
            "guard-1-2-other",
            "borrowed-2-admit",
            "guard-1-2-admit",
            "steer2",
        ] {
            assert_eq!(LinkName::parse(text), None, "{text}");
        }
    }
}
