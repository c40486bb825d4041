//! Builds and changes the IPv4 part of a table: addresses in their hashes, prefixes a region of one /18 at a time. What a
//! region's node holds follows from the lists, without the addresses that have a place in a hash.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use tidegate_abi::sources::{
    BLOCK_UNITS, Header, IMMEDIATE, ROOT_LINE, ROOT_WORDS, SPARSE_EXCEPTIONS, SourceLine, VERDICT,
};

use super::{
    arena::{Arena, Full},
    exact::Exact,
    lists::{differing, own, within},
};

/// Regions of all addresses.
const REGIONS: usize = 1 << 18;
/// Length of a region's prefix.
const REGION_LEN: u8 = 18;
/// From so many changed regions on all are built anew: each of them is looked up, the rest comes in order.
const MANY_REGIONS: usize = REGIONS / 8;

/// Both lists, each sorted.
pub(crate) type Pair<'a> = [&'a [Ipv4Net]; 2];

/// Length of an address's prefix.
const ADDRESS_LEN: u8 = 32;

/// What a list takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Count {
    /// Addresses.
    pub(crate) addresses: u64,
    /// Units that blocks and leaves of its prefixes take at most.
    pub(crate) units: u64,
}

impl Count {
    /// Units of a prefix that has a block and a leaf for itself.
    pub(crate) const ALONE: u64 = BLOCK_UNITS as u64 + 1;

    /// Of each list.
    pub(crate) fn of(pair: Pair<'_>) -> [Self; 2] {
        pair.map(|list| {
            let mut count = Self::default();
            let (mut last_block, mut last_leaf, mut weight) = (None, None, 0u64);
            // Leaves of both lists may come together to a full one.
            let leaf_units = |weight: u64| if 2 * weight > SPARSE_EXCEPTIONS as u64 { 4 } else { 1 };
            for prefix in list {
                let (addr, len) = (u32::from(prefix.addr()), prefix.prefix_len());
                if len == ADDRESS_LEN {
                    count.addresses += 1;
                    continue;
                }
                if len > 16 && last_block != Some(addr >> 16) {
                    last_block = Some(addr >> 16);
                    count.units += Self::ALONE;
                }
                if len > 24 {
                    if last_leaf != Some(addr >> 8) {
                        count.units += if last_leaf.is_some() { leaf_units(weight) } else { 0 };
                        (last_leaf, weight) = (Some(addr >> 8), 0);
                    }
                    weight += 1 << (ADDRESS_LEN - len);
                }
            }
            count.units += if last_leaf.is_some() { leaf_units(weight) } else { 0 };
            count
        })
    }
}

/// The IPv4 part of one table.
#[derive(Clone, Debug)]
pub(crate) struct V4 {
    arena: Arena,
    exact: [Exact; 2],
    /// What prefixes up to the length of a region say of each region.
    cover: Vec<u8>,
}

