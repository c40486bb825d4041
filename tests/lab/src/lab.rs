//! The lab's topology: the addresses of the shared example, each side in a namespace of its own.
//!
//! ```text
//!  inet 198.51.100.10 ──── wan0 ┐                 ┌ back0 ──── back 10.30.0.11 .12 .21 .31
//!       192.0.2.66 (denied)     ├─ gw (the node) ─┤
//!  dc   10.20.0.10 ─────── lan0 ┘                 └ br0 ────── pod 10.40.0.10 (around XDP)
//! ```
//! `inet` and `dc` have routes to both domains' address pools through their own NIC, so that each can try the other's.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::Context;
use nix::mount::{MsFlags, mount};

use crate::{cleanup, island::Island};

/// Internet client, admitted to `public`.
pub const INTERNET: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 10));
/// Internet client over IPv6.
pub const INTERNET6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10));
/// Source on the internet side that the example denies.
pub const DENIED: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 66));
/// Source on the internet side that the example denies, IPv6.
pub const DENIED6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xbad, 0, 0, 0, 0, 0x66));
/// Data-centre client, allowed in `private`.
pub const DATACENTRE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 20, 0, 10));
/// Data-centre client over IPv6.
pub const DATACENTRE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 0x10));
/// Source on the data-centre side that is not on the allow list.
pub const OUTSIDER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 99, 0, 66));
/// Source on the data-centre side that is not on the allow list, IPv6.
pub const OUTSIDER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, 0x66));
/// A pod of the node itself, behind a bridge.
pub const POD: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 40, 0, 10));

/// Address pool of `public`.
pub const PUBLIC_POOL: &str = "203.0.113.0/28";
/// Address pool of `public`, IPv6.
pub const PUBLIC_POOL6: &str = "2001:db8:113::/124";
/// Address pool of `private`.
pub const PRIVATE_POOL: &str = "10.20.1.0/28";
/// Address pool of `private`, IPv6.
pub const PRIVATE_POOL6: &str = "fd00:20:1::/124";

/// A lab: five namespaces and a folder. Everything goes on drop.
#[derive(Debug)]
pub struct Lab {
    /// Unique name: prefix of the namespaces, instance name of the agent.
    pub name: String,
    /// The internet client's side.
    pub internet: Island,
    /// The data-centre client's side.
    pub datacentre: Island,
    /// The gateway node.
    pub gateway: Island,
    /// Where the backends are.
    pub backends: Island,
    /// A pod on the gateway node.
    pub pod: Island,
    folder: PathBuf,
}

