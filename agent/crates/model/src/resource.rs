//! Resources, their keys, deltas between states of a model, and the model itself.

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    Backend, BackendKey, CaBundle, CaBundleKey, Certificate, CertificateKey, Domain, Endpoints, Forward, FrontendKey,
    Generation, Listener, ListenerKey, Rule, RuleKey, Trust, domain::Frontends, resources::Resources,
};

/// Stable key of a resource. The order of the kinds is the order in which additions are safe: what is referred to comes
/// before what refers to it (endpoints before rules); removals go the other way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Key {
    /// A [`Certificate`].
    Certificate(CertificateKey),
    /// A [`CaBundle`].
    CaBundle(CaBundleKey),
    /// A [`Backend`].
    Backend(BackendKey),
    /// The [`Endpoints`] of a backend.
    Endpoints(BackendKey),
    /// A [`Listener`].
    Listener(ListenerKey),
    /// A [`Rule`].
    Rule(RuleKey),
    /// A [`Forward`].
    Forward(RuleKey),
}

/// A resource with its key: they cannot disagree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Resource {
    /// A certificate with its private key.
    Certificate(CertificateKey, Arc<Certificate>),
    /// Certificate authorities to trust.
    CaBundle(CaBundleKey, Arc<CaBundle>),
    /// How to speak to a backend.
    Backend(BackendKey, Arc<Backend>),
    /// Where a backend is.
    Endpoints(BackendKey, Arc<Endpoints>),
    /// A listener.
    Listener(ListenerKey, Arc<Listener>),
    /// A rule.
    Rule(RuleKey, Arc<Rule>),
    /// A forward.
    Forward(RuleKey, Arc<Forward>),
}

impl Resource {
    /// Key of this resource.
    pub fn key(&self) -> Key {
        match self {
            Self::Certificate(key, _) => Key::Certificate(key.clone()),
            Self::CaBundle(key, _) => Key::CaBundle(key.clone()),
            Self::Backend(key, _) => Key::Backend(key.clone()),
            Self::Endpoints(key, _) => Key::Endpoints(key.clone()),
            Self::Listener(key, _) => Key::Listener(key.clone()),
            Self::Rule(key, _) => Key::Rule(key.clone()),
            Self::Forward(key, _) => Key::Forward(key.clone()),
        }
    }

    /// Bundles of authorities that this resource relies on.
    pub fn ca_bundles(&self) -> &[CaBundleKey] {
        match self {
            Self::Backend(_, backend) => match backend.tls.as_ref().map(|tls| &tls.trust) {
                Some(Trust::Bundles(bundles)) => bundles,
                _ => &[],
            },
            Self::Listener(_, listener) => match listener.tls.as_ref().and_then(|tls| tls.clients.as_ref()) {
                Some(clients) => &clients.bundles,
                None => &[],
            },
            _ => &[],
        }
    }
}

/// One change of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Adds or replaces a resource.
    Put(Resource),
    /// Removes a resource; an unknown key is no error.
    Remove(Key),
}

/// What leads from one generation of a domain's model to another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delta {
    /// Generation after the delta.
    pub generation: Generation,
    /// Whether `changes` is the whole state (everything not in it goes) and not only what changed.
    pub is_full: bool,
    /// The changes, in an order that is safe to apply one by one.
    pub changes: Vec<Change>,
}

/// Everything that one domain must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The domain itself.
    pub domain: Arc<Domain>,
    /// Number of this state.
    pub generation: Generation,
    resources: Resources,
}

impl Model {
    /// A domain without any resource, at generation 0.
    pub fn new(domain: Arc<Domain>) -> Self {
        Self { domain, generation: Generation::default(), resources: Resources::default() }
    }

    /// The resource of a key.
    pub fn find(&self, key: &Key) -> Option<&Resource> {
        self.resources.find(key)
    }

    /// All resources in the order of their keys.
    pub fn resources(&self) -> impl Iterator<Item = &Resource> {
        self.resources.iter()
    }

    /// All listeners.
    pub fn listeners(&self) -> impl Iterator<Item = (&ListenerKey, &Arc<Listener>)> {
        self.resources.iter().filter_map(|resource| match resource {
            Resource::Listener(key, listener) => Some((key, listener)),
            _ => None,
        })
    }

    /// All rules.
    pub fn rules(&self) -> impl Iterator<Item = (&RuleKey, &Arc<Rule>)> {
        self.resources.iter().filter_map(|resource| match resource {
            Resource::Rule(key, rule) => Some((key, rule)),
            _ => None,
        })
    }

    /// All forwards.
    pub fn forwards(&self) -> impl Iterator<Item = (&RuleKey, &Arc<Forward>)> {
        self.resources.iter().filter_map(|resource| match resource {
            Resource::Forward(key, forward) => Some((key, forward)),
            _ => None,
        })
    }

    /// Applies a delta and takes its generation.
    pub fn apply(&mut self, delta: &Delta) {
        if delta.is_full {
            self.resources.clear();
        }
        for change in &delta.changes {
            match change {
                Change::Put(resource) => self.resources.put(resource.clone()),
                Change::Remove(key) => self.resources.remove(key),
            }
        }
        self.generation = delta.generation;
    }

    /// The whole state as one delta, for a consumer that knows nothing yet.
    pub fn to_full_delta(&self) -> Delta {
        Delta {
            generation: self.generation,
            is_full: true,
            changes: self.resources.iter().cloned().map(Change::Put).collect(),
        }
    }

    /// What the kernel must own for this domain: derived from the listeners, without duplicates, sorted.
    pub fn frontends(&self) -> Frontends {
        let mut keys = BTreeSet::<FrontendKey>::new();
        let mut exclusive = BTreeSet::new();
        for (_, listener) in self.listeners() {
            keys.extend(listener.frontends.iter().copied());
            if listener.owns_addresses {
                exclusive.extend(listener.frontends.iter().map(|frontend| frontend.addr));
            }
        }
        Frontends { keys: keys.into_iter().collect(), exclusive: exclusive.into_iter().collect() }
    }

    /// Every address that the domain's worker may dial (its guard), sorted, without duplicates.
    pub fn dialled(&self) -> BTreeSet<SocketAddr> {
        self.resources
            .iter()
            .filter_map(|resource| match resource {
                Resource::Endpoints(_, endpoints) => Some(endpoints.endpoints.iter().map(|endpoint| endpoint.addr)),
                _ => None,
            })
            .flatten()
            .collect()
    }
}
