//! Control groups of the cluster: one in each hierarchy, with everything in it that the cluster starts, pods included.
//!
//! They are how nothing is left behind: whatever has become of the commands that started a process, it is in its group. The
//! cluster sees its groups as the roots of their hierarchies (cgroup_namespaces(7)).

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// Name of the cluster's group.
const GROUP: &str = "tidegate-cluster";
/// Group of the programs below it. In version 2 a group with processes hands no controllers to children (kernel
/// Documentation/admin-guide/cgroup-v2.rst, "No Internal Process Constraint"), and the kubelet wants them for its pods' groups.
const PROGRAMS: &str = "programs";
/// How long killed processes may take to end.
const END: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(20);

/// A hierarchy of control groups on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// Options to mount it with once more; `None` for version 2.
    pub(super) options: Option<String>,
    /// The group that the cluster's is made in.
    parent: PathBuf,
    /// Whether groups have controllers only when their parents hand them down: in version 2, where it is alone.
    hands_down: bool,
}

impl Hierarchy {
    /// The cluster's group.
    fn group(&self) -> PathBuf {
        self.parent.join(GROUP)
    }
}

/// The hierarchies of this machine.
///
/// # Errors
/// None is mounted.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    let found = discover(&fs::read_to_string("/proc/self/mountinfo")?, &fs::read_to_string("/proc/self/cgroup")?);
    if found.is_empty() {
        bail!("no control groups are mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`");
    }
    Ok(found)
}

/// Reads mounts (proc_pid_mountinfo(5)) and own groups (cgroups(7)).
fn discover(mounts: &str, own: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mounts.lines() {
        let Some((place, kind)) = line.split_once(" - ") else { continue };
        let place: Vec<_> = place.split(' ').collect();
        let kind: Vec<_> = kind.split(' ').collect();
        let (Some(root), Some(mount)) = (place.get(3), place.get(4)) else { continue };
        let options = match (kind.first(), kind.get(2)) {
            (Some(&"cgroup2"), _) => None,
            (Some(&"cgroup"), Some(options)) => Some(controllers(options)),
            _ => continue,
        };
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let is_it = fields.next()? == options.as_deref().unwrap_or_default();
            is_it.then(|| fields.next())?
        });
        let path = path.unwrap_or("/");
        let below = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(path).trim_start_matches('/');
        let mount = PathBuf::from(mount);
        if !found.iter().any(|other| other.options == options) {
            found.push(Hierarchy { parent: mount.join(below), mount, options, hands_down: false });
        }
    }
    // Where version 2 has the controllers, the group of a login session has processes, so none can be made in it.
    let only = found.len() == 1;
    for hierarchy in found.iter_mut().filter(|hierarchy| only && hierarchy.options.is_none()) {
        hierarchy.parent = hierarchy.mount.clone();
        hierarchy.hands_down = true;
    }
    found
}

/// Controllers and name among the options of a mount, in the kernel's own order.
fn controllers(options: &str) -> String {
    let others = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"];
    let words = options.split(',').filter(|word| !others.contains(word) && !word.starts_with("release_agent="));
    words.collect::<Vec<_>>().join(",")
}

/// Groups of the cluster, one in each hierarchy; they need not exist.
pub(super) fn of(hierarchies: &[Hierarchy]) -> Vec<PathBuf> {
    hierarchies.iter().map(Hierarchy::group).collect()
}

/// Makes the cluster's groups.
///
/// # Errors
/// One cannot be made, or cannot have its controllers.
pub(super) fn make(hierarchies: &[Hierarchy]) -> Result<()> {
    for hierarchy in hierarchies {
        let group = hierarchy.group();
        if hierarchy.hands_down {
            hand_down(&hierarchy.parent)?;
        }
        for folder in [&group, &group.join(PROGRAMS)] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            if hierarchy.options.is_some() {
                inherit(folder)?;
            }
        }
    }
    Ok(())
}

/// Lets pods have groups of their own with all controllers, once no process is in the cluster's outermost group any more.
///
/// # Errors
/// A process is in it.
pub(super) fn open(hierarchies: &[Hierarchy]) -> Result<()> {
    let handing = hierarchies.iter().filter(|hierarchy| hierarchy.hands_down);
    handing.map(Hierarchy::group).try_for_each(|group| hand_down(&group))
}

