//! From facts to a cause: ordered, pure, the same for what Dormouse runs and for what it does not.
//!
//! ```text
//!  never started → the infrastructure's notice → health → memory → asked for → signal → exit code
//! ```
//!
//! Owner: this order. Invariants: the same facts give the same diagnosis; "proved" is said only
//! where a fact leaves no other reading; what is missing is named, and makes the end `unknown`
//! rather than a guess; SIGKILL, or the number 137, alone is never a cause.
//! Absent: how a platform words its facts (their readers), what to do about it (`session::exit`).

pub mod facts;
pub mod loops;
pub mod own;
mod ruled_out;

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use facts::{Ending, Fact, Facts, HealthCheck, Initiator, Known, LogSign, Oom};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Confidence {
    /// The facts fit, and others as well.
    Possible,
    /// The facts fit, and nothing speaks for another cause.
    Likely,
    /// A fact leaves no other reading.
    Proved,
}

/// What is concluded of one end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    #[serde(rename = "verdict")]
    pub cause: Cause,
    /// A word for the kind within the cause ("rate_limit" of image_pull), or "".
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub kind: String,
    pub confidence: Confidence,
    /// For people.
    pub sentence: String,
    pub because: Vec<Fact>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ruled_out: Vec<RuledOut>,
    /// What would have said more, and why it is not there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// A cause that one might think of, and why it is not this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuledOut {
    #[serde(rename = "verdict")]
    pub cause: Cause,
    pub because: String,
}

/// A cause with what speaks for it, before the rest is added.
struct Found {
    cause: Cause,
    kind: String,
    confidence: Confidence,
    because: Vec<Fact>,
}

impl Found {
    fn new(cause: Cause, confidence: Confidence, because: &[&Fact]) -> Self {
        let because = because.iter().map(|fact| (*fact).clone()).collect();
        Self { cause, kind: String::new(), confidence, because }
    }

    fn kind(mut self, kind: impl Into<String>) -> Self {
        self.kind = kind.into();
        self
    }
}

pub const SIGHUP: i32 = 1;
pub const SIGINT: i32 = 2;
pub const SIGABRT: i32 = 6;
pub const SIGKILL: i32 = 9;
pub const SIGTERM: i32 = 15;

/// By the convention of sysexits.h: a configuration error.
pub const EX_CONFIG: i32 = 78;
/// By the convention of shells and runtimes.
const EXIT_NOT_EXECUTABLE: i32 = 126;
const EXIT_NOT_FOUND: i32 = 127;

/// The cause of an end, or of its not having been a beginning.
pub fn diagnose(facts: &Facts) -> Diagnosis {
    let found = never_started(facts)
        .or_else(|| noticed(facts))
        .or_else(|| unhealthy(facts))
        .or_else(|| out_of_memory(facts))
        .or_else(|| asked_for(facts))
        .or_else(|| by_signal(facts))
        .or_else(|| by_code(facts))
        .unwrap_or_else(|| unknown(facts));
    finish(found, facts)
}

/// Adds to a cause what a reader wants to see with it.
fn finish(found: Found, facts: &Facts) -> Diagnosis {
    let ruled_out = ruled_out::ruled_out(facts, found.cause);
    let sentence = sentence(&found, facts);
    let Found { cause, kind, confidence, mut because } = found;
    let context = [&facts.memory_peak_bytes, &facts.memory_limit_bytes, &facts.uptime_ms];
    because.extend(context.into_iter().flatten().map(|known| known.from.clone()));
    because.extend(facts.more.iter().cloned());
    let missing = facts.missing.clone();
    Diagnosis { cause, kind, confidence, sentence, because, ruled_out, missing }
}

fn never_started(facts: &Facts) -> Option<Found> {
    let known = facts.not_started.as_ref()?;
    Some(Found::new(known.is.cause, Confidence::Proved, &[&known.from]).kind(known.is.kind))
}

fn noticed(facts: &Facts) -> Option<Found> {
    let known = facts.notice.as_ref()?;
    Some(Found::new(known.is.cause, Confidence::Proved, &[&known.from]).kind(known.is.kind))
}

fn unhealthy(facts: &Facts) -> Option<Found> {
    let known = facts.health.as_ref()?;
    let cause = match known.is {
        HealthCheck::Container => Cause::HealthContainer,
        HealthCheck::LoadBalancer => Cause::HealthLb,
    };
    Some(Found::new(cause, Confidence::Proved, &[&known.from]))
}

