//! What a shard knows of its domain's model, in the form that requests are served from.
//!
//! The tables belong to one shard and are changed in place by deltas, at a cost that follows the change: a rule touches the
//! paths it names, endpoints touch no rule, a certificate touches the listeners that serve with it. A change is applied
//! between two requests, never during one, so no request sees half of it. Nothing here does I/O.

mod candidates;
mod conditions;
mod datagrams;
mod forward;
mod hosts;
mod listener;
mod normal_path;
mod paths;
mod query;
mod regex;
mod rule;
#[cfg(test)]
mod tests;
mod trust;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
};

use hashbrown::{HashMap, HashSet};
use tidegate_model::{
    Attachment, Backend, BackendIdentity, BackendKey, CaBundle, CaBundleKey, Certificate, CertificateKey, Change,
    Delta, Endpoints, Forward, Generation, Key, Listener, ListenerKey, ObjectName, Protocol, Resource, Rule, RuleKey,
    Transport,
};

pub use forward::{CompiledForward, FoundForward};
pub use listener::{Frontend, Identity, ListenerState, Opening, Routes};
pub use normal_path::{NormalPath, normal_path};
pub use rule::{CompiledBackend, CompiledRule, Target};

use self::{candidates::Candidate, datagrams::DatagramFrontends, rule::CompiledMatch};
use crate::{
    balance::{BackendState, Prng},
    certificates::{ClientIdentity, TlsContext, UsableBundle, UsableCertificate},
    external_auth::ExternalAuth,
    stats::{
        ForwardCounts, ForwardStats, RequestCounts, RequestLabels, RuleStats, ShardStats, Snapshot, UpstreamCounts,
    },
};

/// Why resources of a delta cannot be used.
pub type Failures = Vec<(Key, String)>;

/// Routing state of one shard.
#[derive(Debug)]
pub struct Tables {
    /// Counters of the shard that belong to no rule and no backend.
    pub stats: Rc<ShardStats>,
    tls: TlsContext,
    generation: Generation,
    frontends: HashMap<(IpAddr, u16), Frontend>,
    listeners: HashMap<ListenerKey, Rc<ListenerState>>,
    routes: HashMap<ListenerKey, Rc<Routes>>,
    /// Counters of requests without a rule, by Gateway; kept while a listener of it exists.
    unmatched: HashMap<ObjectName, Rc<RuleStats>>,
    rules: HashMap<RuleKey, RuleEntry>,
    forwards: HashMap<RuleKey, ForwardEntry>,
    datagrams: DatagramFrontends,
    backends: HashMap<BackendKey, BackendEntry>,
    certificates: HashMap<CertificateKey, CertificateEntry>,
    bundles: HashMap<CaBundleKey, BundleEntry>,
}

#[derive(Debug)]
struct RuleEntry {
    rule: Rc<CompiledRule>,
    /// One for each Gateway that it is attached to.
    stats: Vec<(ObjectName, Rc<RuleStats>)>,
    /// What of it cannot be used: said again when the same rule comes again.
    problems: Vec<String>,
}

#[derive(Debug)]
struct ForwardEntry {
    forward: Rc<CompiledForward>,
    /// One for each Gateway that it is attached to.
    stats: Vec<(ObjectName, Rc<ForwardStats>)>,
}

#[derive(Debug)]
struct BackendEntry {
    state: Rc<BackendState>,
    /// References from rules and forwards; the entry lives while there are any, or a resource of its key.
    references: usize,
    backend: Option<Arc<Backend>>,
    /// Why `backend` cannot be used.
    problem: Option<String>,
    endpoints: Option<Arc<Endpoints>>,
}

#[derive(Debug)]
struct CertificateEntry {
    source: Arc<Certificate>,
    usable: UsableCertificate,
    identity: Rc<ClientIdentity>,
}

#[derive(Debug)]
struct BundleEntry {
    source: Arc<CaBundle>,
    /// `None` when it cannot be used, for the reason in `problem`.
    usable: Option<UsableBundle>,
    problem: Option<String>,
}

impl Tables {
    /// Tables of a shard that serves nothing yet. `tls` is the same for all shards of a worker.
    pub fn new(tls: TlsContext) -> Self {
        Self {
            stats: Rc::default(),
            tls,
            generation: Generation::default(),
            frontends: HashMap::default(),
            listeners: HashMap::default(),
            routes: HashMap::default(),
            unmatched: HashMap::default(),
            rules: HashMap::default(),
            forwards: HashMap::default(),
            datagrams: DatagramFrontends::default(),
            backends: HashMap::default(),
            certificates: HashMap::default(),
            bundles: HashMap::default(),
        }
    }

