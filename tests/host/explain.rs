//! `tidegate explain`: the model's verdict and the loaded program's, which must be the same for every source, interface,
//! address, port and policy.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, SocketAddr},
    os::unix::net::UnixStream,
};

use proptest::{
    prelude::*,
    test_runner::{Config, TestCaseError, TestRunner},
};
use serde_json::{Value, json};
use tidegate_lab::{
    Agent, Lab,
    agent::socket_path,
    lab::{DENIED, INTERNET, PRIVATE_POOL, PRIVATE_POOL6, PUBLIC_POOL, PUBLIC_POOL6},
    objects, wait_until,
};

use crate::{
    packets::send_syns,
    world::{PRIVATE, PRIVATE6, PUBLIC, PUBLIC6, SOON, World, at},
};

/// Networks that sources are drawn from, so that they meet the lists often; what follows the first [`LISTED`] stands on no
/// list: martians, and addresses of frontends.
const NETWORKS: [&str; 17] = [
    "192.0.2.0",
    "198.51.100.0",
    "10.20.0.0",
    "10.99.0.0",
    "2001:db8:1::",
    "2001:db8:bad::",
    "fd00:20::",
    "fd00:99::",
    "0.0.0.0",
    "127.0.0.1",
    "169.254.1.0",
    "224.0.0.1",
    "255.255.255.0",
    "203.0.113.1",
    "::",
    "fe80::1",
    "ff02::1",
];
const LISTED: usize = 8;

/// Ports that Gateways may have.
const PORTS: [u16; 3] = [80, 443, 8080];

/// Ways into the node; `None` leaves the choice to `explain`.
const INTERFACES: [Option<&str>; 4] = [Some("wan0"), Some("lan0"), Some("back0"), None];

/// An address near one of the networks: `low` is xor-ed into its last bits.
fn near(network: usize, low: u16) -> IpAddr {
    match NETWORKS[network].parse().unwrap() {
        IpAddr::V4(v4) => IpAddr::from((v4.to_bits() ^ u32::from(low)).to_be_bytes()),
        IpAddr::V6(v6) => IpAddr::from((v6.to_bits() ^ u128::from(low)).to_be_bytes()),
    }
}

/// A prefix as a user may write it, host bits and all; lengths around those of the networks and of single addresses.
fn prefix() -> impl Strategy<Value = String> {
    (0..LISTED, any::<u16>(), 0..=34u8).prop_map(|(network, low, back)| {
        let address = near(network, low & 0x03ff);
        let bits = if address.is_ipv4() { 32 } else { 128 };
        format!("\"{address}/{}\"", bits - back.min(bits))
    })
}

#[derive(Clone, Debug)]
struct Policy {
    deny: Vec<String>,
    allow: Option<Vec<String>>,
    ports: Vec<u16>,
    /// Rates and limits, in flow style. So low that questions would use them up if they took anything.
    rates: String,
}

fn policy() -> impl Strategy<Value = Policy> {
    let list = || proptest::collection::vec(prefix(), 0..10);
    let ports = proptest::sample::subsequence(PORTS.to_vec(), 1..=PORTS.len());
    let rates = proptest::sample::select(vec![
        "{}",
        "{newConnections: {perSource: {rate: 1, burst: 1}}}",
        "{newConnections: {total: {rate: 1, burst: 2}}}",
        "{newConnections: {perSource: {rate: 1}, total: {rate: 2}}}",
        "{openConnections: {perSource: 1, total: 1}}",
        "{icmp: {echo: {rate: 0}}}",
        "{icmp: {echo: {rate: 1, burst: 1}}}",
    ]);
    (list(), proptest::option::of(list()), ports, rates, any::<bool>()).prop_map(
        |(deny, allow, ports, rates, is_xdp)| {
            let cookies = match rates {
                _ if !is_xdp => "{",
                "{}" => "{synCookies: XDP",
                _ => "{synCookies: XDP, ",
            };
            Policy { deny, allow, ports, rates: rates.replacen('{', cookies, 1) }
        },
    )
}

