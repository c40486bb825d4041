//! The source against a scripted API server: what it waits for, what it asks for, what it keeps.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use serde_json::json;
use tokio::{
    task::{LocalSet, spawn_local},
    time::timeout,
};

use super::*;
use crate::kube::fake::{Answer, Asked, Log, fake};

/// A cluster: objects by path, and a watch for each path that is watched.
#[derive(Clone, Default)]
struct Cluster(Arc<Mutex<Contents>>);

#[derive(Default)]
struct Contents {
    objects: BTreeMap<String, Vec<Value>>,
    watches: BTreeMap<String, mpsc::UnboundedSender<Value>>,
    forbidden: Vec<String>,
    certificate_versions: Vec<&'static str>,
}

impl Cluster {
    fn new() -> Self {
        let cluster = Self::default();
        cluster.put(
            "/api/v1/nodes",
            json!({
                "metadata": {"name": "n1", "labels": {"role": "gateway"}, "resourceVersion": "1"},
                "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
            }),
        );
        cluster
    }

    /// Puts an object without telling watchers.
    fn put(&self, path: &str, object: Value) {
        self.0.lock().unwrap().objects.entry(path.to_owned()).or_default().push(object);
    }

    /// Tells who watches a path.
    fn tell(&self, path: &str, type_: &str, object: Value) {
        let contents = self.0.lock().unwrap();
        contents.watches[path].send(json!({"type": type_, "object": object})).unwrap();
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let mut contents = self.0.lock().unwrap();
        let (path, query) = asked.line.trim_start_matches("GET ").split_once('?').unwrap_or((&asked.line[4..], ""));
        if contents.forbidden.iter().any(|forbidden| path.contains(forbidden.as_str())) {
            return Answer::error(403, "not for this account");
        }
        match path {
            "/apis/gateway.networking.k8s.io" => {
                return Answer::Json(200, json!({"versions": [{"version": "v1"}, {"version": "v1beta1"}]}));
            }
            "/apis/gateway.networking.k8s.io/v1" => {
                let names = ["gatewayclasses", "gateways", "httproutes", "httproutes/status"];
                let resources: Vec<_> = names.iter().map(|name| json!({"name": name})).collect();
                return Answer::Json(200, json!({"resources": resources}));
            }
            "/apis/gateway.networking.k8s.io/v1beta1" => {
                return Answer::Json(200, json!({"resources": [{"name": "gateways"}, {"name": "referencegrants"}]}));
            }
            "/apis/tidegate.dev" => return Answer::error(404, "no such group"),
            "/apis/certificates.k8s.io" => {
                let versions: Vec<_> =
                    contents.certificate_versions.iter().map(|name| json!({"version": name})).collect();
                return Answer::Json(200, json!({"versions": versions}));
            }
            "/apis/certificates.k8s.io/v1" => {
                return Answer::Json(200, json!({"resources": [{"name": "certificatesigningrequests"}]}));
            }
            "/apis/certificates.k8s.io/v1beta1" => {
                return Answer::Json(200, json!({"resources": [{"name": "clustertrustbundles"}]}));
            }
            _ => {}
        }
        if query.contains("watch=true") {
            let (lines, watch) = mpsc::unbounded_channel();
            contents.watches.insert(path.to_owned(), lines);
            return Answer::Watch(watch);
        }
        let collection = path.rsplit('/').next().unwrap_or_default();
        let is_one = path.contains("/namespaces/") || path.contains("/clustertrustbundles/");
        if is_one && !collection.ends_with('s') {
            let (parent, name) = path.rsplit_once('/').unwrap();
            let found =
                contents.objects.get(parent).into_iter().flatten().find(|object| object["metadata"]["name"] == name);
            return found.map_or_else(|| Answer::error(404, "none"), |object| Answer::Json(200, object.clone()));
        }
        let items = contents.objects.get(path).cloned().unwrap_or_default();
        Answer::Json(200, json!({"items": items, "metadata": {"resourceVersion": "10"}}))
    }

    fn start(&self) -> (mpsc::Receiver<Batch>, Log) {
        self.start_with(REFUSAL_PATIENCE)
    }

