//! One write of one status: as server-side apply where lists are merged by key, as a replacement of the whole list, bound
//! to the version that was read, where a list is shared with other controllers.

use kube::{
    Client,
    core::{
        Request,
        params::{GetParams, Patch, PatchParams},
    },
};
use serde_json::{Value, json};
use tidegate_gateway_api::{Kind, ObjectRef};
use tokio::time::timeout;

use super::{
    desired::Desired,
    normal::{Sharing, is_own, normalize, reference},
    times,
};
use crate::kube::{Failure, REQUEST_TIMEOUT, Resource};

/// Under which name the fields of a status are owned.
const MANAGER: &str = "tidegate-status";

/// Entries that a shared list may hold (the CRDs' limit for `parents`; `ancestors` holds 16).
const MAX_PARENTS: usize = 32;
const MAX_ANCESTORS: usize = 16;

/// A status to write.
#[derive(Debug)]
pub struct Writing {
    /// The object.
    pub object: ObjectRef,
    /// Version of its kind that is served.
    pub version: &'static str,
    /// Version of the object when it is known to have no status: it need not be read then.
    pub base: Option<String>,
    /// Names of this controller.
    pub controllers: Vec<String>,
    /// What is to stand there.
    pub desired: Desired,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// It stands there, in this version of the object.
    Stands(Value),
    /// The object is of another generation than the one that was judged.
    Outdated,
    /// There is no such object.
    Gone,
    /// It could not be written.
    Failed(Failure),
}

/// Writes a status.
pub async fn write(client: &Client, writing: Writing) -> Outcome {
    match attempt(client, writing).await {
        Ok(outcome) => outcome,
        Err(Failure::NotFound(_)) => Outcome::Gone,
        Err(failure) => Outcome::Failed(failure),
    }
}

async fn attempt(client: &Client, writing: Writing) -> Result<Outcome, Failure> {
    let Writing { object, version, base, controllers, desired } = writing;
    let resource = Resource::of(object.kind, version);
    let name = &object.name;
    let request = || Request::new(resource.path(Some(&name.namespace)));
    let current = match base {
        Some(version) => json!({"metadata": {"resourceVersion": version}}),
        None => {
            let get = request().get(&name.name, &GetParams::default()).map_err(kube::Error::BuildRequest)?;
            timeout(REQUEST_TIMEOUT, client.request::<Value>(get)).await??
        }
    };
    let found = current["metadata"]["generation"].as_i64();
    if found.is_some() && desired.generation.is_some() && found != desired.generation {
        return Ok(Outcome::Outdated);
    }
    let normal = |status: &Value| normalize(object.kind, &controllers, status);
    if current["status"].is_object() && normal(&current["status"]) == normal(&desired.status) {
        return Ok(Outcome::Stands(current));
    }
    let status = merge(object.kind, &controllers, &current["status"], desired.status, &times::now());
    let patch = match Sharing::of(object.kind) {
        Sharing::ByKey => {
            let mut metadata = json!({"name": name.name});
            if !name.namespace.is_empty() {
                metadata["namespace"] = name.namespace.to_string().into();
            }
            let applied = json!({
                "apiVersion": resource.api_version(),
                "kind": resource.kind,
                "metadata": metadata,
                "status": status,
            });
            let params = PatchParams::apply(MANAGER).force();
            request().patch_subresource("status", &name.name, &params, &Patch::Apply(applied))
        }
        Sharing::WholeList(_) => {
            let merged = json!({
                "metadata": {"resourceVersion": current["metadata"]["resourceVersion"]},
                "status": status,
            });
            let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
            request().patch_subresource("status", &name.name, &params, &Patch::Merge(merged))
        }
    };
    let patch = patch.map_err(kube::Error::BuildRequest)?;
    Ok(Outcome::Stands(timeout(REQUEST_TIMEOUT, client.request::<Value>(patch)).await??))
}

/// What is written: what is wanted, with the times of transition that stand there where nothing has changed since, and in
/// a shared list with the entries of others as they are.
fn merge(kind: Kind, controllers: &[String], current: &Value, mut desired: Value, now: &str) -> Value {
    match Sharing::of(kind) {
        Sharing::ByKey => {
            set_times(&current["conditions"], &mut desired["conditions"], now);
            for listener in desired["listeners"].as_array_mut().into_iter().flatten() {
                let mut listed = current["listeners"].as_array().into_iter().flatten();
                let found = listed.find(|found| found["name"] == listener["name"]).cloned().unwrap_or_default();
                set_times(&found["conditions"], &mut listener["conditions"], now);
            }
        }
        Sharing::WholeList(list) => {
            let entries = || current[list].as_array().into_iter().flatten();
            for entry in desired[list].as_array_mut().into_iter().flatten() {
                let same = entries().find(|found| is_own(found, controllers) && reference(found) == reference(entry));
                set_times(&same.cloned().unwrap_or_default()["conditions"], &mut entry["conditions"], now);
            }
            let mut all: Vec<_> = entries().filter(|entry| !is_own(entry, controllers)).cloned().collect();
            all.extend(desired[list].as_array_mut().into_iter().flatten().map(Value::take));
            all.truncate(if list == "parents" { MAX_PARENTS } else { MAX_ANCESTORS });
            desired[list] = Value::Array(all);
        }
    }
    drop_nulls(&mut desired);
    desired
}

/// A condition keeps its time for as long as it keeps its status.
fn set_times(current: &Value, desired: &mut Value, now: &str) {
    for condition in desired.as_array_mut().into_iter().flatten() {
        let mut found = current.as_array().into_iter().flatten().filter(|found| found["type"] == condition["type"]);
        let time =
            found.find(|found| found["status"] == condition["status"]).map(|found| found["lastTransitionTime"].clone());
        condition["lastTransitionTime"] = time.filter(Value::is_string).unwrap_or_else(|| now.into());
    }
}

/// A field that is null is not the same as one that is not there.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

#[cfg(test)]
#[path = "write_tests.rs"]
mod tests;
