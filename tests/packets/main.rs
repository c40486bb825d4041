//! Level `packets`: the really loaded programs, judged by what they do to crafted packets, connections and dialled addresses.
//!
//! Each test has a network namespace, a BPF file system and an instance of its own ([`bed`]), so they run side by side and
//! leave nothing behind. Needs root and the BPF object (`cargo xtask ebpf`). A fixture is bytes in, verdict and counters out.

mod bed;
mod cookie;
mod fixtures;
mod frame;
mod guard;
mod icmp;
mod kill;
mod limits;
mod lists;
mod martian;
mod mirror;
mod neighbours;
mod open;
mod random;
mod rates;
mod reasons;
mod samples;
mod steer;
mod sys;
mod takeover;
mod upkeep;
mod version;
mod wire;
