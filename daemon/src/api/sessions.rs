//! Sessions: pages of them, one of them, its journal, its logs, and waking, stopping, restarting.
//!
//! Owner: HTTP handlers. Invariant: a session of another subject looks as if it did not exist.

use std::io;
use std::path::Path as FilePath;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use dormouse_core::command::{Answer, RequestOutcome};
use dormouse_core::event::SessionRequest;
use dormouse_core::id::{AgentName, SessionId};
use dormouse_core::journal::Decision;
use dormouse_core::session::phase::Phase;
use dormouse_store::{SessionFilter, SessionView as StoredView};
use futures_util::stream::unfold;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

use crate::api::Api;
use crate::api::caller::Known;
use crate::api::messages::session_of;
use crate::api::problem::Problem;
use crate::api::shape::{JournalRow, Page, Requested, SessionView};
use crate::engine::request::{Request, Verdict};
use crate::keys::Caller;

pub(crate) const PAGE_DEFAULT: u32 = 50;
pub(crate) const PAGE_MAX: u32 = 500;
const LOG_LINES_DEFAULT: usize = 200;
const LOG_LINES_MAX: usize = 10_000;
const LOG_BYTES_MAX: u64 = 4 << 20;
/// How often a followed log is looked at; a log is for people, and nobody waits on it.
const LOG_LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    agent: Option<AgentName>,
    phase: Option<Phase>,
    before: Option<String>,
    limit: Option<u32>,
}

pub(crate) fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Problem> {
    let wrong = |error: QueryRejection| {
        Problem::bad_request(error.body_text(), "GET /openapi.json lists the parameters")
    };
    query.map(|query| query.0).map_err(wrong)
}

pub(crate) fn page_size(limit: Option<u32>) -> Result<u32, Problem> {
    match limit {
        None => Ok(PAGE_DEFAULT),
        Some(limit @ 1..=PAGE_MAX) => Ok(limit),
        Some(_) => Err(Problem::bad_request("limit must be 1 to 500", "ask for less at a time")),
    }
}

/// Everything for an operator, their own for everybody else.
pub(crate) fn own(caller: &Caller) -> Option<dormouse_core::id::Subject> {
    (!caller.is_operator).then(|| caller.subject.clone())
}

