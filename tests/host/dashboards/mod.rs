//! Dashboards and alert rules against a real Prometheus that scrapes a real agent: every panel shows what is true after
//! traffic of every kind, and every alert says what its name says, provoked wherever a test can.

mod boards;
mod prometheus;
mod right;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use tidegate_lab::{
    Agent, AgentOptions, Lab, Target,
    lab::{DENIED, INTERNET, OUTSIDER},
    process, wait_until,
};

use self::{
    boards::{Alert, metric_names, panels, rule_file},
    prometheus::{Prometheus, Series, program},
    right::RIGHT,
};
use crate::{
    containment::{cgroup, dial_in},
    packets::{flood, send_raw, send_syns},
    world::{CONSOLE, PRIVATE, PUBLIC, SHOP, SOON, World, at, domains, get, knock, private, public},
};

/// Longest wait for Prometheus to show something: many times its pace, on a machine that does other things too.
const SHOWN: Duration = Duration::from_secs(25);

/// The domains of the world, with rates in `private` that its clients keep and that [`send_everything`] passes.
fn limited() -> String {
    let rates = "admission: {newConnections: {perSource: {rate: 50, burst: 50}, total: {rate: 5000, burst: 5000}}}";
    domains().replace("  sources: {allow", &format!("  {rates}\n  sources: {{allow"))
}

