//! The `ExternalAuth` filter (GEP-1494): another server decides whether a request goes on.

use std::sync::Arc;

use tidegate_model::{ExternalAuth, ExternalAuthProtocol};

use super::filters::is_field_name;
use crate::{
    generated::common::{self, ExternalAuthProtocol as Protocol},
    references::Resolver,
};

/// Largest body in bytes that is kept to be judged. Each request under way may hold as much of a worker's memory.
const MAX_BODY: u32 = 1 << 20;

/// Reads the filter; the error names what cannot be carried out. A reference that leads nowhere is noted by the resolver,
/// and refuses every request.
pub(crate) fn read_external_auth(
    field: &str,
    auth: &common::ExternalAuth,
    resolver: &mut Resolver<'_>,
) -> Result<ExternalAuth, String> {
    let max_size = auth.forward_body.as_ref().and_then(|forward| forward.max_size).unwrap_or_default();
    let max_body = match u32::try_from(max_size) {
        Ok(0) => None,
        Ok(size) if size <= MAX_BODY => Some(size),
        _ => return Err(format!("{field}.forwardBody.maxSize: {max_size} is out of range: write 0 to {MAX_BODY}")),
    };
    let protocol = match auth.protocol {
        Protocol::Http => {
            let http = auth.http.clone().unwrap_or_default();
            let field = format!("{field}.http");
            ExternalAuthProtocol::Http {
                path_prefix: read_prefix(&field, http.path.as_deref().unwrap_or_default())?,
                request_headers: read_names(&format!("{field}.allowedHeaders"), http.allowed_headers.as_deref())?,
                response_headers: read_names(
                    &format!("{field}.allowedResponseHeaders"),
                    http.allowed_response_headers.as_deref(),
                )?,
            }
        }
        Protocol::Grpc => {
            let headers = auth.grpc.as_ref().and_then(|grpc| grpc.allowed_headers.as_deref());
            ExternalAuthProtocol::Grpc {
                request_headers: read_names(&format!("{field}.grpc.allowedHeaders"), headers)?,
            }
        }
    };
    let field = format!("{field}.backendRef");
    let backend = match protocol {
        ExternalAuthProtocol::Http { .. } => resolver.resolve(&field, &auth.backend_ref),
        ExternalAuthProtocol::Grpc { .. } => resolver.resolve_grpc(&field, &auth.backend_ref),
    };
    Ok(ExternalAuth { backend: backend.ok(), protocol, max_body })
}

/// Without its last slash, since the path behind it begins with one.
fn read_prefix(field: &str, path: &str) -> Result<Arc<str>, String> {
    let is_path = (path.is_empty() || path.starts_with('/'))
        && path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#'))
        && !path.split('/').any(|segment| matches!(segment, "." | ".."));
    if is_path {
        Ok(Arc::from(path.trim_end_matches('/')))
    } else {
        Err(format!("{field}.path: {path:?} is not a path: start with '/', no '..', %-escape what is no URL character"))
    }
}

fn read_names(field: &str, names: Option<&[String]>) -> Result<Vec<Arc<str>>, String> {
    let mut read = Vec::new();
    for (index, name) in names.unwrap_or_default().iter().enumerate() {
        if !is_field_name(name) {
            return Err(format!("{field}[{index}]: {name:?} is not the name of a header field"));
        }
        read.push(Arc::from(name.to_ascii_lowercase()));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{object::Kind, translator::store::Store};

    fn read(yaml: &str) -> Result<ExternalAuth, String> {
        let store = Store::default();
        let mut resolver = Resolver::new(&store, Kind::HTTPRoute, "ns");
        read_external_auth("f", &serde_saphyr::from_str(yaml).unwrap(), &mut resolver)
    }

    #[test]
    fn reads_both_protocols_and_refuses_all_requests_without_a_backend() {
        let http = read(
            "{protocol: HTTP, backendRef: {name: gone, port: 80}, forwardBody: {maxSize: 1024},\n\
             http: {path: /auth/, allowedHeaders: [X-A], allowedResponseHeaders: [X-User]}}",
        );
        let protocol = ExternalAuthProtocol::Http {
            path_prefix: "/auth".into(),
            request_headers: vec!["x-a".into()],
            response_headers: vec!["x-user".into()],
        };
        assert_eq!(http, Ok(ExternalAuth { backend: None, protocol, max_body: Some(1024) }));
        let grpc = read("{protocol: GRPC, backendRef: {name: gone, port: 80}, grpc: {allowedHeaders: [X-A]}}");
        let protocol = ExternalAuthProtocol::Grpc { request_headers: vec!["x-a".into()] };
        assert_eq!(grpc, Ok(ExternalAuth { backend: None, protocol, max_body: None }));
    }

    #[test]
    fn names_what_cannot_be_carried_out() {
        for (part, named) in [
            ("forwardBody: {maxSize: 1048577}", "f.forwardBody.maxSize"),
            ("forwardBody: {maxSize: -1}", "f.forwardBody.maxSize"),
            ("http: {path: auth}", "f.http.path"),
            ("http: {path: /a/../b}", "f.http.path"),
            ("http: {path: \"/a?b\"}", "f.http.path"),
            ("http: {allowedHeaders: [\"a b\"]}", "f.http.allowedHeaders[0]"),
            ("http: {allowedResponseHeaders: [ok, \"\"]}", "f.http.allowedResponseHeaders[1]"),
        ] {
            let error = read(&format!("{{protocol: HTTP, backendRef: {{name: a, port: 80}}, {part}}}")).unwrap_err();
            assert!(error.starts_with(named), "{error}");
        }
    }
}