pub(crate) async fn list(
    State(api): State<Api>,
    Known(caller): Known,
    asked: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Page<SessionView>>, Problem> {
    let asked = query(asked)?;
    let limit = page_size(asked.limit)?;
    let filter = SessionFilter { subject: own(&caller), agent: asked.agent, phase: asked.phase };
    let before = asked.before;
    let page =
        api.readers.read(move |reader| reader.sessions(&filter, before.as_deref(), limit)).await?;
    let items = page.items.into_iter().map(|stored| shown(&api, stored)).collect();
    Ok(Json(Page { items, next: page.next }))
}

pub(crate) fn shown(api: &Api, stored: StoredView) -> SessionView {
    let record = stored.record;
    SessionView {
        syncing: api.files.progress_of(&record.id),
        session: record.id,
        subject: record.subject,
        phase: record.phase,
        generation: record.generation,
        waiting: stored.waiting,
        failures: record.failures,
        last_failure: record.last_failure,
        next_start_at_ms: record.backoff_until.map(|at| at.0),
        created_at_ms: record.created_at.0,
        start_took_ms: record.start_took_ms,
    }
}

/// A session that the caller may see.
pub(crate) async fn known(
    api: &Api,
    caller: &Caller,
    id: &SessionId,
) -> Result<StoredView, Problem> {
    let asked = id.clone();
    let stored = api.readers.read(move |reader| reader.session(&asked)).await?;
    match stored {
        Some(stored) if caller.may_see(&stored.record.subject) => Ok(stored),
        Some(_) | None => Err(Problem::not_found("session")),
    }
}

pub(crate) type AgentAndKey = Path<(String, String)>;

pub(crate) async fn show(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key)): AgentAndKey,
) -> Result<Json<SessionView>, Problem> {
    let id = session_of(&agent, &key)?;
    known(&api, &caller, &id).await.map(|stored| Json(shown(&api, stored)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageQuery {
    before: Option<i64>,
    limit: Option<u32>,
}

pub(crate) async fn journal(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key)): AgentAndKey,
    asked: Result<Query<PageQuery>, QueryRejection>,
) -> Result<Json<Page<JournalRow>>, Problem> {
    let id = session_of(&agent, &key)?;
    let asked = query(asked)?;
    let limit = page_size(asked.limit)?;
    known(&api, &caller, &id).await?;
    let rows = api.readers.read(move |reader| reader.journal(&id, asked.before, limit)).await?;
    let is_full = rows.len() == limit as usize;
    let next = rows.last().filter(|_| is_full).map(|(row, _)| row.to_string());
    let items = rows.into_iter().map(|(_, decision)| journal_row(decision)).collect();
    Ok(Json(Page { items, next }))
}

pub(crate) fn journal_row(decision: Decision) -> JournalRow {
    JournalRow {
        at_ms: decision.at.0,
        generation: decision.generation,
        from: decision.from,
        to: decision.to,
        text: decision.because.to_string(),
        because: serde_json::to_value(&decision.because).expect("a decision is plain data"),
    }
}

pub(crate) async fn wake(
    state: State<Api>,
    caller: Known,
    path: AgentAndKey,
) -> Result<Json<Requested>, Problem> {
    request(state, caller, path, SessionRequest::Wake).await
}

pub(crate) async fn stop(
    state: State<Api>,
    caller: Known,
    path: AgentAndKey,
) -> Result<Json<Requested>, Problem> {
    request(state, caller, path, SessionRequest::Stop).await
}

pub(crate) async fn restart(
    state: State<Api>,
    caller: Known,
    path: AgentAndKey,
) -> Result<Json<Requested>, Problem> {
    request(state, caller, path, SessionRequest::Restart).await
}

async fn request(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key)): AgentAndKey,
    what: SessionRequest,
) -> Result<Json<Requested>, Problem> {
    let session = session_of(&agent, &key)?;
    let asked = session.clone();
    // A session begins with its first message, whose sender owns it.
    known(&api, &caller, &asked).await?;
    let by = caller.subject;
    let verdict = api.gateway.ask(false, |ask| Request::Session { session, what, by, ask }).await?;
    requested(verdict).map(Json)
}

/// What the engine's verdict on an operator's request is in JSON.
pub(crate) fn requested(verdict: Verdict) -> Result<Requested, Problem> {
    let answer = match verdict {
        Verdict::Answered { answer, .. } => answer,
        Verdict::StoreFull => return Err(Problem::store_full()),
        Verdict::NotFound | Verdict::Done | Verdict::Explained { .. } => {
            unreachable!("no answer to a request about a session")
        }
    };
    let outcome = match answer {
        Answer::Requested(outcome) => outcome,
        Answer::Refused(refusal) => return Err(Problem::refused(&refusal)),
        Answer::Accepted { .. }
        | Answer::Duplicate { .. }
        | Answer::Uploaded { .. }
        | Answer::CheckpointMade { .. }
        | Answer::Configured => {
            unreachable!("a request is not answered as a message is")
        }
    };
    match outcome {
        RequestOutcome::Accepted { waiting } => {
            Ok(Requested { outcome: "accepted".to_owned(), because: None, waiting })
        }
        RequestOutcome::Ignored(because) => Ok(Requested {
            outcome: "ignored".to_owned(),
            because: Some(ignored_code(because).to_owned()),
            waiting: 0,
        }),
        RequestOutcome::Denied(because) => Err(Problem::denied(because)),
    }
}

