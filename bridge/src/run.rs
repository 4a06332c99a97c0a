//! The whole life of a bridge: its start, and its one loop.
//!
//! ```text
//!  line to the daemon ─┐
//!  pipes, HTTP ────────┤
//!  SIGCHLD ────────────┼─▶ one loop ─▶ Instance (synchronous) ─▶ frames, files, signals
//!  SIGTERM, SIGINT ────┤
//!  the next deadline ──┘
//! ```
//!
//! Owner: the process's main thread, which alone starts agents, so that an agent's parent, whose
//! death is the agent's, cannot end before the process does. Other threads wait for disks.
//! Invariants: nothing that an agent or a daemon does ends this loop but the ends that `Instance`
//! knows; no signal but SIGKILL ends the process. Absent: what any event means.

use std::any::Any;
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::path::PathBuf;
use std::process::ExitCode;

use dormouse_core::evidence::AskedBy;
use dormouse_core::id::BootId;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::child::FromPipes;
use crate::ending::OWN_STOP_GRACE;
use crate::frames::ToBridge;
use crate::instance::{FromAgent, Instance};
use crate::link::{Link, LinkEvent, random_u64};
use crate::log::Log;
use crate::rundir::{BridgeRecord, Lock, ProcessMark, RunFolder, RunFolderError, Spec};

/// Released, refused, or over with nobody to tell.
pub const EXIT_OVER: u8 = 0;
/// The command line is not `RUN_FOLDER`.
pub const EXIT_USAGE: u8 = 2;
/// The run folder has no spec, or a broken one, or cannot be written.
pub const EXIT_RUN_FOLDER: u8 = 3;
/// Another bridge holds the lock, or has lived in this run folder before.
pub const EXIT_TAKEN: u8 = 4;
/// The system refused what every bridge needs.
pub const EXIT_SYSTEM: u8 = 5;

const READ_BYTES: usize = 16 << 10;

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    RunFolder(#[from] RunFolderError),
    #[error("{} has no spec.json", path.display())]
    NoSpec { path: PathBuf },
    #[error("another bridge lives in {}", path.display())]
    Locked { path: PathBuf },
    #[error("a bridge has lived in {} before; each life has a folder of its own", path.display())]
    Used { path: PathBuf },
    #[error("the system refused to {what}")]
    System { what: &'static str, source: std::io::Error },
}

impl StartError {
    fn exit_code(&self) -> u8 {
        match self {
            StartError::RunFolder(_) | StartError::NoSpec { .. } => EXIT_RUN_FOLDER,
            StartError::Locked { .. } | StartError::Used { .. } => EXIT_TAKEN,
            StartError::System { .. } => EXIT_SYSTEM,
        }
    }
}

/// Runs the bridge of this run folder until its end, and says how the process is to exit.
///
/// Call it first thing in `main`: the inherited lock is looked for at a fixed descriptor, and the
/// agent dies with the calling thread.
pub fn run(run_folder: PathBuf) -> ExitCode {
    crate::inherited::close_all_on_exec();
    let folder = RunFolder::new(run_folder);
    let (lock, spec) = match take_over(&folder) {
        Ok(taken) => taken,
        Err(error) => {
            // Before the spec is read there is no log to say it in.
            complain(&crate::words(&error));
            return ExitCode::from(error.exit_code());
        }
    };
    let log_folder = spec.log_folder.clone();
    match supervise(folder, spec, lock) {
        Ok(()) => ExitCode::from(EXIT_OVER),
        Err(error) => {
            Log::new(log_folder).note(&crate::words(&error));
            ExitCode::from(error.exit_code())
        }
    }
}

/// For what no log can be told.
pub fn complain(words: &str) {
    // Nobody reads it where standard error is closed, and nothing can be done about that.
    let _said = writeln!(std::io::stderr(), "dormouse-bridge: {words}");
}

fn take_over(folder: &RunFolder) -> Result<(Lock, Spec), StartError> {
    let path = || folder.path().to_path_buf();
    let lock = folder.inherit_or_take_lock()?.ok_or_else(|| StartError::Locked { path: path() })?;
    let spec = folder.read_spec()?.ok_or_else(|| StartError::NoSpec { path: path() })?;
    match folder.read_bridge()? {
        None => Ok((lock, spec)),
        Some(_) => Err(StartError::Used { path: path() }),
    }
}

fn supervise(folder: RunFolder, spec: Spec, lock: Lock) -> Result<(), StartError> {
    note_panics(&spec);
    become_supervisor()?;
    let mut log = Log::new(spec.log_folder.clone());
    let boot = introduce(&folder, &mut log, &spec)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(refused_to("make a runtime"))?;
    runtime.block_on(async {
        let link = Link::new(spec.dial.clone());
        let instance = Instance::new(folder, spec, boot, log);
        live(instance, link, lock).await
    })
}

fn refused_to(what: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::System { what, source }
}

fn become_supervisor() -> Result<(), StartError> {
    let own_pid = rustix::process::getpid();
    // It leads a session already when its driver saw to that; a group leader's refusal is the same.
    let _already_leader = rustix::process::setsid();
    rustix::process::set_child_subreaper(Some(own_pid))
        .map_err(|errno| refused_to("adopt orphans")(errno.into()))
}

fn introduce(folder: &RunFolder, log: &mut Log, spec: &Spec) -> Result<BootId, StartError> {
    let boot = BootId(u128::from(random_u64()) << 64 | u128::from(random_u64()));
    let own_pid = rustix::process::getpid().as_raw_nonzero().get();
    let process = ProcessMark::of(own_pid);
    let unseen = || refused_to("show /proc")(std::io::ErrorKind::NotFound.into());
    let process = process.ok_or_else(unseen)?;
    folder.write_bridge(&BridgeRecord { process, boot })?;
    log.note(&format!(
        "bridge {} of {} generation {} started as process {own_pid}",
        env!("CARGO_PKG_VERSION"),
        spec.session,
        spec.generation,
    ));
    Ok(boot)
}

/// A panic ends the process and with it the agent; its words are for whoever asks why.
fn note_panics(spec: &Spec) {
    let log_folder = spec.log_folder.clone();
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let payload: &dyn Any = info.payload();
        let words = payload.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("?");
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        Log::new(log_folder.clone()).note(&format!("the bridge panicked at {place}: {words}"));
    }));
}

