//! Stage: backends that routes and listeners refer to, and their endpoints.

use std::{collections::BTreeSet, sync::Arc};

use tidegate_model::{BackendKey, BackendTls, Endpoints};

use super::Translator;
use crate::{
    endpoints::ReadBackend,
    models::CurrentBackend,
    object::{Kind, ObjectRef},
    status::Problem,
};

/// A backend that an object refers to.
#[derive(Clone, Debug)]
pub(super) struct BackendState {
    /// Whether it can be a backend of anything …
    check: Result<(), Problem>,
    /// … and of requests.
    read: ReadBackend,
    tls: Option<BackendTls>,
    endpoints: Arc<Endpoints>,
}

impl BackendState {
    /// The backend for the models; `None` when it cannot be used.
    pub(super) fn current(&self) -> Option<CurrentBackend> {
        self.check.as_ref().ok()?;
        let protocol = self.read.as_ref().ok().and_then(|speech| speech.protocol);
        Some(CurrentBackend { protocol, tls: self.tls.clone(), endpoints: self.endpoints.clone() })
    }
}

impl Translator {
    pub(super) fn settle_backends(&mut self) {
        for key in std::mem::take(&mut self.work.backends) {
            // A backend that nobody referred to is read when somebody does.
            let Some(before) = self.backends.remove(&key) else { continue };
            let now = self.read_backend(&key);
            if before.check != now.check || before.read.as_ref().err() != now.read.as_ref().err() {
                for user in self.edges.backend_users.sources_of(&key) {
                    match user.kind {
                        Kind::Gateway => self.work.gateways.insert(user.name.clone()),
                        Kind::ListenerSet => self.work.listener_sets.insert(user.name.clone()),
                        _ => self.work.routes.insert(user.clone()),
                    };
                }
            }
            if let Some(current) = now.current() {
                self.models.update_backend(&key, &current);
            }
            self.backends.insert(key, now);
        }
        for key in std::mem::take(&mut self.work.endpoints) {
            let Some(state) = self.backends.get_mut(&key).filter(|state| state.check.is_ok()) else { continue };
            self.translated += 1;
            let endpoints = self.store.read_endpoints(&key);
            if *state.endpoints != endpoints {
                state.endpoints = Arc::new(endpoints);
                let endpoints = state.endpoints.clone();
                self.models.update_endpoints(&key, &endpoints);
            }
        }
    }

    /// Notes which backends an object names. Those that are named for the first time are read, those that nobody names any more
    /// are forgotten.
    pub(super) fn note_backends(&mut self, user: &ObjectRef, named: BTreeSet<BackendKey>) {
        let before: Vec<_> = self.edges.backend_users.targets_of(user).cloned().collect();
        self.mark_policies_of(before.iter().chain(&named));
        for key in &named {
            if !self.backends.contains_key(key) {
                let state = self.read_backend(key);
                self.backends.insert(key.clone(), state);
            }
        }
        for orphan in self.edges.backend_users.replace(user, named) {
            self.backends.remove(&orphan);
        }
    }

    fn read_backend(&mut self, key: &BackendKey) -> BackendState {
        self.translated += 1;
        let (check, read) = (self.store.check_backend(key), self.store.read_backend(key));
        let endpoints = if check.is_ok() { self.store.read_endpoints(key) } else { Endpoints::default() };
        BackendState { check, read, tls: self.find_tls(key), endpoints: Arc::new(endpoints) }
    }
}
