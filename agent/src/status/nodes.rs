//! What the nodes have reported, and which of them are alive.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use serde_json::Value;
use tidegate_gateway_api::{
    Kind, ObjectRef,
    api::{DomainNode, DomainReport, NodeReportSpec, NotProgrammed},
};
use tidegate_model::DomainName;
use tokio::time::Instant;

use super::report::RENEW;
use crate::kube::Update;

/// A node whose report was not renewed for this long counts as gone: its agent missed two renewals and the time of a
/// restart. Measured from when this agent saw the last change, because clocks differ.
const STALE: Duration = RENEW.saturating_mul(3);

/// Nodes that a message names; more are counted.
const NAMED: usize = 3;

/// What the nodes have reported.
#[derive(Debug, Default)]
pub struct Nodes {
    reports: BTreeMap<String, Known>,
    listed: Option<BTreeMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    version: String,
    spec: NodeReportSpec,
    changed: Instant,
}

/// A report as it comes: name of the node, version, contents.
pub type Report = (String, String, NodeReportSpec);

/// Reads a NodeReport. What cannot be read says nothing.
pub fn read_report(mut value: Value) -> Report {
    let text = |field: &str| value["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (name, version) = (text("name"), text("resourceVersion"));
    (name, version, serde_json::from_value(value["spec"].take()).unwrap_or_default())
}

/// Whether the nodes that serve a Gateway or a ListenerSet have applied it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// How many nodes serve it.
    pub nodes: usize,
    /// Nodes that have not applied the newest generation.
    pub lacking: Vec<String>,
    /// Listeners that are not reachable somewhere, with node and reason.
    pub listeners: BTreeMap<String, String>,
}

impl Nodes {
    /// Takes what happened to reports.
    pub fn take(&mut self, update: Update<Report>) {
        let now = Instant::now();
        match update {
            Update::Begin => self.listed = Some(BTreeMap::new()),
            Update::Page(page) => {
                for (name, version, spec) in page {
                    let changed = match self.reports.get(&name) {
                        Some(known) if known.version == version => known.changed,
                        _ => now,
                    };
                    self.listed.get_or_insert_default().insert(name, Known { version, spec, changed });
                }
            }
            Update::Synced => self.reports = self.listed.take().unwrap_or_default(),
            Update::Put((name, version, spec)) => {
                self.reports.insert(name, Known { version, spec, changed: now });
            }
            Update::Delete(name) => {
                self.reports.remove(&*name.name);
            }
            Update::Failing(_) | Update::Recovered => {}
        }
    }

    fn live(&self) -> impl Iterator<Item = (&str, &NodeReportSpec)> {
        let is_live = |known: &Known| known.changed.elapsed() < STALE;
        self.reports.iter().filter(move |(_, known)| is_live(known)).map(|(name, known)| (name.as_str(), &known.spec))
    }

    fn serving(&self, domain: &DomainName) -> impl Iterator<Item = (&str, &NodeReportSpec, &DomainReport)> {
        self.live().filter_map(move |(name, spec)| {
            let found = spec.domains.iter().find(|found| found.name == domain.as_str())?;
            Some((name, spec, found))
        })
    }

    /// Whether the nodes that serve a domain have applied a generation of one of its Gateways or ListenerSets.
    pub fn judge(&self, domain: &DomainName, object: &ObjectRef, generation: i64) -> Verdict {
        let is_set = object.kind == Kind::ListenerSet;
        let name = object.name.to_string();
        let mut verdict = Verdict::default();
        for (node, spec, _) in self.serving(domain) {
            verdict.nodes += 1;
            let applied = if is_set { &spec.listener_sets } else { &spec.gateways };
            if applied.get(&name).is_none_or(|applied| *applied < generation) {
                verdict.lacking.push(node.to_owned());
            }
            let is_own = |listener: &&NotProgrammed| match &listener.listener_set {
                Some(set) => is_set && *set == name,
                None => !is_set && listener.gateway == name,
            };
            for listener in spec.not_programmed.iter().filter(is_own) {
                let message = || format!("node {node}: {}", listener.message);
                verdict.listeners.entry(listener.listener.clone()).or_insert_with(message);
            }
        }
        verdict
    }

    /// Addresses of the nodes that serve a domain, each once.
    pub fn addresses(&self, domain: &DomainName) -> Vec<IpAddr> {
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in self.serving(domain).flat_map(|(_, spec, _)| &spec.addresses) {
            if let Ok(address) = address.parse()
                && !addresses.contains(&address)
            {
                addresses.push(address);
            }
        }
        addresses
    }

    /// A domain on each of the nodes that serve it.
    pub fn domain(&self, domain: &DomainName) -> Vec<DomainNode> {
        self.serving(domain)
            .map(|(name, _, found)| DomainNode {
                name: name.to_owned(),
                observed_generation: found.observed_generation,
                interfaces: found.interfaces.clone(),
                not_enforced: found.not_enforced.clone(),
                problems: found.problems.clone(),
            })
            .collect()
    }
}