fn ignored_code(because: dormouse_core::command::IgnoredBecause) -> &'static str {
    use dormouse_core::command::IgnoredBecause;
    match because {
        IgnoredBecause::AlreadyAwake => "already_awake",
        IgnoredBecause::AlreadyStarting => "already_starting",
        IgnoredBecause::AlreadyAsleep => "already_asleep",
        IgnoredBecause::AlreadyStopping => "already_stopping",
        IgnoredBecause::AlreadyEnded => "already_ended",
        IgnoredBecause::AlreadySo => "already_so",
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogsQuery {
    lines: Option<usize>,
    #[serde(default)]
    follow: bool,
}

pub(crate) async fn logs(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key)): AgentAndKey,
    asked: Result<Query<LogsQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let id = session_of(&agent, &key)?;
    let asked = query(asked)?;
    let lines = asked.lines.unwrap_or(LOG_LINES_DEFAULT).min(LOG_LINES_MAX);
    known(&api, &caller, &id).await?;
    let folder = api.drivers.of(&id).logs_of(&id);
    let Some(folder) = folder else { return Err(Problem::not_found("log")) };
    let path = folder.join(dormouse_bridge::LOG_FILE);
    let (tail, end) = tail_of(&path, lines).await.map_err(|error| {
        tracing::warn!(%error, path = %path.display(), "a log could not be read");
        Problem::internal()
    })?;
    let body = match asked.follow {
        false => Body::from(tail),
        true => follow(path, tail, end),
    };
    let mut response = body.into_response();
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

/// The last lines, and where the file ended. A log that is not there yet is empty.
async fn tail_of(path: &FilePath, lines: usize) -> io::Result<(Vec<u8>, u64)> {
    let mut file = match tokio::fs::File::open(path).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    let end = file.metadata().await?.len();
    let start = end.saturating_sub(LOG_BYTES_MAX);
    file.seek(io::SeekFrom::Start(start)).await?;
    let mut bytes = Vec::new();
    file.take(end - start).read_to_end(&mut bytes).await?;
    Ok((last_lines(&bytes, lines).to_vec(), end))
}

fn last_lines(bytes: &[u8], lines: usize) -> &[u8] {
    let mut starts = bytes
        .iter()
        .enumerate()
        .rev()
        .skip(1)
        .filter(|(_, byte)| **byte == b'\n')
        .map(|(place, _)| place + 1);
    match lines.checked_sub(1) {
        None => &[],
        Some(before) => &bytes[starts.nth(before).unwrap_or(0)..],
    }
}

fn follow(path: std::path::PathBuf, tail: Vec<u8>, end: u64) -> Body {
    let first = Some(Bytes::from(tail));
    let stream = unfold((first, end), move |(first, end)| {
        let path = path.clone();
        async move {
            if let Some(bytes) = first {
                return Some((Ok::<_, io::Error>(bytes), (None, end)));
            }
            let (bytes, end) = appended(&path, end).await;
            Some((bytes, (None, end)))
        }
    });
    Body::from_stream(stream)
}

/// Waits for the file to grow; a file that got shorter was rotated, and begins anew.
async fn appended(path: &FilePath, end: u64) -> (io::Result<Bytes>, u64) {
    let mut end = end;
    loop {
        tokio::time::sleep(LOG_LOOK_EVERY).await;
        let length = match tokio::fs::metadata(path).await {
            Ok(file) => file.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return (Err(error), end),
        };
        if length < end {
            end = 0;
        }
        if length == end {
            continue;
        }
        let read = async {
            let mut file = tokio::fs::File::open(path).await?;
            file.seek(io::SeekFrom::Start(end)).await?;
            let mut bytes = Vec::new();
            file.take((length - end).min(LOG_BYTES_MAX)).read_to_end(&mut bytes).await?;
            Ok(bytes)
        };
        return match read.await {
            Ok(bytes) => {
                end += bytes.len() as u64;
                (Ok(Bytes::from(bytes)), end)
            }
            Err(error) => (Err(error), end),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_cut_at_line_ends() {
        let text = b"one\ntwo\nthree\n";
        assert_eq!(last_lines(text, 1), b"three\n");
        assert_eq!(last_lines(text, 2), b"two\nthree\n");
        assert_eq!(last_lines(text, 9), text);
        assert_eq!(last_lines(text, 0), b"");
        assert_eq!(last_lines(b"", 3), b"");
    }
}
