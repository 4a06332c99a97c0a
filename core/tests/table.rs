//! The whole machine on one screen: every situation × every event → next phase and commands.
//!
//! `table.txt` is the table. Each cell says what a request is answered, through which phases the
//! session goes, and what is ordered of driver and bridge; `-` is nothing of it.
//!
//! Owner: `core`. Invariants: each phase and each event is here, or this file does not compile; a
//! cell never panics, moves only along legal transitions, and answers a request exactly once;
//! what a past generation says changes nothing. Absent: sequences (`story`, `hostile`).

use std::collections::BTreeMap;

use dormouse_core::cause::Cause;
use dormouse_core::command::{Answer, Command, Effects, RequestOutcome, Write};
use dormouse_core::event::{
    AgentState, CheckpointOffer, DeadLetter, Event, FilesProblem, FilesProgress, RolloutRequest,
    SessionRequest, Setup, Submission, TurnOutcome, UploadSubmission,
};
use dormouse_core::evidence::{End, Evidence};
use dormouse_core::id::{
    AgentName, BootId, Generation, InstanceId, MessageId, RequestId, RevisionNumber, SessionId,
    TurnId,
};
use dormouse_core::journal::Decision;
use dormouse_core::manifest::{FilesVersion, Manifest};
use dormouse_core::policy::{AgentPolicy, AgentSetup, FilesPolicy, NodePolicy};
use dormouse_core::queue::Queue;
use dormouse_core::record::{SessionRecord, StoredSession};
use dormouse_core::session::phase::Phase;
use dormouse_core::supervisor::Supervisor;
use dormouse_core::time::{Monotonic, Now, Wall};
use expect_test::expect_file;

const FIRST: MessageId = MessageId(1);
const TURN: TurnId = TurnId { message: FIRST, attempt: 1 };
const BOOT: BootId = BootId(1);
const IN_LINE: &str = "asleep, in line";

/// How to get a session into a phase, and what is special about it there.
struct Situation {
    title: &'static str,
    script: Vec<Event>,
    starts_at_once: usize,
}

/// Every phase has at least one. A new phase does not compile until it has.
fn situations(phase: Phase) -> Vec<Situation> {
    let situation = |title, script: &[&[Event]]| {
        let starts_at_once = usize::from(title != IN_LINE);
        Situation { title, script: script.concat(), starts_at_once }
    };
    let idle = [submitted(), attached(AgentState::NotLaunched), ready(), answered()];
    let turn = [submitted(), attached(AgentState::NotLaunched), ready()];
    let looks = [submitted(), attached(AgentState::NotLaunched)];
    match phase {
        Phase::Asleep => {
            let stop = [request(SessionRequest::Stop), exited()];
            vec![situation("asleep", &[&idle, &stop]), situation(IN_LINE, &[&[submitted()]])]
        }
        Phase::Starting => vec![
            situation("starting", &[&[submitted()]]),
            situation("starting, bridge", &[&[submitted(), attached(AgentState::NotLaunched)]]),
            situation("starting, looks at files", &[&looks]),
            situation("starting, syncs files", &[&looks, &[listed()]]),
        ],
        Phase::Awake => vec![
            situation("awake, idle", &[&idle]),
            situation("awake, turn", &[&turn]),
            situation("awake, pause", &[&turn, &[failed(true)]]),
            situation("awake, looks at files", &[&looks, &[listed(), synced(), ready()]]),
            situation("awake, turn, no bridge", &[&turn, &[detached()]]),
        ],
        Phase::Draining => {
            vec![situation("draining", &[&turn, &[request(SessionRequest::Stop)]])]
        }
        Phase::Stopping => vec![
            situation("stopping", &[&idle, &[request(SessionRequest::Stop)]]),
            situation("stopping, turn", &[&turn, &[Event::DeadlinePassed]]),
        ],
        Phase::Backoff => {
            let fails = [attached(AgentState::NotLaunched), exited()];
            vec![situation("backoff", &[&[submitted()], &fails, &fails])]
        }
        Phase::Tripped => {
            let fails = [attached(AgentState::NotLaunched), exited()];
            let wake = [request(SessionRequest::Wake)];
            let again: [&[Event]; 9] =
                [&[submitted()], &fails, &fails, &wake, &fails, &wake, &fails, &wake, &fails];
            vec![situation("tripped", &again)]
        }
    }
}

