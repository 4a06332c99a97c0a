//! From an agent's tables to the core's policies, checked.
//!
//! Owner: `config::parse`. Invariant: a value out of bounds is refused with its setting's name.
//! Absent: the tables' forms.

use std::time::Duration;

use dormouse_bridge::frames::HEAP_PERCENT_DEFAULT;
use dormouse_core::breaker::{BreakerPolicy, WINDOW_MIN};
use dormouse_core::limits;
use dormouse_core::policy::{AgentPolicy, RetrySafety};
use dormouse_core::sizing::MemoryPolicy;

use super::units::{Size, Span};
use super::{IdleTable, Problem, RestartTable, Retry, StartTable, StopTable, TurnTable, problem};

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

/// "75%".
pub(super) fn heap_percent(text: Option<&str>) -> Result<u32, Problem> {
    let Some(text) = text else { return Ok(HEAP_PERCENT_DEFAULT) };
    let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
    percent.filter(|percent| (1..=100).contains(percent)).ok_or_else(|| {
        let words = format!("'{text}' is no share of the memory limit: write 1% to 100%");
        problem("heap", words)
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
    texts: impl Iterator<Item = &'a String> + Clone,
    memory: MemoryPolicy,
) -> Result<bool, Problem> {
    let is_of_memory = |text: &&String| OF_MEMORY.iter().any(|field| text.contains(field));
    if let Some(text) = texts.clone().find(is_of_memory) {
        if memory.first_bytes.is_none() {
            let words = format!("'{text}' needs memory = \"…\" beside it");
            return Err(problem("command and env", words));
        }
        return Ok(true);
    }
    let mut texts = texts.map(|text| text.replace('_', "-"));
    Ok(!texts.any(|text| V8_HEAP_SIZES.iter().any(|option| text.contains(option))))
}

pub(super) fn breaker_of(table: &RestartTable) -> Result<BreakerPolicy, Problem> {
    let standard = BreakerPolicy::default();
    let policy = BreakerPolicy {
        window: table.window.as_ref().map_or(standard.window, |span| span.0),
        intensity: table.intensity.unwrap_or(standard.intensity),
    };
    if policy.window < WINDOW_MIN {
        return Err(problem("restart.window", "must be at least 10m"));
    }
    if policy.intensity == 0 {
        return Err(problem("restart.intensity", "must be at least 1"));
    }
    Ok(policy)
}

pub(super) fn policy_of(
    idle: IdleTable,
    start: StartTable,
    turn: TurnTable,
    stop: StopTable,
) -> Result<AgentPolicy, Problem> {
    let standard = AgentPolicy::default();
    let or = |span: Option<Span>, default: Duration| span.map_or(default, |span| span.0);
    let policy = AgentPolicy {
        stop_after: or(idle.stop_after, standard.stop_after),
        ready_within: or(start.ready_within, standard.ready_within),
        stuck_after: or(turn.stuck_after, standard.stuck_after),
        turn_within: or(turn.within, standard.turn_within),
        attempts: turn.attempts.unwrap_or(standard.attempts),
        retry: match turn.retry {
            None | Some(Retry::Safe) => RetrySafety::Safe,
            Some(Retry::Ask) => RetrySafety::Ask,
        },
        drain_within: or(stop.drain_within, standard.drain_within),
        stop_grace: or(stop.grace, standard.stop_grace),
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
        heap_follows(texts.iter(), memory).map_err(|problem| format!("{problem:?}"))
    }

    #[test]
    fn a_heap_follows_the_memory_limit_unless_it_is_fixed_at_a_number() {
        assert_eq!(follows(&["node", "agent.mjs"]), Ok(true));
        assert_eq!(follows(&["node", "--max-old-space-size={heap_mib}"]), Ok(true));
        assert_eq!(follows(&["node", "--max-old-space-size=256"]), Ok(false));
        assert_eq!(follows(&["node", "agent.mjs", "--max_old_space_size=256"]), Ok(false));
        assert_eq!(follows(&["deno", "--v8-flags=--max-heap-size=256"]), Ok(false));
        let unlimited = heap_follows([].iter(), MemoryPolicy::default());
        assert!(unlimited.is_ok(), "nothing is filled in, and nothing asked for");
    }
}
