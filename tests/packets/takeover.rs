//! An agent that dies and the next one: pins judge on, links stay, changed programs take their place without a gap.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::PathBuf,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use tidegate_kernel::{Hook, Interface, Kernel, KernelConfig, Reason, detach_all};

use crate::{
    bed::{
        Bed, CLOSED, DENIED_V4, PRIVATE, PUBLIC, PUBLIC_V4, SHARED, STRANGER_V4, StopOnDrop, desired, in_namespaces,
        index_of, ip, new_instance, on_bed,
    },
    frame::{Link, TCP, V4, tcp},
    sys,
};

fn links(config: &KernelConfig) -> Vec<String> {
    let folder: PathBuf = config.bpffs.join("tidegate").join(&config.instance).join("links");
    let mut names: Vec<String> = fs::read_dir(folder)
        .expect("the folder of links")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// The same programs but for one constant (the largest header offset), as a next version would have them.
pub(crate) fn changed_object(config: &KernelConfig) -> &'static [u8] {
    let mut object = config.object.to_vec();
    // Instructions are eight bytes, the constant is the last four; all sections of programs are aligned to eight.
    let mut changed = 0;
    for instruction in object.chunks_exact_mut(8) {
        // jgt/jge and their 32-bit forms with a constant of 0x7fff or 0x8000.
        let is_comparison = matches!(instruction[0], 0x25 | 0x35 | 0x26 | 0x36);
        let constant = u32::from_le_bytes([instruction[4], instruction[5], instruction[6], instruction[7]]);
        if is_comparison && (constant == 0x7fff || constant == 0x8000) {
            instruction[4..].copy_from_slice(&(constant - 2).to_le_bytes());
            changed += 1;
        }
    }
    assert!(changed > 0, "the constant is not where it was");
    Vec::leak(object)
}

fn reopen(bed: &mut Bed, config: &KernelConfig) -> tidegate_kernel::Opened {
    let (kernel, opened) = Kernel::open(config).expect("opening again");
    // The old one goes after the new one is there, as with an agent that is replaced; a dead one is tested below.
    bed.kernel = kernel;
    opened
}

