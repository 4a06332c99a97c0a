//! The fake driver: instances that exist only as a script, for trying things out and for tests
//! without processes.
//!
//! It speaks with the engine through the same registry, with the same frames and the same rules as
//! real bridges; what it plays is the bridge and its agent. Owner: the daemon makes one, and gives
//! it a script per agent. Invariants: as the `Driver` trait demands. Absent: survival; its
//! instances die with the daemon, and no folder is made for them.

mod life;
mod script;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dormouse_bridge::frames::{FromBridge, ToBridge};
use dormouse_core::event::Event;
use dormouse_core::evidence::{AskedBy, End, Evidence};
use dormouse_core::id::{AgentName, BootId, InstanceId, SessionId};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use self::script::{FakeExit, FakeReply, FakeScript};

use self::life::{Life, Then};
use super::{
    Driver, DriverFacts, Enforcement, Found, FoundState, KillError, Leftovers, ListError, Listing,
    ReleaseError, StartError, StartOrder, Work,
};
use crate::paths::DataFolder;
use crate::registry::{Introduction, Line, Registry, ReportError, Reporter};

/// Between a lost line and the next dial.
const REDIAL_PAUSE: Duration = Duration::from_millis(10);
/// How long a bridge may take to end at its release.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct FakeDriver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    data: DataFolder,
    registry: Registry,
    events: mpsc::Sender<Event>,
    scripts: Mutex<BTreeMap<AgentName, FakeScript>>,
    instances: Mutex<BTreeMap<InstanceId, Instance>>,
    boot_count: AtomicU64,
}

#[derive(Debug)]
struct Instance {
    /// Dropped to kill it.
    alive: Option<oneshot::Sender<()>>,
    /// `Some` once nothing of it lives, and that was reported.
    ended: watch::Receiver<Option<Leftovers>>,
    playing: AbortHandle,
}

/// How the playing of an instance came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finish {
    Released,
    Refused,
    Vanished,
    Killed,
    EngineGone,
}

impl FakeDriver {
    pub fn new(data: DataFolder, registry: Registry, events: mpsc::Sender<Event>) -> Self {
        Self {
            shared: Arc::new(Shared {
                data,
                registry,
                events,
                scripts: Mutex::default(),
                instances: Mutex::default(),
                boot_count: AtomicU64::new(1),
            }),
        }
    }

    /// What instances of this agent do that are started from now on. Without a script they echo.
    pub fn set_script(&self, agent: AgentName, script: FakeScript) {
        let mut scripts = self.shared.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        scripts.insert(agent, script);
    }
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        for instance in self.shared.lock().values() {
            instance.playing.abort();
        }
    }
}

impl Driver for FakeDriver {
    fn facts(&self) -> DriverFacts {
        let not_enforced = || Enforcement::NotEnforced {
            why: "the fake driver runs no process".into(),
            fix: "Use another driver for real agents.".into(),
        };
        DriverFacts { driver: "fake", memory: not_enforced(), pids: not_enforced() }
    }

    fn workspace_of(&self, session: &SessionId) -> PathBuf {
        self.shared.data.workspace_of(session)
    }

    fn environment_of(&self, _instance: &InstanceId) -> Vec<(String, String)> {
        Vec::new()
    }

    fn logs_of(&self, _session: &SessionId) -> Option<PathBuf> {
        None
    }

    fn start(&self, order: StartOrder) -> Work<'_, Result<(), StartError>> {
        Box::pin(async move { self.shared.start(order) })
    }

    fn kill<'a>(&'a self, instance: &'a InstanceId) -> Work<'a, Result<(), KillError>> {
        Box::pin(async move {
            let ended = self.shared.ended_before(instance);
            if ended.is_none() && self.shared.end_by_force(instance).await {
                return Ok(());
            }
            // Nothing was there, or its exit was reported once already; whoever asks again did not
            // get it.
            let leftovers = ended.unwrap_or_else(Leftovers::of_the_unknown);
            self.shared.report(leftovers.into_events(instance)).await;
            Ok(())
        })
    }

    fn release<'a>(&'a self, instance: &'a InstanceId) -> Work<'a, Result<(), ReleaseError>> {
        Box::pin(async move {
            let ended = self.shared.lock().get(instance).map(|known| known.ended.clone());
            let Some(mut ended) = ended else { return Ok(()) };
            let has_ended = ended.wait_for(Option::is_some);
            if tokio::time::timeout(RELEASE_WITHIN, has_ended).await.is_err() {
                self.shared.end_by_force(instance).await;
            }
            self.shared.lock().remove(instance);
            Ok(())
        })
    }

    fn list(&self) -> Work<'_, Result<Listing, ListError>> {
        Box::pin(async move {
            let instances = self.shared.lock();
            let found = |(instance, known): (&InstanceId, &Instance)| Found {
                instance: instance.clone(),
                state: match known.ended.borrow().clone() {
                    None => FoundState::Alive,
                    Some(leftovers) => FoundState::Ended(leftovers),
                },
            };
            Ok(Listing { found: instances.iter().map(found).collect(), unreadable: Vec::new() })
        })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Instance>> {
        // Nothing in this file can panic half-way through a change of the map.
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(self: &Arc<Self>, order: StartOrder) -> Result<(), StartError> {
        let agent = order.instance.session.agent_name();
        let scripts = self.scripts.lock().unwrap_or_else(PoisonError::into_inner);
        let script = scripts.get(&agent).cloned().unwrap_or_default();
        drop(scripts);
        let mut instances = self.lock();
        if instances.contains_key(&order.instance) {
            return Ok(());
        }
        if let Some(words) = script.refuse_start {
            return Err(StartError::Refused(words));
        }
        let (alive, killed) = oneshot::channel();
        let (ended_in, ended) = watch::channel(None);
        let instance = order.instance.clone();
        let play = Play {
            life: Life::new(script.clone(), order.memory_limit_bytes),
            script,
            boot: self.new_boot(),
            instance: order.instance,
            killed,
            shared: Arc::clone(self),
        };
        let playing = tokio::spawn(async move {
            let ended = play.until_its_end().await;
            ended_in.send_replace(ended);
        });
        let known = Instance { alive: Some(alive), ended, playing: playing.abort_handle() };
        instances.insert(instance, known);
        Ok(())
    }

    /// Unlike any other boot of this instance, in this daemon's life or an earlier one.
    fn new_boot(&self) -> BootId {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let count = self.boot_count.fetch_add(1, Ordering::Relaxed);
        BootId(clock.as_nanos() << 64 | u128::from(count))
    }

    fn ended_before(&self, instance: &InstanceId) -> Option<Leftovers> {
        self.lock().get(instance).and_then(|known| known.ended.borrow().clone())
    }

    /// `false`: it is not known. Else it has ended, and that was reported, when this returns.
    async fn end_by_force(&self, instance: &InstanceId) -> bool {
        let ended = self.lock().get_mut(instance).map(|known| {
            known.alive = None;
            known.ended.clone()
        });
        let Some(mut ended) = ended else { return false };
        // An error means that its task is gone, and nothing of it can live.
        ended.wait_for(Option::is_some).await.is_ok()
    }

    async fn report(&self, events: Vec<Event>) {
        for event in events {
            if self.events.send(event).await.is_err() {
                tracing::debug!("an instance ended after the engine");
            }
        }
    }
}

