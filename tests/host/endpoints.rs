//! Backends come, go and misbehave: readiness, termination, rolling replacement, refused and stale connections.

use tidegate_lab::{
    Agent, Backend, Lab, Load, LoadPlan, Request, Script, ScriptedBackend, Session,
    objects::{self, EndpointState},
    wait_until,
};

use crate::world::{SHOP, SOON, World, at, backend, get, public, send, shop_endpoints, wait_status, window};

#[test]
fn unready_endpoints_get_nothing_and_terminating_ones_only_when_none_is_ready() {
    use EndpointState::{Ready, Terminating, Unready};
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    for (first, second, expected) in [
        (Ready, Unready, Some("shop-a")),
        (Unready, Ready, Some("shop-b")),
        (Ready, Terminating, Some("shop-a")),
        (Terminating, Unready, Some("shop-a")),
        (Unready, Unready, None),
        (Ready, Ready, Some("shop-")),
    ] {
        lab.write("shop-endpoints.yaml", &shop_endpoints(first, second)).unwrap();
        // Twenty answers in a row from the right side: with two endpoints in turn, one wrong choice would show.
        wait_until(&format!("{first:?}/{second:?} to be followed"), SOON, || {
            let replies: Vec<_> = (0..20).filter_map(|_| get(&lab.internet, &public(), SHOP, "/").ok()).collect();
            let is_right = replies.iter().all(|reply| match expected {
                Some(name) => reply.backend().is_some_and(|backend| backend.starts_with(name)),
                None => reply.status == 503,
            });
            (replies.len() == 20 && is_right).then_some(())
        })
        .unwrap();
    }
    assert!(world.shop.iter().all(|backend| backend.requests() > 0));
}

#[test]
fn a_rolling_replacement_of_all_endpoints_fails_no_request() {
    use EndpointState::{Ready, Terminating};
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let mut running = vec![
        ("10.30.0.41", backend(&lab, "v0-0", "10.30.0.41:8080")),
        ("10.30.0.42", backend(&lab, "v0-1", "10.30.0.42:8080")),
    ];
    let publish = |running: &[(&'static str, Backend)], terminating: Option<&'static str>| {
        let mut endpoints: Vec<_> = running.iter().map(|(address, _)| (*address, Ready)).collect();
        endpoints.extend(terminating.map(|address| (address, Terminating)));
        lab.write("shop-endpoints.yaml", &objects::slice("shop", "shop", &endpoints)).unwrap();
    };
    publish(&running, None);
    let _agent = Agent::start(&lab).unwrap();
    let slow = Request::get(SHOP, "/").header("x-lab-delay-ms", "20");
    let mut load = Load::start(&lab.internet, &LoadPlan::new(public(), slow));
    for (index, address) in ["10.30.0.43", "10.30.0.44", "10.30.0.45", "10.30.0.46"].into_iter().enumerate() {
        // As a Deployment does it: a new pod becomes ready, an old one terminates, drains and goes.
        let name = format!("v1-{index}");
        running.push((address, Backend::start(&lab.backends, &name, at(address, 8080)).unwrap()));
        publish(&running, None);
        wait_until("the new endpoint to be used", SOON, || load.take().backends.contains_key(&name).then_some(()))
            .unwrap();
        let (old, backend) = running.remove(0);
        publish(&running, Some(old));
        // Within the grace period of a pod its endpoint stops being chosen; only then the server ends.
        wait_until("the old endpoint to be left alone", SOON, || {
            (!window(&mut load, 40).backends.contains_key(&backend.name)).then_some(())
        })
        .unwrap();
        backend.drain();
        publish(&running, None);
    }
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
    assert!(report.requests() > 100);
}

#[test]
fn a_refused_connection_is_tried_on_another_endpoint() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    world.shop[0].stop();
    for _ in 0..40 {
        let reply = get(&lab.internet, &public(), SHOP, "/").unwrap();
        assert_eq!((reply.status, reply.backend()), (200, Some("shop-b")));
        // Nothing has been sent to the dead one, so a POST may go elsewhere as well.
        assert_eq!(send(&lab.internet, &public(), Request::post(SHOP, "/", "body")).unwrap().status, 200);
    }
}

#[test]
fn a_backend_that_comes_back_is_used_again() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    world.shop[0].stop();
    world.shop[1].stop();
    let reply = wait_status(&lab.internet, &public(), SHOP, "/", 502);
    assert!(reply.backend().is_none());
    let _again = backend(&lab, "shop-again", "10.30.0.11:8080");
    wait_status(&lab.internet, &public(), SHOP, "/", 200);
}

