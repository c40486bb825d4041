//! One list of objects, kept up to date: listed in pages once, then watched from where the list was.
//!
//! A watch that ends goes on from the last version seen, so a restarted API server is not asked for everything again;
//! only a version that it no longer knows (410) leads to a new list. Nothing is said to be gone unless the API server
//! said so: an error, however long it lasts, changes nothing.

use std::{fmt, pin::pin, time::Duration};

use futures_util::StreamExt;
use kube::{
    Client,
    api::{ListParams, WatchParams},
    core::{Request, WatchEvent},
};
use serde_json::Value;
use tidegate_model::ObjectName;
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{Backoff, Failure, REQUEST_TIMEOUT, Resource, jitter};

/// Objects of a page: at some kilobytes each, a page takes no more than a few megabytes while it is read.
const PAGE: u32 = 250;

/// Shortest and longest time after which a watch is asked for anew, in seconds: API servers close watches after 30 to 60
/// minutes, and the sooner connections are made anew the sooner they spread over servers that were added.
const WATCH_SECONDS: (f64, f64) = (300.0, 600.0);

/// A watch that is silent for this long is asked for anew, from where it was. API servers send a bookmark about every
/// minute; without one the connection may be dead.
const SILENCE: Duration = Duration::from_secs(90);

/// A watch that lived this long was a good one: the next failure is the first one again.
const GOOD: Duration = Duration::from_secs(10);

/// What to watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The resource.
    pub resource: Resource,
    /// Only the objects of this namespace.
    pub namespace: Option<String>,
    /// Only the object of this name.
    pub name: Option<String>,
    /// Only the objects that have this label.
    pub label: Option<&'static str>,
    /// Whether only metadata is asked for.
    pub is_metadata_only: bool,
}

/// What happened to a list.
#[derive(Debug)]
pub enum Update<T> {
    /// Everything that there is follows in pages.
    Begin,
    /// Some of everything.
    Page(Vec<T>),
    /// That was everything: what was not in a page is gone.
    Synced,
    /// An object is new or has changed.
    Put(T),
    /// An object is gone.
    Delete(ObjectName),
    /// It does not work, for the reason given; what was said before stays true. Said once.
    Failing(Failure),
    /// It works again.
    Recovered,
}

impl Target {
    /// All objects of a resource.
    pub fn all(resource: Resource) -> Self {
        Self { resource, namespace: None, name: None, label: None, is_metadata_only: false }
    }

    /// The same, of those only that have a label, whatever its value.
    pub fn labelled(self, label: &'static str) -> Self {
        Self { label: Some(label), ..self }
    }

    fn request(&self) -> Request {
        Request::new(self.resource.path(self.namespace.as_deref()))
    }

    fn field_selector(&self) -> Option<String> {
        self.name.as_ref().map(|name| format!("metadata.name={name}"))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.resource.kind, self.resource.api_version())?;
        if let Some(namespace) = &self.namespace {
            write!(f, " in {namespace}")?;
        }
        Ok(())
    }
}

/// Keeps a list up to date until nobody receives any more; `read` makes of each object what is sent, `wrap` makes the
/// message. Dropping the future ends the watch.
pub async fn reflect<T, M>(
    client: Client,
    target: Target,
    read: impl Fn(Value) -> T,
    wrap: impl Fn(Update<T>) -> M,
    out: mpsc::Sender<M>,
) {
    let mut reflector = Reflector { client, target, read, wrap, out, is_failing: false };
    let mut backoff = Backoff::default();
    let mut version: Option<String> = None;
    loop {
        let begun = Instant::now();
        let outcome = match version.take() {
            None => reflector.list().await.map(|listed| {
                version = Some(listed);
                Done::Listed
            }),
            Some(mut from) => {
                let outcome = reflector.watch(&mut from).await;
                if !matches!(outcome, Err(Stop::Failed(Failure::Expired))) {
                    version = Some(from);
                }
                outcome.map(|()| Done::Watched)
            }
        };
        let lived = begun.elapsed();
        let said = match outcome {
            Err(Stop::Closed) => return,
            Ok(Done::Listed) => reflector.say_recovered().await,
            Ok(Done::Watched) => {
                if lived >= GOOD {
                    backoff.reset();
                } else {
                    // A server that closes each watch at once must not be asked in a loop.
                    sleep(backoff.next_wait()).await;
                }
                Ok(())
            }
            Err(Stop::Failed(failure)) => {
                if lived >= GOOD {
                    backoff.reset();
                }
                let said = reflector.say_failing(failure, backoff.failures()).await;
                sleep(backoff.next_wait()).await;
                said
            }
        };
        if said.is_err() {
            return;
        }
    }
}

/// What has ended in good order.
enum Done {
    Listed,
    Watched,
}

/// Why listing or watching ended early.
enum Stop {
    /// Nobody receives any more.
    Closed,
    Failed(Failure),
}

