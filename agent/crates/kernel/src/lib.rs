//! The kernel tier: the only user of aya.
//!
//! [`probe()`] says whether this host can do it; [`Kernel::open`] loads the programs and takes over what an earlier agent left
//! pinned; [`Kernel::apply`] leads from what is applied to what is desired by the smallest change, in an order in which no
//! packet is misjudged on the way; counters, samples and [`Kernel::explain`] tell what was judged and why. The programs and
//! their maps outlive the agent: everything that judges is pinned. Must not know Gateway API objects, workers' protocols or
//! any async runtime: every call is a few system calls.

mod apply;
mod attach;
mod connections;
mod counters;
mod craft;
mod desired;
mod entries;
mod error;
mod inspect;
mod interfaces;
mod limits;
mod maps;
mod object;
mod open;
mod pins;
mod probe;
mod programs;
mod rates;
mod requirements;
mod samples;
mod sources;
mod sys;
mod tables;
mod test_run;
#[cfg(feature = "trial")]
pub mod trial;
mod upkeep;

pub use tidegate_abi::{Hook, Reason};

pub use attach::AttachMode;
pub use connections::{ConnectionRow, Histogram};
pub use counters::{CounterRow, MapFill, SampleLosses};
pub use craft::{PacketSpec, Payload, craft};
pub use desired::{AppliedReport, ApplyFailure, Desired, DomainDesired, Interface};
pub use error::KernelError;
pub use inspect::{InstanceState, LinkState, MapState, ProgramState, describe_xdp, inspect};
pub use open::{Kernel, KernelConfig, Opened};
pub use pins::detach_all;
pub use probe::{Features, Missing, ProbeError, mount_bpffs, probe};
pub use rates::{RateFill, RateState};
pub use samples::{Sample, Samples};
pub use sources::{MAX_PREFIXES, SourceUse};
pub use test_run::{Connection, TestRun, Verdict};
pub use upkeep::Upkeep;
