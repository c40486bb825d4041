//! The cluster's programs, compiled from the Go modules in `tests/cluster`: minutes once, then out of the cache.
//!
//! A folder in the cache is named after everything that it was made from, so a hit needs no question, and checkouts that pin
//! different versions have their programs side by side.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::crds::Release;
use crate::{
    place, run,
    setup::{self, Need},
    versions,
};

/// Where the modules are in the checkout.
const MODULES: &str = "tests/cluster";
/// The names that the one program of all Kubernetes programs goes by.
const KUBE_NAMES: [&str; 7] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"];
/// The module of the official suite.
const SUITE: &str = "sigs.k8s.io/gateway-api/conformance";
/// What the backend of the suite is made of: packages of the suite's module until v1.6, and since v1.7 of a module that no proxy
/// gives. The newer suite imports three of them, which did not change: it gets those of the older one.
const BACKEND: &str = "echo-basic";
const BACKEND_MODULE: &str = "sigs.k8s.io/gateway-api-conformance-images";
/// Its program.
const SUITE_PROGRAM: &str = "conformance.test";
/// The module of containerd, and its programs.
const CONTAINERD: &str = "github.com/containerd/containerd/v2";
const CONTAINERD_PROGRAMS: [&str; 3] = ["containerd", "containerd-shim-runc-v2", "ctr"];
/// Flags of all builds. Programs are stripped, so nothing is spent on debug information.
const GOFLAGS: &str = "-trimpath -buildvcs=false -gcflags=all=-dwarf=false -mod=readonly -modcacherw";
/// Digits of the hash in a folder's name: it tells versions apart, it guards nothing.
const HASH_DIGITS: usize = 16;

/// Everything that the cluster runs.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    /// Folder with etcd, the Kubernetes programs and kubectl, which are one file by several names.
    pub(super) kube: PathBuf,
    /// Folder with containerd, its shim and ctr.
    pub(super) containerd: PathBuf,
    /// Folder with the program of the CoreDNS image.
    pub(super) coredns: PathBuf,
    /// Folder with the program that holds a pod's namespaces.
    pub(super) pause: PathBuf,
    /// Folder with the backend of the conformance suite.
    pub(super) echo: PathBuf,
    /// Folder with the conformance suite.
    pub(super) conformance: PathBuf,
    /// Release of the suite.
    pub(super) release: Release,
}

impl Programs {
    /// What tells this set of programs from others.
    pub(super) fn fingerprint(&self) -> String {
        let folders = [&self.kube, &self.containerd, &self.coredns, &self.pause, &self.echo, &self.conformance];
        let names: Vec<_> = folders.iter().filter_map(|folder| folder.file_name()?.to_str()).collect();
        names.join(" ")
    }

    /// The official suite of the release that was asked for.
    pub(crate) fn conformance(&self) -> PathBuf {
        self.conformance.join(SUITE_PROGRAM)
    }
}

/// Compiles what is not in the cache.
///
/// # Errors
/// Go cannot be had, or something does not compile.
pub(crate) fn programs(release: Release) -> Result<Programs> {
    let go = Go::find()?;
    let _lock = lock()?;
    let pause = go.build("pause", &Module::new("pause")?, &["build", "-ldflags", "-s -w"], &["."])?;
    let conformance = go.build_suite(release)?;
    let echo = go.build(
        "echo-basic",
        &Module::new("conformance")?,
        &["build", "-ldflags", "-s -w"],
        &[&format!("{SUITE}/echo-basic")],
    )?;
    let coredns = go.build("coredns", &Module::new("coredns")?, &["build", "-ldflags", "-s -w"], &["."])?;
    let (containerd, kube) = (go.build_containerd()?, go.build_kube()?);
    Ok(Programs { kube, containerd, coredns, pause, echo, conformance, release })
}

/// Compiles the official suite alone; returns it.
///
/// # Errors
/// As [`programs`].
pub(crate) fn suite(release: Release) -> Result<PathBuf> {
    let go = Go::find()?;
    let _lock = lock()?;
    Ok(go.build_suite(release)?.join(SUITE_PROGRAM))
}

/// Keeps other builds of the same away: two would need the memory of both, and do the work twice.
fn lock() -> Result<File> {
    let path = place::cache()?.join("cluster/lock");
    place::write(&path, "")?;
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    if file.try_lock().is_err() {
        run::note("waiting for another build of the test cluster's programs");
        file.lock().context("cannot lock the cluster's cache")?;
    }
    Ok(file)
}

