//! `config`: whether a file is right, what it would change, and what can be set.
//!
//! Owner: these commands. Invariants: nothing is changed or applied here; a plan shows no value of
//! an agent's environment. Absent: what asks the daemon (`live`).

pub(super) mod live;
mod view;

use std::path::{Path, PathBuf};

use serde_json::{Value as Json, json};

use super::arguments::ConfigCommand;
use super::error::CommandError;
use super::exit::Exit;
use super::scrub::shortened;
use super::table::Table;
use super::terminal::Terminal;
use crate::config::plan::plan;
use crate::config::{self, Effective, Parsed, written};
use view::PlanView;

const VALUE_CHARACTERS_MAX: usize = 40;

/// What needs no daemon. `named` is the file of `--config`.
pub(crate) fn config(
    command: ConfigCommand,
    named: Option<PathBuf>,
    as_json: bool,
    terminal: &mut Terminal,
) -> Result<(), CommandError> {
    match command {
        ConfigCommand::Check { file } => check(file.or(named), as_json, terminal),
        ConfigCommand::Plan { file, from: Some(from), exit_code } => {
            let to = Side::read(config::path_of(file.or(named).as_deref()))?;
            let from = Side::read(Some(from))?;
            let mut shown = plan(&from.effective, &to.effective).to_json();
            shown["from"] = json!(from.name);
            shown["to"] = json!(to.name);
            show_plan(&shown, &from.name, &to.name, as_json, terminal)?;
            told_by_code(&shown, exit_code)
        }
        ConfigCommand::Schema => schema(as_json, terminal),
        ConfigCommand::Plan { from: None, .. }
        | ConfigCommand::Apply { .. }
        | ConfigCommand::History { .. }
        | ConfigCommand::Rollback { .. } => unreachable!("the daemon is asked for these"),
    }
}

fn show_plan(
    plan: &Json,
    from: &str,
    to: &str,
    as_json: bool,
    terminal: &mut Terminal,
) -> Result<(), CommandError> {
    if as_json {
        return Ok(terminal.json(plan)?);
    }
    Ok(terminal.line(&PlanView::of(plan).render(from, to))?)
}

fn told_by_code(plan: &Json, exit_code: bool) -> Result<(), CommandError> {
    match exit_code && !PlanView::of(plan).is_empty() {
        true => Err(CommandError::Several { first: Exit::HasChanges }),
        false => Ok(()),
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
