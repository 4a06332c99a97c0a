//! Files: from one S3 server into a workspace, against rclone; and a large checkpoint beside other
//! work.
//!
//! ```text
//!  message ─▶ wake ─▶ list ─▶ fetch, verify, fsync ─▶ agent ─▶ answer      (the whole of it: ours)
//!  rclone copy ─▶ rclone check ─▶ syncfs                                              (the peer's)
//! ```
//!
//! Owner: `cargo xtask bench files`. Invariants: ours is timed from the message to its answer, wake
//! and agent included; nothing is removed between samples (a file system is slow to give the place
//! of removed files again); rclone runs right after ours. Absent: other stores.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::Context;
use super::bucket::{Bucket, Rclone};
use super::daemon::Daemon;
use super::error::BenchError;
use super::http::Connection;
use super::machine::settle;
use super::report::Report;
use super::statistics::{Spread, figure, millis, quantile};

const HEADINGS: &[&str] = &[
    "what",
    "samples",
    "ours",
    "rclone, as it comes",
    "rclone, 16 at once",
    "ratio to the better",
];
const AT_ONCE: Option<&str> = Some("16");
/// Between two asks beside the checkpoint.
const ASK_EVERY: Duration = Duration::from_millis(10);

struct Bench<'a> {
    context: &'a Context,
    bucket: Bucket,
    rclone: Option<Rclone>,
    daemon: Daemon,
}

/// Seconds of one sample.
#[derive(Debug, Default)]
struct Samples {
    ours: Vec<f64>,
    plain: Vec<f64>,
    at_once: Vec<f64>,
}

pub(super) fn run(context: &Context) -> Result<Report, BenchError> {
    let mut report = Report::new("files", HEADINGS);
    let small = context.pick((5_000, 10 << 10), (30, 1 << 10));
    let large = context.pick(256 << 20, 1 << 20);
    let contents = [("small", small.0, small.1), ("large", 1, large)];
    let bucket = Bucket::start(context.is_short(), &contents)?;
    let mut setup = context.setup(&agents(&bucket, context.pick(100, 2)), 4);
    setup.environment = bucket.credentials();
    let daemon = setup.start()?;
    let rclone = Rclone::find();
    if rclone.is_none() {
        report.remark("rclone is not there: `cargo xtask provision rclone` brings it.");
    }
    let bench = Bench { context, bucket, rclone, daemon };
    let rounds = context.pick(7, 1);
    for (name, what) in [("small", "5,000 files of 10 KB, s"), ("large", "one of 256 MiB, s")] {
        let fresh = bench.fetch(name, rounds, Fetch::Fresh)?;
        add_row(&mut report, what, &fresh);
        let again = bench.fetch(name, rounds, Fetch::Unchanged)?;
        add_row(&mut report, &format!("the same, nothing changed ({name}), s"), &again);
    }
    bench.add_ready(&mut report)?;
    bench.checkpoint(&mut report)?;
    bench.daemon.remove()?;
    Ok(report)
}

