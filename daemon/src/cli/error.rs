//! Errors of commands, as their users see them: what failed, why, and what to do next.
//!
//! Owner: `CommandError::report` alone chooses the words and the exit code. Invariants: an inner
//! error is said once; foreign words are escaped by the terminal. Absent: anything about single
//! commands.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use dormouse_core::id::{MessageId, SessionId};
use dormouse_core::manifest::PathError;
use dormouse_core::record::MessageState;
use serde_json::{Value, json};

use super::client::ClientError;
use super::exit::Exit;
use super::follow::FollowError;
use super::target::TargetError;
use super::terminal::{OutputError, Terminal, Tone};
use super::why_foreign::ForeignError;
use crate::api::shape::Message;
use crate::config::ConfigError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Output(#[from] OutputError),
    #[error("the message {} was not answered", .0.message_id)]
    NotAnswered(Box<Message>),
    #[error(transparent)]
    Lost(#[from] Box<Lost>),
    #[error("stopped waiting")]
    Interrupted { message_id: Option<MessageId> },
    #[error("the message cannot be read from standard input")]
    Input(#[source] io::Error),
    #[error("the message is longer than {} bytes", dormouse_core::limits::MESSAGE_BYTES_MAX)]
    InputTooLong,
    #[error("{} cannot be read or written", path.display())]
    LocalFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is there already", path.display())]
    WouldOverwrite { path: PathBuf },
    #[error("'{path}' is no path of a workspace: {source}")]
    WorkspacePath { path: String, source: PathError },
    #[error("'{name}' cannot stand for the key's subject as well as for its name")]
    KeyName { name: String },
    #[error("{session} was not started so often; its newest start is #{newest}")]
    NoSuchStart { session: SessionId, newest: u64 },
    #[error(transparent)]
    Foreign(#[from] ForeignError),
    #[error("the upgrade failed: {why}")]
    UpgradeFailed { why: String },
    #[error("no daemon that could be upgraded runs on {}", data.display())]
    NoDoor {
        data: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Run(Box<crate::run::RunError>),
    #[error("the runtime of the program could not be started")]
    Runtime(#[source] io::Error),
    /// Each was reported; what is left is the code.
    #[error("some of it failed")]
    Several { first: Exit },
}

/// A message was followed no longer.
#[derive(Debug, thiserror::Error)]
#[error("waiting for the reply failed")]
pub(crate) struct Lost {
    pub(crate) message_id: Option<MessageId>,
    pub(crate) session: SessionId,
    pub(crate) idempotency_key: String,
    #[source]
    pub(crate) source: FollowError,
}

/// What is printed of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) exit: Exit,
    /// For programs.
    pub(crate) code: String,
    pub(crate) what: String,
    pub(crate) why: Option<String>,
    /// A line each.
    pub(crate) next: Vec<String>,
    /// Where it stands, for programs.
    pub(crate) at: Option<Value>,
}

impl Report {
    fn new(exit: Exit, code: &str, what: impl ToString) -> Self {
        Self {
            exit,
            code: code.to_owned(),
            what: what.to_string(),
            why: None,
            next: Vec::new(),
            at: None,
        }
    }

    fn because(mut self, error: &dyn Error) -> Self {
        self.why = chain(error.source(), &self.what);
        self
    }

    /// In place of what was said before.
    fn next<const LINES: usize>(mut self, lines: [&str; LINES]) -> Self {
        let said = lines.iter().filter(|line| !line.is_empty());
        self.next = said.map(|line| (*line).to_owned()).collect();
        self
    }

    pub(crate) fn print(&self, terminal: &mut Terminal, as_json: bool) {
        if as_json {
            let hint = self.next.join("; ");
            let mut error = json!({"code": self.code, "message": self.what, "hint": hint});
            if let Some(why) = &self.why {
                error["cause"] = json!(why);
            }
            if let Some(at) = &self.at {
                error["at"] = at.clone();
            }
            let body = json!({"error": error, "exit_code": self.exit.code()});
            terminal.json_note(&body);
            return;
        }
        terminal.note(Tone::Red, &format!("error: {}", self.what));
        if let Some(why) = &self.why {
            terminal.note(Tone::Plain, &format!("  why:  {why}"));
        }
        for next in &self.next {
            terminal.note(Tone::Plain, &format!("  next: {next}"));
        }
    }
}

/// The inner errors, outermost first, less what has been said already.
fn chain(source: Option<&(dyn Error + 'static)>, said: &str) -> Option<String> {
    let mut words: Vec<String> = Vec::new();
    let mut next = source;
    while let Some(error) = next {
        let text = error.to_string();
        if !said.contains(&text) && !words.iter().any(|word| word.contains(&text)) {
            words.push(text);
        }
        next = error.source();
    }
    (!words.is_empty()).then(|| words.join(": "))
}

impl CommandError {
    /// `None`: the reader went away, and there is nothing to say and nobody to say it to.
    pub(crate) fn report(&self) -> Option<Report> {
        let report = match self {
            Self::Output(OutputError::ReaderGone) | Self::Several { .. } => return None,
            Self::Lost(lost) => return lost.report(),
            Self::Output(error) => output_report(error),
            Self::Client(error) => client_report(error),
            Self::Target(error) => target_report(error),
            Self::NotAnswered(message) => not_answered_report(message),
            Self::Interrupted { message_id } => interrupted_report(*message_id),
            Self::Input(_) => Report::new(Exit::Usage, "bad_input", self)
                .because(self)
                .next(["give UTF-8 text; other files go with --file"]),
            Self::InputTooLong => Report::new(Exit::Usage, "too_long", self)
                .next(["put it into several messages, or where the agent can fetch it"]),
            Self::LocalFile { .. } => Report::new(Exit::LocalFault, "file", self)
                .because(self)
                .next(["look at the path and its permissions"]),
            Self::WouldOverwrite { .. } => Report::new(Exit::Usage, "would_overwrite", self)
                .next(["--force writes over it; -o names another file"]),
            Self::WorkspacePath { .. } => Report::new(Exit::Usage, "bad_path", self)
                .next(["name it from the workspace's root, for example data/sales.csv"]),
            Self::KeyName { .. } => Report::new(Exit::Usage, "bad_subject", self)
                .next(["say with --subject whom the key stands for: --subject bot"]),
            Self::NoSuchStart { session, .. } => {
                let words = format!("dormouse why {session} has the timeline");
                Report::new(Exit::NotFound, "no_such_start", self).next([&words])
            }
            Self::UpgradeFailed { .. } => Report::new(Exit::Failed, "upgrade_failed", self)
                .next(["`dormouse ps` shows whether the daemon goes on; its log says more"]),
            Self::NoDoor { .. } => Report::new(Exit::Unreachable, "no_daemon", self)
                .because(self)
                .next(["name its data folder with --data"]),
            Self::Foreign(error) => foreign_report(error),
            Self::Config(error) => config_report(error),
            Self::Run(source) => {
                let next = if crate::report::chain(source).contains("is malformed") {
                    "the database is damaged, and was left as it is: put back a copy of it"
                } else {
                    "dormouse doctor shows what this machine lacks"
                };
                Report::new(Exit::Failed, "daemon_failed", source).because(source).next([next])
            }
            Self::Runtime(_) => Report::new(Exit::LocalFault, "no_runtime", self)
                .because(self)
                .next(["look at the limits of open files and processes (ulimit -a)"]),
        };
        Some(report)
    }

    pub(crate) fn exit(&self) -> Exit {
        match self {
            Self::Several { first } => *first,
            _ => self.report().map_or(Exit::Done, |report| report.exit),
        }
    }
}

fn output_report(error: &OutputError) -> Report {
    Report::new(Exit::LocalFault, "output", error)
        .because(error)
        .next(["look at the free space where the output goes"])
}

fn client_report(error: &ClientError) -> Report {
    match error {
        ClientError::Unreachable { .. } => {
            Report::new(Exit::Unreachable, "unreachable", error).because(error).next([
                "dormouse doctor says whether one runs here",
                "--url and --data say where to look for it",
            ])
        }
        ClientError::Cut { .. } | ClientError::Silent { .. } => {
            Report::new(Exit::Unreachable, "cut", error)
                .because(error)
                .next(["try again; if it stays so, look at the log of the daemon"])
        }
        ClientError::NotUnderstood { .. } => Report::new(Exit::DaemonFault, "no_sense", error)
            .next(["look whether --url leads to a dormouse of this version (dormouse --version)"]),
        ClientError::Answered { status, detail, had_key } => {
            let exit = Exit::of_status(*status);
            let report = Report::new(exit, &detail.code, &detail.message);
            if exit == Exit::NotAllowed && !had_key {
                return report.next([
                    "set DORMOUSE_KEY; no key was given",
                    "or name the data folder of this machine's daemon with --data",
                ]);
            }
            report.next([&detail.hint])
        }
    }
}

fn foreign_report(error: &ForeignError) -> Report {
    match error {
        ForeignError::Document(_) => Report::new(Exit::Usage, "bad_evidence", error)
            .next(["give what the platform's own tool prints as JSON; --help names the commands"]),
        ForeignError::Read { .. } => Report::new(Exit::LocalFault, "file", error)
            .because(error)
            .next(["look at the path and its permissions"]),
        ForeignError::NothingRead { .. } => Report::new(Exit::Failed, "no_evidence", error)
            .next(["--from FILE reads what the platform's tool printed elsewhere"]),
        ForeignError::Runtime(_) => Report::new(Exit::LocalFault, "no_runtime", error)
            .because(error)
            .next(["look at the limits of open files and processes (ulimit -a)"]),
    }
}

fn config_report(error: &ConfigError) -> Report {
    match error {
        ConfigError::Read { .. } => Report::new(Exit::LocalFault, "file", error)
            .because(error)
            .next(["look at the path and its permissions"]),
        ConfigError::Wrong(wrong) => {
            let mut report = Report::new(Exit::Usage, "bad_config", error)
                .next(["dormouse config schema lists every setting"]);
            let line = wrong.place.zip(wrong.line.as_ref());
            report.why = line.map(|(at, line)| format!("line {} is: {}", at.line, line));
            report.at = Some(json!({
                "file": wrong.path, "line": wrong.place.map(|at| at.line),
                "column": wrong.place.map(|at| at.column), "setting": wrong.setting,
                "problem": wrong.problem,
            }));
            report
        }
        ConfigError::TooLarge { .. }
        | ConfigError::Empty { .. }
        | ConfigError::NotText { .. }
        | ConfigError::Environment { .. } => Report::new(Exit::Usage, "bad_config", error)
            .next(["dormouse config schema lists every setting"]),
    }
}

fn target_report(error: &TargetError) -> Report {
    match error {
        TargetError::Url { .. } => Report::new(Exit::Usage, "bad_url", error)
            .next(["write --url or DORMOUSE_URL like http://127.0.0.1:7766"]),
        TargetError::Https => Report::new(Exit::NotSupported, "https_not_supported", error)
            .next(["use http:// on this machine, or a tunnel: ssh -L 7766:127.0.0.1:7766 HOST"]),
        TargetError::KeyFile { .. } => Report::new(Exit::LocalFault, "key_file", error)
            .because(error)
            .next(["run it as the user of the daemon, or give a key in DORMOUSE_KEY"]),
        TargetError::KeyText { .. } => Report::new(Exit::Usage, "bad_key", error)
            .next(["give the whole key as it was printed when it was made"]),
    }
}

fn not_answered_report(message: &Message) -> Report {
    let id = message.message_id;
    let code = message.cause.map_or("not_answered", |cause| cause.code());
    let why = format!("dormouse why {id}");
    let mut report = match message.state {
        MessageState::Cancelled => {
            let what = format!("the message {id} was dropped before it was answered");
            Report::new(Exit::Failed, code, what).next([&why])
        }
        _ => {
            let what = format!("the message {id} was given up after {} attempts", message.attempts);
            let again = format!("dormouse queue redrive {id}");
            Report::new(Exit::Failed, code, what).next([&why, &again])
        }
    };
    let cause_text = message.cause_text.clone();
    let words: Vec<String> = cause_text.into_iter().chain(message.detail.clone()).collect();
    report.why = (!words.is_empty()).then(|| format!("{} [{code}]", words.join(": ")));
    report
}

impl Lost {
    fn report(&self) -> Option<Report> {
        let source = &self.source;
        let report = match source {
            FollowError::Output(OutputError::ReaderGone) => return None,
            FollowError::Client(error) => client_report(error),
            FollowError::Output(error) => output_report(error),
            FollowError::Told(detail) => {
                Report::new(Exit::Failed, &detail.code, source).next([&detail.hint])
            }
            FollowError::StayedAway { .. } => {
                Report::new(Exit::Unreachable, "stayed_away", source).because(source)
            }
        };
        let is_refused = matches!(source, FollowError::Client(_)) && self.message_id.is_none();
        if is_refused {
            return Some(report);
        }
        Some(match self.message_id {
            Some(id) => {
                report.next(["the message is safe; see it with:", &format!("dormouse why {id}")])
            }
            None => report.next([
                "it is not known whether it was accepted; to send it and not run it twice:",
                &format!(
                    "dormouse send --idempotency-key {} {} …",
                    self.idempotency_key, self.session
                ),
            ]),
        })
    }
}

fn interrupted_report(message_id: Option<MessageId>) -> Report {
    let report = |what| Report::new(Exit::Interrupted, "interrupted", what);
    match message_id {
        Some(id) => report("stopped waiting; the message goes on")
            .next([&format!("dormouse why {id}"), &format!("dormouse queue drop {id}")]),
        None => {
            report("stopped before an answer came").next(["dormouse ps shows what is going on"])
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::super::terminal::testing::Screen;
    use super::*;
    use crate::api::shape::ErrorDetail;

    fn check(error: CommandError, expected: Expect) {
        let screen = Screen::default();
        let report = error.report().unwrap();
        report.print(&mut screen.terminal(), false);
        let text = screen.err.text().replace(&"0".repeat(31), "…");
        expected.assert_eq(&format!("{text}exit {}\n", report.exit.code()));
    }

    fn answered(status: u16, code: &str, had_key: bool) -> CommandError {
        let detail = ErrorDetail {
            code: code.to_owned(),
            message: format!("it is {code}\u{1b}[2J"),
            hint: "do something".to_owned(),
            message_id: None,
        };
        ClientError::Answered { status, detail: Box::new(detail), had_key }.into()
    }

    #[test]
    fn nobody_there() {
        let error = ClientError::Unreachable {
            url: "http://127.0.0.1:7766".to_owned(),
            source: io::ErrorKind::ConnectionRefused.into(),
        };
        check(
            error.into(),
            expect![[r#"
                error: no dormouse answers at http://127.0.0.1:7766; start one with `dormouse up`
                  why:  connection refused
                  next: dormouse doctor says whether one runs here
                  next: --url and --data say where to look for it
                exit 3
            "#]],
        );
    }

    #[test]
    fn the_daemons_words_are_passed_on_without_their_control_characters() {
        check(
            answered(409, "session_backoff", true),
            expect![[r#"
                error: it is session_backoff\u{1b}[2J
                  next: do something
                exit 7
            "#]],
        );
    }

    #[test]
    fn a_missing_key_is_told_from_a_wrong_one() {
        check(
            answered(401, "no_key", false),
            expect![[r#"
                error: it is no_key\u{1b}[2J
                  next: set DORMOUSE_KEY; no key was given
                  next: or name the data folder of this machine's daemon with --data
                exit 4
            "#]],
        );
        assert_eq!(answered(403, "wrong", true).report().unwrap().next, ["do something"]);
    }

    #[test]
    fn a_dead_letter_says_why_and_what_can_be_done() {
        let message = serde_json::from_value(json!({
            "message_id": "msg_00000000000000000000000000000001", "session": "python/main",
            "state": "dead", "attempts": 3, "accepted_at_ms": 1, "cause": "oom_limit",
            "cause_text": "it needed too much memory", "detail": "limit 512 MiB",
        }));
        check(
            CommandError::NotAnswered(message.unwrap()),
            expect![[r#"
                error: the message msg_…1 was given up after 3 attempts
                  why:  it needed too much memory: limit 512 MiB [oom_limit]
                  next: dormouse why msg_…1
                  next: dormouse queue redrive msg_…1
                exit 1
            "#]],
        );
    }

    #[test]
    fn a_lost_contact_says_whether_the_message_is_safe() {
        let away = |message_id| {
            let source = ClientError::Silent {
                url: "http://x".to_owned(),
                span: std::time::Duration::from_secs(5),
            };
            CommandError::from(Box::new(Lost {
                message_id,
                session: "python/main".parse().unwrap(),
                idempotency_key: "k1".to_owned(),
                source: FollowError::StayedAway { source },
            }))
        };
        check(
            away(Some(MessageId(1))),
            expect![[r#"
                error: the daemon went away and did not come back
                  why:  http://x was silent for 5 s
                  next: the message is safe; see it with:
                  next: dormouse why msg_…1
                exit 3
            "#]],
        );
        check(
            away(None),
            expect![[r#"
                error: the daemon went away and did not come back
                  why:  http://x was silent for 5 s
                  next: it is not known whether it was accepted; to send it and not run it twice:
                  next: dormouse send --idempotency-key k1 python/main …
                exit 3
            "#]],
        );
    }

    #[test]
    fn for_programs_it_is_one_line_of_json() {
        let screen = Screen::default();
        answered(404, "no_session", true).report().unwrap().print(&mut screen.pipe(), true);
        let value: serde_json::Value = serde_json::from_str(&screen.err.text()).unwrap();
        assert_eq!(value["error"]["code"], "no_session");
        assert_eq!(value["exit_code"], 5);
        assert_eq!(screen.err.text().lines().count(), 1);
    }

    #[test]
    fn a_reader_that_went_away_is_no_failure() {
        let error = CommandError::from(OutputError::ReaderGone);
        assert_eq!(error.report(), None);
        assert_eq!(error.exit(), Exit::Done);
    }
}
