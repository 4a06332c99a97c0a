//! A daemon in a folder of its own: set up, started, ended in every way, started again.
//!
//! Owner: each test has its own. Invariants: it listens on a port that the system chose; its data
//! folder outlives it until the test is over; when a `Daemon` is dropped, nothing lives that was
//! started for its folder, and its control groups are gone.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::agents::{self, AgentLine, program, python, toml_list};
use super::cli::{self, Printed};
use super::http::{Call, Client};
use super::processes::{self, Process, Role};
use super::scratch::{Scratch, say};
use super::{SOON, until, waiting};

const LOG_LINES_SHOWN: usize = 60;

/// What a daemon is to be started with.
#[derive(Debug)]
pub(crate) struct Setup {
    scratch: Scratch,
    config: String,
    data: Option<PathBuf>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    is_up: bool,
}

impl Setup {
    pub(crate) fn new() -> Self {
        Self {
            scratch: Scratch::new(),
            config: "[server]\nlisten = \"127.0.0.1:0\"\n".to_owned(),
            data: None,
            environment: Vec::new(),
            wrapper: Vec::new(),
            is_up: false,
        }
    }

    /// `dormouse up` with the config that is built in, as a newcomer starts it.
    pub(crate) fn built_in() -> Self {
        Self { is_up: true, ..Self::new() }.environment("DORMOUSE_LISTEN", "127.0.0.1:0")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Adds to the config; `{scratch}` is the test's folder.
    pub(crate) fn config(mut self, toml: &str) -> Self {
        let folder = self.folder().display().to_string();
        self.config.push_str(&toml.replace("{scratch}", &folder));
        self.config.push('\n');
        self
    }

    /// Adds an agent that does what each message says (`agents/scripted.py`).
    pub(crate) fn scripted(self, name: &str, options: &[&str], settings: &str) -> Self {
        let script = program("scripted.py");
        let mut command = vec![python(), script.to_str().expect("the checkout's path is text")];
        command.extend(options);
        let command = toml_list(&command);
        self.config(&format!(
            "[agents.{name}]\n\
             command = {command}\n\
             adapter = {{ kind = \"jsonl\", ready = true }}\n\
             env = {{ AGENT_LOG = \"{{scratch}}/agents.log\" }}\n\
             {settings}\n"
        ))
    }

    /// Keeps the data elsewhere than in the test's folder.
    pub(crate) fn data(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_owned());
        self
    }

    /// A variable in the daemon's environment.
    pub(crate) fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Executes the daemon by this program and its arguments; it must become the daemon.
    pub(crate) fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&text| text.to_owned()).collect();
        self
    }

    /// Everything but the start: the config on the disk, and a first key.
    pub(crate) fn prepare(self) -> Daemon {
        let Self { scratch, config, data, environment, wrapper, is_up } = self;
        let config = (!is_up).then(|| scratch.file("test.toml", &config));
        let data = data.unwrap_or_else(|| scratch.path().join("data"));
        let mut daemon = Daemon {
            scratch,
            config,
            data,
            environment,
            wrapper,
            child: None,
            address: None,
            operator_key: String::new(),
        };
        if is_up {
            return daemon;
        }
        let arguments = ["keys", "create", "--offline", "--operator", "tester"];
        let printed = daemon.offline(&arguments).ok();
        let key = printed.split_whitespace().find(|word| word.starts_with("dm_"));
        daemon.operator_key = key.unwrap_or_else(|| panic!("no key in {printed}")).to_owned();
        daemon
    }

    #[track_caller]
    pub(crate) fn start(self) -> Daemon {
        let mut daemon = self.prepare();
        daemon.start_again();
        daemon
    }
}

/// An instance as its run folder describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    pub(crate) session: String,
    pub(crate) generation: u64,
    pub(crate) folder: PathBuf,
    pub(crate) bridge: Option<Process>,
    pub(crate) agent: Option<Process>,
}

#[derive(Debug)]
pub(crate) struct Daemon {
    scratch: Scratch,
    /// `None`: `up` with what is built in.
    config: Option<PathBuf>,
    data: PathBuf,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
    child: Option<Child>,
    address: Option<SocketAddr>,
    operator_key: String,
}

impl Daemon {
    /// Starts it on the data that is there, and waits until it is ready.
    #[track_caller]
    pub(crate) fn start_again(&mut self) {
        self.spawn();
        self.becomes_ready();
    }

