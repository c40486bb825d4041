//! TCPRoutes and TLSRoutes: connections that the gateway passes on without reading them.

use std::time::Duration;

use tidegate_lab::{
    Agent, Authority, Failure, Lab, Load, LoadPlan, Metrics, Request, Target, TlsEcho,
    client::raw::{End, RawConnection},
    objects, wait_until,
};

use crate::world::{SHOP, SOON, World, at, backend, get, wait_status, window};

/// Address of the Gateway of these tests.
const STREAMS: &str = "203.0.113.2";

const TCP: &str = "{name: tcp, protocol: TCP, port: 5432, allowedRoutes: {namespaces: {from: All}}}";

/// The Gateway `gw/streams`.
fn gateway(listeners: &[&str]) -> String {
    objects::gateway("gw", "streams", "public", &[STREAMS], listeners)
}

/// A route of kind `kind` to the Gateway; `rule` in flow style, `created` as in `creationTimestamp`.
fn route(kind: &str, name: &str, created: &str, hostname: &str, rule: &str) -> String {
    let hostnames = if hostname.is_empty() { String::new() } else { format!("hostnames: [\"{hostname}\"], ") };
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: shop, creationTimestamp: \"{created}\"}}\n\
         spec: {{parentRefs: [{{name: streams, namespace: gw}}], {hostnames}rules: [{rule}]}}\n"
    )
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-01-02T00:00:00Z";

fn weighted(first: u32, second: u32) -> String {
    format!(
        "{{backendRefs: [{{name: one, port: 8080, weight: {first}}}, {{name: two, port: 8080, weight: {second}}}]}}"
    )
}

/// Services `one` and `two`.
fn services() -> String {
    let (one, two) = (["10.30.0.21"], ["10.30.0.22"]);
    let (one, two) = (objects::service_at("shop", "one", &one), objects::service_at("shop", "two", &two));
    format!("{one}{}{two}", objects::NEXT)
}

fn tcp() -> Target {
    Target::http(at(STREAMS, 5432))
}

/// Name of the backend that a connection of its own reaches.
fn reached(lab: &Lab) -> Result<String, Failure> {
    get(&lab.internet, &tcp(), "any.example", "/").map(|reply| reply.backend().unwrap_or_default().to_owned())
}

