//! One life of a Docker container, and what ended it.
//!
//! Owner: `docker`. Invariants: a kill event before the die event is somebody's wish, through
//! Docker; an oom event means the group, so only a death by SIGKILL that nobody asked for is put
//! down to it; no wish is excluded by events that do not reach back far enough.
//! Absent: conclusions.

use dormouse_core::cause::Cause;
use dormouse_core::diagnosis::facts::{Ending, Fact, Facts, HealthCheck, Initiator, Known, Oom};
use dormouse_core::diagnosis::{Confidence, RuledOut};
use dormouse_core::time::Wall;

use super::super::place::Place;
use super::super::remedy::{DockerSetting, Setting};
use super::super::time::{between_ms, lived};
use super::super::words::{init_kind, not_started, start_kind};
use super::super::{End, Step};

/// Docker's, unless the container says otherwise.
const STOP_TIMEOUT_SECONDS_DEFAULT: i64 = 10;
/// A signal this long before the end, beyond the stop timeout, was not what ended it.
const WISH_AGE_MS_MAX: u64 = 60_000;
/// The oom event and the die event of one kill.
const OOM_TO_DIE_MS_MAX: u64 = 10_000;

const SIGINT: i32 = 2;
const SIGQUIT: i32 = 3;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGKILLED: i32 = 137;

#[derive(Debug, Clone)]
pub(super) struct Event<'a> {
    pub(super) at: Wall,
    pub(super) action: String,
    pub(super) id: String,
    pub(super) name: Option<String>,
    pub(super) signal: Option<i32>,
    pub(super) exit_code: Option<i32>,
    pub(super) is_swarm: bool,
    pub(super) place: Place<'a>,
}

/// The events from a start to its die, which is the last.
#[derive(Debug)]
pub(super) struct Life<'e, 'a> {
    pub(super) events: &'e [Event<'a>],
    /// What Docker did next with the container.
    pub(super) after: Option<&'e Event<'a>>,
}

impl<'a> Life<'_, 'a> {
    fn die(&self) -> Option<&Event<'a>> {
        self.events.last()
    }

    fn start(&self) -> Option<&Event<'a>> {
        self.events.first().filter(|event| event.action == "start")
    }

    fn fact(event: &Event<'a>) -> Fact {
        let detail = match (event.signal, event.exit_code) {
            (Some(signal), _) => format!("{} (signal {signal})", event.action),
            (None, Some(code)) => format!("{} (exit code {code})", event.action),
            (None, None) => event.action.clone(),
        };
        event.place.key("Action").fact_of(detail).at(Some(event.at))
    }

    /// The signals that Docker was asked to send, and which may have been meant to end it.
    fn wishes(&self, container: Option<&Place<'_>>) -> Vec<&Event<'a>> {
        let Some(die) = self.die() else { return Vec::new() };
        let own = container.and_then(|container| container.at("Config.StopSignal").text());
        let own = own.and_then(signal_number);
        let age_max = stop_timeout_ms(container).saturating_add(WISH_AGE_MS_MAX);
        let is_stop = |signal: i32| {
            matches!(signal, SIGINT | SIGQUIT | SIGKILL | SIGTERM)
                || Some(signal) == own
                || die.exit_code == Some(128 + signal)
        };
        let is_wish = |event: &&Event<'a>| {
            event.action == "kill"
                && event.signal.is_none_or(is_stop)
                && die.at.0.saturating_sub(event.at.0) <= age_max
        };
        self.events.iter().filter(is_wish).collect()
    }

    fn oom(&self) -> Option<&Event<'a>> {
        let die = self.die()?;
        let is_near = |event: &&Event<'a>| die.at.0.saturating_sub(event.at.0) <= OOM_TO_DIE_MS_MAX;
        self.events.iter().rev().find(|event| event.action == "oom").filter(is_near)
    }

    /// The events reach back far enough to have any wish in them.
    fn is_covered(&self, container: Option<&Place<'_>>) -> bool {
        let reach = stop_timeout_ms(container).saturating_add(WISH_AGE_MS_MAX);
        let first = self.events.first().map(|event| event.at);
        let has_start = self.start().is_some();
        has_start || between_ms(first, self.die().map(|die| die.at)).is_some_and(|ms| ms >= reach)
    }

    fn ruled_out(&self, container: Option<&Place<'_>>) -> Vec<RuledOut> {
        if !self.is_covered(container) || !self.wishes(container).is_empty() {
            return Vec::new();
        }
        let because = "the events have no kill from its start to its end".to_owned();
        let causes = [Cause::StoppedByUser, Cause::StopTimeoutKill];
        causes.map(|cause| RuledOut { cause, because: because.clone() }).into()
    }

    fn is_swarm(&self) -> bool {
        self.events.iter().any(|event| event.is_swarm)
    }
}

