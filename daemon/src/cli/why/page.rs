//! What `why` says, in the order in which it is asked: what is the case, because of what, on which
//! evidence, what became of the work, whether it goes in circles, and what to do.
//!
//! Invariants: times are local; what is not known is left out or called unknown, never guessed.
//! Absent: conclusions, which are the daemon's; layout (`paper`).

use std::time::Duration;

use dormouse_core::diagnosis::loops::LoopStatistics;
use dormouse_core::diagnosis::{Confidence, Diagnosis};
use dormouse_core::evidence::{AskedBy, Evidence};
use dormouse_core::id::Generation;
use dormouse_core::journal::human_span;
use dormouse_core::record::MessageState;

use super::super::logs::LogLine;
use super::super::when::Moment;
use super::paper::{Facts, Section};
use crate::api::shape::{ExitShort, ExitView, JournalRow, MemoryView, Message, SessionView, Why};

/// Of a longer log tail, so many of its first and of its last lines are shown.
pub(super) const TAIL_LINES_FIRST: usize = 3;
pub(super) const TAIL_LINES_LAST: usize = 9;

pub(super) struct Page<'a> {
    pub(super) why: &'a Why,
    /// Of one life only.
    pub(super) generation: Option<Generation>,
    pub(super) moment: &'a Moment,
}

