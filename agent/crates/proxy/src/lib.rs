//! The worker: the unprivileged process that serves one domain's connections.
//!
//! Each shard is one thread with one `current_thread` runtime, its own routing state, its own upstream pools and its own
//! counters: nothing on the request path is shared between shards. The crate knows the model and sockets; it knows no
//! Kubernetes object and no BPF map.

pub mod access_log;
pub mod balance;
pub mod certificates;
pub mod datagram;
pub mod decide;
pub mod downstream;
pub mod error;
pub mod external_auth;
pub mod filters;
pub mod http;
pub mod net;
pub mod respond;
pub mod session;
pub mod shard;
pub mod stats;
pub mod tables;
pub mod timeouts;
pub mod upstream;
pub mod worker;
