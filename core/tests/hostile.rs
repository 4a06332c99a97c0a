//! Anything in any order: three sessions, drivers and bridges that lie, clocks that jump, daemons
//! that die.
//!
//! Owner: `core`. Invariants: no panic; no illegal transition; a request is answered exactly once;
//! a message ends once and never overtakes; a daemon that came up now would know the same; and when
//! the hostility ends, every message ends too. Absent: what exactly follows (`story`, `table`).

mod model;

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_core::cause::Cause;
use dormouse_core::command::{Command, Effects};
use dormouse_core::event::{
    AgentState, Attachment, CheckpointOffer, Event, FilesProblem, FilesProgress, SessionRequest,
    Submission, TurnOutcome, UploadSubmission,
};
use dormouse_core::evidence::{AskedBy, End, Evidence, OomVictim};
use dormouse_core::id::{
    AgentName, BootId, Generation, InstanceId, MessageId, RequestId, SessionId, TurnId,
};
use dormouse_core::manifest::{FileKind, FilesVersion, Manifest, ManifestDigest, Sha256Hash};
use dormouse_core::policy::{AgentPolicy, AgentSetup, FilesPolicy, NodePolicy, RetrySafety};
use dormouse_core::record::{Idempotency, MessageState};
use dormouse_core::session::phase::Phase;
use dormouse_core::supervisor::Supervisor;
use dormouse_core::time::{Monotonic, Now, Wall};
use proptest::prelude::*;

use model::Store;

/// One step, as numbers that `World` reads against what is there at that time.
#[derive(Debug, Clone)]
enum Step {
    Submit {
        session: usize,
        key: Option<u8>,
        body: u8,
        is_owner: bool,
    },
    Request {
        session: usize,
        what: SessionRequest,
    },
    Upload {
        session: usize,
        is_owner: bool,
    },
    Restore {
        session: usize,
        checkpoint: u64,
    },
    Redrive {
        pick: usize,
    },
    Drop {
        pick: usize,
    },
    OfInstance {
        session: usize,
        beside: i64,
        what: OfInstance,
    },
    Wait {
        millis: u64,
    },
    /// Time passes, and the daemon does not run.
    Suspend {
        millis: u64,
    },
    WallClock {
        millis: i64,
    },
    Restart,
}

#[derive(Debug, Clone)]
enum OfInstance {
    Started,
    StartFailed,
    Attached { boot: u128, agent: AgentState, holds_turn: bool },
    Detached { boot: u128 },
    Ready,
    Progressed { turn: usize, offset: u64, text: &'static str },
    Ended { turn: usize, outcome: TurnOutcome },
    Held { name: &'static str, for_ms: u64 },
    Listed { look: u64, outcome: Result<u8, bool> },
    Synced { inputs: u8, uploads: u64 },
    SyncFailed { inputs: u8, uploads: u64, retryable: bool },
    FilesProgressed,
    Offered { lineage: u64, uploads: u64 },
    Exited { evidence: Evidence },
}

fn step() -> impl Strategy<Value = Step> {
    let session = 0usize..3;
    prop_oneof![
        4 => (session.clone(), prop::option::of(0u8..3), 0u8..2, prop::bool::weighted(0.9))
            .prop_map(|(session, key, body, is_owner)| {
                Step::Submit { session, key, body, is_owner }
            }),
        2 => (session.clone(), request())
            .prop_map(|(session, what)| Step::Request { session, what }),
        1 => (session.clone(), prop::bool::weighted(0.9))
            .prop_map(|(session, is_owner)| Step::Upload { session, is_owner }),
        1 => (session.clone(), 0u64..3)
            .prop_map(|(session, checkpoint)| Step::Restore { session, checkpoint }),
        1 => (0usize..40).prop_map(|pick| Step::Redrive { pick }),
        1 => (0usize..40).prop_map(|pick| Step::Drop { pick }),
        16 => (session, prop_oneof![8 => Just(0), 1 => -2i64..3], of_instance()).prop_map(
            |(session, beside, what)| Step::OfInstance { session, beside, what }),
        4 => span().prop_map(|millis| Step::Wait { millis }),
        1 => span().prop_map(|millis| Step::Suspend { millis }),
        1 => (-100_000_000i64..100_000_000).prop_map(|millis| Step::WallClock { millis }),
        1 => Just(Step::Restart),
    ]
}

/// Spans around every limit of `policy`.
fn span() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..3, 0u64..1_000, 0u64..30_000, 0u64..400_000]
}

