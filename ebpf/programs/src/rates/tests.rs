//! The table against a model of unlimited memory, and threads against the exact allowance.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use proptest::prelude::*;
use tidegate_abi::rates::RATE_SETS;

use super::*;

const DOMAIN: u32 = 1;
/// So long that nothing comes back during a test.
const NEVER: u64 = 1 << 40;

/// A domain's table of a few sets, so that sources meet.
struct Table {
    sets: Vec<SharedSet>,
    domain: SharedDomain,
    now: Cell<u64>,
    known: RefCell<BTreeSet<Address>>,
    overflows: Cell<u32>,
    is_asking: Cell<bool>,
}

impl Table {
    fn new(sets: usize) -> Self {
        Self {
            sets: (0..sets).map(|_| SharedSet::default()).collect(),
            domain: SharedDomain { seed: [3, 4], ..SharedDomain::default() },
            now: Cell::new(1_000_000_000),
            known: RefCell::default(),
            overflows: Cell::new(0),
            is_asking: Cell::new(false),
        }
    }

    fn connect(&self, policy: &Policy, source: Address) -> Option<Reason> {
        find_rate_refusal(self, DOMAIN, policy, &source)
    }

    fn words(&self) -> Vec<u64> {
        let words = |set: &SharedSet| {
            let all = set.sources.iter().chain(&set.full_at).chain([&set.strangers, &set.known]);
            all.map(|word| word.load(Ordering::Relaxed)).collect::<Vec<_>>()
        };
        self.sets.iter().flat_map(words).chain([self.domain.total.load(Ordering::Relaxed)]).collect()
    }
}

impl Buckets for Table {
    fn now(&self) -> u64 {
        self.now.get()
    }

    fn find_domain_rates(&self, domain: u32) -> Option<&SharedDomain> {
        (domain == DOMAIN).then_some(&self.domain)
    }

    fn find_rate_set(&self, _domain: u32, set: u32) -> Option<&SharedSet> {
        assert!(set < RATE_SETS);
        self.sets.get(set as usize % self.sets.len())
    }

    fn is_known(&self, _domain: u32, source: &Address) -> bool {
        self.known.borrow().contains(source)
    }

    fn note_overflow(&self, _domain: u32) {
        self.overflows.set(self.overflows.get() + 1);
    }

    fn load(&self, word: &AtomicU64) -> u64 {
        word.load(Ordering::Relaxed)
    }

