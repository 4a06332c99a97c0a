//! The configs that were in force, the revisions of agents, and how far each is in use.
//!
//! Owner: the daemon applies a config in one batch with what follows from it. Invariants: a config
//! and a revision are written once and never changed; numbers rise without a gap; a revision is
//! known by the digest of its settings. Absent: what a setting means, and secrets, which have no
//! place in either.

use std::collections::BTreeMap;

use dormouse_core::id::{AgentName, RevisionNumber};
use dormouse_core::rollout::Rollout;
use dormouse_core::time::Wall;
use rusqlite::{Connection, params};

use crate::Reader;
use crate::apply::not_encoded;
use crate::error::{ApplyError, ReadError};
use crate::rows::{Columns, at, integer};
use crate::writer::{Batch, Store};

/// Those that are kept to look at and to go back to.
pub const CONFIGS_KEPT: u64 = 100;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigRecord {
    /// From 1.
    pub number: u64,
    pub at: Wall,
    /// Who applied it, in words.
    pub by: String,
    /// As it was written.
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevisionRecord {
    pub agent: AgentName,
    /// From 1, per agent.
    pub number: RevisionNumber,
    /// SHA-256 of `settings`, in hexadecimal.
    pub digest: String,
    /// JSON.
    pub settings: String,
    pub at: Wall,
}

impl Batch<'_> {
    pub(crate) fn put_rollout(
        &mut self,
        agent: &AgentName,
        rollout: &Rollout,
    ) -> Result<(), ApplyError> {
        const SQL: &str = "\
            INSERT INTO rollout (agent, state) VALUES (?1, ?2) \
            ON CONFLICT (agent) DO UPDATE SET state = excluded.state";
        let state = serde_json::to_string(rollout);
        let state = state.map_err(|error| not_encoded("PutRollout", agent.as_str(), &error))?;
        self.change_one("PutRollout", agent.as_str(), SQL, params![agent.as_str(), state])
    }

    /// The next config; the oldest are forgotten.
    pub fn insert_config(&mut self, config: &ConfigRecord) -> Result<(), ApplyError> {
        const SQL: &str = "\
            INSERT INTO config (number, at_ms, by, text) SELECT ?1, ?2, ?3, ?4 \
            WHERE ?1 = (SELECT coalesce(max(number), 0) + 1 FROM config)";
        const FORGET: &str = "DELETE FROM config WHERE number <= ?1";
        self.change(|batch| {
            let number = config.number.to_string();
            let row = params![integer(config.number), at(config.at), config.by, config.text];
            batch.change_one("InsertConfig", &number, SQL, row)?;
            let oldest = params![integer(config.number.saturating_sub(CONFIGS_KEPT))];
            batch.execute_counted("InsertConfig", &number, FORGET, oldest)?;
            Ok(())
        })
    }

    pub fn insert_revision(&mut self, revision: &RevisionRecord) -> Result<(), ApplyError> {
        const SQL: &str = "\
            INSERT INTO agent_revision (agent, number, digest, settings, at_ms) \
            SELECT ?1, ?2, ?3, ?4, ?5 WHERE ?2 = \
              (SELECT coalesce(max(number), 0) + 1 FROM agent_revision WHERE agent = ?1)";
        self.change(|batch| {
            let name = revision.agent.as_str();
            let row = params![
                name,
                integer(revision.number.0),
                revision.digest,
                revision.settings,
                at(revision.at),
            ];
            batch.change_one("InsertRevision", name, SQL, row)
        })
    }
}

impl Store {
    pub fn rollouts(&mut self) -> Result<BTreeMap<AgentName, Rollout>, ReadError> {
        self.read(rollouts)
    }
}

impl Reader {
    pub fn rollouts(&self) -> Result<BTreeMap<AgentName, Rollout>, ReadError> {
        rollouts(self.connection())
    }

    /// One that is kept, by its number.
    pub fn config(&self, number: u64) -> Result<Option<ConfigRecord>, ReadError> {
        let sql = "SELECT number, at_ms, by, text FROM config WHERE number = ?1";
        Ok(self.configs_of(sql, number)?.pop())
    }

    /// The newest first.
    pub fn configs(&self, limit: u64) -> Result<Vec<ConfigRecord>, ReadError> {
        let sql = "SELECT number, at_ms, by, text FROM config ORDER BY number DESC LIMIT ?1";
        self.configs_of(sql, limit)
    }