impl Page<'_> {
    pub(super) fn title(&self) -> String {
        let verdict = &self.why.verdict;
        match self.generation {
            None => verdict.clone(),
            Some(generation) => {
                format!("Start #{generation} of {}. Now: {verdict}", self.why.session.session)
            }
        }
    }

    pub(super) fn sections(&self) -> Vec<Section> {
        let why = self.why;
        let mut sections = Vec::new();
        if let Some(message) = &why.message {
            sections.push(Section::new("Message").facts(self.message(message)));
        }
        sections.extend(self.exit_sections());
        if let Some(statistics) = &why.loop_statistics {
            sections.push(Section::new("In circles?").facts(self.circles(statistics)));
        }
        if let Some(memory) = &why.memory {
            sections.push(Section::new("Memory").facts(self.memory(memory)));
        }
        sections.push(self.what_to_do());
        sections.push(Section::new("Session").facts(self.session(&why.session)));
        if self.is_newest() {
            let because = why.awake_because.iter().cloned();
            sections.push(Section::new("Awake because").bullets(because));
        }
        sections.push(Section::new("Earlier ends").table(self.earlier_ends()));
        sections.push(Section::new("Timeline").table(self.timeline(&why.timeline)));
        sections
    }

    /// What is asked about is the session, or its newest life.
    fn is_newest(&self) -> bool {
        self.generation.is_none_or(|generation| generation == self.why.session.generation)
    }

    fn message(&self, message: &Message) -> Facts {
        let mut facts = Facts::default();
        facts.add("session", message.session.to_string());
        facts.add("state", state_words(message));
        facts.add("attempts", message.attempts.to_string());
        facts.add("accepted", self.moment.clock_and_distance(message.accepted_at_ms));
        facts.maybe("ended", message.ended_at_ms.map(|at| self.moment.clock_and_distance(at)));
        facts
            .maybe("cause", message.cause.map(|cause| format!("{cause}: {}", cause.plain_words())));
        facts.maybe("detail", message.detail.clone());
        facts.maybe("exit code", message.exit_code.map(|code| code.to_string()));
        facts.maybe("its turn took", message.took_ms.map(span));
        facts.maybe("tries anew", message.redrive_of.map(|id| id.to_string()));
        facts.maybe("tried anew as", message.redriven_as.map(|id| id.to_string()));
        facts
    }

    fn session(&self, session: &SessionView) -> Facts {
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
        facts
    }

    fn exit_sections(&self) -> Vec<Section> {
        let heading = match (self.generation, &self.why.message) {
            (Some(_), _) => "Why it ended",
            (None, Some(_)) => "Why the last life that had it ended",
            (None, None) => "Why its last life ended",
        };
        let section = || Section::new(heading);
        let Some(exit) = &self.why.last_exit else {
            let words = match self.generation {
                None => return Vec::new(),
                Some(_) if self.is_newest() && self.why.session.phase.has_instance() => {
                    "it has not ended"
                }
                Some(_) => "its evidence is not kept any more; the timeline has what is known",
            };
            return vec![section().sentences([words.to_owned()])];
        };
        let mut sections = vec![section().sentences(verdict_lines(exit)).facts(self.exit(exit))];
        sections.extend(diagnosis_sections(&exit.diagnosis));
        let (head, lines) = log_tail(&exit.evidence.log_tail, self.moment);
        sections.push(Section::new("What it said").quote(head, lines));
        sections
    }

    fn exit(&self, exit: &ExitView) -> Facts {
        let (evidence, circumstances) = (&exit.evidence, &exit.circumstances);
        let mut facts = Facts::default();
        facts.add("start", format!("#{}, in phase {}", exit.generation, exit.phase));
        facts.add("at", self.moment.clock_and_distance(exit.at_ms));
        facts.add("asked by", asked_by_words(evidence.asked_by));
        facts.maybe("lived", evidence.uptime_ms.map(span));
        facts.maybe("ready after", circumstances.ready_after_ms.map(span));
        facts.maybe(
            "silent for",
            Some(circumstances.silent_ms).filter(|silent| *silent > 0).map(span),
        );
        facts.maybe("memory", memory_words(evidence));
        facts.maybe("in flight", exit.message_in_flight.map(|id| self.in_flight(id.to_string())));
        facts
    }

    /// What became of the work.
    fn in_flight(&self, id: String) -> String {
        let Some(message) = &self.why.in_flight else { return id };
        let became = match message.state {
            MessageState::Pending => "it waits to be tried again".to_owned(),
            MessageState::Leased => format!("it is in work again, attempt {}", message.attempts),
            MessageState::Answered => "it was answered since".to_owned(),
            MessageState::Cancelled => "it was dropped since".to_owned(),
            MessageState::Dead => match message.cause {
                Some(cause) => format!("it was given up, {cause}"),
                None => "it was given up".to_owned(),
            },
        };
        format!("{id}: {became}")
    }

    fn circles(&self, statistics: &LoopStatistics) -> Facts {
        let LoopStatistics { ends, failures, cause, cause_percent, .. } = statistics;
        let mut facts = Facts::default();
        let since = self.moment.clock_and_distance(statistics.since.0);
        facts.add("failures", format!("{failures} of {ends} kept ends, the first {since}"));
        facts.add("period", format!("{} from end to end (median)", span(statistics.period_ms)));
        facts.maybe("uptime", statistics.uptime_ms.map(|ms| format!("{} (median)", span(ms))));
        facts.add("cause", format!("{cause_percent} % of them {cause}"));
        let ends = statistics.histogram.iter().map(|end| format!("{} × {}", end.count, end.end));
        facts.add("ends", ends.collect::<Vec<_>>().join(", "));
        if statistics.before_ready > 0 {
            facts.add("not yet ready", format!("{} of them", statistics.before_ready));
        }
        facts
    }

    fn memory(&self, memory: &MemoryView) -> Facts {
        let mut facts = Facts::default();
        facts.add("next limit", size(memory.limit_bytes));
        if let (Some(because), Some(since)) = (memory.because, memory.since_ms) {
            let since = self.moment.clock_and_distance(since);
            let first = size(memory.first_bytes);
            facts.add("learned", format!("from {first}, because of {because}, {since}"));
        }
        let is_at_ceiling = memory.limit_bytes >= memory.ceiling_bytes;
        let machine = memory.machine_bytes.is_some_and(|bytes| memory.ceiling_bytes >= bytes);
        let ceiling = match (is_at_ceiling, machine) {
            (false, _) => size(memory.ceiling_bytes),
            (true, false) => format!("{}: it does not rise any more", size(memory.ceiling_bytes)),
            (true, true) => {
                format!("{}: this machine gives no more to one", size(memory.ceiling_bytes))
            }
        };
        facts.add("ceiling", ceiling);
        facts.maybe(
            "peak",
            memory.last_peak_bytes.map(|peak| {
                let cut = match memory.last_peak_is_censored {
                    true => ", cut off by the limit: what it needs is more, and not known",
                    false => "",
                };
                format!("{}{cut}", size(peak))
            }),
        );
        let survived = memory.peak_survived_bytes;
        facts.maybe("cost", memory.monthly_difference.clone());
        facts.maybe("was enough", survived.map(|peak| format!("a peak of {}", size(peak))));
        facts
    }

    fn what_to_do(&self) -> Section {
        let section = Section::new("What you can do").bullets(self.why.next_steps.iter().cloned());
        let Some(remedy) = &self.why.remedy else { return section };
        let check = &remedy.check;
        let cost = remedy.monthly_difference.as_ref().map(|cost| format!(" (up to {cost})"));
        let effect = format!("{}{}", remedy.effect, cost.unwrap_or_default());
        section
            .bullets([format!("in the config, then restart Dormouse: {effect}")])
            .diff(remedy.diff.iter().cloned())
            .bullets([format!("{check}        whether it helped, after the next life")])
    }

    fn earlier_ends(&self) -> Vec<[String; 4]> {
        let shown = self.why.last_exit.as_ref().map(|exit| exit.generation);
        let others = self.why.exits.iter().filter(|exit| Some(exit.generation) != shown);
        match self.generation {
            Some(_) => Vec::new(),
            None => others.map(|exit| short_end(exit, self.moment)).collect(),
        }
    }

    fn timeline(&self, rows: &[JournalRow]) -> Vec<[String; 4]> {
        let cells = rows.iter().map(|row| {
            let change = match row.from == row.to {
                true => row.to.to_string(),
                false => format!("{} → {}", row.from, row.to),
            };
            let (at, start) = (self.moment.clock(row.at_ms), format!("#{}", row.generation));
            [at, start, change, row.text.clone()]
        });
        cells.collect()
    }
}

