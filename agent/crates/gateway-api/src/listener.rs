//! Listeners of a Gateway or a ListenerSet: what each asks for, and whether this version serves it.

use std::{collections::BTreeSet, sync::Arc};

use tidegate_model::{ExternalAuth, Hostname, ObjectName, Protocol, TlsMode};

use crate::{
    client_validation::ClientValidationDraft,
    conflicts::Family,
    gateway_references::GatewayReferences,
    generated::common::{self, Listener, ListenerFilter, ListenerFilterType},
    httproute::read_external_auth,
    namespaces::AllowedNamespaces,
    object::GATEWAY_GROUP,
    references::Resolver,
    status::Problem,
};

/// Reason of a listener with a filter that makes no sense (GEP-5224). One that leads nowhere has reasons of its own, and one
/// of a type that is not served is an `UnsupportedValue`.
const INVALID_FILTER: &str = "InvalidListenerFilter";

/// Kinds of routes that a listener of a protocol takes.
fn kinds_of(protocol: Protocol) -> &'static [&'static str] {
    match protocol {
        Protocol::Http | Protocol::Https => &["HTTPRoute", "GRPCRoute"],
        Protocol::Tls => &["TLSRoute"],
        Protocol::Tcp => &["TCPRoute"],
        Protocol::Udp => &["UDPRoute"],
    }
}

/// A listener as it was read, before certificates and other Gateways are looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ListenerDraft {
    pub(crate) name: Arc<str>,
    /// Index in `spec.listeners`.
    pub(crate) index: usize,
    /// As written; a port that is none is 0 and a rejection.
    pub(crate) port: u16,
    /// `None` when the protocol or the host name says nothing that could be compared with other listeners.
    pub(crate) family: Option<Family>,
    /// `None` when the protocol is not served.
    pub(crate) protocol: Option<Protocol>,
    /// Where TLS ends; `None` without TLS.
    pub(crate) tls: Option<TlsMode>,
    pub(crate) hostname: Option<Hostname>,
    /// Why the listener is not accepted.
    pub(crate) rejection: Option<Problem>,
    /// A listener of the same Gateway that it cannot be told from.
    pub(crate) conflict: Option<Problem>,
    /// Whether an earlier listener of the same object has its name: it is then only a line in the status.
    pub(crate) is_duplicate: bool,
    pub(crate) kinds: Vec<&'static str>,
    pub(crate) kinds_problem: Option<Problem>,
    pub(crate) namespaces: AllowedNamespaces,
    /// Secrets with the certificates, or why a reference leads to none.
    pub(crate) certificates: Vec<Result<ObjectName, Problem>>,
    /// What is asked of clients.
    pub(crate) clients: Option<ClientValidationDraft>,
    /// Whom requests are shown to before a rule is looked for.
    pub(crate) auth: Vec<ExternalAuth>,
    /// Why one of them cannot be asked.
    pub(crate) auth_problem: Option<Problem>,
}

impl ListenerDraft {
    /// Whether the listener's own text lets it be served.
    pub(crate) fn is_valid(&self) -> bool {
        self.rejection.is_none() && self.conflict.is_none() && !self.is_duplicate
    }
}

/// Reads all listeners of an object. `references` says what their references lead to, by its grants.
pub(crate) fn read_listeners(
    listeners: &[Listener],
    references: &mut GatewayReferences<'_>,
    unenforced: &mut Vec<String>,
) -> Vec<ListenerDraft> {
    let mut names = BTreeSet::new();
    let drafts = listeners.iter().enumerate().map(|(index, listener)| {
        let mut draft = read_listener(index, listener, references, unenforced);
        if !names.insert(listener.name.as_str()) {
            draft.is_duplicate = true;
            draft.rejection = Some(Problem::new(
                "Invalid",
                format!(
                    "spec.listeners[{index}].name: {:?} is the name of an earlier listener: give each its own",
                    listener.name
                ),
            ));
        }
        draft
    });
    drafts.collect()
}

