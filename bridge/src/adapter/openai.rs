//! `openai`: one long-lived process with chat completions over HTTP on loopback.
//!
//! Owner: `instance`; the talking is done by one task at a time, which says [`HttpSaid`]s.
//! Invariants: ready means that the agent's application answered well, not that its port is open;
//! a turn is one request that reaches the agent, never repeated from here; while its port is
//! closed the turn waits; a connection that breaks is not a verdict at once, because a dying
//! agent's sockets close before its end is seen (see [`SETTLE_SPAN`]), and then it is an attempt
//! that was cut short, like a death.
//! Absent: processes, turns' texts, time limits of turns.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_core::cause::Cause;
use dormouse_core::event::TurnOutcome;
use dormouse_core::id::SessionId;
use hyper::Response;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::http::{HttpError, Target, TargetError, head_of_body, next_bytes, whole_body};
use super::{MESSAGE_BYTES_MAX, excerpt, failed};
use crate::frames::{FRAME_BYTES_MAX, Secret};
use crate::sse::{SseEvent, SseParser};

const READY_PATH: &str = "/v1/models";
const PROBE_PAUSE_MIN: Duration = Duration::from_millis(10);
const PROBE_PAUSE_MAX: Duration = Duration::from_millis(100);
const PROBE_WITHIN: Duration = Duration::from_secs(5);
const PROBE_BODY_BYTES_MAX: usize = 64 << 10;
/// Different reasons for not being ready that are worth a line of log.
const PROBE_NOTES_MAX: usize = 16;

/// How long after its connection broke an agent may take to be seen dead. If it is, the exit is
/// what happened to the turn; if it is not, the broken connection is.
pub(crate) const SETTLE_SPAN: Duration = Duration::from_secs(1);

/// How long an agent that lives may keep its port closed, because it restarts itself in its
/// process: OpenClaw takes up to ten seconds for that.
const OPENS_AGAIN_WITHIN: Duration = Duration::from_secs(20);

/// How long one that answers again may say that it is not ready.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub(crate) enum HttpSaid {
    Ready,
    Note(String),
    Text(String),
    /// The turn is over, and its text is the answer.
    Done,
    Failed(TurnOutcome),
    /// The connection broke: this is the outcome unless the agent turns out to be dead.
    Broken(TurnOutcome),
}

#[derive(Debug)]
pub(crate) struct Openai {
    target: Target,
    ready_path: String,
    model: String,
    task: Option<Task>,
    /// A broken connection's outcome, and when it counts.
    pub(crate) settling: Option<(Instant, TurnOutcome)>,
}

/// Ended with its owner.
#[derive(Debug)]
struct Task {
    handle: AbortHandle,
    said: mpsc::Receiver<HttpSaid>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

const SAID_WAITING_MAX: usize = 16;

impl Openai {
    pub(crate) fn new(
        session: &SessionId,
        url: &str,
        ready: Option<&str>,
        model: Option<&str>,
        headers: &BTreeMap<String, Secret>,
    ) -> Result<Self, TargetError> {
        let ready_path = ready.unwrap_or(READY_PATH);
        Ok(Self {
            target: Target::new(url, headers)?,
            ready_path: format!("/{}", ready_path.trim_start_matches('/')),
            model: model.unwrap_or(session.agent()).to_string(),
            task: None,
            settling: None,
        })
    }

    /// Asks until the agent answers well. Stopped by `stop_talking`.
    pub(crate) fn await_readiness(&mut self) {
        let (say, said) = mpsc::channel(SAID_WAITING_MAX);
        let work = await_readiness(self.target.clone(), self.ready_path.clone(), say);
        self.task = Some(Task { handle: tokio::spawn(work).abort_handle(), said });
    }

    pub(crate) fn start_turn(&mut self, session: &SessionId, text: &str) {
        let (say, said) = mpsc::channel(SAID_WAITING_MAX);
        let body = request_body(&self.model, session, text);
        let work = run_turn(self.target.clone(), self.ready_path.clone(), body, say);
        self.task = Some(Task { handle: tokio::spawn(work).abort_handle(), said });
    }

    /// Gives up what is being asked, if anything is.
    pub(crate) fn stop_talking(&mut self) {
        self.task = None;
        self.settling = None;
    }

    /// The next thing that was said; never ends while nothing is asked. Loses nothing when dropped.
    pub(crate) async fn next(&mut self) -> HttpSaid {
        loop {
            let Some(task) = &mut self.task else { return std::future::pending().await };
            match task.said.recv().await {
                Some(said) => return said,
                None => self.task = None,
            }
        }
    }
}

fn request_body(model: &str, session: &SessionId, text: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        model: &'a str,
        stream: bool,
        messages: [Message<'a>; 1],
        user: &'a str,
    }
    #[derive(Serialize)]
    struct Message<'a> {
        role: &'a str,
        content: &'a str,
    }
    let messages = [Message { role: "user", content: text }];
    let body = Body { model, stream: true, messages, user: session.key() };
    serde_json::to_vec(&body).expect("texts are always JSON")
}

