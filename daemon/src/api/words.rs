//! Plain words for people who wait, and for people who ask why.
//!
//! Owner: the API. Invariants: nothing here needs knowledge of processes or of Dormouse's own
//! words; every sentence about trouble is followed by what happens next. Absent: facts that are not
//! in the record.

use std::time::Duration;

use dormouse_core::cause::Cause;
use dormouse_core::event::FilesProgress;
use dormouse_core::journal::{Because, human_span};
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
        StatusState::Syncing { done_files, files, .. } => {
            format!("bringing its files, {done_files} of {files}")
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
        StatusState::DaemonEnding => {
            "the daemon is ending; the message is kept, and waits for its next start".to_owned()
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
    newest: Option<&Because>,
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
        Phase::Asleep => match newest {
            Some(held @ (Because::AgentHeldBack | Because::AgentNotConfigured)) => {
                format!("{id} is {held}; {waiting}.")
            }
            Some(_) | None => format!("{id} is about to be started; {waiting}."),
        },
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
pub(crate) fn next_steps(session: &SessionView, message: Option<&Message>) -> Vec<String> {
    let id = &session.session;
    let own_cause = message.and_then(|message| message.cause);
    let mut steps = Vec::new();
    if let Some(cause) = session.last_failure.or(own_cause) {
        steps.push(format!("dormouse logs {id}        what the agent said last"));
        steps.push(format!("docs/causes/{cause}.md    what this cause means"));
        steps.extend(
            own_cause
                .filter(|own| *own != cause)
                .map(|own| format!("docs/causes/{own}.md    why this message was given up")),
        );
    }
    if matches!(session.phase, Phase::Backoff | Phase::Tripped) {
        steps.push(format!("dormouse wake {id}        start it now, without waiting"));
    }
    if let Some(message) = message.filter(|message| message.state == MessageState::Dead) {
        let id = message.message_id;
        steps.push(format!("dormouse queue redrive {id}    try it again, once it is mended"));
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

/// What is the case with one message. `newest` is its session's newest decision.
pub(crate) fn message_verdict(
    message: &Message,
    session: &SessionView,
    newest: Option<&Because>,
) -> String {
    let id = message.message_id;
    match message.state {
        MessageState::Pending => {
            let place = match message.position {
                Some(0) | None => "waits to be handed to the agent".to_owned(),
                Some(1) => "waits behind another one of its session".to_owned(),
                Some(ahead) => format!("waits behind {ahead} others of its session"),
            };
            format!("{id} {place}: {}.", waits_because(message, session, newest))
        }
        MessageState::Leased => format!("{id} is with the agent, attempt {}.", message.attempts),
        MessageState::Answered => format!("{id} was answered at attempt {}.", message.attempts),
        MessageState::Cancelled => format!("{id} was dropped before the agent saw it."),
        MessageState::Dead => format!("{id} was given up: {}.", failure(message)),
    }
}

/// Why a message is not with the agent now.
fn waits_because(message: &Message, session: &SessionView, newest: Option<&Because>) -> String {
    if let Some(FilesProgress { done_files, files, .. }) = session.syncing {
        return format!("files are brought to its workspace, {done_files} of {files} are there");
    }
    match session.phase {
        Phase::Asleep => match newest {
            Some(held @ (Because::AgentHeldBack | Because::AgentNotConfigured)) => held.to_string(),
            _ if session.failures > 0 => "its session is in line for a start; of those that \
                failed, only so many are started in a minute"
                .to_owned(),
            _ => "its session is in line for a start".to_owned(),
        },
        Phase::Starting => match session.start_took_ms {
            None => "the agent is starting".to_owned(),
            Some(ms) => {
                let last = human_span(rounded(ms));
                format!("the agent is starting, which took {last} the last time")
            }
        },
        Phase::Awake => match message.not_before_ms.filter(|at| *at > wall_now().0) {
            Some(at) => {
                let failed = message.attempts;
                format!("attempt {failed} failed, and the next one is {}", when(at))
            }
            None if message.position.unwrap_or(0) > 0 => {
                "the agent is awake, and takes one at a time".to_owned()
            }
            None => "the agent is awake, and takes it as soon as it is reached".to_owned(),
        },
        Phase::Draining | Phase::Stopping => {
            "the agent is being stopped, and the next start takes it".to_owned()
        }
        Phase::Backoff | Phase::Tripped => {
            let next = session.next_start_at_ms.map_or("soon".to_owned(), when);
            let cause = session.last_failure.unwrap_or(Cause::Unknown);
            let (words, failures) = (cause.plain_words(), session.failures);
            let is_tripped = session.phase == Phase::Tripped;
            let what = if is_tripped { "one start is tried" } else { "the next start is" };
            format!("the agent failed {failures} times in a row ({words}), and {what} {next}")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn waits(position: u64, not_before_ms: Option<u64>, session: Value) -> String {
        waits_since(None, position, not_before_ms, session)
    }

    fn waits_since(
        newest: Option<&Because>,
        position: u64,
        not_before_ms: Option<u64>,
        session: Value,
    ) -> String {
        let mut whole = json!({
            "session": "a/k", "subject": "local", "generation": 3, "waiting": 2, "failures": 0,
            "created_at_ms": 0,
        });
        whole.as_object_mut().unwrap().extend(session.as_object().unwrap().clone());
        let mut message = json!({
            "message_id": "msg_00000000000000000000000000000007", "session": "a/k",
            "state": "pending", "attempts": 1, "accepted_at_ms": 0, "position": position,
        });
        if let Some(at) = not_before_ms {
            message["not_before_ms"] = json!(at);
        }
        let (message, session) =
            (serde_json::from_value(message).unwrap(), serde_json::from_value(whole).unwrap());
        message_verdict(&message, &session, newest).split_once(' ').unwrap().1.to_owned()
    }

    #[test]
    fn a_waiting_message_is_told_why_it_waits_in_every_phase() {
        let failing = |phase: &str| {
            json!({"phase": phase, "failures": 5, "last_failure": "oom_limit",
                   "next_start_at_ms": 0})
        };
        let told = [
            waits(0, None, json!({"phase": "asleep"})),
            waits(0, None, json!({"phase": "starting", "start_took_ms": 12_300})),
            waits(2, None, json!({"phase": "awake"})),
            waits(0, Some(1), json!({"phase": "awake"})),
            waits(1, None, json!({"phase": "draining"})),
            waits(0, None, failing("backoff")),
            waits(1, None, failing("tripped")),
        ];
        let expected = [
            "waits to be handed to the agent: its session is in line for a start.",
            "waits to be handed to the agent: the agent is starting, which took 12 s the last \
             time.",
            "waits behind 2 others of its session: the agent is awake, and takes one at a time.",
            "waits to be handed to the agent: the agent is awake, and takes it as soon as it is \
             reached.",
            "waits behind another one of its session: the agent is being stopped, and the next \
             start takes it.",
            "waits to be handed to the agent: the agent failed 5 times in a row (the agent \
             needed more memory than it may use), and the next start is at once.",
            "waits behind another one of its session: the agent failed 5 times in a row (the \
             agent needed more memory than it may use), and one start is tried at once.",
        ];
        assert_eq!(told, expected);
        let asleep = |failures| json!({"phase": "asleep", "failures": failures});
        let held = waits_since(Some(&Because::AgentHeldBack), 0, None, asleep(1));
        assert!(held.contains("other sessions of its agent failed"), "{held}");
        let paced = waits(0, None, asleep(1));
        assert!(paced.contains("only so many are started in a minute"), "{paced}");
        let later = waits(0, Some(u64::MAX), json!({"phase": "awake"}));
        assert!(later.contains("attempt 1 failed, and the next one is in"), "{later}");
    }

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
