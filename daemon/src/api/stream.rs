//! Server-sent events of one message: `status`, `delta`, then `done` or `error`.
//!
//! Owner: one response each. Invariants: a `delta`'s id is ATTEMPT.OFFSET, from which a client
//! resumes without gap or repeat (`Last-Event-ID`); the stream ends with exactly one `done` or
//! `error`, or between two events without either, where the daemon ends: it is resumed at the next
//! one; a client that reads slowly holds nothing but its connection. Absent: OpenAI's chunks
//! (`openai`).

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use dormouse_core::id::MessageId;
use futures_util::stream::unfold;
use serde::Serialize;

use crate::api::messages::view_of;
use crate::api::problem::Problem;
use crate::api::shape::{Delta, ErrorBody, ErrorDetail, Message, Status, StatusState};
use crate::api::{Api, words};
use crate::hub::{Place, Update, Watcher, piece_after};
use dormouse_core::record::MessageState;

/// A comment goes out after so long a silence, so that nobody in between takes the connection for
/// dead.
pub(crate) const KEEP_ALIVE_AFTER: Duration = Duration::from_secs(15);

/// What a stream does next.
enum Step {
    Say(Bytes, Box<Step>),
    Watch(Box<Watcher>),
    Finish,
    End,
}

/// Streams a message from `place` on; `watcher` was there from its acceptance, if it is new.
pub(crate) async fn respond(
    api: Api,
    message: MessageId,
    accepted_at_position: Option<usize>,
    watcher: Option<Watcher>,
    place: Place,
) -> Result<Response, Problem> {
    let watcher = watcher.unwrap_or_else(|| api.hub.watch(message, place));
    let first = first_step(&api, message, watcher).await?;
    let first = match accepted_at_position {
        None => first,
        Some(position) => {
            let accepted = status_event(message, StatusState::Accepted { position });
            Step::Say(accepted, Box::new(first))
        }
    };
    let stream = unfold(first, move |step| {
        let api = api.clone();
        async move { advance(&api, message, step).await }
    });
    let mut response = Body::from_stream(stream).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Watched before the store is read: what ends in between is seen in one of the two.
async fn first_step(api: &Api, message: MessageId, watcher: Watcher) -> Result<Step, Problem> {
    let view = view_of(api, message).await?;
    if !is_ended(view.state) {
        return Ok(Step::Watch(Box::new(watcher)));
    }
    let reply = view.reply.as_deref().unwrap_or_default();
    Ok(rest_of(reply, view.attempts, watcher.place(), Step::Finish))
}

/// The pieces of a finished reply that a client has not seen, then `after`.
fn rest_of(reply: &str, attempt: u32, place: Place, after: Step) -> Step {
    let mut offset = if place.attempt == attempt { place.offset } else { 0 };
    let mut pieces = Vec::new();
    loop {
        let piece = piece_after(reply, offset);
        if piece.is_empty() {
            break;
        }
        offset += piece.len() as u64;
        pieces.push(delta_event(attempt, offset, piece));
    }
    pieces.into_iter().rev().fold(after, |after, piece| Step::Say(piece, Box::new(after)))
}

async fn advance(
    api: &Api,
    message: MessageId,
    step: Step,
) -> Option<(Result<Bytes, Infallible>, Step)> {
    match step {
        Step::End => None,
        Step::Say(bytes, next) => Some((Ok(bytes), *next)),
        Step::Finish => Some((Ok(last_event(api, message).await), Step::End)),
        Step::Watch(mut watcher) => {
            let next = tokio::select! {
                biased;
                next = tokio::time::timeout(KEEP_ALIVE_AFTER, watcher.next()) => next,
                // Between two events: the client resumes at the next daemon.
                () = api.stops_serving() => return None,
            };
            Some(match next {
                Err(_silence) => (Ok(Bytes::from_static(b": waiting\n\n")), Step::Watch(watcher)),
                Ok(Some(Update::Status(state))) => {
                    (Ok(status_event(message, state)), Step::Watch(watcher))
                }
                Ok(Some(Update::Delta { attempt, end_offset, text })) => {
                    (Ok(delta_event(attempt, end_offset, &text)), Step::Watch(watcher))
                }
                Ok(Some(Update::End) | None) => (Ok(last_event(api, message).await), Step::End),
            })
        }
    }
}

pub(crate) fn is_ended(state: MessageState) -> bool {
    match state {
        MessageState::Pending | MessageState::Leased => false,
        MessageState::Answered | MessageState::Dead | MessageState::Cancelled => true,
    }
}

/// `done` or `error`, as the store has it.
async fn last_event(api: &Api, message: MessageId) -> Bytes {
    match view_of(api, message).await {
        Ok(view) if view.state == MessageState::Answered => event("done", None, &view),
        Ok(view) => event("error", None, &ErrorBody { error: failure_of(&view) }),
        Err(problem) => event("error", None, &ErrorBody { error: problem.detail() }),
    }
}

/// Why a message has no answer, for its sender.
pub(crate) fn failure_of(view: &Message) -> ErrorDetail {
    let id = view.message_id;
    let (code, hint) = match view.cause {
        Some(cause) => (cause.code(), format!("`dormouse why {id}` has the evidence")),
        None => ("cancelled", "write it again if it was not meant to be dropped".to_owned()),
    };
    let message = words::failure(view);
    ErrorDetail { code: code.to_owned(), message, hint, message_id: Some(id) }
}

fn status_event(message_id: MessageId, state: StatusState) -> Bytes {
    let text = words::status(&state);
    event("status", None, &Status { message_id, state, text })
}

fn delta_event(attempt: u32, end_offset: u64, text: &str) -> Bytes {
    event("delta", Some(format!("{attempt}.{end_offset}")), &Delta { text: text.to_owned() })
}

/// JSON has no line breaks, so that one `data` line carries it.
fn event(name: &str, id: Option<String>, data: &impl Serialize) -> Bytes {
    let json = serde_json::to_string(data).expect("the shapes are plain data");
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    Bytes::from(format!("event: {name}\n{id}data: {json}\n\n"))
}

/// Where the client was: `Last-Event-ID: ATTEMPT.OFFSET`.
pub(crate) fn place_of(headers: &HeaderMap) -> Result<Place, Problem> {
    let Some(value) = headers.get("last-event-id") else { return Ok(Place::default()) };
    let parsed = value.to_str().ok().and_then(|text| {
        let (attempt, offset) = text.split_once('.')?;
        Some(Place { attempt: attempt.parse().ok()?, offset: offset.parse().ok()? })
    });
    parsed.ok_or_else(|| {
        let hint = "send back the id of the last event as it came, ATTEMPT.OFFSET, or leave it out";
        Problem::bad_request("Last-Event-ID is not one of this stream's ids", hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(step: Step) -> Vec<String> {
        let mut said = Vec::new();
        let mut step = step;
        while let Step::Say(bytes, next) = step {
            said.push(String::from_utf8(bytes.to_vec()).unwrap());
            step = *next;
        }
        said
    }

    #[test]
    fn a_finished_reply_is_resumed_where_the_client_was() {
        let at = |attempt, offset| Place { attempt, offset };
        let rest = said(rest_of("hello world", 2, at(2, 6), Step::End));
        assert_eq!(rest, ["event: delta\nid: 2.11\ndata: {\"text\":\"world\"}\n\n"]);
        assert_eq!(
            said(rest_of("hello", 2, at(1, 3), Step::End)).len(),
            1,
            "another attempt's place"
        );
        assert_eq!(said(rest_of("hello", 2, at(2, 5), Step::End)).len(), 0);
    }

    #[test]
    fn a_place_that_is_none_is_refused() {
        let mut headers = HeaderMap::new();
        assert_eq!(place_of(&headers).unwrap(), Place::default());
        headers.insert("last-event-id", HeaderValue::from_static("3.17"));
        assert_eq!(place_of(&headers).unwrap(), Place { attempt: 3, offset: 17 });
        headers.insert("last-event-id", HeaderValue::from_static("seven"));
        assert!(place_of(&headers).is_err());
    }
}
