//! Signals, and the way out: running turns get their time, then the process ends, whatever still
//! runs.
//!
//! ```text
//!  signal ─▶ drain: no turn begins, messages are taken ─┬─ no turn runs ───────┐
//!                                                       ├─ drain_within over ──┼▶ commit, end
//!                                                       └─ another signal ─────┘
//! ```
//!
//! Owner: `run`. Invariants: messages are accepted until the very end; nothing is stopped: what
//! still runs goes on under its bridge; the budget is counted once, and a second signal only
//! shortens it. Absent: the commit (`engine`), connections (`server`).

use std::time::{Duration, Instant};

use dormouse_core::journal::{count, human_span};
use futures_util::FutureExt;
use rustix::process::{Pid, Signal as ToEnd, kill_process};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{Manner, RunError};
use crate::engine::request::{Gateway, RunningTurn};

/// How often the service manager is told that the end still takes a while, and people of changes.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// What has not changed is said again after so long.
const SAID_AGAIN_AFTER: Duration = Duration::from_secs(10);
/// So long the service manager waits for the next word.
const NEXT_WORD_WITHIN: Duration = Duration::from_secs(15);
/// Sessions that one line names.
const NAMED_MAX: usize = 5;

/// What asks the process to end, or to read its config again.
pub(super) struct Signals {
    /// `None`: whoever started this process wants it to survive its terminal.
    hung_up: Option<Signal>,
    terminated: Signal,
    interrupted: Signal,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, RunError> {
        let on = |kind| {
            signal(kind).map_err(|source| RunError::System { what: "to listen to signals", source })
        };
        Ok(Self {
            hung_up: match is_ignored(ToEnd::HUP) {
                true => None,
                false => Some(on(SignalKind::hangup())?),
            },
            terminated: on(SignalKind::terminate())?,
            interrupted: on(SignalKind::interrupt())?,
        })
    }

    /// One to end has come and was not heeded yet.
    pub(super) fn have_come(&mut self) -> bool {
        self.end_asked().now_or_never().is_some()
    }

    pub(super) async fn next(&mut self) -> Sign {
        let hung_up = async {
            match &mut self.hung_up {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = hung_up => Sign::HungUp,
            _ = self.terminated.recv() => Sign::End,
            _ = self.interrupted.recv() => Sign::End,
        }
    }

    pub(super) async fn end_asked(&mut self) {
        tokio::select! {
            _ = self.terminated.recv() => {}
            _ = self.interrupted.recv() => {}
        }
    }
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    End,
    /// Of a service: to read its config again. Of a command in a terminal: that is gone.
    HungUp,
}

/// Since before this process was executed, as by nohup.
fn is_ignored(signal: ToEnd) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal.as_raw() - 1) & 1 == 1
}

/// To the process that serves now.
pub(super) fn pass_on(pid: u32) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let sent = pid.map(|pid| kill_process(pid, ToEnd::TERM));
    tracing::info!(?sent, "asked to end meanwhile: so is the new process");
}

/// Why the wait for turns is over.
#[derive(Debug, PartialEq, Eq)]
enum Over {
    NothingRuns,
    OutOfTime,
    AskedAgain,
    EngineEnded,
}

/// Waits until no turn runs, or the time is over, or it is asked again. Gives the turns that run
/// still.
pub(super) async fn drain(
    gateway: &Gateway,
    within: Duration,
    signals: &mut Signals,
    manner: Manner,
) -> Vec<RunningTurn> {
    let mut running = gateway.drain().await;
    let mut teller = Teller { manner, said: String::new(), said_at: Instant::now() };
    let over = tokio::select! {
        over = until_nothing_runs(&mut running, &mut teller) => over,
        () = tokio::time::sleep(within) => Over::OutOfTime,
        () = signals.end_asked() => Over::AskedAgain,
    };
    let left = running.borrow().clone().unwrap_or_default();
    match over {
        Over::NothingRuns | Over::EngineEnded => {}
        Over::OutOfTime => tracing::warn!(
            within = %human_span(within),
            "[server] drain_within is over: what still runs is left to its bridge"
        ),
        Over::AskedAgain => {
            tracing::info!("asked to end again: what still runs is left to its bridge");
        }
    }
    for turn in &left {
        let RunningTurn { session, turn, began_at } = turn;
        let ran = human_span(whole_seconds(began_at.elapsed()));
        tracing::warn!(%session, message = %turn.message, attempt = turn.attempt, %ran,
            "this turn goes on under its bridge; the next start takes it over");
    }
    left
}

