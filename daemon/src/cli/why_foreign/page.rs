//! The report in words, as a title and sections.
//!
//! Invariants: the verdict is the title; what is not known has no row; lists are cut to what a
//! screen takes, and the JSON has the rest. Absent: how it is laid out and escaped (`paper`), what
//! is said (`foreign`).

use std::time::Duration;

use dormouse_core::diagnosis::Diagnosis;
use dormouse_core::diagnosis::facts::Fact;
use dormouse_core::journal::human_span;

use super::super::scrub;
use super::super::when::Moment;
use super::super::why::paper::{Facts, Section};
use crate::foreign::{Death, Loop, Memory, Phase, Report};

const TIMELINE_ROWS: usize = 25;
const DEATH_ROWS: usize = 8;
const VALUE_CHARACTERS: usize = 160;

/// "oom_limit, proved: …"
pub(super) fn title(report: &Report) -> String {
    let Some(newest) = report.newest() else { return report.without_end() };
    let Diagnosis { cause, kind, confidence, sentence, .. } = &newest.diagnosis;
    let kind = if kind.is_empty() { String::new() } else { format!(" ({kind})") };
    let confidence = format!("{confidence:?}").to_lowercase();
    format!("{cause}{kind}, {confidence}: {sentence}")
}

/// `cost` is of what is recommended.
pub(super) fn sections(report: &Report, cost: Option<&str>, moment: &Moment) -> Vec<Section> {
    let mut sections = vec![Section::new("What").facts(about(report, moment))];
    if let Some(newest) = report.newest() {
        let diagnosis = &newest.diagnosis;
        let ruled_out = diagnosis.ruled_out.iter();
        let ruled_out = ruled_out.map(|it| row([it.cause.code(), &it.because]));
        sections.push(Section::new("Because").table(facts(&diagnosis.because, moment)));
        sections.push(Section::new("Ruled out").table(ruled_out));
    }
    let history = report.history.as_ref().map(history).unwrap_or_default();
    sections.push(Section::new("Loop").facts(history));
    let not_health = facts(&report.not_health, moment);
    sections.push(Section::new("True meanwhile, and no sign of health").table(not_health));
    if let Some(memory) = &report.memory {
        let so = vec![memory.recommendation.clone()];
        sections.push(Section::new("Memory").facts(sizes(memory)).sentences(so));
    }
    sections.push(Section::new("Timeline").table(timeline(report, moment)));
    sections.push(Section::new("Ends before it").table(earlier(report, moment)));
    if let Some(remedy) = &report.remedy {
        let diff = remedy.diff.iter().flat_map(|diff| diff.lines()).map(str::to_owned);
        let cost = cost.map(|cost| format!("That is {cost}."));
        let change: Vec<_> = std::iter::once(remedy.change.clone()).chain(cost).collect();
        sections.push(Section::new("What to change").sentences(change).diff(diff));
        sections.push(Section::new("Then verify").sentences(vec![remedy.verify.clone()]));
    }
    let missing = match report.newest() {
        Some(newest) => &newest.diagnosis.missing,
        None => &report.missing,
    };
    sections.push(Section::new("Not known").bullets(missing.clone()));
    sections
}

fn row(cells: [&str; 2]) -> [String; 4] {
    [cells[0].to_owned(), cells[1].to_owned(), String::new(), String::new()]
}

fn about(report: &Report, moment: &Moment) -> Facts {
    let mut about = Facts::default();
    about.add("of", report.subject.clone());
    if let Some(newest) = report.newest() {
        about.add("life", newest.instance.clone());
        about.maybe("ended", newest.at.map(|at| moment.clock_and_distance(at.0)));
        about.maybe("lived", newest.uptime_ms.map(span));
    }
    about.maybe("ended by", report.initiator.clone());
    about
}

fn facts(facts: &[Fact], moment: &Moment) -> Vec<[String; 4]> {
    let rows = facts.iter().map(|fact| {
        let at = fact.at.map(|at| moment.clock(at.0)).unwrap_or_default();
        let value = scrub::shortened(&fact.value, VALUE_CHARACTERS).into_owned();
        [fact.source.clone(), fact.field.clone(), value, at]
    });
    rows.collect()
}

fn span(ms: u64) -> String {
    human_span(Duration::from_millis(ms))
}

fn history(history: &Loop) -> Facts {
    let mut rows = Facts::default();
    let read = match u64::try_from(history.deaths_read) == Ok(history.deaths) {
        true => String::new(),
        false => format!(", with evidence of {}", history.deaths_read),
    };
    rows.add("ends", format!("{}{read}", history.deaths));
    let from_start = |to: &str, ms: Option<u64>| {
        ms.map(|ms| format!("{} from start to {to} (median)", span(ms)))
    };
    rows.maybe("period", from_start("start", history.period_ms_median));
    rows.maybe("uptime", from_start("end", history.uptime_ms_median));
    let codes = history.exit_codes.iter().map(|(code, count)| format!("{code} ({count} times)"));
    rows.add("exit codes", codes.collect::<Vec<_>>().join(", "));
    rows.add("same cause", format!("{:.0} % of them", history.same_cause_ratio * 100.0));
    let phase = history.phase.map(|phase| match phase {
        Phase::BeforeStart => "it never started",
        Phase::FixedUptime => "it ends always after about the same time",
        Phase::VaryingUptime => "it ends after varying times",
    });
    rows.maybe("phase", phase.map(str::to_owned));
    rows
}

fn sizes(memory: &Memory) -> Facts {
    let mut rows = Facts::default();
    let size = |bytes: Option<u64>| bytes.map_or("not known".to_owned(), super::super::human_size);
    rows.add("limit", size(memory.limit_bytes));
    let censored = if memory.peak_is_censored { "; the peak is censored by the limit" } else { "" };
    rows.add("peak", format!("{}{censored}", size(memory.peak_bytes)));
    rows
}

fn timeline(report: &Report, moment: &Moment) -> Vec<[String; 4]> {
    let left_out = report.timeline.len().saturating_sub(TIMELINE_ROWS);
    let rows = report.timeline.iter().skip(left_out).map(|step| {
        let what = scrub::shortened(&step.what, VALUE_CHARACTERS);
        row([&moment.clock(step.at.0), &what])
    });
    rows.collect()
}

fn earlier(report: &Report, moment: &Moment) -> Vec<[String; 4]> {
    let row = |death: &Death| {
        let how = [
            death.exit_code.map(|code| format!("exit code {code}")),
            death.uptime_ms.map(|ms| format!("after {}", span(ms))),
        ];
        [
            death.at.map(|at| moment.clock(at.0)).unwrap_or_default(),
            death.diagnosis.cause.code().to_owned(),
            how.into_iter().flatten().collect::<Vec<_>>().join(" "),
            death.instance.clone(),
        ]
    };
    report.deaths.iter().skip(1).take(DEATH_ROWS).map(row).collect()
}