    /// Starts it without waiting.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "it runs already");
        // An address of the last time would be taken for the new one.
        drop(fs::remove_file(self.data.join("address")));
        self.address = None;
        let child = self.serve_command().stderr(self.log_file()).spawn();
        self.child = Some(child.expect("the program can be executed"));
    }

    fn serve_command(&self) -> Command {
        let mut command = match self.wrapper.split_first() {
            None => cli::command(self.scratch.path()),
            Some((first, rest)) => {
                let mut command = cli::scrubbed(first, self.scratch.path());
                command.args(rest).arg(cli::program());
                command
            }
        };
        match &self.config {
            Some(config) => command.arg("serve").arg("--config").arg(config),
            None => command.arg("up"),
        };
        command.arg("--data").arg(&self.data);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(self.log_file());
        command
    }

    fn log_file(&self) -> File {
        let path = self.scratch.path().join("daemon.log");
        let file = File::options().create(true).append(true).open(path);
        file.expect("the test's folder can be written")
    }

    /// Waits until it says that it is ready.
    #[track_caller]
    pub(crate) fn becomes_ready(&mut self) {
        until("the daemon to be ready", || {
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok()?) {
                self.child = None;
                panic!("the daemon ended with {status}:\n{}", self.log());
            }
            let address = fs::read_to_string(self.data.join("address")).ok()?.parse().ok()?;
            let anybody = Client { address, key: None };
            let ready = anybody.call("GET", "/readyz").try_send().ok()?;
            self.address = Some(address);
            (ready.status == 200).then_some(())
        });
        if self.config.is_none() {
            let key = fs::read_to_string(self.data.join("operator.key"));
            self.operator_key = key.expect("`up` makes a first key").trim().to_owned();
        }
    }

    /// Starts it where it must refuse to; gives its exit code and what it printed.
    #[track_caller]
    pub(crate) fn fails_to_start(&self) -> Printed {
        cli::run(self.serve_command(), "")
    }

    pub(crate) fn pid(&self) -> i32 {
        let child = self.child.as_ref().expect("it runs");
        i32::try_from(child.id()).expect("a process's number")
    }

    pub(crate) fn is_running(&mut self) -> bool {
        let child = self.child.as_mut();
        child.is_some_and(|child| child.try_wait().expect("it is a child").is_none())
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid()).expect("not 0");
        kill_process(pid, signal).expect("it runs");
    }

    /// Asks it to end, and waits until it has.
    #[track_caller]
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.has_ended(SOON)
    }

    /// kill -9.
    #[track_caller]
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.has_ended(SOON);
    }

    /// Waits for it to end by itself.
    #[track_caller]
    pub(crate) fn has_ended(&mut self, limit: Duration) -> ExitStatus {
        let child = self.child.as_mut().expect("it runs");
        let status = waiting::within(limit, "the daemon to end", || {
            child.try_wait().expect("it is a child")
        });
        self.child = None;
        status
    }

    /// With the operator's key.
    pub(crate) fn client(&self) -> Client {
        let address = self.address.expect("it was ready");
        Client { address, key: Some(self.operator_key.clone()) }
    }

    /// With a new key of this subject, which reaches its own sessions only.
    #[track_caller]
    pub(crate) fn client_of(&self, subject: &str) -> Client {
        let body = json!({ "name": subject, "subject": subject });
        let made = self.client().post("/v1/keys", &body).expect(201);
        self.client().with_key(Some(made["token"].as_str().expect("it is shown once")))
    }

    /// A request of the operator.
    pub(crate) fn call(&self, method: &str, path: &str) -> Call {
        self.client().call(method, path)
    }

    /// Everything the daemon logged, over all its lives.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.scratch.path().join("daemon.log")).unwrap_or_default()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    /// Writes another config for the next start.
    pub(crate) fn set_config(&mut self, toml: &str) {
        let toml = toml.replace("{scratch}", &self.folder().display().to_string());
        self.config = Some(self.scratch.file("test.toml", &toml));
    }

    pub(crate) fn operator_key(&self) -> &str {
        &self.operator_key
    }

    /// Makes a file in the test's folder: what `wait` and `stream-until` wait for.
    pub(crate) fn touch(&self, name: &str) {
        self.scratch.file(name, "");
    }

    /// A path in the test's folder, as text.
    pub(crate) fn path(&self, name: &str) -> String {
        self.scratch.path().join(name).display().to_string()
    }

    /// A command of the program against this daemon.
    #[track_caller]
    pub(crate) fn cli(&self, arguments: &[&str]) -> Printed {
        self.cli_with_input(arguments, "")
    }

    #[track_caller]
    pub(crate) fn cli_with_input(&self, arguments: &[&str], input: &str) -> Printed {
        let mut command = cli::command(self.scratch.path());
        command.args(arguments).arg("--data").arg(&self.data);
        command.env("DORMOUSE_KEY", &self.operator_key);
        cli::run(command, input)
    }

    /// A command that works on the data folder while no daemon runs.
    #[track_caller]
    pub(crate) fn offline(&self, arguments: &[&str]) -> Printed {
        let mut command = cli::command(self.scratch.path());
        command.args(arguments).arg("--data").arg(&self.data);
        cli::run(command, "")
    }

    /// The store, to look into.
    pub(crate) fn store(&self) -> Connection {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let store = Connection::open_with_flags(self.data.join("dormouse.db"), flags);
        let store = store.expect("the store is there");
        store.busy_timeout(SOON).expect("a setting");
        store
    }

    /// One number that the store answers with.
    #[track_caller]
    pub(crate) fn count(&self, query: &str) -> i64 {
        self.store().query_row(query, [], |row| row.get(0)).expect("a query with one number")
    }

    /// What the scripted agents wrote down.
    pub(crate) fn agent_log(&self) -> Vec<AgentLine> {
        agents::read_log(&self.scratch.path().join("agents.log"))
    }

    /// The turns that agents were given whose text has `part` in it.
    pub(crate) fn turns_with(&self, part: &str) -> Vec<AgentLine> {
        let log = self.agent_log().into_iter();
        log.filter(|line| line.what == "turn" && line.text.contains(part)).collect()
    }

    /// Waits until an agent was given a turn with `part` in its text.
    #[track_caller]
    pub(crate) fn turn_begins(&self, part: &str) -> AgentLine {
        until(&format!("a turn with {part:?} to begin"), || self.turns_with(part).pop())
    }

    /// Every instance that has a run folder.
    pub(crate) fn instances(&self) -> Vec<Instance> {
        let entries = fs::read_dir(self.data.join("run")).into_iter().flatten().flatten();
        let mut instances: Vec<_> =
            entries.filter_map(|entry| instance_in(&entry.path())).collect();
        instances.sort_by(|one, other| {
            (&one.session, one.generation).cmp(&(&other.session, other.generation))
        });
        instances
    }

    /// The newest instance of a session, once its bridge and its agent are known.
    #[track_caller]
    pub(crate) fn instance_of(&self, session: &str) -> (Instance, Process, Process) {
        until(&format!("an instance of {session}"), || {
            let mut instances = self.instances().into_iter();
            let instance = instances.rfind(|one| one.session == session)?;
            let (bridge, agent) = (instance.bridge?, instance.agent?);
            Some((instance, bridge, agent))
        })
    }

    /// Every living process of the data folder.
    pub(crate) fn processes(&self) -> Vec<(Role, Process)> {
        processes::of_data_folder(&self.data)
    }

    fn control_groups(&self) -> Vec<PathBuf> {
        let Ok(secret) = fs::read(self.data.join("deployment.secret")) else { return Vec::new() };
        let digest = Sha256::digest(&secret);
        let name: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        // A line for each hierarchy: its number, its controllers, where this process is in it.
        let groups = own.lines().flat_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
            let hierarchies =
                if controllers.is_empty() { ["", "unified"] } else { [controllers; 2] };
            let places = [path.trim_start_matches('/'), ""];
            hierarchies.into_iter().flat_map(move |hierarchy| {
                places.map(|place| Path::new("/sys/fs/cgroup").join(hierarchy).join(place))
            })
        });
        let groups = groups.map(|group| group.join(format!("dormouse-{name}")));
        let groups: BTreeSet<PathBuf> = groups.filter(|group| group.is_dir()).collect();
        groups.into_iter().collect()
    }
}

