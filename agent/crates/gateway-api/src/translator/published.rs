//! What Gateways have in the models: listeners, their own and their sets', with the certificates that they serve with and the
//! servers that they ask.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use tidegate_model::{
    BackendIdentity, BackendKey, CertificateKey, DomainName, FrontendKey, Key, Listener, ListenerKey, ListenerTls,
    ObjectName, Protocol, Resource, TlsMode, Transport,
};

use super::Translator;
use crate::{
    claims::Claim,
    gateway::{CLIENT_CERTIFICATE, GatewayDraft, GatewayState, ListenerOutcome},
    listener::ListenerDraft,
    object::{Kind, ObjectRef},
    status::Problem,
};

/// What a Gateway has in the models.
#[derive(Debug)]
pub(super) struct Published {
    domain: DomainName,
    listeners: BTreeSet<ListenerKey>,
    certificates: BTreeSet<ObjectName>,
    backends: BTreeSet<BackendKey>,
}

/// A Gateway while its listeners are judged.
struct Publication<'a> {
    addresses: &'a [IpAddr],
    owns_addresses: bool,
    /// `None` when the Gateway is not accepted.
    domain: Option<&'a DomainName>,
    /// Whether the domain has a model on this node.
    is_here: bool,
    /// What its requests show to backends.
    identity: BackendIdentity,
    listeners: BTreeMap<ListenerKey, Arc<Listener>>,
    certificates: BTreeSet<ObjectName>,
    /// Servers that its listeners ask.
    backends: BTreeSet<BackendKey>,
}

impl Translator {
    /// Puts a Gateway's listeners and certificates into the model, and takes out what it has no more.
    pub(super) fn publish_gateway(&mut self, name: &ObjectName) {
        let Some(state) = self.gateways.get(name) else { return };
        let addresses = state.addresses.clone().unwrap_or_default();
        let domain = state.domain.clone().ok().filter(|_| state.draft.rejection.is_none());
        let (draft, sets) = (state.draft.clone(), state.sets.clone());
        let (identity, identity_problem) = self.find_identity(&draft);
        let mut publication = Publication {
            addresses: &addresses,
            owns_addresses: state.owns_addresses,
            domain: domain.as_ref(),
            is_here: domain.as_ref().is_some_and(|domain| self.models.is_here(domain)),
            identity,
            listeners: BTreeMap::new(),
            certificates: BTreeSet::new(),
            backends: BTreeSet::new(),
        };
        let outcomes = self.judge_all(&mut publication, &draft.listeners, &|name_of| {
            ListenerKey::of_gateway(name.clone(), name_of.clone())
        });
        if let Some(state) = self.gateways.get_mut(name) {
            state.outcomes = outcomes;
            state.identity_problem = identity_problem;
        }
        for set in sets.iter() {
            let standing = self.listener_sets.get(set).and_then(|state| state.standing.as_ref());
            let Some(drafts) = standing.map(|standing| standing.listeners.clone()) else { continue };
            let outcomes = self.judge_all(&mut publication, &drafts, &|name_of| {
                ListenerKey::of_set(name.clone(), set.clone(), name_of.clone())
            });
            if let Some(standing) = self.listener_sets.get_mut(set).and_then(|state| state.standing.as_mut()) {
                standing.outcomes = outcomes;
            }
        }
        self.work.gateway_statuses.insert(name.clone());
        self.work.set_statuses.extend(self.edges.set_gateways.sources_of(name).cloned());
        let Publication { listeners, certificates, mut backends, .. } = publication;
        backends.retain(|key| self.backends.get(key).is_some_and(|backend| backend.current().is_some()));
        let published = domain.map(|domain| Published {
            domain,
            listeners: listeners.keys().cloned().collect(),
            certificates: certificates.clone(),
            backends,
        });
        if let Some(published) = &published {
            for secret in &certificates {
                if let Some(Ok(certificate)) = self.certificates.get(secret) {
                    self.models.use_certificate(&published.domain, &CertificateKey(secret.clone()), certificate);
                }
            }
            for key in &published.backends {
                if let Some(current) = self.backends.get(key).and_then(|backend| backend.current()) {
                    self.models.use_backend(&published.domain, key, &current);
                }
            }
            for (key, listener) in listeners {
                self.models.put(&published.domain, Resource::Listener(key, listener));
            }
        }
        self.unpublish(name, published);
    }

