//! What the deployed agent is allowed to do is enough, and what the domains' walls promise holds in the cluster.

use tidegate_lab::{Failure, Request, client};

use crate::kit::{Cluster, SOON, Stage};

#[test]
fn a_route_is_served_through_the_domains_nic_and_through_no_other() {
    let cluster = Cluster::find().unwrap();
    let stage = Stage::set(&cluster, "walls");
    stage.route("shop", "shop.example.com");
    stage.wait_status("shop.example.com", 200);
    stage.wait_attached(1, SOON);
    let (target, request) = (stage.http(), Request::get("shop.example.com", "/"));
    let other = cluster.datacentre.run(async move { client::send(&target, request).await });
    assert!(matches!(other, Err(Failure::Silent)), "the data centre's NIC is none of the domain's: {other:?}");
}

#[test]
fn the_capabilities_of_the_daemonset_suffice_and_nothing_is_left_unenforced() {
    let cluster = Cluster::find().unwrap();
    for domain in ["public", "private"] {
        let object = cluster.object("", &format!("trafficdomain/{domain}")).unwrap();
        let node = &object["status"]["nodes"][0];
        assert_eq!(node["notEnforced"].as_array().map_or(0, Vec::len), 0, "{node}");
        assert_eq!(node["problems"].as_array().map_or(0, Vec::len), 0, "{node}");
        assert_eq!(node["interfaces"][0]["attach"], "native", "{node}");
    }
    let status = cluster.tidegate(&["status"]).unwrap();
    assert!(status.contains("kernel tier on: ready"), "{status}");
    assert!(!status.contains("not enforced"), "{status}");
}
