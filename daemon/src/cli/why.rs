//! `why`: the verdict first, then what it rests on.
//!
//! Invariants: every foreign word is escaped; times are local; what is not known is left out or
//! called unknown, never guessed. Absent: conclusions, which are the daemon's.

use std::time::Duration;

use dormouse_core::evidence::{AskedBy, End, Evidence};
use dormouse_core::id::{Generation, SessionId};
use dormouse_core::journal::human_span;
use dormouse_core::limits::JOURNAL_ROWS_PER_SESSION;
use dormouse_core::record::MessageState;
use serde_json::Value;

use super::Context;
use super::arguments::{Why as WhyArguments, WhySubject};
use super::client::Call;
use super::error::CommandError;
use super::logs::LogLine;
use super::pages::items;
use super::scrub;
use super::table::aligned;
use super::terminal::Tone;
use super::when::Moment;
use crate::api::shape::{ExitView, JournalRow, Message, SessionView, Why};

/// Of a longer log tail, so many of its first and of its last lines are shown.
const TAIL_LINES_FIRST: usize = 3;
const TAIL_LINES_LAST: usize = 9;

pub(crate) async fn why(
    arguments: WhyArguments,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    let (path, generation) = match &arguments.subject {
        WhySubject::Message(id) => (format!("/v1/messages/{id}/why"), None),
        WhySubject::Session(id) => (format!("/v1/sessions/{}/{}/why", id.agent(), id.key()), None),
        WhySubject::Instance(id, generation) => {
            (format!("/v1/sessions/{}/{}/why", id.agent(), id.key()), Some(*generation))
        }
    };
    let mut value: Value = context.client.json(Call::get(path)).await?;
    if let WhySubject::Instance(session, generation) = &arguments.subject {
        narrow(&mut value, session, *generation, context).await?;
    }
    context.show(&value, |context| {
        let why: Why = context.client.typed(&value)?;
        let toned = |tone, text: &str| context.terminal.toned(tone, text);
        let page = Page { why: &why, generation, moment: &context.moment, toned: &toned };
        let text = page.render();
        Ok(context.terminal.line(&text)?)
    })
}

/// Keeps of a session's `why` what concerns one of its lives, with all of that life's journal.
async fn narrow(
    value: &mut Value,
    session: &SessionId,
    generation: Generation,
    context: &Context<'_>,
) -> Result<(), CommandError> {
    let newest = value["session"]["generation"].as_u64().unwrap_or_default();
    if !(1..=newest).contains(&generation.0) {
        return Err(CommandError::NoSuchStart { session: session.clone(), newest });
    }
    let path = format!("/v1/sessions/{}/{}/journal", session.agent(), session.key());
    let rows = items(&context.client, &path, &[], JOURNAL_ROWS_PER_SESSION as usize).await?;
    let is_of_it = |part: &Value| part["generation"] == generation.0;
    let of_it = rows.values.into_iter().rev().filter(is_of_it);
    value["timeline"] = of_it.collect();
    if let Some(answer) = value.as_object_mut()
        && answer.get("last_exit").is_some_and(|exit| !is_of_it(exit))
    {
        answer.remove("last_exit");
    }
    Ok(())
}

struct Page<'a> {
    why: &'a Why,
    /// Of one life only.
    generation: Option<Generation>,
    moment: &'a Moment,
    toned: &'a dyn Fn(Tone, &str) -> String,
}

