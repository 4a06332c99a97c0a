//! Config reloads and hand-overs under traffic: what clients, streams and turns notice; HAProxy and
//! nginx, reloaded as often under the same clients, beside it.
//!
//! ```text
//!  clients ─ new and kept connections ─┐
//!  followers of running turns ─────────┼▶ daemon ─ 10 × apply ─ 10 × upgrade ─▶ …
//!                                      └▶ HAProxy, nginx ─ 10 × reload ─▶ a backend of ours
//! ```
//!
//! Owner: `cargo xtask bench handover`. Invariants: our clients hand in messages that are on disk
//! before they are answered, the proxies' clients get a word from memory; a failure is counted with
//! its reason and voids nothing. Absent: throughput.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use super::Context;
use super::daemon::{Daemon, signal};
use super::error::BenchError;
use super::machine::{read, settle};
use super::proxies::{self, Kind, Proxy};
use super::report::Report;
use super::statistics::{figure, quantile};
use super::traffic::{Clients, Followed, Seen, Target, follow_message, follow_numbers};
use crate::root;

const HEADINGS: &[&str] = &[
    "who",
    "changes",
    "requests",
    "failed",
    "longest request, ms",
    "streams",
    "cut for good",
    "cut and resumed",
    "apply p50, ms",
    "apply p99, ms",
];
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(2_500);
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// How much of everything.
struct Amount {
    /// With new connections, and as many that keep theirs.
    clients: usize,
    turns: usize,
    streams_of_each: usize,
    changes: usize,
}

pub(super) fn run(context: &Context) -> Result<Report, BenchError> {
    let mut report = Report::new("handover", HEADINGS);
    let amount = Amount {
        clients: context.pick(16, 2),
        turns: context.pick(16, 2),
        streams_of_each: context.pick(4, 1),
        changes: context.pick(10, 2),
    };
    let pause = context.pick(PAUSE, Duration::from_millis(300));
    settle(context.patience)?;
    ours(context, &amount, pause, &mut report)?;
    for kind in [Kind::HaProxy, Kind::Nginx] {
        settle(context.patience)?;
        peer(context, kind, &amount, pause, &mut report)?;
    }
    Ok(report)
}

/// The test agent answers messages; turns that count until a file is there are shell loops.
fn agents(enough: &str) -> String {
    let script = root().join("daemon/tests/agents/scripted.py");
    let count =
        format!("i=0; while [ ! -e {enough} ]; do echo $i; i=$((i+1)); sleep 0.02; done; echo $i");
    format!(
        "[agents.scripted]\ncommand = {}\nadapter = {{ kind = \"jsonl\", ready = true }}\n\
         [agents.counts]\ncommand = {}\nadapter = {{ kind = \"exec\" }}\n\
         files = {{ checkpoint = \"off\" }}\n",
        json!(["python3", script]),
        json!(["sh", "-c", count]),
    )
}

