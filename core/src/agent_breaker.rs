//! When an agent as a whole is not started: a broken image or revision kills all its sessions.
//!
//! Owner: `supervisor`, one per agent. Invariants: it opens only when several sessions in a row
//! failed before they were ready, and none was ready in between; while it is open one start at a
//! time is admitted, ever less often; the first that is ready closes it. A value: it is not kept
//! over a restart of the daemon, whose first starts show the same again.
//! Absent: who waits meanwhile.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::cause::Cause;
use crate::id::SessionId;
use crate::time::Monotonic;

/// Different sessions that failed in a row. One that always fails has a breaker of its own.
pub const SESSIONS: usize = 5;

const FIRST_PROBE_AFTER: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(10 * 60);

#[derive(Debug, Default)]
pub struct AgentBreaker {
    /// Those that failed since one was ready; never more than `SESSIONS`.
    failed: BTreeSet<SessionId>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    cause: Cause,
    probe_at: Monotonic,
    pause: Duration,
    probing: Option<SessionId>,
}

impl AgentBreaker {
    /// A start ended before it was ready, by a failure.
    pub fn start_failed(&mut self, session: &SessionId, cause: Cause, now: Monotonic) {
        if self.failed.len() < SESSIONS {
            self.failed.insert(session.clone());
        }
        if self.failed.len() < SESSIONS {
            return;
        }
        let pause = match &self.open {
            None => FIRST_PROBE_AFTER,
            // One that began before it opened says nothing new.
            Some(open) if open.probing.as_ref() != Some(session) => return,
            Some(open) => (open.pause * 2).min(LONGEST),
        };
        self.open = Some(Open { cause, probe_at: now + pause, pause, probing: None });
    }

    /// A session was ready. `true`: this has closed it.
    pub fn became_ready(&mut self) -> bool {
        self.failed.clear();
        self.open.take().is_some()
    }

    /// The session has left its start neither ready nor by a failure: the probe told nothing.
    pub fn start_was_called_off(&mut self, session: &SessionId) {
        if let Some(open) = &mut self.open {
            open.probing.take_if(|probing| probing == session);
        }
    }

    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether a start may begin now.
    pub fn admits(&self, now: Monotonic) -> bool {
        self.open.as_ref().is_none_or(|open| open.probing.is_none() && now >= open.probe_at)
    }

    /// The session is started: while it is open, that is the probe.
    pub fn starts(&mut self, session: &SessionId) {
        if let Some(open) = &mut self.open {
            assert!(open.probing.is_none(), "one probe at a time");
            open.probing = Some(session.clone());
        }
    }

    /// When the next probe is due, and the cause of the newest failure. `None`: closed, or a probe
    /// is under way.
    pub fn next_probe(&self) -> Option<(Monotonic, Cause)> {
        let open = self.open.as_ref().filter(|open| open.probing.is_none())?;
        Some((open.probe_at, open.cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(n: usize) -> SessionId {
        format!("a/{n}").parse().unwrap()
    }

    fn at(seconds: u64) -> Monotonic {
        Monotonic(seconds * 1_000)
    }

    fn open_at(now: Monotonic) -> AgentBreaker {
        let mut breaker = AgentBreaker::default();
        for n in 0..SESSIONS {
            assert!(breaker.admits(now));
            breaker.start_failed(&session(n), Cause::AppExit, now);
        }
        breaker
    }

    #[test]
    fn one_session_that_always_fails_does_not_open_it() {
        let mut breaker = AgentBreaker::default();
        for _ in 0..100 {
            breaker.start_failed(&session(0), Cause::AppExit, at(0));
        }
        assert!(!breaker.is_open());
    }

    #[test]
    fn it_admits_one_probe_at_a_time_and_ever_less_often() {
        let mut breaker = open_at(at(0));
        let (mut now, mut gaps) = (at(0), Vec::new());
        for n in 0..8 {
            let (probe_at, cause) = breaker.next_probe().unwrap();
            assert_eq!(cause, Cause::AppExit);
            gaps.push(probe_at.since(now).as_secs());
            assert!(!breaker.admits(now) && breaker.admits(probe_at));
            now = probe_at;
            breaker.starts(&session(n));
            assert!(!breaker.admits(at(1_000_000)), "the probe is under way");
            breaker.start_failed(&session(n + 100), Cause::AppExit, now);
            assert!(!breaker.admits(at(1_000_000)), "it began before and tells nothing new");
            breaker.start_failed(&session(n), Cause::AppExit, now);
        }
        assert_eq!(gaps, [30, 60, 120, 240, 480, 600, 600, 600]);
    }

    #[test]
    fn the_first_that_is_ready_closes_it_and_one_called_off_leaves_it_open() {
        let mut breaker = open_at(at(0));
        breaker.starts(&session(7));
        breaker.start_was_called_off(&session(7));
        assert!(breaker.is_open() && breaker.admits(at(30)));
        assert!(breaker.became_ready());
        assert!(!breaker.is_open() && breaker.admits(at(0)));
        assert!(!breaker.became_ready(), "it was closed already");
    }
}
