//! The machine under the figures: what it is, how busy it is, who runs on which processor, and the
//! clock that all processes share.
//!
//! Owner: every benchmark. Invariant: a sample that is kept has the machine's own load beside it.
//! Absent: changing the machine's settings.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};

use super::error::BenchError;
use crate::process::CommandLine;
use crate::root;

/// How long the machine is watched to see whether it is quiet.
const WATCH_FOR: Duration = Duration::from_millis(300);
/// Busy shares below this count as quiet.
const QUIET_BELOW: f64 = 0.10;

#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) processor: String,
    pub(super) memory_gib: f64,
    pub(super) kernel: String,
    pub(super) file_system: String,
    pub(super) compiler: String,
    pub(super) commit: String,
}

impl Machine {
    /// `folder` is where the daemon's data will be.
    pub(super) fn look(folder: &Path) -> Result<Machine, BenchError> {
        let cores = thread::available_parallelism().map_err(BenchError::system("its cores"))?;
        let compiler = printed("rustc", &["--version"])?;
        let commit = printed("git", &["describe", "--always", "--dirty"])?;
        Ok(Machine {
            cores: cores.get(),
            processor: named_line("/proc/cpuinfo", "model name")?,
            memory_gib: kib_of(&read(Path::new("/proc/meminfo"))?, "MemTotal") as f64 / 1_048_576.0,
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            file_system: file_system_of(folder)?,
            compiler,
            commit,
        })
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "cores": self.cores,
            "processor": self.processor,
            "memory_gib": self.memory_gib,
            "kernel": self.kernel,
            "file_system": self.file_system,
            "compiler": self.compiler,
            "commit": self.commit,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine { cores, processor, kernel, file_system, compiler, commit, .. } = self;
        let memory = self.memory_gib;
        write!(f, "{cores} cores ({processor}), {memory:.0} GiB, Linux {kernel}, {file_system}")?;
        write!(f, "; {compiler}; commit {commit}")
    }
}

fn printed(program: &str, arguments: &[&str]) -> Result<String, BenchError> {
    let command = CommandLine::new(program, arguments, root());
    let output = command.output()?;
    let command = command.to_string();
    output.map(|text| text.trim().to_string()).ok_or(BenchError::CommandFailed { command })
}

fn named_line(path: &str, name: &str) -> Result<String, BenchError> {
    let text = read(Path::new(path))?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.split_once(':'));
    Ok(line.map_or("unknown", |(_, value)| value.trim()).to_string())
}

pub(super) fn read(path: &Path) -> Result<String, BenchError> {
    fs::read_to_string(path).map_err(BenchError::file("read", path))
}

/// The KiB of a line `NAME:  123 kB`, summed over all such lines.
pub(super) fn kib_of(text: &str, name: &str) -> u64 {
    let values = text.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    values.filter_map(|value| value.split_whitespace().next()?.parse::<u64>().ok()).sum()
}

/// Type and options of the file system that has `folder`: the longest mount point above it.
fn file_system_of(folder: &Path) -> Result<String, BenchError> {
    let folder = fs::canonicalize(folder).map_err(BenchError::file("find", folder))?;
    let mounts = read(Path::new("/proc/self/mounts"))?;
    let mut best = (0, "unknown".to_string());
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let &[_device, point, kind, options, ..] = fields.as_slice() else { continue };
        if folder.starts_with(point) && point.len() >= best.0 {
            best = (point.len(), format!("{kind} ({options})"));
        }
    }
    Ok(best.1)
}

/// What else the machine did just before a sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Noise {
    /// The share of all processors that was busy, 0 to 1.
    pub(super) busy: f64,
    /// Runnable tasks, averaged over a minute.
    pub(super) load: f64,
}

impl Noise {
    pub(super) fn json(&self) -> Value {
        json!({"busy_share_before": self.busy, "load_average": self.load})
    }
}

/// Waits until the machine is quiet, at most for `patience`, and tells how noisy it is.
pub(super) fn settle(patience: Duration) -> Result<Noise, BenchError> {
    let begun_at = Instant::now();
    loop {
        let before = busy_and_all()?;
        thread::sleep(WATCH_FOR);
        let after = busy_and_all()?;
        let busy = (after.0 - before.0) / (after.1 - before.1).max(1.0);
        if busy < QUIET_BELOW || begun_at.elapsed() >= patience {
            return Ok(Noise { busy, load: load_average()? });
        }
    }
}

pub(super) fn load_average() -> Result<f64, BenchError> {
    let text = read(Path::new("/proc/loadavg"))?;
    let first = text.split(' ').next().and_then(|first| first.parse().ok());
    first.ok_or_else(|| BenchError::void(format!("/proc/loadavg says {text:?}")))
}

/// Ticks of all processors since the machine's start.
fn busy_and_all() -> Result<(f64, f64), BenchError> {
    let text = read(Path::new("/proc/stat"))?;
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> =
        line.split_whitespace().skip(1).filter_map(|tick| tick.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; guests are part of user.
    let all: f64 = ticks.iter().take(8).sum();
    let idle: f64 = ticks.iter().skip(3).take(2).sum();
    Ok((all - idle, all))
}

/// Where the daemon and the client run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Placement {
    /// Wherever the kernel likes.
    Free,
    /// The daemon on processor 0, the client on processor 1.
    Apart,
}

