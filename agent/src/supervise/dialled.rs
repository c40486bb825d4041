//! Addresses that a domain's worker may dial, counted so that a change costs what it changes: an address goes when the
//! last backend that has it loses it, and then only after a while.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use tidegate_model::{
    BackendKey, BackendTarget, Change, Delta, Dial, Endpoints, Forward, Key, Model, Resource, RuleKey, RuleKind,
};

/// How long an address stays allowed after the worker has dropped it. The guard judges a connect when it begins, so this
/// covers requests that had chosen the address and begin to connect a little later; connects under way are not touched.
const GRACE: Duration = Duration::from_secs(2);

/// What a delta changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DialledChange {
    /// To be allowed before the worker learns of them.
    pub(super) added: Vec<Dial>,
}

/// The addresses of one domain.
#[derive(Debug, Default)]
pub(super) struct Dialled {
    backends: HashMap<Dial, u32>,
    /// How many UDPRoutes refer to a `Backend` object, whose key does not say the transport.
    datagrams: HashMap<BackendKey, u32>,
    leaving: VecDeque<(Instant, Dial)>,
}

impl Dialled {
    /// Counts a delta that `before` is about to take. Addresses that nobody has any more begin their grace.
    pub(super) fn count(&mut self, before: &Model, delta: &Delta, now: Instant) -> DialledChange {
        // A delta may name a key twice: only its last word counts.
        let mut endpoints = BTreeMap::<&BackendKey, Option<&Endpoints>>::new();
        let mut forwards = BTreeMap::<&RuleKey, Option<&Forward>>::new();
        for change in &delta.changes {
            match change {
                Change::Put(Resource::Endpoints(key, list)) => drop(endpoints.insert(key, Some(list))),
                Change::Remove(Key::Endpoints(key)) => drop(endpoints.insert(key, None)),
                Change::Put(Resource::Forward(key, forward)) => drop(forwards.insert(key, Some(forward))),
                Change::Remove(Key::Forward(key)) => drop(forwards.insert(key, None)),
                _ => {}
            }
        }
        if delta.is_full {
            for resource in before.resources() {
                match resource {
                    Resource::Endpoints(key, _) => drop(endpoints.entry(key).or_default()),
                    Resource::Forward(key, _) => drop(forwards.entry(key).or_default()),
                    _ => {}
                }
            }
        }
        let referred = self.count_references(before, &forwards);
        for key in referred.keys() {
            if !endpoints.contains_key(key) {
                endpoints.insert(key, find_endpoints(before, key));
            }
        }
        let mut balance = BTreeMap::<Dial, i64>::new();
        for (key, after) in endpoints {
            let has_datagrams = self.datagrams.contains_key(key);
            let had_datagrams = referred.get(key).copied().unwrap_or(has_datagrams);
            let mut add = |list: Option<&Endpoints>, has_datagrams, sign| {
                for endpoint in list.into_iter().flat_map(|list| &list.endpoints) {
                    dials(key, endpoint.addr, has_datagrams).for_each(|dial| *balance.entry(dial).or_default() += sign);
                }
            };
            add(find_endpoints(before, key), had_datagrams, -1);
            add(after, has_datagrams, 1);
        }
        self.settle(balance, now)
    }

    /// Counts references of UDPRoutes. Returns the backends that got their first or lost their last, with whether they had any.
    fn count_references(
        &mut self,
        before: &Model,
        forwards: &BTreeMap<&RuleKey, Option<&Forward>>,
    ) -> BTreeMap<BackendKey, bool> {
        let mut balance = BTreeMap::<&BackendKey, i64>::new();
        for (key, after) in forwards.iter().filter(|(key, _)| key.kind == RuleKind::UDPRoute) {
            let had = match before.find(&Key::Forward((*key).clone())) {
                Some(Resource::Forward(_, forward)) => Some(&**forward),
                _ => None,
            };
            backends_of(had).for_each(|backend| *balance.entry(backend).or_default() -= 1);
            backends_of(*after).for_each(|backend| *balance.entry(backend).or_default() += 1);
        }
        let mut changed = BTreeMap::new();
        for (key, difference) in balance.into_iter().filter(|(_, difference)| *difference != 0) {
            let had = self.datagrams.get(key).copied().unwrap_or(0);
            let has = u32::try_from(i64::from(had) + difference).unwrap_or(0);
            if has == 0 {
                self.datagrams.remove(key);
            } else {
                self.datagrams.insert(key.clone(), has);
            }
            if (had == 0) != (has == 0) {
                changed.insert(key.clone(), had > 0);
            }
        }
        changed
    }