    fn replace(&self, word: &AtomicU64, current: u64, new: u64) -> bool {
        self.is_asking.get() || word.compare_exchange(current, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

fn policy(per_source: Rate, total: Rate) -> Policy {
    Policy { per_source, total, v4_bits: 32, v6_bits: 64, ..Policy::default() }
}

fn rate(interval_ns: u64, burst: u64) -> Rate {
    Rate { interval_ns, burst_ns: interval_ns * (burst - 1) }
}

fn source(number: u32) -> Address {
    tidegate_abi::address::from_v4(number.to_be_bytes())
}

proptest! {
    /// Whatever comes in whatever order, a source that has a bucket is judged as if it alone had memory; the others are
    /// counted, and never get more than their set's shared bucket holds.
    #[test]
    fn a_source_with_a_bucket_is_judged_as_if_memory_were_endless(
        steps in prop::collection::vec((0u32..40, 0u64..40), 1..400),
        burst in 1u64..5,
    ) {
        let table = Table::new(2);
        let policy = policy(rate(100, burst), Rate::default());
        let mut model: BTreeMap<u32, u64> = BTreeMap::new();
        let mut shared: BTreeMap<u32, u64> = BTreeMap::new();
        for (number, wait) in steps {
            table.now.set(table.now.get() + wait);
            let before = table.overflows.get();
            let is_admitted = table.connect(&policy, source(number)).is_none();
            let set = rate_set(hash_source(&[3, 4], &source(number))) % 2;
            let bucket = if table.overflows.get() > before {
                // A source is only turned to the shared bucket when its own would be full, or it has used the shared one.
                shared.entry(set).or_default()
            } else {
                model.entry(number).or_default()
            };
            let step = policy.per_source.take(*bucket, table.now.get(), 0);
            *bucket = step.full_at;
            prop_assert_eq!(is_admitted, step.is_taken);
        }
    }

    #[test]
    fn asking_changes_nothing_and_says_what_would_happen(numbers in prop::collection::vec(0u32..30, 1..200)) {
        let table = Table::new(1);
        let policy = policy(rate(NEVER, 3), rate(NEVER, 40));
        for number in numbers {
            let words = table.words();
            table.is_asking.set(true);
            let told = table.connect(&policy, source(number));
            prop_assert_eq!(table.words(), words);
            table.is_asking.set(false);
            prop_assert_eq!(table.connect(&policy, source(number)), told);
        }
    }
}

#[test]
fn a_flood_of_sources_takes_no_bucket_that_is_in_use() {
    let table = Table::new(4);
    let policy = policy(rate(NEVER, 10), Rate::default());
    for _ in 0..4 {
        assert_eq!(table.connect(&policy, source(7)), None);
    }
    for number in 1000..3000 {
        table.connect(&policy, source(number));
    }
    assert!(table.overflows.get() > 1900);
    for _ in 0..6 {
        assert_eq!(table.connect(&policy, source(7)), None);
    }
    assert_eq!(table.connect(&policy, source(7)), Some(Reason::RateSource));
    // A stranger without a place is judged with all the others; who is known is not.
    assert_eq!(table.connect(&policy, source(9)), Some(Reason::RateSource));
    table.known.borrow_mut().insert(source(9));
    assert_eq!(table.connect(&policy, source(9)), None);
}

#[test]
fn strangers_leave_a_quarter_of_the_domains_bucket_to_known_sources() {
    let table = Table::new(1);
    let policy = policy(Rate::default(), rate(NEVER, 41));
    let admitted = (0..1000).filter(|&number| table.connect(&policy, source(number)).is_none()).count();
    assert_eq!(admitted, 31);
    table.known.borrow_mut().insert(source(5000));
    let admitted = (0..100).filter(|_| table.connect(&policy, source(5000)).is_none()).count();
    assert_eq!(admitted, 10);
    assert_eq!(table.connect(&policy, source(5000)), Some(Reason::RateDomain));
}

/// The programs' clock never goes back and stands still in suspend (CLOCK_MONOTONIC). Were it to leap all the same:
#[test]
fn a_clock_that_leaps_gives_one_full_bucket_and_locks_nobody_out() {
    const YEAR: u64 = 365 * 24 * 3600 * 1_000_000_000;
    let table = Table::new(1);
    let policy = policy(rate(1000, 5), Rate::default());
    let taken = || (0..100).take_while(|_| table.connect(&policy, source(1)).is_none()).count();
    let start = table.now.get();
    assert_eq!(taken(), 5);
    for leap in [YEAR, 100 * YEAR] {
        table.now.set(start + leap);
        assert_eq!(taken(), 5, "time that passed fills a bucket once");
    }
    // Back to before everything that the buckets say.
    table.now.set(start);
    assert_eq!(taken(), 0);
    table.now.set(start + 5 * 1000);
    assert_eq!(taken(), 5, "a debt is never longer than a bucket is deep");
}

#[test]
fn without_limits_no_table_is_looked_at_and_without_tables_limits_refuse() {
    let table = Table::new(1);
    let refused = |policy: &Policy| find_rate_refusal(&table, DOMAIN + 1, policy, &source(1));
    assert_eq!(refused(&policy(Rate::default(), Rate::default())), None);
    assert_eq!(refused(&policy(rate(1, 1), Rate::default())), Some(Reason::RateDomain));
}

/// What threads share.
struct Racing {
    set: SharedSet,
    domain: SharedDomain,
}

impl Buckets for Racing {
    fn now(&self) -> u64 {
        1
    }

    fn find_domain_rates(&self, _domain: u32) -> Option<&SharedDomain> {
        Some(&self.domain)
    }

    fn find_rate_set(&self, _domain: u32, _set: u32) -> Option<&SharedSet> {
        Some(&self.set)
    }

    fn is_known(&self, _domain: u32, _source: &Address) -> bool {
        false
    }

    fn note_overflow(&self, _domain: u32) {}

    fn load(&self, word: &AtomicU64) -> u64 {
        word.load(Ordering::Relaxed)
    }

    fn replace(&self, word: &AtomicU64, current: u64, new: u64) -> bool {
        word.compare_exchange(current, new, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[test]
fn threads_add_up_to_the_allowance() {
    const THREADS: u32 = 4;
    let (per_source, total) = (rate(NEVER, 20_000), rate(NEVER, 100_001));
    let racing = Racing { set: SharedSet::default(), domain: SharedDomain::default() };
    let policy = policy(per_source, total);
    let (admitted, by_source) = (AtomicU32::new(0), [const { AtomicU32::new(0) }; 5]);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for turn in 0..200_000u32 {
                    let number = turn % 5;
                    if find_rate_refusal(&racing, DOMAIN, &policy, &source(number)).is_none() {
                        admitted.fetch_add(1, Ordering::Relaxed);
                        by_source[number as usize].fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    // Strangers have three quarters of 100,000 and one; each source is within its burst, but for the tokens that racing
    // claims of its bucket may give each thread.
    assert_eq!(admitted.load(Ordering::Relaxed), 75_001);
    for taken in by_source {
        assert!(taken.load(Ordering::Relaxed) <= 20_000 + THREADS);
    }
}
