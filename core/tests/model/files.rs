//! The books of files: what each instance was heard to hold, and what it was to hold.
//!
//! Owner: `Store`. Invariant: kept from events and orders alone, never from the core's memory, so
//! that a turn before its files is found (FAULTS I11). Absent: what an instance really holds.

use std::collections::BTreeMap;

use dormouse_core::command::{Command, Effects, Write};
use dormouse_core::event::Event;
use dormouse_core::id::InstanceId;
use dormouse_core::manifest::{FilesVersion, Manifest, ManifestDigest};

#[derive(Debug, Default)]
pub(crate) struct FilesBooks {
    applied: BTreeMap<InstanceId, FilesVersion>,
    /// The newest look that was ordered, and what was seen, until it was used.
    looks: BTreeMap<InstanceId, (u64, Option<ManifestDigest>)>,
}

impl FilesBooks {
    pub(crate) fn hear(&mut self, event: &Event) {
        match event {
            Event::FilesSynced { instance, version } => {
                self.applied.insert(instance.clone(), *version);
            }
            Event::InputsListed { instance, look, outcome: Ok(inputs) } => {
                if let Some((ordered, seen)) = self.looks.get_mut(instance)
                    && ordered == look
                {
                    *seen = Some(*inputs);
                }
            }
            _other => {}
        }
    }

    /// `uploads` of the session's row at this moment.
    pub(crate) fn check(&mut self, effects: &Effects, uploads: impl Fn(&InstanceId) -> u64) {
        for command in &effects.commands {
            match command {
                Command::ListInputs { instance, look } => {
                    self.looks.insert(instance.clone(), (*look, None));
                }
                Command::LaunchAgent { instance } => self.use_proof(instance, uploads(instance)),
                Command::DeliverTurn { instance, turn } => {
                    let leased = effects.writes.iter().filter_map(|write| match write {
                        Write::LeaseDelivery { turn, .. } => Some(turn),
                        _other => None,
                    });
                    if leased.into_iter().any(|leased| leased == turn) {
                        self.use_proof(instance, uploads(instance));
                    }
                }
                _other => {}
            }
        }
    }

    fn use_proof(&mut self, instance: &InstanceId, uploads: u64) {
        let look = self.looks.get_mut(instance).map(|look| look.1.take());
        let inputs = match look {
            None if uploads == 0 => return,
            None => Manifest::default().digest(),
            Some(seen) => seen.unwrap_or_else(|| panic!("{instance}: nobody looked again")),
        };
        let expected = FilesVersion { inputs, uploads };
        assert_eq!(
            self.applied.get(instance),
            Some(&expected),
            "{instance}: work before its files"
        );
    }
}
