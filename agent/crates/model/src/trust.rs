//! Who is believed in TLS: the authorities that vouch for backends and for clients, and what a certificate must say.
//!
//! A bundle of authorities is a resource of its own, because one bundle commonly vouches for many backends and listeners:
//! when it changes, one resource does.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{CertificateKey, ObjectName};

/// Key of a bundle of certificate authorities: the object that it came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CaBundleKey {
    /// A ConfigMap, `data["ca.crt"]`.
    ConfigMap(ObjectName),
    /// A Secret, `data["ca.crt"]`.
    Secret(ObjectName),
    /// A ClusterTrustBundle of group `certificates.k8s.io`, `spec.trustBundle`.
    ClusterTrustBundle(Arc<str>),
}

impl fmt::Display for CaBundleKey {
    /// `ConfigMap/shop/ca`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfigMap(name) => write!(f, "ConfigMap/{name}"),
            Self::Secret(name) => write!(f, "Secret/{name}"),
            Self::ClusterTrustBundle(name) => write!(f, "ClusterTrustBundle/{name}"),
        }
    }
}

/// Certificate authorities, each checked to be one that can be trusted; at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaBundle {
    /// DER of their certificates, without duplicates.
    pub authorities: Vec<Vec<u8>>,
}

/// TLS towards a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendTls {
    /// Name sent as SNI; the backend's certificate must be for it unless `subject_alt_names` says otherwise.
    pub server_name: String,
    /// When not empty: the backend's certificate must have one of these names, and `server_name` is not checked.
    pub subject_alt_names: Vec<SubjectAltName>,
    /// Who must have signed the backend's certificate.
    pub trust: Trust,
}

/// Who is believed about a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Trust {
    /// The authorities of these bundles, of which there is at least one.
    Bundles(Vec<CaBundleKey>),
    /// The public authorities that the worker's machine (its container image) trusts.
    System,
    /// Nobody: what says whom to trust cannot be honoured. The backend gets no requests, least of all in clear text.
    Nobody,
}

/// A subject alternative name that a certificate must have (RFC 5280 section 4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SubjectAltName {
    /// A DNS name, lower case. A wildcard of the certificate may stand for it; a pattern (`*.example.com`) must be in the
    /// certificate as it is.
    Hostname(String),
    /// A URI, such as a SPIFFE id, compared byte by byte.
    Uri(String),
}

/// What the requests of a listener show to backends that ask for a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendIdentity {
    /// Nothing.
    #[default]
    Anonymous,
    /// This certificate.
    Certificate(CertificateKey),
    /// A certificate that cannot be had: backends with TLS get no requests of the listener.
    Missing,
}

/// How a listener looks at certificates of clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientValidation {
    /// Whether a client without a valid certificate is let in.
    pub mode: ClientValidationMode,
    /// Who must have signed a client's certificate: at least one bundle.
    pub bundles: Vec<CaBundleKey>,
}

/// Whether a client without a valid certificate is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ClientValidationMode {
    /// It is not.
    ValidOnly,
    /// It is (`AllowInsecureFallback`): a certificate is asked for, and whatever comes is taken.
    InsecureFallback,
}
