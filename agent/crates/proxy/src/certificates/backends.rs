//! TLS towards backends: whom to believe, and what to show to one that asks for a certificate.
//!
//! The chain is always verified as webpki does it: signatures, validity, constraints and the purpose "server". Names of a
//! policy replace the check of the server name and nothing else.

use std::{rc::Rc, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
    sign::{CertifiedKey, SingleCertAndKey},
};
use tidegate_model::{Backend, BackendProtocol, BackendTls, CaBundleKey, SubjectAltName, Trust};

use super::{TlsContext, UsableBundle};

/// Sessions kept for resumption with one backend on one shard; they are kept by server name, of which there is one.
const RESUMED_SESSIONS: usize = 8;

/// TLS towards a backend, ready to use.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Trust, versions and ALPN, and the certificate to show.
    pub config: Arc<ClientConfig>,
    /// SNI, and the name that the backend's certificate must have.
    pub server_name: ServerName<'static>,
}

/// A certificate to show to backends. One for each certificate and state of it, so that settings made with it can be told
/// by its address.
#[derive(Debug)]
pub struct ClientIdentity(Arc<CertifiedKey>);

impl ClientIdentity {
    pub(super) fn new(key: &Arc<CertifiedKey>) -> Rc<Self> {
        Rc::new(Self(key.clone()))
    }
}

impl UpstreamTls {
    /// The same settings, with a certificate to show. Neither connections nor sessions are shared with the former.
    pub fn with_identity(&self, identity: &ClientIdentity) -> Self {
        let mut config = (*self.config).clone();
        config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(identity.0.clone()));
        config.resumption = Resumption::in_memory_sessions(RESUMED_SESSIONS);
        Self { config: Arc::new(config), server_name: self.server_name.clone() }
    }

    /// The same without ALPN.
    #[must_use]
    pub fn without_alpn(&self) -> Self {
        let mut config = (*self.config).clone();
        config.alpn_protocols.clear();
        Self { config: Arc::new(config), server_name: self.server_name.clone() }
    }
}

impl TlsContext {
    /// Settings towards a backend; `None` for clear text.
    ///
    /// # Errors
    /// Text for the object's owner; empty when [`Trust::Nobody`] has said it already. The backend must then get no
    /// requests.
    pub fn upstream(
        &self,
        backend: &Backend,
        find_bundle: &dyn Fn(&CaBundleKey) -> Option<UsableBundle>,
    ) -> Result<Option<UpstreamTls>, String> {
        let Some(tls) = &backend.tls else { return Ok(None) };
        let server_name = ServerName::try_from(tls.server_name.clone())
            .map_err(|_| format!("{:?} is not a name that a certificate can have", tls.server_name))?;
        let roots = self.roots(tls, find_bundle)?;
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("aws-lc-rs has cipher suites of both versions");
        let builder = if tls.subject_alt_names.is_empty() {
            builder.with_root_certificates(roots)
        } else {
            let names = tls.subject_alt_names.iter().map(Expected::read).collect::<Result<_, _>>()?;
            let algorithms = self.provider.signature_verification_algorithms;
            let verifier = NamedBackend { roots, names, algorithms };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        };
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = match backend.protocol {
            BackendProtocol::Http1 => vec![b"http/1.1".to_vec()],
            BackendProtocol::Http2 => vec![b"h2".to_vec()],
        };
        config.resumption = Resumption::in_memory_sessions(RESUMED_SESSIONS);
        Ok(Some(UpstreamTls { config: Arc::new(config), server_name }))
    }

    fn roots(
        &self,
        tls: &BackendTls,
        find_bundle: &dyn Fn(&CaBundleKey) -> Option<UsableBundle>,
    ) -> Result<RootCertStore, String> {
        let roots = match &tls.trust {
            Trust::Nobody => return Err(String::new()),
            Trust::System if self.system.is_empty() => {
                return Err(
                    "this machine has no certificates of public authorities: install ca-certificates, or name \
                            authorities in caCertificateRefs"
                        .to_owned(),
                );
            }
            Trust::System => self.system.to_vec(),
            Trust::Bundles(keys) => {
                keys.iter().filter_map(find_bundle).flat_map(|bundle| bundle.anchors.to_vec()).collect()
            }
        };
        if roots.is_empty() {
            return Err("there is no certificate authority to trust".to_owned());
        }
        Ok(RootCertStore { roots })
    }
}

/// Verifies a backend by the names that its policy lists.
#[derive(Debug)]
struct NamedBackend {
    roots: RootCertStore,
    names: Vec<Expected>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A name that a certificate may have.
#[derive(Debug)]
enum Expected {
    Host(ServerName<'static>),
    /// Lower case, with the `*`.
    Pattern(String),
    Uri(String),
}

impl Expected {
    fn read(name: &SubjectAltName) -> Result<Self, String> {
        match name {
            SubjectAltName::Uri(uri) => Ok(Self::Uri(uri.clone())),
            SubjectAltName::Hostname(host) if host.starts_with("*.") => Ok(Self::Pattern(host.to_ascii_lowercase())),
            SubjectAltName::Hostname(host) => match ServerName::try_from(host.clone()) {
                Ok(name @ ServerName::DnsName(_)) => Ok(Self::Host(name)),
                _ => Err(format!("{host:?} is not a name that a certificate can have")),
            },
        }
    }

    fn is_in(&self, leaf: &CertificateDer<'_>, parsed: &ParsedCertificate<'_>) -> bool {
        let Ok(names) = webpki::EndEntityCert::try_from(leaf) else { return false };
        match self {
            Self::Host(name) => verify_server_name(parsed, name).is_ok(),
            Self::Pattern(pattern) => names.valid_dns_names().any(|name| name.eq_ignore_ascii_case(pattern)),
            Self::Uri(uri) => names.valid_uri_names().any(|name| name == uri),
        }
    }
}

impl ServerCertVerifier for NamedBackend {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let leaf = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&leaf, &self.roots, intermediates, now, self.algorithms.all)?;
        if self.names.iter().any(|name| name.is_in(end_entity, &leaf)) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::NotValidForName.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
