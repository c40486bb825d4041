//! Stage: bundles of authorities, BackendTLSPolicies, and what is said about the latter at each Gateway whose routes use
//! their backends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tidegate_model::{BackendKey, BackendTls, CaBundle, CaBundleKey, ObjectName, Trust};

use super::{Translator, mark::keys_of_backend};
use crate::{
    ca_bundles::read_bundle,
    generated::common::ParentReference,
    object::{GATEWAY_GROUP, Kind, ObjectRef},
    status::{Conditions, ObjectStatus, ParentStatus, Problem, condition},
    tls_policy::{Target, TlsPolicy, Verdict},
};

/// Entries that the status of a policy may hold (Gateway API).
const MAX_ANCESTORS: usize = 16;

/// What was read of a bundle.
pub(super) type ReadBundle = Result<Arc<CaBundle>, String>;

/// A policy with what comes of it.
#[derive(Debug)]
pub(super) struct PolicyState {
    policy: TlsPolicy,
    verdict: Verdict,
}

impl Translator {
    /// Reads again the bundles that changed.
    pub(super) fn settle_bundles(&mut self) {
        for key in std::mem::take(&mut self.work.bundles) {
            let Some(before) = self.bundles.get(&key).cloned() else { continue };
            let now = self.read_bundle(&key);
            let is_same_verdict = match (&before, &now) {
                (Ok(_), Ok(_)) => true,
                (Err(before), Err(now)) => before == now,
                _ => false,
            };
            if !is_same_verdict {
                self.work.gateways.extend(self.edges.gateway_bundles.sources_of(&key).cloned());
                self.work.tls_policies.extend(self.edges.policy_bundles.sources_of(&key).cloned());
            }
            self.models.set_bundle(&key, now.as_ref().ok());
            self.bundles.insert(key, now);
        }
    }

    fn read_bundle(&mut self, key: &CaBundleKey) -> ReadBundle {
        self.translated += 1;
        read_bundle(&self.store, key).map(Arc::new)
    }

    /// Reads a bundle that is referred to for the first time.
    pub(super) fn require_bundle(&mut self, key: &CaBundleKey) {
        if !self.bundles.contains_key(key) {
            let bundle = self.read_bundle(key);
            self.models.set_bundle(key, bundle.as_ref().ok());
            self.bundles.insert(key.clone(), bundle);
        }
    }

    /// Forgets bundles that nothing refers to any more.
    pub(super) fn forget_bundles(&mut self, orphans: impl IntoIterator<Item = CaBundleKey>) {
        for key in orphans {
            if !self.edges.gateway_bundles.is_target(&key) && !self.edges.policy_bundles.is_target(&key) {
                self.bundles.remove(&key);
                self.models.set_bundle(&key, None);
            }
        }
    }

    /// What was read of a bundle that is referred to.
    pub(super) fn find_bundle(&self, key: &CaBundleKey) -> ReadBundle {
        self.bundles.get(key).cloned().unwrap_or_else(|| Err(format!("{key} was not read")))
    }

    /// Reads again the policies that changed, or whose bundles did.
    pub(super) fn settle_tls_policies(&mut self) {
        for name in std::mem::take(&mut self.work.tls_policies) {
            let read = self.store.find_tls_policy(&name).map(|policy| TlsPolicy::read(policy));
            let bundles: BTreeSet<_> = read.iter().flat_map(TlsPolicy::bundles).cloned().collect();
            let orphans = self.edges.policy_bundles.replace(&name, bundles.clone());
            bundles.iter().for_each(|key| self.require_bundle(key));
            self.forget_bundles(orphans);
            self.work.tls_policy_statuses.insert(name.clone());
            let now = read.map(|policy| {
                self.translated += 1;
                let verdict = policy.judge(&|key| self.find_bundle(key));
                PolicyState { policy, verdict }
            });
            let before = self.tls_policies.remove(&name);
            let tls = |state: &Option<PolicyState>| state.as_ref().map(|state| state.verdict.tls.clone());
            if tls(&before) != tls(&now) {
                let targets = before.iter().chain(&now).flat_map(|state| &state.policy.targets);
                let objects: BTreeSet<_> = targets.map(|target| target.object.clone()).collect();
                objects.iter().for_each(|object| self.mark_backends_of(object));
            }
            if let Some(now) = now {
                self.tls_policies.insert(name, now);
            }
        }
    }

    pub(super) fn mark_backends_of(&mut self, object: &ObjectRef) {
        match object.kind {
            Kind::Service => self.mark_service(&object.name, false),
            _ => {
                self.work.backends.extend(keys_of_backend(&object.name));
            }
        }
    }

    /// TLS to a backend by the policy that decides about it; `None` when there is none.
    pub(super) fn find_tls(&self, key: &BackendKey) -> Option<BackendTls> {
        let policy = self.store.find_tls_policy_of(key)?;
        let state = self.tls_policies.get(&policy);
        // A policy that was not read yet is none that can be passed over.
        let unread = || BackendTls { server_name: String::new(), subject_alt_names: Vec::new(), trust: Trust::Nobody };
        Some(state.map_or_else(unread, |state| state.verdict.tls.clone()))
    }

