//! The agent's control group: joining it, counting in it, emptying it. Versions 1 and 2.
//!
//! Owner: `instance`; the driver makes and removes the folders. Invariants: the bridge is never in
//! the group, and never kills itself; a number is killed only while it is proven to belong to a
//! member. A file that cannot be read is a missing fact. Absent: limits and their setting.
//!
//! Sources: the kernel's admin-guide/cgroup-v1/memory.rst and admin-guide/cgroup-v2.rst.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal};

use crate::rundir::{CgroupSpec, CgroupVersion};

/// Version 1 writes "no limit" as the largest page-aligned number; nothing real comes near.
const NO_LIMIT_BYTES: u64 = 1 << 62;
/// A file of a group, and a name in it.
type Counter = (&'static str, &'static str);
const OOM_KILLS_V1: Counter = ("memory.oom_control", "oom_kill");
const PIDS_REFUSED: Counter = ("pids.events", "max");
/// Groups made by agents inside their own are followed this deep.
const NESTING_MAX: usize = 8;

#[derive(Debug)]
pub(crate) struct Cgroup {
    spec: CgroupSpec,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// In the agent's group and those that it made below.
    pub(crate) oom_kills: Option<u64>,
    /// In the agent's group alone.
    pub(crate) oom_kills_own: Option<u64>,
    /// How often memory ran out at that group's own limit. Version 2 only.
    pub(crate) limit_ooms: Option<u64>,
    /// Processes and threads that the limit on their number kept from being made.
    pub(crate) pids_refused: Option<u64>,
    pub(crate) memory_peak_bytes: Option<u64>,
    pub(crate) memory_limit_bytes: Option<u64>,
}

impl Counters {
    /// Out-of-memory kills since `earlier`.
    pub(crate) fn oom_kills_since(&self, earlier: &Counters) -> Option<u64> {
        Some(self.oom_kills?.saturating_sub(earlier.oom_kills?))
    }

    /// Processes and threads refused since `earlier`.
    pub(crate) fn pids_refused_since(&self, earlier: &Counters) -> Option<u64> {
        Some(self.pids_refused?.saturating_sub(earlier.pids_refused?))
    }
}

impl Cgroup {
    pub(crate) fn new(spec: CgroupSpec) -> Self {
        Self { spec }
    }

    /// Open `cgroup.procs` files: a new process that writes `0` to each is a member of all.
    pub(crate) fn open_to_join(&self) -> Result<Vec<File>, (PathBuf, io::Error)> {
        let open = |folder: &PathBuf| {
            let path = folder.join("cgroup.procs");
            OpenOptions::new().write(true).open(&path).map_err(|error| (path, error))
        };
        self.folders().map(open).collect()
    }

    fn folders(&self) -> impl Iterator<Item = &PathBuf> {
        std::iter::once(&self.spec.agent_folder).chain(&self.spec.extra_folders)
    }

    pub(crate) fn spec(&self) -> &CgroupSpec {
        &self.spec
    }

    pub(crate) fn counters(&self) -> Counters {
        let folder = &self.spec.agent_folder;
        // Read once: two readings might be of two times.
        let oom_kills_own = match self.spec.version {
            CgroupVersion::V1 => read_field(&folder.join(OOM_KILLS_V1.0), OOM_KILLS_V1.1),
            CgroupVersion::V2 => read_own_event(folder, "oom_kill"),
        };
        let below = || sum_below_v1(folder, OOM_KILLS_V1, NESTING_MAX);
        match self.spec.version {
            CgroupVersion::V1 => Counters {
                oom_kills: oom_kills_own.map(|own| own + below()),
                oom_kills_own,
                limit_ooms: None,
                pids_refused: self.folders().find_map(|f| sum_v1(f, PIDS_REFUSED, NESTING_MAX)),
                memory_peak_bytes: read_number(&folder.join("memory.max_usage_in_bytes")),
                memory_limit_bytes: read_number(&folder.join("memory.limit_in_bytes"))
                    .filter(|bytes| *bytes < NO_LIMIT_BYTES),
            },
            CgroupVersion::V2 => Counters {
                // Version 2 counts the groups below in.
                oom_kills: read_field(&folder.join("memory.events"), "oom_kill"),
                oom_kills_own,
                limit_ooms: read_own_event(folder, "oom"),
                pids_refused: read_field(&folder.join(PIDS_REFUSED.0), PIDS_REFUSED.1),
                memory_peak_bytes: read_number(&folder.join("memory.peak")),
                // "max" is no number, and no limit.
                memory_limit_bytes: read_number(&folder.join("memory.max")),
            },
        }
    }

    /// Kills every member once; `true` if there was none. Members that are dying, or were born
    /// meanwhile, are there again at the next call.
    pub(crate) fn kill_members(&self) -> bool {
        let members = self.members();
        if members.is_empty() {
            return true;
        }
        let kill_file = self.spec.agent_folder.join("cgroup.kill");
        if self.spec.version == CgroupVersion::V2 && fs::write(kill_file, "1").is_ok() {
            return false;
        }
        let opened: Vec<_> = members
            .into_iter()
            .filter_map(|pid| Some((pid, rustix::process::pidfd_open(pid, NO_FLAGS).ok()?)))
            .collect();
        // A number that is a member still, after its pidfd was opened, is what the pidfd is of.
        let members = self.members();
        for (pid, descriptor) in opened {
            if members.contains(&pid) {
                // A failure means that it is gone or not ours to kill: the next look tells which.
                let _sent = rustix::process::pidfd_send_signal(descriptor, Signal::KILL);
            }
        }
        false
    }

