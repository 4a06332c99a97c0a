//! The judge of pauses: failures are counted, and each costs what it must.
//!
//! Owner: `checker::sessions`. Invariant: the numbers are stated here anew, and not taken from the
//! core. Absent: what happens in a pause.

use std::time::Duration;

use dormouse_core::evidence::{AskedBy, End};
use dormouse_core::journal::{Because, Decision, ExitSummary};
use dormouse_core::policy::AgentPolicy;
use dormouse_core::session::phase::Phase;
use dormouse_core::time::{Wall, millis};

use super::sessions::{Wake, Watch};
use crate::engine::Step;
use crate::violation::{Checked, Invariant};

/// No start before this.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pause {
    pub(super) over_at: u64,
    pub(super) over_at_wall: Wall,
    pub(super) is_probe: bool,
}

pub(super) const PAUSE_MAX: Duration = Duration::from_secs(5 * 60);
pub(super) const PROBE_MAX: Duration = Duration::from_secs(60 * 60);
/// What a decision says of an end.
struct Ended {
    failed: bool,
    /// The life was as long as the breaker's window.
    was_long: bool,
    failures: u32,
    restart_at: Option<Wall>,
}

/// What a trial broke is not held against its session.
pub(super) fn check_end(
    decision: &Decision,
    watch: &mut Watch,
    step: &Step,
    policy: &AgentPolicy,
    has_failed_trial: bool,
) -> Checked {
    match &decision.because {
        Because::Exited { summary, failures, restart_at } => {
            watch.wake = watch.wake.after_exit(summary, has_failed_trial);
            let is_failure = summary.cause.is_some() || (watch.had_work && is_unwanted(summary));
            let end = Ended {
                failed: is_failure && !has_failed_trial,
                was_long: watch.has_lived(policy.breaker.window, step.at_ms),
                failures: *failures,
                restart_at: *restart_at,
            };
            check_failure(decision, watch, step, policy, &end)
        }
        Because::StartFailed { failures, restart_at, .. } => {
            watch.never_started.insert(decision.generation);
            if has_failed_trial {
                watch.wake = watch.wake.after_trial();
            } else if decision.from == Phase::Starting {
                watch.wake = Wake::NotAsked;
            }
            let end = Ended {
                failed: !has_failed_trial,
                was_long: false,
                failures: *failures,
                restart_at: *restart_at,
            };
            check_failure(decision, watch, step, policy, &end)
        }
        _no_end => Ok(()),
    }
}

/// An end that nobody's order explains. With work left it costs a pause like a failure.
fn is_unwanted(summary: &ExitSummary) -> bool {
    let is_paced_already = match summary.asked_by {
        Some(AskedBy::Signal) => false,
        Some(AskedBy::OrphanLimit) => true,
        Some(AskedBy::Daemon | AskedBy::Driver) | None => summary.end == End::NeverLaunched,
    };
    summary.stop.is_none() && !is_paced_already
}

/// Failures are counted, from the second one on each costs a longer pause, and from the breaker's
/// intensity on the next start is a probe.
fn check_failure(
    decision: &Decision,
    watch: &mut Watch,
    step: &Step,
    policy: &AgentPolicy,
    end: &Ended,
) -> Checked {
    let id = &decision.session;
    match (end.failed, end.was_long) {
        (true, true) => watch.failures = 1,
        (true, false) => watch.failures += 1,
        (false, _) => watch.start_over(),
    }
    let (counted, failures) = (watch.failures, end.failures);
    Invariant::BoundedRestarts
        .check(counted == failures, || format!("{id}: {failures} failures, {counted} counted"))?;
    watch.pause = end.restart_at.map(|over_at_wall| {
        let left = step.now.wall.until(over_at_wall);
        let is_probe = decision.to == Phase::Tripped;
        Pause { over_at: step.at_ms + millis(left), over_at_wall, is_probe }
    });
    let is_open = failures >= policy.breaker.intensity;
    Invariant::BoundedRestarts
        .check((decision.to == Phase::Tripped) == (end.failed && is_open), || {
            format!("{id}: {} after failure {failures} of {:?}", decision.to, policy.breaker)
        })?;
    let wanted = match failures {
        _ if !end.failed => Duration::ZERO,
        _ if is_open => {
            let doubled = 2u32.saturating_pow(failures - policy.breaker.intensity);
            PROBE_MAX.min(PAUSE_MAX.saturating_mul(doubled))
        }
        0..2 => Duration::ZERO,
        _ => PAUSE_MAX.min(Duration::from_secs(4u64.saturating_pow(failures - 2))),
    };
    let given = end.restart_at.map_or(Duration::ZERO, |at| step.now.wall.until(at));
    Invariant::BoundedRestarts.check((wanted..=wanted.mul_f64(1.1)).contains(&given), || {
        format!("{id}: failure {failures} costs {given:?}, it should be about {wanted:?}")
    })
}
