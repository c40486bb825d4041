//! UDPRoute: datagrams of clients to endpoints and back, with sessions, weights, admission and faults.

mod bounds;
mod faults;
mod routes;

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use tidegate_lab::{
    Agent, DatagramBackend, Lab,
    island::{Island, SILENCE},
    objects, wait_until,
};

use crate::world::{self, SOON, at};

/// Addresses of the Gateway with the UDP listener, in the pools of `public`.
const DNS: &str = "203.0.113.2";
const DNS6: &str = "2001:db8:113::2";

/// Port of the listener.
const PORT: u16 = 53;
/// Port of the endpoints: not the listener's, which says that it was translated.
const TARGET: u16 = 5353;

/// Two domains as everywhere, with a UDP listener in `public`.
struct Scene {
    lab: Lab,
}

impl Scene {
    /// A lab with the domains, the Gateway and these further fields of `public`; no route yet.
    fn build(public: &[&str]) -> Self {
        let lab = Lab::create().unwrap();
        let mut domains = world::domains();
        for field in public {
            let after = "labels: {traffic.domain: public}\n";
            domains = domains.replace(after, &format!("{after}  {field}\n"));
        }
        lab.write("domains.yaml", &domains).unwrap();
        lab.write("gateway.yaml", &gateway()).unwrap();
        lab.write("namespace.yaml", &objects::namespace("dns", "team: dns")).unwrap();
        Self { lab }
    }

    /// A lab with a route to one Service with these endpoints.
    fn with_endpoints(addresses: &[&str]) -> Self {
        let scene = Self::build(&[]);
        scene.lab.write("route.yaml", &route("zone", "2026-01-01T00:00:00Z", &[("zone", 1)])).unwrap();
        scene.lab.write("zone.yaml", &service("zone", addresses)).unwrap();
        scene
    }

    fn backend(&self, name: &str, address: &str) -> DatagramBackend {
        DatagramBackend::start(&self.lab.backends, name, at(address, TARGET)).unwrap()
    }

    /// A client on the internet.
    fn client(&self) -> Caller {
        Caller::new(&self.lab.internet, None, at(DNS, PORT))
    }
}

/// Gateway `gw/dns` with a UDP listener.
fn gateway() -> String {
    let listener = format!("{{name: dns, protocol: UDP, port: {PORT}, allowedRoutes: {{namespaces: {{from: All}}}}}}");
    objects::gateway("gw", "dns", "public", &[DNS, DNS6], &[&listener])
}

/// A UDPRoute in `dns` with Services and their weights.
fn route(name: &str, created: &str, backends: &[(&str, u32)]) -> String {
    let refs: Vec<String> = backends
        .iter()
        .map(|(service, weight)| format!("{{name: {service}, port: {PORT}, weight: {weight}}}"))
        .collect();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: UDPRoute\n\
         metadata: {{name: {name}, namespace: dns, creationTimestamp: \"{created}\"}}\nspec:\n  \
         parentRefs: [{{name: dns, namespace: gw}}]\n  rules: [{{backendRefs: [{}]}}]\n",
        refs.join(", ")
    )
}

/// A Service in `dns` with ready endpoints of one family.
fn service(name: &str, addresses: &[&str]) -> String {
    let family = if addresses.first().is_some_and(|address| address.contains(':')) { "IPv6" } else { "IPv4" };
    let endpoints: Vec<String> = addresses
        .iter()
        .map(|address| format!("{{addresses: [\"{address}\"], conditions: {{ready: true}}}}"))
        .collect();
    objects::join([
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: dns}}\n\
             spec: {{ports: [{{name: dns, port: {PORT}, targetPort: {TARGET}, protocol: UDP}}]}}\n"
        ),
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}-1, namespace: dns, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: {family}\nports: [{{name: dns, port: {TARGET}, protocol: UDP}}]\nendpoints: [{}]\n",
            endpoints.join(", ")
        ),
    ])
}

/// A client with a socket of its own, so that all it sends is one session.
struct Caller(UdpSocket);

impl Caller {
    /// A client on an island, at an address of it, that speaks to one frontend alone.
    fn new(island: &Island, source: Option<IpAddr>, to: SocketAddr) -> Self {
        let any: IpAddr = if to.is_ipv6() { [0u16; 8].into() } else { [0u8; 4].into() };
        let socket = island.call(|| {
            let socket = UdpSocket::bind((source.unwrap_or(any), 0))?;
            socket.connect(to)?;
            std::io::Result::Ok(socket)
        });
        Self(socket.unwrap())
    }

    fn send(&self, payload: &[u8]) {
        // An error is an ICMP message about an earlier datagram: this one has not left yet.
        if self.0.send(payload).is_err() {
            self.0.send(payload).unwrap();
        }
    }

    /// The next answer, if it comes in time.
    fn receive(&self, limit: Duration) -> Option<Vec<u8>> {
        let mut buffer = vec![0; 1 << 16];
        self.0.set_read_timeout(Some(limit)).unwrap();
        let length = self.0.recv(&mut buffer).ok()?;
        buffer.truncate(length);
        Some(buffer)
    }

    /// Asks once; the name of the endpoint that has answered.
    fn ask(&self, text: &str) -> Option<String> {
        self.send(text.as_bytes());
        self.receive(SILENCE).map(|answer| name_of(&answer, text))
    }

    /// Asks until somebody answers.
    fn ask_until_answered(&self, text: &str) -> String {
        wait_until("an answer", SOON, || self.ask(text)).unwrap()
    }
}

/// The endpoint's name in an answer to a text.
fn name_of(answer: &[u8], text: &str) -> String {
    let answer = String::from_utf8_lossy(answer);
    let (name, echoed) = answer.split_once(':').unwrap_or_else(|| panic!("{answer:?} has no name"));
    assert_eq!(echoed, text);
    name.to_owned()
}

/// A metric of the domain's worker.
fn metric(agent: &Agent<'_>, name: &str, labels: &[(&str, &str)]) -> f64 {
    agent.metric(name, &[labels, &[("domain", "public")]].concat()).unwrap()
}

/// Waits until a metric of the domain's worker has at least that value.
fn wait_metric(agent: &Agent<'_>, name: &str, labels: &[(&str, &str)], value: f64) {
    wait_until(&format!("{name} {labels:?} of {value}"), SOON, || (metric(agent, name, labels) >= value).then_some(()))
        .unwrap_or_else(|error| panic!("{error}; it is {}", metric(agent, name, labels)));
}

const DROPPED: &str = "tidegate_datagrams_dropped_total";
const SESSIONS: &str = "tidegate_forwards_total";
const SESSIONS_ACTIVE: &str = "tidegate_forwards_active";
const SESSIONS_ENDED: &str = "tidegate_datagram_sessions_ended_total";
const DATAGRAMS: &str = "tidegate_forward_datagrams_total";
