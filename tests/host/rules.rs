//! What rules ask for beyond a backend: retries, sessions, authorization servers, rewrites of one backendRef. From
//! objects to what clients and backends see.

use tidegate_lab::{Agent, Lab, Reply, Request, objects};

use crate::world::{SHOP, World, backend, public, send, wait_status};

/// Replaces the shop's route by one of this rule (YAML flow style, without its `backendRefs`).
fn write_rule(lab: &Lab, fields: &str) {
    let rule = format!("{{backendRefs: [{{name: shop, port: 8080}}], {fields}}}");
    let route = objects::route("shop", "shop", "gw/public", &[SHOP], &[&rule]);
    let file = objects::join([objects::namespace("shop", "team: shop"), route, objects::service("shop", "shop")]);
    lab.write("shop.yaml", &file).unwrap();
}

fn ask(lab: &Lab, headers: &[(&str, &str)]) -> Reply {
    let request = headers.iter().fold(Request::get(SHOP, "/a"), |request, (name, value)| request.header(name, value));
    send(&lab.internet, &public(), request).unwrap()
}

#[test]
fn a_status_is_retried_as_often_as_the_rule_says() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    write_rule(&lab, "retry: {codes: [503], attempts: 3, backoff: 1ms}");
    let agent = Agent::start(&lab).unwrap();
    wait_status(&lab.internet, &public(), SHOP, "/", 200);
    let requests = || world.shop.iter().map(tidegate_lab::Backend::requests).sum::<u64>();
    for (status, attempts) in [(503, 4), (500, 1)] {
        let before = requests();
        assert_eq!(ask(&lab, &[("x-lab-status", &status.to_string())]).status, status);
        assert_eq!(requests() - before, attempts, "{status}");
    }
    let retries = agent.metrics().unwrap().sum("tidegate_upstream_retries_total", &[("reason", "status")]);
    assert_eq!(retries, 3.0);
}

#[test]
fn a_cookie_keeps_a_client_at_its_endpoint_across_connections_and_shards() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    write_rule(&lab, "sessionPersistence: {type: Cookie, cookie: {name: sid}}");
    let _agent = Agent::start(&lab).unwrap();
    let mut first = wait_status(&lab.internet, &public(), SHOP, "/", 200);
    for _ in 0..4 {
        let set = first.header("set-cookie").unwrap().to_owned();
        let pair = set.split(';').next().unwrap();
        for _ in 0..10 {
            let again = ask(&lab, &[("cookie", pair)]);
            assert_eq!((again.status, again.backend()), (200, first.backend()));
            assert_eq!(again.header("set-cookie"), None);
        }
        first = ask(&lab, &[("cookie", "sid=10.30.0.31:8080")]);
        assert!(first.backend().unwrap().starts_with("shop"), "{first:?}");
    }
}

#[test]
fn an_authorization_server_decides_and_its_absence_refuses() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let auth = backend(&lab, "auth", "10.30.0.22:8080");
    lab.write("auth.yaml", &objects::service_at("shop", "auth", &["10.30.0.22"])).unwrap();
    write_rule(
        &lab,
        "filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP, backendRef: {name: auth, port: 8080}, \
         http: {path: /check, allowedHeaders: [x-lab-status]}}}]",
    );
    let _agent = Agent::start(&lab).unwrap();
    let allowed = wait_status(&lab.internet, &public(), SHOP, "/a?b", 200);
    assert!(allowed.backend().unwrap().starts_with("shop"));
    assert!(auth.paths().contains(&"/check/a".to_owned()), "{:?}", auth.paths());
    let before: u64 = world.shop.iter().map(tidegate_lab::Backend::requests).sum();
    let denied = ask(&lab, &[("x-lab-status", "403")]);
    assert_eq!((denied.status, denied.backend()), (403, Some("auth")));
    auth.stop();
    wait_status(&lab.internet, &public(), SHOP, "/", 503);
    lab.write("auth.yaml", "").unwrap();
    wait_status(&lab.internet, &public(), SHOP, "/", 500);
    assert_eq!(world.shop.iter().map(tidegate_lab::Backend::requests).sum::<u64>(), before);
}

