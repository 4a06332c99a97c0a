//! The model of an agent: a small script per launch and per turn, drawn when it begins.
//!
//! Owner: `Bridge`, which hands in turns and hears the rest. Invariant: what an agent says is told
//! to the checker before anybody else, so that what arrives can be compared with what was said.
//! Absent: anything a healthy agent would need a reason for; after the faults are off, every script
//! is a good one.

use std::collections::VecDeque;
use std::time::Duration;

use dormouse_core::cause::Cause;
use dormouse_core::event::TurnOutcome;
use dormouse_core::evidence::{AskedBy, End, Evidence, OomVictim};
use dormouse_core::id::{RevisionNumber, TurnId};
use dormouse_core::policy::AgentPolicy;
use dormouse_core::time::millis;

use crate::bridge::{Bridge, BridgeId};
use crate::fault::Fault;
use crate::hub::Up;
use crate::revisions::{Broken, PONG};
use crate::sabotage::Sabotage;
use crate::violation::{Checked, Invariant};
use crate::world::{Action, World};

/// A message whose text begins with this kills every agent that gets it.
pub(crate) const POISON: &str = "poison";

/// How an agent ends, as its bridge will report it.
#[derive(Debug, Clone)]
pub(crate) struct AgentEnd {
    end: End,
    oom_kills: u64,
    asked_by: Option<AskedBy>,
    grace_ran_out: bool,
}

impl AgentEnd {
    fn unasked(end: End) -> Self {
        Self { end, oom_kills: 0, asked_by: None, grace_ran_out: false }
    }

    pub(crate) fn asked(end: End, by: AskedBy) -> Self {
        Self { asked_by: Some(by), ..Self::unasked(end) }
    }

    pub(crate) fn killed_after_grace() -> Self {
        let end = End::Signaled { signal: 9 };
        Self { grace_ran_out: true, ..Self::asked(end, AskedBy::Daemon) }
    }

    fn out_of_memory() -> Self {
        Self { oom_kills: 1, ..Self::unasked(End::Signaled { signal: 9 }) }
    }
}

/// One turn under way.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) turn: TurnId,
    /// All that it has said so far.
    pub(crate) text: String,
    /// What it does next, each after a pause.
    beats: VecDeque<(u64, Beat)>,
}

#[derive(Debug, Clone)]
enum Beat {
    Say,
    Hold {
        for_ms: u64,
    },
    Answer,
    Fail {
        retryable: bool,
    },
    /// The turn's own process was killed for memory, and the instance goes on.
    FailForMemory,
    Die(AgentEnd),
}

impl World {
    /// Executes the agent, once in the bridge's life.
    pub(crate) fn launch(&mut self, id: BridgeId, revision: RevisionNumber) -> Checked {
        let (now, launch_fails) = (self.now, self.fires(Fault::LaunchFails));
        let ignores_stop = self.fires(Fault::IgnoresStop);
        let Some(bridge) = self.bridges.get_mut(&id) else { return Ok(()) };
        if bridge.was_launched || bridge.exit.is_some() {
            return Ok(());
        }
        bridge.was_launched = true;
        let session = &bridge.instance.session;
        let broken = self.revisions.broken(session.agent(), revision);
        bridge.broken = broken;
        bridge.revision = revision;
        let launch_fails = launch_fails || broken == Some(Broken::NeverLaunches);
        bridge.launched_at = now;
        bridge.ignores_stop = ignores_stop;
        bridge.is_gone = launch_fails;
        let instance = bridge.instance.clone();
        if launch_fails {
            let error = "no such file".to_owned();
            let evidence = Evidence::bare(End::LaunchFailed { error });
            bridge.exit = Some(evidence.clone());
            self.say(id, Up::Exited { evidence });
            return Ok(());
        }
        let session = &instance.session;
        let lives = |other: &&crate::bridge::Bridge| {
            other.instance.session == *session && other.agent_lives()
        };
        let living: Vec<String> =
            self.bridges.values().filter(lives).map(|bridge| bridge.instance.to_string()).collect();
        Invariant::OneLiveInstance
            .check(living.len() == 1, || format!("agents of {session} live at once: {living:?}"))?;
        self.checker.launched(&instance, revision)?;
        let ready_within = millis(self.revisions.policy(session.agent(), revision).ready_within);
        if self.fires(Fault::DiesDuringStart) || broken == Some(Broken::DiesAtStart) {
            let end = self.draw_death();
            self.plan_soon(2_000, Action::AgentEnds { bridge: id, end });
        } else if !self.fires(Fault::NeverReady) && broken != Some(Broken::NeverReady) {
            let after = self.rng.spread(5, (ready_within / 2).min(5_000));
            self.plan(now + after, Action::AgentReady { bridge: id });
        }
        Ok(())
    }

