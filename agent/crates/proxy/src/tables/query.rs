//! Query parameters as rules see them: `name=value` pairs between `&`, percent-decoded.
//!
//! `+` is left as it is: it is a space to HTML forms but not to RFC 3986, and a rule on a value with a plus sign must be
//! possible. Nothing is decoded that is not asked for.

use std::borrow::Cow;

use super::normal_path::hex_pair;

/// Decoded value of the first parameter of that name; empty when the parameter has no `=`.
pub(super) fn find_parameter<'a>(query: &'a str, name: &str) -> Option<Cow<'a, [u8]>> {
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (*decode(key) == *name.as_bytes()).then(|| decode(value))
    })
}

fn decode(text: &str) -> Cow<'_, [u8]> {
    let bytes = text.as_bytes();
    if memchr::memchr(b'%', bytes).is_none() {
        return Cow::Borrowed(bytes);
    }
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte == b'%').then(|| bytes.get(at + 1..at + 3).and_then(hex_pair)).flatten() {
            Some(value) => {
                decoded.push(value);
                at += 3;
            }
            None => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    Cow::Owned(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_parameter_of_a_name_counts() {
        let find =
            |query, name| find_parameter(query, name).map(|value| String::from_utf8(value.into_owned()).unwrap());
        assert_eq!(find("a=1&b=2&a=3", "a"), Some("1".into()));
        assert_eq!(find("a=1&b=x%20y%zz", "b"), Some("x y%zz".into()));
        assert_eq!(find("%61=1", "a"), Some("1".into()));
        assert_eq!(find("a=1+2", "a"), Some("1+2".into()));
        assert_eq!(find("flag&b", "flag"), Some(String::new()));
        assert_eq!(find("A=1", "a"), None);
        assert_eq!(find("", "a"), None);
    }
}
