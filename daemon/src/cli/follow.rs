//! Follows one message from its submission to its end, across cuts and restarts of the daemon.
//!
//! ```text
//!            POST (idempotency key) ──▶ events … ──▶ done
//!               ▲        │ cut, no id yet      │ cut
//!               └─ pause ┘                     ▼
//!                                 pause ─▶ GET /v1/messages/ID (Last-Event-ID) ─▶ events … ─▶ done
//! ```
//!
//! Owner: `send` and `chat`. Invariants: a message is submitted under one idempotency key, so
//! asking again never runs it twice; what the audience was given is at each moment a prefix of one
//! attempt's text, and at the end the whole reply; a daemon that never answered is an error at
//! once, one that went away is waited for. Absent: words for people (`send`).

use std::time::Duration;

use dormouse_core::id::{MessageId, SessionId};
use dormouse_core::record::MessageState;
use hyper::header::{self, HeaderName};
use tokio::time::Instant;

use super::client::{Answer, Call, Client, ClientError, EVENT_STREAM};
use super::sse::{Event, EventParser};
use super::terminal::OutputError;
use crate::api::shape::{
    Delta, ErrorBody, ErrorDetail, Message, Status, StatusState, SubmitBody, Submitted,
};

/// How long a daemon that went away is waited for, and how often it is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    pub(crate) first_pause: Duration,
    pub(crate) pause_max: Duration,
    pub(crate) away_max: Duration,
    /// A stream without a byte for so long is opened anew: its other end may be gone.
    pub(crate) silence_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(100),
            pause_max: Duration::from_secs(2),
            away_max: Duration::from_secs(60),
            silence_max: Duration::from_secs(60),
        }
    }
}

/// What happens on the way, for whoever watches.
#[derive(Debug)]
pub(crate) enum Progress<'a> {
    Status(&'a Status),
    /// The next piece of the reply.
    Piece(&'a str),
    /// The pieces so far count no more; the reply starts again.
    StartsAgain,
    /// The daemon is away. `is_safe`: it had accepted the message.
    Away {
        is_safe: bool,
    },
    Back,
}

pub(crate) trait Audience {
    fn take(&mut self, progress: Progress<'_>) -> Result<(), OutputError>;
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("{}", .0.message)]
    Told(Box<ErrorDetail>),
    #[error("the daemon went away and did not come back")]
    StayedAway {
        #[source]
        source: ClientError,
    },
}

#[derive(Debug)]
pub(crate) struct Follower<'a> {
    client: &'a Client,
    session: &'a SessionId,
    text: &'a str,
    idempotency_key: &'a str,
    patience: Patience,
    message_id: Option<MessageId>,
    last_event_id: Option<String>,
    reply: ReplySoFar,
    absence: Absence,
}

impl<'a> Follower<'a> {
    pub(crate) fn new(
        client: &'a Client,
        session: &'a SessionId,
        text: &'a str,
        idempotency_key: &'a str,
        patience: Patience,
    ) -> Self {
        Self {
            client,
            session,
            text,
            idempotency_key,
            patience,
            message_id: None,
            last_event_id: None,
            reply: ReplySoFar::default(),
            absence: Absence::new(patience),
        }
    }

    /// Known once the daemon has accepted the message.
    pub(crate) fn message_id(&self) -> Option<MessageId> {
        self.message_id
    }

    /// Submits the message and returns when it is on the daemon's disk.
    pub(crate) async fn submit(
        &mut self,
        audience: &mut dyn Audience,
    ) -> Result<serde_json::Value, FollowError> {
        loop {
            let error = match self.client.json(self.submission()).await {
                Ok(value) => {
                    let submitted: Submitted = self.client.typed(&value)?;
                    self.message_id = Some(submitted.message_id);
                    return Ok(value);
                }
                Err(error) => error,
            };
            self.outlast(error, audience).await?;
        }
    }

    /// Submits the message and returns it when it has ended, its reply given to `audience`.
    pub(crate) async fn run_to_its_end(
        &mut self,
        audience: &mut dyn Audience,
    ) -> Result<Message, FollowError> {
        loop {
            let call = match self.message_id {
                None => self.submission().header(header::ACCEPT, EVENT_STREAM),
                Some(id) => self.resumption(id),
            };
            let error = match self.client.open(call).await {
                Ok(answer) => match self.listen(answer, audience).await? {
                    Ending::Ended(message) => return Ok(*message),
                    Ending::Cut(error) => error,
                    Ending::Told(detail) => match self.what_became_of_it(*detail).await {
                        Ok(Some(message)) => return Ok(message),
                        Ok(None) => None,
                        Err(FollowError::Client(error)) => Some(error),
                        Err(error) => return Err(error),
                    },
                },
                Err(error) => Some(error),
            };
            match error {
                Some(error) => self.outlast(error, audience).await?,
                None => self.absence.pause().await,
            }
        }
    }

