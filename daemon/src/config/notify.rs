//! `[notify]`: who is told of tripped sessions and of dead letters.
//!
//! Owner: `config::parse`. Invariant: what is written there can be used, or is refused here.
//! Absent: telling (`crate::notify`).

use serde::Deserialize;

use super::{Problem, problem};
use crate::notify::{Target, WebhookAddress};

#[derive(Debug, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NotifyTable {
    webhook: Option<String>,
    command: Option<Vec<String>>,
}

pub(super) fn targets_of(table: NotifyTable) -> Result<Vec<Target>, Problem> {
    let mut targets = Vec::new();
    if let Some(url) = table.webhook {
        let words = "must be http://HOST[:PORT][/PATH]; for https, let `command` call curl";
        let address =
            WebhookAddress::parse(&url).ok_or_else(|| problem("notify.webhook", words))?;
        targets.push(Target::Webhook(address));
    }
    if let Some(command) = table.command {
        if command.first().is_none_or(String::is_empty) {
            let words = "must name a program, for example [\"/usr/local/bin/page-me\"]";
            return Err(problem("notify.command", words));
        }
        targets.push(Target::Command(command));
    }
    Ok(targets)
}