/// Until it answers again. One that is at work may be slow to call itself ready: then it is asked.
async fn await_opening(target: &Target, path: &str, say: &mpsc::Sender<HttpSaid>) {
    let words = "its port is closed: the turn waits until it is open again";
    // Nobody listens any more only when the turn was given up.
    let _heard = say.send(HttpSaid::Note(words.to_string())).await;
    let mut open_since: Option<Instant> = None;
    loop {
        match target.get(path).await {
            Ok(response) if response.status().is_success() => return,
            Ok(_) if open_since.is_some_and(|since| since.elapsed() >= SETTLES_WITHIN) => return,
            Ok(_) => open_since = open_since.or(Some(Instant::now())),
            Err(_) => open_since = None,
        }
        tokio::time::sleep(PROBE_PAUSE_MAX).await;
    }
}

async fn await_readiness(target: Target, path: String, say: mpsc::Sender<HttpSaid>) {
    let mut pause = PROBE_PAUSE_MIN;
    let mut last_reason = String::new();
    let mut notes_left = PROBE_NOTES_MAX;
    loop {
        let probe = tokio::time::timeout(PROBE_WITHIN, probe(&target, &path));
        let reason = match probe.await {
            Ok(Ok(())) => {
                // Nobody listens any more only when the answer is not wanted.
                let _heard = say.send(HttpSaid::Ready).await;
                return;
            }
            Ok(Err(reason)) => reason,
            Err(_) => format!("no answer within {PROBE_WITHIN:?}"),
        };
        if reason != last_reason && notes_left > 0 {
            notes_left -= 1;
            let note = HttpSaid::Note(format!("not ready: GET {path}: {reason}"));
            if say.send(note).await.is_err() {
                return;
            }
            last_reason = reason;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PROBE_PAUSE_MAX);
    }
}

/// Asks once; the error says why the agent is not ready.
async fn probe(target: &Target, path: &str) -> Result<(), String> {
    let response = target.get(path).await.map_err(|error| error.to_string())?;
    let (head, mut body) = response.into_parts();
    if !head.status.is_success() {
        return Err(format!("status {}", head.status));
    }
    let content_type = head.headers.get("content-type").map(|value| value.as_bytes().to_vec());
    let body = head_of_body(&mut body, PROBE_BODY_BYTES_MAX).await;
    judge_ready_body(&content_type.unwrap_or_default(), &body)
}

/// A page that a server gives for any path proves only that it listens, and JSON may say no.
fn judge_ready_body(content_type: &[u8], body: &[u8]) -> Result<(), String> {
    let start = body.trim_ascii_start();
    let start = start[..start.len().min(32)].to_ascii_lowercase();
    let is_page = content_type.to_ascii_lowercase().starts_with(b"text/html")
        || start.starts_with(b"<!doctype html")
        || start.starts_with(b"<html");
    if is_page {
        return Err("the answer is a web page".to_string());
    }
    let Ok(Value::Object(fields)) = serde_json::from_slice(body) else { return Ok(()) };
    for name in ["ok", "ready"] {
        if fields.get(name) == Some(&Value::Bool(false)) {
            return Err(format!("the answer says \"{name}\": false"));
        }
    }
    Ok(())
}

async fn run_turn(target: Target, ready_path: String, body: Vec<u8>, say: mpsc::Sender<HttpSaid>) {
    let path = format!("{}/chat/completions", target.base_path);
    let answered = match target.post_json(&path, body.clone()).await {
        // Nothing listens, so nothing of the turn can have been done: it may restart itself.
        Err(HttpError::Connect(_)) => {
            let opens = await_opening(&target, &ready_path, &say);
            // Closed for longer, the next attempt finds out.
            let _is_late = tokio::time::timeout(OPENS_AGAIN_WITHIN, opens).await;
            target.post_json(&path, body).await
        }
        answered => answered,
    };
    let last = match answered {
        Ok(response) => hear_response(response, &say).await,
        Err(error) => HttpSaid::Broken(agent_error(&error.to_string(), true)),
    };
    // Nobody listens any more only when the turn was given up.
    let _heard = say.send(last).await;
}

