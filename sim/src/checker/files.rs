//! The judge of files: no turn before them, and nothing good overwritten.
//!
//! Owner: `Checker`. Invariants: what a session is to find is known from committed writes and from
//! what really changed outside; what it finds, from its workspace. Absent: who decides.

use std::collections::BTreeMap;

use dormouse_core::id::{AgentName, InstanceId, MessageId, SessionId, TurnId};
use dormouse_core::policy::FilesPolicy;
use dormouse_core::record::{CheckpointRecord, FilesRecord};

use super::Checker;
use crate::files::{Content, Workspace};
use crate::violation::{Checked, Invariant};

#[derive(Debug, Default)]
pub(super) struct FilesBooks {
    /// When an agent's inputs became other ones.
    changes: BTreeMap<AgentName, Vec<u64>>,
    /// From when on a turn's inputs have to be: its message was accepted, or the turn before it
    /// ended.
    fresh_since: BTreeMap<SessionId, u64>,
    accepted_at: BTreeMap<MessageId, u64>,
    /// As of the newest row.
    records: BTreeMap<SessionId, FilesRecord>,
    /// As of the lease of a turn, with what was declared then.
    at_lease: BTreeMap<TurnId, (FilesRecord, FilesPolicy)>,
    /// The work in what would be restored.
    kept_work: BTreeMap<SessionId, u64>,
}

impl FilesBooks {
    pub(super) fn accepted(&mut self, message: MessageId, at: u64) {
        self.accepted_at.insert(message, at);
    }

    pub(super) fn put(&mut self, session: &SessionId, record: FilesRecord) {
        self.records.insert(session.clone(), record);
    }

    pub(super) fn uploaded(&mut self, session: &SessionId, number: u64) {
        self.records.entry(session.clone()).or_default().uploads = number;
    }

    /// What is left of an agent that is not configured any more has nothing declared.
    pub(super) fn leased(&mut self, session: &SessionId, turn: TurnId, policy: FilesPolicy) {
        let record = self.records.get(session).copied().unwrap_or_default();
        self.at_lease.insert(turn, (record, policy));
    }

    pub(super) fn turn_ended(&mut self, session: &SessionId, at: u64) {
        self.fresh_since.insert(session.clone(), at);
    }
}

impl Checker {
    pub(crate) fn inputs_changed(&mut self, agent: &AgentName, at: u64) {
        self.files.changes.entry(agent.clone()).or_default().push(at);
    }

    /// I11: a turn's first byte reaches an agent whose workspace is whole, of the lineage in force,
    /// with every upload that there was, and with inputs no older than the turn's own wish.
    pub(crate) fn check_files(
        &self,
        turn: TurnId,
        instance: &InstanceId,
        workspace: Option<Workspace>,
    ) -> Checked {
        let session = &instance.session;
        let books = &self.files;
        let (record, files) = books.at_lease.get(&turn).copied().unwrap_or_default();
        if !files.has_inputs && !files.is_kept && record == FilesRecord::default() {
            return Ok(());
        }
        let Workspace { content, lineage } = workspace.unwrap_or_default();
        Invariant::FilesBeforeWork.check(content.is_whole && lineage == record.lineage, || {
            format!("{turn} reached {instance}, whose workspace is {content:?} of {lineage}")
        })?;
        Invariant::FilesBeforeWork.check(content.uploads >= record.uploads, || {
            format!("{turn} reached {instance} before upload {}: {content:?}", record.uploads)
        })?;
        if !files.has_inputs {
            return Ok(());
        }
        // State n was there until the change that made it n + 1.
        let changes = books.changes.get(session.agent()).map_or(&[][..], Vec::as_slice);
        let index = usize::try_from(content.inputs).unwrap_or(usize::MAX);
        let replaced_at = index.checked_sub(1).and_then(|index| changes.get(index)).copied();
        let accepted_at = books.accepted_at.get(&turn.message).copied().unwrap_or(0);
        let since = books.fresh_since.get(session).copied().unwrap_or(0).max(accepted_at);
        let is_fresh = content.inputs > 0 && replaced_at.is_none_or(|at| at >= since);
        Invariant::FilesBeforeWork.check(is_fresh, || {
            format!("{turn} reached {instance} with inputs {} of the past", content.inputs)
        })
    }

    /// A checkpoint is of a whole workspace, and has no less work than the one that it follows.
    pub(crate) fn check_checkpoint(
        &mut self,
        record: &CheckpointRecord,
        content: Content,
    ) -> Checked {
        let session = &record.session;
        Invariant::NothingOverwritten.check(content.is_whole, || {
            format!("checkpoint {} of {session} is of {content:?}", record.number)
        })?;
        let before = self.files.kept_work.insert(session.clone(), content.work).unwrap_or(0);
        Invariant::NothingOverwritten.check(content.work >= before, || {
            format!("checkpoint {} of {session}: {content:?} after work {before}", record.number)
        })
    }

    /// Somebody asked for an older one: what it has is what is kept from now on.
    pub(crate) fn restore_begins(&mut self, session: &SessionId, work: u64) {
        self.files.kept_work.insert(session.clone(), work);
    }
}
