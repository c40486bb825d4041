//! The world of most tests: two domains over IPv4 and IPv6 with a Gateway each, a shop in `public`, a console in `private`.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tidegate_lab::{
    Agent, Authority, Backend, Failure, Lab, Load, LoadReport, Reply, Request, Target,
    certificate::Leaf,
    client,
    island::{Island, SILENCE},
    lab::{PRIVATE_POOL, PRIVATE_POOL6, PUBLIC_POOL, PUBLIC_POOL6},
    objects::{self, EndpointState},
    wait_until,
};

/// Longest wait for a change to be served: far above what it takes.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Addresses of the Gateways.
pub(crate) const PUBLIC: &str = "203.0.113.1";
pub(crate) const PUBLIC6: &str = "2001:db8:113::1";
pub(crate) const PRIVATE: &str = "10.20.1.1";
pub(crate) const PRIVATE6: &str = "fd00:20:1::1";

/// Host name of the shop.
pub(crate) const SHOP: &str = "shop.example.com";
/// Host name of the console.
pub(crate) const CONSOLE: &str = "console.internal";

/// What a world consists of beside the lab.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) leaf: Leaf,
    pub(crate) shop: [Backend; 2],
    pub(crate) console: Backend,
}

impl World {
    /// Writes the objects and starts the backends.
    pub(crate) fn build(lab: &Lab) -> Self {
        let authority = Authority::create().unwrap();
        let leaf = authority.issue(&["*.example.com"]).unwrap();
        lab.write("domains.yaml", &domains()).unwrap();
        lab.write("gateways.yaml", &gateways()).unwrap();
        lab.write("secret.yaml", &leaf.to_secret("gw", "example-com")).unwrap();
        lab.write("shop.yaml", &shop()).unwrap();
        lab.write("shop-endpoints.yaml", &shop_endpoints(EndpointState::Ready, EndpointState::Ready)).unwrap();
        lab.write("console.yaml", &console()).unwrap();
        Self {
            authority,
            leaf,
            shop: [backend(lab, "shop-a", "10.30.0.11:8080"), backend(lab, "shop-b", "10.30.0.12:8080")],
            console: backend(lab, "console", "10.30.0.31:8080"),
        }
    }

    /// The shop over HTTPS.
    pub(crate) fn https(&self) -> Target {
        Target::https(at(PUBLIC, 443), SHOP, &self.authority)
    }
}

/// `public` at wan0 with a deny list, `private` at lan0 with an allow list.
pub(crate) fn domains() -> String {
    objects::join([
        objects::domain(
            "public",
            "wan0",
            &[PUBLIC_POOL, PUBLIC_POOL6],
            &["sources: {deny: [192.0.2.0/24, \"2001:db8:bad::/48\"]}"],
        ),
        objects::domain(
            "private",
            "lan0",
            &[PRIVATE_POOL, PRIVATE_POOL6],
            &["sources: {allow: [10.20.0.0/16, \"fd00:20::/32\"]}"],
        ),
        objects::class("public"),
        objects::class("private"),
    ])
}

/// Gateway `gw/public` (80, 443) and Gateway `gw/private` (80).
pub(crate) fn gateways() -> String {
    let https = objects::https_listener("https", 443, "*.example.com", "example-com");
    objects::join([
        objects::gateway("gw", "public", "public", &[PUBLIC, PUBLIC6], &[&objects::http_listener("http", 80), &https]),
        objects::gateway("gw", "private", "private", &[PRIVATE, PRIVATE6], &[&objects::http_listener("http", 80)]),
    ])
}

fn shop() -> String {
    objects::join([
        objects::namespace("shop", "team: shop"),
        objects::route("shop", "shop", "gw/public", &[SHOP], &[&objects::to_service("shop")]),
        objects::service("shop", "shop"),
    ])
}

/// The two endpoints of the shop in the states given.
pub(crate) fn shop_endpoints(first: EndpointState, second: EndpointState) -> String {
    objects::slice("shop", "shop", &[("10.30.0.11", first), ("10.30.0.12", second)])
}

fn console() -> String {
    objects::join([
        objects::namespace("ops", "team: ops"),
        objects::route("ops", "console", "gw/private", &[], &[&objects::to_service("console")]),
        objects::service_at("ops", "console", &["10.30.0.31"]),
    ])
}

/// A backend of the lab.
pub(crate) fn backend(lab: &Lab, name: &str, addr: &str) -> Backend {
    Backend::start(&lab.backends, name, addr.parse().unwrap()).unwrap()
}

/// A socket address from text.
pub(crate) fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)
}

/// The shop over plain HTTP.
pub(crate) fn public() -> Target {
    Target::http(at(PUBLIC, 80))
}

/// The console.
pub(crate) fn private() -> Target {
    Target::http(at(PRIVATE, 80))
}

/// Sends one request on a connection of its own.
pub(crate) fn send(from: &Island, target: &Target, request: Request) -> Result<Reply, Failure> {
    let target = target.clone();
    from.run(async move { client::send(&target, request).await })
}

/// Sends a GET.
pub(crate) fn get(from: &Island, target: &Target, host: &str, path: &str) -> Result<Reply, Failure> {
    send(from, target, Request::get(host, path))
}

/// Outcome of a connection attempt that is expected to be left without an answer.
pub(crate) fn knock(from: &Island, target: &Target) -> Result<(), Failure> {
    let target = target.clone().within(SILENCE);
    from.run(async move { target.connect_tcp().await.map(drop) })
}

/// Waits until a GET is answered with this status.
pub(crate) fn wait_status(from: &Island, target: &Target, host: &str, path: &str, status: u16) -> Reply {
    let mut last = None;
    wait_until(&format!("status {status} for {host}{path}"), SOON, || {
        let outcome = get(from, target, host, path);
        let found = outcome.as_ref().ok().filter(|reply| reply.status == status).cloned();
        last = Some(outcome);
        found
    })
    .unwrap_or_else(|error| panic!("{error}; last: {last:?}"))
}

/// Waits until a counter of the kernel tier has grown to more than `before`.
pub(crate) fn wait_verdicts(agent: &Agent<'_>, domain: &str, reason: &str, before: f64) -> f64 {
    wait_until(&format!("verdicts {reason} of {domain} above {before}"), SOON, || {
        agent.verdicts(domain, reason).ok().filter(|count| *count > before)
    })
    .unwrap()
}

/// What a load sees over this many answers.
pub(crate) fn window(load: &mut Load, answers: u64) -> LoadReport {
    load.take();
    let mut window = LoadReport::default();
    wait_until("answers", Duration::from_secs(20), || {
        window.merge(&load.take());
        (window.requests() >= answers).then_some(())
    })
    .unwrap();
    window
}
