//! The one-way rule: which of the project's crates may depend on which, and who alone uses what of others.
//!
//! Development dependencies count too: a test that reaches over a wall shows that the wall is wrong.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{place, run};

/// What each crate may depend on directly, of the project's own crates. One that is missing here is an error.
const MAY_USE: &[(&str, &[&str])] = &[
    ("tidegate-abi", &[]),
    ("tidegate-programs", &["tidegate-abi"]),
    ("tidegate-model", &[]),
    ("tidegate-gateway-api", &["tidegate-model"]),
    // Only its tests look up, in tables that it has built, as the programs do.
    ("tidegate-kernel", &["tidegate-abi", "tidegate-model", "tidegate-programs"]),
    ("tidegate-proxy", &["tidegate-model"]),
    ("tidegate", &["tidegate-model", "tidegate-gateway-api", "tidegate-kernel", "tidegate-proxy"]),
    ("tidegate-lab", &[]),
    ("tidegate-bench", &["tidegate-kernel", "tidegate-lab", "tidegate-model"]),
    ("tidegate-fuzz", &["tidegate-gateway-api", "tidegate-model", "tidegate-programs", "tidegate-proxy", "tidegate"]),
    ("tidegate-tests", &["tidegate-abi", "tidegate-kernel", "tidegate-lab", "tidegate-model", "tidegate-programs"]),
    ("xtask", &["tidegate-abi", "tidegate-lab"]),
];

/// Crates of others that only some of ours may have below them, at any depth.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("aya", &["tidegate-kernel", "tidegate", "tidegate-tests", "tidegate-bench"]),
    ("kube-client", &["tidegate", "tidegate-fuzz"]),
    ("kube", &["tidegate-gateway-api", "tidegate", "tidegate-fuzz"]),
];

/// Workspaces of the project, as folders below its root.
pub(super) const WORKSPACES: [&str; 3] = ["", "ebpf/programs", "tests/fuzz"];

/// Whether cargo must keep to a workspace's lock file. The fuzz targets need not: they follow the dependencies of crates that
/// change, and nothing of theirs is shipped.
pub(super) fn lock(workspace: &str) -> Option<&'static str> {
    (workspace != "tests/fuzz").then_some("--locked")
}

/// What Tidegate runs on, as in `deny.toml`: what dependencies have for other systems is never built.
const PLATFORMS: [&str; 2] =
    ["--filter-platform=x86_64-unknown-linux-gnu", "--filter-platform=aarch64-unknown-linux-gnu"];

/// Cargo's own description of a workspace.
pub(super) fn metadata(workspace: &str) -> Result<Value> {
    let mut command = Command::new("cargo");
    command.args(["metadata", "--format-version=1"]).args(PLATFORMS).args(lock(workspace));
    command.current_dir(place::workspace(workspace));
    serde_json::from_str(&run::read(&mut command)?).context("cargo metadata printed no JSON")
}

/// Who depends on whom is what DESIGN and ARCHITECTURE.md say.
///
/// # Errors
/// Names every dependency that breaks the rule.
pub(super) fn one_way() -> Result<()> {
    let mut wrong = BTreeSet::new();
    for workspace in WORKSPACES {
        let graph = Graph::of(&metadata(workspace)?)?;
        judge_direct(&graph, &mut wrong);
        for member in &graph.own {
            judge_below(member, &below(workspace, member)?, &mut wrong);
        }
    }
    if !wrong.is_empty() {
        bail!("{}", Vec::from_iter(wrong).join("\n"));
    }
    Ok(())
}

fn judge_direct(graph: &Graph, wrong: &mut BTreeSet<String>) {
    for member in &graph.own {
        let Some((_, may_use)) = MAY_USE.iter().find(|(name, _)| name == member) else {
            wrong.insert(format!("{member} stands in no rule: add it to {}", file!()));
            continue;
        };
        for used in graph.direct(member).filter(|used| graph.own.contains(*used)) {
            if !may_use.contains(&used) {
                wrong.insert(format!("{member} must not depend on {used}"));
            }
        }
    }
}

