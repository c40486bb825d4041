//! Which Secrets, ConfigMaps and ClusterTrustBundles objects refer to. Only these are ever asked for, and only these are
//! held.
//!
//! References are found by the names of the fields that hold them, whatever the kind: whether one is permitted is the
//! translation's to judge, which uses nothing that is not. Gateways of other controllers do not count.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tidegate_gateway_api::{Kind, ObjectRef};
use tidegate_model::ObjectName;

use crate::kube::is_name;

/// Fields that hold references, with the kind that one without a kind means.
const FIELDS: [(&str, Option<Kind>); 5] = [
    ("certificateRefs", Some(Kind::Secret)),
    ("clientCertificateRef", Some(Kind::Secret)),
    ("caCertificateRefs", None),
    ("allowFrom", Some(Kind::ConfigMap)),
    ("denyFrom", Some(Kind::ConfigMap)),
];

/// Namespace of a reference out of an object that has none.
const DEFAULT_NAMESPACE: &str = "default";

/// What one object refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct References {
    /// What decides whether they count.
    owner: Owner,
    targets: BTreeSet<ObjectRef>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Owner {
    /// They always count.
    #[default]
    Anybody,
    /// They count when the GatewayClass is this controller's.
    Class(String),
    /// They count when the Gateway's do.
    Gateway(ObjectName),
}

impl References {
    /// Reads what an object refers to.
    pub(super) fn of(kind: Kind, name: &ObjectName, object: &Value) -> Self {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let owner = match kind {
            Kind::Gateway => Owner::Class(text(&spec["gatewayClassName"])),
            Kind::ListenerSet => {
                let parent = &spec["parentRef"];
                let namespace = parent["namespace"].as_str().unwrap_or(&name.namespace);
                Owner::Gateway(ObjectName::new(namespace, text(&parent["name"])))
            }
            Kind::BackendTLSPolicy | Kind::TrafficDomain => Owner::Anybody,
            // What routes refer to is no Secret, and a filter may use any of the names above.
            _ => return Self::default(),
        };
        let mut targets = BTreeSet::new();
        let namespace = if name.namespace.is_empty() { DEFAULT_NAMESPACE } else { &name.namespace };
        collect(spec, namespace, &mut targets);
        Self { owner, targets }
    }
}

fn collect(value: &Value, namespace: &str, targets: &mut BTreeSet<ObjectRef>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let Some((_, default)) = FIELDS.iter().find(|(field, _)| field == name) else {
                    collect(field, namespace, targets);
                    continue;
                };
                let list = field.as_array().map_or(std::slice::from_ref(field), Vec::as_slice);
                targets.extend(list.iter().filter_map(|reference| read(reference, *default, namespace)));
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, namespace, targets)),
        _ => {}
    }
}

fn read(reference: &Value, default: Option<Kind>, namespace: &str) -> Option<ObjectRef> {
    let name = reference["name"].as_str()?;
    let group = reference["group"].as_str().unwrap_or_default();
    let kind = match (group, reference["kind"].as_str()) {
        ("", None | Some("")) => default?,
        ("", Some("Secret")) => Kind::Secret,
        ("", Some("ConfigMap")) => Kind::ConfigMap,
        (_, Some("ClusterTrustBundle")) if group == Kind::ClusterTrustBundle.group() => {
            return is_name(name).then(|| ObjectRef::new(Kind::ClusterTrustBundle, ObjectName::new("", name)));
        }
        _ => return None,
    };
    let namespace = reference["namespace"].as_str().filter(|namespace| !namespace.is_empty()).unwrap_or(namespace);
    // What cannot be a name would be part of a path.
    (is_name(name) && is_name(namespace)).then(|| ObjectRef::new(kind, ObjectName::new(namespace, name)))
}

/// What all objects refer to.
#[derive(Debug, Default)]
pub(super) struct Referrers {
    by_object: BTreeMap<ObjectRef, References>,
    classes: BTreeSet<String>,
}