/// The signals of a bridge. All that could end it are caught; a caught signal is back to its
/// default in an executed agent, where an ignored one would stay ignored.
struct Signals {
    child: Signal,
    terminate: Signal,
    interrupt: Signal,
    _caught_and_left_alone: Vec<Signal>,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        let left_alone = [
            SignalKind::hangup(),
            SignalKind::quit(),
            SignalKind::alarm(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        Ok(Self {
            child: signal(SignalKind::child())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _caught_and_left_alone: left_alone.into_iter().map(signal).collect::<Result<_, _>>()?,
        })
    }
}

async fn live(mut instance: Instance, mut link: Link, _held: Lock) -> Result<(), StartError> {
    let mut signals = Signals::catch().map_err(refused_to("catch signals"))?;
    let mut buffer = vec![0; READ_BYTES];
    while !instance.has_left() {
        let wants_to_send = instance.has_news();
        let deadline = instance.next_deadline();
        let at_deadline = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = link.next(wants_to_send) => on_link(event, &mut link, &mut instance),
            did = instance.next(&mut buffer) => match did {
                FromAgent::Pipes(FromPipes::Output(bytes)) => instance.on_output(&buffer[..bytes]),
                FromAgent::Pipes(FromPipes::Errors(bytes)) => instance.on_errors(&buffer[..bytes]),
                FromAgent::Http(said) => instance.on_http(said),
                FromAgent::Files(did) => instance.on_files(did),
                FromAgent::OutOfMemory(times) => instance.on_out_of_memory(times),
            },
            _ = signals.child.recv() => instance.on_children(),
            _ = signals.terminate.recv() => instance.begin_stop(AskedBy::Signal, OWN_STOP_GRACE),
            _ = signals.interrupt.recv() => instance.begin_stop(AskedBy::Signal, OWN_STOP_GRACE),
            () = at_deadline => instance.on_deadline(),
        }
    }
    Ok(())
}

fn on_link(event: LinkEvent, link: &mut Link, instance: &mut Instance) {
    match event {
        LinkEvent::Up => link.send(&instance.hello()),
        LinkEvent::Frame(frame) => {
            if matches!(frame, ToBridge::Welcome { .. }) {
                link.welcomed();
            }
            instance.on_frame(frame);
        }
        LinkEvent::CanSend => {
            if let Some(frame) = instance.next_frame() {
                link.send(&frame);
            }
        }
        LinkEvent::Down(error) => instance.on_line_down(&error.to_string()),
    }
}
