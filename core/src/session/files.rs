//! The two gates of files: no agent is executed before its workspace is whole, and no turn is
//! leased before the workspace holds what is expected of it now.
//!
//! ```text
//!  Rest ─ looked at ─▶ Looking ─ inputs listed ─▶ applied == expected? ─ yes ─▶ Proved ─▶ launch
//!   ▲    (no inputs: at once)                         │ no                        ▲     or lease,
//!   │                                                 └──▶ Syncing ─ synced ──────┘     then Rest
//!   └────── failed: wait and look again, or give the message up ◀─┘
//! ```
//!
//! Owner: `Session`. Invariants: what is applied is known of this boot alone; a proof serves one
//! launch or one lease, or both where the message was there before the look began; trouble with
//! files is no attempt of the message; a checkpoint is taken only from a workspace that was made
//! whole, of the lineage in force. Absent: bytes, lists, folders.

use crate::backoff;
use crate::cause::Cause;
use crate::command::{Answer, Command, DeniedBecause, News, Refusal, RequestOutcome, Write};
use crate::event::{CheckpointOffer, FilesProblem, FilesProgress, UploadSubmission};
use crate::id::{MessageId, RequestId, Subject, TurnId};
use crate::journal::{Because, FilesChange};
use crate::limits;
use crate::manifest::{FileKind, FilePath, FilesVersion, Manifest, ManifestDigest};
use crate::record::{CheckpointRecord, FilesRecord, StopReason, UploadRecord};
use crate::session::phase::Phase;
use crate::session::{Context, Session};
use crate::time::{Monotonic, Wall, millis};

/// What is known of the workspace in this life.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// What it holds, as its bridge has proved.
    pub(super) applied: Option<FilesVersion>,
    step: Step,
    /// Looks so far, so that a late list is told from the one that is waited for.
    looks: u64,
    /// The newest message that was there when the last look began.
    looked_for: Option<MessageId>,
    /// What is expected was found out while no inputs were declared.
    is_without_inputs: bool,
    /// Failures in a row.
    failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Step {
    #[default]
    Rest,
    /// The daemon was asked what the inputs are now.
    Looking { since: Monotonic },
    /// The bridge was told to bring the workspace to `version`.
    Syncing { version: FilesVersion, since: Monotonic, heard_at: Monotonic },
    /// As expected a moment ago.
    Proved,
    /// As expected at the launch, by a look that was for messages too.
    Launched,
}

impl Files {
    /// The line to the bridge was lost or is new, or the message that waited is gone: whatever was
    /// asked is asked again.
    pub(super) fn start_over(&mut self) {
        self.step = Step::Rest;
    }

    /// When it will have been silent for too long, while something is waited for.
    pub(super) fn overdue_at(&self) -> Option<Monotonic> {
        match self.step {
            Step::Rest | Step::Proved | Step::Launched => None,
            Step::Looking { since } => Some(since + limits::FILES_SILENT_WITHIN),
            Step::Syncing { heard_at, .. } => Some(heard_at + limits::FILES_SILENT_WITHIN),
        }
    }
}

impl Session {
    /// Whether a workspace has to hold anything at all.
    pub(super) fn needs_files(&self, ctx: &Context<'_>) -> bool {
        let policy = ctx.policy.files;
        policy.is_kept || policy.has_inputs || self.files != FilesRecord::default()
    }

    fn note_files(&mut self, change: FilesChange, ctx: &mut Context<'_>) {
        self.note(Because::Files { change }, ctx);
    }

    /// `true`: nothing is in the way of a launch or a lease. Else what is needed is on its way.
    pub(super) fn files_are_in_place(&mut self, ctx: &mut Context<'_>) -> bool {
        if !self.needs_files(ctx) {
            return true;
        }
        let files = &mut self.instance_mut().files;
        if ctx.policy.files.has_inputs && std::mem::take(&mut files.is_without_inputs) {
            // The agent was out of the config at that time.
            files.step = Step::Rest;
        }
        match files.step {
            Step::Rest => self.look_at_files(ctx),
            Step::Launched => self.look_again_unless_known(ctx),
            Step::Looking { .. } | Step::Syncing { .. } | Step::Proved => {}
        }
        self.instance().files.step == Step::Proved
    }

