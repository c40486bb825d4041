//! Which Gateway serves an address and port that several claim.
//!
//! Gateways may share an address: the node's, or one they both name. Listeners of one domain that can be told apart by host
//! name then live side by side; of others the older Gateway's (then the first by name) is served. A claim
//! holds as long as the listener's own text is valid, so a certificate that breaks does not hand its name to another.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_model::{DomainName, FrontendKey, Hostname, ListenerKey, ObjectName, Protocol};

use crate::status::Problem;

/// What one listener claims of a frontend.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claim {
    pub(crate) listener: ListenerKey,
    pub(crate) domain: DomainName,
    pub(crate) protocol: Protocol,
    pub(crate) hostname: Option<Hostname>,
}

/// Order in which Gateways are heard. The claims of each are in the order of its own listeners, then of its ListenerSets.
type Seniority = (i64, ObjectName);

/// All claims, with the listeners that lost.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    frontends: BTreeMap<FrontendKey, BTreeMap<Seniority, Vec<Claim>>>,
    gateways: BTreeMap<ObjectName, (i64, BTreeSet<FrontendKey>)>,
    lost: BTreeMap<FrontendKey, BTreeMap<ListenerKey, Problem>>,
}

impl Claims {
    /// Replaces the claims of a Gateway; returns the Gateways of which a listener has won or lost by it.
    pub(crate) fn replace(
        &mut self,
        gateway: &ObjectName,
        created: i64,
        claims: Vec<(FrontendKey, Claim)>,
    ) -> BTreeSet<ObjectName> {
        let mut touched = BTreeSet::new();
        if let Some((created, frontends)) = self.gateways.remove(gateway) {
            for frontend in frontends {
                if let Some(claimants) = self.frontends.get_mut(&frontend) {
                    claimants.remove(&(created, gateway.clone()));
                    if claimants.is_empty() {
                        self.frontends.remove(&frontend);
                    }
                }
                touched.insert(frontend);
            }
        }
        let mut own = BTreeSet::new();
        for (frontend, claim) in claims {
            let claimants = self.frontends.entry(frontend).or_default();
            claimants.entry((created, gateway.clone())).or_default().push(claim);
            own.insert(frontend);
        }
        touched.extend(own.iter().copied());
        if !own.is_empty() {
            self.gateways.insert(gateway.clone(), (created, own));
        }
        touched.into_iter().flat_map(|frontend| self.judge(frontend)).collect()
    }

    /// Why a listener lost one of its frontends, if it did.
    pub(crate) fn find_lost(&self, listener: &ListenerKey, frontends: &[FrontendKey]) -> Option<&Problem> {
        frontends.iter().find_map(|frontend| self.lost.get(frontend)?.get(listener))
    }

    /// Judges a frontend again; returns the Gateways for which the outcome changed.
    fn judge(&mut self, frontend: FrontendKey) -> BTreeSet<ObjectName> {
        let after = self.frontends.get(&frontend).map(|claimants| find_losers(frontend, claimants)).unwrap_or_default();
        let before =
            if after.is_empty() { self.lost.remove(&frontend) } else { self.lost.insert(frontend, after.clone()) }
                .unwrap_or_default();
        let changed = |a: &BTreeMap<ListenerKey, Problem>, b: &BTreeMap<ListenerKey, Problem>| {
            a.iter()
                .filter(|(key, problem)| b.get(key) != Some(problem))
                .map(|(key, _)| key.gateway.clone())
                .collect::<Vec<_>>()
        };
        changed(&after, &before).into_iter().chain(changed(&before, &after)).collect()
    }
}

fn find_losers(frontend: FrontendKey, claimants: &BTreeMap<Seniority, Vec<Claim>>) -> BTreeMap<ListenerKey, Problem> {
    let mut losers = BTreeMap::new();
    let mut first: Option<(&ObjectName, &Claim)> = None;
    let mut hostnames: BTreeMap<&Option<Hostname>, &ObjectName> = BTreeMap::new();
    for ((_, gateway), claims) in claimants {
        for claim in claims {
            let (owner, leader) = *first.get_or_insert((gateway, claim));
            let rival = hostnames.get(&claim.hostname);
            let problem = if leader.domain != claim.domain {
                Some(("PortUnavailable", owner, format!("for TrafficDomain/{}", leader.domain)))
            } else if leader.protocol != claim.protocol && !leader.protocol.shares_port_with(claim.protocol) {
                Some(("ProtocolConflict", owner, "with a protocol that leaves no room for another".to_owned()))
            } else {
                rival.map(|rival| ("HostnameConflict", *rival, "with the same host name".to_owned()))
            };
            match problem {
                None => {
                    hostnames.insert(&claim.hostname, gateway);
                }
                Some((reason, winner, how)) => {
                    let message = format!(
                        "listener {:?}: Gateway/{winner}, which is older, serves {frontend} {how}: change the port, the host name or spec.addresses",
                        &*claim.listener.name
                    );
                    losers.insert(claim.listener.clone(), Problem::new(reason, message));
                }
            }
        }
    }
    losers
}
