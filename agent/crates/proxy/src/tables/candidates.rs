//! Matches that share a path, in the order in which the Gateway API wants them tried.

use std::{cmp::Ordering, rc::Rc};

use smallvec::SmallVec;
use tidegate_model::{Match, RuleKey};

use super::{conditions::Conditions, rule::CompiledRule};
use crate::{http::head::RequestHead, stats::RuleStats};

/// One match of a rule, at one of its paths.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// The rule.
    pub(crate) rule: Rc<CompiledRule>,
    /// Where requests of this rule through this Gateway are counted.
    pub(crate) stats: Rc<RuleStats>,
    /// Index in the rule's matches.
    pub(crate) match_index: u16,
    /// Conditions beside the path.
    pub(crate) conditions: Option<Rc<Conditions>>,
}

impl Candidate {
    /// Whether a request whose path matches fulfils the rest.
    pub(super) fn is_match(&self, head: &RequestHead) -> bool {
        self.conditions.as_ref().is_none_or(|conditions| conditions.is_match(head))
    }

    fn source(&self) -> &Match {
        &self.rule.source.matches[usize::from(self.match_index)]
    }

    /// Gateway API precedence among matches of the same path: with a method, more headers, more query parameters; then
    /// the older Route, then `namespace/name`, then the order within the Route. Never equal for two matches of a model.
    pub(super) fn compare(&self, other: &Self) -> Ordering {
        let (a, b) = (self.source(), other.source());
        b.method
            .is_some()
            .cmp(&a.method.is_some())
            .then_with(|| b.headers.len().cmp(&a.headers.len()))
            .then_with(|| b.query.len().cmp(&a.query.len()))
            .then_with(|| self.rule.source.created.cmp(&other.rule.source.created))
            .then_with(|| compare_keys(&self.rule.key, &other.rule.key))
            .then_with(|| self.match_index.cmp(&other.match_index))
    }
}

/// Order of rules of the same age. The specification compares `namespace/name` as one text, so `a-b/x` stands before
/// `a/x` (`-` sorts before `/`).
pub(super) fn compare_keys(a: &RuleKey, b: &RuleKey) -> Ordering {
    if a.route == b.route {
        return a.kind.cmp(&b.kind).then_with(|| a.index.cmp(&b.index));
    }
    let qualified = |key: &RuleKey| format!("{}/{}", key.route.namespace, key.route.name);
    qualified(a).cmp(&qualified(b)).then_with(|| a.kind.cmp(&b.kind)).then_with(|| a.index.cmp(&b.index))
}

/// Candidates in order of precedence.
#[derive(Debug, Default)]
pub(super) struct Candidates(SmallVec<[Candidate; 1]>);

impl Candidates {
    /// Adds a candidate at its place.
    pub(super) fn push(&mut self, candidate: Candidate) {
        let at = self.0.partition_point(|present| present.compare(&candidate) == Ordering::Less);
        self.0.insert(at, candidate);
    }

    /// Removes a match of a rule; returns whether it was there.
    pub(super) fn remove(&mut self, rule: &Rc<CompiledRule>, match_index: u16) -> bool {
        let is_it = |present: &Candidate| Rc::ptr_eq(&present.rule, rule) && present.match_index == match_index;
        let found = self.0.iter().position(is_it);
        found.map(|at| self.0.remove(at)).is_some()
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The first whose conditions a request fulfils.
    pub(super) fn find(&self, head: &RequestHead) -> Option<&Candidate> {
        self.0.iter().find(|candidate| candidate.is_match(head))
    }
}
