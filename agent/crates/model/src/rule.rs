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
    /// When requests are sent again; `None` is the default of the proxy.
    pub retry: Option<Retry>,
    /// What keeps a client at one endpoint.
    pub session: Option<SessionPersistence>,
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
    /// `ExternalAuth`: another server decides whether the request goes on.
    ExternalAuth(ExternalAuth),
}

/// A server that is asked about each request before it goes on. Whatever fails, the request does not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalAuth {
    /// Who is asked; `None` when the reference is not valid: every request is refused then.
    pub backend: Option<BackendKey>,
    /// How it is asked.
    pub protocol: ExternalAuthProtocol,
    /// Bytes of a request's body that are sent with the question; a longer body is refused. `None` sends none.
    pub max_body: Option<u32>,
}

/// How an authorization server is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExternalAuthProtocol {
    /// A request of the same method, host and path; 200 lets the client's request go on.
    Http {
        /// What stands before the path; empty for nothing.
        path_prefix: Arc<str>,
        /// Lower-case names of the client's fields that are sent beside those that always are.
        request_headers: Vec<Arc<str>>,
        /// Lower-case names of the answer's fields that are put into the client's request; empty for all.
        response_headers: Vec<Arc<str>>,
    },
    /// `envoy.service.auth.v3.Authorization/Check`.
    Grpc {
        /// Lower-case names of the client's fields that are sent; empty for all.
        request_headers: Vec<Arc<str>>,
    },
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

/// Retries of a rule (GEP-1731).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retry {
    /// Statuses of responses after which a request is sent again.
    pub codes: Vec<u16>,
    /// Attempts after the first; zero sends each request once.
    pub attempts: u32,
    /// Pause before the first retry, from which later ones grow; `None` is the default of the proxy.
    pub backoff: Option<Duration>,
}

/// Session persistence of a rule (GEP-1619).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionPersistence {
    /// Where the client keeps its token.
    pub carrier: SessionCarrier,
    /// After so long a session is over, however busy it is.
    pub absolute_timeout: Option<Duration>,
    /// What the key is made of that seals tokens of this rule, the same on every node. It keeps them opaque and whole;
    /// whatever a token says, it can only choose among the endpoints of the rule's backends.
    pub secret: Arc<str>,
}

/// Where a client keeps the token of its session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SessionCarrier {
    /// A cookie.
    Cookie {
        /// Its name, a token (RFC 9110 section 5.6.2).
        name: Arc<str>,
        /// Its `Path`.
        path: Arc<str>,
        /// Whether it outlives the browser's session, for the absolute timeout.
        is_permanent: bool,
    },
    /// A header field of responses, which the client sends back with its requests: its lower-case name.
    Header(Arc<str>),
}
