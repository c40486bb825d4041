//! Interface names for messages.

use nix::net::if_::if_indextoname;

/// Name of an interface, or its number when it is gone.
pub(crate) fn interface_name(ifindex: u32) -> String {
    match if_indextoname(ifindex) {
        Ok(name) => format!("interface {}", name.to_string_lossy()),
        Err(_) => format!("interface {ifindex}"),
    }
}
