//! Certificates of clients: demanded and verified, or asked for and taken as they are.
//!
//! A listener that looks at certificates of clients gives out no tickets. A resumed session is not verified again, so a
//! ticket would let a client in after its certificate has expired or its authority is not trusted any more.

use std::sync::Arc;

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use tidegate_model::ClientValidationMode;

use super::{TlsContext, UsableBundle};

impl TlsContext {
    /// A verifier of clients; `None` when there is no authority to trust: then nobody must be let in.
    pub(super) fn client_verifier(
        &self,
        mode: ClientValidationMode,
        bundles: &[UsableBundle],
    ) -> Option<Arc<dyn ClientCertVerifier>> {
        let roots: Vec<_> = bundles.iter().flat_map(|bundle| bundle.anchors.to_vec()).collect();
        let roots = Arc::new(RootCertStore { roots });
        // An empty store is the only reason for which none can be made.
        let strict = WebPkiClientVerifier::builder_with_provider(roots, self.provider.clone()).build().ok()?;
        Some(match mode {
            ClientValidationMode::ValidOnly => strict,
            ClientValidationMode::InsecureFallback => Arc::new(AnyClient(strict)),
        })
    }
}

/// Lets in clients with any certificate and with none. A client that shows one must have its key still: the handshake's
/// signature is verified, so nobody can show the certificate of another.
#[derive(Debug)]
struct AnyClient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AnyClient {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.0.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
