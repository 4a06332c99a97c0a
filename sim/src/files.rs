//! The model of files: inputs that change, workspaces that outlive bridges or are lost, and
//! checkpoints.
//!
//! ```text
//!  ListInputs ─▶ what the inputs are at that moment ─▶ InputsListed
//!  SyncFiles ─▶ bridge: (lost, or of another lineage: restored) ─▶ inputs, uploads ─▶ Synced
//!  LaunchAgent ─▶ the agent          a turn ends ─▶ its work is in the workspace ─▶ offered
//! ```
//!
//! Owner: `World`. A content is a few numbers in place of bytes: which inputs, which uploads, how
//! much work. Invariants: a sync that fails leaves a workspace that is not whole; what a checkpoint
//! holds is what the workspace held when it was offered. Absent: judgement (`checker::files`).

use std::collections::BTreeMap;

use dormouse_core::cause::Cause;
use dormouse_core::command::Write;
use dormouse_core::event::{CheckpointOffer, Event, FilesProblem, FilesProgress, UploadSubmission};
use dormouse_core::id::{AgentName, InstanceId, SessionId};
use dormouse_core::journal::{Because, FilesChange};
use dormouse_core::manifest::{FilesVersion, Manifest, ManifestDigest, Sha256Hash};
use dormouse_core::record::FilesRecord;

use crate::bridge::BridgeId;
use crate::clients::Asked;
use crate::engine::{Batch, Input};
use crate::fault::Fault;
use crate::hub::Up;
use crate::sabotage::Sabotage;
use crate::violation::{Checked, Invariant};
use crate::world::{Action, World};

/// What a workspace holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Content {
    /// 0: none are declared.
    pub(crate) inputs: u64,
    pub(crate) uploads: u64,
    /// Turns whose work is in it.
    pub(crate) work: u64,
    /// Nothing is missing of it.
    pub(crate) is_whole: bool,
}

