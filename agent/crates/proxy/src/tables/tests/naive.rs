//! The Gateway API's rules of precedence as they are written, over plain lists: what the tables are held against.

use std::{cmp::Reverse, collections::BTreeMap};

use tidegate_model::{
    Change, Delta, Hostname, Key, ListenerKey, Match, PathMatch, Resource, Rule, RuleKey, ValueMatch,
};

use crate::http::head::RequestHead;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Outcome {
    NoListener,
    NoRule(ListenerKey),
    Rule(RuleKey, u16, Option<usize>),
}

#[derive(Default)]
pub(super) struct Naive {
    resources: BTreeMap<Key, Resource>,
}

/// Larger wins.
type HostRank = (u8, usize);

impl Naive {
    pub(super) fn apply(&mut self, delta: &Delta) {
        for change in &delta.changes {
            match change {
                Change::Put(resource) => self.resources.insert(resource.key(), resource.clone()),
                Change::Remove(key) => self.resources.remove(key),
            };
        }
    }

    pub(super) fn to_changes(&self) -> Vec<Change> {
        self.resources.values().cloned().map(Change::Put).collect()
    }

    pub(super) fn find(&self, head: &RequestHead) -> Outcome {
        let listeners = self.resources.values().filter_map(|resource| match resource {
            Resource::Listener(key, listener) => Some((host_rank(listener.hostname.as_ref(), head.host())?, key)),
            _ => None,
        });
        let Some((_, listener)) = listeners.min_by_key(|&(rank, key)| (Reverse(rank), key)) else {
            return Outcome::NoListener;
        };
        let rules = self.resources.values().filter_map(|resource| match resource {
            Resource::Rule(key, rule) => Some((key, &**rule)),
            _ => None,
        });
        rules
            .filter_map(|(key, rule)| Some((attachment_rank(rule, listener, head.host())?, key, rule)))
            .flat_map(|(host, key, rule)| {
                (0u16..).zip(&rule.matches).map(move |(index, m)| (host, key, rule, index, m))
            })
            .filter(|(.., m)| is_match(m, head))
            .min_by_key(|&(host, key, rule, index, m)| {
                let name = format!("{}/{}", key.route.namespace, key.route.name);
                let size = (m.method.is_some(), m.headers.len(), m.query.len());
                (Reverse((host, path_rank(&m.path), size)), rule.created, name, key.kind, key.index, index)
            })
            .map_or(Outcome::NoRule(listener.clone()), |(_, key, _, index, m)| {
                let prefix_len = match &m.path {
                    PathMatch::Prefix(prefix) => Some(if &**prefix == "/" { 0 } else { prefix.len() }),
                    _ => None,
                };
                Outcome::Rule(key.clone(), index, prefix_len)
            })
    }
}

fn host_rank(pattern: Option<&Hostname>, host: &str) -> Option<HostRank> {
    match pattern {
        None => Some((0, 0)),
        Some(pattern) if !pattern.is_match(host) => None,
        Some(Hostname::Wildcard(suffix)) => Some((1, suffix.len())),
        Some(Hostname::Exact(_)) => Some((2, 0)),
    }
}

fn attachment_rank(rule: &Rule, listener: &ListenerKey, host: &str) -> Option<HostRank> {
    let here = rule.attachments.iter().filter(|attachment| attachment.listener == *listener);
    here.filter_map(|attachment| match &attachment.hostnames[..] {
        [] => Some((0, 0)),
        names => names.iter().filter_map(|name| host_rank(Some(name), host)).max(),
    })
    .max()
}

fn path_rank(path: &PathMatch) -> (u8, usize) {
    match path {
        PathMatch::Exact(_) => (2, 0),
        PathMatch::Regex(pattern) => (1, pattern.len()),
        PathMatch::Prefix(prefix) => (0, prefix.trim_end_matches('/').len()),
    }
}

fn is_match(m: &Match, head: &RequestHead) -> bool {
    let path = match &m.path {
        PathMatch::Exact(path) => **path == *head.path(),
        PathMatch::Prefix(prefix) => {
            let elements = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
            &**prefix == "/" || elements(head.path()).starts_with(&elements(prefix))
        }
        PathMatch::Regex(pattern) => is_value(&ValueMatch::Regex(pattern.clone()), head.path()),
    };
    let headers = m.headers.iter().all(|header| {
        let values: Vec<_> = head.headers.values(&header.name).map(|value| str::from_utf8(value).unwrap()).collect();
        !values.is_empty() && is_value(&header.value, &values.join(","))
    });
    let query = m.query.iter().all(|parameter| {
        let pairs = head.query().unwrap_or_default().split('&');
        let mut pairs = pairs.map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.find(|(name, _)| **name == *parameter.name).is_some_and(|(_, value)| is_value(&parameter.value, value))
    });
    path && headers && query && m.method.as_ref().is_none_or(|method| **method == *head.method.as_str())
}

fn is_value(wanted: &ValueMatch, actual: &str) -> bool {
    match wanted {
        ValueMatch::Exact(text) => **text == *actual,
        ValueMatch::Regex(pattern) => {
            regex::Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(actual))
        }
    }
}
