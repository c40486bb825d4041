//! `build`: the BPF object, then the agent with the object inside.

use std::{path::PathBuf, process::Command};

use anyhow::Result;

use crate::{
    ebpf, place, run,
    setup::{self, Need},
};

/// What `build` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build quickly and without optimization, as the tests use it.
    #[arg(long)]
    dev: bool,
}

/// How the agent is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build.
    Dev,
    /// Quick to run.
    Release,
}

/// Builds everything that is deployed and says where it is.
///
/// # Errors
/// The tool chain cannot be had, or something does not compile.
pub(crate) fn run(args: &Args) -> Result<()> {
    let agent = agent(if args.dev { Profile::Dev } else { Profile::Release })?;
    run::note(&format!("agent: {}", agent.display()));
    Ok(())
}

/// What makes a release build name its commit. Others do not: each commit would link them anew.
pub(crate) fn commit() -> Option<(&'static str, String)> {
    Some(("TIDEGATE_COMMIT", place::commit()?))
}

/// Builds the agent with everything that goes into it; returns its path.
///
/// # Errors
/// As [`run()`].
pub(crate) fn agent(profile: Profile) -> Result<PathBuf> {
    setup::ensure(&[Need::Build])?;
    ebpf::build(false)?;
    let mut command = Command::new("cargo");
    command.args(["build", "--locked", "--package", "tidegate"]).current_dir(place::root());
    let (folder, title) = match profile {
        Profile::Dev => ("debug", "build the agent (dev)"),
        Profile::Release => {
            command.arg("--release").envs(commit());
            ("release", "build the agent (release)")
        }
    };
    run::step(title, &mut command)?;
    Ok(place::target().join(folder).join("tidegate"))
}