fn signal_number(name: &str) -> Option<i32> {
    match name.trim_start_matches("SIG") {
        "HUP" => Some(1),
        "INT" => Some(SIGINT),
        "QUIT" => Some(SIGQUIT),
        "KILL" => Some(SIGKILL),
        "USR1" => Some(10),
        "USR2" => Some(12),
        "TERM" => Some(SIGTERM),
        "WINCH" => Some(28),
        number => number.parse().ok(),
    }
}

fn stop_timeout_ms(container: Option<&Place<'_>>) -> u64 {
    let own = container.and_then(|container| container.at("Config.StopTimeout").integer());
    let seconds = own.filter(|seconds| *seconds >= 0).unwrap_or(STOP_TIMEOUT_SECONDS_DEFAULT);
    u64::try_from(seconds).unwrap_or_default().saturating_mul(1_000)
}

/// Bytes; 0 means that there is none.
fn memory_limit(container: Option<&Place<'_>>) -> Option<Known<u64>> {
    let memory = container?.at("HostConfig.Memory");
    let bytes = u64::try_from(memory.integer()?).ok().filter(|bytes| *bytes > 0)?;
    Some(Known::new(bytes, memory.fact()))
}

fn has_no_limit(container: Option<&Place<'_>>) -> bool {
    container.is_some_and(|it| it.at("HostConfig.Memory").integer() == Some(0))
}

fn setting(container: Option<&Place<'_>>, name: &str) -> Setting {
    Setting::Docker(DockerSetting {
        name: name.to_owned(),
        limit_bytes: memory_limit(container).map(|limit| limit.is),
        swap_bytes: container
            .and_then(|container| container.at("HostConfig.MemorySwap").integer())
            .and_then(|bytes| u64::try_from(bytes).ok())
            .filter(|bytes| *bytes > 0),
        stop_timeout_seconds: container
            .and_then(|container| container.at("Config.StopTimeout").integer()),
    })
}

/// An end whose die event is known.
pub(super) fn end_of_life(life: &Life<'_, '_>, container: Option<&Place<'_>>, name: &str) -> End {
    let mut facts = Facts::default();
    let mut at_most = None;
    let die = life.die();
    let started_at = life.start().map(|event| event.at);
    let ended_at = die.map(|die| die.at);
    if let Some(die) = die
        && let Some(code) = die.exit_code
    {
        let fact = die.place.at("Actor.Attributes.exitCode").fact().at(ended_at);
        facts.end = Some(Known::new(Ending::ContainerCode { code }, fact));
    }
    add_uptime(&mut facts, started_at, ended_at);
    add_wish(&mut facts, life, container);
    add_memory(&mut facts, life, container, &mut at_most);
    facts.memory_limit_bytes = memory_limit(container);
    End {
        instance: match started_at {
            Some(_) => format!("{name}, a life in the events"),
            None => format!("{name}, a life that began before the events"),
        },
        started_at,
        ended_at,
        exit_code: die.and_then(|die| die.exit_code),
        facts,
        at_most,
        ruled_out: life.ruled_out(container),
        // The events are in the timeline already.
        timeline: Vec::new(),
        setting: setting(container, name),
    }
}

