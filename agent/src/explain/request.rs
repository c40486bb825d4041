//! The way of a request: listener → rule → backend, by the very decision that workers make, on tables filled from the
//! same model.

use std::net::SocketAddr;

use http::Method;
use tidegate_model::{BackendTarget, ListenerKey, Model, Resource, Rule, Trust};
use tidegate_proxy::{
    balance::Prng,
    certificates::{TlsContext, load_system_authorities},
    decide::{ConnectionFacts, Decision, LocalResponse, decide as decide_request, find_listener},
    http::head::RequestHead,
    tables::{CompiledRule, ListenerState, Tables},
};

use super::{RequestAnswer, Step};
use crate::admin::protocol::{Question, RequestQuestion};

/// Follows a request through a domain's model.
pub(super) fn decide(model: &Model, question: &Question, asked: &RequestQuestion) -> (Vec<Step>, RequestAnswer) {
    let head = match to_head(asked) {
        Ok(head) => head,
        Err(problem) => {
            let answer = RequestAnswer { status: Some(400), backend: None };
            return (vec![Step::new("request", problem).denial()], answer);
        }
    };
    let tls = match TlsContext::new() {
        Ok(tls) => tls,
        Err(error) => {
            let step = Step::new("request", format!("cannot be decided: no random numbers ({error})")).denial();
            return (vec![step], RequestAnswer { status: None, backend: None });
        }
    };
    let needs_system = |resource: &Resource| matches!(resource, Resource::Backend(_, backend) if backend.tls.as_ref().is_some_and(|tls| tls.trust == Trust::System));
    let tls = match model.resources().any(needs_system) {
        true => tls.with_system_authorities(&load_system_authorities()),
        false => tls,
    };
    let mut tables = Tables::new(tls);
    // What a worker cannot use is in its own report (`tidegate status`).
    let _ = tables.apply(&model.to_full_delta());
    let is_tls = tables.find_frontend(question.destination).is_some_and(|frontend| frontend.is_tls());
    let facts = ConnectionFacts {
        local: question.destination,
        peer: SocketAddr::new(question.source, question.source_port),
        is_tls,
        sni: is_tls.then(|| head.host().into()),
    };
    let listener = find_listener(&tables, &facts, &head);
    match decide_request(&tables, listener, &facts, &head, &mut Prng::from_seed(u64::from(question.source_port))) {
        Decision::Forward(plan) => {
            let mut steps = vec![listener_step(&plan.listener)];
            steps.extend(authorization_step(&plan.listener));
            steps.push(rule_step(&plan.rule));
            let (ready, terminating) = plan.backend.count_endpoints();
            steps.push(
                Step::new("backend", format!("forwarded; {ready} endpoints ready, {terminating} terminating")).by(
                    format!("{:?}/{}", plan.rule.key.kind, plan.rule.key.route),
                    format!("spec.rules[{}].backendRefs", plan.rule.key.index),
                    show_backends(&plan.rule.source),
                ),
            );
            (steps, RequestAnswer { status: None, backend: Some(plan.backend.key.to_string()) })
        }
        Decision::Respond(response) => {
            let mut steps = Vec::new();
            steps.extend(response.listener.as_deref().map(listener_step));
            steps.extend(response.listener.as_deref().and_then(authorization_step));
            steps.extend(response.rule.as_deref().map(rule_step));
            steps.push(response_step(&response));
            (steps, RequestAnswer { status: Some(response.status), backend: None })
        }
    }
}

fn to_head(asked: &RequestQuestion) -> Result<RequestHead, String> {
    let mut head = RequestHead::default();
    head.method =
        Method::from_bytes(asked.method.as_bytes()).map_err(|_| format!("{:?} is no method", asked.method))?;
    if !asked.path.starts_with('/') || asked.path.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') {
        return Err(format!("{:?} is no path: write it as sent, from its leading /", asked.path));
    }
    head.fill_target(&asked.path);
    head.fill_host(&asked.host, None);
    head.headers.set("host", &asked.host);
    for (name, value) in &asked.headers {
        head.headers.append(name, value);
    }
    Ok(head)
}

