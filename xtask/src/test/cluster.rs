//! Level `cluster`: brings the test cluster where none runs, deploys the agent as users do, and runs the tests in it one
//! after the other, since they share a node.

use anyhow::{Result, bail};

use super::{Args, Level, Tally, build, cargo_test, targets, workspace};
use crate::{
    cluster::{self, Channel, Release, Up},
    image::Own,
};

/// What is deployed: the overlay that the README deploys.
const MANIFESTS: &str = "deploy/daemonset/overlays/public-private";

pub(super) fn run(args: &Args) -> Result<Tally> {
    let programs = cluster::programs(Release::Suite)?;
    let agent = build(Level::Cluster)?;
    let is_new = cluster::up(Up { crds: Channel::Experimental, version: Release::Suite }, &programs)?;
    let outcome = cluster::deploy(&Own::of(agent.clone()), MANIFESTS).and_then(|()| {
        let mut tally = Tally::default();
        for target in targets(Level::Cluster) {
            let mut command = workspace("test");
            command.args(["--no-fail-fast", "--test", target]).env("TIDEGATE_BIN", &agent);
            command.envs(cluster::environment()?).env("RUST_TEST_THREADS", "1");
            tally.add(cargo_test(&format!("test: cluster, target {target}"), &mut command, args)?);
        }
        cluster::remove(MANIFESTS)?;
        Ok(tally)
    });
    if is_new {
        cluster::down()?;
    }
    match outcome {
        Ok(tally) if tally.passed + tally.failed == 0 && args.only.is_none() => bail!("no test ran"),
        outcome => outcome,
    }
}
