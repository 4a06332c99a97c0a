//! A daemon of our own for one benchmark: started, asked, killed, its folder removed.
//!
//! Owner: a benchmark holds it for as long as it measures. Invariants: it listens on loopback and
//! keeps all it has in a folder of its own; when it is dropped, it and what it started is ended, by
//! their process numbers; its last words are shown when it ends by itself. Absent: figures.

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::error::BenchError;
use super::http::Connection;
use super::machine::{Placement, processes_with, read};

const READY_WITHIN: Duration = Duration::from_secs(60);
const END_WITHIN: Duration = Duration::from_secs(60);
/// Short next to what is measured with it: connections to a closed port are refused at once.
const LOOK_EVERY: Duration = Duration::from_micros(200);
/// Turns were left to their bridges, which are ended next.
const LEFT_RUNNING: i32 = 12;
const LAST_WORDS_BYTES: usize = 2_000;

/// What the bounds at the gate are for is not measured here: they are lifted.
const LIMITS: &str = "\
    [limits]\n\
    queue_messages = 100000000\n\
    queue_size = \"1000GiB\"\n\
    messages_per_second = 100000000\n\
    messages_burst = 100000000\n\
    unauthenticated_per_second = 1000000\n\
    connections = 4096\n";

/// How a daemon is to be started.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) binary: PathBuf,
    /// Its own folder, which must not be there.
    pub(super) folder: PathBuf,
    /// Tables of the agents, in TOML.
    pub(super) agents: String,
    pub(super) starts_at_once: usize,
    pub(super) placement: Placement,
    /// The program for bridges; else the daemon's own.
    pub(super) bridge: Option<PathBuf>,
    /// Where to count its syncs with strace.
    pub(super) count_syncs: Option<PathBuf>,
    /// Besides what we have ourselves.
    pub(super) environment: Vec<(&'static str, String)>,
}

#[derive(Debug)]
pub(super) struct Daemon {
    setup: Setup,
    pub(super) address: SocketAddr,
    pub(super) token: String,
    child: Option<Child>,
    /// From the start of the process to its first ready answer.
    pub(super) ready_after: Duration,
}

impl Setup {
    /// Makes the folder, starts, and waits until it takes messages.
    pub(super) fn start(self) -> Result<Daemon, BenchError> {
        let data = self.folder.join("data");
        fs::create_dir_all(&self.folder).map_err(BenchError::file("make", &self.folder))?;
        let address = free_address()?;
        let config = format!(
            "[server]\nlisten = \"{address}\"\ndrain_within = \"1s\"\n[node]\nstarts_at_once = {}\n\
             orphan_limit = \"2s\"\n{LIMITS}{}",
            self.starts_at_once, self.agents
        );
        let path = self.folder.join("dormouse.toml");
        fs::write(&path, config).map_err(BenchError::file("write", &path))?;
        let mut daemon = Daemon {
            setup: self,
            address,
            token: String::new(),
            child: None,
            ready_after: Duration::ZERO,
        };
        daemon.spawn()?;
        daemon.ready_after = daemon.wait_until_ready()?;
        let key = data.join("operator.key");
        daemon.token = read(&key)?.trim().to_string();
        Ok(daemon)
    }
}

impl Daemon {
    fn spawn(&mut self) -> Result<(), BenchError> {
        let Setup { binary, folder, placement, bridge, count_syncs, environment, .. } = &self.setup;
        let mut command = match count_syncs {
            None => Command::new(binary),
            Some(path) => {
                let mut strace = Command::new("strace");
                strace.args(["-f", "-c", "-e", "trace=fdatasync,fsync", "-o"]).arg(path);
                strace.arg("--").arg(binary);
                strace
            }
        };
        let log_path = folder.join("log");
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(BenchError::file("open", &log_path))?;
        command
            .arg("up")
            .arg("--config")
            .arg(folder.join("dormouse.toml"))
            .arg("--data")
            .arg(folder.join("data"))
            .current_dir(folder)
            .env_remove("DORMOUSE_LISTEN")
            .env_remove("DORMOUSE_BRIDGE")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        if let Some(bridge) = bridge {
            command.env("DORMOUSE_BRIDGE", bridge);
        }
        let spawned =
            placement.as_server(|| command.spawn().map_err(BenchError::file("start", binary)))?;
        self.child = Some(spawned);
        Ok(())
    }

