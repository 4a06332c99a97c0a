//! `logs`: what an agent printed.
//!
//! Invariants: a line is shown once, also when the stream was cut and opened anew; what the agent
//! wrote cannot drive the terminal. Absent: searching.

use dormouse_core::id::SessionId;
use serde_json::json;
use tokio::time::Instant;

use super::Context;
use super::arguments::Logs;
use super::client::{Call, ClientError};
use super::error::CommandError;
use super::follow::Patience;
use super::scrub;
use super::terminal::Tone;

/// Longer lines are shown in parts.
const LINE_BYTES_MAX: usize = 1 << 20;

pub(crate) async fn logs(arguments: Logs, context: &mut Context<'_>) -> Result<(), CommandError> {
    let session = arguments.session.0;
    let patience = Patience::default();
    let mut reader = Reader::new(&session, arguments.lines, arguments.follow);
    let read = tokio::select! {
        read = reader.read(patience, context) => Some(read),
        signal = tokio::signal::ctrl_c() => signal.map(|()| None).map_err(CommandError::Runtime)?,
    };
    match read {
        // To end what has no end by itself is no failure.
        None => Ok(()),
        Some(Ok(())) if reader.seen.is_nothing() && !context.as_json => {
            let words = format!("{session} has not printed anything yet");
            context.terminal.status(&words);
            Ok(())
        }
        Some(result) => result,
    }
}

#[derive(Debug)]
struct Reader<'a> {
    session: &'a SessionId,
    lines: u32,
    is_following: bool,
    seen: Seen,
}

impl<'a> Reader<'a> {
    fn new(session: &'a SessionId, lines: u32, is_following: bool) -> Self {
        Self { session, lines, is_following, seen: Seen::default() }
    }

    async fn read(
        &mut self,
        patience: Patience,
        context: &mut Context<'_>,
    ) -> Result<(), CommandError> {
        let mut last_contact: Option<Instant> = None;
        let mut is_told = false;
        let mut pause = patience.first_pause;
        loop {
            let error = match self.read_once(context, &mut last_contact, &mut is_told).await {
                Ok(()) if !self.is_following => return Ok(()),
                Ok(()) => None,
                Err(CommandError::Client(error)) if self.is_following => Some(error),
                Err(error) => return Err(error),
            };
            let is_within = last_contact.is_some_and(|at| at.elapsed() < patience.away_max);
            if let Some(error) = error {
                let may_pass = error.is_absence()
                    || matches!(error, ClientError::Answered { status: 429 | 502..=504, .. });
                if !may_pass || !is_within {
                    return Err(error.into());
                }
                if !std::mem::replace(&mut is_told, true) {
                    context.terminal.status("the daemon is away; waiting for it");
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(patience.pause_max);
        }
    }

    async fn read_once(
        &mut self,
        context: &mut Context<'_>,
        last_contact: &mut Option<Instant>,
        is_told: &mut bool,
    ) -> Result<(), CommandError> {
        let (agent, key) = (self.session.agent(), self.session.key());
        let follow = if self.is_following { "&follow=true" } else { "" };
        let path = format!("/v1/sessions/{agent}/{key}/logs?lines={}{follow}", self.lines);
        let mut answer = context.client.open(Call::get(path)).await?;
        *last_contact = Some(Instant::now());
        if std::mem::take(is_told) {
            context.terminal.status("the daemon is back");
        }
        self.seen.begin_again();
        let mut pending: Vec<u8> = Vec::new();
        while let Some(bytes) = answer.next(None).await? {
            *last_contact = Some(Instant::now());
            for byte in bytes {
                if byte != b'\n' {
                    pending.push(byte);
                }
                if byte == b'\n' || pending.len() >= LINE_BYTES_MAX {
                    self.show(&std::mem::take(&mut pending), context)?;
                }
            }
        }
        if pending.is_empty() { Ok(()) } else { self.show(&pending, context) }
    }

    fn show(&mut self, bytes: &[u8], context: &mut Context<'_>) -> Result<(), CommandError> {
        let text = String::from_utf8_lossy(bytes);
        let line = LogLine::parse(&text);
        if !self.seen.is_new(line.at_ms) {
            return Ok(());
        }
        if context.as_json {
            let at_ms = line.at_ms;
            let value = json!({"at_ms": at_ms, "stream": line.stream, "text": line.text});
            return Ok(context.terminal.json_line(&value)?);
        }
        let at = line.at_ms.map(|at_ms| context.moment.clock(at_ms)).unwrap_or_default();
        let head = format!("{at} {:<6}", scrub::line(line.stream));
        let tone = if line.stream == "err" { Tone::Yellow } else { Tone::Plain };
        let words = if context.terminal.out_is_terminal() {
            scrub::line(&line.text.replace('\t', "    ")).into_owned()
        } else {
            line.text.to_owned()
        };
        let head = context.terminal.toned(Tone::Dim, &head);
        let words = context.terminal.toned(tone, &words);
        Ok(context.terminal.line(&format!("{head} {words}"))?)
    }
}

/// `1795352400000 err the text`
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LogLine<'a> {
    pub(crate) at_ms: Option<u64>,
    pub(crate) stream: &'a str,
    pub(crate) text: &'a str,
}

impl<'a> LogLine<'a> {
    pub(crate) fn parse(line: &'a str) -> Self {
        let parts = line.split_once(' ').and_then(|(at, rest)| {
            let (stream, text) = rest.split_once(' ').unwrap_or((rest, ""));
            let is_stream = matches!(stream, "out" | "err" | "bridge");
            at.parse().ok().filter(|_| is_stream).map(|at_ms| (at_ms, stream, text))
        });
        match parts {
            Some((at_ms, stream, text)) => Self { at_ms: Some(at_ms), stream, text },
            None => Self { at_ms: None, stream: "", text: line },
        }
    }
}

/// Which lines were shown, so that a stream that is opened anew repeats none.
#[derive(Debug, Default)]
struct Seen {
    newest_ms: u64,
    /// Lines shown of `newest_ms`.
    of_newest: u64,
    total: u64,
    /// Lines of `newest_ms` that still come again.
    to_skip: u64,
}

impl Seen {
    fn is_nothing(&self) -> bool {
        self.total == 0
    }

