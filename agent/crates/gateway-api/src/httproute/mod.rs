//! Routes over HTTP: from HTTPRoute and GRPCRoute objects to the model's rules, before they are attached.
//!
//! A match that makes no sense is left out and named; the rest of its rule is served. A rule whose filters cannot be
//! carried out stays and answers 500: were it left out, its requests would fall through to a rule without those filters.

mod backends;
mod external_auth;
mod filters;
mod grpc;
mod matches;
mod retry;
mod session;

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tidegate_model::{BackendTarget, Filter, Match, Rule, Timeouts, WeightedBackend};

use crate::{
    duration::read_duration,
    generated::{
        common::ParentReference,
        grpc_route::GrpcRoute,
        http_route::{HttpRoute, HttpRouteRule, HttpRouteTimeouts},
    },
    object::{Kind, created_at},
    references::Resolver,
    route::{RouteDraft, read_hostnames},
    status::Problem,
    translator::store::Store,
};

pub(crate) use external_auth::read_external_auth;

/// Rules of one route beyond this many cannot be numbered; the API allows 16.
const MAX_RULES: usize = u16::MAX as usize;

/// Reads an HTTPRoute.
pub(crate) fn read_http_route(route: &HttpRoute, store: &Store) -> RouteDraft {
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    let mut reader = Reader::new(Kind::HTTPRoute, &route.metadata, store, namespace);
    let default = [HttpRouteRule::default()];
    let rules = route.spec.rules.as_deref().unwrap_or(&default);
    for (index, rule) in rules.iter().enumerate().take(MAX_RULES) {
        let field = format!("spec.rules[{index}]");
        let matches = matches::read_matches(&field, rule.matches.as_deref(), &mut reader.faults);
        reader.push_rule(index, &field, rule, matches);
    }
    if route.spec.use_default_gateways.is_some() {
        reader
            .unenforced
            .push("spec.useDefaultGateways is not enforced yet: name a Gateway in spec.parentRefs".to_owned());
    }
    reader.finish(route.spec.hostnames.as_deref(), route.spec.parent_refs.as_deref())
}

/// Reads a GRPCRoute: gRPC is HTTP/2 with paths of the form `/service/method`.
pub(crate) fn read_grpc_route(route: &GrpcRoute, store: &Store) -> RouteDraft {
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    let mut reader = Reader::new(Kind::GRPCRoute, &route.metadata, store, namespace);
    for (index, rule) in route.spec.rules.iter().flatten().enumerate().take(MAX_RULES) {
        let field = format!("spec.rules[{index}]");
        let matches = grpc::read_matches(&field, rule.matches.as_deref(), &mut reader.faults);
        reader.push_rule(index, &field, &grpc::into_http(rule), matches);
    }
    if route.spec.use_default_gateways.is_some() {
        reader
            .unenforced
            .push("spec.useDefaultGateways is not enforced yet: name a Gateway in spec.parentRefs".to_owned());
    }
    reader.finish(route.spec.hostnames.as_deref(), route.spec.parent_refs.as_deref())
}

/// Gathers what is read of one route.
struct Reader<'a> {
    identity: session::Identity,
    created: i64,
    generation: Option<i64>,
    resolver: Resolver<'a>,
    rules: Vec<(u16, Rule)>,
    faults: Vec<String>,
    unenforced: Vec<String>,
    /// Names of the rules so far: by its name a rule's sessions are its own.
    names: BTreeSet<String>,
    /// Rules seen, and how many of them are left out or answer 500.
    total: usize,
    broken: usize,
}

impl<'a> Reader<'a> {
    fn new(kind: Kind, metadata: &ObjectMeta, store: &'a Store, namespace: &'a str) -> Self {
        Self {
            identity: session::Identity::new(kind, metadata),
            created: created_at(metadata),
            generation: metadata.generation,
            resolver: Resolver::new(store, kind, namespace),
            rules: Vec::new(),
            faults: Vec::new(),
            unenforced: Vec::new(),
            names: BTreeSet::new(),
            total: 0,
            broken: 0,
        }
    }

