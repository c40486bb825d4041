//! Candidates for one Lease against an API server that keeps it: versions are checked as a real one does.

use std::sync::{Arc, Mutex};

use super::*;
use crate::kube::fake::{Answer, Asked, fake};

/// The Lease as it stands, with its version.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Option<(u64, Value)>>>);

/// Whether a written Lease names the version that stands.
fn names(written: &Value, version: u64) -> bool {
    written["metadata"]["resourceVersion"].as_str().is_some_and(|named| named.parse() == Ok(version))
}

impl Server {
    fn answer(&self, asked: &Asked) -> Answer {
        let mut lease = self.0.lock().unwrap();
        let shown = |version: u64, mut value: Value| {
            value["metadata"]["resourceVersion"] = version.to_string().into();
            Answer::Json(200, value)
        };
        match (asked.line.split(' ').next().unwrap_or_default(), lease.clone()) {
            ("GET", None) => Answer::error(404, "no such lease"),
            ("GET", Some((version, value))) => shown(version, value),
            ("POST", None) => {
                *lease = Some((1, asked.body.clone()));
                shown(1, asked.body.clone())
            }
            ("POST", Some(_)) => Answer::error(409, "exists"),
            ("PUT", Some((version, _))) if names(&asked.body, version) => {
                *lease = Some((version + 1, asked.body.clone()));
                shown(version + 1, asked.body.clone())
            }
            _ => Answer::error(409, "of another version"),
        }
    }

    fn candidate(&self, identity: &str) -> Candidate {
        let server = self.clone();
        let (client, _) = fake(move |asked| server.answer(asked));
        let names = Names { name: "tidegate-status".to_owned(), identity: identity.to_owned() };
        Candidate { client, names, seen: None, held: None }
    }

    /// Somebody whose clock shows another time has written the Lease, or renews it.
    fn renew_as(&self, identity: &str, time: &str) {
        let mut lease = self.0.lock().unwrap();
        let version = lease.as_ref().map_or(0, |(version, _)| *version);
        let spec =
            json!({"holderIdentity": identity, "leaseDurationSeconds": 10, "acquireTime": time, "renewTime": time});
        *lease = Some((version + 1, json!({"metadata": {"name": "tidegate-status"}, "spec": spec})));
    }

    fn holder(&self) -> String {
        let lease = self.0.lock().unwrap();
        let (_, value) = lease.as_ref().expect("somebody made it");
        value["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
    }
}

fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn one_of_two_has_it_until_it_is_silent() {
    run(async {
        let server = Server::default();
        let (mut one, mut other) = (server.candidate("one"), server.candidate("other"));
        let start = Instant::now();
        assert!(one.attempt(start).await.unwrap());
        assert!(!other.attempt(start).await.unwrap());
        assert!(one.attempt(start).await.unwrap(), "it renews");
        assert!(!other.attempt(Instant::now()).await.unwrap(), "the version has changed, so the holder lives");
        // The holder is silent from now on; the times in the Lease play no part.
        let long_ago =
            Instant::now().checked_sub(DURATION + Duration::from_millis(1)).expect("the host runs for longer");
        other.seen.as_mut().expect("it has looked").1 = long_ago;
        assert!(other.attempt(Instant::now()).await.unwrap());
        assert_eq!(server.holder(), "other");
        assert!(!one.attempt(Instant::now()).await.unwrap(), "who comes back finds it taken");
    });
}

#[test]
fn clocks_that_are_years_apart_change_nothing() {
    run(async {
        for time in ["1999-12-31T23:59:59.000000Z", "2099-12-31T23:59:59.000000Z"] {
            let server = Server::default();
            let mut other = server.candidate("other");
            server.renew_as("one", time);
            assert!(!other.attempt(Instant::now()).await.unwrap(), "{time}: it has only just been seen");
            // Later than the duration, with the same time renewed: what counts is that somebody wrote.
            let ago = |time: Duration| Instant::now().checked_sub(time).expect("the host runs for longer");
            other.seen.as_mut().expect("it has looked").1 = ago(DURATION * 2);
            server.renew_as("one", time);
            assert!(!other.attempt(Instant::now()).await.unwrap(), "{time}: the holder lives");
            other.seen.as_mut().expect("it has looked").1 = ago(DURATION / 2);
            assert!(!other.attempt(Instant::now()).await.unwrap(), "{time}: it is not silent for long enough");
            other.seen.as_mut().expect("it has looked").1 = ago(DURATION);
            assert!(other.attempt(Instant::now()).await.unwrap(), "{time}: the holder is gone");
            assert_eq!(server.holder(), "other");
        }
    });
}

#[test]
fn a_lease_given_back_is_free_at_once() {
    run(async {
        let server = Server::default();
        let (mut one, mut other) = (server.candidate("one"), server.candidate("other"));
        assert!(one.attempt(Instant::now()).await.unwrap());
        assert!(!other.attempt(Instant::now()).await.unwrap());
        one.release().await.unwrap();
        assert!(other.attempt(Instant::now()).await.unwrap());
        let lease = server.0.lock().unwrap().clone().expect("it stands").1;
        assert_eq!((server.holder().as_str(), &lease["spec"]["leaseTransitions"]), ("other", &json!(1)));
    });
}

#[test]
fn of_two_that_take_a_free_lease_one_gets_it() {
    run(async {
        let server = Server::default();
        let (mut one, mut other) = (server.candidate("one"), server.candidate("other"));
        assert!(one.attempt(Instant::now()).await.unwrap());
        one.release().await.unwrap();
        // Both have read the same version; the second to write is refused.
        let lease = json!({"metadata": {"name": "tidegate-status", "resourceVersion": "2"}, "spec": {}});
        one.held = Some(lease.clone());
        other.held = Some(lease);
        assert!(one.attempt(Instant::now()).await.unwrap());
        assert!(!other.attempt(Instant::now()).await.unwrap());
    });
}

#[test]
fn a_holder_may_write_for_less_time_than_others_wait() {
    assert!(SAFE + PATIENCE <= DURATION, "others must not start before a holder has stopped");
    assert!(RENEW + PATIENCE < SAFE);
}
