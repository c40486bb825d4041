//! Agents of two ABI versions, one after the other: each has maps of its own, filled before they judge, and refuses an object
//! that speaks another version than it does; so does the kernel with programs that it does not trust.

use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use tidegate_abi::{ABI_VERSION, VERSION_SECTION};
use tidegate_kernel::{Kernel, KernelConfig};

use crate::{
    bed::{DENIED_V4, PUBLIC_V4, STRANGER_V4, StopOnDrop, XDP_DROP, XDP_PASS, desired, on_bed},
    frame::{Link, TCP, V4, tcp},
    sys::run_attached,
    takeover::changed_object,
};

/// What the next version's agent is: other programs, which say another version, and a user space that speaks it.
fn next_version(config: &KernelConfig) -> KernelConfig {
    let abi_version = ABI_VERSION + 1;
    KernelConfig {
        object: with_version(changed_object(config), &abi_version.to_le_bytes()),
        abi_version,
        ..config.clone()
    }
}

/// An object with another content of the section that says the version.
fn with_version(object: &[u8], version: &[u8]) -> &'static [u8] {
    let mut object = object.to_vec();
    let (_, content) = find_section(&object, VERSION_SECTION);
    object[content..content + version.len()].copy_from_slice(version);
    Vec::leak(object)
}

/// Where an object has a section's name and content (64-bit ELF).
fn find_section(object: &[u8], wanted: &str) -> (usize, usize) {
    let word = |at: usize| u64::from_le_bytes(object[at..at + 8].try_into().expect("eight bytes")) as usize;
    let half = |at: usize| usize::from(u16::from_le_bytes([object[at], object[at + 1]]));
    let entry = |index: usize| word(0x28) + index * 0x40;
    let names = word(entry(half(0x3e)) + 0x18);
    (0..half(0x3c))
        .map(|index| (names + (word(entry(index)) & 0xffff_ffff), word(entry(index) + 0x18)))
        .find(|(name, _)| object[*name..].starts_with(wanted.as_bytes()))
        .expect("the object has the section")
}

fn maps(config: &KernelConfig) -> Vec<String> {
    let root = config.bpffs.join("tidegate").join(&config.instance);
    let names = fs::read_dir(root).expect("the instance's folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = names.map(|name| name.to_string_lossy().into_owned()).collect();
    names.retain(|name| name.starts_with("maps-"));
    names.sort();
    names
}

fn both(names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    names.sort();
    names
}

#[test]
fn agents_of_two_versions_follow_each_other_and_back_with_no_packet_misjudged() {
    on_bed(|bed| {
        let (wan, lan) = (bed.wan, bed.lan);
        bed.kernel.attach_interface(wan).expect("attaching");
        bed.kernel.attach_steer().expect("attaching");
        let (this, next) = (bed.config.clone(), next_version(&bed.config));
        let folder = |config: &KernelConfig| format!("maps-v{}", config.abi_version);
        let link = this.bpffs.join("tidegate").join(&this.instance).join("links").join(format!("xdp-{wan}-native"));
        let frame = |source| V4::new(source, PUBLIC_V4, TCP, tcp(443)).on(Link::untagged());
        let (denied, admitted) = (frame(DENIED_V4), frame(STRANGER_V4));
        let is_done = AtomicBool::new(false);
        let judged = AtomicU64::new(0);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&is_done);
            let judge = scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    assert_eq!(run_attached(&link, &denied, wan), XDP_DROP, "a denied source");
                    assert_eq!(run_attached(&link, &admitted, wan), XDP_PASS, "a source that is let in");
                    judged.fetch_add(1, Ordering::Relaxed);
                }
            });
            for round in 0..6 {
                // Upgrade, rollback, and so on.
                let (config, other) = if round % 2 == 0 { (&next, &this) } else { (&this, &next) };
                let (mut kernel, opened) = Kernel::open(config).expect("opening");
                assert!(!opened.has_adopted_maps && opened.has_loaded && opened.domains.is_empty(), "{opened:?}");
                assert!(opened.updated.is_empty(), "the other version judges on: {opened:?}");
                assert_eq!(maps(config), both(&[folder(other), format!("{}-new", folder(config))]));
                // One that dies here leaves the other version as it was, for either of them to come back.
                if round % 3 == 1 {
                    drop(kernel);
                    let (again, opened) = Kernel::open(config).expect("opening again");
                    assert!(!opened.has_adopted_maps, "{opened:?}");
                    kernel = again;
                }
                let report = kernel.apply(&desired(wan, lan)).expect("applying");
                assert!(report.failures.is_empty(), "{:?}", report.failures);
                assert_eq!(maps(config), [folder(config)], "those of version {} are gone", other.abi_version);
                let (_, opened) = Kernel::open(config).expect("opening again");
                assert!(opened.has_adopted_maps && !opened.has_loaded, "{opened:?}");
                assert_eq!(opened.kept.len(), 2, "{opened:?}");
                assert!(!judge.is_finished(), "a packet was misjudged in round {round}");
            }
        });
        assert!(judged.load(Ordering::Relaxed) > 100, "hardly anything was judged: {judged:?}");
    });
}

#[test]
fn an_object_of_another_version_is_refused_by_name_and_changes_nothing() {
    on_bed(|bed| {
        bed.kernel.attach_interface(bed.wan).expect("attaching");
        let config = bed.config.clone();
        let refusal = |object| {
            let config = KernelConfig { object, ..config.clone() };
            Kernel::open(&config).map(drop).expect_err("it speaks another version").to_string()
        };
        let other = refusal(next_version(&config).object);
        assert!(
            other
                .contains(&format!("is of ABI version {}, this program speaks version {ABI_VERSION}", ABI_VERSION + 1)),
            "{other}"
        );
        // Nobody would know what an object that says nothing reads and writes.
        let mut silent = config.object.to_vec();
        silent[find_section(config.object, VERSION_SECTION).0] = b'x';
        let none = refusal(Vec::leak(silent));
        assert!(none.contains("is of ABI version none"), "{none}");
        assert_eq!(maps(&config), [format!("maps-v{ABI_VERSION}")]);
        let (_, opened) = Kernel::open(&config).expect("opening again");
        assert!(opened.has_adopted_maps && !opened.has_loaded && opened.updated.is_empty(), "{opened:?}");
    });
}

#[test]
fn a_program_that_the_kernel_refuses_is_named_with_the_verifiers_words() {
    on_bed(|bed| {
        bed.kernel.attach_interface(bed.wan).expect("attaching");
        // Helpers that are for GPL-compatible programs only are refused to any other.
        let mut object = changed_object(&bed.config).to_vec();
        let (_, license) = find_section(&object, "license\0");
        assert_eq!(&object[license..license + 4], b"GPL\0");
        object[license] = b'X';
        let config = KernelConfig { object: Vec::leak(object), ..bed.config.clone() };
        let refusal = Kernel::open(&config).map(drop).expect_err("it is not trusted").to_string();
        assert!(refusal.contains("kernel refuses program explain"), "{refusal}");
        assert!(refusal.contains("cannot call GPL-restricted function"), "{refusal}");
        let (_, opened) = Kernel::open(&bed.config).expect("opening again");
        assert!(opened.has_adopted_maps && !opened.has_loaded && opened.updated.is_empty(), "{opened:?}");
    });
}
