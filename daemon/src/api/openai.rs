//! The OpenAI-compatible front: `POST /v1/chat/completions`, `GET /v1/models`.
//!
//! `model` is the agent; the session is the `Dormouse-Session` header, else `user`, else `main`.
//! The session remembers, so only the newest user message is handed on; what else was in the
//! request is named in `dormouse.left_out`.
//! Owner: HTTP handlers. Invariants: the same durable way in as every message; errors have OpenAI's
//! shape; texts of two attempts are never joined: a stream whose attempt failed after its first
//! piece ends with an error.
//! Absent: token counts, which only the agent knows.

use std::convert::Infallible;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use dormouse_core::id::MessageId;
use dormouse_core::record::MessageState;
use futures_util::stream::unfold;
use serde_json::{Value, json};

use crate::api::body::{BodyError, Chat, Submit, parse_chat};
use crate::api::caller::Known;
use crate::api::messages::{
    accept, body_problem, idempotency_key_of, json_body, session_of, view_of,
};
use crate::api::problem::Problem;
use crate::api::shape::{ErrorDetail, Message};
use crate::api::stream::{KEEP_ALIVE_AFTER, failure_of};
use crate::api::{Api, words};
use crate::hub::{Place, Update, Watcher};

const SESSION_HEADER: &str = "dormouse-session";
const SESSION_DEFAULT: &str = "main";

/// A problem in OpenAI's shape.
pub(crate) struct OpenaiProblem(Problem);

impl From<Problem> for OpenaiProblem {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for OpenaiProblem {
    fn into_response(self) -> Response {
        let Problem { status, code, message, hint, .. } = &self.0;
        let kind = match status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _other => "invalid_request_error",
        };
        let message = format!("{message}: {hint}");
        self.0.respond_with(&json!({
            "error": { "message": message, "type": kind, "param": null, "code": code }
        }))
    }
}

pub(crate) async fn models(
    State(api): State<Api>,
    known: Result<Known, Problem>,
) -> Result<Json<Value>, OpenaiProblem> {
    known?;
    let models: Vec<Value> = api
        .current()
        .agent_names()
        .map(|agent| {
            json!({ "id": agent.as_str(), "object": "model", "created": 0, "owned_by": "dormouse" })
        })
        .collect();
    Ok(Json(json!({ "object": "list", "data": models })))
}

