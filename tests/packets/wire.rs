//! Real frames over a real NIC: what `BPF_PROG_TEST_RUN` cannot show.

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd,
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};
use tidegate_kernel::{AttachMode, Hook, Interface, Kernel, Reason};

use crate::bed::{DENIED_V4, PUBLIC, PUBLIC_V4, desired, index_of, ip, on_bed};

const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(300);

/// Runs code in the namespace at the other end of `wan0`.
pub(crate) fn on_the_internet(namespace: &std::fs::File, code: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let body = scope.spawn(|| {
            setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET).expect("entering the namespace");
            code();
        });
        if let Err(panic) = body.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Moves `wan1` into a namespace of its own, with a client's addresses; returns that namespace.
pub(crate) fn make_internet() -> std::fs::File {
    let here = std::fs::File::open("/proc/thread-self/ns/net").expect("this namespace");
    let (made, received) = mpsc::channel();
    let (moved, wait) = mpsc::channel::<()>();
    thread::scope(|scope| {
        let inside = scope.spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
            let namespace = std::fs::File::open("/proc/thread-self/ns/net").expect("its file");
            // The thread's own id names its namespace for ip(8).
            made.send((namespace, nix::unistd::gettid())).expect("the other thread waits");
            wait.recv().expect("the other thread answers");
            ip("link set lo up");
            ip("addr add 198.51.100.10/24 dev wan1");
            ip("addr add 192.0.2.7/32 dev wan1");
            ip("link set wan1 up");
            ip("route add 203.0.113.0/24 via 198.51.100.1");
        });
        let (namespace, thread) = received.recv().expect("the namespace was made");
        ip(&format!("link set wan1 netns {thread}"));
        ip("addr add 198.51.100.1/24 dev wan0");
        ip("route add 192.0.2.0/24 dev wan0");
        ip("route add local 203.0.113.0/28 dev lo");
        moved.send(()).expect("the thread waits");
        inside.join().expect("setting up");
        drop(here);
        namespace
    })
}

#[test]
fn frames_on_a_nic_are_judged_with_and_without_an_agent() {
    on_bed(|bed| {
        let internet = make_internet();
        let wan = bed.wan;
        assert_eq!(bed.kernel.attach_interface(wan).expect("attaching"), AttachMode::Native);
        bed.kernel.attach_steer().expect("attaching");
        let listener = TcpListener::bind("127.0.0.1:0").expect("binding");
        bed.kernel.set_sockets(PUBLIC, Some(listener.as_fd()), None).expect("giving a socket");
        let ssh = TcpListener::bind("198.51.100.1:22").expect("binding");
        let frontend = SocketAddr::new(PUBLIC_V4.into(), 443);
        let judge = || {
            on_the_internet(&internet, || {
                // ARP passed, or nothing would connect.
                TcpStream::connect_timeout(&frontend, PATIENCE).expect("a frontend");
                TcpStream::connect_timeout(&"198.51.100.1:22".parse().expect("an address"), PATIENCE).expect("ssh");
                let silent = SocketAddr::new(PUBLIC_V4.into(), 22);
                TcpStream::connect_timeout(&silent, SILENCE).expect_err("no frontend");
                let denied = UdpSocket::bind(SocketAddr::new(DENIED_V4.into(), 0)).expect("binding");
                denied.send_to(b"x", SocketAddr::new(PUBLIC_V4.into(), 53)).expect("sending");
            });
            listener.accept().expect("accepting");
            ssh.accept().expect("accepting");
        };
        judge();
        assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::SourceDenied), 1);
        assert!(bed.count(PUBLIC, Hook::Admit, Reason::NoFrontend) >= 1);
        assert_eq!(bed.count(PUBLIC, Hook::Steer, Reason::Admitted), 1);
        let config = bed.config.clone();
        let (kernel, _) = Kernel::open(&config).expect("opening");
        // Both handles gone: what is pinned judges on.
        drop(std::mem::replace(&mut bed.kernel, kernel));
        judge();
        assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::SourceDenied), 2);
        assert_eq!(bed.count(PUBLIC, Hook::Steer, Reason::Admitted), 2);
    });
}

#[test]
fn a_device_without_native_xdp_gets_the_generic_one() {
    on_bed(|bed| {
        ip("link add bridge0 type bridge");
        let device = index_of("bridge0");
        assert_eq!(bed.kernel.attach_interface(device).expect("attaching"), AttachMode::Generic);
        assert_eq!(bed.kernel.attached()[&device], AttachMode::Generic);
    });
}

#[test]
fn steer_trusts_admit_for_vlan_devices_on_an_attached_nic() {
    on_bed(|bed| {
        // Any device stands for the VLAN device: the tier knows it by its index only.
        let (wan, lan, device) = (bed.wan, bed.lan, index_of("wan1"));
        let mut state = desired(wan, lan);
        let public = state.domains.get_mut(&PUBLIC).expect("in every bed");
        public.interfaces[1] = Interface::tagged(wan, 100, device);
        bed.kernel.apply(&state).expect("applying");
        let admitting = |bed: &crate::bed::Bed| {
            let fill = bed.kernel.map_fill();
            fill.iter().find(|fill| fill.map == "ADMITTING").expect("listed").entries
        };
        assert_eq!(admitting(bed), 0);
        bed.kernel.attach_interface(wan).expect("attaching");
        assert_eq!(admitting(bed), 2, "the NIC and the VLAN device on it");
        bed.kernel.detach_interface(wan).expect("detaching");
        assert_eq!(admitting(bed), 0);
    });
}