#[track_caller]
fn wait_reached(lab: &Lab, expected: &Result<&str, Failure>) {
    let mut last = None;
    wait_until("another backend", SOON, || {
        let outcome = reached(lab);
        let is_it = outcome.as_deref().map_err(Clone::clone) == *expected;
        last = Some(outcome);
        is_it.then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {expected:?}, but {last:?}"));
}

/// Waits until the access log, which is written with a delay, has some text.
fn wait_logged(agent: &Agent<'_>, text: &str) {
    wait_until(text, SOON, || agent.access_log().contains(text).then_some(())).unwrap();
}

fn sum(metrics: &Metrics, name: &str, route: &str) -> f64 {
    metrics.sum(name, &[("domain", "public"), ("gateway", "gw/streams"), ("route", route)])
}

#[test]
fn a_tcp_route_shares_connections_by_weight_and_the_oldest_takes_them_all() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _backends = [backend(&lab, "one", "10.30.0.21:8080"), backend(&lab, "two", "10.30.0.22:8080")];
    let old = route("TCPRoute", "older", OLD, "", &weighted(7, 3));
    lab.write("streams.yaml", &objects::join([gateway(&[TCP]), services(), old])).unwrap();
    let newer = route("TCPRoute", "a-newer", NEW, "", &objects::to_service("shop"));
    lab.write("newer.yaml", &newer).unwrap();
    let agent = Agent::start(&lab).unwrap();
    let names: Vec<_> = (0..100).map(|_| reached(&lab).unwrap()).collect();
    let count = |wanted: &str| names.iter().filter(|name| *name == wanted).count();
    assert_eq!(count("one") + count("two"), 100, "none went to the newer route: {names:?}");
    assert!(count("one").abs_diff(70) <= 5, "{} of 100 with 70 %", count("one"));
    let metrics = wait_until("the connections to be counted", SOON, || {
        let metrics = agent.metrics().ok()?;
        (sum(&metrics, "tidegate_forwards_active", "shop/older") == 0.0).then_some(metrics)
    })
    .unwrap();
    assert_eq!(sum(&metrics, "tidegate_forwards_total", "shop/older"), 100.0);
    assert!(sum(&metrics, "tidegate_forward_received_bytes_total", "shop/older") > 1000.0);
    assert!(sum(&metrics, "tidegate_forward_sent_bytes_total", "shop/older") > 10_000.0);
    assert_eq!(sum(&metrics, "tidegate_forwards_total", "shop/a-newer"), 0.0);
    wait_logged(&agent, "\"route\":\"TCPRoute/shop/older\"");
    // The next in age takes over when the oldest goes.
    lab.write("streams.yaml", &objects::join([gateway(&[TCP]), services()])).unwrap();
    wait_until("the newer route", SOON, || reached(&lab).ok().filter(|name| name.starts_with("shop"))).unwrap();
}

#[test]
fn connections_outlive_their_route_and_none_is_lost_while_routes_change() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _backends = [backend(&lab, "one", "10.30.0.21:8080"), backend(&lab, "two", "10.30.0.22:8080")];
    let with = |first, second| {
        objects::join([gateway(&[TCP]), services(), route("TCPRoute", "db", OLD, "", &weighted(first, second))])
    };
    lab.write("streams.yaml", &with(1, 0)).unwrap();
    let agent = Agent::start(&lab).unwrap();
    wait_reached(&lab, &Ok("one"));
    let open = lab.internet.run(async { RawConnection::connect(&tcp()).await }).unwrap();
    let mut load = Load::start(&lab.internet, &LoadPlan::new(tcp(), Request::get(SHOP, "/")).with_new_connections());
    for (first, second) in [(1, 1), (0, 1), (1, 1), (1, 0)] {
        lab.write("streams.yaml", &with(first, second)).unwrap();
        let wanted = f64::from(second) / f64::from(first + second);
        wait_until("the share to follow the weight", Duration::from_secs(30), || {
            ((window(&mut load, 100).share("two") - wanted).abs() <= 0.1).then_some(())
        })
        .unwrap_or_else(|error| panic!("{first}/{second}: {error}"));
    }
    let report = load.stop().unwrap();
    assert_eq!(report.errors(), 0, "{report}");
    // Without the route new connections are reset; the one that is open is served on.
    lab.write("streams.yaml", &objects::join([gateway(&[TCP])])).unwrap();
    wait_reached(&lab, &Err(Failure::Reset));
    let (reply, end) = lab.internet.run(async move {
        let mut open = open;
        open.send(b"GET / HTTP/1.1\r\nhost: a.example\r\n\r\n").await.unwrap();
        let reply = open.read_reply(SOON).await;
        open.finish().await;
        (reply, open.read_to_end(SOON).await.1)
    });
    assert_eq!(reply.unwrap().status, 200);
    assert_eq!(end, End::Closed, "each side ends by itself");
    wait_until("refusals to be counted", SOON, || {
        let refused =
            agent.metric("tidegate_connections_refused_total", &[("domain", "public"), ("reason", "no_route")]);
        refused.ok().filter(|count| *count >= 1.0)
    })
    .unwrap();
}

#[test]
fn an_endpoint_that_refuses_is_passed_over_and_a_backend_that_is_none_resets() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _one = backend(&lab, "one", "10.30.0.21:8080");
    // Nobody listens at the second address.
    let both = objects::service_at("shop", "one", &["10.30.0.21", "10.30.0.23"]);
    let to = |service: &str| route("TCPRoute", "db", OLD, "", &objects::to_service(service));
    lab.write("streams.yaml", &objects::join([gateway(&[TCP]), both.clone(), to("one")])).unwrap();
    let agent = Agent::start(&lab).unwrap();
    for _ in 0..10 {
        assert_eq!(reached(&lab).as_deref(), Ok("one"));
    }
    assert!(agent.metric("tidegate_upstream_connect_errors_total", &[("domain", "public")]).unwrap() >= 1.0);
    lab.write("streams.yaml", &objects::join([gateway(&[TCP]), both, to("none")])).unwrap();
    wait_reached(&lab, &Err(Failure::Reset));
    wait_until("the failure to be counted", SOON, || {
        let metrics = agent.metrics().ok()?;
        let labels = [("route", "shop/db"), ("reason", "invalid_backend")];
        (metrics.sum("tidegate_forward_failures_total", &labels) >= 1.0).then_some(())
    })
    .unwrap();
}

