//! RFC 9112 framing over the wire: what could be read in two ways is refused, and no second request is ever smuggled.

use std::time::Duration;

use tidegate_lab::{
    Agent, Lab, Request, Target,
    client::raw::{End, RawConnection, statuses},
};

use crate::world::{SHOP, World, get, public};

/// Sends bytes, ends the sending side, and returns the status codes of what came back and how it ended.
fn exchange(lab: &Lab, target: &Target, bytes: Vec<u8>) -> (Vec<u16>, End) {
    let target = target.clone();
    lab.internet.run(async move {
        let mut connection = RawConnection::connect(&target).await.unwrap();
        // A peer that has refused already may have reset: what it said before still counts.
        let _ = connection.send(&bytes).await;
        let (answer, end) = connection.read_to_end(Duration::from_millis(1500)).await;
        (statuses(&answer), end)
    })
}

#[test]
fn requests_that_can_smuggle_are_refused_and_end_the_connection() {
    let lab = Lab::create().unwrap();
    let world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let hidden = "GET /hidden HTTP/1.1\r\nhost: shop.example.com\r\n\r\n";
    let post = "POST / HTTP/1.1\r\nhost: shop.example.com\r\n";
    let get = "GET / HTTP/1.1\r\n";
    let host = "host: shop.example.com\r\n";
    let table = [
        ("length and chunked", format!("{post}content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("two lengths", format!("{post}content-length: 4\r\ncontent-length: 5\r\n\r\nabcde")),
        ("length list", format!("{post}content-length: 4, 5\r\n\r\nabcde")),
        ("signed length", format!("{post}content-length: +4\r\n\r\nabcd")),
        ("negative length", format!("{post}content-length: -1\r\n\r\n")),
        ("hex length", format!("{post}content-length: 0x4\r\n\r\nabcd")),
        ("overflowing length", format!("{post}content-length: 99999999999999999999\r\n\r\n")),
        ("unknown coding", format!("{post}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n")),
        ("chunked not last", format!("{post}transfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n")),
        ("chunked twice", format!("{post}transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")),
        ("space before colon", format!("{post}transfer-encoding : chunked\r\n\r\n0\r\n\r\n")),
        ("vertical tab in coding", format!("{post}transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n")),
        ("folded field", format!("{post}transfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n")),
        ("bare line feed", "GET / HTTP/1.1\nhost: shop.example.com\n\n".to_owned()),
        ("bare line feed in a field", format!("{get}{host}x: a\ntransfer-encoding: chunked\r\n\r\n")),
        ("bare carriage return in a value", format!("{get}{host}x: a\rb\r\n\r\n")),
        ("zero byte in a value", format!("{get}{host}x: a\0b\r\n\r\n")),
        ("two hosts", format!("{get}{host}host: other.example.com\r\n\r\n")),
        ("no host", format!("{get}\r\n")),
        ("host with a space", format!("{get}host: a b\r\n\r\n")),
        ("empty field name", format!("{get}{host}: x\r\n\r\n")),
        ("field without a colon", format!("{get}{host}nonsense\r\n\r\n")),
        ("no version", format!("GET /\r\n{host}\r\n")),
        ("unknown version", format!("GET / HTTP/1.9x\r\n{host}\r\n")),
        ("chunk size with a sign", format!("{post}transfer-encoding: chunked\r\n\r\n+4\r\nabcd\r\n0\r\n\r\n")),
        ("chunk size overflow", format!("{post}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n")),
        ("chunk without its end", format!("{post}transfer-encoding: chunked\r\n\r\n4\r\nabcdXX0\r\n\r\n")),
        ("chunk line with a bare line feed", format!("{post}transfer-encoding: chunked\r\n\r\n4\nabcd\r\n0\r\n\r\n")),
        ("not HTTP", "\x16\x03\x01\x02\0\x01\0\x01\u{fc}\r\n\r\n".to_owned()),
    ];
    for (name, request) in table {
        let (answers, end) = exchange(&lab, &public(), format!("{request}{hidden}").into_bytes());
        assert!(answers == [400] || answers == [501] || answers == [505], "{name}: {answers:?} {end:?}");
        assert_ne!(end, End::Open, "{name}: the connection stayed open");
    }
    // A body that breaks after its head was forwarded has begun a request for `/`; what hides behind it must never be one,
    // and what breaks in its head never reaches a backend.
    let paths: Vec<String> = world.shop.iter().flat_map(tidegate_lab::Backend::paths).collect();
    assert!(paths.iter().all(|path| path == "/") && paths.len() <= BROKEN_BODIES, "{paths:?}");
    assert_eq!(get_ok(&lab), 200);
}

/// Rows of the table that are wrong only after their head.
const BROKEN_BODIES: usize = 4;

fn get_ok(lab: &Lab) -> u16 {
    get(&lab.internet, &public(), SHOP, "/").unwrap().status
}

#[test]
fn requests_in_many_pieces_and_several_in_one_are_answered_in_order() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let one = "POST /split HTTP/1.1\r\nhost: shop.example.com\r\ncontent-length: 5\r\n\r\nhello";
    let split = lab.internet.run(async move {
        let mut connection = RawConnection::connect(&public()).await.unwrap();
        connection.send_in_pieces(one.as_bytes(), 3).await.unwrap();
        connection.read_reply(Duration::from_secs(10)).await.unwrap()
    });
    assert_eq!(split.status, 200);
    assert!(String::from_utf8_lossy(&split.body).contains("\"body\":\"hello\""));

    let paths = lab.internet.run(async {
        let mut connection = RawConnection::connect(&public()).await.unwrap();
        let mut all = Vec::new();
        for index in 0..8 {
            // Alternately without and with a chunked body, all in one write.
            let text = if index % 2 == 0 {
                format!("GET /p{index} HTTP/1.1\r\nhost: shop.example.com\r\n\r\n")
            } else {
                format!("POST /p{index} HTTP/1.1\r\nhost: shop.example.com\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
            };
            all.extend_from_slice(text.as_bytes());
        }
        connection.send(&all).await.unwrap();
        let mut paths = Vec::new();
        for _ in 0..8 {
            let reply = connection.read_reply(Duration::from_secs(10)).await.unwrap();
            let value: serde_json::Value = serde_json::from_slice(&reply.body).unwrap();
            paths.push(value["path"].as_str().unwrap().to_owned());
        }
        paths
    });
    assert_eq!(paths, (0..8).map(|index| format!("/p{index}")).collect::<Vec<_>>());
}

#[test]
fn an_oversized_head_is_refused_and_a_large_body_is_not() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let long = |name: &str, size: usize| {
        let text = format!("GET / HTTP/1.1\r\nhost: shop.example.com\r\n{name}: {}\r\n\r\n", "a".repeat(size));
        exchange(&lab, &public(), text.into_bytes())
    };
    let (answers, end) = long("x", 1 << 20);
    assert!((answers == [431] || answers == [400]) && end != End::Open, "{answers:?} {end:?}");
    let many = format!("GET / HTTP/1.1\r\nhost: shop.example.com\r\n{}\r\n", "x: y\r\n".repeat(20_000));
    let (answers, end) = exchange(&lab, &public(), many.into_bytes());
    assert!((answers == [431] || answers == [400]) && end != End::Open, "{answers:?} {end:?}");
    let target = format!("GET /{} HTTP/1.1\r\nhost: shop.example.com\r\n\r\n", "a".repeat(1 << 20));
    let (answers, end) = exchange(&lab, &public(), target.into_bytes());
    assert!((answers == [414] || answers == [431] || answers == [400]) && end != End::Open, "{answers:?} {end:?}");

    let body = vec![b'z'; 8 << 20];
    let reply = crate::world::send(&lab.internet, &public(), Request::post(SHOP, "/", body)).unwrap();
    assert_eq!((reply.status, reply.json()["body_bytes"].as_u64()), (200, Some(8 << 20)));
    let large = Request::get(SHOP, "/").header("x-lab-bytes", "8388608");
    assert_eq!(crate::world::send(&lab.internet, &public(), large).unwrap().body.len(), 8 << 20);
}

#[test]
fn what_a_client_claims_about_itself_is_not_believed_and_hop_by_hop_fields_end_here() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let request = Request::get(SHOP, "/")
        .header("x-forwarded-for", "10.0.0.1")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-host", "evil.example.com")
        .header("connection", "x-secret, keep-alive")
        .header("x-secret", "1")
        .header("keep-alive", "timeout=5")
        .header("te", "gzip")
        .header("proxy-connection", "keep-alive");
    let reply = crate::world::send(&lab.internet, &public(), request).unwrap();
    let headers = &reply.json()["headers"];
    assert_eq!(headers["x-forwarded-for"][0], tidegate_lab::lab::INTERNET.to_string());
    assert_eq!(headers["x-forwarded-for"].as_array().unwrap().len(), 1);
    assert_eq!(headers["x-forwarded-proto"][0], "http");
    assert_eq!(headers["x-forwarded-host"][0], SHOP);
    for name in ["x-secret", "keep-alive", "proxy-connection", "te"] {
        assert!(headers[name].is_null(), "{name} was passed on: {headers}");
    }
}

#[test]
fn expect_continue_is_answered_before_the_body_comes() {
    let lab = Lab::create().unwrap();
    let _world = World::build(&lab);
    let _agent = Agent::start(&lab).unwrap();
    let (interim, reply) = lab.internet.run(async {
        let mut connection = RawConnection::connect(&public()).await.unwrap();
        let head = "POST / HTTP/1.1\r\nhost: shop.example.com\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n";
        connection.send(head.as_bytes()).await.unwrap();
        let interim = connection.read_reply(Duration::from_secs(10)).await.unwrap();
        connection.send(b"hello").await.unwrap();
        (interim, connection.read_reply(Duration::from_secs(10)).await.unwrap())
    });
    assert_eq!((interim.status, reply.status), (100, 200));
}
