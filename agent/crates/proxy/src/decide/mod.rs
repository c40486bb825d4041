//! The decision on a request: made once, from its head, before a byte goes upstream.
//!
//! The steps stand in the order that the project documents: listener, whom the listener asks, rule, CORS, then (by later policies) authentication
//! and the like, redirect or rewrite and mirror, then the balance between backends. The endpoint is picked when the attempt
//! is made, so that a retry takes another. Nothing here does I/O, waits, or knows a codec.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use smallvec::SmallVec;
use tidegate_model::Timeouts;

use crate::{
    balance::{BackendState, EndpointState, Prng},
    certificates::ClientIdentity,
    external_auth::Auths,
    filters::{
        Filters,
        cors::{Cors, Fields, Grant},
        redirect::{Asked, Redirect},
    },
    http::head::{RequestHead, ResponseHead},
    session,
    stats::RuleStats,
    tables::{CompiledRule, Frontend, Identity, ListenerState, NormalPath, Tables, Target, normal_path},
};

/// What of a connection a decision depends on.
#[derive(Clone, Debug)]
pub struct ConnectionFacts {
    /// Address and port that the client connected to.
    pub local: SocketAddr,
    /// Address and port of the client.
    pub peer: SocketAddr,
    /// Whether it is TLS.
    pub is_tls: bool,
    /// Name that the client sent in its TLS handshake: lower case, without a trailing dot.
    pub sni: Option<Arc<str>>,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Decision {
    /// It goes to a backend.
    Forward(Plan),
    /// It is answered here.
    Respond(LocalResponse),
}

/// An answer that no backend gives.
#[derive(Debug)]
pub struct LocalResponse {
    /// Status.
    pub status: u16,
    /// Fields beside those that frame the message.
    pub headers: Fields,
    /// Why, as in the counters and the access log.
    pub reason: &'static str,
    /// What exactly, when the reason alone does not say it.
    pub detail: Option<Arc<str>>,
    /// Listener that took the request.
    pub listener: Option<Rc<ListenerState>>,
    /// Rule that took the request.
    pub rule: Option<Rc<CompiledRule>>,
    /// Where the request is counted when it has ended.
    pub stats: Rc<RuleStats>,
    /// Who must allow the request before it gets this answer.
    pub auth: Auths,
}

/// How a request is forwarded.
#[derive(Debug)]
pub struct Plan {
    /// Listener that took the request.
    pub listener: Rc<ListenerState>,
    /// Rule that took the request.
    pub rule: Rc<CompiledRule>,
    /// Backend that gets it.
    pub backend: Rc<BackendState>,
    /// Certificate to show to backends that ask for one.
    pub identity: Option<Rc<ClientIdentity>>,
    /// Backends that get a copy.
    pub mirrors: SmallVec<[Rc<BackendState>; 1]>,
    /// Where the request is counted when it has ended.
    pub stats: Rc<RuleStats>,
    /// Who must allow the request before it goes on, in this order.
    pub auth: Auths,
    backend_index: usize,
    /// Path to send, where it is not the one received: the rule's own, then with the backendRef's rewrite.
    rule_path: Option<Box<str>>,
    backend_path: Option<Box<str>>,
    grant: Grant,
    /// The endpoint that the client's session is at.
    preferred: Option<Rc<EndpointState>>,
}

impl Decision {
    /// Who must allow the request first.
    pub fn auth(&self) -> &Auths {
        match self {
            Self::Forward(plan) => &plan.auth,
            Self::Respond(local) => &local.auth,
        }
    }

    /// Fields for an answer that stands in place of this one.
    pub fn local_fields(&self) -> Fields {
        match self {
            Self::Forward(plan) => plan.local_fields(),
            Self::Respond(local) => local.headers.iter().filter(|(name, _)| *name != "location").cloned().collect(),
        }
    }
}

impl Plan {
    /// Time limits of the request.
    pub fn timeouts(&self) -> Timeouts {
        self.rule.timeouts()
    }

    /// Applies the filters of rule and backendRef to what is sent to the backend. Once for a request, not for each attempt.
    pub fn edit_request(&self, head: &mut RequestHead) {
        let backend = self.backend_filters();
        self.rule.filters.request.apply_request(head);
        backend.request.apply_request(head);
        if let Some(path) = self.backend_path.as_ref().or(self.rule_path.as_ref()) {
            head.set_path(path);
        }
        if let Some(host) = backend.rewrite.host.as_ref().or(self.rule.filters.rewrite.host.as_ref()) {
            head.set_host(host);
        }
    }

    /// Applies the rule's filters to what is sent to a mirror, which a backendRef's filters are not for.
    pub fn edit_mirrored(&self, head: &mut RequestHead) {
        self.rule.filters.request.apply_request(head);
        if let Some(path) = &self.rule_path {
            head.set_path(path);
        }
        if let Some(host) = &self.rule.filters.rewrite.host {
            head.set_host(host);
        }
    }