    /// Marks what is to be said about the policies of a route's backends.
    pub(super) fn mark_policies_of<'a>(&mut self, backends: impl IntoIterator<Item = &'a BackendKey>) {
        for key in backends {
            self.work.tls_policy_statuses.extend(self.store.tls_policies_of(&object_of(key)).cloned());
        }
    }

    /// Says about policies what comes of them at each Gateway.
    pub(super) fn settle_tls_policy_statuses(&mut self) {
        for name in std::mem::take(&mut self.work.tls_policy_statuses) {
            let reference = ObjectRef::new(Kind::BackendTLSPolicy, name.clone());
            let status = self.tls_policies.get(&name).map(|state| self.describe_policy(&name, state));
            // A policy that was used here and is not any more keeps an empty status, so that what was written is taken back.
            let is_known = self.statuses.contains_key(&reference);
            self.set_status(&reference, status.filter(|status| is_known || *status != ObjectStatus::default()));
        }
    }

    fn describe_policy(&self, name: &ObjectName, state: &PolicyState) -> ObjectStatus {
        let mut gateways: BTreeMap<ObjectName, Option<Problem>> = BTreeMap::new();
        for target in &state.policy.targets {
            let conflict = self.find_conflict(name, target);
            for gateway in self.find_users(target) {
                let entry = gateways.entry(gateway).or_default();
                *entry = entry.take().or(conflict.clone());
            }
        }
        let conditions = |conflict: Option<&Problem>| {
            let mut conditions = Conditions::new(state.policy.generation);
            let missing = state.policy.targets.iter().find_map(|target| self.find_missing(target));
            let rejection = conflict.or(state.verdict.rejection.as_ref()).or(missing.as_ref());
            conditions
                .judge(condition::ACCEPTED, "Accepted", rejection)
                .judge(condition::RESOLVED_REFS, "ResolvedRefs", state.verdict.refs_problem.as_ref())
                .enforced(&state.policy.unenforced);
            conditions.into_list()
        };
        let ancestors = gateways.iter().filter_map(|(name, conflict)| {
            Some(ParentStatus {
                parent: ParentReference {
                    group: Some(GATEWAY_GROUP.to_owned()),
                    kind: Some("Gateway".to_owned()),
                    namespace: Some(name.namespace.to_string()),
                    name: name.name.to_string(),
                    ..ParentReference::default()
                },
                controller: self.gateways.get(name)?.view.controller.clone(),
                conditions: conditions(conflict.as_ref()),
            })
        });
        let parents: Vec<_> = ancestors.take(MAX_ANCESTORS).collect();
        // In a folder nobody else can be whom the policy is for, so it is judged although nobody uses it yet.
        let is_alone = parents.is_empty() && self.settings.reports_missing_parents;
        let conflict = || state.policy.targets.iter().find_map(|target| self.find_conflict(name, target));
        ObjectStatus {
            conditions: if is_alone { conditions(conflict().as_ref()) } else { Vec::new() },
            parents,
            ..ObjectStatus::default()
        }
    }

    /// The policy that comes before this one at a target.
    fn find_conflict(&self, name: &ObjectName, target: &Target) -> Option<Problem> {
        let own = self.tls_policies.get(name)?;
        let rivals = self.store.tls_policies_of(&target.object).filter_map(|rival| self.tls_policies.get(rival));
        let first = rivals
            .filter(|rival| rival.policy.targets.contains(target))
            .map(|rival| &rival.policy.rank)
            .min()
            .filter(|first| **first != own.policy.rank)?;
        let section = target.section.as_ref().map(|section| format!(" port {section}")).unwrap_or_default();
        Some(Problem::new(
            "Conflicted",
            format!(
                "spec.targetRefs: {}{section} has the older BackendTLSPolicy/{}: remove one of them",
                target.object, first.1
            ),
        ))
    }

    /// What of a target is not there.
    fn find_missing(&self, target: &Target) -> Option<Problem> {
        let missing = |what: String| Some(Problem::new("TargetNotFound", format!("spec.targetRefs: {what}")));
        if self.store.find(&target.object).is_none() {
            return missing(format!("{} does not exist: create it or change the reference", target.object));
        }
        let section = target.section.as_ref()?;
        match target.object.kind {
            Kind::Service if self.store.has_port(&target.object.name, section) => None,
            Kind::Service => missing(format!("{} has no port of name {section:?}: change sectionName", target.object)),
            _ => missing(format!("{} has no sections: remove sectionName", target.object)),
        }
    }

    /// Gateways with routes to the backends that a target means, or that ask them.
    fn find_users(&self, target: &Target) -> BTreeSet<ObjectName> {
        let keys: Vec<_> = match target.object.kind {
            Kind::Service => self.tcp_ports_of(&target.object.name).cloned().collect(),
            _ => keys_of_backend(&target.object.name).to_vec(),
        };
        let meant = keys.iter().filter(|key| self.store.is_meant(target, key));
        let mut gateways = BTreeSet::new();
        for user in meant.flat_map(|key| self.edges.backend_users.sources_of(key)) {
            match user.kind {
                Kind::Gateway => drop(gateways.insert(user.name.clone())),
                Kind::ListenerSet if self.is_taken(&user.name) => {
                    gateways.extend(self.edges.set_gateways.targets_of(&user.name).cloned());
                }
                Kind::ListenerSet => {}
                _ => {
                    let attached = self.routes.get(user).into_iter().flat_map(|state| state.attached.iter());
                    gateways.extend(attached.map(|listener| listener.gateway.clone()));
                }
            }
        }
        gateways
    }
}

/// The object of a backend that policies name.
pub(super) fn object_of(key: &BackendKey) -> ObjectRef {
    let (kind, name) = crate::endpoints::object_of(key);
    ObjectRef::new(kind, name.clone())
}
