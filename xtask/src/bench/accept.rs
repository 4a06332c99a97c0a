//! Durable accepts a second, beside the raw floor of the same minute.
//!
//! Owner: `cargo xtask bench accept`. Invariants: ours and the floor take turns, the order changes
//! with each pair; each of our runs has a fresh folder with all sessions made before the clock
//! starts; a run is void unless the daemon counts as many messages as were acknowledged, and the
//! figures are void unless strace saw a sync for each group. Absent: turns; no agent ever starts.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::Context;
use super::daemon::Daemon;
use super::error::BenchError;
use super::floor::{self, Floor, MESSAGE_BYTES};
use super::load::{self, Load, Outcome, Pace, Targets, Until};
use super::machine::{Noise, Placement, has_program, read, settle};
use super::report::Report;
use super::statistics::{Spread, figure, micros, quantile};

const SESSIONS: u64 = 10_000;
const CLIENTS: &[usize] = &[1, 16, 64, 256];
const WARM_UP_CLIENTS: usize = 64;
const AGENT: &str = "bench";
/// Its one start lasts for ever, and no other may begin.
const AGENT_TABLE: &str = "\
    [agents.bench]\n\
    driver = \"fake\"\n\
    start = { ready_within = \"12h\" }\n\
    fake = { never_attaches = true }\n";

const HEADINGS: &[&str] = &[
    "placement",
    "clients",
    "accepts/s",
    "floor, acks/s",
    "ratio to floor",
    "p50, ms",
    "p99, ms",
    "floor's group p50, ms",
    "daemon CPU, µs each",
    "busy before",
];

/// One of our runs and the floor's beside it.
struct Pair {
    ours: Run,
    floor: Floor,
    noise: Noise,
}

impl Pair {
    fn ratio(&self) -> f64 {
        self.ours.outcome.acks_per_second() / self.floor.acks_per_second()
    }

    fn summary(&self, placement: Placement, clients: usize) -> String {
        format!(
            "{}, {clients} clients: {}/s (first messages {}/s), floor {}/s, ratio {}, {:.0} % busy",
            placement.name(),
            figure(self.ours.outcome.acks_per_second()),
            figure(self.ours.new_sessions_per_second),
            figure(self.floor.acks_per_second()),
            figure(self.ratio()),
            100.0 * self.noise.busy,
        )
    }
}

struct Run {
    outcome: Outcome,
    /// The warm-up's: each message made its session.
    new_sessions_per_second: f64,
    /// Of the daemon, user and system, for each acknowledged message.
    cpu_micros_each: f64,
    syncs: Option<u64>,
    acks_in_all: u64,
}

pub(super) fn run(context: &Context) -> Result<Report, BenchError> {
    let mut report = Report::new("accept", HEADINGS);
    let placements: &[Placement] = match context.machine.cores {
        1 => &[Placement::Free],
        _more => context.pick(&[Placement::Free, Placement::Apart], &[Placement::Free]),
    };
    let clients = match context.clients.as_slice() {
        [] => context.pick(CLIENTS, &[1, 16]),
        asked => asked,
    };
    for placement in placements {
        for clients in clients {
            let mut pairs = Vec::new();
            for number in 0..context.pick(5, 1) {
                let pair = pair(context, *placement, *clients, number)?;
                context.progress(&pair.summary(*placement, *clients));
                pairs.push(pair);
            }
            add_row(&mut report, *placement, *clients, &pairs);
        }
    }
    prove_syncs(context, &mut report)?;
    open_loop(context, &mut report)?;
    Ok(report)
}

fn pair(
    context: &Context,
    placement: Placement,
    clients: usize,
    number: usize,
) -> Result<Pair, BenchError> {
    let noise = settle(context.patience)?;
    let folder = context.new_folder();
    let floor = || -> Result<Floor, BenchError> {
        fs::create_dir_all(&folder).map_err(BenchError::file("make", &folder))?;
        let span = context.pick(Duration::from_secs(2), Duration::from_millis(200));
        let floor = placement.as_server(|| floor::run(&folder, clients, span))?;
        fs::remove_dir(&folder).map_err(BenchError::file("remove", &folder))?;
        Ok(floor)
    };
    let ours = || {
        let span = context.pick(Duration::from_secs(4), Duration::from_millis(500));
        accept(context, placement, clients, Pace::Closed, span, false)
    };
    // So that neither is always the one that comes after the other.
    if number.is_multiple_of(2) {
        let floor = floor()?;
        Ok(Pair { ours: ours()?, floor, noise })
    } else {
        let ours = ours()?;
        Ok(Pair { ours, floor: floor()?, noise })
    }
}