    /// After an `error` event: the message, if it has ended. `None`: it goes on, so that only the
    /// stream had come to its end, for example because the daemon ends.
    async fn what_became_of_it(
        &mut self,
        detail: ErrorDetail,
    ) -> Result<Option<Message>, FollowError> {
        let Some(id) = detail.message_id.or(self.message_id) else {
            return Err(FollowError::Told(Box::new(detail)));
        };
        let value = match self.client.json(Call::get(format!("/v1/messages/{id}"))).await {
            Err(ClientError::Answered { status: 404, .. }) => {
                return Err(FollowError::Told(Box::new(detail)));
            }
            other => other?,
        };
        self.message_id = Some(id);
        let message: Message = self.client.typed(&value)?;
        Ok(match message.state {
            MessageState::Pending | MessageState::Leased => None,
            MessageState::Answered | MessageState::Dead | MessageState::Cancelled => Some(message),
        })
    }

    fn submission(&self) -> Call {
        let body = SubmitBody { text: self.text.to_owned(), attachments: Vec::new() };
        let (agent, key) = (self.session.agent(), self.session.key());
        Call::post(format!("/v1/sessions/{agent}/{key}/messages"))
            .json(&body)
            .header(HeaderName::from_static("idempotency-key"), self.idempotency_key)
    }

    fn resumption(&self, id: MessageId) -> Call {
        let call = Call::get(format!("/v1/messages/{id}")).header(header::ACCEPT, EVENT_STREAM);
        match &self.last_event_id {
            Some(event) => call.header(HeaderName::from_static("last-event-id"), event),
            None => call,
        }
    }

    /// Waits before the next try, or gives the error back if another try makes no sense.
    async fn outlast(
        &mut self,
        error: ClientError,
        audience: &mut dyn Audience,
    ) -> Result<(), FollowError> {
        let is_first_contact = self.message_id.is_none() && !self.absence.is_on();
        let is_nobody = matches!(error, ClientError::Unreachable { .. });
        let is_not_ready =
            matches!(error, ClientError::Answered { status: 503 | 429 | 502 | 504, .. });
        let may_pass = error.is_absence() || (is_not_ready && self.absence.is_on());
        if !may_pass || (is_first_contact && is_nobody) {
            return Err(error.into());
        }
        // A cut is often over at once, so that only a second failure is worth a word.
        let is_news = self.absence.is_on() && !self.absence.was_told;
        if is_news {
            self.absence.was_told = true;
            audience.take(Progress::Away { is_safe: self.message_id.is_some() })?;
        }
        if !self.absence.begin_or_go_on() {
            return Err(FollowError::StayedAway { source: error });
        }
        self.absence.pause().await;
        Ok(())
    }

    async fn listen(
        &mut self,
        mut answer: Answer,
        audience: &mut dyn Audience,
    ) -> Result<Ending, FollowError> {
        if !answer.is_event_stream() {
            return Err(self.client.not_understood("it sent no events").into());
        }
        let mut parser = EventParser::default();
        let mut events: Vec<Event> = Vec::new();
        loop {
            let bytes = match answer.next(Some(self.patience.silence_max)).await {
                Ok(Some(bytes)) => bytes,
                Ok(None) => return Ok(Ending::Cut(None)),
                Err(ClientError::Silent { .. }) => return Ok(Ending::Cut(None)),
                Err(error) => return Ok(Ending::Cut(Some(error))),
            };
            let pushed = parser.push(&bytes, &mut events);
            pushed.map_err(|error| self.client.not_understood(error))?;
            for event in events.drain(..) {
                if let Some(ending) = self.handle(event, audience)? {
                    return Ok(ending);
                }
            }
        }
    }

