//! Finds a rustc that compiles for `bpfel-unknown-none`, a target that rustup ships no library for.
//!
//! Two kinds do: one with a compiled `core` for the target (Debian's `rustc-web`), or one with the library's source, which
//! cargo then compiles too (any rustup tool chain with `rust-src`). Both take `RUSTC_BOOTSTRAP=1`, so none has to be a nightly.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::packages::{self, Package, Sign};
use crate::{
    place, run,
    versions::{BPF_LINKER_LLVM, BPF_RUSTC_MINOR, DEBIAN_LLVM},
};

/// The target of the BPF programs.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Debian's compiler: its path, and what comes with it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// A rustup that cannot reach its server tries for minutes: seconds after which it is given up.
const RUSTUP_TIMEOUT: &str = "90";

/// A rustc that compiles BPF programs.
#[derive(Debug)]
pub(crate) struct Compiler {
    /// The executable.
    pub(crate) rustc: PathBuf,
    /// What `rustc --version` says.
    pub(crate) version: String,
    /// Its LLVM's major version.
    pub(crate) llvm: u32,
    /// Where `core` comes from.
    pub(crate) core: Core,
}

/// Where a compiler's `core` for [`TARGET`] comes from.
#[derive(Debug)]
pub(crate) enum Core {
    /// It is there, compiled; LLVM's library is a Debian package.
    Compiled,
    /// Cargo compiles it from the `rust-src` of this rustup tool chain, which also holds LLVM's library.
    Source(PathBuf),
}

impl Compiler {
    /// The first usable one: Debian's, then rustup's tool chains, nightly before stable before others.
    pub(crate) fn find() -> Option<Self> {
        Self::debian().or_else(|| rustup_tool_chains().iter().find_map(|dir| Self::rustup(dir)))
    }

    fn debian() -> Option<Self> {
        let compiled = Path::new("/usr/lib/rustlib").join(TARGET).join("lib");
        if !Sign::FileIn(compiled, "libcore-").is_present() {
            return None;
        }
        Self::probe(Path::new(DEBIAN_RUSTC), Core::Compiled)
    }

    fn rustup(dir: &Path) -> Option<Self> {
        if !dir.join("lib/rustlib/src/rust/library/core/src/lib.rs").exists() {
            return None;
        }
        Self::probe(&dir.join("bin/rustc"), Core::Source(dir.to_path_buf()))
    }

    /// Asks a rustc for its versions; `None` where it is too old, or of an LLVM that the linker has no feature for.
    fn probe(rustc: &Path, core: Core) -> Option<Self> {
        let said = run::read(Command::new(rustc).arg("-vV").env_remove("RUSTUP_TOOLCHAIN")).ok()?;
        let field = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let release = field("release:")?;
        let minor: u32 = release.strip_prefix("1.")?.split('.').next()?.parse().ok()?;
        let llvm: u32 = field("LLVM version:")?.split('.').next()?.parse().ok()?;
        if minor < BPF_RUSTC_MINOR || !BPF_LINKER_LLVM.contains(&llvm) {
            return None;
        }
        Some(Self { rustc: rustc.to_path_buf(), version: said.lines().next()?.to_owned(), llvm, core })
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let core = match self.core {
            Core::Compiled => "core compiled",
            Core::Source(_) => "core from rust-src",
        };
        write!(f, "{} ({}, LLVM {}, {core})", self.version, self.rustc.display(), self.llvm)
    }
}

