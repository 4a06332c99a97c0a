//! Each field of a fake script is seen to act, through the registry, in virtual time.
//!
//! Owner: the tests of `driver::fake`. Absent: sockets and real waiting; the clock is paused and
//! jumps.

use std::path::PathBuf;

use dormouse_bridge::frames::{Adapter, Launch, ToBridge};
use dormouse_core::cause::Cause;
use dormouse_core::event::{AgentState, TurnOutcome};
use dormouse_core::id::TurnId;

use super::*;
use crate::driver::WhenNotEnforceable;
use crate::testing::{ScratchFolder, instance, turn};

struct Rig {
    driver: FakeDriver,
    registry: Registry,
    events: mpsc::Receiver<Event>,
    begun: Instant,
    _scratch: ScratchFolder,
}

fn rig(script: &str) -> Rig {
    let scratch = ScratchFolder::new();
    let (events_in, events) = mpsc::channel(256);
    let registry = Registry::new(events_in.clone());
    let data = DataFolder::open(scratch.path()).unwrap();
    let driver = FakeDriver::new(data, registry.clone(), events_in);
    driver.set_script(main_1().session.agent_name(), serde_json::from_str(script).unwrap());
    Rig { driver, registry, events, begun: Instant::now(), _scratch: scratch }
}

fn main_1() -> InstanceId {
    instance("fake/main", 1)
}

fn order() -> StartOrder {
    StartOrder {
        instance: main_1(),
        memory_limit_bytes: Some(1 << 20),
        pids_limit: None,
        when_not_enforceable: WhenNotEnforceable::Refuse,
    }
}

fn launch() -> ToBridge {
    ToBridge::Welcome {
        launch: Some(Launch {
            command: vec!["fake".into()],
            env: BTreeMap::new(),
            workspace: PathBuf::from("/"),
            adapter: Adapter::Exec,
            orphan_limit_ms: 1,
            heap_percent: 75,
            files: Vec::new(),
            secrets: BTreeMap::new(),
        }),
    }
}

fn answered(text: &str) -> TurnOutcome {
    TurnOutcome::Answered { text: text.into(), exit_code: None }
}

impl Rig {
    /// The next event, and how many milliseconds after the rig's beginning it came.
    async fn next(&mut self) -> (u64, Event) {
        let within = Duration::from_secs(3600);
        let event = tokio::time::timeout(within, self.events.recv()).await;
        let event = event.expect("an event within an hour").expect("an open channel");
        (u64::try_from(self.begun.elapsed().as_millis()).unwrap(), event)
    }

    async fn expect(&mut self, at_ms: u64, event: Event) {
        assert_eq!(self.next().await, (at_ms, event));
    }

    async fn nothing_more_happens(&mut self) {
        let within = Duration::from_secs(3600);
        let event = tokio::time::timeout(within, self.events.recv()).await;
        assert!(event.is_err(), "{event:?}");
    }

    async fn attached(&mut self) -> (u64, BootId, AgentState, Vec<TurnId>) {
        match self.next().await {
            (at, Event::BridgeAttached { instance, boot, agent, held }) if instance == main_1() => {
                (at, boot, agent, held)
            }
            other => panic!("expected an attachment, got {other:?}"),
        }
    }

    async fn launched(&mut self) -> BootId {
        self.driver.start(order()).await.unwrap();
        let (_, boot, agent, held) = self.attached().await;
        assert_eq!((agent, held), (AgentState::NotLaunched, vec![]));
        assert!(self.registry.send_to_boot(&main_1(), boot, launch()));
        boot
    }

    async fn ready(&mut self) -> BootId {
        let boot = self.launched().await;
        assert_eq!(self.next().await.1, Event::InstanceReady { instance: main_1() });
        boot
    }

    fn send(&self, frame: ToBridge) {
        assert!(self.registry.send(&main_1(), frame));
    }

    fn say(&self, number: u128, text: &str) {
        self.send(ToBridge::Turn { turn: turn(number), text: text.into() });
    }

    async fn exited(&mut self) -> (u64, Evidence) {
        match self.next().await {
            (at, Event::InstanceExited { instance, evidence }) if instance == main_1() => {
                (at, evidence)
            }
            other => panic!("expected an exit, got {other:?}"),
        }
    }

    async fn reply_to(&mut self, number: u128, text: &str) -> String {
        self.say(number, text);
        loop {
            match self.next().await.1 {
                Event::TurnEnded { outcome: TurnOutcome::Answered { text, .. }, .. } => {
                    self.send(ToBridge::Acknowledge { turn: turn(number) });
                    return text;
                }
                Event::TurnProgressed { .. } => {}
                other => panic!("expected an answer, got {other:?}"),
            }
        }
    }
}

