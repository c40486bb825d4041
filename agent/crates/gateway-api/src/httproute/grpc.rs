//! What GRPCRoutes say otherwise than HTTPRoutes: their matches. Their filters and backends are HTTPRoute's, in part.

use std::sync::Arc;

use tidegate_model::{Match, PathMatch};

use super::matches::{check_regex, read_headers};
use crate::generated::{
    common::MatchType,
    grpc_route::{
        GrpcBackendRef, GrpcMethodMatch, GrpcRouteFilter, GrpcRouteFilterType, GrpcRouteMatch, GrpcRouteRule,
    },
    http_route::{HttpBackendRef, HttpRouteFilter, HttpRouteFilterType, HttpRouteRule},
};

/// Reads the matches of a rule, as [`super::matches::read_matches`] does.
pub(super) fn read_matches(field: &str, matches: Option<&[GrpcRouteMatch]>, faults: &mut Vec<String>) -> Vec<Match> {
    let default = [GrpcRouteMatch::default()];
    let matches = matches.filter(|matches| !matches.is_empty()).unwrap_or(&default);
    let mut read = Vec::with_capacity(matches.len());
    for (index, found) in matches.iter().enumerate() {
        match read_match(&format!("{field}.matches[{index}]"), found) {
            Ok(found) => read.push(found),
            Err(fault) => faults.push(format!("{fault}; the match is left out")),
        }
    }
    read
}

fn read_match(field: &str, found: &GrpcRouteMatch) -> Result<Match, String> {
    Ok(Match {
        path: match &found.method {
            Some(method) => read_method(&format!("{field}.method"), method)?,
            None => PathMatch::Prefix(Arc::from("/")),
        },
        // gRPC over HTTP/2 is POST only (PROTOCOL-HTTP2.md of grpc/grpc).
        method: Some(Arc::from("POST")),
        headers: read_headers(&format!("{field}.headers"), found.headers.as_deref())?,
        query: Vec::new(),
    })
}

/// A request's path is `/service/method`.
fn read_method(field: &str, found: &GrpcMethodMatch) -> Result<PathMatch, String> {
    let service = found.service.as_deref().filter(|service| !service.is_empty());
    let method = found.method.as_deref().filter(|method| !method.is_empty());
    if found.r#type == Some(MatchType::RegularExpression) {
        let pattern = format!("/{}/{}", group(service), group(method));
        check_regex(field, &pattern)?;
        return Ok(PathMatch::Regex(Arc::from(pattern)));
    }
    for (name, value) in [("service", service), ("method", method)] {
        let is_name =
            |value: &str| value.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        if value.is_some_and(|value| !is_name(value)) {
            let value = value.unwrap_or_default();
            return Err(format!(
                "{field}.{name}: {value:?} is not a name in gRPC: write letters, digits, '.', '_' and '-'"
            ));
        }
    }
    match (service, method) {
        (Some(service), Some(method)) => Ok(PathMatch::Exact(Arc::from(format!("/{service}/{method}")))),
        (Some(service), None) => Ok(PathMatch::Prefix(Arc::from(format!("/{service}")))),
        (None, Some(method)) => Ok(PathMatch::Regex(Arc::from(format!("/[^/]+/{}", regex::escape(method))))),
        (None, None) => Err(format!("{field} names neither service nor method: name one, or remove it to take all")),
    }
}

fn group(pattern: Option<&str>) -> String {
    pattern.map_or_else(|| "[^/]+".to_owned(), |pattern| format!("(?:{pattern})"))
}

/// The rule without its matches, as an HTTPRoute would say it.
pub(super) fn into_http(rule: &GrpcRouteRule) -> HttpRouteRule {
    HttpRouteRule {
        backend_refs: rule.backend_refs.as_ref().map(|references| references.iter().map(into_http_backend).collect()),
        filters: rule.filters.as_ref().map(|filters| filters.iter().map(into_http_filter).collect()),
        name: rule.name.clone(),
        session_persistence: rule.session_persistence.clone(),
        ..HttpRouteRule::default()
    }
}

fn into_http_backend(reference: &GrpcBackendRef) -> HttpBackendRef {
    HttpBackendRef {
        filters: reference.filters.as_ref().map(|filters| filters.iter().map(into_http_filter).collect()),
        group: reference.group.clone(),
        kind: reference.kind.clone(),
        name: reference.name.clone(),
        namespace: reference.namespace.clone(),
        port: reference.port,
        weight: reference.weight,
    }
}

fn into_http_filter(filter: &GrpcRouteFilter) -> HttpRouteFilter {
    HttpRouteFilter {
        cors: None,
        extension_ref: filter.extension_ref.clone(),
        external_auth: None,
        request_header_modifier: filter.request_header_modifier.clone(),
        request_mirror: filter.request_mirror.clone(),
        request_redirect: None,
        response_header_modifier: filter.response_header_modifier.clone(),
        r#type: match filter.r#type {
            GrpcRouteFilterType::ResponseHeaderModifier => HttpRouteFilterType::ResponseHeaderModifier,
            GrpcRouteFilterType::RequestHeaderModifier => HttpRouteFilterType::RequestHeaderModifier,
            GrpcRouteFilterType::RequestMirror => HttpRouteFilterType::RequestMirror,
            GrpcRouteFilterType::ExtensionRef => HttpRouteFilterType::ExtensionRef,
        },
        url_rewrite: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(type_: Option<MatchType>, service: Option<&str>, method: Option<&str>) -> Result<PathMatch, String> {
        let found =
            GrpcMethodMatch { r#type: type_, service: service.map(str::to_owned), method: method.map(str::to_owned) };
        read_method("method", &found)
    }

    #[test]
    fn services_and_methods_are_paths() {
        let text = |text: &str| Arc::from(text);
        assert_eq!(method(None, Some("a.B"), Some("Get")), Ok(PathMatch::Exact(text("/a.B/Get"))));
        assert_eq!(method(None, Some("a.B"), None), Ok(PathMatch::Prefix(text("/a.B"))));
        assert_eq!(method(None, None, Some("Get")), Ok(PathMatch::Regex(text("/[^/]+/Get"))));
        let expression = method(Some(MatchType::RegularExpression), Some("a|b"), None);
        assert_eq!(expression, Ok(PathMatch::Regex(text("/(?:a|b)/[^/]+"))));
    }

    #[test]
    fn refuses_names_that_would_change_the_path() {
        assert!(method(None, Some("a/b"), None).is_err());
        assert!(method(None, None, None).is_err());
        assert!(method(Some(MatchType::RegularExpression), Some("("), None).is_err());
    }
}
