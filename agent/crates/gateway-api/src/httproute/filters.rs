//! Filters of a rule or of a `backendRef`.
//!
//! All or nothing: a filter that cannot be carried out makes an error, never a shorter list.

use std::sync::Arc;

use tidegate_model::{
    Cors, CorsOrigin, Filter, Fraction, HeaderEdits, Hostname, Match, Mirror, PathMatch, PathRewrite, Redirect, Rewrite,
};

use super::external_auth::read_external_auth;
use crate::{
    generated::{
        common::{HeaderModifier, HttpHeader, RequestMirror},
        http_route::{
            self, HttpPathModifier, HttpPathModifierType, HttpRouteFilter, HttpRouteFilterType, RedirectScheme,
            RequestRedirect, UrlRewrite,
        },
    },
    references::Resolver,
};

/// Seconds that browsers may keep a preflight answer when `cors.maxAge` is not set (default of the API).
const DEFAULT_CORS_MAX_AGE: u32 = 5;

/// Reads a list of filters; the error names the first that cannot be carried out.
pub(super) fn read_filters(
    field: &str,
    filters: &[HttpRouteFilter],
    matches: &[Match],
    resolver: &mut Resolver<'_>,
) -> Result<Vec<Filter>, String> {
    let mut read = Vec::with_capacity(filters.len());
    for (index, filter) in filters.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let filter = read_filter(&field, filter, matches, resolver)?;
        let is_same = |earlier: &Filter| std::mem::discriminant(earlier) == std::mem::discriminant(&filter);
        if !matches!(filter, Filter::Mirror(_)) && read.iter().any(is_same) {
            return Err(format!("{field}: a filter of this type is there already: merge the two"));
        }
        read.push(filter);
    }
    let has = |wanted: fn(&Filter) -> bool| read.iter().any(wanted);
    if has(|filter| matches!(filter, Filter::Redirect(_))) && has(|filter| matches!(filter, Filter::Rewrite(_))) {
        return Err(format!("{field}: RequestRedirect and URLRewrite exclude each other: remove one"));
    }
    Ok(read)
}

fn read_filter(
    field: &str,
    filter: &HttpRouteFilter,
    matches: &[Match],
    resolver: &mut Resolver<'_>,
) -> Result<Filter, String> {
    let missing = |name: &str| format!("{field}.{name} is missing: write it, a filter of this type needs it");
    match filter.r#type {
        HttpRouteFilterType::RequestHeaderModifier => {
            let modifier = filter.request_header_modifier.as_ref().ok_or_else(|| missing("requestHeaderModifier"))?;
            Ok(Filter::RequestHeaders(read_edits(&format!("{field}.requestHeaderModifier"), modifier)?))
        }
        HttpRouteFilterType::ResponseHeaderModifier => {
            let modifier = filter.response_header_modifier.as_ref().ok_or_else(|| missing("responseHeaderModifier"))?;
            Ok(Filter::ResponseHeaders(read_edits(&format!("{field}.responseHeaderModifier"), modifier)?))
        }
        HttpRouteFilterType::RequestMirror => {
            let mirror = filter.request_mirror.as_ref().ok_or_else(|| missing("requestMirror"))?;
            read_mirror(&format!("{field}.requestMirror"), mirror, resolver).map(Filter::Mirror)
        }
        HttpRouteFilterType::RequestRedirect => {
            let redirect = filter.request_redirect.as_ref().ok_or_else(|| missing("requestRedirect"))?;
            read_redirect(&format!("{field}.requestRedirect"), redirect, matches).map(Filter::Redirect)
        }
        HttpRouteFilterType::UrlRewrite => {
            let rewrite = filter.url_rewrite.as_ref().ok_or_else(|| missing("urlRewrite"))?;
            read_rewrite(&format!("{field}.urlRewrite"), rewrite, matches).map(Filter::Rewrite)
        }
        HttpRouteFilterType::Cors => {
            let cors = filter.cors.as_ref().ok_or_else(|| missing("cors"))?;
            read_cors(&format!("{field}.cors"), cors).map(Filter::Cors)
        }
        HttpRouteFilterType::ExternalAuth => {
            let auth = filter.external_auth.as_ref().ok_or_else(|| missing("externalAuth"))?;
            read_external_auth(&format!("{field}.externalAuth"), auth, resolver).map(Filter::ExternalAuth)
        }
        HttpRouteFilterType::ExtensionRef => {
            let named = filter.extension_ref.as_ref().map(|named| format!(" {} {}", named.kind, named.name));
            Err(format!("{field}: ExtensionRef{} is not served yet: remove it", named.unwrap_or_default()))
        }
    }
}

/// Whether text is a `field-name` (RFC 9110 section 5.1: a token).
pub(super) fn is_field_name(text: &str) -> bool {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(is_token)
}

