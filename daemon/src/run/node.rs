//! Everything between the open store and its close: drivers, files, engine, and the sockets that
//! bridges dial.
//!
//! Owner: `run`. A process has one after the other: when a hand-over failed, it opens the next.
//! Invariants: the control socket is open before recovery, so that bridges find it; once it is
//! closed, nothing of the data folder is open any more that another process needs. Absent: the
//! listener and its connections (`serving`).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use dormouse_bridge::rundir::Dial;
use dormouse_core::event::Event;
use dormouse_edge::control::{ControlLimits, ControlSocket, bind_private};
use dormouse_edge::driver::Driver;
use dormouse_edge::driver::fake::FakeDriver;
use dormouse_edge::driver::process::{ProcessDriver, ProcessDriverConfig};
use dormouse_edge::paths::DataFolder;
use dormouse_edge::registry::Registry;
use dormouse_edge::token::DeploymentSecret;
use dormouse_store::{Reader, Store};
use tokio::net::UnixListener;
use tokio::runtime::Handle;
use tokio::sync::watch::Sender;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::{RunError, folder};
use crate::agents::Agents;
use crate::api::{Api, Readers};
use crate::config::Config;
use crate::engine::hands::{Drivers, Hands};
use crate::engine::request::{Gateway, REQUESTS_MAX};
use crate::engine::{Engine, EngineError, EngineParts};
use crate::files::bridges::{self, ForBridges};
use crate::files::{Files, garbage};
use crate::gate::Gate;
use crate::hub::Hub;
use crate::in_force::InForce;
use crate::keys::KeyRing;
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::reload::{Reload, ReloadParts, watch};
use crate::server::Order;

/// Events of bridges and drivers that wait for the engine; beyond it the senders wait.
const EVENTS_MAX: usize = 4_096;
/// How long a bridge whose exit is on disk may take to end.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

pub(super) struct Node {
    pub(super) api: Api,
    /// What the connections are to do.
    pub(super) orders: Sender<Order>,
    pub(super) engine_ended: EngineEnded,
    control: ControlSocket,
    beside: [JoinHandle<()>; 3],
}

impl Node {
    /// Takes over what is stored, and what lives of it.
    pub(super) async fn open(
        in_force: InForce,
        data: &Path,
        store: Store,
    ) -> Result<Self, RunError> {
        let current = in_force.now();
        let config = current.config();
        let keys = keys_of(config, data)?;
        let (event_sender, events) = mpsc::channel::<Event>(EVENTS_MAX);
        let agents = Agents::new(in_force.clone(), data);
        let opened = open_drivers(&in_force, agents, data, &event_sender)?;
        let Opened { drivers, fake, control, files_listener, secret } = opened;
        let readers = Readers::of(data.to_owned());
        let files = Files::open(&in_force, &drivers.agents, readers.clone(), data).await?;
        let files = Arc::new(files);
        let (request_sender, requests) = mpsc::channel(REQUESTS_MAX);
        let gateway = Gateway::new(request_sender);
        let for_bridges =
            ForBridges { files: Arc::clone(&files), gateway: gateway.clone(), secret };
        let (hub, metrics) = (Hub::default(), Arc::new(Metrics::new(current.agent_names())));
        let notifier = Notifier::start(config.notify.clone(), Arc::clone(&metrics));
        let handle = Handle::current();
        let hands = Hands::new(Arc::clone(&drivers), Arc::clone(&files), event_sender, handle);
        let engine_ended = start_engine(EngineParts {
            store,
            in_force: in_force.clone(),
            hub: hub.clone(),
            hands,
            metrics: Arc::clone(&metrics),
            notifier: notifier.clone(),
            requests,
            events,
        })
        .await?;
        let gate = Arc::new(Gate::new(&config.gate));
        let reload = Arc::new(Reload::new(ReloadParts {
            in_force: in_force.clone(),
            gateway: gateway.clone(),
            readers: readers.clone(),
            files: Arc::clone(&files),
            gate: Arc::clone(&gate),
            metrics: Arc::clone(&metrics),
            notifier,
            fake,
        }));
        let beside = [
            tokio::spawn(bridges::serve(files_listener, for_bridges)),
            tokio::spawn(garbage::collect_now_and_then(Arc::clone(&files))),
            tokio::spawn(watch::watch(Arc::clone(&reload))),
        ];
        let is_draining = Arc::new(AtomicBool::new(false));
        let (orders, orders_seen) = tokio::sync::watch::channel(Order::Serve);
        let api = Api {
            gateway,
            hub,
            readers,
            files,
            keys,
            gate,
            metrics,
            in_force,
            reload,
            drivers,
            is_draining,
            orders: orders_seen,
        };
        Ok(Self { api, orders, engine_ended, control, beside })
    }