/// Controllers that [`make`] is going to have handed down by a group that is not the cluster's: they are to be given back.
pub(super) fn borrowed(hierarchies: &[Hierarchy]) -> Vec<String> {
    hierarchies
        .iter()
        .filter(|hierarchy| hierarchy.hands_down)
        .flat_map(|hierarchy| withheld(&hierarchy.parent))
        .collect()
}

/// Controllers that a group of version 2 has and its children do not.
fn withheld(group: &Path) -> Vec<String> {
    let read = |name| fs::read_to_string(group.join(name)).unwrap_or_default();
    let (controllers, handed) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    let withheld = controllers.split_whitespace().filter(|name| !handed.split_whitespace().any(|has| has == *name));
    withheld.map(str::to_owned).collect()
}

/// Gives the controllers that a group of version 2 has to its children.
fn hand_down(group: &Path) -> Result<()> {
    for controller in withheld(group) {
        let file = group.join("cgroup.subtree_control");
        fs::write(&file, format!("+{controller}")).with_context(|| {
            format!(
                "cannot hand {controller} to groups in {}: processes are in it (a container's root?)",
                group.display()
            )
        })?;
    }
    Ok(())
}

/// Copies from the parent what a group of cpuset, in version 1, needs before it takes a process.
fn inherit(group: &Path) -> Result<()> {
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let file = group.join(name);
        if fs::read_to_string(&file).is_ok_and(|value| value.trim().is_empty())
            && let Ok(value) = fs::read_to_string(group.join("..").join(name))
            && !value.trim().is_empty()
        {
            fs::write(&file, value).with_context(|| format!("cannot write {}", file.display()))?;
        }
    }
    Ok(())
}

/// A command that runs in the cluster's groups; `program` and its arguments follow.
pub(super) fn entering(groups: &[PathBuf], leaf: Leaf) -> Command {
    let mut command = Command::new("sh");
    command.args(["-ec", r#"while [ "$1" != -- ]; do echo $$ >"$1"; shift; done; shift; exec "$@""#, "enter"]);
    command.args(procs(groups, leaf)).arg("--");
    command
}

/// Files that a process enters the cluster's groups by, writing its id to each.
pub(super) fn procs(groups: &[PathBuf], leaf: Leaf) -> Vec<PathBuf> {
    let folder = match leaf {
        Leaf::Root => "",
        Leaf::Programs => PROGRAMS,
    };
    groups.iter().map(|group| group.join(folder).join("cgroup.procs")).collect()
}

/// Which of the cluster's groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaf {
    /// The outermost, which a new namespace takes as its root.
    Root,
    /// That of the programs.
    Programs,
}

/// Bytes of memory that everything in the cluster holds, page cache included; `None` where nobody counts.
pub(super) fn memory(groups: &[PathBuf]) -> Option<u64> {
    let files =
        groups.iter().flat_map(|group| ["memory.current", "memory.usage_in_bytes"].map(|name| group.join(name)));
    files.into_iter().find_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok())
}

/// Ends every process of the cluster, removes its groups, and gives back what was `borrowed` for them.
///
/// # Errors
/// Processes do not end, or a group stays.
pub(super) fn end(groups: &[PathBuf], borrowed: &[String]) -> Result<()> {
    let deadline = Instant::now() + END;
    loop {
        let mut alive: Vec<_> = groups.iter().flat_map(|group| processes(group)).collect();
        alive.sort_unstable();
        alive.dedup();
        if alive.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            bail!("processes of the cluster do not end: {}", alive.join(" "));
        }
        // Some have ended since; the others are all that counts.
        let _ = Command::new("sh").args(["-c", r#"kill -9 "$@" 2>/dev/null"#, "kill"]).args(&alive).status();
        thread::sleep(POLL);
    }
    for group in groups {
        let mut folders = below(group);
        folders.reverse();
        for folder in folders {
            remove(&folder, deadline)?;
        }
        for controller in borrowed {
            // Refused when somebody else has come to use it.
            let _ = fs::write(group.with_file_name("cgroup.subtree_control"), format!("-{controller}"));
        }
    }
    Ok(())
}

/// The kernel lets go of a group a moment after its last process.
fn remove(group: &Path, deadline: Instant) -> Result<()> {
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => thread::sleep(POLL),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", group.display()));
            }
            _ => return Ok(()),
        }
    }
}

