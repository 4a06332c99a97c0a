//! New message ids: 48 bits of wall clock in milliseconds, 16 bits of count, 64 random bits.
//!
//! Owner: the engine, the only minter. Invariant: each id is greater than every id before it,
//! across restarts and whatever the wall clock does, so that the order of ids is the order of
//! acceptance; the random part makes them unguessable.

use dormouse_core::id::MessageId;
use dormouse_core::time::Wall;

use crate::random;

#[derive(Debug)]
pub(crate) struct Mint {
    /// The upper 64 bits of the newest id.
    newest: u64,
}

const COUNT_BITS: u32 = 16;

impl Mint {
    pub(crate) fn after(newest: Option<MessageId>) -> Self {
        let newest = newest.map_or(0, |id| (id.0 >> 64) as u64);
        Self { newest }
    }

    pub(crate) fn message(&mut self, wall: Wall) -> MessageId {
        let by_clock = wall.0 << COUNT_BITS;
        self.newest = by_clock.max(self.newest + 1);
        MessageId((u128::from(self.newest) << 64) | u128::from(random::u64()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_grow_within_a_millisecond_and_when_the_clock_goes_back() {
        let mut mint = Mint::after(None);
        let mut ids = vec![mint.message(Wall(1_000)), mint.message(Wall(1_000))];
        ids.push(mint.message(Wall(5)));
        let mut restarted = Mint::after(ids.last().copied());
        ids.push(restarted.message(Wall(0)));
        ids.push(restarted.message(Wall(2_000)));
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        assert_eq!(ids[4].0 >> 80, 2_000, "and follow the clock again when it has caught up");
    }
}