impl Placement {
    pub(super) fn name(self) -> &'static str {
        match self {
            Placement::Free => "free",
            Placement::Apart => "pinned",
        }
    }

    /// Runs `act` where the daemon is to be; its threads and children stay there.
    pub(super) fn as_server<T>(
        self,
        act: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        match self {
            Placement::Free => act(),
            Placement::Apart => on_processor(0, act),
        }
    }

    pub(super) fn as_client<T>(
        self,
        act: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<T, BenchError> {
        match self {
            Placement::Free => act(),
            Placement::Apart => on_processor(1, act),
        }
    }
}

fn on_processor<T>(
    processor: usize,
    act: impl FnOnce() -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let refused = BenchError::system::<rustix::io::Errno>;
    let before = sched_getaffinity(None).map_err(refused("to say where this thread runs"))?;
    let mut one = CpuSet::new();
    one.set(processor);
    sched_setaffinity(None, &one).map_err(refused("to pin a thread"))?;
    let result = act();
    sched_setaffinity(None, &before).map_err(refused("to unpin a thread"))?;
    result
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the same in every process of this machine.
pub(super) fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let part = |value: i64| u64::try_from(value).expect("the clock starts at zero");
    part(now.tv_sec) * 1_000_000_000 + part(now.tv_nsec)
}

/// Whether this machine has the program.
pub(super) fn has_program(program: &str, argument: &str) -> bool {
    crate::toolchain::is_there(program, &[argument])
}

/// The interpreter itself: a version switcher in front of it would take longer than the agent.
pub(super) fn python() -> Option<&'static str> {
    ["/usr/bin/python3", "python3"].into_iter().find(|program| has_program(program, "--version"))
}

/// Memory of a process, in KiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Memory {
    pub(super) resident: u64,
    pub(super) proportional: u64,
    /// What would be free if this process alone ended.
    pub(super) private: u64,
}

impl Memory {
    pub(super) fn of(process: u32) -> Result<Memory, BenchError> {
        let text = read(Path::new(&format!("/proc/{process}/smaps_rollup")))?;
        Ok(Memory {
            resident: kib_of(&text, "Rss"),
            proportional: kib_of(&text, "Pss"),
            private: kib_of(&text, "Private_Clean")
                + kib_of(&text, "Private_Dirty")
                + kib_of(&text, "Private_Hugetlb"),
        })
    }

    pub(super) fn json(&self) -> Value {
        let Memory { resident, proportional, private } = self;
        json!({"rss_kib": resident, "pss_kib": proportional, "private_kib": private})
    }
}

/// Processes, ascending, whose command line mentions `words`.
pub(super) fn processes_with(words: &str) -> Result<Vec<u32>, BenchError> {
    let folder = Path::new("/proc");
    let entries = fs::read_dir(folder).map_err(BenchError::file("list", folder))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(BenchError::file("list", folder))?;
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        match fs::read(entry.path().join("cmdline")) {
            Ok(line) if super::http::find(&line, words.as_bytes()).is_some() => found.push(process),
            Ok(_) => {}
            // It ended while we looked.
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(BenchError::file("read", &entry.path())(error)),
        }
    }
    found.retain(|process| *process != std::process::id());
    found.sort_unstable();
    Ok(found)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_known() {
        let machine = Machine::look(&std::env::temp_dir()).expect("Linux says all of it");
        assert!(machine.cores >= 1 && machine.memory_gib > 0.1);
        assert!(machine.file_system.contains('('), "{}", machine.file_system);
    }

    #[test]
    fn noise_is_a_share() {
        let noise = settle(Duration::ZERO).expect("Linux counts it");
        assert!((0.0..=1.0).contains(&noise.busy), "{noise:?}");
    }

    #[test]
    fn a_pinned_thread_is_free_again_after() {
        let before = sched_getaffinity(None).expect("Linux says it");
        let inside = on_processor(0, || Ok(sched_getaffinity(None).expect("Linux says it")));
        assert_eq!(inside.expect("processor 0 is there").count(), 1);
        assert_eq!(sched_getaffinity(None).expect("Linux says it"), before);
    }

    #[test]
    fn the_shared_clock_goes_forward() {
        let one = monotonic_nanos();
        assert!(monotonic_nanos() >= one);
    }

    #[test]
    fn a_process_has_memory_and_a_command_line() {
        let memory = Memory::of(std::process::id()).expect("we may look at ourselves");
        assert!(memory.private > 0 && memory.private <= memory.resident);
        assert_eq!(kib_of("Rss:  12 kB\nRssX: 3 kB\nRss: 1 kB\n", "Rss"), 13);
        let own_are_left_out = processes_with("no such command line").expect("/proc is there");
        assert!(own_are_left_out.is_empty());
    }
}