/// Ids of all processes in a group and below.
fn processes(group: &Path) -> Vec<String> {
    let lists = below(group).into_iter().filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok());
    // Processes of other PID namespaces than this one are shown as 0.
    lists.flat_map(|list| list.lines().map(str::to_owned).collect::<Vec<_>>()).filter(|id| id != "0").collect()
}

/// A group and all below it, each before its children.
fn below(group: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut open = vec![group.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let children = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        open.extend(children.map(|entry| entry.path()));
        folders.push(folder);
    }
    folders
}

/// Mounts the hierarchies anew where commands run, so that their roots are the cluster's groups.
///
/// # Errors
/// One cannot be mounted.
pub(super) fn mount(hierarchies: &[Hierarchy], inside: impl Fn(&[&str]) -> Result<()>) -> Result<()> {
    if let [only] = hierarchies
        && only.options.is_none()
    {
        return inside(&["mount", "-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"]);
    }
    inside(&["mount", "-t", "tmpfs", "-o", "mode=755", "cgroup", "/sys/fs/cgroup"])?;
    for hierarchy in hierarchies {
        let name = hierarchy.mount.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let folder = format!("/sys/fs/cgroup/{name}");
        inside(&["mkdir", &folder])?;
        let Some(options) = &hierarchy.options else {
            inside(&["mount", "-t", "cgroup2", "cgroup2", &folder])?;
            continue;
        };
        inside(&["mount", "-t", "cgroup", "-o", options, "cgroup", &folder])?;
        for controller in options.split(',').filter(|controller| *controller != name && !controller.contains('=')) {
            inside(&["ln", "-s", &name, &format!("/sys/fs/cgroup/{controller}")])?;
        }
    }
    Ok(())
}

/// Says what is still there of the cluster's groups.
pub(super) fn left(groups: &[PathBuf]) -> Vec<String> {
    let there = groups.iter().filter(|group| group.exists());
    there.map(|group| format!("control group {}", group.display())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_a_hybrid_each_hierarchy_has_a_group_below_the_callers() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
";
        let own = "9:name=systemd:/\n4:memory:/a/b\n1:cpu,cpuacct:/\n0::/u\n";
        let found = discover(mounts, own);
        let options: Vec<_> = found.iter().map(|hierarchy| hierarchy.options.as_deref()).collect();
        assert_eq!(options, [Some("cpu,cpuacct"), Some("memory"), Some("name=systemd"), None]);
        assert_eq!(
            of(&found),
            [
                "/sys/fs/cgroup/cpu,cpuacct/tidegate-cluster",
                "/sys/fs/cgroup/memory/a/b/tidegate-cluster",
                "/sys/fs/cgroup/systemd/tidegate-cluster",
                "/sys/fs/cgroup/unified/u/tidegate-cluster",
            ]
            .map(PathBuf::from)
        );
    }

    #[test]
    fn with_version_2_alone_the_group_is_made_at_the_root() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = discover(mounts, "0::/user.slice/user-0.slice/session-1.scope\n");
        assert_eq!(of(&found), [PathBuf::from("/sys/fs/cgroup/tidegate-cluster")]);
    }

    #[test]
    fn a_hierarchy_that_is_mounted_from_below_its_root_counts_from_there() {
        let mounts = "35 31 0:32 /docker/abc /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
";
        let found = discover(mounts, "4:memory:/docker/abc/x\n5:pids:/\n");
        assert_eq!(of(&found)[0], PathBuf::from("/sys/fs/cgroup/memory/x/tidegate-cluster"));
    }

    #[test]
    fn a_second_mount_of_a_hierarchy_is_not_counted() {
        let mounts =
            "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n50 23 0:26 / /mnt/x rw - cgroup2 cgroup2 rw\n";
        assert_eq!(discover(mounts, "0::/\n").len(), 1);
    }
}
