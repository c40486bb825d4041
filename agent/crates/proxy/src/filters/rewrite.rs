//! `URLRewrite`: the host and path that go upstream. The query is kept.

use std::{borrow::Cow, sync::Arc};

use tidegate_model::PathRewrite;

use super::{edits::is_host_value, is_path};

/// A compiled rewrite.
#[derive(Debug, Default)]
pub struct Rewrite {
    /// Value of `Host`.
    pub host: Option<Arc<str>>,
    /// Path.
    pub path: Option<PathEdit>,
}

/// A compiled rewrite of a path, shared with redirects.
#[derive(Debug)]
pub enum PathEdit {
    /// The whole path.
    Full(Box<str>),
    /// What replaces the prefix: with its trailing slash, if it has one.
    Prefix(Box<str>),
}

impl Rewrite {
    /// Compiles a rewrite.
    ///
    /// # Errors
    /// Text for the object's owner.
    pub fn compile(source: &tidegate_model::Rewrite) -> Result<Self, String> {
        if let Some(host) = source.host.as_ref().filter(|host| !is_host_value(host)) {
            return Err(format!("{host:?} cannot be a host name to rewrite to"));
        }
        Ok(Self { host: source.host.clone(), path: source.path.as_ref().map(PathEdit::compile).transpose()? })
    }
}

impl PathEdit {
    /// Compiles a path's rewrite.
    ///
    /// # Errors
    /// Text for the object's owner.
    pub fn compile(source: &PathRewrite) -> Result<Self, String> {
        let (PathRewrite::Full(text) | PathRewrite::Prefix(text)) = source;
        if !is_path(text) {
            return Err(format!("{text:?} is not a path to write: no spaces, '?', '#' or characters beyond ASCII"));
        }
        let text = if text.starts_with('/') { (**text).into() } else { format!("/{text}").into() };
        Ok(match source {
            PathRewrite::Full(_) => Self::Full(text),
            PathRewrite::Prefix(_) => Self::Prefix(text),
        })
    }

    /// The path instead of `path`, of which the first `prefix_len` bytes are the prefix that matched (0 for `/`). A prefix
    /// cannot be replaced where none matched: the path stays.
    pub fn apply<'a>(&'a self, path: &'a str, prefix_len: Option<usize>) -> Cow<'a, str> {
        match (self, prefix_len) {
            (Self::Full(text), _) => Cow::Borrowed(text),
            (Self::Prefix(_), None) => Cow::Borrowed(path),
            (Self::Prefix(replacement), Some(len)) => match &path[len..] {
                "" => Cow::Borrowed(replacement),
                rest => Cow::Owned(format!("{}{rest}", replacement.trim_end_matches('/'))),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_replaced_as_in_the_table_of_the_specification() {
        for (path, prefix, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "", "/xyz", "/xyz/foo"),
            ("/", "", "/xyz", "/xyz/"),
        ] {
            let edit = PathEdit::compile(&PathRewrite::Prefix(replacement.into())).unwrap();
            assert_eq!(edit.apply(path, Some(prefix.len())), expected, "{path} {prefix} {replacement}");
        }
    }

    #[test]
    fn a_full_path_replaces_all_and_a_prefix_nothing_without_a_match() {
        let full = PathEdit::compile(&PathRewrite::Full("one/two".into())).unwrap();
        assert_eq!(full.apply("/a/b", Some(2)), "/one/two");
        let prefix = PathEdit::compile(&PathRewrite::Prefix("/x".into())).unwrap();
        assert_eq!(prefix.apply("/a/b", None), "/a/b");
    }

    #[test]
    fn paths_that_would_split_a_request_line_are_refused() {
        for text in ["/a b", "/a\r\nx: y", "/a?b", "/a#b", "/ä"] {
            assert!(PathEdit::compile(&PathRewrite::Full(text.into())).is_err(), "{text:?}");
        }
        let host = tidegate_model::Rewrite { host: Some("a b".into()), path: None };
        assert!(Rewrite::compile(&host).is_err());
    }
}
