//! The values of secrets: from a folder of files, the daemon's environment, or a command.
//!
//! ```text
//!  file NAME in the folder ─▶ variable NAME ─▶ command, asked at each start ─▶ missing, by name
//! ```
//!
//! Owner: `Agents`. Invariants: a value is in the memory of the daemon for no longer than its
//! instance's; nothing that a command prints is in an error or a log, and its argument is the name;
//! a command is ended after `COMMAND_WITHIN`, with all that it started; an empty value is none.
//! Absent: which agent may have which secret (`config`).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dormouse_core::id::InstanceId;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::in_force::InForce;

const VALUE_BYTES_MAX: u64 = 64 << 10;
const COMMAND_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum SecretError {
    #[error(
        "the secret {name} is neither in the environment nor in {}{}",
        folder.display(),
        if *.was_asked { ", and [secrets] command gave an empty one" } else { "" }
    )]
    Missing { name: String, folder: PathBuf, was_asked: bool },
    #[error("the secret {name} could not be read from {}", path.display())]
    Unreadable { name: String, path: PathBuf, source: io::Error },
    #[error("the secret {name} was to come from {program}, which could not be executed")]
    Execute { name: String, program: String, source: io::Error },
    #[error("the secret {name} was to come from {program}, which ended with {status}")]
    Failed { name: String, program: String, status: ExitStatus },
    #[error(
        "the secret {name} was to come from {program}, which took longer than {} s",
        COMMAND_WITHIN.as_secs()
    )]
    TooLong { name: String, program: String },
    #[error("the secret {name} was to come from {program}, which printed {what}")]
    Printed { name: String, program: String, what: &'static str },
}

#[derive(Debug)]
pub(crate) struct Secrets {
    in_force: InForce,
    own_folder: PathBuf,
    fetched: Mutex<BTreeMap<InstanceId, Fetched>>,
}

/// What the command gave for one instance.
#[derive(Default)]
struct Fetched(BTreeMap<String, String>);

impl std::fmt::Debug for Fetched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Secrets {
    pub(crate) fn new(in_force: InForce, data: &Path) -> Self {
        Self { in_force, own_folder: data.join("secrets"), fetched: Mutex::default() }
    }

    fn folder(&self) -> PathBuf {
        let configured = self.in_force.now().config().secrets.folder.clone();
        configured.unwrap_or_else(|| self.own_folder.clone())
    }

    fn command(&self) -> Option<Vec<String>> {
        self.in_force.now().config().secrets.command.clone()
    }

