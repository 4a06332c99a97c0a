//! Errors of the HTTP interface: a status, a code, a sentence, and what to do.
//!
//! Owner: every handler returns these. Invariants: nothing of an inner error, a path or a secret is
//! in them (the log has it); 429 and 503 carry `Retry-After`; every code stands in docs/errors.md,
//! which a test checks.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use dormouse_core::cause::Cause;
use dormouse_core::command::{DeniedBecause, Refusal};
use dormouse_core::id::MessageId;

use crate::api::shape::{ErrorBody, ErrorDetail};
use crate::engine::request::AskError;

#[derive(Debug, Clone)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: Box<str>,
    pub(crate) hint: Box<str>,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) message_id: Option<MessageId>,
}

/// Every code that is not a cause's, with its status, as in docs/errors.md.
const CODES: [(&str, u16); 35] = [
    ("bad_request", 400),
    ("key_needed", 401),
    ("key_wrong", 401),
    ("operator_needed", 403),
    ("not_your_session", 403),
    ("not_found", 404),
    ("no_such_path", 404),
    ("unknown_agent", 404),
    ("wrong_method", 405),
    ("agent_not_configured", 409),
    ("config_moved", 409),
    ("config_not_writable", 409),
    ("idempotency_conflict", 409),
    ("in_flight", 409),
    ("messages_waiting", 409),
    ("no_such_checkpoint", 409),
    ("not_whole", 409),
    ("other_lineage", 409),
    ("past_life", 409),
    ("too_large", 413),
    ("json_needed", 415),
    ("config_wrong", 422),
    ("does_not_fit", 422),
    ("unsupported", 422),
    ("wrong_hash", 422),
    ("queue_full", 429),
    ("too_fast", 429),
    ("internal", 500),
    ("cancelled", 502),
    ("interrupted", 502),
    ("daemon_ending", 503),
    ("files_unavailable", 503),
    ("overloaded", 503),
    ("shutting_down", 503),
    ("store_full", 503),
];

fn is_documented(code: &str) -> bool {
    CODES.iter().any(|(known, _)| *known == code)
        || Cause::ALL.iter().any(|cause| cause.code() == code)
}

