//! Desired state as map elements: pure. Conflicts between domains are decided here.
//!
//! Who holds a frontend or an address keeps it; among newcomers the domain of the lower number wins. The loser is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use tidegate_abi::{Address, AddressOwner, DialledKey, FrontendKey, InterfaceKey, Policy, Transport, address::from_ip};
use tidegate_model::{self as model, DomainId};

use crate::desired::{ApplyFailure, Desired, DomainDesired};

/// Everything that is in the maps, less tables of sources, sockets and workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries {
    pub(crate) addresses: BTreeMap<Address, AddressOwner>,
    pub(crate) frontends: BTreeMap<FrontendKey, u32>,
    pub(crate) interfaces: BTreeSet<InterfaceKey>,
    pub(crate) admitting: BTreeSet<u32>,
    pub(crate) policies: BTreeMap<u32, Policy>,
    pub(crate) dialled: BTreeSet<DialledKey>,
}

/// Key of a frontend.
pub(crate) fn frontend_key(key: &model::FrontendKey) -> FrontendKey {
    FrontendKey { addr: from_ip(key.addr), port: key.port, transport: number(key.transport), pad: 0 }
}

/// Key of an address that a domain's workers may dial.
pub(crate) fn dialled_key(domain: DomainId, dial: &model::Dial) -> DialledKey {
    let model::Dial { transport, addr } = dial;
    DialledKey { addr: from_ip(addr.ip()), domain: domain.0, port: addr.port(), transport: number(*transport), pad: 0 }
}

fn number(transport: model::Transport) -> u8 {
    match transport {
        model::Transport::Tcp => Transport::Tcp as u8,
        model::Transport::Udp => Transport::Udp as u8,
    }
}

/// Keys of the interfaces of a domain: tagged frames as `admit` sees them, and the VLAN device as `steer` does.
pub(crate) fn interface_keys(domain: DomainId, desired: &DomainDesired) -> BTreeSet<InterfaceKey> {
    let mut keys = BTreeSet::new();
    for interface in &desired.interfaces {
        let (vlan, inner_vlan) = (interface.vlan, interface.inner_vlan);
        keys.insert(InterfaceKey { ifindex: interface.ifindex, domain: domain.0, vlan, inner_vlan });
        if let Some(device) = interface.device {
            keys.insert(InterfaceKey { ifindex: device, domain: domain.0, vlan: 0, inner_vlan: 0 });
        }
    }
    keys
}

/// Addresses and frontends of all domains with conflicts decided.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claims {
    pub(crate) addresses: BTreeMap<Address, AddressOwner>,
    pub(crate) frontends: BTreeMap<FrontendKey, u32>,
    pub(crate) failures: Vec<ApplyFailure>,
}

/// Decides who gets which address and frontend; `current` is what is applied.
pub(crate) fn decide_claims(desired: &Desired, current: &Entries) -> Claims {
    let mut claims = Claims::default();
    for (&domain, wanted) in &desired.domains {
        for &ip in &wanted.frontends.exclusive {
            claims.claim_address(domain, ip, desired, current);
        }
    }
    for (&domain, wanted) in &desired.domains {
        for key in &wanted.frontends.keys {
            claims.claim_frontend(domain, key, desired, current);
        }
    }
    claims
}

impl Claims {
    fn claim_address(&mut self, domain: DomainId, ip: IpAddr, desired: &Desired, current: &Entries) {
        let addr = from_ip(ip);
        let wants = |other: u32| {
            other == domain.0
                || desired.domains.get(&DomainId(other)).is_some_and(|wanted| wanted.frontends.exclusive.contains(&ip))
        };
        let holder = current.addresses.get(&addr).filter(|owner| owner.flags == AddressOwner::EXCLUSIVE);
        let winner = self.addresses.get(&addr).or(holder.filter(|owner| wants(owner.domain))).map(|owner| owner.domain);
        match winner {
            Some(winner) if winner != domain.0 => self.fail(domain, format!("address {ip}"), winner),
            _ => {
                self.addresses.insert(addr, AddressOwner { domain: domain.0, flags: AddressOwner::EXCLUSIVE });
            }
        }
    }

