//! Run folders from the driver's side: made whole or not at all, read with suspicion, removed.
//!
//! ```text
//!  .making-<name>-<n> ── rename, lock held ──▶ <name> ── rename ──▶ .gone-<name>-<n> ─▶ nothing
//! ```
//!
//! Owner: the process driver. Invariants: a folder that has its name has its spec on disk, and a
//! lock that was held before it had it; so a free lock proves that no bridge lives and none will.
//! Names are derived from instances; links are never followed. Absent: what is in the folder
//! (`dormouse_bridge::rundir`), and who lives there.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};

use dormouse_bridge::rundir::{LOCK_DESCRIPTOR, Lock, RunFolder, RunFolderError, Spec};
use dormouse_core::id::InstanceId;
use tokio::process::{Child, Command};

use crate::driver::{StartError, Unreadable};
use crate::paths::{DataFolder, FolderError, instance_name, make_private_folder};

const MAKING: &str = ".making-";
const GONE: &str = ".gone-";

/// Makes the run folder with its spec and the session's folders, and executes a bridge in it.
pub(super) fn start(
    data: &DataFolder,
    spec: &Spec,
    instance: &InstanceId,
    bridge_command: &[OsString],
) -> Result<Child, StartError> {
    make_private_folder(&data.workspace_of(&instance.session))?;
    make_private_folder(&data.logs_of(&instance.session))?;
    let lock = make(data, spec, instance)?;
    let folder = data.run_folder_of(instance);
    spawn(&folder, &lock, bridge_command).map_err(|source| {
        if let Err(error) = remove(data, instance) {
            tracing::error!(%instance, %error, "the folder of a failed start stays");
        }
        let path = bridge_command.first().map(PathBuf::from).unwrap_or_default();
        StartError::Io { doing: "executed as a bridge", path, source }
    })
}

fn make(data: &DataFolder, spec: &Spec, instance: &InstanceId) -> Result<Lock, StartError> {
    let making = passing_name(data, MAKING, instance);
    let at = |doing, path: &Path, source| StartError::Io { doing, path: path.to_owned(), source };
    fs::DirBuilder::new().mode(0o700).create(&making).map_err(|e| at("made", &making, e))?;
    let fill = || -> Result<Lock, StartError> {
        let folder = RunFolder::new(&making);
        let failed =
            |error: RunFolderError| at("filled", &making, io::Error::other(in_words(&error)));
        folder.write_spec(spec).map_err(failed)?;
        let lock = folder.lock().map_err(failed)?;
        let lock = lock.ok_or_else(|| at("locked", &making, io::ErrorKind::WouldBlock.into()))?;
        let named = data.run_folder_of(instance);
        // Not synced: after a machine's end no bridge lives, whichever name is found.
        fs::rename(&making, &named).map_err(|e| at("given its name", &named, e))?;
        Ok(lock)
    };
    fill().inspect_err(|_| {
        if let Err(error) = remove_existing(&making) {
            tracing::error!(folder = %making.display(), %error, "an unfinished folder stays");
        }
    })
}

/// Executes a bridge in the folder, in a session of its own, with the lock as its descriptor 3.
fn spawn(folder: &Path, lock: &Lock, bridge_command: &[OsString]) -> io::Result<Child> {
    let (program, arguments) =
        bridge_command.split_first().ok_or_else(|| io::Error::other("no bridge is configured"))?;
    // Above the target's number, so that making the copy also clears the flag that closes it.
    let lock = rustix::io::fcntl_dupfd_cloexec(lock.as_fd(), LOCK_DESCRIPTOR + 1)?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).arg(folder).current_dir(folder).env_clear();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    for name in ["PATH", "TZ", "RUST_BACKTRACE"] {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    let lock_number = lock.as_raw_fd();
    let prepare = move || -> io::Result<()> {
        rustix::process::setsid()?;
        #[expect(unsafe_code, reason = "the descriptor to be replaced has no owner in the child")]
        // SAFETY: between fork and exec this thread is alone; the owner is forgotten, not closed.
        let (lock, mut target) =
            unsafe { (OwnedFd::from_raw_fd(lock_number), OwnedFd::from_raw_fd(LOCK_DESCRIPTOR)) };
        let replaced = rustix::io::dup2(&lock, &mut target);
        std::mem::forget((lock, target));
        replaced.map_err(io::Error::from)
    };
    #[expect(unsafe_code, reason = "std offers no other way to act between fork and exec")]
    // SAFETY: the closure makes two system calls, and neither allocates nor locks.
    unsafe {
        command.pre_exec(prepare);
    }
    let spawned = Command::from(command).kill_on_drop(false).spawn();
    drop(lock);
    spawned
}

