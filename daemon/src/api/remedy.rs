//! What to change in the config about a cause, as a diff with its effect and the command that
//! checks it.
//!
//! Owner: the API. Invariants: a diff is given only where a number in the config is what stands in
//! the way, and what it takes away is what is in force now; what rises by itself is not asked for.
//! Absent: changing anything; causes for which no setting helps, whose pages say what does.

use std::time::Duration;

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::Confidence;
use dormouse_core::id::SessionId;

use crate::api::shape::{ExitView, MemoryView, Remedy};
use crate::config::{Agent, Prices};

/// Settings are raised by this factor, as the memory limit itself is.
const FACTOR: u64 = 2;

pub(crate) fn remedy(
    session: &SessionId,
    exit: &ExitView,
    memory: Option<&MemoryView>,
    agent: &Agent,
    prices: Option<&Prices>,
) -> Option<Remedy> {
    let Change { setting, from, to, effect, memory_bytes } = match exit.diagnosis.cause {
        Cause::OomLimit | Cause::OomChild => memory_change(exit, memory?, agent)?,
        Cause::OomHeap if agent.policy.heap_follows => memory_change(exit, memory?, agent)?,
        Cause::PidsLimit => {
            let pids = agent.pids_limit?;
            let effect = "the next start may have twice as many processes and threads";
            Change::of("pids", Some(pids.to_string()), (pids * FACTOR).to_string(), effect)
        }
        Cause::StartTimeout => {
            let within = agent.policy.ready_within;
            let toml = |span| format!("{{ ready_within = \"{}\" }}", toml_span(span));
            let effect = "the next start may take twice as long";
            Change::of("start", Some(toml(within)), toml(within * 2), effect)
        }
        _ => return None,
    };
    let mut diff = vec![format!(" [agents.{}]", session.agent())];
    diff.extend(from.map(|value| format!("-{setting} = {value}")));
    diff.push(format!("+{setting} = {to}"));
    let check = format!("dormouse why {session}");
    let monthly_difference = prices
        .zip(memory_bytes)
        .and_then(|(prices, (from, to))| prices.monthly_difference(from, to));
    Some(Remedy { diff, effect: effect.to_owned(), monthly_difference, check })
}

struct Change {
    setting: &'static str,
    from: Option<String>,
    to: String,
    effect: &'static str,
    /// What a session may use at most, before and after.
    memory_bytes: Option<(u64, u64)>,
}

impl Change {
    fn of(setting: &'static str, from: Option<String>, to: String, effect: &'static str) -> Self {
        Self { setting, from, to, effect, memory_bytes: None }
    }
}

fn memory_change(exit: &ExitView, memory: &MemoryView, agent: &Agent) -> Option<Change> {
    let quoted = |bytes: u64| format!("\"{}\"", toml_size(bytes));
    if memory.limit_bytes >= memory.ceiling_bytes {
        let is_the_machine =
            memory.machine_bytes.is_some_and(|machine| memory.ceiling_bytes >= machine);
        if is_the_machine {
            return None;
        }
        let configured = agent.policy.memory.ceiling_bytes.map(quoted);
        let effect = "the limit, which is at its ceiling, may rise once more";
        let to_bytes = memory.ceiling_bytes * FACTOR;
        let change = Change::of("memory_ceiling", configured, quoted(to_bytes), effect);
        return Some(Change { memory_bytes: Some((memory.ceiling_bytes, to_bytes)), ..change });
    }
    if exit.diagnosis.confidence == Confidence::Proved {
        // It has risen by itself.
        return None;
    }
    let effect = "it does not rise by itself, because want of memory is not proved";
    let to_bytes = memory.first_bytes * FACTOR;
    let change = Change::of("memory", Some(quoted(memory.first_bytes)), quoted(to_bytes), effect);
    Some(Change { memory_bytes: Some((memory.first_bytes, to_bytes)), ..change })
}

