//! Serves one plain frontend from one backend with a real worker, for measurements: `serve LISTEN BACKEND [CORE] [http2] [log]`.
//!
//! The listening socket and the model reach the worker over its control channel, as they do from an agent.

use std::{
    collections::BTreeMap,
    io::IoSlice,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
    sync::Arc,
};

use anyhow::Context;
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use tidegate_model::{
    Attachment, Backend, BackendKey, BackendProtocol, BackendTarget, Change, Delta, DomainName, Endpoint,
    EndpointState, Endpoints, FrontendKey, Generation, Listener, ListenerKey, Match, ObjectName, PathMatch, Protocol,
    Resource, Rule, RuleKey, RuleKind, Timeouts, Transport, WeightedBackend, codec,
    control::{Listening, Settings, SocketRole, ToWorker},
};
use tidegate_proxy::worker::{WorkerConfig, run_worker, sandbox::Sandbox};

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let args: Vec<String> = std::env::args().collect();
    let [listen, endpoint] = [1, 2].map(|at| args.get(at).context("usage: serve LISTEN BACKEND [CORE] [http2] [log]"));
    let (listen, endpoint): (SocketAddr, SocketAddr) = (listen?.parse()?, endpoint?.parse()?);
    let cores = args.get(3).map(|core| core.parse()).transpose()?.into_iter().collect();
    let protocol = if args.iter().any(|arg| arg == "http2") { BackendProtocol::Http2 } else { BackendProtocol::Http1 };

    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let socket = TcpListener::bind(listen)?;
    let frontend = FrontendKey { addr: listen.ip(), port: listen.port(), transport: Transport::Tcp };
    let role = Listening { shard: 0, role: SocketRole::Bound(frontend) };
    let delta = Delta { generation: Generation(1), is_full: true, changes: changes(frontend, endpoint, protocol) };
    let settings = Settings { labels: BTreeMap::new(), access_log: args.iter().any(|arg| arg == "log") };
    for (message, descriptors) in [
        (ToWorker::Configure(settings), vec![]),
        (ToWorker::Apply(delta), vec![]),
        (ToWorker::Listen { sockets: vec![role] }, vec![socket.as_raw_fd()]),
    ] {
        for packet in codec::encode(&message)? {
            let rights = [ControlMessage::ScmRights(&descriptors)];
            let control = if descriptors.is_empty() { &[] } else { &rights[..] };
            sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(&packet)], control, MsgFlags::empty(), None)?;
        }
    }
    let domain = DomainName::new("serve");
    let sandbox = if nix::unistd::geteuid().is_root() { Sandbox::Unprivileged } else { Sandbox::Strict };
    run_worker(WorkerConfig { domain, shards: 1, cores, control: theirs, sandbox })?;
    Ok(())
}

fn changes(frontend: FrontendKey, endpoint: SocketAddr, protocol: BackendProtocol) -> Vec<Change> {
    let name = ObjectName::new("serve", "serve");
    let backend = BackendKey::Backend { name: name.clone() };
    let listener = ListenerKey::of_gateway(name.clone(), "http");
    let rule = Rule {
        name: None,
        created: 0,
        attachments: vec![Attachment { listener: listener.clone(), hostnames: Vec::new() }],
        matches: vec![Match {
            path: PathMatch::Prefix("/".into()),
            method: None,
            headers: Vec::new(),
            query: Vec::new(),
        }],
        filters: Vec::new(),
        backends: vec![WeightedBackend {
            target: BackendTarget::Backend(backend.clone()),
            weight: 1,
            filters: Vec::new(),
        }],
        timeouts: Timeouts::default(),
        retry: None,
        session: None,
    };
    let served = Listener {
        frontends: vec![frontend],
        owns_addresses: true,
        protocol: Protocol::Http,
        hostname: None,
        tls: None,
        backend_identity: Default::default(),
        auth: Vec::new(),
    };
    let endpoints = Endpoints { endpoints: vec![Endpoint { addr: endpoint, state: EndpointState::Ready }] };
    [
        Resource::Backend(backend.clone(), Arc::new(Backend { protocol, tls: None })),
        Resource::Endpoints(backend, Arc::new(endpoints)),
        Resource::Listener(listener, Arc::new(served)),
        Resource::Rule(RuleKey { kind: RuleKind::HTTPRoute, route: name, index: 0 }, Arc::new(rule)),
    ]
    .map(Change::Put)
    .into()
}
