//! Control groups of the workers: limits on CPU and memory, and the group that the guard is attached to.
//!
//! On a host with cgroup v2 one group does it all; on a hybrid host limits are in the v1 hierarchies and the guard in the
//! v2 hierarchy beside them. What this host cannot enforce is returned as text that names it, never left out in silence.

mod discover;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tidegate_model::{DomainName, ResourceLimits};
use tracing::debug;

use self::discover::{Hierarchies, Nameless, discover};

/// Period of the CPU quota in microseconds: the kernel's own default for both versions.
const CPU_PERIOD_US: u64 = 100_000;

/// Group that init and agent go to when the group they were started in must hand out controllers: cgroup v2 lets no
/// group do both (kernel Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint").
const OWN_LEAF: &str = "tidegate-agent";

/// The groups of one instance.
#[derive(Debug)]
pub struct Cgroups {
    hierarchies: Hierarchies,
    /// `tidegate/<instance>`, below the group that the agent was started in.
    folder: PathBuf,
}

/// Groups of one domain.
#[derive(Clone, Debug, Default)]
pub struct DomainGroups {
    /// `cgroup.procs` files that a worker enters.
    pub procs: Vec<PathBuf>,
    /// The v2 group, for the guard.
    pub guard: Option<PathBuf>,
    /// What is not enforced and why.
    pub unenforced: Vec<String>,
}

impl Cgroups {
    /// Finds the hierarchies of this host.
    pub fn discover(instance: &str) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let hierarchies = discover(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"), OWN_LEAF, find_own);
        debug!(?hierarchies, "cgroup hierarchies");
        Self { hierarchies, folder: Path::new("tidegate").join(instance) }
    }

    /// The group of version 2 that init was started in: it and groups below it hold the agent and every worker.
    pub fn base(&self) -> Option<&Path> {
        self.hierarchies.v2.as_deref()
    }

    /// Makes the folder of the instance in every hierarchy. Init does this: the root group of a hierarchy is writable for
    /// nobody (mode 0555), so that making a group in it takes `CAP_DAC_OVERRIDE`, which the agent does not have.
    pub fn prepare_instance(&self) {
        for base in self.hierarchies.all() {
            if let Err(error) = make(&base.join(&self.folder)) {
                // What depends on it is reported for each domain.
                debug!("{error}");
            }
        }
    }

    /// Makes the groups of a domain, or brings their limits up to date.
    pub fn prepare(&self, domain: &DomainName, limits: &ResourceLimits) -> DomainGroups {
        let mut groups = DomainGroups::default();
        let folder = self.folder.join(domain.as_str());
        if let Some(base) = &self.hierarchies.v2 {
            let group = base.join(&folder);
            match make(&group) {
                Ok(()) => {
                    groups.procs.push(group.join("cgroup.procs"));
                    groups.guard = Some(group);
                }
                Err(error) => groups.unenforced.push(format!("guard: {error}")),
            }
        } else {
            groups
                .unenforced
                .push("guard: no cgroup v2 hierarchy is mounted; mount -t cgroup2 none /sys/fs/cgroup".into());
        }
        let cpu = limits.cpu_millis.map(|millis| (millis.saturating_mul(CPU_PERIOD_US) / 1000).max(1000));
        self.limit(&mut groups, &folder, &CPU, cpu);
        self.limit(&mut groups, &folder, &MEMORY, limits.memory_bytes);
        groups
    }

    /// Removes the groups of a domain; its workers have ended. Groups that are still in use stay.
    pub fn remove(&self, domain: &DomainName) {
        self.remove_folder(&self.folder.join(domain.as_str()));
    }