    fn members(&self) -> Vec<Pid> {
        let mut members = Vec::new();
        list_members(&self.spec.agent_folder, NESTING_MAX, &mut members);
        let this_process = rustix::process::getpid();
        members.retain(|pid| *pid != this_process);
        members
    }
}

const NO_FLAGS: PidfdFlags = PidfdFlags::empty();

fn list_members(folder: &Path, nesting_left: usize, members: &mut Vec<Pid>) {
    let listed = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    members.extend(listed.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)));
    for below in folders_below(folder, nesting_left) {
        list_members(&below, nesting_left - 1, members);
    }
}

/// Version 1 counts in each group for itself.
fn sum_v1(folder: &Path, counter: Counter, nesting_left: usize) -> Option<u64> {
    let own = read_field(&folder.join(counter.0), counter.1)?;
    Some(own + sum_below_v1(folder, counter, nesting_left))
}

fn sum_below_v1(folder: &Path, counter: Counter, nesting_left: usize) -> u64 {
    let below = folders_below(folder, nesting_left);
    below.iter().filter_map(|below| sum_v1(below, counter, nesting_left - 1)).sum()
}

/// Without the groups below, as far as the kernel (from 5.2 on) tells them apart.
fn read_own_event(folder: &Path, name: &str) -> Option<u64> {
    let files = ["memory.events.local", "memory.events"];
    files.into_iter().find_map(|file| read_field(&folder.join(file), name))
}

fn folders_below(folder: &Path, nesting_left: usize) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).ok().filter(|_| nesting_left > 0);
    let entries = entries.into_iter().flatten().flatten();
    let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.filter(is_folder).map(|entry| entry.path()).collect()
}

fn read_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The number behind `name ` in a file of such lines.
fn read_field(path: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Scratch;

    fn cgroup(scratch: &Scratch, version: CgroupVersion) -> Cgroup {
        let agent_folder = scratch.path().to_path_buf();
        Cgroup::new(CgroupSpec { version, agent_folder, extra_folders: Vec::new() })
    }

    fn write(scratch: &Scratch, files: &[(&str, &str)]) {
        for (name, text) in files {
            let path = scratch.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    #[test]
    fn version_1_counts_kills_here_and_below() {
        let scratch = Scratch::new();
        write(
            &scratch,
            &[
                ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
                ("child/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n"),
                ("memory.max_usage_in_bytes", "1048576\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                ("pids/pids.events", "max 5\n"),
                ("pids/child/pids.events", "max 2\n"),
            ],
        );
        let mut cgroup = cgroup(&scratch, CgroupVersion::V1);
        assert_eq!(cgroup.counters().pids_refused, None);
        cgroup.spec.extra_folders.push(scratch.path().join("pids"));
        let counters = cgroup.counters();
        assert_eq!((counters.oom_kills, counters.oom_kills_own), (Some(3), Some(2)));
        assert_eq!((counters.pids_refused, counters.limit_ooms), (Some(7), None));
        assert_eq!(counters.memory_peak_bytes, Some(1 << 20));
        assert_eq!(counters.memory_limit_bytes, None);
        let earlier = Counters { oom_kills: Some(1), pids_refused: Some(4), ..counters };
        assert_eq!(counters.oom_kills_since(&earlier), Some(2));
        assert_eq!(counters.pids_refused_since(&earlier), Some(3));
        assert_eq!(counters.oom_kills_since(&Counters::default()), None);
        assert_eq!(counters.pids_refused_since(&Counters::default()), None);
    }

    #[test]
    fn version_2_reads_its_own_files() {
        let scratch = Scratch::new();
        write(
            &scratch,
            &[
                ("memory.events", "low 0\nhigh 0\nmax 9\noom 4\noom_kill 1\noom_group_kill 7\n"),
                ("memory.peak", "2097152\n"),
                ("memory.max", "4194304\n"),
                ("pids.events", "max 3\n"),
            ],
        );
        let cgroup = cgroup(&scratch, CgroupVersion::V2);
        let expected = Counters {
            oom_kills: Some(1),
            oom_kills_own: Some(1),
            limit_ooms: Some(4),
            pids_refused: Some(3),
            memory_peak_bytes: Some(2 << 20),
            memory_limit_bytes: Some(4 << 20),
        };
        assert_eq!(cgroup.counters(), expected);
        let own = "low 0\nhigh 0\nmax 9\noom 2\noom_kill 0\noom_group_kill 0\n";
        write(&scratch, &[("memory.max", "max\n"), ("memory.events.local", own)]);
        let counters = cgroup.counters();
        assert_eq!(counters.memory_limit_bytes, None);
        assert_eq!((counters.oom_kills, counters.oom_kills_own), (Some(1), Some(0)));
        assert_eq!(counters.limit_ooms, Some(2));
    }

    #[test]
    fn files_that_are_not_there_are_missing_facts() {
        let scratch = Scratch::new();
        for version in [CgroupVersion::V1, CgroupVersion::V2] {
            let cgroup = cgroup(&scratch, version);
            assert_eq!(cgroup.counters(), Counters::default());
            assert!(cgroup.kill_members());
            assert!(cgroup.open_to_join().is_err());
        }
    }
}
