//! `chat`: a conversation, line by line.
//!
//! Invariants: one message at a time, in the order of the lines; a failed message ends the
//! conversation only if the daemon is gone. Ctrl-C ends the waiting, not the message; Ctrl-D ends
//! the conversation. Absent: editing of lines beyond what the terminal does itself.

use std::io::{self, BufRead, IsTerminal};

use dormouse_core::id::SessionId;
use dormouse_core::limits::MESSAGE_BYTES_MAX;
use dormouse_core::record::MessageState;
use tokio::sync::mpsc;

use super::Context;
use super::arguments::Chat;
use super::error::CommandError;
use super::exit::Exit;
use super::send::{Turn, fresh_key};

const PROMPT: &str = "› ";

pub(crate) async fn chat(arguments: Chat, context: &mut Context<'_>) -> Result<(), CommandError> {
    let session = arguments.session.0;
    let is_by_hand = io::stdin().is_terminal() && context.terminal.out_is_terminal();
    if is_by_hand {
        let words = format!("talking to {session}; Ctrl-C stops waiting for a reply, Ctrl-D ends");
        context.terminal.status(&words);
    }
    let mut lines = lines_of_input();
    let mut first_failure = None;
    loop {
        if is_by_hand {
            context.terminal.prompt(PROMPT)?;
        }
        let line = tokio::select! {
            line = lines.recv() => line,
            signal = tokio::signal::ctrl_c() => {
                signal.map_err(CommandError::Runtime)?;
                if !is_by_hand {
                    return Err(CommandError::Interrupted { message_id: None });
                }
                context.terminal.prompt("\n")?;
                context.terminal.status("Ctrl-D ends the conversation");
                continue;
            }
        };
        let Some(line) = line else { break };
        let line = line.map_err(CommandError::Input)?;
        if line.trim().is_empty() {
            continue;
        }
        let Err(error) = one_turn(&session, &line, is_by_hand, context).await else { continue };
        if let CommandError::Interrupted { message_id: Some(id) } = &error
            && is_by_hand
        {
            let words = format!("not waiting any more; the message goes on: dormouse why {id}");
            context.terminal.status(&words);
            continue;
        }
        let Some(report) = error.report() else { return Err(error) };
        if matches!(report.exit, Exit::Unreachable | Exit::NotAllowed | Exit::LocalFault) {
            return Err(error);
        }
        report.print(context.terminal, context.as_json);
        first_failure.get_or_insert(report.exit);
    }
    if is_by_hand {
        context.terminal.prompt("\n")?;
        return Ok(());
    }
    first_failure.map_or(Ok(()), |first| Err(CommandError::Several { first }))
}

async fn one_turn(
    session: &SessionId,
    text: &str,
    is_streamed: bool,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let idempotency_key = fresh_key();
    let turn = Turn { session, text, idempotency_key: &idempotency_key, is_in_chat: true };
    let is_streamed = is_streamed && !context.as_json;
    let message = turn.run_to_its_end(is_streamed, context).await?;
    match message.state {
        MessageState::Answered => Ok(()),
        _ => Err(CommandError::NotAnswered(Box::new(message))),
    }
}

/// The lines of standard input, read by a thread of their own: reading blocks. The thread ends with
/// the input, or with the process.
fn lines_of_input() -> mpsc::Receiver<io::Result<String>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let line = read_line(&mut input);
            let is_last = !matches!(line, Ok(Some(_)));
            let Some(line) = line.transpose() else { return };
            if sender.blocking_send(line).is_err() || is_last {
                return;
            }
        }
    });
    receiver
}

/// The next line without its end; `None` at the end of the input.
fn read_line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    let cap = MESSAGE_BYTES_MAX as u64 + 1;
    if io::Read::take(input, cap).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    if line.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::other("a line is longer than a message may be"));
    }
    let kept = line.trim_end_matches(['\n', '\r']).len();
    line.truncate(kept);
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_without_their_ends_and_the_last_needs_none() {
        let mut input: &[u8] = b"one\r\n\ntwo";
        let mut next = || read_line(&mut input).unwrap();
        assert_eq!(next().as_deref(), Some("one"));
        assert_eq!(next().as_deref(), Some(""));
        assert_eq!(next().as_deref(), Some("two"));
        assert_eq!(next(), None);
    }

    #[test]
    fn a_line_that_never_ends_is_refused() {
        let endless = vec![b'x'; MESSAGE_BYTES_MAX + 2];
        assert!(read_line(&mut endless.as_slice()).is_err());
    }
}