    /// The look before the launch will do for the messages that were there when it began.
    fn look_again_unless_known(&mut self, ctx: &mut Context<'_>) {
        let head = self.queue.head().map(|delivery| delivery.message);
        let uploads = self.files.uploads;
        let files = &mut self.instance_mut().files;
        let is_known = head.is_some_and(|head| files.looked_for >= Some(head))
            && files.applied.is_some_and(|version| version.uploads == uploads);
        if is_known {
            files.step = Step::Proved;
        } else {
            self.look_at_files(ctx);
        }
    }

    fn look_at_files(&mut self, ctx: &mut Context<'_>) {
        if !ctx.policy.files.has_inputs {
            self.instance_mut().files.is_without_inputs = true;
            return self.compare_files(Manifest::default().digest(), ctx);
        }
        let newest = self.queue.messages().last();
        let files = &mut self.instance_mut().files;
        files.looks += 1;
        files.looked_for = newest;
        files.step = Step::Looking { since: ctx.now.monotonic };
        let look = files.looks;
        ctx.effects.command(Command::ListInputs { instance: self.instance_id(), look });
    }

    fn compare_files(&mut self, inputs: ManifestDigest, ctx: &mut Context<'_>) {
        let version = FilesVersion { inputs, uploads: self.files.uploads };
        let since = ctx.now.monotonic;
        let files = &mut self.instance_mut().files;
        if files.applied == Some(version) {
            files.step = Step::Proved;
            return;
        }
        files.step = Step::Syncing { version, since, heard_at: since };
        ctx.effects.command(Command::SyncFiles { instance: self.instance_id(), version });
    }

    /// The proof was used, for a launch or a lease.
    pub(super) fn use_files(&mut self, ctx: &Context<'_>) {
        if !self.needs_files(ctx) {
            // What was found out before is old by the time that they are needed again.
            return self.instance_mut().files.start_over();
        }
        let uploads = self.files.uploads;
        let (id, phase) = (self.id.clone(), self.phase);
        let files = &mut self.instance_mut().files;
        assert_eq!(files.step, Step::Proved, "{id}: nothing goes on before its files");
        let applied = files.applied.map(|version| version.uploads);
        assert_eq!(applied, Some(uploads), "{id}: and not before the newest of them");
        files.step = if phase == Phase::Starting { Step::Launched } else { Step::Rest };
    }

    pub(super) fn inputs_listed(
        &mut self,
        look: u64,
        outcome: Result<ManifestDigest, FilesProblem>,
        ctx: &mut Context<'_>,
    ) {
        let files = &self.instance().files;
        let is_waited_for = matches!(files.step, Step::Looking { .. }) && files.looks == look;
        if !is_waited_for || !self.is_before_work() {
            ctx.effects.stale += 1;
            return;
        }
        match outcome {
            Ok(inputs) => {
                self.compare_files(inputs, ctx);
                self.go_on_with_files(ctx);
            }
            Err(problem) => self.files_failed(problem, ctx),
        }
    }

    /// In a phase in which files are waited for.
    fn is_before_work(&self) -> bool {
        matches!(self.phase, Phase::Starting | Phase::Awake)
    }

    pub(super) fn files_progressed(&mut self, progress: FilesProgress, ctx: &mut Context<'_>) {
        let now = ctx.now.monotonic;
        let Step::Syncing { heard_at, .. } = &mut self.instance_mut().files.step else {
            ctx.effects.stale += 1;
            return;
        };
        *heard_at = now;
        for message in self.queue.messages() {
            ctx.effects.tell(message, News::Syncing { progress });
        }
    }

