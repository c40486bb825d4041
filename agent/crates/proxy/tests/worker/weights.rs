//! Weights over real connections: as the suite asks, 500 requests, ten at once, each over a connection of its own.

use std::{net::SocketAddr, sync::Arc};

use tidegate_model::BackendProtocol;

use crate::support::{
    Worker,
    backend::{self, read_head, respond},
    client::fetch,
    model,
};

/// Requests in all and at once.
const REQUESTS: usize = 500;
const AT_ONCE: usize = 10;

fn named(name: &'static str) -> SocketAddr {
    backend::scripted(move |_, mut stream| {
        while !read_head(&mut stream).0.is_empty() {
            respond(&mut stream, name);
        }
    })
}

#[test]
fn weights_hold_over_several_shards_and_zero_takes_none() {
    let mut worker = Worker::start(8);
    let addr = worker.listen();
    let mut changes = vec![model::http_listener(addr)];
    for name in ["one", "two", "none"] {
        changes.extend(model::backend(name, BackendProtocol::Http1, &[named(name)]));
    }
    changes.push(model::weighted_rule("r", "/", &[("one", 70), ("two", 30), ("none", 0)], None));
    assert!(worker.apply(changes).is_empty());
    let taken = Arc::new(std::sync::Mutex::new(std::collections::BTreeMap::<String, usize>::new()));
    let threads = (0..AT_ONCE).map(|_| {
        let taken = taken.clone();
        std::thread::spawn(move || {
            for _ in 0..REQUESTS / AT_ONCE {
                *taken.lock().unwrap().entry(fetch(addr, "/").text()).or_default() += 1;
            }
        })
    });
    threads.collect::<Vec<_>>().into_iter().for_each(|thread| thread.join().unwrap());
    let taken = taken.lock().unwrap();
    let share = |name: &str| taken.get(name).copied().unwrap_or_default();
    assert_eq!((share("one") + share("two"), share("none")), (REQUESTS, 0), "{taken:?}");
    // The suite allows 5 % of all.
    assert!(share("one").abs_diff(REQUESTS * 70 / 100) <= REQUESTS * 5 / 100, "{taken:?}");
}
