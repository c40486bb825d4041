//! Certificate authorities out of ConfigMaps, Secrets and ClusterTrustBundles, and the references that lead to them. A
//! bundle is read whole: one certificate of it that cannot be used makes it unusable, because nobody can say what it was
//! meant to be.

use std::collections::BTreeSet;

use rustls_pki_types::{CertificateDer, pem::PemObject};
use tidegate_model::{CaBundle, CaBundleKey, ObjectName};

use crate::{status::Problem, translator::store::Store};

/// Key of a ConfigMap or Secret that holds authorities (Gateway API).
const KEY: &str = "ca.crt";

/// Group of ClusterTrustBundles.
pub(crate) const TRUST_BUNDLE_GROUP: &str = "certificates.k8s.io";

/// Authorities in one bundle beyond which it is a mistake: public lists have about 150.
const MAX_AUTHORITIES: usize = 1024;

/// Finds which bundle a reference means. `name` has the namespace to look in, which plays no part for a kind without
/// namespaces.
///
/// # Errors
/// The kind holds no authorities: reason `wrong_kind`.
pub(crate) fn find_key(
    field: &str,
    group: &str,
    kind: &str,
    name: ObjectName,
    wrong_kind: &'static str,
) -> Result<CaBundleKey, Problem> {
    match (group, kind) {
        ("", "ConfigMap") => Ok(CaBundleKey::ConfigMap(name)),
        ("", "Secret") => Ok(CaBundleKey::Secret(name)),
        (TRUST_BUNDLE_GROUP, "ClusterTrustBundle") => Ok(CaBundleKey::ClusterTrustBundle(name.name)),
        _ => {
            let shown = if group.is_empty() { "the core group" } else { group };
            Err(Problem::new(
                wrong_kind,
                format!(
                    "{field}: {kind} of {shown} holds no certificate authorities: name a ConfigMap, Secret or ClusterTrustBundle"
                ),
            ))
        }
    }
}

/// Reads the authorities that a key names; an error says what is wrong with which object.
pub(crate) fn read_bundle(store: &Store, key: &CaBundleKey) -> Result<CaBundle, String> {
    let missing = || format!("{key} does not exist: create it or change the reference");
    let no_key = || format!("{key} has no key {KEY}: add it, with the authorities' certificates in PEM");
    let (place, pem) = match key {
        CaBundleKey::ConfigMap(name) => {
            let object = store.find_config_map(name).ok_or_else(missing)?;
            let text = object.data.as_ref().and_then(|data| data.get(KEY)).map(|text| text.as_bytes());
            let binary = || Some(object.binary_data.as_ref()?.get(KEY)?.0.as_slice());
            (KEY, text.or_else(binary).ok_or_else(no_key)?)
        }
        CaBundleKey::Secret(name) => {
            let object = store.find_secret(name).ok_or_else(missing)?;
            let bytes = object.data.as_ref().and_then(|data| data.get(KEY));
            (KEY, bytes.ok_or_else(no_key)?.0.as_slice())
        }
        CaBundleKey::ClusterTrustBundle(name) => {
            let object = store.find_cluster_trust_bundle(&ObjectName::new("", name)).ok_or_else(missing)?;
            ("spec.trustBundle", object.spec.trust_bundle.as_bytes())
        }
    };
    read_pem(pem).map_err(|error| format!("{key}: {place} {error}"))
}

fn read_pem(pem: &[u8]) -> Result<CaBundle, String> {
    let mut seen = BTreeSet::new();
    let mut authorities = Vec::new();
    for (index, certificate) in CertificateDer::pem_slice_iter(pem).enumerate() {
        let certificate = certificate.map_err(|error| format!("is not PEM: {error}"))?;
        if index >= MAX_AUTHORITIES {
            return Err(format!("holds more than {MAX_AUTHORITIES} certificates"));
        }
        webpki::anchor_from_trusted_cert(&certificate)
            .map_err(|error| format!("holds a certificate ({}) that cannot be read: {error}", index + 1))?;
        if seen.insert(certificate.to_vec()) {
            authorities.push(certificate.to_vec());
        }
    }
    if authorities.is_empty() {
        return Err("holds no certificate: write the authorities' certificates there in PEM".to_owned());
    }
    Ok(CaBundle { authorities })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pem(name: &str) -> String {
        rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap().cert.pem()
    }

    #[test]
    fn reads_each_authority_once_and_skips_what_stands_between() {
        let (one, two) = (pem("one"), pem("two"));
        let bundle = read_pem(format!("# public\n{one}\n{two}\nnote\n{one}").as_bytes()).unwrap();
        assert_eq!(bundle.authorities.len(), 2);
    }

    #[test]
    fn refuses_what_holds_nothing_or_is_broken() {
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let wrong = format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", pem("one"));
        let open = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        for (text, expected) in [
            ("", "holds no certificate"),
            ("nonsense", "holds no certificate"),
            (key.as_str(), "holds no certificate"),
            (wrong.as_str(), "certificate (2) that cannot be read"),
            (open, "is not PEM"),
        ] {
            let error = read_pem(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{error:?} does not say {expected:?}");
        }
        let many = pem("one").repeat(MAX_AUTHORITIES + 1);
        assert!(read_pem(many.as_bytes()).unwrap_err().contains("more than"));
    }
}
