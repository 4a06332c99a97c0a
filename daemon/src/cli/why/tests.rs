//! `why` as people see it.

use expect_test::{Expect, expect};
use jiff::tz::TimeZone;
use serde_json::json;

use super::super::terminal::testing::Screen;
use super::super::testing::{ScriptedServer, answer};
use super::*;

const NOW: u64 = 1_795_352_400_000;

fn check(value: &Value, expected: Expect) {
    let why: Why = serde_json::from_value(value.clone()).unwrap();
    let page = Page {
        why: &why,
        generation: None,
        moment: &Moment::fixed(NOW, TimeZone::UTC),
        toned: &|_, text| text.to_owned(),
    };
    let text = page.render();
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    expected.assert_eq(&format!("{text}\n"));
}

/// An agent that died of its memory limit and waits for its next start.
fn out_of_memory() -> Value {
    let row = |ago_ms: u64, generation: u64, from: &str, to: &str, text: &str| {
        json!({"at_ms": NOW - ago_ms, "generation": generation, "from": from, "to": to,
               "text": text, "because": {}})
    };
    json!({
        "session": {
            "session": "python/main", "subject": "local", "phase": "backoff", "generation": 3,
            "waiting": 1, "failures": 1, "last_failure": "oom_limit",
            "next_start_at_ms": NOW + 8_000, "created_at_ms": NOW - 900_000, "start_took_ms": 1_400,
        },
        "verdict": "python/main ran out of memory\u{1b}[31m; it starts in 8 s.",
        "next_steps": ["raise agents.python.memory above 512MiB"],
        "awake_because": [],
        "last_exit": {
            "generation": 3, "at_ms": NOW - 2_000, "phase": "awake",
            "cause": "oom_limit",
            "message_in_flight": "msg_00000000000000000000000000000007",
            "evidence": {
                "end": {"how": "signaled", "signal": 9}, "asked_by": null, "uptime_ms": 28_000,
                "oom_kills": 1, "memory_peak_bytes": 536_866_816, "memory_limit_bytes": 536_870_912,
                "log_tail": "1795352370000 out loading\n\u{1b}]0;owned\u{7}touching 500 MiB",
            },
            "diagnosis": {
                "verdict": "oom_limit", "confidence": "proved",
                "sentence": "the agent needed more memory than it may use: it was ended by SIGKILL",
                "because": [
                    {"source": "control group", "field": "out-of-memory kills", "value": "1"},
                ],
            },
        },
        "timeline": [
            row(90_000_000, 2, "awake", "draining", "nothing needed it for 30 min"),
            row(31_400, 3, "asleep", "starting", "1 message to answer"),
            row(30_000, 3, "starting", "awake", "the agent was ready after 1.4 s"),
            row(29_000, 3, "awake", "awake", "handed to the agent, attempt 1\r\n"),
            row(2_000, 3, "awake", "backoff", "the agent was ended by signal 9 after 28 s"),
        ],
    })
}

