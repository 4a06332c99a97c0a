//! From the kill of an agent in the middle of a turn to the next one's first instruction, and to
//! the message that it gets again.
//!
//! Owner: `cargo xtask bench crash`. Invariants: each sample is the first failure of a session of
//! its own, which costs no pause; the floor beside it is a parent that waits and starts the same
//! command again. Absent: repeated failures; they are paced on purpose.

use rustix::process::Signal;
use serde_json::json;

use super::Context;
use super::agents::{AgentProgram, BareAgent, Told};
use super::daemon::{Daemon, signal};
use super::error::BenchError;
use super::machine::{Noise, monotonic_nanos, settle};
use super::report::Report;
use super::statistics::{Spread, millis, quantile};

const HEADINGS: &[&str] = &[
    "bridge",
    "samples",
    "kill to new agent's exec p50, ms (range)",
    "p99, ms",
    "kill to message in the new agent p50, ms",
    "bare parent: kill to exec p50, ms",
    "busy before",
];

struct Sample {
    to_exec: u64,
    to_turn: u64,
    bare_to_exec: u64,
    noise: Noise,
}

pub(super) fn run(context: &Context) -> Result<Report, BenchError> {
    let mut report = Report::new("crash", HEADINGS);
    let program = &context.agents[0];
    for (bridge_name, bridge) in context.bridges() {
        let mut setup = context.setup(&program.table(), 4);
        setup.bridge = bridge;
        let daemon = setup.start()?;
        let mut samples = Vec::new();
        for number in 0..context.pick(50, 2) {
            let noise = settle(context.patience)?;
            let bare_to_exec = bare(program)?;
            samples.push(ours(&daemon, program, number, bare_to_exec, noise)?);
        }
        daemon.remove()?;
        add_row(&mut report, bridge_name, &samples);
    }
    Ok(report)
}

/// A parent that does nothing else.
fn bare(program: &AgentProgram) -> Result<u64, BenchError> {
    let mut first = BareAgent::start(program)?;
    first.turn("first")?;
    let killed_at = monotonic_nanos();
    first.kill()?;
    let mut second = BareAgent::start(program)?;
    let (told, _, _) = second.turn("second")?;
    second.kill()?;
    Ok(told.began_at - killed_at)
}

fn ours(
    daemon: &Daemon,
    program: &AgentProgram,
    number: usize,
    bare_to_exec: u64,
    noise: Noise,
) -> Result<Sample, BenchError> {
    let mut connection = daemon.connect()?;
    let session = format!("{}/crash-{number}", program.name);
    let mut stream = connection.submit(&session, "hang")?;
    let first = Told::parse(&stream.first_delta()?)?;
    let killed_at = monotonic_nanos();
    signal(first.process, Signal::KILL)?;
    let second = Told::parse(&stream.first_delta()?)?;
    stream.finish()?;
    if second.process == first.process || second.began_at < killed_at {
        return Err(BenchError::void("the agent that was killed went on"));
    }
    daemon.put_to_sleep(&mut connection, &session)?;
    Ok(Sample {
        to_exec: second.began_at - killed_at,
        to_turn: second.read_at - killed_at,
        bare_to_exec,
        noise,
    })
}

fn add_row(report: &mut Report, bridge: &str, samples: &[Sample]) {
    let spread = |of: &dyn Fn(&Sample) -> f64| Spread::of(samples.iter().map(of));
    let mut to_exec: Vec<u64> = samples.iter().map(|sample| sample.to_exec).collect();
    to_exec.sort_unstable();
    report.row([
        bridge.to_string(),
        samples.len().to_string(),
        spread(&|sample| millis(sample.to_exec)).to_string(),
        super::statistics::figure(millis(quantile(&to_exec, 0.99))),
        format!("{:#}", spread(&|sample| millis(sample.to_turn))),
        format!("{:#}", spread(&|sample| millis(sample.bare_to_exec))),
        format!("{:.0} %", 100.0 * spread(&|sample| sample.noise.busy).max),
    ]);
    for sample in samples {
        report.raw.push(json!({
            "bridge": bridge,
            "kill_to_exec_ms": millis(sample.to_exec),
            "kill_to_turn_ms": millis(sample.to_turn),
            "bare_kill_to_exec_ms": millis(sample.bare_to_exec),
            "noise": sample.noise.json(),
        }));
    }
}