/// One round of everything that can come to the gateway.
fn send_everything(lab: &Lab, world: &World, agent: &Agent<'_>, round: usize) {
    for _ in 0..5 {
        assert_eq!(get(&lab.internet, &public(), SHOP, "/").unwrap().status, 200);
        assert_eq!(get(&lab.datacentre, &private(), CONSOLE, "/").unwrap().status, 200);
    }
    assert_eq!(get(&lab.internet, &world.https(), SHOP, "/").unwrap().status, 200);
    assert_eq!(get(&lab.internet, &public(), "unknown.example.com", "/").unwrap().status, 404);
    let post = tidegate_lab::Request::post(SHOP, "/", "some bytes");
    assert_eq!(crate::world::send(&lab.internet, &public(), post).unwrap().status, 200);

    // Nothing of this is answered, so nothing waits for an answer.
    let timeout = Duration::from_millis(30);
    let silent = |target: Target| target.within(timeout);
    let _ = knock(&lab.internet, &Target::http(at("198.51.100.1", 22)));
    for (island, target) in [
        (&lab.internet, public().from(DENIED)),
        (&lab.datacentre, private().from(OUTSIDER)),
        (&lab.internet, private()),
        (&lab.datacentre, public()),
        (&lab.internet, Target::http(at(PUBLIC, 22))),
        (&lab.pod, public()),
        (&lab.pod, private()),
    ] {
        let target = silent(target);
        assert!(island.run(async move { target.connect_tcp().await.map(drop) }).is_err());
    }
    let (from, to) = (INTERNET.to_string(), PUBLIC.parse().unwrap());
    send_raw(&lab.internet, "127.0.0.1", to, 6, 0, &[0; 20]);
    // One source beyond its rate, and many that are together beyond the domain's.
    let SocketAddr::V4(web) = at(PRIVATE, 80) else { unreachable!("PRIVATE is IPv4") };
    send_syns(&lab.datacentre, [Ipv4Addr::new(10, 20, 77, 1)], 200, web);
    let many = (0..500u32).map(|host| Ipv4Addr::from(0x0a14_6400 + host));
    send_syns(&lab.datacentre, many, 25, web);
    // A timestamp request, SCTP, and a first fragment of TCP without its ports' whole header.
    send_raw(&lab.internet, &from, to, 1, 0, &[13, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    send_raw(&lab.internet, &from, to, 132, 0, &[0; 12]);
    send_raw(&lab.internet, &from, to, 6, 0x2000, &[0x9c, 0x40, 0, 80, 0, 0, 0, 1]);

    let group = cgroup(agent.worker_pid("public").unwrap());
    assert!(!dial_in(lab, &group, at("10.30.0.31", 8080)));
    // A change, to be seen as applied.
    lab.write("domains.yaml", &limited().replace("deny: [", &format!("deny: [192.88.99.{round}/32, "))).unwrap();
}

#[test]
fn every_panel_and_every_alert_says_what_is_true() {
    let checked = process::run(Command::new(program("promtool")).args(["check", "rules"]).arg(rule_file())).unwrap();
    assert!(checked.contains("SUCCESS"), "{checked}");
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    lab.write("domains.yaml", &limited()).unwrap();
    let agent = Agent::start(&lab).unwrap();
    let prometheus = Prometheus::start(&lab, &rule_file().display().to_string());
    wait_until("the first scrape", SHOWN, || {
        let ups = prometheus.query("up{job=\"tidegate\"}");
        ups.first().filter(|series| series.value == 1.0).map(drop)
    })
    .unwrap();
    let held = lab.internet.call(|| std::net::TcpStream::connect(at(PUBLIC, 80)).unwrap());
    flood(&lab.internet, DENIED, at(PUBLIC, 80), Duration::from_millis(500));
    let begun = Instant::now();
    let mut round = 0;
    loop {
        send_everything(&lab, &world, &agent, round % 250);
        round += 1;
        let wrong = find_wrong(&prometheus);
        if wrong.is_empty() {
            break;
        }
        assert!(begun.elapsed() < SHOWN, "{}", wrong.join("\n"));
    }
    every_metric_is_there(&agent);
    let alerts = read_alerts(&prometheus);
    for alert in &alerts {
        assert!(!prometheus.query(alert.value()).is_empty(), "{}: nothing to compare", alert.name);
    }
    quiet_alerts_are_quiet(&prometheus, &alerts);
    drop(held);
    provoke(&lab, &world, agent, &prometheus, &alerts);
}

/// What is not right yet, in words.
fn find_wrong(prometheus: &Prometheus<'_>) -> Vec<String> {
    let mut shown: BTreeMap<(String, String), Vec<Series>> = BTreeMap::new();
    let mut wrong = Vec::new();
    for panel in panels() {
        let series = prometheus.query(&panel.filled_in());
        if series.is_empty() {
            wrong.push(format!("{} / {}: no data: {}", panel.board, panel.title, panel.filled_in()));
        }
        shown.entry((panel.board, panel.title)).or_default().extend(series);
    }
    for right in RIGHT {
        let key = (right.board.to_owned(), right.title.to_owned());
        let series = shown.get(&key).unwrap_or_else(|| panic!("there is no panel {key:?}"));
        let chosen: Vec<&Series> = series.iter().filter(|series| series.has(right.labels)).collect();
        let sum: f64 = chosen.iter().map(|series| series.value).sum();
        if chosen.is_empty() || !(right.is_right)(sum) {
            wrong.push(format!("{} / {} {:?}: {sum} of {series:?}", right.board, right.title, right.labels));
        }
    }
    let known: BTreeSet<(&str, &str)> = RIGHT.iter().map(|right| (right.board, right.title)).collect();
    for (board, title) in shown.keys() {
        assert!(known.contains(&(board, title)), "{board} / {title}: nothing says what is right for it");
    }
    wrong
}

/// Every metric that a panel or a rule names is in a scrape.
fn every_metric_is_there(agent: &Agent<'_>) {
    let metrics = agent.metrics().unwrap();
    let present: BTreeSet<&str> = metrics.samples.iter().map(|sample| sample.name.as_str()).collect();
    let rules = std::fs::read_to_string(rule_file()).unwrap();
    let rules = rules.lines().filter_map(|line| line.trim().strip_prefix("expr:"));
    let expressions: Vec<String> =
        panels().into_iter().map(|panel| panel.expression).chain(rules.map(str::to_owned)).collect();
    for expression in expressions {
        for name in metric_names(&expression) {
            assert!(present.contains(name.as_str()), "{name} is in no scrape: {expression}");
        }
    }
}

/// The rules as Prometheus has read them; none may be in error.
fn read_alerts(prometheus: &Prometheus<'_>) -> Vec<Alert> {
    let rules = wait_until("the rules to be evaluated", SHOWN, || {
        let rules = prometheus.rules();
        (!rules.is_empty() && rules.iter().all(|rule| rule["health"] != "unknown")).then_some(rules)
    })
    .unwrap();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    rules
        .iter()
        .map(|rule| {
            assert_eq!(rule["health"], "ok", "{rule}");
            for annotation in ["summary", "description"] {
                assert!(rule["annotations"][annotation].is_string(), "{} lacks its {annotation}", rule["name"]);
            }
            Alert { name: text(&rule["name"]), expression: text(&rule["query"]) }
        })
        .collect()
}

fn is_true(prometheus: &Prometheus<'_>, alerts: &[Alert], name: &str) -> bool {
    let alert = alerts.iter().find(|alert| alert.name == name).unwrap_or_else(|| panic!("there is no alert {name}"));
    !prometheus.query(&alert.expression).is_empty()
}

/// After ordinary traffic nothing is wrong with the node, its domains and its workers.
fn quiet_alerts_are_quiet(prometheus: &Prometheus<'_>, alerts: &[Alert]) {
    let unprovoked = [
        "TidegateNotReady",
        "TidegateKernelTierOff",
        "TidegateInterfaceNotJudged",
        "TidegateObjectsFaulty",
        "TidegateDomainNotProgrammed",
        "TidegatePartsNotApplied",
        "TidegateWorkerDown",
        "TidegateWorkerRestarting",
        "TidegateConnectionsWithoutWorker",
        "TidegateCertificateEnding",
        "TidegateMapNearlyFull",
    ];
    for name in unprovoked {
        assert!(!is_true(prometheus, alerts, name), "{name} without a cause");
    }
}

/// Makes true what a test can make true, one after the other.
fn provoke(lab: &Lab, world: &World, agent: Agent<'_>, prometheus: &Prometheus<'_>, alerts: &[Alert]) {
    let expect = |name: &str| {
        wait_until(name, SHOWN, || is_true(prometheus, alerts, name).then_some(())).unwrap();
    };
    expect("TidegateDown");
    expect("TidegateWorkerDialsForeignAddress");
    // Some 50,000 in a short time are a rise after an hour of nothing.
    wait_until("TidegateDenialsRising", SHOWN, || {
        flood(&lab.internet, DENIED, at(PUBLIC, 80), Duration::from_millis(500));
        is_true(prometheus, alerts, "TidegateDenialsRising").then_some(())
    })
    .unwrap();

    lab.write("broken.yaml", "kind: [").unwrap();
    expect("TidegateObjectsFaulty");
    lab.delete("broken.yaml").unwrap();
    lab.write("domains.yaml", &limited().replace("[wan0]", "[wan0, wan9]")).unwrap();
    expect("TidegateInterfaceNotJudged");

    let is_failing = || get(&lab.datacentre, &private(), CONSOLE, "/").is_ok_and(|reply| reply.status >= 500);
    world.console.stop();
    // The backend ends its connections on its own time.
    wait_until("the console to be gone", SOON, || is_failing().then_some(())).unwrap();
    // A class of status has a series from its first answer on: only what comes later is a rate.
    wait_until("TidegateServerErrors", SHOWN, || {
        assert!(is_failing());
        is_true(prometheus, alerts, "TidegateServerErrors").then_some(())
    })
    .unwrap();

    let mut worker = agent.worker_pid("private").unwrap();
    for _ in 0..3 {
        process::signal(worker, Signal::SIGKILL);
        worker = agent.wait_new_worker("private", worker, SOON).unwrap();
    }
    expect("TidegateWorkerRestarting");

    process::stop(worker).unwrap();
    lab.write("domains.yaml", &limited().replace("10.20.0.0/16", "10.20.0.0/17")).unwrap();
    expect("TidegateWorkerDown");
    expect("TidegateDomainNotProgrammed");
    expect("TidegateNotReady");
    process::signal(worker, Signal::SIGCONT);

    assert!(agent.stop().unwrap().success());
    let without = AgentOptions { kernel: "off", ..AgentOptions::default() };
    let _agent = Agent::launch(lab, without).unwrap();
    expect("TidegateKernelTierOff");
}

#[test]
fn dashboards_name_no_data_source_of_somebody_and_let_one_choose_a_domain() {
    for (name, board) in boards::dashboards() {
        let variables = board["templating"]["list"].as_array().expect("variables");
        let has = |variable: &str| variables.iter().any(|one| one["name"] == variable);
        assert!(has("datasource") && has("instance") && has("domain"), "{name}");
        for panel in board["panels"].as_array().unwrap() {
            let sources = panel["targets"].as_array().into_iter().flatten().map(|target| &target["datasource"]);
            for source in sources.chain(panel.get("datasource")) {
                assert_eq!(source["uid"], "${datasource}", "{name} / {}", panel["title"]);
            }
            let needs_unit = !["row", "text"].contains(&panel["type"].as_str().unwrap());
            assert!(!needs_unit || panel["fieldConfig"]["defaults"]["unit"].is_string(), "{name} / {}", panel["title"]);
            assert!(
                !needs_unit || panel["description"].as_str().is_some_and(|text| !text.is_empty()),
                "{name} / {}",
                panel["title"]
            );
        }
    }
}