#[derive(Clone, Debug)]
struct Asked {
    source: IpAddr,
    destination: SocketAddr,
    payload: Value,
    interface: Option<&'static str>,
}

fn asked() -> impl Strategy<Value = Asked> {
    let v4 = [PUBLIC, PRIVATE, "203.0.113.9", "198.51.100.1"];
    let v6 = [PUBLIC6, PRIVATE6, "2001:db8:113::9", "2001:db8:1::1"];
    let payload = prop_oneof![
        6 => Just(json!("tcp")),
        1 => Just(json!("udp")),
        2 => prop::sample::select(vec![0u8, 1, 2, 3, 4, 8, 11, 13, 128, 129, 135]).prop_map(|kind| json!({ "icmp": { "kind": kind, "code": 0 } })),
    ];
    let port = prop_oneof![4 => prop::sample::select(PORTS.to_vec()), 1 => any::<u16>()];
    let network = prop_oneof![4 => 0..LISTED, 1 => LISTED..NETWORKS.len()];
    (network, any::<u16>(), 0..4usize, port, payload, 0..INTERFACES.len()).prop_map(
        move |(network, low, to, port, payload, interface)| {
            let source = near(network, low & 0x03ff);
            let destination = if source.is_ipv4() { v4[to] } else { v6[to] };
            Asked {
                source,
                destination: SocketAddr::new(destination.parse().unwrap(), port),
                payload,
                interface: INTERFACES[interface],
            }
        },
    )
}

/// Asks as the command line does, without a process for each question.
fn ask(lab: &Lab, asked: &Asked) -> Value {
    let question = json!({ "explain": {
        "source": asked.source,
        "sourcePort": 40_000,
        "destination": asked.destination,
        "payload": asked.payload,
        "interface": asked.interface,
        "request": null,
    }});
    let mut stream = UnixStream::connect(socket_path(lab)).unwrap();
    writeln!(stream, "{question}").unwrap();
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(answer["ok"].is_object(), "{question}: {answer}");
    answer["ok"].clone()
}

/// Writes both domains; `round` is denied by each, so that it can be seen when they are in force.
fn write(lab: &Lab, round: u32, public: &Policy, private: &Policy, private_nic: &str) {
    let domain = |name: &str, nic: &str, pools: &[&str], policy: &Policy| {
        let mut deny = policy.deny.clone();
        deny.push(format!("\"{}\"", marker(round)));
        let allow = policy.allow.as_ref().map(|allow| format!(", allow: [{}]", allow.join(", "))).unwrap_or_default();
        let sources = format!("sources: {{deny: [{}]{allow}}}", deny.join(", "));
        objects::domain(name, nic, pools, &[&sources, &format!("admission: {}", policy.rates)])
    };
    let gateway = |name: &str, addresses: &[&str], policy: &Policy| {
        let listeners: Vec<String> =
            policy.ports.iter().map(|port| objects::http_listener(&format!("http-{port}"), *port)).collect();
        objects::gateway("gw", name, name, addresses, &listeners.iter().map(String::as_str).collect::<Vec<_>>())
    };
    lab.write(
        "gateways.yaml",
        &objects::join([
            gateway("public", &[PUBLIC, PUBLIC6], public),
            gateway("private", &[PRIVATE, PRIVATE6], private),
        ]),
    )
    .unwrap();
    lab.write(
        "domains.yaml",
        &objects::join([
            domain("public", "wan0", &[PUBLIC_POOL, PUBLIC_POOL6], public),
            domain("private", private_nic, &[PRIVATE_POOL, PRIVATE_POOL6], private),
            objects::class("public"),
            objects::class("private"),
        ]),
    )
    .unwrap();
    for (address, ports) in [(PUBLIC, &public.ports), (PRIVATE, &private.ports)] {
        wait_until(&format!("round {round} to be in force"), SOON, || {
            PORTS
                .iter()
                .all(|port| {
                    let said = ask(
                        lab,
                        &Asked {
                            source: marker(round),
                            destination: SocketAddr::new(address.parse().unwrap(), *port),
                            payload: json!("tcp"),
                            interface: None,
                        },
                    );
                    let is_served =
                        said["steps"][0]["outcome"].as_str().is_some_and(|text| text.contains("is a frontend"));
                    said["kernel"]["verdicts"][0]["reason"] == "source_denied" && is_served == ports.contains(port)
                })
                .then_some(())
        })
        .unwrap();
    }
}

