//! Certificates out of Secrets of type `kubernetes.io/tls`: read whole and checked before anything is served with them.

use k8s_openapi::api::core::v1::Secret;
use rustls::{crypto::aws_lc_rs, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tidegate_model::Certificate;
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

/// Certificates of one chain beyond this many are a mistake: browsers send and take a handful.
const MAX_CHAIN: usize = 16;

/// Reads and checks the certificate chain and key of a Secret; an error says what is wrong with which key of it.
pub(crate) fn read_certificate(secret: &Secret) -> Result<Certificate, String> {
    match secret.type_.as_deref() {
        None | Some("kubernetes.io/tls" | "Opaque") => {}
        Some(other) => return Err(format!("type is {other:?}: make a Secret of type kubernetes.io/tls")),
    }
    let field = |key: &str| {
        let data = secret.data.as_ref().and_then(|data| data.get(key));
        data.map(|bytes| bytes.0.as_slice()).ok_or_else(|| format!("data.{key} is missing"))
    };
    let chain = CertificateDer::pem_slice_iter(field("tls.crt")?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("data.tls.crt is not PEM: {error}"))?;
    if chain.is_empty() {
        return Err("data.tls.crt holds no certificate: put the chain in PEM there, the leaf first".to_owned());
    }
    if chain.len() > MAX_CHAIN {
        return Err(format!("data.tls.crt holds {} certificates: at most {MAX_CHAIN} make a chain", chain.len()));
    }
    let key = PrivateKeyDer::from_pem_slice(field("tls.key")?)
        .map_err(|error| format!("data.tls.key holds no private key in PEM: {error}"))?;
    let signing_key =
        aws_lc_rs::sign::any_supported_type(&key).map_err(|error| format!("data.tls.key cannot be used: {error}"))?;
    let (names, not_after) = read_leaf(&chain[0])?;
    for (index, issuer) in chain.iter().enumerate().skip(1) {
        X509Certificate::from_der(issuer)
            .map_err(|error| format!("data.tls.crt: certificate {} cannot be read: {error}", index + 1))?;
    }
    CertifiedKey::new(chain.clone(), signing_key)
        .keys_match()
        .map_err(|_| "data.tls.key is not the key of the first certificate in data.tls.crt".to_owned())?;
    Ok(Certificate {
        chain: chain.into_iter().map(|certificate| certificate.to_vec()).collect(),
        private_key: key.secret_der().to_vec(),
        names,
        not_after,
    })
}

/// DNS names and end of validity of a leaf. The common name counts only without any subjectAltName (RFC 6125 section 6.4.4).
fn read_leaf(leaf: &CertificateDer<'_>) -> Result<(Vec<String>, i64), String> {
    let (_, certificate) = X509Certificate::from_der(leaf)
        .map_err(|error| format!("data.tls.crt: the first certificate cannot be read: {error}"))?;
    let alternatives = certificate
        .subject_alternative_name()
        .map_err(|error| format!("data.tls.crt: subjectAltName of the first certificate cannot be read: {error}"))?;
    let mut names = Vec::new();
    match alternatives {
        Some(extension) => {
            for name in &extension.value.general_names {
                if let GeneralName::DNSName(name) = name {
                    names.push(name.to_ascii_lowercase());
                }
            }
        }
        None => {
            let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
            names.extend(common.map(str::to_ascii_lowercase));
        }
    }
    Ok((names, certificate.validity().not_after.timestamp()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use k8s_openapi::ByteString;

    use super::*;

    fn secret(entries: &[(&str, &str)]) -> Secret {
        let data = entries.iter().map(|(key, text)| ((*key).to_owned(), ByteString(text.as_bytes().to_vec())));
        Secret {
            data: Some(data.collect::<BTreeMap<_, _>>()),
            type_: Some("kubernetes.io/tls".to_owned()),
            ..Secret::default()
        }
    }

    fn make(names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn reads_chain_key_names_and_validity() {
        let (chain, key) = make(&["Shop.example.com", "*.example.com"]);
        let certificate = read_certificate(&secret(&[("tls.crt", &chain), ("tls.key", &key)])).unwrap();
        assert_eq!(certificate.names, ["shop.example.com", "*.example.com"]);
        assert_eq!(certificate.chain.len(), 1);
        assert!(certificate.not_after > 1_700_000_000);
    }

    #[test]
    fn refuses_what_does_not_belong_together_or_is_no_certificate() {
        let (chain, key) = make(&["a.example.com"]);
        let (_, other_key) = make(&["a.example.com"]);
        for (entries, expected) in [
            (vec![("tls.crt", chain.as_str()), ("tls.key", other_key.as_str())], "is not the key of"),
            (vec![("tls.crt", chain.as_str())], "data.tls.key is missing"),
            (vec![("tls.key", key.as_str())], "data.tls.crt is missing"),
            (vec![("tls.crt", ""), ("tls.key", key.as_str())], "holds no certificate"),
            (vec![("tls.crt", "nonsense"), ("tls.key", key.as_str())], "holds no certificate"),
            (vec![("tls.crt", key.as_str()), ("tls.key", key.as_str())], "holds no certificate"),
            (vec![("tls.crt", chain.as_str()), ("tls.key", chain.as_str())], "holds no private key"),
        ] {
            let error = read_certificate(&secret(&entries)).unwrap_err();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
    }

    #[test]
    fn refuses_der_that_is_broken() {
        let (chain, key) = make(&["a.example.com"]);
        let middle = chain.len() / 2;
        let mut broken = chain.into_bytes();
        broken[middle] = if broken[middle] == b'A' { b'B' } else { b'A' };
        let broken = String::from_utf8(broken).unwrap();
        // One changed bit may leave a certificate that reads; it must never be a panic.
        let _ = read_certificate(&secret(&[("tls.crt", &broken), ("tls.key", &key)]));
    }
}
