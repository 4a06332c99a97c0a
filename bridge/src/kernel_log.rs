//! The kernel's log, where it may be read: it names the process of every out-of-memory kill.
//!
//! Owner: `oom`. Invariants: nothing is read of the time before the process in question; where
//! processes have other numbers than the kernel writes (in a namespace of their own), nothing is
//! read at all; the log may be unreadable, and then says nothing. Absent: any other line of it.
//!
//! The line is written while a lock is held that the victim needs for its end, so it is there
//! before the end can be seen. Source: the kernel's mm/oom_kill.c (`__oom_kill_process`) and
//! Documentation/ABI/testing/dev-kmsg.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};

use rustix::fs::{OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::process::Pid;

const LOG: &str = "/dev/kmsg";
const OWN_NAMESPACE: &str = "/proc/self/ns/pid";
/// The machine's first namespace of process numbers has this inode (PROC_PID_INIT_INO).
const FIRST_NAMESPACE: u64 = 0xEFFF_FFFC;
/// More than the kernel makes of one record.
const RECORD_BYTES: usize = 16 << 10;
/// For a group's limit; a kill for the whole machine's memory begins with "Out of memory: ".
const KILL: &str = "Memory cgroup out of memory: Killed process ";

/// What the log says of kills since the beginning of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// This process was killed for a group's limit.
    Killed,
    /// Others were, and it was not.
    OthersKilled,
    /// Nobody was, or what it said is lost, or it cannot be read.
    Nothing,
}

#[derive(Debug)]
pub(crate) struct KernelLog {
    file: File,
}

impl KernelLog {
    /// `None` where it may not be read, or speaks of other process numbers.
    pub(crate) fn open() -> Option<Self> {
        let namespace = fs::metadata(OWN_NAMESPACE).ok()?.ino();
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::CLOEXEC).bits()).ok()?;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(LOG).ok()?;
        (namespace == FIRST_NAMESPACE).then_some(Self { file })
    }

    /// Passes over what is there.
    pub(crate) fn begin(&self) -> io::Result<()> {
        rustix::fs::seek(&self.file, SeekFrom::End(0)).map(|_| ()).map_err(io::Error::from)
    }

    /// What was said of this process, and of others, since the beginning.
    pub(crate) fn said_of(&self, process: Pid) -> Said {
        let mut record = vec![0; RECORD_BYTES];
        let mut killed = Vec::new();
        let mut is_whole = true;
        loop {
            match rustix::io::read(&self.file, &mut record) {
                Ok(0) => break,
                Ok(bytes) => killed.extend(killed_in(&record[..bytes])),
                Err(Errno::INTR) => {}
                // Overwritten by newer ones.
                Err(Errno::PIPE) => is_whole = false,
                Err(Errno::AGAIN) => break,
                Err(_unreadable) => return Said::Nothing,
            }
        }
        said(&killed, is_whole, process.as_raw_nonzero().get())
    }
}

fn said(killed: &[i32], is_whole: bool, process: i32) -> Said {
    match killed {
        killed if killed.contains(&process) => Said::Killed,
        [_, ..] if is_whole => Said::OthersKilled,
        _ => Said::Nothing,
    }
}

/// `PRIORITY,NUMBER,MICROSECONDS,FLAGS;TEXT`. Priorities below 8 are the kernel's own: whoever may
/// write to the log cannot write those.
fn killed_in(record: &[u8]) -> Option<i32> {
    let record = std::str::from_utf8(record).ok()?;
    let (head, text) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    let rest = text.strip_prefix(KILL).filter(|_| priority < 8)?;
    rest.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_victim_s_number_is_read_from_the_kernel_s_own_lines_only() {
        let line = "3,17588,16957719386,-;Memory cgroup out of memory: Killed process 30285 (sh) \
                    total-vm:10684604kB, anon-rss:44288kB\n";
        assert_eq!(killed_in(line.as_bytes()), Some(30_285));
        let faked = line.replacen("3,", "11,", 1);
        assert_eq!(killed_in(faked.as_bytes()), None);
        let machine = line.replace("Memory cgroup out", "Out");
        for other in [machine.as_str(), "6,1,2,-;eth0: up\n", "", "3,1;", "\u{1}"] {
            assert_eq!(killed_in(other.as_bytes()), None, "{other}");
        }
        assert_eq!(killed_in(&[0xff, b';']), None);
    }

    #[test]
    fn silence_is_no_word_for_anybody() {
        assert_eq!(said(&[], true, 7), Said::Nothing);
        assert_eq!(said(&[5, 7], true, 7), Said::Killed);
        assert_eq!(said(&[5, 7], false, 7), Said::Killed);
        assert_eq!(said(&[5, 6], true, 7), Said::OthersKilled);
        assert_eq!(said(&[5, 6], false, 7), Said::Nothing);
    }

    #[test]
    fn nothing_is_read_of_the_time_before() {
        // Where it cannot be opened there is nothing to test.
        let Some(log) = KernelLog::open() else { return };
        log.begin().unwrap();
        let own = rustix::process::getpid();
        assert_ne!(log.said_of(own), Said::Killed);
        assert_eq!(log.said_of(own), Said::Nothing, "read to its end");
    }
}