    fn begin_again(&mut self) {
        self.to_skip = self.of_newest;
    }

    fn is_new(&mut self, at_ms: Option<u64>) -> bool {
        let at_ms = at_ms.unwrap_or(self.newest_ms);
        if at_ms < self.newest_ms && self.to_skip > 0 {
            return false;
        }
        if at_ms == self.newest_ms && self.to_skip > 0 {
            self.to_skip -= 1;
            return false;
        }
        if at_ms > self.newest_ms {
            (self.newest_ms, self.of_newest) = (at_ms, 0);
        }
        self.to_skip = 0;
        self.of_newest += u64::from(at_ms == self.newest_ms);
        self.total += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;
    use jiff::tz::TimeZone;

    use super::super::terminal::testing::Screen;
    use super::super::testing::ScriptedServer;
    use super::super::when::Moment;
    use super::*;

    const PATIENCE: Patience = Patience {
        first_pause: Duration::from_millis(1),
        pause_max: Duration::from_millis(5),
        away_max: Duration::from_millis(200),
        silence_max: Duration::from_secs(20),
    };

    fn plain(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    }

    async fn shown(answers: Vec<String>, follow: bool) -> (String, String, Vec<String>) {
        let server = ScriptedServer::start(answers).await;
        let screen = Screen::default();
        let mut terminal = screen.terminal();
        let moment = Moment::fixed(1_795_352_400_000, TimeZone::UTC);
        let mut context =
            Context { terminal: &mut terminal, client: server.client(), moment, as_json: false };
        let session = "python/main".parse().unwrap();
        let mut reader = Reader::new(&session, 50, follow);
        let end = match reader.read(PATIENCE, &mut context).await {
            Ok(()) => "end".to_owned(),
            Err(error) => error.exit().code().to_string(),
        };
        (screen.out.text(), end, server.request_lines())
    }

    #[tokio::test]
    async fn lines_carry_local_times_and_no_control_characters() {
        let body = "1795352400000 out hello\tyou\n1795352401000 err \u{1b}[31mred\u{1b}[0m\n\
                    1795352402000 bridge agent ended\nodd line";
        let (text, end, asked) = shown(vec![plain(body)], false).await;
        expect![[r"
            13:00:00 out    hello    you
            13:00:01 err    \u{1b}[31mred\u{1b}[0m
            13:00:02 bridge agent ended
                    odd line
        "]]
        .assert_eq(&text);
        assert_eq!(end, "end");
        assert_eq!(asked, ["GET /v1/sessions/python/main/logs?lines=50"]);
    }

    #[tokio::test]
    async fn following_survives_a_cut_and_repeats_no_line() {
        let first = "1795352400000 out a\n1795352401000 out b\n1795352401000 out c\n";
        let second = "1795352401000 out b\n1795352401000 out c\n1795352401000 out d\n\
                      1795352402000 out e\n";
        let (text, end, asked) = shown(vec![plain(first), plain(second)], true).await;
        let words: Vec<&str> =
            text.lines().filter_map(|line| line.split(' ').next_back()).collect();
        assert_eq!(words, ["a", "b", "c", "d", "e"]);
        assert_eq!(end, "3", "nobody answers any more");
        assert_eq!(asked[1], "GET /v1/sessions/python/main/logs?lines=50&follow=true");
    }
}
