//! The trial object: look-ups of random sources, alone. Never attached and never part of an agent; `cargo xtask bench kernel` runs
//! its programs by BPF_PROG_TEST_RUN.
//!
//! Each program takes a random key of `KEYS` and returns something of what it found. `nothing` is the same without a look-up: the
//! others' time less its time is what a look-up takes. Keys are drawn anew in each run, since one key that is asked again and
//! again is in the first cache.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod programs;

/// The object is built for one target only; elsewhere this binary has nothing to do.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
