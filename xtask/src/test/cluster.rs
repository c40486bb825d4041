//! Level `cluster`: brings the test cluster where none runs, deploys the agent as users do, and runs the tests in it one
//! after the other, since they share a node.

use anyhow::{Result, bail};

use super::{Args, Level, Tally, build, cargo_test, targets, workspace};
use crate::cluster::{self, Release};

pub(super) fn run(args: &Args) -> Result<Tally> {
    let programs = cluster::programs(Release::Suite)?;
    let agent = build(Level::Cluster)?;
    let outcome = cluster::with_agent(&programs, &agent, || {
        let mut tally = Tally::default();
        for target in targets(Level::Cluster) {
            let mut command = workspace("test");
            command.args(["--no-fail-fast", "--test", target]).env("TIDEGATE_BIN", &agent);
            command.envs(cluster::environment()?).env("RUST_TEST_THREADS", "1");
            tally.add(cargo_test(&format!("test: cluster, target {target}"), &mut command, args)?);
        }
        Ok(tally)
    });
    match outcome {
        Ok(tally) if tally.passed + tally.failed == 0 && args.only.is_none() => bail!("no test ran"),
        outcome => outcome,
    }
}