fn ours(
    context: &Context,
    amount: &Amount,
    pause: Duration,
    report: &mut Report,
) -> Result<(), BenchError> {
    let enough = context.scratch.join("enough");
    let daemon = context.setup(&agents(&enough.display().to_string()), 64).start()?;
    let target = Target {
        address: daemon.address,
        headers: format!("authorization: Bearer {}\r\n", daemon.token),
        wanted: 202,
    };
    let (turns, streams) = begin_turns(&daemon, &target, amount)?;
    let message = |number: usize, round: u64| {
        let head = format!("POST /v1/sessions/scripted/load-{number}/messages");
        (head, json!({ "text": format!("{number} {round}") }).to_string())
    };

    let clients = Clients::start(&target, amount.clients, message);
    let applies = apply_often(&daemon, amount.changes, pause)?;
    let seen = clients.end()?;
    context.progress("the config was changed");
    add_row(report, "ours, config reload", amount.changes, &seen, &[], Some(&applies));

    let clients = Clients::start(&target, amount.clients, message);
    let (paused, successor) = upgrade_often(context, &daemon, amount.changes, pause)?;
    let seen = clients.end()?;
    context.progress("the daemon was handed over");
    fs::write(&enough, "").map_err(BenchError::file("write", &enough))?;
    let mut followed = Vec::new();
    for stream in streams {
        let stream = stream.join().map_err(|_| BenchError::void("a stream panicked"))?;
        followed.push(stream.map_err(BenchError::http("follow a message"))?);
    }
    add_row(report, "ours, hand-over", amount.changes, &seen, &followed, None);
    let aborted = aborted(&daemon, &turns)?;
    let numbers: usize = followed.iter().map(|stream| stream.numbers).sum();
    report.remark(format!(
        "{} turns ran through all of it: {aborted} aborted; their {} followers saw {numbers} \
         numbers, each once and in order where nothing else is said. In a hand-over requests \
         waited {} ms (p50) and {} ms (longest), by the daemon's own clock.",
        turns.len(),
        followed.len(),
        quantile(&paused, 0.5),
        quantile(&paused, 1.0),
    ));
    // Ours is a child; what serves now is not.
    if let Some(successor) = successor {
        signal(successor, Signal::TERM)?;
        wait_until_gone(successor)?;
    }
    daemon.remove()
}

type Stream = thread::JoinHandle<std::io::Result<Followed>>;

/// Gives the messages of turns that run, and their followers.
fn begin_turns(
    daemon: &Daemon,
    target: &Target,
    amount: &Amount,
) -> Result<(Vec<String>, Vec<Stream>), BenchError> {
    let mut connection = daemon.connect()?;
    let mut turns = Vec::new();
    for number in 0..amount.turns {
        let path = format!("/v1/sessions/counts/{number}/messages");
        let accepted = connection.json("POST", &path, "{\"text\": \"count\"}", 202)?;
        turns.push(accepted["message_id"].as_str().unwrap_or_default().to_string());
        daemon.wait_for_phase(&mut connection, &format!("counts/{number}"), "awake")?;
    }
    let followers = turns.iter().flat_map(|id| std::iter::repeat_n(id, amount.streams_of_each));
    let streams = followers.map(|id| {
        let (target, id) = (target.clone(), id.clone());
        thread::spawn(move || follow_message(target, id))
    });
    let streams = streams.collect();
    Ok((turns, streams))
}

/// Each time in nanoseconds, ascending.
fn apply_often(daemon: &Daemon, times: usize, pause: Duration) -> Result<Vec<u64>, BenchError> {
    let path = daemon.folder().join("dormouse.toml");
    let base = read(&path)?;
    let mut connection = daemon.connect()?;
    let mut took = Vec::new();
    for number in 0..times {
        let text = base.replace("queue_messages = 1", &format!("queue_messages = {}1", number + 1));
        let body = json!({ "text": text }).to_string();
        let begun_at = Instant::now();
        let outcome = connection.json("POST", "/v1/config/apply", &body, 200)?;
        took.push(begun_at.elapsed().as_nanos() as u64);
        if outcome["is_applied"] != true {
            return Err(BenchError::void(format!("a config was not applied: {outcome}")));
        }
        thread::sleep(pause);
    }
    took.sort_unstable();
    Ok(took)
}

