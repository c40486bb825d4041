//! Builds and changes the hash of IPv6 prefixes from /65 and their markers, for a binary search over lengths.
//!
//! An entry counts the prefixes that need it, so it goes with the last of them. Entries never move: a /64's place is part of
//! the keys below it.

use ipnet::Ipv6Net;
use tidegate_abi::sources::{
    Header, LINE_ENTRIES, MAX_PROBES, MIDDLE_LEN, SourceLine, VERDICT,
    meta::{HAS_LONGER, IDENTITY, LEN, MAX_REFS, ONE_REF, OVERFLOW, OWN_SHIFT, PARENT_SHIFT, VERDICT_SHIFT},
    step, upper_bits,
};

use super::{
    arena::Full,
    lists::{Prefix as _, halves, merge, own, within},
};

/// Of a hundred places of a new hash so many are taken: a line is full now and then, and changes find room.
const NEW_FILL: u64 = 50;
/// Beyond this part of a hundred a hash is built anew.
const MOST_FILL: u64 = 60;
/// Entries whose verdicts a change may touch: beyond, building anew is faster.
const MANY_ENTRIES: usize = 200_000;

/// Both lists, each sorted.
pub(crate) type Pair<'a> = [&'a [Ipv6Net]; 2];

/// The lengths that occur, ascending: 64 when there are any beyond, and those.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lengths {
    pub(crate) short: Vec<u8>,
    pub(crate) long: Vec<u8>,
}

/// An entry that a prefix needs.
struct Step {
    /// Zero-based place of the length; those from 65 come behind those up to 64.
    index: usize,
    len: u8,
    /// The half of the prefix that the entry's stage looks at, up to the length.
    key: u64,
}

impl Lengths {
    fn of([deny, allow]: Pair<'_>) -> Self {
        let mut has = [false; 129];
        for prefix in deny.iter().chain(allow).filter(|prefix| is_long(prefix)) {
            has[usize::from(prefix.prefix_len())] = true;
        }
        has[64] = has[65..].contains(&true);
        let of = |range: std::ops::RangeInclusive<u8>| range.filter(|len| has[usize::from(*len)]).collect();
        Self { short: of(1..=64), long: of(65..=128) }
    }

    fn has(&self, len: u8) -> bool {
        self.short.binary_search(&len).is_ok() || self.long.binary_search(&len).is_ok()
    }

    /// The entries of a prefix: markers where the search for its length passes by shorter ones, then its own. One longer than 64
    /// bits has those of its /64 first.
    fn steps(&self, prefix: &Ipv6Net) -> impl Iterator<Item = Step> {
        let (upper, lower) = halves(prefix.addr());
        let len = prefix.prefix_len();
        let short = path(&self.short, len.min(64)).map(move |(index, len)| (index, len, upper));
        let offset = self.short.len();
        let long = (len > 64).then(|| path(&self.long, len)).into_iter().flatten();
        let long = long.map(move |(index, len)| (offset + index, len, lower));
        short.chain(long).map(|(index, len, half)| Step { index, len, key: upper_bits(half, len.into()) })
    }

    /// The steps of the search for programs, and the first of them. The second stage begins where the first has found a /64.
    pub(crate) fn write(&self, lines: &mut [SourceLine]) -> u32 {
        let mut steps = vec![0];
        let long = push_steps(&self.long, 0, &mut steps);
        let root = push_steps(&self.short, long, &mut steps);
        for (index, step) in steps.into_iter().enumerate() {
            lines[index >> 4].words[index >> 1 & 7] |= u64::from(step) << (index << 5 & 32);
        }
        root
    }
}

/// Adds the steps of a binary search over lengths; returns the first of them. After 64 was found `behind` is next.
fn push_steps(lengths: &[u8], behind: u32, steps: &mut Vec<u32>) -> u32 {
    let middle = lengths.len() / 2;
    let Some(&len) = lengths.get(middle) else { return 0 };
    let hit = if len == 64 { behind } else { push_steps(&lengths[middle + 1..], behind, steps) };
    let miss = push_steps(&lengths[..middle], behind, steps);
    steps.push(u32::from(len) | hit << step::HIT_SHIFT | miss << step::MISS_SHIFT);
    steps.len() as u32 - 1
}

/// Where a binary search for a length passes by shorter ones, and the length itself. As the programs search.
fn path(lengths: &[u8], wanted: u8) -> impl Iterator<Item = (usize, u8)> {
    let (mut low, mut high) = (0, lengths.len());
    std::iter::from_fn(move || {
        while low < high {
            let middle = low + (high - low) / 2;
            let len = lengths[middle];
            if len > wanted {
                high = middle;
                continue;
            }
            (low, high) = if len == wanted { (0, 0) } else { (middle + 1, high) };
            return Some((middle, len));
        }
        None
    })
}

/// The size of a hash.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    pub(crate) lengths: Lengths,
    entries: u64,
}

