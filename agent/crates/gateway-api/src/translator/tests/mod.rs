//! The translator as a whole: objects in, models and statuses out.

mod addresses;
mod conditions;
mod example;
mod forwards;
mod gateways;
mod incremental;
mod listener_filters;
mod listener_sets;
mod mutation;
mod mutation_routes;
mod order;
mod origins;
mod rules;
mod tls;

use std::sync::OnceLock;

use serde_json::Value;
use tidegate_model::{DomainName, Key, ListenerKey, Model, ObjectName, Resource, Rule, RuleKey, RuleKind};

use super::*;
use crate::{Condition, Kind, parse};

/// The example that the documentation shows.
const EXAMPLE: &str = include_str!("../../../../../../deploy/examples/two-domains.yaml");

/// Objects of a YAML text, in their order.
fn read(yaml: &str) -> Vec<Object> {
    yaml.split("\n---")
        .filter(|document| document.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#')))
        .map(|document| {
            let value: Value = serde_saphyr::from_str(document).unwrap_or_else(|error| panic!("{error}\n{document}"));
            let parsed = parse(value).unwrap_or_else(|error| panic!("{error}\n{document}"));
            assert_eq!(parsed.unknown_fields, Vec::<String>::new(), "in\n{document}");
            parsed.object
        })
        .collect()
}

/// A chain and key for `*.example.com`, made once: keys cost time.
fn certificate() -> &'static (String, String) {
    static MADE: OnceLock<(String, String)> = OnceLock::new();
    MADE.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(vec!["*.example.com".to_owned()]).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    })
}

fn tls_secret(namespace: &str, name: &str) -> Object {
    let (chain, key) = certificate();
    let value = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"namespace": namespace, "name": name},
        "stringData": {"tls.crt": chain, "tls.key": key},
    });
    parse(value).unwrap().object
}

fn settings() -> Settings {
    Settings {
        controller_names: vec!["tidegate.dev/gateway-controller".to_owned()],
        node_name: "node-a".to_owned(),
        node_addresses: vec!["192.0.2.10".parse().unwrap()],
        node_labels: BTreeMap::from([("role".to_owned(), "gateway".to_owned())]),
        reports_missing_parents: true,
        unknown_release: None,
    }
}

/// A translator with short ways to feed it and to look into it.
struct World {
    translator: Translator,
}

impl World {
    fn empty() -> Self {
        Self { translator: Translator::new(settings()) }
    }

    /// The example with its certificate.
    fn example() -> Self {
        let mut world = Self::empty();
        let mut objects = read(EXAMPLE);
        objects.push(tls_secret("gw-external", "example-com"));
        world.put_all(objects);
        world
    }

    fn put_all(&mut self, objects: impl IntoIterator<Item = Object>) -> Changes {
        self.translator.apply(objects.into_iter().map(Event::Put))
    }

    fn put(&mut self, yaml: &str) -> Changes {
        self.put_all(read(yaml))
    }

    fn delete(&mut self, kind: Kind, namespace: &str, name: &str) -> Changes {
        self.translator.apply([Event::Delete(reference(kind, namespace, name))])
    }

    fn model(&self, domain: &str) -> &Model {
        self.translator.model(&DomainName::new(domain)).expect("the domain is served")
    }

    fn find(&self, domain: &str, key: &Key) -> Option<Resource> {
        self.model(domain).find(key).cloned()
    }

    fn rule(&self, domain: &str, namespace: &str, name: &str, index: u16) -> Option<Rule> {
        match self.find(domain, &rule_key(namespace, name, index))? {
            Resource::Rule(_, rule) => Some((*rule).clone()),
            other => panic!("{other:?}"),
        }
    }

    fn listener(&self, domain: &str, namespace: &str, gateway: &str, name: &str) -> Option<tidegate_model::Listener> {
        match self.find(domain, &listener_key(namespace, gateway, name))? {
            Resource::Listener(_, listener) => Some((*listener).clone()),
            other => panic!("{other:?}"),
        }
    }

    /// The names of all listeners in a domain's model.
    fn listeners(&self, domain: &str) -> Vec<String> {
        self.model(domain).listeners().map(|(key, _)| key.to_string()).collect()
    }

    fn status(&self, kind: Kind, namespace: &str, name: &str) -> &ObjectStatus {
        let reference = reference(kind, namespace, name);
        self.translator.find_status(&reference).unwrap_or_else(|| panic!("nothing is said about {reference}"))
    }

    /// Conditions of an object, of its only parent, or of the listener in `part`.
    fn conditions(&self, kind: Kind, namespace: &str, name: &str, part: &str) -> Vec<Condition> {
        let status = self.status(kind, namespace, name);
        if !part.is_empty() {
            let listener = status.listeners.iter().find(|listener| &*listener.name == part);
            return listener.unwrap_or_else(|| panic!("no listener {part}")).conditions.clone();
        }
        match status.parents.first() {
            Some(parent) => parent.conditions.clone(),
            None => status.conditions.clone(),
        }
    }

    /// One condition as `Type=Status Reason`, with its message.
    fn condition(&self, (kind, namespace, name, part): Place<'_>, type_: &str) -> (String, String) {
        let conditions = self.conditions(kind, namespace, name, part);
        let found = conditions.iter().find(|condition| condition.type_ == type_);
        let found = found.unwrap_or_else(|| panic!("{kind}/{namespace}/{name} {part}: no {type_} in {conditions:#?}"));
        (format!("{}={} {}", found.type_, found.status, found.reason), found.message.clone())
    }

    #[track_caller]
    fn assert_condition(&self, place: Place<'_>, expected: &str, message: &str) {
        let type_ = expected.split('=').next().unwrap_or_default();
        let (found, found_message) = self.condition(place, type_);
        assert_eq!(found, expected, "{place:?}: {found_message}");
        assert!(found_message.contains(message), "{place:?}: {found_message:?} does not say {message:?}");
    }
}

/// Kind, namespace, name, and the listener's name or nothing.
type Place<'a> = (Kind, &'a str, &'a str, &'a str);

fn reference(kind: Kind, namespace: &str, name: &str) -> ObjectRef {
    ObjectRef::new(kind, ObjectName::new(namespace, name))
}

fn rule_key(namespace: &str, name: &str, index: u16) -> Key {
    Key::Rule(RuleKey { kind: RuleKind::HTTPRoute, route: ObjectName::new(namespace, name), index })
}

fn listener_key(namespace: &str, gateway: &str, name: &str) -> Key {
    Key::Listener(ListenerKey::of_gateway(ObjectName::new(namespace, gateway), name))
}

/// Domains with their resources.
type Snapshot = BTreeMap<DomainName, (Domain, Vec<Resource>)>;

/// Every model's resources, for comparison without generations.
fn snapshot(translator: &Translator) -> Snapshot {
    let domains = translator.domains.keys();
    domains
        .filter_map(|name| {
            let model = translator.model(name)?;
            Some((name.clone(), ((*model.domain).clone(), model.resources().cloned().collect())))
        })
        .collect()
}
