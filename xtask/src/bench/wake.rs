//! What a wake costs beyond the start of the agent itself.
//!
//! Owner: `cargo xtask bench wake`. Invariants: the same command is started bare right before each
//! wake; times are of the clock that all processes share, told by the agent; nothing is prewarmed,
//! the session is asleep and its agent gone. Absent: agents that load anything.

use serde_json::json;

use super::Context;
use super::agents::{AgentProgram, BareAgent, Told};
use super::daemon::Daemon;
use super::error::BenchError;
use super::http::Connection;
use super::machine::{Noise, monotonic_nanos, settle};
use super::report::Report;
use super::statistics::{Spread, figure, millis, quantile};

const HEADINGS: &[&str] = &[
    "agent",
    "bridge",
    "samples",
    "bare exec to ready p50, ms",
    "message to agent p50, ms",
    "added p50, ms (range)",
    "added p99, ms",
    "of which to the agent's exec p50, ms",
    "busy before",
];

struct Sample {
    bare_ready: u64,
    /// From before the message was sent …
    to_exec: u64,
    to_turn: u64,
    to_client: u64,
    noise: Noise,
}

impl Sample {
    fn added(&self) -> f64 {
        millis(self.to_turn) - millis(self.bare_ready)
    }
}

pub(super) fn run(context: &Context) -> Result<Report, BenchError> {
    let mut report = Report::new("wake", HEADINGS);
    let tables: String = context.agents.iter().map(AgentProgram::table).collect();
    for (bridge_name, bridge) in context.bridges() {
        let mut setup = context.setup(&tables, 4);
        setup.bridge = bridge;
        let daemon = setup.start()?;
        for program in &context.agents {
            let count = match program.name {
                "static" => context.pick(100, 2),
                _slow => context.pick(25, 1),
            };
            let samples = measure(context, &daemon, program, count)?;
            add_row(&mut report, program, bridge_name, &samples);
        }
        daemon.remove()?;
    }
    Ok(report)
}

fn measure(
    context: &Context,
    daemon: &Daemon,
    program: &AgentProgram,
    count: usize,
) -> Result<Vec<Sample>, BenchError> {
    let mut connection = daemon.connect()?;
    let session = format!("{}/wake", program.name);
    // The first wake makes the session and its workspace, and fills the caches.
    connection.submit(&session, "first")?.finish()?;
    let mut samples = Vec::new();
    for _ in 0..count {
        daemon.put_to_sleep(&mut connection, &session)?;
        let noise = settle(context.patience)?;
        let bare = BareAgent::start(program)?;
        let bare_ready = bare.ready_after_nanos;
        bare.kill()?;
        samples.push(wake(&mut connection, &session, bare_ready, noise)?);
    }
    daemon.put_to_sleep(&mut connection, &session)?;
    Ok(samples)
}

fn wake(
    connection: &mut Connection,
    session: &str,
    bare_ready: u64,
    noise: Noise,
) -> Result<Sample, BenchError> {
    let begun_at = monotonic_nanos();
    let mut stream = connection.submit(session, "wake")?;
    let told = Told::parse(&stream.first_delta()?)?;
    let to_client = monotonic_nanos() - begun_at;
    stream.finish()?;
    if told.began_at < begun_at {
        return Err(BenchError::void("the agent was awake already"));
    }
    Ok(Sample {
        bare_ready,
        to_exec: told.began_at - begun_at,
        to_turn: told.read_at - begun_at,
        to_client,
        noise,
    })
}

fn add_row(report: &mut Report, program: &AgentProgram, bridge: &str, samples: &[Sample]) {
    let median = |of: &dyn Fn(&Sample) -> f64| Spread::of(samples.iter().map(of));
    let mut added: Vec<f64> = samples.iter().map(Sample::added).collect();
    added.sort_by(f64::total_cmp);
    let ranks: Vec<u64> = (0..added.len() as u64).collect();
    let p99 = added[quantile(&ranks, 0.99) as usize];
    report.row([
        program.name.to_string(),
        bridge.to_string(),
        samples.len().to_string(),
        format!("{:#}", median(&|sample| millis(sample.bare_ready))),
        format!("{:#}", median(&|sample| millis(sample.to_turn))),
        median(&Sample::added).to_string(),
        figure(p99),
        format!("{:#}", median(&|sample| millis(sample.to_exec))),
        format!("{:.0} %", 100.0 * median(&|sample| sample.noise.busy).max),
    ]);
    for sample in samples {
        report.raw.push(json!({
            "agent": program.name,
            "command": program.shown(),
            "bridge": bridge,
            "bare_exec_to_ready_ms": millis(sample.bare_ready),
            "message_to_exec_ms": millis(sample.to_exec),
            "message_to_turn_ms": millis(sample.to_turn),
            "message_to_client_ms": millis(sample.to_client),
            "added_ms": sample.added(),
            "noise": sample.noise.json(),
        }));
    }
}
