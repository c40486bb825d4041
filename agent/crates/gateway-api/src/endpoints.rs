//! Backends and their endpoints, out of Services with EndpointSlices and out of `Backend` objects.
//!
//! A backend (how to speak to it) and its endpoints (where it is) are read apart: an endpoint that comes or goes leaves
//! the backend equal.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use k8s_openapi::api::{
    core::v1::{Service, ServicePort},
    discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice},
};
use tidegate_model::{
    BackendKey, BackendProtocol, Endpoint, EndpointState, Endpoints, Hostname, ObjectName, Transport,
};

use crate::{
    api,
    object::Kind,
    status::{Condition, Conditions, Problem, condition},
};

/// Label of an EndpointSlice that names its Service.
pub(crate) const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// How to speak to a backend that may be used, as far as its own object says.
pub(crate) type ReadBackend = Result<Speech, Problem>;

/// How to speak to a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Speech {
    /// `None`: whatever the routes speak.
    pub(crate) protocol: Option<BackendProtocol>,
    /// Whether it is TLS by its own account: clear text is then no way to speak to it.
    pub(crate) is_tls: bool,
}

/// Checks that a port of a Service can be a backend of requests.
pub(crate) fn read_service(
    name: &ObjectName,
    port: u16,
    transport: Transport,
    service: Option<&Service>,
) -> ReadBackend {
    let found = check_service(name, port, transport, service)?;
    found.app_protocol.as_deref().map_or(Ok(Speech::default()), |protocol| {
        read_app_protocol(protocol)
            .ok_or_else(|| unsupported_protocol(&format!("Service/{name} port {port}"), protocol))
    })
}

/// Checks that a port of a Service can be a backend of anything: what is spoken there does not matter.
pub(crate) fn check_service<'a>(
    name: &ObjectName,
    port: u16,
    transport: Transport,
    service: Option<&'a Service>,
) -> Result<&'a ServicePort, Problem> {
    let Some(service) = service else {
        return Err(Problem::new(
            "BackendNotFound",
            format!("Service/{name} does not exist: create it or change the reference"),
        ));
    };
    if service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
        return Err(Problem::new(
            "InvalidKind",
            format!("Service/{name} is of type ExternalName, which is not served: use a Backend with an fqdn endpoint"),
        ));
    }
    let Some(found) = find_port(service, port, transport) else {
        let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()).map(|port| port.port.to_string());
        let ports = ports.collect::<Vec<_>>().join(", ");
        return Err(Problem::new(
            "BackendNotFound",
            format!("Service/{name} has no port {port}: change it to one of those there: {ports}"),
        ));
    };
    if !is_transport(found.protocol.as_deref(), transport) {
        return Err(Problem::new(
            "UnsupportedProtocol",
            format!(
                "Service/{name} port {port} is {}: the route needs a {transport} port",
                found.protocol.as_deref().unwrap_or(TCP)
            ),
        ));
    }
    Ok(found)
}

fn unsupported_protocol(place: &str, protocol: &str) -> Problem {
    Problem::new(
        "UnsupportedProtocol",
        format!(
            "{place}: appProtocol {protocol:?} is not served: use http, https, kubernetes.io/h2c, kubernetes.io/ws, kubernetes.io/wss or none"
        ),
    )
}

/// `None` for a protocol that is not served. Names of the service-name registry have no case (RFC 6335 section 5.1).
fn read_app_protocol(protocol: &str) -> Option<Speech> {
    let (protocol, is_tls) = match protocol.to_ascii_lowercase().as_str() {
        "" | "tcp" => (None, false),
        "https" => (None, true),
        "http" | "kubernetes.io/ws" | "gateway.envoyproxy.io/ws" => (Some(BackendProtocol::Http1), false),
        "kubernetes.io/wss" => (Some(BackendProtocol::Http1), true),
        "kubernetes.io/h2c" | "gateway.envoyproxy.io/h2c" | "h2c" | "http2" | "grpc" => {
            (Some(BackendProtocol::Http2), false)
        }
        _ => return None,
    };
    Some(Speech { protocol, is_tls })
}

/// Protocol of a port that names none.
const TCP: &str = "TCP";

fn is_transport(protocol: Option<&str>, transport: Transport) -> bool {
    match transport {
        Transport::Tcp => matches!(protocol, None | Some(TCP)),
        Transport::Udp => protocol == Some("UDP"),
    }
}

