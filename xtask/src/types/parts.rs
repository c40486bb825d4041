//! Which types of a module get a file of their own, for modules that one file would make too long to read.
//!
//! Every type of a module named here is in exactly one part, and every part's types exist: both are asserted while
//! generating. The parts are private and their types exported by the module, so that moving one changes no path.

/// A part of a module: a file in the folder that the module becomes.
#[derive(Debug)]
pub(super) struct Part {
    /// Module that it is a part of.
    pub(super) module: &'static str,
    /// Name of its file.
    pub(super) name: &'static str,
    /// What it holds, the beginning of a sentence without its full stop.
    pub(super) holds: &'static str,
    /// Its types, under our names.
    pub(super) types: &'static [&'static str],
}

/// A module without an entry here is one file.
pub(super) const PARTS: &[Part] = &[
    Part {
        module: "common",
        name: "external_auth",
        holds: "The filter that asks an external server for authorization",
        types: &[
            "ExternalAuth",
            "ExternalAuthForwardBody",
            "ExternalAuthGrpc",
            "ExternalAuthHttp",
            "ExternalAuthProtocol",
        ],
    },
    Part {
        module: "common",
        name: "filters",
        holds: "Filters of HTTPRoutes and GRPCRoutes",
        types: &["Fraction", "HeaderModifier", "HttpHeader", "RequestMirror"],
    },
    Part {
        module: "common",
        name: "listener",
        holds: "Listeners of Gateways and ListenerSets",
        types: &["Listener", "ListenerFilter", "ListenerFilterType", "ListenerFilters", "ListenerTls", "TlsMode"],
    },
    Part {
        module: "common",
        name: "references",
        holds: "References from one object to another",
        types: &[
            "BackendObjectReference",
            "BackendRef",
            "LocalObjectReference",
            "ParentReference",
            "SecretObjectReference",
        ],
    },
    Part {
        module: "common",
        name: "routes",
        holds: "Which routes a listener allows, and rules and matches of routes of several kinds",
        types: &[
            "AllowedRoutes",
            "FromNamespaces",
            "GatewayDefaultScope",
            "L4RouteRule",
            "MatchType",
            "NamedMatch",
            "RouteGroupKind",
            "RouteNamespaces",
        ],
    },
    Part {
        module: "common",
        name: "session",
        holds: "Session persistence of a rule",
        types: &[
            "CookieLifetimeType",
            "SessionCookie",
            "SessionHeader",
            "SessionPersistence",
            "SessionPersistenceType",
        ],
    },
    Part {
        module: "common",
        name: "status",
        holds: "What is said about a listener, and about a route by each of its parents",
        types: &["ListenerStatus", "RouteParentStatus", "RouteStatus"],
    },
    Part {
        module: "gateway",
        name: "spec",
        holds: "What a Gateway asks for, less TLS",
        types: &[
            "GatewayAllowedListeners",
            "GatewayAllowedListenersNamespaces",
            "GatewayAllowedListenersNamespacesFrom",
            "GatewayInfrastructure",
            "GatewaySpec",
            "GatewaySpecAddress",
        ],
    },
    Part {
        module: "gateway",
        name: "status",
        holds: "What is said about a Gateway",
        types: &["GatewayStatus", "GatewayStatusAddress"],
    },
    Part {
        module: "gateway",
        name: "tls",
        holds: "TLS of a Gateway towards clients and backends",
        types: &[
            "FrontendTls",
            "FrontendTlsValidation",
            "FrontendTlsValidationMode",
            "GatewayTls",
            "GatewayTlsBackend",
            "GatewayTlsFrontend",
            "GatewayTlsFrontendPerPort",
            "ObjectReference",
        ],
    },
    Part {
        module: "grpc_route",
        name: "filters",
        holds: "Filters of a GRPCRoute",
        types: &["GrpcRouteFilter", "GrpcRouteFilterType"],
    },
    Part {
        module: "grpc_route",
        name: "matches",
        holds: "Which requests a rule of a GRPCRoute is for",
        types: &["GrpcMethodMatch", "GrpcRouteMatch"],
    },
    Part {
        module: "grpc_route",
        name: "rules",
        holds: "Rules of a GRPCRoute and their backends",
        types: &["GrpcBackendRef", "GrpcRouteRule"],
    },
    Part { module: "grpc_route", name: "spec", holds: "What a GRPCRoute asks for", types: &["GrpcRouteSpec"] },
    Part { module: "http_route", name: "cors", holds: "The filter for requests across origins", types: &["Cors"] },
    Part {
        module: "http_route",
        name: "filters",
        holds: "Filters of an HTTPRoute",
        types: &[
            "HttpPathModifier",
            "HttpPathModifierType",
            "HttpRouteFilter",
            "HttpRouteFilterType",
            "RedirectScheme",
            "RequestRedirect",
            "UrlRewrite",
        ],
    },
    Part {
        module: "http_route",
        name: "matches",
        holds: "Which requests a rule of an HTTPRoute is for",
        types: &["HttpMethod", "HttpPathMatch", "HttpRouteMatch", "PathMatchType"],
    },
    Part {
        module: "http_route",
        name: "rules",
        holds: "Rules of an HTTPRoute, their backends, timeouts and retries",
        types: &["HttpBackendRef", "HttpRouteRetry", "HttpRouteRule", "HttpRouteTimeouts"],
    },
    Part { module: "http_route", name: "spec", holds: "What an HTTPRoute asks for", types: &["HttpRouteSpec"] },
];
