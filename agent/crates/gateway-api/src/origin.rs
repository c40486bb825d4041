//! From what is in force back to the object and field that asked for it.

use std::{fmt, net::IpAddr};

use tidegate_model::{BackendKey, CaBundleKey, DomainName, FrontendKey, Key, ListenerKey, ObjectName, RuleKind};

use crate::{
    api::ConfigMapReference,
    endpoints::object_of,
    object::{Kind, ObjectRef},
    prefixes::{Place, for_each_entry, read_prefix},
    translator::store::Store,
};

/// What is to be explained.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A resource of the domain's model.
    Resource(Key),
    /// A frontend of the domain: the first listener that has it.
    Frontend(FrontendKey),
    /// An address of the domain's own: the prefix of its pool.
    Address(IpAddr),
    /// A NIC of the domain.
    Interface(String),
    /// A source that the domain denies.
    SourceDenied(IpAddr),
    /// A source that the domain's allow list has.
    SourceAllowed(IpAddr),
    /// A source that the domain's allow list does not have.
    SourceNotAllowed,
    /// A NIC that is not the domain's.
    WrongInterface,
    /// The rate of new connections of one source.
    RateOfSource,
    /// The rate of new connections of the domain.
    RateOfDomain,
}

/// An object and the field in it that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The object.
    pub object: ObjectRef,
    /// Path of the field, e.g. `spec.sources.deny[0]`.
    pub field: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.object, self.field)
    }
}

impl Origin {
    fn new(kind: Kind, name: ObjectName, field: impl Into<String>) -> Self {
        Self { object: ObjectRef::new(kind, name), field: field.into() }
    }
}

/// Finds the origin of a model's resource.
pub(crate) fn find_resource(store: &Store, key: &Key) -> Origin {
    match key {
        Key::Certificate(key) => Origin::new(Kind::Secret, key.0.clone(), "data"),
        Key::CaBundle(key) => match key {
            CaBundleKey::ConfigMap(name) => Origin::new(Kind::ConfigMap, name.clone(), "data[\"ca.crt\"]"),
            CaBundleKey::Secret(name) => Origin::new(Kind::Secret, name.clone(), "data[\"ca.crt\"]"),
            CaBundleKey::ClusterTrustBundle(name) => {
                Origin::new(Kind::ClusterTrustBundle, ObjectName::new("", name), "spec.trustBundle")
            }
        },
        Key::Backend(key) | Key::Endpoints(key) => {
            let (kind, name) = object_of(key);
            let field = match key {
                BackendKey::Service { port, .. }
                | BackendKey::GrpcService { port, .. }
                | BackendKey::UdpService { port, .. } => format!("spec.ports[port={port}]"),
                BackendKey::Backend { .. } | BackendKey::GrpcBackend { .. } => "spec.endpoints".to_owned(),
            };
            Origin::new(kind, name.clone(), field)
        }
        Key::Listener(key) => find_listener(store, key),
        Key::Rule(key) | Key::Forward(key) => {
            let kind = match key.kind {
                RuleKind::HTTPRoute => Kind::HTTPRoute,
                RuleKind::GRPCRoute => Kind::GRPCRoute,
                RuleKind::TLSRoute => Kind::TLSRoute,
                RuleKind::TCPRoute => Kind::TCPRoute,
                RuleKind::UDPRoute => Kind::UDPRoute,
            };
            Origin::new(kind, key.route.clone(), format!("spec.rules[{}]", key.index))
        }
    }
}

/// Finds the entry of a Gateway's or a ListenerSet's `spec.listeners`.
pub(crate) fn find_listener(store: &Store, key: &ListenerKey) -> Origin {
    let (kind, name, listeners) = match &key.set {
        None => {
            let gateway = store.find_gateway(&key.gateway);
            (Kind::Gateway, &key.gateway, gateway.map(|gateway| gateway.spec.listeners.as_slice()))
        }
        Some(name) => {
            let set = store.find_listener_set(name);
            (Kind::ListenerSet, &**name, set.map(|set| set.spec.listeners.as_slice()))
        }
    };
    let index = listeners.unwrap_or_default().iter().position(|listener| *listener.name == *key.name);
    let field = match index {
        Some(index) => format!("spec.listeners[{index}] ({})", key.name),
        None => format!("spec.listeners ({})", key.name),
    };
    Origin::new(kind, name.clone(), field)
}

/// Finds what decides about packets of a domain; `None` for what is no matter of the TrafficDomain.
pub(crate) fn find_admission(store: &Store, domain: &DomainName, subject: &Subject) -> Option<Origin> {
    let name = ObjectName::new("", domain.as_str());
    let own = |field: &str| Origin::new(Kind::TrafficDomain, name.clone(), field);
    let object = store.find_domain(&name)?;
    match subject {
        Subject::WrongInterface => Some(own("spec.interfaces")),
        Subject::RateOfSource => Some(own("spec.admission.newConnections.perSource")),
        Subject::RateOfDomain => Some(own("spec.admission.newConnections.total")),
        Subject::SourceNotAllowed => {
            let sources = object.spec.sources.as_ref()?;
            Some(own(if sources.allow.is_some() { "spec.sources.allow" } else { "spec.sources.allowFrom" }))
        }
        Subject::Address(address) => {
            let pool = object.spec.addresses.pool.as_ref()?;
            let holds = |text: &String| read_prefix(text).is_some_and(|prefix| prefix.contains(address));
            Some(own(&format!("spec.addresses.pool[{}]", pool.iter().position(holds)?)))
        }
        Subject::Interface(interface) => {
            let index = object.spec.interfaces.iter().position(|named| named == interface)?;
            Some(own(&format!("spec.interfaces[{index}]")))
        }
        Subject::SourceDenied(address) | Subject::SourceAllowed(address) => {
            let sources = object.spec.sources.as_ref()?;
            let (field, inline, from) = if matches!(subject, Subject::SourceDenied(_)) {
                ("deny", &sources.deny, &sources.deny_from)
            } else {
                ("allow", &sources.allow, &sources.allow_from)
            };
            Some(match find_entry(store, field, inline.as_deref(), from.as_deref(), address.to_canonical())? {
                Place::Inline(index) => own(&format!("spec.sources.{field}[{index}]")),
                Place::Line { config_map, key, line } => {
                    Origin::new(Kind::ConfigMap, config_map, format!("data[{key:?}] line {line}"))
                }
            })
        }
        Subject::Resource(_) | Subject::Frontend(_) => None,
    }
}

/// The longest prefix of a list that holds an address.
fn find_entry(
    store: &Store,
    field: &str,
    inline: Option<&[String]>,
    from: Option<&[ConfigMapReference]>,
    address: IpAddr,
) -> Option<Place> {
    let mut best: Option<(Place, u8)> = None;
    for_each_entry(
        field,
        inline.unwrap_or_default(),
        from.unwrap_or_default(),
        &|name| store.find_config_map(name),
        &mut |place, prefix| {
            let is_longer = best.as_ref().is_none_or(|(_, length)| prefix.prefix_len() > *length);
            if prefix.contains(&address) && is_longer {
                best = Some((place(), prefix.prefix_len()));
            }
        },
        &mut |_| {},
    );
    best.map(|(place, _)| place)
}
