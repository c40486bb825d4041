//! A forward, compiled, and the order of those that want the same connections.

use std::{cmp::Ordering, fmt, rc::Rc, sync::Arc};

use smallvec::SmallVec;
use tidegate_model::{BackendKey, BackendTarget, Forward, RuleKey};

use super::{candidates::compare_keys, rule::Target};
use crate::{
    balance::{BackendState, Weights},
    stats::ForwardStats,
};

/// A forward in force. A connection keeps it and ends under it, whatever happens to the model.
pub struct CompiledForward {
    /// Its key.
    pub key: RuleKey,
    /// What it was made from.
    pub source: Arc<Forward>,
    targets: Box<[Target]>,
    weights: Weights,
}

impl CompiledForward {
    pub(super) fn compile(
        key: RuleKey,
        source: Arc<Forward>,
        find_backend: &mut dyn FnMut(&BackendKey) -> Rc<BackendState>,
    ) -> Self {
        let targets = source.backends.iter().map(|backend| match &backend.target {
            BackendTarget::Backend(key) => Target::Backend(find_backend(key)),
            BackendTarget::Invalid(reason) => Target::Invalid(reason.clone()),
        });
        let targets = targets.collect();
        let weights = Weights::new(source.backends.iter().map(|backend| backend.weight));
        Self { key, source, targets, weights }
    }

    /// Where the next connection goes; `None` when no backend has a weight.
    pub fn choose(&self) -> Option<&Target> {
        Some(&self.targets[self.weights.choose()?])
    }

    /// Whether anything is to be sent to a backend.
    pub fn sends_to(&self, backend: &Rc<BackendState>) -> bool {
        let is_meant = |target: &Target| matches!(target, Target::Backend(other) if Rc::ptr_eq(other, backend));
        self.targets.iter().zip(&self.source.backends).any(|(target, source)| source.weight > 0 && is_meant(target))
    }

    /// The older first, then by `namespace/name`.
    fn compare(&self, other: &Self) -> Ordering {
        self.source.created.cmp(&other.source.created).then_with(|| compare_keys(&self.key, &other.key))
    }
}

impl fmt::Debug for CompiledForward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompiledForward({})", self.key)
    }
}

/// A forward at one of its listeners.
#[derive(Clone, Debug)]
pub struct FoundForward {
    /// The forward.
    pub forward: Rc<CompiledForward>,
    /// Where connections through this Gateway are counted.
    pub stats: Rc<ForwardStats>,
}

/// Forwards of one listener with the same server name, in the order of precedence: only the first is served.
#[derive(Debug, Default)]
pub(super) struct Rivals(SmallVec<[FoundForward; 1]>);

impl Rivals {
    pub(super) fn push(&mut self, found: FoundForward) {
        let at = self.0.partition_point(|present| present.forward.compare(&found.forward) == Ordering::Less);
        self.0.insert(at, found);
    }

    pub(super) fn remove(&mut self, forward: &Rc<CompiledForward>) {
        self.0.retain(|present| !Rc::ptr_eq(&present.forward, forward));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn first(&self) -> Option<&FoundForward> {
        self.0.first()
    }
}

/// Keys of all backends that a forward refers to, as often as it does.
pub(super) fn backends_of(forward: &Forward) -> impl Iterator<Item = &BackendKey> {
    forward.backends.iter().filter_map(|backend| match &backend.target {
        BackendTarget::Backend(key) => Some(key),
        BackendTarget::Invalid(_) => None,
    })
}