#[test]
fn an_agent_that_ran_out_of_memory() {
    check(
        &out_of_memory(),
        expect![[r#"
            python/main ran out of memory\u{1b}[31m; it starts in 8 s.

            Session
              phase            backoff
              starts           3
              waiting          1
              failures         1 in a row, the last: oom_limit
              next start       13:00:08 (in 8 s)
              last start took  1.4 s

            Last end
              start      #3, in phase awake
              at         12:59:58 (2 s ago)
              cause      oom_limit: the agent needed more memory than it may use
              end        signal 9 (SIGKILL)
              asked by   nobody, as far as is known
              lived      28 s
              memory     peak 511.9 MiB of 512.0 MiB
              oom kills  1 counted by the kernel
              in flight  msg_00000000000000000000000000000007
              its last lines
                │ 12:59:30 out    loading
                │ \u{1b}]0;owned\u{7}touching 500 MiB

            Timeline
              2026-11-21 12:00:00  #2  awake → draining   nothing needed it for 30 min
              12:59:28             #3  asleep → starting  1 message to answer
              12:59:30             #3  starting → awake   the agent was ready after 1.4 s
              12:59:31             #3  awake              handed to the agent, attempt 1\r\n
              12:59:58             #3  awake → backoff    the agent was ended by signal 9 after 28 s

            What you can do
              - raise agents.python.memory above 512MiB
        "#]],
    );
}

#[test]
fn a_message_that_waits_behind_others() {
    let value = json!({
        "session": {
            "session": "python/main", "subject": "local", "phase": "awake", "generation": 1,
            "waiting": 3, "failures": 0, "created_at_ms": NOW,
        },
        "message": {
            "message_id": "msg_00000000000000000000000000000007", "session": "python/main",
            "state": "pending", "attempts": 0, "accepted_at_ms": NOW - 65_000, "position": 2,
        },
        "verdict": "msg_00000000000000000000000000000007 waits behind 2 messages.",
        "next_steps": [],
        "awake_because": ["a turn is running since 2 min", "3 messages wait"],
        "timeline": [],
    });
    check(
        &value,
        expect![[r#"
            msg_00000000000000000000000000000007 waits behind 2 messages.

            Message
              session   python/main
              state     waits, 2 before it
              attempts  0
              accepted  12:58:55 (1 min ago)

            Session
              phase    awake
              starts   1
              waiting  3

            Awake because
              - a turn is running since 2 min
              - 3 messages wait
        "#]],
    );
}

#[test]
fn a_long_log_tail_shows_its_first_and_its_last_lines() {
    let lines: Vec<String> = (1..=40).map(|n| format!("line {n}")).collect();
    let moment = Moment::fixed(NOW, TimeZone::UTC);
    let shown = log_tail(&lines.join("\n"), &moment);
    assert_eq!(shown.len(), 1 + TAIL_LINES_FIRST + 1 + TAIL_LINES_LAST);
    assert_eq!(shown[1], "  │ line 1");
    assert_eq!(shown[4], "  ⋮ 28 more; --json has them all");
    assert_eq!(shown.last().unwrap(), "  │ line 40");
    assert_eq!(log_tail(&lines[..13].join("\n"), &moment).len(), 14);
}

#[test]
fn sizes_are_rounded_down_so_that_a_peak_is_never_above_its_limit() {
    assert_eq!(size(1_023), "1023 bytes");
    assert_eq!(size((512 << 20) - 1), "511.9 MiB");
    assert_eq!(size(3 << 29), "1.5 GiB");
}

async fn asked(subject: &str, answers: Vec<String>, as_json: bool) -> (String, Vec<String>) {
    let server = ScriptedServer::start(answers).await;
    let screen = Screen::default();
    let mut terminal = screen.terminal();
    let mut context = Context {
        terminal: &mut terminal,
        client: server.client(),
        moment: Moment::fixed(NOW, TimeZone::UTC),
        as_json,
    };
    let subject = subject.parse().unwrap();
    why(WhyArguments { subject }, &mut context).await.unwrap();
    (screen.out.text(), server.request_lines())
}

#[tokio::test]
async fn programs_get_everything() {
    let body = out_of_memory();
    let (text, asked) = asked("python", vec![answer("200 OK", &body.to_string())], true).await;
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), body);
    assert_eq!(asked, ["GET /v1/sessions/python/main/why"]);
}

#[tokio::test]
async fn one_life_shows_its_own_rows_and_admits_what_is_not_kept() {
    let body = out_of_memory();
    let mut newest_first = body["timeline"].as_array().unwrap().clone();
    newest_first.reverse();
    let journal = json!({"items": newest_first}).to_string();
    let answers = vec![answer("200 OK", &body.to_string()), answer("200 OK", &journal)];
    let (text, asked) = asked("python/main#2", answers, false).await;
    expect![[r#"
        Start #2 of python/main. Now: python/main ran out of memory\u{1b}[31m; it starts in 8 s.

        Session
          phase            backoff
          starts           3
          waiting          1
          failures         1 in a row, the last: oom_limit
          next start       13:00:08 (in 8 s)
          last start took  1.4 s

        Its end
          its evidence is not shown any more; the timeline has what is known

        Timeline
          2026-11-21 12:00:00  #2  awake → draining  nothing needed it for 30 min

        What you can do
          - raise agents.python.memory above 512MiB
    "#]]
    .assert_eq(&text);
    assert_eq!(asked[1], "GET /v1/sessions/python/main/journal?limit=500");
}

#[tokio::test]
async fn a_life_that_never_was_is_not_found() {
    for subject in ["python#4", "python#0"] {
        let server =
            ScriptedServer::start(vec![answer("200 OK", &out_of_memory().to_string())]).await;
        let screen = Screen::default();
        let mut terminal = screen.terminal();
        let mut context = Context {
            terminal: &mut terminal,
            client: server.client(),
            moment: Moment::fixed(NOW, TimeZone::UTC),
            as_json: false,
        };
        let subject = subject.parse().unwrap();
        let error = why(WhyArguments { subject }, &mut context).await.unwrap_err();
        assert_eq!(error.exit().code(), 5, "{error}");
    }
}
