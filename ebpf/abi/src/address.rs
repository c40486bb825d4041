//! Addresses and transports as maps know them: one form for both families, so no table exists twice.

use core::net::IpAddr;

/// An address in network order; IPv4 as IPv4-mapped IPv6 (RFC 4291 section 2.5.5.2).
pub type Address = [u8; 16];

/// The bytes before the IPv4 address in an IPv4-mapped one.
pub const V4_MAPPED_PREFIX: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Transport protocol number of a frontend (IANA "Assigned Internet Protocol Numbers").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Transport {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
}

/// Form of an IPv4 address in maps.
#[inline(always)]
pub const fn from_v4(v4: [u8; 4]) -> Address {
    let mut addr = [0u8; 16];
    addr[10] = 0xff;
    addr[11] = 0xff;
    addr[12] = v4[0];
    addr[13] = v4[1];
    addr[14] = v4[2];
    addr[15] = v4[3];
    addr
}

/// The IPv4 address in an IPv4-mapped one.
#[inline(always)]
pub const fn to_v4(addr: &Address) -> Option<[u8; 4]> {
    let mut index = 0;
    while index < V4_MAPPED_PREFIX.len() {
        if addr[index] != V4_MAPPED_PREFIX[index] {
            return None;
        }
        index += 1;
    }
    Some([addr[12], addr[13], addr[14], addr[15]])
}

/// Form of an address in maps.
pub const fn from_ip(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => from_v4(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address that a map form stands for; IPv4 comes back as IPv4.
pub fn to_ip(addr: &Address) -> IpAddr {
    match to_v4(addr) {
        Some(v4) => IpAddr::from(v4),
        None => IpAddr::from(*addr),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_come_back_as_they_went_in() {
        for text in ["203.0.113.1", "0.0.0.0", "2001:db8::1", "::", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(to_ip(&from_ip(ip)), ip);
        }
        assert_eq!(to_ip(&from_ip("::ffff:10.0.0.1".parse().unwrap())), "10.0.0.1".parse::<IpAddr>().unwrap());
    }
}
