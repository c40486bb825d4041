//! Secrets, ConfigMaps and ClusterTrustBundles: only those that are referred to are asked for, one by one and by name.
//!
//! Their namespaces are watched by metadata alone, which tells when one has changed. So nothing that nobody refers to is
//! ever received, and a service account with rights in those namespaces only is enough. ClusterTrustBundles are a kind that
//! a cluster need not have: then there is none.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::{StreamExt, stream};
use kube::Client;
use serde_json::Value;
use tidegate_gateway_api::{Event, Kind, ObjectRef, parse};
use tidegate_model::ObjectName;
use tokio::{
    sync::mpsc,
    time::{Duration, Instant, timeout},
};

use super::{Message, Task, held, trim::trim};
use crate::{
    kube::{Backoff, Failure, Resource, Target, Update, get, name_of, reflect},
    source::{Problem, Severity},
};

/// How long one may be waited for before what else has changed is passed on without it.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asked for at the same time.
const AT_ONCE: usize = 16;

/// Namespaces that are watched each by itself; with more, all are watched as one, because each takes a connection.
const MAX_NAMESPACES: usize = 32;

/// Metadata of one object: name and version.
pub(super) type Meta = (ObjectName, String);

/// What is watched for news.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Scope {
    kind: Kind,
    /// `None`: all.
    namespace: Option<String>,
}

/// What is referred to, as far as it was fetched.
pub(super) struct Fetcher {
    client: Client,
    out: mpsc::Sender<Message>,
    wanted: BTreeMap<ObjectRef, Fetched>,
    watches: BTreeMap<Scope, Watch>,
    /// Version at which ClusterTrustBundles are served; `None` where there is no such kind.
    trust_bundles: Option<&'static str>,
    retry_at: Option<Instant>,
    backoff: Backoff,
}

#[derive(Default)]
struct Fetched {
    /// Version in force; `None` when there is no such object, or it was not fetched yet.
    version: Option<String>,
    /// Whether it is to be asked for.
    is_due: bool,
    failure: Option<String>,
}

struct Watch {
    _task: Task,
    /// Names in the list that is being read.
    listed: BTreeSet<ObjectName>,
    failure: Option<Failure>,
}

impl Fetcher {
    pub(super) fn new(client: Client, out: mpsc::Sender<Message>) -> Self {
        Self {
            client,
            out,
            wanted: BTreeMap::new(),
            watches: BTreeMap::new(),
            trust_bundles: None,
            retry_at: None,
            backoff: Backoff::default(),
        }
    }

    /// When something is to be asked for again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Takes what is wanted now; what is not any more is dropped.
    pub(super) fn set_wanted(&mut self, wanted: &BTreeSet<ObjectRef>, events: &mut Vec<Event>) {
        self.wanted.retain(|reference, fetched| {
            let is_kept = wanted.contains(reference);
            if !is_kept && fetched.version.is_some() {
                events.push(Event::Delete(reference.clone()));
            }
            is_kept
        });
        for reference in wanted {
            self.wanted.entry(reference.clone()).or_insert_with(|| Fetched { is_due: true, ..Fetched::default() });
        }
        self.watch_scopes();
    }

    /// Takes the version at which ClusterTrustBundles are served.
    pub(super) fn set_trust_bundles(&mut self, version: Option<&'static str>, events: &mut Vec<Event>) {
        if std::mem::replace(&mut self.trust_bundles, version) == version {
            return;
        }
        self.watches.retain(|scope, _| scope.kind != Kind::ClusterTrustBundle);
        let bundles: Vec<_> =
            self.wanted.keys().filter(|reference| reference.kind == Kind::ClusterTrustBundle).cloned().collect();
        for reference in bundles {
            if version.is_none() {
                self.drop_version(&reference, events);
            }
            self.wanted.insert(reference, Fetched { is_due: true, ..Fetched::default() });
        }
        self.watch_scopes();
    }

