//! The test lab: network namespaces around a gateway node, real backends, clients and load, and a hand on the agent.
//!
//! The demo, the tests and the bench stand on it; where they need a real control plane, on [`Cluster`]. Each [`Lab`] has namespaces, files and mounts under a name of its
//! own, so that labs live side by side, and everything goes when it is dropped, on Ctrl-C, or, after a `kill -9`, when
//! the next lab is made. It knows the agent only by its command line, its sockets and its metrics: no crate of it.

pub mod agent;
pub mod backend;
pub mod certificate;
pub mod cleanup;
pub mod client;
pub mod cluster;
pub mod demo;
pub mod flood;
pub mod hold;
pub mod island;
pub mod lab;
pub mod load;
pub mod metrics;
pub mod objects;
pub mod process;
pub mod wait;

pub use self::{
    agent::{Agent, AgentOptions},
    backend::{Backend, DatagramBackend, Script, ScriptedBackend, SecureBackend, TlsEcho},
    certificate::Authority,
    client::{Failure, Reply, Request, Session, Target},
    cluster::Cluster,
    flood::{Flood, FloodPlan, Pattern},
    island::Island,
    lab::Lab,
    load::{Load, LoadPlan, LoadReport},
    metrics::Metrics,
    wait::{wait_for, wait_until},
};
