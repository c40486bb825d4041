//! The node: containerd, kubelet and kube-proxy, with what they are told.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    images::PAUSE,
    namespaces::{BRIDGE, NODE_ADDRESS, POD_NETWORK},
    state::State,
};
use crate::{place, run};

/// Name of the one node.
pub(super) const NODE: &str = "node1";
/// The same as the kubelet's certificate says it.
pub(super) const NODE_SUBJECT: &str = "/O=system:nodes/CN=system:node:node1";

/// Folder of the CNI plugins, as Debian has it.
const CNI_PLUGINS: &str = "/usr/lib/cni";
/// More than the suite has, and fewer than the network has addresses.
const MAX_PODS: u32 = 240;

const READY: Duration = Duration::from_secs(120);

impl State {
    /// Starts containerd, which needs nothing of the control plane.
    pub(super) fn start_containerd(&self) -> Result<()> {
        self.configure("cni/10-bridge.conflist", &self.cni())?;
        self.configure("containerd.toml", &self.containerd_config()?)?;
        let config = format!("--config={}", self.run.join("containerd.toml").display());
        self.start("containerd", &self.containerd.join("containerd"), &[config])
    }

    /// Waits until containerd takes images.
    pub(super) fn wait_containerd(&self) -> Result<()> {
        self.wait("containerd", READY, || Ok(run::read(self.ctr()?.arg("version")).is_ok()))
    }