async fn until_nothing_runs(
    running: &mut watch::Receiver<Option<Vec<RunningTurn>>>,
    teller: &mut Teller,
) -> Over {
    let mut ticks = tokio::time::interval(TOLD_EVERY);
    loop {
        let now = running.borrow_and_update().clone();
        if now.as_ref().is_some_and(Vec::is_empty) {
            return Over::NothingRuns;
        }
        tokio::select! {
            changed = running.changed() => if changed.is_err() {
                return Over::EngineEnded;
            },
            _ = ticks.tick() => teller.tell(now.as_deref()),
        }
    }
}

/// Tells who wants to know: the service manager each time, people when it is news.
struct Teller {
    manner: Manner,
    said: String,
    said_at: Instant,
}

impl Teller {
    fn tell(&mut self, running: Option<&[RunningTurn]>) {
        use sd_notify::NotifyState::{ExtendTimeoutUsec, Status};
        let text = waiting_for(running);
        let micros = u32::try_from(NEXT_WORD_WITHIN.as_micros()).unwrap_or(u32::MAX);
        // Where there is no service manager, nobody waits for the word.
        drop(sd_notify::notify(&[ExtendTimeoutUsec(micros), Status(&text)]));
        let blockers = blockers(running);
        if self.said == blockers && self.said_at.elapsed() < SAID_AGAIN_AFTER {
            return;
        }
        (self.said, self.said_at) = (blockers, Instant::now());
        match self.manner {
            Manner::Up => crate::cli::welcome::say(&format!(
                "{text}; press Ctrl-C again to leave it to its bridge and end now"
            )),
            Manner::Serve => tracing::info!("{text}"),
        }
    }
}

fn blockers(running: Option<&[RunningTurn]>) -> String {
    let turns = running.unwrap_or_default().iter();
    turns.map(|one| format!("{} ", one.turn)).collect()
}

fn waiting_for(running: Option<&[RunningTurn]>) -> String {
    let Some(running) = running else { return "waiting for room on the disk".to_owned() };
    let named = running.iter().take(NAMED_MAX).map(|one| {
        let ran = human_span(whole_seconds(one.began_at.elapsed()));
        format!("{}, {ran}", one.session)
    });
    let named: Vec<String> = named.collect();
    let more = match running.len().saturating_sub(NAMED_MAX) {
        0 => String::new(),
        more => format!("; and {more} more"),
    };
    let turns = count(running.len() as u64, "turn", "turns");
    format!("waiting for {turns}: {}{more}", named.join("; "))
}

fn whole_seconds(span: Duration) -> Duration {
    Duration::from_secs(span.as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use dormouse_core::id::{MessageId, TurnId};

    use super::*;

    fn turn(number: u128, ran: Duration) -> RunningTurn {
        RunningTurn {
            session: format!("python/s{number}").parse().unwrap(),
            turn: TurnId { message: MessageId(number), attempt: 1 },
            began_at: Instant::now().checked_sub(ran).unwrap_or_else(Instant::now),
        }
    }

    #[test]
    fn what_is_waited_for_is_named_with_its_time() {
        let one = [turn(1, Duration::from_secs(12))];
        assert_eq!(waiting_for(Some(&one)), "waiting for 1 turn: python/s1, 12 s");
        let many: Vec<_> = (1..=7).map(|n| turn(n, Duration::from_secs(2))).collect();
        let text = waiting_for(Some(&many));
        assert!(text.starts_with("waiting for 7 turns: python/s1, 2 s; "), "{text}");
        assert!(text.ends_with("; and 2 more"), "{text}");
    }

    #[tokio::test]
    async fn the_wait_is_over_when_nothing_runs_or_nobody_tells() {
        let mut teller =
            Teller { manner: Manner::Serve, said: String::new(), said_at: Instant::now() };
        let (report, mut running) = watch::channel(None);
        let wait = async { until_nothing_runs(&mut running, &mut teller).await };
        let tell = async {
            report.send_replace(Some(vec![turn(1, Duration::ZERO)]));
            tokio::task::yield_now().await;
            report.send_replace(Some(Vec::new()));
        };
        assert_eq!(tokio::join!(wait, tell).0, Over::NothingRuns);
        report.send_replace(None);
        drop(report);
        assert_eq!(until_nothing_runs(&mut running, &mut teller).await, Over::EngineEnded);
    }
}