impl Problem {
    pub(crate) fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Box<str>>,
        hint: impl Into<Box<str>>,
    ) -> Self {
        assert!(is_documented(code), "{code} has no line in docs/errors.md");
        let (message, hint) = (message.into(), hint.into());
        Self { status, code, message, hint, retry_after: None, message_id: None }
    }

    pub(crate) fn bad_request(message: impl Into<Box<str>>, hint: impl Into<Box<str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message, hint)
    }

    pub(crate) fn later(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    pub(crate) fn unauthenticated() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "key_needed",
            "this needs an API key",
            "send `Authorization: Bearer KEY`; `dormouse keys create` makes one",
        )
    }

    pub(crate) fn wrong_key() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "key_wrong",
            "this API key is not valid",
            "it may be revoked; `dormouse keys ls` shows the valid ones",
        )
    }

    pub(crate) fn operator_needed() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "operator_needed",
            "this needs a key with the operator scope",
            "ask an operator, or use the key in operator.key of the data folder",
        )
    }

    pub(crate) fn too_fast(after: Duration) -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_fast",
            "too many requests in a short time",
            "wait as long as Retry-After says; [limits] in the config has the rates",
        )
        .later(after)
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "not_found",
            format!("there is no such {what}"),
            "check the name; what belongs to another subject is not shown",
        )
    }

    pub(crate) fn store_full() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "store_full",
            "there is no room on the disk, so nothing was accepted",
            "free space where the data folder is; what was accepted before is safe",
        )
        .later(Duration::from_secs(5))
    }

    /// Who waits for an answer in one piece cannot wait here any longer.
    pub(crate) fn daemon_ending(message: MessageId) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "daemon_ending",
            "this daemon ends or is replaced before the answer is there; the message is kept",
            format!("GET /v1/messages/{message}?wait=60s gives the answer"),
        )
        .later(Duration::from_secs(1))
    }

    /// The bytes of files are somewhere that does not answer now.
    pub(crate) fn files_unavailable() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "files_unavailable",
            "the store of files cannot be reached now, so nothing of this was kept or read",
            "try again; the daemon's log says what is wrong with [files] or [s3]",
        )
        .later(Duration::from_secs(5))
    }

    /// Our own failure: the log has the facts, the answer only says so.
    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something failed inside Dormouse",
            "the daemon's log says what; please report it",
        )
    }

    pub(crate) fn refused(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::UnknownAgent => Self::new(
                StatusCode::NOT_FOUND,
                "unknown_agent",
                "no agent of this name is in the config",
                "`dormouse agents` lists them",
            ),
            Refusal::NotYourSession => Self::new(
                StatusCode::FORBIDDEN,
                "not_your_session",
                "this session belongs to another subject",
                "choose another session key",
            ),
            Refusal::IdempotencyConflict { message } => Self {
                message_id: Some(*message),
                ..Self::new(
                    StatusCode::CONFLICT,
                    "idempotency_conflict",
                    "this idempotency key was used for another message",
                    "use a new key for a new message",
                )
            },
            Refusal::QueueFull { messages, bytes } => Self::new(
                StatusCode::TOO_MANY_REQUESTS,
                "queue_full",
                format!("{messages} messages ({bytes} bytes) of this session wait already"),
                "wait until some are answered, or drop some with `dormouse queue drop`",
            )
            .later(Duration::from_secs(10)),
            Refusal::PastLife => Self::new(
                StatusCode::CONFLICT,
                "past_life",
                "the instance that offers this checkpoint is over",
                "nothing was kept of it",
            ),
            Refusal::OtherLineage => Self::new(
                StatusCode::CONFLICT,
                "other_lineage",
                "the workspace is to be restored to another checkpoint",
                "nothing was kept of it",
            ),
            Refusal::NotWhole => Self::new(
                StatusCode::CONFLICT,
                "not_whole",
                "the workspace is not known to be whole",
                "it is synced first",
            ),
        }
    }

    pub(crate) fn denied(because: DeniedBecause) -> Self {
        let (code, message, hint) = match because {
            DeniedBecause::MessagesWaiting { waiting } => (
                "messages_waiting",
                format!("{waiting} messages wait for the next start"),
                "`dormouse queue ls` shows them; drop them first, or let them be answered",
            ),
            DeniedBecause::InFlight => (
                "in_flight",
                "the message is with the agent now".to_owned(),
                "stop the session first, then drop the message",
            ),
            DeniedBecause::NoSuchCheckpoint => (
                "no_such_checkpoint",
                "the session has no checkpoint of that number".to_owned(),
                "`dormouse files history AGENT/KEY` lists them",
            ),
            DeniedBecause::AgentNotConfigured => (
                "agent_not_configured",
                "the session's agent is not in the config".to_owned(),
                "add the agent to the config and restart Dormouse",
            ),
        };
        Self::new(StatusCode::CONFLICT, code, message, hint)
    }

    pub(crate) fn detail(&self) -> ErrorDetail {
        ErrorDetail {
            code: self.code.to_owned(),
            message: self.message.to_string(),
            hint: self.hint.to_string(),
            message_id: self.message_id,
        }
    }

    /// The same status and headers around another shape of body.
    pub(crate) fn respond_with(&self, body: &impl serde::Serialize) -> Response<Body> {
        let mut response = (self.status, axum::Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(after) = self.retry_after {
            let seconds = after.as_millis().div_ceil(1_000).max(1);
            let value = HeaderValue::from_str(&seconds.to_string()).expect("digits are a value");
            headers.insert(header::RETRY_AFTER, value);
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

impl From<AskError> for Problem {
    fn from(error: AskError) -> Self {
        let (code, message) = match error {
            AskError::Overloaded => ("overloaded", "too many requests wait already"),
            AskError::Ended => ("shutting_down", "Dormouse is shutting down"),
        };
        let hint = "nothing was accepted; try again with the same idempotency key";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, message, hint)
            .later(Duration::from_secs(1))
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        self.respond_with(&ErrorBody { error: self.detail() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_its_line_in_the_documentation_and_no_line_is_left_over() {
        let page = include_str!("../../../docs/errors.md");
        let lines: Vec<(String, u16)> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
            .map(|(code, rest)| {
                let status = rest.split(' ').next().and_then(|status| status.parse().ok());
                (code.to_owned(), status.expect("a status stands behind the code"))
            })
            .collect();
        let codes: Vec<(String, u16)> =
            CODES.iter().map(|(code, status)| ((*code).to_owned(), *status)).collect();
        assert_eq!(lines, codes);
    }
}
