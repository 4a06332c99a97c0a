//! The only place of the daemon's decisions that looks at a clock.
//!
//! Owner: the engine. Invariants: the monotonic reading counts from this process's start, and never
//! goes back; a deadline that was seen too late is judged only after what happened meanwhile has
//! been heard.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dormouse_core::time::{Monotonic, Now, Wall, millis};

/// A deadline seen this much later than it was due: this process was stopped, or starved, and what
/// others did meanwhile is still on its way here.
const LATE_AFTER: Duration = Duration::from_millis(250);

/// How long that is listened to before anybody is judged by the clock.
const HEARING: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Clock {
    started_at: Instant,
    hearing_until: Option<Instant>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { started_at: Instant::now(), hearing_until: None }
    }

    pub(crate) fn now(&self) -> Now {
        Now { monotonic: Monotonic(millis(self.started_at.elapsed())), wall: wall_now() }
    }

    /// Sleeps until there may be something to say about `deadline`, or for ever.
    pub(crate) async fn wait_until(&self, deadline: Option<Monotonic>) {
        match deadline {
            None => std::future::pending().await,
            Some(at) => {
                let at = self.instant(at).max(self.hearing_until.unwrap_or(self.started_at));
                tokio::time::sleep_until(at.into()).await;
            }
        }
    }

    /// Whether to act on `deadline` now. The first of all times is no deadline, but "at once".
    pub(crate) fn is_due(&mut self, deadline: Option<Monotonic>) -> bool {
        deadline.is_some_and(|at| {
            at == Monotonic::default() || self.is_due_at(self.instant(at), Instant::now())
        })
    }

    fn is_due_at(&mut self, at: Instant, now: Instant) -> bool {
        if now < at {
            return false;
        }
        let is_heard = match self.hearing_until {
            Some(until) => until <= now,
            None => now - at < LATE_AFTER,
        };
        if is_heard {
            self.hearing_until = None;
        } else {
            self.hearing_until.get_or_insert(now + HEARING);
        }
        is_heard
    }

    fn instant(&self, at: Monotonic) -> Instant {
        self.started_at + Duration::from_millis(at.0)
    }
}

/// A clock before 1970 reads as 1970: the wall is for people, and decides nothing.
pub(crate) fn wall_now() -> Wall {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Wall(millis(since))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_seen_too_late_waits_for_what_happened_meanwhile() {
        let mut clock = Clock::start();
        let at = clock.started_at + Duration::from_secs(5);
        let after = |millis| at + Duration::from_millis(millis);
        assert!(!clock.is_due_at(at, at - Duration::from_millis(1)));
        assert!(clock.is_due_at(at, at), "in time");
        assert!(clock.is_due_at(at, after(249)), "nearly in time");
        assert!(!clock.is_due_at(at, after(250)), "the hearing begins");
        assert!(!clock.is_due_at(at, after(1_249)), "and is not begun anew");
        assert!(clock.is_due_at(at, after(1_250)), "the hearing is over");
        assert!(!clock.is_due_at(at, after(9_000)), "the next one is a matter of its own");
    }

    #[test]
    fn a_deadline_that_moves_on_during_the_hearing_is_judged_in_its_own_time() {
        let mut clock = Clock::start();
        let at = clock.started_at + Duration::from_secs(5);
        assert!(!clock.is_due_at(at, at + Duration::from_secs(2)));
        let renewed = at + Duration::from_secs(4);
        assert!(!clock.is_due_at(renewed, at + Duration::from_millis(3_500)));
        assert!(clock.is_due_at(renewed, renewed));
    }
}
