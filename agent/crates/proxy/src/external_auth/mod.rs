//! `ExternalAuth` (GEP-1494): another server is asked whether a request goes on. Whatever fails, the request does not.
//!
//! The question is a request of its own, through the same pools, endpoints and counters as any other. A body is kept only as
//! far as the filter says, judged whole, and then sent on from its first byte.

mod buffered;
mod grpc;
mod protobuf;

use std::{collections::BTreeMap, future::poll_fn, rc::Rc, sync::Arc, task::Poll};

use bytes::Bytes;
use http::Method;
use smallvec::SmallVec;
use tidegate_model::{BackendKey, ExternalAuthProtocol, Timeouts};
use tokio::time::Instant;

use self::{
    buffered::{Buffered, Held},
    grpc::{Check, Verdict},
};
use crate::{
    balance::BackendState,
    downstream::client::Client,
    error::{Error, ErrorKind},
    filters::write::Write,
    http::{
        body::{Body, Piece},
        head::{Headers, RequestHead, ResponseHead},
        hop::{self, HopRequest},
        known::Known,
    },
    net::timer::Timer,
    session,
    tables::{Identity, normal_path},
    timeouts,
    upstream::{
        forward::{Forward, Reply, Trace, discard},
        pool::Pool,
    },
};

/// Bytes of an answer in gRPC: fields for both directions and the page of a denial.
const MAX_ANSWER: usize = 64 * 1024;

/// Who is asked, and how.
#[derive(Debug)]
pub struct ExternalAuth {
    backend: Option<Rc<BackendState>>,
    protocol: ExternalAuthProtocol,
    max_body: Option<u32>,
}

/// Servers that are asked about one request, in this order.
pub type Auths = SmallVec<[Rc<ExternalAuth>; 1]>;

/// What an allowed request takes along.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Edits of the request.
    pub request: Vec<Write>,
    /// Edits of the response.
    pub response: Vec<Write>,
}

/// What the server decided.
#[derive(Debug)]
pub enum Answer {
    /// The request goes on.
    Allowed(Effects),
    /// The client gets this, whose body must be complete at that moment.
    Denied(ResponseHead, Body, Option<Instant>),
}

/// Why there is no decision: the request ends.
#[derive(Debug)]
pub enum Undecided {
    /// The filter's reference leads nowhere.
    NoBackend,
    /// The body is longer than the filter allows.
    BodyTooLong,
    /// Too much is kept of other bodies.
    Busy,
    /// The client's side failed, or the rule's time is up.
    Request(Error),
    /// The server did not answer, or not in its protocol.
    Server(Error),
}

/// The request that is asked about.
#[derive(Clone, Copy)]
pub struct Question<'a> {
    /// Connections of the shard.
    pub pool: &'a Rc<Pool>,
    /// Who asks.
    pub client: &'a Client,
    /// Its head.
    pub head: &'a RequestHead,
    /// What its listener shows to servers with TLS.
    pub identity: &'a Identity,
    /// When the rule's time for the request is up.
    pub deadline: Option<Instant>,
}

impl ExternalAuth {
    /// Compiles a filter.
    pub fn compile(
        source: &tidegate_model::ExternalAuth,
        find_backend: &mut dyn FnMut(&BackendKey) -> Rc<BackendState>,
    ) -> Self {
        Self {
            backend: source.backend.as_ref().map(find_backend),
            protocol: source.protocol.clone(),
            max_body: source.max_body,
        }
    }

