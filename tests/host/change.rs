//! Changes under load: weights, routes and a thousand of them, with no failed request.

use std::time::Duration;

use tidegate_lab::{Agent, Lab, Load, LoadPlan, Request, objects, wait_until};

use crate::world::{SHOP, SOON, World, backend, public, wait_status, window};

fn weighted(first: u32, second: u32) -> String {
    let rule = format!(
        "{{backendRefs: [{{name: shop, port: 8080, weight: {first}}}, {{name: canary, port: 8080, weight: {second}}}]}}"
    );
    objects::route("shop", "shop", "gw/public", &[SHOP], &[&rule])
}

#[test]
fn a_canary_is_shifted_without_a_lost_request_and_shares_follow_the_weights() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _canary = backend(&lab, "canary", "10.30.0.21:8080");
    lab.write("canary.yaml", &objects::service_at("shop", "canary", &["10.30.0.21"])).unwrap();
    lab.write("shop.yaml", &objects::join([objects::service("shop", "shop"), weighted(100, 0)])).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let mut load = Load::start(&lab.internet, &LoadPlan::new(public(), Request::get(SHOP, "/")));
    for (first, second) in [(100, 0), (90, 10), (50, 50), (10, 90), (0, 100)] {
        lab.write("shop.yaml", &objects::join([objects::service("shop", "shop"), weighted(first, second)])).unwrap();
        let wanted = f64::from(second) / 100.0;
        // 400 answers: five standard deviations at 50 % are 12.5 %; the ends are exact.
        wait_until("the share to follow the weight", Duration::from_secs(30), || {
            let share = window(&mut load, 400).share("canary");
            let is_met = if second == 0 || first == 0 { share == wanted } else { (share - wanted).abs() < 0.125 };
            is_met.then_some(())
        })
        .unwrap_or_else(|error| panic!("{first}/{second}: {error}"));
    }
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
}

#[test]
fn hundreds_of_route_changes_fail_no_request_of_another_route() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let agent = Agent::start(&lab).unwrap();
    let mut load = Load::start(&lab.internet, &LoadPlan::new(public(), Request::get(SHOP, "/")).with_new_connections());
    wait_until("load", SOON, || (load.total().ok() >= 20).then_some(())).unwrap();
    for change in 0..300 {
        let host = format!("host-{change}.example.com");
        let route = objects::route("shop", "busy", "gw/public", &[&host], &[&objects::to_service("shop")]);
        lab.write("busy.yaml", &route).unwrap();
        if change % 50 == 0 {
            wait_status(&lab.internet, &public(), &host, "/", 200);
        }
    }
    wait_status(&lab.internet, &public(), "host-299.example.com", "/", 200);
    wait_status(&lab.internet, &public(), "host-250.example.com", "/", 404);
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
    assert!(agent.worker_pid("public").is_some());
}

#[test]
fn a_gateway_that_gains_and_loses_a_listener_keeps_serving_the_others() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let mut load = Load::start(&lab.internet, &LoadPlan::new(public(), Request::get(SHOP, "/")).with_new_connections());
    wait_until("load", SOON, || (load.total().ok() >= 20).then_some(())).unwrap();
    let second = tidegate_lab::Target::http(crate::world::at(crate::world::PUBLIC, 8080));
    let gateways = crate::world::gateways();
    let (with, without) = (
        gateways.replacen("listeners:\n", &format!("listeners:\n  - {}\n", objects::http_listener("more", 8080)), 1),
        gateways,
    );
    for _ in 0..5 {
        lab.write("gateways.yaml", &with).unwrap();
        wait_status(&lab.internet, &second, SHOP, "/", 200);
        lab.write("gateways.yaml", &without).unwrap();
        wait_until("the frontend to go", SOON, || crate::world::knock(&lab.internet, &second).err()).unwrap();
    }
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
}
