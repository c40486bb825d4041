//! The cluster as tests see it: kubectl, the two clients of the node, `cargo xtask cluster`, and a stage of objects to play on.

use std::{
    env,
    io::Write,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use serde_json::Value;
use tidegate_lab::{Failure, Island, Reply, Request, Target, client, objects, process::arguments, wait_for};

/// Longest wait for what takes a pod, a Lease or an API server to come about, on a busy machine.
pub(crate) const LATER: Duration = Duration::from_secs(90);
/// Longest wait for a change of an object to be served and to stand in status.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// Namespace of the DaemonSet.
pub(crate) const AGENTS: &str = "tidegate";
/// Backend of the official suite, which the test cluster has an image of.
const ECHO: &str = "TIDEGATE_ECHO_IMAGE";

/// The running cluster.
pub(crate) struct Cluster {
    /// Runs a command inside.
    inside: PathBuf,
    /// `xtask`.
    xtask: PathBuf,
    /// Client behind `wan0`.
    pub(crate) internet: Island,
    /// Client behind `lan0`.
    pub(crate) datacentre: Island,
}

impl Cluster {
    /// The cluster that `cargo xtask test cluster` has started.
    pub(crate) fn find() -> Self {
        let path = |name: &str| -> PathBuf {
            env::var_os(name).unwrap_or_else(|| panic!("no {name}: run `cargo xtask test cluster`")).into()
        };
        let clients = path("TIDEGATE_CLUSTER_CLIENTS");
        let island = |name: &str| Island::join(name, &clients.join(name)).unwrap();
        Self {
            inside: path("TIDEGATE_CLUSTER_INSIDE"),
            xtask: path("TIDEGATE_XTASK"),
            internet: island("internet"),
            datacentre: island("datacentre"),
        }
    }

    /// A command inside.
    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.inside);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Runs kubectl; returns what it printed.
    pub(crate) fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        read(self.command(&["kubectl"]).args(words).output(), words)
    }

    /// Runs kubectl with a file at its standard input.
    pub(crate) fn kubectl_with(&self, words: &[&str], input: &str) -> anyhow::Result<String> {
        let mut command = self.command(&["kubectl"]);
        command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start kubectl")?;
        let mut pipe = child.stdin.take().context("kubectl's input")?;
        let text = input.to_owned();
        let writer = std::thread::spawn(move || pipe.write_all(text.as_bytes()));
        let output = child.wait_with_output();
        let _ = writer.join();
        read(output, words)
    }

    /// Applies objects.
    pub(crate) fn apply(&self, text: &str) {
        self.kubectl_with(&["apply", "-f", "-"], text).unwrap();
    }

    /// An object by `kind/name`.
    pub(crate) fn object(&self, namespace: &str, object: &str) -> anyhow::Result<Value> {
        let text = self.kubectl(&["get", object, "-n", namespace, "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Runs `cargo xtask cluster …`.
    pub(crate) fn xtask(&self, words: &[&str]) {
        let output = Command::new(&self.xtask).arg("cluster").args(words).stdin(Stdio::null()).output();
        read(output, words).unwrap();
    }

    /// Runs `tidegate …` in the agent's pod.
    pub(crate) fn tidegate(&self, words: &[&str]) -> anyhow::Result<String> {
        let pod = self.agent_pod();
        let fixed = ["exec", "-n", AGENTS, pod.as_str(), "--", "/usr/local/bin/tidegate"];
        self.kubectl(&[&fixed[..], words].concat())
    }

    /// Name of the pod that serves: the newest that is not being deleted.
    pub(crate) fn agent_pod(&self) -> String {
        let find = || -> anyhow::Result<String> {
            let text = self.kubectl(&["get", "pods", "-n", AGENTS, "-o", "json"])?;
            let list: Value = serde_json::from_str(&text)?;
            let pods = list["items"].as_array().into_iter().flatten();
            let alive = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            let newest = alive.max_by_key(|pod| pod["metadata"]["creationTimestamp"].as_str().map(str::to_owned));
            newest.and_then(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).context("no pod of the agent")
        };
        wait_for("the agent's pod", LATER, find).unwrap()
    }

    /// Process id of the agent proper on this machine.
    pub(crate) fn agent_pid(&self) -> Option<u32> {
        let listed = std::fs::read_dir("/proc").ok()?.flatten();
        let pids = listed.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_agent = |pid: &u32| {
            arguments(*pid).first().is_some_and(|word| word == "tidegate")
                && arguments(*pid).get(1).is_some_and(|word| word == "agent")
        };
        pids.filter(is_agent).find(|pid| is_in_cluster(*pid))
    }

    /// Status writes of a kind that the API server has counted so far.
    pub(crate) fn status_writes(&self, resource: &str) -> u64 {
        let text = self.kubectl(&["get", "--raw", "/metrics"]).unwrap();
        let wanted = format!("resource=\"{resource}\"");
        let lines = text.lines().filter(|line| line.starts_with("apiserver_request_total{"));
        let lines = lines.filter(|line| {
            line.contains(&wanted)
                && line.contains("subresource=\"status\"")
                && ["verb=\"PUT\"", "verb=\"PATCH\"", "verb=\"APPLY\""].iter().any(|verb| line.contains(verb))
        });
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
    }
}

/// Whether a process is in the cluster's control group: other labs of this machine run agents too.
fn is_in_cluster(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains("tidegate-cluster"))
}

fn read(output: std::io::Result<Output>, words: &[&str]) -> anyhow::Result<String> {
    let output = output.with_context(|| format!("start {words:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{words:?}: {}: {} {}", output.status, said.trim(), String::from_utf8_lossy(&output.stdout).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A namespace with a Gateway of class `public` and a backend of two pods behind Service `echo`, port 8080. Gone when dropped.
pub(crate) struct Stage<'a> {
    pub(crate) cluster: &'a Cluster,
    /// The namespace; the Gateway is `gw` in it.
    pub(crate) name: String,
    /// Address of the Gateway.
    pub(crate) address: IpAddr,
}

impl<'a> Stage<'a> {
    /// Sets the stage and waits until Gateway and backend are there.
    pub(crate) fn set(cluster: &'a Cluster, name: &str) -> Self {
        Self::set_with(cluster, name, &[&objects::http_listener("http", 80)])
    }

    /// The same with other listeners, each in flow style.
    pub(crate) fn set_with(cluster: &'a Cluster, name: &str, listeners: &[&str]) -> Self {
        let _ = cluster.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--wait"]);
        let text = objects::join([
            objects::namespace(name, "stage: \"true\""),
            objects::gateway(name, "gw", "public", &[], listeners),
            backend(name),
        ]);
        cluster.apply(&text);
        let mut stage = Self { cluster, name: name.to_owned(), address: IpAddr::from([0, 0, 0, 0]) };
        stage.wait("gateway/gw", "Programmed", SOON);
        let gateway = cluster.object(name, "gateway/gw").unwrap();
        stage.address = gateway["status"]["addresses"][0]["value"].as_str().and_then(|text| text.parse().ok()).unwrap();
        cluster.kubectl(&["rollout", "status", "deployment/echo", "-n", name, "--timeout=90s"]).unwrap();
        stage
    }

    /// Waits for a condition of an object in the namespace.
    pub(crate) fn wait(&self, object: &str, condition: &str, limit: Duration) {
        let (condition, limit) = (format!("--for=condition={condition}"), format!("--timeout={}s", limit.as_secs()));
        let waited = self.cluster.kubectl(&["wait", object, "-n", &self.name, &condition, &limit]);
        waited.unwrap_or_else(|error| {
            let object = self.cluster.object(&self.name, object).map(|object| object["status"].to_string());
            panic!("{error}\n{object:?}")
        });
    }

    /// Applies a route for one host name to the backend.
    pub(crate) fn route(&self, name: &str, host: &str) {
        self.cluster.apply(&self.route_text(name, host));
    }

    /// That route as text.
    pub(crate) fn route_text(&self, name: &str, host: &str) -> String {
        objects::route(&self.name, name, &format!("{}/gw", self.name), &[host], &[&objects::to_service("echo")])
    }

    /// Where plain HTTP is served.
    pub(crate) fn http(&self) -> Target {
        Target::http(SocketAddr::new(self.address, 80))
    }

    /// One request from the internet's side.
    pub(crate) fn get(&self, host: &str) -> Result<Reply, Failure> {
        let (target, request) = (self.http(), Request::get(host, "/"));
        self.cluster.internet.run(async move { client::send(&target, request).await })
    }

    /// Waits for an answer with this status.
    pub(crate) fn wait_status(&self, host: &str, status: u16) {
        self.wait_status_within(host, status, SOON);
    }

    /// The same with another limit.
    pub(crate) fn wait_status_within(&self, host: &str, status: u16, limit: Duration) {
        wait_for(&format!("{status} for {host}"), limit, || match self.get(host) {
            Ok(reply) if reply.status == status => Ok(()),
            Ok(reply) => bail!("{} {}", reply.status, reply.text()),
            Err(failure) => bail!("{failure}"),
        })
        .unwrap();
    }

    /// Routes attached to the Gateway's first listener.
    pub(crate) fn attached(&self) -> anyhow::Result<u64> {
        let gateway = self.cluster.object(&self.name, "gateway/gw")?;
        gateway["status"]["listeners"][0]["attachedRoutes"].as_u64().context("no count of routes")
    }

    /// Waits for a number of attached routes.
    pub(crate) fn wait_attached(&self, count: u64, limit: Duration) {
        wait_for(&format!("{count} attached routes"), limit, || match self.attached()? {
            attached if attached == count => Ok(()),
            attached => bail!("{attached}"),
        })
        .unwrap();
    }

    /// A condition of a route as its first parent says it: status and reason.
    pub(crate) fn route_condition(&self, route: &str, kind: &str) -> anyhow::Result<(String, String)> {
        let route = self.cluster.object(&self.name, route)?;
        let conditions = route["status"]["parents"][0]["conditions"].as_array().cloned().unwrap_or_default();
        let condition = conditions.iter().find(|condition| condition["type"] == kind).context("no such condition")?;
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        Ok((text("status"), text("reason")))
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said =
                self.cluster.kubectl(&["logs", "-n", AGENTS, "-l", "app.kubernetes.io/name=tidegate", "--tail=60"]);
            eprintln!("--- what the agent says ---\n{}\n---", said.unwrap_or_else(|error| error.to_string()));
        }
        let _ = self.cluster.kubectl(&["delete", "namespace", &self.name, "--ignore-not-found", "--wait"]);
    }
}

/// Two pods of the suite's backend and their Service.
fn backend(namespace: &str) -> String {
    let image = env::var(ECHO).unwrap_or_else(|_| panic!("no {ECHO}: run `cargo xtask test cluster`"));
    let field = |name: &str, path: &str| format!("{{name: {name}, valueFrom: {{fieldRef: {{fieldPath: {path}}}}}}}");
    objects::join([
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: echo, namespace: {namespace}}}\nspec:\n  replicas: 2\n  \
             selector: {{matchLabels: {{app: echo}}}}\n  template:\n    metadata: {{labels: {{app: echo}}}}\n    spec:\n      \
             containers:\n      - name: echo\n        image: {image}\n        imagePullPolicy: IfNotPresent\n        \
             env: [{}, {}]\n        readinessProbe: {{tcpSocket: {{port: 3000}}, periodSeconds: 1}}\n",
            field("POD_NAME", "metadata.name"),
            field("NAMESPACE", "metadata.namespace"),
        ),
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: echo, namespace: {namespace}}}\nspec:\n  \
             selector: {{app: echo}}\n  ports: [{{name: http, port: 8080, targetPort: 3000}}]\n"
        ),
    ])
}
