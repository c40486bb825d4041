//! `bench`: builds everything and hands over to `tidegate-bench`, which measures and writes `bench/results/`.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::Result;

use crate::{demo, ebpf, place, setup::Need};

/// What `bench` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measurements and their options; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    words: Vec<String>,
}

/// Measures; does not return when it comes to that, as `demo` does not.
///
/// # Errors
/// Not root, or something cannot be built.
pub(crate) fn run(args: &Args) -> Result<()> {
    let bench = demo::prepare("tidegate-bench", "the bench", &[Need::Network, Need::Peers])?;
    let trial = ebpf::build_trial()?;
    let mut command = Command::new(bench);
    command.env("TIDEGATE_TRIAL_OBJECT", trial);
    command.args(["--results".into(), place::root().join("bench/results").into_os_string()]).args(&args.words);
    Err(command.exec().into())
}
