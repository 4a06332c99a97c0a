//! Messages: hand in, ask about, wait for.
//!
//! Owner: HTTP handlers. Invariants: 202 only after the commit; the same idempotency key gives the
//! same message, another body under it a 409. Absent: OpenAI's shapes.

use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dormouse_core::command::{Answer, Refusal};
use dormouse_core::event::{Attachment, Submission};
use dormouse_core::id::{AgentName, MessageId, SessionId};
use dormouse_core::limits;
use dormouse_core::record::{Idempotency, MessageState};
use dormouse_store::MessageView;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::api::body::Submit;
use crate::api::caller::Known;
use crate::api::problem::Problem;
use crate::api::shape::{Message, Submitted};
use crate::api::{Api, body, files, stream};
use crate::config::units::parse_span;
use crate::engine::request::{Request, Verdict};
use crate::hub::{Place, Update, Watcher};
use crate::keys::Caller;
use crate::random;
use crate::revisions::CANARY_KEY;

/// The longest that `?wait=` waits.
const WAIT_MAX: Duration = Duration::from_secs(120);

pub(crate) async fn submit(
    State(api): State<Api>,
    Known(caller): Known,
    Path((agent, key)): Path<(String, String)>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Problem> {
    let session = session_of(&agent, &key)?;
    let body = json_body(&headers, body)?;
    let submit = body::parse_submit(&body).map_err(body_problem)?;
    let idempotency_key = idempotency_key_of(&headers)?;
    let wants_stream = accepts_stream(&headers);
    let accepted = accept(&api, &caller, session, submit, idempotency_key, wants_stream).await?;
    if wants_stream {
        let Accepted { submitted, watcher } = accepted;
        let place = stream::place_of(&headers)?;
        return stream::respond(
            api,
            submitted.message_id,
            Some(submitted.position),
            watcher,
            place,
        )
        .await;
    }
    Ok((StatusCode::ACCEPTED, Json(accepted.submitted)).into_response())
}

pub(crate) struct Accepted {
    pub(crate) submitted: Submitted,
    pub(crate) watcher: Option<Watcher>,
}

/// Through the gate and into the engine; returns when the message is on disk.
pub(crate) async fn accept(
    api: &Api,
    caller: &Caller,
    session: SessionId,
    submit: Submit,
    idempotency_key: Option<String>,
    watch: bool,
) -> Result<Accepted, Problem> {
    api.gate.message(&caller.subject).map_err(|after| {
        api.metrics.refused_at_gate("too_fast");
        Problem::too_fast(after)
    })?;
    check_reserved(api, caller, &session)?;
    let Submit { text, attachments } = submit;
    let attachments = files::attach(api, caller, &session, attachments).await?;
    let idempotency = idempotency_key.map(|key| {
        let mut digest = Sha256::new();
        digest.update(format!("{session}\n{text}"));
        for Attachment { path, file } in &attachments {
            let file = serde_json::to_string(file).expect("a file's kind is always JSON");
            digest.update(format!("\0{path}\n{file}"));
        }
        Idempotency { key, digest: random::hex(&digest.finalize()) }
    });
    let submission = Submission {
        // The engine mints the real one, in the order of acceptance.
        id: MessageId(0),
        session: session.clone(),
        subject: caller.subject.clone(),
        is_operator: caller.is_operator,
        text,
        attachments,
        idempotency,
        prior: None,
    };
    let verdict = api.gateway.ask(watch, |ask| Request::Submit { submission, ask }).await?;
    accepted(api, session, verdict).await
}

/// Whoever could write to the session that tries new revisions could decide which are good.
fn check_reserved(api: &Api, caller: &Caller, session: &SessionId) -> Result<(), Problem> {
    let current = api.current();
    let canary = current.agent(session.agent()).and_then(|agent| agent.canary.as_ref());
    match canary.is_some() && session.key() == CANARY_KEY && !caller.is_operator {
        true => Err(Problem::refused(&Refusal::NotYourSession)),
        false => Ok(()),
    }
}

/// What the engine's verdict on a message means for its sender.
pub(crate) async fn accepted(
    api: &Api,
    session: SessionId,
    verdict: Verdict,
) -> Result<Accepted, Problem> {
    let (answer, watcher) = match verdict {
        Verdict::Answered { answer, watcher } => (answer, watcher),
        Verdict::StoreFull => return Err(Problem::store_full()),
        Verdict::NotFound => return Err(Problem::not_found("dead letter")),
        Verdict::Done | Verdict::Explained { .. } => unreachable!("no answer to a message"),
    };
    let submitted = match answer {
        Answer::Accepted { message, position } => Submitted {
            message_id: message,
            session,
            state: MessageState::Pending,
            position,
            duplicate: false,
        },
        Answer::Duplicate { message } => {
            let view = view_of(api, message).await?;
            Submitted {
                message_id: message,
                session: view.session,
                state: view.state,
                position: usize::try_from(view.position.unwrap_or(0)).unwrap_or(usize::MAX),
                duplicate: true,
            }
        }
        Answer::Refused(refusal) => return Err(Problem::refused(&refusal)),
        Answer::Requested(_)
        | Answer::Uploaded { .. }
        | Answer::CheckpointMade { .. }
        | Answer::Configured => {
            unreachable!("no answer to a message")
        }
    };
    Ok(Accepted { submitted, watcher })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShowQuery {
    wait: Option<String>,
}

pub(crate) async fn show(
    State(api): State<Api>,
    Known(caller): Known,
    Path(id): Path<String>,
    query: Result<Query<ShowQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let message = visible(&api, &caller, &id).await?;
    if accepts_stream(&headers) {
        let place = stream::place_of(&headers)?;
        return stream::respond(api, message.message_id, None, None, place).await;
    }
    let Query(query) = query.map_err(|error| {
        Problem::bad_request(error.body_text(), "the only query parameter is ?wait=30s")
    })?;
    let Some(wait) = query.wait else { return Ok(Json(message).into_response()) };
    let wait = parse_span(&wait)
        .map_err(|error| Problem::bad_request(format!("wait: {error}"), "for example ?wait=30s"))?;
    let message = wait_for_end(&api, message.message_id, wait.min(WAIT_MAX)).await?;
    Ok(Json(message).into_response())
}

/// The message as it is when it ends, or when the time is over.
async fn wait_for_end(api: &Api, id: MessageId, wait: Duration) -> Result<Message, Problem> {
    let mut watcher = api.hub.watch(id, Place::default());
    let view = view_of(api, id).await?;
    if stream::is_ended(view.state) {
        return Ok(view);
    }
    let ended = async {
        while let Some(update) = watcher.next().await {
            if matches!(update, Update::End) {
                break;
            }
        }
    };
    // Whether it ended or time ran out, the store says what is the case.
    tokio::select! {
        ended = tokio::time::timeout(wait, ended) => drop(ended),
        () = api.stops_serving() => {}
    }
    view_of(api, id).await
}

/// A message that the caller may see; any other does not exist for them.
pub(crate) async fn visible(api: &Api, caller: &Caller, id: &str) -> Result<Message, Problem> {
    let id: MessageId = id.parse().map_err(|error| {
        Problem::bad_request(format!("{error}"), "it is in the answer to your POST")
    })?;
    let stored = api.readers.read(move |reader| reader.message(id)).await?;
    match stored {
        Some(stored) if caller.may_see(&stored.subject) => Ok(shown(stored)),
        Some(_) | None => Err(Problem::not_found("message")),
    }
}

pub(crate) async fn view_of(api: &Api, id: MessageId) -> Result<Message, Problem> {
    let stored = api.readers.read(move |reader| reader.message(id)).await?;
    stored.map(shown).ok_or_else(|| Problem::not_found("message"))
}

pub(crate) fn shown(stored: MessageView) -> Message {
    Message {
        took_ms: took_ms(&stored),
        message_id: stored.id,
        session: stored.session,
        state: stored.state,
        attempts: stored.attempts,
        accepted_at_ms: stored.accepted_at.0,
        ended_at_ms: stored.ended_at.map(|at| at.0),
        position: stored.position,
        not_before_ms: stored.not_before.map(|at| at.0),
        reply: stored.reply,
        exit_code: stored.exit_code,
        cause: stored.cause,
        cause_text: stored.cause.map(|cause| cause.plain_words().to_owned()),
        detail: stored.detail,
        redrive_of: stored.redrive_of,
        redriven_as: stored.redriven_as,
    }
}

/// Only a turn's own end gives an answer or an exit code; whatever else ends a message may come
/// long after its last attempt.
fn took_ms(stored: &MessageView) -> Option<u64> {
    let is_ended_by_turn = stored.state == MessageState::Answered || stored.exit_code.is_some();
    let (leased_at, ended_at) = (stored.leased_at?, stored.ended_at?);
    is_ended_by_turn.then(|| ended_at.0.saturating_sub(leased_at.0))
}

pub(crate) fn session_of(agent: &str, key: &str) -> Result<SessionId, Problem> {
    let named = AgentName::new(agent).and_then(|agent| SessionId::of(&agent, key));
    named.map_err(|error| Problem::bad_request(error.to_string(), "mend the path of the request"))
}

pub(crate) fn accepts_stream(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/event-stream"))
}

/// The body of a request that must be JSON; a browser's form cannot pass for it.
pub(crate) fn json_body(
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Bytes, Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = kind.is_some_and(|kind| {
        kind.split(';')
            .next()
            .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    });
    if !is_json {
        return Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "json_needed",
            "the body must be JSON",
            "send `Content-Type: application/json`",
        ));
    }
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => too_large(),
        _other => Problem::bad_request("the body did not arrive whole", "send it again"),
    })
}

