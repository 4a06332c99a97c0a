//! Control groups version 2: one tree, which must have been delegated to this process.
//!
//! ```text
//!  BASE/                           memory and pids are handed down from here on
//!   ├ dormouse-daemon/             this process and the bridges, if they had to leave BASE
//!   └ dormouse-<deployment>/<name>/agent/
//! ```
//!
//! A group that hands controllers down holds no processes itself, so this process leaves its own
//! group for a leaf below it, if it is alone there; or uses the group above, if that is delegated
//! (systemd: `Delegate=yes` with `DelegateSubgroup=`).
//!
//! Owner: `cgroup`. Invariants: nobody else's process is moved; nothing is changed above what is
//! delegated. Absent: version 1.
//!
//! Source: the kernel's admin-guide/cgroup-v2.rst, and systemd's CGROUP_DELEGATION.

use std::fs;
use std::path::{Path, PathBuf};

use dormouse_bridge::rundir::{CgroupSpec, CgroupVersion};

use super::{
    CgroupError, Counters, Limits, PROBE_MEMORY_BYTES, PROBE_PIDS, in_words, make_folder,
    read_field, read_number, remove_tree, set_and_verify, write,
};
use crate::driver::Enforcement;

const DAEMON_LEAF: &str = "dormouse-daemon";
const AGENT_LEAF: &str = "agent";
const CONTROL: &str = "cgroup.subtree_control";
const BY: &str = "cgroup v2";
const FIX: &str = "Run the daemon where a control group is delegated to it: a systemd service with \
                   Delegate=yes and DelegateSubgroup=daemon, or systemd-run --user -p \
                   Delegate=yes --scope.";

/// A group that hands controllers down to those below it.
#[derive(Debug)]
pub(super) struct Base {
    folder: PathBuf,
    memory: bool,
    pids: bool,
}

pub(super) struct Detected {
    pub(super) base: Option<Base>,
    pub(super) memory: Enforcement,
    pub(super) pids: Enforcement,
}

pub(super) fn detect(own: &Path, folder_name: &str, probe: &str) -> Detected {
    match find_base(own) {
        Ok(base) => {
            let at = base.folder(folder_name);
            let tried = base.try_limits(folder_name, probe);
            if let Err(error) = remove_tree(&at.join(probe), 1) {
                tracing::warn!(group = %at.display(), %error, "the probe's control group stays");
            }
            let (memory, pids) = tried;
            Detected { base: Some(base), memory: fact(memory, &at), pids: fact(pids, &at) }
        }
        Err(why) => {
            let none = || Enforcement::NotEnforced { why: why.clone(), fix: FIX.into() };
            Detected { base: None, memory: none(), pids: none() }
        }
    }
}

fn fact(tried: Result<Option<String>, String>, at: &Path) -> Enforcement {
    match tried {
        Ok(but) => Enforcement::Enforced { by: BY.into(), at: at.to_owned(), but },
        Err(why) => Enforcement::NotEnforced { why, fix: FIX.into() },
    }
}

/// The nearest group that can be made to hand memory or pids down. Nothing is tried on a group with
/// processes in it: pids alone would be taken, and turn the group into one that memory is never
/// handed down in.
fn find_base(own: &Path) -> Result<Base, String> {
    let is_whole_tree = !own.join("cgroup.type").exists();
    let above = own.parent().filter(|above| is_delegated(above) || own.ends_with(DAEMON_LEAF));
    match above.filter(|above| processes(above).is_empty()) {
        _ if is_whole_tree => base_at(own),
        Some(above) => base_at(above),
        // Alone in its group, it may make room by going one down.
        None if processes(own) == [own_pid().to_string()] => base_below(own),
        None => Err(format!("this process is not alone in its group {}", own.display())),
    }
}

fn base_at(folder: &Path) -> Result<Base, String> {
    let offered = words(&folder.join("cgroup.controllers"));
    if !offered.iter().any(|name| name == "memory" || name == "pids") {
        let folder = folder.display();
        return Err(format!("neither memory nor pids is a controller of the group {folder}"));
    }
    hand_down(folder).map_err(|error| in_words(&error))?;
    Ok(Base {
        folder: folder.to_owned(),
        memory: handed_down(folder, "memory"),
        pids: handed_down(folder, "pids"),
    })
}

