//! The maps, and the pure code's view of them.

use aya_ebpf::{
    bindings::{BPF_F_INNER_MAP, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuArray, ProgramArray, RingBuf, SkStorage, SockMap},
    macros::btf_map,
};
use tidegate_abi::{
    Address, AddressOwner, Connections, Counter, DialledKey, FrontendKey, Instance, InterfaceKey, KnownSet, Mark,
    Policy, Sample, SampleBudget, SampleState, SourceKey, SourceLine,
    connections::{KNOWN_SETS, MAX_OPEN_DOMAINS, MAX_OPEN_SOURCES, open_of_word},
    map::{
        MAX_ADDRESSES, MAX_ADMITTING, MAX_COUNTERS, MAX_DIALLED, MAX_DOMAINS, MAX_FRONTENDS, MAX_INTERFACES,
        MAX_SOCKETS, MAX_SOURCES, MAX_WORKERS, SAMPLE_CLASSES, SAMPLES_BYTES,
    },
};
use tidegate_programs::{
    decide::Tables,
    sources::{Lines, UNREADABLE, find},
};

/// Memory for what is there, not for what could be.
const SPARSE: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
pub(crate) static ADDRESSES: HashMap<Address, AddressOwner, { MAX_ADDRESSES as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, u32, { MAX_FRONTENDS as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static INTERFACES: HashMap<InterfaceKey, u32, { MAX_INTERFACES as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static ADMITTING: HashMap<u32, u32, { MAX_ADMITTING as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static DOMAINS: HashMap<u32, Policy, { MAX_DOMAINS as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static SOURCES: ArrayOfMaps<SourceTable, { MAX_SOURCES as usize }> = ArrayOfMaps::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<Counter, { MAX_COUNTERS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static SAMPLES: RingBuf<Sample, { SAMPLES_BYTES as usize }> = RingBuf::new();
#[btf_map]
pub(crate) static SAMPLE_BUDGETS: Array<SampleBudget, { SAMPLE_CLASSES as usize }> = Array::new();
#[btf_map]
pub(crate) static SAMPLE_STATES: PerCpuArray<SampleState, { SAMPLE_CLASSES as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static SOCKETS: SockMap<{ MAX_SOCKETS as usize }> = SockMap::new();
#[btf_map]
pub(crate) static WORKERS: HashMap<u64, u32, { MAX_WORKERS as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static DIALLED: HashMap<DialledKey, u32, { MAX_DIALLED as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static JUDGED: PerCpuArray<u64, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static COOKIE: ProgramArray<1> = ProgramArray::new();

#[btf_map]
pub(crate) static INSTANCE: Array<Instance, 1> = Array::new();
#[btf_map]
pub(crate) static OPEN_DOMAINS: Array<u64, { MAX_OPEN_DOMAINS as usize }> = Array::new();
#[btf_map]
pub(crate) static OPEN_SOURCES: HashMap<SourceKey, u64, { MAX_OPEN_SOURCES as usize }, SPARSE> = HashMap::new();
#[btf_map]
pub(crate) static MARKS: SkStorage<Mark> = SkStorage::new();
#[btf_map]
pub(crate) static CONNECTIONS: PerCpuArray<Connections, { MAX_OPEN_DOMAINS as usize }> = PerCpuArray::new();
#[btf_map]
pub(crate) static KNOWN: Array<KnownSet, { KNOWN_SETS as usize }> = Array::new();

/// A table of sources. Each has its own number of lines, and user space fills it through its own mapping.
type SourceTable = Array<SourceLine, 1, { (BPF_F_INNER_MAP | BPF_F_MMAPABLE) as usize }>;

#[derive(Clone, Copy)]
struct Table<'a>(&'a SourceTable);

impl Lines for Table<'_> {
    #[inline(always)]
    fn line(&self, index: u32) -> Option<&SourceLine> {
        self.0.get(index)
    }
}

/// Verdict of a table on an address in two halves.
///
/// A global function of numbers alone: the verifier goes through it once and takes any verdict for possible where it is called.
/// Within the programs it would be gone through for each way there, and fill their stack.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn find_source(sources: u32, upper: u64, lower: u64) -> u32 {
    match SOURCES.get(sources) {
        Some(table) => find(Table(table), upper, lower),
        None => UNREADABLE,
    }
}

/// The maps as the decision sees them.
///
/// A value found stays what it was for the whole run: user space waits a grace period between freeing an element whose
/// value matters and reusing its memory.
pub(crate) struct Maps {
    /// Whether connections are charged to buckets; who only asks charges nobody.
    pub(crate) charges: bool,
}

impl Maps {
    /// For programs that judge.
    pub(crate) const JUDGING: Self = Self { charges: true };
    /// For programs that answer questions.
    pub(crate) const ASKING: Self = Self { charges: false };
}

impl Tables for Maps {
    #[inline(always)]
    fn find_owner(&self, addr: &Address) -> Option<&AddressOwner> {
        // SAFETY: read only by this run, see `Maps`.
        unsafe { ADDRESSES.get(addr) }
    }

    #[inline(always)]
    fn find_frontend(&self, key: &FrontendKey) -> Option<&u32> {
        // SAFETY: read only by this run, see `Maps`.
        unsafe { FRONTENDS.get(key) }
    }

    #[inline(always)]
    fn has_interface(&self, key: &InterfaceKey) -> bool {
        INTERFACES.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn find_policy(&self, domain: u32) -> Option<&Policy> {
        // SAFETY: read only by this run, see `Maps`.
        unsafe { DOMAINS.get(domain) }
    }

    #[inline(always)]
    fn find_source(&self, sources: u32, addr: &Address) -> u32 {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
        let upper = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        find_source(sources, upper, u64::from_be_bytes([i, j, k, l, m, n, o, p]))
    }

    #[inline(always)]
    fn has_dialled(&self, key: &DialledKey) -> bool {
        DIALLED.get_ptr(key).is_some()
    }

    #[inline(always)]
    fn count_open(&self, source: &SourceKey) -> u32 {
        // SAFETY: one aligned word, which other CPUs change in one step; what it says of another source, whose element took a
        // removed one's memory just now, is as good as what it said a moment earlier.
        unsafe { OPEN_SOURCES.get(source) }.map_or(0, |word| open_of_word(*word))
    }

    #[inline(always)]
    fn count_open_total(&self, domain: u32) -> u32 {
        OPEN_DOMAINS.get(domain).map_or(0, |open| *open as u32)
    }
}
