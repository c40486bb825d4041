//! The admin HTTP server: `/metrics`, `/healthz`, `/readyz`, `/debug/status`, `/debug/model/<domain>`.

use std::{convert::Infallible, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header, server::conn::http1, service::service_fn};
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

async fn respond(state: &State, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered here\n");
    }
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, metrics(state).await),
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
async fn metrics(state: &State) -> String {
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
    let mut texts = vec![crate::metrics::render(state), page.into_text()];
    texts.extend(workers.into_iter().map(|(_, text)| text));
    exposition::merge(texts.iter().map(String::as_str))
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

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    answer(status, "text/plain; version=0.0.4; charset=utf-8", body.into())
}

fn json(value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => answer(StatusCode::OK, "application/json", body.into()),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn answer(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}
