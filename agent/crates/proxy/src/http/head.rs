//! Request and response heads as rules and filters see them, the same for HTTP/1.1 and HTTP/2.
//!
//! A head owns one block of bytes and a list of where each field lies in it; an edit appends to the block. So a
//! connection reuses one head for all its requests without allocating, and field order and case survive. Whoever fills a
//! head has checked names and values: nothing here parses.

use std::ops::Range;

use http::Method;

use super::known::Known;

/// Version of HTTP that a message came with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Version {
    /// HTTP/1.0.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
    /// HTTP/2.
    Http2,
}

impl Version {
    /// As in the access log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http10 => "HTTP/1.0",
            Self::Http11 => "HTTP/1.1",
            Self::Http2 => "HTTP/2",
        }
    }
}

/// Place of bytes in a block. Heads are limited to far less than 4 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: u32,
    len: u32,
}

impl Span {
    fn of(self, block: &[u8]) -> &[u8] {
        &block[self.start as usize..][..self.len as usize]
    }
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    known: Known,
    name: Span,
    value: Span,
}

/// One field as it stands in a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Which known name it has.
    pub known: Known,
    /// Name in the case it came with.
    pub name: &'a [u8],
    /// Value without white space around it.
    pub value: &'a [u8],
}

/// Header fields in order. Names compare without case.
#[derive(Clone, Debug, Default)]
pub struct Headers {
    block: Vec<u8>,
    entries: Vec<Entry>,
}

impl Headers {
    /// Removes all fields, keeps the memory.
    pub fn clear(&mut self) {
        self.block.clear();
        self.entries.clear();
    }

    /// Gives memory back that a large head took.
    pub fn shrink(&mut self, block_bytes: usize, fields: usize) {
        self.block.shrink_to(block_bytes);
        self.entries.shrink_to(fields);
    }

    /// Number of fields.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no field.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All fields in order.
    pub fn iter(&self) -> impl Iterator<Item = Field<'_>> {
        self.entries.iter().map(|entry| self.field(entry))
    }

    /// Value of the first field of that (lower-case) name.
    pub fn find(&self, name: &str) -> Option<&[u8]> {
        let name = name.as_bytes();
        let is_name = |entry: &&Entry| self.name(entry).eq_ignore_ascii_case(name);
        self.entries.iter().find(is_name).map(|entry| entry.value.of(&self.block))
    }

    /// Values of all fields of that name, in order.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.entries
            .iter()
            .filter(move |entry| self.name(entry).eq_ignore_ascii_case(name.as_bytes()))
            .map(|entry| entry.value.of(&self.block))
    }

    /// Value of the first field with that known name.
    pub fn find_known(&self, known: Known) -> Option<&[u8]> {
        self.values_known(known).next()
    }

    /// Values of all fields with that known name, in order.
    pub fn values_known(&self, known: Known) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().filter(move |entry| entry.known == known).map(|entry| entry.value.of(&self.block))
    }

    /// Whether a field of that name is present.
    pub fn contains(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Adds a field behind the others.
    pub fn append(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        let entry = Entry { known: Known::classify(name), name: self.store(name), value: self.store(value.as_ref()) };
        self.entries.push(entry);
    }

    /// Adds a field whose value is made of parts.
    pub fn append_parts(&mut self, name: &str, parts: &[&[u8]]) {
        let name_span = self.store(name.as_bytes());
        let start = self.block.len() as u32;
        parts.iter().for_each(|part| self.block.extend_from_slice(part));
        let value = Span { start, len: self.block.len() as u32 - start };
        self.entries.push(Entry { known: Known::classify(name.as_bytes()), name: name_span, value });
    }

    /// Makes `value` the only value of that name: in the place of its first field, or behind all others.
    pub fn set(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        let Some(first) = self.entries.iter().position(|entry| self.name(entry).eq_ignore_ascii_case(name)) else {
            self.append(name, value);
            return;
        };
        self.entries[first].value = self.store(value.as_ref());
        let block = &self.block;
        let mut index = 0;
        self.entries.retain(|entry| {
            let keep = index <= first || !entry.name.of(block).eq_ignore_ascii_case(name);
            index += 1;
            keep
        });
    }

    /// Removes all fields of that name; returns whether there were any.
    pub fn remove(&mut self, name: impl AsRef<[u8]>) -> bool {
        let name = name.as_ref();
        let before = self.entries.len();
        let block = &self.block;
        self.entries.retain(|entry| !entry.name.of(block).eq_ignore_ascii_case(name));
        before != self.entries.len()
    }

    /// Removes every field for which `is_unwanted` holds.
    pub fn remove_if(&mut self, mut is_unwanted: impl FnMut(Field<'_>) -> bool) {
        let block = &self.block;
        self.entries.retain(|entry| {
            !is_unwanted(Field { known: entry.known, name: entry.name.of(block), value: entry.value.of(block) })
        });
    }

    /// Takes a whole head as the block that [`Headers::push_in_block`] points into.
    pub(crate) fn fill_block(&mut self, block: &[u8]) {
        self.clear();
        self.block.extend_from_slice(block);
    }

    /// Adds a field whose name and value lie at these places of the block.
    pub(crate) fn push_in_block(&mut self, name: Range<usize>, value: Range<usize>) {
        let span = |range: Range<usize>| Span { start: range.start as u32, len: range.len() as u32 };
        let known = Known::classify(&self.block[name.clone()]);
        self.entries.push(Entry { known, name: span(name), value: span(value) });
    }

    fn field(&self, entry: &Entry) -> Field<'_> {
        Field { known: entry.known, name: self.name(entry), value: entry.value.of(&self.block) }
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        entry.name.of(&self.block)
    }

    fn store(&mut self, bytes: &[u8]) -> Span {
        let start = self.block.len() as u32;
        self.block.extend_from_slice(bytes);
        Span { start, len: bytes.len() as u32 }
    }
}