/// One instance being played.
struct Play {
    instance: InstanceId,
    boot: BootId,
    script: FakeScript,
    life: Life,
    killed: oneshot::Receiver<()>,
    shared: Arc<Shared>,
}

impl Play {
    /// Plays, and reports what only a driver can report.
    async fn until_its_end(mut self) -> Option<Leftovers> {
        let finish = self.play().await;
        let Self { life, shared, instance, .. } = self;
        let (results, exit) = life.into_leftovers();
        let was_over = exit.is_some();
        let mut evidence = exit.unwrap_or_else(|| Evidence::bare(End::BridgeLost));
        if finish == Finish::Killed && !was_over {
            evidence.asked_by = Some(AskedBy::Driver);
        }
        let leftovers = Leftovers { results, evidence };
        match finish {
            Finish::Released | Finish::EngineGone => {}
            Finish::Refused | Finish::Vanished | Finish::Killed => {
                shared.report(leftovers.clone().into_events(&instance)).await;
            }
        }
        Some(leftovers)
    }

    async fn play(&mut self) -> Finish {
        let start_takes = Duration::from_millis(self.script.start_takes_ms);
        if self.pause(start_takes).await.is_err() {
            return Finish::Killed;
        }
        if self.script.never_attaches {
            // Only a kill ends this; its sender is dropped then, which is all it is for.
            let _dropped = (&mut self.killed).await;
            return Finish::Killed;
        }
        loop {
            let who = Introduction {
                instance: self.instance.clone(),
                boot: self.boot,
                agent: self.life.agent(),
                held: self.life.held(),
            };
            let line = tokio::select! {
                line = self.shared.registry.attach(who) => line,
                _ = &mut self.killed => return Finish::Killed,
            };
            let Ok(line) = line else { return Finish::EngineGone };
            if let Some(finish) = self.converse(line).await {
                return finish;
            }
            if self.pause(REDIAL_PAUSE).await.is_err() {
                return Finish::Killed;
            }
        }
    }

    async fn pause(&mut self, span: Duration) -> Result<(), Finish> {
        tokio::select! {
            () = tokio::time::sleep(span) => Ok(()),
            _ = &mut self.killed => Err(Finish::Killed),
        }
    }

    /// `None`: the line is lost, and is to be dialled anew.
    async fn converse(&mut self, line: Line) -> Option<Finish> {
        let Line { mut frames, cut: _cut, reporter, place: _place } = line;
        let mut is_welcome = false;
        loop {
            let due = self.life.next_due().filter(|_| is_welcome);
            let then = tokio::select! {
                frame = frames.recv() => {
                    let frame = frame?;
                    let is_refusal = matches!(frame, ToBridge::Refused { .. });
                    is_welcome |= matches!(frame, ToBridge::Welcome { .. });
                    match self.life.on_frame(frame, Instant::now()) {
                        Then::End if is_refusal => return Some(Finish::Refused),
                        then => then,
                    }
                }
                () = wait_until(due) => self.life.on_time(Instant::now()),
                _ = &mut self.killed => return Some(Finish::Killed),
            };
            let said = match then {
                Then::Say(said) => said,
                Then::LoseLine => return None,
                Then::Vanish => return Some(Finish::Vanished),
                Then::End => return Some(Finish::Released),
            };
            if !self.say(said, &reporter).await {
                return Some(Finish::EngineGone);
            }
        }
    }

    async fn say(&self, said: Vec<FromBridge>, reporter: &Reporter) -> bool {
        for frame in said {
            match reporter.report(frame).await {
                Ok(()) => {}
                Err(ReportError::EngineGone) => return false,
                Err(error) => {
                    tracing::warn!(instance = %self.instance, %error, "a fake reply was not taken");
                }
            }
        }
        true
    }
}

async fn wait_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
