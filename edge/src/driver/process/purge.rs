//! Makes sure that nothing of an instance lives, without its bridge's help.
//!
//! Owner: the task of an instance, once its bridge is gone. Invariants: a process is only killed
//! while it is proven to be the instance's: by number and start time, as a member of the
//! instance's control group, or by the marks in its environment; the proof is repeated through a
//! pidfd, so that a number that was given to another process meanwhile is never hit. Success means
//! that a whole look found nothing. Absent: mercy, and evidence.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use dormouse_bridge::rundir::{AgentRecord, CgroupSpec, CgroupVersion, ProcessMark};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};

use super::cgroup;

/// Processes that do not die within this time are in the kernel's hands.
const PURGE_WITHIN: Duration = Duration::from_secs(5);
/// The longest wait between two looks.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Where to look.
#[derive(Debug)]
pub(super) struct Traces<'a> {
    pub(super) agent: Option<AgentRecord>,
    pub(super) cgroup: Option<&'a CgroupSpec>,
    /// Variables that its processes all have in their environment; none: do not look for them.
    pub(super) marks: Vec<(String, String)>,
}

/// Blocks until a look finds nothing and all that was killed has ended, or says what has not.
pub(super) fn purge(traces: &Traces<'_>) -> Result<(), String> {
    let deadline = Instant::now() + PURGE_WITHIN;
    // Dying processes leave their group before they let go of their files and ports.
    let mut killed = Victims::new();
    loop {
        let found = traces.kill_all();
        let is_clean = found.is_empty();
        killed.extend(found);
        killed.retain(|_, descriptor| !has_ended(descriptor));
        if is_clean && killed.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("the processes {:?}", killed.keys()));
        }
        wait_for_any(&killed);
    }
}

/// By number, each pinned down.
type Victims = BTreeMap<i32, OwnedFd>;

impl Traces<'_> {
    fn kill_all(&self) -> Victims {
        let mut victims = Victims::new();
        if let Some(agent) = &self.agent {
            victims.extend(kill_if(agent.process.pid, |_| agent.process.is_alive()));
            if !victims.is_empty()
                && let Some(group) = Pid::from_raw(agent.process_group)
                && let Err(error) = rustix::process::kill_process_group(group, Signal::KILL)
            {
                tracing::debug!(%error, "the agent's group went by itself");
            }
        }
        if let Some(spec) = self.cgroup {
            victims.extend(kill_members(spec));
        }
        let marks: Vec<_> =
            self.marks.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !marks.is_empty() {
            let marked = |pid: i32| kill_if(pid, |pid| has_all(pid, &marks));
            victims.extend(all_pids().into_iter().filter_map(marked));
        }
        victims
    }
}

/// Kills the process of this number if it is proven ours, before and after it was pinned down.
fn kill_if(pid: i32, is_ours: impl Fn(i32) -> bool) -> Option<(i32, OwnedFd)> {
    if !is_ours(pid) {
        return None;
    }
    let descriptor = pinned(pid)?;
    if !is_ours(pid) || has_ended(&descriptor) {
        return None;
    }
    send_kill(pid, &descriptor);
    Some((pid, descriptor))
}

fn kill_members(spec: &CgroupSpec) -> Victims {
    let mut victims = Victims::new();
    for folder in cgroup::folders_of(spec) {
        let pin = |pid: i32| Some((pid, pinned(pid)?));
        let mut found: Victims = cgroup::members(folder).into_iter().filter_map(pin).collect();
        if found.is_empty() {
            continue;
        }
        // A number that is a member still, now that it is pinned down, is the member.
        let members: BTreeSet<i32> = cgroup::members(folder).into_iter().collect();
        found.retain(|pid, _| members.contains(pid));
        // Version 2 kills all of a group at once, faster than it can fork.
        let is_done = spec.version == CgroupVersion::V2 && cgroup::kill_at_once(folder);
        if !is_done {
            found.iter().for_each(|(pid, descriptor)| send_kill(*pid, descriptor));
        }
        victims.extend(found);
    }
    victims
}

fn pinned(pid: i32) -> Option<OwnedFd> {
    rustix::process::pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

fn send_kill(pid: i32, descriptor: &OwnedFd) {
    if let Err(error) = rustix::process::pidfd_send_signal(descriptor, Signal::KILL) {
        // Gone by itself, or not ours to kill: the next look tells which.
        tracing::debug!(pid, %error, "a process could not be killed");
    }
}

/// A zombie has ended: it runs nothing, and waits only for its parent.
fn has_ended(descriptor: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(descriptor, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))
        .is_ok_and(|ready| ready > 0)
}

fn wait_for_any(victims: &Victims) {
    let poll = |descriptor| PollFd::new(descriptor, PollFlags::IN);
    let mut polled: Vec<_> = victims.values().map(poll).collect();
    let nanos = i64::from(LOOK_AGAIN_AFTER.subsec_nanos());
    let within = Timespec { tv_sec: 0, tv_nsec: nanos };
    if let Err(error) = rustix::event::poll(&mut polled, Some(&within)) {
        tracing::debug!(%error, "looking again at once");
    }
}

fn has_all(pid: i32, marks: &[String]) -> bool {
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let has = |mark: &String| environment.split(|byte| *byte == 0).any(|e| e == mark.as_bytes());
    marks.iter().all(has)
}

fn all_pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != own).collect()
}

/// Kills whatever works in a run folder: only bridges do, agents have a workspace. For a bridge
/// that was started by an earlier daemon, and has not said yet which process it is.
pub(super) fn kill_whoever_works_in(folder: &Path) {
    let works_there =
        |pid: i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == folder);
    for pid in all_pids() {
        kill_if(pid, works_there);
    }
}

/// Opens the very process of a mark; `None` if it is not there any more.
pub(super) fn open_process(mark: ProcessMark) -> Option<OwnedFd> {
    let descriptor = pinned(mark.pid)?;
    mark.is_alive().then_some(descriptor)
}
