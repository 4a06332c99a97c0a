//! How many sessions that failed before may be started again in a minute, on the node as a whole.
//!
//! Owner: `supervisor`. Invariants: no minute has more such starts than allowed; first starts, and
//! those of sessions that answered since, are not counted and never wait here. It is what holds
//! when many sessions fail at once and each breaker for itself would let its one start through.
//! Absent: who waits, and the order in which.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::Monotonic;

const WINDOW: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub struct StartBudget {
    /// Starts of the last minute, from old to new.
    starts: VecDeque<Monotonic>,
}

impl StartBudget {
    /// How many more may begin now.
    pub fn left(&mut self, now: Monotonic, per_minute: usize) -> usize {
        while self.starts.front().is_some_and(|start| *start + WINDOW <= now) {
            self.starts.pop_front();
        }
        per_minute.saturating_sub(self.starts.len())
    }

    pub fn starts(&mut self, now: Monotonic) {
        self.starts.push_back(now);
    }

    /// When there is room for one more, if there is none before. The answer may lie in the past.
    pub fn next_at(&self, per_minute: usize) -> Monotonic {
        let newest_to_go = self.starts.len().checked_sub(per_minute);
        let start = newest_to_go.and_then(|place| self.starts.get(place));
        start.map_or(Monotonic::default(), |start| *start + WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_minute_has_so_many_and_the_next_begins_when_the_first_of_them_is_over() {
        let mut budget = StartBudget::default();
        let at = |seconds: u64| Monotonic(seconds * 1_000);
        for second in [0, 10] {
            assert!(budget.left(at(second), 2) > 0);
            budget.starts(at(second));
        }
        assert_eq!((budget.left(at(59), 2), budget.next_at(2)), (0, at(60)));
        assert_eq!(budget.left(at(60), 2), 1);
        budget.starts(at(60));
        assert_eq!((budget.left(at(60), 2), budget.next_at(2)), (0, at(70)));
    }

    proptest! {
        #[test]
        fn no_minute_has_more(
            steps in prop::collection::vec(0u64..30_000, 0..60),
            max in 1usize..6,
        ) {
            let (mut budget, mut now, mut started) = (StartBudget::default(), 0, Vec::new());
            for step in steps {
                now += step;
                if budget.left(Monotonic(now), max) > 0 {
                    budget.starts(Monotonic(now));
                    started.push(now);
                } else {
                    prop_assert!(budget.next_at(max).0 > now);
                }
                let in_a_minute = started.iter().filter(|start| *start + 60_000 > now).count();
                prop_assert!(in_a_minute <= max);
            }
        }
    }
}
