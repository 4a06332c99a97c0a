//! The run folder: what the process driver and a bridge leave for each other.
//!
//! ```text
//!  run/NAME/
//!    spec.json      driver → bridge   on disk before the bridge is spawned; mode 0600
//!    lock           held by the bridge for its whole life, through the descriptor it inherits
//!    bridge.json    bridge → driver   who the bridge is; there from its first moments on
//!    agent.json     bridge → driver   who the agent is (for `exec`, the newest turn's process)
//!    results/TURN.json                finished turns that the daemon has not acknowledged
//!    exit.json      bridge → driver   the evidence; there before `exited` is sent
//! ```
//!
//! Owner: this file is the contract between `dormouse-edge`'s process driver and the bridge.
//! Invariants: a free lock proves that no bridge lives here; with `bridge.json` beside it, none
//! ever will again. Files appear whole (written beside, then renamed). Only the spec is synced to
//! disk: the rest has to outlive processes, not the machine, whose end ends the agent as well.
//! A missing file is an answer, a broken one is an error.
//! Absent: making, finding and removing run folders, which is the driver's.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use dormouse_core::event::TurnOutcome;
use dormouse_core::evidence::Evidence;
use dormouse_core::id::{BootId, Generation, SessionId, TurnId};
use rustix::fs::FlockOperation;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::frames::Secret;
use crate::inherited;

/// Where the bridge finds the descriptor of its lock.
pub const LOCK_DESCRIPTOR: RawFd = 3;

const SPEC: &str = "spec.json";
const LOCK: &str = "lock";
const BRIDGE: &str = "bridge.json";
const AGENT: &str = "agent.json";
const EXIT: &str = "exit.json";
const RESULTS: &str = "results";

/// What a bridge is told by its driver. Everything else comes over the line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    pub session: SessionId,
    pub generation: Generation,
    pub dial: Dial,
    pub token: Secret,
    /// Where `agent.log` is written; made if it is not there.
    pub log_folder: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<CgroupSpec>,
    /// The limit that was ordered for this start, whether it could be enforced or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<u64>,
}

/// Where the daemon listens for bridges: `unix:/path/of/socket` or `tcp:127.0.0.1:7766`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Dial {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an address to dial is unix:/ABSOLUTE/PATH or tcp:ADDRESS:PORT")]
pub struct DialParseError;

impl fmt::Display for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dial::Unix(path) => write!(f, "unix:{}", path.display()),
            Dial::Tcp(address) => write!(f, "tcp:{address}"),
        }
    }
}

impl FromStr for Dial {
    type Err = DialParseError;
    fn from_str(text: &str) -> Result<Self, DialParseError> {
        match text.split_once(':').ok_or(DialParseError)? {
            ("unix", path) if path.starts_with('/') => Ok(Dial::Unix(path.into())),
            ("tcp", address) => address.parse().map(Dial::Tcp).map_err(|_| DialParseError),
            _ => Err(DialParseError),
        }
    }
}

impl TryFrom<String> for Dial {
    type Error = DialParseError;
    fn try_from(text: String) -> Result<Self, DialParseError> {
        text.parse()
    }
}

impl From<Dial> for String {
    fn from(dial: Dial) -> String {
        dial.to_string()
    }
}

/// The control groups that the agent joins. The bridge itself stays outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupSpec {
    pub version: CgroupVersion,
    /// Version 1: the folder under the memory controller. Version 2: the leaf.
    pub agent_folder: PathBuf,
    /// Further folders to join, for example under version 1's pids controller.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_folders: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupVersion {
    V1,
    V2,
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessMark {
    pub pid: i32,
    /// When it started, in clock ticks since the machine's boot: field 22 of /proc/PID/stat.
    pub start_ticks: u64,
}

