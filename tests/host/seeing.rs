//! What an operator sees: metrics with the domain's labels, readiness, status, explanations, verdicts, the access log.

use std::io::{BufRead, BufReader};

use tidegate_lab::{Agent, Failure, Lab, lab::DENIED, metrics::names, wait_until};

use crate::world::{CONSOLE, PUBLIC, SHOP, SOON, World, get, knock, private, public};

#[test]
fn every_series_of_a_domain_carries_its_labels_and_requests_are_counted_by_route_and_class() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    for _ in 0..7 {
        assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    }
    for _ in 0..3 {
        assert_eq!(get(&lab.internet, &public(), "unknown.example.com", "/").unwrap().status, 404);
    }
    assert_eq!(get(&lab.datacentre, &private(), CONSOLE, "/").unwrap().status, 200);
    let metrics = agent.metrics().unwrap();
    let of = |labels: &[(&str, &str)]| metrics.sum(names::REQUESTS, labels);
    assert_eq!(of(&[("domain", "public"), ("route", "shop/shop"), ("status", "2xx")]), 7.0);
    assert_eq!(metrics.sum(names::LOCAL_RESPONSES, &[("domain", "public")]), 3.0);
    assert_eq!(of(&[("domain", "private"), ("status", "2xx")]), 1.0);
    for sample in metrics.samples.iter().filter(|sample| sample.labels.contains_key("domain")) {
        let domain = &sample.labels["domain"];
        if ["public", "private"].contains(&domain.as_str()) {
            assert_eq!(sample.labels.get("traffic_domain"), Some(domain), "{sample:?}");
        }
    }
}

#[test]
fn the_number_of_series_does_not_grow_with_what_clients_send() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
    assert_eq!(get(&lab.internet, &public(), "x.example.com", "/").unwrap().status, 404);
    let before = agent.metrics().unwrap().samples.len();
    for index in 0..100 {
        get(&lab.internet, &public(), &format!("host-{index}.example.com"), &format!("/path/{index}")).unwrap();
        get(&lab.internet, &public(), SHOP, &format!("/path/{index}")).unwrap();
    }
    assert_eq!(agent.metrics().unwrap().samples.len(), before);
}

#[test]
fn explain_names_the_object_and_the_field_that_decide() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let destination = format!("{PUBLIC}:80");
    let denied = agent.cli(&["explain", "--src", &DENIED.to_string(), "--dst", &destination]).unwrap();
    for word in ["source_denied", "TrafficDomain", "public", "sources.deny", "192.0.2.0/24"] {
        assert!(denied.out.contains(word), "{word} is missing: {denied:?}");
    }
    let routed = agent
        .cli(&["explain", "--src", "198.51.100.10", "--dst", &destination, "--host", SHOP, "--path", "/"])
        .unwrap();
    assert!(routed.out.contains("shop/shop"), "the route is not named: {routed:?}");
    let lost = agent
        .cli(&["explain", "--src", "198.51.100.10", "--dst", &destination, "--host", "no.example.com", "--path", "/"])
        .unwrap();
    assert!(lost.out.contains("404") || lost.out.to_lowercase().contains("no rule"), "{lost:?}");
    let json = agent.cli(&["explain", "--src", &DENIED.to_string(), "--dst", &destination, "-o", "json"]).unwrap();
    assert!(json.json().unwrap().to_string().contains("source_denied"));
}

#[test]
fn verdicts_are_followed_live() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let mut follower = agent.cli_start(&["verdicts", "--follow", "-o", "json"]).unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || {
        lines.find_map(|line| {
            let value: serde_json::Value = serde_json::from_str(&line.ok()?).ok()?;
            (value["reason"] == "source_denied").then_some(value)
        })
    });
    wait_until("a verdict to be shown", SOON, || {
        assert_eq!(knock(&lab.internet, &public().from(DENIED)), Err(Failure::Silent));
        reader.is_finished().then_some(())
    })
    .unwrap();
    follower.kill().unwrap();
    follower.wait().unwrap();
    let shown = reader.join().unwrap().expect("the follower ended without a verdict").to_string();
    assert!(shown.contains(&DENIED.to_string()) && shown.contains(PUBLIC) && shown.contains("public"), "{shown}");
}

#[test]
fn status_is_for_people_and_for_programs() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let table = agent.cli(&["status"]).unwrap();
    assert_eq!(table.code, Some(0));
    for word in ["public", "private", "wan0", "lan0", PUBLIC] {
        assert!(table.out.contains(word), "{word} is missing:\n{}", table.out);
    }
    let json = agent.cli(&["status", "-o", "json"]).unwrap().json().unwrap();
    assert!(json["domains"].as_array().is_some_and(|domains| domains.len() == 2), "{json}");
    assert_eq!(agent.ask("/healthz").unwrap().status, 200);
    assert_eq!(agent.ask("/readyz").unwrap().status, 200);
}

#[test]
fn the_access_log_tells_each_request_with_its_domain_and_can_be_switched_off() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/logged").unwrap().status, 200);
    let line = wait_until("the access log's line", SOON, || {
        agent.access_log().lines().find(|line| line.contains("/logged")).map(str::to_owned)
    })
    .unwrap();
    let value: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(value["status"], 200, "{line}");
    assert!(line.contains("shop/shop") && line.contains("traffic"), "{line}");
    drop(agent);

    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let options = tidegate_lab::AgentOptions {
        arguments: vec!["--access-log".into(), "false".into()],
        ..tidegate_lab::AgentOptions::default()
    };
    let agent = Agent::start_with(&lab, options).unwrap();
    assert_eq!(get(&lab.internet, &public(), SHOP, "/logged").unwrap().status, 200);
    let access_log = lab.folder().join("logs/access.log");
    assert!(agent.stop().unwrap().success());
    assert_eq!(std::fs::read_to_string(access_log).unwrap(), "");
}
