//! BackendTLSPolicies: what each asks for, by its own text, and what comes of it with the authorities that it names.
//!
//! A policy that cannot be honoured makes its backends unusable; nothing ever makes them clear text.

use std::sync::Arc;

use tidegate_model::{BackendTls, CaBundle, CaBundleKey, Hostname, ObjectName, SubjectAltName, Trust};

use crate::{
    ca_bundles::find_key,
    generated::backend_tls_policy::{
        BackendTlsPolicy, BackendTlsPolicyTargetRefs, BackendTlsPolicyValidation,
        BackendTlsPolicyValidationSubjectAltNamesType,
    },
    object::{ENVOY_GROUP, Kind, OWN_GROUP, ObjectRef, created_at, name_of},
    status::Problem,
};

/// What a policy is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Target {
    /// A Service or a `Backend`.
    pub(crate) object: ObjectRef,
    /// Name of a port; `None` is every port that no other policy names.
    pub(crate) section: Option<String>,
}

/// Who comes first of two policies with one target: the older, then by name.
pub(crate) type Rank = (i64, ObjectName);

/// A policy as it was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TlsPolicy {
    pub(crate) generation: Option<i64>,
    pub(crate) rank: Rank,
    pub(crate) targets: Vec<Target>,
    pub(crate) unenforced: Vec<String>,
    /// Why it is for nobody.
    targets_problem: Option<Problem>,
    server_name: Result<String, Problem>,
    subject_alt_names: Result<Vec<SubjectAltName>, Problem>,
    trust: Wanted,
}

#[derive(Clone, Debug, PartialEq)]
enum Wanted {
    System,
    Bundles(Vec<(String, Result<CaBundleKey, Problem>)>),
    Invalid(Problem),
}

/// What comes of a policy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    /// TLS for its backends.
    pub(crate) tls: BackendTls,
    /// Why it is not accepted.
    pub(crate) rejection: Option<Problem>,
    /// What is wrong with its references.
    pub(crate) refs_problem: Option<Problem>,
}

/// Objects that a policy is for; those of other kinds are left out.
pub(crate) fn targets_of(policy: &BackendTlsPolicy) -> impl Iterator<Item = Target> {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    policy.spec.target_refs.iter().filter_map(move |target| read_target(namespace, target))
}

fn read_target(namespace: &str, target: &BackendTlsPolicyTargetRefs) -> Option<Target> {
    let kind = match (target.group.as_str(), target.kind.as_str()) {
        ("", "Service") => Kind::Service,
        (OWN_GROUP | ENVOY_GROUP, "Backend") => Kind::Backend,
        _ => return None,
    };
    let object = ObjectRef::new(kind, ObjectName::new(namespace, &target.name));
    Some(Target { object, section: target.section_name.clone().filter(|name| !name.is_empty()) })
}

/// Who comes first.
pub(crate) fn rank_of(policy: &BackendTlsPolicy) -> Rank {
    (created_at(&policy.metadata), name_of(&policy.metadata))
}

impl TlsPolicy {
    /// Reads a policy.
    pub(crate) fn read(policy: &BackendTlsPolicy) -> Self {
        let rank = rank_of(policy);
        let validation = &policy.spec.validation;
        let mut unenforced = Vec::new();
        for (index, target) in policy.spec.target_refs.iter().enumerate() {
            if read_target(&rank.1.namespace, target).is_none() {
                unenforced.push(format!(
                    "spec.targetRefs[{index}]: {} of group {:?} is no backend that is known: name a Service, or a Backend of {OWN_GROUP}",
                    target.kind, target.group
                ));
            }
        }
        let targets: Vec<_> = targets_of(policy).collect();
        let targets_problem = targets.is_empty().then(|| {
            let empty = || format!("spec.targetRefs is empty: name a Service, or a Backend of {OWN_GROUP}");
            let message = if unenforced.is_empty() { empty() } else { std::mem::take(&mut unenforced).join("; ") };
            Problem::new("Invalid", message)
        });
        for option in policy.spec.options.iter().flatten() {
            unenforced.push(format!("spec.options[{}] is not known", option.0));
        }
        Self {
            generation: policy.metadata.generation,
            targets,
            unenforced,
            targets_problem,
            server_name: read_server_name(&validation.hostname),
            subject_alt_names: read_names(validation),
            trust: read_trust(&rank.1.namespace, validation),
            rank,
        }
    }

    /// Bundles that it names, whether they exist or not.
    pub(crate) fn bundles(&self) -> impl Iterator<Item = &CaBundleKey> {
        let refs = match &self.trust {
            Wanted::Bundles(refs) => refs.as_slice(),
            Wanted::System | Wanted::Invalid(_) => &[],
        };
        refs.iter().filter_map(|(_, key)| key.as_ref().ok())
    }

    /// What comes of it. `find_bundle` has what was read of each bundle.
    pub(crate) fn judge(&self, find_bundle: &dyn Fn(&CaBundleKey) -> Result<Arc<CaBundle>, String>) -> Verdict {
        let mut refs_problem = None;
        let (trust, mut rejection) = match &self.trust {
            Wanted::System => (Trust::System, None),
            Wanted::Invalid(problem) => (Trust::Nobody, Some(problem.clone())),
            Wanted::Bundles(refs) => {
                let (usable, problem) = judge_bundles(refs, find_bundle);
                refs_problem = problem;
                match usable.is_empty() {
                    true => (Trust::Nobody, refs_problem.as_ref().map(no_valid_certificate)),
                    false => (Trust::Bundles(usable), None),
                }
            }
        };
        let text_problem = self.server_name.as_ref().err().or(self.subject_alt_names.as_ref().err());
        let is_usable = text_problem.is_none();
        rejection = self.targets_problem.as_ref().or(text_problem).cloned().or(rejection);
        let tls = BackendTls {
            server_name: self.server_name.clone().unwrap_or_default(),
            subject_alt_names: self.subject_alt_names.clone().unwrap_or_default(),
            trust: if is_usable { trust } else { Trust::Nobody },
        };
        Verdict { tls, rejection, refs_problem }
    }
}

