//! Which Services are made of Gateways, and which are left alone.

use super::*;
use crate::kube::fake::{Answer, fake};

fn infrastructure(uid: &str, labels: &[(&str, &str)]) -> Infrastructure {
    Infrastructure {
        uid: Some(uid.to_owned()),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        annotations: [("team".to_owned(), "edge".to_owned())].into(),
    }
}

fn gateway() -> ObjectName {
    ObjectName::new("shop", "gw")
}

fn wanted(uid: &str, labels: &[(&str, &str)]) -> Wanted {
    Wanted::new(&gateway(), &infrastructure(uid, labels), "default").unwrap()
}

fn synced(found: Vec<Found>) -> Keeper {
    let mut keeper = Keeper::default();
    keeper.take(Update::Begin);
    keeper.take(Update::Page(found));
    keeper.take(Update::Synced);
    keeper
}

/// What the API server would show of a Service.
fn stands(wanted: &Wanted) -> Found {
    read_found(wanted.object.clone())
}

fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    text.len() <= MAX_LABEL
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.bytes().all(is_inner)
}

#[test]
fn a_service_has_the_gateways_metadata_belongs_to_it_and_leads_nowhere() {
    let object = wanted("1-2-3", &[("tier", "gold"), (GATEWAY_LABEL, "another")]).object;
    assert_eq!(object["metadata"]["labels"], json!({"tier": "gold", GATEWAY_LABEL: "gw"}), "the label is not theirs");
    assert_eq!(object["metadata"]["annotations"]["team"], "edge");
    assert_eq!(object["metadata"]["namespace"], "shop");
    let owner = &object["metadata"]["ownerReferences"][0];
    assert_eq!((&owner["kind"], &owner["name"], &owner["uid"]), (&json!("Gateway"), &json!("gw"), &json!("1-2-3")));
    assert_eq!(object["spec"], json!({"type": "ClusterIP", "clusterIP": "None"}));
}

#[test]
fn names_are_dns_labels_whatever_the_gateways_are() {
    let long = "a.b-".repeat(63) + "z";
    let names =
        ["gw", "1.example.com", "a.b", "a-b", &long, &format!("{long}z")[1..], &"x".repeat(63), &"x".repeat(64)];
    let services: Vec<_> = names.iter().map(|name| service_name(&ObjectName::new("shop", name))).collect();
    assert!(services.iter().all(|name| is_label(name)), "{services:?}");
    let different: std::collections::BTreeSet<_> = services.iter().collect();
    assert_eq!(different.len(), services.len(), "{services:?}");
    for name in names {
        let label = shortened(name, name);
        assert!(label.len() <= MAX_LABEL && label.ends_with(|c: char| c.is_ascii_alphanumeric()), "{label}");
    }
    assert_eq!(shortened(&"x".repeat(63), ""), "x".repeat(63));
}

#[test]
fn a_gateway_without_an_identity_gets_none() {
    assert_eq!(Wanted::new(&gateway(), &Infrastructure::default(), "default"), None);
}

#[test]
fn only_what_differs_is_written() {
    let now = Instant::now();
    let service = wanted("1", &[("tier", "gold")]);
    let mut keeper = Keeper::default();
    keeper.want(&gateway(), Some(service.clone()));
    assert!(keeper.take_due(Instant::now()).is_none(), "it may stand there already");
    let mut keeper = synced(vec![stands(&service)]);
    keeper.want(&gateway(), Some(service.clone()));
    assert!(keeper.take_due(Instant::now()).is_none(), "it stands there");

    let newer = wanted("1", &[]);
    keeper.want(&gateway(), Some(newer.clone()));
    let (name, due, is_own) = keeper.take_due(Instant::now()).expect("a label has gone");
    assert_eq!((name, &due, is_own), (gateway(), &newer, true));
    keeper.take_outcome(&gateway(), &newer, Ok(()));
    keeper.take(Update::Put(stands(&newer)));
    assert!(keeper.take_due(Instant::now()).is_none());

    let mut edited = newer.object.clone();
    edited["metadata"]["annotations"]["team"] = json!("somebody");
    keeper.take(Update::Put(read_found(edited)));
    assert!(keeper.take_due(Instant::now()).is_some_and(|(_, _, is_own)| is_own), "it was edited by hand");
    keeper.take(Update::Delete(newer.service.clone()));
    assert!(keeper.take_due(Instant::now()).is_some_and(|(_, _, is_own)| !is_own), "it was deleted");
    assert!(keeper.take_due(now).is_none());
}

#[test]
fn a_gateway_made_anew_gets_the_service_as_its_own() {
    let (old, new) = (wanted("1", &[]), wanted("2", &[]));
    let mut keeper = synced(vec![stands(&old)]);
    keeper.want(&gateway(), Some(new.clone()));
    let (_, due, is_own) = keeper.take_due(Instant::now()).expect("it belongs to the one that is gone");
    assert_eq!((due, is_own), (new, true));
}

#[test]
fn what_others_have_made_is_not_taken_over() {
    let service = wanted("1", &[]);
    let other = Wanted::new(&gateway(), &infrastructure("1", &[]), "other").unwrap();
    let mut keeper = synced(vec![stands(&other)]);
    keeper.want(&gateway(), Some(service.clone()));
    let (_, _, is_own) = keeper.take_due(Instant::now()).unwrap();
    assert!(!is_own, "it is another instance's");
    keeper.take_outcome(&gateway(), &service, Err(Failure::Conflict("owned by another".to_owned())));
    assert!(keeper.take_due(Instant::now()).is_none(), "not again at once");
    assert!(keeper.next_due().is_some_and(|at| at > Instant::now()));
    keeper.want(&gateway(), None);
    assert_eq!(keeper.next_due(), None);
}

#[test]
fn others_fields_are_forced_only_in_the_own_service() {
    let service = wanted("1", &[]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log = runtime.block_on(async {
        let (client, log) = fake(|asked| Answer::Json(200, asked.body.clone()));
        for is_own in [false, true] {
            apply(&client, &Resource::of(Kind::Service, "v1"), &service, is_own).await.unwrap();
        }
        log
    });
    let lines = log.lines("PATCH /api/v1/namespaces/shop/services/gw-");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(!lines[0].contains("force=true") && lines[1].contains("force=true"), "{lines:?}");
    assert!(lines.iter().all(|line| line.contains("fieldManager=tidegate-infrastructure")));
}
