//! What a batch meant, for those who count and those who are told: ends, starts, failures, dead
//! letters, trips, raised limits.
//!
//! Owner: the engine gathers them from the batch's writes, and passes them on after the commit.
//! Invariant: texts of messages and replies, log lines and secrets are not in here. Absent:
//! counting (`metrics`), telling (`notify`).

use dormouse_core::cause::Cause;
use dormouse_core::command::Write;
use dormouse_core::diagnosis::Confidence;
use dormouse_core::id::{Generation, MessageId, RevisionNumber, SessionId};
use dormouse_core::journal::{Because, Decision, RevisionChange};
use dormouse_core::record::ExitRecord;
use dormouse_core::session::phase::Phase;
use dormouse_core::time::Wall;

/// In the order in which they were written.
#[derive(Debug, Default)]
pub(crate) struct Outcomes {
    pub(crate) ends: Vec<Ended>,
    pub(crate) trips: Vec<Tripped>,
    pub(crate) dead_letters: Vec<Buried>,
    pub(crate) bad_revisions: Vec<BadRevision>,
    /// Of each: its session.
    pub(crate) memory_raised: Vec<SessionId>,
    pub(crate) failed_starts: Vec<SessionId>,
    /// From the start order to ready.
    pub(crate) starts_took_ms: Vec<u64>,
}

#[derive(Debug, Clone)]
pub(crate) struct Ended {
    pub(crate) session: SessionId,
    pub(crate) generation: Generation,
    pub(crate) is_failure: bool,
    pub(crate) diagnosed: Diagnosed,
    message_in_flight: Option<MessageId>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Diagnosed {
    pub(crate) cause: Cause,
    pub(crate) confidence: Confidence,
    pub(crate) sentence: String,
}

/// A session is not started by itself any more but for a probe.
#[derive(Debug, Clone)]
pub(crate) struct Tripped {
    pub(crate) at: Wall,
    pub(crate) session: SessionId,
    pub(crate) generation: Generation,
    pub(crate) failures: u32,
    pub(crate) next_try_at: Option<Wall>,
    pub(crate) diagnosed: Diagnosed,
}

/// A revision of an agent failed its trial, and is used by nobody.
#[derive(Debug, Clone)]
pub(crate) struct BadRevision {
    pub(crate) at: Wall,
    /// Which tried it.
    pub(crate) session: SessionId,
    pub(crate) generation: Generation,
    pub(crate) revision: RevisionNumber,
    pub(crate) cause: Cause,
}

#[derive(Debug, Clone)]
pub(crate) struct Buried {
    pub(crate) at: Wall,
    pub(crate) session: SessionId,
    pub(crate) message: MessageId,
    pub(crate) cause: Cause,
    pub(crate) attempts: u32,
    /// The end of the life that had it in work, where that is why.
    pub(crate) diagnosed: Option<Diagnosed>,
}

impl Outcomes {
    pub(crate) fn note(&mut self, write: &Write) {
        match write {
            Write::InsertExit(exit) => self.ends.push(ended(exit)),
            Write::InsertDecision(decision) => self.decided(decision),
            Write::PutSession(_)
            | Write::InsertMessage(_)
            | Write::LeaseDelivery { .. }
            | Write::ReturnDelivery { .. }
            | Write::AnswerMessage { .. }
            | Write::BuryMessage { .. }
            | Write::CancelMessage { .. }
            | Write::InsertUpload(_)
            | Write::InsertCheckpoint { .. }
            | Write::MarkRedriven { .. }
            | Write::DropDeadLetter { .. }
            | Write::PutRollout { .. } => {}
        }
    }

    fn decided(&mut self, decision: &Decision) {
        let session = || decision.session.clone();
        match &decision.because {
            Because::BecameReady { took_ms } => self.starts_took_ms.push(*took_ms),
            Because::MemoryRaised { .. } => self.memory_raised.push(session()),
            Because::MessageBuried { message, cause, attempts } => {
                let diagnosed = self.end_with(&decision.session, *message);
                self.dead_letters.push(Buried {
                    at: decision.at,
                    session: session(),
                    message: *message,
                    cause: *cause,
                    attempts: *attempts,
                    diagnosed,
                });
            }
            Because::Revision { change: RevisionChange::Failed { revision, cause, .. } } => {
                self.bad_revisions.push(BadRevision {
                    at: decision.at,
                    session: session(),
                    generation: decision.generation,
                    revision: *revision,
                    cause: *cause,
                });
            }
            Because::StartFailed { error, failures, restart_at } => {
                self.failed_starts.push(session());
                let diagnosed = Diagnosed {
                    cause: Cause::StartFailed,
                    confidence: Confidence::Proved,
                    sentence: format!("it could not be started: {error}"),
                };
                self.may_have_tripped(decision, *failures, *restart_at, diagnosed);
            }
            Because::Exited { failures, restart_at, .. } => {
                let end = self.ends.iter().rev().find(|end| {
                    end.session == decision.session && end.generation == decision.generation
                });
                if let Some(end) = end {
                    let diagnosed = end.diagnosed.clone();
                    self.may_have_tripped(decision, *failures, *restart_at, diagnosed);
                }
            }
            _ => {}
        }
    }

