//! Which of the kinds the API server serves, at which version, and of which release its Gateway API is.
//!
//! Definitions (CRDs) are watched by their metadata alone, which tells when to ask the API server what it serves. Where
//! that is not permitted it is asked from time to time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kube::Client;
use serde_json::Value;
use tidegate_gateway_api::{GATEWAY_GROUP, Kind, OWN_GROUP};
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

use crate::kube::{Backoff, Failure, Resource, Target, Update, get, name_of, reflect};

/// Groups whose kinds come with CRDs.
const GROUPS: [&str; 2] = [GATEWAY_GROUP, OWN_GROUP];

/// Group of Kubernetes with a kind that a cluster need not have.
const OPTIONAL_GROUP: &str = "certificates.k8s.io";

/// Annotation with the release that a CRD of Gateway API is of.
const BUNDLE_ANNOTATION: &str = "gateway.networking.k8s.io/bundle-version";

/// Minor versions of Gateway API 1 that are known.
const KNOWN_MINORS: [u32; 2] = [6, 7];

/// How often the API server is asked although nothing is known to have changed.
const ASK_EVERY: Duration = Duration::from_secs(300);

/// The same where definitions cannot be watched.
const ASK_EVERY_UNWATCHED: Duration = Duration::from_secs(30);

/// Changes of definitions are taken together: an installation makes a dozen of them.
const QUIET: Duration = Duration::from_millis(200);

/// What is served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Catalog {
    /// Kinds that are served, with the version to use.
    pub(super) served: BTreeMap<Kind, &'static str>,
    /// Kinds that are known not to be defined: their objects are gone.
    pub(super) undefined: BTreeSet<Kind>,
    /// Release of the CRDs when it is none that is known.
    pub(super) unknown_release: Option<String>,
}

/// Kinds that come with CRDs.
pub(super) fn defined_kinds() -> impl Iterator<Item = Kind> {
    Kind::ALL.iter().copied().filter(|kind| GROUPS.contains(&kind.group()))
}

/// Sends what is served, at first and whenever it changes, until nobody receives any more.
pub(super) async fn run<M>(client: Client, wrap: impl Fn(Catalog) -> M, out: mpsc::Sender<M>) {
    let (sender, mut updates) = mpsc::channel(8);
    let definitions =
        Resource::new("apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition");
    let target = Target { is_metadata_only: true, ..Target::all(definitions) };
    let watch = reflect(client.clone(), target, read_definition, |update| update, sender);
    let serve = async {
        let mut definitions = Definitions::default();
        let mut backoff = Backoff::default();
        let mut last = None;
        loop {
            let wait = match discover(&client).await {
                Err(failure) => {
                    tracing::debug!("cannot ask what the API server serves: {failure}");
                    backoff.next_wait()
                }
                Ok(served) => {
                    let is_late = definitions.is_ahead_of(&served);
                    let catalog = definitions.to_catalog(served);
                    if last.as_ref() != Some(&catalog) {
                        last = Some(catalog.clone());
                        if out.send(wrap(catalog)).await.is_err() {
                            return;
                        }
                    }
                    if is_late {
                        backoff.next_wait()
                    } else {
                        backoff.reset();
                        if definitions.is_known() { ASK_EVERY } else { ASK_EVERY_UNWATCHED }
                    }
                }
            };
            tokio::select! {
                () = out.closed() => return,
                () = sleep(wait) => {}
                Some(update) = updates.recv() => {
                    definitions.take(update);
                    while let Ok(Some(update)) = timeout(QUIET, updates.recv()).await {
                        definitions.take(update);
                    }
                }
            }
        }
    };
    tokio::select! {
        () = watch => {}
        () = serve => {}
    }
}

/// A definition: its name and the release it is of.
type Definition = (String, Option<String>);

fn read_definition(value: Value) -> Definition {
    let bundle = value["metadata"]["annotations"][BUNDLE_ANNOTATION].as_str().map(str::to_owned);
    (name_of(&value).name.to_string(), bundle)
}

/// The definitions of the groups.
#[derive(Default)]
struct Definitions {
    /// Whether all were listed once.
    is_listed: bool,
    /// Whether news of them do not come.
    is_failing: bool,
    all: BTreeMap<String, Option<String>>,
    listed: BTreeMap<String, Option<String>>,
}

