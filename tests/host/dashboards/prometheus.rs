//! A Prometheus of Debian's package, in the gateway's namespace: started on a folder of the lab, asked by its HTTP API.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tidegate_lab::{Lab, Request, Target, client, wait_until};

/// Where it listens, in the gateway's namespace.
const ADDRESS: &str = "127.0.0.1:9090";

/// Pause between scrapes, and between evaluations of the rules.
const PACE: &str = "500ms";

/// Longest start, far above what was seen.
const START: Duration = Duration::from_secs(30);

/// A running Prometheus. Ended on drop.
pub(super) struct Prometheus<'a> {
    lab: &'a Lab,
    child: Child,
}

/// One series of an answer, with its last value.
#[derive(Clone, Debug)]
pub(super) struct Series {
    pub(super) labels: Value,
    pub(super) value: f64,
}

impl Series {
    /// Whether it has all of these labels.
    pub(super) fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels.iter().all(|(name, value)| self.labels[*name] == *value)
    }
}

impl<'a> Prometheus<'a> {
    /// Starts it with the agent's admin address as a target, an address that nobody answers at as another, and the rules.
    pub(super) fn start(lab: &'a Lab, rules: &str) -> Self {
        let folder = lab.folder().join("prometheus");
        fs::create_dir_all(&folder).unwrap();
        let config = folder.join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: {PACE}, scrape_timeout: {PACE}, evaluation_interval: {PACE}}}\n\
             rule_files: [\"{rules}\"]\n\
             scrape_configs:\n\
             - {{job_name: tidegate, static_configs: [{{targets: [\"{}\"]}}]}}\n\
             - {{job_name: tidegate-gone, static_configs: [{{targets: [\"127.0.0.1:9\"]}}]}}\n",
            tidegate_lab::agent::admin(),
        );
        fs::write(&config, text).unwrap();
        let log = fs::File::create(lab.folder().join("logs/prometheus.log")).unwrap();
        let mut command = Command::new(program("prometheus"));
        command
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address={ADDRESS}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let child = lab.gateway.start(&mut command).expect("prometheus is installed (cargo xtask setup)");
        let prometheus = Self { lab, child };
        wait_until("Prometheus", START, || prometheus.ask("/-/ready").map(drop)).unwrap_or_else(|error| {
            let log = fs::read_to_string(lab.folder().join("logs/prometheus.log")).unwrap_or_default();
            panic!("{error}:\n{log}")
        });
        prometheus
    }

    /// The result of an expression at this moment; what is no number is left out.
    pub(super) fn query(&self, expression: &str) -> Vec<Series> {
        let path = format!("/api/v1/query?query={}", encode(expression));
        let answer = self.api(&path).unwrap_or_else(|| panic!("no answer to {expression}"));
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let result = answer["data"]["result"].as_array().expect("a vector");
        let series = result.iter().map(|one| Series {
            labels: one["metric"].clone(),
            value: one["value"][1].as_str().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN),
        });
        series.filter(|series| series.value.is_finite()).collect()
    }

    /// Every rule as Prometheus sees it.
    pub(super) fn rules(&self) -> Vec<Value> {
        let answer = self.api("/api/v1/rules").expect("an answer");
        let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
    }

    fn api(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&self.ask(path)?).ok()
    }

    fn ask(&self, path: &str) -> Option<String> {
        let target = Target::http(ADDRESS.parse().unwrap()).within(Duration::from_secs(10));
        let request = Request::get("localhost", path);
        let reply = self.lab.gateway.run(async move { client::send(&target, request).await }).ok()?;
        (reply.status == 200 || path.starts_with("/api/")).then(|| reply.text())
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Path of a program that the package brings.
pub(super) fn program(name: &str) -> PathBuf {
    PathBuf::from("/usr/bin").join(name)
}

/// Everything but letters and digits in percent form.
fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}
