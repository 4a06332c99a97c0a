//! Executes one program for the agent and holds its three pipes.
//!
//! Owner: `instance` holds at most one [`Process`]. Invariants: the program has a session and a
//! group of its own, the given environment and nothing else, default signal dispositions, no
//! descriptor but its three, is in its control group before its first instruction, and dies with
//! the bridge. Reading and writing here never wait for the agent.
//! Absent: waiting for the end (`reaper`), and the meaning of the bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use tokio::net::unix::pipe;
use tokio::time::Instant;

use crate::counters::Cgroup;

/// Where programs are looked up when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";
/// How much sooner the kernel is to take the agent than the bridge when memory runs out.
const OOM_SCORE_RAISE: i32 = 300;
const OOM_SCORE_MAX: i32 = 1_000;

#[derive(Debug, thiserror::Error)]
pub(crate) enum SpawnError {
    #[error("the command is empty")]
    NoProgram,
    #[error("the workspace {} is not a folder", workspace.display())]
    NoWorkspace { workspace: PathBuf },
    #[error("{program} is not found in {path}")]
    NotFound { program: String, path: String },
    #[error("{program} is not executable")]
    NotExecutable { program: String },
    #[error("cannot join the control group through {}: {source}", path.display())]
    Join { path: PathBuf, source: io::Error },
    #[error("cannot execute {program}: {source}")]
    Execute { program: String, source: io::Error },
    #[error("cannot use the pipes of {program}: {source}")]
    Pipes { program: String, source: io::Error },
}

