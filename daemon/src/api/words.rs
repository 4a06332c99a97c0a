//! Plain words for people who wait, and for people who ask why.
//!
//! Owner: the API. Invariants: nothing here needs knowledge of processes or of Dormouse's own
//! words; every sentence about trouble is followed by what happens next. Absent: facts that are not
//! in the record.

use std::time::Duration;

use dormouse_core::cause::Cause;
use dormouse_core::journal::human_span;
use dormouse_core::session::phase::Phase;

use crate::api::shape::{ExitView, Message, SessionView, StatusState};
use crate::engine::clock::wall_now;
use dormouse_core::record::MessageState;

pub(crate) fn status(state: &StatusState) -> String {
    match state {
        StatusState::Accepted { position: 0 } => "accepted".to_owned(),
        StatusState::Queued { ahead: 0 } => "next, once the agent is awake again".to_owned(),
        StatusState::Accepted { position } | StatusState::Queued { ahead: position } => {
            format!("queued behind {position}")
        }
        StatusState::InLine { ahead: 0 } => "next to be woken".to_owned(),
        StatusState::InLine { ahead } => format!("{ahead} other agents are woken first"),
        StatusState::Waking { estimate_ms: None } => "waking".to_owned(),
        StatusState::Waking { estimate_ms: Some(ms) } => {
            format!("waking, about {}", human_span(rounded(*ms)))
        }
        StatusState::Delivered { attempt: 1 } => "working".to_owned(),
        StatusState::Delivered { attempt } => format!("working, attempt {attempt}"),
        StatusState::Slow { silent_ms } => {
            format!("still working; no sign of progress for {}", human_span(rounded(*silent_ms)))
        }
        StatusState::Retrying { attempt, at_ms, cause } => {
            format!("{}; attempt {attempt} {}", cause.plain_words(), when(*at_ms))
        }
        StatusState::WaitingToRestart { at_ms, cause } => {
            format!("{}; it is started again {}", cause.plain_words(), when(*at_ms))
        }
    }
}

/// Whole seconds, unless it is less than one.
fn rounded(ms: u64) -> Duration {
    if ms < 1_000 { Duration::from_millis(ms) } else { Duration::from_secs((ms + 500) / 1_000) }
}

fn when(at_ms: u64) -> String {
    match at_ms.saturating_sub(wall_now().0) {
        0 => "at once".to_owned(),
        left => format!("in {}", human_span(rounded(left))),
    }
}

/// What is the case with a session, and because of what.
pub(crate) fn verdict(
    session: &SessionView,
    last_exit: Option<&ExitView>,
    turn_runs: bool,
) -> String {
    let id = &session.session;
    let waiting = match session.waiting {
        0 => "no message waits".to_owned(),
        1 => "1 message waits".to_owned(),
        n => format!("{n} messages wait"),
    };
    let now = match session.phase {
        Phase::Asleep if session.waiting == 0 => {
            format!("{id} is asleep: nothing needs it. The next message wakes it.")
        }
        Phase::Asleep => format!("{id} is about to be started; {waiting}."),
        Phase::Starting => format!("{id} is starting; {waiting}."),
        Phase::Awake if turn_runs => format!("{id} is awake and answers a message now."),
        Phase::Awake => format!("{id} is awake; {waiting}."),
        Phase::Draining => format!("{id} finishes its message and is then stopped; {waiting}."),
        Phase::Stopping => format!("{id} is being stopped; {waiting}."),
        Phase::Backoff => {
            let next = session.next_start_at_ms.map_or("soon".to_owned(), when);
            let cause = session.last_failure.unwrap_or(Cause::Unknown).plain_words();
            let failures = session.failures;
            format!(
                "{id} failed {failures} times in a row ({cause}); its next start is {next}, \
                 and {waiting}."
            )
        }
        Phase::Tripped => {
            let next = session.next_start_at_ms.map_or("soon".to_owned(), when);
            let cause = session.last_failure.unwrap_or(Cause::Unknown).plain_words();
            let failures = session.failures;
            format!(
                "{id} failed {failures} times in a row ({cause}) and is not started again by \
                 itself for now; one start is tried {next}, and {waiting}, nothing of it lost."
            )
        }
    };
    let was_told = matches!(session.phase, Phase::Backoff | Phase::Tripped);
    match last_exit.and_then(|exit| exit.cause) {
        Some(cause) if !was_told => {
            format!("{now} Its last life ended badly: {} [{cause}].", cause.plain_words())
        }
        Some(_) | None => now,
    }
}

/// What can be done about a cause, in a line each.
pub(crate) fn next_steps(session: &SessionView) -> Vec<String> {
    let Some(cause) = session.last_failure else { return Vec::new() };
    let id = &session.session;
    let mut steps = vec![
        format!("dormouse logs {id}        what the agent said last"),
        format!("docs/causes/{cause}.md    what this cause means"),
    ];
    if matches!(session.phase, Phase::Backoff | Phase::Tripped) {
        steps.push(format!("dormouse wake {id}        start it now, without waiting"));
    }
    steps
}

/// Why a message has no answer, for its sender.
pub(crate) fn failure(message: &Message) -> String {
    let Some(cause) = message.cause else {
        return "the message was dropped before the agent saw it".to_owned();
    };
    match message.detail.as_deref() {
        None | Some("") => cause.plain_words().to_owned(),
        Some(detail) => format!("{}: {detail}", cause.plain_words()),
    }
}

/// What is the case with one message.
pub(crate) fn message_verdict(message: &Message) -> String {
    let id = message.message_id;
    match message.state {
        MessageState::Pending => match message.position {
            Some(0) | None => format!("{id} waits to be handed to the agent."),
            Some(1) => format!("{id} waits behind another one of its session."),
            Some(ahead) => format!("{id} waits behind {ahead} others of its session."),
        },
        MessageState::Leased => format!("{id} is with the agent, attempt {}.", message.attempts),
        MessageState::Answered => format!("{id} was answered at attempt {}.", message.attempts),
        MessageState::Cancelled => format!("{id} was dropped before the agent saw it."),
        MessageState::Dead => format!("{id} was given up: {}.", failure(message)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn senders_are_told_in_plain_words() {
        let said = |state| status(&state);
        assert_eq!(said(StatusState::Waking { estimate_ms: Some(12_340) }), "waking, about 12 s");
        assert_eq!(said(StatusState::Queued { ahead: 2 }), "queued behind 2");
        assert_eq!(
            said(StatusState::Retrying { attempt: 2, at_ms: 0, cause: Cause::AppExit }),
            "the agent's program ended by itself; attempt 2 at once"
        );
    }
}
