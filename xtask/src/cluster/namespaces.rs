//! The namespaces that the whole cluster lives in: network, mounts and the view of control groups. Nothing of it is to be
//! seen on the machine, and nothing stays when their last process has ended.
//!
//! A process that only sleeps holds them. Inside: loopback, the node's bridge, its NICs and no way out; the machine's files but
//! for what stands in [`COVERED`]; the machine's processes. Behind each NIC is a client in a network namespace of its own.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    groups::{self, Leaf},
    processes::{self, Process},
    state::State,
};
use crate::{place, run};

/// The node's address, on the bridge that pods are on too.
pub(super) const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
/// Network of the node's pods.
pub(super) const POD_NETWORK: &str = "10.244.0.0/24";
/// The bridge.
pub(super) const BRIDGE: &str = "cni0";

/// The node's NICs beside the bridge: through them clients reach what a gateway serves, as they do in the world.
const NICS: [Nic; 2] = [
    Nic { name: "wan0", address: "198.51.100.1", client: "internet", client_address: "198.51.100.10" },
    Nic { name: "lan0", address: "10.20.0.1", client: "datacentre", client_address: "10.20.0.10" },
];

/// A NIC of the node and the client at its other end, in one network of 24 bits.
struct Nic {
    name: &'static str,
    address: &'static str,
    /// Name of the client's network namespace.
    client: &'static str,
    client_address: &'static str,
}

/// A client of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Client {
    /// 198.51.100.10, behind the NIC `wan0`.
    Internet,
    /// 10.20.0.10, behind the NIC `lan0`.
    Datacentre,
}

impl Client {
    fn namespace(self) -> &'static str {
        match self {
            Self::Internet => NICS[0].client,
            Self::Datacentre => NICS[1].client,
        }
    }
}

/// Folders of the machine that are empty inside, so that nothing is left in them: names of network namespaces, sockets and
/// state of the container runtime, links to logs, what CNI and kubelet write in one place only.
const COVERED: [&str; 4] = ["/run", "/var/log", "/var/lib/cni", "/var/lib/kubelet"];

/// What the kubelet wants to set, which concerns the whole machine: it is shown a file with its own value instead. Read-only
/// files would make it fail.
const SHOWN: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Settings of the network namespace. The second and third are not there without their kernel modules, and not needed then.
const NETWORK: [(&str, &str, bool); 3] = [
    ("net/ipv4/ip_forward", "1", true),
    ("net/ipv6/conf/all/forwarding", "1", false),
    ("net/bridge/bridge-nf-call-iptables", "1", false),
];

/// The script that runs a command inside, in the cluster's folder.
const INSIDE: &str = "inside";

/// How long the holder may take to enter its namespaces.
const BEGIN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

impl State {
    /// Makes groups and namespaces, and sets up what is in them.
    pub(super) fn make_namespaces(&mut self, hierarchies: &[groups::Hierarchy]) -> Result<()> {
        groups::make(hierarchies)?;
        let mut hold = groups::entering(&self.groups, Leaf::Root);
        hold.args(["unshare", "--net", "--mount", "--cgroup", "--propagation", "private"]);
        // In the namespaces, but out of the group that is their root.
        let leave = groups::entering(&self.groups, Leaf::Programs);
        hold.arg(leave.get_program()).args(leave.get_args()).args(["sleep", "infinity"]);
        let log = self.log("namespaces");
        let holder = processes::start(&mut hold, &log)?;
        self.holder = Some(holder);
        self.write()?;
        let deadline = Instant::now() + BEGIN;
        let is_there = || fs::read_to_string(format!("/proc/{}/comm", holder.id)).is_ok_and(|name| name == "sleep\n");
        while !is_there() {
            if !holder.is_alive() || Instant::now() > deadline {
                bail!("the namespaces cannot be made. {}", run::end_of(&log));
            }
            thread::sleep(POLL);
        }
        groups::open(hierarchies)?;
        self.write_inside(holder)?;
        self.mount(hierarchies)?;
        self.set_up_network()
    }

    fn mount(&self, hierarchies: &[groups::Hierarchy]) -> Result<()> {
        // The machine's own mounts of control groups must be gone: programs look for them in the table of mounts.
        self.set_up(&["umount", "--recursive", "--lazy", "/sys"])?;
        self.set_up(&["mount", "-t", "sysfs", "sysfs", "/sys"])?;
        groups::mount(hierarchies, |command| self.set_up(command))?;
        self.set_up(&["mount", "-t", "bpf", "bpf", "/sys/fs/bpf"])?;
        for (name, value) in SHOWN {
            let file = self.run.join("sysctl").join(name);
            place::write(&file, format!("{value}\n"))?;
            self.set_up(&["mount", "--bind", &file.to_string_lossy(), &format!("/proc/sys/{name}")])?;
        }
        for folder in COVERED {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {folder}"))?;
            self.set_up(&["mount", "-t", "tmpfs", "-o", "mode=755", "tidegate", folder])?;
        }
        self.set_up(&["mkdir", "/run/netns", "/run/lock"])?;
        // Pods may ask for volumes that show later mounts of the node; these namespaces' own are the farthest they see.
        self.set_up(&["mount", "--make-rshared", "/"])
    }