pub(crate) async fn chat(
    State(api): State<Api>,
    known: Result<Known, Problem>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, OpenaiProblem> {
    let Known(caller) = known?;
    let body = json_body(&headers, body)?;
    let chat = parse_chat(&body).map_err(chat_problem)?;
    let key = match headers.get(SESSION_HEADER) {
        Some(value) => value.to_str().unwrap_or_default().to_owned(),
        None => chat.user.clone().unwrap_or_else(|| SESSION_DEFAULT.to_owned()),
    };
    let session = session_of(&chat.model, &key)?;
    let idempotency_key = idempotency_key_of(&headers)?;
    let submit = Submit { text: chat.text.clone(), attachments: Vec::new() };
    let accepted = accept(&api, &caller, session, submit, idempotency_key, true).await?;
    let id = accepted.submitted.message_id;
    let watcher = accepted.watcher.unwrap_or_else(|| api.hub.watch(id, Place::default()));
    let mut response = match chat.stream {
        true => streamed(api, id, chat, watcher),
        false => whole(&api, id, &chat, watcher).await?,
    };
    let value = HeaderValue::from_str(&id.to_string()).expect("an id is plain ASCII");
    response.headers_mut().insert("dormouse-message", value);
    Ok(response)
}

fn chat_problem(error: BodyError) -> Problem {
    match error {
        BodyError::Empty(_) => Problem::bad_request(
            "messages has no user message with text",
            "add one: {\"role\": \"user\", \"content\": \"…\"}",
        ),
        BodyError::TooDeep
        | BodyError::TooMany
        | BodyError::Shape(_)
        | BodyError::TooLong { .. }
        | BodyError::Unsupported { .. }
        | BodyError::Attachment { .. } => body_problem(error),
    }
}

/// Waits for the end, and answers in one piece.
async fn whole(
    api: &Api,
    id: MessageId,
    chat: &Chat,
    mut watcher: Watcher,
) -> Result<Response, OpenaiProblem> {
    let mut view = view_of(api, id).await?;
    if !crate::api::stream::is_ended(view.state) {
        let ended = async {
            while let Some(update) = watcher.next().await {
                if matches!(update, Update::End) {
                    break;
                }
            }
        };
        tokio::select! {
            () = ended => {}
            () = api.is_out_of_time() => return Err(OpenaiProblem(Problem::daemon_ending(id))),
        }
        view = view_of(api, id).await?;
    }
    if view.state != MessageState::Answered {
        return Err(OpenaiProblem(failed(&view)));
    }
    let reply = view.reply.unwrap_or_default();
    let choice = json!({
        "index": 0,
        "message": { "role": "assistant", "content": reply, "refusal": null },
        "logprobs": null,
        "finish_reason": "stop",
    });
    let mut body = envelope(id, chat, "chat.completion", view.accepted_at_ms);
    body["choices"] = json!([choice]);
    body["dormouse"] = json!({ "message_id": id, "left_out": chat.left_out });
    Ok((StatusCode::OK, Json(body)).into_response())
}

fn failed(view: &Message) -> Problem {
    let code = view.cause.map_or("cancelled", |cause| cause.code());
    let hint = format!("`dormouse why {}` has the evidence", view.message_id);
    Problem::new(StatusCode::BAD_GATEWAY, code, words::failure(view), hint)
}

fn envelope(id: MessageId, chat: &Chat, object: &str, created_ms: u64) -> Value {
    json!({
        "id": id,
        "object": object,
        "created": created_ms / 1_000,
        "model": chat.model,
    })
}

/// What a chunk stream does next.
enum Step {
    Begin,
    Watch,
    Done,
    End,
}

struct Chunks {
    api: Api,
    id: MessageId,
    chat: Chat,
    watcher: Watcher,
    created_ms: u64,
    /// The attempt whose text has begun to go out.
    attempt: u32,
    step: Step,
}

fn streamed(api: Api, id: MessageId, chat: Chat, watcher: Watcher) -> Response {
    let created_ms = crate::engine::clock::wall_now().0;
    let chunks = Chunks { api, id, chat, watcher, created_ms, attempt: 0, step: Step::Begin };
    let stream = unfold(chunks, |mut chunks| async move {
        let bytes = chunks.next().await?;
        Some((Ok::<_, Infallible>(bytes), chunks))
    });
    let mut response = Body::from_stream(stream).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

impl Chunks {
    async fn next(&mut self) -> Option<Bytes> {
        match self.step {
            Step::End => None,
            Step::Done => {
                self.step = Step::End;
                Some(Bytes::from_static(b"data: [DONE]\n\n"))
            }
            Step::Begin => {
                self.step = Step::Watch;
                Some(self.chunk(json!({ "role": "assistant", "content": "" }), None))
            }
            Step::Watch => Some(self.watch().await),
        }
    }

    async fn watch(&mut self) -> Bytes {
        // A repeated idempotency key may name a message that ended long ago.
        if let Ok(view) = view_of(&self.api, self.id).await
            && crate::api::stream::is_ended(view.state)
            && self.attempt == 0
        {
            return self.finish_from_store(&view);
        }
        loop {
            let next = tokio::select! {
                next = tokio::time::timeout(KEEP_ALIVE_AFTER, self.watcher.next()) => next,
                () = self.api.is_out_of_time() => {
                    let problem = Problem::daemon_ending(self.id);
                    return self.error(&problem.detail());
                }
            };
            return match next {
                Err(_silence) => Bytes::from_static(b": waiting\n\n"),
                Ok(Some(Update::Status(_))) => continue,
                Ok(Some(Update::Delta { attempt, end_offset: _, text })) => {
                    if self.attempt != 0 && self.attempt != attempt {
                        return self.interrupted();
                    }
                    self.attempt = attempt;
                    self.chunk(json!({ "content": text }), None)
                }
                Ok(Some(Update::End) | None) => match view_of(&self.api, self.id).await {
                    Ok(view) if view.state == MessageState::Answered => self.finish(),
                    Ok(view) => self.error(&failure_of(&view)),
                    Err(problem) => self.error(&problem.detail()),
                },
            };
        }
    }

    fn finish_from_store(&mut self, view: &Message) -> Bytes {
        if view.state != MessageState::Answered {
            return self.error(&failure_of(view));
        }
        let reply = view.reply.clone().unwrap_or_default();
        let whole = self.chunk(json!({ "content": reply }), None);
        let finish = self.finish();
        Bytes::from([whole, finish].concat())
    }

    fn finish(&mut self) -> Bytes {
        self.step = Step::Done;
        self.chunk(json!({}), Some("stop"))
    }

    fn interrupted(&mut self) -> Bytes {
        self.error(&ErrorDetail {
            code: "interrupted".to_owned(),
            message: "the agent was interrupted and is answering anew".to_owned(),
            hint: format!("GET /v1/messages/{}?wait=60s gives the whole answer", self.id),
            message_id: Some(self.id),
        })
    }

    fn error(&mut self, detail: &ErrorDetail) -> Bytes {
        self.step = Step::Done;
        let message = format!("{}: {}", detail.message, detail.hint);
        let (kind, code) = ("server_error", &detail.code);
        let error = json!({
            "error": { "message": message, "type": kind, "param": null, "code": code }
        });
        Bytes::from(format!("data: {error}\n\n"))
    }

    fn chunk(&self, delta: Value, finish_reason: Option<&str>) -> Bytes {
        let mut body = envelope(self.id, &self.chat, "chat.completion.chunk", self.created_ms);
        let choice = json!({
            "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason
        });
        body["choices"] = json!([choice]);
        Bytes::from(format!("data: {body}\n\n"))
    }
}