impl Shape {
    /// Lengths and exact number of entries of lists.
    pub(crate) fn of(pair: Pair<'_>) -> Self {
        let lengths = Lengths::of(pair);
        let mut last: Vec<Option<(u64, u64)>> = vec![None; lengths.short.len() + lengths.long.len()];
        let mut entries = 0;
        for (prefix, _) in merge(pair[0], pair[1]).filter(|(prefix, _)| is_long(prefix)) {
            let upper = halves(prefix.addr()).0;
            for step in lengths.steps(&prefix) {
                // In sorted order prefixes of the same entry follow each other.
                let entry = Some((if step.len > 64 { upper } else { 0 }, step.key));
                if last[step.index] != entry {
                    last[step.index] = entry;
                    entries += 1;
                }
            }
        }
        Self { lengths, entries }
    }

    /// Lines for it; `generosity` (a hundred is enough mostly) makes it larger.
    pub(crate) fn lines(&self, generosity: u64) -> u64 {
        let places = self.entries * 100 / NEW_FILL + u64::from(LINE_ENTRIES) * 4;
        if self.lengths == Lengths::default() { 0 } else { places * generosity / 100 / u64::from(LINE_ENTRIES) }
    }
}

/// Whether a prefix belongs here.
fn is_long(prefix: &Ipv6Net) -> bool {
    prefix.prefix_len() > MIDDLE_LEN
}

/// The hash of one table.
#[derive(Clone, Debug)]
pub(crate) struct Long {
    lengths: Lengths,
    hash: Hash,
}

#[derive(Clone, Debug)]
struct Hash {
    header: Header,
    entries: u64,
}

/// What shorter prefixes say, along the way to the one that is looked at.
#[derive(Default)]
struct Above(Vec<(Ipv6Net, u32)>);

impl Above {
    /// Takes the next prefix in order.
    fn enter(&mut self, prefix: Ipv6Net, own: u32) {
        while self.0.last().is_some_and(|(above, _)| !above.covers(&prefix)) {
            self.0.pop();
        }
        let verdict = own | self.0.last().map_or(0, |(_, verdict)| *verdict);
        self.0.push((prefix, verdict));
    }

    /// What those up to a length say.
    fn at(&self, len: u8) -> u32 {
        self.0.iter().rev().find(|(above, _)| above.prefix_len() <= len).map_or(0, |(_, verdict)| *verdict)
    }
}

impl Long {
    /// Writes both lists into the empty lines of a hash, those that the header names.
    pub(crate) fn build(pair: Pair<'_>, shape: &Shape, header: Header, lines: &mut [SourceLine]) -> Result<Self, Full> {
        let lengths = shape.lengths.clone();
        let mut table = Self { lengths, hash: Hash { header, entries: 0 } };
        let mut above = Above::default();
        for (prefix, own) in merge(pair[0], pair[1]).filter(|(prefix, _)| is_long(prefix)) {
            above.enter(prefix, own);
            table.add(&prefix, own, |len| above.at(len), lines)?;
        }
        Ok(table)
    }

    /// Leads from old lists to new ones, which differ in `changed`. After an error the hash holds neither.
    pub(crate) fn update(
        &mut self,
        changed: &[Ipv6Net],
        old: Pair<'_>,
        new: Pair<'_>,
        lines: &mut [SourceLine],
    ) -> Result<(), Full> {
        let changed = || changed.iter().filter(|prefix| is_long(prefix));
        let mut added = Vec::new();
        let mut below = 0;
        for &prefix in changed() {
            let (before, after) = (own(old[0], old[1], &prefix), own(new[0], new[1], &prefix));
            below += new.iter().map(|list| within(list, &prefix).len()).sum::<usize>();
            if below > MANY_ENTRIES || !self.lengths.has(prefix.prefix_len()) {
                return Err(Full);
            }
            match (before, after) {
                (0, _) => added.push((prefix, after)),
                (_, 0) => self.remove(&prefix, lines)?,
                (..) => self.set_own(&prefix, after, lines)?,
            }
        }
        for (prefix, own) in added {
            self.add(&prefix, own, |_| 0, lines)?;
        }
        // Entries are what they shall be, but for what they have from shorter ones.
        for prefix in changed() {
            self.inherit(prefix, 0, lines);
            for list in new {
                for below in within(list, prefix) {
                    self.inherit(below, prefix.prefix_len(), lines);
                }
            }
        }
        Ok(())
    }

    /// Adds a prefix with its markers. `verdict` says what prefixes up to a length say.
    fn add(
        &mut self,
        prefix: &Ipv6Net,
        own: u32,
        verdict: impl Fn(u8) -> u32,
        lines: &mut [SourceLine],
    ) -> Result<(), Full> {
        let mut parent = 0;
        for step in self.lengths.steps(prefix) {
            let identity = u64::from(step.len) | parent;
            let own = if step.len == prefix.prefix_len() { own } else { 0 };
            let place = match self.hash.find(step.key, identity, lines) {
                Some(place) => place,
                None => self.hash.place(step.key, identity, lines)?,
            };
            let meta = meta(lines, place);
            *meta += ONE_REF;
            if *meta / ONE_REF == MAX_REFS {
                return Err(Full);
            }
            *meta |= u64::from(own) << OWN_SHIFT | u64::from(verdict(step.len)) << VERDICT_SHIFT;
            if step.len == 64 && prefix.prefix_len() > 64 {
                *meta |= HAS_LONGER;
                parent = parent_at(place);
            }
        }
        Ok(())
    }

