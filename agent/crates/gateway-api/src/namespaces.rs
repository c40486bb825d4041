//! Which namespaces a listener lets routes come from (`allowedRoutes.namespaces`), and a Gateway ListenerSets
//! (`allowedListeners.namespaces`), with Kubernetes' label selectors.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::{
    generated::{
        common::{FromNamespaces, RouteNamespaces},
        gateway::{GatewayAllowedListeners, GatewayAllowedListenersNamespacesFrom},
    },
    status::Problem,
};

/// Label that every namespace has by itself: its name (KEP-2161). An API server sets it; a folder of files need not.
pub(crate) const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Namespaces that routes may come from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AllowedNamespaces {
    /// The Gateway's own.
    Same,
    /// Every one.
    All,
    /// Those whose labels match.
    Selector(LabelSelector),
    /// None: the selector makes no sense.
    Nothing,
}

impl AllowedNamespaces {
    /// Reads `allowedRoutes.namespaces`; what is wrong with it lets no namespace in.
    pub(crate) fn read(namespaces: Option<&RouteNamespaces>) -> (Self, Option<Problem>) {
        let from = namespaces.and_then(|namespaces| namespaces.from.as_ref());
        match from {
            None | Some(FromNamespaces::Same) => (Self::Same, None),
            Some(FromNamespaces::All) => (Self::All, None),
            Some(FromNamespaces::Selector) => {
                let selector = namespaces.and_then(|namespaces| namespaces.selector.as_ref());
                Self::read_selector("allowedRoutes.namespaces", selector)
            }
        }
    }

    /// Reads whose ListenerSets a Gateway takes: nobody's unless it says so.
    pub(crate) fn read_for_sets(allowed: Option<&GatewayAllowedListeners>) -> (Self, Option<Problem>) {
        let namespaces = allowed.and_then(|allowed| allowed.namespaces.as_ref());
        match namespaces.and_then(|namespaces| namespaces.from.as_ref()) {
            None | Some(GatewayAllowedListenersNamespacesFrom::None) => (Self::Nothing, None),
            Some(GatewayAllowedListenersNamespacesFrom::Same) => (Self::Same, None),
            Some(GatewayAllowedListenersNamespacesFrom::All) => (Self::All, None),
            Some(GatewayAllowedListenersNamespacesFrom::Selector) => {
                let selector = namespaces.and_then(|namespaces| namespaces.selector.as_ref());
                Self::read_selector("spec.allowedListeners.namespaces", selector)
            }
        }
    }

    fn read_selector(field: &str, selector: Option<&LabelSelector>) -> (Self, Option<Problem>) {
        let problem = match selector {
            None => format!("{field}.selector is missing: add it, or set from to Same or All"),
            Some(selector) => match check_selector(field, selector) {
                Ok(()) => return (Self::Selector(selector.clone()), None),
                Err(message) => message,
            },
        };
        (Self::Nothing, Some(Problem::new("UnsupportedValue", problem)))
    }

    /// Whether something in `namespace` may attach to something in `own_namespace`.
    pub(crate) fn allows(&self, own_namespace: &str, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
        match self {
            Self::Same => own_namespace == namespace,
            Self::All => true,
            Self::Selector(selector) => is_selected(selector, namespace, labels),
            Self::Nothing => false,
        }
    }
}

fn check_selector(field: &str, selector: &LabelSelector) -> Result<(), String> {
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let has_values = expression.values.as_ref().is_some_and(|values| !values.is_empty());
        let is_valid = match expression.operator.as_str() {
            "In" | "NotIn" => has_values,
            "Exists" | "DoesNotExist" => !has_values,
            _ => false,
        };
        if !is_valid {
            return Err(format!(
                "{field}.selector.matchExpressions[{index}]: {} with {} values: use In or NotIn with values, or Exists or DoesNotExist without",
                expression.operator,
                expression.values.as_ref().map_or(0, Vec::len),
            ));
        }
    }
    Ok(())
}

fn is_selected(selector: &LabelSelector, namespace: &str, labels: &BTreeMap<String, String>) -> bool {
    let find = |key: &str| labels.get(key).map(String::as_str).or_else(|| (key == NAME_LABEL).then_some(namespace));
    let equal = selector.match_labels.iter().flatten().all(|(key, value)| find(key) == Some(value.as_str()));
    equal
        && selector.match_expressions.iter().flatten().all(|expression| {
            let value = find(&expression.key);
            let is_listed = value.is_some_and(|value| expression.values.iter().flatten().any(|listed| listed == value));
            match expression.operator.as_str() {
                "In" => is_listed,
                "NotIn" => !is_listed,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;

    use super::*;

    fn allows(operator: &str, values: &[&str], labels: &[(&str, &str)]) -> bool {
        let expression = LabelSelectorRequirement {
            key: "tier".to_owned(),
            operator: operator.to_owned(),
            values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
        };
        let selector = LabelSelector { match_expressions: Some(vec![expression]), match_labels: None };
        let namespaces = RouteNamespaces { from: Some(FromNamespaces::Selector), selector: Some(selector) };
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        AllowedNamespaces::read(Some(&namespaces)).0.allows("gateways", "shop", &labels)
    }

    #[test]
    fn selects_by_expressions_as_kubernetes_does() {
        let gold = [("tier", "gold")];
        assert!(allows("In", &["gold", "silver"], &gold));
        assert!(!allows("In", &["silver"], &gold));
        assert!(!allows("In", &["gold"], &[]));
        assert!(!allows("NotIn", &["gold"], &gold));
        assert!(allows("NotIn", &["gold"], &[]));
        assert!(allows("Exists", &[], &gold));
        assert!(!allows("Exists", &[], &[]));
        assert!(allows("DoesNotExist", &[], &[]));
        assert!(!allows("DoesNotExist", &[], &gold));
    }

    #[test]
    fn a_senseless_selector_lets_nobody_in() {
        assert!(!allows("Like", &["g*"], &[("tier", "gold")]));
        assert!(!allows("In", &[], &[("tier", "gold")]));
    }

    #[test]
    fn the_name_label_needs_no_namespace_object() {
        let match_labels = BTreeMap::from([(NAME_LABEL.to_owned(), "shop".to_owned())]);
        let selector = LabelSelector { match_expressions: None, match_labels: Some(match_labels) };
        let allowed = AllowedNamespaces::Selector(selector);
        assert!(allowed.allows("gateways", "shop", &BTreeMap::new()));
        assert!(!allowed.allows("gateways", "other", &BTreeMap::new()));
    }
}
