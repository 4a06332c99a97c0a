//! What a message to an agent that is awake takes longer than over a pipe of one's own.
//!
//! Owner: `cargo xtask bench relay`. Invariants: the same agent answers both ways, in turn; ours
//! has the acceptance on disk before the agent sees the message, and a bare sync of as much is
//! measured beside it. Absent: throughput.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::Context;
use super::agents::{BareAgent, Told};
use super::error::BenchError;
use super::floor;
use super::http::Connection;
use super::machine::{Noise, monotonic_nanos, settle};
use super::report::Report;
use super::statistics::{Spread, figure, micros, quantile};

const HEADINGS: &[&str] = &[
    "path",
    "samples",
    "p50, µs",
    "p99, µs",
    "of which to the agent p50, µs",
    "of which back p50, µs",
];
const ROUNDS: usize = 5;

#[derive(Default)]
struct Times {
    whole: Vec<u64>,
    there: Vec<u64>,
    back: Vec<u64>,
}

impl Times {
    fn add(&mut self, begun_at: u64, told: Told, whole: u64) {
        self.whole.push(whole);
        self.there.push(told.read_at - begun_at);
        self.back.push(begun_at + whole - told.read_at);
    }

    fn sort(&mut self) {
        for times in [&mut self.whole, &mut self.there, &mut self.back] {
            times.sort_unstable();
        }
    }

    fn row(&self, report: &mut Report, name: &str) {
        let at = |times: &[u64], share| figure(micros(quantile(times, share)));
        report.row([
            name.to_string(),
            self.whole.len().to_string(),
            at(&self.whole, 0.5),
            at(&self.whole, 0.99),
            at(&self.there, 0.5),
            at(&self.back, 0.5),
        ]);
    }
}

/// Medians of one round, in microseconds.
struct Round {
    direct: f64,
    ours: f64,
    sync: f64,
    noise: Noise,
}

pub(super) fn run(context: &Context) -> Result<Report, BenchError> {
    let mut report = Report::new("relay", HEADINGS);
    let program = &context.agents[0];
    let daemon = context.setup(&program.table(), 4).start()?;
    let session = format!("{}/relay", program.name);
    let mut connection = daemon.connect()?;
    connection.submit(&session, "first")?.finish()?;
    let mut bare = BareAgent::start(program)?;
    let (mut direct, mut ours, mut rounds) = (Times::default(), Times::default(), Vec::new());
    for _ in 0..context.pick(ROUNDS, 1) {
        let noise = settle(context.patience)?;
        let mut direct_round = Times::default();
        let mut our_round = Times::default();
        for _ in 0..context.pick(300, 5) {
            let (told, begun_at, took) = bare.turn("warm")?;
            direct_round.add(begun_at, told, took);
            relay(&mut connection, &session, &mut our_round)?;
        }
        let sync = sync_micros(context)?;
        direct_round.sort();
        our_round.sort();
        let median = |times: &Times| micros(quantile(&times.whole, 0.5));
        let round = Round { direct: median(&direct_round), ours: median(&our_round), sync, noise };
        report.raw.push(json!({
            "direct_us": direct_round.whole.clone().into_iter().map(micros).collect::<Vec<_>>(),
            "ours_us": our_round.whole.clone().into_iter().map(micros).collect::<Vec<_>>(),
            "sync_p50_us": round.sync,
            "noise": round.noise.json(),
        }));
        rounds.push(round);
        for (all, round) in [(&mut direct, direct_round), (&mut ours, our_round)] {
            all.whole.extend(round.whole);
            all.there.extend(round.there);
            all.back.extend(round.back);
        }
    }
    bare.kill()?;
    daemon.put_to_sleep(&mut connection, &session)?;
    daemon.remove()?;
    direct.sort();
    ours.sort();
    direct.row(&mut report, "direct pipe");
    ours.row(&mut report, "HTTP, disk, bridge, agent, SSE");
    sum_up(&mut report, &rounds);
    Ok(report)
}

fn relay(connection: &mut Connection, session: &str, times: &mut Times) -> Result<(), BenchError> {
    let begun_at = monotonic_nanos();
    let mut stream = connection.submit(session, "warm")?;
    let told = Told::parse(&stream.first_delta()?)?;
    times.add(begun_at, told, monotonic_nanos() - begun_at);
    stream.finish()
}

/// The median of appending and syncing 1 KiB.
fn sync_micros(context: &Context) -> Result<f64, BenchError> {
    let folder = context.new_folder();
    fs::create_dir_all(&folder).map_err(BenchError::file("make", &folder))?;
    let span = Duration::from_millis(context.pick(500, 20));
    let latencies = floor::run(&folder, 1, span)?.latencies;
    fs::remove_dir(&folder).map_err(BenchError::file("remove", &folder))?;
    Ok(micros(quantile(&latencies, 0.5)))
}

fn sum_up(report: &mut Report, rounds: &[Round]) {
    let added = Spread::of(rounds.iter().map(|round| round.ours - round.direct));
    let sync = Spread::of(rounds.iter().map(|round| round.sync));
    let beyond = Spread::of(rounds.iter().map(|round| round.ours - round.direct - round.sync));
    let busy = Spread::of(rounds.iter().map(|round| round.noise.busy)).max;
    report.remark(format!(
        "Added p50 over the direct pipe: {added} µs, of {} rounds. One append of 1 KiB with \
         fdatasync took {sync} µs beside it; beyond one such sync: {beyond} µs. Busy before: at \
         most {:.0} %.",
        rounds.len(),
        100.0 * busy
    ));
}