    /// Time from the start of the process to the first ready answer.
    fn wait_until_ready(&mut self) -> Result<Duration, BenchError> {
        let started_at = Instant::now();
        self.wait_for(started_at, |connection| {
            let answer = connection.request("GET", "/readyz", "")?;
            Ok((answer.status == 200).then_some(()))
        })?;
        Ok(started_at.elapsed())
    }

    fn wait_for<T>(
        &mut self,
        started_at: Instant,
        mut ask: impl FnMut(&mut Connection) -> Result<Option<T>, BenchError>,
    ) -> Result<T, BenchError> {
        while started_at.elapsed() < READY_WITHIN {
            self.expect_alive()?;
            // Nothing listens there as long as it is not open.
            if let Ok(mut connection) = Connection::open(self.address, &self.token)
                && let Some(answer) = ask(&mut connection)?
            {
                return Ok(answer);
            }
            thread::sleep(LOOK_EVERY);
        }
        let what = "the daemon's start".to_string();
        Err(BenchError::TooSlow { what, seconds: READY_WITHIN.as_secs() })
    }

    /// Starts anew on the same folder and hands in a message as soon as anybody listens. Returns
    /// the time from just before the process was made to the acceptance.
    pub(super) fn restart_until_accepted(&mut self, session: &str) -> Result<Duration, BenchError> {
        let started_at = Instant::now();
        self.spawn()?;
        let path = format!("/v1/sessions/{session}/messages");
        self.wait_for(started_at, |connection| {
            connection.json("POST", &path, "{\"text\":\"first\"}", 202).map(Some)
        })?;
        Ok(started_at.elapsed())
    }

    /// Starts anew on the same folder. Returns the time to the first ready answer.
    pub(super) fn restart_until_ready(&mut self) -> Result<Duration, BenchError> {
        let started_at = Instant::now();
        self.spawn()?;
        self.wait_until_ready()?;
        Ok(started_at.elapsed())
    }

    pub(super) fn connect(&self) -> Result<Connection, BenchError> {
        Connection::open(self.address, &self.token)
    }

    /// With its config, `dormouse.toml`.
    pub(super) fn folder(&self) -> &Path {
        &self.setup.folder
    }

    pub(super) fn data(&self) -> PathBuf {
        self.setup.folder.join("data")
    }

    /// The daemon's process number; with strace around it, not strace's.
    pub(super) fn process(&self) -> Result<u32, BenchError> {
        let child = self.child.as_ref().ok_or_else(|| BenchError::void("no daemon runs"))?;
        if self.setup.count_syncs.is_none() {
            return Ok(child.id());
        }
        let path = PathBuf::from(format!("/proc/{0}/task/{0}/children", child.id()));
        let children = read(&path)?;
        let first = children.split_whitespace().next().and_then(|child| child.parse().ok());
        first.ok_or_else(|| BenchError::void("strace has no child"))
    }

    fn expect_alive(&mut self) -> Result<(), BenchError> {
        let Some(child) = &mut self.child else { return Err(BenchError::void("no daemon runs")) };
        match child.try_wait().map_err(BenchError::system("to wait for the daemon"))? {
            None => Ok(()),
            Some(_) => {
                let log = read(&self.setup.folder.join("log"))?;
                let from = log.floor_char_boundary(log.len().saturating_sub(LAST_WORDS_BYTES));
                Err(BenchError::DaemonEnded { words: log[from..].to_string() })
            }
        }
    }

