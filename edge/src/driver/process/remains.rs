//! What an instance leaves: processes to be ended, results and evidence to be read.
//!
//! Owner: the task of the instance, on a thread that may block. Invariants: the bridge's own words
//! go before anything that is found out here; a fact that cannot be had is left out.
//! Absent: waiting for the bridge, and reports.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use dormouse_bridge::LOG_FILE;
use dormouse_bridge::rundir::{CgroupSpec, RunFolder};
use dormouse_core::evidence::{AskedBy, End, Evidence};
use dormouse_core::id::InstanceId;
use dormouse_core::limits;

use super::folder::in_words;
use super::purge::{Traces, purge};
use super::{Shared, cgroup};
use crate::driver::Leftovers;
use crate::registry::cut_to_tail;

#[derive(Debug, Clone)]
pub(super) struct Remains {
    pub(super) shared: Arc<Shared>,
    pub(super) instance: InstanceId,
    pub(super) folder: RunFolder,
}

impl Remains {
    /// Ends what lives. `Err` says what lives still, or what cannot be told.
    pub(super) fn purge(&self) -> Result<(), String> {
        let agent = self.folder.read_agent().map_err(|error| in_words(&error))?;
        // A bridge that left its evidence has made sure itself, and saw more than we can.
        let marks = match self.folder.read_exit() {
            Ok(Some(_)) => Vec::new(),
            Ok(None) | Err(_) => self.shared.marks_of(&self.instance),
        };
        let cgroup = self.cgroup();
        purge(&Traces { agent, cgroup: cgroup.as_ref(), marks })?;
        match self.folder.lock() {
            Ok(Some(_free)) => Ok(()),
            Ok(None) => Err("somebody holds its lock".to_owned()),
            Err(error) => Err(in_words(&error)),
        }
    }

    /// The instance's control groups, if they are the ones that this deployment makes for it.
    pub(super) fn cgroup(&self) -> Option<CgroupSpec> {
        let spec = self.folder.read_spec().ok()??;
        spec.cgroup.filter(|cgroup| self.shared.is_own_cgroup(cgroup, &self.instance))
    }

    /// What the bridge left, and what can be said in its place where it left nothing. `status` is
    /// how it ended, where that is known.
    pub(super) fn read(&self, status: Option<ExitStatus>, was_killed: bool) -> Leftovers {
        let lost = |what: &str, error: &dyn std::error::Error| {
            let error = in_words(error);
            tracing::error!(instance = %self.instance, error, "{what} cannot be read");
        };
        let results = self.folder.read_results().unwrap_or_else(|error| {
            lost("an instance's finished turns", &error);
            Default::default()
        });
        let evidence = self.folder.read_exit().unwrap_or_else(|error| {
            lost("an instance's evidence", &error);
            None
        });
        let evidence = evidence.unwrap_or_else(|| self.evidence_of_loss(status, was_killed));
        Leftovers { results: results.into_iter().collect(), evidence }
    }

    fn evidence_of_loss(&self, status: Option<ExitStatus>, was_killed: bool) -> Evidence {
        // It says who it is before it does anything else.
        let was_there = !matches!(self.folder.read_bridge(), Ok(None));
        let end = if was_there { End::BridgeLost } else { End::NeverLaunched };
        let counters = self.cgroup().map(|spec| cgroup::counters(&spec)).unwrap_or_default();
        let mut log_tail = self.log_tail().unwrap_or_default();
        if let Some(status) = status.filter(|_| !was_killed) {
            let line_break = if log_tail.is_empty() { "" } else { "\n" };
            log_tail.push_str(&format!("{line_break}dormouse: the bridge ended with {status}"));
            cut_to_tail(&mut log_tail, limits::LOG_TAIL_BYTES_MAX);
        }
        Evidence {
            asked_by: was_killed.then_some(AskedBy::Driver),
            oom_kills: counters.oom_kills,
            pids_refused: counters.pids_refused,
            memory_peak_bytes: counters.memory_peak_bytes,
            memory_limit_bytes: counters.memory_limit_bytes,
            first_error: dormouse_bridge::first_error(&log_tail),
            log_tail,
            ..Evidence::bare(end)
        }
    }

    /// The log's last lines, as far as they were written in this instance's life: each begins with
    /// its Unix time in milliseconds.
    fn log_tail(&self) -> Option<String> {
        let begun = fs::metadata(self.folder.path().join("spec.json")).ok()?.modified().ok()?;
        let begun = begun.duration_since(UNIX_EPOCH).ok()?.as_millis();
        let path = self.shared.config.data.logs_of(&self.instance.session).join(LOG_FILE);
        let lines = read_tail(&path, limits::LOG_TAIL_BYTES_MAX as u64).ok()?;
        let is_of_this_life = |line: &&str| {
            let time = line.split(' ').next().and_then(|time| time.parse::<u128>().ok());
            time.is_some_and(|time| time >= begun)
        };
        Some(lines.lines().filter(is_of_this_life).collect::<Vec<_>>().join("\n"))
    }
}

/// The last bytes of a file; a link in its place is refused.
fn read_tail(path: &Path, bytes: u64) -> io::Result<String> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    let mut file = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut tail = Vec::new();
    file.take(bytes).read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}
