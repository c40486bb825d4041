//! TLS settings made of the model's certificates: per listener towards clients, per backend towards upstreams.
//!
//! Everything is built when the model changes; a handshake only chooses. Replacing a certificate builds new settings and
//! leaves connections alone that were made with the old ones. A certificate that cannot be used is a failure of its own key
//! and of nothing else.
//!
//! A client whose SNI belongs to no listener is refused with the alert `unrecognized_name`; so is one without SNI when no
//! listener is for every host: any certificate would be the wrong one.

mod backends;
mod clients;

use std::{borrow::Cow, rc::Rc, sync::Arc};

use hashbrown::HashMap;
use rustls::{
    ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor},
    server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert},
    sign::CertifiedKey,
};
use smallvec::SmallVec;
use tidegate_model::{CaBundle, Certificate, ClientValidationMode};

pub use self::backends::{ClientIdentity, UpstreamTls};

/// Protocols offered to clients, the preferred one first (RFC 7301).
const DOWNSTREAM_ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// TLS 1.3 tickets sent after a handshake. One is enough for a client that comes back; each costs an encryption and a
/// write.
const TICKETS_PER_HANDSHAKE: usize = 1;

/// The alert `unrecognized_name` (RFC 6066 section 3) as a whole record, for a client that no listener is for: it is
/// refused before a handshake has begun.
pub const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// What all listeners of a worker share. One for a process: a ticket made by one shard is good on the others.
#[derive(Clone, Debug)]
pub struct TlsContext {
    provider: Arc<CryptoProvider>,
    tickets: Arc<dyn ProducesTickets>,
    /// Public authorities that the machine trusts.
    system: Arc<[TrustAnchor<'static>]>,
}

/// Authorities that can be trusted.
#[derive(Clone, Debug)]
pub struct UsableBundle {
    anchors: Arc<[TrustAnchor<'static>]>,
}

/// A certificate that can be served with.
#[derive(Clone, Debug)]
pub struct UsableCertificate {
    key: Arc<CertifiedKey>,
    names: Vec<String>,
}

impl UsableCertificate {
    /// The certificate as what is shown to backends.
    pub fn to_identity(&self) -> Rc<ClientIdentity> {
        ClientIdentity::new(&self.key)
    }
}

impl TlsContext {
    /// aws-lc-rs with ticket keys of its own, which change every six hours and are forgotten after twelve.
    ///
    /// # Errors
    /// When no random numbers can be had.
    pub fn new() -> Result<Self, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        Ok(Self { provider, tickets: aws_lc_rs::Ticketer::new()?, system: Arc::default() })
    }

    /// The same, with the public authorities that the machine trusts; those that cannot be read are left out.
    #[must_use]
    pub fn with_system_authorities(self, certificates: &[CertificateDer<'_>]) -> Self {
        Self { system: certificates.iter().filter_map(|der| read_authority(der).ok()).collect(), ..self }
    }

    /// Reads authorities.
    ///
    /// # Errors
    /// Text for the object's owner: which of them cannot be used and why.
    pub fn read_bundle(&self, source: &CaBundle) -> Result<UsableBundle, String> {
        let read = |(index, der): (usize, &Vec<u8>)| {
            read_authority(&CertificateDer::from(der.as_slice()))
                .map_err(|error| format!("certificate {} cannot be used as an authority: {error}", index + 1))
        };
        Ok(UsableBundle { anchors: source.authorities.iter().enumerate().map(read).collect::<Result<_, _>>()? })
    }

    /// Reads a certificate and its key.
    ///
    /// # Errors
    /// Text for the object's owner: what cannot be read, or that key and certificate do not belong together.
    pub fn read_certificate(&self, source: &Certificate) -> Result<UsableCertificate, String> {
        if source.chain.is_empty() {
            return Err("there is no certificate in it".to_owned());
        }
        let chain: Vec<_> = source.chain.iter().cloned().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::try_from(source.private_key.clone())
            .map_err(|error| format!("the private key cannot be read: {error}"))?;
        let key = self
            .provider
            .key_provider
            .load_private_key(key)
            .map_err(|error| format!("the private key cannot be used: {error}"))?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|error| format!("certificate and private key do not belong together: {error}"))?;
        Ok(UsableCertificate { key: Arc::new(key), names: source.names.clone() })
    }

    /// Settings of a listener with these certificates in its order; `None` without any. `clients` says which authorities
    /// vouch for clients and how strictly; without any authority nobody may be let in, so there are no settings either.
    pub fn server_config(
        &self,
        certificates: &[UsableCertificate],
        clients: Option<(ClientValidationMode, &[UsableBundle])>,
    ) -> Option<Arc<ServerConfig>> {
        let resolver = Arc::new(Certificates::new(certificates)?);
        let builder = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .expect("aws-lc-rs has cipher suites of both versions");
        let builder = match clients {
            Some((mode, bundles)) => builder.with_client_cert_verifier(self.client_verifier(mode, bundles)?),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(resolver);
        config.alpn_protocols = DOWNSTREAM_ALPN.map(<[u8]>::to_vec).into();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        if clients.is_none() {
            config.ticketer = self.tickets.clone();
            config.send_tls13_tickets = TICKETS_PER_HANDSHAKE;
        }
        Some(Arc::new(config))
    }
}

/// Certificates of the public authorities that this machine (its container image) trusts: those of `SSL_CERT_FILE` and
/// `SSL_CERT_DIR`, else of the distribution's own places. Reads files; what cannot be read is left out.
pub fn load_system_authorities() -> Vec<CertificateDer<'static>> {
    rustls_native_certs::load_native_certs().certs
}

fn read_authority(der: &CertificateDer<'_>) -> Result<TrustAnchor<'static>, webpki::Error> {
    Ok(webpki::anchor_from_trusted_cert(der)?.to_owned())
}

/// Certificates of one listener.
#[derive(Debug)]
struct Certificates {
    exact: HashMap<Box<str>, SameName>,
    /// By the part behind `*.`; a wildcard stands for one label (RFC 9525 section 6.3).
    wildcard: HashMap<Box<str>, SameName>,
    first: SameName,
}

/// Certificates for the same name, e.g. one with an RSA key and one with an ECDSA key, in the listener's order.
type SameName = SmallVec<[Arc<CertifiedKey>; 1]>;

impl Certificates {
    fn new(certificates: &[UsableCertificate]) -> Option<Self> {
        let first = certificates.first()?;
        let same_names = |other: &&UsableCertificate| other.names == first.names;
        let mut all = Self {
            exact: HashMap::default(),
            wildcard: HashMap::default(),
            first: certificates.iter().filter(same_names).map(|other| other.key.clone()).collect(),
        };
        for certificate in certificates {
            for name in &certificate.names {
                let (map, name) = match name.strip_prefix("*.") {
                    Some(suffix) => (&mut all.wildcard, suffix),
                    None => (&mut all.exact, name.as_str()),
                };
                map.entry(name.into()).or_default().push(certificate.key.clone());
            }
        }
        Some(all)
    }

    fn find(&self, name: Option<&str>) -> &SameName {
        name.and_then(|name| {
            let name = match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
                true => Cow::Owned(name.to_ascii_lowercase()),
                false => Cow::Borrowed(name),
            };
            let wildcard = || self.wildcard.get(name.split_once('.')?.1);
            self.exact.get(&*name).or_else(wildcard)
        })
        .unwrap_or(&self.first)
    }
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let candidates = self.find(hello.server_name());
        let is_understood = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(hello.signature_schemes()).is_some();
        candidates.iter().find(is_understood).or_else(|| candidates.first()).cloned()
    }
}

#[cfg(test)]
mod tests;