/// The list of all events, as a chain: a new event does not compile until it has a place in it.
fn next_event(event: &Event) -> Option<Event> {
    Some(match event {
        Event::MessageSubmitted { .. } => request(SessionRequest::Wake),
        Event::SessionRequested { what: SessionRequest::Wake, .. } => request(SessionRequest::Stop),
        Event::SessionRequested { what: SessionRequest::Stop, .. } => {
            request(SessionRequest::Restart)
        }
        Event::SessionRequested { what: SessionRequest::Restart, .. } => Event::RedriveRequested {
            request: RequestId(9),
            dead: DeadLetter {
                id: MessageId(0),
                session: session(),
                subject: "tom".parse().unwrap(),
                text: "again".to_owned(),
                redriven_as: None,
            },
            new_id: MessageId(9),
            by: "ops".parse().unwrap(),
        },
        Event::RedriveRequested { .. } => Event::DropRequested {
            request: RequestId(9),
            session: session(),
            message: FIRST,
            is_dead: false,
            by: "ops".parse().unwrap(),
        },
        Event::DropRequested { .. } => Event::InstanceStarted { instance: instance() },
        Event::InstanceStarted { instance } => Event::InstanceStartFailed {
            instance: instance.clone(),
            error: "no space left".to_owned(),
        },
        Event::InstanceStartFailed { .. } => attached(AgentState::NotLaunched),
        Event::BridgeAttached { agent: AgentState::NotLaunched, .. } => {
            attached(AgentState::Starting)
        }
        Event::BridgeAttached { agent: AgentState::Starting, .. } => attached(AgentState::Ready),
        Event::BridgeAttached { agent: AgentState::Ready, .. } => detached(),
        Event::BridgeDetached { .. } => ready(),
        Event::InstanceReady { .. } => Event::TurnProgressed {
            instance: instance(),
            turn: TURN,
            offset: 0,
            text: "par".to_owned(),
        },
        Event::TurnProgressed { .. } => answered(),
        Event::TurnEnded { outcome: TurnOutcome::Answered { .. }, .. } => failed_for_memory(),
        Event::TurnEnded {
            outcome: TurnOutcome::Failed { cause: Cause::OomLimit, .. }, ..
        } => failed(true),
        Event::TurnEnded { outcome: TurnOutcome::Failed { retryable: true, .. }, .. } => {
            failed(false)
        }
        Event::TurnEnded { outcome: TurnOutcome::Failed { .. }, .. } => {
            Event::HoldTaken { instance: instance(), name: "tool".to_owned(), for_ms: 60_000 }
        }
        Event::HoldTaken { .. } => listed(),
        Event::InputsListed { .. }
        | Event::FilesProgressed { .. }
        | Event::FilesSynced { .. }
        | Event::FilesSyncFailed { .. }
        | Event::CheckpointOffered { .. }
        | Event::UploadSubmitted { .. } => next_event_of_files(event),
        Event::RestoreRequested { .. } => exited(),
        Event::InstanceExited { .. } => paused(),
        Event::RolloutRequested { .. } => configured(),
        Event::Configured { .. } => Event::DeadlinePassed,
        Event::DeadlinePassed => return None,
    })
}

fn next_event_of_files(event: &Event) -> Event {
    match event {
        Event::InputsListed { .. } => Event::FilesProgressed {
            instance: instance(),
            progress: FilesProgress { done_files: 1, files: 2, done_bytes: 3, bytes: 6 },
        },
        Event::FilesProgressed { .. } => synced(),
        Event::FilesSynced { .. } => sync_failed(true),
        Event::FilesSyncFailed { problem: FilesProblem { retryable: true, .. }, .. } => {
            sync_failed(false)
        }
        Event::FilesSyncFailed { .. } => Event::CheckpointOffered {
            request: RequestId(9),
            instance: instance(),
            offer: CheckpointOffer {
                lineage: 0,
                uploads: 0,
                manifest: version().inputs,
                files: 1,
                bytes: 3,
                turn: None,
            },
        },
        Event::CheckpointOffered { .. } => Event::UploadSubmitted {
            request: RequestId(9),
            upload: UploadSubmission {
                session: session(),
                subject: "tom".parse().unwrap(),
                is_operator: false,
                path: "a.csv".parse().unwrap(),
                file: None,
            },
        },
        Event::UploadSubmitted { .. } => Event::RestoreRequested {
            request: RequestId(9),
            session: session(),
            checkpoint: 1,
            by: "ops".parse().unwrap(),
        },
        _other => unreachable!("{event:?} is not of files"),
    }
}

