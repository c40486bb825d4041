//! Others on the same NIC: they are named and left alone, and their place is taken when they go.

use std::os::fd::AsFd;

use tidegate_kernel::{AttachMode, Kernel, KernelConfig, describe_xdp, detach_all, inspect};

use crate::{
    bed::{PUBLIC, on_bed},
    guard::{Cgroup, own_cgroup},
    sys::{attach_neighbour, id_of, load_neighbour, pin},
};

#[test]
fn another_program_on_the_nic_is_named_and_never_replaced() {
    on_bed(|bed| {
        let neighbour = load_neighbour("neighbour");
        let id = id_of(neighbour.as_fd());
        let place = attach_neighbour(neighbour.as_fd(), bed.wan);
        let refused = bed.kernel.attach_interface(bed.wan).expect_err("the place is taken").to_string();
        for part in ["interface wan0", "\"neighbour\"", &format!("program id {id}"), "is not replaced"] {
            assert!(refused.contains(part), "{part} is not in: {refused}");
        }
        let seen = describe_xdp(&bed.config.bpffs, bed.wan).expect("the interface is there");
        assert_eq!(seen, Some(format!("\"neighbour\" (program id {id})")), "it runs on");
        // Another NIC is no matter of it.
        bed.kernel.attach_interface(bed.lan).expect("attaching");
        drop(place);
        assert_eq!(bed.kernel.attach_interface(bed.wan).expect("the place is free"), AttachMode::Native);
    });
}

#[test]
fn a_second_instance_on_the_nic_is_refused_with_the_first_ones_name() {
    on_bed(|bed| {
        bed.kernel.attach_interface(bed.wan).expect("attaching");
        let other = KernelConfig { instance: format!("{}-second", bed.config.instance), ..bed.config.clone() };
        let (mut second, _) = Kernel::open(&other).expect("opening");
        let refused = second.attach_interface(bed.wan).expect_err("the place is taken").to_string();
        assert!(refused.contains(&format!("instance {:?}", bed.config.instance)), "{refused}");
        second.attach_interface(bed.lan).expect("the other NIC is free");
        bed.kernel.detach_interface(bed.wan).expect("leaving");
        second.attach_interface(bed.wan).expect("the place is free");
        detach_all(&other.bpffs, &other.instance).expect("detaching");
    });
}

#[test]
fn everything_of_an_instance_is_seen_and_nothing_is_left_of_it() {
    on_bed(|bed| {
        let cgroup = Cgroup::new(bed, "seen");
        bed.kernel.attach_interface(bed.wan).expect("attaching");
        bed.kernel.attach_steer().expect("attaching");
        bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
        bed.kernel.watch_borrowed(&own_cgroup(bed)).expect("guarding");
        let neighbour = load_neighbour("neighbour");
        pin(neighbour.as_fd(), &bed.config.bpffs.join("neighbour"));
        let states = inspect(&bed.config.bpffs).expect("reading");
        assert_eq!(states.len(), 1);
        let state = &states[0];
        assert_eq!(state.instance, bed.config.instance);
        let target = |pin: &str| {
            let link = state.links.iter().find(|link| link.pin.starts_with(pin)).unwrap_or_else(|| panic!("no {pin}"));
            link.target.clone().expect("it hangs on something")
        };
        assert_eq!(target("xdp-"), "interface wan0 (native)");
        assert_eq!(target("guard-"), format!("cgroup {}", cgroup.0.display()));
        assert!(target("steer").starts_with("network namespace "));
        let admit = state.programs.iter().find(|program| program.pin == "admit").expect("it is pinned");
        assert_eq!(Some(admit.id), bed.kernel.program_id("admit"));
        assert!(admit.memory > 0 && admit.tag.len() == 16);
        assert!(admit.loaded.elapsed().expect("it was loaded before").as_secs() < 600);
        let map = |name: &str| {
            let pin = format!("maps-v{}/{name}", tidegate_abi::ABI_VERSION);
            state.maps.iter().find(|map| map.pin == pin).unwrap_or_else(|| panic!("no {pin}"))
        };
        assert_eq!((map("DOMAINS").entries, map("WORKERS").entries), (Some(4), Some(1)));
        assert_eq!(map("COUNTERS").entries, None, "its places are always there");
        assert!(state.maps.iter().all(|map| map.memory > 0));
        assert_eq!(state.maps.len(), tidegate_abi::map::name::ALL.len());
        detach_all(&bed.config.bpffs, &bed.config.instance).expect("detaching");
        assert!(inspect(&bed.config.bpffs).expect("reading").is_empty());
        assert_eq!(describe_xdp(&bed.config.bpffs, bed.wan).expect("the interface is there"), None);
        // The kernel's own files (`progs.debug`, `maps.debug`) aside.
        let left = std::fs::read_dir(&bed.config.bpffs).expect("reading").flatten().map(|entry| entry.file_name());
        let left: Vec<_> = left.filter(|name| !name.to_string_lossy().ends_with(".debug")).collect();
        assert_eq!(left, ["neighbour"]);
    });
}
