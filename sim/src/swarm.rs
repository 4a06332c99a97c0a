//! One seed draws one world: which faults are on and how rough they are, the agents' policies, the
//! size, the load.
//!
//! Owner: `World` reads it and changes nothing in it. Invariant: everything is drawn from the seed,
//! so that a seed is a complete description. Switching whole faults off, instead of giving each a
//! small chance, lets rare combinations meet. Absent: when anything happens; the world's own draws
//! decide that.

use std::collections::BTreeMap;
use std::time::Duration;

use dormouse_core::id::{AgentName, SessionId, Subject};
use dormouse_core::policy::{AgentPolicy, Canary, NodePolicy, RetrySafety};

use crate::fault::Fault;
use crate::prng::Prng;
use crate::revisions::{PONG, Revisions};

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) agents: BTreeMap<AgentName, AgentPolicy>,
    pub(crate) canaries: BTreeMap<AgentName, Canary>,
    pub(crate) node: NodePolicy,
    pub(crate) sessions: Vec<SessionId>,
    pub(crate) subjects: Vec<Subject>,
    pub(crate) operator: Subject,
    per_mille: Vec<u32>,
    /// Senders' and operators' requests while faults are on, and how long that lasts.
    pub(crate) requests: u64,
    pub(crate) rough_ms: u64,
    /// Between two rolls of the faults that come from outside.
    pub(crate) weather_ms: u64,
    pub(crate) batch_max: usize,
    pub(crate) commit_ms_max: u64,
    pub(crate) latency_ms_max: u64,
    pub(crate) orphan_limit_ms: u64,
    /// After a failed commit, what its bridges had said before they were cut off is still handed
    /// in.
    pub(crate) keeps_inbox: bool,
}

/// A long downtime, the longest pause before a start, one before a try, and kills that are
/// repeated.
const AFTERMATH: Duration = Duration::from_secs(45 * 60);
const PER_MESSAGE: Duration = Duration::from_secs(60);

impl Config {
    pub(crate) fn draw(rng: &mut Prng) -> Self {
        let agents: BTreeMap<AgentName, AgentPolicy> =
            (0..rng.between(1, 3)).map(|n| (name(&format!("agent{n}")), draw_agent(rng))).collect();
        let names: Vec<&AgentName> = agents.keys().collect();
        let canaries = draw_canaries(&names, rng);
        let mut sessions: Vec<SessionId> = (0..rng.spread(1, 10))
            .map(|n| {
                let agent = rng.pick(&names);
                SessionId::of(agent, &format!("s{n}")).expect("a letter and a number is a key")
            })
            .collect();
        sessions.extend(canaries.values().map(|canary| canary.session.clone()));
        let node = draw_node(rng);
        Self {
            agents,
            canaries,
            node,
            sessions,
            subjects: (0..3).map(|n| subject(&format!("sender{n}"))).collect(),
            operator: subject("operator"),
            per_mille: draw_rates(rng),
            requests: rng.spread(4, 80),
            rough_ms: rng.spread(20_000, 1_800_000),
            weather_ms: rng.spread(500, 20_000),
            batch_max: usize::try_from(rng.spread(1, 64)).expect("a small number"),
            commit_ms_max: rng.spread(1, 2_000),
            latency_ms_max: rng.spread(1, 400),
            orphan_limit_ms: rng.spread(5_000, 600_000),
            keeps_inbox: rng.chance(500),
        }
    }

    pub(crate) fn per_mille(&self, fault: Fault) -> u32 {
        self.per_mille[fault as usize]
    }

    /// When a world with so many messages must have come to rest: each limit that a fault may have
    /// left running may run out once, and each message takes its time.
    pub(crate) fn settled_by_ms(&self, revisions: &Revisions, messages: usize) -> u64 {
        let longest = |limit: fn(&AgentPolicy) -> Duration| {
            revisions.policies().map(limit).max().unwrap_or_default()
        };
        let limits = longest(|policy| policy.ready_within)
            + longest(|policy| policy.turn_within)
            + longest(|policy| policy.reattach_within)
            + longest(|policy| policy.drain_within)
            + longest(|policy| policy.stop_grace)
            + longest(|policy| policy.stop_after)
            + dormouse_core::limits::HOLD_SPAN_MAX
            + dormouse_core::limits::FILES_SILENT_WITHIN * 2
            + Duration::from_millis(self.orphan_limit_ms);
        let messages = u32::try_from(messages).expect("a small world");
        let total = limits + AFTERMATH + PER_MESSAGE * messages;
        self.rough_ms + dormouse_core::time::millis(total)
    }
}

fn name(text: &str) -> AgentName {
    AgentName::new(text).expect("letters and a number are an agent's name")
}

fn subject(text: &str) -> Subject {
    Subject::new(text).expect("letters and a number are a subject")
}

pub(crate) fn draw_agent(rng: &mut Prng) -> AgentPolicy {
    let mut span = |first: u64, last: u64| Duration::from_millis(rng.spread(first, last));
    let mut policy = AgentPolicy {
        stop_after: span(500, 1_200_000),
        ready_within: span(2_000, 120_000),
        stuck_after: span(1_000, 600_000),
        turn_within: span(5_000, 3_600_000),
        drain_within: span(500, 120_000),
        stop_grace: span(100, 30_000),
        reattach_within: span(500, 120_000),
        attempts: 1,
        retry: RetrySafety::Safe,
        ..AgentPolicy::default()
    };
    policy.breaker.window = span(600_000, 3_600_000);
    policy.attempts = u32::try_from(rng.between(1, 5)).expect("a small number");
    policy.breaker.intensity = u32::try_from(rng.between(1, 6)).expect("a small number");
    if rng.chance(700) {
        policy.memory.first_bytes = Some(64 << 20);
    }
    if rng.chance(300) {
        policy.retry = RetrySafety::Ask;
    }
    policy.files.has_inputs = rng.chance(300);
    policy.files.is_kept = rng.chance(400);
    policy.files.keep = rng.between(1, 4);
    policy
}

/// Some agents have a session that tries what is new, with a turn of its own.
fn draw_canaries(names: &[&AgentName], rng: &mut Prng) -> BTreeMap<AgentName, Canary> {
    let mut canaries = BTreeMap::new();
    for name in names {
        if rng.chance(300) {
            let session = SessionId::of(name, "canary").expect("a word is a key");
            let expects = rng.chance(700).then(|| PONG.to_owned());
            canaries.insert((*name).clone(), Canary { session, expects });
        }
    }
    canaries
}

fn draw_node(rng: &mut Prng) -> NodePolicy {
    let starts_at_once = usize::try_from(rng.between(1, 4)).expect("a small number");
    let mut node = NodePolicy { starts_at_once, ..NodePolicy::default() };
    if rng.chance(500) {
        node.restarts_per_minute = usize::try_from(rng.between(1, 10)).expect("a small number");
    }
    if rng.chance(400) {
        node.queue_messages_max = usize::try_from(rng.between(1, 8)).expect("a small number");
    }
    if rng.chance(200) {
        node.queue_bytes_max = rng.between(20, 400);
    }
    node
}

fn draw_rates(rng: &mut Prng) -> Vec<u32> {
    let is_calm = rng.chance(50);
    let draw = |fault: &Fault| {
        let is_on = rng.chance(500) && !is_calm;
        let quarters = u32::try_from(rng.spread(1, 16)).expect("a small number");
        if is_on { (fault.per_mille() * quarters).div_ceil(4).min(900) } else { 0 }
    };
    Fault::ALL.iter().map(draw).collect()
}
