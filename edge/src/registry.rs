//! The lines to the bridges: who is connected, and the queue of frames to each.
//!
//! ```text
//!  connection or fake bridge ── attach ──▶ Line ── report ──▶ core events ──▶ engine
//!                                 ▲  queue of frames                            │
//!                                 └───────────── send · send_to_boot ◀──────────┘
//! ```
//!
//! Owner: one registry per daemon; whoever attached owns its line. Invariants: `BridgeAttached` is
//! the first event of a line, and when the line is dropped exactly one `BridgeDetached` is its
//! last; a newer line of the same boot is attached only after the older one's `BridgeDetached`. A
//! frame that does not name a boot goes to the boot that was welcomed last. Absent: any decision
//! about who is welcome, and keeping frames for bridges that are away (commands are derived anew
//! when they come back).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_bridge::files::wire::SyncProblem;
use dormouse_bridge::frames::{FromBridge, ToBridge};
use dormouse_core::cause::Cause;
use dormouse_core::event::{AgentState, Event, FilesProblem, FilesProgress, TurnOutcome};
use dormouse_core::id::{BootId, InstanceId, TurnId};
use dormouse_core::limits;
use tokio::sync::{mpsc, oneshot, watch};

/// Frames that wait for one bridge; one more, and its line is cut.
const QUEUED_FRAMES_MAX: usize = 64;

#[derive(Debug, Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    events: mpsc::Sender<Event>,
    lines: Mutex<BTreeMap<InstanceId, LinesOfInstance>>,
    line_count: AtomicU64,
}

#[derive(Default)]
struct LinesOfInstance {
    /// The boot that was sent a welcome last, while it is connected.
    admitted: Option<BootId>,
    by_boot: BTreeMap<BootId, Slot>,
}

/// A line's place. It stays until the line's last event is out.
struct Slot {
    number: u64,
    /// `None` once the line is cut.
    open: Option<OpenSlot>,
    /// Closes when the place is free.
    gone: watch::Receiver<()>,
}

struct OpenSlot {
    frames: mpsc::Sender<ToBridge>,
    /// Dropped to cut the line.
    _cut_when_dropped: oneshot::Sender<()>,
}

/// Who says hello, after the token was checked.
#[derive(Debug, Clone)]
pub(crate) struct Introduction {
    pub(crate) instance: InstanceId,
    pub(crate) boot: BootId,
    pub(crate) agent: AgentState,
    pub(crate) held: Vec<TurnId>,
}

/// One attached bridge, as the one who speaks for it holds it.
#[derive(Debug)]
pub(crate) struct Line {
    /// Frames for the bridge. `None` from it means that the line is cut.
    pub(crate) frames: mpsc::Receiver<ToBridge>,
    /// Resolves when the line is cut.
    pub(crate) cut: oneshot::Receiver<()>,
    pub(crate) reporter: Reporter,
    pub(crate) place: Place,
}

/// Turns frames into events of the instance that the line was attached for.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    instance: InstanceId,
    events: mpsc::Sender<Event>,
}