impl Definitions {
    fn take(&mut self, update: Update<Definition>) {
        let is_ours = |name: &str| GROUPS.iter().any(|group| name.ends_with(&format!(".{group}")));
        match update {
            Update::Begin => self.listed.clear(),
            Update::Page(page) => self.listed.extend(page.into_iter().filter(|(name, _)| is_ours(name))),
            Update::Synced => {
                self.all = std::mem::take(&mut self.listed);
                self.is_listed = true;
            }
            Update::Put((name, bundle)) => {
                if is_ours(&name) {
                    self.all.insert(name, bundle);
                }
            }
            Update::Delete(name) => {
                self.all.remove(&*name.name);
            }
            Update::Failing(_) => self.is_failing = true,
            Update::Recovered => self.is_failing = false,
        }
    }

    fn is_known(&self) -> bool {
        self.is_listed && !self.is_failing
    }

    /// Whether something is defined that is not served yet, as in the first moments after an installation.
    fn is_ahead_of(&self, served: &BTreeMap<Kind, &'static str>) -> bool {
        self.is_known()
            && defined_kinds().any(|kind| self.all.contains_key(&definition_of(kind)) && !served.contains_key(&kind))
    }

    fn to_catalog(&self, served: BTreeMap<Kind, &'static str>) -> Catalog {
        let is_undefined = |kind: &Kind| {
            self.is_known() && !served.contains_key(kind) && !self.all.contains_key(&definition_of(*kind))
        };
        let undefined = defined_kinds().filter(is_undefined).collect();
        let unknown_release = self.all.values().flatten().find(|bundle| !is_known(bundle)).cloned();
        Catalog { served, undefined, unknown_release }
    }
}

fn definition_of(kind: Kind) -> String {
    format!("{}.{}", kind.plural(), kind.group())
}

/// Whether a release (`v1.7.0`) has a minor version that is known.
fn is_known(bundle: &str) -> bool {
    let mut parts = bundle.trim_start_matches('v').split('.');
    let mut number = || parts.next().and_then(|part| part.parse::<u32>().ok());
    number() == Some(1) && number().is_some_and(|minor| KNOWN_MINORS.contains(&minor))
}

/// Asks the API server what it serves of the groups.
async fn discover(client: &Client) -> Result<BTreeMap<Kind, &'static str>, Failure> {
    let mut served = BTreeMap::new();
    for group in GROUPS.into_iter().chain([OPTIONAL_GROUP]) {
        let versions = match get(client, &format!("/apis/{group}")).await {
            Err(Failure::NotFound(_)) => continue,
            answer => answer?,
        };
        let has = |version: &str| {
            versions["versions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|entry| entry["version"].as_str() == Some(version))
        };
        let kinds = || Kind::ALL.iter().copied().filter(|kind| kind.group() == group);
        let wanted: BTreeSet<_> =
            kinds().flat_map(|kind| kind.versions()).copied().filter(|version| has(version)).collect();
        let mut resources = BTreeMap::new();
        for version in wanted {
            let list = get(client, &format!("/apis/{group}/{version}")).await?;
            let names = list["resources"].as_array().into_iter().flatten();
            let names: BTreeSet<String> =
                names.filter_map(|resource| resource["name"].as_str().map(str::to_owned)).collect();
            resources.insert(version, names);
        }
        for kind in kinds() {
            let plural = kind.plural();
            let best = kind
                .versions()
                .iter()
                .find(|version| resources.get(*version).is_some_and(|names| names.contains(&plural)));
            if let Some(version) = best {
                served.insert(kind, *version);
            }
        }
    }
    Ok(served)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_releases_that_are_known_pass() {
        for (bundle, known) in
            [("v1.6.3", true), ("v1.7.0", true), ("v1.5.1", false), ("v2.6.0", false), ("dev", false)]
        {
            assert_eq!(is_known(bundle), known, "{bundle}");
        }
    }

    #[test]
    fn a_kind_is_undefined_only_when_definitions_are_known_to_lack_it() {
        let mut definitions = Definitions::default();
        assert!(definitions.to_catalog(BTreeMap::new()).undefined.is_empty());
        definitions.take(Update::Begin);
        definitions
            .take(Update::Page(vec![("gateways.gateway.networking.k8s.io".to_owned(), Some("v1.5.0".to_owned()))]));
        definitions.take(Update::Synced);
        let catalog = definitions.to_catalog(BTreeMap::new());
        assert!(!catalog.undefined.contains(&Kind::Gateway) && catalog.undefined.contains(&Kind::HTTPRoute));
        assert_eq!(catalog.unknown_release.as_deref(), Some("v1.5.0"));
        assert!(definitions.is_ahead_of(&BTreeMap::new()));
        definitions.take(Update::Failing(Failure::Forbidden(String::new())));
        assert!(definitions.to_catalog(BTreeMap::new()).undefined.is_empty());
    }
}
