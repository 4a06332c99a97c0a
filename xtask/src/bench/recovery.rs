//! From the daemon's start to its first acceptance, over what a killed one left behind.
//!
//! Owner: `cargo xtask bench recovery`. Invariants: the daemon before was killed with SIGKILL; no
//! message may be missing after the start; time counts from before the process is made.
//! Absent: agents that are adopted (the chaos tests prove that).

use std::time::Duration;

use serde_json::json;

use super::Context;
use super::daemon::Daemon;
use super::error::BenchError;
use super::floor::MESSAGE_BYTES;
use super::load::{self, Load, Pace, Targets, Until};
use super::machine::{Memory, settle};
use super::report::Report;
use super::sleepers;
use super::statistics::{Spread, figure};

const HEADINGS: &[&str] =
    &["what is there", "until", "samples", "time, ms", "RSS after, MB", "busy before"];

/// No start ever ends, so that all messages keep waiting.
const PENDING_TABLE: &str = "\
    [agents.bench]\n\
    driver = \"fake\"\n\
    start = { ready_within = \"12h\" }\n\
    fake = { never_attaches = true }\n";

struct Sample {
    took: Duration,
    memory: Memory,
    busy: f64,
}

pub(super) fn run(context: &Context) -> Result<Report, BenchError> {
    let mut report = Report::new("recovery", HEADINGS);
    nothing(context, &mut report)?;
    sleeping(context, &mut report)?;
    pending(context, &mut report)?;
    Ok(report)
}

fn nothing(context: &Context, report: &mut Report) -> Result<(), BenchError> {
    let mut daemon = context.setup(PENDING_TABLE, 1).start()?;
    let samples = samples(context, &mut daemon, Daemon::restart_until_ready)?;
    daemon.remove()?;
    add_row(report, "nothing".to_string(), "ready", &samples);
    Ok(())
}

fn sleeping(context: &Context, report: &mut Report) -> Result<(), BenchError> {
    let sessions = context.pick(10_000, 100);
    let mut daemon = context.setup(sleepers::AGENT_TABLE, sleepers::STARTS_AT_ONCE).start()?;
    sleepers::make(&daemon, sessions)?;
    let samples = samples(context, &mut daemon, Daemon::restart_until_ready)?;
    daemon.remove()?;
    let what = format!("{} sleeping sessions", figure(sessions as f64));
    add_row(report, what, "ready", &samples);
    Ok(())
}

fn pending(context: &Context, report: &mut Report) -> Result<(), BenchError> {
    let (sessions, messages) = context.pick((10_000, 100_000), (10, 100));
    let mut daemon = context.setup(PENDING_TABLE, 1).start()?;
    let outcome = load::run(&Load {
        address: daemon.address,
        token: &daemon.token,
        agent: "bench",
        clients: 64,
        targets: Targets::InTurn { first: 0, sessions },
        pace: Pace::Closed,
        until: Until::Sent(messages),
        text_bytes: MESSAGE_BYTES,
        run: 1,
    })?;
    let session = load::session_name("bench", 0);
    let restart = |daemon: &mut Daemon| daemon.restart_until_accepted(&session);
    let samples = samples(context, &mut daemon, restart)?;
    // Each restart brought one more.
    let expected = outcome.acks + samples.len() as u64;
    let waiting = daemon.metric("dormouse_messages_waiting")?;
    if waiting != expected as f64 {
        let why = format!("{expected} messages were accepted, {waiting} wait after the restarts");
        return Err(BenchError::void(why));
    }
    daemon.remove()?;
    let what = format!(
        "{} pending messages of 1 KiB in {} sessions",
        figure(messages as f64),
        figure(sessions as f64)
    );
    add_row(report, what, "first 202", &samples);
    report.remark(format!("{expected} of {expected} messages were there after the last restart."));
    Ok(())
}

fn samples(
    context: &Context,
    daemon: &mut Daemon,
    restart: impl Fn(&mut Daemon) -> Result<Duration, BenchError>,
) -> Result<Vec<Sample>, BenchError> {
    let mut samples = Vec::new();
    for _ in 0..context.pick(7, 1) {
        daemon.kill()?;
        let busy = settle(context.patience)?.busy;
        let took = restart(daemon)?;
        samples.push(Sample { took, memory: Memory::of(daemon.process()?)?, busy });
    }
    Ok(samples)
}

fn add_row(report: &mut Report, what: String, until: &str, samples: &[Sample]) {
    let spread = |of: &dyn Fn(&Sample) -> f64| Spread::of(samples.iter().map(of));
    let took = spread(&|sample| sample.took.as_secs_f64() * 1e3);
    let memory = spread(&|sample| sample.memory.resident as f64 * 1024.0 / 1e6);
    let busy = spread(&|sample| sample.busy).max;
    let raw: Vec<serde_json::Value> = samples
        .iter()
        .map(|sample| {
            json!({
                "took_ms": sample.took.as_secs_f64() * 1e3,
                "memory": sample.memory.json(),
                "busy_share_before": sample.busy,
            })
        })
        .collect();
    report.raw.push(json!({ "what": &what, "until": until, "took_ms": took.json(), "all": raw }));
    report.row([
        what,
        until.to_string(),
        samples.len().to_string(),
        took.to_string(),
        format!("{memory:#}"),
        format!("{:.0} %", 100.0 * busy),
    ]);
}
