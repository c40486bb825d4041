//! The model: a plain, complete description of what one domain must do.
//!
//! The model is made of resources with stable keys ([`Key`]). A child names its parents (a rule names the listeners it
//! is attached to), never the other way round, so one changed object is one changed resource. The agent's translation
//! makes it, the kernel tier and the workers consume it. This crate holds data only: no I/O, no Kubernetes, no BPF.

pub mod backend;
pub mod codec;
pub mod control;
pub mod domain;
pub mod forward;
pub mod id;
pub mod listener;
pub mod resource;
mod resources;
pub mod rule;
pub mod sources;
mod texts;
pub mod trust;

pub use backend::{Backend, BackendKey, BackendProtocol, Endpoint, EndpointState, Endpoints};
pub use domain::{Admission, Domain, RateLimit, ResourceLimits, SourceBits, SynCookies};
pub use forward::Forward;
pub use id::{Dial, DomainId, DomainName, FrontendKey, Generation, Hostname, HostnameError, ObjectName, Transport};
pub use listener::{Certificate, CertificateKey, Listener, ListenerKey, ListenerTls, Protocol, TlsMode};
pub use resource::{Change, Delta, Key, Model, Resource};
pub use rule::{
    Attachment, BackendTarget, Cors, CorsOrigin, ExternalAuth, ExternalAuthProtocol, Filter, Fraction, HeaderEdits,
    HeaderMatch, Match, Mirror, PathMatch, PathRewrite, QueryMatch, Redirect, Retry, Rewrite, Rule, RuleKey, RuleKind,
    SessionCarrier, SessionPersistence, Timeouts, ValueMatch, WeightedBackend,
};
pub use sources::SourceList;
pub use trust::{
    BackendIdentity, BackendTls, CaBundle, CaBundleKey, ClientValidation, ClientValidationMode, SubjectAltName, Trust,
};