impl ProcessMark {
    /// The mark of the process that has this number now; `None` if there is none.
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (_, start_ticks) = parse_stat(&stat)?;
        Some(Self { pid, start_ticks })
    }

    /// Whether this very process still runs. A zombie does not.
    pub fn is_alive(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid));
        stat.ok().and_then(|stat| parse_stat(&stat)).is_some_and(|(state, start_ticks)| {
            start_ticks == self.start_ticks && !matches!(state, 'Z' | 'X')
        })
    }
}

/// State (field 3) and start time (field 22). The name before them may hold anything, even `)`.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeRecord {
    #[serde(flatten)]
    pub process: ProcessMark,
    pub boot: BootId,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentRecord {
    #[serde(flatten)]
    pub process: ProcessMark,
    /// The agent's process group, which is also its session: the agent leads both.
    pub process_group: i32,
}

#[derive(Serialize, Deserialize)]
struct ResultRecord {
    turn: TurnId,
    outcome: TurnOutcome,
}

#[derive(Debug, thiserror::Error)]
pub enum RunFolderError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} is not what a run folder holds there", path.display())]
    Broken { path: PathBuf, source: serde_json::Error },
    #[error("{} is named for another turn than it holds", path.display())]
    Misnamed { path: PathBuf },
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot lock {}", path.display())]
    Lock { path: PathBuf, source: io::Error },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts the spec on disk, readable by its owner alone.
    pub fn write_spec(&self, spec: &Spec) -> Result<(), RunFolderError> {
        self.write(SPEC, spec, Synced::Yes)
    }

    pub fn read_spec(&self) -> Result<Option<Spec>, RunFolderError> {
        read(self.path.join(SPEC))
    }

    pub fn write_bridge(&self, record: &BridgeRecord) -> Result<(), RunFolderError> {
        self.write(BRIDGE, record, Synced::No)
    }

    pub fn read_bridge(&self) -> Result<Option<BridgeRecord>, RunFolderError> {
        read(self.path.join(BRIDGE))
    }

    pub fn write_agent(&self, record: &AgentRecord) -> Result<(), RunFolderError> {
        self.write(AGENT, record, Synced::No)
    }

    pub fn read_agent(&self) -> Result<Option<AgentRecord>, RunFolderError> {
        read(self.path.join(AGENT))
    }

    pub fn write_exit(&self, evidence: &Evidence) -> Result<(), RunFolderError> {
        self.write(EXIT, evidence, Synced::No)
    }

    pub fn read_exit(&self) -> Result<Option<Evidence>, RunFolderError> {
        read(self.path.join(EXIT))
    }

    pub fn write_result(&self, turn: TurnId, outcome: &TurnOutcome) -> Result<(), RunFolderError> {
        let folder = self.path.join(RESULTS);
        let at = |source| RunFolderError::Write { path: folder.clone(), source };
        fs::create_dir_all(&folder).map_err(at)?;
        let record = ResultRecord { turn, outcome: outcome.clone() };
        self.write(&format!("{RESULTS}/{turn}.json"), &record, Synced::No)
    }

    /// The daemon has it: nothing of it is kept. Not an error if it is gone already.
    pub fn remove_result(&self, turn: TurnId) -> Result<(), RunFolderError> {
        let path = self.path.join(RESULTS).join(format!("{turn}.json"));
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RunFolderError::Write { path, source })
            }
            _ => Ok(()),
        }
    }

    /// Every finished turn that is not acknowledged, oldest message first.
    pub fn read_results(&self) -> Result<BTreeMap<TurnId, TurnOutcome>, RunFolderError> {
        let folder = self.path.join(RESULTS);
        let listed = |source| RunFolderError::Read { path: folder.clone(), source };
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
            entries => entries.map_err(listed)?,
        };
        let mut results = BTreeMap::new();
        for entry in entries {
            let path = entry.map_err(listed)?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let Some(record) = read::<ResultRecord>(path.clone())? else { continue };
            if path.file_stem().is_none_or(|stem| stem != record.turn.to_string().as_str()) {
                return Err(RunFolderError::Misnamed { path });
            }
            results.insert(record.turn, record.outcome);
        }
        Ok(results)
    }

    /// Takes the lock; `None` if a bridge, or a driver that is about to start one, holds it.
    ///
    /// A driver hands the descriptor to the bridge as [`LOCK_DESCRIPTOR`] and then closes its own:
    /// both are the same lock, which is free only when the last of them is closed.
    pub fn lock(&self) -> Result<Option<Lock>, RunFolderError> {
        let path = self.path.join(LOCK);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        match options.open(&path) {
            Ok(file) => take_lock(file.into(), path),
            Err(source) => Err(RunFolderError::Lock { path, source }),
        }
    }

    /// The bridge's side: takes over the inherited descriptor if it is this folder's lock, else
    /// takes the lock itself. Called before anything else opens files.
    pub(crate) fn inherit_or_take_lock(&self) -> Result<Option<Lock>, RunFolderError> {
        let path = self.path.join(LOCK);
        match inherited::take_descriptor(LOCK_DESCRIPTOR, &path) {
            Some(descriptor) => take_lock(descriptor, path),
            None => self.lock(),
        }
    }

    fn write<T: Serialize>(
        &self,
        name: &str,
        value: &T,
        synced: Synced,
    ) -> Result<(), RunFolderError> {
        let path = self.path.join(name);
        write_whole(&path, value, synced).map_err(|source| RunFolderError::Write { path, source })
    }
}

