//! `why` as people see it.

use expect_test::{Expect, ExpectFile, expect, expect_file};
use jiff::tz::TimeZone;
use serde_json::json;

use super::super::terminal::testing::Screen;
use super::super::testing::{ScriptedServer, answer};
use super::super::when::Moment;
use super::page::{TAIL_LINES_FIRST, TAIL_LINES_LAST, log_tail};
use super::*;

const NOW: u64 = 1_795_352_400_000;

fn check(value: &Value, expected: impl Into<Expected>) {
    let why: Why = serde_json::from_value(value.clone()).unwrap();
    let page = Page { why: &why, generation: None, moment: &Moment::fixed(NOW, TimeZone::UTC) };
    let text = paper::text(&page.title(), &page.sections(), &|_, text| text.to_owned());
    assert!(!text.chars().any(|c| c.is_control() && c != '\n'), "{text:?}");
    expected.into().assert_eq(&format!("{text}\n"));
}

/// Short ones stand with their test.
enum Expected {
    Here(Expect),
    InFile(ExpectFile),
}

impl From<Expect> for Expected {
    fn from(expect: Expect) -> Self {
        Self::Here(expect)
    }
}

impl From<ExpectFile> for Expected {
    fn from(expect: ExpectFile) -> Self {
        Self::InFile(expect)
    }
}

impl Expected {
    fn assert_eq(&self, text: &str) {
        match self {
            Self::Here(expect) => expect.assert_eq(text),
            Self::InFile(expect) => expect.assert_eq(text),
        }
    }
}

fn killed_at_its_limit() -> Value {
    json!({
        "generation": 3, "at_ms": NOW - 2_000, "phase": "awake",
        "cause": "oom_limit",
        "message_in_flight": "msg_00000000000000000000000000000007",
        "evidence": {
            "end": {"how": "signaled", "signal": 9}, "asked_by": null, "uptime_ms": 28_000,
            "oom_kills": 1, "memory_peak_bytes": 536_866_816, "memory_limit_bytes": 536_870_912,
            "log_tail": "1795352370000 out loading\n\u{1b}]0;owned\u{7}touching 500 MiB",
        },
        "circumstances": {
            "stop": null, "attempt": 2, "ready_after_ms": 1_400, "silent_ms": 900,
            "lived_ms": 29_400,
        },
        "diagnosis": {
            "verdict": "oom_limit", "confidence": "proved",
            "sentence": "the agent needed more memory than it may use: it was ended by SIGKILL",
            "because": [
                {"source": "control group", "field": "out-of-memory kills", "value": "1"},
                {"source": "bridge", "field": "signal", "value": "SIGKILL"},
            ],
            "ruled_out": [
                {"verdict": "app_exit", "because": "SIGKILL ended it (signal = SIGKILL)"},
            ],
            "missing": ["the machine's own memory"],
        },
    })
}

