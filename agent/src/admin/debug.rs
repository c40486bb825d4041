//! A domain's model as JSON for people who look for a fault. Private keys never leave the agent this way.

use serde_json::{Value, json};
use tidegate_model::{DomainName, Resource};

use crate::state::State;

/// The model of a domain; `None` when there is no such domain.
pub(super) fn model(state: &State, domain: &str) -> Option<Value> {
    let domains = state.domains.borrow();
    let model = &domains.get(&DomainName::new(domain))?.model;
    let resources: Vec<Value> = model.resources().map(to_value).collect();
    Some(json!({ "domain": &*model.domain, "generation": model.generation, "resources": resources }))
}

fn to_value(resource: &Resource) -> Value {
    match resource {
        Resource::Certificate(key, certificate) => json!({
            "kind": "Certificate",
            "key": key.to_string(),
            "value": { "names": certificate.names, "notAfter": certificate.not_after, "chain": certificate.chain.len() },
        }),
        Resource::CaBundle(key, bundle) => json!({
            "kind": "CaBundle",
            "key": key.to_string(),
            "value": { "authorities": bundle.authorities.len() },
        }),
        Resource::Backend(key, backend) => json!({
            "kind": "Backend",
            "key": key.to_string(),
            "value": {
                "protocol": backend.protocol,
                "tls": backend.tls,
            },
        }),
        Resource::Endpoints(key, endpoints) => {
            json!({ "kind": "Endpoints", "key": key.to_string(), "value": endpoints.endpoints })
        }
        Resource::Listener(key, listener) => {
            json!({ "kind": "Listener", "key": key.to_string(), "value": &**listener })
        }
        Resource::Rule(key, rule) => json!({ "kind": "Rule", "key": key.to_string(), "value": &**rule }),
        Resource::Forward(key, forward) => {
            json!({ "kind": "Forward", "key": key.to_string(), "value": &**forward })
        }
    }
}
