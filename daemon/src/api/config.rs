//! The config over HTTP, for operators: what is in force, what would change, the history.
//!
//! Owner: these handlers. Invariants: operators only; a change that names its base does nothing
//! when another came between; a text that is wrong reaches no file. Absent: what a change does
//! (`reload`).

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Api;
use super::caller::Operator;
use super::document::{Operation, PLAIN};
use super::messages::json_body;
use super::problem::Problem;
use crate::reload::{OnRestart, Outcome, ReloadError, Terms, Wanted};
use crate::report;

const CONFIGS_MAX: u64 = 100;

pub(crate) const SHOW: &[Operation] = &[Operation {
    summary: "The config in force, and whether the file says the same. Operators only.",
    ..PLAIN
}];
pub(crate) const PLAN: &[Operation] = &[Operation {
    method: "post",
    summary: "What the file, or another text, would change; nothing does. Operators only.",
    body: Some("ConfigText"),
    answers: &[(200, "the changes, each with its effect"), (422, "the text is wrong, and where")],
    ..PLAIN
}];
const CHANGED: &[(u16, &str)] = &[
    (200, "is_applied, the changes, and what is held for a restart of the daemon"),
    (409, "another config came into force meanwhile, or the file cannot be written"),
    (422, "the text is wrong, and where; nothing has changed"),
];
pub(crate) const APPLY: &[Operation] = &[Operation {
    method: "post",
    summary: "Put the file, or another text, into force. A text is written to the file first. \
              Operators only.",
    body: Some("ConfigText"),
    answers: CHANGED,
    ..PLAIN
}];
pub(crate) const ROLLBACK: &[Operation] = &[Operation {
    method: "post",
    summary: "Write an earlier config to the file and put it into force; the one before, if no \
              number is given. Operators only.",
    body: Some("ConfigText"),
    answers: CHANGED,
    ..PLAIN
}];
pub(crate) const HISTORY: &[Operation] = &[Operation {
    summary: "The configs that were in force, the newest first. Operators only.",
    ..PLAIN
}];
pub(crate) const EARLIER: &[Operation] = &[Operation {
    summary: "One of them, with its text. Operators only.",
    answers: &[(200, "number, at_ms, by, text"), (404, "it is not kept")],
    ..PLAIN
}];

/// `GET /v1/config`
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConfigView {
    pub(crate) number: u64,
    pub(crate) at_ms: u64,
    pub(crate) by: String,
    /// Absent: the built-in config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<String>,
    pub(crate) text: String,
    pub(crate) file: FileState,
    /// Where the file is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) problem: Option<String>,
    /// What waits for a restart of the daemon.
    pub(crate) held: Vec<String>,
}

/// What the file says beside what is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FileState {
    Same,
    Changed,
    Wrong,
}

/// An item of `GET /v1/config/history`, or one of them with its text.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EarlierConfig {
    pub(crate) number: u64,
    pub(crate) at_ms: u64,
    pub(crate) by: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
}

/// The body of a plan, an apply or a rollback.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ConfigText {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) base: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) hold: bool,
}

/// For the document.
pub(crate) fn text_schema() -> Value {
    let integer = |words: &str| json!({"type": "integer", "description": words});
    let hold = "what needs a restart of the daemon waits, and the rest comes into force";
    json!({
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "text": {"type": "string", "description": "else the daemon's file as it is"},
            "number": integer("an earlier config"),
            "base": integer("the config that must be in force now"),
            "hold": {"type": "boolean", "description": hold},
        },
    })
}

pub(crate) async fn show(
    State(api): State<Api>,
    Operator(_caller): Operator,
) -> Result<Json<ConfigView>, Problem> {
    let current = api.current();
    let (file, problem, held) = match api.reload.plan(Wanted::File).await {
        Ok(outcome) if outcome.plan.is_empty() => (FileState::Same, None, Vec::new()),
        Ok(outcome) => (FileState::Changed, None, outcome.held),
        Err(error) => (FileState::Wrong, Some(report::chain(&error)), Vec::new()),
    };
    Ok(Json(ConfigView {
        number: current.number,
        at_ms: current.at.0,
        by: current.by.clone(),
        path: current.loaded.path.as_ref().map(|path| path.display().to_string()),
        text: current.loaded.text.clone(),
        file,
        problem,
        held,
    }))
}

