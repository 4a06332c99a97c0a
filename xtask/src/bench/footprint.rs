//! What a bridge takes for itself, and how large the programs are.
//!
//! Owner: `cargo xtask bench bridge`. Invariant: memory is read while its agent is awake and has
//! answered. Absent: the agents' own memory.

use std::fs;

use serde_json::json;

use super::Context;
use super::error::BenchError;
use super::machine::Memory;
use super::report::Report;
use super::statistics::{Spread, figure};

const HEADINGS: &[&str] =
    &["bridge", "program, MB", "bridges", "private, MB", "PSS, MB", "RSS, MB"];

pub(super) fn run(context: &Context) -> Result<Report, BenchError> {
    let mut report = Report::new("bridge", HEADINGS);
    let program = &context.agents[0];
    for (name, bridge) in context.bridges() {
        let binary = bridge.clone().unwrap_or_else(|| context.binary.clone());
        let size = fs::metadata(&binary).map_err(BenchError::file("look at", &binary))?.len();
        let mut setup = context.setup(&program.table(), 4);
        setup.bridge = bridge;
        let daemon = setup.start()?;
        let mut connection = daemon.connect()?;
        let sessions: Vec<String> = (0..context.pick(10, 1))
            .map(|number| format!("{}/bridge-{number}", program.name))
            .collect();
        for session in &sessions {
            connection.submit(session, "hello")?.finish()?;
        }
        let bridges = daemon.bridges()?;
        if bridges.len() != sessions.len() {
            let why = format!("{} sessions have {} bridges", sessions.len(), bridges.len());
            return Err(BenchError::void(why));
        }
        let memory: Vec<Memory> =
            bridges.into_iter().map(Memory::of).collect::<Result<_, BenchError>>()?;
        for session in &sessions {
            daemon.put_to_sleep(&mut connection, session)?;
        }
        daemon.remove()?;
        let of = |kib: &dyn Fn(&Memory) -> u64| {
            Spread::of(memory.iter().map(|memory| kib(memory) as f64 * 1024.0 / 1e6)).to_string()
        };
        report.row([
            name.to_string(),
            figure(size as f64 / 1e6),
            memory.len().to_string(),
            of(&|memory| memory.private),
            of(&|memory| memory.proportional),
            of(&|memory| memory.resident),
        ]);
        let samples: Vec<serde_json::Value> = memory.iter().map(Memory::json).collect();
        report.raw.push(json!({ "bridge": name, "program_bytes": size, "memory": samples }));
    }
    Ok(report)
}