    fn configs_of(&self, sql: &str, parameter: u64) -> Result<Vec<ConfigRecord>, ReadError> {
        let mut statement = self.connection().prepare_cached(sql)?;
        let mut rows = statement.query([integer(parameter)])?;
        let mut configs = Vec::new();
        while let Some(row) = rows.next()? {
            let columns = Columns::new("config", row);
            configs.push(ConfigRecord {
                number: columns.number(0)?,
                at: columns.wall(1)?,
                by: columns.text(2)?.to_owned(),
                text: columns.text(3)?.to_owned(),
            });
        }
        Ok(configs)
    }

    /// Of all agents, each agent's in the order of their numbers.
    pub fn revisions(&self) -> Result<Vec<RevisionRecord>, ReadError> {
        let sql = "\
            SELECT agent, number, digest, settings, at_ms FROM agent_revision \
            ORDER BY agent, number";
        let mut statement = self.connection().prepare_cached(sql)?;
        let mut rows = statement.query([])?;
        let mut revisions = Vec::new();
        while let Some(row) = rows.next()? {
            let columns = Columns::new("agent_revision", row);
            revisions.push(RevisionRecord {
                agent: columns.parsed(0, |name| AgentName::new(name).ok())?,
                number: RevisionNumber(columns.number(1)?),
                digest: columns.text(2)?.to_owned(),
                settings: columns.text(3)?.to_owned(),
                at: columns.wall(4)?,
            });
        }
        Ok(revisions)
    }
}

fn rollouts(connection: &Connection) -> Result<BTreeMap<AgentName, Rollout>, ReadError> {
    let mut statement = connection.prepare_cached("SELECT agent, state FROM rollout")?;
    let mut rows = statement.query([])?;
    let mut rollouts = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let columns = Columns::new("rollout", row);
        let agent = columns.parsed(0, |name| AgentName::new(name).ok())?;
        rollouts.insert(agent, columns.parsed(1, |text| serde_json::from_str(text).ok())?);
    }
    Ok(rollouts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(number: u64) -> ConfigRecord {
        let text = format!("# {number}\n");
        ConfigRecord { number, at: Wall(number), by: "ops".to_owned(), text }
    }

    fn revision(number: u64, settings: &str) -> RevisionRecord {
        RevisionRecord {
            agent: AgentName::new("a").unwrap(),
            number: RevisionNumber(number),
            digest: format!("digest of {settings}"),
            settings: settings.to_owned(),
            at: Wall(5),
        }
    }

    #[test]
    fn configs_are_kept_in_order_and_the_oldest_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        for number in 1..=CONFIGS_KEPT + 2 {
            let mut batch = store.batch();
            batch.insert_config(&config(number)).unwrap();
            batch.commit().unwrap();
        }
        let mut batch = store.batch();
        assert!(batch.insert_config(&config(7)).is_err(), "a number is given once");
        drop(batch);
        let kept = Reader::open(folder.path()).unwrap().configs(1_000).unwrap();
        assert_eq!(kept.len() as u64, CONFIGS_KEPT);
        assert_eq!(kept[0], config(CONFIGS_KEPT + 2));
        assert_eq!(kept.last().unwrap().number, 3);
    }

    #[test]
    fn a_revision_is_written_once_and_a_rollout_is_what_was_put_last() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        let agent = AgentName::new("a").unwrap();
        let mut batch = store.batch();
        batch.insert_revision(&revision(1, "{}")).unwrap();
        batch.insert_revision(&revision(2, "{\"a\":1}")).unwrap();
        let mut rollout = Rollout::first(RevisionNumber::FIRST);
        batch.put_rollout(&agent, &rollout).unwrap();
        rollout.want(RevisionNumber(2));
        batch.put_rollout(&agent, &rollout).unwrap();
        batch.commit().unwrap();
        let expected = BTreeMap::from([(agent, rollout)]);
        assert_eq!(store.rollouts().unwrap(), expected);
        let reader = Reader::open(folder.path()).unwrap();
        let known = reader.revisions().unwrap();
        assert_eq!(known, [revision(1, "{}"), revision(2, "{\"a\":1}")]);
        assert_eq!(reader.rollouts().unwrap(), expected);
        drop(store);
        for wrong in [revision(2, "{\"b\":1}"), revision(4, "{\"b\":1}"), revision(3, "{}")] {
            let mut store = Store::open(folder.path()).unwrap();
            assert!(store.batch().insert_revision(&wrong).is_err(), "{wrong:?}");
        }
    }
}