impl V4 {
    /// Writes both lists into a table whose units of `arena` are free.
    pub(crate) fn build(pair: Pair<'_>, header: Header, arena: Arena, lines: &mut [SourceLine]) -> Result<Self, Full> {
        let exact = [0, 1].map(|list| Exact::of(header, list));
        let mut table = Self { arena, exact, cover: vec![0; REGIONS] };
        let mut prefixes: [Vec<Ipv4Net>; 2] = Default::default();
        for ((hash, list), prefixes) in exact.iter().zip(pair).zip(&mut prefixes) {
            hash.clear(lines);
            let is_prefix =
                |prefix: &Ipv4Net| prefix.prefix_len() < ADDRESS_LEN || !hash.add(prefix.addr().into(), lines);
            prefixes.extend(list.iter().copied().filter(is_prefix));
        }
        let pair = [prefixes[0].as_slice(), prefixes[1].as_slice()];
        for (bits, list) in pair.into_iter().enumerate() {
            for prefix in list.iter().filter(|prefix| prefix.prefix_len() <= REGION_LEN) {
                for cover in &mut table.cover[regions(prefix)] {
                    *cover |= 1 << bits;
                }
            }
        }
        let mut rest = pair;
        let mut node = Node::default();
        for upper in 0..ROOT_WORDS {
            let first = upper as usize * 4;
            let covers: [u8; 4] = table.cover[first..first + 4].try_into().expect("four regions");
            let parts = rest.map(|list| {
                // Most of the upper halves have nothing of their own: look before searching.
                match list.first() {
                    Some(prefix) if u32::from(prefix.addr()) >> 16 == upper => {
                        list.partition_point(|prefix| u32::from(prefix.addr()) >> 16 == upper)
                    }
                    _ => 0,
                }
            });
            let mut here = [&rest[0][..parts[0]], &rest[1][..parts[1]]];
            rest = [&rest[0][parts[0]..], &rest[1][parts[1]..]];
            let is_even = covers.iter().all(|cover| *cover == covers[0]);
            if is_even && here.iter().all(|list| list.iter().all(|prefix| prefix.prefix_len() <= REGION_LEN)) {
                write_root(lines, upper, IMMEDIATE | u32::from(covers[0]));
                continue;
            }
            let block = table.arena.take_block()?;
            write_root(lines, upper, block);
            for (index, cover) in covers.into_iter().enumerate() {
                let region = (first + index) as u32;
                let ends = here.map(|list| list.partition_point(|prefix| u32::from(prefix.addr()) >> 14 == region));
                node.build([&here[0][..ends[0]], &here[1][..ends[1]]], cover);
                here = [&here[0][ends[0]..], &here[1][ends[1]..]];
                table.write_node(lines, block + 2 * index as u32, &node)?;
            }
        }
        Ok(table)
    }

    /// Leads from old lists to new ones. After an error the table holds neither.
    pub(crate) fn update(&mut self, old: Pair<'_>, new: Pair<'_>, lines: &mut [SourceLine]) -> Result<usize, Full> {
        let mut count = 0;
        let mut touched = Vec::new();
        for (list, (old, hash)) in old.into_iter().zip(self.exact).enumerate() {
            let changed = differing(old, new[list]);
            count += changed.len();
            for prefix in &changed {
                if prefix.prefix_len() == ADDRESS_LEN {
                    let addr = prefix.addr().into();
                    let is_there = new[list].binary_search(prefix).is_ok();
                    let is_done = if is_there { hash.add(addr, lines) } else { hash.remove(addr, lines) };
                    if is_done {
                        continue;
                    }
                } else if prefix.prefix_len() <= REGION_LEN {
                    self.cover_again(prefix, new);
                }
                touched.extend(regions(prefix));
            }
        }
        touched.sort_unstable();
        touched.dedup();
        let mut node = Node::default();
        if touched.len() > MANY_REGIONS {
            touched = (0..REGIONS).collect();
        }
        for region in touched {
            let start = Ipv4Addr::from((region as u32) << 14);
            let region_prefix = Ipv4Net::new_assert(start, REGION_LEN);
            let mut here: [Vec<Ipv4Net>; 2] = Default::default();
            for ((here, hash), list) in here.iter_mut().zip(&self.exact).zip(new) {
                let all = within(list, &region_prefix).iter().copied();
                here.extend(
                    all.filter(|prefix| prefix.prefix_len() < ADDRESS_LEN || !hash.has(prefix.addr().into(), lines)),
                );
            }
            node.build([&here[0], &here[1]], self.cover[region]);
            self.put_node(lines, region as u32, &node)?;
        }
        Ok(count)
    }

    /// Looks up again what short prefixes say of the regions in `prefix`.
    fn cover_again(&mut self, prefix: &Ipv4Net, [deny, allow]: Pair<'_>) {
        let above = (0..prefix.prefix_len()).fold(0, |bits, len| {
            let shorter = Ipv4Net::new_assert(prefix.addr(), len).trunc();
            bits | own(deny, allow, &shorter)
        });
        self.cover[regions(prefix)].fill(above as u8);
        for (bits, list) in [deny, allow].into_iter().enumerate() {
            for below in within(list, prefix).iter().filter(|below| below.prefix_len() <= REGION_LEN) {
                for cover in &mut self.cover[regions(below)] {
                    *cover |= 1 << bits;
                }
            }
        }
    }