impl Content {
    fn digest(self) -> ManifestDigest {
        ManifestDigest(Sha256Hash::of(format!("{self:?}").as_bytes()))
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Workspace {
    pub(crate) content: Content,
    pub(crate) lineage: u64,
}

#[derive(Debug, Default)]
pub(crate) struct FilesWorld {
    /// The inputs of each agent, by a number that rises with each change.
    inputs: BTreeMap<AgentName, u64>,
    /// Those on the one machine. A session that is not here has none, or has lost it.
    pub(crate) workspaces: BTreeMap<SessionId, Workspace>,
    /// What each manifest that was offered stands for.
    offered: BTreeMap<ManifestDigest, Content>,
}

impl FilesWorld {
    pub(crate) fn inputs_of(&self, session: &SessionId) -> u64 {
        1 + self.inputs.get(session.agent()).copied().unwrap_or(0)
    }

    pub(crate) fn content_of(&self, manifest: ManifestDigest) -> Content {
        *self.offered.get(&manifest).expect("a checkpoint was offered")
    }
}

/// The digest that stands for that state of the inputs; 0 is that of an agent without any.
pub(crate) fn digest_of(inputs: u64) -> ManifestDigest {
    match inputs {
        0 => Manifest::default().digest(),
        number => ManifestDigest(Sha256Hash::of(&number.to_be_bytes())),
    }
}

impl World {
    /// Somebody changes what an agent's sessions are to find.
    pub(crate) fn change_inputs(&mut self) {
        if !self.fires(Fault::InputsChange) {
            return;
        }
        let names: Vec<AgentName> = self.config.agents.keys().cloned().collect();
        let name = self.rng.pick(&names).clone();
        *self.files.inputs.entry(name.clone()).or_default() += 1;
        self.checker.inputs_changed(&name, self.now);
    }

    pub(crate) fn list_inputs(&mut self, instance: InstanceId, look: u64) {
        let epoch = self.engine.epoch;
        self.plan_soon(500, Action::InputsAreListed { epoch, instance, look });
    }

    pub(crate) fn inputs_are_listed(
        &mut self,
        epoch: u64,
        instance: InstanceId,
        look: u64,
    ) -> Checked {
        if self.engine.epoch != epoch || self.fires(Fault::ListingHangs) {
            return Ok(());
        }
        let problem = |cause, retryable| {
            Err(FilesProblem { cause, message: "data/a.csv".to_owned(), retryable })
        };
        let outcome = if self.fires(Fault::InputMissing) {
            problem(Cause::InputMissing, false)
        } else if self.fires(Fault::InputsUnreachable) {
            problem(Cause::SyncFailed, true)
        } else {
            Ok(digest_of(self.files.inputs_of(&instance.session)))
        };
        let event = Event::InputsListed { instance, look, outcome };
        self.push_input(Input::Happened(event, None));
        Ok(())
    }

    /// The bridge is told to bring its workspace to that version.
    pub(crate) fn begin_sync(&mut self, id: BridgeId, version: FilesVersion) {
        let Some(bridge) = self.bridges.get_mut(&id).filter(|bridge| bridge.exit.is_none()) else {
            return;
        };
        if bridge.applied == Some(version) {
            // Asked again by a daemon that has not heard it: a turn may be on its way already.
            return self.say(id, Up::Synced { version });
        }
        bridge.syncing = Some(version);
        let session = bridge.instance.session.clone();
        let may_be_lost = !bridge.was_launched;
        if may_be_lost && self.fires(Fault::WorkspaceLost) {
            self.files.workspaces.remove(&session);
        }
        let after = self.rng.spread(1, 20_000);
        self.plan(self.now + after / 2, Action::SyncGoesOn { bridge: id });
        self.plan(self.now + after, Action::SyncEnds { bridge: id, version });
    }

    pub(crate) fn sync_goes_on(&mut self, id: BridgeId) -> Checked {
        if self.bridges.get(&id).is_some_and(|bridge| bridge.syncing.is_some()) {
            let progress = FilesProgress { done_files: 1, files: 2, done_bytes: 1, bytes: 2 };
            self.say(id, Up::Syncing { progress });
        }
        Ok(())
    }

    pub(crate) fn sync_ends(&mut self, id: BridgeId, version: FilesVersion) -> Checked {
        let is_wanted = |bridge: &&crate::bridge::Bridge| {
            bridge.syncing == Some(version) && !bridge.is_dead && bridge.exit.is_none()
        };
        let Some(bridge) = self.bridges.get(&id).filter(is_wanted) else { return Ok(()) };
        let session = bridge.instance.session.clone();
        let problem = self.sync(&session, version);
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        bridge.syncing = None;
        match problem {
            None => {
                bridge.applied = Some(version);
                self.say(id, Up::Synced { version });
            }
            Some(retryable) => {
                let cause = Cause::SyncFailed;
                let problem = FilesProblem { cause, message: "data/a.csv".to_owned(), retryable };
                self.say(id, Up::SyncFailed { version, problem });
            }
        }
        Ok(())
    }

    /// `Some`: it failed, and whether that may pass.
    fn sync(&mut self, session: &SessionId, version: FilesVersion) -> Option<bool> {
        let record = self.durable.sessions.get(session).map(|record| record.files);
        let record: FilesRecord = record.unwrap_or_default();
        let known = self.files.workspaces.get(session).copied();
        let is_intact =
            known.is_some_and(|known| known.content.is_whole && known.lineage == record.lineage);
        let mut content = match known {
            Some(known) if is_intact => known.content,
            _lost_or_other => self.restored(session, record),
        };
        let fails = self.fires(Fault::SyncFails);
        let fails_for_good = self.fires(Fault::SyncFailsForGood);
        let listed =
            (0..=self.files.inputs_of(session)).rev().find(|n| digest_of(*n) == version.inputs);
        // What was listed has changed since, and cannot be had any more.
        let is_outdated = listed.is_none_or(|n| n != 0 && n != self.files.inputs_of(session));
        let failure = if fails_for_good {
            Some(false)
        } else if fails || is_outdated {
            Some(true)
        } else {
            None
        };
        let skips = self.is_sabotaged(Sabotage::BridgeSkipsSync);
        match failure {
            // Between two turns nothing is touched before all of it has come.
            Some(_) if is_intact => {}
            Some(_) => content.is_whole = false,
            None if skips => content.is_whole = true,
            None => {
                content = Content {
                    inputs: listed.unwrap_or(0),
                    uploads: version.uploads.max(content.uploads),
                    is_whole: true,
                    ..content
                };
            }
        }
        let workspace = Workspace { content, lineage: record.lineage };
        self.files.workspaces.insert(session.clone(), workspace);
        failure
    }

    fn restored(&mut self, session: &SessionId, record: FilesRecord) -> Content {
        self.faults.count(Fault::WorkspaceRestored);
        let kept = self.durable.checkpoints.get(&(session.clone(), record.restore));
        match kept {
            Some(manifest) => self.files.content_of(*manifest),
            None => Content { is_whole: true, ..Content::default() },
        }
    }

    /// After a turn, at an end, or by the clock: what the workspace holds is offered.
    pub(crate) fn offer_checkpoint(&mut self, id: BridgeId) {
        let Some(bridge) = self.bridges.get(&id).filter(|bridge| !bridge.is_dead) else { return };
        let instance = bridge.instance.clone();
        let session = instance.session.clone();
        if !self.policy_of(bridge).files.is_kept || !self.engine.is_up() {
            return;
        }
        let is_open = bridge.link.is_some_and(|link| self.is_whole(link));
        let Some(workspace) = self.files.workspaces.get(&session).copied() else { return };
        // One that is not whole is offered too: it is the core that has to know.
        if !is_open {
            return;
        }
        let manifest = workspace.content.digest();
        let mut content = workspace.content;
        if self.is_sabotaged(Sabotage::StoreCutsCheckpoint) {
            content.is_whole = false;
        }
        self.files.offered.insert(manifest, content);
        let offer = CheckpointOffer {
            lineage: workspace.lineage,
            uploads: workspace.content.uploads,
            manifest,
            files: 1,
            bytes: 1,
            turn: None,
        };
        let request = self.ask(Asked::Offer);
        let event = Event::CheckpointOffered { request, instance, offer };
        self.push_input(Input::Happened(event, None));
    }

    /// The agent has done something for a turn.
    pub(crate) fn leave_work(&mut self, session: &SessionId) {
        if let Some(workspace) = self.files.workspaces.get_mut(session) {
            workspace.content.work += 1;
        }
    }

    /// What the files of a committed batch are judged by.
    pub(crate) fn check_kept(&mut self, batch: &Batch) -> Checked {
        for write in batch.steps.iter().flat_map(|step| &step.effects.writes) {
            match write {
                Write::InsertCheckpoint { record, .. } => {
                    let content = self.files.content_of(record.manifest);
                    self.checker.check_checkpoint(record, content)?;
                }
                Write::InsertDecision(decision) => {
                    let Because::Files { change } = &decision.because else { continue };
                    let FilesChange::RestoreRequested { checkpoint, .. } = change else { continue };
                    let key = (decision.session.clone(), *checkpoint);
                    let manifest = self.durable.checkpoints.get(&key).copied();
                    let is_there = manifest.is_some();
                    Invariant::NothingOverwritten.check(is_there, || {
                        format!("{} is to go back to {checkpoint}, which is gone", decision.session)
                    })?;
                    let work = manifest.map_or(0, |manifest| self.files.content_of(manifest).work);
                    self.checker.restore_begins(&decision.session, work);
                }
                _other => {}
            }
        }
        Ok(())
    }

    pub(crate) fn ask_to_upload(&mut self) {
        if !self.engine.is_up() {
            return;
        }
        let which = self.rng.index(self.config.sessions.len());
        let session = self.config.sessions[which].clone();
        let subject = self.config.subjects[which % self.config.subjects.len()].clone();
        let path = "a.csv".parse().expect("a name and a dot are a path");
        let upload = UploadSubmission { session, subject, is_operator: false, path, file: None };
        let request = self.ask(Asked::Upload);
        self.push_input(Input::Happened(Event::UploadSubmitted { request, upload }, None));
    }

    pub(crate) fn ask_to_restore(&mut self) {
        if !self.engine.is_up() {
            return;
        }
        let kept: Vec<(SessionId, u64)> = self.durable.checkpoints.keys().cloned().collect();
        if kept.is_empty() {
            return;
        }
        let (session, checkpoint) = self.rng.pick(&kept).clone();
        let request = self.ask(Asked::Session);
        let by = self.config.operator.clone();
        let event = Event::RestoreRequested { request, session, checkpoint, by };
        self.push_input(Input::Happened(event, None));
    }
}
