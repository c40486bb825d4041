//! Which backend takes a request, and which endpoint of it. Everything is of one shard: counters and cursors are cells.

pub mod backend;
pub mod endpoint;
pub mod random;
pub mod weights;

pub use backend::BackendState;
pub use endpoint::{EndpointState, InFlight};
pub use random::Prng;
pub use weights::Weights;