/// What Kubernetes' own build tells its programs: without a version they do not start.
fn kube_flags(version: &str) -> String {
    let numbers: Vec<_> = version.trim_start_matches('v').split('.').collect();
    let (major, minor) = (numbers.first().unwrap_or(&""), numbers.get(1).unwrap_or(&""));
    let facts = [
        ("gitVersion", version),
        ("gitMajor", major),
        ("gitMinor", minor),
        ("gitTreeState", "clean"),
        ("gitCommit", "unknown"),
    ];
    let facts = facts.map(|(name, value)| format!(" -X k8s.io/component-base/version.{name}={value}"));
    format!("-s -w{}", facts.concat())
}

/// Files of the conformance suite's module, whose manifests name the images that they want.
pub(super) fn suite_sources(release: Release) -> Result<PathBuf> {
    let go = Go::find()?;
    match release {
        Release::Suite => go.sources_of_suite(&go.command(&Module::new("conformance")?)),
        Release::Types => go.sources_of_suite(&go.newer(go.command(&go.assemble()?))),
    }
}

/// A module of the checkout.
struct Module {
    folder: PathBuf,
}

impl Module {
    fn new(name: &str) -> Result<Self> {
        Self::at(place::root().join(MODULES).join(name))
    }

    fn at(folder: PathBuf) -> Result<Self> {
        fs::metadata(folder.join("go.mod")).with_context(|| format!("{} is no Go module", folder.display()))?;
        Ok(Self { folder })
    }

    /// The version of something that it requires.
    fn version(&self, of: &str) -> Result<String> {
        let file = self.folder.join("go.mod");
        let text = fs::read_to_string(&file)?;
        required(&text, of).with_context(|| format!("{} requires no {of}", file.display()))
    }

    fn hash_into(&self, hash: &mut Sha256) -> Result<()> {
        let mut files = place::files_below(&self.folder)?;
        files.sort();
        for file in files {
            let name = file.strip_prefix(&self.folder).expect("it was found there");
            let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            hash.update(format!("{} {}\n", name.display(), content.len()));
            hash.update(content);
        }
        Ok(())
    }
}

/// The version that a go.mod requires of a module.
fn required(go_mod: &str, module: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word == "require");
        (words.next()? == module).then(|| words.next().map(str::to_owned))?
    })
}

/// The compiler, with caches of its own.
struct Go {
    program: PathBuf,
    caches: PathBuf,
}

impl Go {
    fn find() -> Result<Self> {
        setup::ensure(&[Need::Download])?;
        Ok(Self { program: setup::go()?, caches: place::cache()?.join("cluster/go") })
    }

    /// Go in a module, apart from what the user has set for his own programs.
    fn command(&self, module: &Module) -> Command {
        let mut command = Command::new(&self.program);
        command.current_dir(&module.folder).env("GOMODCACHE", self.caches.join("mod"));
        command.env("GOCACHE", self.caches.join("build")).env("GOFLAGS", GOFLAGS).env("GOTOOLCHAIN", "local");
        command.env("CGO_ENABLED", "0").env("GOWORK", "off");
        command
    }

    fn build_suite(&self, release: Release) -> Result<PathBuf> {
        let flags = ["test", "-c", "-ldflags", "-s -w"];
        match release {
            Release::Suite => self.build(SUITE_PROGRAM, &Module::new("conformance")?, &flags, &["."]),
            Release::Types => {
                let module = self.assemble()?;
                self.build_by(self.newer(self.command(&module)), SUITE_PROGRAM, &module, &flags, &["."])
            }
        }
    }

    /// A command of the Go that the newer suite asks for.
    fn newer(&self, mut command: Command) -> Command {
        command.env("GOTOOLCHAIN", versions::SUITE_GO);
        command
    }

    fn sources_of_suite(&self, list: &Command) -> Result<PathBuf> {
        let mut words = Command::new(list.get_program());
        words.current_dir(list.get_current_dir().unwrap_or(&self.caches));
        words.envs(list.get_envs().filter_map(|(name, value)| Some((name, value?))));
        Ok(run::read(words.args(["list", "-m", "-f", "{{.Dir}}", SUITE]))?.trim().into())
    }

    /// Puts the module of the newer suite together: with the backend's packages, see [`BACKEND`].
    fn assemble(&self) -> Result<Module> {
        let older = Module::new("conformance")?;
        let backend = self.sources_of_suite(&self.command(&older))?.join(BACKEND);
        let newer = Module::new("conformance-1.7")?;
        let folder = self.caches.with_file_name("suite-1.7");
        place::remove_folder(&folder)?;
        for name in ["go.mod", "go.sum"] {
            place::write(&folder.join(name), fs::read(newer.folder.join(name))?)?;
        }
        let program = "conformance_test.go";
        place::write(&folder.join(program), fs::read(older.folder.join(program))?)?;
        let images = folder.join("images");
        place::write(&images.join("go.mod"), format!("module {BACKEND_MODULE}\n\ngo 1.26.0\n"))?;
        // Imports alone: the same words stand in a descriptor of protobuf, which says how long they are.
        let (from, to) = (format!("\"{SUITE}/{BACKEND}"), format!("\"{BACKEND_MODULE}/{BACKEND}"));
        for file in place::files_below(&backend)? {
            let name = file.strip_prefix(&backend).expect("it was found there");
            let is_program = name.extension().is_some_and(|extension| extension == "go");
            if is_program && !name.to_string_lossy().ends_with("_test.go") {
                let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
                place::write(&images.join(BACKEND).join(name), text.replace(&from, &to))?;
            }
        }
        Module::at(folder)
    }

