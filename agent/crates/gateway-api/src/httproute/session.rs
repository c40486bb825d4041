//! `rules[].sessionPersistence` (GEP-1619).

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tidegate_model::{SessionCarrier, SessionPersistence};

use super::filters::is_field_name;
use crate::{
    duration::read_duration,
    generated::common::{self, CookieLifetimeType, SessionPersistenceType},
    object::Kind,
};

/// What makes the sessions of a route's rules its own: GEP-1619 wants that no two rules share any.
#[derive(Debug)]
pub(super) struct Identity(String);

impl Identity {
    /// The route's uid is random and not seen by clients. Objects out of files have none.
    pub(super) fn new(kind: Kind, metadata: &ObjectMeta) -> Self {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        Self(format!("{kind}/{}/{}/{}", text(&metadata.namespace), text(&metadata.name), text(&metadata.uid)))
    }

    /// Reads a rule's sessions; the error names what cannot be carried out. `field` stands for the rule where it has no name.
    pub(super) fn read_session(
        &self,
        field: &str,
        rule: Option<&str>,
        session: &common::SessionPersistence,
    ) -> Result<SessionPersistence, String> {
        let secret = format!("{}/{}", self.0, rule.unwrap_or(field));
        let field = format!("{field}.sessionPersistence");
        let absolute_timeout = match &session.absolute_timeout {
            None => None,
            Some(text) => Some(read_duration(text).filter(|timeout| !timeout.is_zero()).ok_or_else(|| {
                format!("{field}.absoluteTimeout: {text:?} is no duration above zero: write it like 30m or 24h")
            })?),
        };
        let carrier = match session.r#type.as_ref().unwrap_or(&SessionPersistenceType::Cookie) {
            SessionPersistenceType::Header => {
                let header = session.header.as_ref().ok_or_else(|| {
                    format!("{field}.header is missing: sessions of type Header need the name of a field")
                })?;
                if !is_field_name(&header.name) {
                    return Err(format!("{field}.header.name: {:?} is not the name of a header field", header.name));
                }
                SessionCarrier::Header(Arc::from(header.name.to_ascii_lowercase()))
            }
            SessionPersistenceType::Cookie => {
                let cookie = session.cookie.clone().unwrap_or_default();
                let is_permanent = cookie.lifetime_type == Some(CookieLifetimeType::Permanent);
                if is_permanent && absolute_timeout.is_none() {
                    return Err(format!("{field}.absoluteTimeout is missing: a Permanent cookie lives for it"));
                }
                let name = match cookie.name {
                    Some(name) if is_field_name(&name) => name,
                    Some(name) => return Err(format!("{field}.cookie.name: {name:?} is not the name of a cookie")),
                    None => format!("tidegate-session-{:016x}", hash(&secret)),
                };
                let path = cookie.path.unwrap_or_else(|| "/".to_owned());
                // RFC 6265 section 4.1.1: a path-value has no control characters and no ';'.
                if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';') {
                    return Err(format!("{field}.cookie.path: {path:?} is not a path: begin with '/', leave out ';'"));
                }
                SessionCarrier::Cookie { name: Arc::from(name), path: Arc::from(path), is_permanent }
            }
        };
        Ok(SessionPersistence { carrier, absolute_timeout, secret: Arc::from(secret) })
    }
}

/// FNV-1a of 64 bits: the same in every version of the program, so that a cookie keeps its name. It guards nothing.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn read(rule: Option<&str>, yaml: &str) -> Result<SessionPersistence, String> {
        let metadata = ObjectMeta { name: Some("r".to_owned()), ..ObjectMeta::default() };
        let session = serde_saphyr::from_str(yaml).unwrap();
        Identity::new(Kind::HTTPRoute, &metadata).read_session("spec.rules[1]", rule, &session)
    }

    #[test]
    fn a_cookie_is_the_default_and_has_a_name_of_its_own() {
        let first = read(None, "{type: Cookie}").unwrap();
        let SessionCarrier::Cookie { name, path, is_permanent } = &first.carrier else { panic!("{first:?}") };
        assert!(name.starts_with("tidegate-session-") && name.len() == 33, "{name}");
        assert_eq!((&**path, *is_permanent, first.absolute_timeout), ("/", false, None));
        assert_eq!(read(None, "{}"), Ok(first.clone()));
        let named = read(Some("a"), "{}").unwrap();
        assert!(named.secret != first.secret && named.carrier != first.carrier);
    }

    #[test]
    fn cookies_and_headers_are_read() {
        let cookie =
            read(None, "{absoluteTimeout: 1h, cookie: {name: sid, path: /a, lifetimeType: Permanent}, type: Cookie}");
        let cookie = cookie.unwrap();
        assert_eq!(cookie.absolute_timeout, Some(Duration::from_secs(3600)));
        let expected = SessionCarrier::Cookie { name: "sid".into(), path: "/a".into(), is_permanent: true };
        assert_eq!(cookie.carrier, expected);
        let header = read(None, "{type: Header, header: {name: X-Session}}").unwrap();
        assert_eq!(header.carrier, SessionCarrier::Header("x-session".into()));
    }

    #[test]
    fn names_what_makes_no_session() {
        for (yaml, named) in [
            ("{type: Header}", "sessionPersistence.header is missing"),
            ("{type: Header, header: {name: \"a b\"}}", "header.name"),
            ("{cookie: {name: \"a;b\"}}", "cookie.name"),
            ("{cookie: {path: \"a\"}}", "cookie.path"),
            ("{cookie: {path: \"/a; Domain=other.example\"}}", "cookie.path"),
            ("{cookie: {lifetimeType: Permanent}}", "absoluteTimeout is missing"),
            ("{absoluteTimeout: 0s}", "absoluteTimeout"),
            ("{absoluteTimeout: ever}", "absoluteTimeout"),
        ] {
            let error = read(None, yaml).unwrap_err();
            assert!(error.starts_with("spec.rules[1].sessionPersistence") && error.contains(named), "{error}");
        }
    }
}