    fn handle(
        &mut self,
        event: Event,
        audience: &mut dyn Audience,
    ) -> Result<Option<Ending>, FollowError> {
        if self.absence.end() {
            audience.take(Progress::Back)?;
        }
        let no_sense = |error: serde_json::Error| self.client.not_understood(error);
        match event.name.as_str() {
            "status" => {
                let status: Status = serde_json::from_str(&event.data).map_err(no_sense)?;
                self.message_id = Some(status.message_id);
                audience.take(Progress::Status(&status))?;
                let is_new_attempt = matches!(
                    status.state,
                    StatusState::Retrying { .. } | StatusState::WaitingToRestart { .. }
                );
                if is_new_attempt && self.reply.start_again() {
                    audience.take(Progress::StartsAgain)?;
                }
            }
            "delta" => {
                let delta: Delta = serde_json::from_str(&event.data).map_err(no_sense)?;
                let place = event.id.as_deref().and_then(Place::parse);
                let place = place.ok_or_else(|| {
                    self.client.not_understood("a piece of a reply does not say where it belongs")
                })?;
                self.reply.take(place, &delta.text, audience)?;
                self.last_event_id = event.id;
                self.absence.reset_pause();
            }
            "done" => {
                let message: Message = serde_json::from_str(&event.data).map_err(no_sense)?;
                self.message_id = Some(message.message_id);
                if let Some(reply) = &message.reply {
                    self.reply.complete(reply, audience)?;
                }
                return Ok(Some(Ending::Ended(Box::new(message))));
            }
            "error" => {
                let body: ErrorBody = serde_json::from_str(&event.data).map_err(no_sense)?;
                return Ok(Some(Ending::Told(Box::new(body.error))));
            }
            // Of a later version.
            _ => {}
        }
        Ok(None)
    }
}

#[derive(Debug)]
enum Ending {
    Ended(Box<Message>),
    /// An `error` event: the message failed, or the stream did.
    Told(Box<ErrorDetail>),
    /// The stream was over before the message was; `None` if it ended in good order.
    Cut(Option<ClientError>),
}

/// Where a piece of a reply ends: `ATTEMPT.OFFSET`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    attempt: u32,
    end_bytes: usize,
}

impl Place {
    fn parse(id: &str) -> Option<Self> {
        let (attempt, end) = id.split_once('.')?;
        Some(Self { attempt: attempt.parse().ok()?, end_bytes: end.parse().ok()? })
    }
}

/// What of the reply has been handed to the audience.
#[derive(Debug, Default)]
struct ReplySoFar {
    attempt: u32,
    text: String,
    /// Pieces of `attempt` come no more.
    is_given_up: bool,
}

impl ReplySoFar {
    fn take(
        &mut self,
        place: Place,
        piece: &str,
        audience: &mut dyn Audience,
    ) -> Result<(), OutputError> {
        if place.attempt < self.attempt || (place.attempt == self.attempt && self.is_given_up) {
            return Ok(());
        }
        if place.attempt > self.attempt {
            if self.start_again() {
                audience.take(Progress::StartsAgain)?;
            }
            (self.attempt, self.is_given_up) = (place.attempt, false);
        }
        // A piece may have been sent before, wholly or in part. One that leaves a gap is passed
        // over: the end brings the whole reply.
        let start_bytes = place.end_bytes.saturating_sub(piece.len());
        let known_bytes = self.text.len().checked_sub(start_bytes);
        if let Some(new) = known_bytes.and_then(|known| piece.get(known..))
            && !new.is_empty()
        {
            self.text.push_str(new);
            audience.take(Progress::Piece(new))?;
        }
        Ok(())
    }

    /// Whether anything had been said, which now counts no more.
    fn start_again(&mut self) -> bool {
        self.is_given_up = true;
        !std::mem::take(&mut self.text).is_empty()
    }

    fn complete(&mut self, reply: &str, audience: &mut dyn Audience) -> Result<(), OutputError> {
        if !reply.starts_with(&self.text) {
            self.start_again();
            audience.take(Progress::StartsAgain)?;
        }
        let rest = &reply[self.text.len()..];
        if !rest.is_empty() {
            audience.take(Progress::Piece(rest))?;
        }
        reply.clone_into(&mut self.text);
        Ok(())
    }
}

/// The time during which the daemon does not answer.
#[derive(Debug)]
struct Absence {
    patience: Patience,
    since: Option<Instant>,
    was_told: bool,
    pause: Duration,
}

impl Absence {
    fn new(patience: Patience) -> Self {
        Self { patience, since: None, was_told: false, pause: patience.first_pause }
    }

    fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// `false` if it has lasted too long.
    fn begin_or_go_on(&mut self) -> bool {
        let since = *self.since.get_or_insert_with(Instant::now);
        since.elapsed() < self.patience.away_max
    }

    /// Whether the audience was told that it had begun.
    fn end(&mut self) -> bool {
        self.since = None;
        std::mem::take(&mut self.was_told)
    }

    fn reset_pause(&mut self) {
        self.pause = self.patience.first_pause;
    }

    async fn pause(&mut self) {
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(self.patience.pause_max);
    }
}

#[cfg(test)]
mod tests;
