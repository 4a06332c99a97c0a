//! Queue, dead letters, agents and keys.
//!
//! Owner: HTTP handlers. Invariants: a dead letter is redriven once, and a repeat gives the same
//! new message; keys are an operator's business, and a token is shown once.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use dormouse_core::event::RolloutRequest;
use dormouse_core::id::{AgentName, MessageId, SessionId};
use dormouse_core::record::MessageState;
use dormouse_store::{KeyRecord, MessageFilter, QueuedView, Reader};
use serde::Deserialize;

use crate::api::Api;
use crate::api::caller::{Known, Operator};
use crate::api::messages::{accepted, json_body, shown, visible};
use crate::api::problem::Problem;
use crate::api::sessions::{own, page_size, query, requested};
use crate::api::shape::{
    AgentView, CreateKey, KeyView, Message, Page, QueueItem, Requested, Submitted,
};
use crate::api::why::last_life;
use crate::config::DriverKind;
use crate::engine::clock::wall_now;
use crate::engine::request::{KeyChange, Request, Verdict};
use crate::keys::{self, Caller, SCOPE_OPERATOR};
use crate::revisions::rollout_words;

/// Bytes of a message's text in a list.
const EXCERPT_BYTES: usize = 200;
const KEY_NAME_BYTES_MAX: usize = 100;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueueQuery {
    session: Option<SessionId>,
    before: Option<MessageId>,
    limit: Option<u32>,
}

fn page_of(items: Vec<QueuedView>, limit: u32, excerpt: bool) -> Page<QueueItem> {
    let is_full = items.len() == limit as usize;
    let next = items.last().filter(|_| is_full).map(|item| item.message.id.to_string());
    let items = items.into_iter().map(|item| queue_item(item, excerpt)).collect();
    Page { items, next }
}

fn queue_item(item: QueuedView, excerpt: bool) -> QueueItem {
    let mut text = item.text;
    if excerpt && text.len() > EXCERPT_BYTES {
        text.truncate(text.floor_char_boundary(EXCERPT_BYTES));
        text.push('…');
    }
    QueueItem { message: shown(item.message), text, last_life: None }
}

pub(crate) async fn queue(
    State(api): State<Api>,
    Known(caller): Known,
    asked: Result<Query<QueueQuery>, QueryRejection>,
) -> Result<Json<Page<QueueItem>>, Problem> {
    let asked = query(asked)?;
    let limit = page_size(asked.limit)?;
    let filter = MessageFilter { subject: own(&caller), session: asked.session };
    let items = api.readers.read(move |reader| reader.queue(&filter, asked.before, limit)).await?;
    Ok(Json(page_of(items, limit, true)))
}

pub(crate) async fn dead_letters(
    State(api): State<Api>,
    Known(caller): Known,
    asked: Result<Query<QueueQuery>, QueryRejection>,
) -> Result<Json<Page<QueueItem>>, Problem> {
    let asked = query(asked)?;
    let limit = page_size(asked.limit)?;
    let filter = MessageFilter { subject: own(&caller), session: asked.session };
    let items =
        api.readers.read(move |reader| reader.dead_letters(&filter, asked.before, limit)).await?;
    Ok(Json(page_of(items, limit, true)))
}

async fn dead(api: &Api, caller: &Caller, id: &str) -> Result<Message, Problem> {
    let message = visible(api, caller, id).await?;
    match message.state {
        MessageState::Dead => Ok(message),
        MessageState::Pending
        | MessageState::Leased
        | MessageState::Answered
        | MessageState::Cancelled => Err(Problem::not_found("dead letter")),
    }
}

pub(crate) async fn dead_letter(
    State(api): State<Api>,
    Known(caller): Known,
    Path(id): Path<String>,
) -> Result<Json<QueueItem>, Problem> {
    let message = dead(&api, &caller, &id).await?;
    let id = message.message_id;
    let text = api.readers.read(move |reader| reader.message_text(id)).await?;
    let text = text.ok_or_else(|| Problem::not_found("dead letter"))?;
    let last_life = last_life(&api, &message).await?;
    Ok(Json(QueueItem { message, text, last_life }))
}

pub(crate) async fn redrive(
    State(api): State<Api>,
    Known(caller): Known,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<Submitted>), Problem> {
    let dead = dead(&api, &caller, &id).await?;
    let (message, by) = (dead.message_id, caller.subject);
    let verdict = api.gateway.ask(false, |ask| Request::Redrive { message, by, ask }).await?;
    let accepted = accepted(&api, dead.session, verdict).await?;
    Ok((StatusCode::ACCEPTED, Json(accepted.submitted)))
}

pub(crate) async fn drop_dead(
    State(api): State<Api>,
    Known(caller): Known,
    Path(id): Path<String>,
) -> Result<Json<Requested>, Problem> {
    let message = dead(&api, &caller, &id).await?;
    drop_message(&api, caller, message, true).await
}

pub(crate) async fn drop_pending(
    State(api): State<Api>,
    Known(caller): Known,
    Path(id): Path<String>,
) -> Result<Json<Requested>, Problem> {
    let message = visible(&api, &caller, &id).await?;
    drop_message(&api, caller, message, false).await
}