    /// `kill -9`, and waits until it is gone. Its folder stays.
    pub(super) fn kill(&mut self) -> Result<(), BenchError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        child.kill().map_err(BenchError::system("to kill the daemon"))?;
        let status = child.wait().map_err(BenchError::system("to wait for the daemon"))?;
        match status.signal() {
            Some(9) => Ok(()),
            _ => Err(BenchError::void(format!("the daemon had ended before, with {status}"))),
        }
    }

    /// SIGTERM, and waits until it has ended in order. Its folder stays.
    pub(super) fn end(&mut self) -> Result<(), BenchError> {
        let process = self.process()?;
        let Some(mut child) = self.child.take() else { return Ok(()) };
        signal(process, Signal::TERM)?;
        let begun_at = Instant::now();
        while begun_at.elapsed() < END_WITHIN {
            match child.try_wait().map_err(BenchError::system("to wait for the daemon"))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) if status.code() == Some(LEFT_RUNNING) => return Ok(()),
                Some(status) => {
                    return Err(BenchError::void(format!("the daemon ended with {status}")));
                }
                None => thread::sleep(Duration::from_millis(2)),
            }
        }
        self.child = Some(child);
        let what = "the daemon's end".to_string();
        Err(BenchError::TooSlow { what, seconds: END_WITHIN.as_secs() })
    }

    /// Bridges of this daemon that live.
    pub(super) fn bridges(&self) -> Result<Vec<u32>, BenchError> {
        let mut found = processes_with(&format!("{}/", self.data().display()))?;
        let process = self.process().ok();
        found.retain(|found| Some(*found) != process);
        Ok(found)
    }

    /// A number of `/metrics`.
    pub(super) fn metric(&self, name: &str) -> Result<f64, BenchError> {
        let answer = self.connect()?.request("GET", "/metrics", "")?;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.and_then(|value| value.trim().parse().ok());
        value.ok_or(BenchError::Answer { what: "no such metric", shown: text })
    }

    /// Waits until a session is in this phase.
    pub(super) fn wait_for_phase(
        &self,
        connection: &mut Connection,
        session: &str,
        phase: &str,
    ) -> Result<(), BenchError> {
        let begun_at = Instant::now();
        while begun_at.elapsed() < READY_WITHIN {
            let view = connection.json("GET", &format!("/v1/sessions/{session}"), "", 200)?;
            if view["phase"] == *phase {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(2));
        }
        let what = format!("{session} becoming {phase}");
        Err(BenchError::TooSlow { what, seconds: READY_WITHIN.as_secs() })
    }

    /// Puts a session to sleep and waits until it is.
    pub(super) fn put_to_sleep(
        &self,
        connection: &mut Connection,
        session: &str,
    ) -> Result<(), BenchError> {
        let path = format!("/v1/sessions/{session}/stop");
        connection.json("POST", &path, "{}", 200)?;
        self.wait_for_phase(connection, session, "asleep")
    }

    /// Ends everything and removes the folder. To be called when all went well; `drop` does what
    /// it can otherwise.
    pub(super) fn remove(mut self) -> Result<(), BenchError> {
        let bridges = self.bridges()?;
        if self.child.is_some() {
            self.end()?;
        }
        self.wait_for_bridges(bridges)?;
        let folder = self.setup.folder.clone();
        fs::remove_dir_all(&folder).map_err(BenchError::file("remove", &folder))
    }

    /// Asks those that are left to end: without a daemon they stop their agents and go.
    fn wait_for_bridges(&self, known: Vec<u32>) -> Result<(), BenchError> {
        for bridge in known {
            signal(bridge, Signal::TERM)?;
        }
        let begun_at = Instant::now();
        while begun_at.elapsed() < END_WITHIN {
            if self.bridges()?.is_empty() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(10));
        }
        let what = "the bridges' end".to_string();
        Err(BenchError::TooSlow { what, seconds: END_WITHIN.as_secs() })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Reached with a child only after an error, which says more than these could.
        if let Some(mut child) = self.child.take() {
            if self.setup.count_syncs.is_some() {
                self.child = Some(child);
                let traced = self.process();
                child = self.child.take().expect("it was just put back");
                let _ended = traced.and_then(|process| signal(process, Signal::KILL));
            }
            let _killed = child.kill();
            let _status = child.wait();
        }
        for bridge in self.bridges().unwrap_or_default() {
            let _ended = signal(bridge, Signal::TERM);
        }
    }
}

/// One that ended meanwhile is no error.
pub(super) fn signal(process: u32, signal: Signal) -> Result<(), BenchError> {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw);
    let process = process.expect("the kernel's numbers are positive");
    match kill_process(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(BenchError::system("to send a signal")(error)),
    }
}

/// A port of loopback that nobody has at the moment.
pub(super) fn free_address() -> Result<SocketAddr, BenchError> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(BenchError::http("listen"))?;
    listener.local_addr().map_err(BenchError::http("listen"))
}

/// All files below a folder, in bytes.
pub(super) fn size_of_files(folder: &Path, prefix: &str) -> Result<u64, BenchError> {
    let entries = fs::read_dir(folder).map_err(BenchError::file("list", folder))?;
    let mut bytes = 0;
    for entry in entries {
        let entry = entry.map_err(BenchError::file("list", folder))?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            let facts = entry.metadata().map_err(BenchError::file("look at", &entry.path()))?;
            bytes += facts.len();
        }
    }
    Ok(bytes)
}
