//! The facts of an end that Dormouse saw itself.
//!
//! Owner: `session::exit`. Invariant: a wish of ours is a fact like any other, and what the bridge
//! could not count is missing. Absent: conclusions.

use super::facts::{Ending, Fact, Facts, Initiator, Known, NotStarted, Oom, log_signs};
use super::{Confidence, Diagnosis, Found, diagnose, finish};
use crate::cause::Cause;
use crate::evidence::{AskedBy, End, Evidence, MachineOom, OomVictim};
use crate::journal::mebibytes;
use crate::record::{Circumstances, StopReason};

const BRIDGE: &str = "bridge";
const GROUP: &str = "control group";
const DAEMON: &str = "daemon";
const KERNEL_LOG: &str = "kernel log";
const SIGKILLED: End = End::Signaled { signal: super::SIGKILL };

/// What ended one life.
pub fn diagnose_exit(evidence: &Evidence, circumstances: &Circumstances) -> Diagnosis {
    let facts = facts_of(evidence, circumstances);
    let by_rule = circumstances.stop.and_then(|stop| Some((stop.failure()?, stop)));
    if let Some((cause, stop)) = by_rule {
        let fact = Fact::new(DAEMON, "stopped because", stop_words(stop));
        return finish(Found::new(cause, Confidence::Proved, &[&fact]), &facts);
    }
    match evidence.end {
        End::BridgeLost => {
            let fact = Fact::new("driver", "bridge", "gone, and left no report");
            finish(Found::new(Cause::BridgeLost, Confidence::Proved, &[&fact]), &facts)
        }
        End::Exited { .. }
        | End::Signaled { .. }
        | End::LaunchFailed { .. }
        | End::NeverLaunched => diagnose(&facts),
    }
}

fn facts_of(evidence: &Evidence, circumstances: &Circumstances) -> Facts {
    let mut facts = Facts {
        asked_by: initiator(evidence, circumstances),
        oom: oom(evidence),
        log: log_signs("log", &evidence.log_tail),
        was_ready: Some(circumstances.ready_after_ms.is_some()),
        ..Facts::default()
    };
    match &evidence.end {
        End::Exited { code } => {
            let fact = Fact::new(BRIDGE, "exit code", code);
            facts.end = Some(Known::new(Ending::Exited { code: *code }, fact));
        }
        End::Signaled { signal } => {
            let fact = Fact::new(BRIDGE, "signal", super::signal_name(*signal));
            facts.end = Some(Known::new(Ending::Signaled { signal: *signal }, fact));
        }
        End::LaunchFailed { error } => {
            let not_started =
                NotStarted { cause: Cause::LaunchFailed, kind: launch_failure(error) };
            facts.not_started =
                Some(Known::new(not_started, Fact::new(BRIDGE, "execution of its command", error)));
        }
        End::NeverLaunched | End::BridgeLost => {}
    }
    if evidence.grace_ran_out {
        facts.grace_ran_out =
            Some(Known::new((), Fact::new(BRIDGE, "killed", "when its grace ran out")));
    }
    if evidence.oom_kills.is_none() {
        facts.missing.push("out-of-memory kills could not be counted for it".to_owned());
    }
    let known = |bytes: Option<u64>, field| {
        bytes.map(|bytes| Known::new(bytes, Fact::new(GROUP, field, mebibytes(bytes))))
    };
    facts.memory_peak_bytes = known(evidence.memory_peak_bytes, "peak");
    facts.memory_limit_bytes = known(evidence.memory_limit_bytes, "limit");
    facts.pids_refused = evidence
        .pids_refused
        .filter(|refused| *refused > 0)
        .map(|refused| Known::new(refused, Fact::new(GROUP, "processes refused", refused)));
    facts.uptime_ms = evidence
        .uptime_ms
        .map(|uptime| Known::new(uptime, Fact::new(BRIDGE, "uptime in ms", uptime)));
    if let Some(line) = &evidence.first_error {
        facts.more.push(Fact::new("log", "first error", line));
    }
    facts
}