/// Holds the run folder's lock for as long as it lives.
#[derive(Debug)]
pub struct Lock(OwnedFd);

impl AsFd for Lock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn take_lock(descriptor: OwnedFd, path: PathBuf) -> Result<Option<Lock>, RunFolderError> {
    match rustix::fs::flock(&descriptor, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(Lock(descriptor))),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(RunFolderError::Lock { path, source: errno.into() }),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Synced {
    Yes,
    No,
}

fn write_whole<T: Serialize>(path: &Path, value: &T, synced: Synced) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if synced == Synced::Yes {
        file.sync_all()?;
    }
    fs::rename(&beside, path)?;
    match path.parent() {
        Some(folder) if synced == Synced::Yes => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn read<T: DeserializeOwned>(path: PathBuf) -> Result<Option<T>, RunFolderError> {
    match fs::read(&path) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(source) => Err(RunFolderError::Broken { path, source }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RunFolderError::Read { path, source }),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use dormouse_core::evidence::End;
    use dormouse_core::id::MessageId;

    use super::*;
    use crate::testing::Scratch;

    fn spec() -> Spec {
        Spec {
            session: "python/main".parse().unwrap(),
            generation: Generation(3),
            dial: Dial::Unix("/run/dormouse/bridge.sock".into()),
            token: Secret("t0ken".into()),
            log_folder: "/var/log/dormouse/x".into(),
            cgroup: Some(CgroupSpec {
                version: CgroupVersion::V1,
                agent_folder: "/sys/fs/cgroup/memory/x".into(),
                extra_folders: vec!["/sys/fs/cgroup/pids/x".into()],
            }),
            memory_limit_bytes: Some(512 << 20),
        }
    }

    fn turn(number: u128) -> TurnId {
        TurnId { message: MessageId(number), attempt: 1 }
    }

    fn answer(text: &str) -> TurnOutcome {
        TurnOutcome::Answered { text: text.into(), exit_code: None }
    }

    #[test]
    fn everything_reads_back_as_it_was_written_and_is_absent_before() {
        let scratch = Scratch::new();
        let folder = RunFolder::new(scratch.path());
        assert_eq!(folder.read_spec().unwrap(), None);
        assert_eq!(folder.read_bridge().unwrap(), None);
        assert_eq!(folder.read_agent().unwrap(), None);
        assert_eq!(folder.read_exit().unwrap(), None);
        assert!(folder.read_results().unwrap().is_empty());

        folder.write_spec(&spec()).unwrap();
        assert_eq!(folder.read_spec().unwrap(), Some(spec()));
        let process = ProcessMark { pid: 12, start_ticks: 34 };
        let bridge = BridgeRecord { process, boot: BootId(5) };
        folder.write_bridge(&bridge).unwrap();
        assert_eq!(folder.read_bridge().unwrap(), Some(bridge));
        let agent = AgentRecord { process, process_group: 12 };
        folder.write_agent(&agent).unwrap();
        assert_eq!(folder.read_agent().unwrap(), Some(agent));
        let evidence = Evidence::bare(End::Exited { code: 7 });
        folder.write_exit(&evidence).unwrap();
        assert_eq!(folder.read_exit().unwrap(), Some(evidence));
    }

    #[test]
    fn the_spec_is_for_its_owner_alone() {
        let scratch = Scratch::new();
        RunFolder::new(scratch.path()).write_spec(&spec()).unwrap();
        assert_eq!(fs::metadata(scratch.path().join(SPEC)).unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn results_stay_until_they_are_removed() {
        let scratch = Scratch::new();
        let folder = RunFolder::new(scratch.path());
        folder.write_result(turn(2), &answer("two")).unwrap();
        folder.write_result(turn(1), &answer("one")).unwrap();
        fs::write(scratch.path().join("results/half.new"), "{").unwrap();
        let results: Vec<_> = folder.read_results().unwrap().into_iter().collect();
        assert_eq!(results, [(turn(1), answer("one")), (turn(2), answer("two"))]);
        folder.remove_result(turn(1)).unwrap();
        folder.remove_result(turn(1)).unwrap();
        assert_eq!(folder.read_results().unwrap().len(), 1);
    }

    #[test]
    fn broken_files_are_errors_and_not_absence() {
        let scratch = Scratch::new();
        let folder = RunFolder::new(scratch.path());
        fs::write(scratch.path().join(SPEC), "{\"session\": \"nobody\"}").unwrap();
        assert!(matches!(folder.read_spec(), Err(RunFolderError::Broken { .. })));
        folder.write_result(turn(1), &answer("one")).unwrap();
        let results = scratch.path().join(RESULTS);
        fs::rename(
            results.join(format!("{}.json", turn(1))),
            results.join(format!("{}.json", turn(2))),
        )
        .unwrap();
        assert!(matches!(folder.read_results(), Err(RunFolderError::Misnamed { .. })));
    }

    #[test]
    fn only_one_holds_the_lock() {
        let scratch = Scratch::new();
        let folder = RunFolder::new(scratch.path());
        let lock = folder.lock().unwrap().expect("a new folder's lock is free");
        assert!(folder.lock().unwrap().is_none());
        drop(lock);
        assert!(folder.lock().unwrap().is_some());
    }

    #[test]
    fn addresses_have_one_spelling_each() {
        for text in ["unix:/run/d.sock", "tcp:127.0.0.1:7766", "tcp:[::1]:80"] {
            assert_eq!(text.parse::<Dial>().unwrap().to_string(), text);
        }
        for text in ["", "unix:", "unix:run/d.sock", "tcp:localhost:1", "tcp:1.2.3.4", "/run"] {
            assert!(text.parse::<Dial>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn the_start_time_is_found_behind_any_program_name() {
        let fields: Vec<String> = (4..=30).map(|field| field.to_string()).collect();
        let stat = format!("7 (a) b (c) R {}", fields.join(" "));
        assert_eq!(parse_stat(&stat), Some(('R', 22)));
        assert_eq!(parse_stat("7 (sh"), None);
    }

    #[test]
    fn this_process_is_alive_and_one_with_another_start_time_is_not() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let mark = ProcessMark::of(pid).unwrap();
        assert!(mark.is_alive());
        assert!(!ProcessMark { start_ticks: mark.start_ticks + 1, ..mark }.is_alive());
    }
}
