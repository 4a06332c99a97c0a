//! Where the values of secrets come from.
//!
//! Owner: the config. Invariant: no value of a secret has a place here. Absent: looking one up
//! (`secrets`).

#![deny(unused_variables, reason = "a setting that is taken apart and not shown is forgotten")]

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::setting::{Live, Setting, Table, Visitor, doc};
use super::{Problem, problem};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct SecretsSetting {
    /// `None`: secrets/ in the data folder.
    pub(crate) folder: Option<PathBuf>,
    /// A program and its arguments; not empty.
    pub(crate) command: Option<Vec<String>>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SecretsTable {
    folder: Setting<Option<String>, Live>,
    command: Setting<Option<Vec<String>>, Live>,
}

impl Table for SecretsTable {
    fn visit(&self, visitor: &mut Visitor) {
        let SecretsTable { folder, command } = self;
        let words = "The folder with the files, relative to this one; secrets/ in the data folder \
                     if absent.";
        visitor.setting("folder", folder, doc(words).example("\"/run/secrets\""));
        let words = "A program that prints the value of the secret {name}, within 10 s.";
        let example = "[\"vault\", \"kv\", \"get\", \"-field=value\", \"secret/{name}\"]";
        visitor.setting("command", command, doc(words).example(example));
    }
}

pub(super) fn secrets_of(table: SecretsTable, folder: &Path) -> Result<SecretsSetting, Problem> {
    let from = table.folder.into_value();
    if from.as_ref().is_some_and(|from| from.trim().is_empty()) {
        return Err(problem("secrets.folder", "is empty: leave it out for the data folder's"));
    }
    let command = table.command.into_value();
    if let Some(command) = &command {
        if command.first().is_none_or(String::is_empty) {
            return Err(problem("secrets.command", "must name a program"));
        }
        if !command.iter().skip(1).any(|part| part.contains("{name}")) {
            let words = "has no {name}: how is it to know which secret is wanted?";
            return Err(problem("secrets.command", words));
        }
    }
    Ok(SecretsSetting { folder: from.map(|from| folder.join(from)), command })
}