    pub(super) fn files_synced(&mut self, version: FilesVersion, ctx: &mut Context<'_>) {
        let now = ctx.now.monotonic;
        let files = &mut self.instance_mut().files;
        files.applied = Some(version);
        files.failures = 0;
        let Step::Syncing { version: wanted, since, .. } = files.step else { return };
        if wanted != version || !self.is_before_work() {
            return;
        }
        let took_ms = millis(now.since(since));
        self.note_files(FilesChange::InPlace { took_ms }, ctx);
        // Uploads that came meanwhile are still missing.
        self.compare_files(version.inputs, ctx);
        self.go_on_with_files(ctx);
    }

    /// Goes on with what waited for the files, if they are there.
    fn go_on_with_files(&mut self, ctx: &mut Context<'_>) {
        match self.phase {
            Phase::Starting => {
                if self.files_are_in_place(ctx) {
                    self.launch(ctx);
                }
            }
            Phase::Awake => self.deliver_next(ctx),
            Phase::Draining | Phase::Stopping | Phase::Asleep | Phase::Backoff | Phase::Tripped => {
                unreachable!("{}: files are waited for before work", self.id)
            }
        }
    }

    pub(super) fn files_sync_failed(
        &mut self,
        version: FilesVersion,
        problem: FilesProblem,
        ctx: &mut Context<'_>,
    ) {
        let is_waited_for = matches!(
            self.instance().files.step,
            Step::Syncing { version: wanted, .. } if wanted == version
        );
        if !is_waited_for || !self.is_before_work() {
            ctx.effects.stale += 1;
            return;
        }
        self.files_failed(problem, ctx);
    }

    /// Nothing was heard for too long, while a launch or a lease waits. `true`: it was so.
    pub(super) fn give_up_files(&mut self, ctx: &mut Context<'_>) -> bool {
        let overdue_at = self.instance().files.overdue_at();
        if overdue_at.is_none_or(|at| ctx.now.monotonic < at) {
            return false;
        }
        let message = "nothing was heard of the files for too long".to_owned();
        let problem = FilesProblem { cause: Cause::SyncFailed, message, retryable: true };
        self.files_failed(problem, ctx);
        true
    }

    fn files_failed(&mut self, problem: FilesProblem, ctx: &mut Context<'_>) {
        let files = &mut self.instance_mut().files;
        files.step = Step::Rest;
        files.failures = files.failures.saturating_add(1);
        let failures = files.failures;
        let FilesProblem { cause, message, retryable } = problem;
        let is_starting = self.phase == Phase::Starting;
        if is_starting && retryable {
            let change = FilesChange::Failed { cause, message, retry_at: None };
            let because = Because::Files { change };
            self.wake_wanted = false;
            return self.begin_stop(StopReason::FilesFailed, because, ctx);
        }
        let retry_at = retryable.then(|| {
            let pause = backoff::pause_after(failures.saturating_add(1), &self.id);
            self.retry = Some(ctx.now.monotonic + pause);
            ctx.now.wall + pause
        });
        self.note_files(FilesChange::Failed { cause, message: message.clone(), retry_at }, ctx);
        self.settle_head(cause, message, retry_at, ctx);
        if is_starting && self.queue.is_empty() {
            self.wake_wanted = false;
            return self.begin_stop(StopReason::FilesRefused, Because::NothingLeftToDo, ctx);
        }
        // The next message may find what this one missed.
        self.go_on_with_files(ctx);
    }

    /// The message that waited for the files: tried again later, not counted; or given up. It never
    /// was with the agent.
    fn settle_head(
        &mut self,
        cause: Cause,
        detail: String,
        retry_at: Option<Wall>,
        ctx: &mut Context<'_>,
    ) {
        let Some(head) = self.queue.head() else { return };
        let turn = TurnId { message: head.message, attempt: head.attempts };
        if let Some(at) = retry_at {
            let attempt = turn.attempt + 1;
            return ctx.effects.tell(turn.message, News::Retrying { attempt, at, cause });
        }
        assert!(self.queue.remove_pending(turn.message), "{turn} waits, and is with nobody");
        self.bury(turn, cause, detail, None, ctx);
    }

