//! The store against a naive model: random writes, legal and not, in random batches that are
//! committed, dropped, or followed by a restart; after each, everything that can be read is
//! compared.
//!
//! Lives inside the crate because idempotency runs are some messages long in its tests.

use std::collections::BTreeMap;

use dormouse_core::cause::Cause;
use dormouse_core::command::Write;
use dormouse_core::diagnosis::own::diagnose_exit;
use dormouse_core::event::{DeadLetter, PriorMessage};
use dormouse_core::evidence::{End, Evidence};
use dormouse_core::id::{Generation, MessageId, RevisionNumber, SessionId, Subject, TurnId};
use dormouse_core::journal::{Because, Decision};
use dormouse_core::limits::IDEMPOTENCY_WINDOW;
use dormouse_core::manifest::{ContentId, FileKind, ManifestDigest, Sha256Hash};
use dormouse_core::record::{
    CheckpointRecord, Circumstances, Delivery, ExitRecord, FilesRecord, Idempotency, MessageRecord,
    MessageState, SessionRecord, StoredSession, UploadRecord,
};
use dormouse_core::session::phase::Phase;
use dormouse_core::sizing::LearnedMemory;
use dormouse_core::time::{Wall, millis};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::{
    ApplyError, Counts, FilesView, MessageFilter, MessageView, Reader, ReferencedBlobs,
    SessionFilter, SessionView, Store,
};

#[derive(Debug, Clone, PartialEq)]
struct ModelMessage {
    record: MessageRecord,
    state: MessageState,
    attempts: u32,
    excused: u32,
    leased_to: Option<Generation>,
    leased_at: Option<Wall>,
    not_before: Option<Wall>,
    ended_at: Option<Wall>,
    reply: Option<String>,
    exit_code: Option<i32>,
    cause: Option<Cause>,
    detail: Option<String>,
    ended_by: Option<Subject>,
    dropped_at: Option<Wall>,
    redriven_as: Option<MessageId>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    /// In the order of creation.
    sessions: Vec<SessionRecord>,
    /// In the order of acceptance.
    messages: Vec<ModelMessage>,
    exits: Vec<ExitRecord>,
    journal: Vec<Decision>,
    uploads: Vec<UploadRecord>,
    checkpoints: Vec<CheckpointRecord>,
    /// It does not run backwards here: what was forgotten is not remembered again.
    now: Wall,
}

impl Model {
    /// Does the write, or says that it contradicts what there is, having changed nothing.
    fn apply(&mut self, write: &Write) -> Result<(), ()> {
        match write {
            Write::PutSession(record) => return self.put_session(record),
            // Replaced whole, and looked at beside it: `configs`.
            Write::PutRollout { .. } => {}
            Write::InsertUpload(record) => return self.insert_upload(record),
            Write::InsertCheckpoint { record, keep } => {
                return self.insert_checkpoint(record, *keep);
            }
            Write::InsertMessage(record) => return self.insert(record),
            Write::LeaseDelivery { turn, generation, at } => {
                let message = self.in_state(turn.message, MessageState::Pending)?;
                if message.attempts + 1 != turn.attempt {
                    return Err(());
                }
                message.state = MessageState::Leased;
                message.attempts += 1;
                message.leased_to = Some(*generation);
                message.leased_at = Some(*at);
                message.not_before = None;
            }
            Write::ReturnDelivery { message, excused, not_before } => {
                let message = self.in_state(*message, MessageState::Leased)?;
                if *excused < message.excused || *excused > message.attempts {
                    return Err(());
                }
                message.state = MessageState::Pending;
                message.excused = *excused;
                message.leased_to = None;
                message.not_before = *not_before;
            }
            Write::AnswerMessage { turn, generation, at, text, exit_code } => {
                let message = self.in_state(turn.message, MessageState::Leased)?;
                if (message.attempts, message.leased_to) != (turn.attempt, Some(*generation)) {
                    return Err(());
                }
                message.end(MessageState::Answered, *at);
                message.reply = Some(text.clone());
                message.exit_code = *exit_code;
            }
            Write::BuryMessage { message, at, cause, detail, exit_code } => {
                let message = self.unended(*message)?;
                message.end(MessageState::Dead, *at);
                message.cause = Some(*cause);
                message.detail = Some(detail.clone());
                message.exit_code = *exit_code;
            }
            Write::CancelMessage { message, at, by } => {
                let message = self.unended(*message)?;
                message.end(MessageState::Cancelled, *at);
                message.ended_by = Some(by.clone());
            }
            Write::MarkRedriven { message, new_id } => {
                let message = self.open_letter(*message)?;
                if message.redriven_as.is_some() {
                    return Err(());
                }
                message.redriven_as = Some(*new_id);
            }
            Write::DropDeadLetter { message, at, by } => {
                let message = self.open_letter(*message)?;
                message.dropped_at = Some(*at);
                message.ended_by = Some(by.clone());
            }
            Write::InsertExit(exit) => return self.insert_exit(exit),
            Write::InsertDecision(decision) => self.journal.push(decision.clone()),
        }
        Ok(())
    }

