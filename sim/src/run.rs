//! `sim run`: many seeds on some threads, one sum, and a journal of the first that fails.
//!
//! Owner: this file alone uses threads and the real clock, and only around whole worlds.
//! Invariants: a seed that fails is run again with its steps kept, and the command to replay it is
//! printed; a sample of seeds is run twice and must leave the same trace; in a run of many seeds
//! each kind of fault must have fired. Absent: the world.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::fault::{Fault, FaultCounts};
use crate::replay;
use crate::sabotage::Sabotage;
use crate::terminal;
use crate::trace::Trace;
use crate::violation::{Invariant, Violation};
use crate::world::{Figures, World};

/// Every so many seeds one is run twice.
const SAMPLE_EVERY: u64 = 25;
/// From so many seeds on, a kind of fault that never fired fails the run.
const SEEDS_FOR_ALL_FAULTS: u64 = 500;
/// A world that takes longer than this in real time is stuck inside one call of the core.
const STUCK_AFTER: Duration = Duration::from_secs(60);

/// What became of one seed.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) seed: u64,
    pub(crate) figures: Figures,
    pub(crate) faults: FaultCounts,
    pub(crate) hash: u64,
    pub(crate) violation: Option<Violation>,
}

thread_local! {
    static PANIC_PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs one world to its end, or to its first broken invariant.
pub(crate) fn run_seed(seed: u64, trace: Trace, sabotage: Option<Sabotage>) -> (Outcome, Trace) {
    let mut world = World::new(seed, trace, sabotage);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match result {
        Ok(result) => result.err(),
        Err(panic) => {
            let words = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or(panic.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without words");
            let place = PANIC_PLACE.take().unwrap_or_default();
            Some(Invariant::Assertion.broken(format!("{words} {place}")))
        }
    };
    let outcome = Outcome {
        seed,
        figures: world.figures,
        faults: world.faults,
        hash: world.trace.hash(),
        violation,
    };
    (outcome, world.trace)
}

#[derive(Debug)]
struct Options {
    seeds: u64,
    first: u64,
    jobs: usize,
}

fn options(arguments: &[String]) -> Result<Options, String> {
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options { seeds: 2_000, first: 0, jobs };
    let mut arguments = arguments.iter();
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a number"))?;
        let number: u64 = value.parse().map_err(|_| format!("{name} {value}: not a number"))?;
        match name.as_str() {
            "--seeds" => options.seeds = number,
            "--first" => options.first = number,
            "--jobs" => options.jobs = usize::try_from(number.max(1)).unwrap_or(jobs),
            other => return Err(format!("run takes no {other:?}")),
        }
    }
    Ok(options)
}

pub(crate) fn command(arguments: &[String]) -> Result<ExitCode, String> {
    let options = options(arguments)?;
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!("at {place}"));
        PANIC_PLACE.set(place);
    }));
    let began_at = Instant::now();
    let (sum, failed) = run_all(&options);
    terminal::end_progress();
    sum.print(began_at.elapsed());
    if let Some(failed) = failed {
        report_failure(&failed);
        return Ok(ExitCode::FAILURE);
    }
    let silent = sum.faults.never_fired();
    if silent.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    terminal::say(&format!("never fired: {silent:?}"));
    let is_failure = options.seeds >= SEEDS_FOR_ALL_FAULTS;
    Ok(if is_failure { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What all seeds amount to.
#[derive(Debug, Default)]
struct Sum {
    seeds: u64,
    run_twice: u64,
    figures: Figures,
    faults: FaultCounts,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.faults.add(&outcome.faults);
        let (sum, new) = (&mut self.figures, &outcome.figures);
        sum.actions += new.actions;
        sum.events += new.events;
        sum.commits += new.commits;
        sum.accepted += new.accepted;
        sum.answered += new.answered;
        sum.dead += new.dead;
        sum.cancelled += new.cancelled;
        sum.virtual_ms += new.virtual_ms;
    }

    fn print(&self, took: Duration) {
        let figures = &self.figures;
        terminal::say("faults fired:");
        for row in Fault::ALL.chunks(3) {
            let cells = row
                .iter()
                .map(|fault| format!("{:>9} {:<26}", self.faults.of(*fault), fault.name()));
            terminal::say(cells.collect::<String>().trim_end());
        }
        terminal::say(&format!(
            "{} seeds ({} of them twice), {} actions, {} events, {} commits",
            self.seeds, self.run_twice, figures.actions, figures.events, figures.commits
        ));
        terminal::say(&format!(
            "{} messages accepted: {} answered, {} dead-lettered, {} cancelled",
            figures.accepted, figures.answered, figures.dead, figures.cancelled
        ));
        terminal::say(&format!(
            "{} days of virtual time in {:.1} s",
            figures.virtual_ms / (24 * 60 * 60 * 1_000),
            took.as_secs_f64()
        ));
    }
}

/// What a worker is busy with.
type Busy = Mutex<Option<(u64, Instant)>>;

fn run_all(options: &Options) -> (Sum, Option<Outcome>) {
    let next = AtomicU64::new(options.first);
    let end = options.first.saturating_add(options.seeds);
    let is_over = AtomicBool::new(false);
    let busy: Vec<Busy> = (0..options.jobs).map(|_| Mutex::new(None)).collect();
    let mut sum = Sum::default();
    let mut failed: Option<Outcome> = None;
    thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for busy in &busy {
            let sender = sender.clone();
            let (next, is_over) = (&next, &is_over);
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        break;
                    }
                    mark(busy, Some((seed, Instant::now())));
                    let outcome = run_checked(seed);
                    mark(busy, None);
                    if sender.send(outcome).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        loop {
            match receiver.recv_timeout(Duration::from_secs(1)) {
                Ok(outcome) => {
                    sum.add(&outcome);
                    sum.run_twice += u64::from(is_sampled(outcome.seed));
                    if outcome.violation.is_some() {
                        is_over.store(true, Ordering::Relaxed);
                        if failed.as_ref().is_none_or(|failed| outcome.seed < failed.seed) {
                            failed = Some(outcome);
                        }
                    }
                    if sum.seeds.is_multiple_of(50) {
                        terminal::show_progress(&format!("{} of {}", sum.seeds, options.seeds));
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => stop_if_stuck(&busy),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
        }
    });
    (sum, failed)
}

fn mark(busy: &Busy, with: Option<(u64, Instant)>) {
    *busy.lock().expect("nobody panics while holding this") = with;
}

/// A call that does not return cannot be interrupted, only reported.
fn stop_if_stuck(busy: &[Busy]) {
    for busy in busy {
        let doing = *busy.lock().expect("nobody panics while holding this");
        if let Some((seed, since)) = doing.filter(|doing| doing.1.elapsed() > STUCK_AFTER) {
            let invariant = Invariant::Liveness.broken("one call of the core does not return");
            terminal::say(&format!("seed {seed} runs for {:?}: {invariant}", since.elapsed()));
            std::process::exit(1);
        }
    }
}

fn is_sampled(seed: u64) -> bool {
    seed.is_multiple_of(SAMPLE_EVERY)
}

fn run_checked(seed: u64) -> Outcome {
    let mut outcome = run_seed(seed, Trace::hashed(), None).0;
    if is_sampled(seed) && outcome.violation.is_none() {
        let again = run_seed(seed, Trace::hashed(), None).0;
        if again.hash != outcome.hash {
            let what = "two runs of this seed left different traces";
            outcome.violation = Some(Invariant::Recovery.broken(what));
        }
    }
    outcome
}

fn report_failure(failed: &Outcome) {
    let Some(violation) = &failed.violation else { return };
    terminal::say(&format!("seed {} broke {violation}", failed.seed));
    let (_, trace) = run_seed(failed.seed, Trace::recorded(), None);
    match replay::write_journal(failed.seed, &trace, violation) {
        Ok(path) => terminal::say(&format!("its journal: {}", path.display())),
        Err(error) => terminal::complain(&format!("its journal could not be written: {error}")),
    }
    terminal::say(&format!("again: cargo run -p dormouse-sim -- replay {}", failed.seed));
}
