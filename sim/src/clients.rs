//! Senders and operators: what they ask for, and what they do when no answer comes.
//!
//! Owner: `World`. Invariant: every request is asked of the engine once, under a number of its own,
//! and is closed by an answer, a refusal, or the loss of the daemon. A sender with a key asks again
//! after a loss; one without cannot know. Absent: HTTP, streams of news (`checker` hears the news
//! in their place).

use std::collections::BTreeMap;

use dormouse_core::command::Answer;
use dormouse_core::event::{Attachment, Event, SessionRequest};
use dormouse_core::id::{AgentName, MessageId, RequestId, SessionId, Subject};
use dormouse_core::manifest::FileKind;
use dormouse_core::record::{Idempotency, MessageState};

use crate::agent::POISON;
use crate::engine::{Input, NewMessage};
use crate::fault::Fault;
use crate::violation::{Checked, Invariant};
use crate::world::{Action, World};

#[derive(Debug, Default)]
pub(crate) struct Clients {
    open: BTreeMap<RequestId, Asked>,
    sends: Vec<Send>,
    /// Sends that wait for their next try.
    retrying: u64,
}

/// What a request is about.
#[derive(Debug, Clone)]
pub(crate) enum Asked {
    Submit {
        send: usize,
        new: NewMessage,
    },
    Session,
    Redrive {
        dead: MessageId,
    },
    Drop {
        message: MessageId,
    },
    Upload,
    Configure,
    Steer {
        agent: AgentName,
    },
    /// By a bridge.
    Offer,
}

#[derive(Debug)]
struct Send {
    new: NewMessage,
    tries: u32,
}

const TRIES_MAX: u32 = 6;

impl Clients {
    pub(crate) fn are_done(&self) -> bool {
        self.open.is_empty() && self.retrying == 0
    }
}

impl World {
    pub(crate) fn client_acts(&mut self) -> Checked {
        for (fault, what) in [
            (Fault::WokenByOperator, SessionRequest::Wake),
            (Fault::StoppedByOperator, SessionRequest::Stop),
            (Fault::RestartedByOperator, SessionRequest::Restart),
        ] {
            if self.fires(fault) {
                let session = self.rng.pick(&self.config.sessions).clone();
                self.ask_of_session(session, what);
                return Ok(());
            }
        }
        if self.fires(Fault::ConfigRevised) {
            self.revise();
        } else if self.fires(Fault::RolloutSteered) {
            self.steer();
        } else if self.fires(Fault::UploadedBySender) {
            self.ask_to_upload();
        } else if self.fires(Fault::RestoredByOperator) {
            self.ask_to_restore();
        } else if self.fires(Fault::Redriven) {
            self.ask_for_redrive();
        } else if self.fires(Fault::Dropped) {
            self.ask_for_drop();
        } else {
            self.send_messages();
        }
        Ok(())
    }

    fn send_messages(&mut self) {
        let which = self.rng.index(self.config.sessions.len());
        let count = if self.fires(Fault::Burst) { self.rng.between(3, 12) } else { 1 };
        for _ in 0..count {
            let send = self.compose(which);
            self.submit(send);
            if self.clients.sends[send].new.idempotency.is_some() && self.fires(Fault::KeyRepeated)
            {
                self.submit(send);
            }
        }
    }

    pub(crate) fn send_one(&mut self, which: usize) {
        let send = self.compose(which);
        self.submit(send);
    }

    /// Adds a message to what there is to send.
    fn compose(&mut self, which: usize) -> usize {
        let session = self.config.sessions[which].clone();
        let number = self.clients.sends.len();
        let mut owner = which % self.config.subjects.len();
        if self.fires(Fault::ForeignSubject) {
            owner = (owner + 1) % self.config.subjects.len();
        }
        let is_operator = self.rng.chance(100);
        let subject: Subject = match is_operator {
            true => self.config.operator.clone(),
            false => self.config.subjects[owner].clone(),
        };
        let is_poison = self.fires(Fault::PoisonMessage);
        let text = format!("{}{number}", if is_poison { POISON } else { "hello" });
        let mut key = self.rng.chance(700).then(|| format!("key{number}"));
        if number > 0 && self.fires(Fault::KeyReused) {
            key = Some(format!("key{}", self.rng.index(number)));
        }
        let idempotency =
            key.map(|key| Idempotency { key, digest: format!("digest of {session} {text}") });
        let attachments = self.rng.chance(30).then(|| Attachment {
            path: "b.csv".parse().expect("a name and a dot are a path"),
            file: FileKind::Folder,
        });
        let attachments = attachments.into_iter().collect();
        let new = NewMessage { session, subject, is_operator, text, attachments, idempotency };
        self.clients.sends.push(Send { new, tries: 0 });
        number
    }

