//! The shape of a table of sources: both lists of a domain, both families, in one array of cache lines.
//!
//! User space writes a table while no program reads it, programs only read: so a table needs no locks, and every look-up
//! takes a bounded number of lines whatever its size. Indices are of lines ([`SourceLine`]) or of units, which are quarters
//! of a line. A verdict is the union of what every part says, so no part knows of another, and what is looked up in one does
//! not wait for the memory of another. Must not know how tables are built or swapped.
//!
//! ```text
//! line 0            header: seed, places of the parts
//! lines 1..10       steps of the search over IPv6 lengths from 65, a word of 32 bits each; the first is none
//! lines 16..4112    IPv4 root: a word of 32 bits for each upper half of an address
//! from there        what the header says, then blocks and leaves of IPv4
//! ```
//!
//! **IPv4 addresses** (/32) stand in a hash for each list, a line for each home, with sixteen lanes of the 31 bits of an address
//! that its home does not tell. One that finds its line full is left to the prefixes.
//!
//! **IPv4 prefixes.** A root word is a verdict ([`IMMEDIATE`]) or the unit of a block of four nodes, one for each /18. A node has four
//! words: `inner`, `deny`, `allow` (a bit for each of its /24s) and the unit of its first leaf. Where `inner` is set the /24 has a leaf,
//! and the bit in `deny` says of which kind; leaves of one node lie one behind the other in the order of their /24s. A *sparse* leaf
//! is a unit: eight octets that are exceptions, and a word of verdicts for them. A *full* leaf is four units, one for each
//! /26, with a bit for each address in two words.
//!
//! **IPv6 up to /64** is intervals in trees ([`range`]) with keys of 31 bits: up to /33 a tree for each /16, found by a root of
//! words as IPv4 has it (an [`IMMEDIATE`] verdict, or a line); from /34 on a tree for each /33, found by a hash ([`group`]).
//!
//! **IPv6 from /65.** Binary search over the prefix lengths that occur (Waldvogel et al., "Scalable High Speed IP Routing
//! Lookups", 1997), in a hash of 16-byte entries, four to a line. An entry is a prefix, or a marker that says that something longer
//! lies below; either carries the verdict of everything shorter, so no search goes back. It begins with the /64, and goes on
//! by the place of its entry and the lower half of the address.

/// A cache line of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SourceLine {
    /// Its words.
    pub words: [u64; 8],
}

/// In a verdict: the deny list has the source.
pub const DENIED: u32 = 1;
/// In a verdict: the allow list has the source.
pub const ALLOWED: u32 = 2;
/// Both.
pub const VERDICT: u32 = DENIED | ALLOWED;

/// Line of the header.
pub const HEADER_LINE: u32 = 0;
/// First line of the steps of the search over lengths.
pub const STEPS_LINE: u32 = 1;
/// First line of the IPv4 root.
pub const ROOT_LINE: u32 = 16;
/// Words of the IPv4 root, each of 32 bits.
pub const ROOT_WORDS: u32 = 65_536;
/// The first line behind the root.
pub const FREE_LINE: u32 = ROOT_LINE + ROOT_WORDS / 16;
/// Units in a line.
pub const LINE_UNITS: u32 = 4;
/// Units of a block of four nodes.
pub const BLOCK_UNITS: u32 = 8;
/// Exceptions that a sparse leaf can hold.
pub const SPARSE_EXCEPTIONS: usize = 8;
/// In a root word: its lower bits are a verdict.
pub const IMMEDIATE: u32 = 1 << 31;
/// Most lines of a table, 256 MiB: places of hash entries have 24 bits.
pub const MAX_LINES: u32 = 1 << 22;
/// Lines that the least hash of addresses has: fewer do not tell fillings from addresses.
pub const MIN_EXACT_LINES: u32 = 4;
/// Addresses that a line of their hash holds.
pub const EXACT_LANES: u32 = 16;
/// The longest prefix of the trees that the root leads to.
pub const SHORT_LEN: u8 = 33;
/// The longest prefix of any tree.
pub const MIDDLE_LEN: u8 = 64;
/// Entries of a line of the hash of prefixes from /65.
pub const LINE_ENTRIES: u32 = 4;
/// Lines that an entry can stand in: its home and those behind it.
pub const MAX_PROBES: u32 = 8;
/// Steps of a binary search over 64 lengths, twice.
pub const MAX_STEPS: u32 = 14;

