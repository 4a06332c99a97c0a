//! `config plan`, `apply`, `history` and `rollback`: what is asked of the daemon.
//!
//! Invariants: what is printed as in force is in force; what needs a restart of the daemon is done
//! by a hand-over, whole. Absent: what is the same without a daemon (`config`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value as Json, json};

use super::{name_of, show_plan, told_by_code};
use crate::api::config::{ConfigText, ConfigView, EarlierConfig, FileState};
use crate::cli::Context;
use crate::cli::arguments::{ConfigCommand, Upgrade};
use crate::cli::client::Call;
use crate::cli::error::CommandError;
use crate::cli::pages::whole_list;
use crate::cli::scrub;
use crate::cli::table::Table;
use crate::cli::upgrade;
use crate::config;

/// `named` is the file of `--config`, `data` the folder of the daemon on this machine.
pub(crate) async fn config(
    command: ConfigCommand,
    named: Option<PathBuf>,
    data: Option<&Path>,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    match command {
        ConfigCommand::Plan { file, from: None, exit_code } => {
            plan(file.or(named), exit_code, context).await
        }
        ConfigCommand::Apply { base, within } => apply(base, within, data, context).await,
        ConfigCommand::History { number: None } => history(context).await,
        ConfigCommand::History { number: Some(number) } => earlier(number, context).await,
        ConfigCommand::Rollback { number, base, within } => {
            let asked = ConfigText { number, base, ..ConfigText::default() };
            change("/v1/config/rollback", &asked, within, data, context).await
        }
        ConfigCommand::Check { .. }
        | ConfigCommand::Plan { from: Some(_), .. }
        | ConfigCommand::Schema => unreachable!("these need no daemon"),
    }
}

async fn plan(
    file: Option<PathBuf>,
    exit_code: bool,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let text = match &file {
        Some(path) => {
            // What is wrong with it is told with its line, and whether or not a daemon is there.
            config::read_and_parse(Some(path))?;
            Some(config::read_text(Some(path))?)
        }
        None => None,
    };
    let asked = ConfigText { text, ..ConfigText::default() };
    let plan = context.client.json(Call::post("/v1/config/plan").json(&asked)).await?;
    let from = format!("config {}, in force", plan["number"]);
    let to = match &file {
        Some(path) => name_of(Some(path)),
        None => "the daemon's file".to_owned(),
    };
    show_plan(&plan, &from, &to, context.as_json, context.terminal)?;
    told_by_code(&plan, exit_code)
}

async fn apply(
    base: Option<u64>,
    within: Duration,
    data: Option<&Path>,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let asked = ConfigText { base, ..ConfigText::default() };
    change("/v1/config/apply", &asked, within, data, context).await
}

async fn change(
    path: &str,
    asked: &ConfigText,
    within: Duration,
    data: Option<&Path>,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let outcome = context.client.json(Call::post(path).json(asked)).await?;
    let is_applied = outcome["is_applied"] == json!(true);
    let is_held = outcome["held"].as_array().is_some_and(|held| !held.is_empty());
    if is_held && !is_applied {
        return hand_over(&outcome, within, data, context).await;
    }
    context.show(&outcome, |context| {
        let number = &outcome["number"];
        let count = outcome["changes"].as_array().map_or(0, Vec::len);
        let text = match (is_applied, count) {
            (false, _) => format!("Nothing to do: config {number} is in force, and says the same."),
            (true, 0) => format!("config {number} is in force; it means the same as before."),
            (true, 1) => format!("config {number} is in force: 1 change."),
            (true, count) => format!("config {number} is in force: {count} changes."),
        };
        Ok(context.terminal.line(&text)?)
    })
}

/// A new process reads the whole file.
async fn hand_over(
    outcome: &Json,
    within: Duration,
    data: Option<&Path>,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let held: Vec<&str> =
        outcome["held"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    context.terminal.status(&scrub::line(&format!("{} needs a new process", held.join(", "))));
    let data = match data {
        Some(data) => data.to_owned(),
        None => crate::run::data_folder(None).map_err(|error| CommandError::UpgradeFailed {
            why: format!("{error}; it has to be asked for where the daemon runs"),
        })?,
    };
    let arguments = Upgrade::to_this_program(within);
    upgrade::follow(arguments, &data, context.as_json, context.terminal).await
}

async fn history(context: &mut Context<'_>) -> Result<(), CommandError> {
    let state = context.client.json(Call::get("/v1/config")).await?;
    let list = whole_list(&context.client, "/v1/config/history").await?;
    context.show(&list.to_json(), |context| {
        let current: ConfigView = context.client.typed(&state)?;
        let configs: Vec<EarlierConfig> = list.typed(&context.client)?;
        let mut table = Table::new(["CONFIG", "IN FORCE SINCE", "BY"]);
        for config in configs {
            let at = context.moment.clock(config.at_ms);
            table.row([config.number.to_string(), at, scrub::line(&config.by).into_owned()]);
        }
        let text = format!("{}\n\n{}", table.render(), scrub::line(&state_words(&current)));
        Ok(context.terminal.line(&text)?)
    })
}

fn state_words(current: &ConfigView) -> String {
    let number = current.number;
    let Some(path) = &current.path else {
        return format!("config {number}, the built-in one, is in force.");
    };
    match (current.file, &current.problem) {
        (FileState::Same, _) => format!("config {number} is in force, and {path} says the same."),
        (FileState::Changed, _) if current.held.is_empty() => {
            format!("config {number} is in force; {path} has changed since.")
        }
        (FileState::Changed, _) => format!(
            "config {number} is in force; {} of {path} needs a restart of the daemon: dormouse \
             config apply",
            current.held.join(", ")
        ),
        (FileState::Wrong, problem) => {
            let problem = problem.as_deref().unwrap_or("it cannot be used");
            format!("config {number} is in force and stays it: {problem}")
        }
    }
}

async fn earlier(number: u64, context: &mut Context<'_>) -> Result<(), CommandError> {
    let value = context.client.json(Call::get(format!("/v1/config/history/{number}"))).await?;
    context.show(&value, |context| {
        let config: EarlierConfig = context.client.typed(&value)?;
        let text = config.text.unwrap_or_default();
        Ok(context.terminal.line(text.trim_end_matches('\n'))?)
    })
}
