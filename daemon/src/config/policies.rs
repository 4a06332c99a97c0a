//! From an agent's tables to the core's policies, checked.
//!
//! Owner: `config::parse`. Invariant: a value out of bounds is refused with its setting's name.
//! Absent: the tables' forms.

use std::collections::BTreeMap;

use dormouse_core::breaker::{BreakerPolicy, WINDOW_MIN};
use dormouse_core::limits;
use dormouse_core::policy::{AgentPolicy, RetrySafety};
use dormouse_core::sizing::MemoryPolicy;

use super::agent::{IdleTable, RestartTable, Retry, StartTable, StopTable, TurnTable};
use super::units::Size;
use super::{Problem, problem};

pub(super) fn memory_of(
    first: Option<Size>,
    ceiling: Option<Size>,
) -> Result<MemoryPolicy, Problem> {
    match (&first, &ceiling) {
        (Some(first), _) if first.0 < 4 << 20 => {
            return Err(problem("memory", "is too small for any program: at least 4MiB"));
        }
        (Some(first), Some(ceiling)) if ceiling.0 < first.0 => {
            return Err(problem("memory_ceiling", "must be at least as much as memory"));
        }
        (None, Some(_)) => {
            let words = "needs memory beside it: the limit to begin with";
            return Err(problem("memory_ceiling", words));
        }
        (Some(_) | None, _) => {}
    }
    Ok(MemoryPolicy {
        first_bytes: first.map(|size| size.0),
        ceiling_bytes: ceiling.map(|size| size.0),
    })
}

/// What the memory limit is filled in for.
const OF_MEMORY: [&str; 2] = ["{heap_mib}", "{memory_mib}"];
/// How V8 is told the size of its heap; `-` and `_` are the same to it.
const V8_HEAP_SIZES: [&str; 2] = ["max-old-space-size", "max-heap-size"];

/// Whether the heap limit of the agent's runtime follows the memory limit. V8, the one whose deaths
/// of it can be told, takes half of the control group's limit by itself, within bounds
/// (`ResourceConstraints::ConfigureDefaults`), unless it is told a size.
pub(super) fn heap_follows<'a>(
    command: &'a [String],
    env: &'a BTreeMap<String, String>,
    memory: MemoryPolicy,
) -> Result<bool, Problem> {
    let of_command = command.iter().enumerate();
    let of_command = of_command.map(|(index, text)| (format!("command[{index}]"), text));
    let of_env = env.iter().map(|(name, text)| (format!("env.{name}"), text));
    let mut texts = Vec::new();
    for (setting, text) in of_command.chain(of_env) {
        if let Some(field) = OF_MEMORY.iter().find(|field| text.contains(**field)) {
            if memory.first_bytes.is_none() {
                let words = format!("{field} in it needs memory = \"…\" beside it");
                return Err(problem(&setting, words));
            }
            return Ok(true);
        }
        texts.push(text.replace('_', "-"));
    }
    let mut texts = texts.iter();
    Ok(!texts.any(|text| V8_HEAP_SIZES.iter().any(|option| text.contains(option))))
}

pub(super) fn breaker_of(table: &RestartTable) -> Result<BreakerPolicy, Problem> {
    let policy = BreakerPolicy { window: table.window.0, intensity: *table.intensity };
    if policy.window < WINDOW_MIN {
        return Err(problem("restart.window", "must be at least 10m"));
    }
    if policy.intensity == 0 {
        return Err(problem("restart.intensity", "must be at least 1"));
    }
    Ok(policy)
}

pub(super) fn policy_of(
    idle: &IdleTable,
    start: &StartTable,
    turn: &TurnTable,
    stop: &StopTable,
) -> Result<AgentPolicy, Problem> {
    let standard = AgentPolicy::default();
    let policy = AgentPolicy {
        stop_after: idle.stop_after.0,
        ready_within: start.ready_within.0,
        stuck_after: turn.stuck_after.0,
        turn_within: turn.within.0,
        attempts: *turn.attempts,
        retry: match *turn.retry {
            Retry::Safe => RetrySafety::Safe,
            Retry::Ask => RetrySafety::Ask,
        },
        drain_within: stop.drain_within.0,
        stop_grace: stop.grace.0,
        reattach_within: standard.reattach_within,
        ..standard
    };
    let positive = [
        ("idle.stop_after", policy.stop_after),
        ("start.ready_within", policy.ready_within),
        ("turn.stuck_after", policy.stuck_after),
        ("turn.within", policy.turn_within),
    ];
    for (setting, span) in positive {
        if span.is_zero() {
            return Err(problem(setting, "must be longer than nothing"));
        }
    }
    if !(1..=limits::ATTEMPTS_MAX).contains(&policy.attempts) {
        return Err(problem("turn.attempts", format!("must be 1 to {}", limits::ATTEMPTS_MAX)));
    }
    Ok(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follows(texts: &[&str]) -> Result<bool, String> {
        let texts: Vec<String> = texts.iter().map(|text| text.to_string()).collect();
        let memory = MemoryPolicy { first_bytes: Some(512 << 20), ceiling_bytes: None };
        heap_follows(&texts, &BTreeMap::new(), memory).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn a_heap_follows_the_memory_limit_unless_it_is_fixed_at_a_number() {
        assert_eq!(follows(&["node", "agent.mjs"]), Ok(true));
        assert_eq!(follows(&["node", "--max-old-space-size={heap_mib}"]), Ok(true));
        assert_eq!(follows(&["node", "--max-old-space-size=256"]), Ok(false));
        assert_eq!(follows(&["node", "agent.mjs", "--max_old_space_size=256"]), Ok(false));
        assert_eq!(follows(&["deno", "--v8-flags=--max-heap-size=256"]), Ok(false));
        let unlimited = heap_follows(&[], &BTreeMap::new(), MemoryPolicy::default());
        assert!(unlimited.is_ok(), "nothing is filled in, and nothing asked for");
    }
}