fn request() -> impl Strategy<Value = SessionRequest> {
    prop::sample::select(vec![SessionRequest::Wake, SessionRequest::Stop, SessionRequest::Restart])
}

fn of_instance() -> impl Strategy<Value = OfInstance> {
    let agent = vec![AgentState::NotLaunched, AgentState::Starting, AgentState::Ready];
    prop_oneof![
        1 => Just(OfInstance::Started),
        1 => Just(OfInstance::StartFailed),
        6 => (1u128..3, prop::sample::select(agent), any::<bool>()).prop_map(
            |(boot, agent, holds_turn)| OfInstance::Attached { boot, agent, holds_turn }),
        2 => (1u128..3).prop_map(|boot| OfInstance::Detached { boot }),
        4 => Just(OfInstance::Ready),
        3 => (0usize..4, prop_oneof![0u64..8, Just(u64::MAX)],
            prop::sample::select(vec!["", "a", "äöü", "text"])).prop_map(
            |(turn, offset, text)| OfInstance::Progressed { turn, offset, text }),
        5 => (0usize..4, outcome()).prop_map(
            |(turn, outcome)| OfInstance::Ended { turn, outcome }),
        2 => (prop::sample::select(vec!["a", "b", ""]), prop_oneof![0u64..200_000, Just(u64::MAX)])
            .prop_map(|(name, for_ms)| OfInstance::Held { name, for_ms }),
        3 => evidence().prop_map(|evidence| OfInstance::Exited { evidence }),
        4 => (1u64..5, prop_oneof![4 => (0u8..2).prop_map(Ok), 1 => any::<bool>().prop_map(Err)])
            .prop_map(|(look, outcome)| OfInstance::Listed { look, outcome }),
        4 => (0u8..2, 0u64..3).prop_map(|(inputs, uploads)| OfInstance::Synced { inputs, uploads }),
        2 => (0u8..2, 0u64..3, any::<bool>()).prop_map(
            |(inputs, uploads, retryable)| OfInstance::SyncFailed { inputs, uploads, retryable }),
        1 => Just(OfInstance::FilesProgressed),
        2 => (0u64..2, 0u64..3).prop_map(
            |(lineage, uploads)| OfInstance::Offered { lineage, uploads }),
    ]
}

fn outcome() -> impl Strategy<Value = TurnOutcome> {
    let failed = |(cause, retryable)| TurnOutcome::Failed {
        cause,
        message: "why".to_owned(),
        retryable,
        exit_code: None,
    };
    prop_oneof![
        Just(TurnOutcome::Answered { text: "reply".to_owned(), exit_code: None }),
        (prop::sample::select(Cause::ALL.to_vec()), any::<bool>()).prop_map(failed),
    ]
}

fn evidence() -> impl Strategy<Value = Evidence> {
    let ends = vec![
        End::Exited { code: 0 },
        End::Exited { code: 1 },
        End::Signaled { signal: 9 },
        End::Signaled { signal: 15 },
        End::LaunchFailed { error: "no such file".to_owned() },
        End::NeverLaunched,
        End::BridgeLost,
    ];
    let askers = vec![
        None,
        Some(AskedBy::Daemon),
        Some(AskedBy::OrphanLimit),
        Some(AskedBy::Signal),
        Some(AskedBy::Driver),
    ];
    let kills = prop::option::of(0u64..2);
    let victims = vec![None, Some(OomVictim::Main), Some(OomVictim::Child)];
    let who = (prop::sample::select(askers), prop::sample::select(victims));
    (prop::sample::select(ends), who, kills).prop_map(|(end, (asked_by, oom_victim), oom_kills)| {
        Evidence { asked_by, oom_kills, oom_victim, ..Evidence::bare(end) }
    })
}

