//! Authorities in force: a change of one reaches the backends and listeners that rely on it, and nothing else.

use std::sync::Arc;

use tidegate_model::{Backend, BackendKey, CaBundle, CaBundleKey, Trust};

use super::{BundleEntry, Tables};

impl Tables {
    /// Takes authorities. Those that cannot be used are nobody: what was trusted before is not trusted any more.
    pub(super) fn put_bundle(&mut self, key: &CaBundleKey, source: &Arc<CaBundle>, problems: &mut Vec<String>) {
        if self.bundles.get(key).is_none_or(|entry| entry.source != *source) {
            let read = self.tls.read_bundle(source);
            let problem = read.as_ref().err().cloned();
            self.bundles.insert(key.clone(), BundleEntry { source: source.clone(), usable: read.ok(), problem });
            self.rebuild_trust(key);
        }
        problems.extend(self.bundles.get(key).and_then(|entry| entry.problem.clone()));
    }

    pub(super) fn set_backend(&mut self, key: &BackendKey, backend: &Arc<Backend>) {
        let find_bundle = |key: &CaBundleKey| self.bundles.get(key)?.usable.clone();
        let tls = self.tls.upstream(backend, &find_bundle);
        let entry = self.backend_entry(key);
        entry.backend = Some(backend.clone());
        entry.problem = tls.as_ref().err().filter(|problem| !problem.is_empty()).cloned();
        entry.state.set_backend(backend, tls.unwrap_or_default());
    }

    /// Makes new TLS settings for the listeners and backends that rely on authorities.
    pub(super) fn rebuild_trust(&mut self, bundle: &CaBundleKey) {
        for listener in self.listeners.values() {
            let clients = listener.source.tls.as_ref().and_then(|tls| tls.clients.as_ref());
            if clients.is_some_and(|clients| clients.bundles.contains(bundle)) {
                self.set_tls(listener);
            }
        }
        let relies = |backend: &Backend| matches!(backend.tls.as_ref().map(|tls| &tls.trust), Some(Trust::Bundles(keys)) if keys.contains(bundle));
        let backends = self.backends.iter().filter_map(|(key, entry)| Some((key, entry.backend.as_ref()?)));
        let concerned: Vec<_> = backends
            .filter(|(_, backend)| relies(backend))
            .map(|(key, backend)| (key.clone(), backend.clone()))
            .collect();
        concerned.iter().for_each(|(key, backend)| self.set_backend(key, backend));
    }
}