    /// Commits, and closes everything: the store and its lock, the sockets, what works beside.
    pub(super) async fn close(self) -> Result<(), RunError> {
        let Node { api, orders: _, engine_ended, control, beside } = self;
        api.gateway.end().await;
        engine_ended.await.map_err(|_| RunError::Panicked)??;
        control.close().await;
        for task in beside {
            task.abort();
            // That it was cancelled is what was wanted.
            drop(task.await);
        }
        Ok(())
    }
}

/// Whoever is reachable from other machines has some.
fn keys_of(config: &Config, data: &Path) -> Result<KeyRing, RunError> {
    let keys = KeyRing::holding(Reader::open(data)?.keys()?);
    if !config.listen.ip().is_loopback() && keys.is_empty() {
        return Err(RunError::NoKeys { address: config.listen });
    }
    Ok(keys)
}

/// What bridges need of the daemon.
struct Opened {
    drivers: Arc<Drivers>,
    fake: Arc<FakeDriver>,
    control: ControlSocket,
    files_listener: UnixListener,
    secret: DeploymentSecret,
}

/// The drivers, and the sockets that their bridges dial.
fn open_drivers(
    in_force: &InForce,
    agents: Agents,
    data: &Path,
    events: &mpsc::Sender<Event>,
) -> Result<Opened, RunError> {
    let secret = folder::deployment_secret(data)?;
    let deployment = folder::deployment_name(&secret);
    let secret = DeploymentSecret::new(secret);
    let registry = Registry::new(events.clone());
    let folders = DataFolder::open(data)?;
    let control = ControlSocket::bind(
        &folders.control_socket(),
        secret.clone(),
        registry.clone(),
        ControlLimits::default(),
    )?;
    let (files_listener, files_path) = bind_private(&folders.files_socket())?;
    let process = ProcessDriver::open(
        ProcessDriverConfig {
            data: folders.clone(),
            deployment,
            bridge_command: folder::bridge_command()?,
            dial: Dial::Unix(control.path().to_owned()),
            secret: secret.clone(),
            release_within: RELEASE_WITHIN,
        },
        events.clone(),
    )?;
    let fake = Arc::new(FakeDriver::new(folders, registry.clone(), events.clone()));
    for (agent, script) in &in_force.now().loaded.fake_scripts {
        fake.set_script(agent.clone(), script.clone());
    }
    let drivers = Drivers {
        process: Arc::new(process) as Arc<dyn Driver>,
        fake: Arc::clone(&fake) as Arc<dyn Driver>,
        registry,
        agents,
        in_force: in_force.clone(),
        files_dial: Dial::Unix(files_path),
    };
    Ok(Opened { drivers: Arc::new(drivers), fake, control, files_listener, secret })
}

pub(super) type EngineEnded = oneshot::Receiver<Result<(), EngineError>>;

/// The engine has a thread of its own: it blocks in the commit's sync. Returns when it has taken
/// over what was stored.
async fn start_engine(parts: EngineParts) -> Result<EngineEnded, RunError> {
    let (recovered_sender, recovered) = oneshot::channel();
    let (ended_sender, ended) = oneshot::channel();
    let body = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let runtime = runtime.expect("a timer needs nothing that could be refused");
        let engine = match Engine::recover(parts) {
            Ok(engine) => engine,
            Err(error) => {
                drop(recovered_sender.send(Err(error)));
                return;
            }
        };
        drop(recovered_sender.send(Ok(())));
        // Nobody listens any more only when the process ends anyway.
        drop(ended_sender.send(runtime.block_on(engine.run())));
    };
    thread::Builder::new()
        .name("engine".to_owned())
        .spawn(body)
        .map_err(|source| RunError::System { what: "a thread for the engine", source })?;
    recovered.await.map_err(|_| RunError::Panicked)??;
    Ok(ended)
}