fn agents(bucket: &Bucket, files: u64) -> String {
    let agent = |name: &str, command: &str, rest: &str| {
        let command = json!(["sh", "-c", command]);
        format!("[agents.{name}]\ncommand = {command}\nadapter = {{ kind = \"exec\" }}\n{rest}\n")
    };
    let inputs =
        |name: &str| format!("inputs = [{{ path = \"data\", from = \"s3://bench/{name}/\" }}]");
    let write = format!(
        "mkdir -p made; for i in $(seq {files}); do head -c 10000000 /dev/urandom > made/$i; done; \
         echo ok"
    );
    [
        format!("[s3]\nendpoint = \"http://{}\"\n", bucket.address),
        agent("small", "echo ok", &inputs("small")),
        agent("large", "echo ok", &inputs("large")),
        agent("bare", "echo ok", "files = { checkpoint = \"off\" }"),
        agent("writes", &write, ""),
    ]
    .concat()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fetch {
    /// Into a workspace where nothing is.
    Fresh,
    /// Into the one of the sample before, by an agent that was stopped in between.
    Unchanged,
}

impl Bench<'_> {
    fn fetch(&self, name: &str, rounds: usize, fetch: Fetch) -> Result<Samples, BenchError> {
        let mut samples = Samples::default();
        let mut connection = self.daemon.connect()?;
        for round in 0..rounds {
            let session = format!("{name}/{round}");
            if fetch == Fetch::Fresh {
                settle(self.context.patience)?;
            }
            samples.ours.push(ask(&mut connection, &session)?.as_secs_f64());
            self.daemon.put_to_sleep(&mut connection, &session)?;
            let Some(rclone) = &self.rclone else { continue };
            for (at_once, seconds) in [(None, &mut samples.plain), (AT_ONCE, &mut samples.at_once)]
            {
                let folder = format!("rclone-{name}-{round}-{}", at_once.unwrap_or("as-it-comes"));
                let folder = self.context.scratch.join(folder);
                let took = rclone.copy_and_check(&self.bucket, name, &folder, at_once)?;
                seconds.push(took.as_secs_f64());
            }
            self.context.progress(&format!("{name}, {fetch:?}, {} of {rounds}", round + 1));
        }
        Ok(samples)
    }

    /// What files that have not changed add to a start, by the daemon's own clock.
    fn add_ready(&self, report: &mut Report) -> Result<(), BenchError> {
        let mut connection = self.daemon.connect()?;
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..self.context.pick(30, 2) {
            for (session, times) in [("bare/0", &mut without), ("small/0", &mut with)] {
                ask(&mut connection, session)?;
                times.push(ready_after_ms(&mut connection, session)?);
                self.daemon.put_to_sleep(&mut connection, session)?;
            }
        }
        let (with, without) = (Spread::of(with), Spread::of(without));
        report.remark(format!(
            "From the start to ready: {with} ms with 5,000 unchanged inputs, {without} ms without \
             files; added p50 {} ms.",
            figure(with.median - without.median)
        ));
        report.raw.push(json!({"ready_ms": with.json(), "ready_without_ms": without.json()}));
        Ok(())
    }

    /// A checkpoint of 1 GB, while `/readyz` and the turns of another agent go on.
    fn checkpoint(&self, report: &mut Report) -> Result<(), BenchError> {
        let (is_over, daemon) = (AtomicBool::new(false), &self.daemon);
        let mut connection = self.daemon.connect()?;
        ask(&mut connection, "bare/0")?;
        let (took, ready, turns) = thread::scope(|scope| {
            let beside = |what: fn(&mut Connection) -> Result<(), BenchError>| {
                let is_over = &is_over;
                scope.spawn(move || {
                    let mut connection = daemon.connect()?;
                    let mut nanos = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        let begun_at = Instant::now();
                        what(&mut connection)?;
                        nanos.push(nanos_of(begun_at.elapsed()));
                        thread::sleep(ASK_EVERY);
                    }
                    Ok::<_, BenchError>(nanos)
                })
            };
            let ready = beside(|connection| connection.request("GET", "/readyz", "").map(|_| ()));
            let turns = beside(|connection| ask(connection, "bare/0").map(|_| ()));
            let took = self.write_and_keep(&mut connection);
            is_over.store(true, Ordering::Relaxed);
            let joined = |handle: thread::ScopedJoinHandle<'_, _>| {
                handle.join().expect("a thread that asks does not panic")
            };
            Ok::<_, BenchError>((took?, joined(ready)?, joined(turns)?))
        })?;
        let p99 = |mut nanos: Vec<u64>| {
            nanos.sort_unstable();
            (nanos.len(), millis(quantile(&nanos, 0.99)))
        };
        let ((readies, ready), (turns, turn)) = (p99(ready), p99(turns));
        report.remark(format!(
            "A turn that makes 1 GB and its checkpoint: {} s. Beside it `/readyz` answered \
             {readies} times, p99 {} ms, and {turns} turns of another agent took p99 {} ms.",
            figure(took.as_secs_f64()),
            figure(ready),
            figure(turn)
        ));
        report.raw.push(json!({
            "checkpoint_s": took.as_secs_f64(), "readyz_p99_ms": ready, "turn_p99_ms": turn,
        }));
        Ok(())
    }

    /// Until the checkpoint is committed, or nothing was kept, which voids the figure.
    fn write_and_keep(&self, connection: &mut Connection) -> Result<Duration, BenchError> {
        let begun_at = Instant::now();
        ask(connection, "writes/0")?;
        self.daemon.put_to_sleep(connection, "writes/0")?;
        let took = begun_at.elapsed();
        let history = connection.json("GET", "/v1/sessions/writes/0/checkpoints", "", 200)?;
        let bytes = history[0]["bytes"].as_u64().unwrap_or_default();
        if bytes < 10_000_000 {
            return Err(BenchError::void(format!("the checkpoint is not there: {history}")));
        }
        Ok(took)
    }
}

/// From the message to its answer.
fn ask(connection: &mut Connection, session: &str) -> Result<Duration, BenchError> {
    let begun_at = Instant::now();
    connection.submit(session, "go")?.finish()?;
    Ok(begun_at.elapsed())
}

fn ready_after_ms(connection: &mut Connection, session: &str) -> Result<f64, BenchError> {
    let path = format!("/v1/sessions/{session}/journal?limit=20");
    let journal = connection.json("GET", &path, "", 200)?;
    let rows = journal["items"].as_array().map_or(&[][..], Vec::as_slice);
    let because = rows.iter().map(|row| &row["because"]);
    let ready = because.into_iter().find(|because| because["because"] == "became_ready");
    let took = ready.and_then(|ready| ready["took_ms"].as_f64());
    took.ok_or_else(|| BenchError::void("the journal does not say when it was ready"))
}

fn nanos_of(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn add_row(report: &mut Report, what: &str, samples: &Samples) {
    let shown = |seconds: &[f64]| match seconds {
        [] => "–".to_string(),
        some => Spread::of(some.iter().copied()).to_string(),
    };
    let medians = [&samples.plain, &samples.at_once].into_iter().filter(|some| !some.is_empty());
    let better = medians.map(|some| Spread::of(some.iter().copied()).median).reduce(f64::min);
    let ours = Spread::of(samples.ours.iter().copied());
    report.row([
        what.to_string(),
        samples.ours.len().to_string(),
        ours.to_string(),
        shown(&samples.plain),
        shown(&samples.at_once),
        better.map_or("–".to_string(), |better| format!("{}×", figure(better / ours.median))),
    ]);
    let raw: Value = json!({
        "what": what, "ours_s": samples.ours, "rclone_s": samples.plain,
        "rclone_16_s": samples.at_once,
    });
    report.raw.push(raw);
}
