//! A run folder, a daemon's socket, and a bridge between them.
//!
//! Owner: the tests. Invariant: when a stage is dropped its bridge is dead, and with it the agent.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dormouse_bridge::frames::{Adapter, FromBridge, Hello, Launch, Secret, ToBridge};
use dormouse_bridge::rundir::{CgroupSpec, Dial, RunFolder, Spec};
use dormouse_core::event::TurnOutcome;
use dormouse_core::evidence::Evidence;
use dormouse_core::id::{Generation, MessageId, TurnId};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

/// Far beyond what anything here takes, on a machine that is busy with other things.
const DEADLINE: Duration = Duration::from_secs(30);
const BRIDGE: &str = env!("CARGO_BIN_EXE_dormouse-bridge");

static STAGES_MADE: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Stage {
    root: PathBuf,
    listener: Option<UnixListener>,
    pub(crate) bridge: Option<Child>,
}

impl Stage {
    /// Spec and socket are there, the bridge is not.
    pub(crate) fn new() -> Self {
        Self::with_cgroup(None)
    }

    pub(crate) fn with_cgroup(cgroup: Option<CgroupSpec>) -> Self {
        let number = STAGES_MADE.fetch_add(1, Ordering::Relaxed);
        let root =
            std::env::temp_dir().join(format!("dormouse-bridge-{}-{number}", std::process::id()));
        let stage = Self { root, listener: None, bridge: None };
        for folder in ["run", "workspace"] {
            fs::create_dir_all(stage.root.join(folder)).unwrap();
        }
        stage.run_folder().write_spec(&stage.spec(cgroup)).unwrap();
        let mut stage = stage;
        stage.listen();
        stage
    }

    pub(crate) fn spec(&self, cgroup: Option<CgroupSpec>) -> Spec {
        Spec {
            session: "echo/main".parse().unwrap(),
            generation: Generation(7),
            dial: Dial::Unix(self.socket()),
            token: Secret("t0ken".into()),
            log_folder: self.root.join("logs"),
            cgroup,
            memory_limit_bytes: Some(64 << 20),
        }
    }

    /// The same with a bridge on it.
    pub(crate) fn started() -> Self {
        let mut stage = Self::new();
        stage.start();
        stage
    }

