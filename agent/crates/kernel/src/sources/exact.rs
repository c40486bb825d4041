//! Builds and changes a hash of IPv4 addresses: which line has an address, and in which of its lanes.
//!
//! A line is always full of something that can be compared: lanes that are left over say the first address again, and those of a
//! line without any a lane that no address of the line has.

use tidegate_abi::sources::{EXACT_LANE, EXACT_LANES, Header, MIN_EXACT_LINES, Place, SourceLine};

/// Addresses for each line of a new hash: half its lanes. By chance about one in a thousand then finds its line full.
const NEW_FILL: u64 = 8;

/// Lines of a hash for so many addresses; `generosity` (a hundred is enough mostly) makes it larger.
pub(crate) fn count_lines(addresses: u64, generosity: u64) -> u64 {
    match addresses {
        0 => 0,
        _ => (addresses * generosity / 100).div_ceil(NEW_FILL).max(MIN_EXACT_LINES.into()),
    }
}

/// The hash of one list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exact {
    header: Header,
    place: Place,
}

type Lanes = [u32; EXACT_LANES as usize];

impl Exact {
    /// The hash of a list, 0 the denied, 1 the allowed, where the header says.
    pub(crate) fn of(header: Header, list: usize) -> Self {
        Self { header, place: header.exact[list] }
    }

    /// Makes all lines empty.
    pub(crate) fn clear(&self, lines: &mut [SourceLine]) {
        for line in 0..self.place.lines {
            write(&mut lines[(self.place.first + line) as usize], &[self.filling(line); EXACT_LANES as usize]);
        }
    }

    /// Whether an address is here.
    pub(crate) fn has(&self, addr: u32, lines: &[SourceLine]) -> bool {
        self.find(addr).is_some_and(|(line, lane)| read(&lines[(self.place.first + line) as usize]).contains(&lane))
    }

    /// Adds an address that is not here; `false` when its line is full.
    #[must_use]
    pub(crate) fn add(&self, addr: u32, lines: &mut [SourceLine]) -> bool {
        let Some((line, lane)) = self.find(addr) else { return false };
        let words = &mut lines[(self.place.first + line) as usize];
        let mut lanes = read(words);
        let count = self.count(line, &lanes);
        if count == lanes.len() {
            return false;
        }
        lanes[count..].fill(lane);
        // What is left over says the first one again.
        let first = lanes[0];
        if let Some(rest) = lanes.get_mut(count + 1..) {
            rest.fill(first);
        }
        write(words, &lanes);
        true
    }

    /// Removes an address; `false` when it is not here.
    #[must_use]
    pub(crate) fn remove(&self, addr: u32, lines: &mut [SourceLine]) -> bool {
        let Some((line, lane)) = self.find(addr) else { return false };
        let words = &mut lines[(self.place.first + line) as usize];
        let mut lanes = read(words);
        let count = self.count(line, &lanes);
        let Some(at) = lanes[..count].iter().position(|each| *each == lane) else { return false };
        lanes[at] = lanes[count - 1];
        let rest = if count == 1 { self.filling(line) } else { lanes[0] };
        lanes[count - 1..].fill(rest);
        write(words, &lanes);
        true
    }

    /// Line, counted from the first, and lane of an address; `None` when the list has no hash.
    fn find(&self, addr: u32) -> Option<(u32, u32)> {
        let mixed = self.header.mix_v4(addr);
        (self.place.lines > 0).then(|| (self.place.line_of(mixed), mixed & EXACT_LANE))
    }

    /// Addresses of a line; they stand in front.
    fn count(&self, line: u32, lanes: &Lanes) -> usize {
        match lanes[0] {
            first if first == self.filling(line) => 0,
            first => lanes[1..].iter().position(|lane| *lane == first).map_or(lanes.len(), |at| at + 1),
        }
    }

    /// A lane that no address of a line has: 0 is that of the first line and of the one in the middle, this other one of two between.
    fn filling(&self, line: u32) -> u32 {
        let is_of_zero = [0, 1 << 31].map(|mixed| self.place.line_of(mixed)).contains(&line);
        if is_of_zero { 1 << 30 } else { 0 }
    }
}

fn read(line: &SourceLine) -> Lanes {
    std::array::from_fn(|at| (line.words[at / 2] >> (at % 2 * 32)) as u32)
}

fn write(line: &mut SourceLine, lanes: &Lanes) {
    line.words = std::array::from_fn(|at| u64::from(lanes[2 * at]) | u64::from(lanes[2 * at + 1]) << 32);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Few lines and many addresses: every line is empty, full and in between.
    #[test]
    fn a_hash_has_what_was_added_and_not_removed() {
        for count in [MIN_EXACT_LINES, 5, 64] {
            for seed in [0, 0x9e37_79b9_7f4a_7c15] {
                let place = Place { first: 1, lines: count };
                let hash = Exact::of(Header { seed, exact: [place; 2], ..Header::default() }, 0);
                let mut lines = vec![SourceLine::default(); 1 + count as usize];
                hash.clear(&mut lines);
                let mut expected = BTreeSet::new();
                let mut state = 1u32;
                let (mut full, mut removed) = (0, 0);
                for _ in 0..20_000 {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let addr = state >> 20;
                    if expected.contains(&addr) {
                        assert!(hash.remove(addr, &mut lines));
                        expected.remove(&addr);
                        removed += 1;
                    } else if hash.add(addr, &mut lines) {
                        expected.insert(addr);
                    } else {
                        full += 1;
                    }
                    let other = state.rotate_left(7);
                    assert_eq!(hash.has(addr, &lines), expected.contains(&addr));
                    assert_eq!(hash.has(other, &lines), expected.contains(&other));
                }
                assert!(full > 100 && removed > 100, "{full} {removed}");
                for addr in 0..1 << 12 {
                    assert_eq!(hash.has(addr, &lines), expected.contains(&addr), "{addr}");
                }
            }
        }
    }
}