fn name_of(event: &Event) -> String {
    let name =
        match event {
            Event::MessageSubmitted { .. } => "message submitted",
            Event::SessionRequested { what: SessionRequest::Wake, .. } => "wake requested",
            Event::SessionRequested { what: SessionRequest::Stop, .. } => "stop requested",
            Event::SessionRequested { what: SessionRequest::Restart, .. } => "restart requested",
            Event::RedriveRequested { .. } => "redrive requested",
            Event::DropRequested { .. } => "drop requested",
            Event::InstanceStarted { .. } => "instance started",
            Event::InstanceStartFailed { .. } => "instance start failed",
            Event::BridgeAttached { agent, .. } => match agent {
                AgentState::NotLaunched => "bridge, not launched",
                AgentState::Starting => "bridge, starting",
                AgentState::Ready => "bridge, ready",
            },
            Event::BridgeDetached { .. } => "bridge detached",
            Event::InstanceReady { .. } => "instance ready",
            Event::InputsListed { .. } => "inputs listed",
            Event::FilesProgressed { .. } => "files progressed",
            Event::FilesSynced { .. } => "files synced",
            Event::FilesSyncFailed { problem: FilesProblem { retryable: true, .. }, .. } => {
                "sync failed, may pass"
            }
            Event::FilesSyncFailed { .. } => "sync failed",
            Event::CheckpointOffered { .. } => "checkpoint offered",
            Event::UploadSubmitted { .. } => "upload submitted",
            Event::RestoreRequested { .. } => "restore requested",
            Event::TurnProgressed { .. } => "turn progressed",
            Event::TurnEnded { outcome: TurnOutcome::Answered { .. }, .. } => "turn answered",
            Event::TurnEnded {
                outcome: TurnOutcome::Failed { cause: Cause::OomLimit, .. },
                ..
            } => "turn failed for memory",
            Event::TurnEnded { outcome: TurnOutcome::Failed { retryable, .. }, .. } => {
                if *retryable { "turn failed, retryable" } else { "turn failed for good" }
            }
            Event::HoldTaken { .. } => "hold taken",
            Event::InstanceExited { .. } => "instance exited, code 1",
            Event::RolloutRequested { .. } => "rollout paused",
            Event::Configured { .. } => "agent revised",
            Event::DeadlinePassed => "next deadline",
        };
    name.to_owned()
}

fn configured() -> Event {
    let setup = Box::new(Setup { node: NodePolicy::default(), agents: revised() });
    Event::Configured { request: RequestId(9), setup }
}

fn paused() -> Event {
    Event::RolloutRequested {
        request: RequestId(9),
        agent: "a".parse().unwrap(),
        what: RolloutRequest::Pause,
        by: "ops".parse().unwrap(),
    }
}

/// The agent in its second revision.
fn revised() -> BTreeMap<AgentName, AgentSetup> {
    let wanted = RevisionNumber(2);
    let known = [RevisionNumber::FIRST, wanted].map(|known| (known, AgentPolicy::default()));
    let setup = AgentSetup { wanted, policies: BTreeMap::from(known), canary: None };
    BTreeMap::from([("a".parse().unwrap(), setup)])
}

fn session() -> SessionId {
    "a/k".parse().unwrap()
}

/// Of the first generation; `World::aim` makes it the one that is meant.
fn instance() -> InstanceId {
    InstanceId { session: session(), generation: Generation(1) }
}

fn submitted() -> Event {
    Event::MessageSubmitted {
        request: RequestId(9),
        submission: Submission {
            id: FIRST,
            session: session(),
            subject: "tom".parse().unwrap(),
            is_operator: false,
            text: "hello".to_owned(),
            attachments: Vec::new(),
            idempotency: None,
            prior: None,
        },
    }
}

fn request(what: SessionRequest) -> Event {
    let by = "ops".parse().unwrap();
    Event::SessionRequested { request: RequestId(9), session: session(), what, by }
}

fn attached(agent: AgentState) -> Event {
    Event::BridgeAttached { instance: instance(), boot: BOOT, agent, held: vec![TURN] }
}

fn detached() -> Event {
    Event::BridgeDetached { instance: instance(), boot: BOOT }
}

fn ready() -> Event {
    Event::InstanceReady { instance: instance() }
}

fn answered() -> Event {
    let outcome = TurnOutcome::Answered { text: "1".to_owned(), exit_code: None };
    Event::TurnEnded { instance: instance(), turn: TURN, outcome }
}

fn failed(retryable: bool) -> Event {
    failed_of(Cause::AgentError, retryable)
}

fn failed_for_memory() -> Event {
    failed_of(Cause::OomLimit, true)
}

fn failed_of(cause: Cause, retryable: bool) -> Event {
    let message = "busy".to_owned();
    let outcome = TurnOutcome::Failed { cause, message, retryable, exit_code: None };
    Event::TurnEnded { instance: instance(), turn: TURN, outcome }
}

