//! Whom the kernel's out-of-memory kills hit: the agent's own process, or others of its group.
//!
//! ```text
//!  told by the kernel ─▶ read the count ─▶ then the process's status ─▶ no SIGKILL was sent to it:
//!                                                                       settled, others were hit
//!  ended by SIGKILL ─▶ read the count ─▶ no more than was settled:      others were hit
//!                                      └ more, and the kernel told:     it was hit
//! ```
//!
//! The order is the proof. The kernel raises the count before it sends SIGKILL, both under a lock
//! of the victim that reading its status takes too, and a SIGKILL that was sent stays in `ShdPnd`
//! until the process is reaped. So if the count is read first and no SIGKILL is seen afterwards,
//! none of the counted kills hit the process, and never will have.
//!
//! Version 2 tells after it counted, version 1 when it is about to choose: there the count may lag
//! behind, and is looked at again for about a second. What was counted and not yet settled when the
//! process is found dead of SIGKILL may have two readings, and the kernel's log, where it can be
//! read, names the right one. Where it cannot, the kill is taken for the process's own: the other
//! reading needs a stranger's SIGKILL in the moment between the kernel's word and the look at it.
//! Where that moment is long nothing is said: without notices, and where this bridge itself sent
//! SIGKILL. Neither is it of kills for the memory of the whole machine, which count alike, but
//! which version 1 does not tell of and version 2 does not count as the group's own: those are told
//! by the kernel's log or not at all.
//!
//! Owner: `instance` holds the one [`OomWatch`]; it is asked before the process is reaped or right
//! after. Invariant: a victim that is named is the only reading; else there is none. Absent: what
//! that means for a turn or an exit.
//!
//! Sources: the kernel's mm/oom_kill.c (`__oom_kill_process`), kernel/signal.c, fs/proc/array.c,
//! admin-guide/cgroup-v1/memory.rst ("OOM Control") and admin-guide/cgroup-v2.rst.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::thread;
use std::time::Duration;

use dormouse_core::evidence::{End, MachineOom, OomVictim};
use rustix::event::EventfdFlags;
use rustix::fs::inotify;
use rustix::io::Errno;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

use crate::counters::{Cgroup, Counters};
use crate::kernel_log::{KernelLog, Said};
use crate::rundir::{CgroupSpec, CgroupVersion};

const SIGKILL: i32 = 9;
/// How long a kill that was told of is looked for without a pause: mostly it follows at once, and
/// who sees it late may see another's SIGKILL as well.
const LOOK_HARD_FOR: Duration = Duration::from_millis(2);
/// Between two looks for it afterwards; doubled each time, up to the second one.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(1);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(512);
/// Space for some changes of one file, which carry no name.
const CHANGES_BYTES: usize = 512;

/// What is known of the agent's own process at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    /// It runs, and nobody has sent it SIGKILL so far.
    Unhurt,
    /// It was sent SIGKILL, or has ended, or cannot be looked at.
    Other,
}

/// Counts over the life of one process, and which of them are settled.
#[derive(Debug, Default)]
struct Ledger {
    begun: Counters,
    settled: Counters,
    /// How often the kernel told that it is to choose somebody. Version 1; version 2 counts it.
    told: u64,
}

impl Ledger {
    fn begin(counters: Counters) -> Self {
        Self { begun: counters, settled: counters, told: 0 }
    }

    /// `counters` were read before `own` was.
    fn look(&mut self, counters: Counters, own: Own) {
        if own == Own::Unhurt && counters.oom_kills.is_some() {
            self.settled = counters;
        }
    }

    /// Told of kills that are not counted yet.
    fn told_and_uncounted(&self, now: &Counters) -> u64 {
        self.told.saturating_sub(own_kills(now, &self.begun).unwrap_or(0))
    }

    /// The kernel chose in this group, for this group's limit, since the settled look.
    fn was_told(&self, now: &Counters) -> bool {
        match now.limit_ooms.zip(self.begun.limit_ooms) {
            Some((now, begun)) => now > begun,
            None => self.told > own_kills(&self.settled, &self.begun).unwrap_or(0),
        }
    }

