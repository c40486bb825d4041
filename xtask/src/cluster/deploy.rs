//! The agent in the cluster, as users deploy it: image, definitions, a gateway node, the DaemonSet of an overlay.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};

use super::{Channel, Programs, Up, down, node::NODE, running, state::State, up};
use crate::{image, place, run};

/// What [`with_agent`] deploys: the overlay that the README deploys.
const MANIFESTS: &str = "deploy/daemonset/overlays/public-private";
/// Definitions of group `tidegate.dev`.
const CRDS: &str = "deploy/crds";
/// Label of the nodes that the DaemonSet runs on.
const GATEWAY_NODE: &str = "node.tidegate.dev/gateway=true";
/// Namespace and name of the DaemonSet, its ServiceAccount and its roles.
pub(super) const NAME: &str = "tidegate";
/// How long the agent may take to be ready, and objects to be gone: on a machine that is busy with builds.
const PATIENCE: &str = "180s";

/// Does something in the cluster that runs, else in one of its own, with an agent that was built already deployed as users do;
/// it is removed afterwards.
///
/// # Errors
/// The cluster or the agent cannot be had, or those of `work`.
pub(crate) fn with_agent<T>(programs: &Programs, agent: &Path, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let is_new = up(Up { crds: Channel::Experimental, version: programs.release }, programs)?;
    let outcome = deploy(&image::Own::of(agent.to_owned()), MANIFESTS).and_then(|()| {
        let done = work()?;
        remove(MANIFESTS)?;
        Ok(done)
    });
    if is_new {
        down()?;
    }
    outcome
}

/// Builds the agent, gives its image to the node, and deploys an overlay, anew where it is there.
///
/// # Errors
/// No cluster runs, the agent cannot be built, or it does not become ready; the error shows what its pod says.
pub(crate) fn deploy(own: &image::Own, manifests: &str) -> Result<()> {
    let state = running()?;
    remove(manifests)?;
    state.load_agent(own)?;
    let mut crds = state.kubectl()?;
    run::step("install the CRDs of tidegate.dev", crds.args(["apply", "--server-side", "-k"]).arg(folder(CRDS)))?;
    wait_for("Established", "crd --all")?;
    run::read(state.kubectl()?.args(["label", "node", NODE, "--overwrite", GATEWAY_NODE]))?;
    let mut apply = state.kubectl()?;
    run::step(&format!("deploy {manifests}"), apply.arg("apply").arg("-k").arg(folder(manifests)))?;
    run::judge("wait for the agent", || {
        let mut status = state.kubectl()?;
        status.args(["rollout", "status", "daemonset", NAME, "-n", NAME, &format!("--timeout={PATIENCE}")]);
        run::read(&mut status).map(drop).with_context(|| state.describe_agent())
    })
}

/// Removes what an overlay has deployed; what is not there is no error.
///
/// # Errors
/// No cluster runs, or objects do not go.
pub(crate) fn remove(manifests: &str) -> Result<()> {
    let mut delete = running()?.kubectl()?;
    delete.arg("delete").arg("-k").arg(folder(manifests));
    // A kind that is not installed has no objects.
    delete.args(["--ignore-not-found", "--wait", &format!("--timeout={PATIENCE}")]);
    run::judge(&format!("remove {manifests}"), || match run::read(&mut delete) {
        Err(error) if error.to_string().contains("no matches for kind") => Ok(()),
        other => other.map(drop),
    })
}

/// Removes the namespaces with a label, and waits until they are gone.
///
/// # Errors
/// No cluster runs, or they do not go.
pub(crate) fn remove_namespaces(label: &str) -> Result<()> {
    let mut delete = running()?.kubectl()?;
    delete.args(["delete", "namespaces", "-l", label, "--wait", &format!("--timeout={PATIENCE}")]);
    run::read(&mut delete).map(drop)
}

/// Waits for a condition of objects, e.g. `gatewayclass/public`.
///
/// # Errors
/// It does not come true.
pub(crate) fn wait_for(condition: &str, objects: &str) -> Result<()> {
    let mut wait = running()?.kubectl()?;
    wait.args(["wait", &format!("--for=condition={condition}"), &format!("--timeout={PATIENCE}")]);
    run::read(wait.args(objects.split(' '))).map(drop)
}

fn folder(path: &str) -> std::path::PathBuf {
    place::root().join(Path::new(path))
}

impl State {
    /// Builds the agent and gives its image to the node.
    pub(super) fn load_agent(&self, own: &image::Own) -> Result<()> {
        let file = place::target().join("tidegate-image.tar");
        let names = own.write(&file)?;
        run::judge("load the agent's image", || self.load(&file))?;
        run::note(&format!("image: {}", names.join(", ")));
        Ok(())
    }

    /// What is to be seen of an agent that does not become ready.
    fn describe_agent(&self) -> String {
        let read = |words: &[&str]| {
            let said = self.kubectl().and_then(|mut kubectl: Command| run::read(kubectl.args(words)));
            said.unwrap_or_else(|error| format!("{error:#}"))
        };
        let pods = read(&["describe", "pods", "-n", NAME]);
        let log = read(&["logs", "-n", NAME, "-l", "app.kubernetes.io/name=tidegate", "--tail=40"]);
        format!("the agent is not ready\n{pods}\n{log}")
    }
}
