//! The cluster's certificates and the files by which its programs log in to the API server. Made anew for each cluster, with
//! the machine's openssl, and trusted by nobody else.

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    control_plane::{API_PORT, SERVICE_ADDRESS},
    namespaces::NODE_ADDRESS,
    node::{NODE, NODE_SUBJECT},
    state::State,
};
use crate::{place, run};

/// Longer than any cluster lives.
const DAYS: &str = "3650";

/// Configuration of openssl that adds nothing of its own to a certificate.
const CONFIGURATION: &str = "openssl.cnf";

/// Who a certificate is for.
struct Certificate {
    file: &'static str,
    /// As Kubernetes reads it: the user is `CN`, the group is `O`.
    subject: String,
    usage: &'static str,
    /// Names of a server.
    names: Option<String>,
}

/// Those who log in to the API server, each with its own right.
const CLIENTS: [(&str, &str); 5] = [
    ("admin", "/O=system:masters/CN=admin"),
    ("kube-controller-manager", "/CN=system:kube-controller-manager"),
    ("kube-scheduler", "/CN=system:kube-scheduler"),
    ("kube-proxy", "/CN=system:kube-proxy"),
    ("kubelet", NODE_SUBJECT),
];

fn certificates() -> Vec<Certificate> {
    let of = |file, subject: String, usage, names| Certificate { file, subject, usage, names };
    let api_names = format!(
        "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local,\
         DNS:localhost,IP:127.0.0.1,IP:{SERVICE_ADDRESS},IP:{NODE_ADDRESS}"
    );
    let node_names = format!("DNS:{NODE},IP:{NODE_ADDRESS},IP:127.0.0.1");
    let mut all = vec![
        of("apiserver", "/CN=kube-apiserver".into(), "serverAuth", Some(api_names)),
        of("etcd", "/CN=etcd".into(), "serverAuth,clientAuth", Some("DNS:localhost,IP:127.0.0.1".into())),
        of("apiserver-etcd", "/CN=apiserver-etcd".into(), "clientAuth", None),
        of("apiserver-kubelet", "/O=system:masters/CN=apiserver-kubelet".into(), "clientAuth", None),
        of("front-proxy", "/CN=front-proxy".into(), "clientAuth", None),
        of("kubelet-server", NODE_SUBJECT.into(), "serverAuth", Some(node_names)),
    ];
    all.extend(CLIENTS.map(|(file, subject)| of(file, subject.to_owned(), "clientAuth", None)));
    all
}

impl State {
    /// Folder of keys and certificates.
    pub(super) fn pki(&self, file: &str) -> PathBuf {
        self.run.join("pki").join(file)
    }

    /// The administrator's kubeconfig.
    pub(super) fn admin(&self) -> PathBuf {
        self.kubeconfig("admin")
    }

    /// The kubeconfig of one of [`CLIENTS`].
    pub(super) fn kubeconfig(&self, client: &str) -> PathBuf {
        self.pki(&format!("{client}.kubeconfig"))
    }

    /// Makes what is missing of the certificates.
    pub(super) fn make_certificates(&self) -> Result<()> {
        // The last to be written.
        if self.pki("sa.pub").exists() {
            return Ok(());
        }
        let folder = self.pki("");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        place::write(&self.pki(CONFIGURATION), "[req]\ndistinguished_name = none\n[none]\n")?;
        let ca_usage =
            ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"];
        run::read(self.request("ca", "/CN=tidegate-cluster").args(ca_usage))?;
        for Certificate { file, subject, usage, names } in certificates() {
            let mut request = self.request(file, &subject);
            request.args(["-CA", "ca.crt", "-CAkey", "ca.key", "-addext", "basicConstraints=critical,CA:FALSE"]);
            request.args(["-addext", "keyUsage=critical,digitalSignature,keyEncipherment"]);
            request.arg("-addext").arg(format!("extendedKeyUsage={usage}"));
            if let Some(names) = names {
                request.arg("-addext").arg(format!("subjectAltName={names}"));
            }
            run::read(&mut request)?;
        }
        for (client, _) in CLIENTS {
            place::write(&self.kubeconfig(client), self.kubeconfig_of(client))?;
        }
        let mut key = self.openssl();
        run::read(key.args(["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", "sa.key"]))?;
        run::read(self.openssl().args(["pkey", "-in", "sa.key", "-pubout", "-out", "sa.pub"])).map(drop)
    }

    fn openssl(&self) -> Command {
        let mut openssl = Command::new("openssl");
        openssl.current_dir(self.pki(""));
        openssl
    }

    /// A key and its certificate, signed by itself unless more is said.
    fn request(&self, file: &str, subject: &str) -> Command {
        let mut openssl = self.openssl();
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", DAYS]);
        openssl.args(["-config", CONFIGURATION]);
        openssl.args(["-subj", subject, "-keyout", &format!("{file}.key"), "-out", &format!("{file}.crt")]);
        openssl
    }

    /// Every form of YAML that Kubernetes reads, it reads as JSON too.
    fn kubeconfig_of(&self, client: &str) -> String {
        // The node's address is reached by its clients too.
        let server = format!("https://{NODE_ADDRESS}:{API_PORT}");
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tidegate", "cluster": {"server": server, "certificate-authority": self.pki("ca.crt")}}],
            "users": [{"name": client, "user": {
                "client-certificate": self.pki(&format!("{client}.crt")),
                "client-key": self.pki(&format!("{client}.key")),
            }}],
            "contexts": [{"name": "tidegate", "context": {"cluster": "tidegate", "user": client}}],
            "current-context": "tidegate",
        })
        .to_string()
    }
}