async fn hear_response(response: Response<Incoming>, say: &mpsc::Sender<HttpSaid>) -> HttpSaid {
    let (head, mut body) = response.into_parts();
    let status = head.status;
    if !status.is_success() {
        let excerpt = head_of_body(&mut body, 2 * MESSAGE_BYTES_MAX).await;
        let words = error_words_of_body(&excerpt);
        let retryable = matches!(status.as_u16(), 429 | 502 | 503 | 504);
        return HttpSaid::Failed(agent_error(&format!("status {status}: {words}"), retryable));
    }
    let content_type = head.headers.get("content-type").and_then(|value| value.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_ascii_lowercase();
    if content_type.starts_with("application/json") {
        return hear_json(&mut body, say).await;
    }
    if content_type.starts_with("text/html") {
        return HttpSaid::Failed(fault("it answered with a web page"));
    }
    hear_stream(&mut body, say).await
}

async fn hear_json(body: &mut Incoming, say: &mpsc::Sender<HttpSaid>) -> HttpSaid {
    let body = match whole_body(body, FRAME_BYTES_MAX).await {
        Ok(body) => body,
        Err(error @ HttpError::BodyTooLong(_)) => return too_large(&error.to_string()),
        Err(error) => return HttpSaid::Broken(agent_error(&error.to_string(), true)),
    };
    let answer = std::str::from_utf8(&body).ok().and_then(|body| understand(body).ok());
    match answer {
        Some(Piece { error: Some(error), .. }) => HttpSaid::Failed(agent_error(&error, false)),
        Some(Piece { text: Some(text), .. }) => {
            let _heard = say.send(HttpSaid::Text(text)).await;
            HttpSaid::Done
        }
        _ => HttpSaid::Failed(fault("its answer is no chat completion")),
    }
}

async fn hear_stream(body: &mut Incoming, say: &mpsc::Sender<HttpSaid>) -> HttpSaid {
    let mut parser = SseParser::new(FRAME_BYTES_MAX);
    let mut hearing = Hearing::default();
    loop {
        let mut texts = Vec::new();
        let next = next_bytes(body).await;
        let (parsed, is_end) = match &next {
            Ok(Some(bytes)) => (parser.push(bytes, |it| texts.extend(hearing.hear(it))), false),
            Ok(None) => (parser.finish(|it| texts.extend(hearing.hear(it))), true),
            Err(error) => {
                return HttpSaid::Broken(agent_error(&error.to_string(), true));
            }
        };
        let text = texts.concat();
        if !text.is_empty() && say.send(HttpSaid::Text(text)).await.is_err() {
            return HttpSaid::Done;
        }
        if let Err(overlong) = parsed {
            return too_large(&overlong.to_string());
        }
        if let Some(failure) = hearing.failure.take() {
            return HttpSaid::Failed(failure);
        }
        if hearing.is_done || (is_end && hearing.is_finished) {
            return HttpSaid::Done;
        }
        if is_end {
            return HttpSaid::Broken(match hearing.has_events {
                true => agent_error("its answer breaks off", true),
                false => fault("its answer is no stream of events"),
            });
        }
    }
}

/// What the events so far mean.
#[derive(Debug, Default)]
struct Hearing {
    has_events: bool,
    /// Some choice gave its reason to finish.
    is_finished: bool,
    /// `[DONE]`, or a failure: the rest says nothing more.
    is_done: bool,
    failure: Option<TurnOutcome>,
}

impl Hearing {
    /// The text in an event, if it is one of a turn that still goes on.
    fn hear(&mut self, event: SseEvent) -> Option<String> {
        self.has_events = true;
        if self.is_done {
            return None;
        }
        if event.data.trim() == "[DONE]" {
            self.is_done = true;
            return None;
        }
        match understand(&event.data) {
            Ok(piece) => {
                self.is_finished |= piece.is_finished;
                if let Some(error) = piece.error {
                    self.failure = Some(agent_error(&error, false));
                    self.is_done = true;
                }
                piece.text
            }
            Err(_) => {
                let words = excerpt(&event.data, MESSAGE_BYTES_MAX);
                let what = format!("it sent an event that is no chat completion: {words}");
                self.failure = Some(fault(&what));
                self.is_done = true;
                None
            }
        }
    }
}

/// The parts of a completion, or of a piece of one, that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Piece {
    text: Option<String>,
    is_finished: bool,
    error: Option<String>,
}

fn understand(json: &str) -> Result<Piece, serde_json::Error> {
    #[derive(Deserialize)]
    struct Completion {
        #[serde(default)]
        choices: Option<Vec<Choice>>,
        #[serde(default)]
        error: Option<Value>,
    }
    #[derive(Deserialize)]
    struct Choice {
        #[serde(default)]
        delta: Option<Content>,
        #[serde(default)]
        message: Option<Content>,
        #[serde(default)]
        finish_reason: Option<String>,
    }
    #[derive(Deserialize)]
    struct Content {
        #[serde(default)]
        content: Option<Value>,
    }
    let completion: Completion = serde_json::from_str(json)?;
    let error = completion.error.map(|error| error_words(&error));
    let choice = completion.choices.and_then(|choices| choices.into_iter().next());
    let Some(choice) = choice else { return Ok(Piece { error, ..Piece::default() }) };
    let text = choice.delta.or(choice.message).map(|it| match it.content {
        Some(Value::String(text)) => text,
        _ => String::new(),
    });
    Ok(Piece { text, is_finished: choice.finish_reason.is_some(), error })
}

