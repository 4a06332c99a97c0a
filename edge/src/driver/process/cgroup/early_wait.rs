//! The wait that the kernel puts before a move of a process, begun before it is needed.
//!
//! The first move after a quiet while waits for an RCU grace period (5 to 20 ms); one that follows
//! within such a period does not. An agent joins its group between fork and exec, so that this
//! would stand in the way of every wake. A move of this process to where it is already changes
//! nothing, and lets the kernel wait while the bridge starts.
//!
//! Owner: `Cgroups::make`. Invariant: this process is only ever "moved" to the group that it is
//! in. Absent: any effect where that cannot be told; the move is then waited for, as usual.
//!
//! Source: `cgroup_attach_lock` and `percpu_down_write` in the kernel.

use std::fs;
use std::path::Path;
use std::thread;

/// `own`: the group that this process is thought to be in.
pub(super) fn begin(own: &Path) {
    let procs = own.join("cgroup.procs");
    let named = thread::Builder::new().name("early-wait".to_owned());
    if let Err(error) = named.spawn(move || stay(&procs)) {
        tracing::debug!(%error, "no thread for the early wait: the agent's start waits instead");
    }
}

fn stay(procs: &Path) {
    let own_id = std::process::id().to_string();
    let members = fs::read_to_string(procs).unwrap_or_default();
    if !members.lines().any(|member| member == own_id) {
        return;
    }
    if let Err(error) = fs::write(procs, &own_id) {
        tracing::debug!(group = %procs.display(), %error, "no early wait");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_member_is_written_to_its_group() {
        let folder = crate::testing::ScratchFolder::new();
        let procs = folder.path().join("cgroup.procs");
        fs::write(&procs, "1\n2\n").unwrap();
        stay(&procs);
        assert_eq!(fs::read_to_string(&procs).unwrap(), "1\n2\n", "it is in another group");
        let own_id = std::process::id().to_string();
        fs::write(&procs, format!("1\n{own_id}\n")).unwrap();
        stay(&procs);
        assert_eq!(fs::read_to_string(&procs).unwrap(), own_id);
    }
}