    fn insert_upload(&mut self, record: &UploadRecord) -> Result<(), ()> {
        let is_it = |known: &UploadRecord| {
            (&known.session, known.number) == (&record.session, record.number)
        };
        if self.uploads.iter().any(is_it) {
            return Err(());
        }
        self.uploads.push(record.clone());
        Ok(())
    }

    fn insert_checkpoint(&mut self, record: &CheckpointRecord, keep: u64) -> Result<(), ()> {
        let session = &record.session;
        let is_it =
            |known: &CheckpointRecord| (&known.session, known.number) == (session, record.number);
        if self.checkpoints.iter().any(is_it) {
            return Err(());
        }
        self.checkpoints.push(record.clone());
        self.uploads.retain(|known| known.session != *session || known.number > record.uploads);
        self.checkpoints
            .retain(|known| known.session != *session || known.number + keep > record.number);
        Ok(())
    }

    fn insert_exit(&mut self, exit: &ExitRecord) -> Result<(), ()> {
        let is_same = |other: &ExitRecord| {
            (&other.session, other.generation) == (&exit.session, exit.generation)
        };
        if self.exits.iter().any(is_same) {
            return Err(());
        }
        self.exits.push(exit.clone());
        Ok(())
    }

    fn put_session(&mut self, record: &SessionRecord) -> Result<(), ()> {
        match self.sessions.iter_mut().find(|session| session.id == record.id) {
            None => self.sessions.push(record.clone()),
            Some(session) => {
                if session.subject != record.subject || session.generation > record.generation {
                    return Err(());
                }
                *session = record.clone();
            }
        }
        Ok(())
    }

    fn insert(&mut self, record: &MessageRecord) -> Result<(), ()> {
        if self.messages.last().is_some_and(|last| last.record.id >= record.id) {
            return Err(());
        }
        self.messages.push(ModelMessage {
            record: record.clone(),
            state: MessageState::Pending,
            attempts: 0,
            excused: 0,
            leased_to: None,
            leased_at: None,
            not_before: None,
            ended_at: None,
            reply: None,
            exit_code: None,
            cause: None,
            detail: None,
            ended_by: None,
            dropped_at: None,
            redriven_as: None,
        });
        Ok(())
    }

    fn find(&mut self, id: MessageId) -> Result<&mut ModelMessage, ()> {
        self.messages.iter_mut().find(|message| message.record.id == id).ok_or(())
    }

    fn in_state(&mut self, id: MessageId, state: MessageState) -> Result<&mut ModelMessage, ()> {
        self.find(id).and_then(|message| if message.state == state { Ok(message) } else { Err(()) })
    }

    fn unended(&mut self, id: MessageId) -> Result<&mut ModelMessage, ()> {
        self.find(id).and_then(|message| if message.is_unended() { Ok(message) } else { Err(()) })
    }

    fn open_letter(&mut self, id: MessageId) -> Result<&mut ModelMessage, ()> {
        self.in_state(id, MessageState::Dead)
            .and_then(|letter| if letter.dropped_at.is_none() { Ok(letter) } else { Err(()) })
    }

