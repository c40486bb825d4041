//! The admin HTTP server: `/metrics`, `/healthz`, `/readyz`, `/debug/status`, `/debug/model/<domain>`.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming, SizeHint},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore, task::spawn_local, time::timeout};

use super::{debug, exposition, report::StatusReport};
use crate::{
    metrics::{Kind, Labels, Page, domain_series},
    source::Severity,
    state::State,
};

/// Connections at once: a few scrapers and probes; more wait in the listen queue.
const MAX_CONNECTIONS: usize = 64;

/// Time for a request head to arrive, also on an idle connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Time for a whole connection: a scraper that reads slower than this gets nothing.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// Bytes of a request head (and of what is read ahead).
const MAX_HEAD: usize = 16 * 1024;

/// Content type of Prometheus' text exposition format, and of what is for people.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Pause after `accept` has failed, e.g. for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn run_server(listener: TcpListener, state: Rc<State>) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "admin server cannot accept");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let state = state.clone();
        spawn_local(async move {
            let service = service_fn(|request| {
                let state = state.clone();
                async move { Ok::<_, Infallible>(respond(&state, &request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(stream), service);
            // A client that misbehaves loses its connection; there is nobody else to tell.
            let _ = timeout(CONNECTION_TIMEOUT, connection).await;
            drop(slot);
        });
    }
}

/// A body that is there already, in pieces; what has been sent is let go.
struct PiecesBody(VecDeque<Bytes>);

impl Body for PiecesBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Poll::Ready(self.0.pop_front().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.iter().map(|piece| piece.len() as u64).sum())
    }
}

async fn respond(state: &State, request: &Request<Incoming>) -> Response<PiecesBody> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    match request.uri().path() {
        "/metrics" => answer(StatusCode::OK, TEXT, metrics(state).await.into()),
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let readiness = state.readiness();
            if readiness.is_ready {
                text(StatusCode::OK, "ok\n")
            } else {
                text(StatusCode::SERVICE_UNAVAILABLE, readiness.waiting.join("\n") + "\n")
            }
        }
        "/debug/status" => json(&StatusReport::of(state)),
        path => match path.strip_prefix("/debug/model/").and_then(|domain| debug::model(state, domain)) {
            Some(model) => json(&model),
            None => text(
                StatusCode::NOT_FOUND,
                "nothing here; try /metrics, /healthz, /readyz, /debug/status, /debug/model/<domain>\n",
            ),
        },
    }
}

/// The agent's metrics and those of every worker that answers in time; one that does not is said to be down.
async fn metrics(state: &State) -> Vec<Bytes> {
    let workers = state.scrape_workers().await;
    let mut page = Page::default();
    let domains: Vec<_> =
        state.domains.borrow().iter().map(|(name, is)| (name.clone(), is.model.domain.clone())).collect();
    page.family(
        "tidegate_worker_scrape_up",
        "Whether the domain's worker has answered this scrape in time.",
        Kind::Gauge,
        domains.iter().map(|(name, domain)| {
            (domain_series(domain), u8::from(workers.iter().any(|(answered, _)| answered == name)))
        }),
    );
    render_source(state, &mut page);
    let own = [crate::metrics::render(state), page.into_text()];
    exposition::merge(own.map(|text| vec![text]).into_iter().chain(workers.into_iter().map(|(_, text)| text)))
}

/// What the source has.
fn render_source(state: &State, page: &mut Page) {
    let source = state.source.borrow();
    let count = |severity| source.problems.iter().filter(|problem| problem.severity == severity).count();
    let unresolved = state.resolved.borrow().values().filter(|name| name.error.is_some()).count();
    page.one("tidegate_source_files", "Files that are read.", Kind::Gauge, source.files);
    page.one("tidegate_source_objects", "Objects in force.", Kind::Gauge, source.objects);
    page.family(
        "tidegate_source_problems",
        "What is wrong in the files, by severity.",
        Kind::Gauge,
        [
            (Labels::default().with("severity", "error"), count(Severity::Error)),
            (Labels::default().with("severity", "warning"), count(Severity::Warning)),
        ],
    );
    page.one("tidegate_names_unresolved", "Names of endpoints that cannot be resolved now.", Kind::Gauge, unresolved);
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<PiecesBody> {
    answer(status, TEXT, [body.into()].into())
}

fn json(value: &impl serde::Serialize) -> Response<PiecesBody> {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => answer(StatusCode::OK, "application/json", [body.into()].into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn answer(status: StatusCode, kind: &'static str, body: VecDeque<Bytes>) -> Response<PiecesBody> {
    let mut response = Response::new(PiecesBody(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
