//! Listeners and the certificates they serve with.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{BackendIdentity, ClientValidation, ExternalAuth, FrontendKey, Hostname, ObjectName, Transport, texts};

/// Key of a listener: the Gateway, the ListenerSet if it is one's, and the listener's name in it. Listeners of a Gateway and
/// of its sets may have the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerKey {
    /// The Gateway that serves it.
    pub gateway: ObjectName,
    /// The ListenerSet that it stands in; `None` when it is the Gateway's own. Behind a pointer, because keys of every kind take
    /// the room of the largest, and there are far more routes than listeners.
    pub set: Option<Arc<ObjectName>>,
    /// `spec.listeners[].name`.
    #[serde(deserialize_with = "texts::deserialize")]
    pub name: Arc<str>,
}

impl ListenerKey {
    /// Key of a listener that stands in the Gateway itself.
    pub fn of_gateway(gateway: ObjectName, name: impl Into<Arc<str>>) -> Self {
        Self { gateway, set: None, name: name.into() }
    }

    /// Key of a listener that a ListenerSet adds to a Gateway.
    pub fn of_set(gateway: ObjectName, set: impl Into<Arc<ObjectName>>, name: impl Into<Arc<str>>) -> Self {
        Self { gateway, set: Some(set.into()), name: name.into() }
    }
}

impl fmt::Display for ListenerKey {
    /// `infra/edge/http`, or `infra/edge/ListenerSet/shop/extra/http`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.set {
            None => write!(f, "{}/{}", self.gateway, self.name),
            Some(set) => write!(f, "{}/ListenerSet/{set}/{}", self.gateway, self.name),
        }
    }
}

/// One listener of a Gateway or of one of its ListenerSets. Listeners that share a frontend are told apart by host name: the most specific wins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Where it is reached. All of one domain; several when the Gateway has several addresses.
    pub frontends: Vec<FrontendKey>,
    /// Whether the addresses of `frontends` belong to the domain alone (see [`crate::domain::Frontends::exclusive`]).
    pub owns_addresses: bool,
    /// Application protocol.
    pub protocol: Protocol,
    /// Host names served; `None` is every name.
    pub hostname: Option<Hostname>,
    /// What becomes of TLS; `Some` exactly when `protocol` is [`Protocol::Https`] or [`Protocol::Tls`].
    pub tls: Option<ListenerTls>,
    /// What its requests show to backends with TLS (`spec.tls.backend` of the Gateway).
    pub backend_identity: BackendIdentity,
    /// Servers that must allow each request, in this order, before a rule is looked for (`filters.requests`). What they make of
    /// the request's fields, rules match on.
    pub auth: Vec<ExternalAuth>,
}

/// Application protocol of a listener that this version serves.
///
/// On one TCP port there are either HTTP listeners, or HTTPS and TLS listeners side by side (told apart by server name), or
/// one TCP listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP/1.1, and HTTP/2 with prior knowledge.
    Http,
    /// HTTP/1.1 and HTTP/2 over TLS, chosen by ALPN.
    Https,
    /// Any protocol over TLS: connections are forwarded by their server name.
    Tls,
    /// Any protocol over TCP.
    Tcp,
    /// Any protocol over UDP: the frontends are of [`Transport::Udp`].
    Udp,
}

impl Protocol {
    /// Transport protocol below.
    pub fn transport(self) -> Transport {
        match self {
            Self::Http | Self::Https | Self::Tls | Self::Tcp => Transport::Tcp,
            Self::Udp => Transport::Udp,
        }
    }

    /// Whether a listener of this protocol and one of `other` can be told apart by host name on one port.
    pub fn shares_port_with(self, other: Self) -> bool {
        match self {
            Self::Http => other == Self::Http,
            Self::Https | Self::Tls => matches!(other, Self::Https | Self::Tls),
            Self::Tcp | Self::Udp => false,
        }
    }
}

/// What a listener does with TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerTls {
    /// Where TLS ends.
    pub mode: TlsMode,
    /// Certificates to choose from: the one whose names match the SNI best, else the first. None with
    /// [`TlsMode::Passthrough`].
    pub certificates: Vec<CertificateKey>,
    /// Certificates of clients; `None` does not ask for any.
    pub clients: Option<ClientValidation>,
}

/// Where a TLS connection of a client ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TlsMode {
    /// Here.
    Terminate,
    /// At the backend: bytes go there as they came.
    Passthrough,
}

/// Key of a certificate: the Secret it came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CertificateKey(pub ObjectName);

impl fmt::Display for CertificateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A certificate chain with its private key, checked to belong together.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// DER of the leaf, then of its issuers.
    pub chain: Vec<Vec<u8>>,
    /// DER of the private key: PKCS#8, PKCS#1 or SEC1.
    pub private_key: Vec<u8>,
    /// DNS names of the leaf, lower case; a wildcard as written.
    pub names: Vec<String>,
    /// End of the leaf's validity, seconds since the epoch.
    pub not_after: i64,
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must not reach a log.
        f.debug_struct("Certificate").field("names", &self.names).field("not_after", &self.not_after).finish()
    }
}
