//! The objects that are translated: their kinds, their identity, and one type that holds any of them.
//!
//! Objects are shared by reference count: a source may keep what it has handed over. Nothing here says what an object
//! means.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{
        core::v1::{ConfigMap, Namespace, Secret, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use tidegate_model::ObjectName;

use crate::{
    api::{Backend, ClusterTrustBundle, TrafficDomain},
    ca_bundles::TRUST_BUNDLE_GROUP,
    generated::{
        backend_tls_policy::BackendTlsPolicy, gateway::Gateway, gateway_class::GatewayClass, grpc_route::GrpcRoute,
        http_route::HttpRoute, listener_set::ListenerSet, reference_grant::ReferenceGrant, tcp_route::TcpRoute,
        tls_route::TlsRoute, udp_route::UdpRoute,
    },
};

/// Group of Gateway API.
pub const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// Group of Tidegate's own kinds.
pub const OWN_GROUP: &str = "tidegate.dev";
/// Group of Envoy Gateway, whose `Backend` is read as well.
pub const ENVOY_GROUP: &str = "gateway.envoyproxy.io";

/// Declares the kinds once: variant, type, groups with versions that are read (the first is the one it is named by),
/// whether it lives in a namespace, whether it has a status that a controller writes.
macro_rules! kinds {
    ($($kind:ident($type:ty) = $name:literal, [$(($group:expr, $($version:literal)|+)),+], $namespaced:literal, $status:literal;)+) => {
        /// Kind of an object. The order is the order in which tables of objects are shown.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = concat!("`", $name, "`.")] $kind,)+
        }

        impl Kind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind),+];

            /// The kind as it is written in an object.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => $name,)+ }
            }

            /// Group of the kind; empty for Kubernetes' core.
            pub fn group(self) -> &'static str {
                match self { $(Self::$kind => [$($group),+][0],)+ }
            }

            /// Versions of the kind's group that are read, the best first.
            pub fn versions(self) -> &'static [&'static str] {
                match self { $(Self::$kind => [$(&[$($version),+] as &[&str]),+][0],)+ }
            }

            /// Whether objects of the kind live in a namespace.
            pub fn is_namespaced(self) -> bool {
                match self { $(Self::$kind => $namespaced,)+ }
            }

            /// Whether objects of the kind have a status that this project writes in Kubernetes. What
            /// [`crate::Translator`] says on other kinds is for people who read a folder of files.
            pub fn has_status(self) -> bool {
                match self { $(Self::$kind => $status,)+ }
            }

            /// The kind that `group`, `version` and `kind` name, if it is one that is read.
            pub fn find(group: &str, version: &str, kind: &str) -> Option<Self> {
                $(if kind == $name && [$(group == $group && matches!(version, $($version)|+)),+].contains(&true) {
                    return Some(Self::$kind);
                })+
                None
            }
        }

        /// An object of any kind that is read.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $(#[doc = concat!("`", $name, "`.")] $kind(Arc<$type>),)+
        }

        impl Object {
            /// Kind of the object.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)+ }
            }

            /// Metadata of the object.
            pub fn metadata(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata,)+ }
            }

            /// Reads an object of a kind known already, noting the paths of fields that its type does not have. An error
            /// comes with the path of the field that it is about.
            pub(crate) fn deserialize(
                kind: Kind,
                value: serde_json::Value,
                unknown: &mut Vec<String>,
            ) -> Result<Self, (String, serde_json::Error)> {
                let mut note = |path: serde_ignored::Path<'_>| unknown.push(show(&path));
                let mut track = serde_path_to_error::Track::new();
                let deserializer = serde_path_to_error::Deserializer::new(value, &mut track);
                let read = match kind {
                    $(Kind::$kind => serde_ignored::deserialize::<_, _, $type>(deserializer, &mut note)
                        .map(|object| Self::$kind(Arc::new(object))),)+
                };
                read.map_err(|error| (track.path().to_string(), error))
            }
        }

        $(impl From<$type> for Object {
            fn from(object: $type) -> Self {
                Self::$kind(Arc::new(object))
            }
        })+
    };
}