/// The port of a Service, of the transport wanted if there is one.
pub(crate) fn find_port(service: &Service, port: u16, transport: Transport) -> Option<&ServicePort> {
    let ports = service.spec.as_ref()?.ports.as_ref()?;
    // A port number may occur for TCP and for UDP.
    let mut same = ports.iter().filter(|found| found.port == i32::from(port));
    let is_wanted = |found: &&ServicePort| is_transport(found.protocol.as_deref(), transport);
    same.clone().find(is_wanted).or_else(|| same.next())
}

/// Endpoints of a Service's port, out of all EndpointSlices of the Service.
pub(crate) fn read_slices<'a>(
    port: u16,
    transport: Transport,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> Endpoints {
    let mut found = Collected::default();
    let Some(name) = find_port(service, port, transport).map(|port| port.name.as_deref().unwrap_or_default()) else {
        return Endpoints::default();
    };
    for slice in slices.filter(|slice| slice.address_type != "FQDN") {
        let ports = slice.ports.iter().flatten();
        let mut numbers = ports
            .filter(|port| {
                port.name.as_deref().unwrap_or_default() == name && is_transport(port.protocol.as_deref(), transport)
            })
            .filter_map(|port| u16::try_from(port.port?).ok().filter(|&number| number > 0));
        let Some(number) = numbers.next() else { continue };
        for endpoint in &slice.endpoints {
            let Some(state) = read_state(endpoint) else { continue };
            // All addresses of an endpoint are one and the same, the first is enough (EndpointSlice API).
            if let Some(Ok(address)) = endpoint.addresses.first().map(|address| address.parse::<IpAddr>()) {
                found.push(address, number, state);
            }
        }
    }
    found.into_endpoints()
}

fn read_state(endpoint: &SliceEndpoint) -> Option<EndpointState> {
    let Some(conditions) = &endpoint.conditions else { return Some(EndpointState::Ready) };
    if conditions.ready != Some(false) {
        return Some(EndpointState::Ready);
    }
    (conditions.terminating == Some(true) && conditions.serving == Some(true)).then_some(EndpointState::Terminating)
}

/// What is said about an EndpointSlice: only that one of names is not served.
pub(crate) fn judge_slice(slice: &EndpointSlice) -> Vec<Condition> {
    let mut conditions = Conditions::new(slice.metadata.generation);
    if slice.address_type == "FQDN" {
        conditions.push(
            condition::ACCEPTED,
            false,
            "UnsupportedValue",
            "addressType: FQDN is not served, its endpoints are left out: use a Backend with fqdn endpoints",
        );
    }
    conditions.into_list()
}

/// Checks that a `Backend` object can be a backend of requests.
pub(crate) fn read_backend(name: &ObjectName, backend: Option<&api::Backend>) -> ReadBackend {
    let protocols = check_backend(name, backend)?.spec.app_protocols.as_deref().unwrap_or_default();
    let Some(first) = protocols.first() else { return Ok(Speech::default()) };
    protocols
        .iter()
        .find_map(|protocol| read_app_protocol(protocol))
        .ok_or_else(|| unsupported_protocol(&format!("Backend/{name}"), first))
}

/// Checks that a `Backend` object can be a backend of anything.
pub(crate) fn check_backend<'a>(
    name: &ObjectName,
    backend: Option<&'a api::Backend>,
) -> Result<&'a api::Backend, Problem> {
    let Some(backend) = backend else {
        return Err(Problem::new(
            "BackendNotFound",
            format!("Backend/{name} does not exist: create it or change the reference"),
        ));
    };
    let spec = &backend.spec;
    if let Some(type_) = spec.type_.as_deref().filter(|type_| *type_ != "Endpoints") {
        return Err(Problem::new(
            "UnsupportedProtocol",
            format!("Backend/{name}: spec.type {type_} is not served: use Endpoints"),
        ));
    }
    if spec.tls.is_some() {
        return Err(Problem::new(
            "UnsupportedProtocol",
            format!(
                "Backend/{name}: spec.tls is not served yet, and what it protects is not sent in clear: remove it to send clear text"
            ),
        ));
    }
    Ok(backend)
}

/// Endpoints of a `Backend`; names are looked up among those that the agent has resolved.
pub(crate) fn read_backend_endpoints(backend: &api::Backend, resolved: &BTreeMap<String, Vec<IpAddr>>) -> Endpoints {
    let mut found = Collected::default();
    for endpoint in &backend.spec.endpoints {
        if let Some(ip) = &endpoint.ip
            && let Ok(address) = ip.address.parse()
        {
            found.push(address, ip.port, EndpointState::Ready);
        } else if let Some(fqdn) = &endpoint.fqdn {
            for address in resolved.get(&normalize(&fqdn.hostname)).into_iter().flatten() {
                found.push(*address, fqdn.port, EndpointState::Ready);
            }
        }
    }
    found.into_endpoints()
}

