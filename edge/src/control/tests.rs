//! The control socket, seen from bridges that dial it.
//!
//! Owner: the tests of `control` and `registry`. Absent: sleeps; every wait is for something that
//! happens.

use dormouse_bridge::frames::{
    FRAME_BYTES_MAX, FromBridge, Hello, PROTOCOL_VERSION, Secret, ToBridge,
};
use dormouse_core::event::{AgentState, Event, TurnOutcome};
use dormouse_core::evidence::{End, Evidence};
use dormouse_core::id::{BootId, InstanceId};
use dormouse_core::limits;
use futures_util::{SinkExt, StreamExt};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::*;
use crate::testing::{ScratchFolder, boot, instance, next_event, soon, turn};

struct Rig {
    scratch: ScratchFolder,
    socket: ControlSocket,
    registry: Registry,
    events: mpsc::Receiver<Event>,
}

struct Bridge(WebSocketStream<UnixStream>);

fn secret() -> DeploymentSecret {
    DeploymentSecret::new([5; 32])
}

fn rig() -> Rig {
    rig_with(ControlLimits::default(), 64)
}

fn rig_with(limits: ControlLimits, events_max: usize) -> Rig {
    let scratch = ScratchFolder::new();
    let (events_in, events) = mpsc::channel(events_max);
    let registry = Registry::new(events_in);
    let path = scratch.path().join("control.sock");
    let socket = ControlSocket::bind(&path, secret(), registry.clone(), limits).unwrap();
    Rig { scratch, socket, registry, events }
}

fn main_1() -> InstanceId {
    instance("python/main", 1)
}

fn hello(instance: &InstanceId, boot: BootId) -> Hello {
    Hello {
        version: PROTOCOL_VERSION,
        session: instance.session.clone(),
        generation: instance.generation,
        boot,
        token: secret().token_of(instance),
        agent: AgentState::NotLaunched,
        held: Vec::new(),
        applied: None,
    }
}

impl Rig {
    async fn dial(&self) -> Bridge {
        let stream = UnixStream::connect(self.socket.path()).await.unwrap();
        let (socket, _) = tokio_tungstenite::client_async("ws://daemon/", stream).await.unwrap();
        Bridge(socket)
    }

    /// A bridge that was heard of, and welcomed.
    async fn admitted(&mut self, instance: &InstanceId, boot: BootId) -> Bridge {
        let mut bridge = self.dial().await;
        bridge.say(&FromBridge::Hello(hello(instance, boot))).await;
        assert_eq!(next_event(&mut self.events).await, attached(instance, boot));
        assert!(self.registry.send_to_boot(instance, boot, ToBridge::Welcome { launch: None }));
        assert_eq!(bridge.hear().await, ToBridge::Welcome { launch: None });
        bridge
    }

    /// What a bridge is told that says `first` first; nothing of it becomes an event.
    async fn refusal_of(&mut self, first: Message) -> String {
        let mut bridge = self.dial().await;
        bridge.0.send(first).await.unwrap();
        let ToBridge::Refused { why } = bridge.hear().await else { panic!("it was not refused") };
        bridge.is_closed().await;
        assert_eq!(self.registry.connected(), 0);
        assert!(self.events.try_recv().is_err());
        why
    }
}

impl Bridge {
    async fn say(&mut self, frame: &FromBridge) {
        let text = serde_json::to_string(frame).unwrap();
        soon("the daemon to listen", self.0.send(Message::text(text))).await.unwrap();
    }

