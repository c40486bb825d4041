//! Status of objects in a cluster: what each node has really applied, put together and written by one of the agents.
//!
//! Each agent reports on its own node ([`report`]). The one that holds the Lease ([`lease`]) makes of its own
//! translation and of all reports what is to be said of each object ([`desired`]) and writes it where it differs from
//! what stands there ([`writer`]); it also makes a Service of each Gateway ([`infrastructure`]). The others know as much and wait; nothing is lost when the holder dies.

pub mod desired;
pub mod infrastructure;
pub mod lease;
pub mod nodes;
pub mod normal;
pub mod report;
pub mod times;
pub mod write;
pub mod writer;

use std::rc::Rc;

use kube::Client;
use tidegate_gateway_api::ObjectRef;
use tokio::sync::{mpsc, watch};

use crate::{kube::jitter, source::kube::Seen, state::State};

/// Name of the Lease; one for each instance, so that two on the same nodes do not take turns.
const LEASE: &str = "tidegate-status";

/// What reporting and writing need.
pub struct Setup {
    /// The agent.
    pub state: Rc<State>,
    /// The API server.
    pub client: Client,
    /// Every version of each object whose status is written.
    pub seen: mpsc::UnboundedReceiver<Seen>,
    /// Objects about which the translation says something else now; the same for who reports, who writes status and who
    /// writes infrastructure.
    pub changed: [mpsc::UnboundedReceiver<Vec<ObjectRef>>; 3],
    /// Turns true when this agent stops in good order: the Lease and the report are given back then.
    pub stop: watch::Receiver<bool>,
}

/// Reports on this node and, while this agent holds the Lease, writes status. Ends when the agent stops.
pub async fn run(setup: Setup) {
    let Setup { state, client, seen, changed, stop } = setup;
    let instance = &state.options.instance;
    let name = if instance == "default" { LEASE.to_owned() } else { format!("{LEASE}-{instance}") };
    // A name of its own for each process: an agent that was started anew must not take an old promise for its own.
    let identity = format!("{}_{:08x}", state.node, (jitter() * f64::from(u32::MAX)) as u32);
    let (leading, is_leader) = watch::channel(None);
    let elect = lease::run(client.clone(), lease::Names { name, identity }, leading, stop.clone());
    let [to_report, to_write, to_infrastructure] = changed;
    let report = report::run(state.clone(), client.clone(), to_report, stop.clone());
    let infrastructure = infrastructure::run(state.clone(), client.clone(), to_infrastructure, is_leader.clone());
    let write = writer::run(state.clone(), client, seen, to_write, is_leader);
    // The writers have no end of their own.
    tokio::select! {
        _ = async { tokio::join!(elect, report) } => {}
        _ = async { tokio::join!(write, infrastructure) } => {}
    }
}
