//! An API server for tests, behind the client's own interface: what it answers is a script, what it was asked is kept.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use kube::{Client, client::Body};
use serde_json::Value;
use tokio::sync::mpsc;

/// What was asked.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Method, path and query: `GET /api/v1/secrets?watch=true`.
    pub line: String,
    /// The body, null when there was none.
    pub body: Value,
}

/// An answer.
pub enum Answer {
    /// A status code and JSON.
    Json(u16, Value),
    /// Lines of a watch, as long as the sender lives.
    Watch(mpsc::UnboundedReceiver<Value>),
    /// No answer: the connection breaks.
    Broken,
}

impl Answer {
    /// An error as API servers answer.
    pub fn error(code: u16, message: &str) -> Self {
        let status = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message});
        Self::Json(code, status)
    }
}

/// Everything that was asked, in order.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Asked>>>);

impl Log {
    /// Lines that contain a text.
    pub fn lines(&self, text: &str) -> Vec<String> {
        self.all().into_iter().map(|asked| asked.line).filter(|line| line.contains(text)).collect()
    }

    /// Everything.
    pub fn all(&self) -> Vec<Asked> {
        self.0.lock().expect("no test panics while it holds the log").clone()
    }
}

/// A client of an API server that answers as `answer` says.
pub fn fake(mut answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> (Client, Log) {
    let log = Log::default();
    let asked = log.clone();
    let answer = Arc::new(Mutex::new(move |request: &Asked| answer(request)));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (answer, asked) = (answer.clone(), asked.clone());
        async move {
            let line = format!("{} {}", request.method(), request.uri());
            let body = request.into_body().collect_bytes().await?;
            let one = Asked { line, body: serde_json::from_slice(&body).unwrap_or_default() };
            asked.0.lock().expect("no test panics while it holds the log").push(one.clone());
            let answer = (answer.lock().expect("no test panics while it answers"))(&one);
            let (code, body) = match answer {
                Answer::Json(code, value) => (code, json_body(&value)),
                Answer::Watch(lines) => (200, watch_body(lines)),
                Answer::Broken => return Err(tower::BoxError::from("the connection is broken")),
            };
            Ok::<_, tower::BoxError>(
                Response::builder().status(code).body(body).expect("a code and a body make a response"),
            )
        }
    });
    (Client::new(service, "tidegate"), log)
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn json_body(value: &Value) -> UnsyncBoxBody<Bytes, BoxError> {
    Full::new(Bytes::from(value.to_string())).map_err(|never| match never {}).boxed_unsync()
}

fn watch_body(mut lines: mpsc::UnboundedReceiver<Value>) -> UnsyncBoxBody<Bytes, BoxError> {
    let frames = futures_util::stream::poll_fn(move |context| {
        Pin::new(&mut lines)
            .poll_recv(context)
            .map(|line| line.map(|line| Ok(Frame::data(Bytes::from(format!("{line}\n"))))))
    });
    StreamBody::new(frames).boxed_unsync()
}
