//! Agents with chat completions over HTTP, well and badly.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_bridge::frames::{Adapter, FromBridge, Launch, Secret, ToBridge};
use dormouse_core::cause::Cause;
use dormouse_core::event::{AgentState, TurnOutcome};
use dormouse_core::evidence::End;

use crate::stage::{Line, Stage, answered, until};

/// An agent whose server answers as the `respond` function of the test says.
const SERVER: &str = r#"
import http.server, json, os, signal, socket, sys, time
def exists(name): return os.path.exists(name)
def wait_for(name):
    while not exists(name): time.sleep(0.01)
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def answer(self, status, kind, body):
        body = body.encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def begin_stream(self):
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("connection", "close")
        self.end_headers()
    def event(self, data):
        self.wfile.write(("data: %s\n\n" % data).encode())
    def piece(self, text, finish=None):
        self.event(json.dumps({"choices": [{"delta": {"content": text}, "finish_reason": finish}]}))
    def do_GET(self): get(self)
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        respond(self, json.loads(body))
def get(self): self.answer(200, "application/json", '{"ok": true}')
"#;

const SERVE: &str = r#"
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
while True: time.sleep(1)
"#;

fn launch(stage: &Stage, script: &str) -> Launch {
    let adapter = Adapter::Openai {
        url: "http://127.0.0.1:{port}/v1".into(),
        ready: Some("/healthz".into()),
        model: Some("scripted".into()),
        headers: BTreeMap::from([("authorization".into(), Secret("Bearer {key}".into()))]),
    };
    let script = format!("{SERVER}\n{script}\n{SERVE}");
    stage.launch(adapter, &["python3", "-c", &script, "{port}"])
}

async fn ready(script: &str) -> (Stage, Line) {
    let stage = Stage::started();
    let line = stage.ready(launch(&stage, script)).await;
    (stage, line)
}

fn failure(outcome: &TurnOutcome) -> (Cause, &str, bool) {
    match outcome {
        TurnOutcome::Failed { cause, message, retryable, .. } => (*cause, message, *retryable),
        TurnOutcome::Answered { .. } => panic!("{outcome:?} is no failure"),
    }
}

#[tokio::test]
async fn a_stream_is_streamed_and_the_request_is_the_contracts() {
    let (stage, mut line) = ready(
        r#"
def respond(self, body):
    with open("request", "w") as file:
        json.dump({"path": self.path, "body": body, "auth": self.headers["authorization"]}, file)
    self.begin_stream()
    self.event('{"choices":[{"delta":{"role":"assistant"}}]}')
    self.piece("Hel")
    wait_for("go")
    self.piece("lo é", "stop")
    self.event("[DONE]")
"#,
    )
    .await;
    let turn = line.turn(1, "hi \"there\"").await;
    let delta = |offset, text: &str| FromBridge::Delta { turn, offset, text: text.into() };
    assert_eq!(line.next().await, delta(0, "Hel"));
    std::fs::write(stage.workspace().join("go"), "").unwrap();
    assert_eq!(line.next().await, delta(3, "lo é"));
    let ended = FromBridge::Ended { turn, outcome: answered("Hello é"), files: None };
    assert_eq!(line.next().await, ended);
    let request: serde_json::Value =
        serde_json::from_str(&stage.workspace_file("request").unwrap()).unwrap();
    let expected = serde_json::json!({
        "path": "/v1/chat/completions",
        "auth": "Bearer main",
        "body": {
            "model": "scripted",
            "stream": true,
            "user": "main",
            "messages": [{"role": "user", "content": "hi \"there\""}],
        },
    });
    assert_eq!(request, expected);
}

