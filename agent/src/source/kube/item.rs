//! One object as it comes from the API server: trimmed, parsed, and with what is said about it taken apart from what it
//! says.

use std::hash::{BuildHasher, Hasher, RandomState};

use serde_json::Value;
use tidegate_gateway_api::{Kind, Object, ParseError, parse};
use tidegate_model::ObjectName;

use super::{references::References, trim::trim};
use crate::{kube::Resource, source::objects::hash_value};

/// An object.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) name: ObjectName,
    pub(super) resource_version: String,
    pub(super) generation: Option<i64>,
    /// Hash of everything that is kept of it.
    pub(super) fingerprint: u64,
    /// The object, or why it cannot be read.
    pub(super) object: Result<Object, String>,
    /// Fields that its kind does not have.
    pub(super) unknown_fields: Vec<String>,
    pub(super) references: References,
    /// Its status as it stands; null when it has none.
    pub(super) status: Value,
}

/// Reads an object of a resource.
pub(super) fn read_item(kind: Kind, resource: &Resource, hasher: &RandomState, mut value: Value) -> Item {
    let resource_version = value["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
    let generation = value["metadata"]["generation"].as_i64();
    let name = crate::kube::name_of(&value);
    let status = trim(kind, &mut value);
    let references = References::of(kind, &name, &value);
    let mut state = hasher.build_hasher();
    hash_value(&value, &mut state);
    let fingerprint = state.finish();
    // Items of a list come without both.
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".to_owned(), resource.api_version().into());
        fields.insert("kind".to_owned(), kind.as_str().into());
    }
    let (object, unknown_fields) = match parse(value) {
        Ok(parsed) => (Ok(parsed.object), parsed.unknown_fields),
        Err(error) => (Err(describe(&error)), Vec::new()),
    };
    Item { name, resource_version, generation, fingerprint, object, unknown_fields, references, status }
}

fn describe(error: &ParseError) -> String {
    match error {
        // The reason may quote the value, which must not reach a log or a screen.
        ParseError::Invalid { kind: Kind::Secret, path, .. } => {
            format!("{path} is not what a Secret has there (not shown)")
        }
        ParseError::Invalid { path, message, .. } => format!("{path}: {message}"),
        other => other.to_string(),
    }
}