struct World {
    supervisor: Supervisor,
    store: Store,
    agents: BTreeMap<AgentName, AgentSetup>,
    node: NodePolicy,
    monotonic: Monotonic,
    wall: Wall,
    next_id: u64,
    /// The bridges that were admitted and are still connected.
    links: BTreeMap<InstanceId, BootId>,
    /// The newest look at its inputs that was ordered.
    looks: BTreeMap<InstanceId, u64>,
}

impl World {
    fn new(retry: RetrySafety, starts_at_once: usize, files: FilesPolicy) -> Self {
        let policy = AgentPolicy {
            stop_after: Duration::from_secs(100),
            ready_within: Duration::from_secs(60),
            stuck_after: Duration::from_secs(50),
            turn_within: Duration::from_secs(300),
            drain_within: Duration::from_secs(70),
            reattach_within: Duration::from_secs(30),
            retry,
            files,
            ..AgentPolicy::default()
        };
        let agents = BTreeMap::from([("a".parse().unwrap(), AgentSetup::only(policy))]);
        let node = NodePolicy { starts_at_once, queue_messages_max: 5, ..NodePolicy::default() };
        Self {
            supervisor: Supervisor::new(node.clone(), agents.clone(), BTreeMap::new()),
            store: Store::default(),
            agents,
            node,
            monotonic: Monotonic(1_000_000),
            wall: Wall(1_500_000_000_000),
            next_id: 0,
            links: BTreeMap::new(),
            looks: BTreeMap::new(),
        }
    }

    fn has_inputs(&self) -> bool {
        self.agents.values().any(|setup| setup.policy_of(setup.wanted).files.has_inputs)
    }

    fn now(&self) -> Now {
        Now { monotonic: self.monotonic, wall: self.wall }
    }

    fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn handle(&mut self, event: &Event) -> Effects {
        let now = self.now();
        if let Event::BridgeDetached { instance, boot } = event
            && self.links.get(instance) == Some(boot)
        {
            self.links.remove(instance);
        }
        if let Some(id) = event.session()
            && !self.supervisor.is_loaded(id)
            && let Some(stored) = self.store.stored(id)
        {
            self.supervisor.load(now, stored);
        }
        let is_of_another_life = event.instance().is_some_and(|instance| {
            let newest = self.store.sessions.get(&instance.session);
            newest.is_none_or(|record| record.generation != instance.generation)
        });
        let mut effects = Effects::default();
        self.supervisor.handle(now, event.clone(), &mut effects);
        self.store.commit(event, &effects);
        self.store.check_rebuilt(&self.supervisor, now, &self.agents);
        if is_of_another_life {
            assert_eq!(
                (&effects.writes[..], &effects.notices[..]),
                (&[][..], &[][..]),
                "{event:?}"
            );
        }
        self.check_links(&effects);
        let starting = self.supervisor.sessions().filter(|one| one.phase() == Phase::Starting);
        assert!(starting.count() <= self.node.starts_at_once, "the cap of starts holds");
        effects
    }

    /// Turns are handed to connected bridges only.
    fn check_links(&mut self, effects: &Effects) {
        for command in &effects.commands {
            match command {
                Command::AdmitBridge { instance, boot, .. } => {
                    self.links.insert(instance.clone(), *boot);
                }
                Command::DeliverTurn { instance, turn } => {
                    assert!(self.links.contains_key(instance), "{turn} to nobody at {instance}");
                }
                Command::LaunchAgent { instance, .. } => {
                    assert!(self.links.contains_key(instance), "nobody launches {instance}");
                }
                Command::ListInputs { instance, look } => {
                    self.looks.insert(instance.clone(), *look);
                }
                Command::StartInstance { .. }
                | Command::SyncFiles { .. }
                | Command::RefuseBridge { .. }
                | Command::AcknowledgeTurn { .. }
                | Command::StopInstance { .. }
                | Command::KillInstance { .. }
                | Command::ReleaseInstance { .. } => {}
            }
        }
    }

