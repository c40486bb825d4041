//! Look-ups in a table of sources: which of a domain's lists have an address.
//!
//! The shape of a table stands in [`tidegate_abi::sources`]. Each family takes a bounded number of lines whatever the size of the
//! lists. A table that lacks a line (which user space never makes) denies. Must not know where lines live.

mod exact;
mod long;
mod v4;
mod v6;

use tidegate_abi::sources::{DENIED, SourceLine};

pub use v4::find_v4;
pub use v6::find_v6;

/// The lines of a table.
pub trait Lines: Copy {
    /// A line; `None` where the table ends.
    fn line(&self, index: u32) -> Option<&SourceLine>;
}

impl Lines for &[SourceLine] {
    fn line(&self, index: u32) -> Option<&SourceLine> {
        self.get(index as usize)
    }
}

/// What an address gets from a table that cannot be read: the domain is closed rather than open.
pub const UNREADABLE: u32 = DENIED;

/// Verdict on an address in two halves; IPv4 is IPv4-mapped, as in [`tidegate_abi::Address`].
#[inline(always)]
pub fn find(lines: impl Lines, upper: u64, lower: u64) -> u32 {
    if upper == 0 && lower >> 32 == 0xffff { find_v4(lines, lower as u32) } else { find_v6(lines, upper, lower) }
}
