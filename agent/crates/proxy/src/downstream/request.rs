//! One request from its head to its response, whatever version the client speaks: decide once, then move bytes.

use std::{future::poll_fn, rc::Rc, task::Poll};

use bytes::Bytes;
use tokio::time::Instant;

use super::{client::Client, record::Record};
use crate::{
    decide::{Decision, LocalResponse, Plan, decide, find_listener},
    error::{Error, Side},
    external_auth::{Answer, Auths, Question, Undecided},
    filters::{cors::Fields, write::Write},
    http::{
        body::{Body, Piece},
        head::{RequestHead, ResponseHead, Version},
        hop::{self, HopRequest},
    },
    net::timer::Timer,
    respond,
    shard::Shard,
    stats::RuleStats,
    tables::{CompiledRule, ListenerState},
    upstream::{
        forward::{Forward, Reply},
        mirror::{self, Mirrored},
        pool::Connection,
    },
};

/// Bytes of an unwanted request body that are read and dropped so that the connection can be used on. What is more than
/// has arrived already is not waited for.
const MAX_DISCARDED: usize = 256 * 1024;

/// What a request came to. The response's head is filled.
#[derive(Debug)]
pub enum Outcome {
    /// A response with this body.
    Respond(Body),
    /// The connection is the client's and the endpoint's own from here on; the response is 101.
    Upgrade(Box<Connection>),
    /// The client is gone or stuck: nobody is there to answer.
    Abort,
}

/// A request to serve.
pub struct Request<'a> {
    /// The shard.
    pub shard: &'a Rc<Shard>,
    /// Who asks.
    pub client: &'a Client,
    /// Its head, which is edited.
    pub head: &'a mut RequestHead,
    /// The response's head, which is filled.
    pub response: &'a mut ResponseHead,
    /// What is remembered of it.
    pub record: &'a mut Record,
    /// The task's timer.
    pub timer: &'a mut Timer,
    /// Whether the client may upgrade the connection.
    pub may_upgrade: bool,
}

/// The outcome, and the moment at which the response must be complete.
pub type Served = (Outcome, Option<Instant>);

/// Who asks others about a request: its listener, or the rule that takes it.
struct Asker<'a> {
    auths: &'a Auths,
    stats: &'a Rc<RuleStats>,
    listener: Option<&'a Rc<ListenerState>>,
    rule: Option<&'a Rc<CompiledRule>>,
    /// Fields for an answer that stands in place of the request's own.
    local_fields: Fields,
}

impl<'a> Asker<'a> {
    fn of_listener(listener: &'a Rc<ListenerState>) -> Self {
        let (auths, stats) = (&listener.auth, &listener.unmatched);
        Self { auths, stats, listener: Some(listener), rule: None, local_fields: Fields::new() }
    }

    fn of_decision(decision: &'a Decision) -> Self {
        let (stats, listener, rule) = match decision {
            Decision::Forward(plan) => (&plan.stats, Some(&plan.listener), Some(&plan.rule)),
            Decision::Respond(local) => (&local.stats, local.listener.as_ref(), local.rule.as_ref()),
        };
        Self { auths: decision.auth(), stats, listener, rule, local_fields: decision.local_fields() }
    }
}