fn verdict_lines(exit: &ExitView) -> Vec<String> {
    let mut lines = vec![diagnosis_line(&exit.diagnosis)];
    if exit.cause.is_none() {
        lines.push("It was no failure.".to_owned());
    }
    lines
}

/// "oom_limit, proved: the agent needed more memory than it may use: …"
pub(crate) fn diagnosis_line(diagnosis: &Diagnosis) -> String {
    let Diagnosis { cause, kind, confidence, sentence, .. } = diagnosis;
    let confidence = confidence_words(*confidence);
    match kind.as_str() {
        "" => format!("{cause}, {confidence}: {sentence}"),
        kind => format!("{cause} ({kind}), {confidence}: {sentence}"),
    }
}

/// What a diagnosis rests on.
pub(crate) fn diagnosis_sections(diagnosis: &Diagnosis) -> Vec<Section> {
    let evidence = diagnosis
        .because
        .iter()
        .map(|fact| [fact.source.clone(), fact.field.clone(), fact.value.clone(), String::new()]);
    let mut ruled_out = Facts::default();
    for other in &diagnosis.ruled_out {
        ruled_out.add(other.cause.to_string(), other.because.clone());
    }
    vec![
        Section::new("Evidence").table(evidence),
        Section::new("Ruled out").facts(ruled_out),
        Section::new("Not known").bullets(diagnosis.missing.iter().cloned()),
    ]
}

pub(crate) fn confidence_words(confidence: Confidence) -> &'static str {
    match confidence {
        Confidence::Possible => "possible",
        Confidence::Likely => "likely",
        Confidence::Proved => "proved",
    }
}

pub(super) fn short_end(exit: &ExitShort, moment: &Moment) -> [String; 4] {
    let confidence = confidence_words(exit.confidence);
    let lived = exit.uptime_ms.map(|ms| format!("after {}: ", span(ms)));
    let wanted = if exit.cause.is_none() { ", no failure" } else { "" };
    [
        moment.clock(exit.at_ms),
        format!("#{}", exit.generation),
        format!("{}, {confidence}{wanted}", exit.verdict),
        format!("{}{}", lived.unwrap_or_default(), exit.sentence),
    ]
}

fn state_words(message: &Message) -> String {
    match message.state {
        MessageState::Pending => match message.position {
            Some(0) | None => "waits for its turn".to_owned(),
            Some(before) => format!("waits, {before} before it"),
        },
        MessageState::Leased => "the agent works on it".to_owned(),
        MessageState::Answered => "answered".to_owned(),
        MessageState::Dead => "dead letter: it is not tried again by itself".to_owned(),
        MessageState::Cancelled => "dropped".to_owned(),
    }
}

fn span(ms: u64) -> String {
    human_span(Duration::from_millis(ms))
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

/// A line that introduces, and the lines.
pub(super) fn log_tail(tail: &str, moment: &Moment) -> (String, Vec<String>) {
    let all: Vec<&str> = tail.lines().collect();
    if all.is_empty() {
        return ("it printed nothing".to_owned(), Vec::new());
    }
    let quoted = |line: &&str| {
        let line = LogLine::parse(line);
        let at = line.at_ms.map(|at_ms| format!("{} {:<6} ", moment.clock(at_ms), line.stream));
        format!("{}{}", at.unwrap_or_default(), line.text)
    };
    if all.len() <= TAIL_LINES_FIRST + TAIL_LINES_LAST + 1 {
        return ("its last lines".to_owned(), all.iter().map(quoted).collect());
    }
    let (first, rest) = all.split_at(TAIL_LINES_FIRST);
    let (left_out, last) = rest.split_at(rest.len() - TAIL_LINES_LAST);
    let mut lines: Vec<String> = first.iter().map(quoted).collect();
    lines.push(format!("⋮ {} more; --json has them all", left_out.len()));
    lines.extend(last.iter().map(quoted));
    (format!("its last {} lines", all.len()), lines)
}
