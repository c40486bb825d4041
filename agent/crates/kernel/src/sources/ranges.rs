//! Intervals of keys and the trees that they make: pure numbers, no prefixes of a list.

use tidegate_abi::sources::{
    MAX_LINES, SourceLine,
    range::{END, INTERVALS, LANE, LANES, MAX_DEPTH},
};

use super::arena::{Full, Runs};

/// Prefixes of up to 64 bits, sorted: upper half of the address, length.
pub(crate) type Cut = Vec<(u64, u8)>;

/// Consecutive intervals from key 0 to the last key, neighbours with different verdicts.
#[derive(Debug, Default)]
pub(crate) struct Intervals {
    /// Last key and verdict of each.
    all: Vec<(u32, u8)>,
    /// Ranges of each list, apart from each other.
    ranges: [Vec<(u32, u32)>; 2],
}

impl Intervals {
    /// Fills them from the parts of both lists that lie in one tree: keys are the bits before bit `end` of an address, and every key
    /// has `cover` as well.
    pub(crate) fn fill(&mut self, parts: [&[(u64, u8)]; 2], end: u8, cover: u8) {
        for (ranges, part) in self.ranges.iter_mut().zip(parts) {
            ranges.clear();
            for &(upper, len) in part {
                let first = (upper >> (64 - end)) as u32 & END;
                let last = first + ((1u64 << (end - len)) - 1) as u32;
                match ranges.last_mut() {
                    // In order, so it lies within when it does not end behind.
                    Some((_, end)) if last <= *end => {}
                    Some((_, end)) if first == *end + 1 => *end = last,
                    _ => ranges.push((first, last)),
                }
            }
        }
        self.all.clear();
        let [deny, allow] = &self.ranges;
        let mut rest = [deny.as_slice(), allow.as_slice()];
        let mut key = 0;
        while key <= END {
            let (mut verdict, mut last) = (cover, END);
            for (list, rest) in rest.iter_mut().enumerate() {
                if rest.first().is_some_and(|&(_, end)| end < key) {
                    *rest = &rest[1..];
                }
                match rest.first() {
                    Some(&(first, end)) if first <= key => {
                        verdict |= 1 << list;
                        last = last.min(end);
                    }
                    Some(&(first, _)) => last = last.min(first - 1),
                    None => {}
                }
            }
            match self.all.last_mut() {
                Some((end, before)) if *before == verdict => *end = last,
                _ => self.all.push((last, verdict)),
            }
            key = last + 1;
        }
    }

    /// The verdict, when all keys have the same.
    pub(crate) fn verdict(&self) -> Option<u8> {
        match self.all[..] {
            [(_, verdict)] => Some(verdict),
            _ => None,
        }
    }

    /// Writes their tree into a new run; returns the line of its root.
    pub(crate) fn write(&self, runs: &mut Runs, lines: &mut [SourceLine]) -> Result<u32, Full> {
        let root = runs.take(count_lines(self.all.len() as u64) as u32)?;
        let levels = levels(self.all.len());
        // The root comes first, the leaves last.
        let mut end = root + levels.iter().sum::<usize>() as u32;
        let mut below: Option<(u32, Vec<u32>)> = None;
        for count in levels {
            let first = end - count as u32;
            end = first;
            let all = below.as_ref().map_or(self.all.len(), |(_, lasts)| lasts.len());
            let mut lasts = Vec::with_capacity(count);
            for node in 0..count {
                // As even as it goes.
                let part = node * all / count..(node + 1) * all / count;
                let line = match &below {
                    Some((children, ends)) => {
                        node_line(&ends[part.clone()], u64::from(*children + part.start as u32) << 32)
                    }
                    None => {
                        let verdicts = self.all[part.clone()].iter().enumerate();
                        let verdicts =
                            verdicts.fold(0, |word, (at, (_, verdict))| word | u64::from(*verdict) << (2 * at));
                        let ends: Vec<u32> = self.all[part.clone()].iter().map(|(last, _)| *last).collect();
                        node_line(&ends, verdicts)
                    }
                };
                lines[first as usize + node] = line;
                lasts.push(below.as_ref().map_or(self.all[part.end - 1].0, |(_, ends)| ends[part.end - 1]));
            }
            below = Some((first, lasts));
        }
        Ok(root)
    }
}

/// Nodes of each level of a tree of so many intervals, leaves first.
fn levels(intervals: usize) -> Vec<usize> {
    let mut levels = vec![intervals.div_ceil(INTERVALS)];
    while let Some(&last) = levels.last()
        && last > 1
    {
        levels.push(last.div_ceil(INTERVALS));
    }
    levels
}

/// Lines of a tree of so many intervals.
pub(crate) fn count_lines(intervals: u64) -> u64 {
    let mut nodes = intervals.div_ceil(INTERVALS as u64);
    let mut lines = nodes;
    while nodes > 1 {
        nodes = nodes.div_ceil(INTERVALS as u64);
        lines += nodes;
    }
    lines
}

/// Most lines of a tree of so many prefixes.
pub(crate) fn most_lines(prefixes: u64) -> u64 {
    count_lines(2 * prefixes + 1)
}

fn node_line(lasts: &[u32], tail: u64) -> SourceLine {
    // The last interval ends where the node does.
    let inner = &lasts[..lasts.len() - 1];
    let lane = |at: usize| u64::from(inner.get(at).copied().unwrap_or(END) | LANE);
    let mut words = [tail; LANES / 2 + 1];
    for (at, word) in words[..LANES / 2].iter_mut().enumerate() {
        *word = lane(2 * at) | lane(2 * at + 1) << 32;
    }
    SourceLine { words }
}

/// Gives the run of a tree back.
pub(crate) fn free_tree(root: u32, runs: &mut Runs, lines: &[SourceLine]) {
    let mut count = 1;
    let mut level = vec![root];
    // All leaves are equally deep, so the first child tells what the others are.
    while let Some(&first) = level.first()
        && lines[first as usize].words[LANES / 2] >> 32 != 0
    {
        level = level.iter().flat_map(|node| children(&lines[*node as usize])).collect();
        count += level.len() as u32;
    }
    runs.give(root, count);
}

fn children(node: &SourceLine) -> std::ops::RangeInclusive<u32> {
    let first = (node.words[LANES / 2] >> 32) as u32;
    let end = u64::from(END | LANE);
    let lanes = node.words[..LANES / 2].iter().flat_map(|word| [word & 0xffff_ffff, word >> 32]);
    first..=first + lanes.filter(|lane| *lane != end).count() as u32
}

const _: () = assert!((MAX_LINES as u64) < 1 << 24 && (INTERVALS as u64).pow(MAX_DEPTH) > 4_000_001);
