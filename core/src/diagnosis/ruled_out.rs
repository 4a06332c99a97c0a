//! What one might have thought, and the fact that speaks against it.
//!
//! Owner: `diagnosis`. Invariant: a cause is ruled out only by a fact that is known; where nothing
//! is known, nothing is said. Absent: the order of causes.

use super::RuledOut;
use super::facts::{Facts, Known, LogSign, Oom};
use super::{SIGABRT, SIGKILL, signal_name};
use crate::cause::Cause;

/// Why it is not that; `None` where it might be.
type Check = fn(&Facts) -> Option<String>;

/// Of the usual suspects, all but the culprit.
pub(super) fn ruled_out(facts: &Facts, culprit: Cause) -> Vec<RuledOut> {
    let suspects: [(Cause, Check); 6] = [
        (Cause::OomLimit, not_the_limit),
        (Cause::OomHeap, not_the_heap),
        (Cause::StopTimeoutKill, not_the_grace),
        (Cause::KilledOutside, not_from_outside),
        (Cause::AppExit, not_its_own_exit),
        (Cause::HealthContainer, not_its_health),
    ];
    let others = suspects.into_iter().filter(|(cause, _)| *cause != culprit);
    others.filter_map(|(cause, check)| Some(RuledOut { cause, because: check(facts)? })).collect()
}

fn signal(facts: &Facts) -> Option<i32> {
    facts.end.as_ref()?.is.signal()
}

fn place<T>(known: &Known<T>) -> String {
    format!("{} {} = {}", known.from.source, known.from.field, known.from.value)
}

fn not_the_limit(facts: &Facts) -> Option<String> {
    let oom = facts.oom.as_ref()?;
    match oom.is {
        Oom::None => Some(format!("no out-of-memory kill was counted ({})", place(oom))),
        Oom::Child => Some(format!("a child was killed, not the main process ({})", place(oom))),
        Oom::Host | Oom::OutsideGroup => {
            Some(format!("it was the machine's memory, not the limit ({})", place(oom)))
        }
        Oom::Somebody | Oom::Main => {
            let end = facts.end.as_ref().filter(|end| end.is.signal() != Some(SIGKILL))?;
            Some(format!("the main process was not killed ({})", place(end)))
        }
    }
}

fn not_the_heap(facts: &Facts) -> Option<String> {
    let end = facts.end.as_ref()?;
    let said = facts.log.iter().any(|known| known.is == LogSign::HeapLimit);
    (end.is.signal() != Some(SIGABRT) && !said).then(|| {
        format!("a runtime at its heap limit aborts with {} and says so", signal_name(SIGABRT))
    })
}

fn not_the_grace(facts: &Facts) -> Option<String> {
    if facts.grace_ran_out.is_some() || signal(facts)? != SIGKILL {
        return None;
    }
    let asked = facts.asked_by.as_ref()?;
    Some(format!("it was asked to end ({}), but not killed for its grace", place(asked)))
}

fn not_from_outside(facts: &Facts) -> Option<String> {
    let end = facts.end.as_ref()?;
    end.is.is_own_exit().then(|| format!("it returned a code itself ({})", place(end)))
}

fn not_its_own_exit(facts: &Facts) -> Option<String> {
    let end = facts.end.as_ref()?;
    signal(facts).map(|signal| format!("{} ended it ({})", signal_name(signal), place(end)))
}

fn not_its_health(facts: &Facts) -> Option<String> {
    let asked = facts.asked_by.as_ref().filter(|_| facts.health.is_none())?;
    Some(format!("it was ended on a wish, and no check is said to have failed ({})", place(asked)))
}
