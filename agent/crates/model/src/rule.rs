//! Rules: one resource for each rule of a Route, attached to listeners.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{BackendKey, Hostname, ListenerKey, ObjectName};

/// Key of a rule: its Route and its place in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleKey {
    /// Kind of the Route.
    pub kind: RuleKind,
    /// The Route.
    pub route: ObjectName,
    /// Index in `spec.rules`.
    pub index: u16,
}

impl fmt::Display for RuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}/{} rule {}", self.kind, self.route, self.index)
    }
}

/// Kind of a Route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum RuleKind {
    /// `HTTPRoute`.
    HTTPRoute,
    /// `GRPCRoute`.
    GRPCRoute,
    /// `TLSRoute`.
    TLSRoute,
    /// `TCPRoute`.
    TCPRoute,
    /// `UDPRoute`.
    UDPRoute,
}

/// One rule: which requests it takes and what becomes of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// `spec.rules[].name`.
    pub name: Option<Arc<str>>,
    /// `metadata.creationTimestamp` in seconds since the epoch: the older Route wins a tie.
    pub created: i64,
    /// Listeners that the Route is attached to, with the host names that matter there.
    pub attachments: Vec<Attachment>,
    /// What a request must look like: any one of these. Never empty: a rule without matches has one that matches all.
    pub matches: Vec<Match>,
    /// Filters of the rule in the order of the object.
    pub filters: Vec<Filter>,
    /// Where to send requests. Empty: 500 (Gateway API), unless a filter answers.
    pub backends: Vec<WeightedBackend>,
    /// Time limits.
    pub timeouts: Timeouts,
}

/// Attachment of a rule or a forward to a listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The listener.
    pub listener: ListenerKey,
    /// The Route's host names that have one in common with the listener's, as the Route has them: they decide which Route
    /// comes first. Empty: every name that the listener serves.
    pub hostnames: Vec<Hostname>,
}

/// Conditions on a request that must all hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Match {
    /// On the path, without the query.
    pub path: PathMatch,
    /// On the method, e.g. `GET`.
    pub method: Option<Arc<str>>,
    /// On header fields.
    pub headers: Vec<HeaderMatch>,
    /// On query parameters.
    pub query: Vec<QueryMatch>,
}

/// Condition on a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathMatch {
    /// The whole path, case-sensitive.
    Exact(Arc<str>),
    /// Path elements from the start: `/a` takes `/a` and `/a/b`, not `/ab`. Without a trailing slash, except `/` itself.
    Prefix(Arc<str>),
    /// A regular expression (RE2 syntax) on the whole path.
    Regex(Arc<str>),
}

/// Condition on a header field.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeaderMatch {
    /// Name, lower case.
    pub name: Arc<str>,
    /// On its value; several fields of the name count as one, joined with `,` (RFC 9110 section 5.3).
    pub value: ValueMatch,
}

/// Condition on a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QueryMatch {
    /// Name, case-sensitive, percent-decoded.
    pub name: Arc<str>,
    /// On its (first) value, percent-decoded.
    pub value: ValueMatch,
}

/// Condition on a text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ValueMatch {
    /// Equal.
    Exact(Arc<str>),
    /// A regular expression (RE2 syntax) that matches the whole text.
    Regex(Arc<str>),
}

/// A step on requests or responses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filter {
    /// `RequestHeaderModifier`.
    RequestHeaders(HeaderEdits),
    /// `ResponseHeaderModifier`.
    ResponseHeaders(HeaderEdits),
    /// `RequestRedirect`: answers without a backend.
    Redirect(Redirect),
    /// `URLRewrite`.
    Rewrite(Rewrite),
    /// `RequestMirror`.
    Mirror(Mirror),
    /// `CORS`.
    Cors(Cors),
}

/// Edits of header fields, applied in the order set, add, remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderEdits {
    /// Replace or create: (lower-case name, value).
    pub set: Vec<(Arc<str>, Arc<str>)>,
    /// Append: (lower-case name, value).
    pub add: Vec<(Arc<str>, Arc<str>)>,
    /// Remove: lower-case names.
    pub remove: Vec<Arc<str>>,
}

/// A redirect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// Scheme; `None` keeps the request's.
    pub scheme: Option<Arc<str>>,
    /// Host; `None` keeps the request's.
    pub host: Option<Arc<str>>,
    /// Path; `None` keeps the request's.
    pub path: Option<PathRewrite>,
    /// Port; `None` takes the default of a given scheme, else the listener's.
    pub port: Option<u16>,
    /// Status: 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A rewrite of what is sent upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rewrite {
    /// Value of `Host`.
    pub host: Option<Arc<str>>,
    /// Path.
    pub path: Option<PathRewrite>,
}

/// How a path is rewritten. The query is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathRewrite {
    /// The whole path.
    Full(Arc<str>),
    /// The prefix that matched (only with [`PathMatch::Prefix`]).
    Prefix(Arc<str>),
}

/// A copy of requests to a second backend whose answer is thrown away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// Where the copy goes; `None` when the reference is not valid (the request itself is served).
    pub backend: Option<BackendKey>,
    /// How many of the requests.
    pub fraction: Fraction,
}

/// A part of all requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fraction {
    /// Not above `denominator`.
    pub numerator: u32,
    /// Not zero.
    pub denominator: u32,
}

/// Cross-origin resource sharing (WHATWG Fetch).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cors {
    /// Origins allowed.
    pub allow_origins: Vec<CorsOrigin>,
    /// Methods allowed; `*` alone is any.
    pub allow_methods: Vec<Arc<str>>,
    /// Request header fields allowed; `*` alone is any.
    pub allow_headers: Vec<Arc<str>>,
    /// Response header fields a script may read; `*` alone is any.
    pub expose_headers: Vec<Arc<str>>,
    /// Whether credentials are allowed.
    pub allow_credentials: bool,
    /// Seconds a preflight answer may be kept.
    pub max_age: u32,
}

/// An origin pattern.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CorsOrigin {
    /// `*`.
    Any,
    /// `scheme://host[:port]`, lower case.
    Exact(Arc<str>),
    /// `scheme://*.suffix[:port]`: (scheme, suffix without the leading `*.`, port).
    Wildcard {
        /// `http` or `https`, or `*`.
        scheme: Arc<str>,
        /// What follows `*.`.
        suffix: Arc<str>,
        /// Port; `None` is the scheme's default.
        port: Option<u16>,
    },
}

/// A backend with its share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightedBackend {
    /// Where to send the share.
    pub target: BackendTarget,
    /// Share in relation to the sum of the rule's weights; 0 takes none.
    pub weight: u32,
    /// Filters of the `backendRef`, applied after the rule's.
    pub filters: Vec<Filter>,
}

/// What a `backendRef` leads to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackendTarget {
    /// A backend of the model. Without endpoints it answers 503.
    Backend(BackendKey),
    /// The reference is not valid: its share answers 500 (Gateway API). The text is the reason for the access log.
    Invalid(Arc<str>),
}

/// Time limits of a rule (GEP-1742); `None` is the default of the proxy, zero is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeouts {
    /// From the request's head to the response's end.
    pub request: Option<Duration>,
    /// One attempt at a backend.
    pub backend_request: Option<Duration>,
}
