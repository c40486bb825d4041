//! The control plane: etcd, API server, controller manager and scheduler, with what they are told.

use std::{net::Ipv4Addr, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{namespaces::NODE_ADDRESS, state::State};
use crate::{place, run};

/// Port of the API server, on every address inside, so that pods reach it through the Service `kubernetes`.
pub(super) const API_PORT: u16 = 6443;
/// Addresses of Services, and the first of them, which is the API server's.
pub(super) const SERVICE_NETWORK: &str = "10.96.0.0/16";
pub(super) const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

const ETCD: &str = "https://127.0.0.1:2379";
const ETCD_PEERS: &str = "http://127.0.0.1:2380";
const SCHEDULER: &str = "https://127.0.0.1:10259";

/// How long each may take on a machine that is busy with builds.
const READY: Duration = Duration::from_secs(120);

impl State {
    /// Starts etcd.
    pub(super) fn start_etcd(&self) -> Result<()> {
        let data = self.run.join("etcd").display().to_string();
        let mut args = [
            "--name=tidegate",
            &format!("--data-dir={data}"),
            // The data is gone with the cluster, so nothing waits for the disk.
            "--unsafe-no-fsync",
            "--log-level=warn",
            "--client-cert-auth",
            &format!("--listen-client-urls={ETCD}"),
            &format!("--advertise-client-urls={ETCD}"),
            &format!("--listen-peer-urls={ETCD_PEERS}"),
            &format!("--initial-advertise-peer-urls={ETCD_PEERS}"),
            &format!("--initial-cluster=tidegate={ETCD_PEERS}"),
        ]
        .map(str::to_owned)
        .to_vec();
        args.extend(self.files(&[("trusted-ca-file", "ca.crt"), ("cert-file", "etcd.crt"), ("key-file", "etcd.key")]));
        self.start("etcd", &self.kube.join("etcd"), &args)
    }

    /// Starts the API server, which ends when there is no etcd.
    pub(super) fn start_api_server(&self) -> Result<()> {
        self.wait("etcd", READY, || Ok(self.fetch("apiserver-etcd", &format!("{ETCD}/health"), false).is_ok()))?;
        let mut args = [
            &format!("--etcd-servers={ETCD}"),
            "--bind-address=0.0.0.0",
            &format!("--advertise-address={NODE_ADDRESS}"),
            &format!("--secure-port={API_PORT}"),
            &format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--kubelet-preferred-address-types=InternalIP",
            "--requestheader-allowed-names=front-proxy",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            "--allow-privileged=true",
            "--profiling=false",
        ]
        .map(str::to_owned)
        .to_vec();
        args.extend(self.files(&[
            ("etcd-cafile", "ca.crt"),
            ("etcd-certfile", "apiserver-etcd.crt"),
            ("etcd-keyfile", "apiserver-etcd.key"),
            ("tls-cert-file", "apiserver.crt"),
            ("tls-private-key-file", "apiserver.key"),
            ("client-ca-file", "ca.crt"),
            ("service-account-key-file", "sa.pub"),
            ("service-account-signing-key-file", "sa.key"),
            ("kubelet-certificate-authority", "ca.crt"),
            ("kubelet-client-certificate", "apiserver-kubelet.crt"),
            ("kubelet-client-key", "apiserver-kubelet.key"),
            ("requestheader-client-ca-file", "ca.crt"),
            ("proxy-client-cert-file", "front-proxy.crt"),
            ("proxy-client-key-file", "front-proxy.key"),
        ]));
        let (policy, log) = (self.run.join("audit.json"), self.logs.join("audit.log"));
        place::write(&policy, audit_policy())?;
        args.push(format!("--audit-policy-file={}", policy.display()));
        args.push(format!("--audit-log-path={}", log.display()));
        self.start("kube-apiserver", &self.kube.join("kube-apiserver"), &args)
    }

    fn wait_api_server(&self) -> Result<()> {
        self.wait("kube-apiserver", READY, || Ok(self.ask("/readyz").is_ok()))
    }

    /// Starts controller manager and scheduler, which end when there is no API server.
    pub(super) fn start_controllers(&self) -> Result<()> {
        self.wait_api_server()?;
        let common = |name: &str| {
            let kubeconfig = self.kubeconfig(name).display().to_string();
            let names = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"];
            let mut args = names.map(|name| format!("--{name}={kubeconfig}")).to_vec();
            args.extend(["--bind-address=127.0.0.1", "--leader-elect=false"].map(str::to_owned));
            args
        };
        let mut args = common("kube-controller-manager");
        args.extend(["--use-service-account-credentials", "--allocate-node-cidrs=false"].map(str::to_owned));
        args.extend(self.files(&[
            ("root-ca-file", "ca.crt"),
            ("service-account-private-key-file", "sa.key"),
            ("cluster-signing-cert-file", "ca.crt"),
            ("cluster-signing-key-file", "ca.key"),
            ("requestheader-client-ca-file", "ca.crt"),
        ]));
        self.start("kube-controller-manager", &self.kube.join("kube-controller-manager"), &args)?;
        self.start("kube-scheduler", &self.kube.join("kube-scheduler"), &common("kube-scheduler"))
    }

    /// Waits until pods can be made: the namespace has its ServiceAccount, and there is someone to place them.
    pub(super) fn wait_controllers(&self) -> Result<()> {
        self.wait("kube-controller-manager", READY, || {
            Ok(self.api("/api/v1/namespaces/default/serviceaccounts/default").is_ok())
        })?;
        self.wait("kube-scheduler", READY, || Ok(self.fetch("admin", &format!("{SCHEDULER}/readyz"), true).is_ok()))
    }

    /// Makes etcd and the API server forget the past: who watched from an older version, and was away, is answered 410.
    ///
    /// # Errors
    /// One of them does not answer.
    pub(super) fn compact(&self) -> Result<()> {
        let post = |path: &str, body: &Value| -> Result<Value> {
            let mut curl = self.curl("apiserver-etcd", &format!("{ETCD}/v3/kv/{path}"))?;
            let answer = run::read(curl.args(["--data", &body.to_string()]))?;
            serde_json::from_str(&answer).with_context(|| format!("etcd says {answer}"))
        };
        // Any key will do: each answer tells the revision. Keys are in base64.
        let revision = post("range", &json!({"key": "AA=="}))?["header"]["revision"].clone();
        post("compaction", &json!({"revision": revision, "physical": true}))?;
        // The API server answers from its own memory of events as long as it lives.
        self.find("kube-apiserver").context("kube-apiserver does not run")?.end("KILL")?;
        self.start_api_server()?;
        self.wait_api_server()
    }

    /// Options that name files of the certificates' folder.
    fn files(&self, options: &[(&str, &str)]) -> Vec<String> {
        options.iter().map(|(option, file)| format!("--{option}={}", self.pki(file).display())).collect()
    }

    /// An object or a list from the API server, by its path.
    ///
    /// # Errors
    /// There is none, or nobody answers.
    pub(super) fn api(&self, path: &str) -> Result<Value> {
        serde_json::from_str(&self.ask(path)?).with_context(|| format!("{path} is no object"))
    }

    fn ask(&self, path: &str) -> Result<String> {
        self.fetch("admin", &format!("https://127.0.0.1:{API_PORT}{path}"), false)
    }

    /// What a server inside says to the holder of a certificate.
    fn fetch(&self, client: &str, url: &str, is_self_signed: bool) -> Result<String> {
        let mut curl = self.curl(client, url)?;
        run::read(curl.args(is_self_signed.then_some("--insecure")))
    }

    fn curl(&self, client: &str, url: &str) -> Result<Command> {
        let mut curl = self.inside(Path::new("curl"))?;
        curl.args(["-sS", "--fail", "--max-time", "10"]).arg("--cacert").arg(self.pki("ca.crt"));
        curl.arg("--cert").arg(self.pki(&format!("{client}.crt")));
        curl.arg("--key").arg(self.pki(&format!("{client}.key"))).arg(url);
        Ok(curl)
    }
}

/// Which requests are noted, in `logs/audit.log`: those of pods, so that it can be seen which of its rights an agent uses.
fn audit_policy() -> String {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
            {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
            {"level": "None"},
        ],
    })
    .to_string()
}
