//! IPv4: addresses in a hash, a line for each list that has any; prefixes by root, node, leaf, at most three lines.

use tidegate_abi::sources::{HEADER_LINE, Header, IMMEDIATE, ROOT_LINE, VERDICT};

use super::{Lines, UNREADABLE, exact::find_exact};

/// A bit in every byte.
const ONES: u64 = 0x0101_0101_0101_0101;
/// All bits of every byte but the highest.
const LOW_BITS: u64 = 0x7f * ONES;

/// Verdict on an address.
#[inline(always)]
pub fn find_v4(lines: impl Lines, addr: u32) -> u32 {
    let Some(line) = lines.line(HEADER_LINE) else { return UNREADABLE };
    let header = Header::read(line);
    let mixed = header.mix_v4(addr);
    let [denied, allowed] = header.exact;
    let exact = find_exact(lines, denied, mixed, 1) | find_exact(lines, allowed, mixed, 0) << 1;
    exact | find_prefix(lines, addr)
}

/// Verdict of the prefixes that an address is in.
#[inline(always)]
fn find_prefix(lines: impl Lines, addr: u32) -> u32 {
    let upper = addr >> 16;
    let Some(line) = lines.line(ROOT_LINE + (upper >> 4)) else { return UNREADABLE };
    let root = (line.words[(upper >> 1 & 7) as usize] >> (upper << 5 & 32)) as u32;
    if root & IMMEDIATE != 0 {
        return root & VERDICT;
    }
    // A node is two units, and never lies across lines.
    let node = root + (addr >> 14 & 3) * 2;
    let Some(line) = lines.line(node >> 2) else { return UNREADABLE };
    let at = ((node & 2) << 1) as usize;
    let (inner, deny, allow) = (line.words[at], line.words[at + 1], line.words[at + 2]);
    let leaves = line.words[at + 3] as u32;
    let bit = addr >> 8 & 63;
    let (is_denied, is_allowed) = ((deny >> bit & 1) as u32, (allow >> bit & 1) as u32);
    if inner >> bit & 1 == 0 {
        return is_denied | is_allowed << 1;
    }
    let before = inner & ((1 << bit) - 1);
    let leaf = leaves + before.count_ones() + 3 * (before & deny).count_ones();
    let is_full = is_denied;
    let unit = leaf + (addr >> 6 & 3) * is_full;
    let Some(line) = lines.line(unit >> 2) else { return UNREADABLE };
    let at = ((unit & 3) << 1) as usize;
    let (first, second) = (line.words[at], line.words[at + 1]);
    if is_full != 0 {
        let bit = addr & 63;
        return (first >> bit & 1) as u32 | ((second >> bit & 1) as u32) << 1;
    }
    find_exception(first, second, addr & 0xff)
}

/// The verdict of a sparse leaf on the last octet of an address: `octets` are exceptions, the lower two bits of the same byte of
/// `verdicts` say what they are, and the two bits above those in the lowest byte what everything else is.
#[inline(always)]
fn find_exception(octets: u64, verdicts: u64, octet: u32) -> u32 {
    let differing = octets ^ (ONES * u64::from(octet));
    // The highest bit of each byte that is zero, exactly (no carry leaves its byte).
    let equal = !(((differing & LOW_BITS) + LOW_BITS) | differing | LOW_BITS);
    if equal == 0 {
        return (verdicts >> 2) as u32 & VERDICT;
    }
    // Equal octets have equal verdicts, so that folding them together changes nothing.
    let mut folded = verdicts & ((equal >> 7) * 3);
    folded |= folded >> 32;
    folded |= folded >> 16;
    folded |= folded >> 8;
    folded as u32 & VERDICT
}
