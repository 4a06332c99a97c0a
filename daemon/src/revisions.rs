//! The revisions of agents: numbered by their settings, and run with today's live settings.
//!
//! ```text
//!  config ─▶ each agent's settings that come with a start ─▶ known by their digest? ─▶ its number
//!                                                              └ no ─▶ the next number, kept
//! ```
//!
//! Owner: `run` makes them where a config comes into force; drivers and engine read. Invariants:
//! the same settings are the same revision, whatever was between; an older revision that this
//! version or today's settings cannot run is not offered. Absent: which of them is good (`core`).

use std::collections::BTreeMap;
use std::path::Path;

use dormouse_core::id::{AgentName, RevisionNumber, SessionId};
use dormouse_core::policy::{AgentSetup, Canary};
use dormouse_core::rollout::{Failure, Rollout, Standing};
use dormouse_core::time::Wall;
use dormouse_store::RevisionRecord;
use sha2::{Digest as _, Sha256};

use crate::config::{self, Agent, AgentTable, Config, File};

/// Of the session that tries new revisions.
pub(crate) const CANARY_KEY: &str = "canary";

#[derive(Debug, Default)]
pub(crate) struct Revisions {
    by_agent: BTreeMap<AgentName, OfAgent>,
}

#[derive(Debug)]
struct OfAgent {
    wanted: RevisionNumber,
    known: BTreeMap<RevisionNumber, Agent>,
}

impl Revisions {
    /// With those that are new, and not kept yet. `config` is what `file` comes to, in `folder`.
    pub(crate) fn of(
        file: &File,
        config: &Config,
        folder: &Path,
        kept: &[RevisionRecord],
        at: Wall,
    ) -> (Self, Vec<RevisionRecord>) {
        let mut by_agent = BTreeMap::new();
        let mut fresh = Vec::new();
        for (name, agent) in &config.agents {
            let table = file.agent(name).expect("the config is what the file comes to");
            let of_agent: Vec<_> = kept.iter().filter(|record| record.agent == *name).collect();
            let settings = table.revision_part().to_string();
            let digest = digest_of(&settings);
            let by_digest = of_agent.iter().find(|record| record.digest == digest);
            let same = by_digest
                .or_else(|| of_agent.iter().rev().find(|record| is_same(table, record, &settings)));
            let wanted = match same {
                Some(record) => record.number,
                None => {
                    let newest = of_agent.iter().map(|record| record.number.0).max();
                    let number = RevisionNumber(newest.unwrap_or(0) + 1);
                    let agent = name.clone();
                    fresh.push(RevisionRecord { agent, number, digest, settings, at });
                    number
                }
            };
            let older = of_agent.into_iter().filter(|record| record.number != wanted);
            let mut known: BTreeMap<_, _> = older
                .filter_map(|record| Some((record.number, older_agent(table, record, folder)?)))
                .collect();
            known.insert(wanted, agent.clone());
            by_agent.insert(name.clone(), OfAgent { wanted, known });
        }
        (Self { by_agent }, fresh)
    }

    pub(crate) fn agent(&self, name: &str, revision: RevisionNumber) -> Option<&Agent> {
        let of_agent = self.by_agent.get(name)?;
        of_agent.known.get(&revision).or_else(|| of_agent.known.get(&of_agent.wanted))
    }

    /// For the core.
    pub(crate) fn setups(&self) -> BTreeMap<AgentName, AgentSetup> {
        let setup = |name: &AgentName, of_agent: &OfAgent| AgentSetup {
            wanted: of_agent.wanted,
            policies: of_agent
                .known
                .iter()
                .map(|(number, agent)| (*number, agent.policy.clone()))
                .collect(),
            canary: of_agent.known.get(&of_agent.wanted).and_then(|agent| {
                let expects = agent.canary.as_ref()?.expects.clone();
                Some(Canary { session: canary_session(name), expects })
            }),
        };
        let setups = self.by_agent.iter();
        setups.map(|(name, of_agent)| (name.clone(), setup(name, of_agent))).collect()
    }
}

/// The session that a new revision is tried by, where the agent has a canary turn.
pub(crate) fn canary_session(agent: &AgentName) -> SessionId {
    let id = format!("{agent}/{CANARY_KEY}").parse();
    id.expect("an agent's name and a short word are a session's")
}

