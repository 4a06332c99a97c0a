//! Of a task's containers, the one whose end was the task's.
//!
//! Owner: `ecs`. Invariants: the times decide where all have one; then who has a reason; then who
//! has an exit code that no stop gives; a choice that rests on less is not sure, and says so.
//! Absent: what the end means.

use dormouse_core::time::Wall;

use super::super::place::Place;
use super::super::words::says_out_of_memory;
use super::task::SIGKILLED;

const SIGTERMED: i32 = 143;

/// Which container's end is the task's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decider {
    pub(super) index: usize,
    pub(super) is_sure: bool,
}

fn is_essential(definition: Option<&Place<'_>>, container: &Place<'_>) -> Option<bool> {
    let name = container.key("name").text()?;
    let all = definition?.key("containerDefinitions").items();
    let it = all.iter().find(|candidate| candidate.key("name").text() == Some(name))?;
    // As ECS has it: essential unless it is said not to be.
    Some(it.key("essential").truth().unwrap_or(true))
}

pub(super) fn decider(containers: &[Place<'_>], definition: Option<&Place<'_>>) -> Option<Decider> {
    let sure = |index| Some(Decider { index, is_sure: true });
    if containers.len() <= 1 {
        return if containers.is_empty() { None } else { sure(0) };
    }
    let code = |index: usize| containers[index].key("exitCode").exit_code();
    let all = 0..containers.len();
    let may_decide: Vec<usize> = all
        .clone()
        .filter(|index| is_essential(definition, &containers[*index]) != Some(false))
        .collect();
    let finished = |index: usize| {
        let container = &containers[index];
        container.key("finishedAt").time().or_else(|| container.key("stoppedAt").time())
    };
    let times: Vec<(Wall, usize)> =
        may_decide.iter().filter_map(|index| Some((finished(*index)?, *index))).collect();
    if times.len() == may_decide.len()
        && let Some((_, first)) = times.iter().min()
    {
        return sure(*first);
    }
    let says_why = |index: usize| containers[index].key("reason").text();
    if let Some(index) =
        may_decide.iter().copied().find(|index| says_why(*index).is_some_and(says_out_of_memory))
    {
        return sure(index);
    }
    if let Some(index) =
        all.clone().find(|index| code(*index).is_none() && says_why(*index).is_some())
    {
        return sure(index);
    }
    by_codes(&may_decide, code, definition.is_some())
}

/// An exit code of its own is no consequence of a stop.
fn by_codes(
    may_decide: &[usize],
    code: impl Fn(usize) -> Option<i32>,
    is_defined: bool,
) -> Option<Decider> {
    let is_consequence = |code: i32| matches!(code, SIGKILLED | SIGTERMED);
    let own: Vec<usize> = may_decide
        .iter()
        .copied()
        .filter(|index| code(*index).is_some_and(|code| !is_consequence(code)))
        .collect();
    let failed: Vec<usize> = own.iter().copied().filter(|index| code(*index) != Some(0)).collect();
    match (failed.as_slice(), own.as_slice()) {
        ([one], _) => Some(Decider { index: *one, is_sure: own.len() == 1 }),
        ([], [one]) => Some(Decider { index: *one, is_sure: is_defined }),
        ([first, ..], _) | ([], [first, ..]) => Some(Decider { index: *first, is_sure: false }),
        ([], []) => {
            let killed = may_decide.iter().copied().find(|index| code(*index) == Some(SIGKILLED));
            let any = killed.or(may_decide.first().copied());
            any.map(|index| Decider { index, is_sure: false })
        }
    }
}