/// Holds a line's place; dropping it reports the detachment and then frees the place.
#[derive(Debug)]
pub(crate) struct Place {
    instance: InstanceId,
    boot: BootId,
    number: u64,
    announced: bool,
    shared: Arc<Shared>,
    gone: Option<watch::Sender<()>>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum ReportError {
    #[error("a second hello on one line")]
    SecondHello,
    #[error("{what} has {bytes} bytes, more than the {max} allowed")]
    TooLarge { what: &'static str, bytes: usize, max: usize },
    #[error("the engine takes no events any more")]
    EngineGone,
}

impl Registry {
    /// `events` is where every line reports to.
    pub fn new(events: mpsc::Sender<Event>) -> Self {
        Self {
            shared: Arc::new(Shared {
                events,
                lines: Mutex::new(BTreeMap::new()),
                line_count: AtomicU64::new(0),
            }),
        }
    }

    /// Queues a frame for the boot that was welcomed last. `false`: it is not connected (any more).
    #[must_use]
    pub fn send(&self, instance: &InstanceId, frame: ToBridge) -> bool {
        let mut lines = self.shared.lock();
        let Some(of_instance) = lines.get_mut(instance) else { return false };
        let Some(boot) = of_instance.admitted else { return false };
        of_instance.send(boot, frame)
    }

    /// Queues a frame for one boot of an instance; a welcome makes it the one that `send` reaches.
    #[must_use]
    pub fn send_to_boot(&self, instance: &InstanceId, boot: BootId, frame: ToBridge) -> bool {
        let mut lines = self.shared.lock();
        lines.get_mut(instance).is_some_and(|of_instance| of_instance.send(boot, frame))
    }

    /// Cuts every line. Bridges dial again; each line's `BridgeDetached` is reported.
    pub fn disconnect_all(&self) {
        for of_instance in self.shared.lock().values_mut() {
            for slot in of_instance.by_boot.values_mut() {
                slot.open = None;
            }
        }
    }

    /// How many bridges are connected.
    pub fn connected(&self) -> usize {
        let lines = self.shared.lock();
        lines.values().flat_map(|of| of.by_boot.values()).filter(|slot| slot.open.is_some()).count()
    }

    /// Waits for an older line of the same boot to be gone, takes its place, and reports the
    /// attachment.
    pub(crate) async fn attach(&self, who: Introduction) -> Result<Line, ReportError> {
        let mut line = loop {
            match self.shared.take_place(&who) {
                Ok(line) => break line,
                // An error means that the sender is dropped, which is what we wait for.
                Err(mut gone) => while gone.changed().await.is_ok() {},
            }
        };
        let Introduction { instance, boot, agent, held } = who;
        let attached = Event::BridgeAttached { instance, boot, agent, held };
        self.shared.events.send(attached).await.map_err(|_| ReportError::EngineGone)?;
        line.place.announced = true;
        Ok(line)
    }
}

impl LinesOfInstance {
    fn send(&mut self, boot: BootId, frame: ToBridge) -> bool {
        let Some(slot) = self.by_boot.get_mut(&boot) else { return false };
        let Some(open) = &slot.open else { return false };
        let is_welcome = matches!(frame, ToBridge::Welcome { .. });
        if open.frames.try_send(frame).is_err() {
            // Too slow to keep; what it missed is derived anew when it is back.
            slot.open = None;
            return false;
        }
        if is_welcome {
            self.admitted = Some(boot);
        }
        true
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, LinesOfInstance>> {
        // Nothing in this file can panic half-way through a change of the map.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place, or what to wait for after the older line in it was cut.
    fn take_place(self: &Arc<Self>, who: &Introduction) -> Result<Line, watch::Receiver<()>> {
        let mut lines = self.lock();
        let of_instance = lines.entry(who.instance.clone()).or_default();
        if let Some(older) = of_instance.by_boot.get_mut(&who.boot) {
            older.open = None;
            return Err(older.gone.clone());
        }
        let (frames_in, frames_out) = mpsc::channel(QUEUED_FRAMES_MAX);
        let (cut_when_dropped, cut) = oneshot::channel();
        let (gone_in, gone_out) = watch::channel(());
        let number = self.line_count.fetch_add(1, Ordering::Relaxed);
        let open = OpenSlot { frames: frames_in, _cut_when_dropped: cut_when_dropped };
        of_instance.by_boot.insert(who.boot, Slot { number, open: Some(open), gone: gone_out });
        Ok(Line {
            frames: frames_out,
            cut,
            reporter: Reporter { instance: who.instance.clone(), events: self.events.clone() },
            place: Place {
                instance: who.instance.clone(),
                boot: who.boot,
                number,
                announced: false,
                shared: Arc::clone(self),
                gone: Some(gone_in),
            },
        })
    }

    fn close(&self, instance: &InstanceId, boot: BootId, number: u64) {
        let mut lines = self.lock();
        let slot = lines.get_mut(instance).and_then(|of| of.by_boot.get_mut(&boot));
        if let Some(slot) = slot.filter(|slot| slot.number == number) {
            slot.open = None;
        }
    }

    fn free(&self, instance: &InstanceId, boot: BootId, number: u64) {
        let mut lines = self.lock();
        let Some(of_instance) = lines.get_mut(instance) else { return };
        if of_instance.by_boot.get(&boot).is_some_and(|slot| slot.number == number) {
            of_instance.by_boot.remove(&boot);
            of_instance.admitted = of_instance.admitted.filter(|admitted| *admitted != boot);
        }
        if of_instance.by_boot.is_empty() {
            lines.remove(instance);
        }
    }
}

impl Place {
    pub(crate) fn instance(&self) -> &InstanceId {
        &self.instance
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let (shared, gone) = (Arc::clone(&self.shared), self.gone.take());
        let (instance, boot, number) = (self.instance.clone(), self.boot, self.number);
        shared.close(&instance, boot, number);
        let detached = Event::BridgeDetached { instance: instance.clone(), boot };
        let unsent = if self.announced { shared.events.try_send(detached).err() } else { None };
        match (unsent, tokio::runtime::Handle::try_current()) {
            (Some(mpsc::error::TrySendError::Full(detached)), Ok(runtime)) => {
                runtime.spawn(async move {
                    if shared.events.send(detached).await.is_err() {
                        tracing::debug!(%instance, "detached after the engine's end");
                    }
                    shared.free(&instance, boot, number);
                    drop(gone);
                });
            }
            // Sent, or nobody is left to be told.
            (_, _) => shared.free(&instance, boot, number),
        }
    }
}

impl Reporter {
    /// Waits while the engine is busy, so that only this bridge's own line is held up.
    pub(crate) async fn report(&self, said: FromBridge) -> Result<(), ReportError> {
        let event = self.event_of(said)?;
        self.events.send(event).await.map_err(|_| ReportError::EngineGone)
    }

    fn event_of(&self, said: FromBridge) -> Result<Event, ReportError> {
        let instance = self.instance.clone();
        Ok(match said {
            FromBridge::Hello(_) => return Err(ReportError::SecondHello),
            FromBridge::Ready => Event::InstanceReady { instance },
            FromBridge::Delta { turn, offset, text } => {
                within("a piece of a reply", text.len(), limits::DELTA_BYTES_MAX)?;
                Event::TurnProgressed { instance, turn, offset, text }
            }
            FromBridge::Ended { turn, outcome, .. } => {
                if let TurnOutcome::Answered { text, .. } = &outcome {
                    within("a reply", text.len(), limits::REPLY_BYTES_MAX)?;
                }
                Event::TurnEnded { instance, turn, outcome }
            }
            FromBridge::Hold { name, for_ms } => {
                within("a hold's name", name.len(), limits::HOLD_NAME_BYTES_MAX)?;
                Event::HoldTaken { instance, name, for_ms }
            }
            FromBridge::Syncing { done_files, files, done_bytes, bytes } => {
                let progress = FilesProgress { done_files, files, done_bytes, bytes };
                Event::FilesProgressed { instance, progress }
            }
            FromBridge::Synced { version } => Event::FilesSynced { instance, version },
            FromBridge::SyncFailed { version, problem } => {
                let problem = files_problem(&problem);
                Event::FilesSyncFailed { instance, version, problem }
            }
            FromBridge::Exited { mut evidence } => {
                // Cut, not refused: the last word of an instance must not be lost to a formality.
                cut_to_tail(&mut evidence.log_tail, limits::LOG_TAIL_BYTES_MAX);
                Event::InstanceExited { instance, evidence }
            }
        })
    }
}

/// A bridge's words and the paths that they are about, in one sentence.
fn files_problem(problem: &SyncProblem) -> FilesProblem {
    let SyncProblem { message, retryable, paths, more } = problem;
    let mut words = message.clone();
    if !paths.is_empty() {
        words.push_str(&format!(" ({}", paths.join(", ")));
        if *more > 0 {
            words.push_str(&format!(", and {more} more"));
        }
        words.push(')');
    }
    FilesProblem { cause: Cause::SyncFailed, message: words, retryable: *retryable }
}

fn within(what: &'static str, bytes: usize, max: usize) -> Result<(), ReportError> {
    if bytes > max { Err(ReportError::TooLarge { what, bytes, max }) } else { Ok(()) }
}

/// Keeps the last `bytes_max` bytes, or a few less, so that no character is cut.
pub(crate) fn cut_to_tail(text: &mut String, bytes_max: usize) {
    let surplus = text.len().saturating_sub(bytes_max);
    let from = (surplus..=text.len()).find(|at| text.is_char_boundary(*at));
    text.drain(..from.expect("a text's end is a boundary"));
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.lock();
        let boots = lines.iter().map(|(id, of)| (id, of.by_boot.keys().collect::<Vec<_>>()));
        f.debug_map().entries(boots).finish()
    }
}