fn marker(round: u32) -> IpAddr {
    IpAddr::from((0x6440_0000 + round).to_be_bytes())
}

#[test]
fn model_and_program_agree_under_random_policies_on_every_way_into_the_node() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    // The kernel makes cookies for every SYN, so domains that answer in the driver answer all.
    lab.gateway.call(|| std::fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let reasons = std::cell::RefCell::new(BTreeSet::new());
    let round = std::cell::Cell::new(0u32);
    let strategy = (policy(), policy(), any::<bool>(), proptest::collection::vec(asked(), 80..81));
    // What fails is shown as it is: a smaller policy would have to be written and applied for each try.
    let config = Config { cases: 16, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
    TestRunner::new(config)
        .run(&strategy, |(public, private, is_shared, questions)| {
            round.set(round.get() + 1);
            write(&lab, round.get(), &public, &private, if is_shared { "lan0, wan0" } else { "lan0" });
            for asked in &questions {
                let said = ask(&lab, asked);
                let verdict = said["verdict"].as_str().unwrap().to_owned();
                let context = || TestCaseError::fail(format!("{public:?}\n{private:?}\n{asked:?}\n{said:#}"));
                let kernel = said["kernel"]["verdicts"].as_array().ok_or_else(context)?;
                let agree = kernel.iter().all(|one| one["agrees"] == true && one["reason"] == verdict.as_str());
                let deciding: Vec<&Value> =
                    said["steps"].as_array().unwrap().iter().filter(|step| step["isDeciding"] == true).collect();
                let is_told = deciding.len() == 1 && deciding[0]["isDenial"] == said["isDenied"];
                let needs_object = ["source_denied", "source_not_allowed", "wrong_interface", "no_frontend"];
                let has_object = !needs_object.contains(&verdict.as_str()) || deciding[0]["object"] != "";
                if kernel.is_empty() || !agree || !is_told || !has_object {
                    return Err(context());
                }
                reasons.borrow_mut().insert(verdict);
            }
            Ok(())
        })
        .unwrap();
    let expected = [
        "admitted",
        "cookie_sent",
        "icmp_denied",
        "martian",
        "no_frontend",
        "not_frontend",
        "source_denied",
        "source_not_allowed",
        "wrong_interface",
    ];
    // Others need a policy that is seldom drawn: echo that is limited to none.
    let reasons = reasons.into_inner();
    let missing: Vec<_> = expected.iter().filter(|reason| !reasons.contains(**reason)).collect();
    assert!(missing.is_empty(), "never reached: {missing:?} of {reasons:?}");
}

#[test]
fn each_step_names_its_object_field_and_value_and_the_exit_code_is_the_verdict() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    lab.write(
        "lists.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: spam, namespace: lists}\n\
         data:\n  v4: |\n    # known bad\n    198.51.100.64/26\n\n    198.51.100.77 # one of them\n",
    )
    .unwrap();
    lab.edit(
        "domains.yaml",
        "sources: {deny: [192",
        "sources: {denyFrom: [{namespace: lists, name: spam}], deny: [192",
    )
    .unwrap();
    let agent = Agent::start(&lab).unwrap();
    let explain = |source: &str, destination: &str, more: &[&str]| {
        let mut words = vec!["explain", "--src", source, "--dst", destination];
        words.extend(more);
        let json = agent.cli(&[&words[..], &["-o", "json"]].concat()).unwrap();
        let table = agent.cli(&words).unwrap();
        assert_eq!(json.code, table.code);
        let said = json.json().unwrap();
        let deciding =
            said["steps"].as_array().unwrap().iter().find(|step| step["isDeciding"] == true).unwrap().clone();
        let mark = table.out.lines().find(|line| line.starts_with('>')).expect("a mark").to_owned();
        let part = |name: &str| deciding[name].as_str().unwrap().to_owned();
        assert!(mark.contains(&part("outcome")) && mark.contains(&part("value")), "{mark}");
        (
            json.code,
            said["verdict"].as_str().unwrap().to_owned(),
            format!("{} {} = {}", part("object"), part("field"), part("value")),
        )
    };
    let web = format!("{PUBLIC}:80");
    let denied = explain(&DENIED.to_string(), &web, &[]);
    let expected = "TrafficDomain/public spec.sources.deny[0] = 192.0.2.0/24";
    assert_eq!(denied, (Some(3), "source_denied".to_owned(), expected.to_owned()));
    let listed = explain("198.51.100.77:1234", &web, &[]);
    let expected = "ConfigMap/lists/spam data[\"v4\"] line 4 = 198.51.100.77/32";
    assert_eq!(listed, (Some(3), "source_denied".to_owned(), expected.to_owned()));
    let outsider = explain("10.99.0.66", &format!("{PRIVATE}:80"), &["--iface", "lan0"]);
    assert_eq!((outsider.0, outsider.1.as_str()), (Some(3), "source_not_allowed"));
    let stranger = explain(&INTERNET.to_string(), &web, &["--iface", "lan0"]);
    assert_eq!(stranger.2, "TrafficDomain/public spec.interfaces = wan0");
    assert_eq!(explain(&INTERNET.to_string(), &web, &[]).0, Some(0));
    assert_eq!(explain(&INTERNET.to_string(), &web, &["--udp"]).1, "no_frontend");
    assert_eq!(explain(&INTERNET.to_string(), PUBLIC, &["--icmp"]).1, "admitted");
    assert_eq!(explain(&INTERNET.to_string(), PUBLIC, &["--icmp", "13"]).1, "icmp_denied");
    let families = agent.cli(&["explain", "--src", "2001:db8::1", "--dst", &web]).unwrap();
    assert!(families.code == Some(1) && families.err.contains("two address families"), "{families:?}");
    let portless = agent.cli(&["explain", "--src", "192.0.2.1", "--dst", PUBLIC]).unwrap();
    assert!(portless.code == Some(2) && portless.err.contains("--icmp"), "{portless:?}");
}

