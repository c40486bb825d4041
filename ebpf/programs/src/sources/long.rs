//! IPv6 prefixes from /65: binary search over the lengths that occur, in a hash.
//!
//! The search is a walk over steps that user space has written down, and not arithmetic on bounds: what is read from memory
//! looks the same to the verifier in every round, so it goes through a round once and not once for each way to come there.

use tidegate_abi::sources::{
    Header, LINE_ENTRIES, MAX_PROBES, MAX_STEPS, STEPS_LINE, VERDICT,
    meta::{HAS_LONGER, IDENTITY, OVERFLOW, PARENT_SHIFT, VERDICT_SHIFT},
    step, upper_bits,
};

use super::Lines;

/// Verdict on an address in two halves.
#[inline(always)]
pub fn find_long(lines: impl Lines, header: &Header, upper: u64, lower: u64) -> u32 {
    let mut verdict = 0;
    let mut next = header.first_step;
    let mut half = upper;
    let mut parent = 0;
    let mut steps = 0;
    while steps < MAX_STEPS && next != 0 {
        steps += 1;
        let Some(line) = lines.line(STEPS_LINE + (next >> 4 & 15)) else { break };
        let taken = (line.words[(next >> 1 & 7) as usize] >> (next << 5 & 32)) as u32;
        let len = taken & step::LEN;
        // In the second stage a length means as many bits of the lower half as it is above 64; `upper_bits` takes it so.
        let key = upper_bits(half, len);
        let identity = u64::from(len) | parent;
        let (mut at, stride) = header.long.home(header.mix(key, identity));
        let mut probes = 0;
        let (mut meta, mut slot) = (0, 0);
        while probes < MAX_PROBES {
            probes += 1;
            let Some(line) = lines.line(header.long.first + at) else { break };
            let words = &line.words;
            slot = 1;
            if words[0] == key && words[1] & IDENTITY == identity {
                meta = words[1];
            }
            if words[2] == key && words[3] & IDENTITY == identity {
                (meta, slot) = (words[3], 2);
            }
            if words[4] == key && words[5] & IDENTITY == identity {
                (meta, slot) = (words[5], 3);
            }
            if words[6] == key && words[7] & IDENTITY == identity {
                (meta, slot) = (words[7], 4);
            }
            if meta != 0 || words[1] & OVERFLOW == 0 {
                break;
            }
            at = header.long.after(at, stride);
        }
        verdict |= meta >> VERDICT_SHIFT;
        next = if meta == 0 { taken >> step::MISS_SHIFT } else { taken >> step::HIT_SHIFT } & step::NEXT;
        if u64::from(len) == 64 && meta != 0 {
            if meta & HAS_LONGER == 0 {
                break;
            }
            half = lower;
            parent = u64::from(at * LINE_ENTRIES + slot) << PARENT_SHIFT;
        }
    }
    verdict as u32 & VERDICT
}
