//! What objects lean on changes: labels of namespaces, grants, certificates.

use std::time::Duration;

use anyhow::ensure;
use tidegate_lab::{Authority, Load, LoadPlan, Request, Target, objects, wait_for};

use crate::kit::{Cluster, LATER, SOON, Stage};

#[test]
fn routes_detach_at_once_when_their_namespace_loses_its_label_and_come_back_with_it() {
    let listener = "{name: http, protocol: HTTP, port: 80, allowedRoutes: {namespaces: {from: Selector, \
                    selector: {matchLabels: {let-in: \"yes\"}}}}}";
    let cluster = Cluster::find().unwrap();
    let stage = Stage::set_with(&cluster, "labels", &[listener]);
    let label = |label: &str| cluster.kubectl(&["label", "namespace", &stage.name, label, "--overwrite"]).unwrap();
    stage.route("shop", "shop.example.com");
    wait_for("the route to be refused", SOON, || {
        let condition = stage.route_condition("httproute/shop", "Accepted")?;
        ensure!(condition == ("False".to_owned(), "NotAllowedByListeners".to_owned()), "{condition:?}");
        Ok(())
    })
    .unwrap();
    for _ in 0..2 {
        label("let-in=yes");
        stage.wait_status("shop.example.com", 200);
        stage.wait_attached(1, SOON);
        label("let-in-");
        stage.wait_status("shop.example.com", 404);
        stage.wait_attached(0, SOON);
    }
}

#[test]
fn a_revoked_grant_ends_what_it_allowed_and_nothing_else() {
    let cluster = Cluster::find().unwrap();
    let stage = Stage::set(&cluster, "grants");
    let other = Stage::set(&cluster, "grants-other");
    let rule = format!("{{backendRefs: [{{name: echo, namespace: {}, port: 8080}}]}}", other.name);
    stage.route("own", "own.example.com");
    let parent = format!("{}/gw", stage.name);
    cluster.apply(&objects::route(&stage.name, "lent", &parent, &["lent.example.com"], &[&rule])).unwrap();
    stage.wait_status("lent.example.com", 500);
    let grant =
        objects::grant(&other.name, "lend", ("gateway.networking.k8s.io", "HTTPRoute"), &stage.name, ("", "Service"));
    for _ in 0..2 {
        cluster.apply(&grant).unwrap();
        stage.wait_status("lent.example.com", 200);
        cluster.kubectl(&["delete", "referencegrant", "lend", "-n", &other.name]).unwrap();
        stage.wait_status("lent.example.com", 500);
        wait_for("the reason in status", LATER, || {
            let condition = stage.route_condition("httproute/lent", "ResolvedRefs")?;
            ensure!(condition == ("False".to_owned(), "RefNotPermitted".to_owned()), "{condition:?}");
            Ok(())
        })
        .unwrap();
        assert_eq!(stage.get("own.example.com").unwrap().status, 200);
    }
}

#[test]
fn a_certificate_is_rotated_while_handshakes_run_and_none_fails() {
    const HOST: &str = "secure.example.com";
    let cluster = Cluster::find().unwrap();
    let authority = Authority::create().unwrap();
    let listener = objects::https_listener("https", 443, "*.example.com", "cert");
    let stage = Stage::set_with(&cluster, "rotation", &[&objects::http_listener("http", 80), &listener]);
    let rotate = || {
        let leaf = authority.issue(&["*.example.com"]).unwrap();
        cluster.apply(&leaf.to_secret(&stage.name, "cert")).unwrap();
        leaf
    };
    rotate();
    stage.route("secure", HOST);
    stage.wait_status(HOST, 200);
    let target = Target::https(std::net::SocketAddr::new(stage.address, 443), HOST, &authority);
    let serves = |leaf: &tidegate_lab::certificate::Leaf| {
        let (target, wanted) = (target.clone(), leaf.der.clone());
        wait_for("the new certificate", SOON, || {
            let target = target.clone();
            let shown = cluster.internet.run(async move {
                let session = tidegate_lab::Session::connect(&target).await?;
                Ok::<_, tidegate_lab::Failure>(session.certificate().map(<[u8]>::to_vec))
            })?;
            ensure!(shown.as_deref() == Some(&wanted[..]), "another one is shown");
            Ok(())
        })
        .unwrap();
    };
    serves(&rotate());
    let plan = LoadPlan::new(target.clone(), Request::get(HOST, "/")).with_new_connections().at_rate(50);
    let mut load = Load::start(&cluster.internet, &plan);
    for _ in 0..5 {
        let seen = load.total().ok();
        serves(&rotate());
        wait_for("handshakes", SOON + Duration::from_secs(30), || {
            ensure!(load.total().ok() > seen + 20);
            Ok(())
        })
        .unwrap();
    }
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
}