kinds! {
    TrafficDomain(TrafficDomain) = "TrafficDomain", [(OWN_GROUP, "v1alpha1")], false, true;
    GatewayClass(GatewayClass) = "GatewayClass", [(GATEWAY_GROUP, "v1" | "v1beta1")], false, true;
    Gateway(Gateway) = "Gateway", [(GATEWAY_GROUP, "v1" | "v1beta1")], true, true;
    ListenerSet(ListenerSet) = "ListenerSet", [(GATEWAY_GROUP, "v1")], true, true;
    HTTPRoute(HttpRoute) = "HTTPRoute", [(GATEWAY_GROUP, "v1" | "v1beta1")], true, true;
    GRPCRoute(GrpcRoute) = "GRPCRoute", [(GATEWAY_GROUP, "v1")], true, true;
    TLSRoute(TlsRoute) = "TLSRoute", [(GATEWAY_GROUP, "v1" | "v1alpha3" | "v1alpha2")], true, true;
    TCPRoute(TcpRoute) = "TCPRoute", [(GATEWAY_GROUP, "v1" | "v1alpha2")], true, true;
    UDPRoute(UdpRoute) = "UDPRoute", [(GATEWAY_GROUP, "v1" | "v1alpha2")], true, true;
    BackendTLSPolicy(BackendTlsPolicy) = "BackendTLSPolicy", [(GATEWAY_GROUP, "v1" | "v1alpha3")], true, true;
    ReferenceGrant(ReferenceGrant) = "ReferenceGrant", [(GATEWAY_GROUP, "v1" | "v1beta1")], true, false;
    Backend(Backend) = "Backend", [(OWN_GROUP, "v1alpha1"), (ENVOY_GROUP, "v1alpha1")], true, true;
    Namespace(Namespace) = "Namespace", [("", "v1")], false, false;
    Service(Service) = "Service", [("", "v1")], true, false;
    EndpointSlice(EndpointSlice) = "EndpointSlice", [("discovery.k8s.io", "v1")], true, false;
    Secret(Secret) = "Secret", [("", "v1")], true, false;
    ConfigMap(ConfigMap) = "ConfigMap", [("", "v1")], true, false;
    ClusterTrustBundle(ClusterTrustBundle) = "ClusterTrustBundle", [(TRUST_BUNDLE_GROUP, "v1" | "v1beta1" | "v1alpha1")], false, false;
}

impl Kind {
    /// The kind as it is written in paths of an API server: `httproutes`.
    pub fn plural(self) -> String {
        let singular = self.as_str().to_ascii_lowercase();
        if let Some(stem) = singular.strip_suffix("cy") {
            format!("{stem}cies")
        } else if singular.ends_with('s') {
            format!("{singular}es")
        } else {
            format!("{singular}s")
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Which object: its kind and its name. Two objects with the same reference are versions of one object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Kind.
    pub kind: Kind,
    /// Namespace (empty when cluster-scoped) and name.
    pub name: ObjectName,
}

impl ObjectRef {
    /// Refers to an object.
    pub fn new(kind: Kind, name: ObjectName) -> Self {
        Self { kind, name }
    }
}

impl fmt::Display for ObjectRef {
    /// `HTTPRoute/shop/products`, `TrafficDomain/public`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

impl Object {
    /// Identity of the object.
    pub fn reference(&self) -> ObjectRef {
        ObjectRef::new(self.kind(), name_of(self.metadata()))
    }
}

/// Name of an object by its metadata.
pub(crate) fn name_of(metadata: &ObjectMeta) -> ObjectName {
    ObjectName::new(metadata.namespace.as_deref().unwrap_or_default(), metadata.name.as_deref().unwrap_or_default())
}

/// `metadata.creationTimestamp` in seconds since the epoch; objects without one (files) are all equally old.
pub(crate) fn created_at(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

/// A path as conditions write it: `spec.rules[0].backendRef`.
fn show(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", show(parent)),
        Path::Map { parent, key } => {
            let parent = show(parent);
            if parent.is_empty() { key.clone() } else { format!("{parent}.{key}") }
        }
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => show(parent),
    }
}

#[cfg(test)]
mod tests {
    use kube::Resource as _;

    use super::*;

    #[test]
    fn plurals_are_those_of_the_definitions() {
        assert_eq!(Kind::Gateway.plural(), "gateways");
        for (kind, plural) in [
            (Kind::GatewayClass, GatewayClass::plural(&())),
            (Kind::Gateway, Gateway::plural(&())),
            (Kind::ListenerSet, ListenerSet::plural(&())),
            (Kind::HTTPRoute, HttpRoute::plural(&())),
            (Kind::BackendTLSPolicy, BackendTlsPolicy::plural(&())),
            (Kind::EndpointSlice, EndpointSlice::plural(&())),
            (Kind::ConfigMap, ConfigMap::plural(&())),
            (Kind::TrafficDomain, TrafficDomain::plural(&())),
        ] {
            assert_eq!(kind.plural(), plural);
        }
    }

    #[test]
    fn every_version_that_is_watched_is_read() {
        for &kind in Kind::ALL {
            assert!(!kind.versions().is_empty());
            for version in kind.versions() {
                assert_eq!(Kind::find(kind.group(), version, kind.as_str()), Some(kind));
            }
        }
    }
}