fn judge_below(member: &str, below: &BTreeSet<String>, wrong: &mut BTreeSet<String>) {
    for (other, users) in ONLY_IN {
        if !users.contains(&member) && below.contains(*other) {
            wrong.insert(format!("{member} must not have {other} below it (`cargo tree -p {member} -i {other}`)"));
        }
    }
}

/// Every package below one of ours, at any depth, when it is built by itself: `cargo metadata` resolves features for the
/// whole workspace, which shows a crate what only its neighbours ask for.
fn below(workspace: &str, member: &str) -> Result<BTreeSet<String>> {
    let mut command = Command::new("cargo");
    command.args(["tree", "--package", member, "--prefix=none", "--format={p}", "--target=x86_64-unknown-linux-gnu"]);
    command.args(lock(workspace)).current_dir(place::workspace(workspace));
    Ok(names_of(&run::read(&mut command)?))
}

/// Names in what `cargo tree` prints: a line a package, its name first.
fn names_of(tree: &str) -> BTreeSet<String> {
    tree.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

/// Which package depends on which, by name; versions do not matter here.
struct Graph {
    /// Packages that are of this project: they come from no registry.
    own: BTreeSet<String>,
    uses: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    fn of(metadata: &Value) -> Result<Self> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let names: BTreeMap<_, _> = list(&metadata["packages"])
            .iter()
            .filter_map(|package| Some((package["id"].as_str()?.to_owned(), package["name"].as_str()?.to_owned())))
            .collect();
        let name = |id: &Value| id.as_str().and_then(|id| names.get(id)).cloned();
        let mut uses: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for node in list(&metadata["resolve"]["nodes"]) {
            let user = name(&node["id"]).context("a node of the graph is no package")?;
            uses.entry(user).or_default().extend(list(&node["deps"]).iter().filter_map(|dep| name(&dep["pkg"])));
        }
        let own = list(&metadata["packages"])
            .iter()
            .filter(|package| package["source"].is_null())
            .filter_map(|package| name(&package["id"]))
            .collect();
        Ok(Self { own, uses })
    }

    fn direct(&self, package: &str) -> impl Iterator<Item = &str> {
        self.uses.get(package).into_iter().flatten().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_direct_dependency_over_a_wall_is_named() {
        let graph = Graph::of(&json!({
            "packages": [
                {"id": "1", "name": "tidegate-proxy", "source": null},
                {"id": "2", "name": "tidegate-kernel", "source": null},
                {"id": "3", "name": "bytes", "source": "registry"},
            ],
            "resolve": {"nodes": [
                {"id": "1", "deps": [{"pkg": "2"}, {"pkg": "3"}]}, {"id": "2", "deps": []}, {"id": "3", "deps": []},
            ]},
        }))
        .unwrap();
        let mut wrong = BTreeSet::new();
        judge_direct(&graph, &mut wrong);
        assert_eq!(wrong, BTreeSet::from(["tidegate-proxy must not depend on tidegate-kernel".to_owned()]));
    }

    #[test]
    fn what_only_one_crate_may_use_is_found_at_any_depth() {
        let tree =
            "tidegate-proxy v0.1.0 (/checkout/agent/crates/proxy)\nbytes v1.10.1\naya v0.14.0\naya v0.14.0 (*)\n";
        let mut wrong = BTreeSet::new();
        judge_below("tidegate-proxy", &names_of(tree), &mut wrong);
        judge_below("tidegate-kernel", &names_of(tree), &mut wrong);
        assert_eq!(wrong.len(), 1, "{wrong:?}");
        assert!(wrong.iter().all(|text| text.starts_with("tidegate-proxy must not have aya below it")), "{wrong:?}");
    }
}