    fn has_session(&self, id: &SessionId) -> bool {
        self.sessions.iter().any(|session| session.id == *id)
    }

    fn deliveries(&self, session: &SessionId) -> Vec<Delivery> {
        let of_session =
            |message: &&ModelMessage| message.is_unended() && message.record.session == *session;
        let delivery = |message: &ModelMessage| Delivery {
            message: message.record.id,
            bytes: message.record.text.len() as u32,
            attempts: message.attempts,
            excused: message.excused,
            leased_to: message.leased_to,
            not_before: message.not_before,
        };
        self.messages.iter().filter(of_session).map(delivery).collect()
    }

    fn stored(&self, record: &SessionRecord) -> StoredSession {
        StoredSession { record: record.clone(), deliveries: self.deliveries(&record.id) }
    }

    fn live(&self) -> Vec<StoredSession> {
        let mut live: Vec<_> = self.sessions.iter().map(|record| self.stored(record)).collect();
        live.retain(|stored| {
            let record = &stored.record;
            record.phase != Phase::Asleep || record.wake_wanted || !stored.deliveries.is_empty()
        });
        live.sort_by(|one, other| one.record.id.cmp(&other.record.id));
        live
    }

    fn prior(&self, subject: &Subject, key: &str) -> Option<PriorMessage> {
        self.messages.iter().rev().find_map(|message| {
            let record = &message.record;
            let idempotency = record.idempotency.as_ref()?;
            let is_it = idempotency.key == key
                && record.subject == *subject
                && record.accepted_at.0 >= self.now.0.saturating_sub(millis(IDEMPOTENCY_WINDOW));
            is_it.then(|| PriorMessage { id: record.id, digest: idempotency.digest.clone() })
        })
    }

    fn view(&self, message: &ModelMessage) -> MessageView {
        let record = &message.record;
        let is_before = |other: &&ModelMessage| {
            other.is_unended()
                && other.record.session == record.session
                && other.record.id < record.id
        };
        let before = self.messages.iter().filter(is_before).count() as u64;
        MessageView {
            id: record.id,
            session: record.session.clone(),
            subject: record.subject.clone(),
            state: message.state,
            bytes: record.text.len() as u32,
            attempts: message.attempts,
            excused: message.excused,
            accepted_at: record.accepted_at,
            leased_at: message.leased_at,
            not_before: message.not_before,
            ended_at: message.ended_at,
            position: message.is_unended().then_some(before),
            reply: message.reply.clone(),
            exit_code: message.exit_code,
            cause: message.cause,
            detail: message.detail.clone(),
            ended_by: message.ended_by.clone(),
            dropped_at: message.dropped_at,
            redriven_as: message.redriven_as,
            redrive_of: record.redrive_of,
        }
    }

    fn counts(&self) -> Counts {
        let of = |state| self.messages.iter().filter(|message| message.state == state).count();
        let in_phase =
            |phase| self.sessions.iter().filter(|session| session.phase == phase).count();
        Counts {
            pending: of(MessageState::Pending) as u64,
            leased: of(MessageState::Leased) as u64,
            answered: of(MessageState::Answered) as u64,
            dead: of(MessageState::Dead) as u64,
            cancelled: of(MessageState::Cancelled) as u64,
            sessions: self.sessions.len() as u64,
            sessions_by_phase: Phase::ALL.map(|phase| in_phase(phase) as u64),
        }
    }
}

impl ModelMessage {
    fn is_unended(&self) -> bool {
        matches!(self.state, MessageState::Pending | MessageState::Leased)
    }

    fn end(&mut self, state: MessageState, at: Wall) {
        if state != MessageState::Answered {
            self.not_before = None;
        }
        self.state = state;
        self.leased_to = None;
        self.ended_at = Some(at);
    }
}

/// A write to be: numbers that `write_of` turns into a write on what there is.
#[derive(Debug, Clone)]
struct Draft {
    kind: u8,
    /// Which message, session, subject, key.
    which: [Index; 4],
    at: u64,
    small: u32,
    /// Aim at a message in the right state, as a sane caller would.
    is_sane: bool,
}

