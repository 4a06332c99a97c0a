//! Many files from the daemon, each checked before it counts.
//!
//! ```text
//!  pending ─▶ batches ─▶ a few requests at a time ─▶ bytes ─▶ a thread each: decode, hash, write
//!     ▲                                                          │
//!     └── broken streams, what may pass: again after a pause ◀───┴─▶ staged: whole and proved
//! ```
//!
//! Owner: `apply`. Invariants: files are written in the staging folder alone; a file is staged only
//! with the announced size and hash; what is staged is not fetched again; memory is bounded by the
//! pieces under way, whatever the sizes. Absent: where the files go then.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dormouse_core::manifest::{ContentId, FilePath, Sha256Hash};
use futures_util::future::join;
use hyper::body::Bytes;
use rustix::io::Errno;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::files::beneath::Folder;
use crate::files::digest::Digester;
use crate::files::server::{Server, ServerError, next_bytes};
use crate::files::stream::{FetchDecoder, FetchEvent, StreamError};
use crate::files::wire::{FETCH_PATH, FetchFile, FetchRequest, SyncProblem};
use crate::files::workspace::Workspace;

const BATCH_FILES_MAX: usize = 1_024;
const BATCH_BYTES_MAX: u64 = 256 << 20;
/// Pieces of one stream between the network and the disk.
const PIECES_WAITING_MAX: usize = 8;
/// Files of one stream that are open at a time, however it mixes them.
const OPEN_FILES_MAX: usize = 64;
/// Bytes that are not the announced ones, before it is believed that they never will be.
const WRONG_BYTES_MAX: u32 = 3;
/// Without one more file, or one more byte of one, the fetch is over.
const NO_PROGRESS_MAX: Duration = Duration::from_secs(5 * 60);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// One file that is to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    /// Where it is going to lie.
    pub(crate) path: FilePath,
    /// Which input it is; `None`: a blob.
    pub(crate) input: Option<FilePath>,
    pub(crate) content: ContentId,
    pub(crate) bytes: u64,
    pub(crate) is_executable: bool,
}

impl Item {
    /// Its name while it is staged: another one for other bytes or another place.
    pub(crate) fn key(&self) -> String {
        let Self { path, content, bytes, .. } = self;
        Sha256Hash::of(format!("{bytes} {content} {path}").as_bytes()).to_string()
    }
}

/// How far a sync is, for whoever wants to show it.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) done_files: AtomicU64,
    pub(crate) files: AtomicU64,
    pub(crate) done_bytes: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

#[derive(Debug)]
pub(crate) struct Fetch {
    pub(crate) workspace: Arc<Workspace>,
    pub(crate) server: Server,
    pub(crate) staging: Arc<Folder>,
    pub(crate) items: Arc<Vec<Item>>,
    pub(crate) progress: Arc<Progress>,
}

/// What one stream brought.
#[derive(Debug, Default)]
struct Brought {
    staged: Vec<usize>,
    failed: Vec<Failure>,
    /// The most bytes that came of each file.
    came: Vec<(usize, u64)>,
    broke_off: Option<String>,
    /// Nothing more can be written here.
    fatal: Option<SyncProblem>,
}

#[derive(Debug)]
struct Failure {
    index: usize,
    words: String,
    kind: FailureKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FailureKind {
    Permanent,
    MayPass,
    WrongBytes,
}

/// What is known of all items so far.
#[derive(Debug)]
struct Ledger {
    pending: Vec<usize>,
    came: BTreeMap<usize, u64>,
    wrong: BTreeMap<usize, u32>,
    lasting: Vec<(usize, String, bool)>,
    passing: BTreeMap<usize, String>,
    broke_off: Option<String>,
    progress_at: Instant,
    failures: u32,
}

impl Fetch {
    /// Stages everything but what is staged already.
    pub(crate) async fn run(&self, is_staged: &[bool]) -> Result<(), SyncProblem> {
        let pending = (0..self.items.len()).filter(|index| !is_staged[*index]).collect();
        let mut ledger = Ledger::new(pending);
        while !ledger.pending.is_empty() {
            let queue = Mutex::new(self.batches(&ledger.pending));
            let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let (mut brought, others) = join(self.work_off(next), self.work_off(next)).await;
            brought.extend(others);
            ledger.take(brought)?;
            if let Some(problem) = ledger.problem(&self.items) {
                return Err(problem);
            }
            if !ledger.pending.is_empty() {
                tokio::time::sleep(ledger.pause()).await;
            }
        }
        Ok(())
    }