    fn start_with(&self, patience: Duration) -> (mpsc::Receiver<Batch>, Log) {
        let cluster = self.clone();
        let (client, log) = fake(move |asked| cluster.answer(asked));
        let (out, batches) = mpsc::channel(8);
        let setup = Setup {
            client,
            node: "n1".to_owned(),
            controller_names: vec!["tidegate.dev/gateway-controller".to_owned()],
            patience,
            seen: None,
        };
        spawn_local(watch(setup, out));
        (batches, log)
    }

    async fn watched(&self, path: &str) {
        let is_watched = || self.0.lock().unwrap().watches.contains_key(path);
        let wait = async {
            while !is_watched() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(5), wait).await.expect("a watch within 5 s");
    }
}

async fn next(batches: &mut mpsc::Receiver<Batch>) -> Batch {
    timeout(Duration::from_secs(5), batches.recv()).await.expect("a batch within 5 s").expect("the source runs")
}

fn shown(batch: &Batch) -> Vec<String> {
    let show = |event: &Event| match event {
        Event::Put(object) => format!("put {}", object.reference()),
        Event::Delete(reference) => format!("delete {reference}"),
    };
    let mut shown: Vec<_> = batch.events.iter().map(show).collect();
    shown.sort();
    shown
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

const GATEWAYS: &str = "/apis/gateway.networking.k8s.io/v1/gateways";
const CLASSES: &str = "/apis/gateway.networking.k8s.io/v1/gatewayclasses";
const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1/httproutes";
const SECRETS: &str = "/api/v1/namespaces/shop/secrets";

fn class() -> Value {
    json!({"metadata": {"name": "ours", "resourceVersion": "2"}, "spec": {"controllerName": "tidegate.dev/gateway-controller"}})
}

fn gateway(name: &str, class: &str, secret: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "generation": 1, "resourceVersion": "3"},
        "spec": {"gatewayClassName": class, "listeners": [{
            "name": "https", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": secret}]},
        }]},
    })
}

fn secret(name: &str, version: &str) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": version}, "type": "kubernetes.io/tls", "data": {}})
}

fn route(name: &str, version: &str, hostname: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "generation": 1, "resourceVersion": version, "annotations": {"v": version}},
        "spec": {"hostnames": [hostname], "parentRefs": [{"name": "gw"}]},
    })
}

#[test]
fn the_first_batch_is_everything_with_what_it_refers_to() {
    run(async {
        let cluster = Cluster::new();
        cluster.put(CLASSES, class());
        cluster.put(GATEWAYS, gateway("gw", "ours", "cert"));
        cluster.put(GATEWAYS, gateway("foreign", "theirs", "hidden"));
        cluster.put(SECRETS, secret("cert", "5"));
        cluster.put(SECRETS, secret("hidden", "6"));
        cluster.put(SECRETS, secret("unused", "7"));
        let (mut batches, log) = cluster.start();
        let batch = next(&mut batches).await;
        let expected =
            ["put Gateway/shop/foreign", "put Gateway/shop/gw", "put GatewayClass/ours", "put Secret/shop/cert"];
        assert_eq!(shown(&batch), expected);
        let facts = batch.facts.expect("the first batch has facts");
        assert_eq!(facts.node.expect("the node exists").labels["role"], "gateway");
        assert_eq!(facts.served.get(&Kind::Gateway), Some(&"v1"), "the best version is taken");
        assert_eq!(facts.served.get(&Kind::ReferenceGrant), Some(&"v1beta1"));
        let asked = log.lines("secrets/");
        assert_eq!(asked, ["GET /api/v1/namespaces/shop/secrets/cert"], "no other Secret is asked for");
        assert!(log.lines("/api/v1/secrets").is_empty(), "no namespace but those is looked into");
    });
}

#[test]
fn updates_that_change_nothing_are_not_passed_on() {
    run(async {
        let cluster = Cluster::new();
        cluster.put(ROUTES, route("a", "4", "a.example"));
        let (mut batches, _) = cluster.start();
        assert_eq!(shown(&next(&mut batches).await), ["put HTTPRoute/shop/a"]);
        cluster.watched(ROUTES).await;
        let mut with_status = route("a", "11", "a.example");
        with_status["status"] = json!({"parents": []});
        cluster.tell(ROUTES, "MODIFIED", with_status);
        cluster.tell(ROUTES, "MODIFIED", route("a", "12", "b.example"));
        let batch = next(&mut batches).await;
        assert_eq!(shown(&batch), ["put HTTPRoute/shop/a"]);
        cluster.tell(ROUTES, "DELETED", route("a", "13", "b.example"));
        assert_eq!(shown(&next(&mut batches).await), ["delete HTTPRoute/shop/a"]);
    });
}

