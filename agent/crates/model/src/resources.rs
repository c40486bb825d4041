//! Resources in the order of their keys. A resource has its key in it: a map would hold every key twice, and the model of
//! thousands of routes is little more than keys.

use std::{borrow::Borrow, cmp::Ordering, collections::BTreeSet};

use crate::{BackendKey, CaBundleKey, CertificateKey, Key, ListenerKey, Resource, RuleKey};

/// Resources, one for each key.
#[derive(Clone, Debug, Default)]
pub(crate) struct Resources(BTreeSet<ByKey>);

/// A resource that is told from others by its key alone.
#[derive(Clone, Debug)]
struct ByKey(Resource);

/// What has a key.
trait Keyed {
    /// Its key, by reference.
    fn key_ref(&self) -> KeyRef<'_>;
}

/// A [`Key`] by reference, in the same order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum KeyRef<'a> {
    Certificate(&'a CertificateKey),
    CaBundle(&'a CaBundleKey),
    Backend(&'a BackendKey),
    Endpoints(&'a BackendKey),
    Listener(&'a ListenerKey),
    Rule(&'a RuleKey),
    Forward(&'a RuleKey),
}

impl Resources {
    /// The resource of a key.
    pub(crate) fn find(&self, key: &Key) -> Option<&Resource> {
        self.0.get(key as &dyn Keyed).map(|found| &found.0)
    }

    /// All of them in the order of their keys.
    pub(crate) fn iter(&self) -> impl ExactSizeIterator<Item = &Resource> {
        self.0.iter().map(|found| &found.0)
    }

    /// Adds a resource in place of the one that has the same key.
    pub(crate) fn put(&mut self, resource: Resource) {
        self.0.replace(ByKey(resource));
    }

    /// Removes the resource of a key, where there is one.
    pub(crate) fn remove(&mut self, key: &Key) {
        self.0.remove(key as &dyn Keyed);
    }

    /// Removes all.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Equal when all that is in them is, not their keys alone.
impl PartialEq for Resources {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Resources {}

impl Keyed for Key {
    fn key_ref(&self) -> KeyRef<'_> {
        match self {
            Self::Certificate(key) => KeyRef::Certificate(key),
            Self::CaBundle(key) => KeyRef::CaBundle(key),
            Self::Backend(key) => KeyRef::Backend(key),
            Self::Endpoints(key) => KeyRef::Endpoints(key),
            Self::Listener(key) => KeyRef::Listener(key),
            Self::Rule(key) => KeyRef::Rule(key),
            Self::Forward(key) => KeyRef::Forward(key),
        }
    }
}

impl Keyed for ByKey {
    fn key_ref(&self) -> KeyRef<'_> {
        match &self.0 {
            Resource::Certificate(key, _) => KeyRef::Certificate(key),
            Resource::CaBundle(key, _) => KeyRef::CaBundle(key),
            Resource::Backend(key, _) => KeyRef::Backend(key),
            Resource::Endpoints(key, _) => KeyRef::Endpoints(key),
            Resource::Listener(key, _) => KeyRef::Listener(key),
            Resource::Rule(key, _) => KeyRef::Rule(key),
            Resource::Forward(key, _) => KeyRef::Forward(key),
        }
    }
}

impl<'a> Borrow<dyn Keyed + 'a> for ByKey {
    fn borrow(&self) -> &(dyn Keyed + 'a) {
        self
    }
}

impl PartialEq for ByKey {
    fn eq(&self, other: &Self) -> bool {
        self.key_ref() == other.key_ref()
    }
}

impl Eq for ByKey {}

impl PartialOrd for ByKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ByKey {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key_ref().cmp(&other.key_ref())
    }
}

impl PartialEq for dyn Keyed + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.key_ref() == other.key_ref()
    }
}

impl Eq for dyn Keyed + '_ {}

impl PartialOrd for dyn Keyed + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for dyn Keyed + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key_ref().cmp(&other.key_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{CaBundle, Endpoint, EndpointState, Endpoints, ObjectName};

    fn backend(name: &str) -> BackendKey {
        BackendKey::Service { name: ObjectName::new("shop", name), port: 80 }
    }

    #[test]
    fn they_are_found_and_ordered_as_their_keys_are() {
        let bundle = CaBundleKey::ConfigMap(ObjectName::new("shop", "ca"));
        let all = [
            Resource::Endpoints(backend("b"), Arc::default()),
            Resource::CaBundle(bundle, Arc::new(CaBundle { authorities: Vec::new() })),
            Resource::Endpoints(backend("a"), Arc::default()),
        ];
        let mut resources = Resources::default();
        for resource in &all {
            resources.put(resource.clone());
            assert_eq!(resources.find(&resource.key()), Some(resource));
        }
        let mut keys: Vec<_> = all.iter().map(Resource::key).collect();
        keys.sort();
        assert_eq!(resources.iter().map(Resource::key).collect::<Vec<_>>(), keys);
        resources.remove(&keys[1]);
        assert_eq!((resources.find(&keys[1]), resources.iter().len()), (None, 2));
    }

    #[test]
    fn a_new_value_replaces_the_old_one_and_makes_a_difference() {
        let mut resources = Resources::default();
        resources.put(Resource::Endpoints(backend("a"), Arc::default()));
        let before = resources.clone();
        let endpoint = Endpoint { addr: "192.0.2.1:80".parse().unwrap(), state: EndpointState::Ready };
        let endpoints = Endpoints { endpoints: vec![endpoint] };
        let changed = Resource::Endpoints(backend("a"), Arc::new(endpoints));
        resources.put(changed.clone());
        assert_eq!(resources.iter().collect::<Vec<_>>(), [&changed]);
        assert_ne!(resources, before);
    }
}
