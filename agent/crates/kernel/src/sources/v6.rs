//! Builds and changes the IPv6 part of a table: trees of intervals up to /64, a hash beyond.
//!
//! What a tree holds follows from the lists alone, so a change builds the trees again that it touches, and no others.

use std::ops::RangeInclusive;

use ipnet::Ipv6Net;
use tidegate_abi::sources::{
    Header, IMMEDIATE, MAX_PROBES, MIDDLE_LEN, Place, ROOT_WORDS, SHORT_LEN, SourceLine,
    group::{ENTRIES, KEY, LINE, LINE_SHIFT, OVERFLOW},
};

use super::{
    arena::{Full, Runs},
    lists::{differing, halves, merge, own, within},
    long::{Long, Pair, Shape},
    ranges::{Cut, Intervals, free_tree, most_lines},
};

/// Of a hundred places of a new hash of /33s so many are taken.
const NEW_FILL: u64 = 50;
/// Beyond this part of a hundred it is built anew.
const MOST_FILL: u64 = 65;
/// Lines for trees to grow into, beside an eighth of what they take.
const SPARE_LINES: u64 = 64;
/// Lines of a root.
const ROOT_LINES: u32 = ROOT_WORDS / 16;
/// /16s and /33s that a change may touch: beyond, building anew is faster.
const MANY_TREES: usize = 20_000;
/// Length of the prefix that a word of the root stands for.
const ROOT_LEN: u8 = 16;
/// What the root looks behind: its trees have the bits before this one.
const SHORT_END: u8 = ROOT_LEN + 31;

const SHORT: RangeInclusive<u8> = 0..=SHORT_LEN;
const MIDDLE: RangeInclusive<u8> = SHORT_LEN + 1..=MIDDLE_LEN;

/// How large the IPv6 part is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Size {
    long: Shape,
    groups: u64,
    trees: u64,
    has_short: bool,
}

impl Size {
    /// Of lists.
    pub(crate) fn of(pair: Pair<'_>) -> Self {
        let mut size = Self { long: Shape::of(pair), ..Self::default() };
        let (mut short, mut middle) = ((0, 0), (0, 0));
        let lines = |count: u64| if count > 0 { most_lines(count) } else { 0 };
        for (prefix, _) in merge(pair[0], pair[1]) {
            let upper = halves(prefix.addr()).0;
            let (tree, key) = match prefix.prefix_len() {
                len if SHORT.contains(&len) => {
                    size.has_short = true;
                    if len <= ROOT_LEN {
                        continue;
                    }
                    (&mut short, upper >> (64 - ROOT_LEN))
                }
                len if MIDDLE.contains(&len) => (&mut middle, upper >> (64 - SHORT_LEN)),
                _ => continue,
            };
            if tree.1 > 0 && tree.0 != key {
                size.trees += lines(tree.1);
                tree.1 = 0;
            }
            if MIDDLE.contains(&prefix.prefix_len()) && tree.1 == 0 {
                size.groups += 1;
            }
            *tree = (key, tree.1 + 1);
        }
        size.trees += lines(short.1) + lines(middle.1);
        size
    }

    /// Lines of the hash beyond /64, of the hash of /33s, of root and trees.
    pub(crate) fn lines(&self, generosity: u64) -> [u64; 3] {
        let generous = |lines: u64| lines * generosity / 100;
        let groups = match self.groups {
            0 => 0,
            groups => generous((groups * 100 / NEW_FILL).div_ceil(ENTRIES as u64) + 2),
        };
        let trees = match self.trees {
            0 if !self.has_short => 0,
            trees => generous(trees + trees / 8 + SPARE_LINES),
        };
        let root = if self.has_short { ROOT_LINES.into() } else { 0 };
        [self.long.lines(generosity), groups, root + trees]
    }

