//! HTTP/1.1, HTTP/2, gRPC and WebSocket through the gateway.

use std::time::Duration;

use tidegate_lab::{
    Agent, Lab, Request, Session,
    client::{grpc, websocket::WebSocket},
    objects, wait_until,
};

use crate::world::{SHOP, SOON, World, backend, get, public, send, wait_status};

#[test]
fn http2_is_served_by_alpn_and_with_prior_knowledge() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    for target in [world.https().http2(), public().http2()] {
        let reply = get(&lab.internet, &target, SHOP, "/x?y=1").unwrap();
        assert_eq!((reply.status, reply.version), (200, http::Version::HTTP_2));
        let seen = reply.json();
        assert_eq!((seen["path"].as_str(), seen["query"].as_str()), (Some("/x"), Some("y=1")));
        assert_eq!(seen["headers"]["host"][0], SHOP);
        let posted = send(&lab.internet, &target, Request::post(SHOP, "/", vec![b'z'; 1 << 20])).unwrap();
        assert_eq!(posted.json()["body_bytes"], 1 << 20);
    }
}

#[test]
fn many_streams_of_one_http2_connection_are_answered_each_with_its_own() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let target = world.https().http2();
    let paths = lab.internet.run(async move {
        let mut session = Session::connect(&target).await.unwrap();
        let mut paths = Vec::new();
        for index in 0..50 {
            let reply = session.send(Request::get(SHOP, &format!("/stream/{index}"))).await.unwrap();
            paths.push((index, reply.json()["path"].as_str().unwrap().to_owned()));
        }
        paths
    });
    assert!(paths.iter().all(|(index, path)| *path == format!("/stream/{index}")));
}

#[test]
fn grpc_reaches_an_h2c_backend_and_its_trailers_come_back() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let _backend = backend(&lab, "grpc", "10.30.0.21:8080");
    lab.write(
        "grpc.yaml",
        &objects::join([
            objects::service_with("shop", "grpc", "kubernetes.io/h2c"),
            objects::slice("shop", "grpc", &[("10.30.0.21", objects::EndpointState::Ready)]),
            objects::route("shop", "grpc", "gw/public", &["grpc.example.com"], &[&objects::to_service("grpc")]),
        ]),
    )
    .unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let tls = tidegate_lab::Target::https(world.https().addr, "grpc.example.com", &world.authority);
    for target in [tls, public()] {
        for (status, text) in [("0", "hello"), ("7", "")] {
            let target = target.clone();
            let answer = lab
                .internet
                .run(async move {
                    let headers = [("x-lab-grpc-status", status)];
                    grpc::call(&target, "grpc.example.com", "/lab.Echo/Call", text.as_bytes(), &headers).await
                })
                .unwrap();
            assert!(answer.is_in_trailers, "{:?}", answer.reply);
            assert_eq!(answer.status, status.parse().ok());
            assert_eq!(answer.messages, [text.as_bytes()]);
        }
    }
}

#[test]
fn a_websocket_is_carried_and_closed() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    for target in [public(), world.https()] {
        let echoed = lab.internet.run(async move {
            let mut socket = WebSocket::open(&target, SHOP, "/ws").await?;
            let mut echoed = Vec::new();
            for text in ["one", "two", &"long ".repeat(20_000)] {
                echoed.push(socket.echo(text).await?.len());
            }
            socket.close().await.map(|()| echoed)
        });
        assert_eq!(echoed.unwrap(), [3, 3, 100_000]);
    }
    wait_until("the backend's streams to end", SOON, || {
        let active =
            world.shop.iter().map(|shop| shop.counts.active.load(std::sync::atomic::Ordering::Relaxed)).sum::<u64>();
        (active == 0).then_some(())
    })
    .unwrap();
}

#[test]
fn an_answer_is_streamed_not_gathered() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let first = lab.internet.run(async {
        use tidegate_lab::client::raw::RawConnection;
        let mut connection = RawConnection::connect(&public()).await.unwrap();
        // 100 pieces, 100 ms apart: gathered, nothing would come for ten seconds.
        let request = "GET / HTTP/1.1\r\nhost: shop.example.com\r\nx-lab-bytes: 102400\r\nx-lab-stream-ms: 100\r\n\r\n";
        connection.send(request.as_bytes()).await.unwrap();
        let (bytes, _) = connection.read_to_end(Duration::from_secs(3)).await;
        bytes.len()
    });
    assert!((1024..60_000).contains(&first), "{first} bytes within three seconds");
}