#[test]
fn a_broken_object_stays_in_force_as_it_was() {
    run(async {
        let cluster = Cluster::new();
        cluster.put(ROUTES, route("a", "4", "a.example"));
        let (mut batches, _) = cluster.start();
        next(&mut batches).await;
        cluster.watched(ROUTES).await;
        let mut broken = route("a", "11", "a.example");
        broken["spec"]["rules"] = json!("many");
        cluster.tell(ROUTES, "MODIFIED", broken);
        let batch = next(&mut batches).await;
        assert!(batch.events.is_empty());
        let problems: Vec<_> = batch.status.problems.iter().map(ToString::to_string).collect();
        let is_said =
            |text: &String| text.contains("HTTPRoute/shop/a: spec.rules") && text.contains("last good version");
        assert!(problems.iter().any(is_said), "{problems:?}");
        // The same text as before the fault.
        cluster.tell(ROUTES, "MODIFIED", route("a", "12", "a.example"));
        let batch = next(&mut batches).await;
        assert!(!batch.status.problems.iter().any(|problem| problem.object.is_some()), "{:?}", batch.status.problems);
    });
}

#[test]
fn a_secret_is_fetched_again_when_it_changes_and_dropped_when_nobody_wants_it() {
    run(async {
        let cluster = Cluster::new();
        cluster.put(CLASSES, class());
        cluster.put(GATEWAYS, gateway("gw", "ours", "cert"));
        cluster.put(SECRETS, secret("cert", "5"));
        let (mut batches, log) = cluster.start();
        next(&mut batches).await;
        cluster.watched(SECRETS).await;
        cluster.watched(GATEWAYS).await;
        // What was fetched already is not fetched again when the list shows the same version.
        assert_eq!(log.lines("secrets/cert").len(), 1);
        cluster.0.lock().unwrap().objects.insert(SECRETS.to_owned(), vec![secret("cert", "15")]);
        cluster.tell(SECRETS, "MODIFIED", secret("cert", "15"));
        assert_eq!(shown(&next(&mut batches).await), ["put Secret/shop/cert"]);
        cluster.tell(SECRETS, "DELETED", secret("cert", "16"));
        assert_eq!(shown(&next(&mut batches).await), ["delete Secret/shop/cert"]);
        cluster.0.lock().unwrap().objects.insert(SECRETS.to_owned(), vec![secret("new", "17")]);
        cluster.tell(GATEWAYS, "MODIFIED", gateway("gw", "ours", "new"));
        // With the Gateway, not after it: a listener never waits for its certificate.
        assert_eq!(shown(&next(&mut batches).await), ["put Gateway/shop/gw", "put Secret/shop/new"]);
        cluster.tell(GATEWAYS, "DELETED", gateway("gw", "ours", "new"));
        assert_eq!(shown(&next(&mut batches).await), ["delete Gateway/shop/gw", "delete Secret/shop/new"]);
    });
}

#[test]
fn a_server_that_has_just_started_and_refuses_everything_is_waited_for() {
    run(async {
        let cluster = Cluster::new();
        cluster.put(CLASSES, class());
        cluster.put(GATEWAYS, gateway("gw", "ours", "cert"));
        cluster.put(SECRETS, secret("cert", "5"));
        cluster.0.lock().unwrap().forbidden.extend(["/gatewayclasses".to_owned(), "/secrets".to_owned()]);
        let (mut batches, log) = cluster.start();
        while log.lines("/gatewayclasses").len() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(batches.try_recv().is_err());
        cluster.0.lock().unwrap().forbidden.remove(0);
        while log.lines("/secrets/cert").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(batches.try_recv().is_err(), "a Gateway without its certificate would not be served");
        cluster.0.lock().unwrap().forbidden.clear();
        let expected = ["put Gateway/shop/gw", "put GatewayClass/ours", "put Secret/shop/cert"];
        assert_eq!(shown(&next(&mut batches).await), expected);
    });
}

