//! The daemon from its first line to its last: folder, store, drivers, engine, server, signals.
//!
//! Owner: `cli` calls `up` and `serve`. Invariants: the data folder's lock is taken before anything
//! is touched; the control socket is open before recovery, so that bridges find it; the listener is
//! open only when the engine takes messages; the process ends with the reason when the engine does.
//! Absent: decisions.

mod folder;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use dormouse_bridge::rundir::Dial;
use dormouse_core::event::Event;
use dormouse_edge::control::{BindError, ControlLimits, ControlSocket, bind_private};
use dormouse_edge::driver::Driver;
use dormouse_edge::driver::fake::FakeDriver;
use dormouse_edge::driver::process::{ProcessDriver, ProcessDriverConfig};
use dormouse_edge::paths::DataFolder;
use dormouse_edge::registry::Registry;
use dormouse_edge::token::DeploymentSecret;
use dormouse_store::{OpenError, Reader, Store};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use crate::agents::Agents;
use crate::api::{self, Api, Readers};
use crate::config::{self, Config, ConfigError, FakeScripts, Loaded};
use crate::engine::hands::{Drivers, Hands};
use crate::engine::request::{Gateway, REQUESTS_MAX};
use crate::engine::{Engine, EngineError, EngineParts};
use crate::files::bridges::{self, ForBridges};
use crate::files::{self, Files, garbage};
use crate::gate::Gate;
use crate::hub::Hub;
use crate::keys::{self, KeyRing, SCOPE_OPERATOR};
use crate::metrics::Metrics;
use crate::notify::Notifier;
use crate::{report, server};
pub(crate) use folder::{FolderError, data_folder};

/// Events of bridges and drivers that wait for the engine; beyond it the senders wait.
const EVENTS_MAX: usize = 4_096;
/// Threads for sockets. The engine has its own; readers have theirs.
const WORKERS: usize = 2;
/// How long a bridge whose exit is on disk may take to end.
const RELEASE_WITHIN: Duration = Duration::from_secs(5);

