//! Whether this host can do it, before anything is touched: each thing that is missing is named with its mend.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use nix::{
    mount::{MsFlags, mount},
    sys::statfs::{FsType, statfs},
};

use crate::{programs::INGRESS_SINCE, requirements::find_missing};

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
const OSRELEASE: &str = "/proc/sys/kernel/osrelease";
/// The oldest kernel that the programs are written for.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Capabilities (number, name) that loading and attaching take; CAP_SYS_ADMIN stands for all of them.
const CAPABILITIES: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];
const CAP_SYS_ADMIN: u32 = 21;

/// What a host has that matters later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Features {
    /// Release of the kernel.
    pub kernel: String,
    /// Where cgroup v2 is mounted.
    pub cgroup2: PathBuf,
    /// What works but could be better.
    pub warnings: Vec<String>,
}

/// One thing that a host lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What.
    pub feature: &'static str,
    /// What was found instead.
    pub found: String,
    /// What to do about it.
    pub mend: String,
}

/// Everything that a host lacks.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct ProbeError {
    /// In the order of checking; never empty.
    pub missing: Vec<Missing>,
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, missing) in self.missing.iter().enumerate() {
            let separator = if index == 0 { "" } else { "\n" };
            write!(f, "{separator}{}: {}; {}", missing.feature, missing.found, missing.mend)?;
        }
        Ok(())
    }
}

/// Looks for everything that the kernel tier needs. Loads tiny programs to see what the kernel takes, attaches nothing.
///
/// # Errors
/// What is missing, all of it.
pub fn probe(bpffs: &Path) -> Result<Features, ProbeError> {
    let mut missing = Vec::new();
    missing.extend(find_missing_capabilities());
    let kernel = fs::read_to_string(OSRELEASE).unwrap_or_default().trim().to_owned();
    if parse_release(&kernel).is_none_or(|release| release < OLDEST_KERNEL) {
        let (major, minor) = OLDEST_KERNEL;
        missing.push(Missing {
            feature: "kernel",
            found: format!("release {kernel:?}"),
            mend: format!("Linux {major}.{minor} or newer is needed"),
        });
    }
    // Without capabilities everything looks unsupported.
    if missing.is_empty() {
        missing.extend(find_missing());
    }
    let cgroup2 = cgroup2();
    if cgroup2.is_none() {
        missing.push(Missing {
            feature: "cgroup v2",
            found: "not mounted".to_owned(),
            mend: "mount it: mount -t cgroup2 none /sys/fs/cgroup/unified".to_owned(),
        });
    }
    if !is_bpffs(bpffs) {
        missing.push(Missing {
            feature: "BPF file system",
            found: format!("none at {}", bpffs.display()),
            mend: format!("mount it: mount -t bpf bpf {}", bpffs.display()),
        });
    }
    match cgroup2 {
        Some(cgroup2) if missing.is_empty() => Ok(Features { kernel, cgroup2, warnings: find_warnings() }),
        _ => Err(ProbeError { missing }),
    }
}

/// Where cgroup v2 is mounted.
pub(crate) fn cgroup2() -> Option<PathBuf> {
    find_cgroup2(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Mounts a BPF file system at `path`, making the folder, unless one is there; returns whether it did.
///
/// # Errors
/// When the folder cannot be made or the mount is refused (needs CAP_SYS_ADMIN).
pub fn mount_bpffs(path: &Path) -> io::Result<bool> {
    if is_bpffs(path) {
        return Ok(false);
    }
    fs::create_dir_all(path)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))?;
    Ok(true)
}

pub(crate) fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == FsType(BPF_FS_MAGIC as _))
}

fn find_missing_capabilities() -> Option<Missing> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = parse_capabilities(&status).unwrap_or(0);
    let has = |number: u32| effective >> number & 1 == 1;
    if has(CAP_SYS_ADMIN) && has(CAPABILITIES[0].0) {
        return None;
    }
    let lacking: Vec<&str> = CAPABILITIES.iter().filter(|(number, _)| !has(*number)).map(|(_, name)| *name).collect();
    if lacking.is_empty() {
        return None;
    }
    Some(Missing {
        feature: "capabilities",
        found: format!("{} lacking", lacking.join(", ")),
        mend: "run as root or with these capabilities".to_owned(),
    })
}

fn parse_capabilities(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn parse_release(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Where cgroup v2 is mounted: the first such line of mountinfo (proc(5)), whose fifth field is the place and whose field
/// behind ` - ` is the type.
fn find_cgroup2(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        (kind.split(' ').next()? == "cgroup2").then(|| place.split(' ').nth(4).map(PathBuf::from))?
    })
}

/// Whether the running kernel is older than a release. Distributions carry features back, so this only explains a refusal.
pub(crate) fn is_older_than(release: (u32, u32)) -> bool {
    fs::read_to_string(OSRELEASE)
        .ok()
        .and_then(|text| parse_release(text.trim()))
        .is_some_and(|running| running < release)
}

fn find_warnings() -> Vec<String> {
    let mut warnings = Vec::new();
    if is_older_than(INGRESS_SINCE) {
        let (major, minor) = INGRESS_SINCE;
        warnings.push(format!(
            "kernels before {major}.{minor} do not tell where a new connection came in: one that reaches a frontend around its \
             NIC (from a pod of this node, a bridge, a tunnel) is judged by its source only"
        ));
    }
    // The file shows the namespace of who reads it, which is where listening sockets are made.
    if fs::read_to_string("/proc/sys/net/ipv4/tcp_syncookies").is_ok_and(|value| value.trim() == "0") {
        warnings.push(
            "SYN cookies are off: a SYN flood fills the queues of frontends and clients get no answer, also with              synCookies: XDP; set sysctl net.ipv4.tcp_syncookies=1"
                .into(),
        );
    }
    if fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").is_ok_and(|value| value.trim() == "0") {
        warnings.push(
            "BPF programs are interpreted: sysctl net.core.bpf_jit_enable=1 makes them several times faster".into(),
        );
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_cgroup2_in_hybrid_and_unified_layouts() {
        let hybrid = "30 25 0:26 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      31 25 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        assert_eq!(find_cgroup2(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(
            find_cgroup2("31 25 0:27 / /sys/fs/cgroup rw shared:4 - cgroup2 x rw\n"),
            Some("/sys/fs/cgroup".into())
        );
        assert_eq!(find_cgroup2("1 2 3 - tmpfs tmpfs rw"), None);
    }

    #[test]
    fn reads_releases_and_capabilities() {
        assert_eq!(parse_release("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(parse_release("5.15"), Some((5, 15)));
        assert_eq!(parse_release("linux"), None);
        assert_eq!(parse_capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
    }

    #[test]
    fn each_missing_thing_is_a_line_with_its_mend() {
        let missing = |feature| Missing { feature, found: "none".into(), mend: "mount it".into() };
        let error = ProbeError { missing: vec![missing("a"), missing("b")] };
        assert_eq!(error.to_string(), "a: none; mount it\nb: none; mount it");
    }
}
