//! The buckets as programs reach them: maps, the clock, and the one instruction that changes a word on all CPUs.

use core::{
    intrinsics::{AtomicOrdering, atomic_cxchg},
    sync::atomic::AtomicU64,
};

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, PerCpuArray},
    helpers::bpf_ktime_get_ns,
    macros::btf_map,
};
use tidegate_abi::{Address, DomainRates, RateSet, map::MAX_DOMAINS, rates::RATE_SETS};
use tidegate_programs::rates::{Buckets, SharedDomain, SharedSet};

use super::{maps::Maps, observe::has_known};

#[btf_map]
pub(crate) static RATE_TABLES: ArrayOfMaps<Array<RateSet, { RATE_SETS as usize }>, { MAX_DOMAINS as usize }> =
    ArrayOfMaps::new();
#[btf_map]
pub(crate) static RATE_DOMAINS: Array<DomainRates, { MAX_DOMAINS as usize }> = Array::new();
#[btf_map]
pub(crate) static RATE_OVERFLOWS: PerCpuArray<u64, { MAX_DOMAINS as usize }> = PerCpuArray::new();

impl Buckets for Maps {
    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_ktime_get_ns() }
    }

    #[inline(always)]
    fn find_domain_rates(&self, domain: u32) -> Option<&SharedDomain> {
        let rates = RATE_DOMAINS.get(domain)?;
        // SAFETY: both types have the same layout (asserted beside `SharedDomain`), and array elements live as long as the
        // program.
        Some(unsafe { &*(&raw const *rates).cast::<SharedDomain>() })
    }

    #[inline(always)]
    fn find_rate_set(&self, domain: u32, set: u32) -> Option<&SharedSet> {
        let set = RATE_TABLES.get_value_ptr_mut(domain, &set)?;
        // SAFETY: both types have the same layout (asserted beside `SharedSet`). A table that user space takes away lives
        // until the programs that found it have ended.
        Some(unsafe { &*set.cast::<SharedSet>() })
    }

    #[inline(always)]
    fn is_known(&self, domain: u32, source: &Address) -> bool {
        has_known(domain, source)
    }

    #[inline(always)]
    fn note_overflow(&self, domain: u32) {
        if !self.charges {
            return;
        }
        let Some(count) = RATE_OVERFLOWS.get_ptr_mut(domain) else { return };
        // SAFETY: the element is this CPU's own; a program that interrupts this one can at most lose a count.
        unsafe { *count += 1 };
    }

    #[inline(always)]
    fn load(&self, word: &AtomicU64) -> u64 {
        // SAFETY: the reference is valid and aligned. The target has no atomic loads; its plain loads of eight aligned bytes
        // are whole, and a stale value fails the exchange that follows.
        unsafe { word.as_ptr().read_volatile() }
    }

    #[inline(always)]
    fn replace(&self, word: &AtomicU64, current: u64, new: u64) -> bool {
        if !self.charges {
            return true;
        }
        // SAFETY: the reference is valid and aligned. `AtomicU64::compare_exchange` is this instruction too, but the
        // target's description keeps it from `core`, as processors of BPF before Linux 5.12 did not have it.
        unsafe {
            atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(word.as_ptr(), current, new).1
        }
    }
}
