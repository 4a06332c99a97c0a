//! `send`: one message, and its reply.
//!
//! Invariants: standard output carries the reply and nothing else; on a terminal it grows as the
//! agent writes, into a pipe it comes whole, because a failed attempt's text cannot be taken back
//! there. Absent: following a message through cuts (`follow`).

use std::io::Read;

use dormouse_core::id::SessionId;
use dormouse_core::limits::MESSAGE_BYTES_MAX;
use dormouse_core::record::MessageState;
use serde_json::json;

use super::Context;
use super::arguments::Send;
use super::error::{CommandError, Lost};
use super::files;
use super::follow::{Audience, Follower, Patience, Progress};
use super::terminal::{OutputError, Terminal, Tone};
use crate::api::shape::{Message, Status, StatusState, Submitted};

const SEPARATOR: &str = "──── that attempt failed; the reply starts again ────";

pub(crate) async fn send(arguments: Send, context: &mut Context<'_>) -> Result<(), CommandError> {
    let text = match arguments.text.as_slice() {
        [dash] if dash == "-" => read_input(std::io::stdin().lock())?,
        words => words.join(" "),
    };
    let idempotency_key = arguments.idempotency_key.unwrap_or_else(fresh_key);
    let session = &arguments.session.0;
    // Before the message is: the turn that it wakes finds them.
    for (local, path) in files::placed(&arguments.file, None)? {
        files::put(session, &local, &path, context).await?;
    }
    let idempotency_key = &idempotency_key;
    let turn = Turn { session, text: &text, idempotency_key, is_in_chat: false };
    if arguments.no_wait {
        return turn.submit(context).await;
    }
    let is_streamed = arguments.stream || (context.terminal.out_is_terminal() && !context.as_json);
    let message = turn.run_to_its_end(is_streamed, context).await?;
    match message.state {
        MessageState::Answered => Ok(()),
        _ => Err(CommandError::NotAnswered(Box::new(message))),
    }
}

fn read_input(input: impl Read) -> Result<String, CommandError> {
    let mut text = String::new();
    let cap = MESSAGE_BYTES_MAX as u64 + 1;
    let read = input.take(cap).read_to_string(&mut text).map_err(CommandError::Input)?;
    if read > MESSAGE_BYTES_MAX { Err(CommandError::InputTooLong) } else { Ok(text) }
}

/// 128 bits that nobody else has drawn.
pub(crate) fn fresh_key() -> String {
    format!("cli-{}", crate::random::hex(&crate::random::bytes::<16>()))
}

/// One message on its way.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    pub(crate) session: &'a SessionId,
    pub(crate) text: &'a str,
    pub(crate) idempotency_key: &'a str,
    /// One of many of a conversation, whose ids nobody wants to see.
    pub(crate) is_in_chat: bool,
}

impl Turn<'_> {
    async fn submit(&self, context: &mut Context<'_>) -> Result<(), CommandError> {
        let client = context.client.clone();
        let mut follower = self.follower(&client);
        let mut printer = ReplyPrinter::new(context.terminal, false, false);
        let value =
            follower.submit(&mut printer).await.map_err(|source| self.lost(None, source))?;
        if context.as_json {
            return Ok(context.terminal.json(&value)?);
        }
        let submitted: Submitted = context.client.typed(&value)?;
        Ok(context.terminal.line(&submitted.message_id.to_string())?)
    }

    /// Sends it, shows what happens and the reply, and returns how it ended. Ctrl-C ends the
    /// waiting.
    pub(crate) async fn run_to_its_end(
        &self,
        is_streamed: bool,
        context: &mut Context<'_>,
    ) -> Result<Message, CommandError> {
        let client = context.client.clone();
        let as_json = context.as_json;
        let mut follower = self.follower(&client);
        let mut printer = ReplyPrinter::new(context.terminal, is_streamed, as_json);
        printer.is_in_chat = self.is_in_chat;
        let followed = tokio::select! {
            followed = follower.run_to_its_end(&mut printer) => Some(followed),
            signal = tokio::signal::ctrl_c() => {
                signal.map_err(CommandError::Runtime)?;
                None
            }
        };
        let message_id = follower.message_id();
        let Some(followed) = followed else {
            context.terminal.end_line()?;
            return Err(CommandError::Interrupted { message_id });
        };
        let message = match followed {
            Ok(message) => message,
            Err(source) => {
                context.terminal.end_line()?;
                return Err(self.lost(message_id, source));
            }
        };
        printer.finish(&message)?;
        Ok(message)
    }

    fn follower<'b>(&'b self, client: &'b super::client::Client) -> Follower<'b> {
        let patience = Patience::default();
        Follower::new(client, self.session, self.text, self.idempotency_key, patience)
    }

    fn lost(
        &self,
        message_id: Option<dormouse_core::id::MessageId>,
        source: super::follow::FollowError,
    ) -> CommandError {
        let (session, idempotency_key) = (self.session.clone(), self.idempotency_key.to_owned());
        Box::new(Lost { message_id, session, idempotency_key, source }).into()
    }
}

