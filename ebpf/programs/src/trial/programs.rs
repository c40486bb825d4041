//! The programs and their maps.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, lpm_trie::Key},
    helpers::bpf_get_prandom_u32,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use tidegate_abi::SourceLine;
use tidegate_programs::sources::{Lines, find_v4, find_v6};

/// Keys to draw from, as halves of an address; an IPv4 address is the lower half.
const KEYS_COUNT: u32 = 1 << 20;
/// Most prefixes of the anchors.
const MAX_PREFIXES: usize = 1 << 20;

type Table = Array<SourceLine, 1, { (BPF_F_INNER_MAP | BPF_F_MMAPABLE) as usize }>;

#[btf_map]
static KEYS: Array<[u64; 2], { KEYS_COUNT as usize }, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static SOURCES: ArrayOfMaps<Table, 1> = ArrayOfMaps::new();
#[btf_map]
static HASH: HashMap<u32, u32, MAX_PREFIXES, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static TRIE_V4: LpmTrie<[u8; 4], u32, MAX_PREFIXES> = LpmTrie::new();
#[btf_map]
static TRIE_V6: LpmTrie<[u8; 16], u32, MAX_PREFIXES> = LpmTrie::new();

#[derive(Clone, Copy)]
struct Found<'a>(&'a Table);

impl Lines for Found<'_> {
    #[inline(always)]
    fn line(&self, index: u32) -> Option<&SourceLine> {
        self.0.get(index)
    }
}

#[inline(always)]
fn draw() -> [u64; 2] {
    // SAFETY: a helper without arguments.
    let index = unsafe { bpf_get_prandom_u32() } & (KEYS_COUNT - 1);
    KEYS.get(index).copied().unwrap_or_default()
}

/// No look-up.
#[xdp]
pub fn nothing(_ctx: XdpContext) -> u32 {
    let [upper, lower] = draw();
    (upper ^ lower) as u32 & 3
}

/// The table, IPv4.
#[xdp]
pub fn table_v4(_ctx: XdpContext) -> u32 {
    let [_, lower] = draw();
    SOURCES.get(0).map_or(0, |table| find_v4(Found(table), lower as u32))
}

/// The table, IPv6.
#[xdp]
pub fn table_v6(_ctx: XdpContext) -> u32 {
    let [upper, lower] = draw();
    SOURCES.get(0).map_or(0, |table| find_v6(Found(table), upper, lower))
}

/// A hash of whole IPv4 addresses.
#[xdp]
pub fn hash_v4(_ctx: XdpContext) -> u32 {
    let [_, lower] = draw();
    HASH.get_ptr(lower as u32).is_some() as u32
}

/// A trie, IPv4.
#[xdp]
pub fn trie_v4(_ctx: XdpContext) -> u32 {
    let [_, lower] = draw();
    TRIE_V4.get(&Key::new(32, (lower as u32).to_be_bytes())).is_some() as u32
}

/// A trie, IPv6.
#[xdp]
pub fn trie_v6(_ctx: XdpContext) -> u32 {
    let [upper, lower] = draw();
    let (upper, lower) = (upper.to_be_bytes(), lower.to_be_bytes());
    let mut key = [0; 16];
    key[..8].copy_from_slice(&upper);
    key[8..].copy_from_slice(&lower);
    TRIE_V6.get(&Key::new(128, key)).is_some() as u32
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

/// Nothing here panics: code that could would not pass the linker, as BPF has no unwinding. The handler is a formality.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
