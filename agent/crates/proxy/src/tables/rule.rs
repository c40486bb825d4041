//! A rule, compiled: everything a request needs once its match is found.

use std::{fmt, rc::Rc, sync::Arc};

use tidegate_model::{BackendKey, BackendTarget, Match, PathMatch, Rule, RuleKey, Timeouts};

use super::{conditions::Conditions, regex::WholeRegex};
use crate::{
    balance::{BackendState, Prng, Weights},
    filters::Filters,
    session::Session,
};

/// A rule in force. A request in flight keeps it and ends under it, whatever happens to the model.
pub struct CompiledRule {
    /// Its key.
    pub key: RuleKey,
    /// What it was made from.
    pub source: Arc<Rule>,
    /// Filters of the rule.
    pub filters: Filters,
    /// Where its requests go.
    pub backends: Vec<CompiledBackend>,
    /// What keeps a client at one endpoint.
    pub session: Option<Session>,
    weights: Weights,
}

/// One `backendRef` of a rule.
#[derive(Debug)]
pub struct CompiledBackend {
    /// Where its share goes.
    pub target: Target,
    /// Filters of the reference, applied after the rule's.
    pub filters: Filters,
}

/// What a `backendRef` leads to.
#[derive(Clone, Debug)]
pub enum Target {
    /// A backend.
    Backend(Rc<BackendState>),
    /// Nothing: its share answers 500, for this reason.
    Invalid(Arc<str>),
}

/// One match of a rule beside its path.
#[derive(Debug)]
pub(super) struct CompiledMatch {
    /// Index in the rule's matches.
    pub(super) index: u16,
    /// The path, when it is a regular expression.
    pub(super) regex: Option<WholeRegex>,
    /// Everything but the path.
    pub(super) conditions: Option<Rc<Conditions>>,
}

impl CompiledRule {
    /// Compiles a rule. A match that cannot be used never matches, a filter that cannot be honoured makes its requests
    /// fail; both are described in `problems`.
    pub(super) fn compile(
        key: RuleKey,
        source: Arc<Rule>,
        find_backend: &mut dyn FnMut(&BackendKey) -> Rc<BackendState>,
        problems: &mut Vec<String>,
    ) -> (Self, Vec<CompiledMatch>) {
        let mut matches = Vec::with_capacity(source.matches.len());
        for (index, source) in (0..=u16::MAX).zip(&source.matches) {
            match compile_match(index, source) {
                Ok(compiled) => matches.push(compiled),
                Err(problem) => problems.push(format!("matches[{index}]: {problem}")),
            }
        }
        let mut filters = Filters::compile(&source.filters, find_backend, problems);
        let session = source.session.as_ref().map(Session::compile).transpose().unwrap_or_else(|problem| {
            filters.broken = Some(problem.as_str().into());
            problems.push(problem);
            None
        });
        let mut backends = Vec::with_capacity(source.backends.len());
        for backend in &source.backends {
            let target = match &backend.target {
                BackendTarget::Backend(key) => Target::Backend(find_backend(key)),
                BackendTarget::Invalid(reason) => Target::Invalid(reason.clone()),
            };
            backends
                .push(CompiledBackend { target, filters: Filters::compile(&backend.filters, find_backend, problems) });
        }
        let weights = Weights::new(source.backends.iter().map(|backend| backend.weight));
        let weights = weights.shuffled(&mut Prng::from_entropy());
        (Self { key, source, filters, backends, session, weights }, matches)
    }

    /// Index of the `backendRef` whose turn it is; `None` when none has a weight.
    pub fn choose_backend(&self) -> Option<usize> {
        self.weights.choose()
    }

    /// Time limits.
    pub fn timeouts(&self) -> Timeouts {
        self.source.timeouts
    }
}

impl fmt::Debug for CompiledRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CompiledRule({})", self.key)
    }
}

fn compile_match(index: u16, source: &Match) -> Result<CompiledMatch, String> {
    let regex = match &source.path {
        PathMatch::Regex(pattern) => Some(WholeRegex::new(pattern)?),
        PathMatch::Exact(_) | PathMatch::Prefix(_) => None,
    };
    Ok(CompiledMatch { index, regex, conditions: Conditions::compile(source)?.map(Rc::new) })
}

/// Keys of all backends that a rule refers to, as often as it does.
pub(super) fn backends_of(rule: &Rule) -> impl Iterator<Item = &BackendKey> {
    let targets = rule.backends.iter().filter_map(|backend| match &backend.target {
        BackendTarget::Backend(key) => Some(key),
        BackendTarget::Invalid(_) => None,
    });
    let filters = rule.filters.iter().chain(rule.backends.iter().flat_map(|backend| &backend.filters));
    let others = filters.filter_map(|filter| match filter {
        tidegate_model::Filter::Mirror(mirror) => mirror.backend.as_ref(),
        tidegate_model::Filter::ExternalAuth(auth) => auth.backend.as_ref(),
        _ => None,
    });
    targets.chain(others)
}
