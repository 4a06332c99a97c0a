//! One session's queue: order, lease, attempts, poison, bounds. A pure value.
//!
//! Owner: `session`. Invariants: order of acceptance is order of delivery, and a retry never
//! overtakes (FAULTS I5); at most the head is leased; attempt k is raised here, and written, before
//! its first byte reaches an agent (I6).
//! Absent: texts (the store has them), time (the session says when), what a failure means
//! (`session::exit`).

use std::collections::VecDeque;

use crate::id::{Generation, MessageId, TurnId};
use crate::record::Delivery;
use crate::time::Wall;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queue {
    deliveries: VecDeque<Delivery>,
    bytes: u64,
}

/// The gate is closed: nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueFull {
    pub messages: usize,
    pub bytes: u64,
}

/// What an ended attempt means for its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// Stays at the head; `attempts` so far.
    Again { attempts: u32, excused: u32 },
    /// Taken out: as often as allowed.
    Exhausted { attempts: u32 },
}

impl Queue {
    /// What the store had, in order of acceptance.
    pub fn restored(deliveries: Vec<Delivery>) -> Self {
        let bytes = deliveries.iter().map(|delivery| u64::from(delivery.bytes)).sum();
        let queue = Self { deliveries: deliveries.into(), bytes };
        queue.check();
        queue
    }

