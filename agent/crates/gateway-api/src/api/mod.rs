//! Kinds of group `tidegate.dev`, written by hand: they are this project's own, and their CRDs are made from them.

mod backend;
mod traffic_domain;

pub use backend::{Backend, BackendEndpoint, BackendSpec, FqdnEndpoint, IpEndpoint, OwnStatus};
pub use traffic_domain::{
    AddressesSpec, AdmissionSpec, ConfigMapReference, EgressSpec, NewConnections, NodeAddress, OpenConnections,
    Quantity, RateSpec, ResourcesSpec, SourcesSpec, TrafficDomain, TrafficDomainSpec,
};
