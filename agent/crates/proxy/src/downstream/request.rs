//! One request from its head to its response, whatever version the client speaks: decide once, then move bytes.

use std::{future::poll_fn, rc::Rc, task::Poll};

use bytes::Bytes;
use tokio::time::Instant;

use super::{client::Client, record::Record};
use crate::{
    decide::{Decision, LocalResponse, Plan, decide},
    error::{Error, Side},
    http::{
        body::{Body, Piece},
        head::{RequestHead, ResponseHead, Version},
        hop::{self, HopRequest},
    },
    net::timer::Timer,
    respond,
    shard::Shard,
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

impl Request<'_> {
    /// Serves the request.
    pub async fn serve(self, body: Body, on_interim: &mut dyn FnMut(&ResponseHead)) -> Served {
        let hop = hop::strip_request(self.head, self.may_upgrade);
        self.client.push_forwarding(self.head);
        let decision = {
            let tables = self.shard.tables.borrow();
            decide(&tables, &self.client.facts, self.head, &mut self.shard.random.borrow_mut())
        };
        match decision {
            Decision::Respond(local) => (self.respond(local, body).await, None),
            Decision::Forward(plan) => self.forward(plan, hop, body, on_interim).await,
        }
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
        let Self { shard, head, response, record, timer, .. } = self;
        record.stats = plan.stats.clone();
        record.listener = Some(plan.listener.clone());
        record.rule = Some(plan.rule.clone());
        if !plan.mirrors.is_empty() {
            let mut copy = head.clone();
            plan.edit_mirrored(&mut copy);
            let hop = HopRequest { upgrade: None, ..hop.clone() };
            body = mirror::start(&shard.pool, Mirrored { head: copy, hop, backends: plan.mirrors.clone() }, body);
        }
        plan.edit_request(head);
        let forward = Forward {
            pool: &shard.pool,
            backend: &plan.backend,
            timeouts: plan.timeouts(),
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
                record.status = response.status;
                (Outcome::Upgrade(connection), None)
            }
            Ok(Reply::Body(body)) => {
                hop::strip_response(&mut response.headers, false);
                plan.edit_response(response);
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
