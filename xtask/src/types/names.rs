//! What kopium's names become: one name for what several kinds have in common, and Gateway API's own words for the rest.
//!
//! kopium names a type after its path in the schema and so makes the same type anew in each place. That types with one
//! name here really are the same is asserted while generating.

use std::collections::HashMap;

/// Parts of paths that many names share.
const PARTS: &[(&str, &str)] = &[
    ("AUTH", "{FILTER,LISTENERFiltersRequests}ExternalAuth"),
    ("FILTER", "{Http,Grpc}RouteRules{,BackendRefs}Filters"),
    ("FRONTEND", "GatewayTlsFrontend{Default,PerPortTls}"),
    ("LISTENER", "{GatewayListeners,ListenerSetListeners}"),
    ("L4", "{Tls,Tcp,Udp}RouteRules"),
    ("MATCHES", "{Http,Grpc}RouteRulesMatches"),
    ("PERSIST", "{Http,Grpc}RouteRulesSessionPersistence"),
    ("ROUTE", "{Http,Grpc,Tls,Tcp,Udp}Route"),
    ("SELECTOR", "{GatewayAllowedListeners,LISTENERAllowedRoutes}NamespacesSelector"),
];

/// A name and the paths of schemas that it stands for: `{a,b}` is either, words of [`PARTS`] are put in first.
const NAMES: &[(&str, &str)] = &[
    ("AllowedRoutes", "LISTENERAllowedRoutes"),
    ("BackendObjectReference", "{FILTERRequestMirror,AUTH}BackendRef"),
    ("BackendRef", "L4BackendRefs"),
    ("CookieLifetimeType", "PERSISTCookieLifetimeType"),
    ("Cors", "FILTERCors"),
    ("ExternalAuth", "AUTH"),
    ("ExternalAuthForwardBody", "AUTHForwardBody"),
    ("ExternalAuthGrpc", "AUTHGrpc"),
    ("ExternalAuthHttp", "AUTHHttp"),
    ("ExternalAuthProtocol", "AUTHProtocol"),
    ("Fraction", "FILTERRequestMirrorFraction"),
    ("FromNamespaces", "LISTENERAllowedRoutesNamespacesFrom"),
    ("FrontendTls", "FRONTEND"),
    ("FrontendTlsValidation", "FRONTENDValidation"),
    ("FrontendTlsValidationMode", "FRONTENDValidationMode"),
    ("GatewayDefaultScope", "ROUTEUseDefaultGateways"),
    ("GatewaySpecAddress", "GatewayAddresses"),
    ("GatewayStatusAddress", "GatewayStatusAddresses"),
    ("GrpcBackendRef", "GrpcRouteRulesBackendRefs"),
    ("GrpcMethodMatch", "GrpcRouteRulesMatchesMethod"),
    ("GrpcRouteFilter", "GrpcRouteRules{,BackendRefs}Filters"),
    ("GrpcRouteFilterType", "GrpcRouteRules{,BackendRefs}FiltersType"),
    ("GrpcRouteMatch", "GrpcRouteRulesMatches"),
    ("GrpcRouteRule", "GrpcRouteRules"),
    ("HeaderModifier", "FILTER{Request,Response}HeaderModifier"),
    ("HttpBackendRef", "HttpRouteRulesBackendRefs"),
    ("HttpHeader", "FILTER{Request,Response}HeaderModifier{Add,Set}"),
    ("HttpMethod", "HttpRouteRulesMatchesMethod"),
    ("HttpPathMatch", "HttpRouteRulesMatchesPath"),
    ("HttpPathModifier", "FILTER{RequestRedirect,UrlRewrite}Path"),
    ("HttpPathModifierType", "FILTER{RequestRedirect,UrlRewrite}PathType"),
    ("HttpRouteFilter", "HttpRouteRules{,BackendRefs}Filters"),
    ("HttpRouteFilterType", "HttpRouteRules{,BackendRefs}FiltersType"),
    ("HttpRouteMatch", "HttpRouteRulesMatches"),
    ("HttpRouteRetry", "HttpRouteRulesRetry"),
    ("HttpRouteRule", "HttpRouteRules"),
    ("HttpRouteTimeouts", "HttpRouteRulesTimeouts"),
    ("L4RouteRule", "L4"),
    ("LabelSelector", "SELECTOR"),
    ("LabelSelectorRequirement", "SELECTORMatchExpressions"),
    ("Listener", "LISTENER"),
    ("ListenerFilter", "LISTENERFiltersRequests"),
    ("ListenerFilterType", "LISTENERFiltersRequestsType"),
    ("ListenerFilters", "LISTENERFilters"),
    ("ListenerStatus", "{Gateway,ListenerSet}StatusListeners"),
    ("ListenerTls", "LISTENERTls"),
    ("LocalObjectReference", "{FILTER,LISTENERFiltersRequests}ExtensionRef"),
    ("LocalObjectReference", "{BackendTlsPolicyValidationCaCertificateRefs,GatewayInfrastructureParametersRef}"),
    ("MatchType", "MATCHES{Headers,QueryParams,Method}Type"),
    ("NamedMatch", "MATCHES{Headers,QueryParams}"),
    ("ObjectReference", "FRONTENDValidationCaCertificateRefs"),
    ("ParentReference", "{ROUTEParentRefs,ROUTEStatusParentsParentRef,BackendTlsPolicyStatusAncestorsAncestorRef}"),
    ("PathMatchType", "HttpRouteRulesMatchesPathType"),
    ("RedirectScheme", "FILTERRequestRedirectScheme"),
    ("RequestMirror", "FILTERRequestMirror"),
    ("RequestRedirect", "FILTERRequestRedirect"),
    ("RouteGroupKind", "{LISTENERAllowedRoutesKinds,GatewayStatusListenersSupportedKinds}"),
    ("RouteGroupKind", "ListenerSetStatusListenersSupportedKinds"),
    ("RouteNamespaces", "LISTENERAllowedRoutesNamespaces"),
    ("RouteParentStatus", "ROUTEStatusParents"),
    ("RouteStatus", "ROUTEStatus"),
    ("SecretObjectReference", "{LISTENERTlsCertificateRefs,GatewayTlsBackendClientCertificateRef}"),
    ("SessionCookie", "PERSISTCookie"),
    ("SessionHeader", "PERSISTHeader"),
    ("SessionPersistence", "PERSIST"),
    ("SessionPersistenceType", "PERSISTType"),
    ("TlsMode", "LISTENERTlsMode"),
    ("UrlRewrite", "FILTERUrlRewrite"),
];