#[test]
fn an_idle_connection_closed_by_the_backend_is_no_error_for_a_replayable_request() {
    for script in [Script::CloseOnReuse, Script::ResetOnReuse] {
        let lab = Lab::create().unwrap();
        let world = World::build(&lab);
        let _agent = Agent::start(&lab).unwrap();
        drop(world.shop);
        let scripted = wait_until("the port to be free", SOON, || {
            ScriptedBackend::start(&lab.backends, at("10.30.0.11", 8080), script.clone()).ok()
        })
        .unwrap();
        lab.write("shop-endpoints.yaml", &objects::slice("shop", "shop", &[("10.30.0.11", EndpointState::Ready)]))
            .unwrap();
        wait_status(&lab.internet, &public(), SHOP, "/", 200);
        let statuses = lab.internet.run(async {
            let mut session = Session::connect(&public()).await.unwrap();
            let mut statuses = Vec::new();
            for _ in 0..20 {
                statuses.push(session.send(Request::get(SHOP, "/")).await.map(|reply| reply.status));
            }
            statuses
        });
        assert!(statuses.iter().all(|status| *status == Ok(200)), "{script:?}: {statuses:?}");
        assert!(scripted.requests() > 20, "no connection was reused: nothing was shown");
    }
}

#[test]
fn a_request_that_may_have_been_acted_upon_is_not_sent_twice() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    drop(world.shop);
    lab.write("shop-endpoints.yaml", &objects::slice("shop", "shop", &[("10.30.0.51", EndpointState::Ready)])).unwrap();
    let scripted = ScriptedBackend::start(&lab.backends, at("10.30.0.51", 8080), Script::CloseAtOnce).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let reply =
        send(&lab.internet, &public(), Request { method: http::Method::POST, ..Request::get(SHOP, "/pay") }).unwrap();
    assert_eq!(reply.status, 502);
    assert_eq!(scripted.requests(), 1, "a POST was repeated");
}

#[test]
fn a_slow_backend_is_given_up_after_the_rules_timeout() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let rule = "{timeouts: {request: 300ms}, backendRefs: [{name: shop, port: 8080}]}";
    lab.write("slow.yaml", &objects::route("shop", "slow", "gw/public", &["slow.example.com"], &[rule])).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let late = Request::get("slow.example.com", "/").header("x-lab-delay-ms", "5000");
    assert_eq!(send(&lab.internet, &public(), late).unwrap().status, 504);
    assert_eq!(get(&lab.internet, &public(), "slow.example.com", "/").unwrap().status, 200);
}

#[test]
fn a_backend_that_breaks_off_is_told_to_the_client() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let before_head = Request::post(SHOP, "/", "x").header("x-lab-abort", "head");
    assert_eq!(send(&lab.internet, &public(), before_head).unwrap().status, 502);
    let in_body = Request::get(SHOP, "/").header("x-lab-bytes", "100000").header("x-lab-abort", "body");
    let outcome = send(&lab.internet, &public(), in_body);
    assert!(outcome.is_err(), "half a body was passed off as whole: {outcome:?}");
}

#[test]
fn an_endpoint_may_be_an_ipv6_address() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _six = backend(&lab, "six", "[fd00:30::21]:8080");
    lab.write(
        "six.yaml",
        &objects::join([
            objects::service_at("shop", "six", &["fd00:30::21"]),
            objects::route("shop", "six", "gw/public", &["six.example.com"], &[&objects::to_service("six")]),
        ]),
    )
    .unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let reply = get(&lab.internet, &public(), "six.example.com", "/").unwrap();
    assert_eq!((reply.status, reply.backend()), (200, Some("six")));
}

#[test]
fn a_backend_object_names_addresses_and_a_name_that_the_agent_resolves() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let objects_of = |name: &str, endpoint: &str| {
        format!(
            "apiVersion: tidegate.dev/v1alpha1\nkind: Backend\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{endpoints: [{endpoint}]}}\n{}{}",
            objects::NEXT,
            objects::route(
                "shop",
                name,
                "gw/public",
                &[&format!("{name}.example.com")],
                &[&format!("{{backendRefs: [{{group: tidegate.dev, kind: Backend, name: {name}}}]}}")],
            )
        )
    };
    let by_address = objects_of("by-address", "{ip: {address: 10.30.0.11, port: 8080}}");
    // `localhost` is in every /etc/hosts: no name server is needed, and the node itself is the backend.
    let by_name = objects_of("by-name", "{fqdn: {hostname: localhost, port: 8081}}");
    lab.write("backends.yaml", &objects::join([by_address, by_name])).unwrap();
    let _node = Backend::start(&lab.gateway, "node", at("127.0.0.1", 8081)).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let reply = get(&lab.internet, &public(), "by-address.example.com", "/").unwrap();
    assert_eq!((reply.status, reply.backend()), (200, Some("shop-a")));
    let reply = wait_status(&lab.internet, &public(), "by-name.example.com", "/", 200);
    assert_eq!(reply.backend(), Some("node"));
}
