//! The admin side against callers that are slow, broken or hostile, on real sockets.

use std::{
    cell::{Cell, RefCell},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    rc::Rc,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::Parser;
use tidegate_gateway_api::{Settings, Translator};
use tidegate_model::{
    Admission, Certificate, CertificateKey, Change, Delta, Domain, DomainId, DomainName, Generation, Model, ObjectName,
    Resource, ResourceLimits,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    sync::{broadcast, mpsc},
    task::{LocalSet, spawn_local},
    time::timeout,
};

use super::{http, protocol::MAX_QUESTION, socket};
use crate::{
    options::RunOptions,
    state::{DomainState, State, TierState},
    tier::Tier,
};

const DEADLINE: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Words {
    #[command(flatten)]
    options: RunOptions,
}

/// A state with one domain that holds a private key and is applied nowhere.
fn state() -> Rc<State> {
    let (requests, mut asked) = mpsc::unbounded_channel();
    // No supervision: a scrape of workers is answered with nothing.
    spawn_local(async move { while asked.recv().await.is_some() {} });
    let domain = Arc::new(Domain {
        name: DomainName::new("public"),
        interfaces: Vec::new(),
        labels: [("traffic.domain".to_owned(), "pub\"lic".to_owned())].into(),
        admission: Admission::default(),
        limits: ResourceLimits::default(),
        shards: None,
    });
    let mut model = Model::new(domain);
    let certificate = Certificate {
        chain: vec![b"chain".to_vec()],
        private_key: vec![222; 64],
        names: vec!["a.example.com".to_owned()],
        not_after: 0,
    };
    let key = CertificateKey(ObjectName::new("gw", "tls"));
    let changes = vec![Change::Put(Resource::Certificate(key, Arc::new(certificate)))];
    model.apply(&Delta { generation: Generation(1), is_full: true, changes });
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    Rc::new(State {
        options: Words::parse_from(["tidegate", "--source", "directory=/nowhere"]).options,
        node: "node".to_owned(),
        started: SystemTime::now(),
        translator: RefCell::new(Translator::new(Settings::default())),
        is_source_synced: Cell::new(true),
        source: RefCell::default(),
        facts: RefCell::default(),
        resolved: RefCell::default(),
        domains: RefCell::new([(DomainName::new("public"), DomainState::new(DomainId(1), model))].into()),
        tier: RefCell::new(TierState::default()),
        kernel: RefCell::new(Tier::Off),
        samples: broadcast::Sender::new(1),
        sources: RefCell::default(),
        metrics: recorder.handle(),
        requests,
    })
}

fn run<F: Future<Output = ()>>(test: F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

async fn serve_http() -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn_local(http::run_server(listener, state()));
    address
}

async fn ask_http(address: std::net::SocketAddr, head: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{head}\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[test]
fn readiness_says_what_is_not_applied() {
    run(async {
        let address = serve_http().await;
        let answer = ask_http(address, "GET /readyz HTTP/1.1").await;
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("domain public: kernel has generation 0 of 1"),
            "{answer}"
        );
        assert!(ask_http(address, "GET /healthz HTTP/1.1").await.starts_with("HTTP/1.1 200"));
        assert!(ask_http(address, "POST /metrics HTTP/1.1").await.starts_with("HTTP/1.1 405"));
        assert!(ask_http(address, "GET /debug/model/other HTTP/1.1").await.starts_with("HTTP/1.1 404"));
    });
}

#[test]
fn a_model_is_shown_without_its_private_keys() {
    run(async {
        let answer = ask_http(serve_http().await, "GET /debug/model/public HTTP/1.1").await;
        assert!(answer.contains("a.example.com") && answer.contains("gw/tls"), "{answer}");
        assert!(!answer.contains("222") && !answer.to_lowercase().contains("private"), "{answer}");
    });
}

#[test]
fn a_worker_that_does_not_answer_is_said_to_be_down() {
    run(async {
        let answer = ask_http(serve_http().await, "GET /metrics HTTP/1.1").await;
        let line = r#"tidegate_worker_scrape_up{domain="public",traffic_domain="pub\"lic"} 0"#;
        assert!(answer.contains(line), "{answer}");
        assert_eq!(answer.matches("# TYPE tidegate_source_objects gauge").count(), 1);
    });
}

#[test]
fn silent_and_endless_callers_hold_up_nobody() {
    run(async {
        let address = serve_http().await;
        let mut silent = Vec::new();
        for _ in 0..32 {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut endless = TcpStream::connect(address).await.unwrap();
        // Ends as soon as the server has had enough of a head without an end.
        let flood = async { while endless.write_all(&[b'a'; 4096]).await.is_ok() {} };
        timeout(DEADLINE, flood).await.expect("the server closes the connection");
        assert!(ask_http(address, "GET /healthz HTTP/1.1").await.starts_with("HTTP/1.1 200"));
    });
}

/// Serves a socket in a folder of its own.
fn serve_socket() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x/tidegate.sock");
    let listener = socket::bind(&path).unwrap();
    spawn_local(socket::run_server(listener, state()));
    (folder, path)
}

async fn ask_socket(path: &PathBuf, question: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    // The server may have heard enough before the end.
    let _ = stream.write_all(question).await;
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("an answer or an end");
    String::from_utf8(answer).unwrap()
}

#[test]
fn the_socket_answers_what_it_understands_and_says_so_of_the_rest() {
    run(async {
        let (_folder, path) = serve_socket();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let status = ask_socket(&path, b"\"status\"\n").await;
        assert!(status.starts_with("{\"ok\":") && status.contains("\"node\":\"node\""), "{status}");
        for broken in [&b"\n"[..], b"{\n", b"\"nothing\"\n", &[0xff; 100], &vec![b'['; 2 * MAX_QUESTION]] {
            let mut question = broken.to_vec();
            question.push(b'\n');
            let answer = ask_socket(&path, &question).await;
            assert!(answer.is_empty() || answer.starts_with("{\"error\":"), "{answer}");
        }
        for ask in ["{\"followVerdicts\":{}}\n", "{\"summarizeVerdicts\":{\"filter\":{},\"interval\":1}}\n"] {
            let answer = ask_socket(&path, ask.as_bytes()).await;
            assert!(answer.contains("--kernel=off"), "{answer}");
        }
    });
}

#[test]
fn a_dead_agents_socket_is_replaced_and_a_living_ones_is_not() {
    run(async {
        let (folder, path) = serve_socket();
        assert!(socket::bind(&path).unwrap_err().to_string().contains("another agent"));
        let dead = folder.path().join("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        assert!(socket::bind(&dead).is_ok());
        let file = folder.path().join("file");
        std::fs::write(&file, "mine").unwrap();
        assert!(socket::bind(&file).is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");
    });
}
