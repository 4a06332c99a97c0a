//! The one source of chance: xoshiro256**, seeded through splitmix64.
//!
//! Owner: `World`. Invariant: the same seed gives the same numbers on every machine and in every
//! build. Source of the algorithms: Blackman and Vigna, "Scrambled linear pseudorandom number
//! generators". Absent: cryptographic quality, and any seed that does not come from the command
//! line.

#[derive(Debug, Clone)]
pub(crate) struct Prng {
    state: [u64; 4],
}

impl Prng {
    pub(crate) fn new(seed: u64) -> Self {
        let mut mixed = seed;
        let mut next = || {
            mixed = mixed.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = mixed;
            word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        };
        Self { state: [next(), next(), next(), next()] }
    }

    pub(crate) fn next(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.state;
        let result = b.wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// From 0 to `end`, without `end`. The bias of the remainder is far below what any test here
    /// could see.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "there is a number below the end");
        self.next() % end
    }

    /// Both ends included.
    pub(crate) fn between(&mut self, first: u64, last: u64) -> u64 {
        assert!(first <= last, "a range is given from its lower end");
        first + self.below(last - first + 1)
    }

    /// Between both ends, small values as likely as large ones: each doubling has the same weight.
    pub(crate) fn spread(&mut self, first: u64, last: u64) -> u64 {
        let doublings = u64::from((last / first.max(1)).max(1).ilog2());
        let top = first.max(1) << self.between(0, doublings);
        let upper = top.saturating_mul(2).min(last).max(top);
        self.between(top.min(upper), upper)
    }

    pub(crate) fn chance(&mut self, per_mille: u32) -> bool {
        self.below(1_000) < u64::from(per_mille)
    }

    pub(crate) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("an index below a length is an index")
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.index(from.len())]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_another_seed_others() {
        let draw = |seed| {
            let mut prng = Prng::new(seed);
            (0..8).map(|_| prng.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn ranges_include_both_ends_and_chances_are_kept() {
        let mut prng = Prng::new(1);
        let mut seen = [0u32; 3];
        for _ in 0..3_000 {
            let drawn = prng.between(5, 7);
            seen[usize::try_from(drawn - 5).expect("drawn from three")] += 1;
            assert!((10..=5_000).contains(&prng.spread(10, 5_000)));
        }
        assert!(seen.iter().all(|count| (900..1_100).contains(count)), "{seen:?}");
        let hits = (0..10_000).filter(|_| prng.chance(100)).count();
        assert!((850..1_150).contains(&hits), "{hits} of 10,000 at one in ten");
        assert!(!prng.chance(0));
    }
}
