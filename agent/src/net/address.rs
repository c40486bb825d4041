//! Makes frontend addresses local by a route in table `local`, so that no NIC owns them and the host accepts packets for
//! them from any NIC (which NIC may carry them is admission's to say).
//!
//! Each route carries this program's protocol number and, as its metric, a number made of the instance's name: what an
//! agent of the same instance has left is found and removed, what others made is never touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use futures_util::TryStreamExt;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
};
use tidegate_model::DomainName;
use tracing::{info, warn};

use super::is_netlink_errno;

/// Protocol number of the routes (`ip route show table local proto 84`). Not assigned in iproute2's rt_protos.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(84);

/// `RT_TABLE_LOCAL`.
const TABLE_LOCAL: u32 = 255;

/// The loopback device always has index 1 in its network namespace.
const LOOPBACK: u32 = 1;

/// Why an address is not local.
#[derive(Debug, thiserror::Error)]
#[error("cannot make {address} an address of this node: {error}; CAP_NET_ADMIN is needed")]
pub struct AddressError {
    /// The address.
    pub address: IpAddr,
    /// Why.
    pub error: rtnetlink::Error,
}

/// The local addresses of an instance.
pub struct LocalAddresses {
    handle: Handle,
    metric: u32,
    present: BTreeSet<IpAddr>,
    wanted: BTreeMap<DomainName, BTreeSet<IpAddr>>,
}

impl LocalAddresses {
    /// Finds the routes that an agent of this instance has left.
    ///
    /// # Errors
    /// When routes cannot be listed.
    pub async fn adopt(handle: Handle, instance: &str) -> Result<Self, rtnetlink::Error> {
        let metric = metric_of(instance);
        let mut present = BTreeSet::new();
        for query in [
            RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        ] {
            let mut routes = handle.route().get(query).execute();
            while let Some(route) = routes.try_next().await? {
                present.extend(own_address(&route, metric));
            }
        }
        Ok(Self { handle, metric, present, wanted: BTreeMap::new() })
    }

    /// Sets the addresses that a domain needs, so that they are not removed. None is added or removed here: see [`Self::add`] and
    /// [`Self::remove_unwanted`].
    pub fn set_wanted(&mut self, domain: &DomainName, addresses: BTreeSet<IpAddr>) {
        if addresses.is_empty() {
            self.wanted.remove(domain);
        } else {
            self.wanted.insert(domain.clone(), addresses);
        }
    }

    /// Makes addresses local that are not. Returns one error for each that could not be added.
    pub async fn add(&mut self, domain: &DomainName, addresses: impl IntoIterator<Item = IpAddr>) -> Vec<AddressError> {
        let mut errors = Vec::new();
        for address in addresses {
            if self.present.contains(&address) {
                continue;
            }
            match self.handle.route().add(self.route(address)).execute().await {
                Ok(()) => info!(%address, %domain, "address made local"),
                Err(error) if is_netlink_errno(&error, libc::EEXIST) => {}
                Err(error) => {
                    errors.push(AddressError { address, error });
                    continue;
                }
            }
            self.present.insert(address);
        }
        errors
    }

    /// Removes the routes of addresses that no domain needs. Only after every domain has said what it needs.
    pub async fn remove_unwanted(&mut self) {
        let wanted: BTreeSet<IpAddr> = self.wanted.values().flatten().copied().collect();
        let unwanted: Vec<IpAddr> = self.present.difference(&wanted).copied().collect();
        for address in unwanted {
            match self.handle.route().del(self.route(address)).execute().await {
                Ok(()) => info!(%address, "address is local no more"),
                Err(error) if is_netlink_errno(&error, libc::ESRCH) => {}
                Err(error) => {
                    warn!(%address, "cannot remove the address: {error}");
                    continue;
                }
            }
            self.present.remove(&address);
        }
    }

    fn route(&self, address: IpAddr) -> RouteMessage {
        RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(address, if address.is_ipv4() { 32 } else { 128 })
            .expect("the prefix length fits the family")
            .output_interface(LOOPBACK)
            .table_id(TABLE_LOCAL)
            .protocol(PROTOCOL)
            .scope(RouteScope::Host)
            .kind(RouteType::Local)
            .priority(self.metric)
            .build()
    }
}

/// The address of a route that this instance has made.
fn own_address(route: &RouteMessage, metric: u32) -> Option<IpAddr> {
    let is_own = route.header.protocol == PROTOCOL
        && u32::from(route.header.table) == TABLE_LOCAL
        && route.attributes.contains(&RouteAttribute::Priority(metric));
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) if is_own => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) if is_own => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

/// FNV-1a of the instance's name. Never 0: that is no metric (IPv4), or the default one (IPv6).
fn metric_of(instance: &str) -> u32 {
    instance.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instances_have_different_metrics() {
        assert_ne!(metric_of("default"), metric_of("test"));
        assert_ne!(metric_of(""), 0);
    }
}
