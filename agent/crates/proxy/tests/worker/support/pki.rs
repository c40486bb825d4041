//! Certificate authorities of a test's own, and what they issue.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer},
};
use tidegate_model::{CaBundle, CaBundleKey, Certificate, CertificateKey, Change, ObjectName, Resource};

/// A certificate authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// What a leaf is to be.
#[derive(Default)]
pub(crate) struct Leaf<'a> {
    pub(crate) hosts: &'a [&'a str],
    pub(crate) uris: &'a [&'a str],
    /// Purposes; none is any.
    pub(crate) usages: &'a [ExtendedKeyUsagePurpose],
    /// Whether its time is over.
    pub(crate) is_expired: bool,
}

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) chain: Vec<u8>,
    key: Vec<u8>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    pub(crate) fn issue(&self, leaf: &Leaf<'_>) -> Issued {
        let hosts: Vec<_> = leaf.hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.subject_alt_names.extend(leaf.uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())));
        params.extended_key_usages = leaf.usages.to_vec();
        if leaf.is_expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        Issued { chain: certificate.der().to_vec(), key: key.serialize_der() }
    }

    /// The change that brings it as a bundle.
    pub(crate) fn as_bundle(&self, name: &str) -> Change {
        bundle(name, &[self])
    }
}

impl Issued {
    /// The change that brings it.
    pub(crate) fn as_certificate(&self, name: &str) -> Change {
        let certificate = Certificate {
            chain: vec![self.chain.clone()],
            private_key: self.key.clone(),
            names: Vec::new(),
            not_after: i64::MAX,
        };
        Change::Put(Resource::Certificate(certificate_key(name), Arc::new(certificate)))
    }
}

pub(crate) fn certificate_key(name: &str) -> CertificateKey {
    CertificateKey(ObjectName::new("test", name))
}

pub(crate) fn bundle_key(name: &str) -> CaBundleKey {
    CaBundleKey::ConfigMap(ObjectName::new("test", name))
}

pub(crate) fn bundle(name: &str, authorities: &[&Authority]) -> Change {
    let authorities = authorities.iter().map(|authority| authority.der()).collect();
    Change::Put(Resource::CaBundle(bundle_key(name), Arc::new(CaBundle { authorities })))
}

/// TLS of a client that trusts an authority and shows a certificate, or none.
pub(crate) fn client(trusted: &Authority, shown: Option<&Issued>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(trusted.der())).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => {
            let chain = vec![CertificateDer::from(shown.chain.clone())];
            let key = PrivateKeyDer::try_from(shown.key.clone()).unwrap();
            // As it is: whether the server names its authority is the server's matter to judge.
            builder.with_client_auth_cert(chain, key).unwrap()
        }
    })
}
