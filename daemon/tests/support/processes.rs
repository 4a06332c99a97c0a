//! Processes as /proc shows them: who lives for one data folder, and ending exactly those.
//!
//! Owner: `Daemon`. Invariants: a process is named by its number and its start time; nothing is
//! signalled that was not found to belong to the data folder. Absent: process names.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const END_WITHIN: Duration = Duration::from_secs(10);

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) start_ticks: u64,
}

impl Process {
    /// The process that has this number now.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        stat_of(pid).map(|stat| Self { pid, start_ticks: stat.start_ticks })
    }

    /// As the run folder's files have it.
    pub(crate) fn from_record(record: &Value) -> Option<Self> {
        let pid = i32::try_from(record["pid"].as_i64()?).ok()?;
        Some(Self { pid, start_ticks: record["start_ticks"].as_u64()? })
    }

    pub(crate) fn is_alive(&self) -> bool {
        stat_of(self.pid).is_some_and(|stat| {
            stat.start_ticks == self.start_ticks && !matches!(stat.state, 'Z' | 'X')
        })
    }

    /// Stopped by SIGSTOP.
    pub(crate) fn is_stopped(&self) -> bool {
        stat_of(self.pid).is_some_and(|stat| stat.state == 'T')
    }

    /// One that is gone already is what was wanted.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.is_alive()
            && let Some(pid) = Pid::from_raw(self.pid)
        {
            let _gone_meanwhile = kill_process(pid, signal);
        }
    }

    pub(crate) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    #[track_caller]
    pub(crate) fn is_gone_soon(&self, what: &str) {
        super::until(&format!("{what} {} to be gone", self.pid), || {
            (!self.is_alive()).then_some(())
        });
    }
}

struct Stat {
    state: char,
    start_ticks: u64,
}

fn stat_of(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some(Stat { state, start_ticks: fields.nth(18)?.parse().ok()? })
}

/// Resident memory in KiB.
pub(crate) fn resident_kib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Bridge,
    /// The agent itself, or anything that it started.
    Agent,
}

/// Every living bridge and agent of the data folder, and what agents left behind: agents have their
/// workspace as HOME, and bridges their run folder as an argument.
pub(crate) fn of_data_folder(data: &Path) -> Vec<(Role, Process)> {
    let run = format!("{}/run/", data.display());
    let home = format!("HOME={}/workspaces/", data.display());
    let begins = |file: &str, wanted: &str| {
        let bytes = fs::read(file).unwrap_or_default();
        bytes.split(|byte| *byte == 0).any(|part| part.starts_with(wanted.as_bytes()))
    };
    let entries = fs::read_dir("/proc").expect("/proc is there");
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let role = if begins(&format!("/proc/{pid}/cmdline"), &run) {
            Role::Bridge
        } else if begins(&format!("/proc/{pid}/environ"), &home) {
            Role::Agent
        } else {
            return None;
        };
        Process::of(pid).filter(Process::is_alive).map(|process| (role, process))
    })
    .collect()
}

/// Ends every bridge and agent of the data folder, bridges first so that they start nothing more.
/// Gives those that do not go.
pub(crate) fn end_all(data: &Path) -> Vec<Process> {
    let deadline = Instant::now() + END_WITHIN;
    loop {
        let alive = of_data_folder(data);
        for role in [Role::Bridge, Role::Agent] {
            for (_, process) in alive.iter().filter(|(has, _)| *has == role) {
                process.kill();
            }
        }
        if alive.is_empty() || Instant::now() > deadline {
            return alive.into_iter().map(|(_, process)| process).collect();
        }
        thread::sleep(Duration::from_millis(5));
    }
}
