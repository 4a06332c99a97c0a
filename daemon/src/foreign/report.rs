//! The report: the newest end first, then all that belongs to it.
//!
//! Owner: `foreign`. Invariants: without an end there is no verdict, and the sentence says what was
//! looked at; every list is bounded, and says what it left out; absent parts are left out.
//! Absent: how it is shown (`cli::why_foreign`).

use dormouse_core::cause::Cause;
#[cfg(any(test, fuzzing))]
use dormouse_core::diagnosis::Confidence;
use dormouse_core::diagnosis::Diagnosis;
use dormouse_core::diagnosis::facts::{Fact, Initiator};
use dormouse_core::time::Wall;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::history::{Counted, Loop, loop_of};
use super::remedy::{Memory, Remedy, memory, remedy};
use super::time::between_ms;
use super::{End, Platform, Reading, Step, conclude};

const DEATHS_MAX: usize = 50;
const TIMELINE_MAX: usize = 60;

/// One end, with what is concluded of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Death {
    pub(crate) instance: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<Wall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) started_at: Option<Wall>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) uptime_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) exit_code: Option<i32>,
    #[serde(flatten)]
    pub(crate) diagnosis: Diagnosis,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Report {
    pub(crate) subject: String,
    /// What was looked at.
    pub(crate) looked_at: Vec<String>,
    /// Of what no end could be asked about; of an end, its own `missing` has it all.
    pub(crate) missing: Vec<String>,
    pub(crate) timeline: Vec<Step>,
    pub(crate) history: Option<Loop>,
    pub(crate) memory: Option<Memory>,
    pub(crate) initiator: Option<String>,
    pub(crate) remedy: Option<Remedy>,
    /// Held while the ends came, and so are no signs of health.
    pub(crate) not_health: Vec<Fact>,
    /// Newest first.
    pub(crate) deaths: Vec<Death>,
    pub(crate) deaths_left_out: usize,
}

pub(super) fn assemble(platform: Platform, reading: Reading, gaps: Vec<String>) -> Report {
    let Reading { subject, ask_again, ends, starts, restarts_counted, .. } = reading;
    let diagnoses: Vec<Diagnosis> = ends.iter().map(|end| conclude(platform, end)).collect();
    let history = loop_of(&counted(&ends, &diagnoses), &starts, restarts_counted);
    let newest = ends.first().zip(diagnoses.first());
    let initiator = newest.map(|(end, diagnosis)| initiator(end, diagnosis.cause));
    let limit = |end: &End| end.facts.memory_limit_bytes.as_ref().map(|limit| limit.is);
    let remedy =
        newest.and_then(|(end, diagnosis)| remedy(diagnosis, &end.setting, limit(end), &ask_again));
    let memory = newest.and_then(|(end, diagnosis)| memory(&end.facts, diagnosis));
    let mut timeline = reading.timeline;
    timeline.extend(ends.first().map(|end| end.timeline.clone()).unwrap_or_default());
    timeline.sort();
    timeline.dedup();
    // The newest are what ended it.
    timeline.drain(..timeline.len().saturating_sub(TIMELINE_MAX));
    let deaths_left_out = ends.len().saturating_sub(DEATHS_MAX);
    let pairs = ends.into_iter().zip(diagnoses).take(DEATHS_MAX);
    let mut deaths: Vec<Death> = pairs.map(|(end, diagnosis)| death(end, diagnosis)).collect();
    let mut missing = gaps;
    if let Some(newest) = deaths.first_mut() {
        for gap in std::mem::take(&mut missing) {
            if !newest.diagnosis.missing.contains(&gap) {
                newest.diagnosis.missing.push(gap);
            }
        }
    }
    let not_health = if deaths.is_empty() { Vec::new() } else { reading.not_health };
    let looked_at = reading.looked_at;
    Report {
        subject,
        looked_at,
        missing,
        timeline,
        history,
        memory,
        initiator,
        remedy,
        not_health,
        deaths,
        deaths_left_out,
    }
}

fn counted(ends: &[End], diagnoses: &[Diagnosis]) -> Vec<Counted> {
    let newest = diagnoses.first().map(|diagnosis| diagnosis.cause);
    let pairs = ends.iter().zip(diagnoses);
    let counted = pairs.map(|(end, diagnosis)| Counted {
        started_at: end.started_at,
        ended_at: end.ended_at,
        uptime_ms: between_ms(end.started_at, end.ended_at),
        exit_code: end.exit_code,
        never_ran: end.facts.not_started.is_some(),
        same_cause: Some(diagnosis.cause) == newest,
    });
    counted.collect()
}

