//! What is known of one end, in the words of no platform.
//!
//! Owner: whoever read a platform's documents (`diagnosis::own` for what Dormouse runs, the readers
//! behind `dormouse why ecs|docker|k8s` for the rest). Invariants: what was not found is `None` or
//! absent, never a guess; everything known carries the fact that it rests on. Absent: conclusions.

use serde::{Deserialize, Serialize};

use crate::cause::Cause;
use crate::time::Wall;

/// One fact as its source gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fact {
    /// The document, file or observer: "describe-tasks", "memory.oom_control", "wait status".
    pub source: String,
    /// The place in it: "tasks[0].containers[1].reason".
    pub field: String,
    pub value: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Wall>,
}

/// What a value from outside is cut to before it is kept or printed, in characters.
const VALUE_CHARACTERS_MAX: usize = 300;

impl Fact {
    pub fn new(
        source: impl Into<String>,
        field: impl Into<String>,
        value: impl std::fmt::Display,
    ) -> Self {
        let value = value.to_string();
        let value = match value.char_indices().nth(VALUE_CHARACTERS_MAX) {
            Some((end, _)) => format!("{}…", &value[..end]),
            None => value,
        };
        Self { source: source.into(), field: field.into(), value, at: None }
    }

    pub fn at(mut self, at: Option<Wall>) -> Self {
        self.at = at;
        self
    }
}

/// Something known, with the fact that it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known<T> {
    pub is: T,
    pub from: Fact,
}

impl<T> Known<T> {
    pub fn new(is: T, from: Fact) -> Self {
        Self { is, from }
    }
}

/// How the main process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The wait status itself says "exit code".
    Exited { code: i32 },
    /// The wait status itself says "signal".
    Signaled { signal: i32 },
    /// A container runtime's one number, in which 128 + n may be a signal or a code.
    ContainerCode { code: i32 },
}

const SIGNALS_AS_CODES: i32 = 128;

impl Ending {
    /// The signal that ended it, by the wait status or by the convention of runtimes and shells.
    pub fn signal(self) -> Option<i32> {
        match self {
            Ending::Signaled { signal } => Some(signal),
            Ending::Exited { code } | Ending::ContainerCode { code } => (SIGNALS_AS_CODES + 1
                ..SIGNALS_AS_CODES + 65)
                .contains(&code)
                .then(|| code - SIGNALS_AS_CODES),
        }
    }

    /// The exit code, where it is not a signal in disguise.
    pub fn code(self) -> Option<i32> {
        match self {
            Ending::Signaled { .. } => None,
            Ending::Exited { code } | Ending::ContainerCode { code } => {
                self.signal().is_none().then_some(code)
            }
        }
    }

    /// The main process returned a code itself, so that no signal can have ended it.
    pub fn is_own_exit(self) -> bool {
        match self {
            Ending::Exited { .. } => true,
            Ending::Signaled { .. } | Ending::ContainerCode { .. } => false,
        }
    }
}

/// It never ran. `cause` is one of image_pull, init_failed, start_failed, start_timeout, placement,
/// launch_failed, input_missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotStarted {
    pub cause: Cause,
    /// A word for the kind within the cause ("not_found", "rate_limit"), or "".
    pub kind: &'static str,
}

/// What the infrastructure says that it did. `cause` is one of spot, host_lost, evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    pub cause: Cause,
    pub kind: &'static str,
}

/// Who asked for the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Initiator {
    /// A person or a program, through the platform's API.
    User,
    /// Something that watches: `kind` is "idle", "max_life", "hung" or "".
    Watchdog { kind: &'static str },
    /// A deployment or a scale-in replaced it.
    Deploy,
}

/// A health check that failed and is said to be why it was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthCheck {
    Container,
    LoadBalancer,
}

/// What the kernel, or a runtime that asked it, says of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oom {
    /// The main process was killed for its group's limit.
    Main,
    /// Somebody in the group was, while the main process went on.
    Child,
    /// Somebody in the group was; it is not said who.
    Somebody,
    /// The machine as a whole was out of memory.
    Host,
    /// It was killed for memory outside its group: the machine's, or a part of it.
    OutsideGroup,
    /// Looked for, and there was none.
    None,
}

/// What lines of the log say, where programs use well-known words for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogSign {
    /// V8 gave up at its own heap limit and aborted.
    HeapLimit,
    PortTaken,
    DiskFull,
    /// `fork` or `clone` was refused.
    NoMoreProcesses,
    ConfigRejected,
    CommandNotFound,
}

