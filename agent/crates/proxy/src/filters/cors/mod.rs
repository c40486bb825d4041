//! Cross-origin resource sharing (WHATWG Fetch, "CORS protocol") as the Gateway API's `CORS` filter describes it.
//!
//! A preflight is answered here and never reaches a backend; an actual request is served and its response gets the fields
//! that let a browser hand it to a script. The rule's word is the only one: fields of the same names that a backend sends
//! are removed.

use tidegate_model::CorsOrigin;

use crate::http::{
    head::{Headers, RequestHead},
    known::Known,
};

const ALLOW_ORIGIN: &str = "access-control-allow-origin";
const ALLOW_CREDENTIALS: &str = "access-control-allow-credentials";
const ALLOW_METHODS: &str = "access-control-allow-methods";
const ALLOW_HEADERS: &str = "access-control-allow-headers";
const EXPOSE_HEADERS: &str = "access-control-expose-headers";
const MAX_AGE: &str = "access-control-max-age";
const REQUEST_METHOD: &str = "access-control-request-method";
const REQUEST_HEADERS: &str = "access-control-request-headers";
const VARY: &str = "vary";

/// Compiled rules.
#[derive(Debug)]
pub struct Cors {
    origins: Vec<Origin>,
    is_any_origin: bool,
    methods: List,
    headers: List,
    exposed: List,
    allow_credentials: bool,
    max_age: String,
}

/// A list of names as one field value.
#[derive(Debug)]
enum List {
    Empty,
    Any,
    Names(String),
}

#[derive(Debug)]
struct Origin {
    /// `None` is http or https.
    scheme: Option<Box<str>>,
    host: HostPattern,
    /// `None` is the scheme's default.
    port: Option<u16>,
}

#[derive(Debug)]
enum HostPattern {
    Exact(Box<str>),
    /// With the dot before it; empty for every host.
    Suffix(Box<str>),
}

/// What a response to a request that has an `Origin` must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// The origin is allowed: value of `Access-Control-Allow-Origin`.
    Allowed(Box<str>),
    /// No origin, or one that is not allowed.
    Nothing,
}