    /// `now` was read after the end was seen. `logged`: what the kernel's log says. `is_told`:
    /// notices work. `is_ours`: this bridge sent SIGKILL itself.
    fn victim(
        &self,
        now: Counters,
        end: &End,
        logged: Said,
        is_told: bool,
        is_ours: bool,
    ) -> Option<OomVictim> {
        if now.oom_kills_since(&self.begun)? == 0 {
            return None;
        }
        let is_settled = now.oom_kills <= self.settled.oom_kills;
        match end {
            End::Exited { .. } => Some(OomVictim::Child),
            End::Signaled { .. } if is_settled => Some(OomVictim::Child),
            End::Signaled { signal: SIGKILL } => match logged {
                Said::Killed => Some(OomVictim::Main),
                Said::OthersKilled => Some(OomVictim::Child),
                Said::KilledForMachine | Said::KilledForNoGroup => None,
                Said::Nothing => {
                    let is_counted_here = own_kills(&now, &self.settled)? > 0;
                    let is_own = is_told && !is_ours && is_counted_here && self.was_told(&now);
                    is_own.then_some(OomVictim::Main)
                }
            },
            End::Signaled { .. }
            | End::LaunchFailed { .. }
            | End::NeverLaunched
            | End::BridgeLost => None,
        }
    }
}

/// Kills in the agent's own group, without the groups below.
fn own_kills(now: &Counters, earlier: &Counters) -> Option<u64> {
    Some(now.oom_kills_own?.saturating_sub(earlier.oom_kills_own?))
}

/// What there is to say of memory at a process's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settled {
    /// In its group, in its life.
    pub(crate) kills: u64,
    pub(crate) victim: Option<OomVictim>,
    pub(crate) machine_oom: Option<MachineOom>,
}

/// A kill of the process itself that no group's limit is the reason of. `is_ours` may have been
/// what ended a process that the kernel chose as well.
fn machine_oom(end: &End, logged: Said, is_ours: bool) -> Option<MachineOom> {
    let is_killed = *end == (End::Signaled { signal: SIGKILL }) && !is_ours;
    match logged {
        Said::KilledForMachine if is_killed => Some(MachineOom::Chosen),
        Said::KilledForNoGroup if is_killed => Some(MachineOom::Killed),
        Said::KilledForMachine | Said::KilledForNoGroup => None,
        Said::Killed | Said::OthersKilled | Said::Nothing => None,
    }
}

/// Follows the kills in the agent's group for one process after the other.
#[derive(Debug, Default)]
pub(crate) struct OomWatch {
    notices: Option<Notices>,
    kernel_log: Option<KernelLog>,
    ledger: Ledger,
    look_again: Option<(Instant, Duration)>,
}

impl OomWatch {
    /// Opens the kernel's log, which tells of what is in no group as well.
    pub(crate) fn open_log(&mut self) {
        self.kernel_log = KernelLog::open();
    }

    /// Asks the kernel for notices. Without them much stays unknown, and nothing becomes wrong.
    pub(crate) fn listen(&mut self, spec: &CgroupSpec) -> io::Result<()> {
        self.notices = Some(Notices::of(spec)?);
        Ok(())
    }

    /// Right before a process is executed.
    pub(crate) fn begin(&mut self, counters: Counters) {
        self.ledger = Ledger::begin(counters);
        self.look_again = None;
        // Said of the time before.
        let _passed_over = self.notices.as_ref().and_then(Notices::take);
        // What cannot be passed over may speak of an earlier process with the same number.
        self.kernel_log = self.kernel_log.take().filter(|log| log.begin().is_ok());
    }

