//! What the command line asks of the agent, and how: one JSON line each way over a Unix socket; `verdicts --follow` gets
//! a line for each verdict until one side closes.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::verdicts::Filter;

/// Longest question in bytes, with its line feed. The longest sensible one is an `explain` with many headers.
pub const MAX_QUESTION: usize = 64 * 1024;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ask {
    /// Answered by [`super::report::StatusReport`].
    Status,
    /// Answered by [`crate::explain::Explanation`].
    Explain(Question),
    /// Answered by a [`crate::verdicts::VerdictRow`] a line, for as long as both sides last.
    FollowVerdicts(Filter),
    /// Answered by a [`crate::verdicts::Summary`]: one of everything so far, or one after each interval for as long as both
    /// sides last.
    SummarizeVerdicts {
        /// What to count.
        filter: Filter,
        /// Length of the intervals in seconds.
        interval: Option<u32>,
    },
}

/// What `explain` is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    /// Source address of the packet.
    pub source: IpAddr,
    /// Source port; a client's port is arbitrary and decides nothing.
    pub source_port: u16,
    /// Where the packet is sent; the port of what has none is 0.
    pub destination: SocketAddr,
    /// What it carries.
    pub payload: Payload,
    /// Interface that it arrives on; every interface of the domain when left out.
    pub interface: Option<String>,
    /// The request inside, when one is asked about.
    pub request: Option<RequestQuestion>,
}

/// What a packet carries that `explain` asks about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Payload {
    /// The SYN of a TCP connection.
    #[default]
    Tcp,
    /// A UDP datagram.
    Udp,
    /// An ICMP message that a router has forwarded.
    Icmp {
        /// Its type.
        kind: u8,
        /// Its code.
        code: u8,
    },
}

/// A request that `explain` follows to its backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestQuestion {
    /// `Host` without port; SNI as well.
    pub host: String,
    /// Path with an optional query.
    pub path: String,
    /// Method.
    pub method: String,
    /// Header fields.
    pub headers: Vec<(String, String)>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// What was asked for.
    Ok(serde_json::Value),
    /// Why there is no answer.
    Error(String),
}
