//! Control groups version 1: one folder per controller.
//!
//! Owner: `cgroup`. Invariants: the limit of memory and swap together is set with the memory limit
//! wherever the kernel counts swap, since swap would defeat the limit otherwise; where it does not,
//! the facts say so. Absent: version 2.
//!
//! Source: the kernel's admin-guide/cgroup-v1/memory.rst and pids.rst.

use std::path::{Path, PathBuf};

use dormouse_bridge::rundir::{CgroupSpec, CgroupVersion};

use super::mounts::Mounts;
use super::{
    CgroupError, Counters, Limits, PROBE_MEMORY_BYTES, PROBE_PIDS, folders_below, folders_of,
    in_words, make_folder, read_field, read_number, set_and_verify, write,
};
use crate::driver::Enforcement;

const MEMORY_LIMIT: &str = "memory.limit_in_bytes";
const MEMORY_AND_SWAP_LIMIT: &str = "memory.memsw.limit_in_bytes";
const PIDS_LIMIT: &str = "pids.max";
/// "No limit" is written as the largest page-aligned number; nothing real comes near.
const NO_LIMIT_BYTES: u64 = 1 << 62;
const BY: &str = "cgroup v1";
const FIX: &str = "Run the daemon as root, or under a service manager that delegates it a \
                   control group (systemd: Delegate=yes).";

/// This process's own groups, of the controllers that were seen to work.
#[derive(Debug, Default)]
pub(super) struct Bases {
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
}

pub(super) struct Detected {
    pub(super) bases: Bases,
    pub(super) memory: Enforcement,
    pub(super) pids: Enforcement,
}

pub(super) fn detect(mounts: &Mounts, folder_name: &str, probe: &str) -> Detected {
    let try_memory = |folder: &Path| {
        set_and_verify(folder, MEMORY_LIMIT, PROBE_MEMORY_BYTES)?;
        match counts_swap(folder) {
            true => {
                set_and_verify(folder, MEMORY_AND_SWAP_LIMIT, PROBE_MEMORY_BYTES).map(|()| None)
            }
            false => Ok(Some(
                "swap is not: this kernel does not count it (boot it with swapaccount=1)".into(),
            )),
        }
    };
    let try_pids = |folder: &Path| set_and_verify(folder, PIDS_LIMIT, PROBE_PIDS).map(|()| None);
    let (memory_base, memory) =
        detect_one("memory", mounts.memory_v1.as_deref(), folder_name, probe, try_memory);
    let (pids_base, pids) =
        detect_one("pids", mounts.pids_v1.as_deref(), folder_name, probe, try_pids);
    Detected { bases: Bases { memory: memory_base, pids: pids_base }, memory, pids }
}

fn detect_one(
    controller: &str,
    base: Option<&Path>,
    folder_name: &str,
    probe: &str,
    attempt: impl Fn(&Path) -> Result<Option<String>, CgroupError>,
) -> (Option<PathBuf>, Enforcement) {
    let Some(base) = base else {
        let why = format!("the {controller} controller is not mounted where this process is");
        return (None, Enforcement::NotEnforced { why, fix: FIX.into() });
    };
    let at = base.join(folder_name);
    let folder = at.join(probe);
    let tried =
        make_folder(&at).and_then(|()| make_folder(&folder)).and_then(|()| attempt(&folder));
    if let Err(error) = super::remove_tree(&folder, 0) {
        tracing::warn!(group = %folder.display(), %error, "the probe's control group stays");
    }
    match tried {
        Ok(but) => (Some(base.to_owned()), Enforcement::Enforced { by: BY.into(), at, but }),
        Err(error) => (None, Enforcement::NotEnforced { why: in_words(&error), fix: FIX.into() }),
    }
}

fn counts_swap(folder: &Path) -> bool {
    folder.join(MEMORY_AND_SWAP_LIMIT).exists()
}

impl Bases {
    pub(super) fn folders(&self, folder_name: &str) -> Vec<PathBuf> {
        [&self.memory, &self.pids]
            .into_iter()
            .flatten()
            .map(|base| base.join(folder_name))
            .collect()
    }

    pub(super) fn make(
        &self,
        folder_name: &str,
        name: &str,
        limits: Limits,
    ) -> Result<Option<CgroupSpec>, CgroupError> {
        let mut folders = Vec::new();
        for base in [&self.memory, &self.pids].into_iter().flatten() {
            let above = base.join(folder_name);
            make_folder(&above)?;
            let folder = above.join(name);
            make_folder(&folder)?;
            folders.push(folder);
        }
        if let (Some(_), Some(bytes)) = (&self.memory, limits.memory_bytes) {
            limit_memory(&folders[0], bytes)?;
        }
        if let (Some(_), Some(folder), Some(pids)) = (&self.pids, folders.last(), limits.pids) {
            write(folder, PIDS_LIMIT, &pids.to_string())?;
        }
        let mut folders = folders.into_iter();
        let spec = folders.next().map(|agent_folder| CgroupSpec {
            version: CgroupVersion::V1,
            agent_folder,
            extra_folders: folders.collect(),
        });
        Ok(spec)
    }
}

/// The kernel rounds down to whole pages, and refuses a limit of both below that of memory.
fn limit_memory(folder: &Path, bytes: u64) -> Result<(), CgroupError> {
    write(folder, MEMORY_LIMIT, &bytes.to_string())?;
    if counts_swap(folder) {
        write(folder, MEMORY_AND_SWAP_LIMIT, &bytes.to_string())?;
    }
    Ok(())
}

pub(super) fn counters(spec: &CgroupSpec) -> Counters {
    let folder = &spec.agent_folder;
    let refused = |folder: &PathBuf| sum_of(folder, ("pids.events", "max"), super::NESTING_MAX);
    Counters {
        oom_kills: sum_of(folder, ("memory.oom_control", "oom_kill"), super::NESTING_MAX),
        pids_refused: folders_of(spec).find_map(refused),
        memory_peak_bytes: read_number(&folder.join("memory.max_usage_in_bytes")),
        memory_limit_bytes: read_number(&folder.join(MEMORY_LIMIT))
            .filter(|bytes| *bytes < NO_LIMIT_BYTES),
    }
}

/// Each group counts for itself only.
fn sum_of(folder: &Path, (file, name): (&str, &str), nesting_left: usize) -> Option<u64> {
    let own = read_field(&folder.join(file), name)?;
    let below = folders_below(folder).into_iter().filter(|_| nesting_left > 0);
    let below = below.filter_map(|below| sum_of(&below, (file, name), nesting_left - 1));
    Some(own + below.sum::<u64>())
}
