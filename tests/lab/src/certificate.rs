//! A certificate authority of the lab's own, and TLS Secrets made by it.

use std::sync::Arc;

use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs, pki_types::CertificateDer};

/// An authority that clients of the lab trust.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    pem: String,
}

/// A leaf certificate with its key.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Chain, PEM.
    pub chain_pem: String,
    /// Private key, PKCS#8 PEM.
    pub key_pem: String,
    /// DER of the private key.
    pub key_der: Vec<u8>,
    /// DER of the leaf.
    pub der: Vec<u8>,
}

impl Authority {
    /// Makes an authority with a new key.
    ///
    /// # Errors
    /// Those of the key generator.
    pub fn create() -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Tidegate lab");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key).context("sign the authority")?;
        Ok(Self { root: certificate.der().clone(), pem: certificate.pem(), issuer: Issuer::new(params, key) })
    }

    /// Makes a leaf (P-256) for DNS names.
    ///
    /// # Errors
    /// When a name is not a DNS name.
    pub fn issue(&self, names: &[&str]) -> anyhow::Result<Leaf> {
        let params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Leaf {
            chain_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
            key_der: key.serialize_der(),
            der: certificate.der().to_vec(),
        })
    }

    /// Certificate of the authority, PEM: for `curl --cacert`.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Settings of a client that trusts this authority and offers the given application protocols.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("the authority's own certificate is valid");
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider supports TLS 1.2 and 1.3")
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        // Each connection shows the certificate of its own moment: a resumed session would show an older one.
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }
}

impl Leaf {
    /// The Secret of type `kubernetes.io/tls` that a Gateway refers to.
    pub fn to_secret(&self, namespace: &str, name: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             type: kubernetes.io/tls\ndata:\n  tls.crt: {}\n  tls.key: {}\n",
            BASE64_STANDARD.encode(&self.chain_pem),
            BASE64_STANDARD.encode(&self.key_pem),
        )
    }
}