#[test]
fn the_next_agent_finds_links_programs_and_state_as_they_were() {
    on_bed(|bed| {
        let (wan, lan) = (bed.wan, bed.lan);
        bed.kernel.attach_interface(wan).expect("attaching");
        bed.kernel.attach_interface(lan).expect("attaching");
        bed.kernel.attach_steer().expect("attaching");
        let admit = bed.kernel.program_id("admit").expect("loaded");
        let before = links(&bed.config);
        assert_eq!(before.len(), 3, "{before:?}");
        let attached = bed.kernel.attached().clone();
        let frame = V4::new(DENIED_V4, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        bed.assert_admit("before", &frame, wan, PUBLIC, Reason::SourceDenied);
        let config = bed.config.clone();
        let opened = reopen(bed, &config);
        assert!(opened.has_adopted_maps && !opened.has_loaded, "{opened:?}");
        assert_eq!(opened.domains, [PUBLIC, PRIVATE, SHARED, CLOSED]);
        assert_eq!((opened.updated.len(), opened.kept.len()), (0, 3), "{opened:?}");
        assert_eq!(links(&config), before);
        assert_eq!(bed.kernel.attached(), &attached);
        assert_eq!(bed.kernel.program_id("admit"), Some(admit), "the same program judges on");
        assert_eq!(bed.count(PUBLIC, Hook::Admit, Reason::SourceDenied), 1, "counters go on");
        let report = bed.kernel.apply(&desired(wan, lan)).expect("applying");
        // All but what tables of sources hold: two domains have lists, so two policies name new tables and two tables go.
        assert_eq!((report.written, report.removed), (2, 2), "what is applied was read back");
        bed.assert_admit("after", &frame, wan, PUBLIC, Reason::SourceDenied);
        // Attaching again finds what is there.
        bed.kernel.attach_interface(wan).expect("attaching");
        bed.kernel.attach_steer().expect("attaching");
        assert_eq!(links(&config), before);
    });
}

#[test]
fn changed_programs_take_the_place_of_the_old_ones_on_the_same_links() {
    on_bed(|bed| {
        let wan = bed.wan;
        bed.kernel.attach_interface(wan).expect("attaching");
        bed.kernel.attach_steer().expect("attaching");
        let before = links(&bed.config);
        let old = bed.kernel.program_id("admit").expect("loaded");
        let steer = bed.kernel.program_id("steer").expect("loaded");
        let config = KernelConfig { object: changed_object(&bed.config), ..bed.config.clone() };
        let opened = reopen(bed, &config);
        assert_eq!(opened.updated, [format!("xdp-{wan}-native")], "{opened:?}");
        assert_eq!(opened.kept, ["steer"]);
        assert!(opened.has_loaded);
        assert_ne!(bed.kernel.program_id("admit"), Some(old));
        assert_eq!(bed.kernel.program_id("steer"), Some(steer));
        assert_eq!(links(&config), before);
        // And back again.
        let config = bed.config.clone();
        let opened = reopen(bed, &config);
        assert_eq!(opened.updated, [format!("xdp-{wan}-native")], "{opened:?}");
    });
}

#[test]
fn maps_of_another_version_judge_until_the_first_state_is_applied() {
    on_bed(|bed| {
        let (wan, lan) = (bed.wan, bed.lan);
        ip("route add local 203.0.113.0/28 dev lo");
        let mut state = desired(wan, lan);
        let loopback = Interface::untagged(index_of("lo"));
        state.domains.get_mut(&PUBLIC).expect("in every bed").interfaces.push(loopback);
        bed.kernel.apply(&state).expect("applying");
        let old = TcpListener::bind("127.0.0.1:0").expect("binding");
        bed.kernel.set_sockets(PUBLIC, Some(old.as_fd()), None).expect("giving a socket");
        bed.kernel.attach_steer().expect("attaching");
        let squatter = TcpListener::bind("0.0.0.0:443").expect("binding");
        squatter.set_nonblocking(true).expect("setting a mode");
        let destination = SocketAddr::new(PUBLIC_V4.into(), 443);
        let connect = || TcpStream::connect_timeout(&destination, Duration::from_secs(5)).expect("connecting");
        // What an agent of another ABI version leaves.
        let root = bed.config.bpffs.join("tidegate").join(&bed.config.instance);
        fs::rename(root.join(format!("maps-v{}", tidegate_abi::ABI_VERSION)), root.join("maps-v0")).expect("renaming");
        let config = bed.config.clone();
        let opened = reopen(bed, &config);
        assert!(!opened.has_adopted_maps && opened.updated.is_empty() && opened.kept.is_empty(), "{opened:?}");
        connect();
        old.accept().expect("the old maps steer on");
        let new = TcpListener::bind("127.0.0.1:0").expect("binding");
        bed.kernel.set_sockets(PUBLIC, Some(new.as_fd()), None).expect("giving a socket");
        connect();
        old.accept().expect("the old maps steer on");
        bed.kernel.apply(&state).expect("applying");
        connect();
        new.accept().expect("the new maps steer now");
        assert!(squatter.accept().is_err(), "nothing reached the other listener");
        assert!(!root.join("maps-v0").exists());
        assert_eq!(reopen(bed, &config).kept, ["steer"]);
    });
}

#[test]
fn maps_that_were_never_filled_are_not_taken_over() {
    on_bed(|bed| {
        let (wan, lan) = (bed.wan, bed.lan);
        bed.kernel.attach_interface(wan).expect("attaching");
        let root = bed.config.bpffs.join("tidegate").join(&bed.config.instance);
        fs::rename(root.join(format!("maps-v{}", tidegate_abi::ABI_VERSION)), root.join("maps-v0")).expect("renaming");
        let denied = V4::new(DENIED_V4, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        let config = bed.config.clone();
        let pin = root.join("links").join(format!("xdp-{wan}-native"));
        // Each of these dies with all maps of its version made and none filled: empty ones would let everything pass.
        for _ in 0..2 {
            let opened = reopen(bed, &config);
            assert!(!opened.has_adopted_maps && opened.updated.is_empty(), "{opened:?}");
            assert_eq!(crate::sys::run_attached(&pin, &denied, wan), crate::bed::XDP_DROP, "the old maps judge on");
        }
        bed.kernel.apply(&desired(wan, lan)).expect("applying");
        bed.assert_admit("filled", &denied, wan, PUBLIC, Reason::SourceDenied);
        assert_eq!(crate::sys::run_attached(&pin, &denied, wan), crate::bed::XDP_DROP);
        assert!(reopen(bed, &config).has_adopted_maps);
        // Of maps that are not complete (somebody removed a pin) none is taken over either.
        fs::remove_file(root.join(format!("maps-v{}", tidegate_abi::ABI_VERSION)).join("ADDRESSES")).expect("removing");
        let opened = reopen(bed, &config);
        assert!(!opened.has_adopted_maps && opened.domains.is_empty(), "{opened:?}");
        assert_eq!(crate::sys::run_attached(&pin, &denied, wan), crate::bed::XDP_DROP, "the old maps judge on");
        bed.kernel.apply(&desired(wan, lan)).expect("applying");
        bed.assert_admit("filled again", &denied, wan, PUBLIC, Reason::SourceDenied);
        assert_eq!(crate::sys::run_attached(&pin, &denied, wan), crate::bed::XDP_DROP);
    });
}

#[test]
fn folders_of_pins_are_closed_and_those_of_others_refused() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    on_bed(|bed| {
        let root = bed.config.bpffs.join("tidegate").join(&bed.config.instance);
        let maps = root.join(format!("maps-v{}", tidegate_abi::ABI_VERSION));
        let mode = |path: &std::path::Path| fs::metadata(path).expect("it is there").mode() & 0o7777;
        for folder in [root.parent().expect("not the root"), &root, &maps, &root.join("links"), &root.join("programs")]
        {
            assert_eq!(mode(folder), 0o700, "{folder:?}");
        }
        assert_eq!(mode(&maps.join("DOMAINS")), 0o600);
        fs::set_permissions(&maps, fs::Permissions::from_mode(0o777)).expect("opening it");
        let config = bed.config.clone();
        assert_eq!(reopen(bed, &config).closed, std::slice::from_ref(&maps));
        assert_eq!(mode(&maps), 0o700);
        assert!(reopen(bed, &config).closed.is_empty());
        let refused = |what: &str| {
            let error = Kernel::open(&config).map(drop).expect_err("what others made is not used").to_string();
            assert!(error.contains(what), "{error}");
        };
        chown(maps.join("DOMAINS"), Some(1000), None).expect("giving it away");
        refused("DOMAINS belongs to user 1000");
        chown(maps.join("DOMAINS"), Some(0), None).expect("taking it back");
        chown(root.join("links"), Some(1000), None).expect("giving it away");
        refused("links belongs to user 1000");
        chown(root.join("links"), Some(0), None).expect("taking it back");
        fs::rename(root.join("programs"), root.join("elsewhere")).expect("renaming");
        symlink(root.join("elsewhere"), root.join("programs")).expect("linking");
        refused("programs is no folder");
    });
}

#[test]
fn an_agent_that_died_between_two_steps_is_completed() {
    on_bed(|bed| {
        let (wan, lan) = (bed.wan, bed.lan);
        bed.kernel.attach_interface(wan).expect("attaching");
        // Maps and links are there, the programs' pins are not yet.
        let root = bed.config.bpffs.join("tidegate").join(&bed.config.instance);
        for entry in fs::read_dir(root.join("programs")).expect("the folder of programs") {
            fs::remove_file(entry.expect("an entry").path()).expect("removing");
        }
        let config = bed.config.clone();
        let opened = reopen(bed, &config);
        assert_eq!(opened.updated, [format!("xdp-{wan}-native")]);
        assert_eq!(reopen(bed, &config).kept, [format!("xdp-{wan}-native")]);
        // A table was filled that no policy names yet: it is found and removed.
        let mut state = desired(wan, lan);
        let filler = |net: u8| format!("172.16.{net}.0/24").parse::<ipnet::IpNet>().expect("a prefix");
        state.domains.get_mut(&PUBLIC).expect("in every bed").admission.deny.extend((0..10).map(filler));
        bed.kernel.apply(&state).expect("applying");
        crate::sys::delete_element(&config, "DOMAINS", &PUBLIC.0.to_ne_bytes());
        reopen(bed, &config);
        let report = bed.kernel.apply(&desired(wan, lan)).expect("applying");
        // What tables hold is not read back: the two domains with lists get new ones, and the others go.
        assert_eq!((report.written, report.removed), (2, 2), "policies name new tables, unknown ones go");
        assert_eq!(bed.kernel.source_tables(), 2, "one table for each domain with lists");
        let frame = V4::new(DENIED_V4, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        bed.assert_admit("complete", &frame, wan, PUBLIC, Reason::SourceDenied);
    });
}

#[test]
fn an_interface_that_vanishes_is_swept_and_its_successor_attached() {
    on_bed(|bed| {
        let (old, lan) = (bed.wan, bed.lan);
        bed.kernel.attach_interface(old).expect("attaching");
        assert!(bed.kernel.sweep_interfaces().expect("sweeping").is_empty());
        ip("link delete wan0");
        assert_eq!(bed.kernel.sweep_interfaces().expect("sweeping"), [old]);
        assert!(links(&bed.config).is_empty());
        assert!(bed.kernel.attach_interface(old).is_err(), "there is none");
        ip("link add wan0 type veth peer name wan1");
        let new = index_of("wan0");
        bed.kernel.attach_interface(new).expect("attaching");
        bed.kernel.apply(&desired(new, lan)).expect("applying");
        let frame = V4::new(STRANGER_V4, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        bed.assert_admit("on the successor", &frame, new, PUBLIC, Reason::Admitted);
        // An agent that was away meanwhile finds a dead link.
        ip("link delete wan0");
        let config = bed.config.clone();
        reopen(bed, &config);
        assert!(bed.kernel.attached().is_empty());
        assert!(links(&config).is_empty());
    });
}

#[test]
fn detach_all_ends_every_verdict_of_an_instance_and_of_no_other() {
    on_bed(|bed| {
        bed.kernel.attach_interface(bed.wan).expect("attaching");
        let other = KernelConfig { instance: format!("{}-other", bed.config.instance), ..bed.config.clone() };
        let (mut other_kernel, _) = Kernel::open(&other).expect("opening another");
        other_kernel.attach_interface(bed.lan).expect("attaching");
        let refused = other_kernel.attach_interface(bed.wan).expect_err("one XDP program a NIC");
        assert!(refused.to_string().contains("has another XDP program"), "{refused}");
        detach_all(&bed.config.bpffs, &bed.config.instance).expect("detaching");
        other_kernel.attach_interface(bed.wan).expect("the place is free");
        detach_all(&bed.config.bpffs, &other.instance).expect("detaching");
        detach_all(&bed.config.bpffs, &other.instance).expect("nothing to do");
        assert!(!bed.config.bpffs.join("tidegate").exists());
    });
}

#[test]
fn agents_come_and_go_while_connections_are_made_and_none_is_misjudged() {
    on_bed(|bed| {
        ip("route add local 203.0.113.0/28 dev lo");
        ip("addr add 192.0.2.9/32 dev lo");
        let mut state = desired(bed.wan, bed.lan);
        let loopback = Interface::untagged(index_of("lo"));
        state.domains.get_mut(&PUBLIC).expect("in every bed").interfaces.push(loopback);
        bed.kernel.apply(&state).expect("applying");
        let listener = TcpListener::bind("127.0.0.1:0").expect("binding");
        bed.kernel.set_sockets(PUBLIC, Some(listener.as_fd()), None).expect("giving a socket");
        bed.kernel.attach_steer().expect("attaching");
        let destination = SocketAddr::new(PUBLIC_V4.into(), 443);
        let refused_port = SocketAddr::new(PUBLIC_V4.into(), 22);
        let squatter = TcpListener::bind("0.0.0.0:22").expect("binding");
        squatter.set_nonblocking(true).expect("setting a mode");
        let is_done = AtomicBool::new(false);
        let served = AtomicU64::new(0);
        let normal = bed.config.clone();
        let changed = KernelConfig { object: changed_object(&normal), ..normal.clone() };
        thread::scope(|scope| {
            let _stop = StopOnDrop(&is_done);
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    let client = TcpStream::connect_timeout(&destination, Duration::from_secs(5));
                    assert!(client.is_ok(), "a connection was lost: {client:?}");
                    drop(listener.accept().expect("accepting"));
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    let client = TcpStream::connect_timeout(&refused_port, Duration::from_millis(20));
                    assert!(client.is_err(), "a refused connection was let through");
                }
            });
            for round in 0..20 {
                let config = if round % 2 == 0 { &changed } else { &normal };
                let (mut kernel, _) = Kernel::open(config).expect("opening");
                kernel.apply(&state).expect("applying");
                kernel.attach_steer().expect("attaching");
                // The handle goes as it does with a killed agent: nothing is undone.
                drop(kernel);
            }
        });
        assert!(squatter.accept().is_err(), "nothing reached the other listener");
        assert!(served.load(Ordering::Relaxed) > 20, "hardly anything was served");
    });
}

#[test]
fn programs_are_loaded_though_signals_interrupt_the_verifier() {
    in_namespaces(|| {
        let config = new_instance();
        let opened = sys::under_signals(Duration::from_millis(200), || Kernel::open(&config));
        assert!(opened.expect("an agent gets signals too").1.has_loaded);
    });
}