    /// Writes a region's node where it belongs, with a new block when it is the first of its block with anything of its own.
    fn put_node(&mut self, lines: &mut [SourceLine], region: u32, node: &Node) -> Result<(), Full> {
        let upper = region >> 2;
        let mut root = read_root(lines, upper);
        if root & IMMEDIATE != 0 {
            if node.verdict() == Some(root & VERDICT) {
                return Ok(());
            }
            let even = Node::even(root & VERDICT);
            root = self.arena.take_block()?;
            for index in 0..4 {
                self.write_node(lines, root + 2 * index, &even)?;
            }
            write_root(lines, upper, root);
        }
        let unit = root + 2 * (region & 3);
        let [inner, deny, _, leaves] = *node_words(lines, unit);
        self.arena.give(leaves as u32, leaf_units(inner, deny));
        self.write_node(lines, unit, node)?;
        // A block that says one thing is that thing.
        if let Some(verdict) = node.verdict()
            && (0..4).all(|index| node_words(lines, root + 2 * index)[..3] == Node::even(verdict).words)
        {
            self.arena.give_block(root);
            write_root(lines, upper, IMMEDIATE | verdict);
        }
        Ok(())
    }

    fn write_node(&mut self, lines: &mut [SourceLine], unit: u32, node: &Node) -> Result<(), Full> {
        let units = node.leaves.len() as u32;
        let leaves = self.arena.take(units)?;
        let [inner, deny, allow] = node.words;
        *node_words(lines, unit) = [inner, deny, allow, leaves.into()];
        for (leaf, words) in (leaves..).zip(&node.leaves) {
            let at = (leaf as usize & 3) * 2;
            lines[leaf as usize >> 2].words[at..at + 2].copy_from_slice(words);
        }
        Ok(())
    }
}

fn regions(prefix: &Ipv4Net) -> std::ops::Range<usize> {
    let first = u32::from(prefix.addr()) as usize >> 14;
    first..first + (1 << REGION_LEN.saturating_sub(prefix.prefix_len()))
}

fn read_root(lines: &[SourceLine], upper: u32) -> u32 {
    let word = lines[(ROOT_LINE + (upper >> 4)) as usize].words[(upper >> 1 & 7) as usize];
    (word >> (upper << 5 & 32)) as u32
}

fn write_root(lines: &mut [SourceLine], upper: u32, root: u32) {
    let word = &mut lines[(ROOT_LINE + (upper >> 4)) as usize].words[(upper >> 1 & 7) as usize];
    let shift = upper << 5 & 32;
    *word = *word & !(u64::from(u32::MAX) << shift) | u64::from(root) << shift;
}

fn node_words(lines: &mut [SourceLine], unit: u32) -> &mut [u64; 4] {
    let at = ((unit & 2) << 1) as usize;
    let words = &mut lines[(unit >> 2) as usize].words[at..at + 4];
    words.try_into().expect("four words of eight")
}

fn leaf_units(inner: u64, full: u64) -> u32 {
    inner.count_ones() + 3 * (inner & full).count_ones()
}

/// A node with its leaves, before it has a place.
#[derive(Clone, Debug, Default)]
struct Node {
    /// `inner`, `deny`, `allow`.
    words: [u64; 3],
    /// Two words for each unit.
    leaves: Vec<[u64; 2]>,
}

/// `len` bits from bit `from` of a word.
fn run(from: u32, len: u32) -> u64 {
    if len >= 64 { !0 } else { ((1 << len) - 1) << from }
}

fn fill(cover: u32, bit: u32) -> u64 {
    if cover >> bit & 1 == 1 { !0 } else { 0 }
}

impl Node {
    /// The same for all addresses.
    fn even(verdict: u32) -> Self {
        Self { words: [0, fill(verdict, 0), fill(verdict, 1)], leaves: Vec::new() }
    }

    /// The verdict, when it is the same for all addresses.
    fn verdict(&self) -> Option<u32> {
        let [inner, deny, allow] = self.words;
        let is_even = |word: u64| word == 0 || word == !0;
        (inner == 0 && is_even(deny) && is_even(allow)).then_some((deny & 1 | (allow & 1) << 1) as u32)
    }