impl Verdict {
    /// Why the Gateway is not programmed on all nodes; `None` when it is.
    pub fn pending(&self, domain: &DomainName) -> Option<String> {
        if self.nodes == 0 {
            return Some(format!(
                "no node has reported that it serves TrafficDomain/{domain}: see its nodeSelector, and `kubectl get nodereports`"
            ));
        }
        if self.lacking.is_empty() {
            return None;
        }
        let named = self.lacking.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
        let more = self.lacking.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Some(format!("not applied yet by {} of {} nodes: {named}{more}", self.lacking.len(), self.nodes))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tidegate_model::ObjectName;

    use super::*;

    fn report(domain: &str, gateways: &[(&str, i64)], address: &str) -> NodeReportSpec {
        NodeReportSpec {
            addresses: vec![address.to_owned()],
            domains: vec![DomainReport { name: domain.to_owned(), ..DomainReport::default() }],
            gateways: gateways.iter().map(|(name, generation)| ((*name).to_owned(), *generation)).collect(),
            ..NodeReportSpec::default()
        }
    }

    #[test]
    fn a_gateway_is_programmed_when_every_node_of_its_domain_has_it() {
        let public = DomainName::new("public");
        let gateway = ObjectRef::new(Kind::Gateway, ObjectName::new("shop", "gw"));
        let mut nodes = Nodes::default();
        assert!(nodes.judge(&public, &gateway, 1).pending(&public).is_some(), "nobody has reported");
        let put = |nodes: &mut Nodes, name: &str, spec| nodes.take(Update::Put((name.to_owned(), String::new(), spec)));
        put(&mut nodes, "a", report("public", &[("shop/gw", 2)], "10.0.0.1"));
        put(&mut nodes, "b", report("public", &[("shop/gw", 1)], "10.0.0.2"));
        put(&mut nodes, "c", report("private", &[], "10.0.0.3"));
        assert_eq!(nodes.judge(&public, &gateway, 1).pending(&public), None);
        let pending = nodes.judge(&public, &gateway, 2).pending(&public);
        assert_eq!(pending.as_deref(), Some("not applied yet by 1 of 2 nodes: b"));
        let addresses: Vec<_> = nodes.addresses(&public).iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.1", "10.0.0.2"], "only of the nodes that serve the domain");
        nodes.take(Update::Begin);
        nodes.take(Update::Page(vec![("a".to_owned(), String::new(), report("public", &[], "10.0.0.1"))]));
        nodes.take(Update::Synced);
        assert_eq!(nodes.domain(&public).len(), 1, "b was not in the list");
    }

    #[test]
    fn a_set_and_a_gateway_of_one_name_are_judged_apart() {
        let public = DomainName::new("public");
        let of = |kind| ObjectRef::new(kind, ObjectName::new("shop", "gw"));
        let mut spec = report("public", &[("shop/gw", 2)], "10.0.0.1");
        spec.listener_sets = [("shop/gw".to_owned(), 1)].into();
        let not_programmed = |listener_set: Option<&str>, listener: &str| NotProgrammed {
            gateway: "shop/gw".to_owned(),
            listener_set: listener_set.map(str::to_owned),
            listener: listener.to_owned(),
            message: "no such address".to_owned(),
        };
        spec.not_programmed = vec![not_programmed(None, "own"), not_programmed(Some("shop/gw"), "added")];
        let mut nodes = Nodes::default();
        nodes.take(Update::Put(("a".to_owned(), String::new(), spec)));
        let gateway = nodes.judge(&public, &of(Kind::Gateway), 2);
        let set = nodes.judge(&public, &of(Kind::ListenerSet), 2);
        assert!(gateway.lacking.is_empty() && set.lacking == ["a"]);
        assert_eq!(gateway.listeners.into_keys().collect::<Vec<_>>(), ["own"]);
        assert_eq!(set.listeners.into_keys().collect::<Vec<_>>(), ["added"]);
    }

    #[test]
    fn a_node_that_is_silent_no_longer_counts_whatever_its_clock_says() {
        let public = DomainName::new("public");
        let gateway = ObjectRef::new(Kind::Gateway, ObjectName::new("shop", "gw"));
        let read = |name: &str, version: &str, generation: i64, time: &str| {
            read_report(json!({
                "metadata": {"name": name, "resourceVersion": version},
                "spec": {"renewTime": time, "domains": [{"name": "public"}], "gateways": {"shop/gw": generation}},
            }))
        };
        let (past, future) = ("1999-12-31T23:59:59.000000Z", "2099-12-31T23:59:59.000000Z");
        let mut nodes = Nodes::default();
        nodes.take(Update::Put(read("a", "1", 2, past)));
        nodes.take(Update::Put(read("b", "2", 1, future)));
        assert_eq!(nodes.judge(&public, &gateway, 2).lacking, ["b"], "both have only just been seen");
        let long_ago = Instant::now().checked_sub(STALE).expect("the host runs for longer");
        for known in nodes.reports.values_mut() {
            known.changed = long_ago;
        }
        // A list shows both again; of these one was written meanwhile.
        nodes.take(Update::Begin);
        nodes.take(Update::Page(vec![read("a", "3", 2, past), read("b", "2", 1, future)]));
        nodes.take(Update::Synced);
        assert_eq!(nodes.judge(&public, &gateway, 2), Verdict { nodes: 1, ..Verdict::default() });
    }

    #[test]
    fn a_report_of_another_version_is_read_as_far_as_it_is_understood() {
        let newer = json!({
            "metadata": {"name": "a", "resourceVersion": "7"},
            "spec": {
                "version": "9.0.0",
                "topology": {"rack": 4},
                "domains": [{"name": "public", "observedGeneration": 3, "queues": [1, 2], "interfaces": [{"name": "wan0", "attach": "offload"}]}],
                "gateways": {"shop/gw": 2},
            },
        });
        let public = DomainName::new("public");
        let mut nodes = Nodes::default();
        nodes.take(Update::Put(read_report(newer)));
        let gateway = ObjectRef::new(Kind::Gateway, ObjectName::new("shop", "gw"));
        assert_eq!(nodes.judge(&public, &gateway, 2).pending(&public), None);
        let domain = nodes.domain(&public).remove(0);
        assert_eq!((domain.observed_generation, domain.interfaces[0].attach.as_str()), (Some(3), "offload"));
    }
}
