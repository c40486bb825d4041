//! Small models: a listener, a rule, a backend.

use std::{net::SocketAddr, sync::Arc};

use tidegate_model::{
    Attachment, Backend, BackendKey, BackendProtocol, BackendTarget, BackendTls, Certificate, CertificateKey, Change,
    Endpoint, EndpointState, Endpoints, ExternalAuth, Filter, Forward, FrontendKey, HeaderMatch, Hostname, Listener,
    ListenerKey, ListenerTls, Match, ObjectName, PathMatch, Protocol, Resource, Retry, Rule, RuleKey, RuleKind,
    SessionPersistence, Timeouts, TlsMode, Transport, ValueMatch, WeightedBackend,
};

pub(crate) fn listener_key(name: &str) -> ListenerKey {
    ListenerKey::of_gateway(ObjectName::new("test", "gateway"), name)
}

pub(crate) fn backend_key(name: &str) -> BackendKey {
    BackendKey::Backend { name: ObjectName::new("test", name) }
}

/// A listener without TLS for every host.
pub(crate) fn http_listener(addr: SocketAddr) -> Change {
    listener("http", addr, None, None)
}

pub(crate) fn listener(name: &str, addr: SocketAddr, hostname: Option<&str>, certificate: Option<&str>) -> Change {
    let frontend = FrontendKey { addr: addr.ip(), port: addr.port(), transport: Transport::Tcp };
    let key = |name: &str| CertificateKey(ObjectName::new("test", name));
    let listener = Listener {
        frontends: vec![frontend],
        owns_addresses: true,
        protocol: if certificate.is_some() { Protocol::Https } else { Protocol::Http },
        hostname: hostname.map(|name| name.parse::<Hostname>().unwrap()),
        tls: certificate.map(|name| ListenerTls {
            mode: TlsMode::Terminate,
            certificates: vec![key(name)],
            clients: None,
        }),
        backend_identity: Default::default(),
        auth: Vec::new(),
    };
    Change::Put(Resource::Listener(listener_key(name), Arc::new(listener)))
}

/// A self-signed certificate and the change that brings it.
pub(crate) fn certificate(key: &str, name: &str) -> (Vec<u8>, Change) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let der = made.cert.der().to_vec();
    let certificate = Certificate {
        chain: vec![der.clone()],
        private_key: made.signing_key.serialize_der(),
        names: vec![name.to_owned()],
        not_after: i64::MAX,
    };
    let key = CertificateKey(ObjectName::new("test", key));
    (der, Change::Put(Resource::Certificate(key, Arc::new(certificate))))
}

pub(crate) fn backend(name: &str, protocol: BackendProtocol, endpoints: &[SocketAddr]) -> Vec<Change> {
    backend_with(name, protocol, None, endpoints)
}

pub(crate) fn backend_with(
    name: &str,
    protocol: BackendProtocol,
    tls: Option<BackendTls>,
    endpoints: &[SocketAddr],
) -> Vec<Change> {
    let endpoint = |&addr| Endpoint { addr, state: EndpointState::Ready };
    let endpoints = Endpoints { endpoints: endpoints.iter().map(endpoint).collect() };
    vec![
        Change::Put(Resource::Backend(backend_key(name), Arc::new(Backend { protocol, tls }))),
        Change::Put(Resource::Endpoints(backend_key(name), Arc::new(endpoints))),
    ]
}

/// The same with servers that it asks.
pub(crate) fn asking_listener(addr: SocketAddr, auth: Vec<ExternalAuth>) -> Change {
    let Change::Put(Resource::Listener(key, listener)) = http_listener(addr) else { unreachable!("it makes one") };
    Change::Put(Resource::Listener(key, Arc::new(Listener { auth, ..(*listener).clone() })))
}

/// A rule of a route of its own: a path prefix on listener `http` to one backend.
pub(crate) struct RuleSpec {
    pub(crate) name: &'static str,
    pub(crate) listener: &'static str,
    pub(crate) prefix: &'static str,
    pub(crate) backend: &'static str,
    pub(crate) filters: Vec<Filter>,
    /// Fields that a request must have.
    pub(crate) headers: &'static [(&'static str, &'static str)],
    pub(crate) timeouts: Timeouts,
    pub(crate) retry: Option<Retry>,
    pub(crate) session: Option<SessionPersistence>,
}

impl Default for RuleSpec {
    fn default() -> Self {
        Self {
            name: "rule",
            listener: "http",
            prefix: "/",
            backend: "backend",
            filters: Vec::new(),
            headers: &[],
            timeouts: Timeouts::default(),
            retry: None,
            session: None,
        }
    }
}