fn initiator(evidence: &Evidence, circumstances: &Circumstances) -> Option<Known<Initiator>> {
    let wish = |stop: StopReason| {
        let who = match stop {
            StopReason::Idle => Initiator::Watchdog { kind: "idle" },
            StopReason::Resize => Initiator::Watchdog { kind: "resize" },
            StopReason::Revision => Initiator::Watchdog { kind: "revision" },
            StopReason::OperatorStop | StopReason::OperatorRestart => Initiator::User,
            StopReason::StartTimeout
            | StopReason::TurnStuck
            | StopReason::TurnTooLong
            | StopReason::BridgeUnreachable
            | StopReason::ProtocolFault => Initiator::Watchdog { kind: "hung" },
            StopReason::FilesFailed | StopReason::FilesRefused => {
                Initiator::Watchdog { kind: "files" }
            }
        };
        Known::new(who, Fact::new(DAEMON, "stopped because", stop_words(stop)))
    };
    if let Some(stop) = circumstances.stop {
        return Some(wish(stop));
    }
    match evidence.asked_by? {
        AskedBy::OrphanLimit => Some(Known::new(
            Initiator::Watchdog { kind: "orphan" },
            Fact::new(BRIDGE, "stopped because", "no daemon came back for it"),
        )),
        AskedBy::Signal => Some(Known::new(
            Initiator::User,
            Fact::new(BRIDGE, "stopped because", "its bridge was sent SIGTERM or SIGINT"),
        )),
        // A stop of the past, carried out late.
        AskedBy::Daemon | AskedBy::Driver => None,
    }
}

fn oom(evidence: &Evidence) -> Option<Known<Oom>> {
    // Of this very process, where a group's counts are of all that is in it.
    if let Some(said) = evidence.machine_oom.filter(|_| evidence.end == SIGKILLED) {
        let (oom, words) = match said {
            MachineOom::Chosen => {
                (Oom::Host, "the machine was out of memory, and this process was killed for it")
            }
            MachineOom::Killed => {
                (Oom::OutsideGroup, "this process was killed for memory, and for no group's limit")
            }
        };
        return Some(Known::new(oom, Fact::new(KERNEL_LOG, "out of memory", words)));
    }
    let kills = evidence.oom_kills?;
    let fact = Fact::new(GROUP, "out-of-memory kills", kills);
    let oom = match (kills, evidence.oom_victim) {
        (0, _) => Oom::None,
        (_, Some(OomVictim::Main)) => Oom::Main,
        (_, Some(OomVictim::Child)) => Oom::Child,
        (_, None) => Oom::Somebody,
    };
    Some(Known::new(oom, fact))
}

fn launch_failure(error: &str) -> &'static str {
    let lower = error.to_lowercase();
    let kinds = [
        ("no such file", "command_not_found"),
        ("not found", "command_not_found"),
        ("permission denied", "not_executable"),
        ("exec format", "not_executable"),
        ("secret", "secret_missing"),
    ];
    kinds.iter().find(|(words, _)| lower.contains(words)).map_or("", |(_, kind)| kind)
}

