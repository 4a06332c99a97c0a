//! From an agent's settings to what its bridge executes: command, environment, secrets.
//!
//! Owner: `Drivers`. Invariants: the agent's environment is exactly what stands here, nothing of
//! the daemon's leaks into it; a secret that is granted and missing stops the launch with its name,
//! never with an empty value.
//! Absent: filling in `{port}` and the like, which the bridge does where the agent runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dormouse_bridge::frames::{Adapter, Launch, Secret};
use dormouse_core::id::{InstanceId, RevisionNumber, SessionId};
use dormouse_core::time::millis;

use crate::config::{AdapterSetting, Agent, DriverKind};
use crate::in_force::InForce;

/// Where programs are looked up when dormouse itself has no PATH.
const PATH_FALLBACK: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const SECRET_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("its agent is not in the config")]
    NotConfigured,
    #[error("the secret {name} is neither in the environment nor in {}", folder.display())]
    SecretMissing { name: String, folder: PathBuf },
    #[error("the secret {name} could not be read from {}", path.display())]
    SecretUnreadable { name: String, path: PathBuf, source: std::io::Error },
}

#[derive(Debug)]
pub(crate) struct Agents {
    in_force: InForce,
    secrets_folder: PathBuf,
    examples_folder: PathBuf,
}

impl Agents {
    pub(crate) fn new(in_force: InForce, data: &Path) -> Self {
        Self {
            in_force,
            secrets_folder: data.join("secrets"),
            examples_folder: data.join("examples"),
        }
    }

    pub(crate) fn driver_of(&self, session: &SessionId) -> DriverKind {
        let agent = self.in_force.now();
        let agent = agent.agent(session.agent());
        // What is left of agents that are not configured any more ran as processes.
        agent.map_or(DriverKind::Process, |agent| agent.driver)
    }

    pub(crate) fn launch(
        &self,
        instance: &InstanceId,
        revision: RevisionNumber,
        workspace: PathBuf,
    ) -> Result<Launch, LaunchError> {
        let current = self.in_force.now();
        let agent = current.agent_in(instance.session.agent(), revision);
        let agent = agent.ok_or(LaunchError::NotConfigured)?;
        let command = agent.command.iter().map(|part| self.with_examples(part)).collect();
        Ok(Launch {
            command,
            env: self.env(agent, instance, &workspace)?,
            workspace,
            adapter: self.adapter(&agent.adapter),
            orphan_limit_ms: millis(current.config().orphan_limit),
            heap_percent: agent.heap_percent,
        })
    }

    /// `{examples}` is known here; the rest of the fields only where the agent runs.
    fn with_examples(&self, text: &str) -> String {
        text.replace("{examples}", &self.examples_folder.display().to_string())
    }

    /// The program that a command names, with `{examples}` filled in.
    pub(crate) fn command_of(&self, agent: &Agent) -> Vec<String> {
        agent.command.iter().map(|part| self.with_examples(part)).collect()
    }

    fn env(
        &self,
        agent: &Agent,
        instance: &InstanceId,
        workspace: &Path,
    ) -> Result<BTreeMap<String, Secret>, LaunchError> {
        let inherited = |name: &str, fallback: &str| {
            std::env::var(name)
                .ok()
                .filter(|v| !v.is_empty())
                .unwrap_or_else(|| fallback.to_owned())
        };
        let mut env = BTreeMap::from([
            ("PATH".to_owned(), Secret(inherited("PATH", PATH_FALLBACK))),
            ("LANG".to_owned(), Secret(inherited("LANG", "C.UTF-8"))),
            ("HOME".to_owned(), Secret(workspace.display().to_string())),
            ("DORMOUSE_SESSION".to_owned(), Secret(instance.session.to_string())),
            // The driver finds by this what escaped from its process group.
            ("DORMOUSE_INSTANCE".to_owned(), Secret(instance.to_string())),
        ]);
        for (name, value) in &agent.env {
            env.insert(name.clone(), Secret(self.with_examples(value)));
        }
        for name in &agent.secrets {
            env.insert(name.clone(), Secret(self.secret(name)?));
        }
        Ok(env)
    }

    /// From the folder first: a file there is a decision, a variable may be an accident.
    pub(crate) fn secret(&self, name: &str) -> Result<String, LaunchError> {
        let path = self.secrets_folder.join(name);
        let unreadable = |source| LaunchError::SecretUnreadable {
            name: name.to_owned(),
            path: path.clone(),
            source,
        };
        match std::fs::metadata(&path) {
            Ok(file) if file.len() <= SECRET_BYTES_MAX => {
                let text = std::fs::read_to_string(&path).map_err(unreadable)?;
                Ok(text.trim_end_matches(['\n', '\r']).to_owned())
            }
            Ok(_) => Err(unreadable(std::io::Error::other("it is larger than 64 KiB"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let missing = || LaunchError::SecretMissing {
                    name: name.to_owned(),
                    folder: self.secrets_folder.clone(),
                };
                std::env::var(name).ok().filter(|value| !value.is_empty()).ok_or_else(missing)
            }
            Err(error) => Err(unreadable(error)),
        }
    }

    fn adapter(&self, setting: &AdapterSetting) -> Adapter {
        match setting {
            AdapterSetting::Exec {} => Adapter::Exec,
            AdapterSetting::Jsonl { ready } => Adapter::Jsonl { wait_for_ready: *ready },
            AdapterSetting::Openai { url, ready, model, headers } => Adapter::Openai {
                url: url.clone(),
                ready: ready.clone(),
                model: model.clone(),
                headers: headers
                    .iter()
                    .map(|(name, value)| (name.clone(), Secret(value.clone())))
                    .collect(),
            },
        }
    }

    /// What an agent lacks on this machine, in words.
    pub(crate) fn lacks(&self, agent: &Agent) -> Vec<String> {
        let mut lacks = Vec::new();
        let command = self.command_of(agent);
        if let Some(program) = command.first()
            && agent.driver == DriverKind::Process
            && !program.contains('{')
            && find_program(program).is_none()
        {
            lacks.push(format!("the program '{program}' is not installed, or not in PATH"));
        }
        for name in &agent.secrets {
            if let Err(error) = self.secret(name) {
                lacks.push(error.to_string());
            }
        }
        lacks
    }
}

/// As the bridge will look it up.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| PATH_FALLBACK.into());
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}
