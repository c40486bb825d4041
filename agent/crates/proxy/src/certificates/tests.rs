//! Choice of certificates by name, over real handshakes in memory.

use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, ServerConnection,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{ServerName, UnixTime},
};
use tidegate_model::{Backend, BackendProtocol, BackendTls, CaBundleKey, Trust};

use super::*;

fn make(names: &[&str]) -> Certificate {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let certificate = CertificateParams::new(names.clone()).unwrap().self_signed(&key).unwrap();
    Certificate {
        chain: vec![certificate.der().to_vec()],
        private_key: key.serialize_der(),
        names,
        not_after: i64::MAX,
    }
}

/// Sees what a server sends and believes it all.
#[derive(Debug)]
struct Believer(Arc<CryptoProvider>);

impl ServerCertVerifier for Believer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn shake_hands(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), rustls::Error> {
    for _ in 0..8 {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut &*wire).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut &*wire).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

/// DER of the leaf that a client with this name gets, with the protocol agreed on.
fn leaf_for(server: &Arc<ServerConfig>, name: &str) -> (Vec<u8>, Option<Vec<u8>>) {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Believer(provider)))
        .with_no_client_auth();
    client.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(server.clone()).unwrap();
    shake_hands(&mut client, &mut server).unwrap();
    (client.peer_certificates().unwrap()[0].to_vec(), client.alpn_protocol().map(<[u8]>::to_vec))
}

#[test]
fn the_best_name_wins_then_the_first_certificate() {
    let context = TlsContext::new().unwrap();
    let sources = [make(&["first.example"]), make(&["*.example.com"]), make(&["a.example.com", "b.example.com"])];
    let usable: Vec<_> = sources.iter().map(|source| context.read_certificate(source).unwrap()).collect();
    let server = context.server_config(&usable, None).unwrap();
    for (name, index) in [
        ("a.example.com", 2),
        ("b.example.com", 2),
        ("B.Example.com", 2),
        ("c.example.com", 1),
        ("x.c.example.com", 0),
        ("example.com", 0),
        ("first.example", 0),
        ("unknown.example", 0),
    ] {
        let (leaf, protocol) = leaf_for(&server, name);
        assert_eq!(leaf, sources[index].chain[0], "{name}");
        assert_eq!(protocol.as_deref(), Some(&b"h2"[..]));
    }
    assert!(context.server_config(&[], None).is_none());
}

#[test]
fn certificates_that_cannot_serve_are_refused_with_the_reason() {
    let context = TlsContext::new().unwrap();
    let (good, other) = (make(&["a.example"]), make(&["b.example"]));
    for (bad, reason) in [
        (Certificate { chain: vec![], ..good.clone() }, "no certificate"),
        (Certificate { private_key: b"nonsense".to_vec(), ..good.clone() }, "private key"),
        (Certificate { private_key: other.private_key, ..good.clone() }, "belong together"),
        (Certificate { chain: vec![b"nonsense".to_vec()], ..good }, "belong together"),
    ] {
        let error = context.read_certificate(&bad).unwrap_err();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_backend_is_believed_only_with_its_authority_and_name() {
    let context = TlsContext::new().unwrap();
    let authority = CertifiedIssuer::self_signed(
        {
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params
        },
        KeyPair::generate().unwrap(),
    )
    .unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["backend.example".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let source = Certificate {
        chain: vec![leaf.der().to_vec()],
        private_key: key.serialize_der(),
        names: vec!["backend.example".to_owned()],
        not_after: i64::MAX,
    };
    let server = context.server_config(&[context.read_certificate(&source).unwrap()], None).unwrap();
    let connect = |server_name: &str, authorities: Vec<Vec<u8>>, protocol| {
        let key = CaBundleKey::ClusterTrustBundle("test".into());
        let bundle = context.read_bundle(&CaBundle { authorities })?;
        let trust = Trust::Bundles(vec![key]);
        let tls = Some(BackendTls { server_name: server_name.to_owned(), subject_alt_names: vec![], trust });
        let upstream = context.upstream(&Backend { protocol, tls }, &|_| Some(bundle.clone()))?;
        let upstream = upstream.expect("TLS was asked for");
        let mut client = ClientConnection::new(upstream.config, upstream.server_name).unwrap();
        let mut server = ServerConnection::new(server.clone()).unwrap();
        shake_hands(&mut client, &mut server).map_err(|error| error.to_string())?;
        Ok::<_, String>(client.alpn_protocol().map(<[u8]>::to_vec))
    };
    let trusted = vec![authority.der().to_vec()];
    assert_eq!(connect("backend.example", trusted.clone(), BackendProtocol::Http2), Ok(Some(b"h2".to_vec())));
    assert_eq!(connect("backend.example", trusted.clone(), BackendProtocol::Http1), Ok(Some(b"http/1.1".to_vec())));
    assert!(connect("other.example", trusted, BackendProtocol::Http1).is_err());
    assert!(connect("backend.example", vec![make(&["x"]).chain.remove(0)], BackendProtocol::Http1).is_err());
    assert!(
        connect("backend.example", vec![], BackendProtocol::Http1).unwrap_err().contains("no certificate authority")
    );
    assert!(connect("not a name", vec![], BackendProtocol::Http1).unwrap_err().contains("not a name"));
    assert!(context.upstream(&Backend { protocol: BackendProtocol::Http1, tls: None }, &|_| None).unwrap().is_none());
}
