//! Rules of one host pattern by path: exact, then regular expressions, then the longest prefix.
//!
//! Exact paths and prefixes are two hash tables. One pass over a request's path hashes it segment by segment, keeps the
//! hash at each segment's end, and from these probes the prefixes, the longest first; only depths at which a prefix exists
//! are probed. So a look-up costs the path's length and a few probes, whatever the number of rules, and a rule comes or
//! goes without touching another. (A radix tree, which this replaces, walks as many dependent nodes as a path has parts.)
//!
//! Gateway API leaves the precedence of regular expressions open. They stand after exact paths and before prefixes, because
//! a catch-all prefix `/` would otherwise hide every one of them; among them the longer pattern wins, then as for all.

use std::{cmp::Ordering, rc::Rc};

use hashbrown::HashTable;
use smallvec::SmallVec;
use tidegate_model::PathMatch;

use super::{
    candidates::{Candidate, Candidates},
    regex::WholeRegex,
    rule::CompiledRule,
};
use crate::http::head::RequestHead;

/// Depth (number of path segments) up to which a prefix's end is remembered on the stack.
const DEPTH_ON_STACK: usize = 16;

/// Rules by path.
#[derive(Debug, Default)]
pub(super) struct PathTable {
    exact: HashTable<PathEntry>,
    prefixes: HashTable<PathEntry>,
    /// Number of prefixes of each depth; the last is never zero.
    prefixes_at: Vec<u32>,
    /// In the order in which they are tried.
    regexes: Vec<RegexEntry>,
}

#[derive(Debug)]
struct PathEntry {
    hash: u64,
    path: Box<str>,
    candidates: Candidates,
}

#[derive(Debug)]
struct RegexEntry {
    pattern_len: usize,
    regex: WholeRegex,
    candidate: Candidate,
}

/// A rule found for a path.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found<'a> {
    /// The match.
    pub candidate: &'a Candidate,
    /// Length of the prefix that matched, 0 for `/`; `None` when the match is on no prefix.
    pub prefix_len: Option<usize>,
}

impl PathTable {
    /// Adds a match of a rule. `regex` is the compiled path, for a match that has one.
    pub(super) fn push(&mut self, candidate: Candidate, path: &PathMatch, regex: Option<&WholeRegex>) {
        match path {
            PathMatch::Exact(path) => {
                push_entry(&mut self.exact, path, hash_path(path.as_bytes(), 0, |_, _| ()), candidate)
            }
            PathMatch::Prefix(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                let (depth, hash) = hash_prefix(prefix);
                if self.prefixes_at.len() <= depth {
                    self.prefixes_at.resize(depth + 1, 0);
                }
                self.prefixes_at[depth] += 1;
                push_entry(&mut self.prefixes, prefix, hash, candidate);
            }
            PathMatch::Regex(pattern) => {
                if let Some(regex) = regex {
                    let entry = RegexEntry { pattern_len: pattern.len(), regex: regex.clone(), candidate };
                    let at = self.regexes.partition_point(|present| present.compare(&entry) == Ordering::Less);
                    self.regexes.insert(at, entry);
                }
            }
        }
    }

    /// Removes a match of a rule; one that is not there is no error.
    pub(super) fn remove(&mut self, rule: &Rc<CompiledRule>, match_index: u16, path: &PathMatch) {
        match path {
            PathMatch::Exact(path) => {
                let hash = hash_path(path.as_bytes(), 0, |_, _| ());
                remove_entry(&mut self.exact, path, hash, rule, match_index);
            }
            PathMatch::Prefix(prefix) => {
                let prefix = prefix.trim_end_matches('/');
                let (depth, hash) = hash_prefix(prefix);
                if remove_entry(&mut self.prefixes, prefix, hash, rule, match_index) {
                    self.prefixes_at[depth] -= 1;
                    while self.prefixes_at.last() == Some(&0) {
                        self.prefixes_at.pop();
                    }
                }
            }
            PathMatch::Regex(_) => {
                let is_it = |entry: &RegexEntry| {
                    Rc::ptr_eq(&entry.candidate.rule, rule) && entry.candidate.match_index == match_index
                };
                if let Some(at) = self.regexes.iter().position(is_it) {
                    self.regexes.remove(at);
                }
            }
        }
    }

    /// Whether no rule is left.
    pub(super) fn is_empty(&self) -> bool {
        self.exact.is_empty() && self.prefixes.is_empty() && self.regexes.is_empty()
    }