    /// Applies the filters of backendRef and rule to the backend's response.
    pub fn edit_response(&self, head: &mut ResponseHead) {
        self.backend_filters().response.apply(&mut head.headers);
        self.rule.filters.response.apply(&mut head.headers);
        if let Some(cors) = self.cors() {
            cors.edit_response(&self.grant, &mut head.headers);
        }
    }

    /// The endpoint that the client's session is at.
    pub fn preferred(&self) -> Option<&Rc<EndpointState>> {
        self.preferred.as_ref()
    }

    /// Begins a session with a response from `endpoint`, where the rule wants sessions and the client has none there.
    pub fn begin_session(&self, endpoint: Option<SocketAddr>, is_tls: bool, response: &mut ResponseHead) {
        let (Some(session), Some(endpoint)) = (&self.rule.session, endpoint) else { return };
        if self.preferred.as_ref().is_none_or(|preferred| preferred.addr != endpoint) {
            session.begin(&self.backend.key, endpoint, is_tls, session::now(), response);
        }
    }

    /// Fields for an answer that the proxy itself gives in place of the backend.
    pub fn local_fields(&self) -> Fields {
        self.cors().map(|cors| cors.local_fields(&self.grant)).unwrap_or_default()
    }

    fn backend_filters(&self) -> &Filters {
        &self.rule.backends[self.backend_index].filters
    }