impl Referrers {
    /// Notes what an object refers to; `None` when it is gone. Returns whether that may change what is wanted.
    pub(super) fn replace(&mut self, object: &ObjectRef, references: Option<References>) -> bool {
        // A Gateway without any still says whose its ListenerSets are.
        let references = references.filter(|references| !references.targets.is_empty() || object.kind == Kind::Gateway);
        let before = match references.clone() {
            Some(references) => self.by_object.insert(object.clone(), references),
            None => self.by_object.remove(object),
        };
        before != references
    }

    /// Notes whether a GatewayClass is this controller's. Returns whether that may change what is wanted.
    pub(super) fn set_class(&mut self, name: &str, is_own: bool) -> bool {
        if is_own { self.classes.insert(name.to_owned()) } else { self.classes.remove(name) }
    }

    /// Everything that is referred to.
    pub(super) fn wanted(&self) -> BTreeSet<ObjectRef> {
        let counts = |references: &&References| match &references.owner {
            Owner::Anybody => true,
            Owner::Class(class) => self.classes.contains(class),
            Owner::Gateway(gateway) => self.is_own(gateway),
        };
        self.by_object.values().filter(counts).flat_map(|references| references.targets.iter().cloned()).collect()
    }

    fn is_own(&self, gateway: &ObjectName) -> bool {
        let references = self.by_object.get(&ObjectRef::new(Kind::Gateway, gateway.clone()));
        matches!(references.map(|references| &references.owner), Some(Owner::Class(class)) if self.classes.contains(class))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn gateway(class: &str, references: Value) -> (ObjectRef, References) {
        let reference = ObjectRef::new(Kind::Gateway, ObjectName::new("shop", "gw"));
        let object = json!({"spec": {
            "gatewayClassName": class,
            "listeners": [{"name": "https", "tls": {"certificateRefs": references}}],
        }});
        let references = References::of(Kind::Gateway, &reference.name, &object);
        (reference, references)
    }

    #[test]
    fn only_what_gateways_of_own_classes_refer_to_is_wanted() {
        let mut referrers = Referrers::default();
        let (object, references) = gateway("ours", json!([{"name": "a"}, {"name": "b", "namespace": "other"}]));
        assert!(referrers.replace(&object, Some(references.clone())));
        assert!(referrers.wanted().is_empty(), "no class is known yet");
        assert!(referrers.set_class("ours", true));
        let wanted: Vec<_> = referrers.wanted().iter().map(ToString::to_string).collect();
        assert_eq!(wanted, ["Secret/other/b", "Secret/shop/a"]);
        assert!(!referrers.replace(&object, Some(references)), "nothing has changed");
        assert!(referrers.replace(&object, None));
        assert!(referrers.wanted().is_empty());
    }

    #[test]
    fn other_kinds_and_what_is_no_name_are_left_alone() {
        let (_, references) = gateway(
            "ours",
            json!([{"name": "../../../nodes"}, {"name": "a", "kind": "Vault", "group": "x"}, {"name": "b?watch=1"}, {}]),
        );
        assert!(references.targets.is_empty(), "{references:?}");
    }

    #[test]
    fn policies_refer_to_authorities_of_their_namespace_and_of_the_cluster() {
        let object = json!({"spec": {"validation": {"caCertificateRefs": [
            {"group": "", "kind": "ConfigMap", "name": "ca"},
            {"group": "certificates.k8s.io", "kind": "ClusterTrustBundle", "name": "example.com"},
            {"group": "", "kind": "ClusterTrustBundle", "name": "wrong-group"},
            {"group": "certificates.k8s.io", "kind": "ClusterTrustBundle", "name": "../nodes"},
        ]}}});
        let references = References::of(Kind::BackendTLSPolicy, &ObjectName::new("shop", "p"), &object);
        let names: Vec<_> = references.targets.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["ConfigMap/shop/ca", "ClusterTrustBundle/example.com"]);
    }

    #[test]
    fn domains_refer_to_config_maps() {
        let object =
            json!({"spec": {"sources": {"allowFrom": [{"name": "a"}], "denyFrom": [{"name": "b", "namespace": "c"}]}}});
        let references = References::of(Kind::TrafficDomain, &ObjectName::new("", "public"), &object);
        let names: Vec<_> = references.targets.iter().map(ToString::to_string).collect();
        assert_eq!(names, ["ConfigMap/c/b", "ConfigMap/default/a"]);
    }
}
