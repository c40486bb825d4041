//! Known sources: those that completed a handshake not long ago, so that a flood of strangers finds a place for them kept.
//!
//! A set-associative table: a source has the ways of one set, by its hash. Who is known stays so for [`KNOWN_TICKS`]; only a
//! way older than [`HELD_TICKS`] is given to a newcomer, so no number of newcomers, who must complete handshakes as well,
//! drives out who comes back every minute. Ticks are 2^30 ns of CLOCK_MONOTONIC. Must not know where sets lie.

use tidegate_abi::{
    KnownSet,
    connections::{KNOWN_SETS, KNOWN_WAYS, known_word},
};

/// Ticks for which a source is known, 17 minutes: longer than a client's pause between two looks at a page.
pub const KNOWN_TICKS: u32 = 960;
/// Ticks for which nobody takes a source's place, 64 seconds.
pub const HELD_TICKS: u32 = 60;

/// The set of a hash.
#[inline(always)]
pub const fn set_of(hash: u64) -> u32 {
    hash as u32 & (KNOWN_SETS - 1)
}

/// Ticks of a time.
#[inline(always)]
pub const fn ticks_of(ktime_ns: u64) -> u32 {
    (ktime_ns >> 30) as u32
}

/// Whether a source is known.
#[inline(always)]
pub fn is_known(set: &KnownSet, hash: u64, now: u32) -> bool {
    let mut way = 0;
    while way < KNOWN_WAYS {
        let word = set.ways[way];
        if word != 0 && is_of(word, hash) && age(word, now) <= KNOWN_TICKS {
            return true;
        }
        way += 1;
    }
    false
}

/// Notes that a source completed a handshake, or ended a connection. Whether there was room for it.
///
/// Two CPUs that write one set at once may lose one of the notes: that source is a stranger until its next connection.
#[inline(always)]
pub fn note(set: &mut KnownSet, hash: u64, now: u32) -> bool {
    let mut oldest = 0;
    let mut oldest_age = 0;
    let mut way = 0;
    while way < KNOWN_WAYS {
        let word = set.ways[way];
        if word != 0 && is_of(word, hash) {
            oldest = way;
            oldest_age = u32::MAX;
            break;
        }
        let age = if word == 0 { u32::MAX } else { age(word, now) };
        if age > oldest_age {
            oldest = way;
            oldest_age = age;
        }
        way += 1;
    }
    if oldest_age <= HELD_TICKS {
        return false;
    }
    // The bound is one that the verifier sees.
    set.ways[oldest & (KNOWN_WAYS - 1)] = known_word(hash, now);
    true
}

#[inline(always)]
const fn is_of(word: u64, hash: u64) -> bool {
    word >> 32 == hash >> 32
}

/// A clock read on another CPU may be a tick behind.
#[inline(always)]
const fn age(word: u64, now: u32) -> u32 {
    now.saturating_sub(word as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u32 = 10_000;

    fn source(number: u64) -> u64 {
        number << 32 | 5
    }

    #[test]
    fn a_source_is_known_until_its_time_is_over() {
        let mut set = KnownSet::default();
        assert!(!is_known(&set, source(1), START));
        assert!(note(&mut set, source(1), START));
        assert!(is_known(&set, source(1), START));
        assert!(is_known(&set, source(1), START + KNOWN_TICKS));
        assert!(!is_known(&set, source(1), START + KNOWN_TICKS + 1));
        assert!(!is_known(&set, source(2), START));
        assert!(note(&mut set, source(1), START + 5));
        assert_eq!(set.ways.iter().filter(|word| **word != 0).count(), 1, "one way for one source");
    }

    #[test]
    fn an_empty_way_is_nobody_even_in_the_first_tick() {
        let set = KnownSet::default();
        assert!(!is_known(&set, 0, 0));
        assert!(!is_known(&set, 5, 0));
    }

    #[test]
    fn newcomers_cannot_take_the_place_of_who_came_lately() {
        let mut set = KnownSet::default();
        for number in 0..KNOWN_WAYS as u64 {
            assert!(note(&mut set, source(number + 1), START + number as u32));
        }
        let newcomer = source(99);
        assert!(!note(&mut set, newcomer, START + HELD_TICKS), "every way is held");
        assert!(note(&mut set, source(1), START + HELD_TICKS), "who is there is noted again");
        assert!(!is_known(&set, newcomer, START + HELD_TICKS));
        // The second is the oldest now.
        assert!(note(&mut set, newcomer, START + HELD_TICKS + 2));
        assert!(is_known(&set, newcomer, START + HELD_TICKS + 2));
        assert!(!is_known(&set, source(2), START + HELD_TICKS + 2));
        assert!(is_known(&set, source(1), START + HELD_TICKS + 2));
    }

    #[test]
    fn a_clock_that_is_behind_makes_nobody_old() {
        let mut set = KnownSet::default();
        assert!(note(&mut set, source(1), START));
        assert!(is_known(&set, source(1), START - 1));
        assert_eq!(set_of(u64::MAX), KNOWN_SETS - 1);
        assert_eq!(ticks_of(3 << 30), 3);
    }
}