    fn set_up_network(&self) -> Result<()> {
        self.set_up(&["ip", "link", "set", "lo", "up"])?;
        for (name, value, is_needed) in NETWORK {
            let outcome = self.set_up(&["sh", "-c", &format!("echo {value} >/proc/sys/{name}")]);
            if is_needed {
                outcome?;
            }
        }
        self.set_up(&["ip", "link", "add", BRIDGE, "type", "bridge"])?;
        self.set_up(&["ip", "address", "add", &format!("{NODE_ADDRESS}/24"), "dev", BRIDGE])?;
        self.set_up(&["ip", "link", "set", BRIDGE, "up"])?;
        // Without it a client of an address that nobody has is told at once, instead of waiting as it does in the world.
        self.set_up(&["ip", "route", "add", "default", "via", &NODE_ADDRESS.to_string()])?;
        NICS.iter().try_for_each(|nic| self.set_up_client(nic))
    }

    /// Makes a NIC of the node, and the client behind it with its routes through that NIC.
    fn set_up_client(&self, nic: &Nic) -> Result<()> {
        let Nic { name, address, client, client_address } = nic;
        self.set_up(&["ip", "netns", "add", client])?;
        self.set_up(&["ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", client])?;
        self.set_up(&["ip", "address", "add", &format!("{address}/24"), "dev", name])?;
        self.set_up(&["ip", "link", "set", name, "up"])?;
        self.set_up(&["ip", "-n", client, "address", "add", &format!("{client_address}/24"), "dev", "eth0"])?;
        self.set_up(&["ip", "-n", client, "link", "set", "lo", "up"])?;
        self.set_up(&["ip", "-n", client, "link", "set", "eth0", "up"])?;
        self.set_up(&["ip", "-n", client, "route", "add", "default", "via", address])
    }

    fn set_up(&self, words: &[&str]) -> Result<()> {
        let mut command = self.inside(Path::new(words[0]))?;
        run::read(command.args(&words[1..])).map(drop)
    }

    /// A command that runs in the cluster's namespaces and groups, in the folder where this program runs.
    ///
    /// # Errors
    /// The cluster does not run.
    pub(super) fn inside(&self, program: &Path) -> Result<Command> {
        self.holder.filter(|holder| holder.is_alive()).context("the cluster does not run: `cargo xtask cluster up`")?;
        let mut command = Command::new(self.script());
        command.arg(program);
        Ok(command)
    }

    /// A command that runs where a client of the node is, in the cluster's groups and mounts.
    ///
    /// # Errors
    /// The cluster does not run.
    pub(super) fn inside_client(&self, client: Client, program: &Path) -> Result<Command> {
        let mut command = self.inside(Path::new("nsenter"))?;
        command.arg(format!("--net=/run/netns/{}", client.namespace())).arg("--").arg(program);
        Ok(command)
    }

    /// The script by which a command gets in.
    pub(super) fn script(&self) -> PathBuf {
        self.run.join(INSIDE)
    }

    /// Writes the script.
    fn write_inside(&self, holder: Process) -> Result<()> {
        let text = |path: &Path| run::quoted(&path.to_string_lossy());
        let entering = groups::procs(&self.groups, Leaf::Programs).iter().map(|file| text(file)).collect::<Vec<_>>();
        let script = format!(
            r#"#!/bin/sh -e
# Runs a command in the namespaces and control groups of the test cluster.
for group in {groups}; do echo $$ >"$group"; done
export KUBECONFIG={kubeconfig} KUBECACHEDIR={cache} PATH={kube}:{containerd}:"$PATH":/usr/sbin:/sbin
# A proxy is not to be reached from inside.
unset http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY ALL_PROXY
# Entering the mounts goes to their root folder.
exec nsenter --net --mount --cgroup --target {holder} -- sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
"#,
            groups = entering.join(" "),
            kubeconfig = text(&self.admin()),
            // What kubectl remembers of the API is true of this cluster alone.
            cache = text(&self.run.join("kubectl")),
            kube = text(&self.kube),
            containerd = text(&self.containerd),
            holder = holder.id,
        );
        let file = self.script();
        place::write(&file, script)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).context("cannot make the script executable")
    }
}

/// Those of the covered folders that this machine does not have: they are to be removed after use.
pub(super) fn missing_folders() -> Vec<PathBuf> {
    COVERED.map(PathBuf::from).into_iter().filter(|folder| !folder.exists()).collect()
}

/// The mounts of this machine at or below a folder.
pub(super) fn mounts_below(folder: &Path) -> Result<Vec<String>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.filter(|point| Path::new(point).starts_with(folder)).map(str::to_owned).collect())
}
