//! The process driver with real bridges, real agents and the real control socket.
//!
//! Owner: the tests of `driver::process`. Invariants: every process that a test starts ends with
//! it, or within the orphan limit if the test fails. Absent: the engine; the tests play it.

mod endings;
mod folders;
mod limits;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_bridge::frames::{Adapter, Launch, Secret, ToBridge};
use dormouse_bridge::rundir::ProcessMark;
use dormouse_core::event::{AgentState, TurnOutcome};
use dormouse_core::evidence::{AskedBy, End, Evidence, OomVictim};
use dormouse_core::id::{BootId, TurnId};

use super::*;
use crate::control::{ControlLimits, ControlSocket};
use crate::registry::Registry;
use crate::testing::{ScratchFolder, instance, next_event, soon, turn};

struct Rig {
    driver: Option<ProcessDriver>,
    control: ControlSocket,
    registry: Registry,
    events: mpsc::Receiver<Event>,
    events_in: mpsc::Sender<Event>,
    config: ProcessDriverConfig,
    has_cgroups: bool,
    scratch: ScratchFolder,
}

fn rig() -> Rig {
    rig_with(true)
}

fn rig_with(has_cgroups: bool) -> Rig {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let scratch = ScratchFolder::new();
    let data = DataFolder::open(scratch.path()).unwrap();
    let (events_in, events) = mpsc::channel(64);
    let registry = Registry::new(events_in.clone());
    let secret = DeploymentSecret::new([9; 32]);
    let limits = ControlLimits::default();
    let path = data.control_socket();
    let control = ControlSocket::bind(&path, secret.clone(), registry.clone(), limits).unwrap();
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let config = ProcessDriverConfig {
        data,
        deployment: format!("test-{}-{count}", std::process::id()),
        bridge_command: vec![bridge_program().into()],
        dial: control.dial().parse().unwrap(),
        secret,
        release_within: Duration::from_secs(10),
    };
    let mut rig =
        Rig { driver: None, control, registry, events, events_in, config, has_cgroups, scratch };
    rig.open_driver();
    rig
}

/// `examples/bridge.rs`, which cargo builds beside the tests.
fn bridge_program() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let program = tests.ancestors().nth(2).unwrap().join("examples/bridge");
    assert!(program.exists(), "{} is not built: test the whole package", program.display());
    program
}

fn main_1() -> InstanceId {
    instance("python/main", 1)
}

fn order() -> StartOrder {
    StartOrder {
        instance: main_1(),
        memory_limit_bytes: None,
        pids_limit: None,
        when_not_enforceable: WhenNotEnforceable::GoOnUnlimited,
    }
}

impl Rig {
    fn open_driver(&mut self) {
        let detect = if self.has_cgroups { Cgroups::detect } else { Cgroups::none };
        let driver = ProcessDriver::open_with(self.config.clone(), self.events_in.clone(), detect);
        self.driver = Some(driver.unwrap());
    }

    /// The daemon dies and comes back: nothing but the data folder is carried over. The control
    /// socket stays, which only spares the tests the bridges' redialling.
    fn reopen_driver(&mut self) {
        self.driver = None;
        self.open_driver();
    }

    fn driver(&self) -> &ProcessDriver {
        self.driver.as_ref().unwrap()
    }

    fn folder(&self) -> RunFolder {
        RunFolder::new(self.config.data.run_folder_of(&main_1()))
    }

    fn launch(&self, script: &str, adapter: Adapter) -> ToBridge {
        let mut env = self.driver().environment_of(&main_1());
        env.push(("PATH".to_owned(), std::env::var("PATH").unwrap()));
        let env = env.into_iter().map(|(name, value)| (name, Secret(value)));
        ToBridge::Welcome {
            launch: Some(Launch {
                command: vec!["sh".into(), "-c".into(), script.into()],
                env: env.collect(),
                workspace: self.driver().workspace_of(&main_1().session),
                adapter,
                orphan_limit_ms: 20_000,
                heap_percent: 75,
                files: Vec::new(),
                secrets: BTreeMap::new(),
            }),
        }
    }

    async fn attached(&mut self) -> (BootId, AgentState, Vec<TurnId>) {
        match next_event(&mut self.events).await {
            Event::BridgeAttached { instance, boot, agent, held } if instance == main_1() => {
                (boot, agent, held)
            }
            other => panic!("expected an attachment, got {other:?}"),
        }
    }