/// Fields of an answer.
pub type Fields = Vec<(&'static str, String)>;

impl Cors {
    /// Compiles rules. Nothing can be wrong with them: what matches no origin allows none.
    pub fn compile(source: &tidegate_model::Cors) -> Self {
        Self {
            is_any_origin: source.allow_origins.contains(&CorsOrigin::Any),
            origins: source.allow_origins.iter().filter_map(Origin::compile).collect(),
            methods: List::compile(&source.allow_methods),
            headers: List::compile(&source.allow_headers),
            exposed: List::compile(&source.expose_headers),
            allow_credentials: source.allow_credentials,
            max_age: source.max_age.to_string(),
        }
    }

    /// Whether a request is a preflight (Fetch: `OPTIONS` with an origin and the method that is to follow).
    pub fn is_preflight(head: &RequestHead) -> bool {
        head.method == http::Method::OPTIONS
            && head.headers.find_known(Known::Origin).is_some()
            && head.headers.contains(REQUEST_METHOD)
    }

    /// What the response to a request must say.
    pub fn grant(&self, head: &RequestHead) -> Grant {
        let Some(origin) = head.headers.find_known(Known::Origin).and_then(|value| std::str::from_utf8(value).ok())
        else {
            return Grant::Nothing;
        };
        if self.is_any_origin {
            return Grant::Allowed(if self.is_the_same_for_all() { "*".into() } else { origin.into() });
        }
        match split_origin(origin) {
            Some(parts) if self.origins.iter().any(|pattern| pattern.is_match(parts)) => Grant::Allowed(origin.into()),
            _ => Grant::Nothing,
        }
    }

    /// Fields of the answer to a preflight; `None` when its origin is not allowed.
    pub fn answer_preflight(&self, head: &RequestHead) -> Option<Fields> {
        let Grant::Allowed(origin) = self.grant(head) else { return None };
        let mut fields = Fields::new();
        fields.push((ALLOW_ORIGIN, origin.into()));
        if self.allow_credentials {
            fields.push((ALLOW_CREDENTIALS, "true".to_owned()));
        }
        let asked = |name| {
            let values: Vec<_> = head.headers.values(name).map(String::from_utf8_lossy).collect();
            (!values.is_empty()).then(|| values.join(", "))
        };
        if let Some(value) = self.list(&self.methods, || asked(REQUEST_METHOD)) {
            fields.push((ALLOW_METHODS, value));
        }
        if let Some(value) = self.list(&self.headers, || asked(REQUEST_HEADERS)) {
            fields.push((ALLOW_HEADERS, value));
        }
        if let List::Names(names) = &self.exposed {
            fields.push((EXPOSE_HEADERS, names.clone()));
        }
        fields.push((MAX_AGE, self.max_age.clone()));
        let vary = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers";
        fields.push((VARY, vary.to_owned()));
        Some(fields)
    }

    /// Puts what `grant` says into the response of an actual request.
    pub fn edit_response(&self, grant: &Grant, headers: &mut Headers) {
        for name in [ALLOW_ORIGIN, ALLOW_CREDENTIALS, EXPOSE_HEADERS] {
            headers.remove(name);
        }
        if !self.is_the_same_for_all() {
            // Also without a grant: a cache must not give this response to another origin (Fetch, "CORS protocol and HTTP
            // caches").
            headers.append(VARY, "Origin");
        }
        let Grant::Allowed(origin) = grant else { return };
        let present = || {
            let names: Vec<_> = headers.iter().map(|field| String::from_utf8_lossy(field.name).into_owned()).collect();
            (!names.is_empty()).then(|| names.join(", "))
        };
        let exposed = self.list(&self.exposed, present);
        headers.append(ALLOW_ORIGIN, &**origin);
        if self.allow_credentials {
            headers.append(ALLOW_CREDENTIALS, "true");
        }
        if let Some(exposed) = exposed {
            headers.append(EXPOSE_HEADERS, exposed);
        }
    }

    /// Fields of an answer that the proxy itself gives to an actual request, so that a script can read it too.
    pub fn local_fields(&self, grant: &Grant) -> Fields {
        let Grant::Allowed(origin) = grant else { return Fields::new() };
        let mut fields = vec![(ALLOW_ORIGIN, origin.to_string()), (VARY, "Origin".to_owned())];
        if self.allow_credentials {
            fields.push((ALLOW_CREDENTIALS, "true".to_owned()));
        }
        fields
    }

    /// With credentials, `*` is no wildcard but a name (Fetch): what it would stand for is written instead.
    fn list(&self, list: &List, concrete: impl FnOnce() -> Option<String>) -> Option<String> {
        match list {
            List::Empty => None,
            List::Names(names) => Some(names.clone()),
            List::Any if self.allow_credentials => concrete(),
            List::Any => Some("*".to_owned()),
        }
    }

    fn is_the_same_for_all(&self) -> bool {
        self.is_any_origin && !self.allow_credentials
    }
}

impl List {
    fn compile(names: &[std::sync::Arc<str>]) -> Self {
        if names.iter().any(|name| &**name == "*") {
            Self::Any
        } else if names.is_empty() {
            Self::Empty
        } else {
            Self::Names(names.join(", "))
        }
    }
}

impl Origin {
    fn compile(source: &CorsOrigin) -> Option<Self> {
        match source {
            CorsOrigin::Any => None,
            CorsOrigin::Exact(text) => {
                let (scheme, host, port) = split_origin(text)?;
                Some(Self { scheme: Some(scheme.into()), host: HostPattern::Exact(host.into()), port: Some(port) })
            }
            CorsOrigin::Wildcard { scheme, suffix, port } => Some(Self {
                scheme: (**scheme != *"*").then(|| (**scheme).into()),
                host: HostPattern::Suffix(if suffix.is_empty() { "".into() } else { format!(".{suffix}").into() }),
                port: *port,
            }),
        }
    }

    fn is_match(&self, (scheme, host, port): (&str, &str, u16)) -> bool {
        self.scheme.as_ref().is_none_or(|wanted| scheme.eq_ignore_ascii_case(wanted))
            && Some(port) == self.port.or(default_port(scheme))
            && match &self.host {
                HostPattern::Exact(wanted) => host.eq_ignore_ascii_case(wanted),
                HostPattern::Suffix(suffix) => {
                    let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
                    host.len() > suffix.len() && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
                }
            }
    }
}

/// Scheme, host and port of a serialized origin; `None` for `null` and what is no http(s) origin.
fn split_origin(origin: &str) -> Option<(&str, &str, u16)> {
    let (scheme, authority) = origin.split_once("://")?;
    let default = default_port(scheme)?;
    let is_port = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match authority.rsplit_once(':') {
        Some((host, port)) if is_port(port) => Some((scheme, host, port.parse().ok()?)),
        _ => Some((scheme, authority, default)),
    }
}

fn default_port(scheme: &str) -> Option<u16> {
    if scheme.eq_ignore_ascii_case("https") {
        Some(443)
    } else if scheme.eq_ignore_ascii_case("http") {
        Some(80)
    } else {
        None
    }
}

#[cfg(test)]
mod tests;