fn listener_step(listener: &ListenerState) -> Step {
    let hostname = listener.source.hostname.as_ref().map_or("every host name".to_owned(), ToString::to_string);
    Step::new("listener", format!("taken by listener {}", listener.key.name)).by(
        holder(&listener.key),
        format!("spec.listeners[{}].hostname", listener.key.name),
        hostname,
    )
}

/// Whom the listener asks. What they would answer is not known here.
fn authorization_step(listener: &ListenerState) -> Option<Step> {
    let backends = listener.source.auth.iter().map(|auth| auth.backend.as_ref());
    let servers: Vec<_> = backends.map(|key| key.map_or("nobody".to_owned(), ToString::to_string)).collect();
    let outcome = "asked first: may deny the request, or change fields that rules match on";
    (!servers.is_empty()).then(|| {
        Step::new("authorization", outcome).by(
            holder(&listener.key),
            format!("spec.listeners[{}].filters.requests", listener.key.name),
            servers.join(", "),
        )
    })
}

/// The object that a listener stands in.
fn holder(listener: &ListenerKey) -> String {
    match &listener.set {
        None => format!("Gateway/{}", listener.gateway),
        Some(set) => format!("ListenerSet/{set}"),
    }
}

fn rule_step(rule: &CompiledRule) -> Step {
    let name = rule.source.name.as_deref().map(|name| format!(" ({name})")).unwrap_or_default();
    Step::new("rule", format!("taken by rule {}{name}", rule.key.index)).by(
        format!("{:?}/{}", rule.key.kind, rule.key.route),
        format!("spec.rules[{}].matches", rule.key.index),
        show_matches(&rule.source),
    )
}

fn response_step(response: &LocalResponse) -> Step {
    let detail = response.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
    let step = Step::new("response", format!("the proxy answers {} ({}{detail})", response.status, response.reason));
    let step = match (&response.rule, &response.listener) {
        (Some(rule), _) => {
            let field = if response.reason.contains("backend") || response.reason.contains("endpoint") {
                "backendRefs"
            } else {
                "filters"
            };
            step.by(
                format!("{:?}/{}", rule.key.kind, rule.key.route),
                format!("spec.rules[{}].{field}", rule.key.index),
                if field == "backendRefs" { show_backends(&rule.source) } else { String::new() },
            )
        }
        (None, Some(listener)) => {
            step.by(holder(&listener.key), format!("spec.listeners[{}]", listener.key.name), "no attached rule matches")
        }
        (None, None) => step,
    };
    if response.status >= 400 { step.denial() } else { step }
}

fn show_matches(rule: &Rule) -> String {
    let shown = rule.matches.iter().map(|one| {
        let mut parts = vec![match &one.path {
            tidegate_model::PathMatch::Exact(path) => format!("path = {path}"),
            tidegate_model::PathMatch::Prefix(path) => format!("path below {path}"),
            tidegate_model::PathMatch::Regex(pattern) => format!("path ~ {pattern}"),
        }];
        parts.extend(one.method.iter().map(|method| format!("method {method}")));
        parts.extend(one.headers.iter().map(|header| format!("header {}", header.name)));
        parts.extend(one.query.iter().map(|query| format!("query {}", query.name)));
        parts.join(" and ")
    });
    shown.collect::<Vec<_>>().join(", or ")
}

fn show_backends(rule: &Rule) -> String {
    let shown = rule.backends.iter().map(|backend| match &backend.target {
        BackendTarget::Backend(key) => format!("{key} weight {}", backend.weight),
        BackendTarget::Invalid(why) => format!("invalid ({why}) weight {}", backend.weight),
    });
    shown.collect::<Vec<_>>().join(", ")
}