    /// Judges the listeners of one object, collecting those that are served.
    fn judge_all(
        &self,
        publication: &mut Publication<'_>,
        drafts: &[ListenerDraft],
        key_of: &dyn Fn(&Arc<str>) -> ListenerKey,
    ) -> Vec<ListenerOutcome> {
        drafts.iter().map(|draft| self.judge_one(publication, draft, key_of(&draft.name))).collect()
    }

    fn judge_one(&self, to: &mut Publication<'_>, listener: &ListenerDraft, key: ListenerKey) -> ListenerOutcome {
        let frontends = frontends(to.addresses, listener);
        let lost = self.claims.find_lost(&key, &frontends).cloned().filter(|_| listener.is_valid());
        let (usable, refs_problem) = self.find_certificates(listener);
        let clients = listener.clients.as_ref().map(|clients| clients.judge(&|key| self.find_bundle(key)));
        let clients = clients.unwrap_or_default();
        let mut outcome = ListenerOutcome {
            lost,
            rejection: clients.rejection,
            refs_problem: refs_problem.or(clients.refs_problem).or_else(|| listener.auth_problem.clone()),
            ..ListenerOutcome::default()
        };
        let Some(protocol) = listener.protocol else { return outcome };
        outcome.is_usable = listener.is_valid()
            && outcome.lost.is_none()
            && outcome.rejection.is_none()
            && (listener.tls != Some(TlsMode::Terminate) || !usable.is_empty());
        outcome.is_served = outcome.is_usable && to.domain.is_some() && !frontends.is_empty();
        if outcome.is_served && to.is_here {
            to.certificates.extend(usable.iter().cloned());
            let tls = listener.tls.map(|mode| ListenerTls {
                mode,
                certificates: usable.into_iter().map(CertificateKey).collect(),
                clients: clients.clients,
            });
            if let BackendIdentity::Certificate(secret) = &to.identity {
                to.certificates.insert(secret.0.clone());
            }
            to.backends.extend(listener.auth.iter().filter_map(|auth| auth.backend.clone()));
            let served = Listener {
                frontends,
                owns_addresses: to.owns_addresses,
                protocol,
                hostname: listener.hostname.clone(),
                tls,
                backend_identity: to.identity.clone(),
                auth: listener.auth.clone(),
            };
            to.listeners.insert(key, Arc::new(served));
        }
        outcome
    }

    /// Replaces the record of what a Gateway has in the models; takes out what is in the old record only.
    pub(super) fn unpublish(&mut self, name: &ObjectName, now: Option<Published>) {
        let before = self.published.remove(name);
        if let Some(before) = before {
            for secret in before.certificates {
                self.models.release_certificate(&before.domain, &CertificateKey(secret));
            }
            for key in &before.backends {
                self.models.release_backend(&before.domain, key);
            }
            for key in before.listeners {
                let is_kept =
                    now.as_ref().is_some_and(|now| now.domain == before.domain && now.listeners.contains(&key));
                if !is_kept {
                    self.models.remove(&before.domain, Key::Listener(key));
                }
            }
        }
        if let Some(now) = now {
            self.published.insert(name.clone(), now);
        }
    }