fn read_listener(
    index: usize,
    listener: &Listener,
    references: &mut GatewayReferences<'_>,
    unenforced: &mut Vec<String>,
) -> ListenerDraft {
    let field = format!("spec.listeners[{index}]");
    let mut rejection = None;
    let mut reject = |problem: Problem| {
        rejection.get_or_insert(problem);
    };
    let protocol = match listener.protocol.as_str() {
        "HTTP" => Some(Protocol::Http),
        "HTTPS" => Some(Protocol::Https),
        "TLS" => Some(Protocol::Tls),
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        other => {
            reject(Problem::new(
                "UnsupportedProtocol",
                format!("{field}.protocol: {other} is not served: use HTTP, HTTPS, TLS, TCP or UDP"),
            ));
            None
        }
    };
    let port = u16::try_from(listener.port).unwrap_or(0);
    if port == 0 {
        reject(Problem::new(
            "PortUnavailable",
            format!("{field}.port: {} is no port: write 1 to 65535", listener.port),
        ));
    }
    let mut family = Family::of(&listener.protocol);
    let hostname = match listener.hostname.as_deref().filter(|hostname| !hostname.is_empty()).map(str::parse) {
        None => None,
        Some(Ok(_)) if matches!(protocol, Some(Protocol::Tcp | Protocol::Udp)) => {
            unenforced.push(format!("{field}.hostname has no meaning with protocol {}", listener.protocol));
            None
        }
        Some(Ok(hostname)) => Some(hostname),
        Some(Err(error)) => {
            reject(Problem::new("UnsupportedValue", format!("{field}.hostname: {error}")));
            family = None;
            None
        }
    };
    let allowed = listener.allowed_routes.as_ref();
    let (namespaces, problem) = AllowedNamespaces::read(allowed.and_then(|allowed| allowed.namespaces.as_ref()));
    if let Some(problem) = problem {
        reject(Problem::new(problem.reason, format!("{field}.{}", problem.message)));
    }
    let tls = listener.tls.as_ref();
    let is_passthrough = tls.is_some_and(|tls| tls.mode == Some(common::TlsMode::Passthrough));
    if is_passthrough && protocol == Some(Protocol::Https) {
        reject(Problem::new(
            "UnsupportedValue",
            format!("{field}.tls.mode: Passthrough is not for HTTPS: use Terminate"),
        ));
    }
    let tls_mode = match protocol {
        Some(Protocol::Https) => Some(TlsMode::Terminate),
        Some(Protocol::Tls) => Some(if is_passthrough { TlsMode::Passthrough } else { TlsMode::Terminate }),
        _ => None,
    };
    if tls.is_some() && protocol.is_some() && tls_mode.is_none() {
        unenforced.push(format!("{field}.tls has no meaning with protocol {}", listener.protocol));
    }
    let named = tls.and_then(|tls| tls.certificate_refs.as_deref()).unwrap_or_default();
    if tls_mode == Some(TlsMode::Passthrough) && !named.is_empty() {
        unenforced.push(format!("{field}.tls.certificateRefs have no meaning with mode Passthrough"));
    }
    for option in tls.and_then(|tls| tls.options.as_ref()).into_iter().flatten() {
        unenforced.push(format!("{field}.tls.options[{}] is not known", option.0));
    }
    let filters = listener.filters.as_ref().and_then(|filters| filters.requests.as_deref()).unwrap_or_default();
    if !filters.is_empty() && !matches!(protocol, None | Some(Protocol::Http | Protocol::Https)) {
        reject(Problem::new(
            INVALID_FILTER,
            format!("{field}.filters: connections of protocol {} have no requests: remove it", listener.protocol),
        ));
    }
    let auth = read_filters(&format!("{field}.filters.requests"), filters, &mut references.backends);
    let auth = auth.map_err(&mut reject).unwrap_or_default();
    let auth_problem = Problem::join(&references.backends.take_problems()).map(|problem| {
        let reason = if problem.reason == "RefNotPermitted" { problem.reason } else { "InvalidListenerFilterRef" };
        Problem { reason, ..problem }
    });
    let (kinds, kinds_problem) = read_kinds(&field, protocol, listener);
    let certificates = match tls_mode {
        Some(TlsMode::Terminate) => named
            .iter()
            .enumerate()
            .map(|(at, reference)| {
                let field = format!("{field}.tls.certificateRefs[{at}]");
                references.find_secret(&field, reference, "InvalidCertificateRef")
            })
            .collect(),
        _ => Vec::new(),
    };
    ListenerDraft {
        name: Arc::from(listener.name.as_str()),
        index,
        port,
        family,
        protocol,
        tls: tls_mode,
        hostname,
        rejection,
        conflict: None,
        is_duplicate: false,
        kinds,
        kinds_problem,
        namespaces,
        certificates,
        clients: None,
        auth,
        auth_problem,
    }
}

/// Whom a listener asks about requests, in this order. The error is a filter that cannot be carried out: serving without it would
/// let through what it stops. A reference that leads nowhere is noted, and refuses every request.
fn read_filters(
    field: &str,
    filters: &[ListenerFilter],
    backends: &mut Resolver<'_>,
) -> Result<Vec<ExternalAuth>, Problem> {
    let invalid = |message| Problem::new(INVALID_FILTER, message);
    let read = filters.iter().enumerate().map(|(index, filter)| {
        let field = format!("{field}[{index}]");
        match (&filter.r#type, &filter.external_auth) {
            (ListenerFilterType::ExternalAuth, Some(auth)) => {
                read_external_auth(&format!("{field}.externalAuth"), auth, backends).map_err(invalid)
            }
            (ListenerFilterType::ExternalAuth, None) => {
                Err(invalid(format!("{field}.externalAuth is missing: write it, or remove the filter")))
            }
            (ListenerFilterType::ExtensionRef, _) => Err(Problem::new(
                "UnsupportedValue",
                format!(
                    "{field}.extensionRef: no filter of another kind is served, and serving without it would let through \
                     what it stops: use ExternalAuth, or remove it"
                ),
            )),
        }
    });
    read.collect()
}

/// Kinds that may attach: those of the protocol that `allowedRoutes.kinds` names, or all of them.
fn read_kinds(field: &str, protocol: Option<Protocol>, listener: &Listener) -> (Vec<&'static str>, Option<Problem>) {
    let possible = protocol.map(kinds_of).unwrap_or_default();
    let wanted = listener.allowed_routes.as_ref().and_then(|allowed| allowed.kinds.as_ref());
    let Some(wanted) = wanted.filter(|kinds| !kinds.is_empty()) else {
        return (possible.to_vec(), None);
    };
    let mut kinds = Vec::new();
    let mut problem = None;
    for (index, kind) in wanted.iter().enumerate() {
        let is_own_group = kind.group.as_deref().unwrap_or(GATEWAY_GROUP) == GATEWAY_GROUP;
        match possible.iter().find(|possible| is_own_group && **possible == kind.kind) {
            Some(kind) if !kinds.contains(kind) => kinds.push(*kind),
            Some(_) => {}
            None => {
                problem.get_or_insert(Problem::new(
                    "InvalidRouteKinds",
                    format!(
                        "{field}.allowedRoutes.kinds[{index}]: {} cannot attach to a listener of protocol {}: remove it",
                        kind.kind, listener.protocol
                    ),
                ));
            }
        }
    }
    (kinds, problem)
}