    fn remove(&mut self, prefix: &Ipv6Net, lines: &mut [SourceLine]) -> Result<(), Full> {
        let mut parent = 0;
        for step in self.lengths.steps(prefix) {
            let place = self.hash.find(step.key, u64::from(step.len) | parent, lines).ok_or(Full)?;
            if step.len == 64 {
                parent = parent_at(place);
            }
            let meta = meta(lines, place);
            *meta -= ONE_REF;
            if step.len == prefix.prefix_len() {
                *meta &= !(u64::from(VERDICT) << OWN_SHIFT);
            }
            if *meta / ONE_REF == 0 {
                *meta &= OVERFLOW;
                self.hash.entries -= 1;
            }
        }
        Ok(())
    }

    /// Changes which lists have a prefix that stays.
    fn set_own(&mut self, prefix: &Ipv6Net, own: u32, lines: &mut [SourceLine]) -> Result<(), Full> {
        let (upper, lower) = halves(prefix.addr());
        let len = prefix.prefix_len();
        let place = if len <= 64 {
            self.hash.find(upper, len.into(), lines)
        } else {
            let above = self.hash.find(upper, 64, lines).ok_or(Full)?;
            self.hash.find(lower, u64::from(len) | parent_at(above), lines)
        };
        let meta = meta(lines, place.ok_or(Full)?);
        *meta = *meta & !(u64::from(VERDICT) << OWN_SHIFT) | u64::from(own) << OWN_SHIFT;
        Ok(())
    }

    /// Makes the verdicts of a prefix's entries from `from` bits on what prefixes up to their lengths say.
    fn inherit(&self, prefix: &Ipv6Net, from: u8, lines: &mut [SourceLine]) {
        let (mut verdict, mut parent) = (0, 0);
        let (upper, lower) = halves(prefix.addr());
        for &len in self.lengths.short.iter().chain(&self.lengths.long) {
            if len > prefix.prefix_len() {
                break;
            }
            let half = if len > 64 { lower } else { upper };
            let Some(place) = self.hash.find(upper_bits(half, len.into()), u64::from(len) | parent, lines) else {
                // A length without an entry says nothing; a /64 without one has nothing below it.
                if len == 64 { break } else { continue }
            };
            let meta = meta(lines, place);
            verdict |= *meta >> OWN_SHIFT & u64::from(VERDICT);
            if len >= from {
                *meta = *meta & !(u64::from(VERDICT) << VERDICT_SHIFT) | verdict << VERDICT_SHIFT;
            }
            if len == 64 {
                parent = parent_at(place);
            }
        }
    }
}

impl Hash {
    fn find(&self, key: u64, identity: u64, lines: &[SourceLine]) -> Option<u32> {
        let (mut at, stride) = self.header.long.home(self.header.mix(key, identity));
        for _ in 0..MAX_PROBES {
            let words = &lines[at as usize].words;
            for slot in 0..LINE_ENTRIES {
                let entry = slot as usize * 2;
                if words[entry] == key && words[entry + 1] & IDENTITY == identity {
                    return Some(at * LINE_ENTRIES + slot);
                }
            }
            if words[1] & OVERFLOW == 0 {
                break;
            }
            at = self.header.long.after(at, stride);
        }
        None
    }

    /// Puts a new entry, which nothing needs yet, in the first free place from its home on.
    fn place(&mut self, key: u64, identity: u64, lines: &mut [SourceLine]) -> Result<u32, Full> {
        let places = u64::from(self.header.long.lines) * u64::from(LINE_ENTRIES);
        if (self.entries + 1) * 100 > places * MOST_FILL {
            return Err(Full);
        }
        let (mut at, stride) = self.header.long.home(self.header.mix(key, identity));
        for _ in 0..MAX_PROBES {
            let free = (at * LINE_ENTRIES..(at + 1) * LINE_ENTRIES).find(|&place| *meta(lines, place) & LEN == 0);
            if let Some(place) = free {
                lines[at as usize].words[(place % LINE_ENTRIES) as usize * 2] = key;
                *meta(lines, place) |= identity;
                self.entries += 1;
                return Ok(place);
            }
            // A mark that is not needed in the end, because there is no place behind either, costs a look-up only.
            lines[at as usize].words[1] |= OVERFLOW;
            at = self.header.long.after(at, stride);
        }
        Err(Full)
    }
}

fn parent_at(place: u32) -> u64 {
    u64::from(place + 1) << PARENT_SHIFT
}

fn meta(lines: &mut [SourceLine], place: u32) -> &mut u64 {
    &mut lines[(place / LINE_ENTRIES) as usize].words[(place % LINE_ENTRIES) as usize * 2 + 1]
}