impl Page<'_> {
    fn render(&self) -> String {
        let why = self.why;
        let mut lines = vec![self.verdict()];
        if let Some(message) = &why.message {
            lines.extend(self.section("Message", self.message(message)));
        }
        lines.extend(self.section("Session", self.session(&why.session)));
        if self.is_newest() {
            lines.extend(self.section("Awake because", bullets(&why.awake_because)));
        }
        lines.extend(self.exit_section());
        lines.extend(self.section("Timeline", self.timeline(&why.timeline)));
        lines.extend(self.section("What you can do", bullets(&why.next_steps)));
        lines.join("\n")
    }

    /// What is asked about is the session, or its newest life.
    fn is_newest(&self) -> bool {
        self.generation.is_none_or(|generation| generation == self.why.session.generation)
    }

    fn verdict(&self) -> String {
        let verdict = (self.toned)(Tone::Bold, &scrub::line(&self.why.verdict));
        match self.generation {
            None => verdict,
            Some(generation) => {
                let session = &self.why.session.session;
                format!("Start #{generation} of {session}. Now: {verdict}")
            }
        }
    }

    /// Nothing without lines.
    fn section(&self, heading: &str, lines: Vec<String>) -> Vec<String> {
        if lines.is_empty() {
            return Vec::new();
        }
        let head = [String::new(), (self.toned)(Tone::Bold, heading)];
        head.into_iter().chain(lines.into_iter().map(|line| format!("  {line}"))).collect()
    }

    fn message(&self, message: &Message) -> Vec<String> {
        let state = match message.state {
            MessageState::Pending => match message.position {
                Some(0) | None => "waits for its turn".to_owned(),
                Some(before) => format!("waits, {before} before it"),
            },
            MessageState::Leased => "the agent works on it".to_owned(),
            MessageState::Answered => "answered".to_owned(),
            MessageState::Dead => "dead letter: it is not tried again by itself".to_owned(),
            MessageState::Cancelled => "dropped".to_owned(),
        };
        let mut facts = Facts::default();
        facts.add("session", message.session.to_string());
        facts.add("state", state);
        facts.add("attempts", message.attempts.to_string());
        facts.add("accepted", self.moment.clock_and_distance(message.accepted_at_ms));
        facts.maybe("ended", message.ended_at_ms.map(|at| self.moment.clock_and_distance(at)));
        facts
            .maybe("cause", message.cause.map(|cause| format!("{cause}: {}", cause.plain_words())));
        facts.maybe("detail", message.detail.clone());
        facts.maybe("exit code", message.exit_code.map(|code| code.to_string()));
        facts.maybe("tries anew", message.redrive_of.map(|id| id.to_string()));
        facts.maybe("tried anew as", message.redriven_as.map(|id| id.to_string()));
        facts.lines()
    }

    fn session(&self, session: &SessionView) -> Vec<String> {
        let mut facts = Facts::default();
        facts.add("phase", session.phase.to_string());
        facts.add("starts", session.generation.to_string());
        facts.add("waiting", session.waiting.to_string());
        if session.failures > 0 {
            let cause = session.last_failure.map(|cause| format!(", the last: {cause}"));
            let failures = format!("{} in a row{}", session.failures, cause.unwrap_or_default());
            facts.add("failures", failures);
        }
        let next = session.next_start_at_ms.map(|at| self.moment.clock_and_distance(at));
        facts.maybe("next start", next);
        facts.maybe("last start took", session.start_took_ms.map(span));
        facts.lines()
    }

    fn exit_section(&self) -> Vec<String> {
        match (&self.why.last_exit, self.generation) {
            (Some(exit), None) => self.section("Last end", self.exit(exit)),
            (Some(exit), Some(_)) => self.section("Its end", self.exit(exit)),
            (None, Some(_)) if self.is_newest() && self.why.session.phase.has_instance() => {
                self.section("Its end", vec!["it has not ended".to_owned()])
            }
            (None, Some(_)) => {
                let words = "its evidence is not shown any more; the timeline has what is known";
                self.section("Its end", vec![words.to_owned()])
            }
            (None, None) => Vec::new(),
        }
    }

    fn exit(&self, exit: &ExitView) -> Vec<String> {
        let evidence = &exit.evidence;
        let mut facts = Facts::default();
        facts.add("start", format!("#{}, in phase {}", exit.generation, exit.phase));
        facts.add("at", self.moment.clock_and_distance(exit.at_ms));
        facts.add(
            "cause",
            match exit.cause {
                Some(cause) => format!("{cause}: {}", cause.plain_words()),
                None => "none: it ended as it was asked to".to_owned(),
            },
        );
        facts.add("end", end_words(evidence));
        facts.add("asked by", asked_by_words(evidence.asked_by).to_owned());
        facts.maybe("lived", evidence.uptime_ms.map(span));
        facts.maybe("memory", memory_words(evidence));
        facts.maybe(
            "oom kills",
            evidence.oom_kills.map(|kills| format!("{kills} counted by the kernel")),
        );
        facts.maybe("in flight", exit.message_in_flight.map(|id| id.to_string()));
        let mut lines = facts.lines();
        lines.extend(log_tail(&evidence.log_tail, self.moment));
        lines
    }

    fn timeline(&self, rows: &[JournalRow]) -> Vec<String> {
        let cells = rows.iter().map(|row| {
            let change = match row.from == row.to {
                true => row.to.to_string(),
                false => format!("{} → {}", row.from, row.to),
            };
            let (at, start) = (self.moment.clock(row.at_ms), format!("#{}", row.generation));
            [at, start, change, row.text.clone()]
        });
        aligned(&cells.collect::<Vec<_>>())
    }
}

