//! From an agent's settings to what its bridge executes: command, environment, secrets.
//!
//! Owner: `Drivers`. Invariants: the agent's environment is exactly what stands here, nothing of
//! the daemon's leaks into it; a secret that is granted and missing stops the launch with its name,
//! never with an empty value.
//! Absent: filling in `{port}` and the like, which the bridge does where the agent runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dormouse_bridge::frames::{Adapter, Launch, RenderedFile, Secret};
use dormouse_core::id::{InstanceId, RevisionNumber, SessionId};
use dormouse_core::time::millis;

use crate::config::render::Rendered;
use crate::config::{AdapterSetting, Agent, DriverKind};
use crate::in_force::InForce;
use crate::secrets::{SecretError, Secrets};

/// Where programs are looked up when dormouse itself has no PATH.
const PATH_FALLBACK: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, thiserror::Error)]
pub(crate) enum LaunchError {
    #[error("its agent is not in the config")]
    NotConfigured,
    #[error(transparent)]
    Secret(#[from] SecretError),
}

#[derive(Debug)]
pub(crate) struct Agents {
    in_force: InForce,
    secrets: Secrets,
    examples_folder: PathBuf,
}

impl Agents {
    pub(crate) fn new(in_force: InForce, data: &Path) -> Self {
        Self {
            secrets: Secrets::new(in_force.clone(), data),
            in_force,
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
            files: agent.render.iter().map(rendered).collect(),
            secrets: self.named_secrets(agent, instance)?,
        })
    }

    /// For `{secret:NAME}`.
    fn named_secrets(
        &self,
        agent: &Agent,
        instance: &InstanceId,
    ) -> Result<BTreeMap<String, Secret>, LaunchError> {
        let named = agent.named_secrets.iter();
        let value = |name: &String| {
            let value = self.secrets.of(instance, name)?;
            Ok((name.clone(), Secret(value)))
        };
        named.map(value).collect()
    }

    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// Whether a command has to be asked for secrets before this instance can be launched.
    pub(crate) fn must_fetch(&self, instance: &InstanceId, revision: RevisionNumber) -> bool {
        let current = self.in_force.now();
        let agent = current.agent_in(instance.session.agent(), revision);
        agent.is_some_and(|agent| self.secrets.must_fetch(instance, secrets_of(agent)))
    }

    /// Asks it; what it gives is kept until the instance is over.
    pub(crate) async fn fetch(
        &self,
        instance: &InstanceId,
        revision: RevisionNumber,
    ) -> Result<(), SecretError> {
        let names = {
            let current = self.in_force.now();
            let agent = current.agent_in(instance.session.agent(), revision);
            agent.map(|agent| secrets_of(agent).cloned().collect()).unwrap_or_default()
        };
        self.secrets.fetch(instance, &names).await
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
            env.insert(name.clone(), Secret(self.secrets.of(instance, name)?));
        }
        Ok(env)
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
        for name in secrets_of(agent) {
            lacks.extend(self.secrets.lacks(name).map(|error| error.to_string()));
        }
        lacks
    }
}

fn rendered(file: &Rendered) -> RenderedFile {
    let Rendered { path, text, mode } = file;
    RenderedFile { path: path.clone(), text: Secret(text.clone()), mode: *mode }
}

/// All that it may have, in its environment or elsewhere.
fn secrets_of(agent: &Agent) -> impl Iterator<Item = &String> {
    agent.secrets.iter().chain(&agent.named_secrets)
}

/// As the bridge will look it up.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(PathBuf::from(program)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_else(|| PATH_FALLBACK.into());
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|path| path.is_file())
}