    fn handle_due(&mut self) {
        for _ in 0..50 {
            if self.supervisor.next_deadline().is_none_or(|at| at > self.monotonic) {
                return;
            }
            self.handle(&Event::DeadlinePassed);
        }
        panic!("a deadline comes back for ever");
    }

    fn pass(&mut self, millis: u64) {
        let until = Monotonic(self.monotonic.0 + millis);
        while let Some(at) = self.supervisor.next_deadline().filter(|at| *at <= until) {
            self.advance_to(at.max(self.monotonic));
            self.handle_due();
        }
        self.advance_to(until);
    }

    fn advance_to(&mut self, at: Monotonic) {
        self.wall.0 += at.0 - self.monotonic.0;
        self.monotonic = at;
    }

    fn restart(&mut self) {
        self.monotonic = Monotonic(self.monotonic.0 % 977);
        self.links.clear();
        let (node, agents) = (self.node.clone(), self.agents.clone());
        let mut effects = Effects::default();
        self.supervisor = self.store.recover(self.now(), node, agents, &mut effects);
        self.store.commit(&Event::DeadlinePassed, &effects);
        self.store.check_rebuilt(&self.supervisor, self.now(), &self.agents);
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Submit { session, key, body, is_owner } => {
                let event = self.submission(session, key, body, is_owner);
                self.handle(&event);
            }
            Step::Request { session, what } => {
                let request = RequestId(self.fresh());
                let by = "ops".parse().unwrap();
                self.handle(&Event::SessionRequested { request, session: id(session), what, by });
            }
            Step::Upload { session, is_owner } => {
                let upload = UploadSubmission {
                    session: id(session),
                    subject: if is_owner { "tom" } else { "eve" }.parse().unwrap(),
                    is_operator: false,
                    path: "a.csv".parse().unwrap(),
                    file: None,
                };
                let request = RequestId(self.fresh());
                self.handle(&Event::UploadSubmitted { request, upload });
            }
            Step::Restore { session, checkpoint } => {
                let request = RequestId(self.fresh());
                let (session, by) = (id(session), "ops".parse().unwrap());
                self.handle(&Event::RestoreRequested { request, session, checkpoint, by });
            }
            Step::Redrive { pick } => self.redrive(pick),
            Step::Drop { pick } => self.drop_some(pick),
            Step::OfInstance { session, beside, what } => {
                let event = self.of_instance(session, beside, what);
                // A request of its own, so that answers are told apart.
                self.fresh();
                self.handle(&event);
            }
            Step::Wait { millis } => self.pass(millis),
            Step::Suspend { millis } => self.advance_to(Monotonic(self.monotonic.0 + millis)),
            Step::WallClock { millis } => {
                self.wall.0 = self.wall.0.saturating_add_signed(millis);
            }
            Step::Restart => self.restart(),
        }
        self.handle_due();
    }

    fn submission(&mut self, session: usize, key: Option<u8>, body: u8, is_owner: bool) -> Event {
        let fresh = self.fresh();
        let subject = if is_owner { "tom" } else { "eve" }.parse().unwrap();
        let key = key.map(|key| format!("key {key}"));
        let prior = key.as_ref().and_then(|key| self.store.prior(&subject, key));
        let (session, text) = (id(session), "x".repeat(body.into()));
        let digest = format!("{session} {text}");
        let attachments = (0..body % 3)
            .map(|_| Attachment { path: "a.csv".parse().unwrap(), file: FileKind::Folder });
        let submission = Submission {
            id: MessageId(fresh.into()),
            session,
            subject,
            is_operator: false,
            text,
            attachments: attachments.collect(),
            idempotency: key.map(|key| Idempotency { key, digest }),
            prior,
        };
        Event::MessageSubmitted { request: RequestId(fresh), submission }
    }

    fn some_message(&self, pick: usize) -> Option<MessageId> {
        let count = self.store.messages.len();
        self.store.messages.keys().nth(pick.checked_rem(count)?).copied()
    }

    fn redrive(&mut self, pick: usize) {
        let fresh = self.fresh();
        let message = self.some_message(pick);
        if let Some(dead) = message.and_then(|message| self.store.dead_letter(message)) {
            let (request, new_id) = (RequestId(fresh), MessageId(fresh.into()));
            let by = "ops".parse().unwrap();
            self.handle(&Event::RedriveRequested { request, dead, new_id, by });
        }
    }

    fn drop_some(&mut self, pick: usize) {
        let request = RequestId(self.fresh());
        if let Some(message) = self.some_message(pick) {
            let session = self.store.messages[&message].record.session.clone();
            let is_dead = self.store.is_dead(message);
            let by = "ops".parse().unwrap();
            self.handle(&Event::DropRequested { request, session, message, is_dead, by });
        }
    }

    fn instance(&self, session: usize, beside: i64) -> InstanceId {
        let session = id(session);
        let newest = self.store.sessions.get(&session).map_or(0, |record| record.generation.0);
        let generation = Generation(newest.saturating_add_signed(beside));
        InstanceId { session, generation }
    }

    /// The running turn (by far most often), an earlier attempt of it, a later one, a stranger's.
    fn turn(&self, session: usize, pick: usize) -> TurnId {
        let running = self.supervisor.session(&id(session)).and_then(|session| session.turn());
        let Some(running) = running else { return TurnId { message: MessageId(1), attempt: 1 } };
        match pick {
            1 => TurnId { attempt: running.attempt + 1, ..running },
            2 => TurnId { attempt: running.attempt.saturating_sub(1), ..running },
            _most => running,
        }
    }

    fn of_instance(&self, session: usize, beside: i64, what: OfInstance) -> Event {
        let instance = self.instance(session, beside);
        match what {
            OfInstance::Started => Event::InstanceStarted { instance },
            OfInstance::StartFailed => {
                Event::InstanceStartFailed { instance, error: "full".to_owned() }
            }
            OfInstance::Attached { boot, agent, holds_turn } => {
                let held = if holds_turn { vec![self.turn(session, 0)] } else { vec![] };
                Event::BridgeAttached { instance, boot: BootId(boot), agent, held }
            }
            OfInstance::Detached { boot } => Event::BridgeDetached { instance, boot: BootId(boot) },
            OfInstance::Ready => Event::InstanceReady { instance },
            OfInstance::Progressed { turn, offset, text } => {
                let (turn, text) = (self.turn(session, turn), text.to_owned());
                Event::TurnProgressed { instance, turn, offset, text }
            }
            OfInstance::Ended { turn, outcome } => {
                Event::TurnEnded { instance, turn: self.turn(session, turn), outcome }
            }
            OfInstance::Held { name, for_ms } => {
                Event::HoldTaken { instance, name: name.to_owned(), for_ms }
            }
            OfInstance::Listed { look, outcome } => {
                let outcome = outcome.map(inputs).map_err(problem);
                Event::InputsListed { instance, look, outcome }
            }
            OfInstance::Synced { inputs: which, uploads } => {
                let version = FilesVersion { inputs: inputs(which), uploads };
                Event::FilesSynced { instance, version }
            }
            OfInstance::SyncFailed { inputs: which, uploads, retryable } => {
                let version = FilesVersion { inputs: inputs(which), uploads };
                Event::FilesSyncFailed { instance, version, problem: problem(retryable) }
            }
            OfInstance::FilesProgressed => Event::FilesProgressed {
                instance,
                progress: FilesProgress { done_files: 0, files: 1, done_bytes: 0, bytes: 1 },
            },
            OfInstance::Offered { lineage, uploads } => {
                let offer = CheckpointOffer {
                    lineage,
                    uploads,
                    manifest: inputs(0),
                    files: 0,
                    bytes: 0,
                    turn: None,
                };
                Event::CheckpointOffered { request: RequestId(self.next_id), instance, offer }
            }
            OfInstance::Exited { evidence } => Event::InstanceExited { instance, evidence },
        }
    }

    /// From now on everything works: what is starting starts, what is asked is answered, what is
    /// stopped ends. Then nothing may be left (FAULTS I23).
    fn heal(&mut self) {
        for _ in 0..60 {
            for session in 0..3 {
                self.heal_session(session);
            }
            self.pass(20_000);
        }
        for kept in self.store.messages.values() {
            let is_open = matches!(kept.state, MessageState::Pending | MessageState::Leased);
            assert!(!is_open, "{} never ended: {kept:?}", kept.record.id);
        }
        for session in self.supervisor.sessions() {
            let phase = session.phase();
            assert!(!matches!(phase, Phase::Starting | Phase::Stopping), "{phase} for ever");
        }
    }

    fn heal_session(&mut self, session: usize) {
        let phase = self.supervisor.session(&id(session)).map(|session| session.phase());
        let whats = match phase {
            None | Some(Phase::Asleep | Phase::Backoff | Phase::Tripped) => vec![],
            Some(Phase::Starting | Phase::Awake | Phase::Draining) => {
                let agent = AgentState::Ready;
                let text = "healed".to_owned();
                let outcome = TurnOutcome::Answered { text, exit_code: None };
                let attach = |boot| OfInstance::Attached { boot, agent, holds_turn: true };
                let look = self.looks.get(&self.instance(session, 0)).copied().unwrap_or(0);
                let which = u8::from(self.has_inputs());
                let stored = self.store.sessions.get(&id(session));
                let uploads = stored.map_or(0, |record| record.files.uploads);
                vec![
                    attach(1),
                    attach(2),
                    OfInstance::Listed { look, outcome: Ok(which) },
                    OfInstance::Synced { inputs: which, uploads },
                    OfInstance::Listed { look: look + 1, outcome: Ok(which) },
                    OfInstance::Ended { turn: 0, outcome },
                ]
            }
            Some(Phase::Stopping) => {
                let evidence = Evidence::bare(End::Signaled { signal: 9 });
                vec![OfInstance::Exited { evidence }]
            }
        };
        for what in whats {
            let event = self.of_instance(session, 0, what);
            self.handle(&event);
            self.handle_due();
        }
    }
}

/// Empty ones, which are those of an agent that declares none, or others.
fn inputs(which: u8) -> ManifestDigest {
    match which {
        0 => Manifest::default().digest(),
        _other => ManifestDigest(Sha256Hash::of(&[which])),
    }
}

fn problem(retryable: bool) -> FilesProblem {
    let cause = if retryable { Cause::SyncFailed } else { Cause::InputMissing };
    FilesProblem { cause, message: "no such file".to_owned(), retryable }
}

fn id(session: usize) -> SessionId {
    format!("a/{session}").parse().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_said_in_any_order_breaks_a_promise(
        steps in prop::collection::vec(step(), 1..120),
        asks in prop::bool::weighted(0.2),
        starts_at_once in 1usize..4,
        has_inputs in any::<bool>(),
        is_kept in any::<bool>(),
    ) {
        let retry = if asks { RetrySafety::Ask } else { RetrySafety::Safe };
        let files = FilesPolicy { has_inputs, is_kept, keep: 2 };
        let mut world = World::new(retry, starts_at_once, files);
        for step in steps {
            world.play(step);
        }
        world.heal();
    }
}