impl SpawnError {
    /// The machine lacked something for the moment; the same command may do another time.
    pub(crate) fn may_pass(&self) -> bool {
        let transient = [Errno::AGAIN, Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::TXTBSY];
        match self {
            SpawnError::Execute { source, .. } | SpawnError::Pipes { source, .. } => {
                Errno::from_io_error(source).is_some_and(|errno| transient.contains(&errno))
            }
            _ => false,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub(crate) command: &'a [String],
    pub(crate) env: BTreeMap<&'a str, &'a str>,
    pub(crate) workspace: &'a Path,
    pub(crate) cgroup: Option<&'a Cgroup>,
    /// Whether the program gets a pipe to read from, or nothing.
    pub(crate) has_input: bool,
}

#[derive(Debug)]
pub(crate) struct Process {
    /// Also its group, and its session.
    pub(crate) pid: Pid,
    pub(crate) started_at: Instant,
    input: Option<pipe::Sender>,
    /// Bytes that the program has not taken yet.
    input_waiting: Vec<u8>,
    input_taken_bytes: usize,
    closes_input_when_taken: bool,
    output: Option<pipe::Receiver>,
    errors: Option<pipe::Receiver>,
}

/// Something that came through the pipes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FromPipes {
    /// So many bytes of standard output are in the buffer.
    Output(usize),
    /// So many bytes of standard error are in the buffer.
    Errors(usize),
}

impl Program<'_> {
    pub(crate) fn spawn(&self) -> Result<Process, SpawnError> {
        let workspace = self.workspace;
        if !workspace.is_dir() {
            return Err(SpawnError::NoWorkspace { workspace: workspace.into() });
        }
        let (program, arguments) = self.command.split_first().ok_or(SpawnError::NoProgram)?;
        let found = self.find(program)?;
        let joined = self.cgroup.map(Cgroup::open_to_join).unwrap_or(Ok(Vec::new()));
        let joined = joined.map_err(|(path, source)| SpawnError::Join { path, source })?;

        let mut command = Command::new(found);
        command.arg0(program).args(arguments).env_clear().envs(&self.env).current_dir(workspace);
        command.stdin(if self.has_input { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        prepare_in_child(&mut command, joined);
        let started_at = Instant::now();
        let mut child = command
            .spawn()
            .map_err(|source| SpawnError::Execute { program: program.clone(), source })?;

        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.expect("the kernel's process numbers are positive and fit");
        Process::of(pid, started_at, &mut child).map_err(|source| {
            crate::reaper::kill_group(pid);
            SpawnError::Pipes { program: program.clone(), source }
        })
    }

    /// The program's file. One with a slash in it is taken relative to the workspace, as a shell
    /// that stands there would.
    fn find(&self, program: &str) -> Result<PathBuf, SpawnError> {
        let path = self.env.get("PATH").copied().unwrap_or(DEFAULT_PATH);
        let candidates: Vec<PathBuf> = match program.contains('/') {
            true => vec![self.workspace.join(program)],
            false => path.split(':').map(|f| self.workspace.join(f).join(program)).collect(),
        };
        let files: Vec<_> = candidates.into_iter().filter(|file| file.is_file()).collect();
        let is_executable = |file: &PathBuf| {
            fs::metadata(file).is_ok_and(|metadata| metadata.permissions().mode() & 0o111 != 0)
        };
        match files.iter().find(|file| is_executable(file)) {
            Some(file) => Ok(file.clone()),
            None if !files.is_empty() => {
                Err(SpawnError::NotExecutable { program: program.to_string() })
            }
            None => {
                Err(SpawnError::NotFound { program: program.to_string(), path: path.to_string() })
            }
        }
    }
}

/// What the new process does between fork and exec. std has by then emptied the signal mask and
/// reset SIGPIPE; the signals that the bridge catches are reset by the exec itself.
fn prepare_in_child(command: &mut Command, joined: Vec<File>) {
    let parent = rustix::process::getpid();
    let own_score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    let own_score: i32 = own_score.trim().parse().unwrap_or(0);
    let score = (own_score + OOM_SCORE_RAISE).min(OOM_SCORE_MAX).to_string();
    let prepare = move || -> io::Result<()> {
        rustix::process::setsid()?;
        for procs_file in &joined {
            rustix::io::write(procs_file, b"0")?;
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", flags, Mode::empty()) {
            // Raising one's own score is allowed to everyone; where it is not, nothing is lost.
            let _written = rustix::io::write(&file, score.as_bytes());
        }
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        match rustix::process::getppid() == Some(parent) {
            true => Ok(()),
            // The bridge died before the line above: nobody would ever end this process.
            false => Err(Errno::SRCH.into()),
        }
    };
    #[expect(unsafe_code, reason = "std offers no other way to act between fork and exec")]
    // SAFETY: everything in the closure is a system call without allocation, lock or panic: its
    // buffers were made before the fork.
    unsafe {
        command.pre_exec(prepare);
    }
}

impl Process {
    fn of(pid: Pid, started_at: Instant, child: &mut Child) -> io::Result<Self> {
        let receiver = |end: OwnedFd| pipe::Receiver::from_owned_fd(end);
        Ok(Self {
            pid,
            started_at,
            input: child
                .stdin
                .take()
                .map(|end| pipe::Sender::from_owned_fd(end.into()))
                .transpose()?,
            input_waiting: Vec::new(),
            input_taken_bytes: 0,
            closes_input_when_taken: false,
            output: child.stdout.take().map(|end| receiver(end.into())).transpose()?,
            errors: child.stderr.take().map(|end| receiver(end.into())).transpose()?,
        })
    }

    /// Queues bytes for the program's standard input. `false` if it has none any more.
    pub(crate) fn queue_input(&mut self, bytes: &[u8]) -> bool {
        if self.input.is_some() {
            self.input_waiting.extend_from_slice(bytes);
        }
        self.input.is_some()
    }

    /// How much the program has yet to take.
    pub(crate) fn input_waiting_bytes(&self) -> usize {
        self.input_waiting.len() - self.input_taken_bytes
    }

    /// Ends the program's standard input once it took what is queued.
    pub(crate) fn close_input(&mut self) {
        self.closes_input_when_taken = true;
        if self.input_waiting_bytes() == 0 {
            self.input = None;
        }
    }

    /// Writes queued input on the side, and waits for the next output. Never ends if there can be
    /// none any more. Nothing is lost if the wait is given up.
    pub(crate) async fn next(&mut self, buffer: &mut [u8]) -> FromPipes {
        loop {
            let has_input_waiting = self.input_waiting_bytes() > 0;
            tokio::select! {
                ready = readable(&self.output), if self.output.is_some() => {
                    match ready.and_then(|pipe| pipe.try_read(buffer)) {
                        Ok(0) => self.output = None,
                        Ok(bytes) => return FromPipes::Output(bytes),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_broken_pipe_end) => self.output = None,
                    }
                }
                ready = readable(&self.errors), if self.errors.is_some() => {
                    match ready.and_then(|pipe| pipe.try_read(buffer)) {
                        Ok(0) => self.errors = None,
                        Ok(bytes) => return FromPipes::Errors(bytes),
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(_broken_pipe_end) => self.errors = None,
                    }
                }
                writable = writable(&self.input), if has_input_waiting => {
                    self.write_input(writable.is_ok());
                }
                else => std::future::pending().await,
            }
        }
    }

    fn write_input(&mut self, is_open: bool) {
        let Some(pipe) = self.input.as_ref().filter(|_| is_open) else { return self.drop_input() };
        match pipe.try_write(&self.input_waiting[self.input_taken_bytes..]) {
            Ok(bytes) => self.input_taken_bytes += bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            // It closed its input: what it did not read it does not want.
            Err(_broken_pipe) => return self.drop_input(),
        }
        if self.input_waiting_bytes() == 0 {
            self.input_waiting = Vec::new();
            self.input_taken_bytes = 0;
            if self.closes_input_when_taken {
                self.input = None;
            }
        }
    }

    fn drop_input(&mut self) {
        self.input = None;
        self.input_waiting = Vec::new();
        self.input_taken_bytes = 0;
    }

    /// After the program's end: what it left in its pipes, without waiting for whoever else may
    /// still have them open. Reads around the runtime's readiness, which lags behind.
    pub(crate) fn read_rest(&mut self, buffer: &mut [u8]) -> Option<FromPipes> {
        if let Some(bytes) = read_now(&mut self.errors, buffer) {
            return Some(FromPipes::Errors(bytes));
        }
        read_now(&mut self.output, buffer).map(FromPipes::Output)
    }

    /// A signal for the program's whole group.
    pub(crate) fn signal_group(&self, signal: Signal) {
        // It fails only when nobody is left in the group.
        let _sent = rustix::process::kill_process_group(self.pid, signal);
    }
}

async fn readable(pipe: &Option<pipe::Receiver>) -> io::Result<&pipe::Receiver> {
    let pipe = pipe.as_ref().ok_or(io::ErrorKind::NotConnected)?;
    pipe.readable().await.map(|()| pipe)
}

async fn writable(pipe: &Option<pipe::Sender>) -> io::Result<()> {
    let pipe = pipe.as_ref().ok_or(io::ErrorKind::NotConnected)?;
    pipe.writable().await
}

fn read_now(pipe: &mut Option<pipe::Receiver>, buffer: &mut [u8]) -> Option<usize> {
    loop {
        match rustix::io::read(pipe.as_ref()?, &mut *buffer) {
            Ok(bytes) if bytes > 0 => return Some(bytes),
            Err(Errno::INTR) => {}
            _end_or_empty_or_broken => {
                *pipe = None;
                return None;
            }
        }
    }
}