pub(crate) async fn plan(
    State(api): State<Api>,
    Operator(_caller): Operator,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Problem> {
    let asked = asked(&headers, body)?;
    let outcome = api.reload.plan(wanted(&asked, Wanted::File)?).await;
    outcome.map(|outcome| Json(shown(&outcome))).map_err(problem)
}

pub(crate) async fn apply(
    State(api): State<Api>,
    Operator(caller): Operator,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Problem> {
    let asked = asked(&headers, body)?;
    let wanted = wanted(&asked, Wanted::File)?;
    change(&api, wanted, &asked, format!("apply, {}", caller.subject)).await
}

pub(crate) async fn rollback(
    State(api): State<Api>,
    Operator(caller): Operator,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Problem> {
    let asked = asked(&headers, body)?;
    let before = Wanted::Earlier(api.current().number.saturating_sub(1));
    let wanted = wanted(&asked, before)?;
    let Wanted::Earlier(number) = wanted else {
        let hint = "send number, or nothing for the config before; apply takes a text";
        return Err(Problem::bad_request("a rollback goes to an earlier config", hint));
    };
    change(&api, wanted, &asked, format!("rollback to {number}, {}", caller.subject)).await
}

async fn change(
    api: &Api,
    wanted: Wanted,
    asked: &ConfigText,
    by: String,
) -> Result<Json<Value>, Problem> {
    let on_restart = if asked.hold { OnRestart::Hold } else { OnRestart::WaitWhole };
    let terms = Terms { by, base: asked.base, on_restart };
    // A caller who goes away meanwhile leaves a change that is whole.
    let reload = std::sync::Arc::clone(&api.reload);
    let applied = tokio::spawn(async move { reload.apply(wanted, terms).await });
    let outcome = applied.await.map_err(|_| Problem::internal())?;
    outcome.map(|outcome| Json(shown(&outcome))).map_err(problem)
}

pub(crate) async fn history(
    State(api): State<Api>,
    Operator(_caller): Operator,
) -> Result<Json<Vec<EarlierConfig>>, Problem> {
    let configs = api.readers.read(|reader| reader.configs(CONFIGS_MAX)).await?;
    let view = |config: dormouse_store::ConfigRecord| EarlierConfig {
        number: config.number,
        at_ms: config.at.0,
        by: config.by,
        text: None,
    };
    Ok(Json(configs.into_iter().map(view).collect()))
}

pub(crate) async fn earlier(
    State(api): State<Api>,
    Operator(_caller): Operator,
    Path(number): Path<String>,
) -> Result<Json<EarlierConfig>, Problem> {
    let number = number.parse().map_err(|_| Problem::not_found("config"))?;
    let config = api.readers.read(move |reader| reader.config(number)).await?;
    let config = config.ok_or_else(|| Problem::not_found("config"))?;
    Ok(Json(EarlierConfig {
        number: config.number,
        at_ms: config.at.0,
        by: config.by,
        text: Some(config.text),
    }))
}

fn asked(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<ConfigText, Problem> {
    let body = json_body(headers, body)?;
    serde_json::from_slice(&body).map_err(|error| {
        Problem::bad_request(error.to_string(), "send {}, or text or number, base and hold")
    })
}

fn wanted(asked: &ConfigText, standard: Wanted) -> Result<Wanted, Problem> {
    match (&asked.text, asked.number) {
        (None, None) => Ok(standard),
        (Some(text), None) => Ok(Wanted::Text(text.clone())),
        (None, Some(number)) => Ok(Wanted::Earlier(number)),
        (Some(_), Some(_)) => {
            let hint = "a text is new, a number is of the history";
            Err(Problem::bad_request("send a text or a number, not both", hint))
        }
    }
}

/// A plan's JSON, with what became of it.
fn shown(outcome: &Outcome) -> Value {
    let mut shown = outcome.plan.to_json();
    shown["number"] = json!(outcome.number);
    shown["held"] = json!(outcome.held);
    shown["is_applied"] = json!(outcome.is_applied);
    shown
}

fn problem(error: ReloadError) -> Problem {
    match error {
        ReloadError::Config(_) | ReloadError::Files(_) => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "config_wrong",
            report::chain(&error),
            "correct it; the config in force stays as it is",
        ),
        ReloadError::Moved { .. } => Problem::new(
            StatusCode::CONFLICT,
            "config_moved",
            error.to_string(),
            "plan again: somebody else has put a config into force meanwhile",
        ),
        ReloadError::NoSuchConfig { .. } => Problem::not_found("config"),
        ReloadError::BuiltIn | ReloadError::Write { .. } => Problem::new(
            StatusCode::CONFLICT,
            "config_not_writable",
            report::chain(&error),
            "write the text where the file comes from, and the daemon will see it",
        ),
        ReloadError::StoreFull => Problem::store_full(),
        ReloadError::History(problem) => *problem,
        ReloadError::Engine(error) => error.into(),
    }
}
