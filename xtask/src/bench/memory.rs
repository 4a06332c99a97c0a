//! The daemon's memory: idle, and with a hundred thousand sessions that sleep.
//!
//! Owner: `cargo xtask bench memory`. Invariants: each session lived once (see `sleepers`); memory
//! is read in the process that put them to sleep and again after a restart, both are shown.
//! Absent: agents' memory; see `bridge`.

use std::thread;
use std::time::Duration;

use serde_json::json;

use super::Context;
use super::daemon::{Daemon, size_of_files};
use super::error::BenchError;
use super::machine::{Memory, settle};
use super::report::Report;
use super::sleepers;
use super::statistics::{Spread, figure};

const HEADINGS: &[&str] = &["daemon", "RSS, MB", "PSS, MB", "private, MB"];
const DATABASE: &str = "dormouse.db";
/// After a start some memory is touched late; after a load some is given back late.
const REST: Duration = Duration::from_secs(3);

pub(super) fn run(context: &Context) -> Result<Report, BenchError> {
    let mut report = Report::new("memory", HEADINGS);
    let noise = settle(context.patience)?;
    let mut idle = Vec::new();
    for _ in 0..context.pick(5, 1) {
        let daemon = context.setup(sleepers::AGENT_TABLE, sleepers::STARTS_AT_ONCE).start()?;
        idle.push(rested(context, &daemon)?);
        daemon.remove()?;
    }
    add_row(&mut report, "idle, no sessions", &idle);

    let sessions = context.pick(100_000_u64, 500);
    let mut daemon = context.setup(sleepers::AGENT_TABLE, sleepers::STARTS_AT_ONCE).start()?;
    let database_before = size_of_files(&daemon.data(), DATABASE)?;
    let took = sleepers::make(&daemon, sessions)?;
    let same_process = rested(context, &daemon)?;
    daemon.end()?;
    let database_after = size_of_files(&daemon.data(), DATABASE)?;
    let mut restarted = Vec::new();
    for number in 0..context.pick(3, 1) {
        if number > 0 {
            daemon.end()?;
        }
        daemon.restart_until_ready()?;
        restarted.push(rested(context, &daemon)?);
    }
    daemon.remove()?;
    let shown = figure(sessions as f64);
    add_row(&mut report, &format!("{shown} asleep, restarted"), &restarted);
    add_row(&mut report, &format!("{shown} asleep, same process"), &[same_process]);

    let resident = |memory: &[Memory]| {
        Spread::of(memory.iter().map(|memory| memory.resident as f64 * 1024.0)).median
    };
    let each = |bytes: f64| figure(bytes / sessions as f64);
    let base = resident(&idle);
    report.remark(format!(
        "For each sleeping session: {} B of RSS after a restart, {} B in the process that ran \
         them; {} B of database, with its one message, its reply and its story in the journal. \
         Making them took {} s. Busy before: {:.0} %.",
        each(resident(&restarted) - base),
        each(resident(&[same_process]) - base),
        each(database_after as f64 - database_before as f64),
        figure(took.as_secs_f64()),
        100.0 * noise.busy,
    ));
    report.raw.push(json!({
        "sessions": sessions,
        "database_bytes_before": database_before,
        "database_bytes_after": database_after,
        "making_took_s": took.as_secs_f64(),
        "noise": noise.json(),
    }));
    Ok(report)
}

fn rested(context: &Context, daemon: &Daemon) -> Result<Memory, BenchError> {
    // One question, so that what the first one brings with it is counted too.
    daemon.connect()?.json("GET", "/v1/agents", "", 200)?;
    thread::sleep(context.pick(REST, Duration::ZERO));
    Memory::of(daemon.process()?)
}

fn add_row(report: &mut Report, name: &str, memory: &[Memory]) {
    let of = |kib: &dyn Fn(&Memory) -> u64| {
        Spread::of(memory.iter().map(|memory| kib(memory) as f64 * 1024.0 / 1e6)).to_string()
    };
    report.row([
        name.to_string(),
        of(&|memory| memory.resident),
        of(&|memory| memory.proportional),
        of(&|memory| memory.private),
    ]);
    let samples: Vec<serde_json::Value> = memory.iter().map(Memory::json).collect();
    report.raw.push(json!({ "daemon": name, "memory": samples }));
}