#[derive(Debug, Clone, Copy)]
enum After {
    Commit,
    Drop,
    Restart,
    /// Some time later.
    Prune {
        passed_ms: u64,
    },
}

fn drafts() -> impl Strategy<Value = Vec<Draft>> {
    let which = [any::<Index>(), any::<Index>(), any::<Index>(), any::<Index>()];
    // Inserting, leasing and answering most.
    let kind = prop_oneof![
        4 => Just(1u8), 3 => Just(2u8), 1 => Just(3u8), 3 => Just(4u8), 8 => 0..13u8
    ];
    let draft = (kind, which, 0..40u64, 0..4u32, prop::bool::weighted(0.97));
    let draft = draft.prop_map(|(kind, which, at, small, is_sane)| Draft {
        kind,
        which,
        at: at * 3_600_000,
        small,
        is_sane,
    });
    prop::collection::vec(draft, 0..12)
}

fn batches() -> impl Strategy<Value = Vec<(Vec<Draft>, After)>> {
    let after = prop_oneof![
        6 => Just(After::Commit),
        1 => Just(After::Drop),
        1 => Just(After::Restart),
        1 => (0..30u64).prop_map(|hours| After::Prune { passed_ms: hours * 3_600_000 }),
    ];
    prop::collection::vec((drafts(), after), 1..14)
}

const SESSIONS: [&str; 3] = ["python/a", "python/b", "echo/c"];
const SUBJECTS: [&str; 2] = ["ann", "ben"];
const KEYS: [&str; 4] = ["k1", "k2", "k3", "k4"];

fn write_of(draft: &Draft, model: &Model) -> Write {
    let session = SessionId::new(SESSIONS[draft.which[1].index(SESSIONS.len())]).unwrap();
    let subject = Subject::new(SUBJECTS[draft.which[2].index(SUBJECTS.len())]).unwrap();
    let at = Wall(draft.at);
    let fits = |message: &&ModelMessage| match draft.kind {
        2 => message.state == MessageState::Pending,
        3 | 4 => message.state == MessageState::Leased,
        5 | 6 => message.is_unended(),
        7 => message.redriven_as.is_none() && message.state == MessageState::Dead,
        _other => message.state == MessageState::Dead && message.dropped_at.is_none(),
    };
    let fitting: Vec<_> = model.messages.iter().filter(fits).collect();
    let all: Vec<_> = model.messages.iter().collect();
    let from = if draft.is_sane { &fitting } else { &all };
    let target = if from.is_empty() { None } else { Some(*draft.which[0].get(from)) };
    let newest = model.messages.last().map_or(0, |message| message.record.id.0);
    let insert = |redrive_of| {
        let key = KEYS.get(draft.which[3].index(KEYS.len() + 2));
        Write::InsertMessage(MessageRecord {
            id: MessageId(if draft.is_sane { newest + 1 } else { u128::from(draft.small) }),
            session: session.clone(),
            subject: subject.clone(),
            text: "x".repeat(draft.small as usize * 1_500),
            accepted_at: at,
            idempotency: key
                .map(|key| Idempotency { key: (*key).to_owned(), digest: newest.to_string() }),
            redrive_of,
        })
    };
    let Some(target) = target.filter(|_target| (2..9).contains(&draft.kind)) else {
        return match draft.kind {
            0 => put(draft, session, model),
            9 => exit_of(draft, session, model),
            10 => decision_of(draft, session),
            11 => upload_of(draft, session, model),
            12 => checkpoint_of(draft, session, model),
            _other => insert(None),
        };
    };
    let message = target.record.id;
    let attempt = target.attempts + u32::from(draft.kind == 2);
    let turn = TurnId { message, attempt };
    let generation = target.leased_to.unwrap_or(Generation(u64::from(draft.small)));
    let exit_code = (draft.small > 1).then_some(draft.small as i32);
    match draft.kind {
        2 => Write::LeaseDelivery { turn, generation, at },
        3 => Write::ReturnDelivery {
            message,
            excused: (target.excused + draft.small % 2).min(target.attempts),
            not_before: (draft.small > 1).then_some(at),
        },
        4 => {
            let text = "y".repeat(draft.small as usize * 2_000);
            Write::AnswerMessage { turn, generation, at, text, exit_code }
        }
        5 => Write::BuryMessage {
            message,
            at,
            cause: Cause::ALL[draft.which[3].index(Cause::ALL.len())],
            detail: format!("{at:?}"),
            exit_code,
        },
        6 => Write::CancelMessage { message, at, by: subject },
        7 => Write::MarkRedriven { message, new_id: MessageId(newest + 1) },
        _other => Write::DropDeadLetter { message, at, by: subject },
    }
}