    /// A command to containerd, about the images and containers of Kubernetes.
    pub(super) fn ctr(&self) -> Result<std::process::Command> {
        let mut ctr = self.inside(&self.containerd.join("ctr"))?;
        ctr.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]);
        Ok(ctr)
    }

    /// Starts kubelet and kube-proxy.
    pub(super) fn start_node(&self) -> Result<()> {
        // Pods would be told of the machine's name servers, which are not to be reached.
        self.configure("resolv.conf", "")?;
        self.configure("kubelet.json", &self.kubelet_config())?;
        self.configure("kube-proxy.json", &self.proxy_config())?;
        let kubelet = self.run.join("kubelet");
        let args = [
            format!("--kubeconfig={}", self.kubeconfig("kubelet").display()),
            format!("--config={}", self.run.join("kubelet.json").display()),
            format!("--root-dir={}", kubelet.display()),
            format!("--cert-dir={}", kubelet.join("pki").display()),
            format!("--hostname-override={NODE}"),
            format!("--node-ip={NODE_ADDRESS}"),
        ];
        self.start("kubelet", &self.kube.join("kubelet"), &args)?;
        let config = format!("--config={}", self.run.join("kube-proxy.json").display());
        self.start("kube-proxy", &self.kube.join("kube-proxy"), &[config])
    }

    /// Waits until the node takes pods.
    pub(super) fn wait_node(&self) -> Result<()> {
        self.wait("kubelet", READY, || Ok(is_ready(&self.api(&format!("/api/v1/nodes/{NODE}"))?)))?;
        self.wait("kube-proxy", READY, || Ok(true))
    }

    /// Writes a file of the node's, unless it is as wanted: kube-proxy ends when its own is written, whatever with.
    fn configure(&self, name: &str, content: &str) -> Result<()> {
        let file = self.run.join(name);
        if fs::read_to_string(&file).is_ok_and(|there| there == content) {
            return Ok(());
        }
        place::write(&file, content)
    }

    fn socket(&self) -> std::path::PathBuf {
        self.run.join("containerd.sock")
    }

    fn cni(&self) -> String {
        json!({
            "cniVersion": "1.0.0",
            "name": "tidegate",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": BRIDGE,
                    "isGateway": true,
                    "isDefaultGateway": true,
                    "ipMasq": false,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.run.join("addresses"),
                        "ranges": [[{"subnet": POD_NETWORK, "gateway": NODE_ADDRESS}]],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
        .to_string()
    }

    fn containerd_config(&self) -> Result<String> {
        let runc = place::find_program("runc").context("there is no runc: `cargo xtask setup --cluster`")?;
        let folder = self.run.join("containerd");
        let text = |path: &Path| json!(path).to_string();
        Ok(format!(
            "version = 3
root = {root}
state = {state}
disabled_plugins = [\"io.containerd.nri.v1.nri\"]
[grpc]
  address = {socket}
[plugins.\"io.containerd.internal.v1.opt\"]
  path = {opt}
[plugins.\"io.containerd.cri.v1.images\"]
  snapshotter = \"overlayfs\"
  [plugins.\"io.containerd.cri.v1.images\".pinned_images]
    sandbox = \"{PAUSE}\"
[plugins.\"io.containerd.cri.v1.runtime\"]
  # Without CAP_SYS_RESOURCE, as in many containers, runc may not lower oom_score_adj.
  restrict_oom_score_adj = true
  disable_apparmor = true
  # CoreDNS listens on port 53 without being root.
  enable_unprivileged_ports = true
  enable_unprivileged_icmp = true
  [plugins.\"io.containerd.cri.v1.runtime\".cni]
    bin_dirs = [\"{CNI_PLUGINS}\"]
    conf_dir = {cni}
  [plugins.\"io.containerd.cri.v1.runtime\".containerd]
    default_runtime_name = \"runc\"
    [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]
      runtime_type = \"io.containerd.runc.v2\"
      [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]
        BinaryName = {runc}
        SystemdCgroup = false
",
            root = text(&folder.join("root")),
            state = text(&folder.join("state")),
            opt = text(&folder.join("opt")),
            socket = text(&self.socket()),
            cni = text(&self.run.join("cni")),
            runc = text(&runc),
        ))
    }

    fn kubelet_config(&self) -> String {
        let never = "0%";
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "address": NODE_ADDRESS,
            "tlsCertFile": self.pki("kubelet-server.crt"),
            "tlsPrivateKeyFile": self.pki("kubelet-server.key"),
            "containerRuntimeEndpoint": format!("unix://{}", self.socket().display()),
            "cgroupDriver": "cgroupfs",
            // The default refuses a machine with version 1 of control groups.
            "failCgroupV1": false,
            "failSwapOn": false,
            // Lowering it takes CAP_SYS_RESOURCE.
            "oomScoreAdj": 0,
            // Settings of the whole machine that cannot be written are no reason to fail.
            "featureGates": {"KubeletInUserNamespace": true},
            "localStorageCapacityIsolation": false,
            "clusterDomain": "cluster.local",
            "clusterDNS": ["10.96.0.10"],
            "resolvConf": self.run.join("resolv.conf"),
            "podLogsDir": self.logs.join("pods"),
            "volumePluginDir": self.run.join("kubelet/plugins-exec"),
            "maxPods": MAX_PODS,
            // No image can be brought back, so none is removed; a full disk is the machine's concern.
            "imageGCHighThresholdPercent": 100,
            "imageMinimumGCAge": "24h",
            "evictionHard": {
                "memory.available": never,
                "nodefs.available": never,
                "imagefs.available": never,
                "nodefs.inodesFree": never,
                "imagefs.inodesFree": never,
            },
            "syncFrequency": "5s",
            "nodeStatusUpdateFrequency": "5s",
            "registryPullQPS": 0,
            "kubeAPIQPS": 200,
            "kubeAPIBurst": 400,
        })
        .to_string()
    }

    fn proxy_config(&self) -> String {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.kubeconfig("kube-proxy")},
            "mode": "iptables",
            "clusterCIDR": POD_NETWORK,
            "hostnameOverride": NODE,
            // The machine's limits stay as they are.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "iptables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"},
        })
        .to_string()
    }
}

/// Whether an object's condition `Ready` is true.
pub(super) fn is_ready(object: &serde_json::Value) -> bool {
    let conditions = object["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}