fn instance_in(folder: &Path) -> Option<Instance> {
    let read = |name: &str| -> Option<Value> {
        serde_json::from_slice(&fs::read(folder.join(name)).ok()?).ok()
    };
    let spec = read("spec.json")?;
    Some(Instance {
        session: spec["session"].as_str()?.to_owned(),
        generation: spec["generation"].as_u64()?,
        folder: folder.to_owned(),
        bridge: read("bridge.json").as_ref().and_then(Process::from_record),
        agent: read("agent.json").as_ref().and_then(Process::from_record),
    })
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let shown = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
            say(&format!("the daemon's log ends with:\n{}", shown.join("\n")));
        }
        if let Some(mut child) = self.child.take() {
            // Both fail only if it has ended by itself.
            drop(child.kill());
            drop(child.wait());
        }
        let mut left: Vec<String> = processes::end_all(&self.data)
            .iter()
            .map(|process| format!("process {} does not end", process.pid))
            .collect();
        for group in self.control_groups() {
            if let Err(error) = remove_groups(&group) {
                left.push(format!("control group {}: {error}", group.display()));
            }
        }
        let left = left.join("\n");
        // A panic on top of a panic would hide the first.
        if thread::panicking() {
            say(&left);
        } else {
            assert!(left.is_empty(), "{left}");
        }
    }
}

/// Removes an empty control group and those in it; the kernel lets go of one a moment after its
/// last process.
fn remove_groups(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