fn put(draft: &Draft, id: SessionId, model: &Model) -> Write {
    let old = model.sessions.iter().find(|session| session.id == id);
    let generation = old.map_or(0, |session| session.generation.0);
    let change = if draft.is_sane { u64::from(draft.small) } else { 0 };
    Write::PutSession(SessionRecord {
        subject: Subject::new(if draft.is_sane { "ann" } else { "ben" }).unwrap(),
        created_at: Wall(7),
        phase: Phase::ALL[draft.which[0].index(Phase::ALL.len())],
        generation: Generation(generation + change),
        failures: draft.small,
        backoff_until: (draft.small == 1).then_some(Wall(draft.at)),
        stop: (draft.small == 2).then(|| {
            crate::rows::STOP_REASONS[draft.which[3].index(crate::rows::STOP_REASONS.len())]
        }),
        wake_wanted: draft.small == 3,
        start_took_ms: (draft.small > 1).then_some(draft.at),
        last_failure: (draft.small > 0).then(|| Cause::ALL[draft.which[2].index(Cause::ALL.len())]),
        memory: (draft.small == 2).then_some(LearnedMemory {
            limit_bytes: draft.at,
            because: Cause::OomLimit,
            since: Wall(draft.at),
            peak_survived_bytes: 0,
        }),
        files: FilesRecord {
            uploads: draft.at,
            restore: u64::from(draft.small),
            floor: u64::from(draft.small / 2),
            ..FilesRecord::default()
        },
        revision: (draft.small > 0).then_some(RevisionNumber(u64::from(draft.small))),
        id,
    })
}

fn exit_of(draft: &Draft, session: SessionId, model: &Model) -> Write {
    let newest =
        model.exits.iter().filter(|exit| exit.session == session).map(|exit| exit.generation);
    let newest = newest.max().unwrap_or_default();
    let evidence = Evidence::bare(End::Exited { code: draft.small as i32 });
    Write::InsertExit(ExitRecord {
        session,
        generation: if draft.is_sane { newest.next() } else { newest },
        at: Wall(draft.at),
        phase: Phase::ALL[draft.which[0].index(Phase::ALL.len())],
        cause: (draft.small > 0).then_some(Cause::Unknown),
        message_in_flight: (draft.small > 1).then_some(MessageId(draft.at.into())),
        diagnosis: diagnose_exit(&evidence, &Circumstances::default()),
        circumstances: Circumstances::default(),
        evidence,
    })
}

fn upload_of(draft: &Draft, session: SessionId, model: &Model) -> Write {
    let of_session = model.uploads.iter().filter(|upload| upload.session == session);
    let newest = of_session.map(|upload| upload.number).max().unwrap_or(0);
    let content = ContentId::Sha256(Sha256Hash::of(&draft.at.to_be_bytes()));
    Write::InsertUpload(UploadRecord {
        session,
        number: if draft.is_sane { newest + 1 } else { newest.max(1) },
        path: "data/a.csv".parse().unwrap(),
        file: (draft.small > 0).then_some(FileKind::File {
            bytes: draft.at,
            content,
            is_executable: false,
        }),
        at: Wall(draft.at),
        by: "ann".parse().unwrap(),
    })
}