/// kopium's name of a type to ours.
pub(super) fn table() -> HashMap<String, &'static str> {
    let mut table = HashMap::new();
    for &(name, pattern) in NAMES {
        // Twice: AUTH is made of other parts.
        let mut pattern = pattern.to_owned();
        for _ in 0..2 {
            for (part, meaning) in PARTS {
                pattern = pattern.replace(part, meaning);
            }
        }
        for path in expand(&pattern) {
            let other = table.insert(path.clone(), name);
            assert!(other.is_none_or(|other| other == name), "{path} is to become {name} and {other:?}");
        }
    }
    table
}

/// All words that a pattern with (nested) braces stands for.
fn expand(pattern: &str) -> Vec<String> {
    let Some(open) = pattern.find('{') else {
        return vec![pattern.to_owned()];
    };
    let (mut depth, mut begin, mut choices, mut end) = (0, open + 1, Vec::new(), pattern.len());
    for (at, c) in pattern.char_indices().skip(open) {
        match c {
            '{' => depth += 1,
            ',' if depth == 1 => {
                choices.push(&pattern[begin..at]);
                begin = at + 1;
            }
            '}' if depth == 1 => {
                choices.push(&pattern[begin..at]);
                end = at;
                break;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    let (before, after) = (&pattern[..open], &pattern[end + 1..]);
    choices.iter().flat_map(|choice| expand(&format!("{before}{choice}{after}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_braces_expand_to_every_word() {
        assert_eq!(expand("a{b,{c,d}e}f{,g}"), ["abf", "abfg", "acef", "acefg", "adef", "adefg"]);
    }

    #[test]
    fn one_path_has_one_name() {
        let table = table();
        assert_eq!(table["GrpcRouteStatusParentsParentRef"], "ParentReference");
        assert_eq!(table["ListenerSetListenersFiltersRequestsExternalAuthBackendRef"], "BackendObjectReference");
        assert_eq!(table["HttpRouteRulesBackendRefsFilters"], "HttpRouteFilter");
    }
}
