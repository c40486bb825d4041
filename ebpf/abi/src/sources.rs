//! The shape of a table of sources: both lists of a domain, both families, in one array of cache lines.
//!
//! User space writes a table while no program reads it, programs only read: so a table needs no locks, and every look-up
//! takes a bounded number of lines whatever its size. Indices are of lines ([`SourceLine`]) or of units, which are quarters
//! of a line. Must not know how tables are built or swapped.
//!
//! ```text
//! line 0            header: seed, place and size of the hash, first step, what ::/0 says
//! lines 1..10       steps of the search over IPv6 prefix lengths, a word of 32 bits each; the first is none
//! lines 16..4112    IPv4 root: a word of 32 bits for each upper half of an address
//! from there        the IPv6 hash, then blocks and leaves of IPv4
//! ```
//!
//! **IPv4.** A root word is a verdict ([`IMMEDIATE`]) or the unit of a block of four nodes, one for each /18. A node has four
//! words: `inner`, `deny`, `allow` (a bit for each of its /24s) and the unit of its first leaf. Where `inner` is set the /24 has a leaf,
//! and the bit in `deny` says of which kind; leaves of one node lie one behind the other in the order of their /24s. A *sparse* leaf
//! is a unit: eight octets that are exceptions, and a word of verdicts for them. A *full* leaf is four units, one for each
//! /26, with a bit for each address in two words.
//!
//! **IPv6.** Binary search over the prefix lengths that occur (Waldvogel et al., "Scalable High Speed IP Routing Lookups",
//! 1997), in a hash of 16-byte entries, four to a line. An entry is a prefix, or a marker that says that something longer
//! lies below; either carries the verdict of everything shorter, so no search goes back. Prefixes longer than 64 bits are
//! searched in a second stage, by the place of their /64's entry and the lower half of the address.

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
/// Entries of a hash line.
pub const LINE_ENTRIES: u32 = 4;
/// Lines that an entry can stand in: its home and those behind it.
pub const MAX_PROBES: u32 = 8;
/// Steps of a binary search over 64 lengths, twice.
pub const MAX_STEPS: u32 = 14;

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

/// What the header says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Secret of the hash.
    pub seed: u64,
    /// First line of the hash.
    pub first: u32,
    /// Lines of the hash.
    pub lines: u32,
    /// First step of the search; 0 when there is no IPv6 prefix but perhaps ::/0.
    pub root: u32,
    /// Verdict of ::/0.
    pub default: u32,
}

impl Header {
    /// Reads a header.
    #[inline(always)]
    pub const fn read(line: &SourceLine) -> Self {
        let [seed, place, search, ..] = line.words;
        Self {
            seed,
            first: place as u32,
            lines: (place >> 32) as u32,
            root: search as u32,
            default: (search >> 32) as u32,
        }
    }

    /// The line that says it.
    pub const fn write(&self) -> SourceLine {
        let place = self.first as u64 | (self.lines as u64) << 32;
        let search = self.root as u64 | (self.default as u64) << 32;
        SourceLine { words: [self.seed, place, search, 0, 0, 0, 0, 0] }
    }

    /// Where an entry has its home, counted from the first line of the hash, and how far it is from there to each of the lines
    /// behind ([`Header::after`]).
    #[inline(always)]
    pub const fn home(&self, key: u64, identity: u64) -> (u32, u32) {
        // Prefixes share bits, end in zeroes and come in rows, hence the folds before and after each multiplication.
        let mut mixed = key ^ self.seed;
        mixed ^= mixed >> 32;
        mixed = mixed.wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed ^= mixed >> 33;
        mixed = (mixed ^ identity).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^= mixed >> 33;
        // Each half as a fraction of the lines.
        let lines = self.lines as u64;
        let home = ((mixed & 0xffff_ffff) * lines) >> 32;
        (home as u32, (((mixed >> 32) * lines) >> 32) as u32 | 1)
    }

    /// The line that is looked at when one was full. Strides differ, since full lines side by side would fill those behind them.
    #[inline(always)]
    pub const fn after(&self, line: u32, stride: u32) -> u32 {
        let next = line + stride;
        if next >= self.lines { next - self.lines } else { next }
    }
}

/// The upper `len` bits (1 to 64) of a word.
#[inline(always)]
pub const fn upper_bits(word: u64, len: u32) -> u64 {
    word & (!0 << (64u32.wrapping_sub(len) & 63))
}
