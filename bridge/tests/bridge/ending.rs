//! Ends: by themselves, asked for, and by force; and what is proven by then.

use std::path::Path;
use std::time::Duration;

use dormouse_bridge::EXIT_OVER;
use dormouse_bridge::frames::{Adapter, FromBridge, Secret, ToBridge};
use dormouse_bridge::rundir::Spec;
use dormouse_core::event::AgentState;
use dormouse_core::evidence::{AskedBy, End, Evidence};
use dormouse_core::limits::LOG_TAIL_BYTES_MAX;

use crate::stage::{Line, Stage, is_running, send_signal, until};

/// Skips what an agent says before its end.
pub(crate) async fn exited(line: &mut Line) -> Evidence {
    loop {
        if let FromBridge::Exited { evidence } = line.next().await {
            return evidence;
        }
    }
}

#[tokio::test]
async fn an_exit_code_is_in_the_evidence_with_the_last_lines_of_the_log() {
    let stage = Stage::started();
    let script = "echo 'Traceback: no key' >&2; printf 'no newline' >&2; exit 3";
    let mut line = stage.welcome(Some(stage.jsonl(script))).await;
    let evidence = exited(&mut line).await;
    assert_eq!(evidence.end, End::Exited { code: 3 });
    assert_eq!((evidence.asked_by, evidence.grace_ran_out), (None, false));
    assert!(evidence.uptime_ms.is_some());
    assert!(evidence.log_tail.contains(" err Traceback: no key\n"), "{}", evidence.log_tail);
    assert!(evidence.log_tail.contains(" err no newline"), "{}", evidence.log_tail);
    assert_eq!(evidence.first_error.as_deref(), Some("Traceback: no key"));
    assert_eq!(stage.run_folder().read_exit().unwrap(), Some(evidence));
}

