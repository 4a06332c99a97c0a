//! Waits for every child, and ends every process that the agent left.
//!
//! The bridge is its descendants' subreaper: whoever loses its parent becomes the bridge's child.
//! So killing the children again and again, until the kernel says that there is no child, reaches
//! everyone, however often they forked or left their group; and a child's number cannot be
//! somebody else's, because only this file waits for children.
//!
//! Owner: this file owns all waiting; nothing else in the process may wait for a child (the one
//! exception is inside `Command::spawn`, for a child that failed before its exec, and is over when
//! spawn returns). Absent: what an end means.

use std::fs;

use dormouse_core::evidence::End;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};

use crate::counters::Cgroup;

/// Looks per call, so that a tree of processes is mostly gone in one call.
const LOOKS_MAX: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    Code(i32),
    Signal(i32),
}

impl ExitStatus {
    pub(crate) fn into_end(self) -> End {
        match self {
            ExitStatus::Code(code) => End::Exited { code },
            ExitStatus::Signal(signal) => End::Signaled { signal },
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) pid: Pid,
    pub(crate) status: ExitStatus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// Proven: no child, and nobody in the control group.
    Nothing,
    /// Somebody lives, or is about to be dead.
    Something,
}

/// Takes the status of every child that has ended.
pub(crate) fn reap(ended: &mut Vec<Ended>) -> Left {
    loop {
        match rustix::process::wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                ended.extend(exit_status(status).map(|status| Ended { pid, status }));
            }
            Ok(None) => return Left::Something,
            Err(Errno::INTR) => {}
            // ECHILD, the only other answer that waiting for any child has.
            Err(_no_child) => return Left::Nothing,
        }
    }
}

fn exit_status(status: WaitStatus) -> Option<ExitStatus> {
    let code = status.exit_status().map(ExitStatus::Code);
    code.or_else(|| status.terminating_signal().map(ExitStatus::Signal))
}

/// Kills all children, those that become children by it, and the control group. What is dying when
/// this returns is seen at the next call; a SIGCHLD says when one is worth while.
pub(crate) fn kill_everything(cgroup: Option<&Cgroup>, ended: &mut Vec<Ended>) -> Left {
    for _ in 0..LOOKS_MAX {
        let is_cgroup_empty = cgroup.is_none_or(Cgroup::kill_members);
        for child in children() {
            // It may have ended already, and is then a zombie until `reap`: no error matters.
            let _sent = rustix::process::kill_process(child, Signal::KILL);
        }
        if reap(ended) == Left::Nothing && is_cgroup_empty {
            return Left::Nothing;
        }
    }
    Left::Something
}

/// SIGKILL to a whole group. Right after its leader was reaped as well: the kernel does not give a
/// number to a new process while a group still bears it.
pub(crate) fn kill_group(leader: Pid) {
    // No such group means that nobody is left in it.
    let _sent = rustix::process::kill_process_group(leader, Signal::KILL);
}

/// The children of all threads of this process.
fn children() -> Vec<Pid> {
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists: Vec<String> = threads
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok())
        .collect();
    if lists.is_empty() {
        return children_by_parent();
    }
    lists.iter().flat_map(|list| list.split_ascii_whitespace()).filter_map(parse_pid).collect()
}

/// For kernels that do not list children: everyone whose parent this process is.
fn children_by_parent() -> Vec<Pid> {
    let own_pid = rustix::process::getpid().as_raw_nonzero().to_string();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_child = |entry: &fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).ok();
        let parent = stat.as_deref().and_then(|stat| {
            stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1).map(str::to_string)
        });
        parent.is_some_and(|parent| parent == own_pid)
    };
    let numbered = |entry: &fs::DirEntry| parse_pid(entry.file_name().to_str()?);
    processes
        .filter(|entry| numbered(entry).is_some() && is_child(entry))
        .filter_map(|entry| numbered(&entry))
        .collect()
}

fn parse_pid(text: &str) -> Option<Pid> {
    Pid::from_raw(text.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn both_ways_of_listing_children_find_a_child() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = parse_pid(&child.id().to_string()).unwrap();
        assert!(children().contains(&pid));
        assert!(children_by_parent().contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children().contains(&pid));
    }
}
