//! Gateway API objects as YAML text: what the tests vary, and no more.
//!
//! Nested lists (listeners, rules, matches) are given in YAML flow style by the caller, as a user would write them.

use std::fmt::Write as _;

/// The two-domain example as users get it.
pub const TWO_DOMAINS: &str = include_str!("../../../deploy/examples/two-domains.yaml");

/// Separator of documents.
pub const NEXT: &str = "---\n";

/// Joins objects to one file.
pub fn join<T: AsRef<str>>(objects: impl IntoIterator<Item = T>) -> String {
    objects.into_iter().map(|object| format!("{NEXT}{}", object.as_ref())).collect()
}

/// A `TrafficDomain`; `more` is further flow-style fields of `spec`, e.g. `sources: {deny: [192.0.2.0/24]}`.
pub fn domain(name: &str, interface: &str, pools: &[&str], more: &[&str]) -> String {
    let pools: Vec<String> = pools.iter().map(|pool| format!("\"{pool}\"")).collect();
    let mut text = format!(
        "apiVersion: tidegate.dev/v1alpha1\nkind: TrafficDomain\nmetadata: {{name: {name}}}\nspec:\n  \
         interfaces: [{interface}]\n  addresses: {{pool: [{}]}}\n  labels: {{traffic.domain: {name}}}\n",
        pools.join(", ")
    );
    for field in more {
        let _ = writeln!(text, "  {field}");
    }
    text
}

/// A GatewayClass for the domain of the same name.
pub fn class(name: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: {name}}}\nspec:\n  \
         controllerName: tidegate.dev/gateway-controller\n  \
         parametersRef: {{group: tidegate.dev, kind: TrafficDomain, name: {name}}}\n"
    )
}

/// A Namespace with labels in flow style, e.g. `gw-access: external`.
pub fn namespace(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}

/// A Gateway at fixed addresses; each listener in flow style.
pub fn gateway(namespace: &str, name: &str, class: &str, addresses: &[&str], listeners: &[&str]) -> String {
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  gatewayClassName: {class}\n"
    );
    if !addresses.is_empty() {
        let _ = writeln!(text, "  addresses:");
        for address in addresses {
            let _ = writeln!(text, "  - {{type: IPAddress, value: \"{address}\"}}");
        }
    }
    let _ = writeln!(text, "  listeners:");
    for listener in listeners {
        let _ = writeln!(text, "  - {listener}");
    }
    text
}

/// A listener for plain HTTP that takes routes of every namespace.
pub fn http_listener(name: &str, port: u16) -> String {
    format!("{{name: {name}, protocol: HTTP, port: {port}, allowedRoutes: {{namespaces: {{from: All}}}}}}")
}

/// A listener for HTTPS that takes routes of every namespace.
pub fn https_listener(name: &str, port: u16, hostname: &str, secret: &str) -> String {
    format!(
        "{{name: {name}, protocol: HTTPS, port: {port}, hostname: \"{hostname}\", \
         tls: {{mode: Terminate, certificateRefs: [{{name: {secret}}}]}}, allowedRoutes: {{namespaces: {{from: All}}}}}}"
    )
}

/// An HTTPRoute; `parent` is `namespace/gateway`, each rule in flow style.
pub fn route(namespace: &str, name: &str, parent: &str, hostnames: &[&str], rules: &[&str]) -> String {
    let (gateway_namespace, gateway) = parent.split_once('/').unwrap_or((namespace, parent));
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec:\n  parentRefs: [{{name: {gateway}, namespace: {gateway_namespace}}}]\n"
    );
    if !hostnames.is_empty() {
        let quoted: Vec<String> = hostnames.iter().map(|host| format!("\"{host}\"")).collect();
        let _ = writeln!(text, "  hostnames: [{}]", quoted.join(", "));
    }
    let _ = writeln!(text, "  rules:");
    for rule in rules {
        let _ = writeln!(text, "  - {rule}");
    }
    text
}

/// A rule, flow style, that takes every request to one Service on port 8080.
pub fn to_service(service: &str) -> String {
    format!("{{backendRefs: [{{name: {service}, port: 8080}}]}}")
}

/// A rule, flow style, for a path prefix to one Service on port 8080.
pub fn prefix_to(prefix: &str, service: &str) -> String {
    format!(
        "{{matches: [{{path: {{type: PathPrefix, value: \"{prefix}\"}}}}], backendRefs: [{{name: {service}, port: 8080}}]}}"
    )
}

/// A Service on port 8080.
pub fn service(namespace: &str, name: &str) -> String {
    service_with(namespace, name, "")
}

/// A Service on port 8080 whose port has an `appProtocol`.
pub fn service_with(namespace: &str, name: &str, app_protocol: &str) -> String {
    let app = if app_protocol.is_empty() { String::new() } else { format!(", appProtocol: {app_protocol}") };
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{ports: [{{name: http, port: 8080, targetPort: 8080{app}}}]}}\n"
    )
}

/// How an endpoint of [`slice()`] stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Takes new requests.
    Ready,
    /// Neither ready nor serving: gets nothing.
    Unready,
    /// Terminating but still serving.
    Terminating,
}

/// The EndpointSlice of a Service, all endpoints on port 8080. The family is the first address's.
pub fn slice(namespace: &str, service: &str, endpoints: &[(&str, EndpointState)]) -> String {
    let family = if endpoints.first().is_some_and(|(address, _)| address.contains(':')) { "IPv6" } else { "IPv4" };
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {service}-{}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}}}\n\
         addressType: {family}\nports: [{{name: http, port: 8080, protocol: TCP}}]\n",
        family.to_lowercase()
    );
    if endpoints.is_empty() {
        text.push_str("endpoints: []\n");
        return text;
    }
    text.push_str("endpoints:\n");
    for (address, state) in endpoints {
        let conditions = match state {
            EndpointState::Ready => "ready: true, serving: true, terminating: false",
            EndpointState::Unready => "ready: false, serving: false, terminating: false",
            EndpointState::Terminating => "ready: false, serving: true, terminating: true",
        };
        let _ = writeln!(text, "- {{addresses: [\"{address}\"], conditions: {{{conditions}}}}}");
    }
    text
}

/// A Service with ready endpoints.
pub fn service_at(namespace: &str, name: &str, addresses: &[&str]) -> String {
    let endpoints: Vec<_> = addresses.iter().map(|address| (*address, EndpointState::Ready)).collect();
    format!("{}{NEXT}{}", service(namespace, name), slice(namespace, name, &endpoints))
}

/// A ReferenceGrant in `namespace` that lets kind `from` (group/kind) of `from_namespace` refer to kind `to` there.
pub fn grant(namespace: &str, name: &str, from: (&str, &str), from_namespace: &str, to: (&str, &str)) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  \
         from: [{{group: \"{}\", kind: {}, namespace: {from_namespace}}}]\n  to: [{{group: \"{}\", kind: {}}}]\n",
        from.0, from.1, to.0, to.1
    )
}