    /// Asks about a request. What is read of its body comes again to whoever reads it next.
    ///
    /// # Errors
    /// There is no decision: the request must not go on.
    pub async fn ask(&self, question: Question<'_>, body: &mut Body, timer: &mut Timer) -> Result<Answer, Undecided> {
        let Some(backend) = self.backend.as_ref().filter(|backend| backend.is_usable()) else {
            return Err(Undecided::NoBackend);
        };
        let identity = match question.identity {
            Identity::Certificate(identity) => Some(identity),
            Identity::Missing if backend.has_tls() => return Err(Undecided::NoBackend),
            Identity::Anonymous | Identity::Missing => None,
        };
        let size = body.length();
        let kept = match self.max_body {
            Some(limit) if !body.is_empty() => self.keep(body, limit as usize, question.deadline, timer).await?,
            _ => Bytes::new(),
        };
        let started = Instant::now();
        let own = started + timeouts::EXTERNAL_AUTH;
        let until = question.deadline.map_or(own, |deadline| deadline.min(own));
        let (head, sent) = match &self.protocol {
            ExternalAuthProtocol::Http { path_prefix, request_headers, .. } => {
                (http_head(question.head, path_prefix, request_headers, kept.len()), kept)
            }
            ExternalAuthProtocol::Grpc { request_headers } => {
                let target = target_of(question.head);
                let frame = check(question, &target, request_headers, (size, &kept)).encode();
                (grpc_head(&backend.key, frame.len()), Bytes::from(frame))
            }
        };
        let is_grpc = matches!(self.protocol, ExternalAuthProtocol::Grpc { .. });
        let hop = HopRequest { upgrade: None, accepts_trailers: is_grpc };
        let forward = Forward {
            pool: question.pool,
            backend,
            identity,
            timeouts: Timeouts { request: Some(until.saturating_duration_since(started)), backend_request: None },
            retry: None,
            preferred: None,
            may_repeat: true,
            head: &head,
            hop: &hop,
            started,
        };
        // A limit of nothing would be none.
        if until <= started {
            return Err(Undecided::Request(Error::upstream(ErrorKind::RequestTimeout)));
        }
        let (mut response, mut trace) = (ResponseHead::default(), Trace::default());
        let body = if sent.is_empty() { Body::Empty } else { Body::Bytes(sent) };
        // Boxed: the state of a whole request must not make every connection's task larger.
        let reply = Box::pin(forward.run(body, &mut response, timer, &mut trace, &mut |_| {})).await;
        let failed = |error: Error| {
            let is_over = question.deadline.is_some_and(|deadline| deadline <= Instant::now());
            if is_over {
                Undecided::Request(Error::upstream(ErrorKind::RequestTimeout))
            } else {
                Undecided::Server(error)
            }
        };
        let Reply::Body(body) = reply.map_err(failed)? else {
            return Err(Undecided::Server(Error::upstream(ErrorKind::Closed)));
        };
        match &self.protocol {
            ExternalAuthProtocol::Http { response_headers, .. } => {
                Ok(http_answer(response, body, response_headers, until).await)
            }
            ExternalAuthProtocol::Grpc { .. } => grpc_answer(&response, body, until, timer).await.map_err(failed),
        }
    }

    /// Reads a body to its end, and puts it back.
    async fn keep(
        &self,
        body: &mut Body,
        limit: usize,
        deadline: Option<Instant>,
        timer: &mut Timer,
    ) -> Result<Bytes, Undecided> {
        if body.length().is_some_and(|length| length > limit as u64) {
            return Err(Undecided::BodyTooLong);
        }
        let length = body.length();
        timer.set(deadline);
        // The limit itself is reserved: what several bodies come to is not known before they have come.
        let held = Held::reserve(length.map_or(limit, |length| length as usize)).ok_or(Undecided::Busy)?;
        let read = read_all(body, limit, timer).await.map_err(Undecided::Request)?.ok_or(Undecided::BodyTooLong)?;
        let trailers = body.take_trailers();
        *body = Buffered::new(read.clone(), trailers, length, held).into_body();
        Ok(read)
    }
}

