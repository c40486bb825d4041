//! YAML text as documents, and documents as values.
//!
//! Documents are told apart by their markers alone, before anything is parsed: YAML forbids `---` and `...` at the start
//! of a line inside every scalar (YAML 1.2.2, rule `c-forbidden`). So a document that is broken cannot hide the next one,
//! and an unchanged document of a changed file need not be parsed again. Input is hostile: sizes, depth and alias
//! expansion are bounded, nothing panics. Pure: no file is known here.

use serde::{
    Deserialize,
    de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;
use serde_saphyr::{Error, Options, Spanned};

/// Longest text in bytes that is read as YAML. A ConfigMap ends at 1 MiB; a whole cluster dumped into one file at 10,000
/// routes is about 12 MiB.
pub const MAX_TEXT: usize = 32 * 1024 * 1024;

/// Nodes of one document: a List of 10,000 routes has about half a million.
const MAX_NODES: usize = 4_000_000;

/// Nodes that aliases of one document may add. Beyond it is a bomb ("billion laughs"), not a configuration.
const MAX_ALIASED_NODES: usize = 100_000;

/// Nesting of collections: the deepest Gateway API object has 12 levels.
const MAX_DEPTH: usize = 64;

/// One document of a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// Line of the text (from 1) that `text` starts at.
    pub line: u64,
    /// The document with its opening marker.
    pub text: &'a str,
}

/// A place in a text, both from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: u64,
    /// Column in characters.
    pub column: u64,
}

/// Why a document cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SyntaxError {
    /// Where in the document.
    pub position: Position,
    /// What is wrong there.
    pub message: String,
}

/// Documents of a text in order, less those without content.
pub fn split(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let mut current = Piece { start: 0, line: 1, has_content: false };
    let mut offset = 0;
    let mut line = 0;
    let mut push = |piece: &Piece, end: usize| {
        if piece.has_content {
            documents.push(Document { line: piece.line, text: &text[piece.start..end] });
        }
    };
    for row in rows(text) {
        line += 1;
        if is_marker(row, "---") && current.has_content {
            push(&current, offset);
            current = Piece { start: offset, line, has_content: false };
        } else if is_marker(row, "...") {
            push(&current, offset);
            current = Piece { start: offset + row.len(), line: line + 1, has_content: false };
            offset += row.len();
            continue;
        }
        let content = row.strip_prefix("---").unwrap_or(row).trim();
        current.has_content |= !content.is_empty() && !content.starts_with(['#', '%']);
        offset += row.len();
    }
    push(&current, text.len());
    documents
}

/// Lines of a text with their ends. A carriage return alone ends a line too (YAML 1.2.2, rule `b-break`).
pub fn rows(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let length = match rest.find(['\n', '\r']) {
            Some(at) if rest[at..].starts_with("\r\n") => at + 2,
            Some(at) => at + 1,
            None if rest.is_empty() => return None,
            None => rest.len(),
        };
        let (row, more) = rest.split_at(length);
        rest = more;
        Some(row)
    })
}

struct Piece {
    start: usize,
    line: u64,
    has_content: bool,
}

fn is_marker(row: &str, marker: &str) -> bool {
    row.strip_prefix(marker).is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Value of a document. The null value is returned for one without a node.
///
/// # Errors
/// Where and why the text is not YAML, or exceeds the limits above.
pub fn parse(document: &str) -> Result<Value, SyntaxError> {
    serde_saphyr::from_str_with_options(document, options()).map_err(|error| to_syntax_error(&error))
}

/// Value of a JSON text.
///
/// # Errors
/// Where and why the text is not JSON.
pub fn parse_json(text: &str) -> Result<Value, SyntaxError> {
    serde_json::from_str(text).map_err(|error| {
        let position = Position { line: error.line() as u64, column: error.column() as u64 };
        let message = error.to_string();
        let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason).to_owned();
        SyntaxError { position, message }
    })
}