fn add_uptime(facts: &mut Facts, started_at: Option<Wall>, ended_at: Option<Wall>) {
    facts.uptime_ms = between_ms(started_at, ended_at).map(|ms| {
        let fact = Fact::new("docker", "from its start", lived(ms));
        Known::new(ms, fact)
    });
}

fn add_wish(facts: &mut Facts, life: &Life<'_, '_>, container: Option<&Place<'_>>) {
    let wishes = life.wishes(container);
    let Some(first) = wishes.first() else {
        if !life.is_covered(container) {
            facts
                .missing
                .push("earlier events of Docker: a kill event may be before them".to_owned());
        }
        return;
    };
    let unhealthy =
        life.events.iter().rev().find(|event| event.action == "health_status: unhealthy");
    if let Some(unhealthy) = unhealthy.filter(|_| life.is_swarm()) {
        // Swarm alone replaces what is unhealthy; Docker itself only says so.
        facts.health = Some(Known::new(HealthCheck::Container, Life::fact(unhealthy)));
    }
    facts.more.extend(unhealthy.map(Life::fact));
    facts.asked_by = Some(Known::new(Initiator::User, Life::fact(first)));
    let forced = wishes.iter().find(|wish| wish.signal == Some(SIGKILL));
    let was_polite = first.signal.is_some_and(|signal| signal != SIGKILL);
    let is_killed = life.die().and_then(|die| die.exit_code) == Some(SIGKILLED);
    if let Some(forced) = forced.filter(|_| was_polite && is_killed) {
        facts.grace_ran_out = Some(Known::new((), Life::fact(forced)));
    }
    let after = life.after.filter(|after| matches!(after.action.as_str(), "stop" | "destroy"));
    facts.more.extend(after.map(Life::fact));
    facts.missing.push("who asked Docker for it: its events do not name the client".to_owned());
}

fn add_memory(
    facts: &mut Facts,
    life: &Life<'_, '_>,
    container: Option<&Place<'_>>,
    at_most: &mut Option<Confidence>,
) {
    let Some(oom) = life.oom() else {
        // A mark in inspect may be of a later life; and events without this one prove something
        // only where they have the whole life.
        if life.start().is_some()
            && let Some(die) = life.die()
        {
            let words = "none from its start to its end";
            let fact = Fact::new("docker events", "oom", words).at(Some(die.at));
            facts.oom = Some(Known::new(Oom::None, fact));
        }
        return;
    };
    let is_killed = life.die().and_then(|die| die.exit_code) == Some(SIGKILLED);
    let was_asked = facts.asked_by.is_some();
    let is = match (was_asked, is_killed) {
        (false, true) if has_no_limit(container) => {
            *at_most = Some(Confidence::Likely);
            Oom::Host
        }
        (false, true) if life.is_covered(container) && is_itself(container) => Oom::Main,
        _ => Oom::Somebody,
    };
    facts.oom = Some(Known::new(is, Life::fact(oom)));
    facts
        .missing
        .push("its peak of memory: Docker keeps none of a container that ended".to_owned());
}

/// Its process 1 is the program: a shell or an init would hand on the 137 of a child as its own.
fn is_itself(container: Option<&Place<'_>>) -> bool {
    const WRAPPERS: [&str; 9] =
        ["sh", "bash", "dash", "ash", "zsh", "tini", "dumb-init", "catatonit", "docker-init"];
    let Some(container) = container else { return false };
    let path = container.key("Path").text();
    let name = path.map(|path| path.rsplit('/').next().unwrap_or(path));
    let has_init = container.at("HostConfig.Init").truth() == Some(true);
    name.is_some_and(|name| !WRAPPERS.contains(&name) && !name.ends_with("entrypoint.sh"))
        && !has_init
}

