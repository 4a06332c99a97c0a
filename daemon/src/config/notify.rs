//! `[notify]`: who is told of tripped sessions and of dead letters.
//!
//! Owner: `config::parse`. Invariant: what is written there can be used, or is refused here.
//! Absent: telling (`crate::notify`).

#![deny(unused_variables, reason = "a setting that is taken apart and not shown is forgotten")]

use serde::Deserialize;

use super::setting::{Live, Setting, Table, Visitor, doc};
use super::value::PrivateText;
use super::{Problem, problem};
use crate::notify::{Target, WebhookAddress};

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NotifyTable {
    /// There may be a token in it.
    webhook: Setting<Option<PrivateText>, Live>,
    command: Setting<Option<Vec<String>>, Live>,
}

impl Table for NotifyTable {
    fn visit(&self, visitor: &mut Visitor) {
        let NotifyTable { webhook, command } = self;
        let example = "\"http://127.0.0.1:9000/dormouse\"";
        visitor.setting("webhook", webhook, doc("Gets a POST.").example(example));
        let words = "A program, with the JSON on its standard input.";
        let example = "[\"/usr/local/bin/page-me\"]";
        visitor.setting("command", command, doc(words).example(example));
    }
}

pub(super) fn targets_of(table: NotifyTable) -> Result<Vec<Target>, Problem> {
    let mut targets = Vec::new();
    if let Some(PrivateText(url)) = table.webhook.into_value() {
        let words = "must be http://HOST[:PORT][/PATH]; for https, let `command` call curl";
        let address =
            WebhookAddress::parse(&url).ok_or_else(|| problem("notify.webhook", words))?;
        targets.push(Target::Webhook(address));
    }
    if let Some(command) = table.command.into_value() {
        if command.first().is_none_or(String::is_empty) {
            let words = "must name a program, for example [\"/usr/local/bin/page-me\"]";
            return Err(problem("notify.command", words));
        }
        targets.push(Target::Command(command));
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(toml: &str) -> Result<Vec<&'static str>, Problem> {
        let table: NotifyTable = toml::from_str(toml).unwrap();
        targets_of(table).map(|targets| targets.iter().map(Target::name).collect())
    }

    #[test]
    fn what_the_manual_names_is_taken_and_nobody_is_told_by_default() {
        assert_eq!(targets("").unwrap(), [""; 0]);
        let both = "webhook = \"http://127.0.0.1:9000/dormouse\"\n\
                    command = [\"/usr/local/bin/page-me\"]";
        assert_eq!(targets(both).unwrap(), ["webhook", "command"]);
    }

    #[test]
    fn what_could_never_arrive_is_refused_with_its_setting() {
        let setting = |toml| targets(toml).unwrap_err().0;
        assert_eq!(setting("webhook = \"https://example.com/\""), "notify.webhook");
        assert_eq!(setting("webhook = \"example.com\""), "notify.webhook");
        assert_eq!(setting("command = []"), "notify.command");
        assert_eq!(setting("command = [\"\"]"), "notify.command");
    }
}