/// A tree of intervals. A node is a line: fourteen lanes of 32 bits, then a word. A lane has the last key of an interval, ascending,
/// with [`LANE`] set; lanes that are left over have [`END`]. The upper half of the last word is the line of the first of the node's
/// children, one for each interval; where it is 0 the lower half has the verdicts of the intervals, two bits each.
///
/// [`LANE`]: range::LANE
/// [`END`]: range::END
pub mod range {
    /// Lanes of a node.
    pub const LANES: usize = 14;
    /// Intervals of a node.
    pub const INTERVALS: usize = LANES + 1;
    /// The last key: keys have 31 bits, so that one subtraction of a word compares two lanes.
    pub const END: u32 = (1 << 31) - 1;
    /// Set in each lane: what is subtracted from it borrows from no other.
    pub const LANE: u32 = 1 << 31;
    /// Most nodes from the root to a verdict: 15^6 intervals are more than two lists of a million prefixes make.
    pub const MAX_DEPTH: u32 = 6;
}

/// Parts of an entry that leads from a /33 to its tree; eight entries to a line. 0 is no entry.
pub mod group {
    /// The 33 bits.
    pub const KEY: u64 = (1 << 33) - 1;
    /// Where the line of the tree's root stands.
    pub const LINE_SHIFT: u32 = 33;
    /// That line, once shifted.
    pub const LINE: u64 = (1 << 24) - 1;
    /// In a line's first entry: some entry that has its home here or before stands further on.
    pub const OVERFLOW: u64 = 1 << 63;
    /// Entries of a line.
    pub const ENTRIES: usize = 8;
}

/// Parts of a step: which length is looked at, and which step is next. 0 is none.
pub mod step {
    /// Prefix length.
    pub const LEN: u32 = 0xff;
    /// Where the step after an entry was found stands.
    pub const HIT_SHIFT: u32 = 8;
    /// Where the step after none was found stands.
    pub const MISS_SHIFT: u32 = 16;
    /// A step's number: those of 128 lengths and 0.
    pub const NEXT: u32 = 0xff;
}

/// Parts of the second word of a hash entry; the first is the key, with zeroes behind the length.
pub mod meta {
    /// Prefix length, 1 to 128; 0 is no entry.
    pub const LEN: u64 = 0xff;
    /// Where the verdict stands that programs use: of this entry and everything shorter.
    pub const VERDICT_SHIFT: u32 = 8;
    /// Where the verdict of the prefix itself stands; 0 in a marker.
    pub const OWN_SHIFT: u32 = 10;
    /// In a line's first entry: some entry that has its home here or before stands further on.
    pub const OVERFLOW: u64 = 1 << 12;
    /// In an entry of length 64: prefixes longer than 64 bits may lie below.
    pub const HAS_LONGER: u64 = 1 << 13;
    /// Where the place of the /64's entry stands, plus one (24 bits); 0 in the first stage.
    pub const PARENT_SHIFT: u32 = 16;
    /// That place.
    pub const PARENT: u64 = 0xff_ffff << PARENT_SHIFT;
    /// What makes an entry the one that is looked for, beside its key.
    pub const IDENTITY: u64 = LEN | PARENT;
    /// Where the number of prefixes that need the entry stands (24 bits): itself and those it is a marker for.
    pub const REFS_SHIFT: u32 = 40;
    /// One prefix that needs the entry.
    pub const ONE_REF: u64 = 1 << REFS_SHIFT;
    /// Most prefixes that can need one entry.
    pub const MAX_REFS: u64 = 0xff_ffff;
}

/// Lines one behind the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The first of them.
    pub first: u32,
    /// How many.
    pub lines: u32,
}

impl Place {
    #[inline(always)]
    const fn read(word: u64) -> Self {
        Self { first: word as u32, lines: (word >> 32) as u32 }
    }