impl RuleSpec {
    pub(crate) fn into_change(self) -> Change {
        let key = RuleKey { kind: RuleKind::HTTPRoute, route: ObjectName::new("test", self.name), index: 0 };
        let rule = Rule {
            name: None,
            created: 0,
            attachments: vec![Attachment { listener: listener_key(self.listener), hostnames: Vec::new() }],
            matches: vec![Match {
                path: PathMatch::Prefix(self.prefix.into()),
                method: None,
                headers: self.headers.iter().map(|&(name, value)| header(name, value)).collect(),
                query: Vec::new(),
            }],
            filters: self.filters,
            backends: vec![WeightedBackend {
                target: BackendTarget::Backend(backend_key(self.backend)),
                weight: 1,
                filters: Vec::new(),
            }],
            timeouts: self.timeouts,
            retry: self.retry,
            session: self.session,
        };
        Change::Put(Resource::Rule(key, Arc::new(rule)))
    }
}

fn header(name: &str, value: &str) -> HeaderMatch {
    HeaderMatch { name: name.into(), value: ValueMatch::Exact(value.into()) }
}

/// A rule of a route of its own: a path prefix on listener `http` to several backends by weight.
pub(crate) fn weighted_rule(
    name: &str,
    prefix: &str,
    backends: &[(&str, u32)],
    session: Option<SessionPersistence>,
) -> Change {
    let backends = backends.iter().map(|&(name, weight)| WeightedBackend {
        target: BackendTarget::Backend(backend_key(name)),
        weight,
        filters: Vec::new(),
    });
    let rule = Rule {
        name: None,
        created: 0,
        attachments: vec![Attachment { listener: listener_key("http"), hostnames: Vec::new() }],
        matches: vec![Match {
            path: PathMatch::Prefix(prefix.into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        }],
        filters: Vec::new(),
        backends: backends.collect(),
        timeouts: Timeouts::default(),
        retry: None,
        session,
    };
    let key = RuleKey { kind: RuleKind::HTTPRoute, route: ObjectName::new("test", name), index: 0 };
    Change::Put(Resource::Rule(key, Arc::new(rule)))
}

/// A listener of protocol TCP, named `tcp`.
pub(crate) fn tcp_listener(addr: SocketAddr) -> Change {
    let frontend = FrontendKey { addr: addr.ip(), port: addr.port(), transport: Transport::Tcp };
    let listener = Listener {
        frontends: vec![frontend],
        owns_addresses: true,
        protocol: Protocol::Tcp,
        hostname: None,
        tls: None,
        backend_identity: Default::default(),
        auth: Vec::new(),
    };
    Change::Put(Resource::Listener(listener_key("tcp"), Arc::new(listener)))
}

/// A listener of protocol TLS.
pub(crate) fn tls_listener(
    name: &str,
    addr: SocketAddr,
    hostname: Option<&str>,
    mode: TlsMode,
    certificate: Option<&str>,
) -> Change {
    let frontend = FrontendKey { addr: addr.ip(), port: addr.port(), transport: Transport::Tcp };
    let certificates = certificate.map(|name| CertificateKey(ObjectName::new("test", name))).into_iter().collect();
    let listener = Listener {
        frontends: vec![frontend],
        owns_addresses: true,
        protocol: Protocol::Tls,
        hostname: hostname.map(|name| name.parse::<Hostname>().unwrap()),
        tls: Some(ListenerTls { mode, certificates, clients: None }),
        backend_identity: Default::default(),
        auth: Vec::new(),
    };
    Change::Put(Resource::Listener(listener_key(name), Arc::new(listener)))
}

pub(crate) fn forward_key(kind: RuleKind, name: &str) -> RuleKey {
    RuleKey { kind, route: ObjectName::new("test", name), index: 0 }
}

/// A forward of a route of its own.
pub(crate) struct ForwardSpec {
    pub(crate) kind: RuleKind,
    pub(crate) name: &'static str,
    pub(crate) listener: &'static str,
    pub(crate) hostnames: Vec<Hostname>,
    pub(crate) created: i64,
    pub(crate) targets: Vec<(BackendTarget, u32)>,
}

impl ForwardSpec {
    /// On listener `tcp`, to backends with weights.
    pub(crate) fn tcp(name: &'static str, backends: &[(&str, u32)]) -> Self {
        let target = |&(name, weight): &(&str, u32)| (BackendTarget::Backend(backend_key(name)), weight);
        Self {
            kind: RuleKind::TCPRoute,
            name,
            listener: "tcp",
            hostnames: Vec::new(),
            created: 0,
            targets: backends.iter().map(target).collect(),
        }
    }

    /// For server names on a listener of protocol TLS.
    pub(crate) fn tls(
        name: &'static str,
        listener: &'static str,
        hostnames: &[&str],
        backends: &[(&str, u32)],
    ) -> Self {
        let hostnames = hostnames.iter().map(|name| name.parse().unwrap()).collect();
        Self { kind: RuleKind::TLSRoute, listener, hostnames, ..Self::tcp(name, backends) }
    }

    pub(crate) fn into_change(self) -> Change {
        let weighted = |(target, weight)| WeightedBackend { target, weight, filters: Vec::new() };
        let forward = Forward {
            created: self.created,
            attachments: vec![Attachment { listener: listener_key(self.listener), hostnames: self.hostnames }],
            backends: self.targets.into_iter().map(weighted).collect(),
        };
        Change::Put(Resource::Forward(forward_key(self.kind, self.name), Arc::new(forward)))
    }
}