fn version() -> FilesVersion {
    FilesVersion { inputs: Manifest::default().digest(), uploads: 0 }
}

fn listed() -> Event {
    Event::InputsListed { instance: instance(), look: 1, outcome: Ok(version().inputs) }
}

fn synced() -> Event {
    Event::FilesSynced { instance: instance(), version: version() }
}

fn sync_failed(retryable: bool) -> Event {
    let message = "data/a.csv: access refused".to_owned();
    let problem = FilesProblem { cause: Cause::SyncFailed, message, retryable };
    Event::FilesSyncFailed { instance: instance(), version: version(), problem }
}

fn exited() -> Event {
    let evidence = Evidence::bare(End::Exited { code: 1 });
    Event::InstanceExited { instance: instance(), evidence }
}

struct World {
    supervisor: Supervisor,
    now: Monotonic,
    record: Option<SessionRecord>,
}

impl World {
    fn after(situation: &Situation) -> Self {
        let has_files = situation.title.ends_with("files");
        let files = FilesPolicy { has_inputs: has_files, is_kept: has_files, keep: 2 };
        let mut policy = AgentPolicy { files, ..AgentPolicy::default() };
        policy.memory.first_bytes = Some(256 << 20);
        let agents = BTreeMap::from([("a".parse().unwrap(), AgentSetup::only(policy))]);
        let starts_at_once = situation.starts_at_once;
        let node = NodePolicy { starts_at_once, ..NodePolicy::default() };
        let supervisor = Supervisor::new(node, agents, BTreeMap::new());
        let mut world = Self { supervisor, now: Monotonic(1_000), record: None };
        for event in situation.script.clone() {
            if event == Event::DeadlinePassed {
                // In a script it means: nothing happens until the turn is stuck.
                world.now = world.now + AgentPolicy::default().stuck_after;
            }
            world.play(&world.aimed(event, 0));
        }
        world
    }

    fn phase(&self) -> Phase {
        self.record.as_ref().map_or(Phase::Asleep, |record| record.phase)
    }

    fn generation(&self) -> Generation {
        self.record.as_ref().map_or(Generation(0), |record| record.generation)
    }

    /// The event, said by the newest instance or by one so many generations beside it; a message
    /// that arrives is a new one.
    fn aimed(&self, mut event: Event, beside: i64) -> Event {
        match &mut event {
            Event::InstanceStarted { instance }
            | Event::InstanceStartFailed { instance, .. }
            | Event::BridgeAttached { instance, .. }
            | Event::BridgeDetached { instance, .. }
            | Event::InstanceReady { instance }
            | Event::TurnProgressed { instance, .. }
            | Event::TurnEnded { instance, .. }
            | Event::HoldTaken { instance, .. }
            | Event::InputsListed { instance, .. }
            | Event::FilesProgressed { instance, .. }
            | Event::FilesSynced { instance, .. }
            | Event::FilesSyncFailed { instance, .. }
            | Event::CheckpointOffered { instance, .. }
            | Event::InstanceExited { instance, .. } => {
                instance.generation.0 = self.generation().0.saturating_add_signed(beside);
            }
            Event::MessageSubmitted { submission, .. } if self.record.is_some() => {
                submission.id = MessageId(2);
            }
            Event::MessageSubmitted { .. }
            | Event::SessionRequested { .. }
            | Event::RedriveRequested { .. }
            | Event::DropRequested { .. }
            | Event::UploadSubmitted { .. }
            | Event::RestoreRequested { .. }
            | Event::Configured { .. }
            | Event::RolloutRequested { .. }
            | Event::DeadlinePassed => {}
        }
        event
    }

    fn play(&mut self, event: &Event) -> Effects {
        let is_offer = matches!(event, Event::CheckpointOffered { .. });
        let is_asked = is_offer || event.instance().is_none() && *event != Event::DeadlinePassed;
        let now = Now { monotonic: self.now, wall: Wall(1_500_000_000_000 + self.now.0) };
        if let (Some(id), Some(record)) = (event.session(), &self.record)
            && !self.supervisor.is_loaded(id)
        {
            let record = record.clone();
            let stored = StoredSession { record, deliveries: vec![] };
            self.supervisor.load(now, stored);
        }
        let mut effects = Effects::default();
        self.supervisor.handle(now, event.clone(), &mut effects);
        assert_eq!(effects.answers.len(), usize::from(is_asked), "{event:?}: {effects:?}");
        for write in &effects.writes {
            match write {
                Write::PutSession(record) => {
                    self.record = Some(record.clone());
                }
                Write::InsertDecision(decision) => {
                    let (from, to) = (decision.from, decision.to);
                    assert!(from == to || from.may_become(to), "{event:?}: {from} → {to}");
                }
                _other => {}
            }
        }
        effects
    }
}

