//! What a Gateway refers to: Secrets with certificates, bundles of authorities, and servers that its listeners ask. Into other
//! namespaces only with a ReferenceGrant there.

use std::{collections::BTreeSet, sync::Arc};

use tidegate_model::{CaBundleKey, ObjectName};

use crate::{
    ca_bundles::find_key,
    generated::{common::SecretObjectReference, gateway::ObjectReference},
    grants::CrossReference,
    object::{GATEWAY_GROUP, Kind},
    references::Resolver,
    status::Problem,
    translator::store::Store,
};

/// Finds what the references of an object lead to, and notes what it depends on.
#[derive(Debug)]
pub(crate) struct GatewayReferences<'a> {
    store: &'a Store,
    from_kind: Kind,
    namespace: &'a str,
    /// Servers that listeners ask.
    pub(crate) backends: Resolver<'a>,
    /// Secrets with certificates, whether they exist or not.
    pub(crate) secrets: BTreeSet<ObjectName>,
    /// Bundles of authorities, whether they exist or not.
    pub(crate) bundles: BTreeSet<CaBundleKey>,
    /// Namespaces whose grants matter.
    pub(crate) grants: BTreeSet<Arc<str>>,
}

impl<'a> GatewayReferences<'a> {
    /// References of an object of a kind of Gateway API.
    pub(crate) fn new(store: &'a Store, from_kind: Kind, namespace: &'a str) -> Self {
        Self {
            store,
            from_kind,
            namespace,
            backends: Resolver::new(store, from_kind, namespace),
            secrets: BTreeSet::new(),
            bundles: BTreeSet::new(),
            grants: BTreeSet::new(),
        }
    }

    /// Finds the Secret of a certificate; what is none has the reason `invalid`.
    pub(crate) fn find_secret(
        &mut self,
        field: &str,
        reference: &SecretObjectReference,
        invalid: &'static str,
    ) -> Result<ObjectName, Problem> {
        let kind = reference.kind.as_deref().unwrap_or("Secret");
        let group = reference.group.as_deref().unwrap_or_default();
        if kind != "Secret" || !group.is_empty() {
            return Err(Problem::new(
                invalid,
                format!("{field}: {kind} of group {group:?} holds no certificate: name a Secret"),
            ));
        }
        let name = self.resolve(reference.namespace.as_deref(), &reference.name);
        self.check_grant(field, "Secret", &name)?;
        self.secrets.insert(name.clone());
        Ok(name)
    }

    /// Finds a bundle of authorities.
    pub(crate) fn find_bundle(&mut self, field: &str, reference: &ObjectReference) -> Result<CaBundleKey, Problem> {
        let name = self.resolve(reference.namespace.as_deref(), &reference.name);
        let key = find_key(field, &reference.group, &reference.kind, name, "InvalidCACertificateKind")?;
        match &key {
            CaBundleKey::ConfigMap(name) => self.check_grant(field, "ConfigMap", name)?,
            CaBundleKey::Secret(name) => self.check_grant(field, "Secret", name)?,
            CaBundleKey::ClusterTrustBundle(_) => {
                if reference.namespace.as_deref().is_some_and(|namespace| !namespace.is_empty()) {
                    return Err(Problem::new(
                        "InvalidCACertificateRef",
                        format!("{field}.namespace: a ClusterTrustBundle is in no namespace: remove it"),
                    ));
                }
            }
        }
        self.bundles.insert(key.clone());
        Ok(key)
    }

    fn resolve(&self, namespace: Option<&str>, name: &str) -> ObjectName {
        ObjectName::new(namespace.filter(|name| !name.is_empty()).unwrap_or(self.namespace), name)
    }

    fn check_grant(&mut self, field: &str, kind: &'static str, name: &ObjectName) -> Result<(), Problem> {
        if *name.namespace == *self.namespace {
            return Ok(());
        }
        self.grants.insert(name.namespace.clone());
        let cross = CrossReference {
            from_group: GATEWAY_GROUP,
            from_kind: self.from_kind.as_str(),
            from_namespace: self.namespace,
            to_group: "",
            to_kind: kind,
            to_name: &name.name,
        };
        if self.store.is_granted(&name.namespace, cross) {
            return Ok(());
        }
        Err(Problem::new(
            "RefNotPermitted",
            format!(
                "{field}: {kind} {name} is in another namespace: make a ReferenceGrant in {} from {} of {}",
                name.namespace, self.from_kind, self.namespace
            ),
        ))
    }
}
