//! Tools from crates.io, built into the cache; the folder's name carries the version, so a hit needs no question.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{
    compiler::{self, Compiler, Core},
    packages,
};
use crate::{place, run, versions};

/// The linker for what a compiler puts out, built with the LLVM that the compiler has.
///
/// # Errors
/// It cannot be built.
pub(super) fn bpf_linker(compiler: &Compiler) -> Result<PathBuf> {
    let llvm = compiler.llvm;
    let mut name = format!("bpf-linker-{}-llvm{llvm}", versions::BPF_LINKER);
    if let Core::Source(_) = compiler.core {
        // It is linked to this very compiler's library, so the compiler's version belongs to its name.
        let words = compiler.version.split(|c: char| !c.is_ascii_alphanumeric() && c != '.');
        name = words.filter(|word| !word.is_empty()).fold(name, |name, word| format!("{name}-{word}"));
    }
    if let Some(program) = find(&name, "bpf-linker")? {
        // A rustup tool chain may have been removed since, and its LLVM with it.
        if run::read(Command::new(&program).arg("--version")).is_ok() {
            return Ok(program);
        }
    }
    let llvm_prefix = match &compiler.core {
        Core::Compiled => {
            packages::ensure(&compiler::linker_packages(llvm))?;
            packages::llvm_prefix(llvm)
        }
        Core::Source(tool_chain) => link_llvm(tool_chain, &name)?,
    };
    let mut command = cargo_install("bpf-linker", versions::BPF_LINKER);
    command.args(["--no-default-features", "--features", &format!("llvm-{llvm}")]).env("LLVM_PREFIX", &llvm_prefix);
    install(&name, "bpf-linker", command)
}

/// Makes a folder with LLVM's library of a rustup tool chain under the name that linking asks for; returns the folder.
///
/// rustup ships `libLLVM.so.22.1-rust-1.97.0-nightly` and no `libLLVM.so`.
fn link_llvm(tool_chain: &Path, name: &str) -> Result<PathBuf> {
    let prefix = place::cache()?.join("tools").join(format!("{name}.llvm"));
    place::remove_folder(&prefix)?;
    let (from, to) = (tool_chain.join("lib"), prefix.join("lib"));
    fs::create_dir_all(&to).with_context(|| format!("cannot make {}", to.display()))?;
    let library = fs::read_dir(&from)
        .with_context(|| format!("cannot read {}", from.display()))?
        .flatten()
        .map(|entry| entry.file_name())
        .find(|file| file.to_string_lossy().starts_with("libLLVM.so."))
        .with_context(|| format!("{} has no libLLVM.so.*", from.display()))?;
    for link in [&*library, OsStr::new("libLLVM.so")] {
        symlink(from.join(&library), to.join(link)).with_context(|| format!("cannot link into {}", to.display()))?;
    }
    Ok(prefix)
}

/// The generator of types from CRDs.
///
/// # Errors
/// It cannot be built.
pub(crate) fn kopium() -> Result<PathBuf> {
    let name = format!("kopium-{}", versions::KOPIUM);
    match find(&name, "kopium")? {
        Some(program) => Ok(program),
        None => install(&name, "kopium", cargo_install("kopium", versions::KOPIUM)),
    }
}

/// The judge of dependencies, where it is installed in the cache or in `PATH`. It is built only on demand.
///
/// # Errors
/// It was demanded and cannot be built.
pub(crate) fn cargo_deny(is_demanded: bool) -> Result<Option<PathBuf>> {
    let name = format!("cargo-deny-{}", versions::CARGO_DENY);
    match find(&name, "cargo-deny")? {
        Some(program) => Ok(Some(program)),
        None if is_demanded => {
            install(&name, "cargo-deny", cargo_install("cargo-deny", versions::CARGO_DENY)).map(Some)
        }
        None => Ok(place::find_program("cargo-deny")),
    }
}

fn find(name: &str, program: &str) -> Result<Option<PathBuf>> {
    let file = place::cache()?.join("tools").join(name).join("bin").join(program);
    Ok(file.is_file().then_some(file))
}

fn cargo_install(package: &str, version: &str) -> Command {
    let mut command = Command::new("cargo");
    command.args(["install", "--locked", package, "--version", version]);
    // Flags and wrappers of the project's own build are not for tools.
    for variable in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "RUSTC"] {
        command.env_remove(variable);
    }
    command
}

/// Builds into a folder of its own and renames it at the end: a folder with the final name is complete.
fn install(name: &str, program: &str, mut command: Command) -> Result<PathBuf> {
    let tools = place::cache()?.join("tools");
    let (folder, partial) = (tools.join(name), tools.join(format!("{name}.partial-{}", std::process::id())));
    fs::create_dir_all(&tools).with_context(|| format!("cannot make {}", tools.display()))?;
    let target = place::target().join("xtask/tools").join(name);
    command.arg("--root").arg(&partial).env("CARGO_TARGET_DIR", &target).current_dir(&tools);
    let outcome = run::step(&format!("build {name} into {}", tools.display()), &mut command);
    place::remove_folder(&target)?;
    if let Err(error) = outcome {
        place::remove_folder(&partial)?;
        return Err(error);
    }
    place::remove_folder(&folder)?;
    fs::rename(&partial, &folder).with_context(|| format!("cannot rename {}", partial.display()))?;
    let file = folder.join("bin").join(program);
    if !file.is_file() {
        bail!("cargo install brought no {}", file.display());
    }
    Ok(file)
}
