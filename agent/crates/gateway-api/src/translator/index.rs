//! Who refers to what, in both directions: what must be looked at again when an object changes.

use std::collections::{BTreeMap, BTreeSet};

use super::sorted::SortedSet;

/// Edges from sources to targets.
#[derive(Debug)]
pub(crate) struct Index<S, T> {
    targets: BTreeMap<S, SortedSet<T>>,
    sources: BTreeMap<T, BTreeSet<S>>,
}

impl<S, T> Default for Index<S, T> {
    fn default() -> Self {
        Self { targets: BTreeMap::new(), sources: BTreeMap::new() }
    }
}

impl<S: Ord + Clone, T: Ord + Clone> Index<S, T> {
    /// Replaces the targets of a source; returns the targets that nobody refers to any more.
    pub(crate) fn replace(&mut self, source: &S, targets: BTreeSet<T>) -> Vec<T> {
        // Names are shared with those who refer to the same already.
        let known = |target: T| match self.sources.get_key_value(&target) {
            Some((known, _)) => known.clone(),
            None => target,
        };
        let targets = SortedSet::from(targets.into_iter().map(known).collect::<BTreeSet<_>>());
        let before = self.targets.get(source);
        if before.is_some_and(|before| *before == targets) || (before.is_none() && targets.is_empty()) {
            return Vec::new();
        }
        let before = self.targets.remove(source).unwrap_or_default();
        let mut orphans = Vec::new();
        for target in before.difference(&targets) {
            if let Some(sources) = self.sources.get_mut(target) {
                sources.remove(source);
                if sources.is_empty() {
                    self.sources.remove(target);
                    orphans.push(target.clone());
                }
            }
        }
        for target in targets.difference(&before) {
            self.sources.entry(target.clone()).or_default().insert(source.clone());
        }
        if !targets.is_empty() {
            self.targets.insert(source.clone(), targets);
        }
        orphans
    }

    /// What a source refers to.
    pub(crate) fn targets_of(&self, source: &S) -> impl Iterator<Item = &T> {
        self.targets.get(source).into_iter().flat_map(SortedSet::iter)
    }

    /// Who refers to a target.
    pub(crate) fn sources_of(&self, target: &T) -> impl Iterator<Item = &S> {
        self.sources.get(target).into_iter().flatten()
    }

    /// Whether anybody refers to a target.
    pub(crate) fn is_target(&self, target: &T) -> bool {
        self.sources.contains_key(target)
    }

    /// Targets in a range, with who refers to them.
    pub(crate) fn targets_in(&self, range: impl std::ops::RangeBounds<T>) -> impl Iterator<Item = &T> {
        self.sources.range(range).map(|(target, _)| target)
    }

    /// Every target.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &T> {
        self.sources.keys()
    }
}
