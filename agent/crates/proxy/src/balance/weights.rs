//! Weighted choice, exact over each cycle: after `sum` choices every entry was chosen exactly `weight` times, spread as
//! evenly as possible (smooth weighted round robin). So a share of 10 % is 10 % for a hundred requests too, which a random
//! choice is not.

use std::cell::Cell;

use super::random::Prng;

/// Choices made ahead at most to begin somewhere in a cycle: far more than a hundred shards need to begin apart.
const MAX_AHEAD: u32 = 1024;

/// Weights with the state of the choice.
#[derive(Debug)]
pub struct Weights {
    weights: Box<[u32]>,
    /// What each entry is owed, in units of weight; sums to zero.
    credit: Box<[Cell<i64>]>,
    total: i64,
    /// The only entry with a weight: the common rule has one backend.
    only: Option<usize>,
}

impl Weights {
    /// Takes one weight for each entry.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let weights: Box<[u32]> = weights.into_iter().collect();
        let mut weighted = weights.iter().enumerate().filter(|&(_, &weight)| weight > 0).map(|(index, _)| index);
        let only = weighted.next().filter(|_| weighted.next().is_none());
        Self {
            credit: weights.iter().map(|_| Cell::new(0)).collect(),
            total: weights.iter().map(|&weight| i64::from(weight)).sum(),
            only,
            weights,
        }
    }

    /// Begins somewhere in the cycle. Shards that all began at its start would together give the first of few requests to
    /// the same entries: with 64 shards and 500 requests of 70 to 30 the error was 7 %.
    #[must_use]
    pub fn shuffled(self, random: &mut Prng) -> Self {
        if self.only.is_none() {
            let cycle = u32::try_from(self.total).unwrap_or(u32::MAX).min(MAX_AHEAD);
            for _ in 0..random.below(cycle) {
                self.choose();
            }
        }
        self
    }

    /// Index of the entry that is next; `None` when no entry has a weight.
    pub fn choose(&self) -> Option<usize> {
        if self.only.is_some() || self.total == 0 {
            return self.only;
        }
        let mut best = None::<usize>;
        for (index, (credit, &weight)) in self.credit.iter().zip(&self.weights).enumerate() {
            credit.set(credit.get() + i64::from(weight));
            if weight > 0 && best.is_none_or(|best| credit.get() > self.credit[best].get()) {
                best = Some(index);
            }
        }
        let credit = &self.credit[best?];
        credit.set(credit.get() - self.total);
        best
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_cycle_is_exact_and_every_part_of_it_close(weights in proptest::collection::vec(0u32..20, 1..8)) {
            let choice = Weights::new(weights.iter().copied());
            let total: u32 = weights.iter().sum();
            let mut counts = vec![0u32; weights.len()];
            for step in 1..=total {
                counts[choice.choose().unwrap()] += 1;
                for (&count, &weight) in counts.iter().zip(&weights) {
                    let ideal = f64::from(step) * f64::from(weight) / f64::from(total);
                    prop_assert!((f64::from(count) - ideal).abs() <= weights.len() as f64);
                }
            }
            prop_assert_eq!(counts, weights);
        }
    }

    #[test]
    fn many_shards_with_few_requests_each_keep_to_the_weights() {
        let mut random = Prng::from_seed(7);
        let mut counts = [0u32; 2];
        let shards: Vec<_> = (0..64).map(|_| Weights::new([70, 30]).shuffled(&mut random)).collect();
        for request in 0..500 {
            counts[shards[request % shards.len()].choose().unwrap()] += 1;
        }
        assert!((325..=375).contains(&counts[0]), "{counts:?}");
        // From wherever it begins, a whole cycle is exact.
        let mut cycle = [0u32; 2];
        (0..100).for_each(|_| cycle[shards[0].choose().unwrap()] += 1);
        assert_eq!(cycle, [70, 30]);
    }

    #[test]
    fn no_weight_is_no_choice() {
        assert_eq!(Weights::new([]).choose(), None);
        assert_eq!(Weights::new([0, 0]).choose(), None);
        assert_eq!(Weights::new([0, 3, 0]).choose(), Some(1));
        assert_eq!(Weights::new([]).shuffled(&mut Prng::from_seed(1)).choose(), None);
    }

    #[test]
    fn the_largest_weights_do_not_overflow() {
        let choice = Weights::new([u32::MAX, u32::MAX, 1]);
        let first: Vec<_> = (0..4).filter_map(|_| choice.choose()).collect();
        assert_eq!(first, [0, 1, 0, 1]);
    }
}
