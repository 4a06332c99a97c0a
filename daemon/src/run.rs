//! The daemon from its first line to its last: folder, store, drivers, engine, server, signals.
//!
//! Owner: `cli` calls `up` and `serve`. Invariants: the data folder's lock is taken before anything
//! is touched; the control socket is open before recovery, so that bridges find it; the listener is
//! open only when the engine takes messages; the process ends with the reason when the engine does.
//! Absent: decisions.

mod ending;
mod folder;
mod listening;
mod node;
mod serving;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use dormouse_edge::control::BindError;
use dormouse_store::{ConfigRecord, OpenError, Reader, Store};
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;

use crate::api::Api;
use crate::config::{self, ConfigError, Loaded};
use crate::engine::EngineError;
use crate::files;
use crate::handover::door::{Asked, Door, Stage};
use crate::handover::new::{TakeError, Taken, Taking};
use crate::in_force::{Current, InForce};
use crate::keys::{self, SCOPE_OPERATOR};
use crate::report;
use crate::revisions::Revisions;
use ending::Signals;
pub(crate) use folder::{FolderError, data_folder};
use node::Node;
use serving::{Outcome, Serving};

/// Threads for sockets. The engine has its own; readers have theirs.
const WORKERS: usize = 2;

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
    #[error(transparent)]
    Take(#[from] TakeError),
    #[error("the key could not be stored")]
    Key(#[from] dormouse_store::ApplyError),
    #[error("the key could not be stored")]
    KeyCommit(#[from] dormouse_store::CommitError),
}

/// For a person at a terminal: makes what is missing, and says what to do next.
pub(crate) fn up(options: &Options) -> Result<Ended, RunError> {
    run(options, Manner::Up)
}

/// For a service manager.
pub(crate) fn serve(options: &Options) -> Result<Ended, RunError> {
    run(options, Manner::Serve)
}

/// How a daemon that was asked to end has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    AllFinished,
    /// Turns go on under their bridges.
    LeftRunning,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Up,
    Serve,
}

fn run(options: &Options, manner: Manner) -> Result<Ended, RunError> {
    start_logging(manner);
    let Some(taking) = Taking::of_this_process()? else {
        return begin(options, manner, None);
    };
    let line = taking.line()?;
    let ended = begin(options, manner, Some(taking));
    if let Err(error) = &ended {
        // Of one that has served already, nobody hears this.
        line.failed(&report::chain(error));
    }
    ended
}

fn begin(options: &Options, manner: Manner, taking: Option<Taking>) -> Result<Ended, RunError> {
    let loaded = match config::load(options.config.as_deref()) {
        // A machine that boots with a half-edited file has nobody who reads the error.
        Err(error) if manner == Manner::Serve && taking.is_none() => Err(error),
        loaded => Ok(loaded?),
    };
    let data = data_folder(options.data.as_deref())?;
    folder::raise_open_files();
    // The store is another process' until it says otherwise.
    let taken = taking.map(Taking::take).transpose()?;
    let mut store = Store::open(&data)?;
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(error) => last_good(error, options, &data)?,
    };
    folder::unpack_examples(&data)?;
    if manner == Manner::Up {
        folder::ensure_operator_key(&data, &mut store)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .map_err(|source| RunError::System { what: "threads", source })?;
    let result = runtime.block_on(live(loaded, data, store, manner, taken));
    // Readers and drivers that still work on something are not waited for: what matters is on disk.
    Runtime::shutdown_background(runtime);
    result
}

/// What was in force before the file became wrong; without such a thing, the error.
fn last_good(error: ConfigError, options: &Options, data: &Path) -> Result<Loaded, RunError> {
    let Some(ConfigRecord { number, text, .. }) = Reader::open(data)?.configs(1)?.pop() else {
        return Err(error.into());
    };
    let path = config::path_of(options.config.as_deref());
    let Ok(loaded) = config::load_text(text, path) else { return Err(error.into()) };
    let error = report::chain(&error);
    tracing::error!(%error, config = number, "the file is wrong; the last good config is in force");
    Ok(loaded)
}

/// The config that this process begins with; what is new of it is kept before anybody goes by it.
fn put_in_force(loaded: Loaded, data: &Path, store: &mut Store) -> Result<InForce, RunError> {
    let reader = Reader::open(data)?;
    let (kept, newest) = (reader.revisions()?, reader.configs(1)?.pop());
    let at = crate::engine::clock::wall_now();
    let by = "a start of the daemon".to_owned();
    let (revisions, fresh) = Revisions::of(&loaded.file, &loaded.config, &loaded.folder, &kept, at);
    let mut batch = store.batch();
    fresh.iter().try_for_each(|revision| batch.insert_revision(revision))?;
    let current = match newest {
        Some(ConfigRecord { number, at, by, text }) if text == loaded.text => {
            Current { number, at, by, loaded, revisions }
        }
        newest => {
            let number = newest.map_or(0, |newest| newest.number) + 1;
            let current = Current { number, at, by, loaded, revisions };
            batch.insert_config(&current.record())?;
            current
        }
    };
    batch.commit()?;
    Ok(InForce::new(current))
}

async fn live(
    loaded: Loaded,
    data: PathBuf,
    store: Store,
    manner: Manner,
    mut taken: Option<Taken>,
) -> Result<Ended, RunError> {
    let mut signals = Signals::listen()?;
    let mut beginning = (store, loaded);
    let mut listener = match &mut taken {
        Some(taken) => Some(taken.listener.try_clone().map_err(listening::refused)?),
        None => listening::activated()?,
    };
    let mut idle = taken.as_mut().map(|taken| std::mem::take(&mut taken.idle)).unwrap_or_default();
    let mut failed: Option<(Asked, String)> = None;
    loop {
        let (mut store, loaded) = beginning;
        let in_force = put_in_force(loaded, &data, &mut store)?;
        let current = in_force.now();
        let listen = current.config().listen;
        let node = Node::open(in_force, &data, store).await?;
        let door = Door::open(&data)?;
        let open = match listener.take() {
            Some(listener) => listener,
            None => listening::bind(listen)?,
        };
        let address = open.local_addr().unwrap_or(listen);
        folder::note_address(&data, address)?;
        if let Some(taken) = taken.take() {
            let healthy = spawn_blocking(move || taken.is_healthy());
            healthy.await.map_err(|_| RunError::Panicked)??;
        }
        if failed.is_none() {
            announce(manner, address, &data, &node.api);
        }
        let serving = Serving::start(node, door, &open, std::mem::take(&mut idle))?;
        if let Some((mut asked, why)) = failed.take() {
            tracing::warn!(%why, "the upgrade failed; this process serves on");
            asked.tell(&Stage::Failed { why }).await;
        }
        let (outcome, open) = serving.until_over(open, manner, &mut signals).await?;
        match outcome {
            Outcome::Ended(ended) => return Ok(ended),
            Outcome::TakenBack { idle: back, asked, why, loaded } => {
                (idle, failed, listener) = (back, Some((asked, why)), Some(open));
                beginning = (Store::open(&data)?, loaded);
            }
        }
    }
}

fn announce(manner: Manner, address: SocketAddr, data: &Path, api: &Api) {
    tracing::info!(%address, data = %data.display(), "ready");
    drop(sd_notify::notify(&[sd_notify::NotifyState::Ready]));
    if manner == Manner::Up {
        let current = api.in_force.now();
        crate::cli::welcome::print(&crate::cli::welcome::Welcome {
            address,
            data: data.to_owned(),
            config: current.loaded.path.clone(),
            agents: current
                .config()
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
