//! Agents that speak JSON lines, well and badly.

use std::time::Duration;

use dormouse_bridge::frames::{Adapter, FRAME_BYTES_MAX, FromBridge, ToBridge};
use dormouse_core::cause::Cause;
use dormouse_core::event::{AgentState, TurnOutcome};
use dormouse_core::limits::REPLY_BYTES_MAX;

use crate::stage::{Stage, answered, until};

#[tokio::test]
async fn a_turn_is_streamed_answered_and_acknowledged() {
    let stage = Stage::started();
    let (mut line, hello) = stage.accept().await;
    assert_eq!(hello.version, dormouse_bridge::frames::PROTOCOL_VERSION);
    assert_eq!(hello.session.to_string(), "echo/main");
    assert_eq!((hello.generation.0, hello.token.0.as_str()), (7, "t0ken"));
    assert_eq!(hello.agent, AgentState::NotLaunched);
    assert!(hello.held.is_empty());
    let record = stage.run_folder().read_bridge().unwrap().unwrap();
    assert_eq!(record.boot, hello.boot);
    assert_eq!(record.process.pid.to_string(), stage.bridge_pid().to_string());
    assert!(record.process.is_alive());
    assert_eq!(stage.run_folder().read_agent().unwrap(), None);

    let launch = stage.jsonl("while next_turn; do delta one; delta two; finish onetwo; done");
    line.send(ToBridge::Welcome { launch: Some(launch) }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    let agent = stage.run_folder().read_agent().unwrap().unwrap();
    assert!(agent.process.is_alive());
    assert_eq!(agent.process_group, agent.process.pid);

    for number in 1..=3 {
        let turn = line.turn(number, "hello").await;
        assert_eq!(line.reply(turn).await, ("onetwo".into(), answered("onetwo")));
        let kept = stage.run_folder().read_results().unwrap();
        assert_eq!(kept.get(&turn), Some(&answered("onetwo")));
        line.send(ToBridge::Acknowledge { turn }).await;
        until("the result is forgotten", || {
            stage.run_folder().read_results().unwrap().is_empty().then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_agent_reads_the_contracts_line() {
    let stage = Stage::started();
    let launch = stage.jsonl("next_turn; printf '%s' \"$line\" > line; finish ok; next_turn");
    let mut line = stage.ready(launch).await;
    let turn = line.turn(5, "a \"b\"\nc é").await;
    assert_eq!(line.outcome(turn).await, answered("ok"));
    let seen = stage.workspace_file("line").unwrap();
    let seen: serde_json::Value = serde_json::from_str(&seen).unwrap();
    let expected = serde_json::json!({
        "turn": turn.to_string(), "session": "echo/main", "text": "a \"b\"\nc é", "attempt": 1,
    });
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn an_agent_may_take_its_time_to_say_that_it_is_ready() {
    let stage = Stage::started();
    let script = "until [ -e go ]; do sleep 0.01; done; echo '{\"ready\":true}'; read -r line";
    let mut launch = stage.jsonl(script);
    launch.adapter = Adapter::Jsonl { wait_for_ready: true };
    let line = stage.welcome(Some(launch)).await;
    until("the agent is executed", || stage.run_folder().read_agent().unwrap()).await;
    drop(line);
    let (mut line, hello) = stage.accept().await;
    assert_eq!(hello.agent, AgentState::Starting);
    line.send(ToBridge::Welcome { launch: None }).await;
    std::fs::write(stage.workspace().join("go"), "").unwrap();
    assert_eq!(line.next().await, FromBridge::Ready);
}

#[tokio::test]
async fn an_empty_done_means_the_deltas_and_a_different_one_replaces_them() {
    let stage = Stage::started();
    let launch = stage.jsonl(
        "next_turn; delta ab; delta c; finish ''
         next_turn; delta ab; finish abcd
         next_turn; delta draft; finish final
         next_turn; finish silent
         next_turn",
    );
    let mut line = stage.ready(launch).await;
    for (number, deltas, answer) in
        [(1, "abc", "abc"), (2, "abcd", "abcd"), (3, "draft", "final"), (4, "silent", "silent")]
    {
        let turn = line.turn(number, "x").await;
        let (streamed, outcome) = line.reply(turn).await;
        assert_eq!(outcome, answered(answer));
        // A draft may be over before any of it was sent.
        assert!(streamed == deltas || (number == 3 && streamed.is_empty()), "{streamed}");
    }
}

#[tokio::test]
async fn an_error_fails_the_turn_and_the_agent_goes_on() {
    let stage = Stage::started();
    let launch = stage.jsonl(
        r#"next_turn; printf '{"turn":"%s","error":"no key"}\n' "$t"
           next_turn; printf '{"turn":"%s","error":"busy","retryable":true}\n' "$t"
           next_turn; finish ok; next_turn"#,
    );
    let mut line = stage.ready(launch).await;
    for (number, words, may_retry) in [(1, "no key", false), (2, "busy", true)] {
        let turn = line.turn(number, "x").await;
        let expected = TurnOutcome::Failed {
            cause: Cause::AgentError,
            message: words.to_string(),
            retryable: may_retry,
            exit_code: None,
        };
        assert_eq!(line.outcome(turn).await, expected);
    }
    let turn = line.turn(3, "x").await;
    assert_eq!(line.outcome(turn).await, answered("ok"));
}

#[tokio::test]
async fn an_exit_status_is_kept_with_an_answer_and_with_an_error() {
    let stage = Stage::started();
    let launch = stage.jsonl(
        r#"next_turn; printf '{"turn":"%s","done":"out","exit":3}\n' "$t"
           next_turn; delta deltas; printf '{"turn":"%s","done":null,"exit":0}\n' "$t"
           next_turn; printf '{"turn":"%s","error":"no","exit":-9}\n' "$t"
           next_turn; printf '{"turn":"%s","done":"kept","exit":"wrong"}\n' "$t"
           next_turn"#,
    );
    let mut line = stage.ready(launch).await;
    let kept = |text: &str, exit_code| TurnOutcome::Answered { text: text.into(), exit_code };
    let (cause, message) = (Cause::AgentError, "no".to_string());
    let failed = TurnOutcome::Failed { cause, message, retryable: false, exit_code: Some(-9) };
    for (number, expected) in [
        (1, kept("out", Some(3))),
        (2, kept("deltas", Some(0))),
        (3, failed),
        (4, kept("kept", None)),
    ] {
        let turn = line.turn(number, "x").await;
        assert_eq!(line.outcome(turn).await, expected);
    }
}

#[tokio::test]
async fn more_than_a_reply_holds_is_answered_with_its_ends_and_the_whole_is_in_a_file() {
    let stage = Stage::started();
    // 17 MiB, first as deltas of 64 KiB, then as one last text.
    let launch = stage.jsonl(
        "k=$(head -c 65536 /dev/zero | tr '\\0' x)
         next_turn; i=0; while [ $i -lt 272 ]; do delta $k; i=$((i+1)); done; delta end; finish ''
         next_turn; printf '{\"turn\":\"%s\",\"done\":\"' $t; head -c 17825792 /dev/zero |
         tr '\\0' y; echo 'end\"}'
         next_turn",
    );
    let mut line = stage.ready(launch).await;
    for number in 1..=2 {
        let turn = line.turn(number, "x").await;
        let (streamed, outcome) = line.reply(turn).await;
        assert!(outcome == answered(&streamed), "the deltas add up to the answer");
        assert!(streamed.len() <= REPLY_BYTES_MAX && streamed.ends_with("end"));
        let name = format!("output-{turn}.txt");
        let bytes = (17 << 20) + 3;
        let words = format!("truncated: {bytes} bytes in all, the whole is in {name}; ");
        assert!(streamed.contains(&words));
        let file = stage.workspace_file(&name).unwrap();
        assert!(file.len() == bytes && file.ends_with("end"));
        line.send(ToBridge::Acknowledge { turn }).await;
    }
}

#[tokio::test]
async fn a_line_longer_than_any_frame_fails_its_turn_in_those_words_and_the_agent_goes_on() {
    let stage = Stage::started();
    let bytes = FRAME_BYTES_MAX + 1;
    let launch = stage.jsonl(&format!(
        "next_turn; head -c {bytes} /dev/zero | tr '\\0' x; echo; next_turn; finish ok; next_turn"
    ));
    let mut line = stage.ready(launch).await;
    let turn = line.turn(1, "x").await;
    let expected = TurnOutcome::Failed {
        cause: Cause::ReplyTooLarge,
        message: format!("the agent wrote a line of more than {FRAME_BYTES_MAX} bytes"),
        retryable: false,
        exit_code: None,
    };
    assert_eq!(line.outcome(turn).await, expected);
    let turn = line.turn(2, "x").await;
    assert_eq!(line.outcome(turn).await, answered("ok"));
}

#[tokio::test]
async fn garbage_stray_frames_and_second_ends_are_logged_and_harm_nothing() {
    let stage = Stage::started();
    let launch = stage.jsonl(
        r#"echo 'Loading model…'; printf 'bad \377\000 bytes\n{"turn":\n[1,2]\n'
           echo '{"turn":"msg_nobody.1","delta":"x"}'
           next_turn; delta a; finish a; finish b; delta late
           next_turn; finish c; echo 'last words' >&2; next_turn"#,
    );
    let mut line = stage.ready(launch).await;
    let turn = line.turn(1, "x").await;
    assert_eq!(line.outcome(turn).await, answered("a"));
    let turn = line.turn(2, "x").await;
    assert_eq!(line.outcome(turn).await, answered("c"));
    let log = until("the log has it", || Some(stage.log()).filter(|l| l.contains("last words")));
    let log = log.await;
    for expected in
        [" out Loading model…", " out bad \u{fffd}\0 bytes", " out [1,2]", " err last words"]
    {
        assert!(log.contains(expected), "{expected:?} is not in:\n{log}");
    }
    assert!(log.contains("dropped a frame for a turn that does not run (1 so far)"), "{log}");
}

#[tokio::test]
async fn a_hold_reaches_the_daemon_and_a_new_connection_hears_what_is_left() {
    let stage = Stage::started();
    let launch = stage.jsonl(r#"echo '{"hold":"build","for":"5m"}'; read -r line"#);
    let mut line = stage.ready(launch).await;
    let FromBridge::Hold { name, for_ms } = line.next().await else { panic!("no hold came") };
    assert_eq!(name, "build");
    assert!((290_000..=300_000).contains(&for_ms), "{for_ms}");
    drop(line);
    let mut line = stage.welcome(None).await;
    assert_eq!(line.next().await, FromBridge::Ready);
    let FromBridge::Hold { for_ms: left_ms, .. } = line.next().await else { panic!("no hold") };
    assert!(left_ms <= for_ms, "{left_ms}");
}

#[tokio::test]
async fn an_answer_that_is_its_agents_last_word_is_not_lost() {
    let stage = Stage::started();
    let launch = stage.jsonl("next_turn; finish 'last word'; exit 3");
    let mut line = stage.ready(launch).await;
    let turn = line.turn(1, "x").await;
    let (_, outcome) = line.reply(turn).await;
    assert_eq!(outcome, answered("last word"));
    line.exited().await;
}

#[tokio::test]
async fn an_agent_that_dies_in_its_turn_gives_that_turn_no_end() {
    let stage = Stage::started();
    let launch = stage.jsonl("next_turn; delta half; exit 3");
    let mut line = stage.ready(launch).await;
    line.turn(1, "x").await;
    loop {
        match line.next().await {
            FromBridge::Delta { text, .. } => assert_eq!(text, "half"),
            FromBridge::Exited { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    drop(line);
    let (_, hello) = stage.accept().await;
    assert!(hello.held.is_empty());
}

#[tokio::test]
async fn a_daemon_that_does_not_read_holds_up_no_agent_and_loses_no_text() {
    let stage = Stage::started();
    // 4 MiB in deltas of 1 KiB, and a file once the agent has written all of them.
    let launch = stage.jsonl(
        "k=$(head -c 1024 /dev/zero | tr '\\0' x)
         next_turn; i=0; while [ $i -lt 4096 ]; do delta $k; i=$((i+1)); done
         echo > written; finish ''; next_turn",
    );
    let mut line = stage.ready(launch).await;
    let turn = line.turn(1, "x").await;
    until("the agent has written all", || stage.workspace_file("written")).await;
    let (text, outcome) = line.reply(turn).await;
    assert_eq!(text.len(), 4 << 20);
    assert_eq!(outcome, answered(&text));
}

#[tokio::test]
async fn an_agent_that_does_not_read_is_stopped_like_any_other() {
    let stage = Stage::started();
    let mut line = stage.ready(stage.jsonl("exec sleep 1000")).await;
    line.turn(1, &"x".repeat(1 << 20)).await;
    line.stop(Duration::from_secs(30)).await;
    let evidence = line.exited().await;
    assert!(!evidence.grace_ran_out);
}