    pub(super) fn upload(
        &mut self,
        request: RequestId,
        upload: UploadSubmission,
        ctx: &mut Context<'_>,
    ) {
        if upload.subject != self.subject && !upload.is_operator {
            return ctx.effects.answer(request, Answer::Refused(Refusal::NotYourSession));
        }
        if !ctx.is_configured {
            return ctx.effects.answer(request, Answer::Refused(Refusal::UnknownAgent));
        }
        let number = self.keep_upload(upload.path, upload.file, upload.subject, ctx);
        ctx.effects.answer(request, Answer::Uploaded { number });
    }

    pub(super) fn keep_upload(
        &mut self,
        path: FilePath,
        file: Option<FileKind>,
        by: Subject,
        ctx: &mut Context<'_>,
    ) -> u64 {
        self.files.uploads += 1;
        self.dirty = true;
        let (session, number) = (self.id.clone(), self.files.uploads);
        let (at, is_deleted) = (ctx.now.wall, file.is_none());
        let record = UploadRecord { session, number, path: path.clone(), file, at, by: by.clone() };
        ctx.effects.write(Write::InsertUpload(record));
        self.note_files(FilesChange::Uploaded { path, is_deleted, by }, ctx);
        number
    }

    pub(super) fn checkpoint_offered(
        &mut self,
        request: RequestId,
        offer: CheckpointOffer,
        ctx: &mut Context<'_>,
    ) {
        let is_whole = self.instance().files.applied.is_some();
        let is_ours = offer.lineage == self.files.lineage
            && (self.files.floor..=self.files.uploads).contains(&offer.uploads);
        if !is_whole || !is_ours {
            let refusal = if is_whole { Refusal::OtherLineage } else { Refusal::NotWhole };
            return ctx.effects.answer(request, Answer::Refused(refusal));
        }
        self.files.checkpoints += 1;
        let number = self.files.checkpoints;
        self.files.restore = number;
        self.files.floor = offer.uploads;
        self.dirty = true;
        ctx.effects.write(Write::InsertCheckpoint {
            record: CheckpointRecord {
                session: self.id.clone(),
                number,
                manifest: offer.manifest,
                uploads: offer.uploads,
                files: offer.files,
                bytes: offer.bytes,
                at: ctx.now.wall,
                generation: self.generation,
                turn: offer.turn,
            },
            keep: ctx.policy.files.keep,
        });
        let (files, bytes) = (offer.files, offer.bytes);
        self.note_files(FilesChange::CheckpointMade { number, files, bytes }, ctx);
        ctx.effects.answer(request, Answer::CheckpointMade { number });
    }

    /// The next life begins with that checkpoint. What a living one makes until then is its own.
    pub(super) fn restore_requested(
        &mut self,
        request: RequestId,
        checkpoint: u64,
        by: Subject,
        ctx: &mut Context<'_>,
    ) {
        let newest = self.files.checkpoints;
        let is_kept = checkpoint.saturating_add(ctx.policy.files.keep) > newest;
        if !(1..=newest).contains(&checkpoint) || !is_kept {
            let denied = RequestOutcome::Denied(DeniedBecause::NoSuchCheckpoint);
            return ctx.effects.answer(request, Answer::Requested(denied));
        }
        self.files.restore = checkpoint;
        self.files.floor = self.files.uploads;
        self.files.lineage += 1;
        self.dirty = true;
        let because = Because::Files { change: FilesChange::RestoreRequested { checkpoint, by } };
        let stop = StopReason::OperatorRestart;
        if self.phase.has_instance() {
            self.want_wake();
        }
        match self.phase {
            Phase::Starting => self.begin_stop(stop, because, ctx),
            Phase::Awake => self.stop_or_drain(stop, because, ctx),
            Phase::Asleep | Phase::Backoff | Phase::Tripped => self.note(because, ctx),
            Phase::Draining | Phase::Stopping => self.note(because, ctx),
        }
        let waiting = self.queue.len();
        ctx.effects.answer(request, Answer::Requested(RequestOutcome::Accepted { waiting }));
    }
}