    /// Generation that is in force.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The frontend that a connection came to, by its local address.
    pub fn find_frontend(&self, local: SocketAddr) -> Option<&Frontend> {
        self.frontends.get(&(local.ip().to_canonical(), local.port()))
    }

    /// Applies a delta. What cannot be used is returned with the reason; everything else is in force, and what cannot be
    /// used leaves what it would have replaced in force where that is safe (a certificate), or serves no request with it
    /// (a match, a filter, TLS to a backend).
    pub fn apply(&mut self, delta: &Delta) -> Failures {
        let mut failures = Failures::new();
        for change in &delta.changes {
            match change {
                Change::Put(resource) => self.put(resource, &mut failures),
                Change::Remove(key) => self.remove(key),
            }
        }
        if delta.is_full {
            self.remove_all_but(&delta.changes);
        }
        self.generation = delta.generation;
        failures
    }

    /// Counters of this shard at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let mut snapshot = Snapshot {
            connections: (&self.stats.connections).into(),
            local_responses: self.stats.local_responses.counts().into_iter().collect(),
            datagrams: (&self.stats.datagrams).into(),
            rules: (self.rules.len() + self.forwards.len()) as u64,
            ..Snapshot::default()
        };
        // What counted nothing is left out: a model may hold thousands of rules, and the shard serves nobody meanwhile.
        let mut push = |gateway: Option<&ObjectName>, rule: Option<&RuleKey>, stats: &RuleStats| {
            let counts = RequestCounts::from(stats);
            if !counts.is_empty() {
                snapshot.requests.insert(RequestLabels { gateway: gateway.cloned(), rule: rule.cloned() }, counts);
            }
        };
        push(None, None, &self.stats.unrouted);
        self.unmatched.iter().for_each(|(gateway, stats)| push(Some(gateway), None, stats));
        for (key, entry) in &self.rules {
            entry.stats.iter().for_each(|(gateway, stats)| push(Some(gateway), Some(key), stats));
        }
        for (key, entry) in &self.forwards {
            for (gateway, stats) in &entry.stats {
                let counts = ForwardCounts::from(&**stats);
                if !counts.is_empty() {
                    let labels = RequestLabels { gateway: Some(gateway.clone()), rule: Some(key.clone()) };
                    snapshot.forwards.insert(labels, counts);
                }
            }
        }
        for (key, entry) in &self.backends {
            let (ready, terminating) = entry.state.count_endpoints();
            let counts = UpstreamCounts {
                ready_endpoints: ready as u64,
                terminating_endpoints: terminating as u64,
                ..(&*entry.state.stats).into()
            };
            snapshot.upstreams.insert(key.clone(), counts);
        }
        snapshot
    }

    fn put(&mut self, resource: &Resource, failures: &mut Failures) {
        let mut problems = Vec::new();
        match resource {
            Resource::Certificate(key, certificate) => self.put_certificate(key, certificate, &mut problems),
            Resource::CaBundle(key, bundle) => self.put_bundle(key, bundle, &mut problems),
            Resource::Backend(key, backend) => self.put_backend(key, backend, &mut problems),
            Resource::Endpoints(key, endpoints) => {
                let entry = self.backend_entry(key);
                entry.state.set_endpoints(endpoints);
                entry.endpoints = Some(endpoints.clone());
            }
            Resource::Listener(key, listener) => self.put_listener(key, listener),
            Resource::Rule(key, rule) => self.put_rule(key, rule, &mut problems),
            Resource::Forward(key, forward) => self.put_forward(key, forward),
        }
        failures.extend(problems.into_iter().map(|problem| (resource.key(), problem)));
    }

    fn remove(&mut self, key: &Key) {
        match key {
            Key::Certificate(key) => {
                if self.certificates.remove(key).is_some() {
                    self.rebuild_tls(key);
                }
            }
            Key::CaBundle(key) => {
                if self.bundles.remove(key).is_some() {
                    self.rebuild_trust(key);
                }
            }
            Key::Backend(key) => self.change_backend(key, |entry| {
                entry.backend = None;
                entry.state.clear_backend();
            }),
            Key::Endpoints(key) => self.change_backend(key, |entry| {
                entry.endpoints = None;
                entry.state.set_endpoints(&Endpoints::default());
            }),
            Key::Listener(key) => self.remove_listener(key),
            Key::Rule(key) => {
                if let Some(entry) = self.rules.remove(key) {
                    self.detach(&entry.rule);
                    self.release_backends(rule::backends_of(&entry.rule.source));
                }
            }
            Key::Forward(key) => {
                if let Some(entry) = self.forwards.remove(key) {
                    self.detach_forward(&entry.forward);
                    self.release_backends(forward::backends_of(&entry.forward.source));
                }
            }
        }
    }

    /// Removes everything that a full delta does not name, in the order that is safe: what refers before what it refers to.
    fn remove_all_but(&mut self, changes: &[Change]) {
        let named: HashSet<Key> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Put(resource) => Some(resource.key()),
                Change::Remove(_) => None,
            })
            .collect();
        let rules = self.rules.keys().cloned().map(Key::Rule);
        let forwards = self.forwards.keys().cloned().map(Key::Forward);
        let listeners = self.listeners.keys().cloned().map(Key::Listener);
        let certificates = self.certificates.keys().cloned().map(Key::Certificate);
        let bundles = self.bundles.keys().cloned().map(Key::CaBundle);
        let backends = self.backends.keys().flat_map(|key| [Key::Endpoints(key.clone()), Key::Backend(key.clone())]);
        let present: BTreeSet<Key> =
            rules.chain(forwards).chain(listeners).chain(certificates).chain(bundles).chain(backends).collect();
        present.iter().rev().filter(|key| !named.contains(*key)).for_each(|key| self.remove(key));
    }

    fn put_certificate(&mut self, key: &CertificateKey, source: &Arc<Certificate>, problems: &mut Vec<String>) {
        if self.certificates.get(key).is_some_and(|entry| entry.source == *source) {
            return;
        }
        match self.tls.read_certificate(source) {
            Ok(usable) => {
                let identity = usable.to_identity();
                self.certificates.insert(key.clone(), CertificateEntry { source: source.clone(), usable, identity });
                self.rebuild_tls(key);
            }
            Err(problem) if self.certificates.contains_key(key) => {
                problems.push(format!("{problem}; the one before it stays in use"));
            }
            Err(problem) => problems.push(problem),
        }
    }

    fn put_backend(&mut self, key: &BackendKey, backend: &Arc<Backend>, problems: &mut Vec<String>) {
        if self.backends.get(key).is_none_or(|entry| entry.backend.as_ref() != Some(backend)) {
            self.set_backend(key, backend);
        }
        problems.extend(self.backend_entry(key).problem.clone());
    }

    fn put_listener(&mut self, key: &ListenerKey, source: &Arc<Listener>) {
        if self.listeners.get(key).is_some_and(|present| present.source == *source) {
            return;
        }
        for backend in asked_by(source) {
            self.backend_entry(backend).references += 1;
        }
        let find_backend = &mut |key: &BackendKey| self.backends[key].state.clone();
        let auth = source.auth.iter().map(|auth| Rc::new(ExternalAuth::compile(auth, find_backend))).collect();
        let listener = Rc::new(ListenerState {
            key: key.clone(),
            source: source.clone(),
            unmatched: self.unmatched.entry(key.gateway.clone()).or_default().clone(),
            auth,
            routes: self.routes.entry(key.clone()).or_default().clone(),
            tls: Default::default(),
            identity: Default::default(),
        });
        self.set_tls(&listener);
        // The new one first: a frontend that both have is never without a listener.
        for address in addresses(&listener) {
            self.frontends.entry(address).or_default().push(listener.clone());
        }
        self.datagrams.push(&listener);
        if let Some(old) = self.listeners.insert(key.clone(), listener) {
            self.remove_from_frontends(&old);
            self.release_backends(asked_by(&old.source));
        }
    }

    fn remove_listener(&mut self, key: &ListenerKey) {
        let Some(old) = self.listeners.remove(key) else { return };
        self.remove_from_frontends(&old);
        self.release_backends(asked_by(&old.source));
        if !self.listeners.keys().any(|other| other.gateway == key.gateway) {
            self.unmatched.remove(&key.gateway);
        }
        if old.routes.is_empty() {
            self.routes.remove(key);
        }
    }

    fn remove_from_frontends(&mut self, listener: &Rc<ListenerState>) {
        self.datagrams.remove(listener);
        for address in addresses(listener) {
            if let Some(frontend) = self.frontends.get_mut(&address) {
                frontend.remove(listener);
                if frontend.is_empty() {
                    self.frontends.remove(&address);
                }
            }
        }
    }

    fn put_rule(&mut self, key: &RuleKey, source: &Arc<Rule>, problems: &mut Vec<String>) {
        let old = self.rules.get(key);
        if let Some(old) = old.filter(|old| old.rule.source == *source) {
            // A full delta repeats everything: the weights of what is unchanged go on where they are.
            problems.extend_from_slice(&old.problems);
            return;
        }
        let stats = stats_by_gateway(&source.attachments, old.map(|old| old.stats.as_slice()).unwrap_or_default());
        for backend in rule::backends_of(source) {
            self.backend_entry(backend).references += 1;
        }
        let find_backend = &mut |key: &BackendKey| self.backends[key].state.clone();
        let (rule, matches) = CompiledRule::compile(key.clone(), source.clone(), find_backend, problems);
        let entry = RuleEntry { rule: Rc::new(rule), stats, problems: problems.clone() };
        self.remove(&Key::Rule(key.clone()));
        self.attach(&entry.rule, &matches, &entry.stats);
        self.rules.insert(key.clone(), entry);
    }

    fn attach(&mut self, rule: &Rc<CompiledRule>, matches: &[CompiledMatch], stats: &[(ObjectName, Rc<RuleStats>)]) {
        for attachment in &rule.source.attachments {
            let routes = self.routes.entry(attachment.listener.clone()).or_default();
            let mut hosts = routes.rules.borrow_mut();
            let gateway = &attachment.listener.gateway;
            let stats = find_stats(stats, gateway);
            for pattern in patterns(&attachment.hostnames) {
                let table = hosts.entry(pattern);
                for compiled in matches {
                    let candidate = Candidate {
                        rule: rule.clone(),
                        stats: stats.clone(),
                        match_index: compiled.index,
                        conditions: compiled.conditions.clone(),
                    };
                    let path = &rule.source.matches[usize::from(compiled.index)].path;
                    table.push(candidate, path, compiled.regex.as_ref());
                }
            }
            drop(hosts);
        }
    }

    fn detach(&mut self, rule: &Rc<CompiledRule>) {
        for attachment in &rule.source.attachments {
            let Some(routes) = self.routes.get(&attachment.listener) else { continue };
            let mut hosts = routes.rules.borrow_mut();
            for pattern in patterns(&attachment.hostnames) {
                hosts.change(pattern, |table| {
                    for (index, source) in (0..=u16::MAX).zip(&rule.source.matches) {
                        table.remove(rule, index, &source.path);
                    }
                    table.is_empty()
                });
            }
            drop(hosts);
            self.forget_routes(&attachment.listener);
        }
    }

    fn put_forward(&mut self, key: &RuleKey, source: &Arc<Forward>) {
        let old = self.forwards.get(key);
        if old.is_some_and(|old| old.forward.source == *source) {
            return;
        }
        let stats = stats_by_gateway(&source.attachments, old.map(|old| old.stats.as_slice()).unwrap_or_default());
        for backend in forward::backends_of(source) {
            self.backend_entry(backend).references += 1;
        }
        let find_backend = &mut |key: &BackendKey| self.backends[key].state.clone();
        let forward = Rc::new(CompiledForward::compile(key.clone(), source.clone(), find_backend));
        self.remove(&Key::Forward(key.clone()));
        for attachment in &source.attachments {
            let routes = self.routes.entry(attachment.listener.clone()).or_default();
            let mut hosts = routes.forwards.borrow_mut();
            let stats = find_stats(&stats, &attachment.listener.gateway);
            for pattern in patterns(&attachment.hostnames) {
                hosts.entry(pattern).push(FoundForward { forward: forward.clone(), stats: stats.clone() });
            }
        }
        self.forwards.insert(key.clone(), ForwardEntry { forward, stats });
    }

    fn detach_forward(&mut self, forward: &Rc<CompiledForward>) {
        for attachment in &forward.source.attachments {
            let Some(routes) = self.routes.get(&attachment.listener) else { continue };
            let mut hosts = routes.forwards.borrow_mut();
            for pattern in patterns(&attachment.hostnames) {
                hosts.change(pattern, |rivals| {
                    rivals.remove(forward);
                    rivals.is_empty()
                });
            }
            drop(hosts);
            self.forget_routes(&attachment.listener);
        }
    }

    /// Forgets what hangs on a listener when that is nothing, and there is no listener.
    fn forget_routes(&mut self, listener: &ListenerKey) {
        let is_unused = self.routes.get(listener).is_some_and(|routes| routes.is_empty());
        if is_unused && !self.listeners.contains_key(listener) {
            self.routes.remove(listener);
        }
    }

    fn release_backends<'a>(&mut self, keys: impl Iterator<Item = &'a BackendKey>) {
        for key in keys {
            self.change_backend(key, |entry| entry.references -= 1);
        }
    }

    fn backend_entry(&mut self, key: &BackendKey) -> &mut BackendEntry {
        self.backends.entry(key.clone()).or_insert_with(|| {
            let state = Rc::new(BackendState::new(key.clone()));
            state.begin_anywhere(&mut Prng::from_entropy());
            BackendEntry { state, references: 0, backend: None, problem: None, endpoints: None }
        })
    }

    /// Changes a backend that is there, and forgets it when nothing speaks of it any more.
    fn change_backend(&mut self, key: &BackendKey, change: impl FnOnce(&mut BackendEntry)) {
        let Some(entry) = self.backends.get_mut(key) else { return };
        change(entry);
        if entry.references == 0 && entry.backend.is_none() && entry.endpoints.is_none() {
            self.backends.remove(key);
        }
    }

    /// Makes new TLS settings for the listeners that serve with a certificate.
    fn rebuild_tls(&self, certificate: &CertificateKey) {
        for listener in self.listeners.values() {
            let serves = listener.source.tls.as_ref().is_some_and(|tls| tls.certificates.contains(certificate));
            let shows =
                matches!(&listener.source.backend_identity, BackendIdentity::Certificate(key) if key == certificate);
            if serves || shows {
                self.set_tls(listener);
            }
        }
    }

    fn set_tls(&self, listener: &ListenerState) {
        let keys = listener.source.tls.iter().flat_map(|tls| &tls.certificates);
        let usable: Vec<_> =
            keys.filter_map(|key| self.certificates.get(key)).map(|entry| entry.usable.clone()).collect();
        let clients = listener.source.tls.as_ref().and_then(|tls| tls.clients.as_ref());
        let bundles: Vec<_> = clients
            .iter()
            .flat_map(|clients| &clients.bundles)
            .filter_map(|key| self.bundles.get(key)?.usable.clone())
            .collect();
        let clients = clients.map(|clients| (clients.mode, bundles.as_slice()));
        let mut config = self.tls.server_config(&usable, clients);
        if listener.source.protocol == Protocol::Tls
            && let Some(config) = &mut config
        {
            // What is spoken inside is not known here, so nothing can be promised by ALPN.
            Arc::make_mut(config).alpn_protocols.clear();
        }
        *listener.tls.borrow_mut() = config;
        *listener.identity.borrow_mut() = match &listener.source.backend_identity {
            BackendIdentity::Anonymous => Identity::Anonymous,
            BackendIdentity::Missing => Identity::Missing,
            BackendIdentity::Certificate(key) => match self.certificates.get(key) {
                Some(entry) => Identity::Certificate(entry.identity.clone()),
                None => Identity::Missing,
            },
        };
    }
}