    /// What the header says of a part in lines from `first` on: of each of `lines` one behind the other.
    pub(crate) fn place(&self, header: &mut Header, first: u32, lines: [u64; 3], steps: &mut [SourceLine]) -> Runs {
        let [long, groups, trees] = lines.map(|lines| lines as u32);
        let place = |first, lines| Place { first: if lines > 0 { first } else { 0 }, lines };
        header.long = place(first, long);
        header.groups = place(first + long, groups);
        header.first_step = self.long.lengths.write(steps);
        let root = first + long + groups;
        header.short_root = if self.has_short { root } else { 0 };
        Runs::new(if self.has_short { root + ROOT_LINES } else { root }, root + trees)
    }
}

/// The IPv6 part of one table.
#[derive(Debug)]
pub(crate) struct V6 {
    header: Header,
    /// What prefixes up to /16 say of each /16; empty without a root.
    cover: Vec<u8>,
    /// Entries of the hash of /33s.
    groups: u64,
    runs: Runs,
    long: Long,
    /// Of the tree that is being written.
    intervals: Intervals,
}

impl V6 {
    /// Writes both lists into empty lines.
    pub(crate) fn build(
        pair: Pair<'_>,
        size: &Size,
        header: Header,
        runs: Runs,
        lines: &mut [SourceLine],
    ) -> Result<Self, Full> {
        let long = Long::build(pair, &size.long, header, part(header.long, lines))?;
        let cover = if header.short_root > 0 { vec![0; ROOT_WORDS as usize] } else { Vec::new() };
        let mut table = Self { header, cover, groups: 0, runs, long, intervals: Intervals::default() };
        table.build_short(pair, lines)?;
        let cuts = pair.map(|list| cut(list, MIDDLE));
        let mut rest = [cuts[0].as_slice(), cuts[1].as_slice()];
        while let Some(group) = rest.iter().filter_map(|list| list.first()).map(|(upper, _)| upper >> 31).min() {
            let parts = split(&mut rest, |upper| upper >> 31 == group);
            table.intervals.fill(parts, MIDDLE_LEN, 0);
            let root = table.intervals.write(&mut table.runs, lines)?;
            table.add_group(group, root, lines)?;
        }
        Ok(table)
    }

    fn build_short(&mut self, pair: Pair<'_>, lines: &mut [SourceLine]) -> Result<(), Full> {
        if self.cover.is_empty() {
            return Ok(());
        }
        let cuts = pair.map(|list| cut(list, SHORT));
        for (list, cut) in cuts.iter().enumerate() {
            for &(upper, len) in cut.iter().filter(|(_, len)| *len <= ROOT_LEN) {
                self.cover[words(upper, len)].iter_mut().for_each(|cover| *cover |= 1 << list);
            }
        }
        let cuts = cuts.map(|cut| cut.into_iter().filter(|(_, len)| *len > ROOT_LEN).collect::<Cut>());
        let mut rest = [cuts[0].as_slice(), cuts[1].as_slice()];
        for word in 0..ROOT_WORDS {
            let parts = split(&mut rest, |upper| upper >> 48 == word.into());
            self.put_short(word, parts, lines)?;
        }
        Ok(())
    }