#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) config: Option<PathBuf>,
    pub(crate) data: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error("the data folder cannot be read")]
    Read(#[from] dormouse_store::ReadError),
    #[error(transparent)]
    Edge(#[from] dormouse_edge::paths::FolderError),
    #[error("the process driver cannot work here")]
    Driver(#[from] dormouse_edge::driver::process::OpenError),
    #[error(transparent)]
    Files(#[from] files::OpenError),
    #[error("cannot open the socket for bridges")]
    Control(#[from] BindError),
    #[error(
        "cannot listen on {address}: {source}; is another dormouse running? \
         Choose another address in [server] listen"
    )]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error(
        "{address} is reachable from other machines, and no API key exists; \
         make one first with `dormouse keys create --offline --operator NAME`"
    )]
    NoKeys { address: SocketAddr },
    #[error("the system refuses {what}: {source}")]
    System { what: &'static str, source: std::io::Error },
    #[error("stopped, to lose nothing: {}", report::chain(.0))]
    Engine(#[from] EngineError),
    #[error(
        "stopped, to lose nothing: the engine found a state that cannot be; \
         its last words are above"
    )]
    Panicked,
    #[error("the key could not be stored")]
    Key(#[from] dormouse_store::ApplyError),
    #[error("the key could not be stored")]
    KeyCommit(#[from] dormouse_store::CommitError),
}

/// For a person at a terminal: makes what is missing, and says what to do next.
pub(crate) fn up(options: &Options) -> Result<(), RunError> {
    run(options, Manner::Up)
}

/// For a service manager.
pub(crate) fn serve(options: &Options) -> Result<(), RunError> {
    run(options, Manner::Serve)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Up,
    Serve,
}

fn run(options: &Options, manner: Manner) -> Result<(), RunError> {
    start_logging(manner);
    let loaded = config::load(options.config.as_deref())?;
    let data = data_folder(options.data.as_deref())?;
    let mut store = Store::open(&data)?;
    folder::unpack_examples(&data)?;
    if manner == Manner::Up {
        folder::ensure_operator_key(&data, &mut store)?;
    }
    folder::raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(|source| RunError::System { what: "threads", source })?;
    let result = runtime.block_on(live(loaded, data, store, manner));
    // Readers and drivers that still work on something are not waited for: what matters is on disk.
    Runtime::shutdown_background(runtime);
    result
}

async fn live(loaded: Loaded, data: PathBuf, store: Store, manner: Manner) -> Result<(), RunError> {
    let Loaded { config, fake_scripts, path } = loaded;
    let config = Arc::new(config);
    let keys = KeyRing::holding(Reader::open(&data)?.keys()?);
    if !config.listen.ip().is_loopback() && keys.is_empty() {
        return Err(RunError::NoKeys { address: config.listen });
    }
    let (event_sender, events) = mpsc::channel::<Event>(EVENTS_MAX);
    // Open until this function ends: bridges dial it at any time.
    let opened = open_drivers(&config, fake_scripts, &data, &event_sender)?;
    let Opened { drivers, control: _control, files_listener, secret } = opened;
    let readers = Readers::of(data.clone());
    let files = Files::open(&config, &drivers.agents, readers.clone(), &data).await?;
    let files = Arc::new(files);
    let (request_sender, requests) = mpsc::channel(REQUESTS_MAX);
    let gateway = Gateway::new(request_sender);
    let for_bridges = ForBridges { files: Arc::clone(&files), gateway: gateway.clone(), secret };
    tokio::spawn(bridges::serve(files_listener, for_bridges));
    tokio::spawn(garbage::collect_now_and_then(Arc::clone(&files)));
    let (hub, metrics) = (Hub::default(), Arc::new(Metrics::new(config.agents.keys())));
    let notifier = Notifier::start(config.notify.clone(), Arc::clone(&metrics));
    let handle = Handle::current();
    let hands = Hands::new(Arc::clone(&drivers), Arc::clone(&files), event_sender, handle);
    let engine_ended = start_engine(EngineParts {
        store,
        config: Arc::clone(&config),
        hub: hub.clone(),
        hands,
        metrics: Arc::clone(&metrics),
        notifier,
        requests,
        events,
    })
    .await?;

    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| RunError::Listen { address: config.listen, source })?;
    let address = listener.local_addr().unwrap_or(config.listen);
    folder::note_address(&data, address)?;
    let api = Api {
        gateway,
        hub,
        readers,
        files,
        keys,
        gate: Arc::new(Gate::new(&config.gate)),
        metrics,
        config: Arc::clone(&config),
        drivers,
        is_draining: Arc::new(AtomicBool::new(false)),
    };
    announce(manner, address, &data, path.as_deref(), &api);
    until_told_to_end(api, listener, config.gate.connections, engine_ended).await
}

/// What bridges need of the daemon.
struct Opened {
    drivers: Arc<Drivers>,
    control: ControlSocket,
    files_listener: UnixListener,
    secret: DeploymentSecret,
}

/// The drivers, and the sockets that their bridges dial.
fn open_drivers(
    config: &Arc<Config>,
    fake_scripts: FakeScripts,
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
    let fake = FakeDriver::new(folders, registry.clone(), events.clone());
    for (agent, script) in fake_scripts {
        fake.set_script(agent, script);
    }
    let drivers = Drivers {
        process: Arc::new(process) as Arc<dyn Driver>,
        fake: Arc::new(fake) as Arc<dyn Driver>,
        registry,
        agents: Agents::new(Arc::clone(config), data),
        refuse_without_cgroup: config.refuse_without_cgroup,
        files_dial: Dial::Unix(files_path),
    };
    Ok(Opened { drivers: Arc::new(drivers), control, files_listener, secret })
}

type EngineEnded = oneshot::Receiver<Result<(), EngineError>>;

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

async fn until_told_to_end(
    api: Api,
    listener: TcpListener,
    connections_max: usize,
    mut engine_ended: EngineEnded,
) -> Result<(), RunError> {
    let refused = |source| RunError::System { what: "to listen to signals", source };
    let mut terminated = signal(SignalKind::terminate()).map_err(refused)?;
    let mut interrupted = signal(SignalKind::interrupt()).map_err(refused)?;
    let (end, ended) = watch::channel(false);
    let gateway = api.gateway.clone();
    let is_draining = Arc::clone(&api.is_draining);
    let serving = tokio::spawn(server::serve(listener, api::router(api), connections_max, ended));
    tokio::select! {
        _ = terminated.recv() => {}
        _ = interrupted.recv() => {}
        result = &mut engine_ended => {
            // Nothing can be acknowledged any more: out, so that whoever restarts us can.
            return Err(result.map_or(RunError::Panicked, |ended| match ended {
                Ok(()) => RunError::Panicked,
                Err(error) => RunError::Engine(error),
            }));
        }
    }
    is_draining.store(true, Ordering::Relaxed);
    drop(sd_notify::notify(&[sd_notify::NotifyState::Stopping]));
    let _server_gone = end.send(true);
    if let Err(error) = serving.await {
        tracing::error!(%error, "the server panicked");
    }
    gateway.end().await;
    engine_ended.await.map_err(|_| RunError::Panicked)??;
    tracing::info!(
        "ended; agents that run go on under their bridges, and the next start finds them"
    );
    Ok(())
}

fn announce(manner: Manner, address: SocketAddr, data: &Path, config: Option<&Path>, api: &Api) {
    tracing::info!(%address, data = %data.display(), "ready");
    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
    if manner == Manner::Up {
        crate::cli::welcome::print(&crate::cli::welcome::Welcome {
            address,
            data: data.to_owned(),
            config: config.map(ToOwned::to_owned),
            agents: api
                .config
                .agents
                .iter()
                .map(|(name, agent)| (name.to_string(), api.drivers.agents.lacks(agent)))
                .collect(),
            program: std::env::args().next().unwrap_or_else(|| "dormouse".to_owned()),
        });
    }
}

fn start_logging(manner: Manner) {
    use tracing_subscriber::EnvFilter;
    let standard = match manner {
        Manner::Up => "warn",
        Manner::Serve => "info",
    };
    let filter =
        EnvFilter::try_from_env("DORMOUSE_LOG").unwrap_or_else(|_| EnvFilter::new(standard));
    let is_terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // Fails only when a log exists already, as in a test that runs the daemon twice.
    drop(
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(is_terminal)
            .with_target(false)
            .try_init(),
    );
}

/// Makes a key while no daemon runs: the way to the first one under a service manager.
pub(crate) fn create_key_offline(
    options: &Options,
    name: &str,
    subject: dormouse_core::id::Subject,
    is_operator: bool,
) -> Result<String, RunError> {
    let data = data_folder(options.data.as_deref())?;
    let mut store = Store::open(&data)?;
    let scopes = if is_operator { vec![SCOPE_OPERATOR.to_owned()] } else { Vec::new() };
    let now = crate::engine::clock::wall_now();
    let (key, token) = keys::make(name.to_owned(), subject, scopes, now);
    let mut batch = store.batch();
    batch.insert_key(&key)?;
    batch.commit()?;
    Ok(token)
}