#[tokio::test]
async fn an_agent_is_ready_when_its_application_says_so() {
    let stage = Stage::started();
    let script = r#"
def get(self):
    if not exists("up"): self.answer(503, "text/plain", "starting")
    elif not exists("page"): self.answer(200, "text/html", "<p>hello")
    elif not exists("no"): self.answer(200, "application/json", '{"ready": false}')
    else: self.answer(200, "application/json", '{"ready": true}')
"#;
    let line = stage.welcome(Some(launch(&stage, script))).await;
    drop(line);
    for (file, reason) in [
        ("up", "status 503 Service Unavailable"),
        ("page", "the answer is a web page"),
        ("no", "the answer says \"ready\": false"),
    ] {
        let reason = format!("not ready: GET /healthz: {reason}");
        until(&reason, || stage.log().contains(&reason).then_some(())).await;
        std::fs::write(stage.workspace().join(file), "").unwrap();
    }
    // The line was lost meanwhile, as ever nothing is.
    let (mut line, hello) = stage.accept().await;
    assert!(matches!(hello.agent, AgentState::Starting | AgentState::Ready));
    line.send(ToBridge::Welcome { launch: None }).await;
    assert_eq!(line.next().await, FromBridge::Ready);
}

#[tokio::test]
async fn an_answer_that_is_no_stream_is_taken_too() {
    let (_stage, mut line) = ready(
        r#"
def respond(self, body):
    answer = {"choices": [{"message": {"content": "whole"}, "finish_reason": "stop"}]}
    self.answer(200, "application/json", json.dumps(answer))
"#,
    )
    .await;
    for number in 1..=2 {
        let turn = line.turn(number, "x").await;
        assert_eq!(line.outcome(turn).await, answered("whole"));
    }
}

#[tokio::test]
async fn refusals_may_be_tried_again_where_the_status_says_so() {
    let (_stage, mut line) = ready(
        r#"
def respond(self, body):
    status = int(body["messages"][0]["content"])
    self.answer(status, "application/json", '{"error": {"message": "no, said the agent"}}')
"#,
    )
    .await;
    for (number, status, may_retry) in
        [(1, "429", true), (2, "503", true), (3, "401", false), (4, "500", false), (5, "504", true)]
    {
        let turn = line.turn(number, status).await;
        let outcome = line.outcome(turn).await;
        let (cause, message, retryable) = failure(&outcome);
        assert_eq!((cause, retryable), (Cause::AgentError, may_retry), "{status}");
        assert!(message.contains(status) && message.contains("no, said the agent"), "{message}");
    }
}

#[tokio::test]
async fn errors_breaks_and_nonsense_in_a_stream_fail_the_turn() {
    let (_stage, mut line) = ready(
        r#"
def respond(self, body):
    what = body["messages"][0]["content"]
    if what == "page": return self.answer(200, "text/html", "<p>hello")
    self.begin_stream()
    self.piece("partly")
    if what == "error": self.event('{"error": {"message": "model is gone"}}'); self.event("[DONE]")
    if what == "nonsense": self.event("hello")
    if what == "finish": self.piece("", "stop")
"#,
    )
    .await;
    for (number, what, expected_cause, words, may_retry) in [
        (1, "error", Cause::AgentError, "model is gone", false),
        (2, "nonsense", Cause::ProtocolFault, "no chat completion: hello", false),
        (3, "break", Cause::AgentError, "breaks off", true),
        (4, "page", Cause::ProtocolFault, "web page", false),
    ] {
        let turn = line.turn(number, what).await;
        let outcome = line.outcome(turn).await;
        let (cause, message, retryable) = failure(&outcome);
        assert_eq!((cause, retryable), (expected_cause, may_retry), "{what}");
        assert!(message.contains(words), "{message}");
    }
    // Servers differ in how they end: a reason to finish and the stream's end are enough.
    let turn = line.turn(5, "finish").await;
    assert_eq!(line.outcome(turn).await, answered("partly"));
}

