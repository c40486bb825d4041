//! Looking after what others can take away: pins, links, the BPF file system itself.
//!
//! The agent holds everything open that it has pinned, so a pin that goes ends nothing while the agent lives; it is put back.
//! A link that somebody has detached is made anew. Costs a few system calls for each link, so it is done every few seconds.

use std::{
    fs,
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
};

use crate::{Kernel, KernelError, attach::LinkName, interfaces::interface_name, pins::pin_error, probe::is_bpffs, sys};

/// What [`Kernel::keep_up`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upkeep {
    /// What was put back.
    pub repaired: Vec<String>,
    /// What could not be, and the mend.
    pub problems: Vec<String>,
}

impl Kernel {
    /// Puts back what somebody else has taken away: pins, links that were detached or run another program.
    pub fn keep_up(&mut self) -> Upkeep {
        let mut upkeep = Upkeep::default();
        if !is_bpffs(self.pins.bpffs()) {
            let bpffs = self.pins.bpffs().display();
            upkeep.problems.push(format!(
                "no BPF file system at {bpffs} any more: nothing judges once the agent ends; mount it: mount -t bpf bpf {bpffs}"
            ));
        } else if let Err(error) = self.keep_pins(&mut upkeep) {
            upkeep.problems.push(error.to_string());
        }
        let names: Vec<String> = self.links.keys().cloned().collect();
        for name in names {
            if let Err(error) = self.keep_link(&name, &mut upkeep) {
                upkeep.problems.push(error.to_string());
            }
        }
        upkeep
    }

    fn keep_pins(&mut self, upkeep: &mut Upkeep) -> Result<(), KernelError> {
        let closed = self.pins.create()?;
        upkeep.repaired.extend(closed.iter().map(|path| format!("{}: others could open it", path.display())));
        let folder = self.pins.current_maps(self.is_uncommitted)?;
        let mut missing = Vec::new();
        for (name, map) in &self.maps {
            missing.push((folder.join(name), map.as_fd()));
        }
        for (name, table) in self.rates.pins() {
            missing.push((folder.join(name), table));
        }
        // Until new maps are filled, the pinned programs are those of an earlier agent.
        for program in self.programs.iter().filter(|_| !self.is_uncommitted) {
            missing.push((self.pins.programs().join(program.name.as_str()), program.fd()));
        }
        for (name, link) in &self.links {
            missing.push((self.pins.link(name), link.as_fd()));
        }
        missing.retain(|(path, _)| !path.exists());
        for (path, object) in missing {
            sys::pin(object, &path).map_err(pin_error(&path))?;
            upkeep.repaired.push(format!("{}: the pin was gone", path.display()));
        }
        if !self.is_uncommitted {
            self.pins.mark_object(self.object)?;
        }
        Ok(())
    }

    fn keep_link(&mut self, name: &str, upkeep: &mut Upkeep) -> Result<(), KernelError> {
        let Some(link) = LinkName::parse(name) else { return Ok(()) };
        if self.find_link(name)?.is_some() {
            if !self.is_uncommitted && self.update_link(name)? {
                upkeep.repaired.push(format!("{name}: the link ran another program"));
            }
            return Ok(());
        }
        // Whatever it hung on may be gone too: that is no matter of this function, and attaching fails or finds nothing to do.
        match link {
            LinkName::Xdp { ifindex, .. } => {
                if nix::net::if_::if_indextoname(ifindex).is_err() {
                    return Ok(());
                }
                self.detach_interface(ifindex)?;
                self.attach_interface(ifindex)?;
                upkeep.repaired.push(format!("admit on {}: somebody had detached it", interface_name(ifindex)));
            }
            LinkName::Steer => {
                self.end_link(name)?;
                self.attach_steer()?;
                upkeep.repaired.push("steer: somebody had detached it".to_owned());
            }
            LinkName::Guard { .. } | LinkName::Borrowed { .. } | LinkName::Observe { .. } => {
                let is_of = |path: &Path| fs::metadata(path).is_ok_and(|found| Some(found.ino()) == link.cgroup());
                let Some((path, domain)) = self.guarded.iter().find(|(path, _)| is_of(path)) else { return Ok(()) };
                let (path, domain) = (path.clone(), *domain);
                self.end_link(name)?;
                match domain {
                    _ if matches!(link, LinkName::Observe { .. }) => self.attach_observe(&path)?,
                    Some(domain) => self.watch_cgroup(domain, &path)?,
                    None => self.watch_borrowed(&path)?,
                }
                upkeep.repaired.push(format!("{name}: somebody had detached it"));
            }
        }
        Ok(())
    }
}
