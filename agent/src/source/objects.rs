//! Documents as objects: `List`s taken apart, each object named, parsed by the API's types, and what is wrong with it said
//! at the line of the field. Pure, and total over any text.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::Arc,
};

use serde_json::Value;
use tidegate_gateway_api::{Kind, Object, ParseError};

use super::{
    Severity,
    yaml::{self, Position},
};

/// What names an object whatever the version it is written in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// API group; empty for the core group.
    pub group: Arc<str>,
    /// Kind.
    pub kind: Arc<str>,
    /// Namespace as the object gives it; `default` for a namespaced kind without one.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Notation of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notation {
    /// YAML, any number of documents.
    Yaml,
    /// JSON, one value.
    Json,
}

/// One object of a document.
#[derive(Debug)]
pub struct Item {
    /// Its name.
    pub identity: Identity,
    /// Where it starts in the document.
    pub position: Position,
    /// Hash of all of it.
    pub fingerprint: u64,
    /// Hash of everything but metadata and status: a change of it is a new generation.
    pub substance: u64,
    /// The parsed object until somebody takes it; `None` from the start when it could not be parsed.
    pub object: Option<Box<Object>>,
    /// Whether it could be parsed.
    pub is_good: bool,
}

/// Something wrong in a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Where in the document.
    pub position: Position,
    /// How bad it is.
    pub severity: Severity,
    /// The object, when it has a name.
    pub object: Option<Identity>,
    /// What is wrong.
    pub message: String,
}

/// What a document holds.
#[derive(Debug, Default)]
pub struct Contents {
    /// Its objects, good and bad.
    pub items: Vec<Item>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// Whether there may be objects in it that could not even be named.
    pub is_opaque: bool,
}

/// Gives an object its generation: by its identity and the hash of its substance.
pub type Generations<'a> = &'a dyn Fn(&Identity, u64) -> i64;

/// Reads one document.
pub fn read_document(text: &str, notation: Notation, hasher: &RandomState, generations: Generations<'_>) -> Contents {
    let value = match notation {
        Notation::Yaml => yaml::parse(text),
        Notation::Json => yaml::parse_json(text),
    };
    let mut reader = Reader { text, hasher, generations, contents: Contents::default() };
    match value {
        Ok(Value::Null) => {}
        Ok(value) => reader.push_value(value),
        Err(error) => {
            reader.contents.is_opaque = true;
            reader.push_finding(error.position, Severity::Error, None, error.message);
        }
    }
    reader.contents
}

struct Reader<'a> {
    text: &'a str,
    hasher: &'a RandomState,
    generations: Generations<'a>,
    contents: Contents,
}