/// Shows the way of one message.
#[derive(Debug)]
struct ReplyPrinter<'a> {
    terminal: &'a mut Terminal,
    is_streamed: bool,
    as_json: bool,
    is_in_chat: bool,
    /// What was told last, and the next try that was: nothing is told twice.
    told: String,
    next_try_at_ms: Option<u64>,
}

impl<'a> ReplyPrinter<'a> {
    fn new(terminal: &'a mut Terminal, is_streamed: bool, as_json: bool) -> Self {
        Self {
            terminal,
            is_streamed,
            as_json,
            is_in_chat: false,
            told: String::new(),
            next_try_at_ms: None,
        }
    }

    fn event(&mut self, name: &str, data: serde_json::Value) -> Result<(), OutputError> {
        if self.is_streamed && self.as_json {
            self.terminal.json_line(&json!({"event": name, "data": data}))?;
        }
        Ok(())
    }

    fn tell(&mut self, status: &Status) {
        let id = status.message_id;
        let is_news = match status.state {
            StatusState::Accepted { position } => {
                if !self.is_in_chat {
                    self.terminal.status(&format!("accepted as {id}"));
                }
                position > 0
            }
            StatusState::Delivered { .. } => false,
            StatusState::Retrying { at_ms, .. } | StatusState::WaitingToRestart { at_ms, .. } => {
                self.next_try_at_ms.replace(at_ms) != Some(at_ms)
            }
            StatusState::Queued { .. }
            | StatusState::InLine { .. }
            | StatusState::Waking { .. }
            | StatusState::Syncing { .. }
            | StatusState::Slow { .. }
            | StatusState::DaemonEnding => true,
        };
        if is_news && self.told != status.text {
            self.terminal.status(&status.text);
            status.text.clone_into(&mut self.told);
        }
    }

    fn finish(&mut self, message: &Message) -> Result<(), OutputError> {
        if self.as_json {
            let value = json!(message);
            return if self.is_streamed {
                self.event("done", value)
            } else {
                self.terminal.json(&value)
            };
        }
        if message.state == MessageState::Answered && !self.is_streamed {
            self.terminal.reply(message.reply.as_deref().unwrap_or_default())?;
        }
        self.terminal.end_line()?;
        if let Some(code) = message.exit_code.filter(|code| *code != 0) {
            let how = match code {
                ..0 => format!("was ended by signal {}", code.unsigned_abs()),
                _ => format!("ended with exit code {code}"),
            };
            self.terminal.note(Tone::Yellow, &format!("its program {how}"));
        }
        Ok(())
    }
}