impl Lab {
    /// Makes a lab under a new name.
    ///
    /// # Errors
    /// When not root, or the kernel lacks namespaces, veth or bridges.
    pub fn create() -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tg{:x}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self::create_as(&name)
    }

    /// Makes a lab under a given name.
    ///
    /// # Errors
    /// As [`Lab::create`].
    pub fn create_as(name: &str) -> anyhow::Result<Self> {
        let folder = cleanup::register(name)?;
        let lab = Self::build(name, folder);
        if lab.is_err() {
            cleanup::remove(name);
        }
        lab
    }

    fn build(name: &str, folder: PathBuf) -> anyhow::Result<Self> {
        for part in ["config", "bpf", "run", "logs"] {
            fs::create_dir_all(folder.join(part))?;
        }
        mount(Some("bpf"), &folder.join("bpf"), Some("bpf"), MsFlags::empty(), None::<&str>).context("mount bpffs")?;
        let island = |part: &str| Island::create(&format!("{name}-{part}"));
        let lab = Self {
            name: name.to_owned(),
            internet: island("inet")?,
            datacentre: island("dc")?,
            gateway: island("gw")?,
            backends: island("back")?,
            pod: island("pod")?,
            folder,
        };
        lab.link_up()?;
        Ok(lab)
    }

    /// Folder of the lab.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Folder that the agent's directory source watches.
    pub fn config(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// Writes a file of the watched folder in one step: a reader sees the old text or the new one.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn write(&self, file: &str, text: &str) -> anyhow::Result<()> {
        let path = self.config().join(file);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // Written beside the watched folder: no half file is ever inside it.
        let draft = self.folder.join("run").join(format!(".draft-{}", file.replace('/', "-")));
        fs::write(&draft, text)?;
        fs::rename(&draft, &path).with_context(|| format!("write {}", path.display()))
    }

    /// Reads a file of the watched folder, changes it and writes it in one step.
    ///
    /// # Errors
    /// Those of the file system, or when `from` is not in the file: an edit that changes nothing is a mistake.
    pub fn edit(&self, file: &str, from: &str, to: &str) -> anyhow::Result<()> {
        let text = fs::read_to_string(self.config().join(file))?;
        anyhow::ensure!(text.contains(from), "{file} does not contain {from:?}");
        self.write(file, &text.replace(from, to))
    }

    /// Deletes a file of the watched folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn delete(&self, file: &str) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.config().join(file))?)
    }

    fn link_up(&self) -> anyhow::Result<()> {
        let peer = |island: &Island, near: &str| {
            format!("link add {near} type veth peer name eth0 netns {}\nlink set {near} up\n", island.name())
        };
        let gateway = [
            peer(&self.internet, "wan0"),
            peer(&self.datacentre, "lan0"),
            peer(&self.backends, "back0"),
            "link add br0 type bridge\nlink set br0 up\n".to_owned(),
            peer(&self.pod, "veth0"),
            "link set veth0 master br0\n".to_owned(),
            "addr add 198.51.100.1/24 dev wan0\naddr add 2001:db8:1::1/64 dev wan0 nodad\n".to_owned(),
            "addr add 10.20.0.1/24 dev lan0\naddr add fd00:20::1/64 dev lan0 nodad\n".to_owned(),
            "addr add 10.30.0.1/24 dev back0\naddr add fd00:30::1/64 dev back0 nodad\n".to_owned(),
            "addr add 10.40.0.1/24 dev br0\naddr add fd00:40::1/64 dev br0 nodad\n".to_owned(),
        ];
        self.gateway.ip(&gateway.concat())?;

        let pools = [PUBLIC_POOL, PRIVATE_POOL, PUBLIC_POOL6, PRIVATE_POOL6];
        let routes = |v4: &str, v6: &str| -> String {
            let via = |pool: &&str| if pool.contains(':') { v6.to_owned() } else { v4.to_owned() };
            pools.iter().map(|pool| format!("route add {pool} via {}\n", via(pool))).collect()
        };
        let sources: String = (10..20).map(|last| format!("addr add 198.51.100.{last}/24 dev eth0\n")).collect();
        self.internet.ip(&format!(
            "link set eth0 up\n{sources}addr add {DENIED}/32 dev eth0\n\
             addr add {INTERNET6}/64 dev eth0 nodad\naddr add {DENIED6}/128 dev eth0 nodad\n{}",
            routes("198.51.100.1", "2001:db8:1::1")
        ))?;
        self.datacentre.ip(&format!(
            "link set eth0 up\naddr add {DATACENTRE}/24 dev eth0\naddr add {OUTSIDER}/32 dev eth0\n\
             addr add {DATACENTRE6}/64 dev eth0 nodad\naddr add {OUTSIDER6}/128 dev eth0 nodad\n{}",
            routes("10.20.0.1", "fd00:20::1")
        ))?;
        self.pod.ip(&format!(
            "link set eth0 up\naddr add {POD}/24 dev eth0\naddr add fd00:40::10/64 dev eth0 nodad\n{}",
            routes("10.40.0.1", "fd00:40::1")
        ))?;
        let pods: String = (11..60)
            .map(|last| format!("addr add 10.30.0.{last}/24 dev eth0\naddr add fd00:30::{last}/64 dev eth0 nodad\n"))
            .collect();
        self.backends.ip(&format!("link set eth0 up\n{pods}"))?;

        // Ways back to the sources that are on no connected network.
        self.gateway.ip(&format!(
            "route add 192.0.2.0/24 via {INTERNET}\nroute add 2001:db8:bad::/48 via {INTERNET6}\n\
             route add 10.99.0.0/24 via {DATACENTRE}\nroute add fd00:99::/64 via {DATACENTRE6}\n"
        ))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        cleanup::remove(&self.name);
    }
}
