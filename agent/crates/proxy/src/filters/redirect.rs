//! `RequestRedirect`: the `Location` of the answer by the rules of the Gateway API on scheme, host, port and path.

use std::sync::Arc;

use super::{edits::is_host_value, rewrite::PathEdit};

/// A compiled redirect.
#[derive(Debug)]
pub struct Redirect {
    /// Status of the answer.
    pub status: u16,
    scheme: Option<Arc<str>>,
    host: Option<Arc<str>>,
    port: Option<u16>,
    path: Option<PathEdit>,
}

/// What of a request a `Location` depends on.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Whether it came over TLS.
    pub is_tls: bool,
    /// Port of the listener that it came to.
    pub listener_port: u16,
    /// Host; an IPv6 address stands in brackets.
    pub host: &'a str,
    /// Path.
    pub path: &'a str,
    /// Length of the prefix of `path` that matched.
    pub prefix_len: Option<usize>,
    /// Query without its `?`.
    pub query: Option<&'a str>,
}

impl Redirect {
    /// Compiles a redirect.
    ///
    /// # Errors
    /// Text for the object's owner.
    pub fn compile(source: &tidegate_model::Redirect) -> Result<Self, String> {
        if !matches!(source.status, 301 | 302 | 303 | 307 | 308) {
            return Err(format!("{} is not a status of a redirect: write 301, 302, 303, 307 or 308", source.status));
        }
        if let Some(scheme) = source.scheme.as_ref().filter(|scheme| !matches!(&***scheme, "http" | "https")) {
            return Err(format!("{scheme:?} is not a scheme to redirect to: write http or https"));
        }
        if let Some(host) = source.host.as_ref().filter(|host| !is_host_value(host)) {
            return Err(format!("{host:?} cannot be a host name to redirect to"));
        }
        Ok(Self {
            status: source.status,
            scheme: source.scheme.clone(),
            host: source.host.clone(),
            port: source.port,
            path: source.path.as_ref().map(PathEdit::compile).transpose()?,
        })
    }

    /// Value of `Location`.
    pub fn location(&self, asked: Asked<'_>) -> String {
        let own_scheme = if asked.is_tls { "https" } else { "http" };
        let scheme = self.scheme.as_deref().unwrap_or(own_scheme);
        let well_known = if scheme == "https" { 443 } else { 80 };
        // A scheme without a port means the scheme's port; neither means the listener's.
        let port = self.port.unwrap_or(if self.scheme.is_some() { well_known } else { asked.listener_port });
        let host = self.host.as_deref().unwrap_or(asked.host);
        let path = match &self.path {
            Some(edit) => edit.apply(asked.path, asked.prefix_len),
            None => asked.path.into(),
        };
        let mut location = format!("{scheme}://{host}");
        if port != well_known {
            location.push(':');
            location.push_str(itoa::Buffer::new().format(port));
        }
        location.push_str(&path);
        if let Some(query) = asked.query {
            location.push('?');
            location.push_str(query);
        }
        location
    }
}

#[cfg(test)]
mod tests {
    use tidegate_model::PathRewrite;

    use super::*;

    fn source() -> tidegate_model::Redirect {
        tidegate_model::Redirect { scheme: None, host: None, path: None, port: None, status: 302 }
    }

    fn asked() -> Asked<'static> {
        Asked {
            is_tls: false,
            listener_port: 80,
            host: "a.example",
            path: "/foo/bar",
            prefix_len: Some(4),
            query: Some("q=1"),
        }
    }

    #[test]
    fn port_follows_the_scheme_and_is_left_out_where_it_is_well_known() {
        let https = tidegate_model::Redirect { scheme: Some("https".into()), ..source() };
        let http = tidegate_model::Redirect { scheme: Some("http".into()), ..source() };
        let port = |redirect: &tidegate_model::Redirect, port| tidegate_model::Redirect {
            port: Some(port),
            ..redirect.clone()
        };
        for (redirect, listener_port, is_tls, expected) in [
            (source(), 80, false, "http://a.example/foo/bar?q=1"),
            (source(), 8080, false, "http://a.example:8080/foo/bar?q=1"),
            (source(), 443, true, "https://a.example/foo/bar?q=1"),
            (source(), 8443, true, "https://a.example:8443/foo/bar?q=1"),
            (source(), 443, false, "http://a.example:443/foo/bar?q=1"),
            (https.clone(), 8080, false, "https://a.example/foo/bar?q=1"),
            (http.clone(), 8443, true, "http://a.example/foo/bar?q=1"),
            (port(&https, 8443), 80, false, "https://a.example:8443/foo/bar?q=1"),
            (port(&https, 443), 80, false, "https://a.example/foo/bar?q=1"),
            (port(&http, 80), 443, true, "http://a.example/foo/bar?q=1"),
            (port(&source(), 8083), 80, false, "http://a.example:8083/foo/bar?q=1"),
            (port(&source(), 80), 8080, false, "http://a.example/foo/bar?q=1"),
        ] {
            let location = Redirect::compile(&redirect).unwrap().location(Asked { listener_port, is_tls, ..asked() });
            assert_eq!(location, expected, "{redirect:?} {listener_port} {is_tls}");
        }
    }

    #[test]
    fn host_and_path_are_replaced() {
        let path = Some(PathRewrite::Prefix("/x".into()));
        let redirect = tidegate_model::Redirect { host: Some("b.example".into()), path, ..source() };
        assert_eq!(Redirect::compile(&redirect).unwrap().location(asked()), "http://b.example/x/bar?q=1");
        let redirect = tidegate_model::Redirect { path: Some(PathRewrite::Full("/y".into())), ..source() };
        let location = Redirect::compile(&redirect).unwrap().location(Asked { query: None, ..asked() });
        assert_eq!(location, "http://a.example/y");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        for redirect in [
            tidegate_model::Redirect { status: 200, ..source() },
            tidegate_model::Redirect { scheme: Some("ftp".into()), ..source() },
            tidegate_model::Redirect { host: Some("a\r\nb".into()), ..source() },
        ] {
            assert!(Redirect::compile(&redirect).is_err(), "{redirect:?}");
        }
    }
}
