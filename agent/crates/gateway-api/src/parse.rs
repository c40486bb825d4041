//! From untyped values (a YAML document, a watch event) to typed objects.
//!
//! Unknown fields are no error, but they are named, so that a mistyped field is never ignored in silence. What the
//! translation must not depend on (`status`, `metadata.managedFields`, `metadata.resourceVersion`) is dropped: a write
//! of a status then changes no object.

use serde_json::Value;

use crate::object::{Kind, Object};

/// A typed object, and what of its text has no meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The object.
    pub object: Object,
    /// Paths of fields that the kind does not have, e.g. `spec.rules[0].backendRef`.
    pub unknown_fields: Vec<String>,
}

/// Why a value is no object that can be read.
#[derive(Debug, thiserror::Error)]
pub enum ParseError {
    /// Not an object at all, or without `apiVersion`, `kind` or `metadata.name`.
    #[error("{0} is missing: every object needs apiVersion, kind and metadata.name")]
    Missing(&'static str),
    /// Not one of [`Kind::ALL`], or a version of it that is not read.
    #[error("{kind} of {api_version} is not read: remove it, or mend its apiVersion or kind")]
    UnknownKind {
        /// `apiVersion` as written.
        api_version: String,
        /// `kind` as written.
        kind: String,
    },
    /// A field has the wrong type, a value that the kind does not allow, or is missing.
    #[error("{kind}/{name}: {path}: {message}")]
    Invalid {
        /// Kind.
        kind: Kind,
        /// Name, with the namespace in front.
        name: String,
        /// Path of the field, e.g. `spec.rules[0].matches`; `.` is the object itself.
        path: String,
        /// What is wrong with it.
        message: String,
    },
}

/// Reads an object. A namespaced object without a namespace is in `default`.
///
/// # Errors
/// See [`ParseError`]. Never panics, whatever the value is.
pub fn parse(mut value: Value) -> Result<Parsed, ParseError> {
    let text = |pointer: &'static str, name: &'static str| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
            .ok_or(ParseError::Missing(name))
    };
    let api_version = text("/apiVersion", "apiVersion")?;
    let kind_name = text("/kind", "kind")?;
    let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
    let Some(kind) = Kind::find(group, version, &kind_name) else {
        return Err(ParseError::UnknownKind { api_version, kind: kind_name });
    };
    let name = text("/metadata/name", "metadata.name")?;
    let fields = value.as_object_mut().ok_or(ParseError::Missing("metadata"))?;
    fields.remove("status");
    // A kind read under several versions has one type, whose own version the type's reader expects.
    fields.remove("apiVersion");
    fields.remove("kind");
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
        metadata.remove("resourceVersion");
        match metadata.get("namespace").and_then(Value::as_str) {
            None | Some("") if kind.is_namespaced() => {
                metadata.insert("namespace".to_owned(), Value::from("default"));
            }
            Some(_) if !kind.is_namespaced() => {
                metadata.remove("namespace");
            }
            _ => {}
        }
    }
    match kind {
        Kind::Secret => encode_string_data(fields),
        Kind::HTTPRoute | Kind::GRPCRoute => rename_session_fields(fields),
        _ => {}
    }
    let namespace = value.pointer("/metadata/namespace").and_then(Value::as_str).unwrap_or_default();
    let shown_name = if namespace.is_empty() { name } else { format!("{namespace}/{name}") };
    let mut unknown_fields = Vec::new();
    // `apiVersion` and `kind` are judged above and taken off, so a type that wants them gets its own.
    let object = Object::deserialize(kind, with_type(value, kind), &mut unknown_fields)
        .map_err(|(path, error)| ParseError::Invalid { kind, name: shown_name, path, message: error.to_string() })?;
    unknown_fields.retain(|path| path != "apiVersion" && path != "kind");
    Ok(Parsed { object, unknown_fields })
}

/// Puts the canonical `apiVersion` and `kind` back: the readers of Kubernetes' own kinds check them.
fn with_type(mut value: Value, kind: Kind) -> Value {
    let version = match kind {
        Kind::TrafficDomain | Kind::Backend => "v1alpha1",
        _ => "v1",
    };
    let api_version = if kind.group().is_empty() { version.to_owned() } else { format!("{}/{version}", kind.group()) };
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".to_owned(), Value::from(api_version));
        fields.insert("kind".to_owned(), Value::from(kind.as_str()));
    }
    value
}

