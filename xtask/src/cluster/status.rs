//! What `cluster status` shows: programs, node, pods, memory.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::Value;

use super::{groups, node, state::State};

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
    /// Prints everything; says whether all programs run and the node is ready.
    pub(super) fn show(&self) -> Result<bool> {
        println!("cluster of {}, in {}", self.checkout.display(), self.run.display());
        let mut all_good = true;
        println!("\n{:<26} {:>8} {:>8}  log", "program", "pid", "MiB");
        for name in PROGRAMS {
            let log = self.log(name);
            match self.find(name) {
                Some(process) => {
                    let memory = process.memory().map_or("-".to_owned(), |mib| mib.to_string());
                    println!("{name:<26} {:>8} {memory:>8}  {}", process.id, log.display());
                }
                None => {
                    all_good = false;
                    println!("{name:<26} {:>8} {:>8}  {}", "-", "-", log.display());
                }
            }
        }
        if let Some(bytes) = groups::memory(&self.groups) {
            println!("{:<26} {:>8} {:>8}  page cache included", "all, pods too", "", bytes / MIB);
        }
        match self.objects() {
            Ok(is_ready) => all_good &= is_ready,
            Err(error) => {
                all_good = false;
                println!("\nthe API server does not answer: {error:#}");
            }
        }
        Ok(all_good)
    }

    /// Prints what the API server knows; says whether the node is ready.
    fn objects(&self) -> Result<bool> {
        let nodes = self.api("/api/v1/nodes")?;
        let mut is_ready = false;
        println!();
        for node in items(&nodes) {
            is_ready = node::is_ready(node);
            let mark = if is_ready { "ready" } else { "not ready" };
            let info = &node["status"]["nodeInfo"];
            println!(
                "node {}: {mark}, {}, {}",
                text(&node["metadata"]["name"]),
                text(&info["kubeletVersion"]),
                text(&info["containerRuntimeVersion"])
            );
        }
        match self.installed_crds()? {
            Some(installed) => println!("{installed}"),
            None => println!("no Gateway API"),
        }
        let pods = self.api("/api/v1/pods")?;
        let mut count: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
        for pod in items(&pods) {
            let [ready, all] = count.entry(text(&pod["metadata"]["namespace"])).or_default();
            *all += 1;
            *ready += usize::from(node::is_ready(pod));
        }
        println!("pods: {} in all", count.values().map(|[_, all]| all).sum::<usize>());
        for (namespace, [ready, all]) in count {
            println!("  {namespace}: {ready} of {all} ready");
        }
        Ok(is_ready)
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("unknown")
}