impl Request<'_> {
    /// Serves the request.
    pub async fn serve(mut self, mut body: Body, on_interim: &mut dyn FnMut(&ResponseHead)) -> Served {
        let hop = hop::strip_request(self.head, self.may_upgrade);
        self.client.push_forwarding(self.head);
        let facts = &self.client.facts;
        let listener = find_listener(&self.shard.tables.borrow(), facts, self.head);
        let mut writes = Vec::new();
        if let Ok(listener) = &listener
            && !listener.auth.is_empty()
        {
            // Boxed: few ask, and the state of the question is large.
            match Box::pin(self.authorize(&Asker::of_listener(listener), &mut body)).await {
                Ok(allowed) => writes = allowed,
                Err(served) => return served,
            }
        }
        let decision = {
            let tables = self.shard.tables.borrow();
            decide(&tables, listener, facts, self.head, &mut self.shard.random.borrow_mut())
        };
        if !decision.auth().is_empty() {
            match Box::pin(self.authorize(&Asker::of_decision(&decision), &mut body)).await {
                Ok(allowed) => writes.extend(allowed),
                Err(served) => return served,
            }
        }
        let response = &mut *self.response;
        let (outcome, deadline) = match decision {
            Decision::Respond(local) => (Request { response: &mut *response, ..self }.respond(local, body).await, None),
            Decision::Forward(plan) => {
                Request { response: &mut *response, ..self }.forward(plan, hop, body, on_interim).await
            }
        };
        writes.iter().for_each(|write| write.apply(&mut response.headers));
        (outcome, deadline)
    }

    /// Asks those who must allow the request. Returns edits of its response, or the answer in place of it.
    async fn authorize(&mut self, asker: &Asker<'_>, body: &mut Body) -> Result<Vec<Write>, Served> {
        let Asker { listener, rule, .. } = *asker;
        self.record.stats = asker.stats.clone();
        self.record.listener = listener.cloned();
        self.record.rule = rule.cloned();
        let limit = rule.and_then(|rule| rule.timeouts().request).filter(|limit| !limit.is_zero());
        let deadline = limit.map(|limit| self.record.started + limit);
        let identity = listener.map(|listener| listener.identity()).unwrap_or_default();
        let mut writes = Vec::new();
        for auth in asker.auths {
            let question = Question {
                pool: &self.shard.pool,
                client: self.client,
                head: self.head,
                identity: &identity,
                deadline,
            };
            let ended = match auth.ask(question, body, self.timer).await {
                Ok(Answer::Allowed(effects)) => {
                    effects.request.iter().for_each(|write| write.apply(&mut self.head.headers));
                    writes.extend(effects.response);
                    continue;
                }
                Ok(Answer::Denied(head, answer, deadline)) => {
                    *self.response = head;
                    self.refuse(self.response.status, "external_auth_denied", None);
                    (Outcome::Respond(answer), deadline)
                }
                Err(Undecided::NoBackend) => (self.refuse_with_text(500, "external_auth_invalid", None), None),
                Err(Undecided::BodyTooLong) => (self.refuse_with_text(413, "external_auth_body_too_long", None), None),
                Err(Undecided::Busy) => (self.refuse_with_text(503, "external_auth_busy", None), None),
                Err(Undecided::Server(error)) => {
                    let detail = respond::verdict(&error).reason;
                    (self.refuse_with_text(503, "external_auth_failed", Some(detail)), None)
                }
                Err(Undecided::Request(error)) => (fail(self.shard, self.record, self.response, &error), None),
            };
            if let Outcome::Respond(_) = ended.0 {
                discard(body).await;
                for (name, value) in &asker.local_fields {
                    self.response.headers.append(name, value);
                }
            }
            return Err(ended);
        }
        Ok(writes)
    }

    fn refuse(&mut self, status: u16, reason: &'static str, detail: Option<&'static str>) {
        self.record.status = status;
        self.record.reason = Some(reason);
        self.record.detail = detail.map(Into::into);
        self.shard.stats.local_responses.increment(reason);
    }

    fn refuse_with_text(&mut self, status: u16, reason: &'static str, detail: Option<&'static str>) -> Outcome {
        self.refuse(status, reason, detail);
        let text = respond::body_text(status);
        fill_local(self.response, status, &text);
        Outcome::Respond(Body::Bytes(Bytes::from(text)))
    }

    async fn respond(self, local: LocalResponse, mut body: Body) -> Outcome {
        self.record.stats = local.stats;
        self.record.listener = local.listener;
        self.record.rule = local.rule;
        self.record.reason = Some(local.reason);
        self.record.detail = local.detail;
        self.record.status = local.status;
        discard(&mut body).await;
        let text = if local.status >= 400 { respond::body_text(local.status) } else { String::new() };
        fill_local(self.response, local.status, &text);
        for (name, value) in &local.headers {
            self.response.headers.append(name, value);
        }
        Outcome::Respond(Body::Bytes(Bytes::from(text)))
    }

    async fn forward(
        self,
        plan: Plan,
        hop: HopRequest,
        mut body: Body,
        on_interim: &mut dyn FnMut(&ResponseHead),
    ) -> Served {
        let Self { shard, client, head, response, record, timer, .. } = self;
        record.stats = plan.stats.clone();
        record.listener = Some(plan.listener.clone());
        record.rule = Some(plan.rule.clone());
        if !plan.mirrors.is_empty() {
            let mut copy = head.clone();
            plan.edit_mirrored(&mut copy);
            let hop = HopRequest { upgrade: None, ..hop.clone() };
            let (backends, identity) = (plan.mirrors.clone(), plan.identity.clone());
            body = mirror::start(&shard.pool, Mirrored { head: copy, hop, backends, identity }, body);
        }
        plan.edit_request(head);
        let forward = Forward {
            pool: &shard.pool,
            backend: &plan.backend,
            identity: plan.identity.as_ref(),
            timeouts: plan.timeouts(),
            retry: plan.rule.source.retry.as_ref(),
            preferred: plan.preferred(),
            may_repeat: false,
            head,
            hop: &hop,
            started: record.started,
        };
        let reply = forward.run(body, response, timer, &mut record.trace, on_interim).await;
        record.responded = record.trace.answered;
        let deadline = record.trace.deadline;
        match reply {
            Ok(Reply::Upgraded(connection)) => {
                hop::strip_response(&mut response.headers, true);
                plan.edit_response(response);
                plan.begin_session(record.trace.endpoint, client.facts.is_tls, response);
                record.status = response.status;
                (Outcome::Upgrade(connection), None)
            }
            Ok(Reply::Body(body)) => {
                hop::strip_response(&mut response.headers, false);
                plan.edit_response(response);
                plan.begin_session(record.trace.endpoint, client.facts.is_tls, response);
                record.status = response.status;
                (Outcome::Respond(body), deadline)
            }
            Err(error) => {
                let outcome = fail(shard, record, response, &error);
                if let Outcome::Respond(_) = outcome {
                    for (name, value) in &plan.local_fields() {
                        response.headers.append(name, value);
                    }
                }
                (outcome, None)
            }
        }
    }
}

