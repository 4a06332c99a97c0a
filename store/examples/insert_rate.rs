//! Figures: how fast the store takes messages, turns and recoveries on this machine.
//!
//! `cargo run --release -p dormouse-store --example insert_rate [FOLDER] [MESSAGES] [BATCH]`. Put
//! FOLDER on a tmpfs to see the cost without the disk. Prints one line per measurement. Absent:
//! targets; whoever runs it compares with the machine's own raw figures.

use std::error::Error;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dormouse_core::command::Write;
use dormouse_core::id::{Generation, MessageId, SessionId, Subject, TurnId};
use dormouse_core::record::{Idempotency, MessageRecord, SessionRecord};
use dormouse_core::session::phase::Phase;
use dormouse_core::time::Wall;
use dormouse_store::Store;

const SESSIONS: u64 = 10_000;
const TEXT_BYTES: usize = 1 << 10;

type Outcome = Result<(), Box<dyn Error>>;

fn main() -> Outcome {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let messages: usize = arguments.next().map_or(Ok(100_000), |text| text.parse())?;
    let batch: usize = arguments.next().map_or(Ok(64), |text| text.parse())?;
    for with_keys in [false, true] {
        let scratch = folder.join(format!("insert-rate-{}-{with_keys}", std::process::id()));
        let measured = measure(&scratch, messages, batch, with_keys);
        std::fs::remove_dir_all(&scratch)?;
        measured?;
    }
    Ok(())
}

fn measure(folder: &Path, messages: usize, batch_size: usize, with_keys: bool) -> Outcome {
    let mut store = Store::open(folder)?;
    put_sessions(&mut store)?;
    let writes: Vec<Write> = (0..messages).map(|n| message(n as u64, with_keys)).collect();
    let mut commits = Vec::new();
    let mut checkpoints = Vec::new();
    let mut applying = Duration::ZERO;
    for chunk in writes.chunks(batch_size) {
        let begun = Instant::now();
        let mut batch = store.batch();
        for write in chunk {
            if let Write::InsertMessage(record) = write
                && let Some(idempotency) = &record.idempotency
                && batch.find_prior(&record.subject, &idempotency.key)?.is_some()
            {
                return Err("every key is new".into());
            }
            batch.apply(write)?;
        }
        applying += begun.elapsed();
        let begun = Instant::now();
        batch.commit()?;
        commits.push(begun.elapsed());
        let begun = Instant::now();
        store.checkpoint_if_due()?;
        checkpoints.push(begun.elapsed());
    }
    let keys = if with_keys { "unique keys" } else { "no keys" };
    report(&format!("accept, {keys}: apply"), messages, applying)?;
    report(&format!("accept, {keys}: commit"), messages, commits.iter().sum())?;
    report(&format!("accept, {keys}: checkpoints"), messages, checkpoints.iter().sum())?;
    let all = applying + commits.iter().chain(&checkpoints).sum::<Duration>();
    report(&format!("accept, {keys}: all"), messages, all)?;
    spread("  one commit", &mut commits)?;
    spread("  one checkpoint call", &mut checkpoints)?;
    recover(store, folder, messages)?;
    answer_all(folder, messages, batch_size)
}

fn recover(store: Store, folder: &Path, messages: usize) -> Outcome {
    drop(store);
    let begun = Instant::now();
    let mut store = Store::open(folder)?;
    let opened = begun.elapsed();
    let live = store.live_sessions()?;
    let all: usize = live.iter().map(|session| session.deliveries.len()).sum();
    if all != messages {
        return Err(format!("{all} of {messages} messages came back").into());
    }
    say(&format!("open {opened:.1?}, then live_sessions {:.1?}", begun.elapsed() - opened))
}

/// Lease and answer each, one commit per lease and per answer of a batch.
fn answer_all(folder: &Path, messages: usize, batch_size: usize) -> Outcome {
    let mut store = Store::open(folder)?;
    let ids: Vec<u64> = (0..messages as u64).collect();
    let begun = Instant::now();
    for chunk in ids.chunks(batch_size) {
        let turn = |n: &u64| TurnId { message: id_of(*n), attempt: 1 };
        let mut batch = store.batch();
        for n in chunk {
            batch.apply(&Write::LeaseDelivery {
                turn: turn(n),
                generation: Generation(1),
                at: Wall(2),
            })?;
        }
        batch.commit()?;
        let mut batch = store.batch();
        for n in chunk {
            batch.apply(&Write::AnswerMessage {
                turn: turn(n),
                generation: Generation(1),
                at: Wall(3),
                text: "r".repeat(TEXT_BYTES),
                exit_code: None,
            })?;
        }
        batch.commit()?;
        store.checkpoint_if_due()?;
    }
    report("lease and answer", messages, begun.elapsed())
}

fn put_sessions(store: &mut Store) -> Outcome {
    let mut batch = store.batch();
    for n in 0..SESSIONS {
        batch.apply(&Write::PutSession(SessionRecord {
            id: session_of(n)?,
            subject: Subject::new("key-1")?,
            created_at: Wall(1),
            phase: Phase::Asleep,
            generation: Generation(0),
            failures: 0,
            backoff_until: None,
            stop: None,
            wake_wanted: false,
            start_took_ms: None,
            last_failure: None,
            memory: None,
            files: Default::default(),
            revision: None,
        }))?;
    }
    Ok(batch.commit()?)
}

fn message(n: u64, with_keys: bool) -> Write {
    let mixed = mix(n);
    Write::InsertMessage(MessageRecord {
        id: id_of(n),
        session: session_of(mixed % SESSIONS).expect("a plain name is a session id"),
        subject: Subject::new("key-1").expect("a plain name is a subject"),
        text: "x".repeat(TEXT_BYTES),
        accepted_at: Wall(1_700_000_000_000 + n),
        idempotency: with_keys.then(|| Idempotency {
            key: format!("{mixed:016x}-{:016x}", mix(mixed)),
            digest: "0123456789abcdef".repeat(4),
        }),
        redrive_of: None,
    })
}

fn id_of(n: u64) -> MessageId {
    MessageId((1_700_000_000_000_u128 << 80) + (u128::from(n) << 40))
}

fn session_of(n: u64) -> Result<SessionId, dormouse_core::id::IdError> {
    SessionId::new(&format!("python/user-{n}"))
}

/// Spreads numbers evenly and repeatably (the finaliser of splitmix64).
fn mix(n: u64) -> u64 {
    let n = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n ^ (n >> 27)
}

fn report(what: &str, count: usize, took: Duration) -> Outcome {
    let each = took / u32::try_from(count)?;
    let per_second = count as f64 / took.as_secs_f64();
    say(&format!("{what:36} {count:>8} in {took:>9.1?}  {each:>9.2?} each  {per_second:>9.0}/s"))
}

fn spread(what: &str, spans: &mut [Duration]) -> Outcome {
    spans.sort_unstable();
    let at = |share: f64| spans[((spans.len() - 1) as f64 * share) as usize];
    say(&format!(
        "{what:36} p50 {:.2?}  p99 {:.2?}  p99.9 {:.2?}  max {:.2?}",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    ))
}

fn say(line: &str) -> Outcome {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}
