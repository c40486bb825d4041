//! More clients than there is room for, and what is said of a session when it has ended.

use std::time::Duration;

use tidegate_lab::{Agent, AgentOptions, wait_until};

use super::{Caller, DNS, PORT, SESSIONS, SESSIONS_ACTIVE, SESSIONS_ENDED, Scene, gateway, metric, wait_metric};
use crate::world::{SOON, at};

#[test]
fn a_flood_of_new_sessions_is_bounded_and_drives_out_none_that_goes_on() {
    // Half of the worker's open files may be sessions.
    const FILES: u64 = 256;
    const FLOOD: usize = 1_000;
    let scene = Scene::with_endpoints(&["10.30.0.11"]);
    let _a = scene.backend("a", "10.30.0.11");
    let options = AgentOptions { open_files: Some(FILES), ..AgentOptions::default() };
    let agent = Agent::start_with(&scene.lab, options).unwrap();
    let worker = agent.worker_pid("public");
    let steady: Vec<Caller> = (0..4).map(|_| scene.client()).collect();
    // Twice: a datagram after an answer shows that somebody is there.
    for client in steady.iter().chain(&steady) {
        assert_eq!(client.ask_until_answered("?"), "a");
    }
    let before = metric(&agent, SESSIONS, &[]);
    for _ in 0..FLOOD / 100 {
        let flood: Vec<Caller> = (0..100).map(|_| scene.client()).collect();
        flood.iter().for_each(|client| client.send(b"flood"));
        for client in &steady {
            assert_eq!(client.ask_until_answered("?"), "a");
        }
    }
    wait_metric(&agent, SESSIONS_ENDED, &[("reason", "evicted")], 1.0);
    assert!(metric(&agent, SESSIONS_ACTIVE, &[]) <= (FILES / 2) as f64);
    // Sessions of the steady clients are the same as before: only the flood has begun any.
    let begun = metric(&agent, SESSIONS, &[]) - before;
    assert!(begun <= FLOOD as f64, "{begun}");
    assert_eq!(agent.worker_pid("public"), worker);
    for client in &steady {
        assert_eq!(client.ask("after").as_deref(), Some("a"));
    }
}

#[test]
fn a_session_that_ends_is_in_the_access_log_and_in_the_metrics() {
    let scene = Scene::with_endpoints(&["10.30.0.11"]);
    let _a = scene.backend("a", "10.30.0.11");
    let agent = Agent::start(&scene.lab).unwrap();
    let client = scene.client();
    for _ in 0..3 {
        assert_eq!(client.ask_until_answered("text"), "a");
    }
    let ours = client.0.local_addr().unwrap();
    scene.lab.delete("gateway.yaml").unwrap();
    let line = wait_until("the line of the session", SOON, || {
        let log = agent.access_log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        lines.into_iter().find(|line| line["client"] == ours.to_string())
    })
    .unwrap();
    for (member, value) in [
        ("protocol", "UDP"),
        ("route", "UDPRoute/dns/zone"),
        ("gateway", "gw/dns"),
        ("listener", "dns"),
        ("frontend", "203.0.113.2:53"),
        ("upstream", "10.30.0.11:5353"),
        ("reason", "listener_removed"),
    ] {
        assert_eq!(line[member], value, "{line}");
    }
    let number = |member: &str| line[member].as_u64().unwrap();
    assert_eq!((number("received_datagrams"), number("received_bytes")), (3, 12));
    assert_eq!((number("sent_datagrams"), number("sent_bytes")), (3, 18));
    scene.lab.write("gateway.yaml", &gateway()).unwrap();
    assert_eq!(Caller::new(&scene.lab.internet, None, at(DNS, PORT)).ask_until_answered("?"), "a");
    wait_metric(&agent, SESSIONS_ENDED, &[("reason", "listener_removed")], 1.0);
    assert!(client.receive(Duration::from_millis(1)).is_none());
}
