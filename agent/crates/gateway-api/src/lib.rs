//! Tidegate's API types, and the translation of objects into models and conditions.
//!
//! [`parse()`] makes typed objects of untyped values, [`Translator`] takes their changes and gives back what changes in
//! the model of each domain and in what is said about each object. Everything is pure: no I/O, no clock, no Kubernetes
//! client, the same answers for the same objects on every node.

pub mod api;
pub mod generated;
pub mod status;

mod addresses;
mod attach;
mod ca_bundles;
mod certificate;
mod claims;
mod client_validation;
mod conflicts;
mod domain;
mod duration;
mod endpoints;
mod features;
mod forward;
mod gateway;
mod gateway_references;
mod grants;
mod httproute;
mod listener;
mod listener_set;
mod models;
mod namespaces;
mod object;
mod origin;
mod parse;
mod prefixes;
mod quantity;
mod references;
mod route;
mod tls_policy;
mod translator;

pub use features::SUPPORTED_FEATURES;
pub use object::{ENVOY_GROUP, GATEWAY_GROUP, Kind, OWN_GROUP, Object, ObjectRef};
pub use origin::{Origin, Subject};
pub use parse::{ParseError, Parsed, parse};
pub use status::{Condition, ListenerStatus, ObjectStatus, ParentStatus, condition};
pub use translator::{Changes, DomainChange, DomainEvent, Event, Infrastructure, Place, Settings, Translator};
