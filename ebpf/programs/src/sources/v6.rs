//! IPv6: intervals in trees up to /64, a hash for what is longer.
//!
//! Nothing here branches on a key where arithmetic does: a guess about memory that is not there yet is wrong half of the time, and
//! what the processor has begun behind it is lost.

use tidegate_abi::sources::{
    HEADER_LINE, Header, IMMEDIATE, MAX_PROBES, VERDICT,
    group::{KEY, LINE, LINE_SHIFT, OVERFLOW},
    range::{END, LANES, MAX_DEPTH},
};

use super::{Lines, UNREADABLE, long::find_long};

/// The lowest bit of both halves of a word.
const ONES: u64 = 1 << 32 | 1;

/// Verdict on an address in two halves.
#[inline(always)]
pub fn find_v6(lines: impl Lines, upper: u64, lower: u64) -> u32 {
    let Some(line) = lines.line(HEADER_LINE) else { return UNREADABLE };
    let header = Header::read(line);
    let mut verdict = 0;
    if header.short_root != 0 {
        let Some(line) = lines.line(header.short_root + (upper >> 52) as u32) else { return UNREADABLE };
        let root = (line.words[(upper >> 49 & 7) as usize] >> (upper >> 43 & 32)) as u32;
        verdict |=
            if root & IMMEDIATE != 0 { root & VERDICT } else { find_range(lines, root, (upper >> 17) as u32 & END) };
    }
    if header.groups.lines != 0 {
        let root = find_group(lines, &header, upper >> 31);
        if root != 0 {
            verdict |= find_range(lines, root, upper as u32 & END);
        }
    }
    if header.first_step != 0 {
        verdict |= find_long(lines, &header, upper, lower);
    }
    verdict
}

/// The root of a /33's tree; 0 is none.
#[inline(always)]
fn find_group(lines: impl Lines, header: &Header, key: u64) -> u32 {
    let (mut at, stride) = header.groups.home(header.mix(key, 0));
    let mut found = 0;
    let mut probes = 0;
    while probes < MAX_PROBES {
        probes += 1;
        let Some(line) = lines.line(header.groups.first + at) else { break };
        for word in line.words {
            // One bit stays beside the key's only when nothing is subtracted from it.
            let same = (KEY + 1) - ((word ^ key) & KEY);
            found |= word & 0u64.wrapping_sub(same >> LINE_SHIFT);
        }
        found = found >> LINE_SHIFT & LINE;
        if found != 0 || line.words[0] & OVERFLOW == 0 {
            break;
        }
        at = header.groups.after(at, stride);
    }
    found as u32
}

/// The verdict of the interval that a key lies in.
#[inline(always)]
fn find_range(lines: impl Lines, root: u32, key: u32) -> u32 {
    let keys = u64::from(key) * ONES;
    let mut at = root;
    let mut depth = 0;
    while depth < MAX_DEPTH {
        depth += 1;
        let Some(line) = lines.line(at) else { return UNREADABLE };
        let [a, b, c, d, e, f, g, last] = line.words;
        // Of each lane the highest bit stays when the key is not beyond it.
        let mut lanes = 0;
        for word in [a, b, c, d, e, f, g] {
            lanes += word.wrapping_sub(keys) >> 31 & ONES;
        }
        let index = LANES as u32 - ((lanes + (lanes >> 32)) as u32 & 15);
        let children = (last >> 32) as u32;
        if children == 0 {
            return (last >> (2 * index)) as u32 & VERDICT;
        }
        at = children + index;
    }
    UNREADABLE
}
