//! The project's test cluster as tests and measurements see it: kubectl, the API server, the two clients of the node,
//! `cargo xtask cluster`, the processes of the agent that is deployed in it, and a stage of objects to play on.

use std::{
    env,
    ffi::OsString,
    fs,
    io::Write,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::{Command, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use serde_json::Value;

use crate::{Island, Metrics, Target, objects, process::arguments, wait_for};

/// Longest wait for what takes a pod, a Lease or an API server to come about, on a busy machine.
pub const LATER: Duration = Duration::from_secs(90);
/// Without a write for so long, none comes any more: above the agent's own spacing of writes and its grace for nodes.
const SETTLED: Duration = Duration::from_secs(2);
/// Namespace of the DaemonSet.
pub const AGENTS: &str = "tidegate";

/// The running cluster.
pub struct Cluster {
    /// Runs a command inside.
    inside: PathBuf,
    /// `xtask`.
    xtask: PathBuf,
    /// Image of the official suite's backend.
    echo: String,
    /// Client behind `wan0`.
    pub internet: Island,
    /// Client behind `lan0`.
    pub datacentre: Island,
}

impl Cluster {
    /// The cluster that `cargo xtask` has started and has told this process of.
    ///
    /// # Errors
    /// It has told nothing, or a client's namespace cannot be entered.
    pub fn find() -> anyhow::Result<Self> {
        let variable = |name: &str| -> anyhow::Result<OsString> {
            env::var_os(name).with_context(|| format!("no {name}: run this by `cargo xtask`, which starts a cluster"))
        };
        let clients = PathBuf::from(variable("TIDEGATE_CLUSTER_CLIENTS")?);
        Ok(Self {
            inside: variable("TIDEGATE_CLUSTER_INSIDE")?.into(),
            xtask: variable("TIDEGATE_XTASK")?.into(),
            echo: variable("TIDEGATE_ECHO_IMAGE")?.to_string_lossy().into_owned(),
            internet: Island::join("internet", &clients.join("internet"))?,
            datacentre: Island::join("datacentre", &clients.join("datacentre"))?,
        })
    }

    /// A command inside.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.inside);
        command.args(words).stdin(Stdio::null());
        command
    }

    /// Runs kubectl; returns what it printed.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn kubectl(&self, words: &[&str]) -> anyhow::Result<String> {
        read(self.command(&["kubectl"]).args(words).output(), words)
    }

    /// Runs kubectl with a file at its standard input.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn kubectl_with(&self, words: &[&str], input: &str) -> anyhow::Result<String> {
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
    ///
    /// # Errors
    /// What kubectl says when it fails.
    pub fn apply(&self, text: &str) -> anyhow::Result<()> {
        self.kubectl_with(&["apply", "-f", "-"], text).map(drop)
    }

    /// An object by `kind/name`.
    ///
    /// # Errors
    /// There is none.
    pub fn object(&self, namespace: &str, object: &str) -> anyhow::Result<Value> {
        let text = self.kubectl(&["get", object, "-n", namespace, "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Runs `cargo xtask cluster …`.
    ///
    /// # Errors
    /// What it says when it fails.
    pub fn xtask(&self, words: &[&str]) -> anyhow::Result<()> {
        let output = Command::new(&self.xtask).arg("cluster").args(words).stdin(Stdio::null()).output();
        read(output, words).map(drop)
    }

    /// Runs `tidegate …` in the agent's pod.
    ///
    /// # Errors
    /// There is no pod, or what the command says when it fails.
    pub fn tidegate(&self, words: &[&str]) -> anyhow::Result<String> {
        let pod = self.agent_pod()?;
        let fixed = ["exec", "-n", AGENTS, pod.as_str(), "--", "/usr/local/bin/tidegate"];
        self.kubectl(&[&fixed[..], words].concat())
    }

    /// Name of the pod that serves: the newest that is not being deleted.
    ///
    /// # Errors
    /// There is none for long.
    pub fn agent_pod(&self) -> anyhow::Result<String> {
        wait_for("the agent's pod", LATER, || {
            let text = self.kubectl(&["get", "pods", "-n", AGENTS, "-o", "json"])?;
            let list: Value = serde_json::from_str(&text)?;
            let pods = list["items"].as_array().into_iter().flatten();
            let alive = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            let newest = alive.max_by_key(|pod| pod["metadata"]["creationTimestamp"].as_str().map(str::to_owned));
            newest.and_then(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).context("no pod of the agent")
        })
    }

    /// Process id, on this machine, of the part of the deployed agent whose command line begins with these words after
    /// `tidegate`: `run` (init), `agent`, or `worker` and a domain.
    pub fn agent_pid(&self, words: &[&str]) -> Option<u32> {
        let listed = fs::read_dir("/proc").ok()?.flatten();
        let pids = listed.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let is_wanted = |pid: &u32| {
            let found = arguments(*pid);
            let (program, found) = found.split_first()?;
            Some(
                program.ends_with("tidegate")
                    && found.len() >= words.len()
                    && found.iter().zip(words).all(|(a, b)| a == b),
            )
        };
        pids.filter(|pid| is_wanted(pid).unwrap_or(false)).find(|pid| is_in_cluster(*pid))
    }

    /// Status writes of a kind that the API server has counted so far.
    ///
    /// # Errors
    /// The API server does not answer.
    pub fn status_writes(&self, resource: &str) -> anyhow::Result<u64> {
        let text = self.kubectl(&["get", "--raw", "/metrics"])?;
        let wanted = format!("resource=\"{resource}\"");
        let lines = text.lines().filter(|line| line.starts_with("apiserver_request_total{"));
        let lines = lines.filter(|line| {
            line.contains(&wanted)
                && line.contains("subresource=\"status\"")
                && ["verb=\"PUT\"", "verb=\"PATCH\"", "verb=\"APPLY\""].iter().any(|verb| line.contains(verb))
        });
        Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64)
    }

    /// Their count when it stands still.
    ///
    /// # Errors
    /// As [`Cluster::status_writes`], or the agent goes on writing.
    pub fn settled_status_writes(&self, resource: &str) -> anyhow::Result<u64> {
        let mut last = self.status_writes(resource)?;
        wait_for(&format!("writes of {resource} to stop"), LATER, || {
            std::thread::sleep(SETTLED);
            let now = self.status_writes(resource)?;
            let before = std::mem::replace(&mut last, now);
            ensure!(now == before, "{now} so far");
            Ok(now)
        })
    }

    /// What the agent counts, by its administration port on the node.
    ///
    /// # Errors
    /// It does not answer.
    pub fn metrics(&self) -> anyhow::Result<Metrics> {
        let words = ["curl", "-sS", "--fail", "http://127.0.0.1:9590/metrics"];
        Metrics::parse(&read(self.command(&words).output(), &words)?)
    }

    /// The end of the agent's log.
    pub fn agent_log(&self) -> String {
        let said = self.kubectl(&["logs", "-n", AGENTS, "-l", "app.kubernetes.io/name=tidegate", "--tail=60"]);
        said.unwrap_or_else(|error| error.to_string())
    }

    /// The API server as the administrator reaches it, from any client.
    ///
    /// # Errors
    /// The administrator's kubeconfig has no server or no certificates.
    pub fn api_server(&self) -> anyhow::Result<Target> {
        let text = self.kubectl(&["config", "view", "--raw", "--flatten", "--minify", "-o", "json"])?;
        let config: Value = serde_json::from_str(&text)?;
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        let pem = |value: &Value| BASE64_STANDARD.decode(value.as_str().unwrap_or_default());
        let server = cluster["server"].as_str().and_then(|server| server.strip_prefix("https://"));
        let server: SocketAddr = server.context("kubeconfig names no server")?.parse()?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem(&cluster["certificate-authority-data"])?)?)?;
        let chain = vec![CertificateDer::from_pem_slice(&pem(&user["client-certificate-data"])?)?];
        let key = PrivateKeyDer::from_pem_slice(&pem(&user["client-key-data"])?)?;
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        Ok(Target { tls: Some((server.ip().to_string(), Arc::new(config))), ..Target::http(server) })
    }

    /// Makes a namespace anew, with a Gateway `gw` of class `public` and a backend of two pods behind Service `echo`, port
    /// 8080; waits until both are there. Listeners are in flow style. Returns the Gateway's address.
    ///
    /// # Errors
    /// One of them does not come about.
    pub fn set_stage(&self, name: &str, listeners: &[&str]) -> anyhow::Result<IpAddr> {
        self.kubectl(&["delete", "namespace", name, "--ignore-not-found", "--wait"])?;
        self.apply(&objects::join([
            objects::namespace(name, "stage: \"true\""),
            objects::gateway(name, "gw", "public", &[], listeners),
            self.backend(name),
        ]))?;
        let programmed = ["wait", "gateway/gw", "-n", name, "--for=condition=Programmed", "--timeout=30s"];
        self.kubectl(&programmed).with_context(|| {
            let gateway = self.object(name, "gateway/gw").map(|gateway| gateway["status"].to_string());
            gateway.unwrap_or_else(|error| error.to_string())
        })?;
        self.kubectl(&["rollout", "status", "deployment/echo", "-n", name, "--timeout=90s"])?;
        let gateway = self.object(name, "gateway/gw")?;
        let address = gateway["status"]["addresses"][0]["value"].as_str().context("the Gateway has no address")?;
        Ok(address.parse()?)
    }

    /// Routes attached to the first listener of a stage's Gateway.
    ///
    /// # Errors
    /// There is no such Gateway, or nothing was said of it.
    pub fn attached(&self, stage: &str) -> anyhow::Result<u64> {
        let gateway = self.object(stage, "gateway/gw")?;
        gateway["status"]["listeners"][0]["attachedRoutes"].as_u64().context("no count of routes")
    }

    /// Two pods of the suite's backend and their Service.
    fn backend(&self, namespace: &str) -> String {
        let field =
            |name: &str, path: &str| format!("{{name: {name}, valueFrom: {{fieldRef: {{fieldPath: {path}}}}}}}");
        objects::join([
            format!(
                "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: echo, namespace: {namespace}}}\nspec:\n  replicas: 2\n  \
                 selector: {{matchLabels: {{app: echo}}}}\n  template:\n    metadata: {{labels: {{app: echo}}}}\n    spec:\n      \
                 containers:\n      - name: echo\n        image: {}\n        imagePullPolicy: IfNotPresent\n        \
                 env: [{}, {}]\n        readinessProbe: {{tcpSocket: {{port: 3000}}, periodSeconds: 1}}\n",
                self.echo,
                field("POD_NAME", "metadata.name"),
                field("NAMESPACE", "metadata.namespace"),
            ),
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: echo, namespace: {namespace}}}\nspec:\n  \
                 selector: {{app: echo}}\n  ports: [{{name: http, port: 8080, targetPort: 3000}}]\n"
            ),
        ])
    }
}

/// Whether a process is in the cluster's control group: other labs of this machine run agents too.
fn is_in_cluster(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|groups| groups.contains("tidegate-cluster"))
}

fn read(output: std::io::Result<Output>, words: &[&str]) -> anyhow::Result<String> {
    let output = output.with_context(|| format!("start {words:?}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{words:?}: {}: {} {}", output.status, said.trim(), String::from_utf8_lossy(&output.stdout).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
