//! What is read of a route of any kind, before it is attached.

use tidegate_model::{Forward, Hostname, Rule};

use crate::{generated::common::ParentReference, references::Uses, status::Problem};

/// A route as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct RouteDraft {
    pub(crate) generation: Option<i64>,
    pub(crate) parents: Vec<ParentReference>,
    pub(crate) hostnames: Vec<Hostname>,
    /// Rules of HTTPRoutes and GRPCRoutes by their index in `spec.rules`, without attachments.
    pub(crate) rules: Vec<(u16, Rule)>,
    /// Forwards of the other kinds by their index in `spec.rules`, without attachments.
    pub(crate) forwards: Vec<(u16, Forward)>,
    /// Why nothing of the route can be served.
    pub(crate) rejection: Option<Problem>,
    /// What is left out, or does not do what it says.
    pub(crate) faults: Vec<String>,
    pub(crate) unenforced: Vec<String>,
    pub(crate) uses: Uses,
}

/// Largest weight that the API allows.
const MAX_WEIGHT: i32 = 1_000_000;

/// Reads the weight of the `backendRef` in `field`.
pub(crate) fn read_weight(field: &str, weight: Option<i32>) -> Result<u32, String> {
    let weight = weight.unwrap_or(1);
    match u32::try_from(weight) {
        Ok(read) if weight <= MAX_WEIGHT => Ok(read),
        _ => Err(format!("{field}.weight: {weight} is out of range: write 0 to {MAX_WEIGHT}")),
    }
}

/// Reads `spec.hostnames`; each name once, those that are none go to `faults`.
pub(crate) fn read_hostnames(hostnames: &[String], faults: &mut Vec<String>) -> Vec<Hostname> {
    let mut valid = Vec::new();
    for (index, hostname) in hostnames.iter().enumerate() {
        match hostname.parse::<Hostname>() {
            Ok(hostname) if !valid.contains(&hostname) => valid.push(hostname),
            Ok(_) => {}
            Err(error) => faults.push(format!("spec.hostnames[{index}] is left out: {error}")),
        }
    }
    valid
}