/// Reads a body to its end within the timer's limit; `None` when it is longer than `limit` bytes.
async fn read_all(body: &mut Body, limit: usize, timer: &mut Timer) -> Result<Option<Bytes>, Error> {
    let mut data = Vec::new();
    poll_fn(|cx| {
        loop {
            match body.poll_piece(cx) {
                Poll::Ready(Ok(Piece::Data)) => {
                    let piece = body.data();
                    if data.len() + piece.len() > limit {
                        return Poll::Ready(Ok(None));
                    }
                    data.extend_from_slice(piece);
                    let len = piece.len();
                    body.consume(len);
                }
                Poll::Ready(Ok(Piece::End)) => return Poll::Ready(Ok(Some(Bytes::from(std::mem::take(&mut data))))),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    std::task::ready!(timer.poll_expired(cx));
                    return Poll::Ready(Err(Error::upstream(ErrorKind::RequestTimeout)));
                }
            }
        }
    })
    .await
}

/// Path and query that are judged: in the form that the rule was found by. A server that does not resolve dot segments or
/// escapes would else judge another path than the one that is served.
fn target_of(request: &RequestHead) -> String {
    let path = normal_path(request.path());
    match request.query() {
        Some(query) => format!("{}?{query}", path.text),
        None => path.text.into_owned(),
    }
}

/// The question over HTTP: method, host, path and credentials of the request, and the fields that are allowed beside them.
fn http_head(request: &RequestHead, path_prefix: &str, allowed: &[Arc<str>], body_len: usize) -> RequestHead {
    let mut head = RequestHead::new(request.method.clone());
    head.fill_target(&format!("{path_prefix}{}", target_of(request)));
    head.fill_host(request.host(), request.port());
    for field in request.headers.iter() {
        let is_allowed = |name: &Arc<str>| name.as_bytes().eq_ignore_ascii_case(field.name);
        let is_sent = match field.known {
            Known::Host => true,
            // They speak of the request's own body.
            Known::ContentLength | Known::Expect => false,
            known if known.is_hop_by_hop() => false,
            _ => field.name.eq_ignore_ascii_case(b"authorization") || allowed.iter().any(is_allowed),
        };
        if is_sent {
            head.headers.append(field.name, field.value);
        }
    }
    head.headers.append("Content-Length", body_len.to_string());
    head
}

/// 200 lets the request go on; any other status is passed on.
async fn http_answer(mut response: ResponseHead, body: Body, allowed: &[Arc<str>], until: Instant) -> Answer {
    if response.status == 200 {
        let effects = Effects { request: copied(&response.headers, allowed), response: Vec::new() };
        discard(body).await;
        return Answer::Allowed(effects);
    }
    hop::strip_response(&mut response.headers, false);
    if !(300..600).contains(&response.status) {
        // Another success would tell the client that its request had gone on.
        response.clear();
        response.status = 403;
        response.headers.append("Content-Length", "0");
        return Answer::Denied(response, Body::Empty, None);
    }
    Answer::Denied(response, body, Some(until))
}

/// Fields of the server's answer for the client's request: the allowed ones, or, when none is named, all but those that
/// speak of the answer itself or of its hop.
fn copied(headers: &Headers, allowed: &[Arc<str>]) -> Vec<Write> {
    let mut writes = Vec::new();
    let mut seen: Vec<Vec<u8>> = Vec::new();
    for field in headers.iter() {
        let is_named = |name: &Arc<str>| name.as_bytes().eq_ignore_ascii_case(field.name);
        let name = field.name.to_ascii_lowercase();
        let speaks_of_answer = name.starts_with(b"content-")
            || matches!(&name[..], b"date" | b"server" | b"via" | b"set-cookie" | b"trailer" | b"age" | b"vary");
        let is_wanted = if allowed.is_empty() { !speaks_of_answer } else { allowed.iter().any(is_named) };
        let Ok(text) = str::from_utf8(&name) else { continue };
        if !is_wanted {
            continue;
        }
        // The first value replaces what the client sent, the others join it.
        let write = if seen.contains(&name) { Write::add(text, field.value) } else { Write::set(text, field.value) };
        writes.extend(write);
        seen.push(name);
    }
    writes
}