/// As the config writes it: in the largest unit that leaves nothing over.
fn toml_size(bytes: u64) -> String {
    let units = [(1_u64 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit));
    match unit {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

fn toml_span(span: Duration) -> String {
    match span.as_secs() {
        seconds if seconds > 0 && seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use dormouse_core::diagnosis::own::diagnose_exit;
    use dormouse_core::evidence::{End, Evidence, OomVictim};
    use dormouse_core::id::{AgentName, Generation};
    use dormouse_core::record::{Circumstances, StopReason};
    use dormouse_core::session::phase::Phase;

    use super::*;
    use crate::config;

    const MIB: u64 = 1 << 20;

    fn agent(settings: &str) -> Agent {
        let text = format!("[agents.a]\ndriver = \"fake\"\n{settings}");
        let (config, _) = config::parse(&text, Path::new("dormouse.toml")).unwrap();
        config.agents[&AgentName::new("a").unwrap()].clone()
    }

    fn ended(evidence: Evidence, circumstances: Circumstances) -> ExitView {
        let diagnosis = diagnose_exit(&evidence, &circumstances);
        ExitView {
            generation: Generation(1),
            at_ms: 0,
            phase: Phase::Awake,
            cause: Some(diagnosis.cause),
            message_in_flight: None,
            evidence,
            circumstances,
            diagnosis,
        }
    }

    fn out_of_memory(victim: Option<OomVictim>) -> ExitView {
        let end = End::Signaled { signal: 9 };
        let evidence = Evidence { oom_kills: Some(1), oom_victim: victim, ..Evidence::bare(end) };
        ended(evidence, Circumstances::default())
    }

    fn limit(limit_mib: u64, ceiling_mib: u64, machine_mib: u64) -> MemoryView {
        MemoryView {
            limit_bytes: limit_mib * MIB,
            first_bytes: 512 * MIB,
            ceiling_bytes: ceiling_mib * MIB,
            machine_bytes: Some(machine_mib * MIB),
            because: None,
            since_ms: None,
            peak_survived_bytes: None,
            last_peak_bytes: None,
            last_peak_is_censored: true,
            monthly_difference: None,
        }
    }

    fn diff(exit: &ExitView, memory: &MemoryView, agent: &Agent) -> Option<String> {
        let session = "a/k".parse().unwrap();
        remedy(&session, exit, Some(memory), agent, None).map(|remedy| {
            assert_eq!(remedy.monthly_difference, None, "nothing is said without prices");
            remedy.diff.join("\n")
        })
    }

    #[test]
    fn what_a_higher_limit_may_cost_is_named_where_prices_are_configured() {
        let text = "[prices]\nmemory_gib_month = 3.50\ncurrency = \"USD\"";
        let prices = config::parse(text, Path::new("dormouse.toml")).unwrap().0.prices.unwrap();
        let cost = |exit: &ExitView, memory: &MemoryView, settings: &str| {
            let session = "a/k".parse().unwrap();
            let remedy = remedy(&session, exit, Some(memory), &agent(settings), Some(&prices));
            remedy.unwrap().monthly_difference
        };
        let proved = out_of_memory(Some(OomVictim::Main));
        let at_ceiling = limit(2_048, 2_048, 16_384);
        assert_eq!(
            cost(&proved, &at_ceiling, "memory = \"512MiB\"").as_deref(),
            Some("+2 GiB, about 7.00 USD a month")
        );
        let below = limit(1_024, 2_048, 16_384);
        assert_eq!(
            cost(&out_of_memory(None), &below, "memory = \"512MiB\"").as_deref(),
            Some("+512 MiB, about 1.75 USD a month")
        );
        let forked = Evidence { pids_refused: Some(3), ..Evidence::bare(End::Exited { code: 1 }) };
        let forked = ended(forked, Circumstances::default());
        assert_eq!(cost(&forked, &below, "pids = 64"), None, "processes have no price");
    }

    #[test]
    fn at_its_ceiling_the_ceiling_is_what_has_to_rise() {
        let proved = out_of_memory(Some(OomVictim::Main));
        let implied = agent("memory = \"512MiB\"");
        let at_ceiling = limit(2_048, 2_048, 16_384);
        assert_eq!(
            diff(&proved, &at_ceiling, &implied).unwrap(),
            " [agents.a]\n+memory_ceiling = \"4GiB\""
        );
        let written = agent("memory = \"512MiB\"\nmemory_ceiling = \"1536MiB\"");
        assert_eq!(
            diff(&proved, &limit(1_536, 1_536, 16_384), &written).unwrap(),
            " [agents.a]\n-memory_ceiling = \"1536MiB\"\n+memory_ceiling = \"3GiB\""
        );
        let small_machine = limit(1_000, 1_000, 1_000);
        assert_eq!(diff(&proved, &small_machine, &implied), None, "no number helps there");
    }

    #[test]
    fn a_full_heap_asks_for_a_higher_ceiling_only_where_it_follows_the_limit() {
        let full = Evidence {
            log_tail: "FATAL ERROR: Reached heap limit - JavaScript heap out of memory".to_owned(),
            ..Evidence::bare(End::Signaled { signal: 6 })
        };
        let full = ended(full, Circumstances::default());
        let at_ceiling = limit(2_048, 2_048, 16_384);
        let follows = agent("memory = \"512MiB\"");
        assert_eq!(
            diff(&full, &at_ceiling, &follows).unwrap(),
            " [agents.a]\n+memory_ceiling = \"4GiB\""
        );
        let below = limit(1_024, 2_048, 16_384);
        assert_eq!(diff(&full, &below, &follows), None, "it has risen by itself");
        let fixed = "memory = \"512MiB\"\nenv = { NODE_OPTIONS = \"--max-old-space-size=99\" }";
        assert_eq!(diff(&full, &at_ceiling, &agent(fixed)), None, "another number is at fault");
    }

    #[test]
    fn what_rises_by_itself_is_not_asked_for_and_what_does_not_is() {
        let agent = agent("memory = \"512MiB\"");
        let below = limit(1_024, 2_048, 16_384);
        assert_eq!(diff(&out_of_memory(Some(OomVictim::Main)), &below, &agent), None);
        assert_eq!(
            diff(&out_of_memory(None), &below, &agent).unwrap(),
            " [agents.a]\n-memory = \"512MiB\"\n+memory = \"1GiB\""
        );
    }

    #[test]
    fn other_numbers_that_stand_in_the_way_are_named_and_the_config_takes_them() {
        let agent = agent("pids = 64\nstart = { ready_within = \"90s\" }");
        let forked = Evidence { pids_refused: Some(3), ..Evidence::bare(End::Exited { code: 1 }) };
        let memory = limit(512, 2_048, 16_384);
        let forked = ended(forked, Circumstances::default());
        assert_eq!(diff(&forked, &memory, &agent).unwrap(), " [agents.a]\n-pids = 64\n+pids = 128");
        let stop = Some(StopReason::StartTimeout);
        let slow = ended(
            Evidence::bare(End::Signaled { signal: 15 }),
            Circumstances { stop, ..Circumstances::default() },
        );
        let shown = diff(&slow, &memory, &agent).unwrap();
        assert!(
            shown.ends_with(
                "-start = { ready_within = \"90s\" }\n+start = { ready_within = \"3m\" }"
            )
        );
        let to = shown.lines().find_map(|line| line.strip_prefix('+')).unwrap().to_owned();
        assert_eq!(super::tests::agent(&to).policy.ready_within, Duration::from_secs(180));
        let crashed = ended(Evidence::bare(End::Exited { code: 1 }), Circumstances::default());
        assert_eq!(diff(&crashed, &memory, &agent), None);
    }
}
