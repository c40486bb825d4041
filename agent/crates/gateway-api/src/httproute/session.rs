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
    /// The route's uid is random and not seen by clients. Objects out of files have none, and there a name may hold anything.
    pub(super) fn new(kind: Kind, metadata: &ObjectMeta) -> Self {
        let text = |text: &Option<String>| escape(text.as_deref().unwrap_or_default());
        Self(format!("{kind}/{}/{}/{}", text(&metadata.namespace), text(&metadata.name), text(&metadata.uid)))
    }

    /// Reads a rule's sessions; the error names what cannot be carried out. `field` stands for the rule where it has no name.
    pub(super) fn read_session(
        &self,
        field: &str,
        rule: Option<&str>,
        session: &common::SessionPersistence,
    ) -> Result<SessionPersistence, String> {
        let secret = format!("{}/{}", self.0, rule.map_or_else(|| field.to_owned(), escape));
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
                    format!("{field}.header is missing: write it, sessions of type Header need the name of a field")
                })?;
                if !is_field_name(&header.name) {
                    return Err(format!(
                        "{field}.header.name: {:?} is not the name of a header field: write letters, digits and '-'",
                        header.name
                    ));
                }
                SessionCarrier::Header(Arc::from(header.name.to_ascii_lowercase()))
            }
            SessionPersistenceType::Cookie => {
                let cookie = session.cookie.clone().unwrap_or_default();
                let is_permanent = cookie.lifetime_type == Some(CookieLifetimeType::Permanent);
                if is_permanent && absolute_timeout.is_none() {
                    return Err(format!(
                        "{field}.absoluteTimeout is missing: write it, a Permanent cookie lives for it"
                    ));
                }
                let name = match cookie.name {
                    Some(name) if is_field_name(&name) => name,
                    Some(name) => {
                        return Err(format!(
                            "{field}.cookie.name: {name:?} is not the name of a cookie: write letters, digits and '-'"
                        ));
                    }
                    None => format!("tidegate-session-{:016x}", hash(&secret)),
                };
                let path = cookie.path.unwrap_or_else(|| "/".to_owned());
                // RFC 6265 section 4.1.1: a path-value has no control characters and no ';'.
                if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';') {
                    return Err(format!("{field}.cookie.path: {path:?} is not a path: start with '/', leave out ';'"));
                }
                SessionCarrier::Cookie { name: Arc::from(name), path: Arc::from(path), is_permanent }
            }
        };
        Ok(SessionPersistence { carrier, absolute_timeout, secret: Arc::from(secret) })
    }
}

/// Text that no other text becomes and that holds neither `/` nor what a field's path has beside names. What Kubernetes takes as
/// a name stays as it is, so that keys do.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' => escaped.push(char::from(byte)),
            _ => escaped.push_str(&format!("%{byte:02x}")),
        }
    }
    escaped
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
    fn routes_without_a_uid_share_no_key() {
        let secret = |kind, namespace: &str, name: &str, rule: Option<&str>| {
            let metadata = ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            };
            let session = common::SessionPersistence::default();
            Identity::new(kind, &metadata).read_session("spec.rules[0]", rule, &session).unwrap().secret
        };
        let secrets = [
            secret(Kind::HTTPRoute, "a", "b", None),
            secret(Kind::GRPCRoute, "a", "b", None),
            secret(Kind::HTTPRoute, "a", "c", None),
            secret(Kind::HTTPRoute, "c", "b", None),
            secret(Kind::HTTPRoute, "a/b", "c", None),
            secret(Kind::HTTPRoute, "a", "b/c", None),
            secret(Kind::HTTPRoute, "a", "b%2fc", None),
            secret(Kind::HTTPRoute, "a", "b", Some("")),
            secret(Kind::HTTPRoute, "a", "b", Some("rule")),
            secret(Kind::HTTPRoute, "a", "b", Some("spec.rules[0]")),
            secret(Kind::HTTPRoute, "a", "b/", None),
        ];
        let different: std::collections::BTreeSet<_> = secrets.iter().collect();
        assert_eq!(different.len(), secrets.len(), "{secrets:?}");
        assert_eq!(&*secrets[8], "HTTPRoute/a/b//rule", "a key stays what it was");
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
