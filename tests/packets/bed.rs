//! A test bed: a thread with a network namespace, mounts and an instance of its own, two NICs and five domains.

use std::{
    fs,
    net::IpAddr,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use nix::{
    mount::{MsFlags, mount},
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use tidegate_kernel::{Desired, DomainDesired, Hook, Interface, Kernel, KernelConfig, Reason, mount_bpffs};
use tidegate_model::{Admission, DomainId, FrontendKey, SourceList, Transport, domain::Frontends};

/// Owns addresses, has a deny list, TCP 80 and 443, UDP 53, on `wan0` untagged, VLAN 100 and VLAN 200 in 300.
pub(crate) const PUBLIC: DomainId = DomainId(1);
/// Owns addresses, has an allow list, TCP 80, on `lan0`.
pub(crate) const PRIVATE: DomainId = DomainId(2);
/// TCP 8080 at the node's own address, on `wan0`.
pub(crate) const SHARED: DomainId = DomainId(3);
/// Owns an address, has an empty allow list, TCP 80, on `wan0`.
pub(crate) const CLOSED: DomainId = DomainId(4);

pub(crate) const PUBLIC_V4: [u8; 4] = [203, 0, 113, 1];
pub(crate) const PUBLIC_V6: &str = "2001:db8:1::1";
pub(crate) const PRIVATE_V4: [u8; 4] = [10, 20, 1, 1];
pub(crate) const PRIVATE_V6: &str = "fd00:20::1";
pub(crate) const NODE_V4: [u8; 4] = [10, 0, 0, 5];
pub(crate) const CLOSED_V4: [u8; 4] = [203, 0, 113, 4];
pub(crate) const DENIED_V4: [u8; 4] = [192, 0, 2, 7];
pub(crate) const DENIED_V6: &str = "2001:db8:bad::7";
pub(crate) const ALLOWED_V4: [u8; 4] = [10, 20, 0, 9];
pub(crate) const ALLOWED_V6: &str = "fd00:20:1::9";
pub(crate) const STRANGER_V4: [u8; 4] = [198, 51, 100, 10];
pub(crate) const STRANGER_V6: &str = "2001:db8:ffff::10";

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;

/// The bed of one test.
pub(crate) struct Bed {
    pub(crate) config: KernelConfig,
    pub(crate) kernel: Kernel,
    pub(crate) wan: u32,
    pub(crate) lan: u32,
}

/// Runs a test in a bed of its own, on a thread of its own, whose namespaces end with it.
pub(crate) fn on_bed(test: impl FnOnce(&mut Bed) + Send) {
    in_namespaces(|| {
        let config = new_instance();
        let (mut kernel, opened) = Kernel::open(&config).expect("opening a new instance");
        assert!(!opened.has_adopted_maps);
        let (wan, lan) = (index_of("wan0"), index_of("lan0"));
        let report = kernel.apply(&desired(wan, lan)).expect("applying");
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        let mut bed = Bed { config, kernel, wan, lan };
        test(&mut bed);
    });
}

/// Runs code on a thread with a network namespace (`wan0` and `lan0` in it, loopback up) and mounts of its own.
pub(crate) fn in_namespaces(code: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let body = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("namespaces need root");
            // What is mounted here stays here, and goes with the thread.
            mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
                .expect("private mounts");
            ip("link set lo up");
            ip("link add wan0 type veth peer name wan1");
            ip("link add lan0 type veth peer name lan1");
            for name in ["wan0", "wan1", "lan0", "lan1"] {
                ip(&format!("link set {name} up"));
            }
            code();
        });
        if let Err(panic) = body.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Ends threads that go on until a flag is set, also when those whom they accompany panic: else a scope would wait for them
/// without end, and the panic would never be seen.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A name that no other test and no other run has, on a BPF file system that only this thread sees.
pub(crate) fn new_instance() -> KernelConfig {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let unique = COUNT.fetch_add(1, Ordering::Relaxed);
    let bpffs = PathBuf::from("/run/tidegate-packets");
    fs::create_dir_all(&bpffs).expect("a folder to mount at");
    assert!(mount_bpffs(&bpffs).expect("mounting a BPF file system"));
    KernelConfig::new(bpffs, format!("packets-{}-{unique}", std::process::id()))
}

/// Runs ip(8) in the namespace of the calling thread.
pub(crate) fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("ip(8) is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn index_of(name: &str) -> u32 {
    if_nametoindex(name).expect("the interface was made")
}

pub(crate) fn v6(text: &str) -> [u8; 16] {
    match text.parse().expect("an address") {
        IpAddr::V6(addr) => addr.octets(),
        IpAddr::V4(_) => panic!("{text} is not IPv6"),
    }
}

pub(crate) fn frontend(addr: impl Into<IpAddr>, port: u16, transport: Transport) -> FrontendKey {
    FrontendKey { addr: addr.into(), port, transport }
}

pub(crate) fn nets(texts: &[&str]) -> SourceList {
    texts.iter().map(|text| text.parse().expect("a prefix")).collect()
}

/// The desired state of every bed.
pub(crate) fn desired(wan: u32, lan: u32) -> Desired {
    use Transport::{Tcp, Udp};
    let owned = |addrs: &[[u8; 16]], keys: Vec<FrontendKey>| Frontends {
        exclusive: addrs.iter().map(|addr| IpAddr::from(*addr).to_canonical()).collect(),
        keys,
    };
    let mapped = |v4: [u8; 4]| std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets();
    let mut public = Vec::new();
    for addr in [IpAddr::from(PUBLIC_V4), IpAddr::from(v6(PUBLIC_V6))] {
        public.extend([frontend(addr, 80, Tcp), frontend(addr, 443, Tcp), frontend(addr, 53, Udp)]);
    }
    let public = DomainDesired {
        interfaces: vec![
            Interface::untagged(wan),
            Interface { vlan: 100, ..Interface::untagged(wan) },
            Interface { vlan: 200, inner_vlan: 300, ..Interface::untagged(wan) },
        ],
        admission: Admission { deny: nets(&["192.0.2.0/24", "2001:db8:bad::/48"]), ..Admission::default() },
        frontends: owned(&[mapped(PUBLIC_V4), v6(PUBLIC_V6)], public),
        ..DomainDesired::default()
    };
    let private = DomainDesired {
        interfaces: vec![Interface::untagged(lan)],
        admission: Admission {
            deny: nets(&["10.20.66.0/24"]),
            allow: Some(nets(&["10.20.0.0/16", "fd00:20::/32"])),
            ..Admission::default()
        },
        frontends: owned(
            &[mapped(PRIVATE_V4), v6(PRIVATE_V6)],
            vec![frontend(PRIVATE_V4, 80, Tcp), frontend(v6(PRIVATE_V6), 80, Tcp)],
        ),
        ..DomainDesired::default()
    };
    let shared = DomainDesired {
        interfaces: vec![Interface::untagged(wan)],
        frontends: owned(&[], vec![frontend(NODE_V4, 8080, Tcp)]),
        ..DomainDesired::default()
    };
    let closed = DomainDesired {
        interfaces: vec![Interface::untagged(wan)],
        admission: Admission { allow: Some(SourceList::default()), ..Admission::default() },
        frontends: owned(&[mapped(CLOSED_V4)], vec![frontend(CLOSED_V4, 80, Tcp)]),
        ..DomainDesired::default()
    };
    Desired { domains: [(PUBLIC, public), (PRIVATE, private), (SHARED, shared), (CLOSED, closed)].into() }
}

impl Bed {
    /// Packets counted for a domain, hook and reason.
    pub(crate) fn count(&self, domain: DomainId, hook: Hook, reason: Reason) -> u64 {
        let rows = self.kernel.counters().expect("reading counters");
        rows.iter()
            .find(|row| (row.domain, row.hook, row.reason) == (domain, hook, reason))
            .map_or(0, |row| row.packets)
    }

    /// Runs `admit` on a frame and asserts the action, that exactly one counter grew, by one packet and the frame's bytes, and
    /// that `explain` says the same.
    pub(crate) fn assert_admit(&self, name: &str, frame: &[u8], ifindex: u32, domain: DomainId, reason: Reason) {
        let before = self.kernel.counters().expect("reading counters");
        let run = self.kernel.run_admit(frame, ifindex, 1).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut after = self.kernel.counters().expect("reading counters");
        for row in &mut after {
            let same = |old: &&tidegate_kernel::CounterRow| {
                (old.domain, old.hook, old.reason) == (row.domain, row.hook, row.reason)
            };
            if let Some(old) = before.iter().find(same) {
                row.packets -= old.packets;
                row.bytes -= old.bytes;
            }
        }
        after.retain(|row| row.packets > 0 || row.bytes > 0);
        assert_eq!(after.len(), 1, "{name}: {after:?}");
        let row = after[0];
        assert_eq!((row.domain, row.hook, row.reason), (domain, Hook::Admit, reason), "{name}");
        assert_eq!((row.packets, row.bytes), (1, frame.len() as u64), "{name}");
        assert_eq!(run.returned, if reason.is_denial() { XDP_DROP } else { XDP_PASS }, "{name}");
        let verdict = self.kernel.explain(frame, ifindex).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((verdict.domain, verdict.reason), (domain, reason), "{name}: explain");
    }
}