/// Which of the bundles can be used, and what is wrong with the others: the first one's reason, everybody's message.
pub(crate) fn judge_bundles(
    refs: &[(String, Result<CaBundleKey, Problem>)],
    find_bundle: &dyn Fn(&CaBundleKey) -> Result<Arc<CaBundle>, String>,
) -> (Vec<CaBundleKey>, Option<Problem>) {
    let mut usable = Vec::new();
    let mut problem: Option<Problem> = None;
    for (field, reference) in refs {
        let fault = match reference {
            Err(problem) => problem.clone(),
            Ok(key) => match find_bundle(key) {
                Err(error) => Problem::new("InvalidCACertificateRef", format!("{field}: {error}")),
                Ok(_) => {
                    if !usable.contains(key) {
                        usable.push(key.clone());
                    }
                    continue;
                }
            },
        };
        problem = Some(match problem {
            None => fault,
            Some(first) => Problem::new(first.reason, format!("{}; {}", first.message, fault.message)),
        });
    }
    (usable, problem)
}

/// Not one reference leads to authorities.
pub(crate) fn no_valid_certificate(cause: &Problem) -> Problem {
    Problem::new("NoValidCACertificate", format!("no authority can be trusted: {}", cause.message))
}

fn read_server_name(text: &str) -> Result<String, Problem> {
    match text.parse::<Hostname>() {
        Ok(Hostname::Exact(name)) => Ok(name.to_string()),
        _ => Err(Problem::new(
            "Invalid",
            format!("spec.validation.hostname: {text:?} is no host name: write one without a wildcard"),
        )),
    }
}

/// Whether text has the form of a URI (RFC 3986 section 3): a scheme and what it is about.
fn is_uri(text: &str) -> bool {
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'))
    };
    text.split_once(':').is_some_and(|(scheme, rest)| {
        is_scheme(scheme) && !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic())
    })
}

fn read_names(validation: &BackendTlsPolicyValidation) -> Result<Vec<SubjectAltName>, Problem> {
    let read =
        |(index, name): (usize, &crate::generated::backend_tls_policy::BackendTlsPolicyValidationSubjectAltNames)| {
            let field = format!("spec.validation.subjectAltNames[{index}]");
            let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
            let invalid = |message: String| Problem::new("Invalid", message);
            // Which of the two is meant cannot be known, and a wrong guess would let in whom nobody named.
            let refuse = |other: &str, text: &Option<String>, type_: &str| match given(text) {
                Some(_) => Err(invalid(format!("{field}.{other} has no meaning with type {type_}: remove it"))),
                None => Ok(()),
            };
            match name.r#type {
                BackendTlsPolicyValidationSubjectAltNamesType::Hostname => {
                    refuse("uri", &name.uri, "Hostname")?;
                    let text = given(&name.hostname).ok_or_else(|| {
                        invalid(format!("{field}.hostname is missing: write it, type Hostname needs it"))
                    })?;
                    let host =
                        text.parse::<Hostname>().map_err(|error| invalid(format!("{field}.hostname: {error}")))?;
                    Ok(SubjectAltName::Hostname(host.to_string()))
                }
                BackendTlsPolicyValidationSubjectAltNamesType::Uri => {
                    refuse("hostname", &name.hostname, "URI")?;
                    let uri = given(&name.uri)
                        .ok_or_else(|| invalid(format!("{field}.uri is missing: write it, type URI needs it")))?;
                    if !is_uri(&uri) {
                        return Err(invalid(format!(
                            "{field}.uri: {uri:?} is no URI: write it as spiffe://example.org/name"
                        )));
                    }
                    Ok(SubjectAltName::Uri(uri))
                }
            }
        };
    validation.subject_alt_names.iter().flatten().enumerate().map(read).collect()
}

fn read_trust(namespace: &str, validation: &BackendTlsPolicyValidation) -> Wanted {
    let refs = validation.ca_certificate_refs.as_deref().unwrap_or_default();
    let well_known = validation.well_known_ca_certificates.as_deref().filter(|name| !name.is_empty());
    let invalid = |message: String| Wanted::Invalid(Problem::new("Invalid", message));
    match (refs, well_known) {
        ([], Some("System")) => Wanted::System,
        ([], Some(other)) => invalid(format!(
            "spec.validation.wellKnownCACertificates: {other:?} is not known: write System, or name authorities in caCertificateRefs"
        )),
        ([], None) => invalid(
            "spec.validation names no authorities: fill caCertificateRefs or wellKnownCACertificates".to_owned(),
        ),
        (_, Some(_)) => invalid(
            "spec.validation has both caCertificateRefs and wellKnownCACertificates: leave one of them out".to_owned(),
        ),
        (refs, None) => Wanted::Bundles(
            refs.iter()
                .enumerate()
                .map(|(index, reference)| {
                    let field = format!("spec.validation.caCertificateRefs[{index}]");
                    let name = ObjectName::new(namespace, &reference.name);
                    let key = find_key(&field, &reference.group, &reference.kind, name, "InvalidKind");
                    (field, key)
                })
                .collect(),
        ),
    }
}
