//! The kernel's log, where it may be read: it names the process of every out-of-memory kill.
//!
//! ```text
//!  NAME invoked oom-killer: gfp_mask=…, order=0, oom_score_adj=0         order=-1: at SysRq's word
//!  oom-kill:constraint=CONSTRAINT_NONE,…,global_oom,…,task=NAME,pid=7,uid=0         whom it chose
//!  Out of memory: Killed process 7 (NAME) …          or: Memory cgroup out of memory: Killed …
//! ```
//!
//! Owner: `oom`. Invariants: nothing is read of the time before the process in question; where
//! processes have other numbers than the kernel writes (in a namespace of their own), nothing is
//! read at all; the log may be unreadable, and then says nothing. Absent: any other line of it.
//!
//! The last line is written while a lock is held that the victim needs for its end, so it is there
//! before the end can be seen. The two before it are left out when they come too often, and then
//! "Out of memory" may be that of a set of processors or memory nodes alone. Source: the kernel's
//! mm/oom_kill.c (`dump_header`, `dump_oom_victim`, `__oom_kill_process`), drivers/tty/sysrq.c and
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
const KILL_FOR_GROUP: &str = "Memory cgroup out of memory: Killed process ";
/// For no group's limit. The words in between are of `vm.oom_kill_allocating_task`.
const KILLS_FOR_NONE: [&str; 2] =
    ["Out of memory: Killed process ", "Out of memory (oom_kill_allocating_task): Killed process "];
/// The names of processes, which they choose themselves, have at most 15 bytes: none can look like
/// one of these beginnings, and what is read behind a name is read from the end.
const CHOSE_FOR_MACHINE: &str = "oom-kill:constraint=CONSTRAINT_NONE,";
const INVOKED: &str = " invoked oom-killer: ";
const AT_SYSRQ_S_WORD: &str = ", order=-1,";

/// What the log says of kills since the beginning of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// This process was killed for a group's limit.
    Killed,
    /// This process was killed because the whole machine was out of memory.
    KilledForMachine,
    /// This process was killed for no group's limit; for what, and at whose word, is not sure.
    KilledForNoGroup,
    /// Others were killed for a group's limit, and it was not.
    OthersKilled,
    /// Nobody was, or what it said is lost, or it cannot be read.
    Nothing,
}

/// A record that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    Invoked { is_by_sysrq: bool },
    ChoseForMachine { process: i32 },
    KilledForGroup { process: i32 },
    KilledForNone { process: i32 },
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
        let mut words = Vec::new();
        let mut is_whole = true;
        loop {
            match rustix::io::read(&self.file, &mut record) {
                Ok(0) => break,
                Ok(bytes) => words.extend(word_in(&record[..bytes])),
                Err(Errno::INTR) => {}
                // Overwritten by newer ones.
                Err(Errno::PIPE) => is_whole = false,
                Err(Errno::AGAIN) => break,
                Err(_unreadable) => return Said::Nothing,
            }
        }
        said(&words, is_whole, process.as_raw_nonzero().get())
    }
}

fn said(words: &[Word], is_whole: bool, process: i32) -> Said {
    if words.contains(&Word::KilledForGroup { process }) {
        return Said::Killed;
    }
    let killed_at = words.iter().position(|word| *word == Word::KilledForNone { process });
    if let Some(killed_at) = killed_at {
        let is_sure = is_whole && was_chosen_for_machine(&words[..killed_at], process);
        return if is_sure { Said::KilledForMachine } else { Said::KilledForNoGroup };
    }
    let is_kill = |word: &Word| matches!(word, Word::KilledForGroup { .. });
    if is_whole && words.iter().any(is_kill) { Said::OthersKilled } else { Said::Nothing }
}

/// The kernel tells of one choice after the other, under one lock.
fn was_chosen_for_machine(before: &[Word], process: i32) -> bool {
    let Some((Word::ChoseForMachine { process: chosen }, before)) = before.split_last() else {
        return false;
    };
    *chosen == process && before.last() == Some(&Word::Invoked { is_by_sysrq: false })
}

/// `PRIORITY,NUMBER,MICROSECONDS,FLAGS;TEXT`. Priorities below 8 are the kernel's own: whoever may
/// write to the log cannot write those.
fn word_in(record: &[u8]) -> Option<Word> {
    let record = std::str::from_utf8(record).ok()?;
    let (head, text) = record.split_once(';')?;
    let priority: u32 = head.split(',').next()?.parse().ok()?;
    // What follows the first line is about the device that the text is of.
    let text = text.lines().next().filter(|_| priority < 8)?;
    let number = |rest: &str| rest.split(' ').next()?.parse().ok();
    if let Some(rest) = text.strip_prefix(KILL_FOR_GROUP) {
        return Some(Word::KilledForGroup { process: number(rest)? });
    }
    if let Some(rest) = KILLS_FOR_NONE.iter().find_map(|kill| text.strip_prefix(kill)) {
        return Some(Word::KilledForNone { process: number(rest)? });
    }
    if let Some(rest) = text.strip_prefix(CHOSE_FOR_MACHINE) {
        return chosen_in(rest);
    }
    let (_, how) = text.rsplit_once(INVOKED)?;
    Some(Word::Invoked { is_by_sysrq: how.contains(AT_SYSRQ_S_WORD) })
}

