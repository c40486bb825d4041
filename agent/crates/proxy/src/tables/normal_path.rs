//! The form of a path that rules are matched on.
//!
//! A path is matched after the syntax-based normalisation of RFC 3986 section 6.2.2: escapes of unreserved characters are
//! decoded (`%61` is `a`), other escapes get upper-case digits, dot segments are resolved. So neither `/a/../admin` nor
//! `/%2e%2e/admin` nor `/%61dmin` is taken by a rule other than the one for `/admin`. Nothing else is changed: `%2F` stays
//! an escape, `//` stays two slashes, case stays. A path above the root is the root, as section 5.2.4 says.

use std::borrow::Cow;

/// A path in normal form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NormalPath<'a> {
    /// The normal form; borrowed when the path was in it already.
    pub text: Cow<'a, str>,
    /// Whether dot segments were resolved: the backend must then see the normal form too, because one that does not
    /// resolve them would read another path than the rule was chosen for.
    pub had_dot_segments: bool,
}

/// The normal form of a path. What begins with no `/` is the `*` of `OPTIONS *`: it is judged as `/`, the whole host.
pub fn normal_path(raw: &str) -> NormalPath<'_> {
    let raw = if raw.starts_with('/') { raw } else { "/" };
    if is_normal(raw.as_bytes()) {
        return NormalPath { text: Cow::Borrowed(raw), had_dot_segments: false };
    }
    let decoded = decode_unreserved(raw);
    match resolve_dot_segments(&decoded) {
        Some(resolved) => NormalPath { text: Cow::Owned(resolved), had_dot_segments: true },
        None => NormalPath { text: Cow::Owned(decoded), had_dot_segments: false },
    }
}

/// Whether nothing can need a change. Dots inside of a segment (`index.html`) are common and no reason to copy.
fn is_normal(raw: &[u8]) -> bool {
    memchr::memchr2_iter(b'%', b'.', raw).all(|at| raw[at] == b'.' && at > 0 && raw[at - 1] != b'/')
}

fn decode_unreserved(raw: &str) -> String {
    let mut decoded = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('%') {
        decoded.push_str(&rest[..at]);
        let escape = rest.as_bytes().get(at + 1..at + 3).and_then(hex_pair);
        match escape {
            Some(byte) if is_unreserved(byte) => decoded.push(char::from(byte)),
            Some(_) => {
                decoded.push('%');
                decoded.extend(rest[at + 1..at + 3].chars().map(|digit| digit.to_ascii_uppercase()));
            }
            None => {
                decoded.push('%');
                rest = &rest[at + 1..];
                continue;
            }
        }
        rest = &rest[at + 3..];
    }
    decoded.push_str(rest);
    decoded
}

/// The byte that two hexadecimal digits stand for.
pub(super) fn hex_pair(digits: &[u8]) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    match digits {
        &[high, low] => u8::try_from(digit(high)? * 16 + digit(low)?).ok(),
        _ => None,
    }
}

/// RFC 3986 section 2.3.
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// `None` when there is no dot segment.
fn resolve_dot_segments(path: &str) -> Option<String> {
    let segments = || path.split('/').skip(1);
    if !segments().any(|segment| matches!(segment, "." | "..")) {
        return None;
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut is_folder = false;
    for segment in segments() {
        is_folder = matches!(segment, "." | "..");
        match segment {
            "." => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in kept {
        resolved.push('/');
        resolved.push_str(segment);
    }
    if is_folder {
        resolved.push('/');
    }
    Some(resolved)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn escaped_and_plain_dot_segments_cannot_leave_a_prefix() {
        for (raw, normal) in [
            ("/a/../admin", "/admin"),
            ("/a/%2e%2e/admin", "/admin"),
            ("/a/.%2E/admin", "/admin"),
            ("/%2e%2e/%2e%2e/admin", "/admin"),
            ("/a/./b", "/a/b"),
            ("/a/b/.", "/a/b/"),
            ("/a/b/..", "/a/"),
            ("/..", "/"),
            ("/.", "/"),
            ("/a//../b", "/a/b"),
        ] {
            let path = normal_path(raw);
            assert_eq!((&*path.text, path.had_dot_segments), (normal, true), "{raw}");
        }
    }

    #[test]
    fn only_unreserved_escapes_are_decoded() {
        for (raw, normal) in [
            ("/%61dmin", "/admin"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%zz%4", "/a%zz%4"),
            ("/%252e%252e/x", "/%252e%252e/x"),
            ("/...", "/..."),
            ("/.well-known/x", "/.well-known/x"),
            ("*", "/"),
        ] {
            let path = normal_path(raw);
            assert_eq!((&*path.text, path.had_dot_segments), (normal, false), "{raw}");
        }
    }

    #[test]
    fn ordinary_paths_are_not_copied() {
        for raw in ["/", "/a/b.html", "/a//b", "/a/", "/v1.2/x"] {
            assert!(matches!(normal_path(raw).text, Cow::Borrowed(text) if text == raw), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn the_normal_form_is_final_and_has_no_dot_segment(raw in "/([a./%2eE]|%2[eEfF]|%61){0,24}") {
            let once = normal_path(&raw).text.into_owned();
            prop_assert!(once.starts_with('/'));
            prop_assert!(!once.split('/').any(|segment| segment == "." || segment == ".."));
            // Decoding may make a new escape out of what stood around one ("%%61" is "%a"), never a dot segment.
            prop_assert!(!normal_path(&once).had_dot_segments || once.contains('%'));
        }
    }
}
