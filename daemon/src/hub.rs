//! What senders who wait are told: the newest status and the text so far of each message that runs
//! or is watched.
//!
//! ```text
//!  engine ── notices ──▶ Entry { statuses, attempt, text, end } ◀── pulled by each watcher
//! ```
//!
//! Owner: the engine posts, the API's handlers pull. Invariants: a watcher that does not read costs
//! nothing but the text that is kept once; offsets count bytes of one attempt's text from 0 without
//! gap; texts of two attempts are never joined (FAULTS I12). An entry lives while its message is
//! with an agent, or somebody watches it.
//! Absent: durability. What is here can be lost; the store answers for ended messages.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use dormouse_core::command::{News, Notice};
use dormouse_core::id::MessageId;
use dormouse_core::time::millis;
use tokio::sync::Notify;

use crate::api::shape::StatusState;

/// Statuses that are kept of one message.
const STATUSES_MAX: usize = 16;
/// The most text that one update carries.
const PIECE_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, Default, Clone)]
pub(crate) struct Hub {
    entries: Arc<Mutex<HashMap<MessageId, Arc<Entry>>>>,
}

#[derive(Debug, Default)]
struct Entry {
    live: Mutex<Live>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Live {
    /// The newest ones, oldest first; a watcher that is slower than these misses only their elders.
    statuses: VecDeque<StatusState>,
    status_count: u64,
    attempt: u32,
    text: String,
    is_ended: bool,
}

/// What a watcher gets next.
#[derive(Debug, Clone)]
pub(crate) enum Update {
    Status(StatusState),
    Delta {
        attempt: u32,
        end_offset: u64,
        text: String,
    },
    /// The store says how.
    End,
}

/// Where a watcher is: after this many bytes of this attempt's text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) attempt: u32,
    pub(crate) offset: u64,
}

#[derive(Debug)]
pub(crate) struct Watcher {
    hub: Hub,
    message: MessageId,
    entry: Arc<Entry>,
    place: Place,
    status_seen: u64,
    is_over: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A watcher that panicked cannot have left half a change: every change is one assignment or
    // push.
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Hub {
    /// Starts to watch; `place` is where an earlier watcher of the same client was.
    pub(crate) fn watch(&self, message: MessageId, place: Place) -> Watcher {
        let entry = Arc::clone(lock(&self.entries).entry(message).or_default());
        Watcher { hub: self.clone(), message, entry, place, status_seen: 0, is_over: false }
    }

    /// Called by the engine alone, in the order of the core's decisions.
    pub(crate) fn post(&self, notice: Notice) {
        let Notice { message, news } = notice;
        // A turn that was found running has no delivery; its first piece stands for it.
        let is_of_a_turn = matches!(news, News::Delivered { .. } | News::Delta { .. });
        let ends = matches!(news, News::Answered { .. } | News::Dead { .. } | News::Cancelled);
        let entry = {
            let mut entries = lock(&self.entries);
            match (ends, is_of_a_turn) {
                (true, _) => entries.remove(&message),
                (false, true) => Some(Arc::clone(entries.entry(message).or_default())),
                (false, false) => entries.get(&message).map(Arc::clone),
            }
        };
        if let Some(entry) = entry {
            lock(&entry.live).apply(news);
            entry.changed.notify_waiters();
        }
    }

    /// Everything not ended is forgotten: the engine starts over from the store.
    pub(crate) fn forget_turns(&self) {
        lock(&self.entries).retain(|_, entry| {
            let mut live = lock(&entry.live);
            live.attempt = 0;
            live.text.clear();
            Arc::strong_count(entry) > 1
        });
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        lock(&self.entries).len()
    }
}

impl Live {
    fn apply(&mut self, news: News) {
        match news {
            News::Queued { ahead } => self.say(StatusState::Queued { ahead }),
            News::InLine { ahead } => self.say(StatusState::InLine { ahead }),
            News::Waking { estimate } => {
                self.say(StatusState::Waking { estimate_ms: estimate.map(millis) });
            }
            News::Syncing { progress } => self.say(StatusState::Syncing {
                done_files: progress.done_files,
                files: progress.files,
                done_bytes: progress.done_bytes,
                bytes: progress.bytes,
            }),
            News::Delivered { attempt } => {
                self.begin(attempt);
                self.say(StatusState::Delivered { attempt });
            }
            News::Delta { attempt, offset, text } => {
                if self.attempt != attempt {
                    self.begin(attempt);
                }
                // The core passes on only what is new; after a restart it begins at 0 again.
                if offset == self.text.len() as u64 {
                    self.text.push_str(&text);
                }
            }
            News::Slow { silent } => self.say(StatusState::Slow { silent_ms: millis(silent) }),
            News::Retrying { attempt, at, cause } => {
                self.say(StatusState::Retrying { attempt, at_ms: at.0, cause });
            }
            News::WaitingToRestart { at, cause } => {
                self.say(StatusState::WaitingToRestart { at_ms: at.0, cause });
            }
            News::DaemonEnding => self.say(StatusState::DaemonEnding),
            News::Answered { attempt, text, exit_code: _ } => {
                if self.attempt != attempt {
                    self.begin(attempt);
                }
                // What was not streamed goes out as a last piece. A reply that differs is only in
                // the end itself.
                if text.starts_with(&self.text) {
                    self.text = text;
                }
                self.is_ended = true;
            }
            News::Dead { .. } | News::Cancelled => self.is_ended = true,
        }
    }

