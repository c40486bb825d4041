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

/// What each crate of the workspace may depend on directly, of the workspace's crates. One that is missing is an error.
const MAY_USE: &[(&str, &[&str])] = &[
    ("tidegate-abi", &[]),
    ("tidegate-model", &[]),
    ("tidegate-gateway-api", &["tidegate-model"]),
    ("tidegate-kernel", &["tidegate-abi", "tidegate-model"]),
    ("tidegate-proxy", &["tidegate-model"]),
    ("tidegate", &["tidegate-model", "tidegate-gateway-api", "tidegate-kernel", "tidegate-proxy"]),
    ("tidegate-lab", &[]),
    ("tidegate-tests", &["tidegate-abi", "tidegate-kernel", "tidegate-lab", "tidegate-model"]),
    ("xtask", &["tidegate-abi", "tidegate-lab"]),
];

/// Crates of others that only some of ours may have below them, at any depth.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("aya", &["tidegate-kernel", "tidegate", "tidegate-tests"]),
    ("kube-client", &["tidegate"]),
    ("kube", &["tidegate-gateway-api", "tidegate"]),
];

/// Cargo's own description of the workspace.
pub(super) fn metadata() -> Result<Value> {
    let text = run::read(
        Command::new("cargo").args(["metadata", "--format-version=1", "--locked"]).current_dir(place::root()),
    )?;
    serde_json::from_str(&text).context("cargo metadata printed no JSON")
}

/// Who depends on whom is what DESIGN and ARCHITECTURE.md say.
///
/// # Errors
/// Names every dependency that breaks the rule.
pub(super) fn one_way() -> Result<()> {
    let graph = Graph::of(&metadata()?)?;
    let mut wrong = Vec::new();
    for member in &graph.members {
        let Some((_, may_use)) = MAY_USE.iter().find(|(name, _)| name == member) else {
            wrong.push(format!("{member} stands in no rule: add it to {}", file!()));
            continue;
        };
        for used in graph.direct(member).filter(|used| graph.members.contains(*used)) {
            if !may_use.contains(&used) {
                wrong.push(format!("{member} must not depend on {used}"));
            }
        }
        for (other, users) in ONLY_IN {
            if !users.contains(&&**member) && graph.reaches(member, other) {
                wrong.push(format!("{member} must not have {other} below it (`cargo tree -p {member} -i {other}`)"));
            }
        }
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    Ok(())
}

/// Which package depends on which, by name; versions do not matter here.
struct Graph {
    members: BTreeSet<String>,
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
        let members = list(&metadata["workspace_members"]).iter().filter_map(name).collect();
        Ok(Self { members, uses })
    }

    fn direct(&self, package: &str) -> impl Iterator<Item = &str> {
        self.uses.get(package).into_iter().flatten().map(String::as_str)
    }

    fn reaches(&self, from: &str, to: &str) -> bool {
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(package) = open.pop() {
            if package == to {
                return true;
            }
            if seen.insert(package) {
                open.extend(self.direct(package));
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_graph_reaches_over_several_packages_and_not_backwards() {
        let graph = Graph::of(&json!({
            "packages": [{"id": "1", "name": "a"}, {"id": "2", "name": "b"}, {"id": "3", "name": "c"}],
            "workspace_members": ["1"],
            "resolve": {"nodes": [
                {"id": "1", "deps": [{"pkg": "2"}]}, {"id": "2", "deps": [{"pkg": "3"}]}, {"id": "3", "deps": []},
            ]},
        }))
        .unwrap();
        assert!(graph.reaches("a", "c"));
        assert!(!graph.reaches("c", "a"));
        assert_eq!(graph.members, BTreeSet::from(["a".to_owned()]));
    }
}