fn death(end: End, diagnosis: Diagnosis) -> Death {
    Death {
        instance: end.instance,
        at: end.ended_at,
        started_at: end.started_at,
        uptime_ms: between_ms(end.started_at, end.ended_at),
        exit_code: end.exit_code,
        diagnosis,
    }
}

/// Who made it end.
fn initiator(end: &End, cause: Cause) -> String {
    let asked = end.facts.asked_by.as_ref();
    if let Some(asked) = asked.filter(|_| {
        !matches!(cause, Cause::Spot | Cause::HostLost | Cause::Evicted | Cause::HealthContainer)
    }) {
        let who = match asked.is {
            Initiator::User => "a person or a program, through the platform",
            Initiator::Watchdog { .. } => "a watchdog",
            Initiator::Deploy => "the scheduler, for a deployment or a scale-in",
        };
        return format!("{who}: {}", asked.from.value);
    }
    let who = match cause {
        Cause::OomLimit | Cause::OomChild | Cause::OomHost => "the kernel",
        Cause::HealthContainer | Cause::HealthLb => "the scheduler, for a failed health check",
        Cause::Spot | Cause::HostLost | Cause::Evicted => "the infrastructure",
        Cause::ImagePull
        | Cause::InitFailed
        | Cause::Placement
        | Cause::StartFailed
        | Cause::StartTimeout => "the platform, which could not start it",
        Cause::AppExit
        | Cause::AppSignal
        | Cause::OomHeap
        | Cause::PortTaken
        | Cause::DiskFull
        | Cause::PidsLimit
        | Cause::ConfigRejected => "the program itself",
        _ => "not known",
    };
    who.to_owned()
}

/// "512 MiB", "1.5 GiB"
pub(crate) fn human_bytes(bytes: u64) -> String {
    let (unit, name) = match bytes {
        0..0x400 => return format!("{bytes} bytes"),
        0x400..0x10_0000 => (1_u64 << 10, "KiB"),
        0x10_0000..0x4000_0000 => (1 << 20, "MiB"),
        _ => (1 << 30, "GiB"),
    };
    let tenths = u128::from(bytes) * 10 / u128::from(unit);
    match tenths.is_multiple_of(10) {
        true => format!("{} {name}", tenths / 10),
        false => format!("{}.{} {name}", tenths / 10, tenths % 10),
    }
}

impl Report {
    pub(crate) fn newest(&self) -> Option<&Death> {
        self.deaths.first()
    }

    /// In place of a verdict, where nothing ended.
    pub(crate) fn without_end(&self) -> String {
        let looked_at = self.looked_at.join("; ");
        match self.missing.is_empty() {
            true => format!("nothing ended, as far as was looked: {looked_at}"),
            false => {
                format!("no end was found, and not everything could be looked at: {looked_at}")
            }
        }
    }

    pub(crate) fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.insert("subject".to_owned(), json!(self.subject));
        match self.newest() {
            Some(newest) => {
                if let Value::Object(fields) = json!(newest.diagnosis) {
                    object.extend(fields);
                }
            }
            None => {
                object.insert("sentence".to_owned(), json!(self.without_end()));
            }
        }
        let mut add = |key: &str, value: Value| {
            let is_absent = value.is_null() || value.as_array().is_some_and(Vec::is_empty);
            if !is_absent {
                object.insert(key.to_owned(), value);
            }
        };
        if !self.missing.is_empty() {
            add("missing", json!(self.missing));
        }
        add("looked_at", json!(self.looked_at));
        add("timeline", json!(self.timeline));
        add("loop", json!(self.history));
        add("memory", json!(self.memory));
        add("initiator", json!(self.initiator));
        add("remedy", json!(self.remedy));
        add("not_health", json!(self.not_health));
        add("deaths", json!(self.deaths));
        if self.deaths_left_out > 0 {
            add("deaths_left_out", json!(self.deaths_left_out));
        }
        Value::Object(object)
    }

    /// What holds for every report, whatever it was made of.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn assert_sound(&self) {
        assert!(self.deaths.len() <= DEATHS_MAX && self.timeline.len() <= TIMELINE_MAX);
        for death in &self.deaths {
            let is_known = death.diagnosis.cause != Cause::Unknown;
            assert!(is_known || death.diagnosis.confidence == Confidence::Possible);
            assert!(!is_known || !death.diagnosis.because.is_empty());
            let started_first = death.started_at <= death.at;
            assert!(death.uptime_ms.is_none() || started_first, "a negative life");
        }
        let value = self.to_json();
        assert_eq!(value.get("verdict").is_some(), self.newest().is_some());
    }
}