    /// Leads from old lists to new ones; returns how many prefixes differ. After an error the table holds neither.
    pub(crate) fn update(&mut self, old: Pair<'_>, new: Pair<'_>, lines: &mut [SourceLine]) -> Result<usize, Full> {
        let mut changed: Vec<Ipv6Net> = Vec::new();
        for (old, new) in old.into_iter().zip(new) {
            changed.extend(differing(old, new));
        }
        changed.sort_unstable();
        changed.dedup();
        let (mut short, mut groups) = (Vec::new(), Vec::new());
        for prefix in &changed {
            let (upper, len) = (halves(prefix.addr()).0, prefix.prefix_len());
            if SHORT.contains(&len) {
                let words = words(upper, len.min(ROOT_LEN));
                if self.cover.is_empty() || words.len() > MANY_TREES {
                    return Err(Full);
                }
                if len <= ROOT_LEN {
                    self.cover_again(prefix, new);
                }
                short.extend(words);
            } else if MIDDLE.contains(&len) {
                groups.push(upper >> 31);
            }
        }
        // Those of groups are in order already.
        short.sort_unstable();
        short.dedup();
        groups.dedup();
        if short.len().max(groups.len()) > MANY_TREES {
            return Err(Full);
        }
        for run in short.chunk_by(|word, next| word + 1 == *next) {
            let (first, last) = (run[0], run[run.len() - 1]);
            let parts = new.map(|list| cut(between(list, first, last), ROOT_LEN + 1..=SHORT_LEN));
            let mut rest = [parts[0].as_slice(), parts[1].as_slice()];
            for &word in run {
                let parts = split(&mut rest, |upper| upper >> 48 == word as u64);
                self.free_short(word as u32, lines);
                self.put_short(word as u32, parts, lines)?;
            }
        }
        for group in groups {
            let prefix = Ipv6Net::new_assert((u128::from(group) << 95).into(), SHORT_LEN);
            let cuts = new.map(|list| cut(within(list, &prefix), MIDDLE));
            self.put_group(group, [&cuts[0], &cuts[1]], lines)?;
        }
        self.long.update(&changed, old, new, part(self.header.long, lines))?;
        Ok(changed.len())
    }

    /// Looks up again what prefixes up to /16 say of the /16s in one of them.
    fn cover_again(&mut self, prefix: &Ipv6Net, [deny, allow]: Pair<'_>) {
        let above = (0..prefix.prefix_len()).fold(0, |verdict, len| {
            let shorter = Ipv6Net::new_assert(prefix.addr(), len).trunc();
            verdict | own(deny, allow, &shorter)
        });
        self.cover[words(halves(prefix.addr()).0, prefix.prefix_len())].fill(above as u8);
        for (list, all) in [deny, allow].into_iter().enumerate() {
            for (upper, len) in cut(within(all, prefix), 0..=ROOT_LEN) {
                self.cover[words(upper, len)].iter_mut().for_each(|cover| *cover |= 1 << list);
            }
        }
    }

    /// Writes a word of the root and its tree, of prefixes from /17.
    fn put_short(&mut self, word: u32, parts: [&[(u64, u8)]; 2], lines: &mut [SourceLine]) -> Result<(), Full> {
        let cover = self.cover[word as usize];
        if parts.iter().all(|part| part.is_empty()) {
            // Most of them.
            self.put_root(word, IMMEDIATE | u32::from(cover), lines);
            return Ok(());
        }
        self.intervals.fill(parts, SHORT_END, cover);
        let root = match self.intervals.verdict() {
            Some(verdict) => IMMEDIATE | u32::from(verdict),
            None => self.intervals.write(&mut self.runs, lines)?,
        };
        self.put_root(word, root, lines);
        Ok(())
    }

    fn put_root(&self, word: u32, root: u32, lines: &mut [SourceLine]) {
        let (place, shift) = self.root_word(word, lines);
        *place = *place & !(u64::from(u32::MAX) << shift) | u64::from(root) << shift;
    }

    fn free_short(&mut self, word: u32, lines: &mut [SourceLine]) {
        let (place, shift) = self.root_word(word, lines);
        let root = (*place >> shift) as u32;
        if root & IMMEDIATE == 0 {
            free_tree(root, &mut self.runs, lines);
        }
    }