#[tokio::test]
async fn a_turn_waits_while_the_agent_restarts_itself_and_its_port_is_closed() {
    let (stage, mut line) = ready(
        r#"
import threading
def open_again(address):
    wait_for("open")
    http.server.ThreadingHTTPServer(address, Handler).serve_forever()
def respond(self, body):
    self.answer(200, "application/json", '{"choices": [{"message": {"content": "here"}}]}')
    self.wfile.flush()
    if not exists("closed"):
        self.server.shutdown()
        self.server.server_close()
        threading.Thread(target=open_again, args=(self.server.server_address,)).start()
        open("closed", "w")
"#,
    )
    .await;
    let turn = line.turn(1, "x").await;
    assert_eq!(line.outcome(turn).await, answered("here"));
    until("the agent listens no more", || stage.workspace_file("closed")).await;
    let turn = line.turn(2, "x").await;
    until("the bridge to find it closed", || {
        stage.log().contains("its port is closed").then_some(())
    })
    .await;
    std::fs::write(stage.workspace().join("open"), "").unwrap();
    assert_eq!(line.outcome(turn).await, answered("here"));
}

#[tokio::test]
async fn an_agent_that_dies_in_its_turn_gives_that_turn_no_end() {
    let (stage, mut line) = ready(
        r#"
def respond(self, body):
    self.begin_stream()
    self.piece("half")
    os.kill(os.getpid(), signal.SIGKILL)
"#,
    )
    .await;
    line.turn(1, "x").await;
    let evidence = loop {
        match line.next().await {
            FromBridge::Delta { text, .. } => assert_eq!(text, "half"),
            FromBridge::Exited { evidence } => break evidence,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(evidence.end, End::Signaled { signal: 9 });
    assert!(stage.run_folder().read_results().unwrap().is_empty());
}

#[tokio::test]
async fn an_answer_that_is_its_agents_last_word_is_not_lost() {
    for _ in 0..5 {
        let (_stage, mut line) = ready(
            r#"
def respond(self, body):
    self.begin_stream()
    self.piece("last word", "stop")
    self.event("[DONE]")
    os._exit(3)
"#,
        )
        .await;
        let turn = line.turn(1, "x").await;
        let (_, outcome) = line.reply(turn).await;
        assert_eq!(outcome, answered("last word"));
        assert_eq!(line.exited().await.end, End::Exited { code: 3 });
    }
}

#[tokio::test]
async fn an_endless_reply_is_cut_off() {
    let (stage, mut line) = ready(
        r#"
def respond(self, body):
    self.begin_stream()
    try:
        while True: self.piece("x" * 100000)
    except OSError: open("cut", "w")
"#,
    )
    .await;
    let turn = line.turn(1, "x").await;
    let outcome = loop {
        match line.next().await {
            FromBridge::Delta { .. } => {}
            FromBridge::Ended { turn: of, outcome, .. } if of == turn => break outcome,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(failure(&outcome).0, Cause::ReplyTooLarge);
    until("the agent saw it", || stage.workspace_file("cut")).await;
}

#[tokio::test]
async fn an_agent_that_never_becomes_ready_can_be_stopped() {
    let stage = Stage::started();
    let launch = launch(&stage, "time.sleep(1000)");
    let mut line = stage.welcome(Some(launch)).await;
    until("it is asked", || stage.log().contains("not ready").then_some(())).await;
    line.stop(Duration::from_secs(30)).await;
    assert_eq!(line.exited().await.end, End::Signaled { signal: 15 });
}

#[tokio::test]
async fn an_address_beyond_loopback_is_a_launch_that_failed() {
    let stage = Stage::started();
    let mut launch = launch(&stage, "");
    launch.adapter = Adapter::Openai {
        url: "http://169.254.169.254/latest".into(),
        ready: None,
        model: None,
        headers: BTreeMap::new(),
    };
    let mut line = stage.welcome(Some(launch)).await;
    let End::LaunchFailed { error } = line.exited().await.end else { panic!() };
    assert!(error.contains("not on loopback"), "{error}");
}
