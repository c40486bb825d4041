//! Packages of Debian and Ubuntu: which are missing, and their installation without starting a service.
//!
//! A package counts as present when the file that is needed of it is there, however it came.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::Need;
use crate::{place, run};

/// A package and how its presence is seen.
#[derive(Clone, Debug)]
pub(super) struct Package {
    /// Its name for apt-get.
    pub(super) name: String,
    /// What is looked for.
    pub(super) sign: Sign,
}

/// What a package brings.
#[derive(Clone, Debug)]
pub(super) enum Sign {
    /// An executable in `PATH` or an `sbin` folder.
    Program(&'static str),
    /// A file or folder.
    File(PathBuf),
    /// A folder with a file whose name begins so.
    FileIn(PathBuf, &'static str),
}

impl Sign {
    pub(super) fn is_present(&self) -> bool {
        match self {
            Self::Program(name) => place::find_program(name).is_some(),
            Self::File(path) => path.exists(),
            Self::FileIn(dir, prefix) => fs::read_dir(dir).is_ok_and(|entries| {
                entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
            }),
        }
    }
}

/// The packages behind needs.
pub(super) fn of_needs(needs: &[Need]) -> Vec<Package> {
    let all = [
        (Need::Build, "gcc", "cc"),
        (Need::Build, "libc6-dev", "/usr/include/stdio.h"),
        (Need::Network, "iproute2", "ip"),
        (Need::Network, "ethtool", "ethtool"),
        (Need::Download, "ca-certificates", "/etc/ssl/certs"),
        (Need::Download, "curl", "curl"),
        (Need::Download, "unzip", "unzip"),
        (Need::Fuzz, "g++", "c++"),
        (Need::Peers, "bpftool", "bpftool"),
        (Need::Peers, "strace", "strace"),
        (Need::Peers, "nginx", "nginx"),
        (Need::Peers, "wrk", "wrk"),
        (Need::Peers, "nghttp2-client", "h2load"),
        // promtool comes with it.
        (Need::Company, "prometheus", "prometheus"),
        (Need::Company, "bpftool", "bpftool"),
        (Need::Cluster, "runc", "runc"),
        (Need::Cluster, "containernetworking-plugins", "/usr/lib/cni/bridge"),
        (Need::Cluster, "iptables", "iptables"),
        (Need::Cluster, "conntrack", "conntrack"),
        (Need::Cluster, "openssl", "openssl"),
        (Need::Cluster, "util-linux", "nsenter"),
    ];
    all.into_iter()
        .filter(|(need, ..)| needs.contains(need))
        .map(|(_, name, sign)| Package {
            name: name.to_owned(),
            sign: if sign.starts_with('/') { Sign::File(sign.into()) } else { Sign::Program(sign) },
        })
        .collect()
}

/// Packages that are services, under the name of their unit.
const SERVICES: [&str; 2] = ["nginx", "prometheus"];

/// Installs those of some packages that are missing.
///
/// # Errors
/// There is no apt-get, or no right to use it, or it fails. The error names what to install by hand.
pub(super) fn ensure(wanted: &[Package]) -> Result<()> {
    let missing: Vec<_> = wanted.iter().filter(|package| !package.sign.is_present()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<_> = missing.iter().map(|package| package.name.as_str()).collect();
    let names = names.join(" ");
    if !can_install() {
        bail!(
            "missing: {names}\nThis needs apt-get and root. Run `cargo xtask setup` as root on Debian or Ubuntu, or \
             install by hand what your distribution calls these packages (bringing: {})",
            missing.iter().map(|package| package.sign.to_string()).collect::<Vec<_>>().join(", ")
        );
    }
    let no_service = NoService::begin()?;
    run::step("refresh the package lists", apt().arg("update"))?;
    run::step(
        &format!("install {names}"),
        apt().args(["install", "--yes", "--no-install-recommends"]).args(names.split(' ')),
    )?;
    drop(no_service);
    // Their packages also have them started with the machine, on ports that gateways of this machine want.
    let services: Vec<_> = names.split(' ').filter(|name| SERVICES.contains(name)).collect();
    if !services.is_empty() && Path::new("/run/systemd/system").exists() {
        run::read(Command::new("systemctl").args(["disable", "--quiet"]).args(&services))?;
    }
    if let Some(package) = missing.iter().find(|package| !package.sign.is_present()) {
        bail!("apt-get installed {}, but there is no {}", package.name, package.sign);
    }
    Ok(())
}

/// Whether packages can be installed at all: apt-get, and root.
pub(super) fn can_install() -> bool {
    let is_root = run::read(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0");
    is_root && place::find_program("apt-get").is_some()
}

/// The version that apt-get would install of a package, as far as its lists know.
pub(super) fn candidate(package: &str) -> Option<String> {
    let policy = run::read(Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C")).ok()?;
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate: "))?;
    (version != "(none)").then(|| version.to_owned())
}

/// Refreshes the package lists.
///
/// # Errors
/// apt-get fails.
pub(super) fn refresh() -> Result<()> {
    run::step("refresh the package lists", apt().arg("update"))
}

fn apt() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

impl std::fmt::Display for Sign {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Program(name) => write!(f, "{name}"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::FileIn(dir, prefix) => write!(f, "{}/{prefix}*", dir.display()),
        }
    }
}

/// As long as it lives, packages that are installed start no service: `policy-rc.d` forbids it.
///
/// A policy that the machine has already is put aside and comes back, also after a run that was killed.
struct NoService;

const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_ASIDE: &str = "/usr/sbin/policy-rc.d.before-tidegate";
const POLICY_TEXT: &str =
    "#!/bin/sh\n# Written by Tidegate's `cargo xtask setup` for the time of an installation.\nexit 101\n";

impl NoService {
    fn begin() -> Result<Self> {
        Self::end();
        if Path::new(POLICY).exists() {
            fs::rename(POLICY, POLICY_ASIDE).with_context(|| format!("cannot put {POLICY} aside"))?;
        }
        fs::write(POLICY, POLICY_TEXT)
            .and_then(|()| fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {POLICY}, which keeps new services from starting"))?;
        Ok(Self)
    }

    /// Undoes what [`Self::begin`] did, whenever that was.
    fn end() {
        if fs::read_to_string(POLICY).is_ok_and(|text| text == POLICY_TEXT)
            && let Err(error) = fs::remove_file(POLICY)
        {
            run::note(&format!("remove {POLICY} by hand: {error}"));
        }
        if Path::new(POLICY_ASIDE).exists()
            && let Err(error) = fs::rename(POLICY_ASIDE, POLICY)
        {
            run::note(&format!("rename {POLICY_ASIDE} to {POLICY} by hand: {error}"));
        }
    }
}

impl Drop for NoService {
    fn drop(&mut self) {
        Self::end();
    }
}

/// Joins the names of packages for a message.
pub(super) fn names<'a>(packages: impl IntoIterator<Item = &'a Package>) -> String {
    packages.into_iter().map(|package| package.name.as_str()).collect::<Vec<_>>().join(" ")
}

/// The folder of an LLVM that apt-get installed.
pub(super) fn llvm_prefix(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{major}"))
}