async fn drop_message(
    api: &Api,
    caller: Caller,
    message: Message,
    is_dead: bool,
) -> Result<Json<Requested>, Problem> {
    let (session, by) = (message.session, caller.subject);
    let message = message.message_id;
    let verdict =
        api.gateway.ask(false, |ask| Request::Drop { session, message, is_dead, by, ask }).await?;
    requested(verdict).map(Json)
}

pub(crate) async fn agents(
    State(api): State<Api>,
    Known(_caller): Known,
) -> Result<Json<Vec<AgentView>>, Problem> {
    let read = |reader: &mut Reader| Ok((reader.sessions_by_agent()?, reader.rollouts()?));
    let (counts, rollouts) = api.readers.read(read).await?;
    let current = api.current();
    let views = current.config().agents.iter().map(|(name, agent)| {
        let count = counts.get(name.as_str()).copied().unwrap_or_default();
        AgentView {
            agent: name.to_string(),
            driver: match agent.driver {
                DriverKind::Process => "process".to_owned(),
                DriverKind::Fake => "fake".to_owned(),
            },
            adapter: agent.adapter.name().to_owned(),
            command: api.drivers.agents.command_of(agent),
            awake: count.awake,
            sessions: count.sessions,
            revision: rollouts.get(name).map_or(0, |rollout| rollout.target().0),
            rollout: rollouts.get(name).and_then(rollout_words),
            lacks: api.drivers.agents.lacks(agent),
        }
    });
    Ok(Json(views.collect()))
}

pub(crate) async fn rollout(
    State(api): State<Api>,
    Operator(caller): Operator,
    Path((agent, what)): Path<(String, String)>,
) -> Result<Json<Requested>, Problem> {
    let agent = AgentName::new(&agent)
        .ok()
        .filter(|agent| api.current().agent(agent.as_str()).is_some())
        .ok_or_else(|| Problem::not_found("agent"))?;
    let known = serde_json::from_value(serde_json::Value::String(what));
    let what: RolloutRequest = known.map_err(|_| {
        Problem::bad_request(
            "a rollout cannot do that",
            "end the path with pause, resume, abort or retry",
        )
    })?;
    let by = caller.subject;
    let verdict = api.gateway.ask(false, |ask| Request::Rollout { agent, what, by, ask }).await?;
    requested(verdict).map(Json)
}

fn key_view(key: &KeyRecord, token: Option<String>) -> KeyView {
    KeyView {
        id: key.id.clone(),
        name: key.name.clone(),
        subject: key.subject.clone(),
        scopes: key.scopes.clone(),
        created_at_ms: key.created_at.0,
        revoked_at_ms: key.revoked_at.map(|at| at.0),
        token,
    }
}

pub(crate) async fn keys(
    State(api): State<Api>,
    Operator(_caller): Operator,
) -> Result<Json<Vec<KeyView>>, Problem> {
    let keys = api.readers.read(|reader| reader.keys()).await?;
    Ok(Json(keys.iter().map(|key| key_view(key, None)).collect()))
}

pub(crate) async fn create_key(
    State(api): State<Api>,
    Operator(_caller): Operator,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let body = json_body(&headers, body)?;
    let asked: CreateKey = serde_json::from_slice(&body).map_err(|error| {
        Problem::bad_request(error.to_string(), "send name, subject and scopes")
    })?;
    let name = asked.name.trim();
    if name.is_empty() || name.len() > KEY_NAME_BYTES_MAX || name.chars().any(char::is_control) {
        let hint = "a name tells you later where the key is used, for example laptop";
        return Err(Problem::bad_request("name has 1 to 100 bytes of plain text", hint));
    }
    if let Some(unknown) = asked.scopes.iter().find(|scope| *scope != SCOPE_OPERATOR) {
        let hint = "the only scope is operator; without it a key reaches its own sessions";
        return Err(Problem::bad_request(format!("there is no scope '{unknown}'"), hint));
    }
    let (key, token) = keys::make(name.to_owned(), asked.subject, asked.scopes, wall_now());
    match api.gateway.change_key(KeyChange::Insert(key.clone())).await? {
        Verdict::Done => {}
        Verdict::StoreFull => return Err(Problem::store_full()),
        Verdict::NotFound | Verdict::Answered { .. } | Verdict::Explained { .. } => {
            unreachable!("a new key is made or there is no room")
        }
    }
    api.keys.add(&key);
    Ok((StatusCode::CREATED, Json(key_view(&key, Some(token)))).into_response())
}

pub(crate) async fn revoke_key(
    State(api): State<Api>,
    Operator(_caller): Operator,
    Path(id): Path<String>,
) -> Result<StatusCode, Problem> {
    match api.gateway.change_key(KeyChange::Revoke(id.clone())).await? {
        Verdict::Done => {
            api.keys.remove(&id);
            Ok(StatusCode::NO_CONTENT)
        }
        Verdict::NotFound => Err(Problem::not_found("valid key")),
        Verdict::StoreFull => Err(Problem::store_full()),
        Verdict::Answered { .. } | Verdict::Explained { .. } => {
            unreachable!("no answer to a change of keys")
        }
    }
}