    fn claim_frontend(&mut self, domain: DomainId, key: &model::FrontendKey, desired: &Desired, current: &Entries) {
        let frontend = frontend_key(key);
        let owner = self.addresses.get(&frontend.addr).filter(|owner| owner.flags == AddressOwner::EXCLUSIVE);
        let wants = |other: u32| {
            other == domain.0
                || desired.domains.get(&DomainId(other)).is_some_and(|wanted| wanted.frontends.keys.contains(key))
        };
        let holder = current.frontends.get(&frontend).filter(|&&holder| wants(holder));
        let winner = match owner {
            Some(owner) => Some(owner.domain),
            None => self.frontends.get(&frontend).or(holder).copied(),
        };
        match winner {
            Some(winner) if winner != domain.0 => self.fail(domain, format!("frontend {key}"), winner),
            _ => {
                self.frontends.insert(frontend, domain.0);
                self.addresses.entry(frontend.addr).or_default();
            }
        }
    }

    fn fail(&mut self, domain: DomainId, subject: String, winner: u32) {
        let error = format!("belongs to domain {winner} already: give the domains different addresses or ports");
        self.failures.push(ApplyFailure { domain, subject, error });
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tidegate_model::domain::Frontends;

    use super::*;

    fn frontend(text: &str) -> model::FrontendKey {
        let addr: SocketAddr = text.parse().unwrap();
        model::FrontendKey { addr: addr.ip(), port: addr.port(), transport: model::Transport::Tcp }
    }

    fn desired(domains: &[(u32, &[&str], &[&str])]) -> Desired {
        let domain = |keys: &[&str], exclusive: &[&str]| DomainDesired {
            frontends: Frontends {
                keys: keys.iter().map(|text| frontend(text)).collect(),
                exclusive: exclusive.iter().map(|text| text.parse().unwrap()).collect(),
            },
            ..DomainDesired::default()
        };
        Desired { domains: domains.iter().map(|(id, keys, own)| (DomainId(*id), domain(keys, own))).collect() }
    }

    #[test]
    fn who_holds_a_frontend_keeps_it_and_the_newcomer_is_told() {
        let mut current = Entries::default();
        current.frontends.insert(frontend_key(&frontend("10.0.0.1:80")), 2);
        let claims =
            decide_claims(&desired(&[(1, &["10.0.0.1:80", "10.0.0.1:81"], &[]), (2, &["10.0.0.1:80"], &[])]), &current);
        assert_eq!(claims.frontends[&frontend_key(&frontend("10.0.0.1:80"))], 2);
        assert_eq!(claims.frontends[&frontend_key(&frontend("10.0.0.1:81"))], 1);
        assert_eq!(claims.failures.len(), 1);
        assert_eq!(claims.failures[0].domain, DomainId(1));
        assert_eq!(claims.failures[0].subject, "frontend 10.0.0.1:80/TCP");
    }

    #[test]
    fn a_holder_that_no_longer_wants_a_frontend_does_not_keep_it() {
        let mut current = Entries::default();
        current.frontends.insert(frontend_key(&frontend("10.0.0.1:80")), 2);
        let claims = decide_claims(&desired(&[(1, &["10.0.0.1:80"], &[]), (2, &[], &[])]), &current);
        assert_eq!(claims.frontends[&frontend_key(&frontend("10.0.0.1:80"))], 1);
        assert!(claims.failures.is_empty());
    }

    #[test]
    fn an_exclusive_address_takes_no_other_domains_frontend() {
        let claims = decide_claims(
            &desired(&[(1, &["10.0.0.1:80"], &[]), (2, &["10.0.0.1:443"], &["10.0.0.1"])]),
            &Entries::default(),
        );
        assert_eq!(claims.frontends.values().copied().collect::<Vec<_>>(), [2]);
        assert_eq!(claims.addresses[&from_ip("10.0.0.1".parse().unwrap())].domain, 2);
        assert_eq!(claims.failures[0].domain, DomainId(1));
    }

    #[test]
    fn shared_addresses_have_no_owner() {
        let claims =
            decide_claims(&desired(&[(1, &["10.0.0.1:80"], &[]), (2, &["10.0.0.1:443"], &[])]), &Entries::default());
        assert_eq!(claims.addresses[&from_ip("10.0.0.1".parse().unwrap())], AddressOwner::default());
        assert_eq!(claims.frontends.len(), 2);
    }
}