/// `…,global_oom,task_memcg=PATH,task=NAME,pid=NUMBER,uid=NUMBER`.
fn chosen_in(text: &str) -> Option<Word> {
    let (before, _) = text.rsplit_once(",uid=")?;
    let (before, process) = before.rsplit_once(",pid=")?;
    let is_global = before.contains(",global_oom,task_memcg=") && !before.contains(",oom_memcg=");
    is_global.then_some(Word::ChoseForMachine { process: process.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: &str = "3,17588,16957719386,-;Memory cgroup out of memory: Killed process 30285 \
                         (sh) total-vm:10684604kB, anon-rss:44288kB\n";
    const INVOKED: &str = "4,900,55,-;node invoked oom-killer: gfp_mask=0x140dca(GFP_HIGHUSER), \
                           order=0, oom_score_adj=0\n";
    const CHOSEN: &str = "6,950,56,-;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),\
                          cpuset=/,mems_allowed=0,global_oom,task_memcg=/user.slice,task=node,\
                          pid=4242,uid=1000\n";
    const KILLED: &str = "3,951,57,-;Out of memory: Killed process 4242 (node) \
                          total-vm:9000000kB, anon-rss:7000000kB, UID:1000\n";
    const VICTIM: i32 = 4_242;

    /// What is said of the victim after these records.
    fn of_victim(records: &[&str], is_whole: bool) -> Said {
        let words: Vec<Word> =
            records.iter().filter_map(|record| word_in(record.as_bytes())).collect();
        said(&words, is_whole, VICTIM)
    }

    #[test]
    fn the_victim_s_number_is_read_from_the_kernel_s_own_lines_only() {
        let process = 30_285;
        assert_eq!(word_in(LIMIT.as_bytes()), Some(Word::KilledForGroup { process }));
        let machine = LIMIT.replace("Memory cgroup out", "Out");
        assert_eq!(word_in(machine.as_bytes()), Some(Word::KilledForNone { process }));
        for record in [LIMIT, &machine, INVOKED, CHOSEN, KILLED] {
            let (_, rest) = record.split_once(',').unwrap();
            assert!(word_in(record.as_bytes()).is_some(), "{record}");
            assert_eq!(word_in(format!("11,{rest}").as_bytes()), None, "written by somebody");
        }
        for other in ["6,1,2,-;eth0: up\n", "", "3,1;", "\u{1}", "3,1,2,-;"] {
            assert_eq!(word_in(other.as_bytes()), None, "{other}");
        }
        assert_eq!(word_in(&[0xff, b';']), None);
    }

    #[test]
    fn a_machine_out_of_memory_that_chose_this_process_is_said_so() {
        assert_eq!(of_victim(&[INVOKED, CHOSEN, KILLED], true), Said::KilledForMachine);
        // Others went before and after.
        let records = [LIMIT, INVOKED, CHOSEN, KILLED, LIMIT];
        assert_eq!(of_victim(&records, true), Said::KilledForMachine);
        let allocating = KILLED.replace("memory:", "memory (oom_kill_allocating_task):");
        assert_eq!(of_victim(&[INVOKED, CHOSEN, &allocating], true), Said::KilledForMachine);
    }

    #[test]
    fn without_every_line_of_it_or_with_another_reading_it_is_not_sure() {
        let sysrq = INVOKED.replace("order=0", "order=-1");
        let part = CHOSEN.replace("CONSTRAINT_NONE", "CONSTRAINT_CPUSET");
        let group = CHOSEN.replace("global_oom", "oom_memcg=/a");
        let other = CHOSEN.replace("4242", "4243");
        let cut = CHOSEN.replace(",uid=1000", "");
        let named = CHOSEN.replace("task=node,pid=4242", "task=,pid=4242,uid=0,pid=4243");
        for records in [
            &[KILLED] as &[&str],
            &[CHOSEN, KILLED],
            &[INVOKED, KILLED],
            &[&sysrq, CHOSEN, KILLED],
            &[INVOKED, &part, KILLED],
            &[INVOKED, &group, KILLED],
            &[INVOKED, &other, KILLED],
            &[INVOKED, &cut, KILLED],
            &[INVOKED, &named, KILLED],
            // It was chosen before, and outlived it; of the later kill the head is missing.
            &[INVOKED, CHOSEN, LIMIT, KILLED],
            &[KILLED, INVOKED, CHOSEN],
        ] {
            assert_eq!(of_victim(records, true), Said::KilledForNoGroup, "{records:?}");
        }
        assert_eq!(of_victim(&[INVOKED, CHOSEN, KILLED], false), Said::KilledForNoGroup, "lost");
        assert_eq!(of_victim(&[INVOKED, CHOSEN], true), Said::Nothing, "chosen and not killed");
    }

    #[test]
    fn silence_is_no_word_for_anybody() {
        let killed = |processes: &[i32], is_whole| {
            let word = |process: &i32| Word::KilledForGroup { process: *process };
            said(&processes.iter().map(word).collect::<Vec<_>>(), is_whole, 7)
        };
        assert_eq!(killed(&[], true), Said::Nothing);
        assert_eq!(killed(&[5, 7], true), Said::Killed);
        assert_eq!(killed(&[5, 7], false), Said::Killed);
        assert_eq!(killed(&[5, 6], true), Said::OthersKilled);
        assert_eq!(killed(&[5, 6], false), Said::Nothing);
        // The machine's victims say nothing of who else may have been a group's.
        assert_eq!(said(&[Word::KilledForNone { process: 5 }], true, 7), Said::Nothing);
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