#[test]
fn a_source_beyond_its_rate_is_told_what_is_left_and_asking_takes_nothing() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let rates = "admission: {newConnections: {perSource: {rate: 1, burst: 3}, total: {rate: 100}}}";
    lab.edit("domains.yaml", "  sources: {deny", &format!("  {rates}\n  sources: {{deny")).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let question =
        Asked { source: INTERNET, destination: at(PUBLIC, 80), payload: json!("tcp"), interface: Some("wan0") };
    let step = |said: &Value, field: &str| {
        let steps = said["steps"].as_array().unwrap();
        steps.iter().find(|step| step["field"] == format!("spec.admission.newConnections.{field}")).cloned()
    };
    for _ in 0..10 {
        let said = ask(&lab, &question);
        assert_eq!(said["verdict"], "admitted", "{said}");
        let told = step(&said, "perSource").unwrap();
        assert_eq!(told["value"], "1 a second, 3 at once", "{said}");
        assert!(told["outcome"].as_str().unwrap().contains(" 3 more"), "asking took something: {said}");
        assert!(step(&said, "total").is_some(), "{said}");
    }
    let to = std::net::SocketAddrV4::new(PUBLIC.parse().unwrap(), 80);
    let std::net::IpAddr::V4(source) = INTERNET else { unreachable!("INTERNET is IPv4") };
    // A token comes back after a second: the look may be too late.
    let said = wait_until("a refusal", SOON, || {
        send_syns(&lab.internet, [source], 10, to);
        let said = ask(&lab, &question);
        (said["verdict"] == "rate_source").then_some(said)
    })
    .unwrap();
    let deciding = step(&said, "perSource").unwrap();
    assert!(deciding["isDeciding"] == true && deciding["object"] == "TrafficDomain/public", "{said}");
    assert_eq!(said["kernel"]["verdicts"][0]["agrees"], true, "{said}");
}
