//! Stage: backends that routes refer to, and their endpoints.

use std::sync::Arc;

use tidegate_model::{BackendKey, BackendTls, Endpoints};

use super::Translator;
use crate::{endpoints::ReadBackend, models::CurrentBackend, status::Problem};

/// A backend that a route refers to.
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
                self.work.routes.extend(self.edges.route_backends.sources_of(&key).cloned());
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

    /// Reads a backend that is referred to for the first time.
    pub(super) fn require_backend(&mut self, key: &BackendKey) {
        if !self.backends.contains_key(key) {
            let state = self.read_backend(key);
            self.backends.insert(key.clone(), state);
        }
    }

    fn read_backend(&mut self, key: &BackendKey) -> BackendState {
        self.translated += 1;
        let (check, read) = (self.store.check_backend(key), self.store.read_backend(key));
        let endpoints = if check.is_ok() { self.store.read_endpoints(key) } else { Endpoints::default() };
        BackendState { check, read, tls: self.find_tls(key), endpoints: Arc::new(endpoints) }
    }
}