/// Named facts, one per line, their values lined up.
#[derive(Debug, Default)]
struct Facts(Vec<(&'static str, String)>);

impl Facts {
    fn add(&mut self, name: &'static str, value: String) {
        self.0.push((name, value));
    }

    fn maybe(&mut self, name: &'static str, value: Option<String>) {
        self.0.extend(value.map(|value| (name, value)));
    }

    fn lines(self) -> Vec<String> {
        let cells = self.0.into_iter().map(|(name, value)| [name.to_owned(), value]);
        aligned(&cells.collect::<Vec<_>>())
    }
}

fn bullets(items: &[String]) -> Vec<String> {
    items.iter().map(|item| format!("- {}", scrub::line(item))).collect()
}

fn span(ms: u64) -> String {
    human_span(Duration::from_millis(ms))
}

fn end_words(evidence: &Evidence) -> String {
    let mut words = match &evidence.end {
        End::Exited { code } => format!("exit code {code}"),
        End::Signaled { signal } => match signal_name(*signal) {
            Some(name) => format!("signal {signal} ({name})"),
            None => format!("signal {signal}"),
        },
        End::LaunchFailed { error } => format!("could not be executed: {error}"),
        End::NeverLaunched => "ended before its program was executed".to_owned(),
        End::BridgeLost => "its bridge was gone without a report".to_owned(),
    };
    if evidence.grace_ran_out {
        words.push_str(", killed when its grace ran out");
    }
    words
}

fn signal_name(signal: i32) -> Option<&'static str> {
    let names = [
        (1, "SIGHUP"),
        (2, "SIGINT"),
        (3, "SIGQUIT"),
        (4, "SIGILL"),
        (6, "SIGABRT"),
        (7, "SIGBUS"),
        (8, "SIGFPE"),
        (9, "SIGKILL"),
        (11, "SIGSEGV"),
        (13, "SIGPIPE"),
        (15, "SIGTERM"),
        (24, "SIGXCPU"),
        (25, "SIGXFSZ"),
        (31, "SIGSYS"),
    ];
    names.into_iter().find(|(number, _)| *number == signal).map(|(_, name)| name)
}

fn asked_by_words(asked_by: Option<AskedBy>) -> &'static str {
    match asked_by {
        None => "nobody, as far as is known",
        Some(AskedBy::Daemon) => "the daemon",
        Some(AskedBy::OrphanLimit) => "its bridge, because no daemon came back for it",
        Some(AskedBy::Signal) => "somebody who sent a signal to its bridge",
        Some(AskedBy::Driver) => "the driver, which was told to kill it",
    }
}

fn memory_words(evidence: &Evidence) -> Option<String> {
    match (evidence.memory_peak_bytes, evidence.memory_limit_bytes) {
        (Some(peak), Some(limit)) => Some(format!("peak {} of {}", size(peak), size(limit))),
        (Some(peak), None) => Some(format!("peak {}, no limit known", size(peak))),
        (None, Some(limit)) => Some(format!("peak unknown, limit {}", size(limit))),
        (None, None) => None,
    }
}

/// "510.2 MiB"
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => {
            let tenths = u128::from(bytes) * 10 / u128::from(unit);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

fn log_tail(tail: &str, moment: &Moment) -> Vec<String> {
    let all: Vec<&str> = tail.lines().collect();
    if all.is_empty() {
        return vec!["it printed nothing".to_owned()];
    }
    let quoted = |line: &&str| {
        let line = LogLine::parse(line);
        let at = line.at_ms.map(|at_ms| format!("{} {:<6} ", moment.clock(at_ms), line.stream));
        format!("  │ {}{}", at.unwrap_or_default(), scrub::line(line.text))
    };
    if all.len() <= TAIL_LINES_FIRST + TAIL_LINES_LAST + 1 {
        let head = vec!["its last lines".to_owned()];
        return head.into_iter().chain(all.iter().map(quoted)).collect();
    }
    let (first, rest) = all.split_at(TAIL_LINES_FIRST);
    let (left_out, last) = rest.split_at(rest.len() - TAIL_LINES_LAST);
    let mut lines = vec![format!("its last {} lines", all.len())];
    lines.extend(first.iter().map(quoted));
    lines.push(format!("  ⋮ {} more; --json has them all", left_out.len()));
    lines.extend(last.iter().map(quoted));
    lines
}

#[cfg(test)]
mod tests;