/// Head of a request.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    /// Method.
    pub method: Method,
    /// Version that the client speaks.
    pub version: Version,
    /// Fields. `Host` is always one of them, also for HTTP/2; use [`RequestHead::set_host`] to change it.
    pub headers: Headers,
    target: String,
    path_len: usize,
    host: String,
    port: Option<u16>,
    received: Option<Box<(String, String)>>,
}

impl RequestHead {
    /// An empty head of that method.
    pub fn new(method: Method) -> Self {
        Self { method, ..Self::default() }
    }

    /// Makes the head empty, keeps the memory.
    pub fn clear(&mut self) {
        self.method = Method::GET;
        self.version = Version::Http11;
        self.headers.clear();
        self.target.clear();
        self.path_len = 0;
        self.host.clear();
        self.port = None;
        self.received = None;
    }

    /// Takes path and query, as sent: begins with `/` (or is `*`), visible ASCII without `#`.
    pub fn fill_target(&mut self, target: &str) {
        self.target.clear();
        self.target.push_str(target);
        self.path_len = target.find('?').unwrap_or(target.len());
    }

    /// Takes the host that the request is for, made lower case and without a trailing dot, and its port.
    pub fn fill_host(&mut self, host: &str, port: Option<u16>) {
        self.host.clear();
        self.host.push_str(host.strip_suffix('.').unwrap_or(host));
        self.host.make_ascii_lowercase();
        self.port = port;
    }

    /// Path, raw as sent, from its leading `/`. `*` for `OPTIONS *`.
    pub fn path(&self) -> &str {
        &self.target[..self.path_len]
    }

    /// Query without its `?`.
    pub fn query(&self) -> Option<&str> {
        self.target.get(self.path_len + 1..)
    }

    /// Path and query as they go upstream.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Host that the request is for: lower case, no port, no trailing dot; an IPv6 address stands in brackets. From the
    /// absolute-form target, `:authority` or `Host`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port that the client wrote behind the host.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// Path and query as received, before any rewrite.
    pub fn received_target(&self) -> &str {
        self.received.as_ref().map_or(&self.target, |received| &received.0)
    }

    /// Host as received, before any rewrite.
    pub fn received_host(&self) -> &str {
        self.received.as_ref().map_or(&self.host, |received| &received.1)
    }

    /// Rewrites the path; the query stays.
    pub fn set_path(&mut self, path: &str) {
        self.keep_received();
        self.target.replace_range(..self.path_len, path);
        self.path_len = path.len();
    }

    /// Rewrites the host that is sent upstream (`Host`, `:authority`).
    pub fn set_host(&mut self, host: &str) {
        self.keep_received();
        self.fill_host(host, None);
        self.headers.set("host", host);
    }

    fn keep_received(&mut self) {
        if self.received.is_none() {
            self.received = Some(Box::new((self.target.clone(), self.host.clone())));
        }
    }
}

/// Head of a response.
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    /// Status code, 100 to 999.
    pub status: u16,
    /// Version that the upstream speaks.
    pub version: Version,
    /// Fields.
    pub headers: Headers,
}

impl ResponseHead {
    /// Makes the head empty, keeps the memory.
    pub fn clear(&mut self) {
        self.status = 0;
        self.version = Version::Http11;
        self.headers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(headers: &Headers) -> Vec<String> {
        headers
            .iter()
            .map(|field| format!("{}: {}", String::from_utf8_lossy(field.name), String::from_utf8_lossy(field.value)))
            .collect()
    }

    #[test]
    fn set_keeps_the_first_place_and_leaves_one_value() {
        let mut headers = Headers::default();
        for (name, value) in [("A", "1"), ("X-B", "2"), ("C", "3"), ("x-b", "4")] {
            headers.append(name, value);
        }
        headers.set("x-b", "long enough to lie elsewhere");
        assert_eq!(lines(&headers), ["A: 1", "X-B: long enough to lie elsewhere", "C: 3"]);
        headers.set("new", "5");
        assert!(headers.remove("a"));
        assert!(!headers.remove("a"));
        assert_eq!(lines(&headers), ["X-B: long enough to lie elsewhere", "C: 3", "new: 5"]);
        assert_eq!(headers.values("x-b").count(), 1);
    }

    #[test]
    fn path_rewrite_keeps_the_query_and_what_was_received() {
        let mut head = RequestHead::default();
        head.fill_target("/a/b?x=1");
        head.fill_host("Example.COM.", Some(8080));
        assert_eq!((head.path(), head.query(), head.host()), ("/a/b", Some("x=1"), "example.com"));
        head.set_path("/longer/path");
        head.set_host("other.example");
        assert_eq!(head.target(), "/longer/path?x=1");
        assert_eq!((head.received_target(), head.received_host()), ("/a/b?x=1", "example.com"));
        assert_eq!(head.headers.find("host"), Some(&b"other.example"[..]));
        head.clear();
        head.fill_target("/");
        assert_eq!((head.received_target(), head.query()), ("/", None));
    }
}