    fn fetched(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Fetched>> {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From the folder first: a file there is a decision, a variable may be an accident. `None`:
    /// neither has it.
    fn local(&self, name: &str) -> Result<Option<String>, SecretError> {
        let path = self.folder().join(name);
        let unreadable =
            |source| SecretError::Unreadable { name: name.to_owned(), path: path.clone(), source };
        match std::fs::metadata(&path) {
            Ok(file) if file.len() <= VALUE_BYTES_MAX => {
                let text = std::fs::read_to_string(&path).map_err(unreadable)?;
                Ok(Some(without_end_of_line(&text)))
            }
            Ok(_) => Err(unreadable(io::Error::other("it is larger than 64 KiB"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(std::env::var(name).ok().filter(|value| !value.is_empty()))
            }
            Err(error) => Err(unreadable(error)),
        }
    }

    fn missing(&self, name: &str, was_asked: bool) -> SecretError {
        SecretError::Missing { name: name.to_owned(), folder: self.folder(), was_asked }
    }

    /// Why it cannot be had, as far as that is known without asking the command.
    pub(crate) fn lacks(&self, name: &str) -> Option<SecretError> {
        match self.local(name) {
            Ok(Some(_)) => None,
            Ok(None) if self.command().is_some() => None,
            Ok(None) => Some(self.missing(name, false)),
            Err(error) => Some(error),
        }
    }

    /// Whether the command has to be asked before this instance can have these.
    pub(crate) fn must_fetch<'a>(
        &self,
        instance: &InstanceId,
        mut names: impl Iterator<Item = &'a String>,
    ) -> bool {
        self.command().is_some() && names.any(|name| self.known(instance, name).is_none())
    }

    fn known(&self, instance: &InstanceId, name: &str) -> Option<String> {
        let fetched = || self.fetched().get(instance)?.0.get(name).cloned();
        self.local(name).ok().flatten().or_else(fetched)
    }

    /// Asks the command for whatever of these is nowhere else.
    pub(crate) async fn fetch(
        &self,
        instance: &InstanceId,
        names: &BTreeSet<String>,
    ) -> Result<(), SecretError> {
        let Some(command) = self.command() else { return Ok(()) };
        for name in names {
            if self.local(name)?.is_none() {
                let value = self.asked(&command, name).await?;
                self.fetched().entry(instance.clone()).or_default().0.insert(name.clone(), value);
            }
        }
        Ok(())
    }

    /// What this instance gets.
    pub(crate) fn of(&self, instance: &InstanceId, name: &str) -> Result<String, SecretError> {
        if let Some(value) = self.local(name)? {
            return Ok(value);
        }
        self.known(instance, name).ok_or_else(|| self.missing(name, false))
    }

    /// One that is for the daemon itself.
    pub(crate) async fn get(&self, name: &str) -> Result<String, SecretError> {
        match (self.local(name)?, self.command()) {
            (Some(value), _) => Ok(value),
            (None, Some(command)) => self.asked(&command, name).await,
            (None, None) => Err(self.missing(name, false)),
        }
    }

    /// The instance is over.
    pub(crate) fn forget(&self, instance: &InstanceId) {
        self.fetched().remove(instance);
    }

    async fn asked(&self, command: &[String], name: &str) -> Result<String, SecretError> {
        match ask(command, name, COMMAND_WITHIN).await? {
            value if value.is_empty() => Err(self.missing(name, true)),
            value => Ok(value),
        }
    }
}

async fn ask(command: &[String], name: &str, within: Duration) -> Result<String, SecretError> {
    let (first, rest) = command.split_first().expect("the config refuses an empty command");
    let (name, program) = (|| name.to_owned(), || first.clone());
    let mut child = Command::new(first)
        .args(rest.iter().map(|part| part.replace("{name}", &name())))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| SecretError::Execute { name: name(), program: program(), source })?;
    let group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let stdout = child.stdout.take().expect("it was asked for");
    let printed = async {
        let mut bytes = Vec::new();
        let mut first = stdout.take(VALUE_BYTES_MAX + 1);
        first.read_to_end(&mut bytes).await?;
        drop(first);
        let status = child.wait().await?;
        io::Result::Ok((bytes, status))
    };
    let ended = timeout(within, printed).await;
    drop(group);
    let (bytes, status) = ended
        .map_err(|_| SecretError::TooLong { name: name(), program: program() })?
        .map_err(|source| SecretError::Execute { name: name(), program: program(), source })?;
    let wrong = |what| SecretError::Printed { name: name(), program: program(), what };
    if bytes.len() as u64 > VALUE_BYTES_MAX {
        return Err(wrong("more than 64 KiB"));
    }
    if !status.success() {
        return Err(SecretError::Failed { name: name(), program: program(), status });
    }
    let text = String::from_utf8(bytes).map_err(|_| wrong("something other than UTF-8 text"))?;
    Ok(without_end_of_line(&text))
}

/// A group of processes that is over with this value.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // That nothing is left of it is no error.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

fn without_end_of_line(text: &str) -> String {
    text.trim_end_matches(['\n', '\r']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(script: &str) -> Result<String, String> {
        let command = ["sh", "-c", script, "sh", "{name}"].map(str::to_owned);
        ask(&command, "KEY", COMMAND_WITHIN).await.map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_command_gets_the_name_and_prints_the_value() {
        assert_eq!(asked("printf '%s-value\\n' \"$1\"").await.unwrap(), "KEY-value");
        assert_eq!(asked("printf 'two\\nlines'").await.unwrap(), "two\nlines");
    }

    #[tokio::test]
    async fn what_goes_wrong_is_told_without_a_word_of_what_was_printed() {
        for (script, words) in [
            ("echo hush; echo hush >&2; exit 3", "ended with exit status: 3"),
            ("echo hush; head -c 70000 /dev/zero | tr '\\0' x", "more than 64 KiB"),
            ("printf 'hush\\377'", "UTF-8"),
        ] {
            let error = asked(script).await.unwrap_err();
            assert!(error.contains(words) && error.contains("KEY"), "{error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let missing =
            ask(&["/no/such/program".to_owned()], "KEY", COMMAND_WITHIN).await.unwrap_err();
        assert!(matches!(missing, SecretError::Execute { .. }));
    }

    #[tokio::test]
    async fn a_command_that_hangs_is_ended_with_what_it_started() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        let script = "mkfifo $0; sleep 3600 > $0 & read line < $0";
        let command = ["sh", "-c", script, fifo.to_str().unwrap()].map(str::to_owned);
        let error = ask(&command, "KEY", Duration::from_millis(300)).await.unwrap_err();
        assert!(matches!(error, SecretError::TooLong { .. }), "{error}");
        // Nobody holds it open for writing any more: a reader that does not wait sees its end.
        let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap();
        let mut options = std::fs::File::options();
        let mut end = std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags)
            .read(true)
            .open(fifo)
            .unwrap();
        let mut left = vec![0; 1];
        let ended = async {
            while !matches!(std::io::Read::read(&mut end, &mut left), Ok(0)) {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), ended).await.unwrap();
    }
}