    /// The Secrets that a listener can serve with, and what is wrong with the others.
    fn find_certificates(&self, listener: &ListenerDraft) -> (Vec<ObjectName>, Option<Problem>) {
        if listener.tls != Some(TlsMode::Terminate) {
            return (Vec::new(), None);
        }
        let mut usable = Vec::new();
        let mut problem = None;
        for (index, reference) in listener.certificates.iter().enumerate() {
            let field = format!("spec.listeners[{}].tls.certificateRefs[{index}]", listener.index);
            let fault = match reference {
                Err(problem) => Some(problem.clone()),
                Ok(secret) => match self.certificates.get(secret) {
                    Some(Ok(_)) => {
                        if !usable.contains(secret) {
                            usable.push(secret.clone());
                        }
                        None
                    }
                    Some(Err(error)) => Some(Problem::new("InvalidCertificateRef", format!("{field}: {error}"))),
                    None => {
                        Some(Problem::new("InvalidCertificateRef", format!("{field}: Secret/{secret} was not read")))
                    }
                },
            };
            problem = problem.or(fault);
        }
        if listener.certificates.is_empty() {
            problem = Some(Problem::new(
                "InvalidCertificateRef",
                format!(
                    "spec.listeners[{}].tls.certificateRefs is empty: name a Secret of type kubernetes.io/tls",
                    listener.index
                ),
            ));
        }
        (usable, problem)
    }

    /// What a Gateway's requests show to backends, and what is wrong with it.
    fn find_identity(&self, draft: &GatewayDraft) -> (BackendIdentity, Option<Problem>) {
        let problem = match &draft.client_certificate {
            None => return (BackendIdentity::Anonymous, None),
            Some(Err(problem)) => problem.clone(),
            Some(Ok(secret)) => match self.certificates.get(secret) {
                Some(Ok(_)) => return (BackendIdentity::Certificate(CertificateKey(secret.clone())), None),
                Some(Err(error)) => {
                    Problem::new("InvalidClientCertificateRef", format!("{CLIENT_CERTIFICATE}: {error}"))
                }
                None => Problem::new(
                    "InvalidClientCertificateRef",
                    format!("{CLIENT_CERTIFICATE}: Secret/{secret} was not read"),
                ),
            },
        };
        (BackendIdentity::Missing, Some(problem))
    }

    /// What a Gateway claims: for its own listeners first, then for those of its sets.
    pub(super) fn claims_of(&self, name: &ObjectName, state: &GatewayState) -> Vec<(FrontendKey, Claim)> {
        let (Ok(domain), Ok(addresses)) = (&state.domain, &state.addresses) else { return Vec::new() };
        let mut claims = Vec::new();
        let mut push = |drafts: &[ListenerDraft], key_of: &dyn Fn(&Arc<str>) -> ListenerKey| {
            for draft in drafts.iter().filter(|draft| draft.is_valid()) {
                let Some(protocol) = draft.protocol else { continue };
                claims.extend(frontends(addresses, draft).into_iter().map(|frontend| {
                    let hostname = draft.hostname.clone();
                    (frontend, Claim { listener: key_of(&draft.name), domain: domain.clone(), protocol, hostname })
                }));
            }
        };
        push(&state.draft.listeners, &|listener| ListenerKey::of_gateway(name.clone(), listener.clone()));
        for set in state.sets.iter() {
            let standing = self.listener_sets.get(set).and_then(|state| state.standing.as_ref());
            let drafts = standing.map(|standing| standing.listeners.as_slice()).unwrap_or_default();
            push(drafts, &|listener| ListenerKey::of_set(name.clone(), set.clone(), listener.clone()));
        }
        claims
    }

    pub(super) fn settle_gateway_statuses(&mut self) {
        for name in std::mem::take(&mut self.work.gateway_statuses) {
            let attached = |key: &ListenerKey| self.attached.get(key).copied().unwrap_or_default();
            let status = self.gateways.get(&name).map(|state| state.status(&name, self.sum_up_sets(state), &attached));
            self.set_status(&ObjectRef::new(Kind::Gateway, name), status);
        }
    }
}

fn frontends(addresses: &[IpAddr], listener: &ListenerDraft) -> Vec<FrontendKey> {
    let transport = listener.protocol.map_or(Transport::Tcp, Protocol::transport);
    addresses.iter().map(|&addr| FrontendKey { addr, port: listener.port, transport }).collect()
}
