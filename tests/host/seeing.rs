//! What an operator sees: metrics with the domain's labels, readiness, status, explanations, verdicts, the access log.

use std::{
    io::{BufRead, BufReader},
    time::Duration,
};

use tidegate_lab::{
    Agent, Failure, Lab,
    lab::{DENIED, OUTSIDER},
    metrics::names,
    process, wait_until,
};

use crate::{
    packets::flood,
    world::{CONSOLE, PUBLIC, SHOP, SOON, World, at, get, knock, private, public},
};

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
fn verdicts_tell_the_flow_and_are_filtered_and_summed_up() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let mut wanted = agent
        .cli_start(&[
            "verdicts",
            "--follow",
            "--domain",
            "public",
            "--reason",
            "source_denied",
            "--src",
            "192.0.2.0/24",
            "-o",
            "json",
        ])
        .unwrap();
    let mut unwanted =
        agent.cli_start(&["verdicts", "--follow", "--reason", "source_denied", "--src", "10.0.0.0/8"]).unwrap();
    let mut lines = BufReader::new(wanted.stdout.take().unwrap()).lines();
    let reader = std::thread::spawn(move || lines.next().unwrap().unwrap());
    // The followers may come after the first packets.
    wait_until("a verdict to be shown", SOON, || {
        flood(&lab.internet, DENIED, at(PUBLIC, 53), Duration::from_millis(20));
        assert_eq!(knock(&lab.datacentre, &private().from(OUTSIDER)), Err(Failure::Silent));
        reader.is_finished().then_some(())
    })
    .unwrap();
    let row: serde_json::Value = serde_json::from_str(&reader.join().unwrap()).unwrap();
    assert_eq!(
        (&row["domain"], &row["reason"], &row["hook"]),
        (&"public".into(), &"source_denied".into(), &"admit".into())
    );
    assert_eq!((&row["protocol"], &row["interface"], &row["length"]), (&"UDP".into(), &"wan0".into(), &47.into()));
    assert!(row["source"].as_str().unwrap().starts_with("192.0.2.66:") && row["destination"] == format!("{PUBLIC}:53"));
    assert_eq!((&row["object"], &row["field"]), (&"TrafficDomain/public".into(), &"spec.sources.deny[0]".into()));
    let age = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() - row["time"].as_f64().unwrap();
    assert!((0.0..60.0).contains(&age), "{row}");
    for follower in [&mut wanted, &mut unwanted] {
        follower.kill().unwrap();
        follower.wait().unwrap();
    }
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut unwanted.stdout.take().unwrap(), &mut rest).unwrap();
    assert_eq!(rest.lines().count(), 1, "more than the head: {rest}");

    let whole = agent.cli(&["verdicts", "--reason", "source_denied", "-o", "json"]).unwrap().json().unwrap();
    assert_eq!(whole["rows"].as_array().unwrap().len(), 1, "{whole}");
    assert_eq!(whole["sources"][0]["source"], format!("{DENIED}/32"), "{whole}");
    assert!(whole["samples"]["overBudget"].as_u64().unwrap() > 0, "{whole}");
    let refused = agent.cli(&["verdicts", "--reason", "nonsense"]).unwrap();
    assert!(refused.code == Some(2) && refused.err.contains("source_not_allowed"), "{refused:?}");
    let table = agent.cli(&["verdicts"]).unwrap();
    assert!(table.out.contains("source_not_allowed") && table.out.contains(&OUTSIDER.to_string()), "{}", table.out);
}

#[test]
fn a_summary_of_an_interval_has_rates_and_the_sources_behind_them() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let summary = std::thread::scope(|scope| {
        let asked = scope.spawn(|| {
            agent
                .cli(&["verdicts", "--interval", "2", "--count", "2", "--reason", "source_denied", "-o", "json"])
                .unwrap()
        });
        while !asked.is_finished() {
            flood(&lab.internet, DENIED, at(PUBLIC, 80), Duration::from_millis(100));
        }
        asked.join().unwrap()
    });
    let intervals: Vec<serde_json::Value> =
        summary.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((summary.code, intervals.len()), (Some(0), 2), "{summary:?}");
    let second = &intervals[1];
    let length = second["seconds"].as_f64().unwrap();
    assert!((1.9..6.0).contains(&length), "{second}");
    let (row, source) = (&second["rows"][0], &second["sources"][0]);
    let rate = row["packetsPerSecond"].as_f64().unwrap();
    assert!((rate * length / row["packets"].as_f64().unwrap() - 1.0).abs() < 0.01 && rate > 100.0, "{second}");
    assert_eq!((&source["source"], &source["domain"]), (&format!("{DENIED}/32").into(), &"public".into()));
    assert_eq!((&source["share"], &source["packetsPerSecond"]), (&1.0.into(), &row["packetsPerSecond"]));
}

#[test]
fn a_flood_cannot_make_the_sampler_busy_and_what_is_not_sampled_is_counted() {
    const LENGTH: Duration = Duration::from_secs(2);
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let mut follower = agent.cli_start(&["verdicts", "--follow", "--src", &DENIED.to_string(), "-o", "json"]).unwrap();
    let out = BufReader::new(follower.stdout.take().unwrap());
    let reader = std::thread::spawn(move || out.lines().map_while(Result::ok).count() as f64);
    let pid = agent.agent_pid().unwrap();
    let reading = || {
        let metrics = agent.metrics().unwrap();
        let lost = |cause: &str| metrics.sum("tidegate_kernel_samples_lost_total", &[("cause", cause)]);
        let denied = metrics.sum(names::VERDICTS, &[("domain", "public"), ("verdict", "deny")]);
        (denied, lost("over_budget"), lost("buffer_full"), metrics.sum("tidegate_kernel_samples_total", &[]))
    };
    let before = reading();
    let (begun, used) = (std::time::Instant::now(), process::cpu_time(pid).unwrap());
    let sent = flood(&lab.internet, DENIED, at(PUBLIC, 80), LENGTH) as f64;
    let (elapsed, used) = (begun.elapsed(), process::cpu_time(pid).unwrap() - used);
    // Samples that wait are read at once, but not before.
    let after = wait_until("every verdict to be accounted for", SOON, || {
        let after = reading();
        let sampled = after.3 - before.3;
        let missing = (after.1 - before.1) + (after.2 - before.2);
        (after.0 - before.0 >= sent && sampled + missing >= after.0 - before.0).then_some(after)
    })
    .unwrap();
    follower.kill().unwrap();
    follower.wait().unwrap();
    let shown = reader.join().unwrap();
    let cpus = std::thread::available_parallelism().unwrap().get() as f64;
    // 50 a second and CPU, 100 at once (docs/kernel.md).
    let most = cpus * (100.0 + 50.0 * (elapsed.as_secs_f64() + 1.0));
    let sampled = after.3 - before.3;
    assert!(sent > 2.0 * most, "too slow to be a flood: {sent}");
    assert!((50.0..most).contains(&sampled), "{sampled} samples of {sent} packets, at most {most}");
    assert!(shown <= most, "{shown} rows shown");
    assert!(after.1 - before.1 > sent / 2.0, "what was not sampled is not counted: {before:?} {after:?}");
    assert!(used < elapsed / 4, "the agent used {used:?} of {elapsed:?}");
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
