//! Forwards: what TLSRoute, TCPRoute and UDPRoute objects ask for. Bytes go to a backend as they are; nothing of them is
//! read but the server name of a TLS handshake.

use serde::{Deserialize, Serialize};

use crate::{Attachment, WeightedBackend};

/// Where the connections or datagrams of listeners go. Its key is a [`RuleKey`](crate::RuleKey) whose kind is
/// `TLSRoute`, `TCPRoute` or `UDPRoute`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// `metadata.creationTimestamp` in seconds since the epoch. Of several on one listener (with one server name) the oldest
    /// gets everything, then the first by its key.
    pub created: i64,
    /// Listeners that the Route is attached to. Host names are server names (SNI) of a TLSRoute; those of the others are
    /// empty.
    pub attachments: Vec<Attachment>,
    /// Where to connect to; their `filters` are empty. Without one that can be used a connection is reset, a datagram
    /// dropped.
    pub backends: Vec<WeightedBackend>,
}