/// Where the field of a path such as `spec.listeners[0].port` (or `spec.listeners.0.port`) stands in a document, or the closest field above it that is
/// there. `None` when the document cannot be parsed.
pub fn locate(document: &str, path: &str) -> Option<Position> {
    let root: Spanned<Node> = serde_saphyr::from_str_with_options(document, options()).ok()?;
    let mut position = position_of(&root);
    let mut node = &root.value;
    let mut rest = path;
    loop {
        rest = rest.trim_start_matches('.');
        let found = match node {
            Node::Mapping(entries) => entries
                .iter()
                .filter_map(|(key, value)| {
                    let behind = rest.strip_prefix(key.value.as_str())?;
                    (behind.is_empty() || behind.starts_with(['.', '['])).then_some((key, value, behind))
                })
                .max_by_key(|(key, ..)| key.value.len())
                .map(|(key, value, behind)| (position_of(key), value, behind)),
            Node::Sequence(items) => Some(rest).and_then(|rest| {
                let (index, behind) = match rest.strip_prefix('[') {
                    Some(inner) => inner.split_once(']')?,
                    None => rest.split_at(rest.find(['.', '[']).unwrap_or(rest.len())),
                };
                let item = items.get(index.parse::<usize>().ok()?)?;
                Some((position_of(item), item, behind))
            }),
            Node::Scalar => None,
        };
        let Some((at, value, behind)) = found else { return Some(position) };
        (position, node, rest) = (at, &value.value, behind);
    }
}

fn position_of<T>(spanned: &Spanned<T>) -> Position {
    Position { line: spanned.referenced.line().max(1), column: spanned.referenced.column().max(1) }
}

fn to_syntax_error(error: &Error) -> SyntaxError {
    let message = error.without_snippet().to_string();
    // The place is told apart from the reason, and counts from the start of the file, not of the document.
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(reason, _)| reason);
    let message = message.split(", set DuplicateKeyPolicy").next().unwrap_or(message).to_owned();
    let position = error.location().map_or(Position { line: 1, column: 1 }, |location| Position {
        line: location.line().max(1),
        column: location.column().max(1),
    });
    SyntaxError { position, message }
}

fn options() -> Options {
    // YAML 1.2: a namespace may be called `no`; who means false writes it.
    let mut options = serde_saphyr::options! { with_snippet: false, strict_booleans: true };
    options.alias_limits.max_total_replayed_events = MAX_ALIASED_NODES;
    if let Some(budget) = &mut options.budget {
        budget.max_events = 3 * MAX_NODES;
        budget.max_nodes = MAX_NODES;
        budget.max_depth = MAX_DEPTH;
    }
    options
}