fn progressed(number: u128, offset: u64, text: &str) -> Event {
    let (instance, turn, text) = (main_1(), turn(number), text.into());
    Event::TurnProgressed { instance, turn, offset, text }
}

fn ended(number: u128, outcome: TurnOutcome) -> Event {
    Event::TurnEnded { instance: main_1(), turn: turn(number), outcome }
}

#[tokio::test(start_paused = true)]
async fn without_a_script_it_is_ready_at_once_and_echoes() {
    let mut rig = rig("{}");
    rig.ready().await;
    rig.say(1, "hello");
    rig.expect(0, progressed(1, 0, "hello")).await;
    rig.expect(0, ended(1, answered("hello"))).await;
    rig.nothing_more_happens().await;
}

#[tokio::test(start_paused = true)]
async fn refuse_start_refuses_with_its_words() {
    let rig = rig(r#"{"refuse_start": "no room"}"#);
    let error = rig.driver.start(order()).await.unwrap_err();
    assert_eq!(error.to_string(), "no room");
    assert!(rig.driver.list().await.unwrap().found.is_empty());
}

#[tokio::test(start_paused = true)]
async fn start_takes_and_ready_after_are_waited_for() {
    let mut rig = rig(r#"{"start_takes_ms": 70, "ready_after_ms": 300}"#);
    rig.driver.start(order()).await.unwrap();
    let (at, boot, _, _) = rig.attached().await;
    assert_eq!(at, 70);
    assert!(rig.registry.send_to_boot(&main_1(), boot, launch()));
    rig.expect(370, Event::InstanceReady { instance: main_1() }).await;
}

#[tokio::test(start_paused = true)]
async fn never_attaches_and_never_ready_mean_never() {
    let mut silent = rig(r#"{"never_attaches": true}"#);
    silent.driver.start(order()).await.unwrap();
    silent.nothing_more_happens().await;
    assert_eq!(silent.driver.list().await.unwrap().found[0].state, FoundState::Alive);

    let mut unready = rig(r#"{"never_ready": true}"#);
    unready.launched().await;
    unready.nothing_more_happens().await;
}

#[tokio::test(start_paused = true)]
async fn it_waits_for_its_launch() {
    let mut rig = rig(r#"{"run_for_ms": 5}"#);
    rig.driver.start(order()).await.unwrap();
    let (_, boot, _, _) = rig.attached().await;
    let welcome = ToBridge::Welcome { launch: None };
    assert!(rig.registry.send_to_boot(&main_1(), boot, welcome));
    rig.nothing_more_happens().await;
}

#[tokio::test(start_paused = true)]
async fn reply_says_what_the_answer_is() {
    let mut count = rig(r#"{"reply": "count"}"#);
    count.ready().await;
    assert_eq!(count.reply_to(1, "a").await, "1");
    assert_eq!(count.reply_to(2, "b").await, "2");
    let mut fixed = rig(r#"{"reply": {"fixed": "forty-two"}}"#);
    fixed.ready().await;
    assert_eq!(fixed.reply_to(1, "a").await, "forty-two");
}

#[tokio::test(start_paused = true)]
async fn turn_takes_chunks_and_chunk_every_shape_the_stream() {
    let mut rig = rig(r#"{"turn_takes_ms": 100, "chunks": 3, "chunk_every_ms": 40}"#);
    rig.ready().await;
    rig.say(1, "abcdef");
    rig.expect(100, progressed(1, 0, "ab")).await;
    rig.expect(140, progressed(1, 2, "cd")).await;
    rig.expect(180, progressed(1, 4, "ef")).await;
    rig.expect(180, ended(1, answered("abcdef"))).await;
}

#[tokio::test(start_paused = true)]
async fn no_chunks_stream_nothing() {
    let mut rig = rig(r#"{"chunks": 0}"#);
    rig.ready().await;
    rig.say(1, "abc");
    rig.expect(0, ended(1, answered("abc"))).await;
}

#[tokio::test(start_paused = true)]
async fn die_on_ends_it_as_exit_says_and_other_messages_do_not() {
    let script = r#"{"die_on": "poison", "turn_takes_ms": 7, "log": "aargh",
                     "exit": {"kind": "signaled", "signal": 11}}"#;
    let mut rig = rig(script);
    rig.ready().await;
    assert_eq!(rig.reply_to(1, "bread").await, "bread");
    rig.say(2, "some poison, please");
    let (at, evidence) = rig.exited().await;
    assert_eq!(at, 14);
    assert_eq!(evidence.end, End::Signaled { signal: 11 });
    assert_eq!((evidence.oom_kills, evidence.uptime_ms), (Some(0), Some(14)));
    assert_eq!((evidence.log_tail.as_str(), evidence.asked_by), ("aargh", None));
    rig.nothing_more_happens().await;
}

#[tokio::test(start_paused = true)]
async fn run_for_ends_it_by_itself() {
    let mut rig = rig(r#"{"run_for_ms": 2500, "exit": {"kind": "exited", "code": 7}}"#);
    rig.ready().await;
    let (at, evidence) = rig.exited().await;
    assert_eq!((at, evidence.end), (2500, End::Exited { code: 7 }));
}

#[tokio::test(start_paused = true)]
async fn oom_at_and_the_exit_out_of_memory_leave_the_kernels_evidence() {
    for script in
        [r#"{"oom_at_ms": 30}"#, r#"{"run_for_ms": 30, "exit": {"kind": "out_of_memory"}}"#]
    {
        let mut rig = rig(script);
        rig.ready().await;
        let (at, evidence) = rig.exited().await;
        assert_eq!((at, evidence.end), (30, End::Signaled { signal: 9 }));
        assert_eq!(evidence.oom_kills, Some(1));
        assert_eq!(evidence.memory_peak_bytes, Some(1 << 20));
        assert_eq!(evidence.memory_limit_bytes, Some(1 << 20));
    }
}

#[tokio::test(start_paused = true)]
async fn the_exit_bridge_lost_takes_the_bridge_with_it() {
    let mut rig = rig(r#"{"run_for_ms": 30, "exit": {"kind": "bridge_lost"}}"#);
    let boot = rig.ready().await;
    rig.say(1, "unacknowledged");
    rig.expect(0, progressed(1, 0, "unacknowledged")).await;
    rig.expect(0, ended(1, answered("unacknowledged"))).await;
    rig.expect(30, Event::BridgeDetached { instance: main_1(), boot }).await;
    // The driver finds the kept result, and reports it before the end.
    rig.expect(30, ended(1, answered("unacknowledged"))).await;
    let (_, evidence) = rig.exited().await;
    assert_eq!(evidence, Evidence::bare(End::BridgeLost));
}

#[tokio::test(start_paused = true)]
async fn hang_turn_on_leaves_the_turn_without_a_word() {
    let mut rig = rig(r#"{"hang_turn_on": "wait"}"#);
    rig.ready().await;
    rig.say(1, "wait for me");
    rig.nothing_more_happens().await;
    rig.send(ToBridge::Stop { grace_ms: 10 });
    assert_eq!(rig.exited().await.1.asked_by, Some(AskedBy::Daemon));
}

#[tokio::test(start_paused = true)]
async fn fail_on_fails_the_turn_and_says_whether_to_retry() {
    for (script, retryable) in
        [(r#"{"fail_on": "x"}"#, false), (r#"{"fail_on": "x", "fail_is_retryable": true}"#, true)]
    {
        let mut rig = rig(script);
        rig.ready().await;
        rig.say(1, "x");
        let (_, event) = rig.next().await;
        let Event::TurnEnded {
            outcome: TurnOutcome::Failed { cause, retryable: said, .. }, ..
        } = event
        else {
            panic!("expected a failure, got {event:?}")
        };
        assert_eq!((cause, said), (Cause::AgentError, retryable));
        assert_eq!(rig.reply_to(2, "y").await, "y");
    }
}

#[tokio::test(start_paused = true)]
async fn lose_line_on_breaks_the_connection_and_comes_back_with_the_turn() {
    let mut rig = rig(r#"{"lose_line_on": "oops", "turn_takes_ms": 50}"#);
    let boot = rig.ready().await;
    rig.say(1, "oops");
    rig.expect(0, Event::BridgeDetached { instance: main_1(), boot }).await;
    let (at, boot_again, agent, held) = rig.attached().await;
    assert_eq!((at, boot_again, agent, held), (10, boot, AgentState::Ready, vec![turn(1)]));
    let welcome = ToBridge::Welcome { launch: None };
    assert!(rig.registry.send_to_boot(&main_1(), boot, welcome));
    // The repeated order of a turn that runs changes nothing.
    rig.say(1, "oops");
    rig.expect(50, progressed(1, 0, "oops")).await;
    rig.expect(50, ended(1, answered("oops"))).await;
    rig.nothing_more_happens().await;
}

#[tokio::test(start_paused = true)]
async fn hold_on_takes_a_hold_of_the_given_length() {
    let mut rig = rig(r#"{"hold_on": "long", "hold_for_ms": 4321}"#);
    rig.ready().await;
    rig.say(1, "a long one");
    let (instance, name) = (main_1(), "fake".into());
    rig.expect(0, Event::HoldTaken { instance, name, for_ms: 4321 }).await;
}

#[tokio::test(start_paused = true)]
async fn stop_takes_and_ignores_stop_decide_how_a_stop_goes() {
    let cases = [
        (r#"{"stop_takes_ms": 60}"#, 60, false),
        (r#"{"stop_takes_ms": 101}"#, 100, true),
        (r#"{"ignores_stop": true}"#, 100, true),
    ];
    for (script, at, by_force) in cases {
        let mut rig = rig(script);
        rig.ready().await;
        rig.send(ToBridge::Stop { grace_ms: 100 });
        let (exited_at, evidence) = rig.exited().await;
        assert_eq!((exited_at, evidence.grace_ran_out), (at, by_force), "{script}");
        let end = if by_force { End::Signaled { signal: 9 } } else { End::Exited { code: 0 } };
        assert_eq!((evidence.end, evidence.asked_by), (end, Some(AskedBy::Daemon)));
    }
}

#[tokio::test(start_paused = true)]
async fn results_and_the_exit_are_repeated_after_a_reconnection_until_acknowledged() {
    let mut rig = rig(r#"{"chunks": 0, "run_for_ms": 100}"#);
    let boot = rig.ready().await;
    rig.say(1, "one");
    rig.expect(0, ended(1, answered("one"))).await;
    rig.exited().await;
    for is_acknowledged in [false, true] {
        rig.registry.disconnect_all();
        assert_eq!(rig.next().await.1, Event::BridgeDetached { instance: main_1(), boot });
        let (_, _, _, held) = rig.attached().await;
        assert_eq!(held, if is_acknowledged { vec![] } else { vec![turn(1)] });
        let welcome = ToBridge::Welcome { launch: None };
        assert!(rig.registry.send_to_boot(&main_1(), boot, welcome));
        if !is_acknowledged {
            assert_eq!(rig.next().await.1, ended(1, answered("one")));
            rig.send(ToBridge::Acknowledge { turn: turn(1) });
        }
        rig.exited().await;
    }
    rig.send(ToBridge::Release);
    assert_eq!(rig.next().await.1, Event::BridgeDetached { instance: main_1(), boot });
    rig.driver.release(&main_1()).await.unwrap();
    assert!(rig.driver.list().await.unwrap().found.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_second_start_of_an_instance_starts_nothing() {
    let mut rig = rig("{}");
    rig.ready().await;
    rig.driver.start(order()).await.unwrap();
    rig.nothing_more_happens().await;
    assert_eq!(rig.registry.connected(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_kill_reports_leftover_results_and_then_the_exit_and_does_so_again() {
    let mut rig = rig(r#"{"chunks": 0}"#);
    let boot = rig.ready().await;
    rig.say(1, "one");
    rig.expect(0, ended(1, answered("one"))).await;
    for is_first in [true, false] {
        rig.driver.kill(&main_1()).await.unwrap();
        if is_first {
            assert_eq!(rig.next().await.1, Event::BridgeDetached { instance: main_1(), boot });
        }
        assert_eq!(rig.next().await.1, ended(1, answered("one")));
        let (_, evidence) = rig.exited().await;
        assert_eq!((evidence.end, evidence.asked_by), (End::BridgeLost, Some(AskedBy::Driver)));
    }
    let found = rig.driver.list().await.unwrap().found.remove(0);
    assert_eq!(found.into_events().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn killing_what_was_never_started_reports_an_exit_so_that_nobody_waits_for_one() {
    let mut rig = rig("{}");
    rig.driver.kill(&main_1()).await.unwrap();
    let (_, evidence) = rig.exited().await;
    assert_eq!(evidence.asked_by, Some(AskedBy::Driver));
}

#[tokio::test(start_paused = true)]
async fn a_release_ends_a_bridge_that_does_not_end_by_itself_and_may_be_repeated() {
    let mut rig = rig("{}");
    let boot = rig.ready().await;
    rig.driver.release(&main_1()).await.unwrap();
    assert_eq!(rig.begun.elapsed(), RELEASE_WITHIN);
    assert_eq!(rig.next().await.1, Event::BridgeDetached { instance: main_1(), boot });
    rig.driver.release(&main_1()).await.unwrap();
    assert!(rig.driver.list().await.unwrap().found.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refused_bridge_ends_and_the_driver_says_so() {
    let mut rig = rig("{}");
    rig.driver.start(order()).await.unwrap();
    let (_, boot, _, _) = rig.attached().await;
    let refused = ToBridge::Refused { why: "stale".into() };
    assert!(rig.registry.send_to_boot(&main_1(), boot, refused));
    assert_eq!(rig.next().await.1, Event::BridgeDetached { instance: main_1(), boot });
    assert_eq!(rig.exited().await.1, Evidence::bare(End::BridgeLost));
}

#[tokio::test(start_paused = true)]
async fn its_instances_do_not_survive_it() {
    let mut rig = rig("{}");
    let boot = rig.ready().await;
    drop(rig.driver);
    let within = Duration::from_secs(3600);
    let event = tokio::time::timeout(within, rig.events.recv()).await.unwrap();
    assert_eq!(event, Some(Event::BridgeDetached { instance: main_1(), boot }));
    assert_eq!(rig.registry.connected(), 0);
}