    fn draw_death(&mut self) -> AgentEnd {
        AgentEnd::unasked(match self.rng.below(3) {
            0 => End::Exited { code: 1 },
            1 => End::Exited { code: 134 },
            _ => End::Signaled { signal: 11 },
        })
    }

    pub(crate) fn agent_ready(&mut self, id: BridgeId) -> Checked {
        let lives = |bridge: &&mut crate::bridge::Bridge| bridge.agent_lives();
        if let Some(bridge) = self.bridges.get_mut(&id).filter(lives) {
            bridge.was_ready = true;
            self.say(id, Up::Ready);
            self.idle(id);
        }
        Ok(())
    }

    /// How the revision that it runs is lived with.
    pub(crate) fn policy_of(&self, bridge: &Bridge) -> &AgentPolicy {
        self.revisions.policy(bridge.instance.session.agent(), bridge.revision)
    }

    /// What an agent does when it has nothing to do.
    fn idle(&mut self, id: BridgeId) {
        let Some(bridge) = self.bridges.get(&id) else { return };
        let stop_after = millis(self.policy_of(bridge).stop_after);
        if self.fires(Fault::HoldsIdle) {
            let for_ms = self.rng.spread(500, stop_after * 8);
            self.take_hold(id, "idle work", for_ms);
        }
        let end = if self.fires(Fault::DiesIdle) {
            self.draw_death()
        } else if self.fires(Fault::ExitsZeroIdle) {
            AgentEnd::unasked(End::Exited { code: 0 })
        } else {
            return;
        };
        let after = self.rng.spread(10, stop_after.max(20));
        self.plan(self.now + after, Action::AgentEnds { bridge: id, end });
    }

    fn take_hold(&mut self, id: BridgeId, name: &str, for_ms: u64) {
        let until = self.now + for_ms;
        let Some(bridge) = self.bridges.get_mut(&id) else { return };
        bridge.holds.insert(name.to_owned(), until);
        self.checker.held(&bridge.instance.session, name, until);
        self.say(id, Up::Hold { name: name.to_owned(), for_ms });
    }

    pub(crate) fn begin_turn(&mut self, id: BridgeId, turn: TurnId, text: &str) {
        let bridge = self.bridges.get(&id).expect("the bridge was just seen");
        let policy = self.policy_of(bridge).clone();
        let broken = bridge.broken;
        let beats = self.draw_beats(&policy, text.starts_with(POISON), broken);
        let first = beats.front().map(|beat| beat.0);
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        bridge.run = Some(Run { turn, text: String::new(), beats });
        if let Some(after) = first {
            self.plan(self.now + after, Action::AgentWorks { bridge: id, turn });
        }
    }

    /// A few pieces of text, and then an end: a good one, or one of the faults.
    fn draw_beats(
        &mut self,
        policy: &AgentPolicy,
        is_poison: bool,
        broken: Option<Broken>,
    ) -> VecDeque<(u64, Beat)> {
        let pause_max = millis((policy.stuck_after / 4).min(policy.turn_within / 20)).min(5_000);
        let mut beats: VecDeque<(u64, Beat)> = (0..self.rng.below(6))
            .map(|_| (self.rng.spread(1, pause_max.max(1)), Beat::Say))
            .collect();
        if self.fires(Fault::SilentUnderHold) {
            let silent = millis(policy.stuck_after.mul_f64(1.5).min(Duration::from_secs(1_800)));
            beats.push_back((1, Beat::Hold { for_ms: silent + 2_000 }));
            beats.push_back((silent, Beat::Say));
        }
        let last = self.rng.spread(1, pause_max.max(1));
        let end = if is_poison && !self.is_healed {
            Beat::Die(self.draw_death())
        } else if self.fires(Fault::HangsInTurn) {
            return beats;
        } else if self.fires(Fault::WorksForEver) {
            self.push_endless_work(policy, &mut beats);
            return beats;
        } else if self.fires(Fault::ExitsInTurn) {
            Beat::Die(AgentEnd::unasked(End::Exited { code: 1 }))
        } else if self.fires(Fault::ExitsZeroInTurn) {
            Beat::Die(AgentEnd::unasked(End::Exited { code: 0 }))
        } else if self.fires(Fault::SignalledInTurn) {
            Beat::Die(AgentEnd::unasked(End::Signaled { signal: 11 }))
        } else if self.fires(Fault::OutOfMemory) {
            Beat::Die(AgentEnd::out_of_memory())
        } else if self.fires(Fault::TurnOutOfMemory) {
            Beat::FailForMemory
        } else if self.fires(Fault::FailsRetryably) || broken == Some(Broken::FailsRetryably) {
            Beat::Fail { retryable: true }
        } else if self.fires(Fault::FailsFinally) || broken == Some(Broken::FailsFinally) {
            Beat::Fail { retryable: false }
        } else {
            Beat::Answer
        };
        beats.push_back((last, end));
        beats
    }

