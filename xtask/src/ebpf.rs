//! `ebpf`: builds `ebpf/programs` and puts the object where the build script of `tidegate-kernel` looks for it.
//!
//! The programs are a workspace of their own, because target and compiler differ. Nothing is built while sources, pinned
//! versions and compiler are those of the last object.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::{
    place, run,
    setup::{self, BpfTools, Core, TARGET},
};

/// Folders that make up the object.
const SOURCES: [&str; 2] = ["ebpf/abi", "ebpf/programs"];
/// The binary of `ebpf/programs` that agents load.
const BINARY: &str = "tidegate";
/// The one that the bench loads.
const TRIAL: &str = "trial";

/// What `ebpf` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build even when nothing changed.
    #[arg(long)]
    force: bool,
}

/// Builds the object and says where it is.
///
/// # Errors
/// The tool chain cannot be had, or the programs do not build.
pub(crate) fn run(args: &Args) -> Result<()> {
    let object = build(args.force)?;
    run::note(&format!("BPF object: {}", object.display()));
    Ok(())
}

/// Builds the object unless it is up to date; returns its path.
///
/// # Errors
/// As [`run()`].
pub(crate) fn build(is_forced: bool) -> Result<PathBuf> {
    build_binary(BINARY, place::bpf_object(), is_forced)
}

/// Builds the object of the bench's trials; returns its path.
///
/// # Errors
/// As [`run()`].
pub(crate) fn build_trial() -> Result<PathBuf> {
    build_binary(TRIAL, place::bpf_object().with_file_name("trial.o"), false)
}

fn build_binary(binary: &str, object: PathBuf, is_forced: bool) -> Result<PathBuf> {
    let tools = setup::bpf()?;
    let stamp = object.with_extension("stamp");
    let state = state(&tools)?;
    if !is_forced && object.exists() && fs::read_to_string(&stamp).is_ok_and(|last| last == state) {
        return Ok(object);
    }
    let programs = place::root().join("ebpf/programs");
    let target = place::target().join("bpf/build");
    run::step("build the BPF programs", cargo(&tools, &programs, &target).args(["--bin", binary]))?;
    let built = target.join(TARGET).join("release").join(binary);
    // Renamed into place: a build script that runs meanwhile sees the old object or the new one, whole.
    let partial = object.with_extension("partial");
    fs::copy(&built, &partial).with_context(|| format!("cargo built no {}", built.display()))?;
    fs::rename(&partial, &object)?;
    fs::write(&stamp, state)?;
    Ok(object)
}

fn cargo(tools: &BpfTools, programs: &Path, target: &Path) -> Command {
    let linker = format!("-Clinker={}", tools.linker.display());
    let flags = [&*linker, "-Clink-arg=--btf", "-Cdebuginfo=2"].join("\x1f");
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--locked", "--target", TARGET]).current_dir(programs);
    if let Core::Source(_) = tools.compiler.core {
        command.args(["-Z", "build-std=core"]);
    }
    command
        .env("RUSTC", &tools.compiler.rustc)
        // Lets a compiler that is no nightly take `-Z` and the programs' unstable features.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", target);
    for variable in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        command.env_remove(variable);
    }
    command
}

/// What the object depends on, as a text that differs when it does.
fn state(tools: &BpfTools) -> Result<String> {
    let mut hash = Sha256::new();
    hash.update(format!("{} {}", tools.compiler, tools.linker.display()));
    hash.update(include_str!("ebpf.rs"));
    for folder in SOURCES {
        hash_folder(&mut hash, &place::root().join(folder))?;
    }
    Ok(format!("{:x}", hash.finalize()))
}

fn hash_folder(hash: &mut Sha256, folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths.into_iter().filter(|path| !path.ends_with("target")) {
        if path.is_dir() {
            hash_folder(hash, &path)?;
        } else {
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            hash.update(format!("{} {}\0", path.display(), content.len()));
            hash.update(content);
        }
    }
    Ok(())
}
