//! What others take away while an agent runs: pins, links, the BPF file system. It is put back, or said.

use std::{fs, path::PathBuf};

use tidegate_kernel::{Kernel, Reason, Upkeep, describe_xdp, mount_bpffs};

use crate::{
    bed::{Bed, DENIED_V4, PUBLIC, PUBLIC_V4, XDP_DROP, on_bed},
    frame::{Link, TCP, V4, tcp},
    guard::{Cgroup, own_cgroup},
    sys::{detach_link, run_attached},
};

fn root(bed: &Bed) -> PathBuf {
    bed.config.bpffs.join("tidegate").join(&bed.config.instance)
}

/// Everything that can be attached is.
fn attach_all(bed: &mut Bed) -> Cgroup {
    let cgroup = Cgroup::new(bed, "kept");
    bed.kernel.attach_interface(bed.wan).expect("attaching");
    bed.kernel.attach_steer().expect("attaching");
    bed.kernel.watch_cgroup(PUBLIC, &cgroup.0).expect("guarding");
    let agents = own_cgroup(bed);
    bed.kernel.watch_borrowed(&agents).expect("guarding");
    assert_eq!(bed.kernel.keep_up(), Upkeep::default(), "there is nothing to do");
    cgroup
}

fn assert_judges(bed: &Bed) {
    let denied = V4::new(DENIED_V4, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
    let link = root(bed).join("links").join(format!("xdp-{}-native", bed.wan));
    assert_eq!(run_attached(&link, &denied, bed.wan), XDP_DROP);
    bed.assert_admit("judged", &denied, bed.wan, PUBLIC, Reason::SourceDenied);
}

#[test]
fn pins_that_somebody_removes_end_nothing_and_are_put_back() {
    on_bed(|bed| {
        let _cgroup = attach_all(bed);
        let maps = format!("maps-v{}", tidegate_abi::ABI_VERSION);
        let mut count = 0;
        for folder in ["links", "programs", &maps] {
            for entry in fs::read_dir(root(bed).join(folder)).expect("a folder").flatten() {
                fs::remove_file(entry.path()).expect("removing a pin");
                count += 1;
            }
        }
        assert!(
            describe_xdp(&bed.config.bpffs, bed.wan).expect("the NIC is there").is_some(),
            "admit ended with its pin"
        );
        let upkeep = bed.kernel.keep_up();
        assert_eq!((upkeep.repaired.len(), upkeep.problems.len()), (count, 0), "{upkeep:?}");
        assert_judges(bed);
        assert_eq!(bed.kernel.keep_up(), Upkeep::default());
        let (_, opened) = Kernel::open(&bed.config).expect("opening again");
        assert!(opened.has_adopted_maps && !opened.has_loaded && opened.updated.is_empty(), "{opened:?}");
    });
}

#[test]
fn links_that_somebody_detaches_are_made_anew() {
    on_bed(|bed| {
        let _cgroup = attach_all(bed);
        let links: Vec<_> = fs::read_dir(root(bed).join("links")).expect("a folder").flatten().collect();
        for link in &links {
            detach_link(&link.path());
        }
        assert_eq!(describe_xdp(&bed.config.bpffs, bed.wan).expect("the NIC is there"), None);
        let upkeep = bed.kernel.keep_up();
        assert!(upkeep.problems.is_empty(), "{upkeep:?}");
        for part in ["admit on interface wan0", "steer", "guard-", "borrowed-"] {
            assert!(upkeep.repaired.iter().any(|line| line.contains(part)), "{part} is not in {upkeep:?}");
        }
        assert_judges(bed);
        assert_eq!(fs::read_dir(root(bed).join("links")).expect("a folder").count(), links.len());
        assert_eq!(bed.kernel.keep_up(), Upkeep::default());
    });
}

#[test]
fn a_bpf_file_system_that_goes_is_missed_and_filled_again_when_it_comes_back() {
    on_bed(|bed| {
        let _cgroup = attach_all(bed);
        nix::mount::umount(&bed.config.bpffs).expect("unmounting");
        let upkeep = bed.kernel.keep_up();
        assert!(upkeep.repaired.is_empty(), "{upkeep:?}");
        assert_eq!(upkeep.problems.len(), 1);
        assert!(upkeep.problems[0].contains("mount -t bpf"), "{upkeep:?}");
        assert!(
            describe_xdp(&bed.config.bpffs, bed.wan).expect("the NIC is there").is_some(),
            "admit ended with the mount"
        );
        assert!(mount_bpffs(&bed.config.bpffs).expect("mounting"));
        let upkeep = bed.kernel.keep_up();
        assert!(upkeep.problems.is_empty() && !upkeep.repaired.is_empty(), "{upkeep:?}");
        assert_judges(bed);
        let (_, opened) = Kernel::open(&bed.config).expect("opening again");
        assert!(opened.has_adopted_maps && opened.updated.is_empty(), "{opened:?}");
    });
}