/// Names of a `Backend` that must be resolved.
pub(crate) fn hostnames(backend: &api::Backend) -> impl Iterator<Item = String> {
    let named = backend.spec.endpoints.iter().filter_map(|endpoint| Some(&endpoint.fqdn.as_ref()?.hostname));
    named.filter(|name| is_lookup_name(name)).map(|name| normalize(name))
}

/// Lower case and without the trailing dot, so that one name is asked for once.
pub(crate) fn normalize(hostname: &str) -> String {
    hostname.strip_suffix('.').unwrap_or(hostname).to_ascii_lowercase()
}

/// What is said about a `Backend`.
pub(crate) fn judge_backend(name: &ObjectName, backend: &api::Backend) -> Vec<Condition> {
    let mut conditions = Conditions::new(backend.metadata.generation);
    let mut faults = Vec::new();
    let mut unenforced = Vec::new();
    if backend.spec.endpoints.is_empty() {
        faults.push("spec.endpoints is empty, so every request is refused: write at least one".to_owned());
    }
    for (index, endpoint) in backend.spec.endpoints.iter().enumerate() {
        let field = format!("spec.endpoints[{index}]");
        let fault = match (&endpoint.ip, &endpoint.fqdn) {
            (Some(_), Some(_)) => Some(format!("{field} has both ip and fqdn, fqdn is left out: write two endpoints")),
            (None, None) => Some(format!("{field} has neither ip nor fqdn, it is left out: write one of them")),
            (Some(ip), None) => {
                let is_good = ip.address.parse::<IpAddr>().is_ok();
                find_fault(&format!("{field}.ip"), ("address", &ip.address, "an IP address"), is_good, ip.port)
            }
            (None, Some(fqdn)) => {
                let place = ("hostname", fqdn.hostname.as_str(), "the name of a host");
                find_fault(&format!("{field}.fqdn"), place, is_lookup_name(&fqdn.hostname), fqdn.port)
            }
        };
        faults.extend(fault);
        if endpoint.zone.is_some() {
            unenforced.push(format!("{field}.zone is not enforced yet"));
        }
    }
    if backend.spec.fallback.is_some() {
        unenforced.push("spec.fallback is not enforced yet".to_owned());
    }
    let verdict = read_backend(name, Some(backend));
    conditions
        .judge(condition::ACCEPTED, "Accepted", verdict.as_ref().err())
        .partially_invalid(&faults)
        .enforced(&unenforced);
    conditions.into_list()
}

/// What keeps an endpoint of a `Backend` out. `place` is its field and text and what the text should be.
fn find_fault(field: &str, place: (&str, &str, &str), is_good: bool, port: u16) -> Option<String> {
    let (name, text, wanted) = place;
    if !is_good {
        return Some(format!("{field}.{name}: {text:?} is not {wanted}, the endpoint is left out: write one"));
    }
    (port == 0).then(|| format!("{field}.port: 0 is no port, the endpoint is left out: write 1 to 65535"))
}

/// Whether text may be looked up. Names inside a network may hold `_`, which those of Gateway API do not.
fn is_lookup_name(text: &str) -> bool {
    text.parse::<IpAddr>().is_ok() || matches!(text.replace('_', "-").parse(), Ok(Hostname::Exact(_)))
}

/// Endpoints in their order, each once; of two states of one endpoint `Ready` counts.
#[derive(Default)]
struct Collected {
    order: Vec<Endpoint>,
    places: BTreeMap<SocketAddr, usize>,
}

impl Collected {
    fn push(&mut self, address: IpAddr, port: u16, state: EndpointState) {
        if port == 0 {
            return;
        }
        let addr = SocketAddr::new(address.to_canonical(), port);
        match self.places.get(&addr) {
            Some(&place) => self.order[place].state = self.order[place].state.min(state),
            None => {
                self.places.insert(addr, self.order.len());
                self.order.push(Endpoint { addr, state });
            }
        }
    }

    fn into_endpoints(self) -> Endpoints {
        Endpoints { endpoints: self.order }
    }
}

/// The object that a backend's key names, as people write it.
pub(crate) fn object_of(key: &BackendKey) -> (Kind, &ObjectName) {
    let kind = match key {
        BackendKey::Service { .. } | BackendKey::GrpcService { .. } | BackendKey::UdpService { .. } => Kind::Service,
        BackendKey::Backend { .. } | BackendKey::GrpcBackend { .. } => Kind::Backend,
    };
    (kind, key.name())
}
