//! Control groups: found out by trying, made for an instance, emptied and removed.
//!
//! ```text
//!  version 1   …/dormouse-<deployment>/<name>/         the agent, under memory and under pids
//!  version 2   …/dormouse-<deployment>/<name>/agent/   the agent; the bridge stays outside of both
//! ```
//!
//! Owner: the process driver. Invariants: a limit counts as enforceable only after one was set and
//! read back here; what is removed or emptied has the name of its instance and lies in this
//! deployment's folder. Absent: counters as evidence, but for bridges that are lost; which limit.

mod early_wait;
mod mounts;
mod v1;
mod v2;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_bridge::rundir::{CgroupSpec, CgroupVersion};

use self::mounts::Mounts;
use crate::driver::Enforcement;

const PROBE_MEMORY_BYTES: u64 = 64 << 20;
const PROBE_PIDS: u64 = 64;
/// Groups that agents made inside their own are followed this deep.
const NESTING_MAX: usize = 8;
/// How long the kernel may go on holding a group whose last process is gone.
const REMOVE_WITHIN: Duration = Duration::from_secs(2);
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

/// What this machine lets this process do.
#[derive(Debug)]
pub(super) struct Cgroups {
    /// `dormouse-<deployment>`
    folder_name: String,
    groups: Groups,
    pub(super) memory: Enforcement,
    pub(super) pids: Enforcement,
}

#[derive(Debug)]
enum Groups {
    None,
    V1(v1::Bases),
    V2(v2::Base),
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) memory_bytes: Option<u64>,
    pub(super) pids: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
#[error("{} could not be {doing}", path.display())]
pub(super) struct CgroupError {
    pub(super) doing: &'static str,
    pub(super) path: PathBuf,
    #[source]
    pub(super) source: io::Error,
}

/// Facts of a group for the evidence of a lost bridge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counters {
    pub(super) oom_kills: Option<u64>,
    pub(super) pids_refused: Option<u64>,
    pub(super) memory_peak_bytes: Option<u64>,
    pub(super) memory_limit_bytes: Option<u64>,
}

impl Cgroups {
    /// Tries what works, in the groups that this process is in.
    pub(super) fn detect(deployment: &str) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let mounts = Mounts::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        Self::detect_in(&mounts, deployment)
    }

    /// As on a machine that has none.
    #[cfg(test)]
    pub(super) fn none(deployment: &str) -> Self {
        let mounts = Mounts { unified: None, memory_v1: None, pids_v1: None };
        Self::detect_in(&mounts, deployment)
    }

    fn detect_in(mounts: &Mounts, deployment: &str) -> Self {
        let folder_name = format!("dormouse-{deployment}");
        let probe = format!("probe-{}", std::process::id());
        if mounts.memory_v1.is_none()
            && let Some(own) = &mounts.unified
        {
            let v2::Detected { base, memory, pids } = v2::detect(own, &folder_name, &probe);
            let groups = base.map_or(Groups::None, Groups::V2);
            return Self { folder_name, groups, memory, pids };
        }
        let v1::Detected { bases, memory, pids } = v1::detect(mounts, &folder_name, &probe);
        Self { folder_name, groups: Groups::V1(bases), memory, pids }
    }

    /// Makes the groups of an instance, limited; `None` if there are none to be had here. Limits
    /// that are not enforceable are left out: the caller has asked `memory` and `pids` before.
    pub(super) fn make(
        &self,
        name: &str,
        limits: Limits,
    ) -> Result<Option<CgroupSpec>, CgroupError> {
        let made = match &self.groups {
            Groups::None => Ok(None),
            Groups::V1(bases) => bases.make(&self.folder_name, name, limits),
            Groups::V2(base) => base.make(&self.folder_name, name, limits).map(Some),
        };
        if let (Ok(Some(_)), Some(folder)) = (&made, self.deployment_folders().first()) {
            folder.parent().into_iter().for_each(early_wait::begin);
        }
        made.inspect_err(|_| {
            for half_made in self.deployment_folders().iter().map(|folder| folder.join(name)) {
                if let Err(error) = remove_tree(&half_made, NESTING_MAX) {
                    tracing::warn!(group = %half_made.display(), %error, "a control group stays");
                }
            }
        })
    }

    /// Whether `spec` is what this deployment made for the instance of that name, perhaps from
    /// another place than now. Specs lie where agents might reach them.
    pub(super) fn is_own(&self, spec: &CgroupSpec, name: &str) -> bool {
        let folders = std::iter::once(&spec.agent_folder).chain(&spec.extra_folders);
        folders.into_iter().all(|folder| {
            let plain = folder.components().all(|part| part.as_os_str() != "..");
            let mut above = folder.iter().rev();
            if spec.version == CgroupVersion::V2 && above.next() != Some("agent".as_ref()) {
                return false;
            }
            let is_named = above.next() == Some(name.as_ref());
            let is_ours = above.next() == Some(self.folder_name.as_ref());
            plain && is_named && is_ours
        })
    }

    /// Removes the groups of names that `is_kept` does not know, left by starts that came to
    /// nothing. A group with processes in it stays.
    pub(super) fn sweep(&self, is_kept: impl Fn(&str) -> bool) {
        for base in self.deployment_folders() {
            let entries = fs::read_dir(&base).into_iter().flatten().flatten();
            for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                let name = entry.file_name();
                if name.to_str().is_some_and(&is_kept) {
                    continue;
                }
                if let Err(error) = remove_tree(&entry.path(), NESTING_MAX) {
                    let group = entry.path();
                    tracing::warn!(group = %group.display(), %error, "a control group stays");
                }
            }
        }
    }

    /// When the deployment is left. A folder in which an instance lives on stays.
    pub(super) fn remove_deployment_folders(&self) {
        for folder in self.deployment_folders() {
            if let Err(error) = fs::remove_dir(&folder) {
                tracing::debug!(group = %folder.display(), %error, "a control group stays");
            }
        }
    }

    fn deployment_folders(&self) -> Vec<PathBuf> {
        match &self.groups {
            Groups::None => Vec::new(),
            Groups::V1(bases) => bases.folders(&self.folder_name),
            Groups::V2(base) => vec![base.folder(&self.folder_name)],
        }
    }
}