#[test]
fn a_listener_asks_before_any_route_is_looked_for() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let auth = backend(&lab, "auth", "10.30.0.22:8080");
    // The shop's namespace, which the Gateway may not refer to yet.
    lab.write("auth.yaml", &objects::service_at("shop", "auth", &["10.30.0.22"])).unwrap();
    let filter = "filters: {requests: [{type: ExternalAuth, externalAuth: {protocol: HTTP, \
                  backendRef: {name: auth, namespace: shop, port: 8080}, http: {path: /check, allowedHeaders: [x-lab-status]}}}]}";
    let asking = objects::http_listener("http", 80).replacen('{', &format!("{{{filter}, "), 1);
    lab.edit("gateways.yaml", &objects::http_listener("http", 80), &asking).unwrap();
    let agent = Agent::start(&lab).unwrap();
    wait_status(&lab.internet, &public(), SHOP, "/", 500);
    let grant = "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {name: gateways, namespace: shop}\n\
                 spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: gw}], to: [{group: \"\", kind: Service}]}\n";
    lab.write("grant.yaml", grant).unwrap();
    let allowed = wait_status(&lab.internet, &public(), SHOP, "/a", 200);
    assert!(allowed.backend().unwrap().starts_with("shop"));
    let before: u64 = world.shop.iter().map(tidegate_lab::Backend::requests).sum();
    let denied = ask(&lab, &[("x-lab-status", "403")]);
    assert_eq!((denied.status, denied.backend()), (403, Some("auth")));
    let request = Request::get("nobody.example.com", "/lost").header("x-lab-status", "401");
    assert_eq!(send(&lab.internet, &public(), request).unwrap().status, 401, "no route has it, and nobody learns that");
    assert_eq!(world.shop.iter().map(tidegate_lab::Backend::requests).sum::<u64>(), before);
    assert!(auth.paths().contains(&"/check/lost".to_owned()), "{:?}", auth.paths());
    let destination = public().addr.to_string();
    let words = ["explain", "--src", "198.51.100.10", "--dst", &destination, "--host", SHOP, "--path", "/"];
    let explained = agent.cli(&words).unwrap();
    for word in ["authorization", "Service/shop/auth:8080", "spec.listeners[http].filters.requests"] {
        assert!(explained.out.contains(word), "{word} is missing: {explained:?}");
    }
    // Without the grant nobody may be asked, so nobody gets in.
    lab.write("grant.yaml", "").unwrap();
    wait_status(&lab.internet, &public(), SHOP, "/", 500);
}

#[test]
fn a_backend_ref_rewrites_what_it_gets() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let rule = |path: &str, rewrite: &str| {
        format!(
            "{{matches: [{{path: {{type: PathPrefix, value: {path}}}}}], backendRefs: [{{name: shop, port: 8080, \
             filters: [{{type: URLRewrite, urlRewrite: {{path: {rewrite}}}}}]}}]}}"
        )
    };
    let full = rule("/full", "{type: ReplaceFullPath, replaceFullPath: /rewritten-full}");
    let prefix = rule("/prefix", "{type: ReplacePrefixMatch, replacePrefixMatch: /rewritten-prefix}");
    let route = objects::route("shop", "shop", "gw/public", &[SHOP], &[&full, &prefix]);
    let file = objects::join([objects::namespace("shop", "team: shop"), route, objects::service("shop", "shop")]);
    lab.write("shop.yaml", &file).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    for (path, expected) in [("/full/original", "/rewritten-full"), ("/prefix/original", "/rewritten-prefix/original")]
    {
        let reply = wait_status(&lab.internet, &public(), SHOP, path, 200);
        assert_eq!(reply.json()["path"], expected);
    }
}
