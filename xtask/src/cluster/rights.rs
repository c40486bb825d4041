//! `cluster rights`: what the deployed agent may do, against what it has done and what it was refused.
//!
//! What it may do stands in its roles, what it has done in the API server's audit log. A right that is never used is one
//! too many, once everything that the agent does was asked of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{deploy::NAME, state::State};

/// Where the roles of the agent's ServiceAccount are.
const ROLES: [&str; 2] = ["clusterroles", "namespaces/tidegate/roles"];
/// Says of a request whether the rights sufficed; an answer of 403 alone can have other reasons.
const DECISION: &str = "authorization.k8s.io/decision";
/// The answer to a request that has made an object.
const CREATED: u64 = 201;

/// Verb and resource, with subresource and group, as roles have them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Right {
    group: String,
    resource: String,
    verb: String,
}

/// Rights of an agent.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rights {
    granted: BTreeSet<Right>,
    /// How often each was used.
    used: BTreeMap<Right, u64>,
    /// What was asked for and is not granted.
    missing: BTreeSet<Right>,
}

impl State {
    /// Rights of the deployed agent and their use since its roles were made.
    ///
    /// # Errors
    /// No agent is deployed, or the API server does not answer.
    pub(super) fn rights(&self) -> Result<Rights> {
        let mut rights = Rights::default();
        let mut since = String::new();
        for roles in ROLES {
            let role = self.api(&format!("/apis/rbac.authorization.k8s.io/v1/{roles}/{NAME}"));
            let role = role.context("no agent is deployed: `cargo xtask test cluster` deploys one")?;
            rights.granted.extend(granted(&role));
            // In whole seconds, where requests have fractions: what begins alike and goes on is later.
            since = since.max(text(&role["metadata"]["creationTimestamp"]).trim_end_matches('Z').to_owned());
        }
        let path = self.logs.join("audit.log");
        let log = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        rights.take(&log, &since);
        Ok(rights)
    }
}

impl Rights {
    /// Takes a log of requests, of which those after a time count.
    fn take(&mut self, log: &str, since: &str) {
        let account = format!("system:serviceaccount:{NAME}:{NAME}");
        // A line that is being written is no event yet.
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for event in events.filter(|event| event["user"]["username"] == *account) {
            let object = &event["objectRef"];
            if !object.is_object() || text(&event["requestReceivedTimestamp"]).as_str() < since {
                continue;
            }
            let subresource = object["subresource"].as_str().map(|name| format!("/{name}")).unwrap_or_default();
            let right = Right {
                group: text(&object["apiGroup"]),
                resource: text(&object["resource"]) + &subresource,
                verb: text(&event["verb"]),
            };
            // The agent's roles are one of two ways to a right: everybody may see which kinds there are.
            if event["annotations"][DECISION] == "forbid" {
                // For a moment after its start an API server knows no roles.
                if !self.granted.contains(&right) {
                    self.missing.insert(right);
                }
                continue;
            }
            // Server-side apply of what is not there takes both rights.
            if right.verb == "patch" && event["responseStatus"]["code"] == CREATED {
                *self.used.entry(Right { verb: "create".to_owned(), ..right.clone() }).or_default() += 1;
            }
            *self.used.entry(right).or_default() += 1;
        }
    }

    fn unused(&self) -> impl Iterator<Item = &Right> {
        self.granted.iter().filter(|right| !self.used.contains_key(right))
    }

    /// A line for each right.
    pub(super) fn describe(&self) -> String {
        let uses = |right: &Right| self.used.get(right).copied().unwrap_or_default();
        self.granted.iter().map(|right| format!("{:>8}  {right}\n", uses(right))).collect()
    }

    /// Complains of rights that were not used or were lacking.
    ///
    /// # Errors
    /// There are such; the error names them.
    pub(super) fn judge(&self) -> Result<()> {
        let names =
            |rights: &mut dyn Iterator<Item = &Right>| rights.map(Right::to_string).collect::<Vec<_>>().join(", ");
        let (missing, unused) = (names(&mut self.missing.iter()), names(&mut self.unused()));
        ensure!(missing.is_empty(), "refused to the agent: {missing}");
        ensure!(unused.is_empty(), "not used by the agent so far: {unused}");
        Ok(())
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, resource, verb } = self;
        match group.as_str() {
            "" => write!(f, "{verb} {resource}"),
            // As kubectl has it: `httproutes.gateway.networking.k8s.io/status`.
            group => match resource.split_once('/') {
                Some((resource, subresource)) => write!(f, "{verb} {resource}.{group}/{subresource}"),
                None => write!(f, "{verb} {resource}.{group}"),
            },
        }
    }
}

/// What a role grants.
fn granted(role: &Value) -> Vec<Right> {
    let list =
        |rule: &Value, field: &str| -> Vec<String> { rule[field].as_array().into_iter().flatten().map(text).collect() };
    let mut rights = Vec::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in list(rule, "apiGroups") {
            for resource in list(rule, "resources") {
                let of = |verb| Right { group: group.clone(), resource: resource.clone(), verb };
                rights.extend(list(rule, "verbs").into_iter().map(of));
            }
        }
    }
    rights
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn right(verb: &str, resource: &str, group: &str) -> Right {
        Right { group: group.to_owned(), resource: resource.to_owned(), verb: verb.to_owned() }
    }

    fn event(verb: &str, object: &Value, second: u32, decision: &str, code: u64) -> String {
        json!({
            "verb": verb,
            "user": {"username": "system:serviceaccount:tidegate:tidegate"},
            "objectRef": object,
            "requestReceivedTimestamp": format!("2026-11-27T16:00:{second:02}.000001Z"),
            "responseStatus": {"code": code},
            "annotations": {DECISION: decision},
        })
        .to_string()
    }

    #[test]
    fn rights_are_counted_and_what_is_unused_or_refused_is_named() {
        let role = json!({"rules": [
            {"apiGroups": [""], "resources": ["services"], "verbs": ["create", "patch"]},
            {"apiGroups": ["tidegate.dev"], "resources": ["backends", "backends/status"], "verbs": ["patch"]},
        ]});
        let mut rights = Rights { granted: granted(&role).into_iter().collect(), ..Rights::default() };
        let service = json!({"resource": "services", "name": "a"});
        let status = json!({"resource": "backends", "apiGroup": "tidegate.dev", "subresource": "status"});
        let mut log = [
            event("delete", &service, 1, "forbid", 403),
            event("patch", &service, 11, "allow", 201),
            // Of a namespace that is going.
            event("patch", &service, 12, "allow", 403),
            event("patch", &status, 13, "forbid", 403),
            event("get", &Value::Null, 14, "allow", 200),
        ]
        .join("\n");
        log.push_str("\n{\"verb\": \"pat");
        rights.take(&log, "2026-11-27T16:00:10");
        let used = [(right("create", "services", ""), 1), (right("patch", "services", ""), 2)];
        assert_eq!(rights.used, used.into());
        assert_eq!(
            rights.judge().unwrap_err().to_string(),
            "not used by the agent so far: patch backends.tidegate.dev, patch backends.tidegate.dev/status"
        );
        rights.take(&event("list", &service, 15, "forbid", 403), "2026-11-27T16:00:10");
        assert_eq!(rights.judge().unwrap_err().to_string(), "refused to the agent: list services");
    }

    #[test]
    fn another_accounts_requests_are_not_the_agents() {
        let mut rights = Rights::default();
        let service = json!({"resource": "services"});
        rights.take(&event("patch", &service, 1, "allow", 200).replace("tidegate:tidegate", "shop:default"), "");
        assert_eq!(rights, Rights::default());
    }
}