fn base_below(own: &Path) -> Result<Base, String> {
    let leaf = own.join(DAEMON_LEAF);
    let move_to = |folder: &Path| write(folder, "cgroup.procs", "0");
    make_folder(&leaf).and_then(|()| move_to(&leaf)).map_err(|error| in_words(&error))?;
    base_at(own).inspect_err(|_| {
        if let Err(error) = move_to(own) {
            tracing::warn!(why = in_words(&error), "this process stays in its new control group");
        }
    })
}

/// In the group itself; not in those below.
fn processes(folder: &Path) -> Vec<String> {
    words(&folder.join("cgroup.procs"))
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// systemd marks the groups that it delegates.
fn is_delegated(folder: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].into_iter().any(|name| {
        let mut value = [0; 8];
        let read = rustix::fs::getxattr(folder, name, &mut value);
        read.is_ok_and(|bytes| value[..bytes] == *b"1")
    })
}

/// Hands memory and pids down, as far as they are there.
fn hand_down(folder: &Path) -> Result<(), CgroupError> {
    let offered = words(&folder.join("cgroup.controllers"));
    for name in ["memory", "pids"] {
        if offered.iter().any(|offered| offered == name) && !handed_down(folder, name) {
            write(folder, CONTROL, &format!("+{name}"))?;
        }
    }
    Ok(())
}

fn handed_down(folder: &Path, controller: &str) -> bool {
    words(&folder.join(CONTROL)).iter().any(|name| name == controller)
}

fn words(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

impl Base {
    pub(super) fn folder(&self, folder_name: &str) -> PathBuf {
        self.folder.join(folder_name)
    }

    pub(super) fn make(
        &self,
        folder_name: &str,
        name: &str,
        limits: Limits,
    ) -> Result<CgroupSpec, CgroupError> {
        let agent_folder = self.make_leaf(folder_name, name)?;
        if let Some(bytes) = limits.memory_bytes.filter(|_| self.memory) {
            write(&agent_folder, "memory.max", &bytes.to_string())?;
            if agent_folder.join("memory.swap.max").exists() {
                write(&agent_folder, "memory.swap.max", "0")?;
            }
        }
        if self.memory {
            // All of an agent goes at once: half an agent is a hung one.
            write(&agent_folder, "memory.oom.group", "1")?;
        }
        if let Some(pids) = limits.pids.filter(|_| self.pids) {
            write(&agent_folder, "pids.max", &pids.to_string())?;
        }
        Ok(CgroupSpec { version: CgroupVersion::V2, agent_folder, extra_folders: Vec::new() })
    }

    fn make_leaf(&self, folder_name: &str, name: &str) -> Result<PathBuf, CgroupError> {
        let mut folder = self.folder.clone();
        for part in [folder_name, name] {
            folder.push(part);
            make_folder(&folder)?;
            hand_down(&folder)?;
        }
        folder.push(AGENT_LEAF);
        make_folder(&folder)?;
        Ok(folder)
    }

    /// What comes of setting each limit: what is amiss with it, or why there is none.
    fn try_limits(
        &self,
        folder_name: &str,
        probe: &str,
    ) -> (Result<Option<String>, String>, Result<Option<String>, String>) {
        let folder = match self.make_leaf(folder_name, probe) {
            Ok(folder) => folder,
            Err(error) => return (Err(in_words(&error)), Err(in_words(&error))),
        };
        let set = |file: &str, value: u64| {
            set_and_verify(&folder, file, value).map_err(|error| in_words(&error))
        };
        let but = || {
            let is_unlimited = swap_is_used() && !folder.join("memory.swap.max").exists();
            is_unlimited.then(|| "swap is not: this kernel has no memory.swap.max".to_owned())
        };
        let memory = set("memory.max", PROBE_MEMORY_BYTES).map(|()| but());
        (memory, set("pids.max", PROBE_PIDS).map(|()| None))
    }
}

/// The first line of /proc/swaps is its head.
fn swap_is_used() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

pub(super) fn counters(folder: &Path) -> Counters {
    Counters {
        // Groups below are counted in.
        oom_kills: read_field(&folder.join("memory.events"), "oom_kill"),
        pids_refused: read_field(&folder.join("pids.events"), "max"),
        memory_peak_bytes: read_number(&folder.join("memory.peak")),
        // "max" is no number, and no limit.
        memory_limit_bytes: read_number(&folder.join("memory.max")),
    }
}