    /// A long-lived agent that runs this shell script.
    async fn running(&mut self, order: StartOrder, script: &str) -> BootId {
        self.driver().start(order).await.unwrap();
        let (boot, agent, _) = self.attached().await;
        assert_eq!(agent, AgentState::NotLaunched);
        let launch = self.launch(script, Adapter::Jsonl { wait_for_ready: false });
        assert!(self.registry.send_to_boot(&main_1(), boot, launch));
        let ready = next_event(&mut self.events).await;
        assert_eq!(ready, Event::InstanceReady { instance: main_1() });
        boot
    }

    /// A program that is run for each turn.
    async fn exec(&mut self, order: StartOrder, script: &str) -> BootId {
        self.driver().start(order).await.unwrap();
        let (boot, _, _) = self.attached().await;
        let launch = self.launch(script, Adapter::Exec);
        assert!(self.registry.send_to_boot(&main_1(), boot, launch));
        let ready = next_event(&mut self.events).await;
        assert_eq!(ready, Event::InstanceReady { instance: main_1() });
        boot
    }

    fn send(&self, frame: ToBridge) {
        assert!(self.registry.send(&main_1(), frame));
    }

    fn say(&self, number: u128, text: &str) {
        self.send(ToBridge::Turn { turn: turn(number), text: text.into() });
    }

    async fn turn_ended(&mut self, number: u128) -> TurnOutcome {
        match self.until(|event| matches!(event, Event::TurnEnded { .. })).await {
            Event::TurnEnded { instance, turn: ended, outcome } => {
                assert_eq!((instance, ended), (main_1(), turn(number)));
                outcome
            }
            other => panic!("{other:?}"),
        }
    }

    async fn exited(&mut self) -> Evidence {
        match self.until(|event| matches!(event, Event::InstanceExited { .. })).await {
            Event::InstanceExited { instance, evidence } => {
                assert_eq!(instance, main_1());
                evidence
            }
            other => panic!("{other:?}"),
        }
    }

    /// The next event of this kind; progress and connections are passed over.
    async fn until(&mut self, is_it: impl Fn(&Event) -> bool) -> Event {
        loop {
            match next_event(&mut self.events).await {
                event if is_it(&event) => return event,
                Event::TurnProgressed { .. }
                | Event::BridgeDetached { .. }
                | Event::BridgeAttached { .. } => {}
                other => panic!("unexpected: {other:?}"),
            }
        }
    }

    fn bridge(&self) -> ProcessMark {
        self.folder().read_bridge().unwrap().expect("the bridge has said who it is").process
    }

    fn agent(&self) -> ProcessMark {
        self.folder().read_agent().unwrap().expect("the agent was executed").process
    }

    /// What an agent's script wrote into its workspace, as soon as it is there.
    async fn written(&self, name: &str) -> String {
        let path = self.driver().workspace_of(&main_1().session).join(name);
        let look = async {
            loop {
                match fs::read_to_string(&path) {
                    Ok(text) if text.ends_with('\n') => break text.trim().to_owned(),
                    _ => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        soon(name, look).await
    }

    async fn written_mark(&self, name: &str) -> ProcessMark {
        ProcessMark::of(self.written(name).await.parse().unwrap()).expect("it lives")
    }

    async fn found(&self) -> Vec<Found> {
        let listing = self.driver().list().await.unwrap();
        assert!(listing.unreadable.is_empty(), "{:?}", listing.unreadable);
        listing.found
    }

    fn cgroup_folders(&self) -> Vec<PathBuf> {
        let facts = self.driver().facts();
        let folder = |fact: Enforcement| match fact {
            Enforcement::Enforced { at, .. } => Some(at.join(instance_name(&main_1()))),
            Enforcement::NotEnforced { .. } => None,
        };
        // Version 2 has one folder for both.
        let folders: BTreeSet<_> =
            [facts.memory, facts.pids].into_iter().filter_map(folder).collect();
        folders.into_iter().collect()
    }

    /// Kills what is left, and checks that nothing of it stays.
    async fn finish(mut self) {
        self.driver().kill(&main_1()).await.unwrap();
        self.driver().release(&main_1()).await.unwrap();
        assert!(!self.folder().path().exists());
        let groups = self.cgroup_folders();
        self.driver = None;
        for group in &groups {
            let of_deployment = group.parent().unwrap();
            assert!(!of_deployment.exists(), "{} stays", of_deployment.display());
        }
        drop(self.control);
        drop(self.scratch);
    }
}

fn kill_hard(process: ProcessMark) {
    assert!(process.is_alive());
    let pid = rustix::process::Pid::from_raw(process.pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Waits until this very process is gone.
async fn is_gone(process: ProcessMark) {
    let look = async {
        while process.is_alive() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon("a process to be gone", look).await;
}

fn answered(text: &str) -> TurnOutcome {
    TurnOutcome::Answered { text: text.into(), exit_code: Some(0) }
}

fn mode_of(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}
