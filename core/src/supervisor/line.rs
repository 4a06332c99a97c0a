//! The line of starts, and who steps out of it for a while: those of an agent that is not started
//! for now, and those who failed when the node has started too many of such; and the daemon's end,
//! when nobody is started any more.
//!
//! Owner: `Supervisor`. Invariants: oldest first; who steps out keeps the ticket, and comes back to
//! the front. Absent: how many starts there may be at a time.

use std::collections::VecDeque;

use crate::agent_breaker::AgentBreaker;
use crate::cause::Cause;
use crate::command::{Effects, News, Write};
use crate::id::{AgentName, SessionId};
use crate::journal::{Because, Decision};
use crate::supervisor::Supervisor;
use crate::time::{Monotonic, Now};

/// Sessions that wait for a start, oldest first. Tickets count up, so that a place can be told
/// without looking.
#[derive(Debug, Default)]
pub(super) struct Line {
    pub(super) waiting: VecDeque<(u64, SessionId)>,
    next_ticket: u64,
}

impl Line {
    pub(super) fn join(&mut self, session: SessionId) -> u64 {
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.waiting.push_back((ticket, session));
        ticket
    }

    /// Those who were held back take their old places again.
    pub(super) fn rejoin(&mut self, held_back: VecDeque<(u64, SessionId)>) {
        self.waiting.extend(held_back);
        self.waiting.make_contiguous().sort_unstable_by_key(|place| place.0);
    }

    pub(super) fn ahead_of(&self, ticket: u64) -> usize {
        let first = self.waiting.front().map_or(ticket, |front| front.0);
        usize::try_from(ticket.saturating_sub(first)).unwrap_or(usize::MAX)
    }
}

impl Supervisor {
    /// Each configured agent, and whether it is not started for now but for a probe, because
    /// several of its sessions in a row failed at their start.
    pub fn agents_held_back(&self) -> impl Iterator<Item = (&AgentName, bool)> {
        let is_held = |agent| self.agent_breakers.get(agent).is_some_and(AgentBreaker::is_open);
        self.agents.keys().map(move |agent| (agent, is_held(agent)))
    }

    /// Sessions that failed before and wait for the node's budget of such starts. One that wants no
    /// start any more counts until the budget has room, which is within a minute.
    pub fn restarts_waiting(&self) -> usize {
        self.paced.len()
    }

    /// From now on no turn begins and nothing is started; messages are taken as ever, and wait for
    /// the next daemon. What runs goes on.
    pub fn drain(&mut self, effects: &mut Effects) {
        if std::mem::replace(&mut self.is_draining, true) {
            return;
        }
        for session in self.sessions.values().map(|slot| &slot.session) {
            let in_work = session.turn().map(|turn| turn.message);
            for message in session.queue().messages().filter(|id| Some(*id) != in_work) {
                effects.tell(message, News::DaemonEnding);
            }
        }
    }

    /// Its agent is not started for now.
    pub(super) fn hold_back(
        &mut self,
        ticket: u64,
        id: SessionId,
        now: Now,
        effects: &mut Effects,
    ) {
        let news = self.news_of_waiting(&id, ticket, now);
        let session = &self.sessions.get(&id).expect("what stands in line is here").session;
        for message in session.queue().messages() {
            effects.tell(message, news.clone());
        }
        effects.write(Write::InsertDecision(Decision {
            session: id.clone(),
            generation: session.generation(),
            at: now.wall,
            from: session.phase(),
            to: session.phase(),
            because: Because::AgentHeldBack,
        }));
        self.held_back.entry(id.agent_name()).or_default().push_back((ticket, id));
    }

    /// Too many that failed were started in the last minute.
    pub(super) fn pace(&mut self, ticket: u64, id: SessionId, now: Now, effects: &mut Effects) {
        let session = &self.sessions.get(&id).expect("what stands in line is here").session;
        let at = self.budget.next_at(self.node.restarts_per_minute);
        let at = now.wall + at.since(now.monotonic);
        let cause = session.last_failure().unwrap_or(Cause::Unknown);
        for message in session.queue().messages() {
            effects.tell(message, News::WaitingToRestart { at, cause });
        }
        self.paced.push_back((ticket, id));
    }

    /// As many as the budget has room for go first in the line, in their order. `true`: there were
    /// some.
    pub(super) fn admit_paced(&mut self, now: Monotonic) -> bool {
        let mut left = self.budget.left(now, self.node.restarts_per_minute);
        let mut first = VecDeque::new();
        while left > 0
            && let Some((ticket, id)) = self.paced.pop_front()
        {
            let slot = self.sessions.get(&id).filter(|slot| slot.ticket == Some(ticket));
            if slot.is_some_and(|slot| slot.session.wants_start()) {
                first.push_back((ticket, id));
                left -= 1;
            }
        }
        let is_any = !first.is_empty();
        while let Some(place) = first.pop_back() {
            self.line.waiting.push_front(place);
        }
        is_any
    }

    /// Of each agent whose probe is due, the one that has waited longest goes first in the line.
    pub(super) fn admit_probes(&mut self, now: Monotonic) {
        let mut left = self.budget.left(now, self.node.restarts_per_minute);
        let (sessions, breakers, line) = (&self.sessions, &self.agent_breakers, &mut self.line);
        self.held_back.retain(|agent, waiting| {
            let is_due = breakers.get(agent).is_none_or(|breaker| breaker.admits(now));
            while is_due && let Some((ticket, id)) = waiting.pop_front() {
                // Who does not wait any more has left its place.
                let slot = sessions.get(&id).filter(|slot| slot.ticket == Some(ticket));
                let Some(slot) = slot.filter(|slot| slot.session.wants_start()) else { continue };
                let is_restart = slot.session.failures() > 0;
                if is_restart && left == 0 {
                    waiting.push_front((ticket, id));
                    break;
                }
                left -= usize::from(is_restart);
                line.waiting.push_front((ticket, id));
                break;
            }
            !waiting.is_empty()
        });
    }

    pub(super) fn failed_before(&self, id: &SessionId) -> bool {
        self.sessions.get(id).is_some_and(|slot| slot.session.failures() > 0)
    }
}
