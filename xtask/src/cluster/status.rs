//! What `cluster status` shows: programs, node, pods, memory.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use super::{groups, node, processes::Process, state::State};

/// The cluster's programs, in the order in which they are started.
const PROGRAMS: [&str; 7] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "containerd", "kubelet", "kube-proxy"];
/// Bytes of a mebibyte.
const MIB: u64 = 1 << 20;

/// Names of the programs.
pub(super) fn programs() -> &'static [&'static str] {
    &PROGRAMS
}

impl State {
    /// Everything as text, and whether all programs run and the node is ready.
    pub(super) fn describe(&self) -> (String, bool) {
        let mut lines = vec![format!("cluster of {}, in {}\n", self.checkout.display(), self.run.display())];
        lines.push(format!("{:<26} {:>8} {:>8}  log", "program", "pid", "MiB"));
        let mut all_good = true;
        for name in PROGRAMS {
            let process = self.find(name);
            all_good &= process.is_some();
            let id = process.map_or("-".to_owned(), |process| process.id.to_string());
            let memory = process.and_then(Process::memory).map_or("-".to_owned(), |mib| mib.to_string());
            lines.push(format!("{name:<26} {id:>8} {memory:>8}  {}", self.log(name).display()));
        }
        if let Some(bytes) = groups::memory(&self.groups) {
            lines.push(format!("{:<26} {:>8} {:>8}  page cache included", "all, pods too", "", bytes / MIB));
        }
        lines.push(String::new());
        match self.describe_objects(&mut lines) {
            Ok(is_ready) => all_good &= is_ready,
            Err(error) => {
                all_good = false;
                lines.push(format!("the API server does not answer: {error:#}"));
            }
        }
        (lines.join("\n") + "\n", all_good)
    }

    /// What the API server knows; says whether the node is ready.
    fn describe_objects(&self, lines: &mut Vec<String>) -> Result<bool> {
        let nodes = self.api("/api/v1/nodes")?;
        let mut is_ready = false;
        for node in items(&nodes) {
            is_ready = node::is_ready(node);
            let mark = if is_ready { "ready" } else { "not ready" };
            let (name, info) = (text(&node["metadata"]["name"]), &node["status"]["nodeInfo"]);
            let versions = ["kubeletVersion", "containerRuntimeVersion"].map(|field| text(&info[field]));
            lines.push(format!("node {name}: {mark}, {}", versions.join(", ")));
        }
        let installed = self.installed_crds()?;
        lines.push(installed.map_or("no Gateway API".to_owned(), |installed| installed.to_string()));
        let pods = self.api("/api/v1/pods")?;
        let mut count: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        for pod in items(&pods) {
            let [ready, all] = count.entry(text(&pod["metadata"]["namespace"])).or_default();
            *all += 1;
            *ready += usize::from(node::is_ready(pod));
        }
        lines.push(format!("pods: {} in all", count.values().map(|[_, all]| all).sum::<usize>()));
        lines.extend(count.iter().map(|(namespace, [ready, all])| format!("  {namespace}: {ready} of {all} ready")));
        Ok(is_ready)
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("unknown")
}