fn checkpoint_of(draft: &Draft, session: SessionId, model: &Model) -> Write {
    let of_session = model.checkpoints.iter().filter(|checkpoint| checkpoint.session == session);
    let newest = of_session.map(|checkpoint| checkpoint.number).max().unwrap_or(0);
    let record = CheckpointRecord {
        session,
        number: if draft.is_sane { newest + 1 } else { newest.max(1) },
        manifest: ManifestDigest(Sha256Hash::of(&draft.at.to_be_bytes())),
        uploads: u64::from(draft.small),
        files: 3,
        bytes: draft.at,
        at: Wall(draft.at),
        generation: Generation(draft.at),
        turn: (draft.small == 1).then_some(TurnId { message: MessageId(7), attempt: 1 }),
    };
    Write::InsertCheckpoint { record, keep: 2 }
}

fn decision_of(draft: &Draft, session: SessionId) -> Write {
    Write::InsertDecision(Decision {
        session,
        generation: Generation(draft.at),
        at: Wall(draft.at),
        from: Phase::Awake,
        to: Phase::Stopping,
        because: Because::WasIdle { idle_ms: draft.at },
    })
}

/// Everything that can be read, compared.
fn compare(model: &Model, store: &mut Store, reader: &Reader) -> Result<(), TestCaseError> {
    prop_assert_eq!(store.live_sessions().unwrap(), model.live());
    let newest = model.messages.last().map(|message| message.record.id);
    prop_assert_eq!(store.newest_message_id().unwrap(), newest);
    prop_assert_eq!(reader.counts().unwrap(), model.counts());
    compare_batch(model, store)?;
    for message in &model.messages {
        let id = message.record.id;
        prop_assert_eq!(reader.message(id).unwrap(), Some(model.view(message)));
        let text = reader.message_text(id).unwrap();
        prop_assert_eq!(text.as_ref(), Some(&message.record.text));
    }
    compare_files(model, reader)?;
    compare_lists(model, reader)
}

fn compare_files(model: &Model, reader: &Reader) -> Result<(), TestCaseError> {
    for record in &model.sessions {
        let is_waiting = |upload: &&UploadRecord| {
            upload.session == record.id && upload.number > record.files.floor
        };
        let is_restored = |known: &&CheckpointRecord| {
            known.session == record.id && known.number == record.files.restore
        };
        let mut uploads: Vec<_> = model.uploads.iter().filter(is_waiting).cloned().collect();
        uploads.sort_by_key(|upload| upload.number);
        let restore = model.checkpoints.iter().find(is_restored).cloned();
        let expected = FilesView { record: record.files, uploads, restore };
        prop_assert_eq!(reader.files(&record.id).unwrap(), Some(expected));
    }
    let manifests = model.checkpoints.iter().map(|checkpoint| checkpoint.manifest).collect();
    let uploads = model.uploads.iter().filter_map(|upload| match &upload.file {
        Some(FileKind::File { content: ContentId::Sha256(hash), .. }) => Some(*hash),
        _other => None,
    });
    let expected = ReferencedBlobs { uploads: uploads.collect(), manifests };
    prop_assert_eq!(reader.referenced_blobs().unwrap(), expected);
    Ok(())
}

fn compare_batch(model: &Model, store: &mut Store) -> Result<(), TestCaseError> {
    let mut batch = store.batch();
    for record in &model.sessions {
        prop_assert_eq!(batch.session(&record.id).unwrap(), Some(model.stored(record)));
    }
    for subject in SUBJECTS.map(|name| Subject::new(name).unwrap()) {
        for key in KEYS {
            let prior = batch.find_prior(&subject, key).unwrap();
            prop_assert_eq!(prior, model.prior(&subject, key), "{} {}", subject, key);
        }
    }
    for message in &model.messages {
        let record = &message.record;
        let is_open = message.state == MessageState::Dead && message.dropped_at.is_none();
        let expected = is_open.then(|| DeadLetter {
            id: record.id,
            session: record.session.clone(),
            subject: record.subject.clone(),
            text: record.text.clone(),
            redriven_as: message.redriven_as,
        });
        prop_assert_eq!(batch.dead_letter(record.id).unwrap(), expected);
        let text = batch.message_text(record.id).unwrap();
        prop_assert_eq!(text.as_ref(), Some(&record.text));
    }
    batch.commit().unwrap();
    Ok(())
}