#[test]
fn a_kind_that_stays_forbidden_is_reported_and_the_rest_is_served() {
    run(async {
        let cluster = Cluster::new();
        cluster.0.lock().unwrap().forbidden.push("/httproutes".to_owned());
        cluster.put(CLASSES, class());
        let (mut batches, _) = cluster.start_with(Duration::from_millis(300));
        let batch = next(&mut batches).await;
        assert_eq!(shown(&batch), ["put GatewayClass/ours"]);
        let problems: Vec<_> = batch.status.problems.iter().map(ToString::to_string).collect();
        assert!(problems.iter().any(|text| text.contains("HTTPRoute: cannot be watched")), "{problems:?}");
    });
}

const BUNDLES: &str = "/apis/certificates.k8s.io/v1beta1/clustertrustbundles";

fn demanding_gateway() -> Value {
    let mut gateway = gateway("gw", "ours", "cert");
    let reference = json!({"group": "certificates.k8s.io", "kind": "ClusterTrustBundle", "name": "corp"});
    gateway["spec"]["tls"] = json!({"frontend": {"default": {"validation": {"caCertificateRefs": [reference]}}}});
    gateway
}

fn trust_bundle(version: &str) -> Value {
    json!({"metadata": {"name": "corp", "resourceVersion": version}, "spec": {"trustBundle": "pem"}})
}

#[test]
fn trust_bundles_are_asked_for_where_there_is_such_a_kind_and_somebody_refers_to_one() {
    run(async {
        let cluster = Cluster::new();
        cluster.put(CLASSES, class());
        cluster.put(GATEWAYS, demanding_gateway());
        cluster.put(SECRETS, secret("cert", "5"));
        // A cluster with the group and without the kind.
        cluster.0.lock().unwrap().certificate_versions.push("v1");
        let (mut batches, log) = cluster.start();
        let batch = next(&mut batches).await;
        assert_eq!(shown(&batch), ["put Gateway/shop/gw", "put GatewayClass/ours", "put Secret/shop/cert"]);
        assert!(log.lines("clustertrustbundles").is_empty());
        assert!(!batch.status.problems.iter().any(|problem| problem.to_string().contains("ClusterTrustBundle")));
    });
    run(async {
        let cluster = Cluster::new();
        cluster.put(CLASSES, class());
        cluster.put(GATEWAYS, demanding_gateway());
        cluster.put(SECRETS, secret("cert", "5"));
        cluster.put(BUNDLES, trust_bundle("6"));
        cluster.0.lock().unwrap().certificate_versions.extend(["v1", "v1beta1"]);
        let (mut batches, log) = cluster.start();
        let expected =
            ["put ClusterTrustBundle/corp", "put Gateway/shop/gw", "put GatewayClass/ours", "put Secret/shop/cert"];
        assert_eq!(shown(&next(&mut batches).await), expected);
        assert_eq!(log.lines("clustertrustbundles/"), [format!("GET {BUNDLES}/corp")]);
        cluster.watched(BUNDLES).await;
        cluster.watched(GATEWAYS).await;
        cluster.0.lock().unwrap().objects.insert(BUNDLES.to_owned(), vec![trust_bundle("16")]);
        let other = json!({"metadata": {"name": "other", "resourceVersion": "15"}});
        cluster.tell(BUNDLES, "ADDED", other);
        cluster.tell(BUNDLES, "MODIFIED", trust_bundle("16"));
        assert_eq!(shown(&next(&mut batches).await), ["put ClusterTrustBundle/corp"]);
        assert!(log.lines("clustertrustbundles/other").is_empty());
        cluster.tell(BUNDLES, "DELETED", trust_bundle("17"));
        assert_eq!(shown(&next(&mut batches).await), ["delete ClusterTrustBundle/corp"]);
    });
    run(async {
        let cluster = Cluster::new();
        cluster.put(CLASSES, class());
        cluster.put(GATEWAYS, gateway("gw", "ours", "cert"));
        cluster.put(SECRETS, secret("cert", "5"));
        cluster.put(BUNDLES, trust_bundle("6"));
        cluster.0.lock().unwrap().certificate_versions.push("v1beta1");
        let (mut batches, log) = cluster.start();
        next(&mut batches).await;
        cluster.watched(GATEWAYS).await;
        assert!(log.lines("clustertrustbundles").is_empty(), "nobody refers to one");
    });
}