    /// Makes the node of a region from the prefixes in it and what shorter ones say.
    fn build(&mut self, here: Pair<'_>, cover: u8) {
        self.leaves.clear();
        let mut plain = [fill(cover.into(), 0), fill(cover.into(), 1)];
        let mut inner = 0u64;
        for (plain, list) in plain.iter_mut().zip(here) {
            for prefix in list {
                let (bit, len) = (u32::from(prefix.addr()) >> 8 & 63, prefix.prefix_len());
                if len > 24 {
                    inner |= 1 << bit;
                } else if len > REGION_LEN {
                    *plain |= run(bit, 1 << (24 - len));
                }
            }
        }
        let mut rest = here;
        let mut kept = 0u64;
        let mut bits = inner;
        while bits != 0 {
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            let mut maps = plain.map(|plain| [fill((plain >> bit) as u32, 0); 4]);
            for (map, list) in maps.iter_mut().zip(&mut rest) {
                while let Some(prefix) = list.first()
                    && u32::from(prefix.addr()) >> 8 & 63 <= bit
                {
                    *list = &list[1..];
                    let (addr, len) = (u32::from(prefix.addr()), prefix.prefix_len());
                    if len > 24 && addr >> 8 & 63 == bit {
                        let count = 1 << (32 - len);
                        let first = (addr >> 6 & 3) as usize;
                        for quarter in &mut map[first..first + (count as usize).div_ceil(64)] {
                            *quarter |= run(addr & 63, count.min(64));
                        }
                    }
                }
            }
            self.put_leaf(bit, maps, &mut plain, &mut kept);
        }
        self.words = [kept, plain[0], plain[1]];
    }

    /// Adds the leaf of a /24, or says in the node what is the same for all of it.
    fn put_leaf(&mut self, bit: u32, maps: [[u64; 4]; 2], plain: &mut [u64; 2], kept: &mut u64) {
        let base = plain.map(|plain| fill((plain >> bit) as u32, 0));
        let differing: [u64; 4] = std::array::from_fn(|at| maps[0][at] ^ base[0] | maps[1][at] ^ base[1]);
        let exceptions: u32 = differing.iter().map(|word| word.count_ones()).sum();
        let is_even = |map: [u64; 4]| map == [0; 4] || map == [!0; 4];
        if maps.into_iter().all(is_even) {
            for (plain, map) in plain.iter_mut().zip(maps) {
                *plain = *plain & !(1 << bit) | (map[0] & 1) << bit;
            }
            return;
        }
        *kept |= 1 << bit;
        let is_full = exceptions > SPARSE_EXCEPTIONS as u32;
        if is_full {
            self.leaves.extend((0..4).map(|at| [maps[0][at], maps[1][at]]));
        } else {
            self.leaves.push(sparse(&differing, maps, base));
        }
        plain[0] = plain[0] & !(1 << bit) | u64::from(is_full) << bit;
        plain[1] &= !(1 << bit);
    }
}

/// A leaf that names exceptions.
fn sparse(differing: &[u64; 4], maps: [[u64; 4]; 2], base: [u64; 2]) -> [u64; 2] {
    let (mut octets, mut verdicts) = ([0u8; SPARSE_EXCEPTIONS], [0u8; SPARSE_EXCEPTIONS]);
    let mut count = 0;
    for (quarter, word) in differing.iter().enumerate() {
        let mut bits = *word;
        while bits != 0 {
            let bit = bits.trailing_zeros();
            bits &= bits - 1;
            octets[count] = (quarter * 64) as u8 + bit as u8;
            verdicts[count] = (maps[0][quarter] >> bit & 1 | (maps[1][quarter] >> bit & 1) << 1) as u8;
            count += 1;
        }
    }
    // Places that are left over say the first exception again.
    let (octet, verdict) = (octets[0], verdicts[0]);
    octets[count..].fill(octet);
    verdicts[count..].fill(verdict);
    verdicts[0] |= ((base[0] & 1 | (base[1] & 1) << 1) << 2) as u8;
    [u64::from_le_bytes(octets), u64::from_le_bytes(verdicts)]
}