/// std reports a failed exec through a descriptor of its choice. It must not choose the lock's
/// number, so this process keeps that number taken.
#[derive(Debug)]
pub(super) struct TakenDescriptor(#[expect(dead_code, reason = "held, not used")] Option<File>);

impl TakenDescriptor {
    pub(super) fn take() -> io::Result<Self> {
        let null = File::open("/dev/null")?;
        let copy = rustix::io::fcntl_dupfd_cloexec(&null, LOCK_DESCRIPTOR)?;
        let is_it = copy.as_raw_fd() == LOCK_DESCRIPTOR;
        Ok(Self(is_it.then(|| File::from(copy))))
    }
}

/// Every run folder: the instance that it was made for, or why that cannot be said.
pub(super) fn list(data: &DataFolder) -> io::Result<Vec<Result<InstanceId, Unreadable>>> {
    let mut listed = Vec::new();
    for entry in fs::read_dir(data.run())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(MAKING) || name.starts_with(GONE) {
            continue;
        }
        let folder = data.run().join(&name);
        let read = read_instance(&folder, &name);
        listed.push(read.map_err(|error| Unreadable { name, folder, error }));
    }
    Ok(listed)
}

/// Checks that it is a folder, has a spec, and has the name that its spec's instance has.
fn read_instance(folder: &Path, name: &str) -> Result<InstanceId, String> {
    let metadata = fs::symlink_metadata(folder).map_err(|error| error.to_string())?;
    if !metadata.is_dir() {
        return Err("it is not a folder".into());
    }
    let spec = RunFolder::new(folder).read_spec().map_err(|error| in_words(&error))?;
    let Spec { session, generation, .. } = spec.ok_or("it has no spec.json")?;
    let instance = InstanceId { session, generation };
    if instance_name(&instance) != name {
        return Err(format!("its spec is that of {instance}, which has another folder"));
    }
    Ok(instance)
}

/// Removes the folder, so that a crash half-way leaves nothing with its name.
pub(super) fn remove(data: &DataFolder, instance: &InstanceId) -> Result<(), FolderError> {
    let named = data.run_folder_of(instance);
    let gone = passing_name(data, GONE, instance);
    match fs::rename(&named, &gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(FolderError { folder: named, source }),
        Ok(()) => remove_existing(&gone),
    }
}

/// What an earlier daemon was about to make or remove when it died: no bridge was ever in the one,
/// and none is in the other.
pub(super) fn sweep(data: &DataFolder) -> Result<(), FolderError> {
    let failed = |source| FolderError { folder: data.run(), source };
    for entry in fs::read_dir(data.run()).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(MAKING) || name.starts_with(GONE) {
            remove_existing(&data.run().join(name.as_ref()))?;
        }
    }
    Ok(())
}

/// `remove_dir_all` removes links and does not follow them.
fn remove_existing(folder: &Path) -> Result<(), FolderError> {
    let is_folder = fs::symlink_metadata(folder).map(|metadata| metadata.is_dir());
    let removed = match is_folder {
        Ok(true) => fs::remove_dir_all(folder),
        Ok(false) => fs::remove_file(folder),
        Err(error) => Err(error),
    };
    match removed {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(FolderError { folder: folder.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn passing_name(data: &DataFolder, prefix: &str, instance: &InstanceId) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    data.run().join(format!("{prefix}{}-{count}", instance_name(instance)))
}

/// An error with what is behind it, in one line.
pub(super) fn in_words(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", in_words(source)),
        None => error.to_string(),
    }
}