/// How long requests waited, in milliseconds, ascending; and the process that serves then.
fn upgrade_often(
    context: &Context,
    daemon: &Daemon,
    times: usize,
    pause: Duration,
) -> Result<(Vec<u64>, Option<u32>), BenchError> {
    let (mut paused, mut successor) = (Vec::new(), None);
    for _ in 0..times {
        let output = Command::new(&context.binary)
            .args(["upgrade", "--json", "--exec"])
            .arg(&context.binary)
            .arg("--data")
            .arg(daemon.data())
            .output()
            .map_err(BenchError::file("start", &context.binary))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let done = text.lines().last().and_then(|line| serde_json::from_str::<Value>(line).ok());
        let done = done.filter(|done| done["stage"] == "done");
        let Some(done) = done else {
            let words = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(BenchError::void(format!("a hand-over failed: {text}{words}")));
        };
        paused.push(done["paused_ms"].as_u64().unwrap_or(u64::MAX));
        successor = done["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        thread::sleep(pause);
    }
    paused.sort_unstable();
    Ok((paused, successor))
}

/// Turns that did not end with their first attempt.
fn aborted(daemon: &Daemon, turns: &[String]) -> Result<usize, BenchError> {
    let mut connection = daemon.connect()?;
    let mut aborted = 0;
    for id in turns {
        let message = connection.json("GET", &format!("/v1/messages/{id}"), "", 200)?;
        aborted += usize::from(message["state"] != "answered" || message["attempts"] != 1);
    }
    Ok(aborted)
}

fn wait_until_gone(process: u32) -> Result<(), BenchError> {
    let begun_at = Instant::now();
    let path = std::path::PathBuf::from(format!("/proc/{process}"));
    while path.exists() {
        if begun_at.elapsed() > GONE_WITHIN {
            let what = "the last daemon's end".to_string();
            return Err(BenchError::TooSlow { what, seconds: GONE_WITHIN.as_secs() });
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn peer(
    context: &Context,
    kind: Kind,
    amount: &Amount,
    pause: Duration,
    report: &mut Report,
) -> Result<(), BenchError> {
    let backend = proxies::start_backend()?;
    let Some(proxy) = Proxy::start(kind, &context.new_folder(), backend)? else {
        let name = kind.name();
        report.remark(format!("{name} is not there: on Debian, apt-get install {name}."));
        return Ok(());
    };
    let target = Target { address: proxy.address, headers: String::new(), wanted: 200 };
    let stop = Arc::new(AtomicBool::new(false));
    let streams: Vec<_> = (0..amount.turns * amount.streams_of_each)
        .map(|_| {
            let (target, stop) = (target.clone(), Arc::clone(&stop));
            thread::spawn(move || follow_numbers(target, "/stream", &stop))
        })
        .collect();
    let request = |_number: usize, _round: u64| ("GET /".to_string(), String::new());
    let clients = Clients::start(&target, amount.clients, request);
    for _ in 0..amount.changes {
        thread::sleep(pause);
        proxy.reload()?;
    }
    thread::sleep(pause);
    let seen = clients.end()?;
    stop.store(true, Ordering::Relaxed);
    let mut followed = Vec::new();
    for stream in streams {
        followed.push(stream.join().map_err(|_| BenchError::void("a stream panicked"))?);
    }
    let who = format!("{}, config reload", kind.name());
    add_row(report, &who, amount.changes, &seen, &followed, None);
    Ok(())
}

fn add_row(
    report: &mut Report,
    who: &str,
    changes: usize,
    seen: &Seen,
    followed: &[Followed],
    applies: Option<&[u64]>,
) {
    let lost = followed.iter().filter(|stream| !stream.is_whole).count();
    let cuts: u64 = followed.iter().filter(|stream| stream.is_whole).map(|one| one.cuts).sum();
    let ms = |share: f64| applies.map(|took| figure(quantile(took, share) as f64 / 1e6));
    let shown = |value: Option<String>| value.unwrap_or_else(|| "–".to_string());
    let streams = |value: String| if followed.is_empty() { "–".to_string() } else { value };
    report.row([
        who.to_string(),
        changes.to_string(),
        seen.requests.to_string(),
        seen.failed.to_string(),
        figure(seen.longest.as_secs_f64() * 1e3),
        streams(followed.len().to_string()),
        streams(lost.to_string()),
        streams(cuts.to_string()),
        shown(ms(0.5)),
        shown(ms(0.99)),
    ]);
    if !seen.reasons.is_empty() {
        report.remark(format!("{who}, failed: {}.", seen.reasons.join("; ")));
    }
    report.raw.push(json!({
        "who": who, "requests": seen.requests, "failed": seen.failed,
        "longest_ns": seen.longest.as_nanos() as u64, "applies_ns": applies, "cuts": cuts,
        "streams": followed.len(), "lost": lost,
    }));
}