/// Everything known of one end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    pub is_running: bool,
    pub not_started: Option<Known<NotStarted>>,
    pub notice: Option<Known<Notice>>,
    pub asked_by: Option<Known<Initiator>>,
    /// The end came when the time between asking and killing was over.
    pub grace_ran_out: Option<Known<()>>,
    pub health: Option<Known<HealthCheck>>,
    pub oom: Option<Known<Oom>>,
    pub end: Option<Known<Ending>>,
    /// The kernel refused a process because of the group's limit on their number.
    pub pids_refused: Option<Known<u64>>,
    pub log: Vec<Known<LogSign>>,
    pub memory_peak_bytes: Option<Known<u64>>,
    pub memory_limit_bytes: Option<Known<u64>>,
    pub uptime_ms: Option<Known<u64>>,
    /// It had been ready. `None`: not known.
    pub was_ready: Option<bool>,
    /// Context that decides nothing but helps a reader.
    pub more: Vec<Fact>,
    /// What could not be read, and why: shown, and what makes an end `unknown`.
    pub missing: Vec<String>,
}

/// The well-known words, in lower case. Each line names the programs that print it.
const LOG_WORDS: &[(&str, LogSign)] = &[
    // V8 (Node.js, Deno): `FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap …`
    ("javascript heap out of memory", LogSign::HeapLimit),
    ("fatal error: ineffective mark-compacts near heap limit", LogSign::HeapLimit),
    // libuv and Node.js; then strerror(EADDRINUSE), which nearly everything else prints.
    ("eaddrinuse", LogSign::PortTaken),
    ("address already in use", LogSign::PortTaken),
    // libuv and Node.js; then strerror(ENOSPC).
    ("enospc", LogSign::DiskFull),
    ("no space left on device", LogSign::DiskFull),
    // bash, sh: `fork: retry: Resource temporarily unavailable`; Python: `can't start new thread`.
    ("fork: retry", LogSign::NoMoreProcesses),
    ("cannot fork", LogSign::NoMoreProcesses),
    ("can't start new thread", LogSign::NoMoreProcesses),
    ("blockingioerror: [errno 11]", LogSign::NoMoreProcesses),
    ("spawn eagain", LogSign::NoMoreProcesses),
    ("pthread_create failed", LogSign::NoMoreProcesses),
    ("failed to spawn thread", LogSign::NoMoreProcesses),
    ("command not found", LogSign::CommandNotFound),
    ("executable file not found", LogSign::CommandNotFound),
];

/// The signs in a log's tail, each with its last line.
pub fn log_signs(source: &str, tail: &str) -> Vec<Known<LogSign>> {
    let mut found: Vec<Known<LogSign>> = Vec::new();
    for (number, line) in tail.lines().enumerate() {
        let lower = line.to_lowercase();
        for (words, sign) in LOG_WORDS {
            if lower.contains(words) {
                let fact = Fact::new(source, format!("line {}", number + 1), line.trim());
                found.retain(|earlier| earlier.is != *sign);
                found.push(Known::new(*sign, fact));
                break;
            }
        }
    }
    found
}

/// The first line that looks like an error, for people who will not read the rest.
pub fn first_error_line(tail: &str) -> Option<&str> {
    const SIGNS: [&str; 6] = ["error", "fatal", "panic", "exception", "traceback", "failed"];
    tail.lines().map(str::trim).find(|line| {
        let lower = line.to_lowercase();
        SIGNS.iter().any(|sign| lower.contains(sign))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_s_number_over_128_is_a_signal() {
        assert_eq!(Ending::ContainerCode { code: 137 }.signal(), Some(9));
        assert_eq!(Ending::ContainerCode { code: 137 }.code(), None);
        assert_eq!(Ending::Exited { code: 134 }.signal(), Some(6));
        assert_eq!(Ending::Signaled { signal: 11 }.signal(), Some(11));
        for code in [0, 1, 127, 128, 193, 255] {
            assert_eq!(Ending::Exited { code }.code(), Some(code));
        }
    }

    #[test]
    fn logs_are_read_for_well_known_words_only() {
        let tail = "ok\nError: listen EADDRINUSE: address already in use :::80\nbye\n";
        let signs = log_signs("log", tail);
        assert_eq!(signs.len(), 1);
        assert_eq!((signs[0].is, signs[0].from.field.as_str()), (LogSign::PortTaken, "line 2"));
        assert_eq!(
            first_error_line(tail),
            Some("Error: listen EADDRINUSE: address already in use :::80")
        );
        assert!(log_signs("log", "a talk about memory and space").is_empty());
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let fact = Fact::new("s", "f", "ä".repeat(1_000));
        assert_eq!(fact.value.chars().count(), VALUE_CHARACTERS_MAX + 1);
    }
}