    fn batches(&self, pending: &[usize]) -> VecDeque<Vec<usize>> {
        let files_max = BATCH_FILES_MAX.min(pending.len().div_ceil(2));
        let mut batches: VecDeque<Vec<usize>> = VecDeque::new();
        let mut bytes = 0;
        for index in pending {
            let size = self.items[*index].bytes;
            match batches.back_mut() {
                Some(last) if last.len() < files_max && bytes + size <= BATCH_BYTES_MAX => {
                    last.push(*index);
                    bytes += size;
                }
                _ => {
                    batches.push_back(vec![*index]);
                    bytes = size;
                }
            }
        }
        batches
    }

    async fn work_off(&self, next: impl Fn() -> Option<Vec<usize>>) -> Vec<Brought> {
        let mut all = Vec::new();
        while let Some(batch) = next() {
            let brought = match self.fetch(batch).await {
                Ok(brought) => brought,
                Err(error) => {
                    let fatal = (!error.may_pass()).then(|| {
                        SyncProblem::about(crate::words(&error), error.is_outdated(), Vec::new())
                    });
                    Brought { broke_off: Some(crate::words(&error)), fatal, ..Brought::default() }
                }
            };
            let is_over = brought.fatal.is_some();
            all.push(brought);
            if is_over {
                break;
            }
        }
        all
    }

    async fn fetch(&self, batch: Vec<usize>) -> Result<Brought, ServerError> {
        let file = |index: &usize| {
            let Item { input, content, bytes, .. } = self.items[*index].clone();
            FetchFile { path: input, content, bytes }
        };
        let request = FetchRequest { files: batch.iter().map(file).collect() };
        let mut body = self.server.post_for_stream(FETCH_PATH, &request).await?;
        let (pieces_in, pieces) = mpsc::channel::<Bytes>(PIECES_WAITING_MAX);
        let (staging, items) = (self.staging.clone(), self.items.clone());
        let (workspace, progress) = (self.workspace.clone(), self.progress.clone());
        let writing = tokio::task::spawn_blocking(move || {
            let _sharing = workspace.share();
            Writer::new(&staging, &items, &batch, &progress).write_all(pieces)
        });
        let broke_off = loop {
            match next_bytes(&mut body).await {
                Ok(Some(bytes)) => {
                    // The writer gave up, and says why itself.
                    if pieces_in.send(bytes).await.is_err() {
                        break None;
                    }
                }
                Ok(None) => break None,
                Err(error) => break Some(crate::words(&error)),
            }
        };
        drop(pieces_in);
        let mut brought = writing.await.expect("a writer does not panic, and is not aborted");
        brought.broke_off = broke_off.or(brought.broke_off);
        Ok(brought)
    }
}

impl Ledger {
    fn new(pending: Vec<usize>) -> Self {
        Self {
            pending,
            came: BTreeMap::new(),
            wrong: BTreeMap::new(),
            lasting: Vec::new(),
            passing: BTreeMap::new(),
            broke_off: None,
            progress_at: Instant::now(),
            failures: 0,
        }
    }

    fn take(&mut self, all: Vec<Brought>) -> Result<(), SyncProblem> {
        let mut has_progress = false;
        for Brought { staged, failed, came, broke_off, fatal } in all {
            if let Some(problem) = fatal {
                return Err(problem);
            }
            has_progress |= !staged.is_empty();
            self.pending.retain(|index| staged.binary_search(index).is_err());
            for (index, bytes) in came {
                let most = self.came.entry(index).or_default();
                has_progress |= bytes > *most;
                *most = bytes.max(*most);
            }
            for Failure { index, words, kind } in failed {
                let wrong = self.wrong.entry(index).or_default();
                *wrong += u32::from(kind == FailureKind::WrongBytes);
                match kind {
                    FailureKind::Permanent => self.lasting.push((index, words, false)),
                    FailureKind::WrongBytes if *wrong >= WRONG_BYTES_MAX => {
                        self.lasting.push((index, words, true));
                    }
                    FailureKind::MayPass | FailureKind::WrongBytes => {
                        self.passing.insert(index, words);
                    }
                }
            }
            self.broke_off = broke_off.or(self.broke_off.take());
        }
        self.failures = if has_progress { 0 } else { self.failures.saturating_add(1) };
        if has_progress {
            self.progress_at = Instant::now();
        }
        Ok(())
    }

