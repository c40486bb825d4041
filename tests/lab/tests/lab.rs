//! The lab itself: what the host tests stand on must be known to work without the agent. Needs root.

use std::{net::SocketAddr, path::Path, time::Duration};

use tidegate_lab::{
    Backend, Failure, Lab, Load, LoadPlan, Request, Script, ScriptedBackend, Session, Target,
    client::{self, grpc, websocket::WebSocket},
    lab::{DENIED, DENIED6, INTERNET, POD},
};

/// From the gateway, since no agent is there to let others through.
fn backend(lab: &Lab, address: &str) -> (Backend, SocketAddr) {
    let addr: SocketAddr = address.parse().expect("an address");
    (Backend::start(&lab.backends, "one", addr).expect("the address is free"), addr)
}

#[test]
fn backends_answer_http1_http2_grpc_and_websocket_over_both_families() {
    let lab = Lab::create().unwrap();
    for address in ["10.30.0.11:8080", "[fd00:30::11]:8080"] {
        let (_backend, addr) = backend(&lab, address);
        let target = Target::http(addr);
        let get = Request::get("a.example.com", "/x?y=1").header("x-a", "1");
        let plain = target.clone();
        let reply = lab.gateway.run(async move { client::send(&plain, get).await }).unwrap();
        assert_eq!((reply.status, reply.backend()), (200, Some("one")));
        assert_eq!(reply.json()["path"], "/x");
        assert_eq!(reply.json()["headers"]["x-a"][0], "1");

        let http2 = target.clone().http2();
        let get = Request::get("a.example.com", "/x");
        let reply = lab.gateway.run(async move { client::send(&http2, get).await }).unwrap();
        assert_eq!((reply.status, reply.version), (200, http::Version::HTTP_2));

        let plain = target.clone();
        let answer =
            lab.gateway
                .run(async move {
                    grpc::call(&plain, "a", "/echo.Echo/Call", b"hello", &[("x-lab-grpc-status", "7")]).await
                })
                .unwrap();
        assert_eq!((answer.status, answer.is_in_trailers), (Some(7), true));
        assert_eq!(&answer.messages[0][..], b"hello");

        let echoed = lab.gateway.run(async move {
            let mut socket = WebSocket::open(&target, "a", "/ws").await?;
            let text = socket.echo("over the wall").await?;
            socket.close().await.map(|()| text)
        });
        assert_eq!(echoed.unwrap(), "over the wall");
    }
}

#[test]
fn each_client_reaches_the_gateway_from_each_of_its_sources() {
    let lab = Lab::create().unwrap();
    let listener = Backend::start(&lab.gateway, "node", "[::]:7000".parse().unwrap()).unwrap();
    for (island, addr, source) in [
        (&lab.internet, "198.51.100.1:7000", INTERNET),
        (&lab.internet, "198.51.100.1:7000", DENIED),
        (&lab.internet, "[2001:db8:1::1]:7000", DENIED6),
        (&lab.pod, "10.40.0.1:7000", POD),
    ] {
        let target = Target::http(addr.parse().unwrap()).from(source);
        let reply = island.run(async move { client::send(&target, Request::get("a", "/")).await }).unwrap();
        let peer: SocketAddr = reply.json()["peer"].as_str().unwrap().parse().unwrap();
        assert_eq!(peer.ip().to_canonical(), source);
    }
    assert_eq!(listener.connections(), 4);
}

#[test]
fn failures_are_told_apart() {
    let lab = Lab::create().unwrap();
    let outcome = |addr: &str, request: Request| {
        let mut target = Target::http(addr.parse().unwrap()).within(Duration::from_millis(300));
        target.answer_limit = Duration::from_millis(500);
        lab.gateway.run(async move { client::send(&target, request).await.map(|reply| reply.status) })
    };
    let get = || Request::get("a", "/");
    assert_eq!(outcome("10.30.0.11:1", get()), Err(Failure::Refused));
    // No host there: ARP finds nobody.
    assert_eq!(outcome("10.30.0.77:1", get()), Err(Failure::Silent));
    let (_backend, _) = backend(&lab, "10.30.0.11:8080");
    assert_eq!(outcome("10.30.0.11:8080", get().header("x-lab-delay-ms", "5000")), Err(Failure::Stalled));
    assert_eq!(outcome("10.30.0.11:8080", get().header("x-lab-abort", "head")), Err(Failure::Closed));
    let half = get().header("x-lab-bytes", "4096").header("x-lab-abort", "body");
    assert_eq!(outcome("10.30.0.11:8080", half), Err(Failure::Closed));
    let reset = ScriptedBackend::start(&lab.backends, "10.30.0.12:1".parse().unwrap(), Script::ResetAtOnce).unwrap();
    assert_eq!(outcome("10.30.0.12:1", get()), Err(Failure::Reset));
    assert_eq!(reset.requests(), 1);
}

#[test]
fn a_server_may_close_on_a_reused_connection() {
    let lab = Lab::create().unwrap();
    let addr = "10.30.0.12:8080".parse().unwrap();
    let _backend = ScriptedBackend::start(&lab.backends, addr, Script::CloseOnReuse).unwrap();
    let (first, second) = lab.gateway.run(async move {
        let mut session = Session::connect(&Target::http(addr)).await.unwrap();
        (session.send(Request::get("a", "/")).await, session.send(Request::get("a", "/")).await)
    });
    assert_eq!(first.unwrap().status, 200);
    assert_eq!(second.unwrap_err(), Failure::Closed);
}

#[test]
fn load_counts_answers_by_backend_and_a_draining_backend_costs_none() {
    let lab = Lab::create().unwrap();
    let (backend, addr) = backend(&lab, "10.30.0.11:8080");
    let plan = LoadPlan::new(Target::http(addr), Request::get("a", "/"));
    let mut load = Load::start(&lab.gateway, &plan);
    tidegate_lab::wait_until("requests", Duration::from_secs(10), || (load.total().requests() >= 100).then_some(()))
        .unwrap();
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
    assert_eq!(report.share("one"), 1.0);
    assert_eq!(backend.requests(), report.requests());

    let mut load = Load::start(&lab.gateway, &plan);
    tidegate_lab::wait_until("requests", Duration::from_secs(10), || (load.total().requests() >= 50).then_some(()))
        .unwrap();
    backend.stop();
    tidegate_lab::wait_until("refusals", Duration::from_secs(10), || {
        load.total().failures.contains_key("refused").then_some(())
    })
    .unwrap();
}

#[test]
fn nothing_of_a_lab_stays_behind() {
    let lab = Lab::create().unwrap();
    let (name, folder) = (lab.name.clone(), lab.folder().to_owned());
    let namespace = Path::new("/run/netns").join(format!("{name}-gw"));
    assert!(namespace.exists());
    let mut sleeper = std::process::Command::new("sleep");
    let mut sleeper = lab.gateway.start(sleeper.arg("1000")).unwrap();
    drop(lab);
    assert!(!namespace.exists() && !folder.exists());
    assert!(!std::fs::read_to_string("/proc/self/mounts").unwrap().contains(&name));
    assert!(sleeper.wait().unwrap().code().is_none(), "a process of the lab outlived it");
}