/// Memory, where somebody who counts says so. A count alone is not the cause of the main process's
/// end: it must have died as such a kill ends a process.
fn out_of_memory(facts: &Facts) -> Option<Found> {
    if let Some(known) = sign(facts, LogSign::HeapLimit) {
        let end = facts.end.as_ref();
        let aborted = end.is_some_and(|end| end.is.signal() == Some(SIGABRT));
        let killed = end.is_some_and(|end| end.is.signal() == Some(SIGKILL));
        if aborted || !killed {
            let confidence = if aborted { Confidence::Proved } else { Confidence::Likely };
            let facts: Vec<&Fact> =
                [Some(&known.from), end.map(|end| &end.from)].into_iter().flatten().collect();
            return Some(Found::new(Cause::OomHeap, confidence, &facts));
        }
    }
    let oom = facts.oom.as_ref()?;
    let end = facts.end.as_ref();
    let signal = end.and_then(|end| end.is.signal());
    let both: Vec<&Fact> =
        [Some(&oom.from), end.map(|end| &end.from)].into_iter().flatten().collect();
    let was_asked = facts.asked_by.is_some() || facts.grace_ran_out.is_some();
    let own_code = end.and_then(|end| end.is.code());
    let is_own_exit = end.is_some_and(|end| end.is.is_own_exit());
    let (cause, confidence) = match (oom.is, signal) {
        (Oom::None, _) => return None,
        (Oom::Host, _) => (Cause::OomHost, Confidence::Proved),
        (Oom::OutsideGroup, Some(SIGKILL)) => (Cause::OomHost, Confidence::Likely),
        (Oom::OutsideGroup, _) => return None,
        (Oom::Main, Some(SIGKILL)) if !is_own_exit => (Cause::OomLimit, Confidence::Proved),
        (Oom::Main, None) if end.is_none() => (Cause::OomLimit, Confidence::Likely),
        // A count for the whole group, and a wish that explains the kill as well.
        (Oom::Somebody, _) if was_asked => return None,
        (Oom::Somebody, Some(SIGKILL)) if !is_own_exit => (Cause::OomLimit, Confidence::Likely),
        (Oom::Somebody, None) if end.is_none() => (Cause::OomLimit, Confidence::Possible),
        // It lost a part of itself and returned a code: that of the lost part, or one of its own.
        (Oom::Main | Oom::Child | Oom::Somebody, Some(SIGKILL)) if is_own_exit => {
            (Cause::OomChild, Confidence::Proved)
        }
        (Oom::Main | Oom::Child | Oom::Somebody, None)
            if own_code.is_some_and(|code| code != 0) =>
        {
            (Cause::OomChild, Confidence::Likely)
        }
        // The count is of a time before, or belongs to somebody else.
        (Oom::Main | Oom::Child | Oom::Somebody, _) => return None,
    };
    Some(Found::new(cause, confidence, &both))
}

/// Somebody's wish. Where the wish had to be enforced, that is what ended it.
fn asked_for(facts: &Facts) -> Option<Found> {
    let signal = facts.end.as_ref().and_then(|end| end.is.signal());
    if let Some(grace) = &facts.grace_ran_out
        && signal.is_none_or(|signal| signal == SIGKILL)
    {
        let mut because = vec![&grace.from];
        because.extend(facts.asked_by.as_ref().map(|asked| &asked.from));
        because.extend(facts.end.as_ref().map(|end| &end.from));
        return Some(Found::new(Cause::StopTimeoutKill, Confidence::Proved, &because));
    }
    let asked = facts.asked_by.as_ref()?;
    let (cause, kind) = match asked.is {
        Initiator::User => (Cause::StoppedByUser, ""),
        Initiator::Watchdog { kind } => (Cause::StoppedByWatchdog, kind),
        Initiator::Deploy => (Cause::DeployReplaced, ""),
    };
    let mut because = vec![&asked.from];
    because.extend(facts.end.as_ref().map(|end| &end.from));
    Some(Found::new(cause, Confidence::Proved, &because).kind(kind))
}