/// Whether text is a `field-value` without surrounding white space (RFC 9110 section 5.5).
fn is_field_value(text: &str) -> bool {
    text.trim_matches([' ', '\t']) == text && text.bytes().all(|byte| byte == b'\t' || (byte >= b' ' && byte != 0x7f))
}

fn read_edits(field: &str, modifier: &HeaderModifier) -> Result<HeaderEdits, String> {
    let name = |field: &str, name: &str| -> Result<Arc<str>, String> {
        if is_field_name(name) {
            Ok(Arc::from(name.to_ascii_lowercase()))
        } else {
            Err(format!("{field}: {name:?} is not the name of a header field: write letters, digits and '-'"))
        }
    };
    let pairs = |list: &str, headers: &Option<Vec<HttpHeader>>| {
        let mut pairs: Vec<(Arc<str>, Arc<str>)> = Vec::new();
        for (index, header) in headers.iter().flatten().enumerate() {
            let field = format!("{field}.{list}[{index}]");
            let key = name(&format!("{field}.name"), &header.name)?;
            if !is_field_value(&header.value) {
                return Err(format!(
                    "{field}.value: {:?} is not the value of a header field: leave out control characters and white space around it",
                    header.value
                ));
            }
            // Gateway API: of several entries of one name, whatever their case, only the first counts.
            if pairs.iter().all(|(earlier, _)| *earlier != key) {
                pairs.push((key, Arc::from(header.value.as_str())));
            }
        }
        Ok(pairs)
    };
    let remove = modifier.remove.iter().flatten().enumerate();
    Ok(HeaderEdits {
        set: pairs("set", &modifier.set)?,
        add: pairs("add", &modifier.add)?,
        remove: remove
            .map(|(index, text)| name(&format!("{field}.remove[{index}]"), text))
            .collect::<Result<_, _>>()?,
    })
}

fn read_mirror(field: &str, mirror: &RequestMirror, resolver: &mut Resolver<'_>) -> Result<Mirror, String> {
    let fraction = match (&mirror.fraction, mirror.percent) {
        (None, None) => Fraction { numerator: 1, denominator: 1 },
        (None, Some(percent)) => match u32::try_from(percent) {
            Ok(numerator) if numerator <= 100 => Fraction { numerator, denominator: 100 },
            _ => return Err(format!("{field}.percent: {percent} is out of range: write 0 to 100")),
        },
        (Some(fraction), None) => {
            match (u32::try_from(fraction.numerator), u32::try_from(fraction.denominator.unwrap_or(100))) {
                (Ok(numerator), Ok(denominator)) if denominator > 0 && numerator <= denominator => {
                    Fraction { numerator, denominator }
                }
                _ => {
                    return Err(format!(
                        "{field}.fraction: {}/{} is no part of a whole: write a numerator of at most the denominator",
                        fraction.numerator,
                        fraction.denominator.unwrap_or(100)
                    ));
                }
            }
        }
        (Some(_), Some(_)) => return Err(format!("{field} has both percent and fraction: remove one")),
    };
    let backend = resolver.resolve(&format!("{field}.backendRef"), &mirror.backend_ref).ok();
    Ok(Mirror { backend, fraction })
}

fn read_host(field: &str, hostname: Option<&String>) -> Result<Option<Arc<str>>, String> {
    hostname
        .map(|text| match text.parse() {
            Ok(Hostname::Exact(name)) => Ok(name),
            _ => Err(format!("{field}.hostname: {text:?} is not one host name: write one without a wildcard")),
        })
        .transpose()
}

fn read_redirect(field: &str, redirect: &RequestRedirect, matches: &[Match]) -> Result<Redirect, String> {
    let status = redirect.status_code.unwrap_or(302);
    if !matches!(status, 301 | 302 | 303 | 307 | 308) {
        return Err(format!("{field}.statusCode: {status} is not a redirect: use 301, 302, 303, 307 or 308"));
    }
    let port = match redirect.port.map(u16::try_from) {
        None => None,
        Some(Ok(port)) if port > 0 => Some(port),
        Some(_) => {
            return Err(format!("{field}.port: {} is no port: write 1 to 65535", redirect.port.unwrap_or_default()));
        }
    };
    Ok(Redirect {
        scheme: redirect.scheme.as_ref().map(|scheme| match scheme {
            RedirectScheme::Http => Arc::from("http"),
            RedirectScheme::Https => Arc::from("https"),
        }),
        host: read_host(field, redirect.hostname.as_ref())?,
        path: read_path(&format!("{field}.path"), redirect.path.as_ref(), matches)?,
        port,
        status: status as u16,
    })
}

fn read_rewrite(field: &str, rewrite: &UrlRewrite, matches: &[Match]) -> Result<Rewrite, String> {
    Ok(Rewrite {
        host: read_host(field, rewrite.hostname.as_ref())?,
        path: read_path(&format!("{field}.path"), rewrite.path.as_ref(), matches)?,
    })
}