    /// Progress all the time, past the limit of the whole turn, but never an end.
    fn push_endless_work(&self, policy: &AgentPolicy, beats: &mut VecDeque<(u64, Beat)>) {
        let pause = millis(policy.stuck_after * 3 / 5);
        let count = millis(policy.turn_within) / pause + 2;
        // A turn limit of thousands of stuck limits would make one world long and prove no more.
        beats.extend((0..count.min(60)).map(|_| (pause, Beat::Say)));
    }

    pub(crate) fn agent_works(&mut self, id: BridgeId, turn: TurnId) -> Checked {
        let Some(bridge) = self.bridges.get_mut(&id).filter(|bridge| bridge.agent_lives()) else {
            return Ok(());
        };
        let Some(run) = bridge.run.as_mut().filter(|run| run.turn == turn) else { return Ok(()) };
        let Some((_, beat)) = run.beats.pop_front() else { return Ok(()) };
        let next = run.beats.front().map(|beat| beat.0);
        match beat {
            Beat::Say => self.speak(id),
            Beat::Hold { for_ms } => self.take_hold(id, "silent work", for_ms),
            Beat::Answer => self.finish(id, None),
            Beat::Fail { retryable } => self.finish(id, Some((Cause::AgentError, retryable))),
            Beat::FailForMemory => self.finish(id, Some((Cause::OomLimit, true))),
            Beat::Die(end) => return self.agent_ends(id, end),
        }
        if let Some(after) = next {
            self.plan(self.now + after, Action::AgentWorks { bridge: id, turn });
        }
        Ok(())
    }

    fn speak(&mut self, id: BridgeId) {
        let word = self.rng.next();
        let splices = self.is_sabotaged(Sabotage::BridgeSplices);
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        let run = bridge.run.as_mut().expect("the run was just seen");
        let offset = run.text.len() as u64;
        let mut text = format!("{}:{word:x} é ", run.turn.attempt);
        run.text.push_str(&text);
        let turn = run.turn;
        self.checker.said(turn, &run.text);
        if splices && !bridge.previous_text.is_empty() {
            text.clone_from(&bridge.previous_text);
        }
        self.say(id, Up::Delta { turn, offset, text });
    }

    /// The turn is over: answered, or failed with or without a point in trying again.
    fn finish(&mut self, id: BridgeId, failed: Option<(Cause, bool)>) {
        let unstreamed = self.rng.chance(300);
        let misquotes = self.is_sabotaged(Sabotage::BridgeMisquotes);
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        let mut run = bridge.run.take().expect("the run was just seen");
        bridge.previous_text.clone_from(&run.text);
        let session = bridge.instance.session.clone();
        let turn = run.turn;
        let mut outcome = match failed {
            None => {
                if unstreamed {
                    run.text.push_str("and that was all");
                }
                if session.key() == "canary" && bridge.broken != Some(Broken::AnswersWrong) {
                    run.text.push_str(PONG);
                }
                TurnOutcome::Answered { text: run.text, exit_code: None }
            }
            Some((cause, retryable)) => TurnOutcome::Failed {
                cause,
                message: "it did not work".to_owned(),
                retryable,
                exit_code: Some(1),
            },
        };
        self.checker.ended(turn, &outcome);
        self.leave_work(&session);
        self.offer_checkpoint(id);
        if let (true, TurnOutcome::Answered { text, .. }) = (misquotes, &mut outcome) {
            text.push('!');
        }
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        bridge.results.insert(turn, outcome.clone());
        self.say(id, Up::Ended { turn, outcome });
        self.idle(id);
    }

    pub(crate) fn agent_ends(&mut self, id: BridgeId, end: AgentEnd) -> Checked {
        let now = self.now;
        let Some(bridge) = self.bridges.get_mut(&id).filter(|bridge| bridge.agent_lives()) else {
            return Ok(());
        };
        let offers = !bridge.is_dead;
        bridge.is_gone = true;
        bridge.run = None;
        bridge.holds.clear();
        let evidence = Evidence {
            asked_by: end.asked_by,
            grace_ran_out: end.grace_ran_out,
            uptime_ms: Some(now - bridge.launched_at),
            oom_kills: Some(end.oom_kills),
            oom_victim: (end.oom_kills > 0).then_some(OomVictim::Main),
            ..Evidence::bare(end.end)
        };
        if offers {
            self.offer_checkpoint(id);
        }
        let bridge = self.bridges.get_mut(&id).expect("the bridge was just seen");
        if !bridge.is_dead {
            bridge.exit = Some(evidence.clone());
            self.say(id, Up::Exited { evidence });
        }
        Ok(())
    }
}