fn too_large() -> Problem {
    let max = limits::MESSAGE_BYTES_MAX;
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_large",
        format!("a message has at most {max} bytes"),
        "send less, or in several messages",
    )
}

pub(crate) fn body_problem(error: body::BodyError) -> Problem {
    use body::BodyError;
    let hint = "GET /openapi.json describes the body";
    match error {
        BodyError::TooLong { .. } => too_large(),
        BodyError::Unsupported { .. } => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "unsupported",
            error.to_string(),
            "leave it out",
        ),
        BodyError::TooDeep
        | BodyError::TooMany
        | BodyError::Shape(_)
        | BodyError::Empty(_)
        | BodyError::Attachment { .. } => Problem::bad_request(error.to_string(), hint),
    }
}

pub(crate) fn idempotency_key_of(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let key = value.to_str().ok().filter(|key| {
        (1..=limits::IDEMPOTENCY_KEY_BYTES_MAX).contains(&key.len())
            && key.bytes().all(|byte| byte.is_ascii_graphic())
    });
    match key {
        Some(key) => Ok(Some(key.to_owned())),
        None => Err(Problem::bad_request(
            "Idempotency-Key has 1 to 255 visible ASCII characters",
            "use for example a UUID",
        )),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use dormouse_core::cause::Cause;
    use dormouse_core::id::Subject;
    use dormouse_core::time::Wall;

    use super::*;

    /// Every fact that any message can have.
    pub(crate) fn full_view() -> MessageView {
        let subject = Subject::new("tester").unwrap();
        MessageView {
            id: MessageId(1),
            session: "python/me".parse().unwrap(),
            subject: subject.clone(),
            state: MessageState::Dead,
            bytes: 1,
            attempts: 2,
            excused: 1,
            accepted_at: Wall(1_000),
            leased_at: Some(Wall(5_000)),
            not_before: Some(Wall(4_000)),
            ended_at: Some(Wall(5_250)),
            position: Some(0),
            reply: Some("reply".to_owned()),
            exit_code: Some(1),
            cause: Some(Cause::AgentError),
            detail: Some("detail".to_owned()),
            ended_by: Some(subject),
            dropped_at: Some(Wall(9_000)),
            redriven_as: Some(MessageId(2)),
            redrive_of: Some(MessageId(3)),
        }
    }

    #[test]
    fn how_long_its_turn_took_is_said_where_a_turn_ended_it() {
        let ended = |state, exit_code| {
            let view = MessageView { state, exit_code, ..full_view() };
            shown(view).took_ms
        };
        assert_eq!(ended(MessageState::Answered, None), Some(250));
        assert_eq!(ended(MessageState::Dead, Some(1)), Some(250));
        assert_eq!(ended(MessageState::Dead, None), None, "a death may have ended it, or a wait");
        assert_eq!(ended(MessageState::Cancelled, None), None);
        let running = MessageView { ended_at: None, ..full_view() };
        assert_eq!(shown(running).took_ms, None);
        let back = MessageView { ended_at: Some(Wall(4_999)), ..full_view() };
        assert_eq!(shown(back).took_ms, Some(0), "the clock was set back meanwhile");
    }
}
