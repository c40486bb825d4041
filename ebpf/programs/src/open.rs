//! Open connections: whether another may begin, and counts of them by source that are changed from all CPUs at once.
//!
//! A limit is asked for before the handshake, so that a refusal costs neither a socket nor an answer. Handshakes that are
//! under way are not counted yet: a limit can be passed by as many connections as began in the same moment.
//!
//! The kernel reuses the memory of a removed hash element at once, so a program may hold the address of what is another
//! source's count by now. A count therefore carries half a hash of its key, and is raised by compare-and-exchange only.
//! Lowering needs no such care: while a count holds one's own connection, its element is not removed. Must not know maps.

use tidegate_abi::{
    Address, Policy, Reason, SourceKey,
    connections::{OPEN_REMOVED, open_word},
    rates::mask_source,
};

use crate::decide::Tables;

/// Tries before a count is given up as too busy: each that fails is another CPU's success.
const TRIES: u32 = 32;

/// A word that all CPUs share.
pub trait Word {
    /// Reads it.
    fn load(&self) -> u64;
    /// Replaces it if it still is `current`; says whether it was.
    fn replace(&self, current: u64, new: u64) -> bool;
    /// Lowers it by one.
    fn decrement(&self);
}

/// What became of [`raise`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Raised {
    /// Counted.
    Yes,
    /// The element is being removed, or its memory is another source's: look it up again.
    Gone,
    /// Others were faster, every time.
    Busy,
}

/// The source that an address belongs to.
#[inline(always)]
pub fn source_of(policy: &Policy, domain: u32, addr: &Address) -> SourceKey {
    SourceKey { addr: mask_source(addr, policy.v4_bits, policy.v6_bits), domain }
}

/// Why no further connection may begin.
#[inline(always)]
pub fn find_open_refusal(tables: &impl Tables, domain: u32, policy: &Policy, saddr: &Address) -> Option<Reason> {
    if policy.open_per_source != 0 && tables.count_open(&source_of(policy, domain, saddr)) >= policy.open_per_source {
        return Some(Reason::OpenSource);
    }
    if policy.open_total != 0 && tables.count_open_total(domain) >= policy.open_total {
        return Some(Reason::OpenDomain);
    }
    None
}

/// Counts one connection more.
#[inline(always)]
pub fn raise(word: &impl Word, hash: u64) -> Raised {
    let mut tries = 0;
    while tries < TRIES {
        let current = word.load();
        if current >> 32 != hash >> 32 || current as u32 >= OPEN_REMOVED - 1 {
            return Raised::Gone;
        }
        if word.replace(current, current + 1) {
            return Raised::Yes;
        }
        tries += 1;
    }
    Raised::Busy
}

/// Counts one connection less. `true` when it was the last one and the element is now the caller's to remove: nobody raises it
/// any more.
#[inline(always)]
pub fn lower(word: &impl Word, hash: u64) -> bool {
    word.decrement();
    // From here on the element may be removed by another, and be any source's.
    word.replace(open_word(hash, 0), open_word(hash, OPEN_REMOVED))
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{HashMap, hash_map::Entry},
        sync::{
            Mutex,
            atomic::{AtomicU64, Ordering::Relaxed},
        },
        thread,
    };

    use tidegate_abi::connections::open_of_word;

    use super::*;

    const HASH: u64 = 0x1234_5678_9abc_def0;

    impl Word for AtomicU64 {
        fn load(&self) -> u64 {
            self.load(Relaxed)
        }

        fn replace(&self, current: u64, new: u64) -> bool {
            self.compare_exchange(current, new, Relaxed, Relaxed).is_ok()
        }

        fn decrement(&self) {
            self.fetch_sub(1, Relaxed);
        }
    }

    #[test]
    fn the_last_one_removes_the_element_and_nobody_raises_it_then() {
        let word = AtomicU64::new(open_word(HASH, 1));
        assert_eq!(raise(&word, HASH), Raised::Yes);
        assert!(!lower(&word, HASH));
        assert_eq!(open_of_word(word.load(Relaxed)), 1);
        assert!(lower(&word, HASH));
        assert_eq!(open_of_word(word.load(Relaxed)), 0);
        assert_eq!(raise(&word, HASH), Raised::Gone);
    }

    #[test]
    fn anothers_count_is_left_alone() {
        let word = AtomicU64::new(open_word(HASH, 3));
        assert_eq!(raise(&word, HASH ^ 1 << 40), Raised::Gone);
        assert_eq!(word.load(Relaxed), open_word(HASH, 3));
    }

    #[test]
    fn nothing_is_lost_when_threads_open_and_close_at_once() {
        // As the kernel's hash does it: elements are found and removed under a lock, and changed outside of it.
        let table: Mutex<HashMap<u64, &'static AtomicU64>> = Mutex::default();
        let find = |hash: u64| table.lock().unwrap().get(&hash).copied();
        let open = |hash: u64| loop {
            if let Some(word) = find(hash) {
                if raise(word, hash) == Raised::Yes {
                    return;
                }
            } else if let Entry::Vacant(vacant) = table.lock().unwrap().entry(hash) {
                vacant.insert(Box::leak(Box::new(AtomicU64::new(open_word(hash, 1)))));
                return;
            }
            thread::yield_now();
        };
        let close = |hash: u64| {
            if lower(find(hash).expect("an open connection keeps its element"), hash) {
                table.lock().unwrap().remove(&hash);
            }
        };
        thread::scope(|scope| {
            for seed in 0..4 {
                let (open, close) = (&open, &close);
                scope.spawn(move || {
                    for round in 0..5_000 {
                        let hash = ((seed + round) % 3 + 1) << 32;
                        open(hash);
                        close(hash);
                    }
                });
            }
        });
        assert!(table.lock().unwrap().is_empty(), "{:?}", table.lock().unwrap());
    }
}