fn read_path(field: &str, path: Option<&HttpPathModifier>, matches: &[Match]) -> Result<Option<PathRewrite>, String> {
    let Some(path) = path else { return Ok(None) };
    let check = |name: &str, value: Option<&String>| {
        let value = value.ok_or_else(|| format!("{field}.{name} is missing: write it, this type needs it"))?;
        let is_path = (value.is_empty() || value.starts_with('/'))
            && value.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'));
        if is_path {
            Ok(Arc::from(value.as_str()))
        } else {
            Err(format!("{field}.{name}: {value:?} is not a path: start with '/', %-escape what is no URL character"))
        }
    };
    match path.r#type {
        HttpPathModifierType::ReplaceFullPath => {
            Ok(Some(PathRewrite::Full(check("replaceFullPath", path.replace_full_path.as_ref())?)))
        }
        HttpPathModifierType::ReplacePrefixMatch => {
            if !matches.iter().all(|found| matches!(found.path, PathMatch::Prefix(_))) {
                return Err(format!(
                    "{field}: ReplacePrefixMatch goes with matches of type PathPrefix only: change them, or use ReplaceFullPath"
                ));
            }
            Ok(Some(PathRewrite::Prefix(check("replacePrefixMatch", path.replace_prefix_match.as_ref())?)))
        }
    }
}

fn read_cors(field: &str, cors: &http_route::Cors) -> Result<Cors, String> {
    let names = |list: &str, names: &Option<Vec<String>>| -> Result<Vec<Arc<str>>, String> {
        let mut read = Vec::new();
        for (index, name) in names.iter().flatten().enumerate() {
            if !is_field_name(name) {
                return Err(format!(
                    "{field}.{list}[{index}]: {name:?} is not a name in HTTP: write letters, digits and '-'"
                ));
            }
            read.push(Arc::from(name.as_str()));
        }
        Ok(read)
    };
    let origins = cors.allow_origins.iter().flatten().enumerate().map(|(index, text)| {
        read_origin(text).ok_or_else(|| {
            format!("{field}.allowOrigins[{index}]: {text:?} is not an origin: write scheme://host[:port], *. in front of a domain, or *")
        })
    });
    Ok(Cors {
        allow_origins: origins.collect::<Result<_, _>>()?,
        allow_methods: names("allowMethods", &cors.allow_methods)?,
        allow_headers: names("allowHeaders", &cors.allow_headers)?,
        expose_headers: names("exposeHeaders", &cors.expose_headers)?,
        allow_credentials: cors.allow_credentials.unwrap_or_default(),
        max_age: cors.max_age.map_or(DEFAULT_CORS_MAX_AGE, |seconds| u32::try_from(seconds).unwrap_or_default()),
    })
}

fn read_origin(text: &str) -> Option<CorsOrigin> {
    if text == "*" {
        return Some(CorsOrigin::Any);
    }
    let lower = text.to_ascii_lowercase();
    let (scheme, rest) = lower.split_once("://")?;
    let is_scheme = scheme == "*"
        || (scheme.starts_with(|first: char| first.is_ascii_lowercase())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')));
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port.parse::<u16>().ok().filter(|&port| port > 0)?)),
        _ => (rest, None),
    };
    let is_host = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte))
    };
    if !is_scheme {
        return None;
    }
    match host.strip_prefix("*.") {
        Some(suffix) if is_host(suffix) => {
            Some(CorsOrigin::Wildcard { scheme: Arc::from(scheme), suffix: Arc::from(suffix), port })
        }
        None if is_host(host) && scheme != "*" => Some(CorsOrigin::Exact(Arc::from(lower.as_str()))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_origins() {
        assert_eq!(read_origin("*"), Some(CorsOrigin::Any));
        assert_eq!(
            read_origin("HTTPS://Shop.example.com:8443"),
            Some(CorsOrigin::Exact(Arc::from("https://shop.example.com:8443")))
        );
        let wildcard =
            CorsOrigin::Wildcard { scheme: Arc::from("https"), suffix: Arc::from("example.com"), port: Some(8443) };
        assert_eq!(read_origin("https://*.example.com:8443"), Some(wildcard));
        for text in [
            "",
            "example.com",
            "https://",
            "https://*",
            "https://a*.b.c",
            "https://a/b",
            "://a",
            "https://a:0",
            "https://a b",
        ] {
            assert_eq!(read_origin(text), None, "{text:?} was taken");
        }
    }

    #[test]
    fn values_of_header_fields_cannot_break_lines() {
        assert!(is_field_value("v1:90,v2:10"));
        for text in ["a\r\nb", "a\0", " a", "a ", "\u{7f}"] {
            assert!(!is_field_value(text), "{text:?} was taken");
        }
        assert!(!is_field_name("a:b") && !is_field_name("") && !is_field_name("a b"));
    }
}
