//! The judge of when a life may begin, and when it may be stopped because it was idle.
//!
//! Owner: `Checker`. Invariants: one life at a time, and not too many in a short time; none is
//! called idle while something waits, runs or holds it. Absent: the books (`sessions`).

use dormouse_core::id::SessionId;
use dormouse_core::journal::Decision;
use dormouse_core::policy::AgentPolicy;
use dormouse_core::time::millis;

use super::sessions::{Hold, STARTS_MAX, STARTS_WINDOW_MS, Wake, Watch};
use crate::violation::{Checked, Invariant};

pub(super) fn check_idle_stop(
    id: &SessionId,
    watch: &Watch,
    policy: &AgentPolicy,
    at: u64,
    is_in_touch: bool,
) -> Checked {
    let broken = |what: String| Err(Invariant::NoIdleStopWithWork.broken(format!("{id}: {what}")));
    if !watch.queue.is_empty() || watch.turn.is_some() {
        return broken(format!("idle, and {:?} wait", watch.queue));
    }
    check_not_held(id, watch, at, is_in_touch)?;
    let idle_ms = at - watch.active_at;
    if idle_ms < millis(policy.stop_after) {
        return broken(format!("idle for {idle_ms} ms of {:?}", policy.stop_after));
    }
    Ok(())
}

/// Nothing that its agent has said keeps it awake.
fn check_not_held(id: &SessionId, watch: &Watch, at: u64, is_in_touch: bool) -> Checked {
    let is_true = |name: &str| watch.true_holds.get(name).is_some_and(|until| *until > at);
    // What was said to an earlier supervisor may be lost on a connection that is broken unnoticed.
    let is_excused = watch.clocks.knows_holds(at) && !is_in_touch;
    let counts = |hold: &Hold| !hold.is_of_the_past || !is_excused;
    let mut holds = watch.holds.iter();
    let holding = holds.find(|(name, hold)| hold.until > at && counts(hold) && is_true(name));
    Invariant::NoIdleStopWithWork
        .check(holding.is_none(), || format!("{id}: stopped, and {holding:?} holds it"))
}

pub(super) fn check_start(decision: &Decision, watch: &mut Watch, at: u64) -> Checked {
    let id = &decision.session;
    let is_next = decision.generation == watch.generation.next();
    Invariant::OneLiveInstance.check(is_next && !watch.phase.has_instance(), || {
        format!("{id}: start {} while {} is {}", decision.generation, watch.generation, watch.phase)
    })?;
    watch.generation = decision.generation;
    watch.ends_pause(id, at)?;
    if watch.wake == Wake::Owed {
        watch.wake = Wake::BeingMet;
    }
    watch.starts.push(at);
    watch.starts.retain(|start| at - start < STARTS_WINDOW_MS);
    Invariant::BoundedRestarts.check(watch.starts.len() <= STARTS_MAX, || {
        format!("{id}: {} starts in ten minutes: {:?}", watch.starts.len(), watch.starts)
    })
}