/// A fresh daemon, all sessions, then the load for `span`.
fn accept(
    context: &Context,
    placement: Placement,
    clients: usize,
    pace: Pace,
    span: Duration,
    count_syncs: bool,
) -> Result<Run, BenchError> {
    let mut setup = context.setup(AGENT_TABLE, 1);
    let syncs_path = setup.folder.join("syncs");
    setup.placement = placement;
    setup.count_syncs = count_syncs.then(|| syncs_path.clone());
    let mut daemon = setup.start()?;
    let sessions = context.pick(SESSIONS, 100);
    let warm_up = Load {
        address: daemon.address,
        token: &daemon.token,
        agent: AGENT,
        clients: WARM_UP_CLIENTS,
        targets: Targets::InTurn { first: 0, sessions },
        pace: Pace::Closed,
        until: Until::Sent(sessions),
        text_bytes: MESSAGE_BYTES,
        run: 1,
    };
    let (warmed, outcome, cpu_micros) = placement.as_client(|| {
        let warmed = load::run(&warm_up)?;
        let cpu_before = cpu_micros_of(&daemon)?;
        let outcome = load::run(&Load {
            clients,
            targets: Targets::Uniform { sessions },
            pace,
            until: Until::After(span),
            run: 2,
            ..warm_up
        })?;
        Ok((warmed, outcome, cpu_micros_of(&daemon)? - cpu_before))
    })?;
    let acks_in_all = warmed.acks + outcome.acks;
    let waiting = daemon.metric("dormouse_messages_waiting")?;
    if waiting != acks_in_all as f64 {
        let why = format!("{acks_in_all} messages were acknowledged, the daemon has {waiting}");
        return Err(BenchError::void(why));
    }
    daemon.end()?;
    let syncs = if count_syncs { Some(syncs_in(&read(&syncs_path)?)?) } else { None };
    daemon.remove()?;
    let cpu_micros_each = cpu_micros / (outcome.acks.max(1) as f64);
    let new_sessions_per_second = warmed.acks_per_second();
    Ok(Run { outcome, new_sessions_per_second, cpu_micros_each, syncs, acks_in_all })
}

/// User and system time of a process so far. The kernel counts it in hundredths of a second.
fn cpu_micros_of(daemon: &Daemon) -> Result<f64, BenchError> {
    let path = format!("/proc/{}/stat", daemon.process()?);
    let text = read(path.as_ref())?;
    // The name in parentheses may have blanks; what follows it starts with field 3.
    let after_name = text.rsplit_once(") ").map_or("", |(_, after)| after);
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks = |place: usize| fields.get(place)?.parse::<f64>().ok();
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => Ok((user + system) * 10_000.0),
        _ => Err(BenchError::void(format!("{path} says {text:?}"))),
    }
}

fn add_row(report: &mut Report, placement: Placement, clients: usize, pairs: &[Pair]) {
    let ours = |pair: &Pair| pair.ours.outcome.acks_per_second();
    let floor = |pair: &Pair| pair.floor.acks_per_second();
    let at = |pair: &Pair, share| micros(quantile(&pair.ours.outcome.latencies, share)) / 1e3;
    let spread = |of: &dyn Fn(&Pair) -> f64| Spread::of(pairs.iter().map(of));
    report.row([
        placement.name().to_string(),
        clients.to_string(),
        spread(&ours).to_string(),
        spread(&floor).to_string(),
        spread(&Pair::ratio).to_string(),
        spread(&|pair| at(pair, 0.5)).to_string(),
        spread(&|pair| at(pair, 0.99)).to_string(),
        spread(&|pair| micros(quantile(&pair.floor.latencies, 0.5)) / 1e3).to_string(),
        format!("{:#}", spread(&|pair| pair.ours.cpu_micros_each)),
        format!("{:.0} %", 100.0 * spread(&|pair| pair.noise.busy).max),
    ]);
    for pair in pairs {
        report.raw.push(json!({
            "placement": placement.name(),
            "clients": clients,
            "accepts_per_second": ours(pair),
            "accepts": pair.ours.outcome.acks,
            "p50_us": micros(quantile(&pair.ours.outcome.latencies, 0.5)),
            "p99_us": micros(quantile(&pair.ours.outcome.latencies, 0.99)),
            "daemon_cpu_us_each": pair.ours.cpu_micros_each,
            "new_sessions_per_second": pair.ours.new_sessions_per_second,
            "floor_acks_per_second": floor(pair),
            "floor_p50_us": micros(quantile(&pair.floor.latencies, 0.5)),
            "floor_p99_us": micros(quantile(&pair.floor.latencies, 0.99)),
            "noise": pair.noise.json(),
        }));
    }
}