    pub(crate) fn ask(&mut self, asked: Asked) -> RequestId {
        let request = RequestId(self.fresh_id());
        self.clients.open.insert(request, asked);
        request
    }

    pub(crate) fn client_retries(&mut self, send: usize) -> Checked {
        self.clients.retrying -= 1;
        self.submit(send);
        Ok(())
    }

    fn submit(&mut self, send: usize) {
        if !self.engine.is_up() {
            self.client_heard_nothing(send);
            return;
        }
        let new = self.clients.sends[send].new.clone();
        let request = self.ask(Asked::Submit { send, new: new.clone() });
        self.push_input(Input::Submit(request, new));
    }

    fn client_heard_nothing(&mut self, send: usize) {
        let sent = &mut self.clients.sends[send];
        if sent.new.idempotency.is_none() || sent.tries >= TRIES_MAX {
            return;
        }
        sent.tries += 1;
        self.clients.retrying += 1;
        let after = self.rng.spread(10, 20_000);
        self.plan(self.now + after, Action::ClientRetries { send });
    }

    pub(crate) fn ask_of_session(&mut self, session: SessionId, what: SessionRequest) {
        if !self.engine.is_up() {
            return;
        }
        let request = self.ask(Asked::Session);
        let by = self.config.operator.clone();
        self.push_input(Input::Happened(
            Event::SessionRequested { request, session, what, by },
            None,
        ));
    }

    fn ask_for_redrive(&mut self) {
        let Some(dead) = self.some_message(MessageState::Dead) else { return };
        let request = self.ask(Asked::Redrive { dead });
        let by = self.config.operator.clone();
        self.push_input(Input::Redrive(request, dead, by));
    }

    fn ask_for_drop(&mut self) {
        let states = [MessageState::Pending, MessageState::Leased, MessageState::Dead];
        let state = *self.rng.pick(&states);
        let Some(message) = self.some_message(state) else { return };
        let row = self.durable.messages.get(&message).expect("the message was just found");
        let session = row.record.session.clone();
        let is_dead = self.durable.dead_letter(message).is_some();
        let request = self.ask(Asked::Drop { message });
        let by = self.config.operator.clone();
        self.push_input(Input::Drop(request, message, session, is_dead, by));
    }

    /// A random message in that state; sometimes one in any, as a person who looked too long ago
    /// would name it.
    fn some_message(&mut self, state: MessageState) -> Option<MessageId> {
        if !self.engine.is_up() {
            return None;
        }
        let is_outdated = self.rng.chance(100);
        let fits = self.durable.messages.values().filter(|row| is_outdated || row.state == state);
        let fits: Vec<MessageId> = fits.map(|row| row.record.id).collect();
        if fits.is_empty() { None } else { Some(*self.rng.pick(&fits)) }
    }

    /// The engine has answered.
    pub(crate) fn answered(&mut self, request: RequestId, answer: &Answer) -> Checked {
        let Some(asked) = self.clients.open.remove(&request) else {
            return Err(Invariant::HonestAnswer
                .broken(format!("{request:?} is not open, and was answered {answer:?}")));
        };
        if matches!(answer, Answer::Refused(dormouse_core::command::Refusal::QueueFull { .. })) {
            self.faults.count(Fault::QueueFull);
        }
        self.checker.answered(&asked, answer, &self.durable)?;
        if let Asked::Submit { send, .. } = asked
            && self.fires(Fault::AnswerLost)
        {
            self.client_heard_nothing(send);
        }
        Ok(())
    }

    /// The engine found nothing to ask the core about.
    pub(crate) fn not_found(&mut self, request: RequestId) {
        self.clients.open.remove(&request);
    }

    /// The engine said that it cannot take anything now.
    pub(crate) fn client_is_refused(&mut self, request: RequestId) {
        if let Some(Asked::Submit { send, .. }) = self.clients.open.remove(&request) {
            self.client_heard_nothing(send);
        }
    }

    /// Every connection to the daemon broke.
    pub(crate) fn clients_lose_their_daemon(&mut self) {
        for asked in std::mem::take(&mut self.clients.open).into_values() {
            if let Asked::Submit { send, .. } = asked {
                self.client_heard_nothing(send);
            }
        }
    }
}
