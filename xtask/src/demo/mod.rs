//! `demo`: builds everything and hands over to `tidegate-lab demo`, which shows the main job in network namespaces.

use std::{os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::{
    build, ebpf, place, run,
    setup::{self, Need},
};

/// What `demo` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave everything running at the end, print what to try, and clean up on Ctrl-C.
    #[arg(long)]
    keep: bool,
}

/// Shows the main job; does not return when it comes to that: Ctrl-C must reach the lab, which cleans up.
///
/// # Errors
/// Not root, or something cannot be built.
pub(crate) fn run(args: &Args) -> Result<()> {
    let lab = prepare("tidegate-lab", "the demo", &[Need::Network])?;
    let mut command = Command::new(lab);
    command.arg("demo").args(args.keep.then_some("--keep"));
    Err(command.exec().into())
}

/// Builds the release agent and a program that runs it in namespaces; returns the program's path.
///
/// # Errors
/// As [`run()`].
pub(crate) fn prepare(package: &str, title: &str, needs: &[Need]) -> Result<PathBuf> {
    if run::read(Command::new("id").arg("-u"))?.trim() != "0" {
        bail!("{title} loads BPF programs and makes network namespaces: run it as root");
    }
    setup::ensure(&[&[Need::Build], needs].concat())?;
    ebpf::build(false)?;
    // Always the same packages in one go: features are unified over them, and another choice would compile most of the
    // dependencies again.
    let mut command = Command::new("cargo");
    command.args(["build", "--locked", "--release"]).current_dir(place::root()).envs(build::commit());
    command.args(["tidegate", "tidegate-lab", "tidegate-bench"].iter().flat_map(|package| ["--package", package]));
    run::step(&format!("build the agent and {title} (release)"), &mut command)?;
    Ok(place::target().join("release").join(package))
}
