//! Certificates of clients: what a Gateway's `spec.tls.frontend` asks of the listeners of each port, its own and those of
//! its ListenerSets. The API speaks of HTTPS; TLS that ends here is no less to be closed.

use std::{collections::BTreeMap, sync::Arc};

use tidegate_model::{CaBundle, CaBundleKey, ClientValidation, ClientValidationMode, TlsMode};

use crate::{
    gateway_references::GatewayReferences,
    generated::gateway::{FrontendTlsValidation, FrontendTlsValidationMode, GatewaySpec},
    listener::ListenerDraft,
    status::Problem,
    tls_policy::{judge_bundles, no_valid_certificate},
};

/// What a Gateway asks of clients.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ClientValidations {
    default: Option<ClientValidationDraft>,
    /// Ports to which the default does not apply.
    ports: BTreeMap<u16, Option<ClientValidationDraft>>,
}

/// What is asked of the clients of a port.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClientValidationDraft {
    mode: ClientValidationMode,
    bundles: Vec<(String, Result<CaBundleKey, Problem>)>,
}

/// What comes of it for a listener.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// How clients are looked at; `None` when they are not.
    pub(crate) clients: Option<ClientValidation>,
    /// Why the listener cannot be served: without any authority everybody or nobody would get in.
    pub(crate) rejection: Option<Problem>,
    /// What is wrong with references.
    pub(crate) refs_problem: Option<Problem>,
}

impl ClientValidations {
    /// Reads what a Gateway asks of clients. Of two entries for one port the first counts.
    pub(crate) fn read(spec: &GatewaySpec, references: &mut GatewayReferences<'_>) -> Self {
        let Some(frontend) = spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref()) else { return Self::default() };
        let mut read = |field: String, validation: &Option<FrontendTlsValidation>| {
            let validation = validation.as_ref()?;
            let bundles = validation.ca_certificate_refs.iter().enumerate().map(|(index, reference)| {
                let field = format!("{field}.validation.caCertificateRefs[{index}]");
                let key = references.find_bundle(&field, reference);
                (field, key)
            });
            Some(ClientValidationDraft { mode: mode_of(validation), bundles: bundles.collect() })
        };
        let default = read("spec.tls.frontend.default".to_owned(), &frontend.default.validation);
        let mut ports = BTreeMap::new();
        for (index, entry) in frontend.per_port.iter().flatten().enumerate() {
            if let Ok(port) = u16::try_from(entry.port)
                && !ports.contains_key(&port)
            {
                ports.insert(port, read(format!("spec.tls.frontend.perPort[{index}].tls"), &entry.tls.validation));
            }
        }
        Self { default, ports }
    }

    /// Says to listeners what they must ask of clients.
    pub(crate) fn demand(&self, drafts: &mut [ListenerDraft]) {
        for draft in drafts.iter_mut().filter(|draft| draft.tls == Some(TlsMode::Terminate)) {
            draft.clients = self.ports.get(&draft.port).unwrap_or(&self.default).clone();
        }
    }

    /// Whether clients without a valid certificate are let in anywhere.
    pub(crate) fn is_insecure(&self) -> bool {
        let all = std::iter::once(&self.default).chain(self.ports.values()).flatten();
        all.into_iter().any(|draft| draft.mode == ClientValidationMode::InsecureFallback)
    }
}

fn mode_of(validation: &FrontendTlsValidation) -> ClientValidationMode {
    match validation.mode {
        None | Some(FrontendTlsValidationMode::AllowValidOnly) => ClientValidationMode::ValidOnly,
        Some(FrontendTlsValidationMode::AllowInsecureFallback) => ClientValidationMode::InsecureFallback,
    }
}

impl ClientValidationDraft {
    /// What comes of it. `find_bundle` has what was read of each bundle.
    pub(crate) fn judge(&self, find_bundle: &dyn Fn(&CaBundleKey) -> Result<Arc<CaBundle>, String>) -> Verdict {
        let (bundles, refs_problem) = judge_bundles(&self.bundles, find_bundle);
        if !bundles.is_empty() {
            return Verdict {
                clients: Some(ClientValidation { mode: self.mode, bundles }),
                rejection: None,
                refs_problem,
            };
        }
        let refs_problem = refs_problem.unwrap_or_else(|| {
            Problem::new("InvalidCACertificateRef", "spec.tls.frontend: caCertificateRefs is empty: name a ConfigMap")
        });
        Verdict {
            clients: None,
            rejection: Some(no_valid_certificate(&refs_problem)),
            refs_problem: Some(refs_problem),
        }
    }
}
