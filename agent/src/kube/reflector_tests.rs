//! The reflector against a scripted API server: pages, versions, 410, errors.

use serde_json::json;
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::kube::fake::{Answer, Asked, Log, fake};

fn object(name: &str, version: u64) -> Value {
    json!({"metadata": {"name": name, "namespace": "n", "resourceVersion": version.to_string()}})
}

fn list(objects: &[Value], version: u64, next: &str) -> Answer {
    Answer::Json(200, json!({"items": objects, "metadata": {"resourceVersion": version.to_string(), "continue": next}}))
}

/// What a reflector says about an API server that answers lists and watches as told.
fn start(answer: impl FnMut(&Asked) -> Answer + Send + 'static) -> (mpsc::Receiver<Update<String>>, Log) {
    let (client, log) = fake(answer);
    let (out, updates) = mpsc::channel(16);
    let target = Target::all(Resource::new("", "v1", "secrets", "Secret"));
    let read = |value: Value| format!("{}@{}", value["metadata"]["name"], value["metadata"]["resourceVersion"]);
    spawn_local(reflect(client, target, read, |update| update, out));
    (updates, log)
}

async fn next(updates: &mut mpsc::Receiver<Update<String>>) -> String {
    let update = timeout(Duration::from_secs(5), updates.recv()).await.expect("an update within 5 s");
    match update.expect("the reflector runs") {
        Update::Begin => "begin".to_owned(),
        Update::Page(page) => format!("page {}", page.join(",").replace('"', "")),
        Update::Synced => "synced".to_owned(),
        Update::Put(item) => format!("put {}", item.replace('"', "")),
        Update::Delete(name) => format!("delete {name}"),
        Update::Failing(failure) => format!("failing {failure}"),
        Update::Recovered => "recovered".to_owned(),
    }
}

async fn expect(updates: &mut mpsc::Receiver<Update<String>>, expected: &[&str]) {
    for expected in expected {
        assert_eq!(next(updates).await, *expected);
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn lists_in_pages_and_goes_on_from_the_last_version_when_a_watch_ends() {
    run(async {
        let (lines, watch) = mpsc::unbounded_channel();
        let (_kept, silent) = mpsc::unbounded_channel();
        let mut watches = vec![silent, watch];
        let (mut updates, log) = start(move |asked| match () {
            () if asked.line.contains("watch") => watches.pop().map_or(Answer::Broken, Answer::Watch),
            () if asked.line.contains("continue=more") => list(&[object("b", 2)], 7, ""),
            () => list(&[object("a", 1)], 7, "more"),
        });
        expect(&mut updates, &["begin", "page a@1", "page b@2", "synced"]).await;
        for line in [
            json!({"type": "ADDED", "object": object("c", 8)}),
            json!({"type": "DELETED", "object": object("a", 9)}),
            json!({"type": "BOOKMARK", "object": {"kind": "Secret", "apiVersion": "v1", "metadata": {"resourceVersion": "12"}}}),
        ] {
            lines.send(line).expect("the watch is read");
        }
        expect(&mut updates, &["put c@8", "delete n/a"]).await;
        drop(lines);
        let asked = |log: &Log| log.lines("watch");
        while asked(&log).len() < 2 {
            sleep(Duration::from_millis(5)).await;
        }
        let watches = asked(&log);
        assert!(watches[0].contains("resourceVersion=7"), "{watches:?}");
        assert!(watches[1].contains("resourceVersion=12"), "a bookmark counts: {watches:?}");
        assert_eq!(log.all().len() - watches.len(), 2, "one list of two pages");
    });
}

#[test]
fn an_empty_list_of_metadata_has_null_for_items() {
    run(async {
        let mut lists = 0;
        let (mut updates, _log) = start(move |_| {
            lists += 1;
            match lists {
                // As an API server of Kubernetes 1.37 answers.
                1 => Answer::Json(200, json!({"items": null, "metadata": {"resourceVersion": "3"}})),
                _ => Answer::Broken,
            }
        });
        expect(&mut updates, &["begin", "page ", "synced"]).await;
    });
}

#[test]
fn a_version_that_is_too_old_leads_to_one_new_list() {
    run(async {
        let mut lists = 0;
        let mut watches = 0;
        let (kept, mut silent) = {
            let (kept, silent) = mpsc::unbounded_channel();
            (kept, Some(silent))
        };
        let (mut updates, log) = start(move |asked| {
            if asked.line.contains("watch") {
                watches += 1;
                return match watches {
                    1 => {
                        let (lines, watch) = mpsc::unbounded_channel();
                        let status = json!({"kind": "Status", "apiVersion": "v1", "code": 410, "reason": "Expired", "message": "too old"});
                        lines.send(json!({"type": "ERROR", "object": status})).expect("the watch is read");
                        Answer::Watch(watch)
                    }
                    _ => silent.take().map_or(Answer::Broken, Answer::Watch),
                };
            }
            lists += 1;
            if lists == 1 { list(&[object("a", 1)], 1, "") } else { list(&[object("b", 5)], 5, "") }
        });
        expect(&mut updates, &["begin", "page a@1", "synced", "begin", "page b@5", "synced"]).await;
        while log.lines("watch").len() < 2 {
            sleep(Duration::from_millis(5)).await;
        }
        assert!(log.lines("watch")[1].contains("resourceVersion=5"));
        drop(kept);
    });
}

#[test]
fn an_absent_server_changes_nothing_and_is_spoken_of_once() {
    run(async {
        let mut asked_for = 0;
        let (_kept, silent) = mpsc::unbounded_channel();
        let mut silent = Some(silent);
        let (mut updates, log) = start(move |asked| {
            if asked.line.contains("watch") {
                return silent.take().map_or(Answer::Broken, Answer::Watch);
            }
            asked_for += 1;
            match asked_for {
                1 => Answer::Broken,
                2 | 3 => Answer::error(500, "etcd has no leader"),
                _ => list(&[object("a", 1)], 1, ""),
            }
        });
        // The first failure alone is no news.
        expect(&mut updates, &["begin", "begin", "failing etcd has no leader", "begin", "begin", "page a@1", "synced"])
            .await;
        expect(&mut updates, &["recovered"]).await;
        assert!(log.all().len() >= 4);
    });
}

#[test]
fn what_is_forbidden_is_said_at_once() {
    run(async {
        let (mut updates, _) = start(|_| Answer::error(403, "secrets is forbidden"));
        expect(&mut updates, &["begin", "failing not permitted: secrets is forbidden"]).await;
    });
}