fn compare_lists(model: &Model, reader: &Reader) -> Result<(), TestCaseError> {
    let page = reader.sessions(&SessionFilter::default(), None, 100).unwrap();
    let waiting = |id| model.deliveries(id).len() as u64;
    let views: Vec<(SessionRecord, u64)> =
        page.items.into_iter().map(|view: SessionView| (view.record, view.waiting)).collect();
    let expected: Vec<_> =
        model.sessions.iter().rev().map(|record| (record.clone(), waiting(&record.id))).collect();
    prop_assert_eq!(views, expected);
    type Belongs = fn(&ModelMessage) -> bool;
    let everybody = MessageFilter::default();
    let is_letter: Belongs =
        |message| message.state == MessageState::Dead && message.dropped_at.is_none();
    let lists = [
        (reader.queue(&everybody, None, 1_000).unwrap(), ModelMessage::is_unended as Belongs),
        (reader.dead_letters(&everybody, None, 1_000).unwrap(), is_letter),
    ];
    for (found, belongs) in lists {
        let expected: Vec<_> =
            model.messages.iter().rev().filter(|message| belongs(message)).collect();
        prop_assert_eq!(found.len(), expected.len());
        for (item, message) in found.iter().zip(expected) {
            prop_assert_eq!(&item.message, &MessageView { reply: None, ..model.view(message) });
            prop_assert_eq!(&item.text, &message.record.text);
        }
    }
    for name in SESSIONS {
        let id = SessionId::new(name).unwrap();
        let journal: Vec<Decision> =
            reader.journal(&id, None, 1_000).unwrap().into_iter().map(|row| row.1).collect();
        let expected = model.journal.iter().rev().filter(|decision| decision.session == id);
        prop_assert_eq!(journal, expected.cloned().collect::<Vec<_>>());
        let expected = model.checkpoints.iter().rev().filter(|known| known.session == id);
        let checkpoints = reader.checkpoints(&id).unwrap();
        prop_assert_eq!(checkpoints, expected.cloned().collect::<Vec<_>>());
        let expected = model.exits.iter().rev().filter(|exit| exit.session == id);
        prop_assert_eq!(reader.exits(&id, 1_000).unwrap(), expected.cloned().collect::<Vec<_>>());
    }
    Ok(())
}

/// Applies the drafts to both. `None`: one of them contradicted, and both agree that it did.
fn apply_both(
    model: &Model,
    batch: &mut crate::Batch<'_>,
    drafts: &[Draft],
) -> Result<Option<Model>, TestCaseError> {
    let mut next = model.clone();
    for draft in drafts {
        let mut writes = vec![write_of(draft, &next)];
        if let Write::InsertMessage(record) = &writes[0]
            && !next.has_session(&record.session)
        {
            // After the message, as the core does it.
            let sane = Draft { is_sane: true, ..draft.clone() };
            writes.push(put(&sane, record.session.clone(), &next));
        }
        for write in writes {
            let expected = next.apply(&write);
            let found = batch.apply(&write);
            prop_assert_eq!(found.is_ok(), expected.is_ok(), "{:?}: {:?}", write, found);
            if let Err(error) = found {
                prop_assert!(matches!(error, ApplyError::Invariant { .. }), "{}", error);
                return Ok(None);
            }
        }
    }
    Ok(Some(next))
}