/// `None`: every session runs, or will run, what the config asks for.
pub(crate) fn rollout_words(rollout: &Rollout) -> Option<String> {
    let wanted = rollout.wanted;
    let good = rollout.good?;
    let (is, others) = match &rollout.standing {
        Standing::Good if rollout.is_paused => {
            ("is good and paused; who has it keeps it".to_owned(), rollout.target())
        }
        Standing::Good => return None,
        Standing::Untried if rollout.is_paused => ("is paused before its trial".to_owned(), good),
        Standing::Untried => ("will be tried by the next start".to_owned(), good),
        Standing::Trying { session } => (format!("is tried by {session}"), good),
        Standing::Bad { why } => {
            let Failure { cause, detail, session, .. } = why;
            (format!("is bad, and not used: {detail} [{cause}] (dormouse why {session})"), good)
        }
        Standing::Aborted { by, .. } => (format!("was given up by {by}"), good),
    };
    Some(format!("revision {wanted} {is}; the others run revision {others}"))
}

fn digest_of(settings: &str) -> String {
    Sha256::digest(settings).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// It was kept by a version that did not have every setting of today, and those have their
/// defaults.
fn is_same(table: &AgentTable, record: &RevisionRecord, settings: &str) -> bool {
    let part = serde_json::from_str(&record.settings).ok();
    let table = part.and_then(|part| table.with_revision_part(&part).ok());
    let again = table.map(|table| table.revision_part().to_string());
    again.as_deref() == Some(settings)
}

/// `None`: it cannot be run any more, which is said.
fn older_agent(table: &AgentTable, record: &RevisionRecord, folder: &Path) -> Option<Agent> {
    let refuse = |why: String| {
        let RevisionRecord { agent, number, .. } = record;
        tracing::warn!(%agent, revision = %number, why, "an older revision cannot be run any more");
    };
    let part = serde_json::from_str(&record.settings);
    let part = part.map_err(|error| refuse(error.to_string())).ok()?;
    let table = table.with_revision_part(&part);
    let table = table.map_err(|error| refuse(error.to_string())).ok()?;
    let agent = config::agent_of(table, folder);
    agent.map_err(|(setting, problem)| refuse(format!("{setting}: {problem}"))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(settings: &str, kept: &[RevisionRecord]) -> (Revisions, Vec<RevisionRecord>) {
        let text = format!("[agents.a]\nadapter = {{ kind = \"exec\" }}\n{settings}");
        let parsed = config::parse_whole(&text, Path::new("/x/dormouse.toml")).unwrap();
        Revisions::of(&parsed.file, &parsed.config, Path::new("/x"), kept, Wall(7))
    }

    fn command(revisions: &Revisions, number: u64) -> &str {
        &revisions.agent("a", RevisionNumber(number)).unwrap().command[0]
    }

    #[test]
    fn the_same_settings_are_the_same_revision_and_an_older_one_lives_by_todays_rules() {
        let (_, first) = of("command = [\"one\"]", &[]);
        assert_eq!(first.iter().map(|record| record.number.0).collect::<Vec<_>>(), [1]);
        let (revisions, second) = of("command = [\"two\"]\nturn.attempts = 1", &first);
        assert_eq!(second[0].number, RevisionNumber(2));
        assert_eq!((command(&revisions, 1), command(&revisions, 2)), ("one", "two"));
        let setup = &revisions.setups()[&AgentName::new("a").unwrap()];
        assert_eq!(setup.wanted, RevisionNumber(2));
        assert!(setup.policies.values().all(|policy| policy.attempts == 1), "live for all");
        let kept = [first, second].concat();
        let (revisions, fresh) = of("command = [\"one\"]", &kept);
        assert!(fresh.is_empty());
        assert_eq!(revisions.setups().values().next().unwrap().wanted, RevisionNumber(1));
    }

    #[test]
    fn a_setting_that_is_new_in_this_version_makes_no_revision() {
        let (_, mut kept) = of("command = [\"one\"]", &[]);
        let mut settings: serde_json::Value = serde_json::from_str(&kept[0].settings).unwrap();
        settings.as_object_mut().unwrap().remove("pids").unwrap();
        kept[0].settings = settings.to_string();
        kept[0].digest = digest_of(&kept[0].settings);
        let (revisions, fresh) = of("command = [\"one\"]", &kept);
        assert!(fresh.is_empty());
        assert_eq!(revisions.setups().values().next().unwrap().wanted, RevisionNumber(1));
        assert_eq!(of("command = [\"one\"]\npids = 7", &kept).1.len(), 1);
    }

    #[test]
    fn a_revision_that_cannot_be_run_any_more_is_not_offered() {
        let (_, mut kept) = of("command = [\"one\"]", &[]);
        kept[0].settings = "{\"voice\": 1}".to_owned();
        let (revisions, _) = of("command = [\"two\"]", &kept);
        assert_eq!(command(&revisions, 1), "two", "the wanted one stands in");
    }
}