    async fn hear(&mut self) -> ToBridge {
        loop {
            match soon("a frame", self.0.next()).await {
                Some(Ok(Message::Text(text))) => return serde_json::from_str(&text).unwrap(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("expected a frame, got {other:?}"),
            }
        }
    }

    async fn is_closed(&mut self) {
        loop {
            match soon("the connection's end", self.0.next()).await {
                None | Some(Err(_) | Ok(Message::Close(_))) => return,
                Some(Ok(_)) => {}
            }
        }
    }
}

fn attached(instance: &InstanceId, boot: BootId) -> Event {
    let (agent, held) = (AgentState::NotLaunched, Vec::new());
    Event::BridgeAttached { instance: instance.clone(), boot, agent, held }
}

fn detached(instance: &InstanceId, boot: BootId) -> Event {
    Event::BridgeDetached { instance: instance.clone(), boot }
}

fn text_of(frame: &FromBridge) -> Message {
    Message::text(serde_json::to_string(frame).unwrap())
}

#[tokio::test]
async fn each_frame_becomes_an_event_of_the_instance_that_the_token_proved() {
    let mut rig = rig();
    let mut bridge = rig.dial().await;
    let held = vec![turn(7)];
    let agent = AgentState::Ready;
    bridge
        .say(&FromBridge::Hello(Hello { agent, held: held.clone(), ..hello(&main_1(), boot(1)) }))
        .await;
    let instance = main_1();
    let attached = Event::BridgeAttached { instance, boot: boot(1), agent, held };
    assert_eq!(next_event(&mut rig.events).await, attached);
    assert!(rig.registry.send_to_boot(&main_1(), boot(1), ToBridge::Welcome { launch: None }));

    let outcome = TurnOutcome::Answered { text: "done".into(), exit_code: Some(0) };
    let evidence = Evidence::bare(End::Exited { code: 3 });
    let frames = [
        FromBridge::Ready,
        FromBridge::Delta { turn: turn(7), offset: 4, text: "…".into() },
        FromBridge::Hold { name: "tool".into(), for_ms: 9 },
        FromBridge::Ended { turn: turn(7), outcome: outcome.clone(), files: None },
        FromBridge::Exited { evidence: evidence.clone() },
    ];
    for frame in &frames {
        bridge.say(frame).await;
    }
    let instance = main_1;
    let expected = [
        Event::InstanceReady { instance: instance() },
        Event::TurnProgressed {
            instance: instance(), turn: turn(7), offset: 4, text: "…".into()
        },
        Event::HoldTaken { instance: instance(), name: "tool".into(), for_ms: 9 },
        Event::TurnEnded { instance: instance(), turn: turn(7), outcome },
        Event::InstanceExited { instance: instance(), evidence },
    ];
    for event in expected {
        assert_eq!(next_event(&mut rig.events).await, event);
    }
    drop(bridge);
    assert_eq!(next_event(&mut rig.events).await, detached(&main_1(), boot(1)));
    assert_eq!(rig.registry.connected(), 0);
}

#[tokio::test]
async fn a_token_of_another_instance_or_deployment_is_refused() {
    let mut rig = rig();
    let foreign = DeploymentSecret::new([6; 32]).token_of(&main_1());
    for token in [secret().token_of(&instance("python/main", 2)), foreign, Secret(String::new())] {
        let hello = Hello { token: token.clone(), ..hello(&main_1(), boot(1)) };
        let why = rig.refusal_of(text_of(&FromBridge::Hello(hello))).await;
        assert_eq!(why, "the token is not valid for python/main#1");
    }
}

#[tokio::test]
async fn a_first_frame_that_is_no_hello_of_this_version_is_refused() {
    let mut rig = rig();
    let newer = Hello { version: PROTOCOL_VERSION + 1, ..hello(&main_1(), boot(1)) };
    let why = rig.refusal_of(text_of(&FromBridge::Hello(newer))).await;
    assert_eq!(why, "protocol version 2, and this daemon speaks 1");
    assert_eq!(rig.refusal_of(text_of(&FromBridge::Ready)).await, "the first frame was no hello");
    assert_eq!(rig.refusal_of(Message::binary(vec![1])).await, "a binary frame");
    for garbage in ["", "{", "[]", "null", r#"{"frame":"open_sesame"}"#, "\u{0}"] {
        let why = rig.refusal_of(Message::text(garbage)).await;
        assert!(why.starts_with("a frame that is not understood"), "{why}");
    }
}

#[tokio::test]
async fn a_refusal_quotes_nothing_of_what_was_sent() {
    let mut rig = rig();
    let why = rig.refusal_of(Message::text(r#"{"frame":"hello","token":{"s3cret":1}}"#)).await;
    assert!(!why.contains("s3cret"), "{why}");
}

#[tokio::test]
async fn a_hello_of_64_kib_is_taken_and_a_larger_one_is_not() {
    let mut rig = rig();
    let padded = |bytes: usize| {
        let mut text =
            serde_json::to_string(&FromBridge::Hello(hello(&main_1(), boot(1)))).unwrap();
        text.extend(std::iter::repeat_n(' ', bytes - text.len()));
        Message::text(text)
    };
    let why = rig.refusal_of(padded((64 << 10) + 1)).await;
    assert_eq!(why, "a hello of 65537 bytes");

    let mut bridge = rig.dial().await;
    bridge.0.send(padded(64 << 10)).await.unwrap();
    assert_eq!(next_event(&mut rig.events).await, attached(&main_1(), boot(1)));
    drop(bridge);
    assert_eq!(next_event(&mut rig.events).await, detached(&main_1(), boot(1)));

    // One that never ends is cut off where the allowance ends.
    let mut bridge = rig.dial().await;
    let endless = bridge.0.send(Message::text(" ".repeat(8 << 20)));
    assert!(soon("the cut", endless).await.is_err());
    assert!(rig.events.try_recv().is_err());
}

#[tokio::test]
async fn a_frame_beyond_the_largest_ends_its_connection_before_it_is_read() {
    let mut rig = rig();
    let mut bridge = rig.admitted(&main_1(), boot(1)).await;
    let mut header = vec![0x81, 0xff];
    header.extend((FRAME_BYTES_MAX as u64 + 1).to_be_bytes());
    header.extend([0; 4]);
    bridge.0.get_mut().write_all(&header).await.unwrap();
    assert_eq!(next_event(&mut rig.events).await, detached(&main_1(), boot(1)));
    bridge.is_closed().await;
}

#[tokio::test]
async fn a_protocol_fault_ends_its_own_connection_only() {
    let mut rig = rig();
    let mut good = rig.admitted(&instance("python/good", 1), boot(9)).await;
    let too_long = "x".repeat(limits::DELTA_BYTES_MAX + 1);
    let name = "n".repeat(limits::HOLD_NAME_BYTES_MAX + 1);
    let faults = [
        Message::text("{\"frame\":\"ready\""),
        Message::text("{\"frame\":\"from the future\"}"),
        Message::binary(vec![0]),
        text_of(&FromBridge::Hello(hello(&main_1(), boot(1)))),
        text_of(&FromBridge::Delta { turn: turn(1), offset: 0, text: too_long }),
        text_of(&FromBridge::Hold { name, for_ms: 1 }),
    ];
    for fault in faults {
        let mut bridge = rig.admitted(&main_1(), boot(1)).await;
        bridge.0.send(fault).await.unwrap();
        assert_eq!(next_event(&mut rig.events).await, detached(&main_1(), boot(1)));
        bridge.is_closed().await;
    }
    good.say(&FromBridge::Ready).await;
    let instance = instance("python/good", 1);
    assert_eq!(next_event(&mut rig.events).await, Event::InstanceReady { instance });
}

#[tokio::test]
async fn a_log_tail_that_is_too_long_is_cut_and_the_exit_kept() {
    let mut rig = rig();
    let mut bridge = rig.admitted(&main_1(), boot(1)).await;
    let mut evidence = Evidence::bare(End::Exited { code: 0 });
    evidence.log_tail = format!("{}{}", "ä".repeat(limits::LOG_TAIL_BYTES_MAX / 2), "end");
    bridge.say(&FromBridge::Exited { evidence }).await;
    let Event::InstanceExited { evidence, .. } = next_event(&mut rig.events).await else {
        panic!()
    };
    assert!(evidence.log_tail.ends_with("äend"));
    let bytes = evidence.log_tail.len();
    assert!((limits::LOG_TAIL_BYTES_MAX - 1..=limits::LOG_TAIL_BYTES_MAX).contains(&bytes));
}

#[tokio::test]
async fn a_newer_connection_of_the_same_boot_replaces_the_older_one() {
    let mut rig = rig();
    let mut older = rig.admitted(&main_1(), boot(1)).await;
    let mut newer = rig.dial().await;
    newer.say(&FromBridge::Hello(hello(&main_1(), boot(1)))).await;
    assert_eq!(next_event(&mut rig.events).await, detached(&main_1(), boot(1)));
    assert_eq!(next_event(&mut rig.events).await, attached(&main_1(), boot(1)));
    older.is_closed().await;
    // It is not reached before it was welcomed anew.
    assert!(!rig.registry.send(&main_1(), ToBridge::Release));
    assert!(rig.registry.send_to_boot(&main_1(), boot(1), ToBridge::Welcome { launch: None }));
    assert!(rig.registry.send(&main_1(), ToBridge::Release));
    assert_eq!(newer.hear().await, ToBridge::Welcome { launch: None });
    assert_eq!(newer.hear().await, ToBridge::Release);
    assert_eq!(rig.registry.connected(), 1);
}

#[tokio::test]
async fn a_second_boot_is_announced_and_refused_without_being_heard() {
    let mut rig = rig();
    let mut first = rig.admitted(&main_1(), boot(1)).await;
    let mut second = rig.dial().await;
    second.say(&FromBridge::Hello(hello(&main_1(), boot(2)))).await;
    second.say(&FromBridge::Ready).await;
    assert_eq!(next_event(&mut rig.events).await, attached(&main_1(), boot(2)));

    let refused = ToBridge::Refused { why: "another boot is the one".into() };
    assert!(rig.registry.send_to_boot(&main_1(), boot(2), refused.clone()));
    assert_eq!(second.hear().await, refused);
    second.is_closed().await;
    // Its `ready` would stand here.
    assert_eq!(next_event(&mut rig.events).await, detached(&main_1(), boot(2)));

    assert!(rig.registry.send(&main_1(), ToBridge::Stop { grace_ms: 5 }));
    assert_eq!(first.hear().await, ToBridge::Stop { grace_ms: 5 });
}

#[tokio::test]
async fn a_boot_that_comes_back_beside_another_one_is_not_reached_before_its_welcome() {
    let mut rig = rig();
    let first = rig.admitted(&main_1(), boot(1)).await;
    let mut second = rig.dial().await;
    second.say(&FromBridge::Hello(hello(&main_1(), boot(2)))).await;
    assert_eq!(next_event(&mut rig.events).await, attached(&main_1(), boot(2)));
    drop(first);
    assert_eq!(next_event(&mut rig.events).await, detached(&main_1(), boot(1)));
    let mut again = rig.dial().await;
    again.say(&FromBridge::Hello(hello(&main_1(), boot(1)))).await;
    assert_eq!(next_event(&mut rig.events).await, attached(&main_1(), boot(1)));
    assert!(!rig.registry.send(&main_1(), ToBridge::Release));
}

#[tokio::test]
async fn a_busy_engine_holds_bridges_up_and_loses_nothing() {
    let mut rig = rig_with(ControlLimits::default(), 1);
    let other = instance("python/other", 1);
    let mut a = rig.admitted(&main_1(), boot(1)).await;
    let mut b = rig.admitted(&other, boot(2)).await;
    // More than the socket's buffers hold, so the speaker is really held up.
    const PIECES: u64 = 64;
    let piece = "p".repeat(limits::DELTA_BYTES_MAX);
    let mut speaker = tokio::spawn(async move {
        for number in 0..PIECES {
            let text = piece.clone();
            a.say(&FromBridge::Delta { turn: turn(1), offset: number, text }).await;
        }
        a
    });
    b.say(&FromBridge::Ready).await;
    // The engine takes nothing, and yet its own frames go out.
    assert!(rig.registry.send(&other, ToBridge::Release));
    assert_eq!(b.hear().await, ToBridge::Release);
    assert!(!speaker.is_finished());

    let (mut offsets, mut is_ready) = (Vec::new(), false);
    while offsets.len() < PIECES as usize || !is_ready {
        match next_event(&mut rig.events).await {
            Event::TurnProgressed { offset, .. } => offsets.push(offset),
            Event::InstanceReady { instance } => is_ready = instance == other,
            event => panic!("unexpected: {event:?}"),
        }
    }
    assert_eq!(offsets, (0..PIECES).collect::<Vec<_>>());
    soon("the speaker", &mut speaker).await.unwrap();
}

#[tokio::test]
async fn a_bridge_that_takes_nothing_is_cut_and_told_so_to_the_engine() {
    let mut rig = rig();
    let bridge = rig.admitted(&main_1(), boot(1)).await;
    let text = "t".repeat(1 << 20);
    let mut sent = 0;
    while rig.registry.send(&main_1(), ToBridge::Turn { turn: turn(1), text: text.clone() }) {
        sent += 1;
        assert!(sent <= 200, "the queue has no end");
        tokio::task::yield_now().await;
    }
    assert!(sent >= 64, "cut after {sent} frames");
    assert_eq!(next_event(&mut rig.events).await, detached(&main_1(), boot(1)));
    assert!(!rig.registry.send(&main_1(), ToBridge::Release));
    drop(bridge);
}

#[tokio::test]
async fn a_bridge_that_answers_pings_stays_and_a_silent_one_goes() {
    let limits = ControlLimits {
        ping_every: Duration::from_millis(10),
        dead_after: Duration::from_millis(400),
        ..ControlLimits::default()
    };
    let mut rig = rig_with(limits, 64);
    let mut lively = rig.admitted(&main_1(), boot(1)).await;
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(900) {
        let heard = soon("a ping", lively.0.next()).await;
        assert!(matches!(heard, Some(Ok(Message::Ping(_)))), "{heard:?}");
        // The pong of the ping before goes out with the next look at the socket.
        lively.0.flush().await.unwrap();
    }
    lively.say(&FromBridge::Ready).await;
    assert_eq!(next_event(&mut rig.events).await, Event::InstanceReady { instance: main_1() });
    // From here on it does not look at its socket any more.
    assert_eq!(next_event(&mut rig.events).await, detached(&main_1(), boot(1)));
}

#[tokio::test]
async fn who_says_no_hello_in_time_is_disconnected() {
    let hello_within = Duration::from_millis(30);
    let mut rig = rig_with(ControlLimits { hello_within, ..ControlLimits::default() }, 64);
    let mut mute = rig.dial().await;
    mute.is_closed().await;
    let mut raw = UnixStream::connect(rig.socket.path()).await.unwrap();
    let mut byte = [0];
    let end = soon("the end", tokio::io::AsyncReadExt::read(&mut raw, &mut byte)).await;
    assert_eq!(end.unwrap(), 0);
    assert!(rig.events.try_recv().is_err());
}

#[tokio::test]
async fn disconnecting_all_reports_each_once_and_they_may_come_back() {
    let mut rig = rig();
    let other = instance("python/other", 4);
    let mut a = rig.admitted(&main_1(), boot(1)).await;
    let mut b = rig.admitted(&other, boot(2)).await;
    rig.registry.disconnect_all();
    assert_eq!(rig.registry.connected(), 0);
    let mut gone = [next_event(&mut rig.events).await, next_event(&mut rig.events).await];
    gone.sort_by_key(
        |event| matches!(event, Event::BridgeDetached { boot: b, .. } if *b == boot(2)),
    );
    assert_eq!(gone, [detached(&main_1(), boot(1)), detached(&other, boot(2))]);
    a.is_closed().await;
    b.is_closed().await;
    let mut again = rig.admitted(&main_1(), boot(1)).await;
    assert!(rig.registry.send(&main_1(), ToBridge::Release));
    assert_eq!(again.hear().await, ToBridge::Release);
}

#[tokio::test]
async fn beyond_the_maximum_of_connections_bridges_wait_their_turn() {
    let mut rig = rig_with(ControlLimits { connections_max: 1, ..ControlLimits::default() }, 64);
    let first = rig.admitted(&main_1(), boot(1)).await;
    let stream = UnixStream::connect(rig.socket.path()).await.unwrap();
    let second = tokio::spawn(tokio_tungstenite::client_async("ws://daemon/", stream));
    drop(first);
    assert_eq!(next_event(&mut rig.events).await, detached(&main_1(), boot(1)));
    soon("the second's turn", second).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_socket_is_for_its_owner_alone_and_for_one_daemon() {
    use std::os::unix::fs::PermissionsExt;
    let rig = rig();
    let mode = std::fs::metadata(rig.socket.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(rig.socket.dial(), format!("unix:{}/control.sock", rig.scratch.path().display()));
    let bind = || {
        let (events, _) = mpsc::channel(1);
        let path = rig.scratch.path().join("control.sock");
        ControlSocket::bind(&path, secret(), Registry::new(events), ControlLimits::default())
    };
    assert!(matches!(bind(), Err(BindError::InUse { .. })));
}

#[tokio::test]
async fn a_daemon_that_comes_back_takes_over_the_socket_of_the_dead_one() {
    let mut rig = rig();
    let mut before = rig.admitted(&main_1(), boot(1)).await;
    let Rig { scratch, socket, .. } = rig;
    drop(socket);
    before.is_closed().await;
    let (events_in, events) = mpsc::channel(8);
    let registry = Registry::new(events_in);
    let path = scratch.path().join("control.sock");
    let socket = loop {
        // The aborted task gives its listener up as soon as it is scheduled.
        let limits = ControlLimits::default();
        match ControlSocket::bind(&path, secret(), registry.clone(), limits) {
            Ok(socket) => break socket,
            Err(BindError::InUse { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    let mut rig = Rig { scratch, socket, registry, events };
    let mut after = rig.admitted(&main_1(), boot(1)).await;
    after.say(&FromBridge::Ready).await;
    assert_eq!(next_event(&mut rig.events).await, Event::InstanceReady { instance: main_1() });
}

#[tokio::test]
async fn a_socket_in_a_deep_data_folder_can_be_dialled() {
    let scratch = ScratchFolder::new();
    let folder = scratch.path().join("deep".repeat(40));
    std::fs::create_dir(&folder).unwrap();
    let (events, _) = mpsc::channel(1);
    let wanted = folder.join("control.sock");
    let limits = ControlLimits::default();
    let socket = ControlSocket::bind(&wanted, secret(), Registry::new(events), limits).unwrap();
    assert_ne!(socket.path(), wanted);
    UnixStream::connect(socket.path()).await.unwrap();
    std::fs::remove_dir_all(socket.path().parent().unwrap()).unwrap();
}
