//! A worker without a file descriptor left. A process of its own, because the limit holds for all of it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[allow(dead_code, reason = "made for the larger test program beside this one")]
#[path = "worker/support/mod.rs"]
mod support;

use std::time::Instant;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use support::{
    Worker,
    backend::Echo,
    client::{Client, fetch},
    model::{self, RuleSpec},
};
use tidegate_model::BackendProtocol;
use tidegate_proxy::timeouts::ACCEPT_BACKOFF;

#[test]
fn new_clients_are_refused_with_a_count_and_open_ones_are_served() {
    let echo = Echo::start();
    let mut worker = Worker::start(1);
    let addr = worker.listen();
    let mut changes = model::backend("backend", BackendProtocol::Http1, &[echo.addr]);
    changes.extend([model::http_listener(addr), RuleSpec::default().into_change()]);
    worker.apply(changes);
    let mut open = Client::connect(addr);
    let mut ask = || {
        open.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(open.receive().status, 200);
    };
    ask();

    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let stream = || socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let sockets: Vec<_> = (0..64).map(|_| stream()).collect();
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::RLIMIT_NOFILE, used + 8, hard).unwrap();
    let began = Instant::now();
    for socket in &sockets {
        socket.connect(&addr.into()).unwrap();
    }
    worker.wait_for_metric("tidegate_connections_refused_total", &["file_descriptors"], 4.0);
    ask();
    // It pauses after each refusal in place of spinning: a slow machine can only make this more true.
    let refused = worker.metric("tidegate_connections_refused_total", &["file_descriptors"]);
    assert!(began.elapsed() >= ACCEPT_BACKOFF.mul_f64(refused - 1.0), "{refused} refusals in {:?}", began.elapsed());

    drop(sockets);
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
    assert_eq!(fetch(addr, "/").status, 200);
    ask();
}
