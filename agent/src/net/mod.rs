//! The host's network as the agent uses it: listening sockets, local addresses, NICs.

pub mod address;
pub mod link;
pub mod listen;

/// Whether a netlink request failed with this error number.
fn is_netlink_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}
