//! Canary turns: what a new revision is asked before anybody else gets it.
//!
//! Owner: the engine, in the batch that brings a new revision into force, after a start, and when
//! an operator wants another trial. Invariants: the question is on disk with what asks for it; one
//! trial is asked once, however often the daemon starts meanwhile. Absent: what the answer says of
//! the revision (`core`).

use dormouse_core::command::Answer;
use dormouse_core::event::{Event, Submission};
use dormouse_core::id::{AgentName, MessageId, RevisionNumber, Subject};
use dormouse_core::record::Idempotency;
use tokio::sync::oneshot;

use super::EngineError;
use super::request::Ask;
use super::step::Step;
use crate::in_force::Current;
use crate::revisions::canary_session;

/// Who asks.
const SUBJECT: &str = "dormouse";

impl Step<'_, '_> {
    /// Asks every revision that waits for its trial. Of the same `occasion` it is asked once.
    pub(super) fn ask_canaries(
        &mut self,
        current: &Current,
        occasion: &str,
    ) -> Result<(), EngineError> {
        let waiting: Vec<(AgentName, RevisionNumber)> = self
            .supervisor
            .rollouts()
            .filter(|(_, rollout)| rollout.waits_for_trial())
            .map(|(name, rollout)| (name.clone(), rollout.wanted))
            .collect();
        for (name, revision) in waiting {
            let canary = current.agent(name.as_str()).and_then(|agent| agent.canary.as_ref());
            if let Some(canary) = canary {
                self.ask_canary(&name, revision, &canary.text, occasion)?;
            }
        }
        Ok(())
    }

    fn ask_canary(
        &mut self,
        name: &AgentName,
        revision: RevisionNumber,
        text: &str,
        occasion: &str,
    ) -> Result<(), EngineError> {
        let (session, subject) = (canary_session(name), subject());
        let key = format!("canary {name} {revision} {occasion}");
        let mut submission = Submission {
            id: MessageId(0),
            session: session.clone(),
            subject,
            is_operator: true,
            text: text.to_owned(),
            attachments: Vec::new(),
            idempotency: Some(Idempotency { digest: key.clone(), key }),
            prior: None,
        };
        submission.prior = self.prior(&submission)?;
        if submission.prior.is_some() {
            return Ok(());
        }
        submission.id = self.mint.message(self.now.wall);
        let request = self.remember(nobody());
        self.handle(Event::MessageSubmitted { request, submission })?;
        let answers = self.pending.effects.answers.iter();
        let refusal = answers.rev().find_map(|(of, answer)| match answer {
            Answer::Refused(refusal) if *of == request => Some(refusal),
            _other => None,
        });
        if let Some(refusal) = refusal {
            tracing::error!(%session, ?refusal, "the canary turn was refused: nobody tries it");
        }
        Ok(())
    }
}

fn subject() -> Subject {
    Subject::new(SUBJECT).expect("a plain word")
}

/// The answer is in the store; nobody waits for it.
fn nobody() -> Ask {
    Ask { reply: oneshot::channel().0, watch: false }
}
