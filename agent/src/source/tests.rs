//! The directory source on real folders: every way in which tools replace files, and what must never happen meanwhile.

use std::{
    collections::BTreeMap,
    fs,
    future::Future,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tidegate_gateway_api::{Event, Object};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};

use super::{Batch, SourceStatus, Store, directory};

/// Longer than any wait of the source, shorter than its walk of last resort.
const DEADLINE: Duration = Duration::from_secs(10);

fn namespace(name: &str, label: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{x: \"{label}\"}}}}\n")
}

/// What a consumer of the source knows: the label of each namespace, and every deletion that it saw.
struct Consumer {
    batches: mpsc::Receiver<Batch>,
    task: JoinHandle<Result<(), directory::DirectoryError>>,
    objects: BTreeMap<String, (String, i64)>,
    deleted: Vec<String>,
    status: SourceStatus,
}

impl Consumer {
    async fn start(folder: &Path) -> Self {
        let (out, batches) = mpsc::channel(16);
        let task = tokio::spawn(directory::watch(folder.to_owned(), out));
        let mut consumer =
            Self { batches, task, objects: BTreeMap::new(), deleted: Vec::new(), status: SourceStatus::default() };
        consumer.take_batch().await;
        consumer
    }

    async fn take_batch(&mut self) {
        let batch = timeout(DEADLINE, self.batches.recv())
            .await
            .expect("a batch before the deadline")
            .expect("the source runs");
        for event in batch.events {
            match event {
                Event::Put(Object::Namespace(object)) => {
                    let label = object.metadata.labels.as_ref().unwrap()["x"].clone();
                    let name = object.metadata.name.clone().unwrap();
                    self.objects.insert(name, (label, object.metadata.generation.unwrap()));
                }
                Event::Put(other) => panic!("{other:?} was not written"),
                Event::Delete(reference) => {
                    self.objects.remove(&*reference.name.name);
                    self.deleted.push(reference.name.name.to_string());
                }
            }
        }
        self.status = batch.status;
    }

    async fn wait_for(&mut self, wanted: &[(&str, &str)]) {
        while !self.has(wanted) {
            self.take_batch().await;
        }
    }

    fn has(&self, wanted: &[(&str, &str)]) -> bool {
        self.objects.iter().map(|(name, (label, _))| (&**name, &**label)).eq(wanted.iter().copied())
    }

    fn problems(&self) -> Vec<String> {
        self.status.problems.iter().map(ToString::to_string).collect()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn run<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test(root));
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(new, path).unwrap();
}

#[test]
fn follows_files_that_are_written_renamed_and_removed() {
    run(|root| async move {
        fs::write(root.join("a.yaml"), namespace("a", "1")).unwrap();
        let mut consumer = Consumer::start(&root).await;
        assert!(consumer.has(&[("a", "1")]));
        fs::write(root.join("b.yaml"), namespace("b", "1")).unwrap();
        consumer.wait_for(&[("a", "1"), ("b", "1")]).await;
        replace(&root.join("a.yaml"), &namespace("a", "2"));
        consumer.wait_for(&[("a", "2"), ("b", "1")]).await;
        fs::rename(root.join("b.yaml"), root.join("c.yaml")).unwrap();
        fs::write(root.join("d.yaml"), namespace("d", "1")).unwrap();
        consumer.wait_for(&[("a", "2"), ("b", "1"), ("d", "1")]).await;
        fs::remove_file(root.join("a.yaml")).unwrap();
        consumer.wait_for(&[("b", "1"), ("d", "1")]).await;
        assert_eq!(consumer.deleted, ["a"], "b only moved to another file");
        assert_eq!(consumer.problems(), [""; 0]);
    });
}

#[test]
fn follows_folders_that_come_and_go() {
    run(|root| async move {
        let mut consumer = Consumer::start(&root).await;
        fs::create_dir_all(root.join("x/y")).unwrap();
        fs::write(root.join("x/y/a.yml"), namespace("a", "1")).unwrap();
        consumer.wait_for(&[("a", "1")]).await;
        fs::write(root.join("x/y/a.yml"), namespace("a", "2")).unwrap();
        consumer.wait_for(&[("a", "2")]).await;
        fs::remove_dir_all(root.join("x")).unwrap();
        consumer.wait_for(&[]).await;
    });
}

