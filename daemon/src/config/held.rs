//! A config of which the part that needs a restart of the daemon is left as it was.
//!
//! Owner: `reload`. Invariant: what is held back is told from the rest by the settings' types.
//! Absent: when what is held comes into force.

use std::mem;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::flat::leaves_of;
use super::revision::put;
use super::setting::Effect;
use super::tables::File;

impl File {
    /// This one, with the settings that need a restart of the daemon as they are in `before`.
    pub(crate) fn holding_back(mut self, before: &File) -> File {
        // No setting of an agent is among them: a test says so.
        let agents = mem::take(&mut self.agents);
        let mut held = leaves_of(before).into_iter();
        let mut settings = Map::new();
        for (path, leaf) in leaves_of(&self) {
            let (known, old) = held.next().expect("every file has the same settings");
            assert_eq!(known, path, "every file has its settings in the same order");
            let value = match leaf.effect {
                Effect::DaemonRestart => old.value,
                Effect::Live | Effect::NextTurn | Effect::NextStart => leaf.value,
            };
            if let Some(value) = value {
                put(&mut settings, &path, value);
            }
        }
        let file = File::deserialize(Json::Object(settings));
        let file = file.expect("what was read can be read again");
        File { agents, ..file }
    }
}
