//! Chaos on the real program: daemon, bridges and agents are killed at random moments under load,
//! and afterwards the clients' log, the agents' log and the store must tell one story.
//!
//! Owner: `cargo xtask ci` runs it for `DORMOUSE_CHAOS_SECONDS`, `cargo xtask chaos` until
//! `DORMOUSE_CHAOS_KILLS` have hit. `DORMOUSE_CHAOS_SEED` repeats the choices of a run (not its
//! timing). Invariants: a kill counts only if what it was meant for lived and is dead; the checker
//! has tests of its own, with logs that lie. Absent: faults of the disk (`chaos_syscalls`).

#[path = "chaos/checker.rs"]
mod checker;
#[path = "chaos/load.rs"]
mod load;
#[expect(dead_code, reason = "each test program uses a part of what they share")]
mod support;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use checker::{Evidence, StoredMessage, check};
use load::{Load, Random};
use support::processes::{Process, Role};
use support::scratch::say;
use support::waiting::within;
use support::{Daemon, Setup};

const SESSIONS: usize = 12;
const CLIENTS: usize = 6;
const SECONDS_DEFAULT: u64 = 20;
/// Until everything that was accepted has ended, once nothing is killed any more. Pauses before
/// starts grow with each death, so this is longer than the longest that a run can have caused.
const SETTLE_WITHIN: Duration = Duration::from_secs(420);

const CONFIG: &str = r#"
[node]
starts_at_once = 6
[limits]
messages_per_second = 100000
messages_burst = 100000
"#;
const AGENT: &str = r#"
idle = { stop_after = "3s" }
turn = { stuck_after = "20s", attempts = 5 }
stop = { grace = "2s" }
"#;

/// How often each was killed.
#[derive(Debug, Default)]
struct Kills {
    daemons: usize,
    bridges: usize,
    agents: usize,
    pauses: usize,
}