#[test]
fn swaps_a_config_map_at_once() {
    run(|root| async move {
        let version = |name: &str, label: &str| {
            fs::create_dir(root.join(name)).unwrap();
            fs::write(root.join(name).join("a.yaml"), namespace("a", label) + "---\n" + &namespace("b", label))
                .unwrap();
        };
        version("..v1", "1");
        symlink("..v1", root.join("..data")).unwrap();
        symlink("..data/a.yaml", root.join("a.yaml")).unwrap();
        let mut consumer = Consumer::start(&root).await;
        assert!(consumer.has(&[("a", "1"), ("b", "1")]), "{:?}", consumer.objects);
        for (before, after, label) in [("..v1", "..v2", "2"), ("..v2", "..v3", "3")] {
            version(after, label);
            symlink(after, root.join("..data_tmp")).unwrap();
            fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
            fs::remove_dir_all(root.join(before)).unwrap();
            consumer.wait_for(&[("a", label), ("b", label)]).await;
        }
        assert!(consumer.deleted.is_empty());
    });
}

#[test]
fn sees_changes_behind_links_that_leave_the_folder() {
    run(|root| async move {
        let elsewhere = root.with_file_name("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        fs::write(elsewhere.join("a.yaml"), namespace("a", "1")).unwrap();
        symlink(elsewhere.join("a.yaml"), root.join("a.yaml")).unwrap();
        let mut consumer = Consumer::start(&root).await;
        assert!(consumer.has(&[("a", "1")]));
        replace(&elsewhere.join("a.yaml"), &namespace("a", "2"));
        consumer.wait_for(&[("a", "2")]).await;
        fs::write(elsewhere.join("a.yaml"), namespace("a", "3")).unwrap();
        consumer.wait_for(&[("a", "3")]).await;
    });
}

#[test]
fn a_file_under_rewrite_is_never_seen_half() {
    run(|root| async move {
        let path = root.join("a.yaml");
        fs::write(&path, namespace("a", "1") + "---\n" + &namespace("b", "1")).unwrap();
        let mut consumer = Consumer::start(&root).await;
        for label in ["2", "3", "4"] {
            use std::io::Write;
            let mut file = fs::File::create(&path).unwrap();
            file.write_all(namespace("a", label).as_bytes()).unwrap();
            file.sync_all().unwrap();
            // Long enough for a source that does not wait for the writer to read the half.
            tokio::time::sleep(Duration::from_millis(40)).await;
            file.write_all(format!("---\n{}", namespace("b", label)).as_bytes()).unwrap();
            drop(file);
            consumer.wait_for(&[("a", label), ("b", label)]).await;
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, namespace("a", "5") + "---\n" + &namespace("b", "5")).unwrap();
        consumer.wait_for(&[("a", "5"), ("b", "5")]).await;
        assert!(consumer.deleted.is_empty(), "{:?}", consumer.deleted);
    });
}

#[test]
fn a_broken_document_keeps_the_last_good_state_and_is_reported_by_line() {
    run(|root| async move {
        fs::write(root.join("a.yaml"), namespace("a", "1") + "---\n" + &namespace("b", "1")).unwrap();
        fs::write(root.join("c.yaml"), namespace("c", "1")).unwrap();
        let mut consumer = Consumer::start(&root).await;
        replace(&root.join("a.yaml"), &(namespace("a", "2") + "---\nkind: [\n"));
        replace(&root.join("c.yaml"), &namespace("c", "2"));
        consumer.wait_for(&[("a", "2"), ("b", "1"), ("c", "2")]).await;
        let problems = consumer.problems();
        assert!(problems.len() == 1 && problems[0].contains("a.yaml:5:"), "{problems:?}");
        replace(&root.join("a.yaml"), &namespace("a", "3"));
        consumer.wait_for(&[("a", "3"), ("c", "2")]).await;
        assert_eq!(consumer.problems(), [""; 0]);
        assert_eq!(consumer.deleted, ["b"]);
    });
}

#[test]
fn a_folder_that_goes_away_leaves_everything_in_force() {
    run(|root| async move {
        fs::write(root.join("a.yaml"), namespace("a", "1")).unwrap();
        let mut consumer = Consumer::start(&root).await;
        let away = root.with_file_name("away");
        fs::rename(&root, &away).unwrap();
        while consumer.problems().is_empty() {
            consumer.take_batch().await;
        }
        assert!(consumer.has(&[("a", "1")]));
        fs::write(away.join("a.yaml"), namespace("a", "2")).unwrap();
        fs::rename(&away, &root).unwrap();
        consumer.wait_for(&[("a", "2")]).await;
        assert!(consumer.problems().is_empty() && consumer.deleted.is_empty());
    });
}

#[test]
fn a_missing_folder_is_an_error_at_the_start() {
    run(|root| async move {
        let (out, _batches) = mpsc::channel(1);
        let error = directory::watch(root.join("missing"), out).await.unwrap_err().to_string();
        assert!(error.contains("missing") && error.contains("--source"), "{error}");
    });
}

#[test]
fn many_changes_at_once_all_arrive() {
    run(|root| async move {
        let mut consumer = Consumer::start(&root).await;
        let names: Vec<String> = (0..2_000).map(|index| format!("n{index:04}")).collect();
        for name in &names {
            fs::write(root.join(name).with_extension("yaml"), namespace(name, "1")).unwrap();
        }
        let wanted: Vec<(&str, &str)> = names.iter().map(|name| (&**name, "1")).collect();
        consumer.wait_for(&wanted).await;
    });
}

#[test]
fn generations_count_changes_of_substance() {
    let path: Arc<Path> = Arc::from(Path::new("a.yaml"));
    let mut store = Store::default();
    let service = |label: &str, port: u16| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: a, labels: {{x: \"{label}\"}}}}\nspec: {{ports: [{{port: {port}}}]}}\n"
        )
    };
    let mut generation_of = |text: &str| {
        let mut events = Vec::new();
        store.put_text(&path, text, &mut events);
        match &events[..] {
            [] => None,
            [Event::Put(object)] => object.metadata().generation,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(generation_of(&service("1", 80)), Some(1));
    assert_eq!(generation_of(&format!("# a remark\n{}", service("1", 80))), None);
    assert_eq!(generation_of(&service("2", 80)), Some(1));
    assert_eq!(generation_of(&service("2", 81)), Some(2));
    assert_eq!(generation_of(&service("2", 80)), Some(3));
}

#[test]
fn an_object_in_two_files_is_taken_from_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut store = Store::default();
    let mut labels = BTreeMap::new();
    let mut apply = |store: &mut Store, name: &str, text: Option<&str>| {
        let mut events = Vec::new();
        match text {
            Some(text) => {
                fs::write(path(name), text).unwrap();
                store.read(&path(name), &mut events);
            }
            None => {
                fs::remove_file(path(name)).unwrap();
                store.forget(&path(name), &mut events);
            }
        }
        for event in events {
            match event {
                Event::Put(object) => labels
                    .insert(object.reference().to_string(), object.metadata().labels.clone().unwrap()["x"].clone()),
                Event::Delete(reference) => labels.remove(&reference.to_string()),
            };
        }
        (labels.get("Namespace/n").cloned(), store.status().problems.len())
    };
    assert_eq!(apply(&mut store, "b.yaml", Some(&namespace("n", "b"))), (Some("b".into()), 0));
    assert_eq!(apply(&mut store, "a.yaml", Some(&namespace("n", "a"))), (Some("a".into()), 1));
    assert_eq!(apply(&mut store, "b.yaml", Some(&namespace("n", "c"))), (Some("a".into()), 1));
    assert_eq!(apply(&mut store, "a.yaml", None), (Some("c".into()), 0));
    let twice = namespace("n", "x") + "---\n" + &namespace("n", "y");
    assert_eq!(apply(&mut store, "b.yaml", Some(&twice)), (Some("x".into()), 1));
    assert_eq!(apply(&mut store, "b.yaml", None), (None, 0));
}

#[test]
fn lists_unknown_kinds_and_unknown_fields_are_told_apart() {
    let path: Arc<Path> = Arc::from(Path::new("a.yaml"));
    let mut store = Store::default();
    let mut events = Vec::new();
    let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Namespace\n  metadata: {name: a}\n  surprise: 1\n- apiVersion: apps/v1\n  kind: Deployment\n  metadata: {name: d}\n- kind: Namespace\n";
    store.put_text(&path, text, &mut events);
    assert_eq!(events.len(), 1);
    let problems: Vec<String> = store.status().problems.iter().map(ToString::to_string).collect();
    assert!(problems[0].starts_with("a.yaml:7:3: warning: Namespace/a: field surprise"), "{problems:?}");
    assert!(problems[1].starts_with("a.yaml:9:3: warning: Deployment/d: "), "{problems:?}");
    assert!(problems[2].starts_with("a.yaml:11:") && problems[2].contains("apiVersion is missing"), "{problems:?}");
}

#[test]
fn errors_are_told_at_the_line_of_the_field_and_never_quote_a_secret() {
    let path: Arc<Path> = Arc::from(Path::new("a.yaml"));
    let mut store = Store::default();
    let mut events = Vec::new();
    let text = "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  gatewayClassName: c\n  \
                listeners:\n  - name: http\n    protocol: HTTP\n    port: eighty\n---\napiVersion: v1\nkind: Secret\n\
                metadata: {name: s}\ndata:\n  tls.key: \"-- hidden --\"\n";
    store.put_text(&path, text, &mut events);
    assert!(events.is_empty());
    let problems: Vec<String> = store.status().problems.iter().map(ToString::to_string).collect();
    assert!(problems[0].starts_with("a.yaml:9:5: error: Gateway/default/g: spec.listeners[0].port: "), "{problems:?}");
    assert!(problems[1].starts_with("a.yaml:15:3: error: Secret/default/s: data.tls.key is not"), "{problems:?}");
    assert!(!problems.concat().contains("hidden"), "{problems:?}");
}