impl<F: Into<Failure>> From<F> for Stop {
    fn from(failure: F) -> Self {
        Self::Failed(failure.into())
    }
}

struct Reflector<R, W, M> {
    client: Client,
    target: Target,
    read: R,
    wrap: W,
    out: mpsc::Sender<M>,
    is_failing: bool,
}

impl<T, M, R: Fn(Value) -> T, W: Fn(Update<T>) -> M> Reflector<R, W, M> {
    async fn say(&self, update: Update<T>) -> Result<(), Stop> {
        self.out.send((self.wrap)(update)).await.map_err(|_| Stop::Closed)
    }

    async fn say_failing(&mut self, failure: Failure, failures: u32) -> Result<(), Stop> {
        // A watch that breaks once and goes on is no news, and a version that is too old is mended by the list that follows.
        let is_news = failures > 0 || matches!(failure, Failure::Forbidden(_) | Failure::NotFound(_));
        if self.is_failing || !is_news || failure == Failure::Expired {
            return Ok(());
        }
        self.is_failing = true;
        self.say(Update::Failing(failure)).await
    }

    async fn say_recovered(&mut self) -> Result<(), Stop> {
        if !self.is_failing {
            return Ok(());
        }
        self.is_failing = false;
        self.say(Update::Recovered).await
    }

    /// Lists everything; returns the version to watch from.
    async fn list(&mut self) -> Result<String, Stop> {
        let mut next: Option<String> = None;
        self.say(Update::Begin).await?;
        loop {
            let params = ListParams {
                limit: Some(PAGE),
                continue_token: next.take(),
                field_selector: self.target.field_selector(),
                label_selector: self.target.label.map(str::to_owned),
                ..ListParams::default()
            };
            let request = self.target.request();
            let request =
                if self.target.is_metadata_only { request.list_metadata(&params) } else { request.list(&params) };
            let request = request.map_err(kube::Error::BuildRequest)?;
            let mut page: Value = timeout(REQUEST_TIMEOUT, self.client.request(request)).await??;
            let items = match page["items"].take() {
                Value::Array(items) => items,
                // An empty list of metadata, as Go writes a slice that nobody has made.
                Value::Null if page["metadata"].is_object() => Vec::new(),
                _ => {
                    return Err(
                        Failure::Other("the API server answered with something that is no list".to_owned()).into()
                    );
                }
            };
            self.say(Update::Page(items.into_iter().map(&self.read).collect())).await?;
            match page["metadata"]["continue"].as_str().filter(|token| !token.is_empty()) {
                Some(token) => next = Some(token.to_owned()),
                None => {
                    let version = page["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                    self.say(Update::Synced).await?;
                    return Ok(version);
                }
            }
        }
    }

    /// Watches from a version on and keeps it up to date, until the watch ends in good order.
    async fn watch(&mut self, version: &mut String) -> Result<(), Stop> {
        let seconds = WATCH_SECONDS.0 + (WATCH_SECONDS.1 - WATCH_SECONDS.0) * jitter();
        let params = WatchParams {
            timeout: Some(seconds as u32),
            field_selector: self.target.field_selector(),
            label_selector: self.target.label.map(str::to_owned),
            ..WatchParams::default()
        };
        let request = self.target.request();
        let request = if self.target.is_metadata_only {
            request.watch_metadata(&params, version)
        } else {
            request.watch(&params, version)
        };
        let request = request.map_err(kube::Error::BuildRequest)?;
        let events = timeout(REQUEST_TIMEOUT, self.client.request_events::<Value>(request)).await??;
        let mut events = pin!(events);
        self.say_recovered().await?;
        loop {
            let event = tokio::select! {
                () = self.out.closed() => return Err(Stop::Closed),
                event = timeout(SILENCE, events.next()) => event,
            };
            // Silence is no fault: what follows goes on from here.
            let Ok(event) = event else { return Ok(()) };
            match event.transpose()? {
                None => return Ok(()),
                Some(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    note_version(&object, version);
                    self.say(Update::Put((self.read)(object))).await?;
                }
                Some(WatchEvent::Deleted(object)) => {
                    note_version(&object, version);
                    self.say(Update::Delete(name_of(&object))).await?;
                }
                Some(WatchEvent::Bookmark(bookmark)) => *version = bookmark.metadata.resource_version,
                Some(WatchEvent::Error(status)) => return Err(Failure::from(&*status).into()),
            }
        }
    }
}

fn note_version(object: &Value, version: &mut String) {
    if let Some(seen) = object["metadata"]["resourceVersion"].as_str() {
        seen.clone_into(version);
    }
}

/// Name of an object by its untyped metadata.
pub fn name_of(object: &Value) -> ObjectName {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    ObjectName::new(text("namespace"), text("name"))
}

#[cfg(test)]
#[path = "reflector_tests.rs"]
mod tests;
