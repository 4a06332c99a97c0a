//! The exit codes of the command line: one closed list, which the help, the docs and the tests
//! read.
//!
//! Owner: this enum; docs/exit-codes.md repeats it and a test compares them. Invariant: a code,
//! once released, keeps its meaning. Absent: the words of single errors (`error`).

use std::fmt::Write;
use std::process::ExitCode;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    Done = 0,
    Failed = 1,
    Usage = 2,
    Unreachable = 3,
    NotAllowed = 4,
    NotFound = 5,
    RefusedForNow = 6,
    Denied = 7,
    NotSupported = 8,
    DaemonFault = 9,
    LocalFault = 10,
    HasChanges = 11,
    LeftRunning = 12,
    Interrupted = 130,
}

impl Exit {
    pub(crate) const ALL: [Exit; 14] = [
        Exit::Done,
        Exit::Failed,
        Exit::Usage,
        Exit::Unreachable,
        Exit::NotAllowed,
        Exit::NotFound,
        Exit::RefusedForNow,
        Exit::Denied,
        Exit::NotSupported,
        Exit::DaemonFault,
        Exit::LocalFault,
        Exit::HasChanges,
        Exit::LeftRunning,
        Exit::Interrupted,
    ];

    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    /// What it means, and so what a script may conclude.
    pub(crate) fn meaning(self) -> &'static str {
        match self {
            Exit::Done => "Done. Also when whoever read the output went away.",
            Exit::Failed => {
                "It was carried out and failed: the message was dead-lettered or dropped, \
                 a check of `doctor` failed, the daemon could not start."
            }
            Exit::Usage => "The command or its input is wrong. Nothing was done.",
            Exit::Unreachable => "No dormouse answers there, or it stayed away too long.",
            Exit::NotAllowed => "The key is missing, wrong, or not allowed to do this.",
            Exit::NotFound => "No such session, message, agent or key.",
            Exit::RefusedForNow => "Refused for now: a limit or a full queue. Try again later.",
            Exit::Denied => "Denied: it does not fit the present state.",
            Exit::NotSupported => "This version cannot do that yet.",
            Exit::DaemonFault => "The daemon failed, or gave an answer that makes no sense here.",
            Exit::LocalFault => "A local file could not be read, or the output not be written.",
            Exit::HasChanges => "There are changes, and `config plan --exit-code` was to say so.",
            Exit::LeftRunning => {
                "The daemon ended while turns ran. They go on under their bridges, and the next \
                 start takes them over."
            }
            Exit::Interrupted => "Interrupted by Ctrl-C. An accepted message goes on.",
        }
    }

    /// What the status of an HTTP answer comes down to.
    pub(crate) fn of_status(status: u16) -> Exit {
        match status {
            401 | 403 => Exit::NotAllowed,
            404 => Exit::NotFound,
            409 => Exit::Denied,
            429 | 503 => Exit::RefusedForNow,
            400..=499 => Exit::Usage,
            _ => Exit::DaemonFault,
        }
    }

    /// The list as the help shows it.
    pub(crate) fn listed() -> String {
        let mut text = String::new();
        for exit in Exit::ALL {
            writeln!(text, "{:>4}  {}", exit.code(), exit.meaning())
                .expect("a String takes every line");
        }
        text
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_table_is_the_enum() {
        let page = include_str!("../../../docs/exit-codes.md");
        let rows: Vec<(String, String)> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| "))
            .filter_map(|line| line.strip_suffix(" |")?.split_once(" | "))
            .filter(|(code, _)| code.parse::<u8>().is_ok())
            .map(|(code, meaning)| (code.to_owned(), meaning.to_owned()))
            .collect();
        let expected: Vec<(String, String)> = Exit::ALL
            .iter()
            .map(|exit| (exit.code().to_string(), exit.meaning().to_owned()))
            .collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn every_code_is_listed_once_and_in_order() {
        let codes: Vec<u8> = Exit::ALL.iter().map(|exit| exit.code()).collect();
        assert!(codes.is_sorted_by(|one, next| one < next), "{codes:?}");
        assert_eq!(Exit::listed().lines().count(), Exit::ALL.len());
    }

    #[test]
    fn the_status_of_an_answer_decides_the_code() {
        let of = |status| Exit::of_status(status).code();
        assert_eq!([of(401), of(403), of(404), of(409), of(429), of(503)], [4, 4, 5, 7, 6, 6]);
        assert_eq!([of(400), of(413), of(422), of(500), of(502)], [2, 2, 2, 9, 9]);
    }
}
