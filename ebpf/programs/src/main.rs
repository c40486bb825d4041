//! The BPF object: maps, counting and the programs `admit`, `steer`, `guard` and `explain`.
//!
//! Each program reads its context, asks [`tidegate_programs::decide`], counts, perhaps samples, and answers; nothing is
//! decided here. Unsafe code is what touching packets and maps is; every block says why it is sound.
//!
//! The object says "GPL" to the kernel, which is how the kernel spells "may use GPL-only helpers" (`bpf_ktime_get_ns` is
//! one); the source is Apache-2.0, which recipients may combine so.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", expect(internal_features, reason = "`core` has no atomic operations for BPF"))]

#[cfg(target_arch = "bpf")]
mod programs;

/// The object is built for one target only; elsewhere this binary has nothing to do.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
