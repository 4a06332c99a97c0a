//! The file as it is written: its tables, their defaults, and what the manual says of them.
//!
//! Owner: `config::parse`; an agent's table is in `agent`. Invariant: field names are the settings'
//! names. Absent: the bounds of values.

#![deny(unused_variables, reason = "a setting that is taken apart and not shown is forgotten")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use dormouse_core::id::AgentName;
use dormouse_core::limits;
use dormouse_core::policy::NodePolicy;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::agent::AgentTable;
use super::files::{FilesTable, S3Table};
use super::notify::NotifyTable;
use super::prices::PricesTable;
use super::secrets::SecretsTable;
use super::setting::{DaemonRestart, Live, NextStart, Setting, Table, Visitor, doc};
use super::units::{Size, Span};
use super::value::{Value, choice_of};

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct File {
    pub(super) server: ServerTable,
    pub(super) node: NodeTable,
    pub(super) prices: PricesTable,
    pub(super) limits: LimitsTable,
    pub(super) notify: NotifyTable,
    pub(super) secrets: SecretsTable,
    pub(super) files: FilesTable,
    pub(super) s3: S3Table,
    pub(super) agents: BTreeMap<String, AgentTable>,
}

impl File {
    pub(crate) fn agent(&self, name: &AgentName) -> Option<&AgentTable> {
        self.agents.get(name.as_str())
    }
}

impl Table for File {
    fn visit(&self, visitor: &mut Visitor) {
        let File { server, node, prices, limits, notify, secrets, files, s3, agents } = self;
        visitor.table("server", server, "The HTTP interface.");
        visitor.table("node", node, "This machine.");
        visitor.table(
            "prices",
            prices,
            "What memory costs where this runs. With this table, `dormouse why` names the monthly \
             difference wherever a memory limit has changed or should; without it nothing is said \
             of money.",
        );
        visitor.table("limits", limits, "What is refused at the gate.");
        visitor.table(
            "notify",
            notify,
            "Who is told, as JSON, when a session is tripped, a message is given up or a new \
             revision is bad; nobody if absent. No text of a message is in it. Each is tried five \
             times within three minutes, and may arrive twice, under one `id`.",
        );
        visitor.table(
            "secrets",
            secrets,
            "Where the values of secrets come from: a file of the secret's name in the folder, \
             else a variable of that name in dormouse's own environment, else the command. They \
             are looked up at each start of an agent.",
        );
        visitor.table("files", files, "Where the bytes of uploads and checkpoints are kept.");
        visitor.table(
            "s3",
            s3,
            "The object store behind s3:// addresses. The credentials are names of secrets (see \
             `secrets` of an agent), never values; if the first is nowhere, requests are not \
             signed.",
        );
        visitor.map(
            "agents",
            agents,
            "An agent: what to run, how to talk to it, and its limits. Its sessions are called \
             AGENT/KEY. {session}, {key}, {workspace} and {port} (a free port on loopback) are \
             filled in, in `command`, `env` and `adapter`; {examples} is the folder with the \
             example agents that come with the program.",
        );
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ServerTable {
    pub(super) listen: Setting<SocketAddr, DaemonRestart>,
    pub(super) drain_within: Setting<Span, Live>,
}

impl Default for ServerTable {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 7766)).into(),
            drain_within: Span(Duration::from_secs(5 * 60)).into(),
        }
    }
}

