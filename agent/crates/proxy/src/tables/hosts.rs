//! A map from host name patterns to values, asked with a host name: exact first, then the longest wildcard, then any.
//!
//! A wildcard is found by one hash probe for each dot of the host, so cost follows the host's labels and not the number of
//! patterns. The map knows nothing of listeners or rules; it serves both.

use std::sync::Arc;

use hashbrown::HashMap;
use tidegate_model::Hostname;

/// Values by host name pattern.
#[derive(Debug)]
pub(super) struct HostMap<T> {
    exact: HashMap<Arc<str>, T>,
    /// By the part behind `*.`.
    wildcard: HashMap<Arc<str>, T>,
    /// Length of the longest key of `wildcard`; never shrinks while there is one.
    longest_suffix: usize,
    any: Option<T>,
}

impl<T> Default for HostMap<T> {
    fn default() -> Self {
        Self { exact: HashMap::default(), wildcard: HashMap::default(), longest_suffix: 0, any: None }
    }
}

impl<T> HostMap<T> {
    /// The value of a pattern (`None`: every host), made when it is missing.
    pub(super) fn entry(&mut self, pattern: Option<&Hostname>) -> &mut T
    where
        T: Default,
    {
        match pattern {
            Some(Hostname::Exact(name)) => self.exact.entry(name.clone()).or_default(),
            Some(Hostname::Wildcard(suffix)) => {
                self.longest_suffix = self.longest_suffix.max(suffix.len());
                self.wildcard.entry(suffix.clone()).or_default()
            }
            None => self.any.get_or_insert_default(),
        }
    }

    /// Changes the value of a pattern, if there is one, and removes it when `change` returns that it is of no more use.
    pub(super) fn change(&mut self, pattern: Option<&Hostname>, change: impl FnOnce(&mut T) -> bool) {
        match pattern {
            Some(Hostname::Exact(name)) => {
                if self.exact.get_mut(name).is_some_and(change) {
                    self.exact.remove(name);
                }
            }
            Some(Hostname::Wildcard(suffix)) => {
                if self.wildcard.get_mut(suffix).is_some_and(change) {
                    self.wildcard.remove(suffix);
                }
                if self.wildcard.is_empty() {
                    self.longest_suffix = 0;
                }
            }
            None => {
                if self.any.as_mut().is_some_and(change) {
                    self.any = None;
                }
            }
        }
    }

    /// Whether there is no pattern.
    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.wildcard.is_empty() && self.any.is_none()
    }

    /// The value for every host.
    pub(super) fn any(&self) -> Option<&T> {
        self.any.as_ref()
    }

    /// Asks the values whose pattern matches `host` (lower case, no port, no trailing dot), the most specific first, and
    /// returns the first answer.
    pub(super) fn find_map<'a, R>(&'a self, host: &str, mut ask: impl FnMut(&'a T) -> Option<R>) -> Option<R> {
        if !self.exact.is_empty()
            && let Some(answer) = self.exact.get(host).and_then(&mut ask)
        {
            return Some(answer);
        }
        if !self.wildcard.is_empty() {
            let bytes = host.as_bytes();
            // The dot at 0 has no label before it; a suffix longer than every key needs no probe.
            let first = bytes.len().saturating_sub(self.longest_suffix + 1).max(1);
            for at in memchr::memchr_iter(b'.', bytes.get(first..).unwrap_or_default()) {
                if let Some(answer) = self.wildcard.get(&host[first + at + 1..]).and_then(&mut ask) {
                    return Some(answer);
                }
            }
        }
        self.any.as_ref().and_then(ask)
    }

    /// The value of the most specific pattern that matches `host`.
    pub(super) fn find(&self, host: &str) -> Option<&T> {
        self.find_map(host, Some)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern() -> impl Strategy<Value = Option<Hostname>> {
        prop_oneof![
            Just(None),
            "[ab](\\.[ab]){0,3}".prop_map(|name| Some(Hostname::Exact(name.into()))),
            "[ab](\\.[ab]){0,3}".prop_map(|name| Some(Hostname::Wildcard(name.into()))),
        ]
    }

    /// Rank of a pattern by the specification: exact before wildcard before any, longer wildcards first.
    fn rank(pattern: Option<&Hostname>) -> (u8, usize) {
        match pattern {
            Some(Hostname::Exact(_)) => (2, 0),
            Some(Hostname::Wildcard(suffix)) => (1, suffix.len()),
            None => (0, 0),
        }
    }

    proptest! {
        #[test]
        fn answers_come_in_the_order_of_the_specification(
            patterns in proptest::collection::vec(pattern(), 0..12),
            removed in proptest::collection::vec(pattern(), 0..6),
            host in "\\.?[ab](\\.[ab]){0,4}",
        ) {
            let mut map = HostMap::<Option<Option<Hostname>>>::default();
            for pattern in &patterns {
                *map.entry(pattern.as_ref()) = Some(pattern.clone());
            }
            for pattern in &removed {
                map.change(pattern.as_ref(), |_| true);
            }
            let mut expected: Vec<_> = patterns
                .iter()
                .filter(|pattern| !removed.contains(pattern))
                .filter(|pattern| pattern.as_ref().is_none_or(|pattern| pattern.is_match(&host)))
                .cloned()
                .collect();
            expected.sort_by_key(|pattern| std::cmp::Reverse(rank(pattern.as_ref())));
            expected.dedup();
            let mut seen = Vec::new();
            map.find_map(&host, |value| -> Option<()> {
                seen.push(value.clone().expect("every entry was given a value"));
                None
            });
            prop_assert_eq!(seen, expected);
        }
    }
}
