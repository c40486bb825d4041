//! An edit of a field that another program asks for while a request is under way. It is checked like one of a rule, and
//! left out where it must not be.

use super::edits;
use crate::http::{h1::parse, head::Headers};

/// One edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    name: Box<str>,
    value: Box<[u8]>,
    action: Action,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Set,
    SetIfPresent,
    Add,
    AddIfAbsent,
    Remove,
}

impl Write {
    /// Makes the value the only one.
    pub fn set(name: &str, value: &[u8]) -> Option<Self> {
        Self::new(Action::Set, name, value)
    }

    /// Makes the value the only one of a field that is there.
    pub fn set_if_present(name: &str, value: &[u8]) -> Option<Self> {
        Self::new(Action::SetIfPresent, name, value)
    }

    /// Adds a value.
    pub fn add(name: &str, value: &[u8]) -> Option<Self> {
        Self::new(Action::Add, name, value)
    }

    /// Adds a value unless there is one.
    pub fn add_if_absent(name: &str, value: &[u8]) -> Option<Self> {
        Self::new(Action::AddIfAbsent, name, value)
    }

    /// Removes all values.
    pub fn remove(name: &str) -> Option<Self> {
        Self::new(Action::Remove, name, b"")
    }

    /// Carries the edit out.
    pub fn apply(&self, headers: &mut Headers) {
        match self.action {
            Action::Set => headers.set(&*self.name, &*self.value),
            Action::SetIfPresent if headers.contains(&self.name) => headers.set(&*self.name, &*self.value),
            Action::AddIfAbsent if !headers.contains(&self.name) => headers.append(&*self.name, &*self.value),
            Action::SetIfPresent | Action::AddIfAbsent => {}
            Action::Add => headers.append(&*self.name, &*self.value),
            Action::Remove => {
                headers.remove(&*self.name);
            }
        }
    }

    fn new(action: Action, name: &str, value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        let is_writable = edits::find_problem(name, "").is_none() && !parse::has_control(value);
        is_writable.then(|| Self { name: name.to_ascii_lowercase().into(), value: value.into(), action })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(writes: &[Option<Write>]) -> Vec<Vec<u8>> {
        let mut headers = Headers::default();
        headers.append("X-A", "old");
        writes.iter().flatten().for_each(|write| write.apply(&mut headers));
        headers.values("x-a").map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn edits_do_what_they_are_called() {
        assert_eq!(values(&[Write::set("x-a", b" 1 ")]), [b"1"]);
        assert_eq!(values(&[Write::add("x-a", b"1")]), [&b"old"[..], b"1"]);
        assert_eq!(values(&[Write::add_if_absent("x-a", b"1")]), [b"old"]);
        assert_eq!(values(&[Write::set_if_present("x-a", b"1")]), [b"1"]);
        assert!(values(&[Write::remove("X-A"), Write::set_if_present("x-a", b"1")]).is_empty());
        assert_eq!(values(&[Write::remove("x-a"), Write::add_if_absent("X-A", b"1")]), [b"1"]);
    }

    #[test]
    fn what_frames_routes_or_splits_a_message_is_no_edit() {
        for (name, value) in [
            ("content-length", &b"5"[..]),
            ("Transfer-Encoding", b"chunked"),
            ("host", b"other"),
            (":path", b"/"),
            ("connection", b"x-real"),
            ("a b", b"1"),
            ("", b"1"),
            ("x", b"1\r\nhost: other"),
            ("x", b"\0"),
        ] {
            assert_eq!(Write::set(name, value), None, "{name}");
        }
    }
}