proptest! {
    #[test]
    fn the_store_does_what_plain_lists_do(batches in batches()) {
        let folder = tempfile::tempdir_in(memory_folder()).unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let reader = Reader::open(folder.path()).unwrap();
        let mut model = Model::default();
        for (drafts, after) in batches {
            let mut batch = store.batch();
            let next = apply_both(&model, &mut batch, &drafts)?;
            let restart = next.is_none() || matches!(after, After::Restart);
            match (next, after) {
                (Some(next), After::Commit | After::Restart | After::Prune { .. }) => {
                    batch.commit().unwrap();
                    model = next;
                }
                (Some(_) | None, After::Drop) | (None, _) => drop(batch),
            }
            if let (After::Prune { passed_ms }, false) = (after, restart) {
                model.now = Wall(model.now.0 + passed_ms);
                while !store.prune(model.now).unwrap().is_finished {}
            }
            if restart {
                drop(store);
                store = Store::open(folder.path()).unwrap();
                // Until somebody says what time it is, nothing that is left is too old.
                store.prune(model.now).unwrap();
            }
            compare(&model, &mut store, &reader)?;
        }
        prop_assert_eq!(reader.integrity_check().unwrap(), Vec::<String>::new());
    }
}

/// Syncing costs nothing there; what a disk would do is not asked here.
fn memory_folder() -> std::path::PathBuf {
    let memory = std::path::PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

fn asleep(session: &SessionId, subject: &Subject) -> SessionRecord {
    SessionRecord {
        id: session.clone(),
        subject: subject.clone(),
        created_at: Wall(0),
        phase: Phase::Asleep,
        generation: Generation(0),
        failures: 0,
        backoff_until: None,
        stop: None,
        wake_wanted: false,
        start_took_ms: None,
        last_failure: None,
        memory: None,
        files: FilesRecord::default(),
        revision: None,
    }
}

#[test]
fn keys_are_found_through_memory_runs_and_restarts_until_they_are_forgotten() {
    let folder = tempfile::tempdir_in(memory_folder()).unwrap();
    let mut store = Store::open(folder.path()).unwrap();
    let ann = Subject::new("ann").unwrap();
    let session = SessionId::new("python/a").unwrap();
    let mut newest = BTreeMap::new();
    for n in 0..100_u64 {
        let mut batch = store.batch();
        if n == 0 {
            batch.apply(&Write::PutSession(asleep(&session, &ann))).unwrap();
        }
        let (id, key) = (MessageId(u128::from(n) + 1), format!("key {n}"));
        let idempotency = Some(Idempotency { key: key.clone(), digest: n.to_string() });
        batch
            .apply(&Write::InsertMessage(MessageRecord {
                id,
                session: session.clone(),
                subject: ann.clone(),
                text: String::new(),
                accepted_at: Wall(n),
                idempotency,
                redrive_of: None,
            }))
            .unwrap();
        batch.commit().unwrap();
        newest.insert(key, PriorMessage { id, digest: n.to_string() });
        if n % 13 == 0 {
            drop(store);
            store = Store::open(folder.path()).unwrap();
        }
        let mut batch = store.batch();
        for (key, prior) in &newest {
            assert_eq!(batch.find_prior(&ann, key).unwrap().as_ref(), Some(prior));
        }
    }
    let rows = |table: &str| -> i64 {
        let connection = rusqlite::Connection::open(folder.path().join("dormouse.db")).unwrap();
        let sql = format!("SELECT count(*) FROM {table}");
        connection.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    assert!(rows("idempotency_run") > 5, "most keys are in runs");
    let now = Wall(millis(IDEMPOTENCY_WINDOW) + 60);
    let mut forgotten = 0;
    loop {
        let pruned = store.prune(now).unwrap();
        forgotten += pruned.keys_forgotten;
        assert!(pruned.keys_forgotten <= 3, "a bounded number per call");
        if pruned.is_finished {
            break;
        }
    }
    assert!((40..=60).contains(&forgotten), "{forgotten} of the 60 that are too old");
    let mut batch = store.batch();
    for (n, (key, prior)) in
        (0..100).map(|n| (n, newest.get_key_value(&format!("key {n}")).unwrap()))
    {
        let expected = (n >= 60).then_some(prior);
        assert_eq!(batch.find_prior(&ann, key).unwrap().as_ref(), expected, "key {n}");
    }
    drop(batch);
    let now = Wall(millis(IDEMPOTENCY_WINDOW) + 1_000);
    while !store.prune(now).unwrap().is_finished {}
    assert_eq!((rows("idempotency_run"), rows("idempotency")), (0, 0));
}