    /// The rule for a path in normal form; the head is asked for everything but the path.
    pub(super) fn find(&self, path: &str, head: &RequestHead) -> Option<Found<'_>> {
        let mut ends = SmallVec::<[(u32, u64); DEPTH_ON_STACK]>::new();
        let depths = self.prefixes_at.len().saturating_sub(1);
        let hash = hash_path(path.as_bytes(), depths, |end, hash| ends.push((end as u32, hash)));
        if let Some(entry) = find_entry(&self.exact, path, hash)
            && let Some(candidate) = entry.candidates.find(head)
        {
            return Some(Found { candidate, prefix_len: None });
        }
        let regex = |entry: &&RegexEntry| entry.regex.is_match(path.as_bytes()) && entry.candidate.is_match(head);
        if let Some(entry) = self.regexes.iter().find(regex) {
            return Some(Found { candidate: &entry.candidate, prefix_len: None });
        }
        for (at, &(end, hash)) in ends.iter().enumerate().rev() {
            let end = end as usize;
            if self.prefixes_at[at + 1] > 0
                && let Some(entry) = find_entry(&self.prefixes, &path[..end], hash)
                && let Some(candidate) = entry.candidates.find(head)
            {
                return Some(Found { candidate, prefix_len: Some(end) });
            }
        }
        if self.prefixes_at.first().is_some_and(|&count| count > 0) {
            let candidate = find_entry(&self.prefixes, "", SEED)?.candidates.find(head)?;
            return Some(Found { candidate, prefix_len: Some(0) });
        }
        None
    }
}

impl RegexEntry {
    fn compare(&self, other: &Self) -> Ordering {
        other.pattern_len.cmp(&self.pattern_len).then_with(|| self.candidate.compare(&other.candidate))
    }
}

fn push_entry(table: &mut HashTable<PathEntry>, path: &str, hash: u64, candidate: Candidate) {
    let entry = table.entry(hash, |entry| entry.hash == hash && *entry.path == *path, |entry| entry.hash);
    let mut entry = entry.or_insert_with(|| PathEntry { hash, path: path.into(), candidates: Candidates::default() });
    entry.get_mut().candidates.push(candidate);
}

fn remove_entry(
    table: &mut HashTable<PathEntry>,
    path: &str,
    hash: u64,
    rule: &Rc<CompiledRule>,
    match_index: u16,
) -> bool {
    let Ok(mut entry) = table.find_entry(hash, |entry| entry.hash == hash && *entry.path == *path) else {
        return false;
    };
    let was_there = entry.get_mut().candidates.remove(rule, match_index);
    if entry.get().candidates.is_empty() {
        entry.remove();
    }
    was_there
}

fn find_entry<'a>(table: &'a HashTable<PathEntry>, path: &str, hash: u64) -> Option<&'a PathEntry> {
    table.find(hash, |entry| entry.hash == hash && *entry.path == *path)
}

/// Depth and hash of a prefix without a slash at its end (`/` is the empty text).
fn hash_prefix(prefix: &str) -> (usize, u64) {
    if prefix.is_empty() {
        return (0, SEED);
    }
    let mut depth = 0;
    let hash = hash_path(prefix.as_bytes(), usize::MAX, |_, _| depth += 1);
    (depth, hash)
}

/// Hash of no segment. All tables are filled from the model, never from requests, so nobody outside can make keys collide
/// and the hash needs no secret.
const SEED: u64 = 0x243f_6a88_85a3_08d3;
/// An odd number with well spread bits (from the digits of pi, as `SEED`).
const FACTOR: u64 = 0x1319_8a2e_0370_7345;

/// Hash of a whole path. `at_end` is told the end and the hash of each of the first `depths` segments.
fn hash_path(path: &[u8], depths: usize, mut at_end: impl FnMut(usize, u64)) -> u64 {
    let mut hash = SEED;
    let mut depth = 0;
    let mut start = 1.min(path.len());
    loop {
        let end = memchr::memchr(b'/', &path[start..]).map_or(path.len(), |len| start + len);
        hash = hash_segment(hash, &path[start..end]);
        depth += 1;
        if depth <= depths {
            at_end(end, hash);
        }
        if end == path.len() {
            return hash;
        }
        start = end + 1;
    }
}

fn hash_segment(mut hash: u64, segment: &[u8]) -> u64 {
    let (words, rest) = segment.as_chunks::<8>();
    for word in words {
        hash = fold(hash ^ u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    // The length keeps "a" and "a\0" apart, and an empty segment from none.
    fold(hash ^ u64::from_le_bytes(last)).wrapping_add(segment.len() as u64 + 1)
}

fn fold(value: u64) -> u64 {
    let product = u128::from(value) * u128::from(FACTOR);
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_hash_as_the_paths_they_begin() {
        let mut ends = Vec::new();
        let whole = hash_path(b"/a/long-segment-of-a-path//b/", 8, |end, hash| ends.push((end, hash)));
        assert_eq!(ends.iter().map(|&(end, _)| end).collect::<Vec<_>>(), [2, 25, 26, 28, 29]);
        assert_eq!(hash_prefix("/a"), (1, ends[0].1));
        assert_eq!(hash_prefix("/a/long-segment-of-a-path"), (2, ends[1].1));
        assert_eq!(ends[4].1, whole);
        assert_eq!(hash_prefix(""), (0, SEED));
        assert_ne!(hash_prefix("/a/b").1, hash_prefix("/b/a").1);
    }

    #[test]
    fn hostile_paths_remember_no_more_ends_than_prefixes_are_deep() {
        let path = "/".repeat(100_000);
        let mut ends = 0;
        hash_path(path.as_bytes(), 3, |_, _| ends += 1);
        assert_eq!(ends, 3);
        for path in ["", "/", "*", "a"] {
            hash_path(path.as_bytes(), 3, |_, _| ());
        }
    }
}