/// Processes in a group and the groups below it.
pub(super) fn members(folder: &Path) -> Vec<i32> {
    let mut members = Vec::new();
    list_members(folder, NESTING_MAX, &mut members);
    members
}

fn list_members(folder: &Path, nesting_left: usize, members: &mut Vec<i32>) {
    let listed = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    members.extend(listed.lines().filter_map(|line| line.parse::<i32>().ok()));
    for below in folders_below(folder).into_iter().filter(|_| nesting_left > 0) {
        list_members(&below, nesting_left - 1, members);
    }
}

fn folders_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let is_folder = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
    entries.filter(is_folder).map(|entry| entry.path()).collect()
}

pub(super) fn folders_of(spec: &CgroupSpec) -> impl Iterator<Item = &PathBuf> {
    std::iter::once(&spec.agent_folder).chain(&spec.extra_folders)
}

/// Version 2 only; `false` where the kernel is older than 5.14.
pub(super) fn kill_at_once(folder: &Path) -> bool {
    write(folder, "cgroup.kill", "1").is_ok()
}

pub(super) fn counters(spec: &CgroupSpec) -> Counters {
    match spec.version {
        CgroupVersion::V1 => v1::counters(spec),
        CgroupVersion::V2 => v2::counters(&spec.agent_folder),
    }
}

/// Removes an instance's groups; the ones that are gone already are not missed.
pub(super) fn remove(spec: &CgroupSpec) -> Result<(), CgroupError> {
    for folder in folders_of(spec) {
        let top = match (spec.version, folder.parent()) {
            (CgroupVersion::V2, Some(above)) => above,
            _ => folder,
        };
        let removed_by = Instant::now() + REMOVE_WITHIN;
        while let Err(source) = remove_tree(top, NESTING_MAX) {
            // Busy: the kernel is not done with the last process yet, and has no event for it.
            let is_busy = source.kind() == io::ErrorKind::ResourceBusy;
            if !is_busy || Instant::now() > removed_by {
                return Err(CgroupError { doing: "removed", path: top.to_owned(), source });
            }
            std::thread::sleep(REMOVE_PAUSE);
        }
    }
    Ok(())
}

/// Folders only: the files of a group go with it.
fn remove_tree(folder: &Path, nesting_left: usize) -> io::Result<()> {
    for below in folders_below(folder).into_iter().filter(|_| nesting_left > 0) {
        remove_tree(&below, nesting_left - 1)?;
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn make_folder(folder: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => {
            made.map_err(|source| CgroupError { doing: "made", path: folder.to_owned(), source })
        }
    }
}

fn write(folder: &Path, file: &str, value: &str) -> Result<(), CgroupError> {
    let path = folder.join(file);
    // Not `fs::write`, which would make the file where the controller is not there.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(|source| CgroupError { doing: "written", path, source })
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

/// Sets a limit and reads it back.
fn set_and_verify(folder: &Path, file: &str, value: u64) -> Result<(), CgroupError> {
    write(folder, file, &value.to_string())?;
    let path = folder.join(file);
    match read_number(&path) {
        Some(read) if read == value => Ok(()),
        read => {
            let source = io::Error::other(format!("it took {value} and says {read:?}"));
            Err(CgroupError { doing: "trusted", path, source })
        }
    }
}

/// One line for people: the failure and what is behind it.
fn in_words(error: &CgroupError) -> String {
    format!("{error}: {}", error.source)
}
