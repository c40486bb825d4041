//! Addresses that a domain's worker may dial, counted so that a change costs what it changes: an address goes when the
//! last backend that has it loses it, and then only after a while.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use tidegate_model::{BackendKey, Change, Delta, Key, Model, Resource};

/// How long an address stays allowed after the worker has dropped it. The guard judges a connect when it begins, so this
/// covers requests that had chosen the address and begin to connect a little later; connects under way are not touched.
const GRACE: Duration = Duration::from_secs(2);

/// What a delta changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DialledChange {
    /// To be allowed before the worker learns of them.
    pub(super) added: Vec<SocketAddr>,
}

/// The addresses of one domain.
#[derive(Debug, Default)]
pub(super) struct Dialled {
    backends: HashMap<SocketAddr, u32>,
    leaving: VecDeque<(Instant, SocketAddr)>,
}

impl Dialled {
    /// Counts a delta that `before` is about to take. Addresses that nobody has any more begin their grace.
    pub(super) fn count(&mut self, before: &Model, delta: &Delta, now: Instant) -> DialledChange {
        let mut balance = BTreeMap::<SocketAddr, i64>::new();
        let mut add = |resource: &Resource, sign: i64| {
            if let Resource::Endpoints(_, endpoints) = resource {
                for endpoint in &endpoints.endpoints {
                    *balance.entry(endpoint.addr).or_default() += sign;
                }
            }
        };
        if delta.is_full {
            before.resources().for_each(|resource| add(resource, -1));
        }
        // A delta may name a key twice: only its last word counts.
        let mut last = BTreeMap::<&BackendKey, Option<&Resource>>::new();
        for change in &delta.changes {
            match change {
                Change::Put(resource @ Resource::Endpoints(key, _)) => drop(last.insert(key, Some(resource))),
                Change::Remove(Key::Endpoints(key)) => drop(last.insert(key, None)),
                _ => {}
            }
        }
        for (key, after) in last {
            if !delta.is_full
                && let Some(resource) = before.find(&Key::Endpoints(key.clone()))
            {
                add(resource, -1);
            }
            if let Some(resource) = after {
                add(resource, 1);
            }
        }
        self.settle(balance, now)
    }

    fn settle(&mut self, balance: BTreeMap<SocketAddr, i64>, now: Instant) -> DialledChange {
        let mut change = DialledChange::default();
        for (address, difference) in balance.into_iter().filter(|(_, difference)| *difference != 0) {
            let had = self.backends.get(&address).copied().unwrap_or(0);
            let has = u32::try_from(i64::from(had) + difference).unwrap_or(0);
            if has == 0 {
                self.backends.remove(&address);
                self.leaving.push_back((now + GRACE, address));
            } else {
                self.backends.insert(address, has);
                if had == 0 {
                    // Adding one that is leaving is harmless; `expired` sees that it is back.
                    change.added.push(address);
                }
            }
        }
        change
    }

    /// Addresses whose grace is over and that did not come back.
    pub(super) fn expired(&mut self, now: Instant) -> Vec<SocketAddr> {
        let mut expired = Vec::new();
        while let Some((_, address)) = self.leaving.pop_front_if(|(at, _)| *at <= now) {
            if !self.backends.contains_key(&address) {
                expired.push(address);
            }
        }
        expired
    }

    /// When the next grace ends.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.leaving.front().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_model::{
        Admission, Domain, DomainName, Endpoint, EndpointState, Endpoints, Generation, ObjectName, ResourceLimits,
    };

    use super::*;

    fn endpoints(name: &str, ports: &[u16]) -> Change {
        let endpoint = |port: &u16| Endpoint { addr: ([10, 0, 0, 1], *port).into(), state: EndpointState::Ready };
        Change::Put(Resource::Endpoints(
            BackendKey::Backend { name: ObjectName::new("ns", name) },
            Arc::new(Endpoints { endpoints: ports.iter().map(endpoint).collect() }),
        ))
    }

    fn apply(dialled: &mut Dialled, model: &mut Model, is_full: bool, changes: Vec<Change>, now: Instant) -> Vec<u16> {
        let delta = Delta { generation: Generation(1), is_full, changes };
        let change = dialled.count(model, &delta, now);
        model.apply(&delta);
        change.added.iter().map(SocketAddr::port).collect()
    }

    #[test]
    fn an_address_goes_after_its_last_backend_and_its_grace() {
        let mut model = Model::new(Arc::new(Domain {
            name: DomainName::new("d"),
            interfaces: Vec::new(),
            labels: BTreeMap::new(),
            admission: Admission::default(),
            limits: ResourceLimits::default(),
            shards: None,
        }));
        let (mut dialled, now) = (Dialled::default(), Instant::now());
        let over = now + GRACE;
        assert_eq!(apply(&mut dialled, &mut model, true, vec![endpoints("a", &[1, 2])], now), [1, 2]);
        assert_eq!(apply(&mut dialled, &mut model, false, vec![endpoints("b", &[2, 3])], now), [3]);
        assert!(apply(&mut dialled, &mut model, false, vec![endpoints("a", &[])], now).is_empty());
        assert!(dialled.expired(now).is_empty(), "still in its grace");
        assert_eq!(dialled.expired(over), [SocketAddr::from(([10, 0, 0, 1], 1))]);
        // Gone and back within its grace: it stays.
        apply(&mut dialled, &mut model, false, vec![endpoints("b", &[])], now);
        apply(&mut dialled, &mut model, true, vec![endpoints("b", &[3])], now);
        assert_eq!(dialled.expired(over), [SocketAddr::from(([10, 0, 0, 1], 2))]);
        // The model that is left counts exactly what it has.
        assert_eq!(model.dialled().len(), dialled.backends.len());
    }
}
