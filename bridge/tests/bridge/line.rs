//! The line to the daemon: welcome, refusal, loss, return; and the run folder's lock.

use std::process::{Command, Stdio};
use std::time::Duration;

use dormouse_bridge::frames::{Adapter, FromBridge, ToBridge};
use dormouse_bridge::rundir::{Dial, LOCK_DESCRIPTOR, Spec};
use dormouse_bridge::{EXIT_OVER, EXIT_RUN_FOLDER, EXIT_TAKEN, EXIT_USAGE};
use dormouse_core::event::AgentState;
use dormouse_core::evidence::{AskedBy, End};
use tokio::net::{TcpListener, UnixStream};

use crate::stage::{Stage, answered, is_running, turn, until};

#[tokio::test]
async fn nothing_is_executed_before_a_welcome_says_so_and_then_only_once() {
    let stage = Stage::started();
    let line = stage.welcome(None).await;
    drop(line);
    let launch = stage.jsonl("echo x >> launches; while next_turn; do finish ok; done");
    let (mut line, hello) = stage.accept().await;
    assert_eq!(hello.agent, AgentState::NotLaunched);
    line.send(ToBridge::Welcome { launch: Some(launch.clone()) }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    drop(line);
    let (mut line, hello) = stage.accept().await;
    assert_eq!(hello.agent, AgentState::Ready);
    line.send(ToBridge::Welcome { launch: Some(launch) }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    let turn = line.turn(1, "x").await;
    assert_eq!(line.outcome(turn).await, answered("ok"));
    assert_eq!(stage.workspace_file("launches").as_deref(), Some("x\n"));
}

#[tokio::test]
async fn a_refused_bridge_ends_and_reports_nothing() {
    let mut stage = Stage::started();
    let (mut line, _) = stage.accept().await;
    line.send(ToBridge::Refused { why: "a newer generation lives".into() }).await;
    assert_eq!(line.next_or_end().await, None);
    assert_eq!(stage.bridge_exit().await.code(), Some(EXIT_OVER.into()));
    assert_eq!(stage.run_folder().read_exit().unwrap(), None);
}

#[tokio::test]
async fn a_refused_bridge_takes_its_agent_with_it() {
    let mut stage = Stage::started();
    let script = "trap '' TERM; setsid sleep 1000 & echo $! > child; echo $$ > pid; next_turn";
    let line = stage.ready(stage.jsonl(script)).await;
    let pid = until("the agent runs", || stage.workspace_file("pid")).await;
    let child = stage.workspace_file("child").unwrap();
    drop(line);
    let (mut line, _) = stage.accept().await;
    line.send(ToBridge::Refused { why: "fenced".into() }).await;
    assert_eq!(line.next_or_end().await, None);
    assert!(stage.bridge_exit().await.success());
    assert!(!is_running(&pid) && !is_running(&child));
    assert_eq!(stage.run_folder().read_exit().unwrap(), None);
}

#[tokio::test]
async fn a_lost_line_comes_back_with_all_that_is_known() {
    let stage = Stage::started();
    let launch = stage.jsonl(
        "next_turn; finish first
         next_turn; delta one; until [ -e go ]; do sleep 0.01; done; delta two; finish ''
         next_turn",
    );
    let mut line = stage.ready(launch).await;
    let first = line.turn(1, "x").await;
    line.reply(first).await;
    let second = line.turn(2, "x").await;
    let delta = |offset, text: &str| FromBridge::Delta { turn: second, offset, text: text.into() };
    assert_eq!(line.next().await, delta(0, "one"));
    drop(line);

    let (mut line, hello) = stage.accept().await;
    assert_eq!((hello.agent, hello.held), (AgentState::Ready, vec![first, second]));
    line.send(ToBridge::Welcome { launch: None }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    let ended = |turn, text: &str| FromBridge::Ended { turn, outcome: answered(text), files: None };
    assert_eq!(line.next().await, ended(first, "first"));
    assert_eq!(line.next().await, delta(0, "one"));
    line.send(ToBridge::Acknowledge { turn: first }).await;
    std::fs::write(stage.workspace().join("go"), "").unwrap();
    assert_eq!(line.next().await, delta(3, "two"));
    assert_eq!(line.next().await, ended(second, "onetwo"));
    drop(line);

    let (mut line, hello) = stage.accept().await;
    assert_eq!(hello.held, [second]);
    line.send(ToBridge::Welcome { launch: None }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    assert_eq!(line.next().await, ended(second, "onetwo"));
}

#[tokio::test]
async fn a_result_that_comes_while_the_daemon_is_away_waits_for_it() {
    let mut stage = Stage::started();
    let launch =
        stage.jsonl("next_turn; until [ -e go ]; do sleep 0.01; done; finish late; next_turn");
    let mut line = stage.ready(launch).await;
    let turn = line.turn(1, "x").await;
    until("the turn began", || stage.log().contains("executed").then_some(())).await;
    drop(line);
    stage.stop_listening();
    std::fs::write(stage.workspace().join("go"), "").unwrap();
    let kept =
        until("the result is kept", || stage.run_folder().read_results().unwrap().remove(&turn));
    assert_eq!(kept.await, answered("late"));
    stage.listen();
    let mut line = stage.welcome(None).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    let ended = FromBridge::Ended { turn, outcome: answered("late"), files: None };
    assert_eq!(line.next().await, ended);
}

#[tokio::test]
async fn a_turn_is_executed_once_however_often_it_is_sent() {
    let stage = Stage::started();
    let launch = stage.jsonl(
        "while next_turn; do
             echo x >> executions; delta d; until [ -e go ]; do sleep 0.01; done; finish d
         done",
    );
    let mut line = stage.ready(launch).await;
    let first = line.turn(1, "x").await;
    let delta = FromBridge::Delta { turn: first, offset: 0, text: "d".into() };
    assert_eq!(line.next().await, delta);
    // While it runs: what is known comes again.
    line.turn(1, "x").await;
    assert_eq!(line.next().await, delta);
    std::fs::write(stage.workspace().join("go"), "").unwrap();
    let ended = FromBridge::Ended { turn: first, outcome: answered("d"), files: None };
    assert_eq!(line.next().await, ended);
    // After its end: the kept result comes again.
    line.turn(1, "x").await;
    assert_eq!(line.next().await, ended);
    // After its acknowledgement: nothing of it, as the next turn's frames show.
    line.send(ToBridge::Acknowledge { turn: first }).await;
    line.turn(1, "x").await;
    let second = line.turn(2, "x").await;
    assert_eq!(line.outcome(second).await, answered("d"));
    assert_eq!(stage.workspace_file("executions").as_deref(), Some("x\nx\n"));
}

#[tokio::test]
async fn a_second_turn_at_the_same_time_is_dropped() {
    let stage = Stage::started();
    let launch = stage.jsonl(
        "while next_turn; do
             echo $t >> turns; until [ -e go ]; do sleep 0.01; done; finish done
         done",
    );
    let mut line = stage.ready(launch).await;
    let first = line.turn(1, "x").await;
    let second = line.turn(2, "x").await;
    until("it is noted", || stage.log().contains(&format!("dropped turn {second}")).then_some(()))
        .await;
    std::fs::write(stage.workspace().join("go"), "").unwrap();
    assert_eq!(line.outcome(first).await, answered("done"));
    // Dropped is not past: it may be sent again.
    let second = line.turn(2, "x").await;
    assert_eq!(line.outcome(second).await, answered("done"));
    assert_eq!(stage.workspace_file("turns"), Some(format!("{}\n{}\n", turn(1), turn(2))));
}

#[tokio::test]
async fn frames_that_are_none_end_the_line_and_not_the_bridge() {
    let stage = Stage::started();
    let mut line = stage.ready(stage.jsonl("while next_turn; do finish ok; done")).await;
    line.send_text("{\"frame\":\"teleport\"}".into()).await;
    assert_eq!(line.next_or_end().await, None);
    let mut line = stage.welcome(None).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    let turn = line.turn(1, "x").await;
    assert_eq!(line.outcome(turn).await, answered("ok"));
}

#[tokio::test]
async fn frames_before_the_welcome_are_dropped() {
    let stage = Stage::started();
    let (mut line, _) = stage.accept().await;
    line.stop(Duration::ZERO).await;
    line.send(ToBridge::Release).await;
    let launch = stage.jsonl("while next_turn; do finish ok; done");
    line.send(ToBridge::Welcome { launch: Some(launch) }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
}

#[tokio::test]
async fn an_orphan_stops_its_agent_and_leaves_what_it_knows() {
    let mut stage = Stage::started();
    let script = "trap 'echo > asked; exit 5' TERM
                  next_turn; finish kept; while :; do sleep 0.01; done";
    let mut launch = stage.jsonl(script);
    launch.orphan_limit_ms = 300;
    let mut line = stage.ready(launch).await;
    let turn = line.turn(1, "x").await;
    line.reply(turn).await;
    stage.stop_listening();
    drop(line);
    assert_eq!(stage.bridge_exit().await.code(), Some(EXIT_OVER.into()));
    assert!(stage.workspace_file("asked").is_some());
    let evidence = stage.run_folder().read_exit().unwrap().unwrap();
    assert_eq!(evidence.end, End::Exited { code: 5 });
    assert_eq!(evidence.asked_by, Some(AskedBy::OrphanLimit));
    let results = stage.run_folder().read_results().unwrap();
    assert_eq!(results.get(&turn), Some(&answered("kept")));
    assert!(stage.run_folder().lock().unwrap().is_some());
}

#[tokio::test]
async fn a_daemon_within_the_orphan_limit_finds_the_agent_as_it_was() {
    let mut stage = Stage::started();
    let mut line = stage.ready(stage.jsonl("while next_turn; do finish $$; done")).await;
    let turn = line.turn(1, "x").await;
    let before = line.outcome(turn).await;
    for _ in 0..3 {
        stage.stop_listening();
        drop(line);
        stage.listen();
        line = stage.welcome(None).await;
        assert_eq!(line.next().await, FromBridge::Ready);
    }
    let turn = line.turn(2, "x").await;
    assert_eq!(line.outcome(turn).await, before);
}

#[tokio::test]
async fn nobody_releases_an_ended_bridge_for_longer_than_the_orphan_limit() {
    let mut stage = Stage::started();
    let mut launch = stage.jsonl("exit 0");
    launch.orphan_limit_ms = 300;
    let mut line = stage.welcome(Some(launch)).await;
    while !matches!(line.next().await, FromBridge::Exited { .. }) {}
    assert_eq!(stage.bridge_exit().await.code(), Some(EXIT_OVER.into()));
}

#[tokio::test]
async fn exited_is_repeated_until_the_release_which_ends_the_bridge() {
    let mut stage = Stage::started();
    let mut line = stage.welcome(Some(stage.jsonl("exit 4"))).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    let evidence = line.exited().await;
    drop(line);
    let (mut line, _) = stage.accept().await;
    line.send(ToBridge::Welcome { launch: None }).await;
    assert_eq!(line.exited().await, evidence);
    line.send(ToBridge::Release).await;
    assert_eq!(line.next_or_end().await, None);
    assert_eq!(stage.bridge_exit().await.code(), Some(EXIT_OVER.into()));
    assert_eq!(stage.run_folder().read_exit().unwrap(), Some(evidence));
}

#[tokio::test]
async fn two_bridges_cannot_have_one_run_folder() {
    let mut stage = Stage::started();
    let _line = stage.welcome(None).await;
    assert!(stage.run_folder().lock().unwrap().is_none());
    let second = stage.command().stderr(Stdio::piped()).output().unwrap();
    assert_eq!(second.status.code(), Some(EXIT_TAKEN.into()));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another bridge lives"));
    // Not even one after the other: a life has a folder of its own.
    stage.signal_bridge("KILL");
    stage.bridge_exit().await;
    let third = stage.command().stderr(Stdio::piped()).output().unwrap();
    assert_eq!(third.status.code(), Some(EXIT_TAKEN.into()));
    assert!(String::from_utf8_lossy(&third.stderr).contains("has lived in"));
}

#[tokio::test]
async fn a_lock_that_is_inherited_is_held_to_the_end_and_kept_from_the_agent() {
    let mut stage = Stage::new();
    // What a driver does: opens, locks, and hands the descriptor on.
    let script =
        format!("exec {LOCK_DESCRIPTOR}<>$1/lock; flock -n {LOCK_DESCRIPTOR} && exec $0 $1");
    let bridge = Command::new("sh")
        .args(["-c", &script, Stage::bridge_program()])
        .arg(stage.run_folder().path())
        .spawn();
    stage.bridge = Some(bridge.unwrap());
    let mut line = stage.ready(stage.shell(Adapter::Exec, "ls -l /proc/self/fd")).await;
    assert!(stage.run_folder().lock().unwrap().is_none());
    let turn = line.turn(1, "").await;
    let (descriptors, _) = line.reply(turn).await;
    assert!(!descriptors.contains("/lock"), "{descriptors}");
    let held = std::fs::read_link(format!("/proc/{}/fd/3", stage.bridge_pid())).unwrap();
    assert_eq!(held, stage.run_folder().path().join("lock"));
    stage.signal_bridge("KILL");
    stage.bridge_exit().await;
    assert!(stage.run_folder().lock().unwrap().is_some());
}

#[tokio::test]
async fn a_descriptor_that_is_not_the_lock_is_left_alone() {
    let mut stage = Stage::new();
    let script = format!("exec {LOCK_DESCRIPTOR}<>$1/other; exec $0 $1");
    let bridge = Command::new("sh")
        .args(["-c", &script, Stage::bridge_program()])
        .arg(stage.run_folder().path())
        .spawn();
    stage.bridge = Some(bridge.unwrap());
    let _line = stage.welcome(None).await;
    assert!(stage.run_folder().lock().unwrap().is_none());
    stage.signal_bridge("KILL");
    stage.bridge_exit().await;
}

#[tokio::test]
async fn a_daemon_can_be_dialled_over_tcp() {
    let mut stage = Stage::new();
    let daemon = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dial = Dial::Tcp(daemon.local_addr().unwrap());
    stage.run_folder().write_spec(&Spec { dial, ..stage.spec(None) }).unwrap();
    let socket = stage.socket();
    let forwarding = tokio::spawn(async move {
        let (mut from, _) = daemon.accept().await.unwrap();
        let mut to = UnixStream::connect(socket).await.unwrap();
        tokio::io::copy_bidirectional(&mut from, &mut to).await
    });
    stage.start();
    let mut line = stage.ready(stage.jsonl("while next_turn; do finish ok; done")).await;
    let turn = line.turn(1, "x").await;
    assert_eq!(line.outcome(turn).await, answered("ok"));
    forwarding.abort();
}

#[tokio::test]
async fn spans_without_end_do_no_harm() {
    let stage = Stage::started();
    let mut launch = stage.jsonl("trap 'exit 0' TERM; echo > up; while :; do sleep 0.01; done");
    launch.orphan_limit_ms = u64::MAX;
    let line = stage.ready(launch).await;
    until("the agent runs", || stage.workspace_file("up")).await;
    drop(line);
    let mut line = stage.welcome(None).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    line.send(ToBridge::Stop { grace_ms: u64::MAX }).await;
    assert_eq!(line.exited().await.end, End::Exited { code: 0 });
}

#[tokio::test]
async fn a_bridge_is_small() {
    let stage = Stage::started();
    let mut line = stage.ready(stage.jsonl("while next_turn; do finish ok; done")).await;
    for number in 1..=50 {
        let turn = line.turn(number, "x").await;
        line.outcome(turn).await;
    }
    let rollup = format!("/proc/{}/smaps_rollup", stage.bridge_pid());
    let rollup = std::fs::read_to_string(rollup).unwrap();
    let field = |name: &str| -> u64 {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // What the machine has to find for one more bridge: the program's own pages are shared.
    let own_kib = field("Anonymous:");
    assert!(own_kib <= 1 << 10, "{own_kib} KiB");
}

#[test]
fn wrong_use_and_broken_folders_have_exit_codes_of_their_own() {
    let bridge = || {
        let mut command = Command::new(Stage::bridge_program());
        command.stderr(Stdio::piped());
        command
    };
    let code = |command: &mut Command| command.output().unwrap().status.code();
    assert_eq!(code(&mut bridge()), Some(EXIT_USAGE.into()));
    assert_eq!(code(bridge().args(["a", "b"])), Some(EXIT_USAGE.into()));
    assert_eq!(code(bridge().arg("/nowhere/at/all")), Some(EXIT_RUN_FOLDER.into()));
    let folder = std::env::temp_dir().join(format!("dormouse-no-spec-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    assert_eq!(code(bridge().arg(&folder)), Some(EXIT_RUN_FOLDER.into()));
    std::fs::write(folder.join("spec.json"), "{}").unwrap();
    assert_eq!(code(bridge().arg(&folder)), Some(EXIT_RUN_FOLDER.into()));
    std::fs::remove_dir_all(&folder).unwrap();
}