    fn push_rule(&mut self, index: usize, field: &str, rule: &HttpRouteRule, matches: Vec<Match>) {
        self.total += 1;
        let is_new = rule.name.as_ref().is_none_or(|name| self.names.insert(name.clone()));
        if !is_new {
            self.faults.push(format!("{field}.name is left out: an earlier rule has it: give each rule its own"));
        }
        if matches.is_empty() {
            self.faults.push(format!("{field} is left out: none of its matches can be served"));
            self.broken += 1;
            return;
        }
        let mut translated = Rule {
            name: rule.name.as_deref().filter(|_| is_new).map(Arc::from),
            created: self.created,
            attachments: Vec::new(),
            matches,
            filters: Vec::new(),
            backends: Vec::new(),
            timeouts: Timeouts::default(),
            retry: None,
            session: None,
        };
        if let Err(fault) = self.fill_rule(&mut translated, field, rule) {
            self.broken += 1;
            translated.filters = Vec::new();
            translated.backends = vec![WeightedBackend {
                target: BackendTarget::Invalid(Arc::from(fault.as_str())),
                weight: 1,
                filters: Vec::new(),
            }];
            self.faults.push(format!("{fault}; until then {field} answers 500"));
        }
        self.rules.push((index as u16, translated));
    }

    /// Fills in what a rule does; an error is what keeps it from being carried out.
    fn fill_rule(&mut self, translated: &mut Rule, field: &str, rule: &HttpRouteRule) -> Result<(), String> {
        let filters = rule.filters.as_deref().unwrap_or_default();
        let matches = &translated.matches;
        translated.timeouts = read_timeouts(field, rule.timeouts.as_ref())?;
        translated.filters = filters::read_filters(&format!("{field}.filters"), filters, matches, &mut self.resolver)?;
        let references = rule.backend_refs.as_deref().unwrap_or_default();
        if translated.filters.iter().any(|filter| matches!(filter, Filter::Redirect(_))) {
            if !references.is_empty() {
                self.unenforced.push(format!("{field}.backendRefs get nothing: the rule redirects"));
            }
        } else {
            translated.backends = backends::read_backends(field, references, matches, &mut self.resolver)?;
        }
        translated.retry = rule.retry.as_ref().map(|retry| retry::read_retry(field, retry)).transpose()?;
        let of_rule = |session| self.identity.read_session(field, translated.name.as_deref(), session);
        translated.session = rule.session_persistence.as_ref().map(of_rule).transpose()?;
        Ok(())
    }

    fn finish(mut self, hostnames: Option<&[String]>, parents: Option<&[ParentReference]>) -> RouteDraft {
        let hostnames = hostnames.unwrap_or_default();
        let valid = read_hostnames(hostnames, &mut self.faults);
        let rejection = if valid.is_empty() && !hostnames.is_empty() {
            Some("no host name is valid")
        } else if self.broken > 0 && self.broken == self.total {
            Some("no rule can be served")
        } else {
            None
        };
        let rejection =
            rejection.map(|reason| Problem::new("UnsupportedValue", format!("{reason}: {}", self.faults.join("; "))));
        RouteDraft {
            generation: self.generation,
            parents: parents.unwrap_or_default().to_vec(),
            hostnames: valid,
            rules: self.rules,
            forwards: Vec::new(),
            rejection,
            faults: self.faults,
            unenforced: self.unenforced,
            uses: self.resolver.into_uses(),
        }
    }
}

fn read_timeouts(field: &str, timeouts: Option<&HttpRouteTimeouts>) -> Result<Timeouts, String> {
    let Some(timeouts) = timeouts else { return Ok(Timeouts::default()) };
    let read = |name: &str, text: Option<&String>| {
        text.map(|text| {
            read_duration(text)
                .ok_or_else(|| format!("{field}.timeouts.{name}: {text:?} is no duration: write it like 10s or 1m30s"))
        })
        .transpose()
    };
    let request = read("request", timeouts.request.as_ref())?;
    let backend_request = read("backendRequest", timeouts.backend_request.as_ref())?;
    if let (Some(request), Some(backend_request)) = (request, backend_request)
        && !request.is_zero()
        && backend_request > request
    {
        return Err(format!("{field}.timeouts.backendRequest is longer than timeouts.request: shorten it"));
    }
    Ok(Timeouts { request, backend_request })
}