#[tokio::test]
async fn a_signal_is_in_the_evidence() {
    let stage = Stage::started();
    let mut line = stage.welcome(Some(stage.jsonl("kill -s ABRT $$"))).await;
    let evidence = exited(&mut line).await;
    assert_eq!(evidence.end, End::Signaled { signal: 6 });
    assert_eq!(evidence.oom_kills, None);
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_launch_that_failed() {
    let stage = Stage::started();
    let adapter = Adapter::Jsonl { wait_for_ready: false };
    let launch = stage.launch(adapter, &["no-such-program"]);
    let mut line = stage.welcome(Some(launch)).await;
    let error = "no-such-program is not found in /usr/bin:/bin".to_string();
    assert_eq!(line.exited().await.end, End::LaunchFailed { error });
    assert_eq!(stage.run_folder().read_agent().unwrap(), None);
}

#[tokio::test]
async fn a_workspace_that_is_not_there_is_told_apart_from_a_program() {
    let stage = Stage::started();
    let mut launch = stage.jsonl("next_turn");
    launch.workspace = "/nowhere/at/all".into();
    let mut line = stage.welcome(Some(launch)).await;
    let End::LaunchFailed { error } = line.exited().await.end else { panic!() };
    assert_eq!(error, "the workspace /nowhere/at/all is not a folder");
}

#[tokio::test]
async fn memory_and_heap_are_filled_in_from_the_limit_of_this_start() {
    let stage = Stage::started();
    let script = "echo \"$HEAP of $1\" > seen; exit 0";
    let mut launch = stage.launch(
        Adapter::Jsonl { wait_for_ready: false },
        &["sh", "-c", script, "sh", "{memory_mib}"],
    );
    launch.env.insert("HEAP".into(), Secret("--max-old-space-size={heap_mib}".into()));
    let mut line = stage.welcome(Some(launch)).await;
    assert_eq!(exited(&mut line).await.end, End::Exited { code: 0 });
    assert_eq!(stage.workspace_file("seen").unwrap(), "--max-old-space-size=48 of 64\n");
}

#[tokio::test]
async fn a_heap_without_a_memory_limit_is_a_launch_that_failed() {
    let mut stage = Stage::new();
    let spec = Spec { memory_limit_bytes: None, ..stage.spec(None) };
    stage.run_folder().write_spec(&spec).unwrap();
    stage.start();
    let adapter = Adapter::Jsonl { wait_for_ready: false };
    let launch = stage.launch(adapter, &["sh", "-c", "exit {heap_mib}"]);
    let mut line = stage.welcome(Some(launch)).await;
    let error = "{heap_mib} needs a memory limit, and there is none".to_string();
    assert_eq!(line.exited().await.end, End::LaunchFailed { error });
}

#[tokio::test]
async fn the_log_tail_is_bounded_and_ends_with_the_newest_line() {
    let stage = Stage::started();
    let script = "yes 'a line of log' | head -n 10000 >&2; echo 'the newest' >&2; exit 1";
    let mut line = stage.welcome(Some(stage.jsonl(script))).await;
    let evidence = exited(&mut line).await;
    assert!(evidence.log_tail.len() <= LOG_TAIL_BYTES_MAX);
    assert!(evidence.log_tail.len() > LOG_TAIL_BYTES_MAX / 2);
    assert!(evidence.log_tail.contains("err the newest"), "{}", evidence.log_tail);
}

#[tokio::test]
async fn an_agent_that_ends_when_asked_ends_as_it_likes() {
    let stage = Stage::started();
    let script = "trap 'exit 7' TERM; echo '{\"ready\":true}'; while :; do sleep 0.01; done";
    let mut launch = stage.jsonl(script);
    launch.adapter = Adapter::Jsonl { wait_for_ready: true };
    let mut line = stage.ready(launch).await;
    line.stop(Duration::from_secs(30)).await;
    let evidence = line.exited().await;
    assert_eq!(evidence.end, End::Exited { code: 7 });
    assert_eq!((evidence.asked_by, evidence.grace_ran_out), (Some(AskedBy::Daemon), false));
}

#[tokio::test]
async fn an_agent_that_ignores_the_stop_is_killed_when_the_grace_runs_out() {
    let stage = Stage::started();
    let script = "trap '' TERM INT HUP; echo '{\"ready\":true}'; while :; do sleep 0.01; done";
    let mut launch = stage.jsonl(script);
    launch.adapter = Adapter::Jsonl { wait_for_ready: true };
    let mut line = stage.ready(launch).await;
    line.stop(Duration::from_millis(100)).await;
    let evidence = line.exited().await;
    assert_eq!(evidence.end, End::Signaled { signal: 9 });
    assert_eq!((evidence.asked_by, evidence.grace_ran_out), (Some(AskedBy::Daemon), true));
}

#[tokio::test]
async fn a_stopped_agent_hears_the_stop_as_well() {
    let stage = Stage::started();
    let launch = stage.launch(Adapter::Jsonl { wait_for_ready: false }, &["sleep", "1000"]);
    let mut line = stage.ready(launch).await;
    let agent = stage.run_folder().read_agent().unwrap().unwrap();
    send_signal("STOP", &agent.process.pid.to_string());
    line.stop(Duration::from_secs(30)).await;
    assert_eq!(line.exited().await.end, End::Signaled { signal: 15 });
}

#[tokio::test]
async fn a_second_stop_can_only_shorten_the_grace() {
    let stage = Stage::started();
    let script = "trap '' TERM; echo '{\"ready\":true}'; while :; do sleep 0.01; done";
    let mut launch = stage.jsonl(script);
    launch.adapter = Adapter::Jsonl { wait_for_ready: true };
    let mut line = stage.ready(launch).await;
    line.stop(Duration::from_secs(600)).await;
    line.stop(Duration::ZERO).await;
    line.stop(Duration::from_secs(600)).await;
    assert!(line.exited().await.grace_ran_out);
}

#[tokio::test]
async fn a_stop_before_the_launch_executes_nothing_any_more() {
    let stage = Stage::started();
    let mut line = stage.welcome(None).await;
    line.stop(Duration::from_secs(30)).await;
    let evidence = line.exited().await;
    assert_eq!((&evidence.end, evidence.uptime_ms), (&End::NeverLaunched, None));
    drop(line);
    let (mut line, hello) = stage.accept().await;
    assert_eq!(hello.agent, AgentState::NotLaunched);
    let launch = Some(stage.jsonl("echo > executed"));
    line.send(ToBridge::Welcome { launch }).await;
    assert_eq!(line.exited().await, evidence);
    assert_eq!(stage.workspace_file("executed"), None);
}

#[tokio::test]
async fn whoever_the_agent_leaves_behind_is_gone_before_its_end_is_told() {
    let stage = Stage::started();
    // A group of its own, a session of its own, and a daemon by the book: none ends when asked.
    let script = r#"
        trap '' TERM HUP
        sleep 1000 & echo $! >> pids
        setsid sh -c 'echo $$ >> pids; sleep 1000' &
        (setsid sh -c '(sleep 1000 & echo $! >> pids); echo $$ >> pids; sleep 1000' &)
        until [ "$(wc -l < pids)" -eq 4 ]; do sleep 0.01; done
        exit 0"#;
    let mut line = stage.welcome(Some(stage.jsonl(script))).await;
    assert_eq!(exited(&mut line).await.end, End::Exited { code: 0 });
    let pids = stage.workspace_file("pids").unwrap();
    assert_eq!(pids.lines().count(), 4);
    for pid in pids.lines() {
        assert!(!is_running(pid), "{pid} still runs");
    }
    let children = format!("/proc/{0}/task/{0}/children", stage.bridge_pid());
    assert_eq!(std::fs::read_to_string(children).unwrap(), "");
}

#[tokio::test]
async fn orphans_that_end_meanwhile_leave_no_zombies() {
    let stage = Stage::started();
    let script = "while next_turn; do
                      for i in 1 2 3 4 5; do (sh -c 'echo $$ >> pids' &); done
                      until [ \"$(wc -l < pids)\" -eq 5 ]; do sleep 0.01; done; finish ok
                  done";
    let mut line = stage.ready(stage.jsonl(script)).await;
    let turn = line.turn(1, "x").await;
    line.reply(turn).await;
    let pids = stage.workspace_file("pids").unwrap();
    until("all are reaped", || {
        let exists = |pid: &str| Path::new("/proc").join(pid).exists();
        (!pids.lines().any(exists)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_agent_does_not_outlive_a_killed_bridge() {
    let stage = Stage::started();
    let launch = stage.launch(Adapter::Jsonl { wait_for_ready: false }, &["sleep", "1000"]);
    let _line = stage.ready(launch).await;
    let agent = stage.run_folder().read_agent().unwrap().unwrap();
    assert!(agent.process.is_alive());
    stage.signal_bridge("KILL");
    until("the agent is gone", || (!agent.process.is_alive()).then_some(())).await;
}

#[tokio::test]
async fn a_bridge_that_is_asked_to_end_by_a_signal_stops_its_agent_and_says_so() {
    for signal in ["TERM", "INT"] {
        let mut stage = Stage::started();
        let mut line = stage.ready(stage.jsonl("next_turn")).await;
        stage.signal_bridge(signal);
        let evidence = line.exited().await;
        assert_eq!(evidence.end, End::Signaled { signal: 15 });
        assert_eq!(evidence.asked_by, Some(AskedBy::Signal));
        line.send(ToBridge::Release).await;
        assert_eq!(stage.bridge_exit().await.code(), Some(EXIT_OVER.into()));
    }
}

#[tokio::test]
async fn a_bridge_without_a_daemon_ends_at_once_after_a_signal_and_leaves_the_evidence() {
    let mut stage = Stage::started();
    let line = stage.ready(stage.jsonl("next_turn")).await;
    stage.stop_listening();
    drop(line);
    until("the loss is seen", || stage.log().contains("no line to the daemon").then_some(())).await;
    stage.signal_bridge("TERM");
    assert_eq!(stage.bridge_exit().await.code(), Some(EXIT_OVER.into()));
    let evidence = stage.run_folder().read_exit().unwrap().unwrap();
    assert_eq!(evidence.asked_by, Some(AskedBy::Signal));
}

#[tokio::test]
async fn other_signals_do_not_touch_the_bridge() {
    let stage = Stage::started();
    let script = "for s in HUP QUIT PIPE ALRM USR1 USR2 CHLD CONT; do kill -s $s $PPID; done
                  while next_turn; do finish ok; done";
    let mut line = stage.ready(stage.jsonl(script)).await;
    let turn = line.turn(1, "x").await;
    assert_eq!(line.outcome(turn).await, crate::stage::answered("ok"));
}