fn stop_words(stop: StopReason) -> &'static str {
    match stop {
        StopReason::Idle => "nothing needed it for its idle limit",
        StopReason::Resize => "its memory limit has risen, which holds from the next start on",
        StopReason::Revision => "another revision of its agent is in force",
        StopReason::OperatorStop => "somebody asked to stop it",
        StopReason::OperatorRestart => "somebody asked to restart it",
        StopReason::StartTimeout => "it was not ready in time",
        StopReason::TurnStuck => "its turn made no progress",
        StopReason::TurnTooLong => "its turn took too long",
        StopReason::BridgeUnreachable => "its bridge could not be reached",
        StopReason::ProtocolFault => "its bridge broke the protocol",
        StopReason::FilesFailed => "its files could not be brought to it",
        StopReason::FilesRefused => "its files cannot be brought to it, and no message waits",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(evidence: Evidence, circumstances: &Circumstances) -> (Cause, Confidence) {
        let diagnosis = diagnose_exit(&evidence, circumstances);
        (diagnosis.cause, diagnosis.confidence)
    }

    fn unasked(evidence: Evidence) -> (Cause, Confidence) {
        verdict(evidence, &Circumstances::default())
    }

    fn ended(end: End, oom_kills: Option<u64>, oom_victim: Option<OomVictim>) -> Evidence {
        Evidence { oom_kills, oom_victim, ..Evidence::bare(end) }
    }

    #[test]
    fn five_deaths_that_all_look_like_137_have_five_causes() {
        let killed = || End::Signaled { signal: 9 };
        let stopped =
            Circumstances { stop: Some(StopReason::OperatorStop), ..Circumstances::default() };
        let ignored = Evidence { grace_ran_out: true, ..ended(killed(), Some(0), None) };
        let heap = Evidence {
            log_tail: "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of \
                       memory"
                .to_owned(),
            ..ended(End::Signaled { signal: 6 }, Some(0), None)
        };
        assert_eq!(
            [
                unasked(ended(killed(), Some(1), Some(OomVictim::Main))),
                unasked(ended(End::Exited { code: 137 }, Some(1), Some(OomVictim::Child))),
                verdict(ignored, &stopped),
                unasked(ended(killed(), Some(0), None)),
                unasked(heap),
            ],
            [
                (Cause::OomLimit, Confidence::Proved),
                (Cause::OomChild, Confidence::Proved),
                (Cause::StopTimeoutKill, Confidence::Proved),
                (Cause::KilledOutside, Confidence::Likely),
                (Cause::OomHeap, Confidence::Proved),
            ]
        );
    }

    #[test]
    fn a_kill_for_the_machine_s_memory_is_proved_by_the_kernel_s_log_alone() {
        let killed = |kills, victim, machine_oom| Evidence {
            machine_oom,
            ..ended(End::Signaled { signal: 9 }, kills, victim)
        };
        // The kernel counts it in the group too; without a group there is no count.
        for kills in [None, Some(0), Some(1), Some(2)] {
            let chosen = killed(kills, None, Some(MachineOom::Chosen));
            let diagnosis = diagnose_exit(&chosen, &Circumstances::default());
            let verdict = (diagnosis.cause, diagnosis.confidence);
            assert_eq!(verdict, (Cause::OomHost, Confidence::Proved));
            assert_eq!(diagnosis.because[0].source, "kernel log");
            let not_the_limit = diagnosis.ruled_out.iter().any(|out| out.cause == Cause::OomLimit);
            assert!(not_the_limit, "{diagnosis:?}");
            let perhaps = killed(kills, None, Some(MachineOom::Killed));
            assert_eq!(unasked(perhaps), (Cause::OomHost, Confidence::Likely));
            let silent = unasked(killed(kills, None, None));
            assert_ne!(silent.0, Cause::OomHost, "a count says nothing of the machine");
        }
        // A child went before, for the limit.
        let both = killed(Some(2), Some(OomVictim::Child), Some(MachineOom::Chosen));
        assert_eq!(unasked(both), (Cause::OomHost, Confidence::Proved));
        for end in [End::Exited { code: 137 }, End::Signaled { signal: 15 }, End::BridgeLost] {
            let other = Evidence { end, ..killed(None, None, Some(MachineOom::Chosen)) };
            assert_ne!(unasked(other).0, Cause::OomHost, "no other end was the kernel's");
        }
    }

    #[test]
    fn sigkill_of_which_nothing_is_known_is_unknown_and_says_what_is_missing() {
        let evidence = ended(End::Signaled { signal: 9 }, None, None);
        let diagnosis = diagnose_exit(&evidence, &Circumstances::default());
        assert_eq!(diagnosis.cause, Cause::Unknown);
        assert!(diagnosis.missing[0].contains("could not be counted"), "{diagnosis:?}");
    }

    #[test]
    fn a_child_that_was_killed_earlier_does_not_explain_a_later_kill() {
        let evidence = ended(End::Signaled { signal: 9 }, Some(1), Some(OomVictim::Child));
        assert_eq!(unasked(evidence), (Cause::KilledOutside, Confidence::Likely));
        let unclear = ended(End::Signaled { signal: 9 }, Some(1), None);
        assert_eq!(unasked(unclear), (Cause::OomLimit, Confidence::Likely));
    }

    #[test]
    fn codes_and_signals_of_its_own() {
        let exited = |code| unasked(ended(End::Exited { code }, Some(0), None));
        assert_eq!(exited(0), (Cause::AppExit, Confidence::Proved));
        assert_eq!(exited(1), (Cause::AppExit, Confidence::Proved));
        assert_eq!(exited(78), (Cause::ConfigRejected, Confidence::Likely));
        let crashed = ended(End::Signaled { signal: 11 }, Some(0), None);
        assert_eq!(unasked(crashed), (Cause::AppSignal, Confidence::Proved));
        let not_found = End::LaunchFailed { error: "No such file or directory".to_owned() };
        let diagnosis = diagnose_exit(&Evidence::bare(not_found), &Circumstances::default());
        assert_eq!(
            (diagnosis.cause, diagnosis.kind.as_str()),
            (Cause::LaunchFailed, "command_not_found")
        );
    }

    #[test]
    fn what_ended_it_by_our_own_rule_is_that_rule() {
        let stuck = Circumstances { stop: Some(StopReason::TurnStuck), ..Circumstances::default() };
        let evidence = ended(End::Signaled { signal: 9 }, Some(0), None);
        assert_eq!(verdict(evidence, &stuck), (Cause::TurnStuck, Confidence::Proved));
        let idle = Circumstances { stop: Some(StopReason::Idle), ..Circumstances::default() };
        let evidence = ended(End::Signaled { signal: 15 }, Some(0), None);
        assert_eq!(verdict(evidence, &idle), (Cause::StoppedByWatchdog, Confidence::Proved));
    }
}
