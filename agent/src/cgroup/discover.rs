//! Where the cgroup hierarchies of this host are and which group this process is in. Pure: works on the text of
//! `/proc/self/mountinfo` and `/proc/self/cgroup` (proc_pid_mountinfo(5), cgroups(7)).

use std::path::{Path, PathBuf};

/// The group of this process in each hierarchy that matters, as a path of the file system.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Hierarchies {
    /// cgroup v2.
    pub(super) v2: Option<PathBuf>,
    /// The v1 hierarchy with the `cpu` controller.
    pub(super) cpu: Option<PathBuf>,
    /// The v1 hierarchy with the `memory` controller.
    pub(super) memory: Option<PathBuf>,
}

impl Hierarchies {
    /// Every hierarchy that is there.
    pub(super) fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.v2, &self.cpu, &self.memory].into_iter().flatten()
    }
}

/// A group that has no name here: the mount shows more than this process's cgroup namespace, in which the group is the root
/// (a container that was given the node's hierarchy).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Nameless<'a> {
    /// Where the hierarchy is mounted.
    pub(super) mount: &'a Path,
    /// How many levels below that the namespace's root is.
    pub(super) depth: usize,
    /// The process's group below it.
    pub(super) below: &'a Path,
}

/// Reads both files. `own_leaf` is a child group that the process may have moved itself to: its parent is meant then. `find`
/// looks for a [`Nameless`] group; what it returns is the namespace's root.
pub(super) fn discover(
    mountinfo: &str,
    own: &str,
    own_leaf: &str,
    find: impl Fn(&Nameless<'_>) -> Option<PathBuf>,
) -> Hierarchies {
    let mut found = Hierarchies::default();
    for mount in mountinfo.lines().filter_map(parse_mount) {
        let group = |controller: Option<&str>| {
            let full = own_group(own, controller)?;
            let path = full;
            let path = path.strip_suffix(own_leaf).and_then(|path| path.strip_suffix('/')).unwrap_or(path);
            if let Some(depth) = levels_up(mount.root) {
                let below = Path::new(full.trim_start_matches('/'));
                let root = find(&Nameless { mount: Path::new(mount.point), depth, below })?;
                return Some(root.join(path.trim_start_matches('/')));
            }
            // Inside a container the mount's root is the container's group; a path outside of it cannot be reached.
            let below = Path::new(path).strip_prefix(mount.root).unwrap_or(Path::new(""));
            Some(Path::new(mount.point).join(below.strip_prefix("/").unwrap_or(below)))
        };
        match mount.kind {
            "cgroup2" if found.v2.is_none() => found.v2 = group(None),
            "cgroup" => {
                let has = |name: &str| mount.options.split(',').any(|option| option == name);
                if has("cpu") && found.cpu.is_none() {
                    found.cpu = group(Some("cpu"));
                }
                if has("memory") && found.memory.is_none() {
                    found.memory = group(Some("memory"));
                }
            }
            _ => {}
        }
    }
    found
}

/// How many levels a mount's root is above the root of the cgroup namespace, where it is (cgroup_namespaces(7)): `/../..`.
fn levels_up(root: &str) -> Option<usize> {
    let mut parts = root.strip_prefix('/')?.split('/').peekable();
    parts.peek().filter(|part| **part == "..")?;
    let parts: Vec<_> = parts.collect();
    parts.iter().all(|part| *part == "..").then_some(parts.len())
}

struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

/// `36 35 98:0 /root /point options [optional…] - type source options`
fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let kind = right.next()?;
    Some(Mount { root, point, kind, options: right.nth(1).unwrap_or_default() })
}

/// `4:cpu,cpuacct:/path` for v1, `0::/path` for v2.
fn own_group<'a>(own: &'a str, controller: Option<&str>) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = match controller {
            None => number == "0" && controllers.is_empty(),
            Some(name) => controllers.split(',').any(|other| other == name),
        };
        is_it.then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn none(_: &Nameless<'_>) -> Option<PathBuf> {
        None
    }

    #[test]
    fn in_a_cgroup_namespace_below_the_mount_the_group_is_looked_for() {
        let mounts = "9 1 0:26 /../../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let find = |nameless: &Nameless<'_>| {
            assert_eq!((nameless.mount, nameless.depth), (Path::new("/sys/fs/cgroup"), 3));
            assert!(["", "leaf"].map(Path::new).contains(&nameless.below));
            Some(PathBuf::from("/sys/fs/cgroup/kube/pod/me"))
        };
        for own in ["0::/\n", "0::/leaf\n"] {
            let found = discover(mounts, own, "leaf", find);
            assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/kube/pod/me/")), "{own}");
        }
        assert_eq!(discover(mounts, "0::/\n", "leaf", none), Hierarchies::default());
        // The container's own hierarchy, as runtimes mount it unless they are told otherwise.
        let found = discover("9 1 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n", "0::/\n", "leaf", none);
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/")));
    }

    #[test]
    fn finds_v1_and_v2_on_a_hybrid_host() {
        let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
            32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
            36 31 0:33 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let found = discover(mounts, "4:memory:/job/7\n1:cpu,cpuacct:/\n0::/\n", "leaf", none);
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified/")));
        assert_eq!(found.cpu.as_deref(), Some(Path::new("/sys/fs/cgroup/cpu/")));
        assert_eq!(found.memory.as_deref(), Some(Path::new("/sys/fs/cgroup/memory/job/7")));
    }

    #[test]
    fn stays_below_its_own_group_as_a_service_and_in_a_container() {
        let mounts = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = discover(mounts, "0::/system.slice/tidegate.service/leaf\n", "leaf", none);
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/system.slice/tidegate.service")));
        let mounts = "30 23 0:26 /pods/x /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let found = discover(mounts, "0::/pods/x/agent\n", "leaf", none);
        assert_eq!(found.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/agent")));
    }

    #[test]
    fn no_hierarchy_is_no_error() {
        assert_eq!(discover("garbage\n", "", "leaf", none), Hierarchies::default());
    }
}