    fn may_have_tripped(
        &mut self,
        decision: &Decision,
        failures: u32,
        next_try_at: Option<Wall>,
        diagnosed: Diagnosed,
    ) {
        if decision.to != Phase::Tripped {
            return;
        }
        self.trips.push(Tripped {
            at: decision.at,
            session: decision.session.clone(),
            generation: decision.generation,
            failures,
            next_try_at,
            diagnosed,
        });
    }

    fn end_with(&self, session: &SessionId, message: MessageId) -> Option<Diagnosed> {
        let had_it =
            |end: &&Ended| end.session == *session && end.message_in_flight == Some(message);
        self.ends.iter().rev().find(had_it).map(|end| end.diagnosed.clone())
    }
}

fn ended(exit: &ExitRecord) -> Ended {
    Ended {
        session: exit.session.clone(),
        generation: exit.generation,
        is_failure: exit.cause.is_some(),
        diagnosed: Diagnosed {
            cause: exit.diagnosis.cause,
            confidence: exit.diagnosis.confidence,
            sentence: exit.diagnosis.sentence.clone(),
        },
        message_in_flight: exit.message_in_flight,
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A batch in which a session trips and its message is given up.

    use dormouse_core::diagnosis::own::diagnose_exit;
    use dormouse_core::evidence::{End, Evidence, OomVictim};
    use dormouse_core::journal::ExitSummary;
    use dormouse_core::record::Circumstances;

    use super::*;

    pub(crate) fn tripped_by_memory(session: &SessionId, message: MessageId) -> Vec<Write> {
        let end = End::Signaled { signal: 9 };
        let evidence = Evidence {
            oom_kills: Some(1),
            oom_victim: Some(OomVictim::Main),
            log_tail: "a secret line".to_owned(),
            ..Evidence::bare(end)
        };
        let circumstances = Circumstances { attempt: Some(3), ..Circumstances::default() };
        let diagnosis = diagnose_exit(&evidence, &circumstances);
        let cause = Some(diagnosis.cause);
        let summary = ExitSummary::of(&evidence, cause, None);
        let decision = |to, because| {
            Write::InsertDecision(Decision {
                session: session.clone(),
                generation: Generation(5),
                at: Wall(1_000),
                from: Phase::Awake,
                to,
                because,
            })
        };
        let buried = Because::MessageBuried { message, cause: Cause::PoisonMessage, attempts: 3 };
        let exited = Because::Exited { summary, failures: 5, restart_at: Some(Wall(301_000)) };
        vec![
            Write::InsertExit(ExitRecord {
                session: session.clone(),
                generation: Generation(5),
                at: Wall(1_000),
                phase: Phase::Awake,
                cause,
                message_in_flight: Some(message),
                evidence,
                circumstances,
                diagnosis,
            }),
            decision(Phase::Awake, buried),
            decision(Phase::Tripped, exited),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trip_and_a_dead_letter_carry_the_diagnosis_of_the_end_that_caused_them() {
        let (session, message) = ("a/k".parse().unwrap(), MessageId(7));
        let mut outcomes = Outcomes::default();
        testing::tripped_by_memory(&session, message).iter().for_each(|w| outcomes.note(w));
        let [end] = &outcomes.ends[..] else { panic!("{outcomes:?}") };
        assert!(end.is_failure);
        let [trip] = &outcomes.trips[..] else { panic!("{outcomes:?}") };
        assert_eq!((trip.failures, trip.next_try_at), (5, Some(Wall(301_000))));
        assert_eq!(trip.diagnosed.cause, Cause::OomLimit);
        let [letter] = &outcomes.dead_letters[..] else { panic!("{outcomes:?}") };
        assert_eq!((letter.cause, letter.message), (Cause::PoisonMessage, message));
        assert_eq!(letter.diagnosed.as_ref(), Some(&trip.diagnosed));
    }

    #[test]
    fn a_revision_that_failed_its_trial_is_told_without_what_the_agent_said() {
        let detail = "a word of the agent".to_owned();
        let (revision, cause) = (RevisionNumber(2), Cause::AgentError);
        let change = RevisionChange::Failed { revision, cause, detail };
        let mut outcomes = Outcomes::default();
        outcomes.note(&Write::InsertDecision(Decision {
            session: "a/k".parse().unwrap(),
            generation: Generation(5),
            at: Wall(1),
            from: Phase::Awake,
            to: Phase::Awake,
            because: Because::Revision { change },
        }));
        let [bad] = &outcomes.bad_revisions[..] else { panic!("{outcomes:?}") };
        assert_eq!((bad.revision, bad.cause), (revision, cause));
        assert!(!format!("{outcomes:?}").contains("a word"));
    }

    #[test]
    fn a_pause_is_no_trip() {
        let session: SessionId = "a/k".parse().unwrap();
        let mut outcomes = Outcomes::default();
        for write in testing::tripped_by_memory(&session, MessageId(7)) {
            let write = match write {
                Write::InsertDecision(decision) => {
                    Write::InsertDecision(Decision { to: Phase::Backoff, ..decision })
                }
                other => other,
            };
            outcomes.note(&write);
        }
        assert!(outcomes.trips.is_empty());
    }
}
