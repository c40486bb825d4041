//! Backends and, apart from them, their endpoints: an endpoint that comes or goes touches no rule.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{BackendTls, ObjectName};

/// Key of a backend: what a `backendRef` names, and how it is meant to be spoken to where the object does not say.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BackendKey {
    /// A TCP port of a Service.
    Service {
        /// The Service.
        name: ObjectName,
        /// `spec.ports[].port`.
        port: u16,
    },
    /// A TCP port of a Service that routes speak gRPC to.
    GrpcService {
        /// The Service.
        name: ObjectName,
        /// `spec.ports[].port`.
        port: u16,
    },
    /// A UDP port of a Service, for datagrams: one number may be a port of both transports.
    UdpService {
        /// The Service.
        name: ObjectName,
        /// `spec.ports[].port`.
        port: u16,
    },
    /// A `Backend` object of group `tidegate.dev`.
    Backend {
        /// The Backend.
        name: ObjectName,
    },
    /// A `Backend` object that routes speak gRPC to.
    GrpcBackend {
        /// The Backend.
        name: ObjectName,
    },
}

impl BackendKey {
    /// Namespace and name of the object.
    pub fn name(&self) -> &ObjectName {
        match self {
            Self::Service { name, .. }
            | Self::GrpcService { name, .. }
            | Self::UdpService { name, .. }
            | Self::Backend { name }
            | Self::GrpcBackend { name } => name,
        }
    }

    /// Whether routes speak gRPC to it.
    pub fn is_grpc(&self) -> bool {
        matches!(self, Self::GrpcService { .. } | Self::GrpcBackend { .. })
    }
}

impl fmt::Display for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service { name, port } => write!(f, "Service/{name}:{port}"),
            Self::GrpcService { name, port } => write!(f, "Service/{name}:{port}/gRPC"),
            Self::UdpService { name, port } => write!(f, "Service/{name}:{port}/UDP"),
            Self::Backend { name } => write!(f, "Backend/{name}"),
            Self::GrpcBackend { name } => write!(f, "Backend/{name}/gRPC"),
        }
    }
}

/// How to speak to a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// Application protocol.
    pub protocol: BackendProtocol,
    /// TLS to the backend; `None` is clear text.
    pub tls: Option<BackendTls>,
}

/// Application protocol towards a backend (`appProtocol` of a Service port).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum BackendProtocol {
    /// HTTP/1.1. Also `kubernetes.io/ws`: an upgrade needs nothing else.
    Http1,
    /// HTTP/2 with prior knowledge (`kubernetes.io/h2c`), or by ALPN with TLS.
    Http2,
}

/// Every endpoint of a backend, in the order of the objects they came from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// The endpoints, without duplicates.
    pub endpoints: Vec<Endpoint>,
}

/// One address that can be dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where to connect to.
    pub addr: SocketAddr,
    /// Whether it takes new requests.
    pub state: EndpointState,
}

/// State of an endpoint by the conditions of its EndpointSlice. Endpoints that serve nothing are left out of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum EndpointState {
    /// Takes new requests.
    Ready,
    /// Terminating but still serving: used only when no endpoint is ready (KEP-1669).
    Terminating,
}
