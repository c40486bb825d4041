//! IPv4 addresses: one line of a hash says whether a list has one.

use tidegate_abi::sources::{EXACT_LANE, Place};

use super::Lines;

/// The highest bit of both lanes of a word.
const HIGHEST: u64 = 1 << 63 | 1 << 31;

/// 1 when the hash at a place has a mixed address, else 0; `unreadable` when its line is none of the table's.
#[inline(always)]
pub(super) fn find_exact(lines: impl Lines, place: Place, mixed: u32, unreadable: u32) -> u32 {
    if place.lines == 0 {
        return 0;
    }
    let Some(line) = lines.line(place.first + place.line_of(mixed)) else { return unreadable };
    let lane = u64::from(mixed & EXACT_LANE);
    let lanes = lane << 32 | lane;
    let mut same = 0;
    for word in line.words {
        // A lane's highest bit stays only when nothing is subtracted from it.
        same |= HIGHEST - (word ^ lanes);
    }
    (same >> 31 | same >> 63) as u32 & 1
}
