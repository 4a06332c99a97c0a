//! From the welcome that says so to an agent that runs.
//!
//! Owner: `instance`, a part of which this is. Invariants: an agent is executed once per bridge;
//! whatever fails here is an end with evidence like any other; its files are there before it is.
//! Absent: turns, and what the program is given between fork and exec (`child`).

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_core::evidence::End;
use rustix::process::Pid;
use tokio::time::Instant;

use crate::adapter::Agent;
use crate::adapter::exec::Exec;
use crate::adapter::jsonl::Jsonl;
use crate::adapter::openai::Openai;
use crate::child::{Process, Program, SpawnError};
use crate::ending::{FAR_AWAY, Phase};
use crate::frames::{Adapter, Launch};
use crate::instance::Instance;
use crate::render;
use crate::rundir::{AgentRecord, ProcessMark};
use crate::template;

impl Instance {
    pub(crate) fn on_launch(&mut self, mut launch: Launch) {
        self.orphan_limit = Duration::from_millis(launch.orphan_limit_ms).min(FAR_AWAY);
        let memory_limit_bytes = self.spec.memory_limit_bytes;
        if let Some(field) =
            template::memory_field(&launch).filter(|_| memory_limit_bytes.is_none())
        {
            return self.launch_failed(&format!("{field} needs a memory limit, and there is none"));
        }
        let port = match template::wants_port(&launch).then(template::free_port).transpose() {
            Ok(port) => port,
            Err(error) => return self.launch_failed(&format!("no free port: {error}")),
        };
        let (workspace, secrets) = (launch.workspace.clone(), std::mem::take(&mut launch.secrets));
        let session = self.spec.session.clone();
        let fields = template::Fields {
            port,
            session: &session,
            workspace: &workspace,
            memory_limit_bytes,
            heap_percent: launch.heap_percent,
            secrets: &secrets,
        };
        let mut launch = fields.fill_launch(launch);
        let files = std::mem::take(&mut launch.files);
        self.files.keep_out(files.iter().map(|file| file.path.clone()));
        if let Err(error) = render::render(&workspace, &files) {
            return self.launch_failed(&error.to_string());
        }
        let adapter = launch.adapter.clone();
        self.launch = Some(launch);
        self.launched_at = Some(Instant::now());
        self.follow_oom_kills();
        match adapter {
            Adapter::Exec => {
                self.agent = Some(Agent::Exec(Exec::default()));
                self.become_ready();
            }
            Adapter::Jsonl { wait_for_ready } => {
                self.execute(Agent::Jsonl(Jsonl::new()), true);
                if !wait_for_ready && matches!(self.phase, Phase::Starting) {
                    self.become_ready();
                }
            }
            Adapter::Openai { url, ready, model, headers } => {
                let (ready, model) = (ready.as_deref(), model.as_deref());
                match Openai::new(&self.spec.session, &url, ready, model, &headers) {
                    Ok(openai) => self.execute(Agent::Openai(openai), false),
                    Err(error) => self.launch_failed(&error.to_string()),
                }
            }
        }
    }

    fn follow_oom_kills(&mut self) {
        self.oom.open_log();
        if let Some(cgroup) = &self.cgroup {
            self.counters_at_launch = cgroup.counters();
            // Nothing to hear of where memory is not counted.
            let is_counted = self.counters_at_launch.oom_kills.is_some();
            if is_counted && let Err(error) = self.oom.listen(cgroup.spec()) {
                self.log.note(&format!("the kernel will not tell when memory runs out: {error}"));
            }
        }
        self.oom.begin(self.counters_at_launch);
    }

    /// Executes the one process of a long-lived agent.
    fn execute(&mut self, mut agent: Agent, has_input: bool) {
        match self.spawn(&[], has_input) {
            Ok(process) => {
                self.process = Some(process);
                self.phase = Phase::Starting;
                if let Agent::Openai(openai) = &mut agent {
                    openai.await_readiness();
                }
                self.agent = Some(agent);
            }
            Err(error) => self.launch_failed(&error.to_string()),
        }
    }

    fn launch_failed(&mut self, error: &str) {
        self.log.note(&format!("the agent could not be launched: {error}"));
        self.clear(Some(End::LaunchFailed { error: error.to_string() }));
    }

    pub(crate) fn spawn(
        &mut self,
        extra_env: &[(&str, String)],
        has_input: bool,
    ) -> Result<Process, SpawnError> {
        let launch = self.launch.as_ref().ok_or(SpawnError::NoProgram)?;
        let given = launch.env.iter().map(|(name, value)| (name.as_str(), value.0.as_str()));
        let extra = extra_env.iter().map(|(name, value)| (*name, value.as_str()));
        let program = Program {
            command: &launch.command,
            env: given.chain(extra).collect::<BTreeMap<_, _>>(),
            workspace: &launch.workspace,
            cgroup: self.cgroup.as_ref(),
            has_input,
        };
        let process = program.spawn()?;
        let name = launch.command.first().map_or("", String::as_str);
        self.log.note(&format!("executed {name} as process {}", process.pid.as_raw_nonzero()));
        self.record_agent(process.pid);
        Ok(process)
    }

    fn record_agent(&mut self, pid: Pid) {
        let process_group = pid.as_raw_nonzero().get();
        // Whoever ended meanwhile is a zombie until the reaper looks, and still listed.
        let Some(process) = ProcessMark::of(process_group) else { return };
        if let Err(error) = self.folder.write_agent(&AgentRecord { process, process_group }) {
            self.log.note(&crate::words(&error));
        }
    }

    pub(crate) fn become_ready(&mut self) {
        self.phase = Phase::Ready;
        self.was_ready = true;
        self.log.note("the agent is ready");
    }
}