    /// Version at which a kind is served; `None` where there is no such kind.
    fn version_of(&self, kind: Kind) -> Option<&'static str> {
        if kind == Kind::ClusterTrustBundle { self.trust_bundles } else { Some("v1") }
    }

    fn watch_scopes(&mut self) {
        let mut scopes = scopes(self.wanted.keys());
        scopes.retain(|scope| self.version_of(scope.kind).is_some());
        self.watches.retain(|scope, _| scopes.contains(scope));
        for scope in scopes {
            if let (false, Some(version)) = (self.watches.contains_key(&scope), self.version_of(scope.kind)) {
                let task = self.watch(&scope, version);
                self.watches.insert(scope, Watch { _task: task, listed: BTreeSet::new(), failure: None });
            }
        }
    }

    fn watch(&self, scope: &Scope, version: &'static str) -> Task {
        let target = Target {
            namespace: scope.namespace.clone(),
            is_metadata_only: true,
            ..Target::all(Resource::of(scope.kind, version))
        };
        let read = |value: Value| {
            let version = value["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
            (name_of(&value), version)
        };
        let scope = scope.clone();
        let wrap = move |update| Message::Meta(scope.clone(), update);
        Task::spawn(reflect(self.client.clone(), target, read, wrap, self.out.clone()))
    }

    /// Takes what happened in a scope.
    pub(super) fn take(&mut self, scope: &Scope, update: Update<Meta>, events: &mut Vec<Event>) {
        let Some(watch) = self.watches.get_mut(scope) else { return };
        match update {
            Update::Begin => watch.listed.clear(),
            Update::Page(page) => {
                watch.listed.extend(page.iter().map(|(name, _)| name.clone()));
                page.into_iter().for_each(|meta| self.note(scope.kind, meta));
            }
            Update::Synced => {
                let listed = std::mem::take(&mut watch.listed);
                let is_in = |reference: &&ObjectRef| {
                    reference.kind == scope.kind
                        && scope.namespace.as_deref().is_none_or(|namespace| *namespace == *reference.name.namespace)
                };
                let gone: Vec<_> = self
                    .wanted
                    .keys()
                    .filter(is_in)
                    .filter(|reference| !listed.contains(&reference.name))
                    .cloned()
                    .collect();
                gone.iter().for_each(|reference| self.drop_version(reference, events));
            }
            Update::Put(meta) => self.note(scope.kind, meta),
            Update::Delete(name) => self.drop_version(&ObjectRef::new(scope.kind, name), events),
            Update::Failing(failure) => watch.failure = Some(failure),
            Update::Recovered => watch.failure = None,
        }
    }

    fn note(&mut self, kind: Kind, (name, version): Meta) {
        if let Some(fetched) = self.wanted.get_mut(&ObjectRef::new(kind, name))
            && fetched.version.as_ref() != Some(&version)
        {
            fetched.is_due = true;
        }
    }

    fn drop_version(&mut self, reference: &ObjectRef, events: &mut Vec<Event>) {
        if let Some(fetched) = self.wanted.get_mut(reference)
            && fetched.version.take().is_some()
        {
            events.push(Event::Delete(reference.clone()));
        }
    }

    /// Asks for everything that is due and waits for the answers, within [`PATIENCE`]. Returns whether a failure came or
    /// went.
    pub(super) async fn fetch(&mut self, events: &mut Vec<Event>) -> bool {
        let is_late = self.retry_at.is_none_or(|at| at <= Instant::now());
        let is_asked = |fetched: &Fetched| fetched.is_due && (is_late || fetched.failure.is_none());
        let asked = self.wanted.iter().filter(|(_, fetched)| is_asked(fetched));
        let due: Vec<_> = asked
            .filter_map(|(name, _)| Some((name.clone(), Resource::of(name.kind, self.version_of(name.kind)?))))
            .collect();
        if due.is_empty() {
            return false;
        }
        let requests = due.into_iter().map(|(reference, resource)| {
            let client = &self.client;
            async move {
                let path = resource.path(Some(&reference.name.namespace));
                let answer = timeout(PATIENCE, get(client, &format!("{path}/{}", reference.name.name))).await;
                (reference, answer.unwrap_or_else(|elapsed| Err(elapsed.into())))
            }
        });
        let answers: Vec<_> = stream::iter(requests).buffer_unordered(AT_ONCE).collect().await;
        let mut is_changed = false;
        let mut has_failed = false;
        for (reference, answer) in answers {
            let failure = self.take_answer(&reference, answer, events);
            has_failed |= failure.is_some();
            if let Some(fetched) = self.wanted.get_mut(&reference) {
                is_changed |= fetched.failure != failure;
                fetched.is_due = failure.is_some();
                fetched.failure = failure;
            }
        }
        if has_failed {
            self.retry_at = Some(Instant::now() + self.backoff.next_wait());
        } else if is_late {
            self.retry_at = None;
            self.backoff.reset();
        }
        is_changed
    }

    /// Whether something could not be fetched that was never there before.
    pub(super) fn lacks_any(&self) -> bool {
        self.wanted.values().any(|fetched| fetched.failure.is_some() && fetched.version.is_none())
    }

    /// Takes an answer; returns why it is none.
    fn take_answer(
        &mut self,
        reference: &ObjectRef,
        answer: Result<Value, Failure>,
        events: &mut Vec<Event>,
    ) -> Option<String> {
        let mut value = match answer {
            Ok(value) => value,
            Err(Failure::NotFound(_)) => {
                self.drop_version(reference, events);
                return None;
            }
            Err(failure) => return Some(failure.to_string()),
        };
        let version = value["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        trim(reference.kind, &mut value);
        if let Some(fields) = value.as_object_mut() {
            let api_version = Resource::of(reference.kind, reference.kind.versions()[0]).api_version();
            fields.insert("apiVersion".to_owned(), api_version.into());
            fields.insert("kind".to_owned(), reference.kind.as_str().into());
        }
        match parse(value) {
            Ok(parsed) => {
                events.push(Event::Put(parsed.object));
                if let Some(fetched) = self.wanted.get_mut(reference) {
                    fetched.version = Some(version);
                }
                None
            }
            // Not with the reason: it may quote what must not be seen.
            Err(_) => Some(format!("is no {} that can be read", reference.kind)),
        }
    }

    /// What does not work.
    pub(super) fn problems(&self) -> impl Iterator<Item = Problem> {
        let objects = self.wanted.iter().filter_map(|(reference, fetched)| {
            let failure = fetched.failure.as_ref()?;
            let kept = if fetched.version.is_some() { "; its last version stays in force" } else { "" };
            let message = format!("cannot be fetched: {failure}{kept}");
            Some(held::problem(Severity::Error, Some(reference.to_string()), message))
        });
        let watches = self.watches.iter().filter_map(|(scope, watch)| {
            let failure = watch.failure.as_ref()?;
            let place =
                scope.namespace.as_ref().map_or_else(String::new, |namespace| format!(" of namespace {namespace}"));
            let message = format!("{}s{place} cannot be watched, changes of them are not seen: {failure}", scope.kind);
            Some(held::problem(Severity::Error, None, message))
        });
        objects.chain(watches)
    }
}

/// What must be watched for news of what is wanted.
fn scopes<'a>(wanted: impl Iterator<Item = &'a ObjectRef> + Clone) -> BTreeSet<Scope> {
    let mut scopes = BTreeSet::new();
    if wanted.clone().any(|reference| reference.kind == Kind::ClusterTrustBundle) {
        scopes.insert(Scope { kind: Kind::ClusterTrustBundle, namespace: None });
    }
    for kind in [Kind::Secret, Kind::ConfigMap] {
        let of_kind = wanted.clone().filter(|reference| reference.kind == kind);
        let namespaces: BTreeSet<_> = of_kind.map(|reference| &reference.name.namespace).collect();
        if namespaces.len() > MAX_NAMESPACES {
            scopes.insert(Scope { kind, namespace: None });
        } else {
            let scope = |namespace: &&std::sync::Arc<str>| Scope { kind, namespace: Some(namespace.to_string()) };
            scopes.extend(namespaces.iter().map(scope));
        }
    }
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_namespaces_are_watched_as_one() {
        let scopes_of = |count: usize| {
            let secret = |index| ObjectRef::new(Kind::Secret, ObjectName::new(format!("ns{index}"), "a"));
            let wanted: BTreeSet<_> = (0..count).map(secret).collect();
            scopes(wanted.iter())
        };
        assert_eq!(scopes_of(MAX_NAMESPACES).len(), MAX_NAMESPACES);
        assert_eq!(scopes_of(MAX_NAMESPACES + 1), BTreeSet::from([Scope { kind: Kind::Secret, namespace: None }]));
    }
}