/// Says something over TLS and returns the answer.
fn say(lab: &Lab, name: &str, authority: &Authority) -> Result<String, Failure> {
    let mut target = Target::https(at(STREAMS, 8443), name, authority);
    // What is spoken inside is not HTTP: nothing is offered by ALPN.
    if let Some((_, config)) = &mut target.tls {
        *config = authority.client_config(&[]);
    }
    lab.internet.run(async move {
        let mut connection = RawConnection::connect(&target).await?;
        connection.send(b"hello\n").await?;
        connection.finish().await;
        let (bytes, _) = connection.read_to_end(SOON).await;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    })
}

#[test]
fn tls_is_passed_through_and_terminated_by_name_beside_https_on_one_port() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let _one = backend(&lab, "one", "10.30.0.21:8080");
    let stranger = Authority::create().unwrap();
    let inner = stranger.issue(&["pass.example.com"]).unwrap();
    let _tls = TlsEcho::start(&lab.backends, "10.30.0.22:8080".parse().unwrap(), &inner).unwrap();
    let all = "allowedRoutes: {namespaces: {from: All}}";
    let pass = format!(
        "{{name: pass, protocol: TLS, port: 8443, hostname: pass.example.com, tls: {{mode: Passthrough}}, {all}}}"
    );
    let term = format!(
        "{{name: term, protocol: TLS, port: 8443, hostname: \"*.term.example.com\", \
         tls: {{mode: Terminate, certificateRefs: [{{name: inner}}]}}, {all}}}"
    );
    let https = objects::https_listener("https", 8443, "*.example.com", "example-com");
    let shop = objects::route("shop", "shop-streams", "gw/streams", &[SHOP], &[&objects::to_service("shop")]);
    let leaf = world.authority.issue(&["a.term.example.com", "b.term.example.com"]).unwrap();
    lab.write(
        "streams.yaml",
        &objects::join([
            gateway(&[&pass, &term, &https]),
            services(),
            leaf.to_secret("gw", "inner"),
            route("TLSRoute", "pass", OLD, "*.example.com", &objects::to_service("two")),
            route("TLSRoute", "term", NEW, "a.term.example.com", &objects::to_service("one")),
            shop,
        ]),
    )
    .unwrap();
    let agent = Agent::start(&lab).unwrap();
    assert_eq!(say(&lab, "pass.example.com", &stranger).as_deref(), Ok("pass.example.com:hello\n"));
    // Terminated here: HTTP in clear reaches the backend.
    let mut terminated = Target::https(at(STREAMS, 8443), "a.term.example.com", &world.authority);
    if let Some((_, config)) = &mut terminated.tls {
        *config = world.authority.client_config(&[]);
    }
    let reply = wait_status(&lab.internet, &terminated, "a.term.example.com", "/", 200);
    assert_eq!(reply.backend(), Some("one"));
    let https = Target::https(at(STREAMS, 8443), SHOP, &world.authority);
    let reply = wait_status(&lab.internet, &https, SHOP, "/", 200);
    assert!(reply.backend().unwrap().starts_with("shop"));
    // `*.example.com` of the older route has this name in common with the listener, but nothing of HTTPS.
    let wide = say(&lab, "b.term.example.com", &world.authority);
    assert!(!wide.is_ok_and(|text| text.contains("hello")), "bytes that are not TLS do not please the backend");
    assert_eq!(say(&lab, "other.example.org", &world.authority), Err(Failure::Reset));
    // Garbage beside it all.
    let garbage = lab.internet.run(async {
        let mut connection = RawConnection::connect(&Target::http(at(STREAMS, 8443))).await.unwrap();
        connection.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        connection.read_to_end(SOON).await
    });
    assert!(garbage.0.is_empty() && garbage.1 != End::Open, "{garbage:?}");
    wait_until("what failed to be counted", SOON, || {
        let metrics = agent.metrics().ok()?;
        let failed =
            |reason| metrics.sum("tidegate_tls_handshake_failures_total", &[("domain", "public"), ("reason", reason)]);
        (failed("client_hello") >= 1.0 && failed("unrecognized_name") >= 1.0).then_some(())
    })
    .unwrap();
    let metrics = agent.metrics().unwrap();
    assert!(sum(&metrics, "tidegate_forwards_total", "shop/pass") >= 1.0);
    assert!(sum(&metrics, "tidegate_forwards_total", "shop/term") >= 1.0);
    wait_logged(&agent, "\"server_name\":\"pass.example.com\"");
}
