//! One batch between its first input and its commit.
//!
//! Owner: the engine. Invariant: nothing in here is answered, told or done before the commit.
//! Absent: the transaction itself.

use std::collections::BTreeMap;

use dormouse_core::command::Effects;
use dormouse_core::id::{RequestId, TurnId};

use crate::engine::request::{Ask, Reply, Verdict};
use crate::in_force::Current;
use crate::outcomes::Outcomes;

/// One batch while it is being built.
#[derive(Default)]
pub(super) struct Pending {
    pub(super) effects: Effects,
    /// What its writes mean.
    pub(super) outcomes: Outcomes,
    pub(super) waiting: BTreeMap<RequestId, Ask>,
    pub(super) replies: Vec<(Reply, Verdict)>,
    /// Texts for the turns that this batch delivers.
    pub(super) texts: BTreeMap<TurnId, String>,
    /// In force once this is committed.
    pub(super) config: Option<Box<Current>>,
}

impl Pending {
    pub(super) fn refuse_everything(&mut self) {
        for (_, ask) in std::mem::take(&mut self.waiting) {
            drop(ask.reply.send(Verdict::StoreFull));
        }
        for (reply, _) in self.replies.drain(..) {
            drop(reply.send(Verdict::StoreFull));
        }
    }
}