fn check<'a>(
    question: Question<'a>,
    target: &'a str,
    allowed: &[Arc<str>],
    (size, body): (Option<u64>, &'a [u8]),
) -> Check<'a> {
    let Question { client, head, .. } = question;
    let mut headers = BTreeMap::<Vec<u8>, Vec<u8>>::new();
    for field in head.headers.iter() {
        let is_allowed = |name: &Arc<str>| name.as_bytes().eq_ignore_ascii_case(field.name);
        if !allowed.is_empty() && !allowed.iter().any(is_allowed) {
            continue;
        }
        let name = field.name.to_ascii_lowercase();
        // RFC 9110 section 5.3; cookies are the one field that joins otherwise.
        let glue: &[u8] = if name == b"cookie" { b"; " } else { b"," };
        let value = headers.entry(name).or_default();
        if !value.is_empty() {
            value.extend_from_slice(glue);
        }
        value.extend_from_slice(field.value);
    }
    let scheme = if client.facts.is_tls { "https" } else { "http" };
    let host = head.headers.find_known(Known::Host).unwrap_or_default();
    if allowed.is_empty() {
        // As HTTP/2 would write them, whatever the client speaks: servers read them there.
        for (name, value) in [
            (":authority", host),
            (":method", head.method.as_str().as_bytes()),
            (":path", target.as_bytes()),
            (":scheme", scheme.as_bytes()),
        ] {
            headers.insert(name.into(), value.to_vec());
        }
    }
    Check {
        source: client.facts.peer,
        destination: client.facts.local,
        time: session::now(),
        method: head.method.as_str(),
        path: target,
        host,
        scheme,
        protocol: head.version.as_str(),
        headers,
        size,
        body,
    }
}

fn grpc_head(backend: &BackendKey, frame_len: usize) -> RequestHead {
    let name = backend.name();
    let authority = format!("{}.{}", name.name, name.namespace);
    let mut head = RequestHead::new(Method::POST);
    head.fill_target(grpc::PATH);
    head.fill_host(&authority, None);
    head.headers.append("Host", authority);
    head.headers.append("Content-Type", "application/grpc");
    head.headers.append("Content-Length", frame_len.to_string());
    head.headers.append("grpc-timeout", format!("{}m", timeouts::EXTERNAL_AUTH.as_millis()));
    head
}

/// Reads the answer of a call: its message, and the status at its end.
async fn grpc_answer(
    response: &ResponseHead,
    mut body: Body,
    until: Instant,
    timer: &mut Timer,
) -> Result<Answer, Error> {
    let broken = || Error::upstream(ErrorKind::ExternalAuth);
    if response.status != 200 {
        return Err(broken());
    }
    timer.set(Some(until));
    let message = read_all(&mut body, MAX_ANSWER, timer).await?.ok_or_else(broken)?;
    let trailers = body.take_trailers();
    // A call that fails at once has its status among the fields.
    let status = trailers.as_ref().and_then(|trailers| trailers.find("grpc-status"));
    if status.or_else(|| response.headers.find("grpc-status")) != Some(b"0") {
        return Err(broken());
    }
    match grpc::read_answer(&message).map_err(|_| broken())? {
        Verdict::Allowed(effects) => Ok(Answer::Allowed(effects)),
        Verdict::Denied { status, headers, body } => {
            let mut response = ResponseHead { status, ..ResponseHead::default() };
            response.headers.append("Content-Length", body.len().to_string());
            if !body.is_empty() {
                response.headers.append("Content-Type", "text/plain; charset=utf-8");
            }
            headers.iter().for_each(|write| write.apply(&mut response.headers));
            let body = if body.is_empty() { Body::Empty } else { Body::Bytes(Bytes::from(body)) };
            Ok(Answer::Denied(response, body, None))
        }
    }
}

#[cfg(test)]
mod tests;