    /// Every file that will not come, once that is so for one of them or for too long for all.
    fn problem(&self, items: &[Item]) -> Option<SyncProblem> {
        let path = |index: &usize| items[*index].path.to_string();
        if let Some((_, words, _)) = self.lasting.first() {
            let retryable = self.lasting.iter().all(|(_, _, retryable)| *retryable);
            let paths: Vec<_> = self.lasting.iter().map(|(index, _, _)| path(index)).collect();
            let message = format!("{} could not be fetched: {words}", counted(paths.len()));
            return Some(SyncProblem::about(message, retryable, paths));
        }
        if self.pending.is_empty() || self.progress_at.elapsed() < NO_PROGRESS_MAX {
            return None;
        }
        let words = self.pending.iter().find_map(|index| self.passing.get(index));
        let words = words.or(self.broke_off.as_ref()).map_or("no progress", String::as_str);
        let paths: Vec<_> = self.pending.iter().map(path).collect();
        let message = format!("{} could not be fetched: {words}", counted(paths.len()));
        Some(SyncProblem::about(message, true, paths))
    }

    fn pause(&self) -> Duration {
        PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX)
    }
}

fn counted(files: usize) -> String {
    if files == 1 { "1 file".to_string() } else { format!("{files} files") }
}

/// Writes one stream to disk, in a thread that may wait for it.
#[derive(Debug)]
struct Writer<'a> {
    staging: &'a Folder,
    items: Vec<(usize, &'a Item)>,
    states: Vec<State>,
    open: VecDeque<usize>,
    progress: &'a Progress,
    brought: Brought,
}

#[derive(Debug)]
enum State {
    Untouched,
    /// Without a file: closed, to be opened again.
    Writing {
        file: Option<File>,
        digester: Digester,
        bytes: u64,
    },
    Over,
}

/// Why one file, or all, cannot be written.
#[derive(Debug)]
enum WriteProblem {
    One(FailureKind, String),
    All(io::Error),
}

impl From<io::Error> for WriteProblem {
    fn from(error: io::Error) -> Self {
        WriteProblem::All(error)
    }
}

impl From<Errno> for WriteProblem {
    fn from(errno: Errno) -> Self {
        WriteProblem::All(errno.into())
    }
}

impl<'a> Writer<'a> {
    fn new(
        staging: &'a Folder,
        items: &'a [Item],
        batch: &[usize],
        progress: &'a Progress,
    ) -> Self {
        let items: Vec<_> = batch.iter().map(|index| (*index, &items[*index])).collect();
        let states = items.iter().map(|_| State::Untouched).collect();
        let (open, brought) = (VecDeque::new(), Brought::default());
        Self { staging, items, states, open, progress, brought }
    }

    fn write_all(mut self, mut pieces: mpsc::Receiver<Bytes>) -> Brought {
        let files = u32::try_from(self.items.len()).expect("a batch is small");
        let mut decoder = FetchDecoder::new(files);
        let mut result = Ok(());
        while let Some(piece) = pieces.blocking_recv() {
            result = self.write_piece(&mut decoder, &piece);
            if result.is_err() {
                break;
            }
        }
        let broke_off = result.and_then(|()| decoder.finish().map_err(Stop::Stream));
        match broke_off {
            Ok(()) => {}
            Err(Stop::Stream(error)) => self.brought.broke_off = Some(error.to_string()),
            Err(Stop::Disk(error)) => {
                let message = format!("the workspace cannot be written: {error}");
                self.brought.fatal = Some(SyncProblem::about(message, true, Vec::new()));
            }
        }
        for (at, state) in self.states.iter().enumerate() {
            if let State::Writing { bytes, .. } = state {
                self.brought.came.push((self.items[at].0, *bytes));
            }
        }
        self.brought.staged.sort_unstable();
        self.brought
    }