    /// Removes the groups of domains that are not `wanted` any more, left by an agent before this one.
    pub fn remove_stale(&self, wanted: impl Fn(&str) -> bool) {
        let mut names: Vec<String> = Vec::new();
        for base in self.hierarchies.all() {
            let Ok(entries) = fs::read_dir(base.join(&self.folder)) else { continue };
            let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            names.extend(folders.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        for name in names.iter().filter(|name| !wanted(name)) {
            self.remove_folder(&self.folder.join(name));
        }
    }

    /// Removes the folder of the instance; its domains' groups are gone.
    pub fn remove_instance(&self) {
        self.remove_folder(&self.folder);
        self.remove_folder(Path::new("tidegate"));
    }

    fn remove_folder(&self, folder: &Path) {
        for base in self.hierarchies.all() {
            match fs::remove_dir(base.join(folder)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    debug!("cgroup {} stays: {error}", base.join(folder).display());
                }
                _ => {}
            }
        }
    }

    /// Sets one limit where the host has its controller, v2 first.
    fn limit(&self, groups: &mut DomainGroups, folder: &Path, controller: &Controller, limit: Option<u64>) {
        let outcome =
            if let Some(base) = self.hierarchies.v2.as_ref().filter(|base| has_controller(base, controller.name)) {
                enable(base, folder, controller.name).and_then(|()| (controller.write_v2)(&base.join(folder), limit))
            } else if let Some(base) = (controller.v1)(&self.hierarchies) {
                let group = base.join(folder);
                make(&group).and_then(|()| (controller.write_v1)(&group, limit)).inspect(|()| {
                    groups.procs.push(group.join("cgroup.procs"));
                })
            } else {
                Err(format!("this host has no {} controller", controller.name))
            };
        if let (Err(error), Some(_)) = (outcome, limit) {
            groups.unenforced.push(format!("{} limit: {error}", controller.name));
        }
    }
}

/// A controller and its files in both versions.
struct Controller {
    name: &'static str,
    v1: fn(&Hierarchies) -> Option<&PathBuf>,
    write_v2: fn(&Path, Option<u64>) -> Result<(), String>,
    write_v1: fn(&Path, Option<u64>) -> Result<(), String>,
}

const CPU: Controller = Controller {
    name: "cpu",
    v1: |hierarchies| hierarchies.cpu.as_ref(),
    write_v2: |group, quota| {
        let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
        write(&group.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}"))
    },
    write_v1: |group, quota| {
        write(&group.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
        write(&group.join("cpu.cfs_quota_us"), &quota.map_or("-1".to_owned(), |quota| quota.to_string()))
    },
};

const MEMORY: Controller = Controller {
    name: "memory",
    v1: |hierarchies| hierarchies.memory.as_ref(),
    write_v2: |group, bytes| {
        write(&group.join("memory.max"), &bytes.map_or("max".to_owned(), |bytes| bytes.to_string()))
    },
    write_v1: |group, bytes| {
        write(&group.join("memory.limit_in_bytes"), &bytes.map_or("-1".to_owned(), |bytes| bytes.to_string()))
    },
};

/// Finds the group that this process is in by its id: a list of a group's processes shows those of other PID namespaces, and
/// so those of other containers, as 0 or not at all (cgroups(7)).
fn find_own(nameless: &Nameless<'_>) -> Option<PathBuf> {
    let own = nix::unistd::getpid().to_string();
    let is_own = |group: &PathBuf| {
        let procs = fs::read_to_string(group.join(nameless.below).join("cgroup.procs")).unwrap_or_default();
        procs.lines().any(|pid| pid == own)
    };
    let mut level = vec![nameless.mount.to_owned()];
    for _ in 0..nameless.depth {
        let entries = level.iter().filter_map(|group| fs::read_dir(group).ok()).flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        level = folders.map(|entry| entry.path()).collect();
    }
    level.into_iter().find(is_own)
}

fn make(group: &Path) -> Result<(), String> {
    fs::create_dir_all(group).map_err(|error| format!("cannot make cgroup {}: {error}", group.display()))
}

fn write(file: &Path, text: &str) -> Result<(), String> {
    fs::write(file, text).map_err(|error| format!("cannot write {text:?} to {}: {error}", file.display()))
}

fn has_controller(group: &Path, name: &str) -> bool {
    let controllers = fs::read_to_string(group.join("cgroup.controllers")).unwrap_or_default();
    controllers.split_whitespace().any(|controller| controller == name)
}

/// Enables a controller in every group from `base` down to the parent of `base/folder`.
fn enable(base: &Path, folder: &Path, controller: &str) -> Result<(), String> {
    let mut group = base.to_owned();
    for part in folder.components() {
        let file = group.join("cgroup.subtree_control");
        if !fs::read_to_string(&file).unwrap_or_default().split_whitespace().any(|enabled| enabled == controller) {
            let enabled = fs::write(&file, format!("+{controller}")).or_else(|error| {
                if error.raw_os_error() != Some(libc::EBUSY) {
                    return Err(error);
                }
                move_own_processes(&group)?;
                fs::write(&file, format!("+{controller}"))
            });
            enabled.map_err(|error| format!("cannot enable it in {}: {error}", file.display()))?;
        }
        group.push(part);
    }
    Ok(())
}

/// Moves init and the agent out of a group that must hand out controllers.
fn move_own_processes(group: &Path) -> io::Result<()> {
    let leaf = group.join(OWN_LEAF);
    fs::create_dir_all(&leaf)?;
    let init = nix::unistd::getppid();
    for pid in [init, nix::unistd::getpid()] {
        fs::write(leaf.join("cgroup.procs"), pid.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder in place of a cgroup file system: files are made by the writes.
    fn hybrid(root: &Path) -> Cgroups {
        let base = |name: &str| Some(root.join(name));
        let hierarchies = Hierarchies { v2: base("unified"), cpu: base("cpu"), memory: base("memory") };
        Cgroups { hierarchies, folder: "tidegate/t".into() }
    }

    #[test]
    fn a_hybrid_host_limits_in_v1_and_guards_in_v2() {
        let root = tempfile::tempdir().unwrap();
        let cgroups = hybrid(root.path());
        let limits = ResourceLimits { cpu_millis: Some(1500), memory_bytes: Some(1 << 29) };
        let groups = cgroups.prepare(&DomainName::new("public"), &limits);
        assert_eq!(groups.unenforced, Vec::<String>::new());
        assert_eq!(groups.guard, Some(root.path().join("unified/tidegate/t/public")));
        assert_eq!(groups.procs.len(), 3);
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(read("cpu/tidegate/t/public/cpu.cfs_quota_us"), "150000");
        assert_eq!(read("memory/tidegate/t/public/memory.limit_in_bytes"), "536870912");
        cgroups.prepare(&DomainName::new("public"), &ResourceLimits::default());
        assert_eq!(read("cpu/tidegate/t/public/cpu.cfs_quota_us"), "-1");
    }

    #[test]
    fn a_host_of_version_2_does_it_all_in_one_group() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        fs::create_dir_all(root.path().join("tidegate/t/public")).unwrap();
        let hierarchies = Hierarchies { v2: Some(root.path().to_owned()), cpu: None, memory: None };
        let cgroups = Cgroups { hierarchies, folder: "tidegate/t".into() };
        let limits = ResourceLimits { cpu_millis: Some(500), memory_bytes: None };
        let groups = cgroups.prepare(&DomainName::new("public"), &limits);
        assert_eq!(groups.unenforced, Vec::<String>::new());
        assert_eq!(groups.procs, [root.path().join("tidegate/t/public/cgroup.procs")]);
        let read = |file: &str| fs::read_to_string(root.path().join(file)).unwrap();
        assert_eq!(read("tidegate/t/public/cpu.max"), "50000 100000");
        assert_eq!(read("tidegate/t/public/memory.max"), "max");
        for group in ["", "tidegate/", "tidegate/t/"] {
            assert!(read(&format!("{group}cgroup.subtree_control")).starts_with('+'), "not enabled in {group:?}");
        }
    }

    #[test]
    fn a_limit_that_cannot_be_enforced_is_named() {
        let root = tempfile::tempdir().unwrap();
        let mut cgroups = hybrid(root.path());
        cgroups.hierarchies.memory = None;
        cgroups.hierarchies.v2 = None;
        let limits = ResourceLimits { cpu_millis: None, memory_bytes: Some(1) };
        let groups = cgroups.prepare(&DomainName::new("public"), &limits);
        assert_eq!(groups.unenforced.len(), 2, "{:?}", groups.unenforced);
        assert!(groups.unenforced[0].starts_with("guard:"));
        assert_eq!(groups.unenforced[1], "memory limit: this host has no memory controller");
    }
}