impl Reader<'_> {
    fn push_value(&mut self, mut value: Value) {
        let kind = value["kind"].as_str().unwrap_or_default().to_owned();
        let Some(item_kind) = kind.strip_suffix("List") else { return self.push_object(value, "") };
        if !value["items"].is_array() {
            return self.push_object(value, "");
        }
        let version = value["apiVersion"].take();
        let Value::Array(items) = value["items"].take() else { return };
        for (index, mut item) in items.into_iter().enumerate() {
            // The API server leaves kind and version out of the items of a typed list.
            if let Value::Object(fields) = &mut item
                && !item_kind.is_empty()
            {
                fields.entry("kind").or_insert_with(|| item_kind.into());
                fields.entry("apiVersion").or_insert_with(|| version.clone());
            }
            self.push_object(item, &format!("items[{index}]"));
        }
    }

    fn push_object(&mut self, mut value: Value, path: &str) {
        let identity = match identify(&value) {
            Ok(identity) => identity,
            Err((field, message)) => {
                self.contents.is_opaque = true;
                let position = self.find(path, field);
                return self.push_finding(position, Severity::Error, None, message.to_owned());
            }
        };
        let fingerprint = self.hash(&value, &[]);
        let substance = self.hash(&value, &["metadata", "status"]);
        // Files carry no generation that anybody counts up, so the source counts: status is then fresh or stale as in a cluster.
        value["metadata"]["generation"] = (self.generations)(&identity, substance).into();
        let mut item = Item {
            position: if path.is_empty() { self.start() } else { self.find(path, "") },
            identity: identity.clone(),
            fingerprint,
            substance,
            object: None,
            is_good: false,
        };
        match tidegate_gateway_api::parse(value) {
            Ok(parsed) => {
                item.object = Some(Box::new(parsed.object));
                item.is_good = true;
                for field in parsed.unknown_fields {
                    let position = self.find(path, &field);
                    let message = format!("field {field} is unknown and has no effect: correct or remove it");
                    self.push_finding(position, Severity::Warning, Some(identity.clone()), message);
                }
            }
            Err(error) => {
                let (severity, field, message) = match &error {
                    ParseError::UnknownKind { .. } => (Severity::Warning, "kind", error.to_string()),
                    ParseError::Missing(field) => (Severity::Error, *field, error.to_string()),
                    // The reason may quote the value, which must not reach a log or a screen.
                    ParseError::Invalid { kind: Kind::Secret, path, .. } => {
                        (Severity::Error, path.as_str(), format!("{path} is not what a Secret has there (not shown)"))
                    }
                    ParseError::Invalid { path, message, .. } => {
                        (Severity::Error, path.as_str(), format!("{path}: {message}"))
                    }
                };
                let position = self.find(path, field.trim_start_matches('.'));
                self.push_finding(position, severity, Some(identity), message);
            }
        }
        self.contents.items.push(item);
    }

    fn push_finding(&mut self, position: Position, severity: Severity, object: Option<Identity>, message: String) {
        self.contents.findings.push(Finding { position, severity, object, message });
    }

    fn find(&self, path: &str, field: &str) -> Position {
        let joined =
            if path.is_empty() || field.is_empty() { format!("{path}{field}") } else { format!("{path}.{field}") };
        yaml::locate(self.text, &joined).unwrap_or_else(|| self.start())
    }

    /// First line with content.
    fn start(&self) -> Position {
        let is_content =
            |row: &&str| !row.trim_start_matches("---").trim().is_empty() && !row.trim_start().starts_with('#');
        let before = yaml::rows(self.text).take_while(|row| !is_content(row)).count();
        Position { line: before as u64 + 1, column: 1 }
    }

    fn hash(&self, value: &Value, less: &[&str]) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        match value {
            Value::Object(fields) => {
                for (name, field) in fields.iter().filter(|(name, _)| !less.contains(&name.as_str())) {
                    name.hash(&mut hasher);
                    hash_value(field, &mut hasher);
                }
            }
            other => hash_value(other, &mut hasher),
        }
        hasher.finish()
    }
}

pub(super) fn hash_value(value: &Value, hasher: &mut impl Hasher) {
    std::mem::discriminant(value).hash(hasher);
    match value {
        Value::Null => {}
        Value::Bool(flag) => flag.hash(hasher),
        Value::Number(number) => number.hash(hasher),
        Value::String(text) => text.hash(hasher),
        Value::Array(items) => {
            items.len().hash(hasher);
            items.iter().for_each(|item| hash_value(item, hasher));
        }
        Value::Object(fields) => {
            fields.len().hash(hasher);
            for (name, field) in fields {
                name.hash(hasher);
                hash_value(field, hasher);
            }
        }
    }
}

fn identify(value: &Value) -> Result<Identity, (&'static str, &'static str)> {
    if !value.is_object() {
        return Err(("", "this is not a Kubernetes object: write apiVersion, kind and metadata"));
    }
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(Arc::<str>::from);
    let api_version =
        text(&value["apiVersion"]).ok_or(("apiVersion", "apiVersion is missing: write e.g. apiVersion: v1"))?;
    let kind = text(&value["kind"]).ok_or(("kind", "kind is missing"))?;
    if !value["metadata"].is_object() {
        return Err(("metadata", "metadata is missing: write at least metadata: {name: …}"));
    }
    let name = text(&value["metadata"]["name"]).ok_or(("metadata.name", "metadata.name is missing or no text"))?;
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    // One kind may be read from several groups and versions; it is one object all the same.
    let known = Kind::find(group, version, &kind);
    let namespace = match text(&value["metadata"]["namespace"]) {
        _ if known.is_some_and(|kind| !kind.is_namespaced()) => Arc::from(""),
        Some(namespace) => namespace,
        None if known.is_none() => Arc::from(""),
        None => Arc::from("default"),
    };
    let group = match known {
        Some(kind) => kind.group(),
        None => group,
    };
    Ok(Identity { group: Arc::from(group), kind, namespace, name })
}
