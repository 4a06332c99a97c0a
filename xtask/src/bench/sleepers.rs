//! Many sessions that lived once and sleep.
//!
//! Owner: `memory` and `recovery`. Invariants: each came into being as a user's would, by a message
//! that was answered, and fell asleep by its idle limit; nothing is written past the daemon.
//! Absent: real agents; the fake driver plays them.

use std::thread;
use std::time::{Duration, Instant};

use super::daemon::Daemon;
use super::error::BenchError;
use super::load::{self, Load, Pace, Targets, Until};

pub(super) const AGENT: &str = "sleeper";
/// Echoes at once and is stopped at once.
pub(super) const AGENT_TABLE: &str = "\
    [agents.sleeper]\n\
    driver = \"fake\"\n\
    idle = { stop_after = \"1ms\" }\n";
pub(super) const STARTS_AT_ONCE: usize = 256;
pub(super) const TEXT_BYTES: usize = 64;

/// They are made in portions, so that few messages wait at a time.
const PORTION: u64 = 2_000;
const PORTION_WITHIN: Duration = Duration::from_secs(300);

/// Makes sessions until there are `count`; returns when all of them sleep.
pub(super) fn make(daemon: &Daemon, count: u64) -> Result<Duration, BenchError> {
    let begun_at = Instant::now();
    let mut made = 0;
    while made < count {
        let portion = PORTION.min(count - made);
        load::run(&Load {
            address: daemon.address,
            token: &daemon.token,
            agent: AGENT,
            clients: 32,
            targets: Targets::InTurn { first: made, sessions: portion },
            pace: Pace::Closed,
            until: Until::Sent(portion),
            text_bytes: TEXT_BYTES,
            run: made,
        })?;
        wait_until_asleep(daemon)?;
        made += portion;
    }
    Ok(begun_at.elapsed())
}

fn wait_until_asleep(daemon: &Daemon) -> Result<(), BenchError> {
    let mut connection = daemon.connect()?;
    let begun_at = Instant::now();
    while begun_at.elapsed() < PORTION_WITHIN {
        let agents = connection.json("GET", "/v1/agents", "", 200)?;
        let mut agent = agents.as_array().into_iter().flatten();
        let agent = agent.find(|agent| agent["agent"] == AGENT);
        let awake = agent.and_then(|agent| agent["awake"].as_u64());
        let Some(awake) = awake else {
            let shown = agents.to_string();
            return Err(BenchError::Answer { what: "no count of those awake", shown });
        };
        if awake == 0 && daemon.metric("dormouse_messages_waiting")? == 0.0 {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(10));
    }
    let what = "falling asleep".to_string();
    Err(BenchError::TooSlow { what, seconds: PORTION_WITHIN.as_secs() })
}