/// Gateway API v1.6 wrote `sessionName` and `cookieConfig` where v1.7 writes `cookie` and `header`. What v1.7 has no field for
/// (`idleTimeout`) stays, and is named as unknown.
fn rename_session_fields(fields: &mut serde_json::Map<String, Value>) {
    let rules = fields.get_mut("spec").and_then(|spec| spec.get_mut("rules")).and_then(Value::as_array_mut);
    for rule in rules.into_iter().flatten() {
        let Some(session) = rule.get_mut("sessionPersistence").and_then(Value::as_object_mut) else { continue };
        let is_header = session.get("type").and_then(Value::as_str) == Some("Header");
        let target = if is_header { "header" } else { "cookie" };
        if let Some(config) = session.remove("cookieConfig") {
            session.entry("cookie").or_insert(config);
        }
        if let Some(name) = session.remove("sessionName") {
            let target = session.entry(target).or_insert_with(|| Value::Object(serde_json::Map::new()));
            if let Some(target) = target.as_object_mut() {
                target.entry("name").or_insert(name);
            }
        }
    }
}

/// `stringData` is write-only: an API server moves it to `data` in base64, a folder of files has nobody else to do so.
fn encode_string_data(fields: &mut serde_json::Map<String, Value>) {
    let Some(Value::Object(strings)) = fields.remove("stringData") else { return };
    let data = fields.entry("data").or_insert_with(|| Value::Object(serde_json::Map::new()));
    let Some(data) = data.as_object_mut() else { return };
    for (key, text) in strings {
        if let Some(text) = text.as_str() {
            let bytes = k8s_openapi::ByteString(text.as_bytes().to_vec());
            if let Ok(encoded) = serde_json::to_value(bytes) {
                data.insert(key, encoded);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn route(spec: Value) -> Value {
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "r"}, "spec": spec})
    }

    #[test]
    fn names_unknown_fields_and_reads_the_rest() {
        let parsed = parse(route(json!({"rules": [{"backendRef": []}], "hostname": "a"}))).unwrap();
        assert_eq!(parsed.unknown_fields, ["spec.hostname", "spec.rules[0].backendRef"]);
        assert_eq!(parsed.object.reference().to_string(), "HTTPRoute/default/r");
    }

    #[test]
    fn sessions_of_an_older_release_are_read() {
        let sessions = |session: Value| {
            let parsed = parse(route(json!({"rules": [{"sessionPersistence": session}]}))).unwrap();
            let Object::HTTPRoute(route) = parsed.object else { panic!("an HTTPRoute was written") };
            let session = route.spec.rules.clone().unwrap()[0].session_persistence.clone().unwrap();
            (session, parsed.unknown_fields)
        };
        let old = json!({"sessionName": "sid", "type": "Cookie", "absoluteTimeout": "1h",
            "cookieConfig": {"lifetimeType": "Permanent"}, "idleTimeout": "5m"});
        let new =
            json!({"type": "Cookie", "absoluteTimeout": "1h", "cookie": {"name": "sid", "lifetimeType": "Permanent"}});
        let (session, unknown) = sessions(old);
        assert_eq!(session, sessions(new).0);
        assert_eq!(unknown, ["spec.rules[0].sessionPersistence.idleTimeout"]);
        let old = json!({"sessionName": "X-S", "type": "Header"});
        assert_eq!(sessions(old), sessions(json!({"type": "Header", "header": {"name": "X-S"}})));
    }

    #[test]
    fn an_error_names_object_and_field() {
        let error = parse(route(json!({"rules": [{}, {"matches": [{"method": "FETCH"}]}]}))).unwrap_err();
        let ParseError::Invalid { path, message, .. } = &error else { panic!("{error}") };
        assert_eq!(path, "spec.rules[1].matches[0].method");
        assert!(message.contains("FETCH"), "{message}");
        assert!(error.to_string().starts_with("HTTPRoute/default/r: spec.rules[1]"), "{error}");
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        for value in [json!(null), json!([]), json!("a"), json!({}), json!({"apiVersion": "v1", "kind": "Service"})] {
            assert!(matches!(parse(value), Err(ParseError::Missing(_))));
        }
        for (api_version, kind) in [("v1", "Pod"), ("gateway.networking.k8s.io/v9", "Gateway"), ("apps/v1", "Service")]
        {
            let value = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}});
            assert!(matches!(parse(value), Err(ParseError::UnknownKind { .. })), "{kind}");
        }
    }

    #[test]
    fn older_versions_and_foreign_groups_of_a_kind_are_read() {
        for (api_version, kind, spec) in [
            ("gateway.networking.k8s.io/v1beta1", "HTTPRoute", json!({})),
            ("gateway.envoyproxy.io/v1alpha1", "Backend", json!({"endpoints": []})),
            ("discovery.k8s.io/v1", "EndpointSlice", json!(null)),
        ] {
            let mut value = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "a"}});
            if kind == "EndpointSlice" {
                value["addressType"] = json!("IPv4");
                value["endpoints"] = json!([]);
            } else {
                value["spec"] = spec;
            }
            let parsed = parse(value).unwrap();
            assert!(parsed.unknown_fields.is_empty(), "{:?}", parsed.unknown_fields);
        }
    }
}