    fn build_containerd(&self) -> Result<PathBuf> {
        let module = Module::new("containerd")?;
        let flags = format!("-s -w -X {CONTAINERD}/version.Version={}", module.version(CONTAINERD)?);
        let packages = CONTAINERD_PROGRAMS.map(|name| format!("{CONTAINERD}/cmd/{name}"));
        self.build(
            "containerd",
            &module,
            &["build", "-tags", "no_btrfs,no_devmapper,no_zfs", "-ldflags", &flags],
            &packages.each_ref().map(String::as_str),
        )
    }

    fn build_kube(&self) -> Result<PathBuf> {
        let module = Module::new("kube")?;
        let flags = kube_flags(&module.version("k8s.io/kubernetes")?);
        let folder = self.build("kube", &module, &["build", "-ldflags", &flags], &["."])?;
        for name in KUBE_NAMES {
            let link = folder.join(name);
            if !link.exists() {
                symlink("kube", &link).with_context(|| format!("cannot link {}", link.display()))?;
            }
        }
        Ok(folder)
    }

    /// Builds into a folder of its own and renames it at the end: a folder with the final name is complete.
    fn build(&self, name: &str, module: &Module, flags: &[&str], packages: &[&str]) -> Result<PathBuf> {
        self.build_by(self.command(module), name, module, flags, packages)
    }

    /// The same, by a given command in the module.
    fn build_by(
        &self,
        mut command: Command,
        name: &str,
        module: &Module,
        flags: &[&str],
        packages: &[&str],
    ) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        hash.update(format!("{} {} {GOFLAGS} {flags:?} {packages:?}\n", versions::GO, env::consts::ARCH));
        module.hash_into(&mut hash)?;
        let hash = format!("{:x}", hash.finalize());
        let folder = place::cache()?.join("cluster/programs").join(format!("{name}-{}", &hash[..HASH_DIGITS]));
        if folder.is_dir() {
            return Ok(folder);
        }
        let partial = folder.with_file_name(format!("{name}.partial"));
        place::remove_folder(&partial)?;
        fs::create_dir_all(&partial).with_context(|| format!("cannot make {}", partial.display()))?;
        command.args(flags).arg("-o").arg(output(&partial, name, packages)).args(packages);
        run::step(&format!("build {name} for the test cluster{}", Self::warning(name)), &mut command)?;
        fs::rename(&partial, &folder).with_context(|| format!("cannot rename {}", partial.display()))?;
        Ok(folder)
    }

    /// What is said of a build that makes people wonder.
    fn warning(name: &str) -> &'static str {
        if name == "kube" { " (up to 10 min, once)" } else { "" }
    }
}

/// What Go is told to write: a file, or a folder where there are several.
fn output(folder: &Path, name: &str, packages: &[&str]) -> OsString {
    if packages.len() == 1 {
        return folder.join(name).into_os_string();
    }
    let mut folder = folder.as_os_str().to_owned();
    folder.push("/");
    folder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite_version(module: &str) -> String {
        Module::new(module).unwrap().version(SUITE).unwrap()
    }

    #[test]
    fn the_version_of_a_requirement_is_found_in_both_forms() {
        let go_mod = "module x\n\nrequire a.b/c v1.2.3\n\nrequire (\n\ta.b/c/d v4.5.6 // indirect\n)\n";
        assert_eq!(required(go_mod, "a.b/c").as_deref(), Some("v1.2.3"));
        assert_eq!(required(go_mod, "a.b/c/d").as_deref(), Some("v4.5.6"));
        assert_eq!(required(go_mod, "a.b"), None);
    }

    #[test]
    fn the_suite_and_its_crds_are_of_one_release() {
        assert_eq!(suite_version("conformance"), versions::CONFORMANCE_CRDS.version);
        assert_eq!(suite_version("conformance-1.7"), versions::GATEWAY_API);
    }

    #[test]
    fn kubernetes_is_told_its_version() {
        let flags = kube_flags("v1.37.2");
        assert!(flags.contains("version.gitMajor=1 ") && flags.contains("version.gitMinor=37 "), "{flags}");
    }
}
