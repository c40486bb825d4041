//! Regular expressions of rules: RE2 syntax, always on the whole text, linear in its length.

use regex::bytes::{Regex, RegexBuilder};

/// Bytes that one compiled expression may take: `\w{500}` and its like compile to megabytes, and a domain may hold
/// thousands of rules on each shard.
const SIZE_LIMIT: usize = 1024 * 1024;

/// An expression that must match from the first byte to the last.
#[derive(Clone, Debug)]
pub(super) struct WholeRegex(Regex);

impl WholeRegex {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// Text that names the pattern and what is wrong with it.
    pub(super) fn new(pattern: &str) -> Result<Self, String> {
        // Alone first, so that "a)(b" cannot borrow the group put around it.
        let compile = |text: &str| {
            RegexBuilder::new(text)
                .size_limit(SIZE_LIMIT)
                .build()
                .map_err(|error| format!("regular expression {pattern:?} cannot be used: {error}"))
        };
        compile(pattern)?;
        compile(&format!(r"\A(?:{pattern})\z")).map(Self)
    }

    /// Whether the whole text matches.
    pub(super) fn is_match(&self, text: &[u8]) -> bool {
        self.0.is_match(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_whole_text_only() {
        let regex = WholeRegex::new("/a|/b[0-9]").unwrap();
        assert!(regex.is_match(b"/a"));
        assert!(regex.is_match(b"/b7"));
        for text in ["/ab7", "/a/", "x/a", "/a\n"] {
            assert!(!regex.is_match(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn refuses_what_would_break_out_of_the_group_or_take_too_much_memory() {
        for pattern in ["a)(b", "(", r"\w{2000}{2000}", "(?P<n>a"] {
            assert!(WholeRegex::new(pattern).unwrap_err().contains("cannot be used"), "{pattern}");
        }
    }
}
