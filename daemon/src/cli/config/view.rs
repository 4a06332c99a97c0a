//! A plan as people read it.
//!
//! Owner: the commands that show one. Invariants: it is made of the plan's JSON, wherever that came
//! from, so that a plan of a file and one of the daemon look alike; what it shows is made safe for
//! a terminal. Absent: what a change comes to (`config::plan`).

use serde::Deserialize;
use serde_json::Value as Json;

use super::value_shown;
use crate::cli::scrub;
use crate::cli::table::aligned;
use crate::config::plan::{ChangeOf, Interrupts};
use crate::config::setting::Effect;

#[derive(Debug, Deserialize)]
pub(super) struct PlanView {
    changes: Vec<ChangeView>,
    interrupts: Interrupts,
}

#[derive(Debug, Deserialize)]
struct ChangeView {
    path: String,
    of: ChangeOf,
    from: Option<Json>,
    to: Option<Json>,
    effect: Effect,
    /// What became of each key, where no value is shown.
    keys: Option<Vec<String>>,
}

impl PlanView {
    /// One that this version does not understand is empty to it.
    pub(super) fn of(plan: &Json) -> Self {
        let nothing = Self { changes: Vec::new(), interrupts: Interrupts::Nobody };
        Self::deserialize(plan).unwrap_or(nothing)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    pub(super) fn render(&self, from: &str, to: &str) -> String {
        let (from, to) = (scrub::line(from), scrub::line(to));
        if self.is_empty() {
            return format!("No changes: {to} means the same as {from}.");
        }
        let row = |change: &ChangeView| {
            let mark = match (change.of, &change.from) {
                (ChangeOf::Agent, None) => "+",
                (ChangeOf::Agent, Some(_)) => "-",
                (ChangeOf::Setting, _) => "~",
            };
            [mark.to_owned(), change.path.clone(), change_words(change), effect_words(change)]
        };
        let rows: Vec<[String; 4]> = self.changes.iter().map(row).collect();
        let count = match rows.len() {
            1 => "1 change".to_owned(),
            count => format!("{count} changes"),
        };
        let end = match self.interrupts {
            Interrupts::Nobody => "nobody is interrupted",
            Interrupts::Daemon => "what needs a restart of the daemon waits for one",
        };
        let lines = aligned(&rows).join("\n");
        format!("From {from} to {to}:\n\n{lines}\n\n{count}; {end}.")
    }
}

/// When it comes into force, and who notices.
fn effect_words(change: &ChangeView) -> String {
    match (change.of, change.effect) {
        (ChangeOf::Agent, _) if change.from.is_none() => "live".to_owned(),
        (ChangeOf::Agent, _) => "its messages wait until it is there again".to_owned(),
        (ChangeOf::Setting, effect @ (Effect::Live | Effect::NextTurn)) => {
            effect.words().to_owned()
        }
        (ChangeOf::Setting, effect @ Effect::NextStart) => {
            format!("{}; nobody is interrupted", effect.words())
        }
        (ChangeOf::Setting, effect @ Effect::DaemonRestart) => effect.words().to_owned(),
    }
}

fn change_words(change: &ChangeView) -> String {
    if change.of == ChangeOf::Agent {
        return if change.from.is_none() { "added" } else { "removed" }.to_owned();
    }
    if let Some(keys) = &change.keys {
        return format!("{} (values are not shown)", keys.join(", "));
    }
    let side = |value: &Option<Json>| value_shown(value.as_ref(), "(absent)");
    format!("{} -> {}", side(&change.from), side(&change.to))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use expect_test::expect;
    use serde_json::json;

    use super::*;
    use crate::config::plan::{Plan, plan};
    use crate::config::{Effective, parse_whole};

    fn render(plan: &Plan, from: &str, to: &str) -> String {
        PlanView::of(&plan.to_json()).render(from, to)
    }

    const AGENT: &str = "command = [\"x\"]\nadapter = { kind = \"exec\" }\n";

    fn effective(toml: &str) -> Effective {
        let text = toml.replace("AGENT", AGENT);
        Effective::of(&parse_whole(&text, Path::new("dormouse.toml")).unwrap().file)
    }

    fn between() -> Plan {
        let from = "[agents.a]\nAGENT turn.attempts = 3\nenv = { KEEP = \"s1\", TOKEN = \"s2\" }\n\
                    [agents.old]\nAGENT env = { TOKEN = \"s3\" }\n[limits]\nqueue_messages = 10\n\
                    [notify]\nwebhook = \"http://h/s6\"";
        let to = "[agents.a]\nAGENT turn.attempts = 2\nmemory = \"1GiB\"\n\
                  env = { KEEP = \"s1\", TOKEN = \"s4\", MORE = \"s5\" }\n\
                  turn.within = \"1h\"\n[agents.new]\nAGENT\n[server]\nlisten = \"127.0.0.1:1\"\n\
                  [node]\norphan_limit = \"1h\"\n[limits]\nqueue_messages = 10\n\
                  [notify]\nwebhook = \"http://h/s7\"";
        plan(&effective(from), &effective(to))
    }

    #[test]
    fn a_plan_says_what_changes_when_and_for_whom() {
        // The columns are told apart by what the eye sees as a gap.
        let lines = render(&between(), "a.toml", "b.toml");
        let cells = |line: &str| -> Vec<String> {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .map(str::to_owned)
                .collect()
        };
        let shown: Vec<String> = lines.lines().map(|line| cells(line).join("\n  ")).collect();
        expect![[r#"
            From a.toml to b.toml:

            ~
              agents.a.env
              MORE added, TOKEN changed (values are not shown)
              next start of each session; nobody is interrupted
            ~
              agents.a.memory
              (absent) -> "1GiB"
              next start of each session; nobody is interrupted
            ~
              agents.a.turn.attempts
              3 -> 2
              live
            ~
              agents.a.turn.within
              "6h" -> "1h"
              live
            +
              agents.new
              added
              live
            -
              agents.old
              removed
              its messages wait until it is there again
            ~
              node.orphan_limit
              "10m" -> "1h"
              next start of each session; nobody is interrupted
            ~
              notify.webhook
              "(not shown)" -> "(not shown, changed)"
              live
            ~
              server.listen
              "127.0.0.1:7766" -> "127.0.0.1:1"
              needs a restart of the daemon

            9 changes; what needs a restart of the daemon waits for one.
        "#]]
        .assert_eq(&format!("{}\n", shown.join("\n")));
        assert_eq!(
            render(&Plan::default(), "a.toml", "b.toml"),
            "No changes: b.toml means the same as a.toml."
        );
    }

    #[test]
    fn no_value_of_an_environment_is_in_a_plan() {
        let plan = between();
        let shown = format!("{}{}", render(&plan, "a", "b"), plan.to_json());
        for secret in ["s1", "s2", "s3", "s4", "s5", "http://h/s6", "http://h/s7"] {
            assert!(!shown.contains(&format!("\"{secret}\"")), "{shown}");
        }
        let json = plan.to_json();
        let env = json["changes"]
            .as_array()
            .unwrap()
            .iter()
            .find(|change| change["path"] == "agents.a.env");
        let env = env.unwrap();
        assert_eq!(env["to"]["TOKEN"], "(not shown, changed)");
        assert_eq!(env["to"]["KEEP"], "(not shown)");
        assert_eq!((&env["effect"], &env["interrupts"]), (&json!("next_start"), &json!("nobody")));
        assert_eq!(json["interrupts"], "daemon");
    }
}
