//! Why something ended that Dormouse does not run: a platform's documents in, a report out.
//!
//! ```text
//!  bytes ─▶ document ─▶ ecs · docker · kubernetes ─▶ Facts ─▶ core::diagnosis ─▶ history ─▶ report
//!           (JSON)      (what the platform means)             (the one order)     remedy
//! ```
//!
//! Owner: `cli::why_foreign`, which gathers the documents. Invariants: the same documents give the
//! same report; what is missing is named and nothing is guessed in its place; no input panics.
//! It uses no other module of the daemon, so that it can be fuzzed without one.
//! Absent: reading files, running tools, the terminal, the clock.

mod docker;
mod document;
mod ecs;
mod history;
mod kubernetes;
mod place;
mod remedy;
mod report;
mod time;
mod words;

use std::fmt;

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::facts::{Fact, Facts, log_signs};
use dormouse_core::diagnosis::{Confidence, Diagnosis, RuledOut, diagnose};
use dormouse_core::time::Wall;
use serde::Serialize;

pub(crate) use document::{DOCUMENT_BYTES_MAX, DocumentError, Input};
pub(crate) use history::{Loop, Phase};
pub(crate) use place::Gaps;
pub(crate) use remedy::Memory;
use remedy::Setting;
pub(crate) use report::{Death, Report};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Platform {
    Ecs,
    Docker,
    Kubernetes,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Platform::Ecs => "Amazon ECS",
            Platform::Docker => "Docker",
            Platform::Kubernetes => "Kubernetes",
        })
    }
}

/// Which of the things in the documents is asked about. Empty: the one that ended last.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) cluster: Option<String>,
    pub(crate) service: Option<String>,
    pub(crate) task: Option<String>,
    /// A container's name or id.
    pub(crate) container: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) pod: Option<String>,
}

/// Everything that a report is made of.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) platform: Platform,
    pub(crate) wanted: Wanted,
    pub(crate) documents: Vec<Input>,
    /// The end of what the thing printed in its last life.
    pub(crate) log: Option<Input>,
    /// What could not be had, and why.
    pub(crate) missing: Vec<String>,
}

/// One row of a timeline.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Step {
    pub(crate) at: Wall,
    pub(crate) what: String,
}

impl Step {
    fn maybe(at: Option<Wall>, what: impl Into<String>) -> Option<Self> {
        Some(Self { at: at?, what: what.into() })
    }
}

/// One end as a reader found it.
#[derive(Debug)]
struct End {
    /// Which life: a task's id, a container's name.
    instance: String,
    started_at: Option<Wall>,
    ended_at: Option<Wall>,
    exit_code: Option<i32>,
    facts: Facts,
    /// The reader had to choose, and says so.
    at_most: Option<Confidence>,
    ruled_out: Vec<RuledOut>,
    timeline: Vec<Step>,
    setting: Setting,
}

/// What a reader made of all documents.
#[derive(Debug)]
struct Reading {
    subject: String,
    /// The command that asks the same of the platform itself.
    ask_again: String,
    ends: Vec<End>,
    /// Of every life in the documents, those that go on too.
    starts: Vec<Wall>,
    /// More than have left a trace, where the platform counts.
    restarts_counted: Option<u64>,
    /// "3 tasks, 1 of them running"
    looked_at: Vec<String>,
    /// Signs of life that are no signs of health.
    not_health: Vec<Fact>,
    /// What happened around the ends.
    timeline: Vec<Step>,
}

/// The report on a question.
pub(crate) fn examine(question: Question) -> Result<Report, DocumentError> {
    let Question { platform, wanted, documents, log, missing } = question;
    let mut read = Vec::new();
    for input in &documents {
        read.extend(document::read(input, platform)?);
    }
    let gaps = Gaps::default();
    for gap in missing {
        gaps.add(gap);
    }
    let mut reading = match platform {
        Platform::Ecs => ecs::read(&read, &wanted, &gaps),
        Platform::Docker => docker::read(&read, &wanted, &gaps),
        Platform::Kubernetes => kubernetes::read(&read, &wanted, &gaps),
    };
    // Newest first; what has no time cannot be newest.
    reading.ends.sort_by_key(|end| std::cmp::Reverse(end.ended_at.or(end.started_at)));
    if let (Some(log), Some(newest)) = (&log, reading.ends.first_mut()) {
        let text = String::from_utf8_lossy(&log.bytes);
        newest.facts.log.extend(log_signs("log", &text));
    }
    Ok(report::assemble(platform, reading, gaps.into_list()))
}

/// What is concluded of one end, no surer than its reader is.
fn conclude(platform: Platform, end: &End) -> Diagnosis {
    let mut diagnosis = diagnose(&end.facts);
    if let Some(at_most) = end.at_most {
        diagnosis.confidence = diagnosis.confidence.min(at_most);
    }
    let culprit = diagnosis.cause;
    for ruled_out in &end.ruled_out {
        let is_said = diagnosis.ruled_out.iter().any(|said| said.cause == ruled_out.cause);
        if ruled_out.cause != culprit && !is_said {
            diagnosis.ruled_out.push(ruled_out.clone());
        }
    }
    if culprit == Cause::Unknown {
        diagnosis.missing.extend(would_say_more(platform).map(str::to_owned));
    }
    diagnosis
}

/// What to look at, where the documents do not say.
fn would_say_more(platform: Platform) -> [&'static str; 2] {
    match platform {
        Platform::Ecs => [
            "the container's log, and its memory by the minute (Container Insights)",
            "the host's kernel log, where the task ran on EC2",
        ],
        Platform::Docker => [
            "what happened at that time: docker events --since … --until …, saved to a file",
            "the host's kernel log (journalctl -k) around that time",
        ],
        Platform::Kubernetes => [
            "the pod's events of that time, which are kept for about an hour",
            "the container's last log (kubectl logs --previous) and the node's kernel log",
        ],
    }
}

/// Any bytes, as each platform's document; a report that is made keeps its bounds.
#[cfg(any(test, fuzzing))]
pub(crate) fn fuzz(bytes: &[u8]) {
    for platform in [Platform::Ecs, Platform::Docker, Platform::Kubernetes] {
        let input = Input { name: "input".to_owned(), bytes: bytes.to_vec() };
        let question = Question {
            platform,
            wanted: Wanted::default(),
            documents: vec![input.clone()],
            log: Some(input),
            missing: Vec::new(),
        };
        if let Ok(report) = examine(question) {
            report.assert_sound();
        }
    }
}

#[cfg(test)]
mod tests;
