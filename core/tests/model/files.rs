//! The books of files: what each instance was heard to hold, and what it was to hold.
//!
//! Owner: `Store`. Invariant: kept from events and orders alone, never from the core's memory, so
//! that a turn before its files is found (FAULTS I11). Absent: what an instance really holds.

use std::collections::BTreeMap;

use dormouse_core::command::{Command, Effects, Write};
use dormouse_core::event::Event;
use dormouse_core::id::{InstanceId, MessageId, SessionId};
use dormouse_core::manifest::{FilesVersion, Manifest, ManifestDigest};

#[derive(Debug, Default)]
pub(crate) struct FilesBooks {
    applied: BTreeMap<InstanceId, FilesVersion>,
    looks: BTreeMap<InstanceId, Look>,
    newest_messages: BTreeMap<SessionId, MessageId>,
}

/// The newest look that was ordered, and what was seen, until it was used.
#[derive(Debug)]
struct Look {
    number: u64,
    seen: Option<ManifestDigest>,
    /// The newest message that was there when it was ordered.
    newest_message: Option<MessageId>,
    is_used_by_launch: bool,
}

impl FilesBooks {
    pub(crate) fn hear(&mut self, event: &Event) {
        match event {
            Event::FilesSynced { instance, version } => {
                self.applied.insert(instance.clone(), *version);
            }
            Event::InputsListed { instance, look, outcome: Ok(inputs) } => {
                if let Some(ordered) = self.looks.get_mut(instance)
                    && ordered.number == *look
                {
                    ordered.seen = Some(*inputs);
                }
            }
            _other => {}
        }
    }

    /// `uploads` of the session's row at this moment.
    pub(crate) fn check(&mut self, effects: &Effects, uploads: impl Fn(&InstanceId) -> u64) {
        for write in &effects.writes {
            if let Write::InsertMessage(message) = write {
                self.newest_messages.insert(message.session.clone(), message.id);
            }
        }
        for command in &effects.commands {
            match command {
                Command::ListInputs { instance, look } => {
                    let newest_message = self.newest_messages.get(&instance.session).copied();
                    let (number, seen) = (*look, None);
                    let look = Look { number, seen, newest_message, is_used_by_launch: false };
                    self.looks.insert(instance.clone(), look);
                }
                Command::LaunchAgent { instance, .. } => {
                    self.use_proof(instance, None, uploads(instance));
                }
                Command::DeliverTurn { instance, turn } => {
                    let leased = effects.writes.iter().filter_map(|write| match write {
                        Write::LeaseDelivery { turn, .. } => Some(turn),
                        _other => None,
                    });
                    if leased.into_iter().any(|leased| leased == turn) {
                        self.use_proof(instance, Some(turn.message), uploads(instance));
                    }
                }
                _other => {}
            }
        }
    }

    /// Each look serves one launch or one lease, or both where the message was there before it.
    fn use_proof(&mut self, instance: &InstanceId, turn: Option<MessageId>, uploads: u64) {
        let inputs = match self.looks.get_mut(instance) {
            None if uploads == 0 => return,
            None => Manifest::default().digest(),
            Some(look) => {
                let is_new_for = |message| look.newest_message >= Some(message);
                let is_usable = !look.is_used_by_launch || turn.is_some_and(is_new_for);
                let seen = if turn.is_none() { look.seen } else { look.seen.take() };
                look.is_used_by_launch = true;
                let seen = seen.filter(|_| is_usable);
                seen.unwrap_or_else(|| panic!("{instance}: nobody looked again"))
            }
        };
        let expected = FilesVersion { inputs, uploads };
        assert_eq!(
            self.applied.get(instance),
            Some(&expected),
            "{instance}: work before its files"
        );
    }
}