/// What one event does in one situation, in the words of a cell.
fn cell(situation: &Situation, event: &Event) -> String {
    let mut world = World::after(situation);
    let event = world.aimed(event.clone(), 0);
    if event != Event::DeadlinePassed {
        return cell_words(&world.play(&event));
    }
    // A deadline may come early, and what comes first may be a notice only.
    for _ in 0..10 {
        let Some(at) = world.supervisor.next_deadline() else { break };
        world.now = at;
        let words = cell_words(&world.play(&event));
        if words != "-" {
            return words;
        }
    }
    "-".to_owned()
}

fn cell_words(effects: &Effects) -> String {
    let mut words: Vec<String> =
        effects.answers.iter().map(|(_, answer)| answer_word(answer).to_owned()).collect();
    for write in &effects.writes {
        if let Write::InsertDecision(Decision { from, to, .. }) = write
            && from != to
        {
            words.push(format!("→ {to}"));
        }
    }
    words.extend(effects.commands.iter().map(|command| command_word(command).to_owned()));
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

fn answer_word(answer: &Answer) -> &'static str {
    match answer {
        Answer::Accepted { .. } | Answer::Requested(RequestOutcome::Accepted { .. }) => "accepted",
        Answer::Requested(RequestOutcome::Ignored(_)) => "ignored",
        Answer::Requested(RequestOutcome::Denied(_)) => "denied",
        Answer::Duplicate { .. } => "duplicate",
        Answer::Uploaded { .. } => "uploaded",
        Answer::CheckpointMade { .. } => "checkpoint",
        Answer::Configured => "configured",
        Answer::Refused(_) => "refused",
    }
}

fn command_word(command: &Command) -> &'static str {
    match command {
        Command::StartInstance { .. } => "start",
        Command::AdmitBridge { launch: Some(_), .. } => "admit+launch",
        Command::AdmitBridge { launch: None, .. } => "admit",
        Command::RefuseBridge { .. } => "refuse",
        Command::ListInputs { .. } => "list",
        Command::SyncFiles { .. } => "sync",
        Command::LaunchAgent { .. } => "launch",
        Command::DeliverTurn { .. } => "deliver",
        Command::AcknowledgeTurn { .. } => "acknowledge",
        Command::StopInstance { .. } => "stop",
        Command::KillInstance { .. } => "kill",
        Command::ReleaseInstance { .. } => "release",
    }
}

fn all_events() -> Vec<Event> {
    std::iter::successors(Some(submitted()), next_event).collect()
}

fn all_situations() -> Vec<Situation> {
    let mut all = Vec::new();
    for phase in Phase::ALL {
        for situation in situations(phase) {
            assert_eq!(World::after(&situation).phase(), phase, "{}", situation.title);
            all.push(situation);
        }
    }
    all
}

#[test]
fn every_event_in_every_situation_does_what_the_table_says() {
    let (events, situations) = (all_events(), all_situations());
    let mut table = "Answer, → phases gone through, commands; - is nothing of it.\n".to_owned();
    for some in situations.chunks(4) {
        let mut rows = vec![vec![String::new()]];
        rows[0].extend(some.iter().map(|situation| situation.title.to_owned()));
        for event in &events {
            let mut row = vec![name_of(event)];
            row.extend(some.iter().map(|situation| cell(situation, event)));
            rows.push(row);
        }
        table.push('\n');
        table.push_str(&aligned(&rows));
    }
    expect_file!["table.txt"].assert_eq(&table);
}

#[test]
fn what_another_generation_says_changes_nothing_in_any_situation() {
    for (situation, beside) in all_situations().iter().flat_map(|one| [(one, -1), (one, 1)]) {
        for event in all_events() {
            let mut world = World::after(situation);
            let event = world.aimed(event, beside);
            if event.instance().is_none() {
                continue;
            }
            let before = (world.record.clone(), queue_of(&world));
            let effects = world.play(&event);
            assert_eq!((world.record.clone(), queue_of(&world)), before, "{event:?}");
            assert_eq!((effects.stale, effects.writes.len()), (1, 0), "{event:?}");
            assert_eq!(effects.notices, [], "{event:?}");
            let is_harmless = |command: &Command| {
                matches!(command_word(command), "refuse" | "acknowledge" | "release")
            };
            assert!(effects.commands.iter().all(is_harmless), "{event:?}: {effects:?}");
        }
    }
}

fn queue_of(world: &World) -> Option<Queue> {
    world.supervisor.session(&session()).map(|session| session.queue().clone())
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows[0].len();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}