    /// Waits for the kernel's next word, and gives how many kills it told of that it had not
    /// counted yet. Nothing is lost if the wait is given up.
    pub(crate) async fn next(&self) -> u64 {
        match &self.notices {
            Some(notices) => notices.next().await,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn on_told(&mut self, times: u64, cgroup: &Cgroup, process: Option<Pid>) {
        self.ledger.told += times;
        let until = Instant::now() + LOOK_HARD_FOR;
        loop {
            self.look_again = Some((Instant::now(), LOOK_AGAIN_MIN));
            self.look(cgroup, process);
            if self.look_again.is_none() || Instant::now() > until {
                break;
            }
            thread::yield_now();
        }
    }

    pub(crate) fn next_look(&self) -> Option<Instant> {
        self.look_again.map(|(at, _)| at)
    }

    /// Reads how things are. `process` is the agent's own, not reaped yet.
    pub(crate) fn look(&mut self, cgroup: &Cgroup, process: Option<Pid>) {
        let counters = cgroup.counters();
        // Second, or it would prove nothing.
        let own = process.map_or(Own::Other, own_state);
        self.ledger.look(counters, own);
        self.look_again = self.look_again.take().and_then(|(_, pause)| {
            let is_waited_for = self.ledger.told_and_uncounted(&counters) > 0;
            let is_worth_it = is_waited_for && process.is_some() && pause <= LOOK_AGAIN_MAX;
            is_worth_it.then(|| (Instant::now() + pause, pause * 2))
        });
    }

    /// How many were killed in the life of the process, and whom it hit. `now` was read after its
    /// end was seen. `is_ours`: this bridge sent SIGKILL itself.
    pub(crate) fn settle(
        &mut self,
        now: Counters,
        process: Pid,
        end: &End,
        is_ours: bool,
    ) -> Settled {
        self.look_again = None;
        // The process's end may be heard of before the word that came before it.
        self.ledger.told += self.notices.as_ref().and_then(Notices::take).unwrap_or(0);
        let kills = now.oom_kills_since(&self.ledger.begun).unwrap_or(0);
        let log = self.kernel_log.as_ref();
        let logged = log.map_or(Said::Nothing, |log| log.said_of(process));
        let victim = self.ledger.victim(now, end, logged, self.notices.is_some(), is_ours);
        Settled { kills, victim, machine_oom: machine_oom(end, logged, is_ours) }
    }
}

/// Whether SIGKILL has been sent to a child of this process that was not reaped yet.
fn own_state(process: Pid) -> Own {
    let path = format!("/proc/{}/status", process.as_raw_nonzero());
    fs::read_to_string(path).map_or(Own::Other, |status| own_state_in(&status))
}

/// From /proc/PID/status, whose signal sets are hexadecimal with signal 1 as the lowest bit.
fn own_state_in(status: &str) -> Own {
    let field = |name: &str| {
        status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    };
    let has_sigkill = |name: &str| {
        let set = u64::from_str_radix(field(name)?, 16).ok()?;
        Some(set >> (SIGKILL - 1) & 1 == 1)
    };
    let runs = field("State").is_some_and(|state| !state.starts_with(['Z', 'X', 'x']));
    match (runs, has_sigkill("SigPnd"), has_sigkill("ShdPnd")) {
        (true, Some(false), Some(false)) => Own::Unhurt,
        _ => Own::Other,
    }
}

/// What the kernel wakes this process with when it kills in the group, or is about to.
#[derive(Debug)]
struct Notices {
    source: AsyncFd<OwnedFd>,
    version: CgroupVersion,
}

impl Notices {
    fn of(spec: &CgroupSpec) -> io::Result<Self> {
        let source = match spec.version {
            CgroupVersion::V1 => subscribe_v1(&spec.agent_folder)?,
            CgroupVersion::V2 => subscribe_v2(&spec.agent_folder)?,
        };
        #[expect(unsafe_code, reason = "tokio watches a foreign descriptor on our word only")]
        // SAFETY: the descriptor is open, and owned by what watches it, so it stays what it is.
        let source = unsafe { AsyncFd::register_with_interest(source, Interest::READABLE) };
        Ok(Self { source: source.map_err(io::Error::from)?, version: spec.version })
    }

    /// How many kills the kernel told of before it counted them.
    async fn next(&self) -> u64 {
        loop {
            let Ok(mut ready) = self.source.readable().await else {
                return std::future::pending().await;
            };
            let taken = self.take();
            ready.clear_ready();
            if let Some(times) = taken {
                return times;
            }
        }
    }

    /// `None`: nothing since the last time.
    fn take(&self) -> Option<u64> {
        match self.version {
            CgroupVersion::V1 => take_count(self.source.get_ref()),
            // Of kills that are counted already, and of much else.
            CgroupVersion::V2 => take_changes(self.source.get_ref()).then_some(0),
        }
    }
}

/// An eventfd that is raised each time that memory ran out in the group. It needs no right to
/// write: the file is everybody's.
fn subscribe_v1(folder: &Path) -> io::Result<OwnedFd> {
    let source = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let control = File::open(folder.join("memory.oom_control"))?;
    let wish = format!("{} {}", source.as_raw_fd(), control.as_raw_fd());
    let mut file = OpenOptions::new().write(true).open(folder.join("cgroup.event_control"))?;
    file.write_all(wish.as_bytes())?;
    Ok(source)
}

/// Changes of the file of counts, those in groups below included.
fn subscribe_v2(folder: &Path) -> io::Result<OwnedFd> {
    let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
    let source = inotify::init(flags)?;
    let changes = inotify::WatchFlags::MODIFY;
    inotify::add_watch(&source, folder.join("memory.events"), changes)?;
    Ok(source)
}

fn take_count(source: &OwnedFd) -> Option<u64> {
    let mut count = [0; 8];
    match rustix::io::read(source, &mut count) {
        Ok(8) => Some(u64::from_ne_bytes(count)),
        _nothing => None,
    }
}

fn take_changes(source: &OwnedFd) -> bool {
    let mut changes = [0; CHANGES_BYTES];
    let mut has_changed = false;
    loop {
        match rustix::io::read(source, &mut changes) {
            Ok(bytes) if bytes > 0 => has_changed = true,
            Err(Errno::INTR) => {}
            _nothing_more => return has_changed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KILLED: End = End::Signaled { signal: SIGKILL };

    fn version_1(own: u64, below: u64) -> Counters {
        Counters { oom_kills: Some(own + below), oom_kills_own: Some(own), ..Counters::default() }
    }

    fn version_2(own: u64, below: u64, limit_ooms: u64) -> Counters {
        Counters { limit_ooms: Some(limit_ooms), ..version_1(own, below) }
    }

    fn told(ledger: &Ledger, now: Counters, end: &End) -> Option<OomVictim> {
        ledger.victim(now, end, Said::Nothing, true, false)
    }

    fn untold(ledger: &Ledger, now: Counters, end: &End) -> Option<OomVictim> {
        ledger.victim(now, end, Said::Nothing, false, false)
    }

    fn killed_by_us(ledger: &Ledger, now: Counters, end: &End) -> Option<OomVictim> {
        ledger.victim(now, end, Said::Nothing, true, true)
    }

    #[test]
    fn a_kill_that_was_told_of_and_is_new_at_the_end_hit_the_process() {
        let mut ledger = Ledger::begin(version_1(4, 0));
        ledger.told = 1;
        assert_eq!(told(&ledger, version_1(5, 0), &KILLED), Some(OomVictim::Main));
        let ledger = Ledger::begin(version_2(4, 0, 9));
        assert_eq!(told(&ledger, version_2(5, 0, 10), &KILLED), Some(OomVictim::Main));
    }

    #[test]
    fn a_child_s_kill_long_ago_does_not_explain_a_sigkill_from_outside() {
        let mut ledger = Ledger::begin(version_1(0, 0));
        ledger.told = 1;
        ledger.look(version_1(1, 0), Own::Unhurt);
        assert_eq!(told(&ledger, version_1(1, 0), &KILLED), Some(OomVictim::Child));
        // And then it was its own turn.
        ledger.told = 2;
        assert_eq!(told(&ledger, version_1(2, 0), &KILLED), Some(OomVictim::Main));
    }

    #[test]
    fn a_look_that_finds_sigkill_on_its_way_settles_nothing() {
        let mut ledger = Ledger::begin(version_1(0, 0));
        ledger.told = 1;
        ledger.look(version_1(1, 0), Own::Other);
        assert_eq!(told(&ledger, version_1(1, 0), &KILLED), Some(OomVictim::Main));
    }

    #[test]
    fn a_look_between_the_kernel_s_word_and_its_deed_takes_nothing_away() {
        let mut ledger = Ledger::begin(version_1(0, 0));
        ledger.told = 1;
        ledger.look(version_1(0, 0), Own::Unhurt);
        assert_eq!(ledger.told_and_uncounted(&version_1(0, 0)), 1);
        assert_eq!(told(&ledger, version_1(1, 0), &KILLED), Some(OomVictim::Main));
    }

    #[test]
    fn a_process_that_returned_a_code_was_not_the_one() {
        let mut ledger = Ledger::begin(version_1(0, 0));
        ledger.told = 1;
        for code in [0, 1, 137] {
            let end = End::Exited { code };
            assert_eq!(told(&ledger, version_1(1, 0), &end), Some(OomVictim::Child));
            assert_eq!(untold(&ledger, version_1(1, 0), &end), Some(OomVictim::Child));
        }
    }

    #[test]
    fn without_notices_or_after_a_kill_of_our_own_a_new_count_has_two_readings() {
        let mut ledger = Ledger::begin(version_1(0, 0));
        ledger.told = 1;
        assert_eq!(untold(&ledger, version_1(1, 0), &KILLED), None);
        assert_eq!(killed_by_us(&ledger, version_1(1, 0), &KILLED), None);
        // What was settled before our own kill stays settled.
        ledger.look(version_1(1, 0), Own::Unhurt);
        assert_eq!(killed_by_us(&ledger, version_1(1, 0), &KILLED), Some(OomVictim::Child));
    }

    #[test]
    fn the_kernel_s_log_decides_where_counts_have_two_readings_and_nowhere_else() {
        let mut ledger = Ledger::begin(version_1(0, 0));
        ledger.told = 1;
        for (said, victim) in [
            (Said::Killed, Some(OomVictim::Main)),
            (Said::OthersKilled, Some(OomVictim::Child)),
            (Said::KilledForMachine, None),
            (Said::KilledForNoGroup, None),
            (Said::Nothing, None),
        ] {
            for (is_told, is_ours) in [(false, false), (true, true)] {
                let now = version_1(1, 0);
                assert_eq!(ledger.victim(now, &KILLED, said, is_told, is_ours), victim);
            }
        }
        let killed = Said::Killed;
        assert_eq!(ledger.victim(version_1(0, 0), &KILLED, killed, true, false), None);
        ledger.look(version_1(1, 0), Own::Unhurt);
        let settled = ledger.victim(version_1(1, 0), &KILLED, killed, true, false);
        assert_eq!(settled, Some(OomVictim::Child));
    }

    #[test]
    fn the_machine_s_memory_is_a_reason_only_where_the_log_names_this_process_and_sigkill_ended_it()
    {
        let (sure, unsure) = (Said::KilledForMachine, Said::KilledForNoGroup);
        assert_eq!(machine_oom(&KILLED, sure, false), Some(MachineOom::Chosen));
        assert_eq!(machine_oom(&KILLED, unsure, false), Some(MachineOom::Killed));
        for said in [Said::Killed, Said::OthersKilled, Said::Nothing] {
            assert_eq!(machine_oom(&KILLED, said, false), None);
        }
        for said in [sure, unsure] {
            assert_eq!(machine_oom(&KILLED, said, true), None, "our own kill may have been first");
            for end in [End::Exited { code: 137 }, End::Signaled { signal: 15 }] {
                assert_eq!(machine_oom(&end, said, false), None);
            }
        }
    }

    #[test]
    fn a_kill_for_the_machine_s_memory_is_not_the_limit_s() {
        let ledger = Ledger::begin(version_1(0, 0));
        assert_eq!(told(&ledger, version_1(1, 0), &KILLED), None);
        let ledger = Ledger::begin(version_2(0, 0, 3));
        assert_eq!(told(&ledger, version_2(1, 0, 3), &KILLED), None);
    }

    #[test]
    fn an_earlier_word_for_a_child_does_not_speak_for_a_later_kill() {
        let mut ledger = Ledger::begin(version_1(0, 0));
        ledger.told = 1;
        ledger.look(version_1(1, 0), Own::Unhurt);
        assert_eq!(told(&ledger, version_1(2, 0), &KILLED), None);
    }

    #[test]
    fn kills_in_groups_that_the_agent_made_may_be_its_own_only_if_it_is_there() {
        let mut ledger = Ledger::begin(version_1(0, 0));
        ledger.told = 1;
        assert_eq!(told(&ledger, version_1(0, 1), &KILLED), None);
        ledger.look(version_1(0, 1), Own::Unhurt);
        assert_eq!(told(&ledger, version_1(0, 1), &KILLED), Some(OomVictim::Child));
    }

    #[test]
    fn another_signal_is_no_oom_kill_but_only_a_settled_count_is_a_child_s() {
        let mut ledger = Ledger::begin(version_1(0, 0));
        ledger.told = 1;
        let crashed = End::Signaled { signal: 11 };
        assert_eq!(told(&ledger, version_1(1, 0), &crashed), None);
        ledger.look(version_1(1, 0), Own::Unhurt);
        assert_eq!(told(&ledger, version_1(1, 0), &crashed), Some(OomVictim::Child));
    }

    #[test]
    fn nothing_counted_is_nobody_and_nothing_readable_is_nothing_said() {
        let ledger = Ledger::begin(version_1(3, 1));
        assert_eq!(told(&ledger, version_1(3, 1), &KILLED), None);
        assert_eq!(told(&ledger, Counters::default(), &KILLED), None);
        let mut ledger = Ledger::begin(version_1(3, 1));
        ledger.look(Counters::default(), Own::Unhurt);
        assert_eq!(ledger.settled, version_1(3, 1));
    }

    fn status(state: &str, own: &str, shared: &str) -> String {
        let zeros = "0000000000000000";
        let sets = format!("SigPnd:\t{own}\nShdPnd:\t{shared}\nSigBlk:\t{zeros}\n");
        format!("Name:\tx\nState:\t{state}\nSigQ:\t0/1\n{sets}")
    }

    #[test]
    fn only_a_process_that_runs_and_was_not_sent_sigkill_is_unhurt() {
        let (none, kill, term) = ("0000000000000000", "0000000000000100", "0000000000004000");
        for state in ["R (running)", "S (sleeping)", "D (disk sleep)", "T (stopped)"] {
            assert_eq!(own_state_in(&status(state, none, none)), Own::Unhurt);
        }
        assert_eq!(own_state_in(&status("S (sleeping)", term, term)), Own::Unhurt);
        assert_eq!(own_state_in(&status("R (running)", none, kill)), Own::Other);
        assert_eq!(own_state_in(&status("R (running)", kill, none)), Own::Other);
        assert_eq!(own_state_in(&status("Z (zombie)", none, none)), Own::Other);
        assert_eq!(own_state_in(""), Own::Other);
    }

    #[test]
    fn a_child_is_unhurt_until_sigkill_is_sent_and_never_again() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        assert_eq!(own_state(pid), Own::Unhurt);
        child.kill().unwrap();
        assert_eq!(own_state(pid), Own::Other);
        rustix::process::waitid(
            rustix::process::WaitId::Pid(pid),
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT,
        )
        .unwrap();
        assert_eq!(own_state(pid), Own::Other);
        child.wait().unwrap();
        assert_eq!(own_state(pid), Own::Other);
    }

    #[tokio::test]
    async fn version_2_tells_by_a_change_of_its_file() {
        let scratch = crate::testing::Scratch::new();
        let file = scratch.path().join("memory.events");
        fs::write(&file, "oom_kill 0\n").unwrap();
        let spec = CgroupSpec {
            version: CgroupVersion::V2,
            agent_folder: scratch.path().into(),
            extra_folders: Vec::new(),
        };
        let notices = Notices::of(&spec).unwrap();
        fs::write(&file, "oom_kill 1\n").unwrap();
        assert_eq!(notices.next().await, 0, "counted already");
        let nothing = tokio::time::timeout(Duration::from_millis(20), notices.next()).await;
        assert!(nothing.is_err(), "it told twice");
    }

    #[tokio::test]
    async fn a_folder_that_is_no_group_has_no_notices() {
        let scratch = crate::testing::Scratch::new();
        for version in [CgroupVersion::V1, CgroupVersion::V2] {
            let agent_folder = scratch.path().into();
            let spec = CgroupSpec { version, agent_folder, extra_folders: Vec::new() };
            assert!(Notices::of(&spec).is_err());
        }
    }
}