/// Makes the answer to a failure.
pub fn fail(shard: &Shard, record: &mut Record, response: &mut ResponseHead, error: &Error) -> Outcome {
    let verdict = record.fail(shard, error);
    record.status = verdict.status;
    if verdict.status == 499 && error.side == Side::Downstream {
        return Outcome::Abort;
    }
    let text = respond::body_text(verdict.status);
    fill_local(response, verdict.status, &text);
    Outcome::Respond(Body::Bytes(Bytes::from(text)))
}

fn fill_local(response: &mut ResponseHead, status: u16, text: &str) {
    response.clear();
    response.status = status;
    response.version = Version::Http11;
    // RFC 9110 section 6.6.1: a server with a clock says when it answered.
    let now = jiff::Timestamp::now();
    response.headers.append("Date", now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
    response.headers.append("Content-Length", text.len().to_string());
    if !text.is_empty() {
        response.headers.append("Content-Type", "text/plain; charset=utf-8");
    }
}

/// Drops what has arrived of a body that nobody wants.
async fn discard(body: &mut Body) {
    let mut left = MAX_DISCARDED;
    body.set_unwanted();
    poll_fn(|cx| {
        while left > 0 {
            match body.poll_piece(cx) {
                Poll::Ready(Ok(Piece::Data)) => {
                    let len = body.data().len();
                    body.consume(len);
                    left = left.saturating_sub(len);
                }
                Poll::Ready(_) | Poll::Pending => break,
            }
        }
        Poll::Ready(())
    })
    .await;
}