    fn say(&mut self, status: StatusState) {
        if self.statuses.len() == STATUSES_MAX {
            self.statuses.pop_front();
        }
        self.statuses.push_back(status);
        self.status_count += 1;
    }

    fn begin(&mut self, attempt: u32) {
        self.attempt = attempt;
        self.text.clear();
    }
}

impl Watcher {
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// The next thing to tell; waits for it. After the end there is nothing more.
    pub(crate) async fn next(&mut self) -> Option<Update> {
        if self.is_over {
            return None;
        }
        loop {
            let entry = Arc::clone(&self.entry);
            let changed = entry.changed.notified();
            tokio::pin!(changed);
            // Registered before the look, so that a change between look and wait is not missed.
            changed.as_mut().enable();
            if let Some(update) = self.look() {
                return Some(update);
            }
            changed.await;
        }
    }

    fn look(&mut self) -> Option<Update> {
        let entry = Arc::clone(&self.entry);
        let live = lock(&entry.live);
        let first_kept = live.status_count - live.statuses.len() as u64;
        let next = self.status_seen.max(first_kept);
        let place = usize::try_from(next - first_kept).unwrap_or(usize::MAX);
        if let Some(status) = live.statuses.get(place) {
            self.status_seen = next + 1;
            return Some(Update::Status(status.clone()));
        }
        if live.attempt != 0 && live.attempt != self.place.attempt {
            self.place = Place { attempt: live.attempt, offset: 0 };
        }
        let piece = piece_after(&live.text, self.place.offset);
        if live.attempt == self.place.attempt && !piece.is_empty() {
            self.place.offset += piece.len() as u64;
            let (attempt, end_offset) = (self.place.attempt, self.place.offset);
            return Some(Update::Delta { attempt, end_offset, text: piece.to_owned() });
        }
        self.is_over = live.is_ended;
        live.is_ended.then_some(Update::End)
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let mut entries = lock(&self.hub.entries);
        // The map's, this watcher's: nobody else looks. A running turn keeps its entry for those
        // who come later.
        let is_last = Arc::strong_count(&self.entry) == 2;
        if is_last && lock(&self.entry.live).attempt == 0 {
            entries.remove(&self.message);
        }
    }
}

/// Up to `PIECE_BYTES_MAX` bytes of `text` from `offset`, cut at a character's border.
pub(crate) fn piece_after(text: &str, offset: u64) -> &str {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    if !text.is_char_boundary(start) {
        return "";
    }
    let rest = &text[start..];
    &rest[..rest.floor_char_boundary(PIECE_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: MessageId = MessageId(7);

    fn post(hub: &Hub, news: News) {
        hub.post(Notice { message: MESSAGE, news });
    }

    fn delta(attempt: u32, offset: u64, text: &str) -> News {
        News::Delta { attempt, offset, text: text.to_owned() }
    }

    /// All that can be had without waiting, in short.
    fn drain(watcher: &mut Watcher) -> Vec<String> {
        let mut said = Vec::new();
        while !watcher.is_over
            && let Some(update) = watcher.look()
        {
            said.push(match update {
                Update::Status(_) => "status".to_owned(),
                Update::Delta { attempt, end_offset, text } => {
                    format!("{attempt}.{end_offset} {text}")
                }
                Update::End => "end".to_owned(),
            });
        }
        said
    }

    #[test]
    fn a_late_watcher_gets_the_whole_text_and_a_resumed_one_the_rest() {
        let hub = Hub::default();
        post(&hub, News::Delivered { attempt: 1 });
        post(&hub, delta(1, 0, "hello "));
        post(&hub, delta(1, 6, "world"));
        let mut late = hub.watch(MESSAGE, Place::default());
        assert_eq!(drain(&mut late), ["status", "1.11 hello world"]);
        let mut resumed = hub.watch(MESSAGE, Place { attempt: 1, offset: 6 });
        assert_eq!(drain(&mut resumed), ["status", "1.11 world"]);
    }

    #[test]
    fn a_turn_that_was_found_running_is_kept_from_its_first_piece_on() {
        let hub = Hub::default();
        post(&hub, delta(1, 0, "what the bridge "));
        post(&hub, delta(1, 16, "repeated"));
        let mut resumed = hub.watch(MESSAGE, Place { attempt: 1, offset: 5 });
        assert_eq!(drain(&mut resumed), ["1.24 the bridge repeated"]);
    }

    #[test]
    fn a_new_attempt_starts_its_text_anew() {
        let hub = Hub::default();
        post(&hub, News::Delivered { attempt: 1 });
        post(&hub, delta(1, 0, "par"));
        let mut watcher = hub.watch(MESSAGE, Place::default());
        drain(&mut watcher);
        post(&hub, News::Delivered { attempt: 2 });
        post(&hub, delta(2, 0, "whole"));
        post(&hub, News::Answered { attempt: 2, text: "whole".to_owned(), exit_code: None });
        assert_eq!(drain(&mut watcher), ["status", "2.5 whole", "end"]);
        assert_eq!(hub.len(), 0, "an ended message is forgotten");
    }

    #[test]
    fn no_status_is_skipped_by_a_watcher_that_keeps_up() {
        let hub = Hub::default();
        let mut watcher = hub.watch(MESSAGE, Place::default());
        for ahead in 0..3 {
            post(&hub, News::Queued { ahead });
        }
        assert_eq!(drain(&mut watcher), ["status"; 3]);
        for ahead in 0..STATUSES_MAX + 5 {
            post(&hub, News::Queued { ahead });
        }
        assert_eq!(drain(&mut watcher).len(), STATUSES_MAX);
    }

    #[test]
    fn entries_go_when_nobody_watches_and_nothing_runs() {
        let hub = Hub::default();
        post(&hub, News::Queued { ahead: 3 });
        assert_eq!(hub.len(), 0, "nobody watches a queued message");
        drop(hub.watch(MESSAGE, Place::default()));
        assert_eq!(hub.len(), 0);
        post(&hub, News::Delivered { attempt: 1 });
        drop(hub.watch(MESSAGE, Place::default()));
        assert_eq!(hub.len(), 1, "a running turn is kept");
    }

    #[tokio::test]
    async fn a_waiting_watcher_is_woken() {
        let hub = Hub::default();
        let mut watcher = hub.watch(MESSAGE, Place::default());
        let waiting = tokio::spawn(async move { watcher.next().await });
        tokio::task::yield_now().await;
        post(&hub, News::Cancelled);
        assert!(matches!(waiting.await.unwrap(), Some(Update::End)));
    }

    #[test]
    fn pieces_are_cut_at_characters() {
        let text = "é".repeat(PIECE_BYTES_MAX);
        let piece = piece_after(&text, 0);
        assert!(piece.len() <= PIECE_BYTES_MAX && text.is_char_boundary(piece.len()));
        assert_eq!(piece_after("é", 1), "", "inside a character there is nothing to say");
        assert_eq!(piece_after("abc", 99), "");
    }
}
