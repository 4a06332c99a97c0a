//! What an instance has done for its files, and when.
//!
//! Owner: `instance`, a part of which this is. Invariants: a sync is begun only while no turn runs;
//! a turn's end is told after its files were kept, and whatever becomes of them does not change how
//! it ended; after a stop the files are kept before the last word, unless that takes too long.
//! Absent: the work itself (`apply`, `checkpoint`).

use std::time::Duration;

use dormouse_core::id::TurnId;
use dormouse_core::limits;
use tokio::time::Instant;

use crate::ending::Phase;
use crate::files::desk::{FromFiles, Reason, SyncOrder};
use crate::files::wire::{FilesReport, SyncProblem};
use crate::instance::{Instance, LineState};

/// What of the driver's patience after a stop is left for the last word itself.
const LAST_WORD_WITHIN: Duration = Duration::from_secs(1);

const _: () = assert!(LAST_WORD_WITHIN.as_millis() < limits::STOP_REPORT_MARGIN.as_millis());

impl Instance {
    pub(crate) fn on_sync(&mut self, order: SyncOrder) {
        let is_wanted = matches!(self.phase, Phase::NotLaunched | Phase::Starting | Phase::Ready);
        if !is_wanted || self.stop.is_some() {
            return self.log.note("ignored a sync: the instance is ending");
        }
        if self.files.is_syncing(&order) || self.files.has_applied(&order) {
            return;
        }
        if self.turns.running().is_some() {
            self.log.note("a sync waits for the end of the turn");
            return self.files.keep_waiting(order);
        }
        self.begin_sync(order);
    }

    fn begin_sync(&mut self, order: SyncOrder) {
        let problem = Some("other files had to be brought first".to_string());
        self.turns.settle_files(&FilesReport { problem, ..FilesReport::default() });
        self.files.begin_sync(order);
    }

    /// A turn has ended.
    pub(crate) fn keep_files_of(&mut self, turn: TurnId) {
        if self.stop.is_none()
            && let Some(order) = self.files.take_waiting()
        {
            return self.begin_sync(order);
        }
        if self.files.wants_checkpoint(Reason::Turn(turn)) {
            self.turns.wait_for_files(turn);
            // In a stop the one at its end is for this turn as well.
            if self.stop.is_none() {
                self.files.begin_checkpoint(Reason::Turn(turn), None);
            }
        }
    }

    pub(crate) fn checkpoint_at(&self) -> Option<Instant> {
        let is_awake = matches!(self.phase, Phase::Ready) && self.stop.is_none();
        let is_heard = self.line == LineState::Welcomed;
        self.files.checkpoint_at().filter(|_| is_awake && is_heard)
    }

    pub(crate) fn checkpoint_by_clock(&mut self) {
        match self.files.wants_checkpoint(Reason::Clock) {
            true => self.files.begin_checkpoint(Reason::Clock, None),
            false => self.files.stop_clock(),
        }
    }

    /// Nothing of the agent lives any more; `kill_at` is when it would have been made to end.
    pub(crate) fn keep_files_of_the_end(&mut self, kill_at: Option<Instant>) {
        self.files.stop_clock();
        let is_heard = self.line == LineState::Welcomed;
        let margin = limits::STOP_REPORT_MARGIN - LAST_WORD_WITHIN;
        // An agent that died has its successor wait for nothing but a turn that it had answered.
        let until = match kill_at {
            Some(kill_at) => Some(kill_at.max(Instant::now()) + margin),
            None => self.turns.wait_for_files_now().then(|| Instant::now() + margin),
        };
        match until {
            Some(until) if is_heard && self.files.wants_checkpoint(Reason::End) => {
                self.files.begin_checkpoint(Reason::End, Some(until));
            }
            _ => {
                self.files.abandon();
                let problem = Some("the agent had ended".to_string());
                self.turns.settle_files(&FilesReport { problem, ..FilesReport::default() });
            }
        }
    }

    pub(crate) fn on_files(&mut self, did: FromFiles) {
        match did {
            FromFiles::Progressed => {}
            FromFiles::Synced(version, plan) => {
                let files = plan.inputs.entries().len();
                self.log.note(&format!(
                    "synced: {files} inputs, uploads up to {}, lineage {}",
                    version.uploads, plan.lineage,
                ));
            }
            FromFiles::SyncFailed(_, problem) => {
                let SyncProblem { message, paths, more, .. } = problem;
                let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
                self.log.note(&format!("not synced: {message}: {}{rest}", paths.join(", ")));
            }
            FromFiles::Checkpointed(reason, taken) => {
                let report = match taken {
                    Ok(taken) => taken.into_report(),
                    Err(error) => {
                        let problem = Some(crate::words(&error));
                        FilesReport { problem, ..FilesReport::default() }
                    }
                };
                let words = match (&report.checkpoint, &report.problem) {
                    (Some(number), None) => format!("checkpoint {number}"),
                    (Some(number), Some(problem)) => format!("checkpoint {number}; {problem}"),
                    (None, Some(problem)) => format!("no checkpoint: {problem}"),
                    (None, None) => "no checkpoint: there is nothing to keep".to_owned(),
                };
                self.log.note(&words);
                if reason != Reason::Clock {
                    self.turns.settle_files(&report);
                }
            }
        }
    }
}
