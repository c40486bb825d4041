//! Attachment of routes to listeners, by the listeners' text alone: whether a listener can be served (its certificate,
//! its address) does not change who is attached to it, so neither changes a rule.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::{Attachment, DomainName, Hostname, ListenerKey, ObjectName};

use crate::{
    generated::common::ParentReference,
    listener::ListenerDraft,
    namespaces::AllowedNamespaces,
    object::{Kind, ObjectRef},
    status::Problem,
};

/// What routes see of a Gateway or of a ListenerSet: its own listeners, never those of the other. When it stays equal, no
/// route of it is looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ParentView {
    /// Domain of the Gateway, or why there is none for these listeners.
    pub(crate) domain: Result<DomainName, Problem>,
    pub(crate) controller: Arc<str>,
    /// Whether the domain has a model on this node.
    pub(crate) is_here: bool,
    gateway: ObjectName,
    set: Option<Arc<ObjectName>>,
    listeners: Vec<ViewedListener>,
}

/// What routes see of a listener.
#[derive(Clone, Debug, PartialEq)]
struct ViewedListener {
    name: Arc<str>,
    port: u16,
    hostname: Option<Hostname>,
    kinds: Vec<&'static str>,
    namespaces: AllowedNamespaces,
}

/// Whose domain and controller a view shows.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) domain: Result<DomainName, Problem>,
    pub(crate) controller: Arc<str>,
    pub(crate) is_here: bool,
}

impl ParentView {
    /// View of the listeners that stand in a Gateway itself, or in one of its sets.
    pub(crate) fn new(gateway: &ObjectName, set: Option<&ObjectName>, drafts: &[ListenerDraft], seen: Seen) -> Self {
        let listeners = drafts.iter().filter(|listener| !listener.is_duplicate).map(|listener| ViewedListener {
            name: listener.name.clone(),
            port: listener.port,
            hostname: listener.hostname.clone(),
            kinds: listener.kinds.clone(),
            namespaces: listener.namespaces.clone(),
        });
        Self {
            domain: seen.domain,
            controller: seen.controller,
            is_here: seen.is_here,
            gateway: gateway.clone(),
            set: set.cloned().map(Arc::new),
            listeners: listeners.collect(),
        }
    }

    /// Whether labels of namespaces decide who may attach.
    pub(crate) fn reads_labels(&self) -> bool {
        self.listeners.iter().any(|listener| matches!(listener.namespaces, AllowedNamespaces::Selector(_)))
    }

    /// The object that the listeners stand in.
    fn holder(&self) -> ObjectRef {
        match &self.set {
            None => ObjectRef::new(Kind::Gateway, self.gateway.clone()),
            Some(set) => ObjectRef::new(Kind::ListenerSet, ObjectName::clone(set)),
        }
    }
}

/// A route that wants to attach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Applicant<'a> {
    pub(crate) kind: Kind,
    pub(crate) namespace: &'a str,
    pub(crate) namespace_labels: &'a BTreeMap<String, String>,
    /// Empty: every host name.
    pub(crate) hostnames: &'a [Hostname],
}

/// Finds the listeners that a parent reference attaches a route to.
pub(crate) fn find_attachments(
    view: &ParentView,
    reference: &ParentReference,
    route: Applicant<'_>,
) -> Result<Vec<Attachment>, Problem> {
    let holder = view.holder();
    let section = reference.section_name.as_deref().filter(|name| !name.is_empty());
    let meant = |listener: &&ViewedListener| {
        section.is_none_or(|name| name == &*listener.name)
            && reference.port.is_none_or(|port| port == i32::from(listener.port))
    };
    let mut meant = view.listeners.iter().filter(meant).peekable();
    if meant.peek().is_none() {
        let name = section.map(|name| format!(" of name {name:?}")).unwrap_or_default();
        let port = reference.port.map(|port| format!(" on port {port}")).unwrap_or_default();
        return Err(Problem::new(
            "NoMatchingParent",
            format!("{holder} has no listener{name}{port}: change sectionName or port in spec.parentRefs"),
        ));
    }
    let allows = |listener: &&ViewedListener| {
        listener.kinds.contains(&route.kind.as_str())
            && listener.namespaces.allows(&holder.name.namespace, route.namespace, route.namespace_labels)
    };
    let mut allowed = meant.filter(allows).peekable();
    if allowed.peek().is_none() {
        return Err(Problem::new(
            "NotAllowedByListeners",
            format!(
                "no listener of {holder} takes a {} of namespace {}: change allowedRoutes of a listener, or the labels of the namespace",
                route.kind, route.namespace
            ),
        ));
    }
    let attachments: Vec<_> = allowed
        .filter_map(|listener| {
            let hostnames = find_common(listener.hostname.as_ref(), route.hostnames)?;
            let key = ListenerKey { gateway: view.gateway.clone(), set: view.set.clone(), name: listener.name.clone() };
            Some(Attachment { listener: key, hostnames })
        })
        .collect();
    if attachments.is_empty() {
        return Err(Problem::new(
            "NoMatchingListenerHostname",
            format!("spec.hostnames has no name in common with a listener of {holder}: change one of them"),
        ));
    }
    Ok(attachments)
}

/// The route's names that have one in common with the listener's; `None` when there are none, empty for all of the
/// listener's. They stay as the route has them: the listener is found first, so what a name has beyond the listener's does
/// no harm, and routes come in the order of their own names (feature `GatewayRouteHostnameIntersectionPrecedence`).
fn find_common(listener: Option<&Hostname>, route: &[Hostname]) -> Option<Vec<Hostname>> {
    let Some(listener) = listener else { return Some(route.to_vec()) };
    if route.is_empty() {
        return Some(Vec::new());
    }
    let mut common: Vec<_> = route.iter().filter(|hostname| hostname.intersect(listener).is_some()).cloned().collect();
    common.sort();
    common.dedup();
    (!common.is_empty()).then_some(common)
}
