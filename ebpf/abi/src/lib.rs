//! The contract between the BPF programs and user space: map names and sizes, keys, values, reasons.
//!
//! Invariant: every type here that crosses the border is `repr(C)`, has no implicit padding and the same layout for both
//! compilers; [`layout`] asserts it at compile time and `cargo xtask check` compares it with the object's BTF. A change of
//! any layout, map size or meaning raises [`ABI_VERSION`], which names the folder that maps are pinned in, so programs and
//! maps of two versions never mix. Must not know aya, sockets or the decision itself.
#![cfg_attr(not(test), no_std)]

pub mod address;
pub mod connections;
pub mod layout;
pub mod map;
pub mod rates;
pub mod reason;
pub mod sources;

pub use address::{Address, Transport};
pub use connections::{Connections, Instance, KnownSet, Mark, SourceKey};
pub use map::{
    AddressOwner, Counter, DialledKey, FrontendKey, InterfaceKey, Policy, Rate, Sample, SampleBudget, SampleState,
};
pub use rates::{DomainRates, RateSet};
pub use reason::{Hook, Reason};
pub use sources::SourceLine;

/// Version of everything in this crate.
pub const ABI_VERSION: u32 = 3;

/// Section of the BPF object that says which version it was built with: four bytes, little-endian.
pub const VERSION_SECTION: &str = "tidegate_abi";

/// Marks types that may cross the border as plain bytes.
///
/// # Safety
/// `repr(C)`, no padding, no pointers, every bit pattern valid, no interior mutability.
#[expect(unsafe_code, reason = "the promise that makes byte copies through maps sound; it is asserted in `layout`")]
pub unsafe trait Plain: Copy + 'static {}