impl Kills {
    fn all(&self) -> usize {
        self.daemons + self.bridges + self.agents
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a whole number"))
}

/// What a death of the daemon left running.
struct Orphans {
    back_at_ms: u64,
    agents: Vec<Process>,
}

#[test]
fn nothing_accepted_is_lost_or_answered_twice_whatever_is_killed() {
    let seed = setting("DORMOUSE_CHAOS_SEED").unwrap_or_else(now_ms);
    let wanted = setting("DORMOUSE_CHAOS_KILLS").map(|kills| kills as usize);
    let seconds = setting("DORMOUSE_CHAOS_SECONDS").unwrap_or(SECONDS_DEFAULT);
    say(&format!("chaos with DORMOUSE_CHAOS_SEED={seed}"));
    let mut random = Random::new(seed);

    let mut daemon = Setup::new().config(CONFIG).scripted("a", &[], AGENT).start();
    let load = Arc::new(Load::new(daemon.client()));
    let clients = load::start(&load, CLIENTS, SESSIONS, seed);
    let (mut kills, mut orphans) = (Kills::default(), Vec::new());
    let end_at = Instant::now() + Duration::from_secs(seconds);
    let is_over = |kills: &Kills| match wanted {
        Some(wanted) => kills.all() >= wanted,
        None => Instant::now() >= end_at,
    };
    while !is_over(&kills) {
        random.pause(5, 250);
        match random.below(10) {
            0..4 => orphans.push(kill_daemon(&mut daemon, &load, &mut random, &mut kills)),
            4..6 => kills.bridges += usize::from(kill_one(&daemon, Role::Bridge, &mut random)),
            6..9 => kills.agents += usize::from(kill_one(&daemon, Role::Agent, &mut random)),
            _pause => kills.pauses += usize::from(pause_one(&daemon, &mut random)),
        }
    }
    load.end();
    let accepted =
        clients.into_iter().flat_map(|client| client.join().expect("a client")).collect();
    settle(&daemon);
    let evidence = gather(&daemon, accepted);
    let readopted = readopted(&daemon, &orphans);
    report(seed, &kills, &evidence, readopted);
    let violations = check(&evidence);
    assert!(violations.is_empty(), "seed {seed}:\n{}", violations.join("\n"));
    assert!(readopted > 0, "no agent was seen to work on after a death of the daemon");
    assert!(kills.daemons > 0 && kills.bridges > 0 && kills.agents > 0, "{kills:?}");
    // Idle agents are stopped, and nothing is left of any.
    within(SETTLE_WITHIN, "all instances to be gone", || {
        daemon.processes().is_empty().then_some(())
    });
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("in this age")
}

fn kill_daemon(
    daemon: &mut Daemon,
    load: &Load,
    random: &mut Random,
    kills: &mut Kills,
) -> Orphans {
    daemon.kill();
    kills.daemons += 1;
    let of_agents = |(role, process): (Role, Process)| (role == Role::Agent).then_some(process);
    let agents = daemon.processes().into_iter().filter_map(of_agents).collect();
    random.pause(0, 40);
    daemon.start_again();
    load.moved(daemon.client());
    Orphans { back_at_ms: now_ms(), agents }
}

/// Kills a living one of them; `false`: there was none.
fn kill_one(daemon: &Daemon, wanted: Role, random: &mut Random) -> bool {
    let Some(process) = one_of(daemon, wanted, random) else { return false };
    process.kill();
    process.is_gone_soon("the killed process");
    true
}

fn one_of(daemon: &Daemon, wanted: Role, random: &mut Random) -> Option<Process> {
    let living: Vec<Process> = daemon
        .processes()
        .into_iter()
        .filter_map(|(role, process)| (role == wanted).then_some(process))
        .collect();
    let chosen = random.below(living.len().max(1) as u64) as usize;
    living.get(chosen).copied()
}

/// Stops a bridge for a while, as a machine that swaps does.
fn pause_one(daemon: &Daemon, random: &mut Random) -> bool {
    let Some(bridge) = one_of(daemon, Role::Bridge, random) else { return false };
    bridge.signal(rustix::process::Signal::STOP);
    random.pause(20, 200);
    bridge.signal(rustix::process::Signal::CONT);
    true
}

#[track_caller]
fn settle(daemon: &Daemon) {
    let unended = "SELECT count(*) FROM message WHERE ended_at_ms IS NULL";
    within(SETTLE_WITHIN, "every message to end", || (daemon.count(unended) == 0).then_some(()));
}

fn gather(daemon: &Daemon, accepted: Vec<load::Accepted>) -> Evidence {
    let store = daemon.store();
    let mut query = store
        .prepare(
            "SELECT m.id, m.session, m.state, m.attempts, m.cause, t.text, r.text FROM message m \
             JOIN message_text t ON t.seq = m.seq LEFT JOIN message_reply r ON r.seq = m.seq \
             ORDER BY m.seq",
        )
        .expect("the tables are as documented");
    let rows = query.query_map([], |row| {
        Ok(StoredMessage {
            id: row.get(0)?,
            session: row.get(1)?,
            state: row.get(2)?,
            attempts: u64::from(row.get::<_, u32>(3)?),
            cause: row.get(4)?,
            text: row.get(5)?,
            reply: row.get(6)?,
        })
    });
    let stored = rows.expect("rows").map(|row| row.expect("a row")).collect();
    let mut query = store
        .prepare(
            "SELECT json_extract(because, '$.turn'), generation FROM journal \
             WHERE json_extract(because, '$.because') = 'turn_started'",
        )
        .expect("the journal is as documented");
    let rows = query.query_map([], |row| Ok((row.get(0)?, u64::from(row.get::<_, u32>(1)?))));
    let journal = rows.expect("rows").map(|row| row.expect("a row")).collect();
    Evidence { accepted, stored, journal, agents: daemon.agent_log() }
}

/// Agents that outlived a daemon and were given a turn by the next one, or finished theirs for it.
fn readopted(daemon: &Daemon, orphans: &[Orphans]) -> usize {
    let log = daemon.agent_log();
    let works_on = |agent: &Process, back_at_ms: u64| {
        log.iter()
            .any(|line| line.pid == agent.pid && line.at_ms > back_at_ms && line.what != "started")
    };
    orphans
        .iter()
        .flat_map(|left| left.agents.iter().filter(|agent| works_on(agent, left.back_at_ms)))
        .count()
}

fn report(seed: u64, kills: &Kills, evidence: &Evidence, readopted: usize) {
    let in_state = |state: &str| evidence.stored.iter().filter(|m| m.state == state).count();
    say(&format!(
        "seed {seed}\n\
         | killed | daemon {} | bridge {} | agent {} | all {} | paused {} |\n\
         | messages | accepted {} | answered {} | dead {} |\n\
         | turns executed {} | agents re-adopted {} |",
        kills.daemons,
        kills.bridges,
        kills.agents,
        kills.all(),
        kills.pauses,
        evidence.stored.len(),
        in_state("answered"),
        in_state("dead"),
        evidence.agents.iter().filter(|line| line.what == "turn").count(),
        readopted,
    ));
}