/// Installs a compiler: Debian's packages where apt-get offers them, else `rust-src` for the rustup tool chain in use.
///
/// # Errors
/// Neither can be had; the error says what to install by hand.
pub(super) fn install() -> Result<Compiler> {
    let packages = debian_packages();
    run::note(&format!("no compiler for {TARGET} on this machine; one is installed now"));
    let mut why_not = Vec::new();
    if packages::can_install() {
        if packages::candidate("rustc-web").is_none() {
            packages::refresh()?;
        }
        match packages::candidate("rustc-web") {
            Some(version) if minor_of_package(&version) >= Some(BPF_RUSTC_MINOR) => {
                packages::ensure(&packages)?;
                return Compiler::find().context("rustc-web is installed, but does not compile for BPF");
            }
            Some(version) => {
                why_not.push(format!("apt-get offers rustc-web {version} only, 1.{BPF_RUSTC_MINOR} is needed"))
            }
            None => why_not.push("apt-get offers no rustc-web".to_owned()),
        }
    } else {
        why_not.push("no apt-get, or not root".to_owned());
    }
    match add_rust_src() {
        Ok(()) => match Compiler::find() {
            Some(compiler) => return Ok(compiler),
            None => {
                why_not.push("rustup's tool chain is too old or its LLVM is not one that bpf-linker knows".to_owned())
            }
        },
        Err(error) => why_not.push(format!("{error:#}")),
    }
    bail!(
        "no compiler for {TARGET} can be installed here:\n- {}\nInstall by hand either Debian's packages ({}) or \
         `rustup component add rust-src`",
        why_not.join("\n- "),
        packages::names(&packages)
    )
}

fn debian_packages() -> Vec<Package> {
    let compiled = Path::new("/usr/lib/rustlib").join(TARGET).join("lib");
    let mut packages = vec![
        Package { name: "rustc-web".to_owned(), sign: Sign::File(DEBIAN_RUSTC.into()) },
        Package { name: "libstd-rust-web-dev-bpf".to_owned(), sign: Sign::FileIn(compiled, "libcore-") },
    ];
    packages.extend(linker_packages(DEBIAN_LLVM));
    packages
}

/// What building the linker with Debian's LLVM needs.
pub(super) fn linker_packages(llvm: u32) -> Vec<Package> {
    let library = packages::llvm_prefix(llvm).join("lib");
    vec![
        Package { name: format!("llvm-{llvm}-dev"), sign: Sign::FileIn(library.clone(), "libLLVM.so") },
        Package { name: format!("libpolly-{llvm}-dev"), sign: Sign::FileIn(library, "libPolly") },
        Package { name: "libzstd-dev".to_owned(), sign: Sign::File("/usr/include/zstd.h".into()) },
        Package { name: "zlib1g-dev".to_owned(), sign: Sign::File("/usr/include/zlib.h".into()) },
    ]
}

/// The minor version in a Debian version such as `1.96.0+dfsg1-1~deb12u2`.
fn minor_of_package(version: &str) -> Option<u32> {
    let version = version.split_once(':').map_or(version, |(_epoch, version)| version);
    version.strip_prefix("1.")?.split('.').next()?.parse().ok()
}

fn rustup_home() -> Option<PathBuf> {
    env::var_os("RUSTUP_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".rustup")))
}

/// Folders of rustup's tool chains, in the order in which they are tried.
fn rustup_tool_chains() -> Vec<PathBuf> {
    let Some(entries) = rustup_home().and_then(|home| fs::read_dir(home.join("toolchains")).ok()) else {
        return Vec::new();
    };
    let mut dirs: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    dirs.sort_by_key(|dir| {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        (!name.starts_with("nightly"), !name.starts_with("stable"), name)
    });
    dirs
}

fn add_rust_src() -> Result<()> {
    if place::find_program("rustup").is_none() {
        bail!("no rustup");
    }
    let mut command = Command::new("timeout");
    command.args([RUSTUP_TIMEOUT, "rustup", "component", "add", "rust-src"]).current_dir(place::root());
    run::step("add rust-src to rustup's tool chain", &mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minor_version_of_a_package_is_read_with_and_without_epoch() {
        assert_eq!(minor_of_package("1.96.0+dfsg1-1~deb12u2"), Some(96));
        assert_eq!(minor_of_package("2:1.85.1-2"), Some(85));
        assert_eq!(minor_of_package("(none)"), None);
    }
}