#[test]
fn standard_filters_act_on_what_the_backend_and_the_client_see() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let rules = [
        "{matches: [{path: {type: PathPrefix, value: /old}}], filters: [{type: URLRewrite, urlRewrite: {hostname: inner.example.com, \
         path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}}], backendRefs: [{name: shop, port: 8080}]}",
        "{matches: [{path: {type: PathPrefix, value: /moved}}], filters: [{type: RequestRedirect, requestRedirect: \
         {scheme: https, statusCode: 301}}]}",
        "{matches: [{path: {type: PathPrefix, value: /edit}}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: \
         {set: [{name: x-set, value: \"1\"}], add: [{name: x-add, value: \"2\"}], remove: [x-gone]}}, {type: ResponseHeaderModifier, \
         responseHeaderModifier: {set: [{name: x-out, value: \"3\"}]}}], backendRefs: [{name: shop, port: 8080}]}",
        "{matches: [{headers: [{name: x-version, value: two}], queryParams: [{name: beta, value: \"1\"}], method: POST}], \
         filters: [{type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: x-matched, value: all}]}}], \
         backendRefs: [{name: shop, port: 8080}]}",
        "{backendRefs: [{name: shop, port: 8080}]}",
    ];
    lab.write("filters.yaml", &objects::route("shop", "filters", "gw/public", &["f.example.com"], &rules)).unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let rewritten = get(&lab.internet, &public(), "f.example.com", "/old/a?b=c").unwrap().json();
    assert_eq!((rewritten["path"].as_str(), rewritten["query"].as_str()), (Some("/new/a"), Some("b=c")));
    assert_eq!(rewritten["headers"]["host"][0], "inner.example.com");
    let moved = get(&lab.internet, &public(), "f.example.com", "/moved/x?y").unwrap();
    assert_eq!((moved.status, moved.header("location")), (301, Some("https://f.example.com/moved/x?y")));
    let edited = send(
        &lab.internet,
        &public(),
        Request::get("f.example.com", "/edit").header("x-gone", "1").header("x-set", "0"),
    )
    .unwrap();
    assert_eq!(edited.header("x-out"), Some("3"));
    let headers = &edited.json()["headers"];
    assert_eq!((&headers["x-set"][0], &headers["x-add"][0]), (&"1".into(), &"2".into()));
    assert!(headers["x-gone"].is_null());
    let all = Request::post("f.example.com", "/?beta=1", "").header("x-version", "two");
    assert_eq!(send(&lab.internet, &public(), all).unwrap().header("x-matched"), Some("all"));
    let part = Request::post("f.example.com", "/?beta=2", "").header("x-version", "two");
    assert_eq!(send(&lab.internet, &public(), part).unwrap().header("x-matched"), None);
    assert!(world.shop.iter().any(|shop| shop.requests() > 0));
}

#[test]
fn a_mirrored_request_reaches_both_and_its_copy_is_never_waited_for() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let copy = backend(&lab, "copy", "10.30.0.21:8080");
    let rule = "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 8080}}}], \
                backendRefs: [{name: shop, port: 8080}]}";
    lab.write(
        "mirror.yaml",
        &objects::join([
            objects::service_at("shop", "copy", &["10.30.0.21"]),
            objects::route("shop", "mirror", "gw/public", &["m.example.com"], &[rule]),
        ]),
    )
    .unwrap();
    let _agent = Agent::start(&lab).unwrap();
    for _ in 0..10 {
        let reply = wait_status(&lab.internet, &public(), "m.example.com", "/", 200);
        assert!(reply.backend().unwrap().starts_with("shop"));
    }
    wait_until("ten copies", SOON, || (copy.requests() >= 10).then_some(())).unwrap();
    copy.stop();
    assert_eq!(get(&lab.internet, &public(), "m.example.com", "/").unwrap().status, 200);
}

#[test]
fn a_grpc_route_matches_service_and_method() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _backend = backend(&lab, "grpc", "10.30.0.21:8080");
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: calls, namespace: shop}\n\
                 spec: {parentRefs: [{name: public, namespace: gw}], hostnames: [calls.example.com], rules: [{matches: [{method: \
                 {service: lab.Echo, method: Call}}], backendRefs: [{name: grpc, port: 8080}]}]}\n";
    lab.write(
        "grpc.yaml",
        &objects::join([
            route.to_owned(),
            objects::service_with("shop", "grpc", "kubernetes.io/h2c"),
            objects::slice("shop", "grpc", &[("10.30.0.21", objects::EndpointState::Ready)]),
        ]),
    )
    .unwrap();
    let _agent = Agent::start(&lab).unwrap();
    let call = |method: &'static str| {
        lab.internet
            .run(async move { grpc::call(&public(), "calls.example.com", method, b"hello", &[]).await })
            .unwrap()
    };
    assert_eq!(call("/lab.Echo/Call").status, Some(0));
    let other = call("/lab.Echo/Other");
    assert!(other.reply.backend().is_none() && other.status != Some(0), "{:?}", other.reply);
    // What gRPC clients read as UNIMPLEMENTED.
    assert!(other.status == Some(12) || other.reply.status == 404, "{:?}", other.reply);
}
