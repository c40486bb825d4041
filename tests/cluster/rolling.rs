//! A rolling update of the DaemonSet: the new pod takes over from the old one beside it.

use tidegate_lab::{Authority, Load, LoadPlan, Request, Target, objects};

use crate::kit::{AGENTS, Cluster, LATER, Stage};

#[test]
fn a_rolling_update_under_load_fails_no_request() {
    const HOST: &str = "shop.example.com";
    let cluster = Cluster::find().unwrap();
    let authority = Authority::create().unwrap();
    let listener = objects::https_listener("https", 443, "*.example.com", "cert");
    let stage = Stage::set_with(&cluster, "rolling", &[&objects::http_listener("http", 80), &listener]);
    cluster.apply(&authority.issue(&["*.example.com"]).unwrap().to_secret(&stage.name, "cert")).unwrap();
    stage.route("shop", HOST);
    stage.wait_status(HOST, 200);
    let https = Target::https(std::net::SocketAddr::new(stage.address, 443), HOST, &authority);
    let plans = [
        LoadPlan::new(stage.http(), Request::get(HOST, "/")).at_rate(100),
        LoadPlan::new(stage.http(), Request::get(HOST, "/")).with_new_connections().at_rate(50),
        LoadPlan::new(https, Request::get(HOST, "/")).at_rate(50),
    ];
    let loads = plans.map(|plan| Load::start(&cluster.internet, &plan));
    for round in 0..2 {
        let old = cluster.agent_pod().unwrap();
        let variable = format!("TIDEGATE_LOG=info,tidegate::round{round}=info");
        cluster.kubectl(&["set", "env", "daemonset/tidegate", "-n", AGENTS, &variable]).unwrap();
        let wait = ["rollout", "status", "daemonset/tidegate", "-n", AGENTS, "--timeout=180s"];
        cluster.kubectl(&wait).unwrap();
        assert_ne!(cluster.agent_pod().unwrap(), old);
        // The next round begins with the old pod gone: two are side by side, never three.
        let gone = format!("--timeout={}s", LATER.as_secs());
        let _ = cluster.kubectl(&["wait", "--for=delete", &format!("pod/{old}"), "-n", AGENTS, &gone]);
        // The new agent does what the old one did.
        let name = format!("round-{round}");
        stage.route(&name, &format!("{name}.example.com"));
        stage.wait_status(&format!("{name}.example.com"), 200);
    }
    for load in loads {
        let report = load.stop().unwrap();
        assert_eq!(report.errors(), 0, "{report}");
        assert!(report.ok() > 100, "{report}");
    }
    cluster.kubectl(&["set", "env", "daemonset/tidegate", "-n", AGENTS, "TIDEGATE_LOG-"]).unwrap();
    cluster.kubectl(&["rollout", "status", "daemonset/tidegate", "-n", AGENTS, "--timeout=180s"]).unwrap();
}