    fn settle(&mut self, balance: BTreeMap<Dial, i64>, now: Instant) -> DialledChange {
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
    pub(super) fn expired(&mut self, now: Instant) -> Vec<Dial> {
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

/// How an endpoint of a backend is dialled. The key of a Service's port says its transport; a `Backend` object is dialled over
/// TCP, and over UDP where a UDPRoute refers to it.
fn dials(key: &BackendKey, addr: std::net::SocketAddr, has_datagrams: bool) -> impl Iterator<Item = Dial> {
    let (tcp, udp) = match key {
        BackendKey::Service { .. } | BackendKey::GrpcService { .. } | BackendKey::GrpcBackend { .. } => (true, false),
        BackendKey::UdpService { .. } => (false, true),
        BackendKey::Backend { .. } => (true, has_datagrams),
    };
    [tcp.then(|| Dial::tcp(addr)), udp.then(|| Dial::udp(addr))].into_iter().flatten()
}

fn find_endpoints<'a>(model: &'a Model, key: &BackendKey) -> Option<&'a Endpoints> {
    match model.find(&Key::Endpoints(key.clone())) {
        Some(Resource::Endpoints(_, list)) => Some(list),
        _ => None,
    }
}

/// `Backend` objects that a forward refers to, as often as it does.
fn backends_of(forward: Option<&Forward>) -> impl Iterator<Item = &BackendKey> {
    forward.into_iter().flat_map(|forward| &forward.backends).filter_map(|backend| match &backend.target {
        BackendTarget::Backend(key @ BackendKey::Backend { .. }) => Some(key),
        BackendTarget::Backend(_) | BackendTarget::Invalid(_) => None,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tidegate_model::{
        Admission, Domain, DomainName, Endpoint, EndpointState, Generation, ObjectName, ResourceLimits, WeightedBackend,
    };

    use super::*;

    fn backend(name: &str) -> BackendKey {
        BackendKey::Backend { name: ObjectName::new("ns", name) }
    }

    fn endpoints(name: &str, ports: &[u16]) -> Change {
        endpoints_of(backend(name), ports)
    }

    fn endpoints_of(key: BackendKey, ports: &[u16]) -> Change {
        let endpoint = |port: &u16| Endpoint { addr: ([10, 0, 0, 1], *port).into(), state: EndpointState::Ready };
        Change::Put(Resource::Endpoints(key, Arc::new(Endpoints { endpoints: ports.iter().map(endpoint).collect() })))
    }

    fn forward_key(name: &str) -> RuleKey {
        RuleKey { kind: RuleKind::UDPRoute, route: ObjectName::new("ns", name), index: 0 }
    }

    fn forward(name: &str, backends: &[&str]) -> Change {
        let weighted = |name: &&str| WeightedBackend {
            target: BackendTarget::Backend(backend(name)),
            weight: 1,
            filters: Vec::new(),
        };
        let backends = backends.iter().map(weighted).collect();
        let forward = Forward { created: 0, attachments: Vec::new(), backends };
        Change::Put(Resource::Forward(forward_key(name), Arc::new(forward)))
    }

    fn model() -> Model {
        Model::new(Arc::new(Domain {
            name: DomainName::new("d"),
            interfaces: Vec::new(),
            labels: BTreeMap::new(),
            admission: Admission::default(),
            limits: ResourceLimits::default(),
            shards: None,
        }))
    }

    fn change(dialled: &mut Dialled, model: &mut Model, is_full: bool, changes: Vec<Change>) -> Vec<String> {
        let delta = Delta { generation: Generation(1), is_full, changes };
        let change = dialled.count(model, &delta, Instant::now());
        model.apply(&delta);
        change.added.iter().map(|dial| format!("{}/{}", dial.addr.port(), dial.transport)).collect()
    }

    fn allowed(dialled: &Dialled) -> Vec<String> {
        let mut all: Vec<_> = dialled.backends.keys().collect();
        all.sort_by_key(|dial| (dial.addr, dial.transport));
        all.into_iter().map(|dial| format!("{}/{}", dial.addr.port(), dial.transport)).collect()
    }

    #[test]
    fn a_services_port_is_dialled_over_its_own_transport() {
        let (mut model, mut dialled) = (model(), Dialled::default());
        let name = ObjectName::new("ns", "dns");
        let tcp = BackendKey::Service { name: name.clone(), port: 53 };
        let udp = BackendKey::UdpService { name, port: 53 };
        let changes = vec![endpoints_of(tcp, &[53]), endpoints_of(udp.clone(), &[53, 54])];
        assert_eq!(change(&mut dialled, &mut model, true, changes), ["53/TCP", "53/UDP", "54/UDP"]);
        change(&mut dialled, &mut model, false, vec![Change::Remove(Key::Endpoints(udp))]);
        assert_eq!(allowed(&dialled), ["53/TCP"]);
    }

    #[test]
    fn a_backend_is_dialled_over_udp_while_a_udp_route_refers_to_it() {
        let (mut model, mut dialled) = (model(), Dialled::default());
        assert_eq!(change(&mut dialled, &mut model, true, vec![endpoints("a", &[1])]), ["1/TCP"]);
        assert_eq!(change(&mut dialled, &mut model, false, vec![forward("r", &["a", "a"])]), ["1/UDP"]);
        assert!(change(&mut dialled, &mut model, false, vec![forward("s", &["a"])]).is_empty());
        // Endpoints and references that change together.
        let both = vec![endpoints("a", &[2]), forward("r", &[])];
        assert_eq!(change(&mut dialled, &mut model, false, both), ["2/TCP", "2/UDP"]);
        assert_eq!(allowed(&dialled), ["2/TCP", "2/UDP"]);
        // A route that comes before its backend, and one that goes with it.
        change(&mut dialled, &mut model, false, vec![forward("t", &["b"])]);
        assert_eq!(change(&mut dialled, &mut model, false, vec![endpoints("b", &[3])]), ["3/TCP", "3/UDP"]);
        change(&mut dialled, &mut model, false, vec![Change::Remove(Key::Forward(forward_key("s")))]);
        assert_eq!(allowed(&dialled), ["2/TCP", "3/TCP", "3/UDP"]);
        // The whole model again: nothing but what is left out changes.
        let full = vec![endpoints("a", &[2]), endpoints("b", &[3]), forward("t", &["b"])];
        assert!(change(&mut dialled, &mut model, true, full).is_empty());
        assert!(change(&mut dialled, &mut model, true, vec![endpoints("b", &[3])]).is_empty());
        assert_eq!(allowed(&dialled), ["3/TCP"]);
        assert!(dialled.datagrams.is_empty());
    }

    fn apply(dialled: &mut Dialled, model: &mut Model, is_full: bool, changes: Vec<Change>, now: Instant) -> Vec<u16> {
        let delta = Delta { generation: Generation(1), is_full, changes };
        let change = dialled.count(model, &delta, now);
        model.apply(&delta);
        change.added.iter().map(|dial| dial.addr.port()).collect()
    }

    #[test]
    fn an_address_goes_after_its_last_backend_and_its_grace() {
        let mut model = model();
        let (mut dialled, now) = (Dialled::default(), Instant::now());
        let over = now + GRACE;
        assert_eq!(apply(&mut dialled, &mut model, true, vec![endpoints("a", &[1, 2])], now), [1, 2]);
        assert_eq!(apply(&mut dialled, &mut model, false, vec![endpoints("b", &[2, 3])], now), [3]);
        assert!(apply(&mut dialled, &mut model, false, vec![endpoints("a", &[])], now).is_empty());
        assert!(dialled.expired(now).is_empty(), "still in its grace");
        assert_eq!(dialled.expired(over), [Dial::tcp(([10, 0, 0, 1], 1).into())]);
        // Gone and back within its grace: it stays.
        apply(&mut dialled, &mut model, false, vec![endpoints("b", &[])], now);
        apply(&mut dialled, &mut model, true, vec![endpoints("b", &[3])], now);
        assert_eq!(dialled.expired(over), [Dial::tcp(([10, 0, 0, 1], 2).into())]);
        // The model that is left counts exactly what it has.
        assert_eq!(model.dialled().len(), dialled.backends.len());
    }
}