/// Shape of a document with the places of its fields; scalars are not kept.
enum Node {
    Mapping(Vec<(Spanned<String>, Spanned<Node>)>),
    Sequence(Vec<Spanned<Node>>),
    Scalar,
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("any YAML node")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Node, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Node::Mapping(entries))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Node::Sequence(items))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        IgnoredAny::deserialize(deserializer).map(|_| Node::Scalar)
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_u64<E: serde::de::Error>(self, _: u64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<Node, E> {
        Ok(Node::Scalar)
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<Node, E> {
        Err(E::custom("binary scalars are not used by Kubernetes objects"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parts(text: &str) -> Vec<(u64, &str)> {
        split(text).into_iter().map(|document| (document.line, document.text)).collect()
    }

    #[test]
    fn markers_end_documents_wherever_they_stand() {
        assert_eq!(parts("a: 1\n---\nb: 2\n"), [(1, "a: 1\n"), (2, "---\nb: 2\n")]);
        assert_eq!(parts("# c\n---\na: 1\n...\n# d\n---\n"), [(1, "# c\n---\na: 1\n")]);
        assert_eq!(parts("---\n---\na: 1"), [(1, "---\n---\na: 1")].map(|(_, _)| (1, "---\n---\na: 1")));
        assert_eq!(parts("a: |\n  text\n---\nb: [\n---\nc: 3\n").len(), 3);
        assert_eq!(parts("a: 1\r---\rb: 2\r\n...\r\nc: 3"), [(1, "a: 1\r"), (2, "---\rb: 2\r\n"), (5, "c: 3")]);
        assert_eq!(parts("---a: 1\n--- {b: 1}\n").len(), 2);
        assert!(parts("").is_empty() && parts("\n# only words\n---\n\n").is_empty());
    }

    #[test]
    fn a_document_with_leading_comments_directives_and_markers_is_read() {
        assert_eq!(parse("a: no\nb: false"), Ok(json!({"a": "no", "b": false})));
        for text in ["%YAML 1.2\n---\na: 1\n", "# c\n---\na: 1", "\u{feff}---\r\na: 1\r\n", "---\n# c\n\na: 1\n"] {
            let [document] = split(text)[..] else { panic!("{text:?} is one document") };
            assert_eq!(parse(document.text), Ok(json!({"a": 1})), "{text:?}");
        }
    }

    #[test]
    fn an_error_says_where() {
        let error = parse("a: 1\nb: [1,\nc: }\n").unwrap_err();
        assert!(error.position.line >= 2, "{error:?}");
        let duplicate = parse("a: 1\na: 2\n").unwrap_err();
        assert_eq!(duplicate.position, Position { line: 2, column: 1 }, "{duplicate:?}");
        assert_eq!(parse_json("{\n \"a\": }").unwrap_err().position.line, 2);
    }

    #[test]
    fn bombs_are_refused() {
        let mut laughs = String::from("a: &a [x, x, x, x, x, x, x, x, x]\n");
        for (this, last) in ('b'..='i').zip('a'..='h') {
            laughs.push_str(&format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 9].join(", ")));
        }
        assert!(parse(&laughs).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse(&format!("{}x", "- ".repeat(100_000))).is_err());
    }

    #[test]
    fn fields_are_found_by_path() {
        let text = "---\nmetadata:\n  name: a\n  labels: {kubernetes.io/service-name: b}\nspec:\n  listeners:\n  - name: x\n  - name: y\n    port: no\n";
        let at = |path: &str| locate(text, path).map(|position| (position.line, position.column));
        assert_eq!(at("spec.listeners[1].port"), Some((9, 5)));
        assert_eq!(at("spec.listeners.1.missing"), Some((8, 5)));
        assert_eq!(at("metadata.labels.kubernetes.io/service-name"), Some((4, 12)));
        assert_eq!(at("spec.listeners[7]"), Some((6, 3)));
        assert_eq!(at(""), Some((2, 1)));
    }

    /// Whether every place that is reported of a text lies in it.
    fn places_lie_in(text: &str) -> bool {
        let lines = rows(text).count() as u64 + 1;
        split(text).iter().all(|document| {
            let position = match parse(document.text) {
                Ok(_) => locate(document.text, "a.b[0]").unwrap_or_default(),
                Err(error) => error.position,
            };
            text.contains(document.text) && document.line + position.line <= lines + 1
        })
    }

    #[test]
    fn places_are_right_where_carriage_returns_end_lines() {
        assert!(places_lie_in("a:a: \ren \r\0\0\0\0\0\0a`"));
        assert_eq!(parse("a: 1\rb: [\r}").unwrap_err().position.line, 2);
    }

    proptest! {
        #[test]
        fn any_text_is_split_without_loss_of_content(text in "(---|\\.\\.\\.|a: 1|# c|%Y|\\[| |\n|\r|\r\n){0,40}") {
            prop_assert!(places_lie_in(&text));
            let count_of_a = |row: &str| row.matches('a').count();
            let kept: usize = split(&text).iter().map(|document| count_of_a(document.text)).sum();
            let is_content = |row: &&str| {
                let content = row.trim().trim_start_matches("---").trim();
                !content.starts_with(['#', '%']) && !is_marker(row, "...")
            };
            let held: usize = rows(&text).filter(is_content).map(count_of_a).sum();
            prop_assert!(kept >= held, "{kept} of {held}");
        }
    }
}