impl Audience for ReplyPrinter<'_> {
    fn take(&mut self, progress: Progress<'_>) -> Result<(), OutputError> {
        match progress {
            Progress::Status(status) => {
                self.tell(status);
                self.event("status", json!(status))
            }
            Progress::Piece(text) if self.is_streamed && !self.as_json => self.terminal.reply(text),
            Progress::Piece(text) => self.event("delta", json!({"text": text})),
            Progress::StartsAgain if self.is_streamed && !self.as_json => {
                self.terminal.line(SEPARATOR)
            }
            Progress::StartsAgain => self.event("starts_again", json!({})),
            Progress::Away { is_safe } => {
                self.terminal.status(if is_safe {
                    "the daemon is away; the message is safe, waiting"
                } else {
                    "the daemon went away before it answered; asking again (it will not run twice)"
                });
                self.event("away", json!({"message_is_safe": is_safe}))
            }
            Progress::Back => {
                self.terminal.status("the daemon is back");
                self.event("back", json!({}))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use dormouse_core::cause::Cause;
    use dormouse_core::id::MessageId;
    use expect_test::expect;

    use super::super::terminal::testing::Screen;
    use super::*;

    fn status(state: StatusState, text: &str) -> Status {
        Status { message_id: MessageId(7), state, text: text.to_owned() }
    }

    fn message(reply: &str) -> Message {
        serde_json::from_value(json!({
            "message_id": MessageId(7), "session": "python/main", "state": "answered",
            "attempts": 1, "accepted_at_ms": 1, "reply": reply, "exit_code": 3,
        }))
        .unwrap()
    }

    /// One way with a failed attempt, as it is shown to a terminal, a pipe and a program.
    fn play(screen: &Screen, mut terminal: Terminal, is_streamed: bool, as_json: bool) -> String {
        let mut printer = ReplyPrinter::new(&mut terminal, is_streamed, as_json);
        let waking = status(StatusState::Waking { estimate_ms: None }, "waking\u{1b}[2J");
        let cause = Cause::AppExit;
        let retrying = StatusState::Retrying { attempt: 2, at_ms: 1, cause };
        let restarting = StatusState::WaitingToRestart { at_ms: 1, cause };
        for progress in [
            Progress::Status(&status(StatusState::Accepted { position: 0 }, "accepted")),
            Progress::Status(&waking),
            Progress::Piece("half \u{1b}[31mred"),
            Progress::Status(&status(retrying, "it crashed; next try now")),
            Progress::StartsAgain,
            Progress::Status(&status(restarting, "it crashed; it is started again now")),
            Progress::Away { is_safe: true },
            Progress::Back,
            Progress::Piece("whole\u{7}"),
        ] {
            printer.take(progress).unwrap();
        }
        printer.finish(&message("whole\u{7}")).unwrap();
        format!("out:\n{}err:\n{}", screen.out.text(), screen.err.text())
    }

    #[test]
    fn on_a_terminal_the_reply_grows_and_a_failed_attempt_is_set_apart() {
        let screen = Screen::default();
        expect![[r"
            out:
            half [31mred
            ──── that attempt failed; the reply starts again ────
            whole
            err:
            accepted as msg_00000000000000000000000000000007
            waking\u{1b}[2J
            it crashed; next try now
            the daemon is away; the message is safe, waiting
            the daemon is back
            its program ended with exit code 3
        "]]
        .assert_eq(&play(&screen, screen.terminal(), true, false));
    }

    #[test]
    fn a_status_that_is_a_signal_is_called_one() {
        let screen = Screen::default();
        let mut terminal = screen.terminal();
        let mut printer = ReplyPrinter::new(&mut terminal, false, false);
        printer.finish(&Message { exit_code: Some(-9), ..message("half") }).unwrap();
        assert_eq!(screen.err.text(), "its program was ended by signal 9\n");
    }

    #[test]
    fn nothing_is_told_twice_and_a_conversation_shows_no_ids() {
        let screen = Screen::default();
        let mut terminal = screen.terminal();
        let mut printer = ReplyPrinter::new(&mut terminal, true, false);
        printer.is_in_chat = true;
        let accepted = status(StatusState::Accepted { position: 1 }, "queued behind 1");
        let queued = status(StatusState::Queued { ahead: 1 }, "queued behind 1");
        for told in [&accepted, &queued, &queued] {
            printer.take(Progress::Status(told)).unwrap();
        }
        assert_eq!(screen.err.text(), "queued behind 1\n");
    }

    #[test]
    fn into_a_pipe_goes_the_reply_alone_and_unchanged() {
        let screen = Screen::default();
        play(&screen, screen.pipe(), false, false);
        assert_eq!(screen.out.text(), "whole\u{7}\n");
    }

    #[test]
    fn for_programs_it_is_one_document_or_one_event_per_line() {
        let screen = Screen::default();
        play(&screen, screen.pipe(), false, true);
        let value: serde_json::Value = serde_json::from_str(&screen.out.text()).unwrap();
        assert_eq!(value["reply"], "whole\u{7}");
        let screen = Screen::default();
        play(&screen, screen.pipe(), true, true);
        let names: Vec<String> = screen
            .out
            .text()
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .map(|event| event["event"].as_str().unwrap().to_owned())
            .collect();
        let expected = [
            "status",
            "status",
            "delta",
            "status",
            "starts_again",
            "status",
            "away",
            "back",
            "delta",
            "done",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn input_is_bounded_and_must_be_text() {
        let longest = vec![b'x'; MESSAGE_BYTES_MAX];
        assert_eq!(read_input(longest.as_slice()).unwrap().len(), MESSAGE_BYTES_MAX);
        let longer = vec![b'x'; MESSAGE_BYTES_MAX + 1];
        assert!(matches!(read_input(longer.as_slice()), Err(CommandError::InputTooLong)));
        assert!(matches!(read_input(&b"\xff"[..]), Err(CommandError::Input(_))));
    }

    #[test]
    fn every_message_has_a_key_of_its_own() {
        assert_ne!(fresh_key(), fresh_key());
    }
}
