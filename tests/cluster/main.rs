//! Cluster level: the agent as its DaemonSet deploys it, under its own ServiceAccount, in a real cluster of one node.
//!
//! `cargo xtask test cluster` starts the cluster, deploys `deploy/daemonset/overlays/public-private` and runs these one after
//! the other: they share the node. A test makes its objects in a namespace of its own and leaves cluster and agent as it found
//! them. What a client sees comes in through the node's NICs.

#[cfg(test)]
mod api_server;
#[cfg(test)]
mod burst;
#[cfg(test)]
mod kinds;
#[cfg(test)]
mod kit;
#[cfg(test)]
mod lease;
#[cfg(test)]
mod references;
#[cfg(test)]
mod rights;
#[cfg(test)]
mod rolling;
#[cfg(test)]
mod walls;