    fn write_piece(&mut self, decoder: &mut FetchDecoder, piece: &[u8]) -> Result<(), Stop> {
        let mut input = piece;
        while let Some(event) = decoder.next(&mut input).map_err(Stop::Stream)? {
            let (at, done) = match event {
                FetchEvent::Bytes { index, bytes } => {
                    (index as usize, self.write(index as usize, bytes))
                }
                FetchEvent::End { index } => (index as usize, self.end(index as usize)),
                FetchEvent::Failed { index, is_retryable, words } => {
                    let kind = match is_retryable {
                        true => FailureKind::MayPass,
                        false => FailureKind::Permanent,
                    };
                    (index as usize, Err(WriteProblem::One(kind, words)))
                }
            };
            match done {
                Ok(()) => {}
                Err(WriteProblem::All(error)) => return Err(Stop::Disk(error)),
                Err(WriteProblem::One(kind, words)) => self.give_up(at, kind, words),
            }
        }
        Ok(())
    }

    fn give_up(&mut self, at: usize, kind: FailureKind, words: String) {
        if !matches!(self.states[at], State::Over) {
            self.states[at] = State::Over;
            self.open.retain(|open| *open != at);
            self.brought.failed.push(Failure { index: self.items[at].0, words, kind });
        }
    }

    fn write(&mut self, at: usize, piece: &[u8]) -> Result<(), WriteProblem> {
        self.open(at)?;
        let item = self.items[at].1;
        let State::Writing { file: Some(file), digester, bytes } = &mut self.states[at] else {
            // What still comes of a file that was given up.
            return Ok(());
        };
        *bytes += piece.len() as u64;
        if *bytes > item.bytes {
            let words = format!("it is longer than the announced {} bytes", item.bytes);
            return Err(WriteProblem::One(FailureKind::WrongBytes, words));
        }
        file.write_all(piece)?;
        digester.update(piece);
        self.progress.done_bytes.fetch_add(piece.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    fn open(&mut self, at: usize) -> Result<(), WriteProblem> {
        let item = self.items[at].1;
        let opened = match &mut self.states[at] {
            State::Over | State::Writing { file: Some(_), .. } => return Ok(()),
            State::Writing { file, .. } => {
                *file = Some(self.staging.append_to(&item.key())?.into());
                at
            }
            state @ State::Untouched => {
                let name = item.key();
                let file = match self.staging.create_file(&name, item.is_executable) {
                    // Of an earlier attempt.
                    Err(Errno::EXIST) => {
                        self.staging.remove(name.as_str())?;
                        self.staging.create_file(&name, item.is_executable)?
                    }
                    created => created?,
                };
                let digester = Digester::of(&item.content);
                *state = State::Writing { file: Some(file.into()), digester, bytes: 0 };
                at
            }
        };
        if self.open.len() == OPEN_FILES_MAX
            && let Some(oldest) = self.open.pop_front()
            && let State::Writing { file, .. } = &mut self.states[oldest]
        {
            *file = None;
        }
        self.open.push_back(opened);
        Ok(())
    }

    fn end(&mut self, at: usize) -> Result<(), WriteProblem> {
        self.open(at)?;
        let (index, item) = self.items[at];
        self.open.retain(|open| *open != at);
        let state = std::mem::replace(&mut self.states[at], State::Over);
        let State::Writing { digester, bytes, .. } = state else { return Ok(()) };
        let words = if bytes != item.bytes {
            format!("{bytes} bytes came of the announced {}", item.bytes)
        } else if !digester.confirms(&item.content) {
            "its bytes are not the announced ones".to_string()
        } else {
            self.brought.staged.push(index);
            self.progress.done_files.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        };
        self.brought.failed.push(Failure { index, words, kind: FailureKind::WrongBytes });
        Ok(())
    }
}

/// Why a stream is not read on.
#[derive(Debug)]
enum Stop {
    Stream(StreamError),
    Disk(io::Error),
}