    fn root_word<'a>(&self, word: u32, lines: &'a mut [SourceLine]) -> (&'a mut u64, u32) {
        let line = &mut lines[(self.header.short_root + (word >> 4)) as usize];
        (&mut line.words[(word >> 1 & 7) as usize], word << 5 & 32)
    }

    /// Writes the tree of a /33 again; one without anything goes.
    fn put_group(&mut self, group: u64, parts: [&[(u64, u8)]; 2], lines: &mut [SourceLine]) -> Result<(), Full> {
        self.intervals.fill(parts, MIDDLE_LEN, 0);
        let place = self.find_group(group, lines);
        if let Some((line, slot)) = place {
            let entry = &mut lines[line].words[slot];
            let root = (*entry >> LINE_SHIFT & LINE) as u32;
            *entry &= OVERFLOW;
            self.groups -= 1;
            free_tree(root, &mut self.runs, lines);
        }
        if self.intervals.verdict() == Some(0) {
            return Ok(());
        }
        let root = self.intervals.write(&mut self.runs, lines)?;
        match place {
            Some((line, slot)) => {
                lines[line].words[slot] |= entry(group, root);
                self.groups += 1;
                Ok(())
            }
            None => self.add_group(group, root, lines),
        }
    }

    /// Line and slot of a /33's entry.
    fn find_group(&self, group: u64, lines: &[SourceLine]) -> Option<(usize, usize)> {
        if self.header.groups.lines == 0 {
            return None;
        }
        let (mut at, stride) = self.header.groups.home(self.header.mix(group, 0));
        for _ in 0..MAX_PROBES {
            let line = (self.header.groups.first + at) as usize;
            let words = &lines[line].words;
            // No tree has line 0, where the header is.
            let is_it = |word: &u64| word & KEY == group && word >> LINE_SHIFT & LINE != 0;
            if let Some(slot) = words.iter().position(is_it) {
                return Some((line, slot));
            }
            if words[0] & OVERFLOW == 0 {
                break;
            }
            at = self.header.groups.after(at, stride);
        }
        None
    }

    /// Puts a new entry in the first free slot from its home on.
    fn add_group(&mut self, group: u64, root: u32, lines: &mut [SourceLine]) -> Result<(), Full> {
        let slots = u64::from(self.header.groups.lines) * ENTRIES as u64;
        if (self.groups + 1) * 100 > slots * MOST_FILL {
            return Err(Full);
        }
        let (mut at, stride) = self.header.groups.home(self.header.mix(group, 0));
        for _ in 0..MAX_PROBES {
            let words = &mut lines[(self.header.groups.first + at) as usize].words;
            if let Some(word) = words.iter_mut().find(|word| **word & !OVERFLOW == 0) {
                *word |= entry(group, root);
                self.groups += 1;
                return Ok(());
            }
            words[0] |= OVERFLOW;
            at = self.header.groups.after(at, stride);
        }
        Err(Full)
    }
}

fn entry(group: u64, root: u32) -> u64 {
    group | u64::from(root) << LINE_SHIFT
}

fn part(place: Place, lines: &mut [SourceLine]) -> &mut [SourceLine] {
    &mut lines[place.first as usize..(place.first + place.lines) as usize]
}

/// Words of the root that a prefix up to /16 is about.
fn words(upper: u64, len: u8) -> std::ops::Range<usize> {
    let first = (upper >> 48) as usize;
    first..first + (1 << (ROOT_LEN - len))
}

/// The part of a sorted list whose addresses lie in the /16s from one to another.
fn between(list: &[Ipv6Net], first: usize, last: usize) -> &[Ipv6Net] {
    let word = |prefix: &Ipv6Net| (halves(prefix.addr()).0 >> 48) as usize;
    let start = list.partition_point(|prefix| word(prefix) < first);
    let end = start + list[start..].partition_point(|prefix| word(prefix) <= last);
    &list[start..end]
}

/// Prefixes of some lengths, as numbers.
fn cut(list: &[Ipv6Net], lens: RangeInclusive<u8>) -> Cut {
    let wanted = list.iter().filter(|prefix| lens.contains(&prefix.prefix_len()));
    wanted.map(|prefix| (halves(prefix.addr()).0, prefix.prefix_len())).collect()
}

/// Takes what is of a kind from the front of both lists.
fn split<'a>(rest: &mut [&'a [(u64, u8)]; 2], is_of: impl Fn(u64) -> bool) -> [&'a [(u64, u8)]; 2] {
    std::array::from_fn(|list| {
        let count = rest[list].iter().take_while(|(upper, _)| is_of(*upper)).count();
        let (part, others) = rest[list].split_at(count);
        rest[list] = others;
        part
    })
}
