//! `config`: whether a file is right, what it would change, and what can be set.
//!
//! Owner: these commands. Invariants: nothing is changed or applied; a plan shows no value of an
//! agent's environment. Absent: the daemon; a plan starts at a file or at the built-in text.

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::arguments::ConfigCommand;
use super::error::CommandError;
use super::exit::Exit;
use super::scrub::shortened;
use super::table::{Table, aligned};
use super::terminal::Terminal;
use crate::config::plan::{Change, ChangeOf, Interrupts, Plan, plan};
use crate::config::setting::Effect;
use crate::config::{self, Effective, Parsed, written};

const VALUE_CHARACTERS_MAX: usize = 40;

/// `named` is the file of `--config`.
pub(crate) fn config(
    command: ConfigCommand,
    named: Option<PathBuf>,
    as_json: bool,
    terminal: &mut Terminal,
) -> Result<(), CommandError> {
    match command {
        ConfigCommand::Check { file } => check(file.or(named), as_json, terminal),
        ConfigCommand::Plan { file, from, exit_code } => {
            let to = Side::read(config::path_of(file.or(named).as_deref()))?;
            let from = in_force(from)?;
            let plan = plan(&from.effective, &to.effective);
            if as_json {
                let mut shown = plan.to_json();
                shown["from"] = json!(from.name);
                shown["to"] = json!(to.name);
                terminal.json(&shown)?;
            } else {
                terminal.line(&render(&plan, &from.name, &to.name))?;
            }
            let is_told_by_code = exit_code && !plan.is_empty();
            let told = CommandError::Several { first: Exit::HasChanges };
            if is_told_by_code { Err(told) } else { Ok(()) }
        }
        ConfigCommand::Schema => schema(as_json, terminal),
        ConfigCommand::Apply { .. } => unreachable!("run hands it over"),
    }
}

/// One side of a plan.
struct Side {
    name: String,
    effective: Effective,
}

impl Side {
    fn read(path: Option<PathBuf>) -> Result<Self, CommandError> {
        let Parsed { file, .. } = config::read_and_parse(path.as_deref())?;
        Ok(Self { name: name_of(path.as_deref()), effective: Effective::of(&file) })
    }
}

/// What a plan starts at.
fn in_force(from: Option<PathBuf>) -> Result<Side, CommandError> {
    Side::read(from)
}

fn name_of(path: Option<&Path>) -> String {
    path.map_or_else(|| "the built-in config".to_owned(), |path| path.display().to_string())
}

fn check(
    named: Option<PathBuf>,
    as_json: bool,
    terminal: &mut Terminal,
) -> Result<(), CommandError> {
    let path = config::path_of(named.as_deref());
    let parsed = config::read_and_parse(path.as_deref())?;
    let agents: Vec<String> = parsed.config.agents.keys().map(ToString::to_string).collect();
    let name = name_of(path.as_deref());
    if as_json {
        return Ok(terminal.json(&json!({"config": name, "is_right": true, "agents": agents}))?);
    }
    let agents = match agents.as_slice() {
        [] => "no agents".to_owned(),
        agents => format!("agents: {}", agents.join(", ")),
    };
    Ok(terminal.line(&super::scrub::line(&format!("{name} is right; {agents}")))?)
}

fn schema(as_json: bool, terminal: &mut Terminal) -> Result<(), CommandError> {
    if as_json {
        return Ok(terminal.json(&config::schema::schema())?);
    }
    let mut table = Table::new(["SETTING", "VALUE", "DEFAULT", "EFFECT"]);
    for row in config::schema::rows() {
        let (kind, effect) = (row.kind.to_owned(), row.effect.words().to_owned());
        table.row([row.path, kind, value_shown(row.standard.as_ref(), "-"), effect]);
    }
    Ok(terminal.line(&table.render())?)
}

fn value_shown(value: Option<&Json>, absent: &str) -> String {
    let text = value.map_or_else(|| absent.to_owned(), written);
    shortened(&text, VALUE_CHARACTERS_MAX).into_owned()
}

/// When it comes into force, and who notices.
fn effect_words(change: &Change) -> String {
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

fn change_words(change: &Change) -> String {
    if change.of == ChangeOf::Agent {
        return if change.from.is_none() { "added" } else { "removed" }.to_owned();
    }
    if let Some(keys) = change.keys_shown() {
        return format!("{} (values are not shown)", keys.join(", "));
    }
    let (from, to) = change.shown();
    let side = |value: &Option<Json>| value_shown(value.as_ref(), "(absent)");
    format!("{} -> {}", side(&from), side(&to))
}

fn render(plan: &Plan, from: &str, to: &str) -> String {
    let (from, to) = (super::scrub::line(from), super::scrub::line(to));
    if plan.is_empty() {
        return format!("No changes: {to} means the same as {from}.");
    }
    let row = |change: &Change| {
        let mark = match (change.of, &change.from) {
            (ChangeOf::Agent, None) => "+",
            (ChangeOf::Agent, Some(_)) => "-",
            (ChangeOf::Setting, _) => "~",
        };
        [mark.to_owned(), change.path.clone(), change_words(change), effect_words(change)]
    };
    let rows: Vec<[String; 4]> = plan.changes.iter().map(row).collect();
    let count = match rows.len() {
        1 => "1 change".to_owned(),
        count => format!("{count} changes"),
    };
    let end = match plan.interrupts() {
        Interrupts::Nobody => "nobody is interrupted",
        Interrupts::Daemon => "what needs a restart of the daemon waits for one",
    };
    let lines = aligned(&rows).join("\n");
    let apply = "`dormouse config apply` puts the daemon's file into force.";
    format!("From {from} to {to}:\n\n{lines}\n\n{count}; {end}.\n{apply}")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::config::parse_whole;

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
              next turn
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
            `dormouse config apply` puts the daemon's file into force.
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