/// An agent that died of its memory limit and waits for its next start.
fn out_of_memory() -> Value {
    let row = |ago_ms: u64, generation: u64, from: &str, to: &str, text: &str| {
        json!({"at_ms": NOW - ago_ms, "generation": generation, "from": from, "to": to,
               "text": text, "because": {}})
    };
    let short = |generation: u64, ago_ms: u64, verdict: &str, sentence: &str| {
        json!({"generation": generation, "at_ms": NOW - ago_ms, "phase": "awake", "cause": verdict,
               "verdict": verdict, "confidence": "likely", "sentence": sentence,
               "uptime_ms": 28_000})
    };
    json!({
        "session": {
            "session": "python/main", "subject": "local", "phase": "backoff", "generation": 3,
            "waiting": 1, "failures": 1, "last_failure": "oom_limit",
            "next_start_at_ms": NOW + 8_000, "created_at_ms": NOW - 900_000, "start_took_ms": 1_400,
        },
        "verdict": "python/main ran out of memory\u{1b}[31m; it starts in 8 s.",
        "next_steps": ["dormouse logs python/main        what the agent said last"],
        "remedy": {
            "diff": [" [agents.python]", "+memory_ceiling = \"4GiB\""],
            "effect": "the limit, which is at its ceiling, may rise once more",
            "monthly_difference": "+2 GiB, about 7.00 USD a month",
            "check": "dormouse why python/main",
        },
        "awake_because": [],
        "last_exit": killed_at_its_limit(),
        "in_flight": {
            "message_id": "msg_00000000000000000000000000000007", "session": "python/main",
            "state": "dead", "attempts": 3, "accepted_at_ms": NOW - 65_000,
            "cause": "poison_message",
        },
        "exits": [
            short(3, 2_000, "oom_limit", "it was ended by SIGKILL"),
            short(2, 52_000, "oom_limit", "it was ended by SIGKILL\u{7}"),
        ],
        "loop": {
            "ends": 3, "failures": 2, "since": NOW - 52_000, "period_ms": 50_000,
            "uptime_ms": 28_000, "before_ready": 1, "cause": "oom_limit", "cause_percent": 100,
            "histogram": [{"end": "SIGKILL", "count": 2}],
        },
        "memory": {
            "limit_bytes": 2_u64 << 30, "first_bytes": 512 << 20, "ceiling_bytes": 2_u64 << 30,
            "machine_bytes": 16_u64 << 30, "because": "oom_limit", "since_ms": NOW - 52_000,
            "last_peak_bytes": 536_866_816, "last_peak_is_censored": true,
            "monthly_difference": "+1.5 GiB, about 5.25 USD a month",
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
    check(&out_of_memory(), expect_file!["./out_of_memory.txt"]);
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
    let (head, shown) = log_tail(&lines.join("\n"), &moment);
    assert_eq!(head, "its last 40 lines");
    assert_eq!(shown.len(), TAIL_LINES_FIRST + 1 + TAIL_LINES_LAST);
    assert_eq!(shown[0], "line 1");
    assert_eq!(shown[3], "⋮ 28 more; --json has them all");
    assert_eq!(shown.last().unwrap(), "line 40");
    assert_eq!(log_tail(&lines[..13].join("\n"), &moment).1.len(), 13);
}

#[test]
fn sizes_are_rounded_down_so_that_a_peak_is_never_above_its_limit() {
    assert_eq!(size(1_023), "1023 bytes");
    assert_eq!(size((512 << 20) - 1), "511.9 MiB");
    assert_eq!(size(3 << 29), "1.5 GiB");
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    Markdown,
}

async fn asked(subject: &str, answers: Vec<String>, form: Form) -> (String, Vec<String>) {
    let server = ScriptedServer::start(answers).await;
    let screen = Screen::default();
    let mut terminal = screen.terminal();
    let mut context = Context {
        terminal: &mut terminal,
        client: server.client(),
        moment: Moment::fixed(NOW, TimeZone::UTC),
        as_json: form == Form::Json,
    };
    let subject = subject.parse().unwrap();
    let markdown = form == Form::Markdown;
    why(WhyArguments { subject, markdown }, &mut context).await.unwrap();
    (screen.out.text(), server.request_lines())
}

#[tokio::test]
async fn programs_get_everything() {
    let body = out_of_memory();
    let (text, asked) =
        asked("python", vec![answer("200 OK", &body.to_string())], Form::Json).await;
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), body);
    assert_eq!(asked, ["GET /v1/sessions/python/main/why"]);
}

#[tokio::test]
async fn one_life_shows_its_own_rows_and_admits_what_is_not_kept() {
    let mut body = out_of_memory();
    for gone in ["last_exit", "remedy"] {
        body.as_object_mut().unwrap().remove(gone);
    }
    let mut newest_first = body["timeline"].as_array().unwrap().clone();
    newest_first.reverse();
    let journal = json!({"items": newest_first}).to_string();
    let answers = vec![answer("200 OK", &body.to_string()), answer("200 OK", &journal)];
    let (text, asked) = asked("python/main#2", answers, Form::Text).await;
    expect![[r#"
        Start #2 of python/main. Now: python/main ran out of memory\u{1b}[31m; it starts in 8 s.

        Why it ended
          its evidence is not kept any more; the timeline has what is known

        In circles?
          failures       2 of 3 kept ends, the first 12:59:08 (52 s ago)
          period         50 s from end to end (median)
          uptime         28 s (median)
          cause          100 % of them oom_limit
          ends           2 × SIGKILL
          not yet ready  1 of them

        Memory
          next limit  2.0 GiB
          learned     from 512.0 MiB, because of oom_limit, 12:59:08 (52 s ago)
          ceiling     2.0 GiB: it does not rise any more
          peak        511.9 MiB, cut off by the limit: what it needs is more, and not known
          cost        +1.5 GiB, about 5.25 USD a month

        What you can do
          - dormouse logs python/main        what the agent said last

        Session
          phase            backoff
          starts           3
          waiting          1
          failures         1 in a row, the last: oom_limit
          next start       13:00:08 (in 8 s)
          last start took  1.4 s

        Timeline
          2026-11-21 12:00:00  #2  awake → draining  nothing needed it for 30 min
    "#]]
    .assert_eq(&text);
    assert_eq!(asked[0], "GET /v1/sessions/python/main/why?start=2");
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
        let error = why(WhyArguments { subject, markdown: false }, &mut context).await.unwrap_err();
        assert_eq!(error.exit().code(), 5, "{error}");
    }
}

#[tokio::test]
async fn a_report_is_markdown_with_the_same_facts() {
    let answers = vec![answer("200 OK", &out_of_memory().to_string())];
    let (text, _) = asked("python", answers, Form::Markdown).await;
    expect_file!["./report.txt"].assert_eq(&text);
}

#[test]
fn an_end_that_was_wanted_is_called_no_failure() {
    let mut value = out_of_memory();
    let whole = value.as_object_mut().unwrap();
    for gone in ["loop", "memory", "remedy", "in_flight", "exits", "timeline"] {
        whole.remove(gone);
    }
    value["timeline"] = json!([]);
    value["next_steps"] = json!([]);
    value["last_exit"]["cause"] = json!(null);
    value["last_exit"]["diagnosis"] = json!({
        "verdict": "stopped_by_watchdog", "kind": "idle", "confidence": "proved",
        "sentence": "a watchdog stopped it: it was ended by SIGTERM (idle)", "because": [],
    });
    value["last_exit"]["evidence"]["log_tail"] = json!("");
    check(
        &value,
        expect![[r#"
        python/main ran out of memory\u{1b}[31m; it starts in 8 s.

        Why its last life ended
          stopped_by_watchdog (idle), proved: a watchdog stopped it: it was ended by SIGTERM (idle)
          It was no failure.
          start        #3, in phase awake
          at           12:59:58 (2 s ago)
          asked by     nobody, as far as is known
          lived        28 s
          ready after  1.4 s
          silent for   900 ms
          memory       peak 511.9 MiB of 512.0 MiB
          in flight    msg_00000000000000000000000000000007

        What it said
          it printed nothing

        Session
          phase            backoff
          starts           3
          waiting          1
          failures         1 in a row, the last: oom_limit
          next start       13:00:08 (in 8 s)
          last start took  1.4 s
    "#]],
    );
}
