//! The endpoint's side: connections and their pool, exchanges over them, and the attempts that a request gets.

pub mod attempt;
pub mod connect;
pub mod dial;
pub mod exchange;
pub mod forward;
pub mod http2;
pub mod mirror;
pub mod pool;
pub mod replay;
pub mod retry;