    pub fn len(&self) -> usize {
        self.deliveries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.deliveries.is_empty()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn head(&self) -> Option<&Delivery> {
        self.deliveries.front()
    }

    pub fn messages(&self) -> impl Iterator<Item = MessageId> {
        self.deliveries.iter().map(|delivery| delivery.message)
    }

    /// Adds a message at the end and says how many are before it.
    pub fn accept(
        &mut self,
        message: MessageId,
        bytes: u32,
        messages_max: usize,
        bytes_max: u64,
    ) -> Result<usize, QueueFull> {
        if self.len() >= messages_max || self.bytes + u64::from(bytes) > bytes_max {
            return Err(QueueFull { messages: self.len(), bytes: self.bytes });
        }
        let position = self.len();
        self.deliveries.push_back(Delivery {
            message,
            bytes,
            attempts: 0,
            excused: 0,
            leased_to: None,
            not_before: None,
        });
        self.bytes += u64::from(bytes);
        self.check();
        Ok(position)
    }

    /// Leases the head to `generation` and raises its attempts.
    pub fn lease_head(&mut self, generation: Generation) -> Option<TurnId> {
        let head = self.deliveries.front_mut()?;
        assert!(head.leased_to.is_none(), "{} is already with an instance", head.message);
        head.attempts += 1;
        head.leased_to = Some(generation);
        head.not_before = None;
        Some(TurnId { message: head.message, attempt: head.attempts })
    }

    /// The turn that is out, if any.
    pub fn leased(&self) -> Option<(TurnId, Generation)> {
        let head = self.deliveries.front()?;
        let generation = head.leased_to?;
        Some((TurnId { message: head.message, attempt: head.attempts }, generation))
    }

    /// Takes the leased head out: it is answered, or buried.
    pub fn finish(&mut self, turn: TurnId) {
        let head = self.deliveries.pop_front().expect("a turn is finished only while it is leased");
        assert_eq!(
            (head.message, head.attempts, head.leased_to.is_some()),
            (turn.message, turn.attempt, true),
            "only the leased head can be finished"
        );
        self.bytes -= u64::from(head.bytes);
        self.check();
    }

    /// The attempt failed by itself: again, or as often as allowed.
    pub fn fail(
        &mut self,
        turn: TurnId,
        attempts_max: u32,
        not_before: Option<Wall>,
    ) -> AfterFailure {
        let head = self.leased_head(turn);
        let counted = head.attempts - head.excused;
        if counted >= attempts_max {
            let attempts = head.attempts;
            self.finish(turn);
            return AfterFailure::Exhausted { attempts };
        }
        head.leased_to = None;
        head.not_before = not_before;
        AfterFailure::Again { attempts: head.attempts, excused: head.excused }
    }

    /// The attempt was cut short by us: pending again, and not held against the message.
    pub fn excuse(&mut self, turn: TurnId) -> AfterFailure {
        let head = self.leased_head(turn);
        head.excused += 1;
        head.leased_to = None;
        AfterFailure::Again { attempts: head.attempts, excused: head.excused }
    }

    /// Takes a message out that is not with an agent. `false`: it is not here, or it is leased.
    pub fn remove_pending(&mut self, message: MessageId) -> bool {
        let place = self
            .deliveries
            .iter()
            .position(|delivery| delivery.message == message && delivery.leased_to.is_none());
        let Some(place) = place else { return false };
        let removed = self.deliveries.remove(place).expect("the place was just found");
        self.bytes -= u64::from(removed.bytes);
        self.check();
        true
    }

    fn leased_head(&mut self, turn: TurnId) -> &mut Delivery {
        let head = self.deliveries.front_mut().expect("a turn ends only while it is leased");
        assert_eq!(
            (head.message, head.attempts, head.leased_to.is_some()),
            (turn.message, turn.attempt, true),
            "only the leased head can end"
        );
        head
    }

    /// Cheap truths, always on.
    fn check(&self) {
        assert!(!self.deliveries.is_empty() || self.bytes == 0, "an empty queue has no bytes");
        let second = self.deliveries.get(1);
        assert!(
            second.is_none_or(|delivery| delivery.leased_to.is_none()),
            "only the head is leased"
        );
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GENERATION: Generation = Generation(1);

    fn queue_of(messages: &[u128]) -> Queue {
        let mut queue = Queue::default();
        for id in messages {
            queue.accept(MessageId(*id), 10, 100, 1_000).unwrap();
        }
        queue
    }

    #[test]
    fn messages_leave_in_the_order_they_came() {
        let mut queue = queue_of(&[1, 2]);
        let first = queue.lease_head(GENERATION).unwrap();
        assert_eq!(first, TurnId { message: MessageId(1), attempt: 1 });
        queue.finish(first);
        assert_eq!(queue.lease_head(GENERATION).unwrap().message, MessageId(2));
    }

    #[test]
    fn a_failed_message_stays_at_the_head_until_its_attempts_are_used_up() {
        let mut queue = queue_of(&[1, 2]);
        for attempt in 1..=3 {
            let turn = queue.lease_head(GENERATION).unwrap();
            assert_eq!(turn, TurnId { message: MessageId(1), attempt });
            let after = queue.fail(turn, 3, None);
            match attempt {
                3 => assert_eq!(after, AfterFailure::Exhausted { attempts: 3 }),
                _ => assert_eq!(after, AfterFailure::Again { attempts: attempt, excused: 0 }),
            }
        }
        assert_eq!(queue.head().unwrap().message, MessageId(2));
    }

    #[test]
    fn an_attempt_that_we_cut_short_is_not_held_against_the_message() {
        let mut queue = queue_of(&[1]);
        let first = queue.lease_head(GENERATION).unwrap();
        queue.excuse(first);
        let second = queue.lease_head(GENERATION).unwrap();
        assert_eq!(second.attempt, 2, "attempt numbers never repeat");
        assert_eq!(queue.fail(second, 2, None), AfterFailure::Again { attempts: 2, excused: 1 });
        let third = queue.lease_head(GENERATION).unwrap();
        assert_eq!(queue.fail(third, 2, None), AfterFailure::Exhausted { attempts: 3 });
    }

    #[test]
    fn both_bounds_hold_at_and_over_the_edge() {
        let mut queue = queue_of(&[1, 2]);
        assert_eq!(
            queue.accept(MessageId(3), 1, 2, 1_000),
            Err(QueueFull { messages: 2, bytes: 20 })
        );
        assert_eq!(
            queue.accept(MessageId(3), 11, 9, 30),
            Err(QueueFull { messages: 2, bytes: 20 })
        );
        assert_eq!(queue.accept(MessageId(3), 10, 3, 30), Ok(2));
    }

    #[test]
    fn a_leased_message_cannot_be_removed_but_a_pending_one_can() {
        let mut queue = queue_of(&[1, 2]);
        queue.lease_head(GENERATION);
        assert!(!queue.remove_pending(MessageId(1)));
        assert!(queue.remove_pending(MessageId(2)));
        assert!(!queue.remove_pending(MessageId(2)));
    }

    /// The naive model: a list of (message, counted failures, leased).
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Accept,
        Lease,
        Finish,
        Fail,
        Excuse,
        Remove(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            Just(Step::Accept),
            Just(Step::Lease),
            Just(Step::Finish),
            Just(Step::Fail),
            Just(Step::Excuse),
            (0..5usize).prop_map(Step::Remove),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        #[test]
        fn it_does_what_a_plain_list_does(steps in steps()) {
            let mut queue = Queue::default();
            let mut model: Vec<(u128, u32, u32)> = Vec::new(); // id, attempts, counted failures
            let mut leased = false;
            let mut next_id = 1;
            for step in steps {
                match step {
                    Step::Accept => {
                        let taken = queue.accept(MessageId(next_id), 7, 6, u64::MAX).is_ok();
                        prop_assert_eq!(taken, model.len() < 6);
                        if taken { model.push((next_id, 0, 0)); }
                        next_id += 1;
                    }
                    Step::Lease if !leased => {
                        let turn = queue.lease_head(GENERATION);
                        prop_assert_eq!(turn.is_some(), !model.is_empty());
                        if let Some(turn) = turn {
                            model[0].1 += 1;
                            leased = true;
                            let given = (turn.message.0, turn.attempt);
                            prop_assert_eq!(given, (model[0].0, model[0].1));
                        }
                    }
                    Step::Finish if leased => {
                        queue.finish(queue.leased().unwrap().0);
                        model.remove(0);
                        leased = false;
                    }
                    Step::Fail if leased => {
                        let after = queue.fail(queue.leased().unwrap().0, 3, None);
                        model[0].2 += 1;
                        leased = false;
                        let exhausted = matches!(after, AfterFailure::Exhausted { .. });
                        prop_assert_eq!(exhausted, model[0].2 >= 3);
                        if exhausted { model.remove(0); }
                    }
                    Step::Excuse if leased => {
                        queue.excuse(queue.leased().unwrap().0);
                        leased = false;
                    }
                    Step::Remove(place) if place < model.len() => {
                        let removed = queue.remove_pending(MessageId(model[place].0));
                        prop_assert_eq!(removed, !(leased && place == 0));
                        if removed { model.remove(place); }
                    }
                    Step::Lease | Step::Finish | Step::Fail | Step::Excuse | Step::Remove(_) => {}
                }
                let ids: Vec<u128> = queue.messages().map(|message| message.0).collect();
                let expected: Vec<u128> = model.iter().map(|entry| entry.0).collect();
                prop_assert_eq!(ids, expected);
                prop_assert_eq!(queue.bytes(), 7 * model.len() as u64);
                prop_assert_eq!(queue.leased().is_some(), leased);
            }
        }
    }
}