    fn cors(&self) -> Option<&Cors> {
        self.backend_filters().cors.as_deref().or(self.rule.filters.cors.as_deref())
    }
}

/// Decides on a request that came to a listener, or to none ([`find_listener`]). An answer of its own is counted by reason here;
/// the request itself is counted by the caller, in `stats` of the outcome, when it has ended.
pub fn decide(
    tables: &Tables,
    listener: Result<Rc<ListenerState>, LocalResponse>,
    connection: &ConnectionFacts,
    head: &RequestHead,
    random: &mut Prng,
) -> Decision {
    let decision = listener.and_then(|listener| {
        let path = normal_path(head.path());
        let found = listener.find_rule(&path.text, head, |found| Matched {
            rule: found.candidate.rule.clone(),
            stats: found.candidate.stats.clone(),
            prefix_len: found.prefix_len,
        });
        match found {
            Some(matched) => follow_rule(listener, matched, connection, head, &path, random),
            None => {
                let stats = listener.unmatched.clone();
                Err(LocalResponse { listener: Some(listener), ..LocalResponse::new(404, "no_route", stats) })
            }
        }
    });
    match decision {
        Ok(plan) => Decision::Forward(plan),
        Err(response) => {
            tables.stats.local_responses.increment(response.reason);
            Decision::Respond(response)
        }
    }
}

impl LocalResponse {
    fn new(status: u16, reason: &'static str, stats: Rc<RuleStats>) -> Self {
        let (headers, auth) = (Fields::new(), Auths::new());
        Self { status, headers, reason, detail: None, listener: None, rule: None, stats, auth }
    }
}

/// What is kept of a match when the tables are let go.
struct Matched {
    rule: Rc<CompiledRule>,
    stats: Rc<RuleStats>,
    prefix_len: Option<usize>,
}

/// The listener that a request came to: by its connection and its host, which nothing changes after.
///
/// # Errors
/// There is none, or it is another's connection: the answer.
pub fn find_listener(
    tables: &Tables,
    connection: &ConnectionFacts,
    head: &RequestHead,
) -> Result<Rc<ListenerState>, LocalResponse> {
    let refuse = |status, reason| LocalResponse::new(status, reason, tables.stats.unrouted.clone());
    let frontend = tables.find_frontend(connection.local).ok_or_else(|| refuse(404, "no_listener"))?;
    let listener = frontend.find_listener(connection.is_tls, head.host()).ok_or_else(|| refuse(404, "no_listener"))?;
    if connection.is_tls && is_misdirected(frontend, listener, connection, head) {
        return Err(refuse(421, "misdirected"));
    }
    Ok(listener.clone())
}

/// Whether the connection was made for another listener than the one that the request is for: browsers send requests for
/// other names over a connection whose certificate fits (RFC 9113 section 9.1.1), past what that listener may ask of
/// clients in its handshake.
fn is_misdirected(
    frontend: &Frontend,
    listener: &Rc<ListenerState>,
    connection: &ConnectionFacts,
    head: &RequestHead,
) -> bool {
    let made_for = match connection.sni.as_deref() {
        Some(name) if name == head.host() => return false,
        Some(name) => frontend.find_listener(true, name),
        None => frontend.find_listener_without_name(),
    };
    made_for.is_none_or(|made_for| !Rc::ptr_eq(made_for, listener))
}

fn follow_rule(
    listener: Rc<ListenerState>,
    matched: Matched,
    connection: &ConnectionFacts,
    head: &RequestHead,
    path: &NormalPath<'_>,
    random: &mut Prng,
) -> Result<Plan, LocalResponse> {
    let Matched { rule, stats, prefix_len } = matched;
    let respond = |status, reason, detail: Option<Arc<str>>, headers| LocalResponse {
        headers,
        detail,
        listener: Some(listener.clone()),
        rule: Some(rule.clone()),
        ..LocalResponse::new(status, reason, stats.clone())
    };
    let redirect = |redirect: &Redirect, mut headers: Fields| {
        let local_ip;
        let host = match head.host() {
            // HTTP/1.0 without Host: the address is the only name known.
            "" => {
                local_ip = connection.local.ip().to_canonical().to_string();
                &local_ip
            }
            host => host,
        };
        let asked = Asked {
            is_tls: connection.is_tls,
            listener_port: connection.local.port(),
            host,
            path: &path.text,
            prefix_len,
            query: head.query(),
        };
        headers.push(("location", redirect.location(asked)));
        respond(redirect.status, "redirect", None, headers)
    };

    let filters = &rule.filters;
    if let Some(problem) = &filters.broken {
        return Err(respond(500, "invalid_filter", Some((**problem).into()), Fields::new()));
    }
    let is_preflight = Cors::is_preflight(head);
    let answer_preflight = |cors: &Cors| match cors.answer_preflight(head) {
        Some(headers) => respond(200, "cors_preflight", None, headers),
        None => respond(403, "cors_origin_denied", None, Fields::new()),
    };
    if let Some(cors) = filters.cors.as_ref().filter(|_| is_preflight) {
        return Err(answer_preflight(cors));
    }
    // Whatever follows is for those only whom the servers of rule and backendRef allow.
    let mut auth: Auths = filters.external_auth.clone().into_iter().collect();
    let respond_allowed = |auth: &Auths, status, reason, detail, headers| LocalResponse {
        auth: auth.clone(),
        ..respond(status, reason, detail, headers)
    };
    let grant_of = |cors: &Option<Box<Cors>>| cors.as_ref().map(|cors| cors.grant(head));
    let mut grant = grant_of(&filters.cors).unwrap_or(Grant::Nothing);
    let local_fields = || filters.cors.as_ref().map(|cors| cors.local_fields(&grant)).unwrap_or_default();
    if let Some(to) = &filters.redirect {
        return Err(LocalResponse { auth, ..redirect(to, local_fields()) });
    }

    let session = rule.session.as_ref().and_then(|session| session.find(head, &rule.backends, session::now()));
    let (chosen, preferred) = match session {
        Some(found) => (Some(found.backend), Some(found.endpoint)),
        None => (rule.choose_backend(), None),
    };
    let Some(backend_index) = chosen else {
        return Err(respond_allowed(&auth, 500, "no_backend", None, local_fields()));
    };
    let chosen = &rule.backends[backend_index];
    let backend = match &chosen.target {
        Target::Backend(backend) => backend.clone(),
        Target::Invalid(why) => {
            return Err(respond_allowed(&auth, 500, "invalid_backend", Some(why.clone()), local_fields()));
        }
    };
    if let Some(problem) = &chosen.filters.broken {
        return Err(respond_allowed(&auth, 500, "invalid_filter", Some((**problem).into()), local_fields()));
    }
    if let Some(cors) = chosen.filters.cors.as_ref().filter(|_| is_preflight) {
        return Err(answer_preflight(cors));
    }
    auth.extend(chosen.filters.external_auth.clone());
    if let Some(to) = &chosen.filters.redirect {
        return Err(LocalResponse { auth, ..redirect(to, local_fields()) });
    }
    if !backend.is_usable() {
        return Err(respond_allowed(&auth, 500, "invalid_backend_tls", None, local_fields()));
    }
    let identity = match listener.identity() {
        Identity::Anonymous => None,
        Identity::Certificate(identity) => Some(identity),
        Identity::Missing if backend.has_tls() => {
            return Err(respond_allowed(&auth, 500, "no_client_certificate", None, local_fields()));
        }
        Identity::Missing => None,
    };
    if !backend.has_endpoints() {
        return Err(respond_allowed(&auth, 503, "no_endpoints", None, local_fields()));
    }
    if let Some(own) = grant_of(&chosen.filters.cors) {
        grant = own;
    }
    let mut mirrors = SmallVec::new();
    filters.choose_mirrors(random, &mut mirrors);
    chosen.filters.choose_mirrors(random, &mut mirrors);
    if matches!(listener.identity(), Identity::Missing) {
        mirrors.retain(|mirror: &mut Rc<BackendState>| !mirror.has_tls());
    }
    let rewrite =
        |filters: &Filters| filters.rewrite.path.as_ref().map(|edit| edit.apply(&path.text, prefix_len).into());
    let resolved = || path.had_dot_segments.then(|| (&*path.text).into());
    let (rule_path, backend_path) = (rewrite(filters).or_else(resolved), rewrite(&chosen.filters));
    Ok(Plan {
        listener,
        rule,
        backend,
        identity,
        mirrors,
        stats,
        auth,
        backend_index,
        rule_path,
        backend_path,
        grant,
        preferred,
    })
}

#[cfg(test)]
mod tests;
