//! Host level: the real agent and its workers on a gateway node in network namespaces, real clients and backends.
//!
//! Each test has a lab of its own and asserts what a client saw *and* what was counted. Needs root; `cargo xtask test host`
//! builds what it runs. A test waits for conditions with deadlines; none asserts a time except where the promise is one.

#[cfg(test)]
mod admission;
#[cfg(test)]
mod agent_faults;
#[cfg(test)]
mod certificates;
#[cfg(test)]
mod change;
#[cfg(test)]
mod connections;
#[cfg(test)]
mod containment;
#[cfg(test)]
mod dashboards;
#[cfg(test)]
mod datagrams;
#[cfg(test)]
mod endpoints;
#[cfg(test)]
mod explain;
#[cfg(test)]
mod flood;
#[cfg(test)]
mod framing;
#[cfg(test)]
mod interfaces;
#[cfg(test)]
mod listener_sets;
#[cfg(test)]
mod mutual_tls;
#[cfg(test)]
mod objects;
#[cfg(test)]
mod open_connections;
#[cfg(test)]
mod ownership;
#[cfg(test)]
mod packets;
#[cfg(test)]
mod protocols;
#[cfg(test)]
mod references;
#[cfg(test)]
mod rules;
#[cfg(test)]
mod seeing;
#[cfg(test)]
mod start;
#[cfg(test)]
mod streams;
#[cfg(test)]
mod succession;
#[cfg(test)]
mod worker_faults;
#[cfg(test)]
mod world;