    pub(crate) fn start(&mut self) {
        self.bridge = Some(self.command().spawn().unwrap());
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(BRIDGE);
        command.arg(self.run_folder().path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn bridge_program() -> &'static str {
        BRIDGE
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.root.join("daemon.sock")
    }

    /// The daemon is there.
    pub(crate) fn listen(&mut self) {
        self.listener = Some(UnixListener::bind(self.socket()).unwrap());
    }

    /// The daemon is gone.
    pub(crate) fn stop_listening(&mut self) {
        self.listener = None;
        fs::remove_file(self.socket()).unwrap();
    }

    pub(crate) fn run_folder(&self) -> RunFolder {
        RunFolder::new(self.root.join("run"))
    }

    /// Where whatever belongs to this test alone may be.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Another life of the same session, on the same workspace, with a run folder of its own.
    pub(crate) fn begin_anew(&mut self) {
        fs::remove_dir_all(self.root.join("run")).unwrap();
        fs::create_dir(self.root.join("run")).unwrap();
        self.run_folder().write_spec(&self.spec(None)).unwrap();
        self.start();
    }

    pub(crate) fn workspace(&self) -> PathBuf {
        self.root.join("workspace")
    }

    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.root.join("logs/agent.log")).unwrap_or_default()
    }

    pub(crate) fn workspace_file(&self, name: &str) -> Option<String> {
        fs::read_to_string(self.workspace().join(name)).ok()
    }

    /// The next connection of the bridge, and its hello.
    pub(crate) async fn accept(&self) -> (Line, Hello) {
        let listener = self.listener.as_ref().expect("the stage listens");
        let (stream, _) = within("a connection", listener.accept()).await.unwrap();
        let config = WebSocketConfig::default()
            .max_message_size(Some(dormouse_bridge::frames::FRAME_BYTES_MAX))
            .max_frame_size(Some(dormouse_bridge::frames::FRAME_BYTES_MAX));
        let accepting = tokio_tungstenite::accept_async_with_config(stream, Some(config));
        let socket = within("a handshake", accepting).await.unwrap();
        let mut line = Line { socket, early: VecDeque::new() };
        match line.next().await {
            FromBridge::Hello(hello) => (line, hello),
            other => panic!("the first frame was {other:?}"),
        }
    }

    /// The next connection, welcomed.
    pub(crate) async fn welcome(&self, launch: Option<Launch>) -> Line {
        let (mut line, _) = self.accept().await;
        line.send(ToBridge::Welcome { launch }).await;
        line
    }

    /// The next connection, with a launch, once the agent is ready.
    pub(crate) async fn ready(&self, launch: Launch) -> Line {
        let mut line = self.welcome(Some(launch)).await;
        assert_eq!(line.next().await, FromBridge::Ready);
        line
    }

    pub(crate) fn launch(&self, adapter: Adapter, command: &[&str]) -> Launch {
        Launch {
            command: command.iter().map(ToString::to_string).collect(),
            env: BTreeMap::from([("PATH".to_string(), Secret("/usr/bin:/bin".to_string()))]),
            workspace: self.workspace(),
            adapter,
            orphan_limit_ms: 60_000,
            heap_percent: 75,
            files: Vec::new(),
            secrets: BTreeMap::new(),
        }
    }

    pub(crate) fn shell(&self, adapter: Adapter, script: &str) -> Launch {
        self.launch(adapter, &["sh", "-c", script])
    }

    /// A shell script that speaks JSON lines; `$t` is the turn after `next_turn`.
    pub(crate) fn jsonl(&self, script: &str) -> Launch {
        let prelude = r#"
            next_turn() { read -r line || exit 0; t=${line#*\"turn\":\"}; t=${t%%\"*}; }
            delta() { printf '{"turn":"%s","delta":"%s"}\n' "$t" "$1"; }
            finish() { printf '{"turn":"%s","done":"%s"}\n' "$t" "$1"; }
        "#;
        let adapter = Adapter::Jsonl { wait_for_ready: false };
        self.shell(adapter, &format!("{prelude}\n{script}"))
    }

    /// Waits for the bridge's end.
    pub(crate) async fn bridge_exit(&mut self) -> ExitStatus {
        let bridge = self.bridge.as_mut().expect("a bridge was started");
        until("the bridge ends", || bridge.try_wait().unwrap()).await
    }

    pub(crate) fn bridge_pid(&self) -> u32 {
        self.bridge.as_ref().expect("a bridge was started").id()
    }

    pub(crate) fn signal_bridge(&self, signal: &str) {
        send_signal(signal, &self.bridge_pid().to_string());
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Some(bridge) = &mut self.bridge {
            // It may have ended, which is as good.
            let _killed = bridge.kill();
            let _reaped = bridge.wait();
        }
        if std::thread::panicking() {
            // Shown only where a test failed.
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let newest = lines[lines.len().saturating_sub(40)..].join("\n");
            let _said = std::io::Write::write_all(
                &mut std::io::stderr(),
                format!("--- log of {}\n{newest}\n", self.root.display()).as_bytes(),
            );
        }
        let _removed = fs::remove_dir_all(&self.root);
    }
}

pub(crate) fn send_signal(signal: &str, target: &str) {
    let status = Command::new("kill").args(["-s", signal, "--", target]).status().unwrap();
    assert!(status.success(), "kill -s {signal} {target}");
}

/// The daemon's end of a connection.
pub(crate) struct Line {
    socket: WebSocketStream<UnixStream>,
    /// Frames that came while something else was waited for.
    early: VecDeque<FromBridge>,
}

impl Line {
    pub(crate) async fn send(&mut self, frame: ToBridge) {
        self.send_text(serde_json::to_string(&frame).unwrap()).await;
    }

    pub(crate) async fn send_text(&mut self, text: String) {
        within("a frame is taken", self.socket.send(Message::text(text))).await.unwrap();
    }

    pub(crate) async fn turn(&mut self, number: u128, text: &str) -> TurnId {
        let turn = turn(number);
        self.send(ToBridge::Turn { turn, text: text.to_string() }).await;
        turn
    }

    /// The next frame. The end of the line is a failure.
    pub(crate) async fn next(&mut self) -> FromBridge {
        self.next_or_end().await.expect("the bridge closed the line")
    }

    pub(crate) async fn next_or_end(&mut self) -> Option<FromBridge> {
        if let Some(frame) = self.early.pop_front() {
            return Some(frame);
        }
        // One deadline for the frame, however many pings come before it.
        within("a frame", async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        return Some(serde_json::from_str(&text).unwrap());
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return None,
                    Some(Ok(other)) => panic!("the bridge sent {other:?}"),
                }
            }
        })
        .await
    }

    /// Asks for a sign of life, and waits for it.
    pub(crate) async fn ping(&mut self) {
        within("a ping is taken", self.socket.send(Message::Ping("?".into()))).await.unwrap();
        within("a pong", async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Pong(_))) => return,
                    Some(Ok(Message::Text(text))) => {
                        self.early.push_back(serde_json::from_str(&text).unwrap());
                    }
                    Some(Ok(Message::Ping(_))) => {}
                    other => panic!("instead of a pong came {other:?}"),
                }
            }
        })
        .await;
    }

    /// The deltas of a turn, checked for gaps and joined, and how it ended.
    pub(crate) async fn reply(&mut self, turn: TurnId) -> (String, TurnOutcome) {
        let mut text = String::new();
        loop {
            match self.next().await {
                FromBridge::Delta { turn: of, offset, text: piece } => {
                    assert_eq!((of, offset), (turn, text.len() as u64));
                    text.push_str(&piece);
                }
                FromBridge::Ended { turn: of, outcome, .. } => {
                    assert_eq!(of, turn);
                    return (text, outcome);
                }
                other => panic!("in a reply came {other:?}"),
            }
        }
    }

    /// The outcome of a turn, and its result acknowledged.
    pub(crate) async fn outcome(&mut self, turn: TurnId) -> TurnOutcome {
        let (_, outcome) = self.reply(turn).await;
        self.send(ToBridge::Acknowledge { turn }).await;
        outcome
    }

    pub(crate) async fn exited(&mut self) -> Evidence {
        match self.next().await {
            FromBridge::Exited { evidence } => evidence,
            other => panic!("instead of exited came {other:?}"),
        }
    }

    pub(crate) async fn stop(&mut self, grace: Duration) {
        let grace_ms = u64::try_from(grace.as_millis()).unwrap();
        self.send(ToBridge::Stop { grace_ms }).await;
    }
}

pub(crate) fn turn(number: u128) -> TurnId {
    TurnId { message: MessageId(number), attempt: 1 }
}

pub(crate) fn answered(text: &str) -> TurnOutcome {
    TurnOutcome::Answered { text: text.to_string(), exit_code: None }
}

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    let result = tokio::time::timeout(DEADLINE, future).await;
    result.unwrap_or_else(|_| panic!("waited too long for: {what}"))
}

/// Looks until there is something to see.
pub(crate) async fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(seen) = look() {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(what, looking).await
}

/// Whether any process with this number runs; a zombie does not.
pub(crate) fn is_running(pid: &str) -> bool {
    let stat = fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat"));
    let state = stat.ok().and_then(|stat| Some(stat.rsplit_once(')')?.1.trim().chars().next()));
    !matches!(state.flatten(), None | Some('Z' | 'X'))
}
