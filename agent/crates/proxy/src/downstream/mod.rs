//! The client's side: accepting, handshakes, and the loops that serve requests of either version.

pub mod accept;
pub mod client;
pub mod connection;
pub mod forward;
pub mod h1;
pub mod h2;
pub mod hello;
pub mod record;
pub mod request;
pub mod tunnel;
