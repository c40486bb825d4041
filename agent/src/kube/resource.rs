//! Resources of an API server: the paths that lead to them.

use tidegate_gateway_api::Kind;

/// A kind of objects at a version that is served.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Name in paths.
    pub plural: String,
    /// Kind of the objects.
    pub kind: &'static str,
}

impl Resource {
    /// A resource that is not one of [`Kind`].
    pub fn new(group: &'static str, version: &'static str, plural: &str, kind: &'static str) -> Self {
        Self { group, version, plural: plural.to_owned(), kind }
    }

    /// A kind that is read, at a version.
    pub fn of(kind: Kind, version: &'static str) -> Self {
        Self { group: kind.group(), version, plural: kind.plural(), kind: kind.as_str() }
    }

    /// `apiVersion` of its objects.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// Path of all objects, or of those in a namespace.
    pub fn path(&self, namespace: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api" } else { "/apis" };
        let api_version = self.api_version();
        match namespace.filter(|namespace| !namespace.is_empty()) {
            Some(namespace) => format!("{root}/{api_version}/namespaces/{namespace}/{}", self.plural),
            None => format!("{root}/{api_version}/{}", self.plural),
        }
    }
}

/// Whether a text that somebody wrote into an object may be put into a path as a name: names of objects are DNS
/// subdomains (RFC 1123), and anything else could lead elsewhere.
pub fn is_name(text: &str) -> bool {
    let is_alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 253
        && bytes.first().copied().is_some_and(is_alphanumeric)
        && bytes.last().copied().is_some_and(is_alphanumeric)
        && bytes.iter().all(|&byte| is_alphanumeric(byte) || byte == b'-' || byte == b'.')
        && !text.contains("..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let route = Resource::of(Kind::HTTPRoute, "v1");
        assert_eq!(route.path(None), "/apis/gateway.networking.k8s.io/v1/httproutes");
        assert_eq!(Resource::of(Kind::Secret, "v1").path(Some("shop")), "/api/v1/namespaces/shop/secrets");
    }

    #[test]
    fn a_name_cannot_leave_its_path() {
        for name in ["", ".", "..", "../secrets", "a/b", "a?b", "a%2fb", "A", "a..b", "-a", "a."] {
            assert!(!is_name(name), "{name:?} was taken");
        }
        assert!(is_name("example.com") && is_name("a-1"));
    }
}