fn by_signal(facts: &Facts) -> Option<Found> {
    let end = facts.end.as_ref()?;
    let signal = end.is.signal()?;
    let by_wait_status = match end.is {
        Ending::Signaled { .. } => true,
        Ending::Exited { .. } | Ending::ContainerCode { .. } => false,
    };
    match signal {
        SIGKILL => {
            let looked_for_oom =
                facts.oom.as_ref().filter(|oom| matches!(oom.is, Oom::None | Oom::Child))?;
            // A runtime's 137 without a word on who killed it may be a program's own exit code.
            let confidence = if by_wait_status { Confidence::Likely } else { Confidence::Possible };
            Some(Found::new(Cause::KilledOutside, confidence, &[&end.from, &looked_for_oom.from]))
        }
        SIGTERM | SIGINT | SIGHUP => {
            let confidence = if by_wait_status { Confidence::Likely } else { Confidence::Possible };
            Some(Found::new(Cause::KilledOutside, confidence, &[&end.from]))
        }
        _ => {
            let confidence = match end.is {
                Ending::Signaled { .. } | Ending::ContainerCode { .. } => Confidence::Proved,
                Ending::Exited { .. } => Confidence::Likely,
            };
            let name = signal_name(signal);
            Some(Found::new(Cause::AppSignal, confidence, &[&end.from]).kind(name))
        }
    }
}

fn by_code(facts: &Facts) -> Option<Found> {
    let end = facts.end.as_ref()?;
    let code = end.is.code()?;
    let said = |wanted| sign(facts, wanted);
    if code != 0 {
        if let Some(refused) = &facts.pids_refused {
            let said = said(LogSign::NoMoreProcesses);
            let confidence = if said.is_some() { Confidence::Proved } else { Confidence::Likely };
            let mut because = vec![&refused.from, &end.from];
            because.extend(said.map(|said| &said.from));
            return Some(Found::new(Cause::PidsLimit, confidence, &because));
        }
        let by_log = [(LogSign::PortTaken, Cause::PortTaken), (LogSign::DiskFull, Cause::DiskFull)];
        for (wanted, cause) in by_log {
            if let Some(said) = said(wanted) {
                return Some(Found::new(cause, Confidence::Likely, &[&said.from, &end.from]));
            }
        }
    }
    if code == EX_CONFIG {
        return Some(Found::new(Cause::ConfigRejected, Confidence::Likely, &[&end.from]));
    }
    let kind = match code {
        EXIT_NOT_EXECUTABLE => "not_executable",
        EXIT_NOT_FOUND => "command_not_found",
        _ => "",
    };
    Some(Found::new(Cause::AppExit, Confidence::Proved, &[&end.from]).kind(kind))
}

fn unknown(facts: &Facts) -> Found {
    let because: Vec<&Fact> = facts.end.as_ref().map(|end| &end.from).into_iter().collect();
    Found::new(Cause::Unknown, Confidence::Possible, &because)
}

fn sign(facts: &Facts, wanted: LogSign) -> Option<&Known<facts::LogSign>> {
    facts.log.iter().find(|known| known.is == wanted)
}

/// "SIGSEGV"; a number where there is no common name.
pub fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 15] = [
        "SIGHUP", "SIGINT", "SIGQUIT", "SIGILL", "SIGTRAP", "SIGABRT", "SIGBUS", "SIGFPE",
        "SIGKILL", "SIGUSR1", "SIGSEGV", "SIGUSR2", "SIGPIPE", "SIGALRM", "SIGTERM",
    ];
    let place = usize::try_from(signal).ok().and_then(|signal| signal.checked_sub(1));
    match (place.and_then(|place| NAMES.get(place)), signal) {
        (Some(name), _) => (*name).to_owned(),
        (None, 24) => "SIGXCPU".to_owned(),
        (None, 25) => "SIGXFSZ".to_owned(),
        (None, 31) => "SIGSYS".to_owned(),
        (None, other) => format!("signal {other}"),
    }
}

/// One sentence, with the numbers that matter.
fn sentence(found: &Found, facts: &Facts) -> String {
    let how = facts.end.as_ref().map(|end| match (end.is.signal(), end.is.code()) {
        (Some(signal), _) => format!("it was ended by {}", signal_name(signal)),
        (None, Some(code)) => format!("it ended with exit code {code}"),
        (None, None) => "it ended".to_owned(),
    });
    let words = found.cause.plain_words();
    let mut sentence = match (found.cause, how) {
        (Cause::Unknown, Some(how)) => format!("{how}, and nothing that is known says why"),
        (_, Some(how)) => format!("{words}: {how}"),
        (_, None) => words.to_owned(),
    };
    if !found.kind.is_empty() && !sentence.contains(&found.kind) {
        sentence.push_str(&format!(" ({})", found.kind.replace('_', " ")));
    }
    if found.cause == Cause::OomLimit
        && let (Some(peak), Some(limit)) = (&facts.memory_peak_bytes, &facts.memory_limit_bytes)
    {
        sentence.push_str(&format!(
            "; its peak of {} MiB is cut off by the limit of {} MiB, so what it would have needed \
             is not known",
            peak.is >> 20,
            limit.is >> 20
        ));
    }
    sentence
}