impl Table for ServerTable {
    fn visit(&self, visitor: &mut Visitor) {
        let ServerTable { listen, drain_within } = self;
        let words = "Where the HTTP interface listens. DORMOUSE_LISTEN overrides it. Beyond \
                     loopback it needs at least one API key to exist.";
        visitor.setting("listen", listen, doc(words));
        let words = "What running turns get to finish when the daemon is told to end (SIGTERM, \
                     Ctrl-C). No other turn begins; messages are taken, and wait for the next \
                     start. What runs longer goes on beside its agent, and the next start takes \
                     it over.";
        visitor.setting("drain_within", drain_within, doc(words));
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct NodeTable {
    pub(super) starts_at_once: Setting<usize, Live>,
    pub(super) restarts_per_minute: Setting<usize, Live>,
    pub(super) orphan_limit: Setting<Span, NextStart>,
    pub(super) when_no_cgroup: Setting<WhenNoCgroup, Live>,
    pub(super) disk_floor: Setting<Size, Live>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq, Clone, Copy)]
#[serde(rename_all = "snake_case")]
pub(super) enum WhenNoCgroup {
    GoOn,
    Refuse,
}

impl Value for WhenNoCgroup {
    const KIND: &'static str = "\"go_on\" or \"refuse\"";
    fn schema() -> Json {
        choice_of(&[Self::GoOn, Self::Refuse])
    }
}

impl Default for NodeTable {
    fn default() -> Self {
        Self {
            starts_at_once: NodePolicy::default().starts_at_once.into(),
            restarts_per_minute: NodePolicy::default().restarts_per_minute.into(),
            orphan_limit: Span(Duration::from_secs(10 * 60)).into(),
            when_no_cgroup: WhenNoCgroup::GoOn.into(),
            disk_floor: Size(64 << 20).into(),
        }
    }
}

impl Table for NodeTable {
    fn visit(&self, visitor: &mut Visitor) {
        let NodeTable {
            starts_at_once,
            restarts_per_minute,
            orphan_limit,
            when_no_cgroup,
            disk_floor,
        } = self;
        let words = "Agents between their start and being ready, at one time. The others wait in \
                     line, the oldest first.";
        visitor.setting("starts_at_once", starts_at_once, doc(words));
        let words = "Of sessions that have failed since their last answer, so many are started in \
                     a minute; the others wait.";
        visitor.setting("restarts_per_minute", restarts_per_minute, doc(words));
        let words = "How long agents go on working by themselves while no dormouse is there to \
                     talk to; then they end.";
        visitor.setting("orphan_limit", orphan_limit, doc(words));
        let words = "Where no control group can be made, agents cannot be held to a memory limit: \
                     \"go_on\" without one, or \"refuse\" to start.";
        visitor.setting("when_no_cgroup", when_no_cgroup, doc(words));
        let words = "Messages are refused (503) while the data folder's file system has less than \
                     this free.";
        visitor.setting("disk_floor", disk_floor, doc(words));
    }
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct LimitsTable {
    pub(super) queue_messages: Setting<usize, Live>,
    pub(super) queue_size: Setting<Size, Live>,
    pub(super) messages_per_second: Setting<u32, Live>,
    pub(super) messages_burst: Setting<u32, Live>,
    pub(super) unauthenticated_per_second: Setting<u32, Live>,
    pub(super) wrong_keys_per_minute: Setting<u32, Live>,
    pub(super) connections: Setting<usize, Live>,
}

impl Default for LimitsTable {
    fn default() -> Self {
        Self {
            queue_messages: limits::QUEUE_MESSAGES_MAX.into(),
            queue_size: Size(limits::QUEUE_BYTES_MAX).into(),
            messages_per_second: 20.into(),
            messages_burst: 60.into(),
            unauthenticated_per_second: 5.into(),
            wrong_keys_per_minute: 10.into(),
            connections: 1024.into(),
        }
    }
}

impl Table for LimitsTable {
    fn visit(&self, visitor: &mut Visitor) {
        let LimitsTable {
            queue_messages,
            queue_size,
            messages_per_second,
            messages_burst,
            unauthenticated_per_second,
            wrong_keys_per_minute,
            connections,
        } = self;
        let words = "Messages that wait, per session.";
        visitor.setting("queue_messages", queue_messages, doc(words));
        let words = "Their size together, per session.";
        visitor.setting("queue_size", queue_size, doc(words));
        let words = "Messages a second, per subject.";
        visitor.setting("messages_per_second", messages_per_second, doc(words));
        let words = "How many at once after a quiet time, per subject.";
        visitor.setting("messages_burst", messages_burst, doc(words));
        let words = "Requests without a key a second, per address.";
        visitor.setting("unauthenticated_per_second", unauthenticated_per_second, doc(words));
        let words = "Wrong keys a minute, per address.";
        visitor.setting("wrong_keys_per_minute", wrong_keys_per_minute, doc(words));
        visitor.setting("connections", connections, doc("Open connections in all."));
    }
}
