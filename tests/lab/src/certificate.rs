//! A certificate authority of the lab's own, and TLS Secrets made by it.

use std::sync::Arc;

use anyhow::Context;
use base64::{Engine, prelude::BASE64_STANDARD};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer},
    server::WebPkiClientVerifier,
};

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
        Self::create_as("Tidegate lab")
    }

    /// The same under a name of its own, where a test has several.
    ///
    /// # Errors
    /// Those of the key generator.
    pub fn create_as(name: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
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

    /// The ConfigMap with this authority and others that policies refer to.
    pub fn to_config_map(&self, namespace: &str, name: &str, others: &[&Self]) -> String {
        let all = std::iter::once(self).chain(others.iter().copied());
        let pem: String = all.flat_map(|authority| authority.pem.lines()).map(|line| format!("    {line}\n")).collect();
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\ndata:\n  ca.crt: |\n{pem}"
        )
    }

    /// Settings of a client that trusts this authority and offers the given application protocols.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        self.client_config_with(alpn, None)
    }

    /// The same with a certificate to show.
    pub fn client_config_with(&self, alpn: &[&[u8]], shown: Option<&Leaf>) -> Arc<ClientConfig> {
        let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider supports TLS 1.2 and 1.3")
            .with_root_certificates(roots(&[self]));
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(leaf) => builder
                .with_client_auth_cert(leaf.chain(), leaf.key())
                .expect("the lab's own key belongs to its certificate"),
        };
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        // Each connection shows the certificate of its own moment: a resumed session would show an older one.
        config.resumption = rustls::client::Resumption::disabled();
        Arc::new(config)
    }
}

fn roots(authorities: &[&Authority]) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.root.clone()).expect("the authority's own certificate is valid");
    }
    roots
}

impl Leaf {
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![CertificateDer::from(self.der.clone())]
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::try_from(self.key_der.clone()).expect("the lab's own key is a key")
    }

    /// Settings of a server that shows this certificate and, if there are `clients`, demands certificates of them.
    pub fn server_config(&self, clients: &[&Authority]) -> Arc<ServerConfig> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("the provider supports TLS 1.2 and 1.3");
        let builder = if clients.is_empty() {
            builder.with_no_client_auth()
        } else {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(clients)), provider).build();
            builder.with_client_cert_verifier(verifier.expect("there is an authority"))
        };
        let mut config =
            builder.with_single_cert(self.chain(), self.key()).expect("the lab's own key belongs to its certificate");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

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