    const fn write(self) -> u64 {
        self.first as u64 | (self.lines as u64) << 32
    }

    /// Where in a hash that lies here a mixed key ([`Header::mix`]) has its home, counted from the first line, and how far it is
    /// from there to each of the lines behind ([`Place::after`]).
    #[inline(always)]
    pub const fn home(self, mixed: u64) -> (u32, u32) {
        // Each half as a fraction of the lines.
        let lines = self.lines as u64;
        let home = ((mixed & 0xffff_ffff) * lines) >> 32;
        (home as u32, (((mixed >> 32) * lines) >> 32) as u32 | 1)
    }

    /// The line that is looked at when one was full. Strides differ, since full lines side by side would fill those behind them.
    #[inline(always)]
    pub const fn after(self, line: u32, stride: u32) -> u32 {
        let next = line + stride;
        if next >= self.lines { next - self.lines } else { next }
    }

    /// Where in a hash of addresses that lies here a mixed address ([`Header::mix_v4`]) is, counted from the first line.
    #[inline(always)]
    pub const fn line_of(self, mixed: u32) -> u32 {
        ((mixed as u64 * self.lines as u64) >> 32) as u32
    }
}

/// What the header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Secret of the hashes.
    pub seed: u64,
    /// Hash of IPv6 prefixes from /65.
    pub long: Place,
    /// First step of the search in it; 0 when there are none.
    pub first_step: u32,
    /// First line of the root of IPv6 prefixes up to [`SHORT_LEN`]; 0 when there are none.
    pub short_root: u32,
    /// Hash of the /33s that have longer prefixes, up to [`MIDDLE_LEN`].
    pub groups: Place,
    /// Hashes of IPv4 addresses: denied, allowed.
    pub exact: [Place; 2],
}

impl Header {
    /// Reads a header.
    #[inline(always)]
    pub const fn read(line: &SourceLine) -> Self {
        let [seed, long, search, groups, denied, allowed, ..] = line.words;
        Self {
            seed,
            long: Place::read(long),
            first_step: search as u32,
            short_root: (search >> 32) as u32,
            groups: Place::read(groups),
            exact: [Place::read(denied), Place::read(allowed)],
        }
    }

    /// The line that says it.
    pub const fn write(&self) -> SourceLine {
        let search = self.first_step as u64 | (self.short_root as u64) << 32;
        let [denied, allowed] = self.exact;
        let words = [self.seed, self.long.write(), search, self.groups.write(), denied.write(), allowed.write(), 0, 0];
        SourceLine { words }
    }

    /// A key mixed with what tells it from others of the same bits.
    #[inline(always)]
    pub const fn mix(&self, key: u64, identity: u64) -> u64 {
        // Prefixes share bits, end in zeroes and come in rows, hence the folds before and after each multiplication.
        let mut mixed = key ^ self.seed;
        mixed ^= mixed >> 32;
        mixed = mixed.wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^= mixed >> 33;
        mixed = (mixed ^ identity).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ mixed >> 33
    }

    /// An IPv4 address mixed: each has a number of its own. Its upper part says the line ([`Place::line_of`]), its lower 31 bits
    /// are the lane; two addresses with the same lane are half of all lines apart.
    #[inline(always)]
    pub const fn mix_v4(&self, addr: u32) -> u32 {
        let mut mixed = addr ^ self.seed as u32;
        mixed ^= mixed >> 16;
        mixed = mixed.wrapping_mul(0x7feb_352d);
        mixed ^= (self.seed >> 32) as u32;
        mixed ^= mixed >> 15;
        mixed = mixed.wrapping_mul(0x846c_a68b);
        mixed ^ mixed >> 16
    }
}

/// The 31 bits of a mixed address that stand in a lane.
pub const EXACT_LANE: u32 = range::END;

/// The upper `len` bits (1 to 64) of a word.
#[inline(always)]
pub const fn upper_bits(word: u64, len: u32) -> u64 {
    word & (!0 << (64u32.wrapping_sub(len) & 63))
}
