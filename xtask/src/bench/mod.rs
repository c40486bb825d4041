//! `bench`: builds everything and hands over to `tidegate-bench`, which measures and writes `bench/results/`.

use std::{os::unix::process::CommandExt, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{
    cluster::{self, Release},
    demo, ebpf, place, run,
    setup::Need,
};

/// The measurement that is made in the test cluster.
const IN_CLUSTER: &str = "watch";

/// What `bench` takes from the command line.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Measurements and their options; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    words: Vec<String>,
}

/// Measures; does not return when it comes to that, as `demo` does not, unless there is a cluster to end.
///
/// # Errors
/// Not root, or something cannot be built; where a cluster is needed, also that it cannot be had, or those of the bench.
pub(crate) fn run(args: &Args) -> Result<()> {
    let bench = demo::prepare("tidegate-bench", "the bench", &[Need::Network, Need::Peers])?;
    let trial = ebpf::build_trial()?;
    let mut command = Command::new(bench);
    command.env("TIDEGATE_TRIAL_OBJECT", trial);
    command.args(["--results".into(), place::root().join("bench/results").into_os_string()]).args(&args.words);
    if args.words.iter().any(|word| word == IN_CLUSTER) {
        return in_cluster(command);
    }
    Err(command.exec().into())
}

fn in_cluster(mut command: Command) -> Result<()> {
    let programs = cluster::programs(Release::Suite)?;
    cluster::with_agent(&programs, &place::target().join("release/tidegate"), || {
        let status = command.envs(cluster::environment()?).status();
        let status = status.with_context(|| format!("cannot start {}", run::shown(&command)))?;
        ensure!(status.success(), "{status} from {}", run::shown(&command));
        Ok(())
    })
}
