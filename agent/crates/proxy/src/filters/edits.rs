//! Edits of header fields, checked once: names are tokens, values hold no line break, and no edit touches what frames a
//! message or belongs to one hop.

use std::sync::Arc;

use tidegate_model::HeaderEdits;

use super::is_field_value;
use crate::http::{
    head::{Headers, RequestHead},
    known::Known,
};

/// Compiled edits, applied in the order of the filters they came from and within one: set, add, remove.
#[derive(Debug, Default)]
pub struct Edits(Vec<Edit>);

#[derive(Debug)]
enum Edit {
    Set(Arc<str>, Arc<str>),
    Add(Arc<str>, Arc<str>),
    Remove(Arc<str>),
    Host(Arc<str>),
}

impl Edits {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds edits of a request. `Host` can be set, as by a rewrite; it cannot be added or removed.
    pub fn push_request_edits(&mut self, edits: &HeaderEdits, problems: &mut Vec<String>) {
        let is_host = |name: &Arc<str>| Known::classify(name.as_bytes()) == Known::Host;
        let mut others = edits.clone();
        others.set.retain(|(name, value)| {
            let takes = is_host(name) && is_host_value(value);
            if takes {
                self.0.push(Edit::Host(value.clone()));
            }
            !takes
        });
        self.push_edits(&others, problems);
    }

    /// Adds edits.
    pub fn push_edits(&mut self, edits: &HeaderEdits, problems: &mut Vec<String>) {
        let mut push = |name: &Arc<str>, value: &str, edit: Edit| match find_problem(name, value) {
            Some(problem) => problems.push(problem),
            None => self.0.push(edit),
        };
        for (name, value) in &edits.set {
            push(name, value, Edit::Set(name.clone(), value.clone()));
        }
        for (name, value) in &edits.add {
            push(name, value, Edit::Add(name.clone(), value.clone()));
        }
        for name in &edits.remove {
            push(name, "", Edit::Remove(name.clone()));
        }
    }

    /// Edits a request.
    pub fn apply_request(&self, head: &mut RequestHead) {
        for edit in &self.0 {
            match edit {
                Edit::Host(host) => head.set_host(host),
                other => other.apply(&mut head.headers),
            }
        }
    }

    /// Edits fields.
    pub fn apply(&self, headers: &mut Headers) {
        self.0.iter().for_each(|edit| edit.apply(headers));
    }
}

impl Edit {
    fn apply(&self, headers: &mut Headers) {
        match self {
            Self::Set(name, value) => headers.set(&**name, &**value),
            Self::Add(name, value) => headers.append(&**name, &**value),
            Self::Remove(name) => {
                headers.remove(&**name);
            }
            // Made for requests only, which take it above.
            Self::Host(_) => {}
        }
    }
}

/// Why a field cannot be written by a rule.
pub(crate) fn find_problem(name: &str, value: &str) -> Option<String> {
    let known = Known::classify(name.as_bytes());
    if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
        Some(format!("{name:?} is not a header name: the edit is left out"))
    } else if !is_field_value(value) {
        Some(format!("value of header {name} has control characters or white space around it: the edit is left out"))
    } else if known.is_hop_by_hop() || matches!(known, Known::ContentLength | Known::Host) {
        Some(format!(
            "header {name} belongs to one hop or frames the message and cannot be edited: the edit is left out"
        ))
    } else {
        None
    }
}

/// Whether a text can stand in `Host`: enough to keep a request line apart from it; the name itself is the owner's.
pub(super) fn is_host_value(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b':' | b'[' | b']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edits(set: &[(&str, &str)], add: &[(&str, &str)], remove: &[&str]) -> HeaderEdits {
        let pairs = |list: &[(&str, &str)]| list.iter().map(|&(name, value)| (name.into(), value.into())).collect();
        HeaderEdits { set: pairs(set), add: pairs(add), remove: remove.iter().map(|&name| name.into()).collect() }
    }

    #[test]
    fn sets_adds_and_removes_in_that_order() {
        let mut compiled = Edits::default();
        let mut problems = Vec::new();
        compiled.push_request_edits(
            &edits(&[("x-a", "1"), ("host", "b.example")], &[("x-a", "2")], &["x-b"]),
            &mut problems,
        );
        assert!(problems.is_empty());
        let mut head = RequestHead::default();
        head.headers.append("Host", "a.example");
        head.headers.append("X-B", "gone");
        head.headers.append("X-A", "old");
        compiled.apply_request(&mut head);
        assert_eq!(head.headers.values("x-a").collect::<Vec<_>>(), [&b"1"[..], b"2"]);
        assert_eq!(head.headers.find("x-b"), None);
        assert_eq!((head.host(), head.headers.find("host")), ("b.example", Some(&b"b.example"[..])));
    }

    #[test]
    fn framing_and_line_breaks_cannot_be_edited_in() {
        let mut compiled = Edits::default();
        let mut problems = Vec::new();
        let set = [
            ("x", "a\r\nb: c"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("a b", "1"),
            ("host", "a b"),
        ];
        compiled.push_request_edits(
            &edits(&set, &[("host", "x"), ("connection", "x-real")], &["content-length"]),
            &mut problems,
        );
        assert!(compiled.is_empty());
        assert_eq!(problems.len(), 8, "{problems:?}");
    }
}
