//! What both sides of the proxy need of the network: one stream type, pooled buffers, a lazy timer. No HTTP here.

pub mod buffer;
pub mod stream;
pub mod timer;