fn error_words(error: &Value) -> String {
    let message = error.get("message").unwrap_or(error);
    let words = message.as_str().map_or_else(|| message.to_string(), str::to_string);
    excerpt(&words, MESSAGE_BYTES_MAX)
}

/// The message in an error's body, else the body's beginning.
fn error_words_of_body(body: &[u8]) -> String {
    let error = serde_json::from_slice::<Value>(body).ok();
    match error.as_ref().and_then(|body| body.get("error")) {
        Some(error) => error_words(error),
        None => excerpt(String::from_utf8_lossy(body).trim(), MESSAGE_BYTES_MAX),
    }
}

fn agent_error(words: &str, retryable: bool) -> TurnOutcome {
    failed(Cause::AgentError, format!("the agent: {words}"), retryable)
}

fn fault(words: &str) -> TurnOutcome {
    failed(Cause::ProtocolFault, format!("the agent: {words}"), false)
}

fn too_large(words: &str) -> HttpSaid {
    HttpSaid::Failed(failed(Cause::ReplyTooLarge, format!("the agent: {words}"), false))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ready_answer_is_no_page_and_does_not_say_no() {
        let judge = |kind: &str, body: &str| judge_ready_body(kind.as_bytes(), body.as_bytes());
        assert_eq!(judge("application/json", "{\"ok\": true, \"status\": \"live\"}"), Ok(()));
        assert_eq!(judge("text/plain", "ok"), Ok(()));
        assert_eq!(judge("", ""), Ok(()));
        assert!(judge("text/html; charset=utf-8", "ok").is_err());
        assert!(judge("", "\n <!DOCTYPE html><p>").is_err());
        assert!(judge("application/json", "{\"ok\": false}").is_err());
        assert!(judge("text/plain", "{\"ready\": false, \"failing\": [\"db\"]}").is_err());
    }

    #[test]
    fn text_is_found_in_pieces_and_in_whole_answers() {
        let text = |json: &str| understand(json).unwrap().text;
        let delta = "{\"choices\":[{\"delta\":{\"content\":\"a\"}}]}";
        assert_eq!(text(delta).as_deref(), Some("a"));
        let role = "{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":null}}]}";
        assert_eq!(text(role).as_deref(), Some(""));
        let whole = "{\"choices\":[{\"message\":{\"content\":\"b\"},\"finish_reason\":\"stop\"}]}";
        let piece = understand(whole).unwrap();
        assert_eq!((piece.text.as_deref(), piece.is_finished), (Some("b"), true));
        assert_eq!(text("{\"choices\":[],\"usage\":{}}"), None);
        assert!(understand("[1]").is_err());
    }

    #[test]
    fn an_error_is_told_in_its_own_words() {
        let words = |json: &str| understand(json).unwrap().error;
        assert_eq!(words("{\"error\":{\"message\":\"no\"}}").as_deref(), Some("no"));
        assert_eq!(words("{\"error\":\"no\"}").as_deref(), Some("no"));
        assert_eq!(words("{\"error\":{\"code\":7}}").as_deref(), Some("{\"code\":7}"));
        assert_eq!(error_words_of_body(b"{\"error\":{\"message\":\"busy\"}}"), "busy");
        assert_eq!(error_words_of_body(b" plain \n"), "plain");
    }

    #[test]
    fn nothing_after_the_end_of_a_stream_is_heard() {
        let event = |data: &str| SseEvent { name: String::new(), data: data.into() };
        let mut hearing = Hearing::default();
        let piece = "{\"choices\":[{\"delta\":{\"content\":\"a\"}}]}";
        assert_eq!(hearing.hear(event(piece)).as_deref(), Some("a"));
        assert_eq!(hearing.hear(event("[DONE]")), None);
        assert_eq!(hearing.hear(event(piece)), None);
        assert!(hearing.is_done && hearing.failure.is_none());
        let mut hearing = Hearing::default();
        assert_eq!(hearing.hear(event("hello")), None);
        assert!(hearing.failure.is_some());
    }

    #[test]
    fn the_request_names_the_user_by_the_sessions_key() {
        let session = "openclaw/tom".parse().unwrap();
        let body: Value = serde_json::from_slice(&request_body("m", &session, "hi")).unwrap();
        let expected = serde_json::json!({
            "model": "m",
            "stream": true,
            "messages": [{"role": "user", "content": "hi"}],
            "user": "tom",
        });
        assert_eq!(body, expected);
    }
}