/// Backends of the servers that a listener asks.
fn asked_by(listener: &Listener) -> impl Iterator<Item = &BackendKey> {
    listener.auth.iter().filter_map(|auth| auth.backend.as_ref())
}

fn addresses(listener: &ListenerState) -> BTreeSet<(IpAddr, u16)> {
    let tcp = listener.source.frontends.iter().filter(|frontend| frontend.transport == Transport::Tcp);
    tcp.map(|frontend| (frontend.addr.to_canonical(), frontend.port)).collect()
}

/// Host name patterns of an attachment, each once; none stands for every host.
fn patterns(hostnames: &[tidegate_model::Hostname]) -> BTreeSet<Option<&tidegate_model::Hostname>> {
    if hostnames.is_empty() { [None].into() } else { hostnames.iter().map(Some).collect() }
}

/// Counters of a rule or forward by Gateway: those it has already, or new ones.
fn stats_by_gateway<T: Default>(attachments: &[Attachment], old: &[(ObjectName, Rc<T>)]) -> Vec<(ObjectName, Rc<T>)> {
    let mut stats: Vec<(ObjectName, Rc<T>)> = Vec::with_capacity(1);
    for attachment in attachments {
        let gateway = &attachment.listener.gateway;
        if !stats.iter().any(|(of, _)| of == gateway) {
            let known = old.iter().find(|(of, _)| of == gateway).map(|(_, stats)| stats.clone());
            stats.push((gateway.clone(), known.unwrap_or_default()));
        }
    }
    stats
}

fn find_stats<'a, T>(stats: &'a [(ObjectName, Rc<T>)], gateway: &ObjectName) -> &'a Rc<T> {
    let (_, stats) = stats.iter().find(|(of, _)| of == gateway).expect("made for each attachment's Gateway");
    stats
}