/// Runs apart from the timed ones: strace slows each sync down.
fn prove_syncs(context: &Context, report: &mut Report) -> Result<(), BenchError> {
    if !has_program("strace", "--version") {
        if context.is_short() {
            return Ok(());
        }
        return Err(BenchError::void("strace is not there to prove that syncs happen"));
    }
    for clients in context.pick(&[1, 64][..], &[4]) {
        let span = context.pick(Duration::from_secs(3), Duration::from_millis(300));
        let run = accept(context, Placement::Free, *clients, Pace::Closed, span, true)?;
        let syncs = run.syncs.expect("they were counted");
        // The warm-up had its own number of clients in flight, and no group can be larger.
        let warm_up = context.pick(SESSIONS, 100);
        let in_load = run.acks_in_all - warm_up;
        let least = in_load / *clients as u64 + warm_up / WARM_UP_CLIENTS as u64;
        if syncs < least {
            let why = format!("{} acks had {syncs} syncs, at least {least}", run.acks_in_all);
            return Err(BenchError::void(why));
        }
        report.remark(format!(
            "strace, {clients} clients: {} acks (10,000 of them by the warm-up's {WARM_UP_CLIENTS} \
             clients) took {syncs} fdatasync and fsync calls; fewer than {least} would have meant \
             acks before their sync.",
            run.acks_in_all
        ));
        report.raw.push(json!({
            "strace_clients": clients, "acks": run.acks_in_all, "syncs": syncs, "least": least,
        }));
    }
    Ok(())
}

/// The calls in strace's summary: `% time seconds usecs/call calls errors syscall`.
fn syncs_in(summary: &str) -> Result<u64, BenchError> {
    let mut syncs = None;
    for line in summary.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        if let (Some(&("fdatasync" | "fsync")), Some(calls)) = (fields.last(), fields.get(3)) {
            let calls: Option<u64> = calls.parse().ok();
            syncs = calls.map(|calls| syncs.unwrap_or(0) + calls);
        }
    }
    syncs.ok_or_else(|| BenchError::void(format!("strace counted nothing: {summary}")))
}

/// Latency at a load that leaves room, from a fixed schedule of arrivals.
fn open_loop(context: &Context, report: &mut Report) -> Result<(), BenchError> {
    for rate in context.pick(&[200_u32, 2_000, 5_000][..], &[100]) {
        let noise = settle(context.patience)?;
        let pace = Pace::Open { every: Duration::from_secs(1) / *rate };
        let span = context.pick(Duration::from_secs(5), Duration::from_millis(500));
        let run = accept(context, Placement::Free, 256, pace, span, false)?;
        let at = |share| micros(quantile(&run.outcome.latencies, share)) / 1e3;
        report.remark(format!(
            "Open loop, {} arrivals/s on 256 connections: p50 {} ms, p99 {} ms, largest {} ms \
             (busy before: {:.0} %).",
            figure(f64::from(*rate)),
            figure(at(0.5)),
            figure(at(0.99)),
            figure(at(1.0)),
            100.0 * noise.busy,
        ));
        report.raw.push(json!({
            "open_loop_per_second": rate,
            "accepts": run.outcome.acks,
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "max_ms": at(1.0),
            "noise": noise.json(),
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syncs_are_read_from_what_strace_prints() {
        let summary = "\
            % time     seconds  usecs/call     calls    errors syscall\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
             98.00    0.029000          29      1000           fdatasync\n\
              2.00    0.000600          60        10           fsync\n\
            ------ ----------- ----------- --------- --------- ----------------\n\
            100.00    0.029600          29      1010           total\n";
        assert_eq!(syncs_in(summary).expect("both are counted"), 1_010);
        assert!(syncs_in("").is_err());
    }
}