/// An end of which only inspect tells.
pub(super) fn end_by_inspect(container: &Place<'_>, name: &str) -> End {
    let state = container.key("State");
    let (started_at, ended_at) = (state.key("StartedAt").time(), state.key("FinishedAt").time());
    let code = state.key("ExitCode");
    let mut facts = Facts { memory_limit_bytes: memory_limit(Some(container)), ..Facts::default() };
    let (mut at_most, mut ruled_out) = (None, Vec::new());
    if let Some(read) = code.exit_code() {
        facts.end =
            Some(Known::new(Ending::ContainerCode { code: read }, code.fact().at(ended_at)));
    }
    add_uptime(&mut facts, started_at, ended_at);
    let mark = state.key("OOMKilled");
    match mark.truth() {
        Some(true) if has_no_limit(Some(container)) => {
            at_most = Some(Confidence::Likely);
            let is = if code.exit_code() == Some(SIGKILLED) { Oom::Host } else { Oom::Somebody };
            facts.oom = Some(Known::new(is, mark.fact()));
        }
        Some(true) => facts.oom = Some(Known::new(Oom::Somebody, mark.fact())),
        Some(false) => ruled_out.push(RuledOut {
            cause: Cause::OomLimit,
            because: format!("Docker counted no out-of-memory kill ({} = false)", mark.name()),
        }),
        None => {}
    }
    let is_signal = facts.end.as_ref().is_some_and(|end| end.is.signal().is_some());
    if is_signal {
        facts
            .missing
            .push("who asked for it: docker events of that time would have a kill".to_owned());
    }
    let error = state.key("Error");
    facts.more.extend(error.text().map(|_text| error.fact()));
    let health = state.at("Health.Status");
    facts.more.extend((health.text() == Some("unhealthy")).then(|| health.fact()));
    End {
        instance: format!("{name}, its last life"),
        started_at,
        ended_at,
        exit_code: code.exit_code(),
        facts,
        at_most,
        ruled_out,
        timeline: steps(container),
        setting: setting(Some(container), name),
    }
}

/// Docker could not create or start it: it has an error, and never ran.
pub(super) fn never_started(container: &Place<'_>, name: &str) -> Option<End> {
    let state = container.key("State");
    let error = state.key("Error");
    let text = error.text()?;
    let is_failure = matches!(state.key("ExitCode").exit_code(), Some(125..=128));
    let has_run = state.key("StartedAt").time().is_some() && !is_failure;
    if has_run || state.key("Running").truth() == Some(true) {
        return None;
    }
    let lower = text.to_lowercase();
    let is = if lower.contains("logging driver") || lower.contains("log driver") {
        not_started(Cause::InitFailed, init_kind(text))
    } else {
        not_started(Cause::StartFailed, start_kind(text))
    };
    let facts = Facts { not_started: Some(Known::new(is, error.fact())), ..Facts::default() };
    Some(End {
        instance: format!("{name}, its last start"),
        started_at: None,
        ended_at: state.key("FinishedAt").time().or_else(|| container.key("Created").time()),
        exit_code: state.key("ExitCode").exit_code(),
        facts,
        at_most: None,
        ruled_out: Vec::new(),
        timeline: steps(container),
        setting: setting(Some(container), name),
    })
}

/// It runs again: of the end before, inspect has kept the time and nothing else.
pub(super) fn forgotten_end(container: &Place<'_>, ended_at: Wall, name: &str) -> End {
    let finished = container.at("State.FinishedAt");
    let missing = "the exit code of the life before: docker inspect has only the present one";
    let facts = Facts {
        more: vec![finished.fact().at(Some(ended_at))],
        missing: vec![missing.to_owned()],
        memory_limit_bytes: memory_limit(Some(container)),
        ..Facts::default()
    };
    End {
        instance: format!("{name}, the life before this one"),
        started_at: None,
        ended_at: Some(ended_at),
        exit_code: None,
        facts,
        at_most: None,
        ruled_out: Vec::new(),
        timeline: steps(container),
        setting: setting(Some(container), name),
    }
}

fn steps(container: &Place<'_>) -> Vec<Step> {
    let rows = [
        (container.key("Created"), "created"),
        (container.at("State.StartedAt"), "started"),
        (container.at("State.FinishedAt"), "ended"),
    ];
    rows.into_iter().filter_map(|(place, what)| Step::maybe(place.time(), what)).collect()
}
