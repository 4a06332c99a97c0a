//! The verbs of a story: from a step's words to an event, or to time, settings and disasters.
//!
//! Owner: `main`. Invariant: a step that is not understood fails the story and is named. Absent:
//! what follows (`world`).

use dormouse_core::cause::Cause;
use dormouse_core::event::{
    AgentState, Attachment, CheckpointOffer, Event, FilesProblem, FilesProgress, RolloutRequest,
    SessionRequest, Setup, Submission, TurnOutcome, UploadSubmission,
};
use dormouse_core::evidence::{AskedBy, End, Evidence, OomVictim};
use dormouse_core::id::{BootId, InstanceId, RevisionNumber, SessionId, Subject, TurnId};
use dormouse_core::manifest::{ContentId, FileKind, Sha256Hash};
use dormouse_core::policy::{AgentPolicy, AgentSetup, Canary, RetrySafety};
use dormouse_core::record::Idempotency;
use dormouse_core::time::millis;

use crate::words::{self, number, span};
use crate::world::World;

pub(crate) fn run(world: &mut World, step: &str) {
    let words = words::words(step);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if set(world, &words) {
        return;
    }
    world.note_step(step);
    let is_known = pass(world, &words)
        || config(world, &words)
        || request(world, &words)
        || with_instance(world, &words, outside)
        || with_instance(world, &words, files)
        || with_instance(world, &words, turn)
        || with_instance(world, &words, exit);
    assert!(is_known, "this is not a step: {step:?}");
}

/// What an operator has set before the daemon starts.
fn set(world: &mut World, words: &[&str]) -> bool {
    match words {
        ["agent", name, settings @ ..] if name.ends_with(':') => {
            let mut policy = AgentPolicy::default();
            for setting in settings.chunks(2) {
                let [key, value] = setting else { panic!("a setting has a value: {setting:?}") };
                set_limit(&mut policy, key, value);
            }
            let setup = AgentSetup::only(policy);
            world.agents.insert(name.trim_end_matches(':').parse().unwrap(), setup);
        }
        ["node:", settings @ ..] => {
            let mut rest = settings;
            while !rest.is_empty() {
                rest = match rest {
                    ["starts", "at", "once", n, rest @ ..] => {
                        world.node.starts_at_once = number(n);
                        rest
                    }
                    ["queue", n, "messages", rest @ ..] => {
                        world.node.queue_messages_max = number(n);
                        rest
                    }
                    ["queue", n, "bytes", rest @ ..] => {
                        world.node.queue_bytes_max = number(n);
                        rest
                    }
                    _other => panic!("not a setting of a node: {rest:?}"),
                };
            }
        }
        _other => return false,
    }
    true
}

fn set_limit(policy: &mut AgentPolicy, key: &str, value: &str) {
    match key {
        "idle" => policy.stop_after = span(value),
        "ready" => policy.ready_within = span(value),
        "stuck" => policy.stuck_after = span(value),
        "turn" => policy.turn_within = span(value),
        "attempts" => policy.attempts = number(value),
        "drain" => policy.drain_within = span(value),
        "grace" => policy.stop_grace = span(value),
        "reattach" => policy.reattach_within = span(value),
        "memory" => policy.memory.first_bytes = Some(mebibytes(value)),
        "ceiling" => policy.memory.ceiling_bytes = Some(mebibytes(value)),
        "files" if value == "inputs" => {
            (policy.files.has_inputs, policy.files.is_kept) = (true, true);
        }
        "files" if value == "kept" => policy.files.is_kept = true,
        "retry" if value == "ask" => policy.retry = RetrySafety::Ask,
        _other => panic!("not a setting of an agent: {key} {value}"),
    }
}

fn mebibytes(text: &str) -> u64 {
    let mebibytes: u64 = text.strip_suffix("MiB").and_then(|n| n.parse().ok()).expect("MiB");
    mebibytes << 20
}

/// A new config: without an agent, or with it again; or of one agent a new revision with the same
/// limits, and maybe a canary turn.
fn config(world: &mut World, words: &[&str]) -> bool {
    let (name, revision, canary) = match words {
        ["config", "without", name] => {
            let out = world.agents.remove_entry(*name).expect("the agent is configured");
            world.taken_out.extend([out]);
            return reload(world);
        }
        ["config", "with", name] => {
            let back = world.taken_out.remove_entry(*name).expect("the agent was taken out");
            world.agents.extend([back]);
            return reload(world);
        }
        ["config", name, "revision", revision] => (name, revision, None),
        ["config", name, "revision", revision, "canary", expects] => {
            let session = format!("{name}/canary").parse().unwrap();
            let expects = Some((*expects).to_owned());
            (name, revision, Some(Canary { session, expects }))
        }
        _other => return false,
    };
    let setup = world.agents.get_mut(*name).expect("the agent is configured");
    let policy = setup.policies[&setup.wanted].clone();
    setup.wanted = RevisionNumber(number(revision));
    setup.policies.insert(setup.wanted, policy);
    setup.canary = canary;
    reload(world)
}

fn reload(world: &mut World) -> bool {
    let setup = Box::new(Setup { node: world.node.clone(), agents: world.agents.clone() });
    let request = world.next_request();
    world.handle(Event::Configured { request, setup });
    true
}

/// Time, and what befalls the daemon itself.
fn pass(world: &mut World, words: &[&str]) -> bool {
    match words {
        [later] if later.starts_with('+') => world.pass(span(&later[1..])),
        ["nothing", "runs", "for", long] => world.stand_still(span(long)),
        ["wall", "clock", by] => world.move_wall_clock(span(&by[1..]), by.starts_with('-')),
        ["the", "daemon", "dies", "and", "comes", "back", rest @ ..] => {
            match rest {
                [] => {}
                ["without", "agent", name] => {
                    world.agents.remove(*name).expect("the agent was configured");
                }
                _other => return false,
            }
            world.restart_daemon();
        }
        ["the", "daemon", "is", "told", "to", "end"] => world.drain(),
        _other => return false,
    }
    true
}

fn request(world: &mut World, words: &[&str]) -> bool {
    let operator = || "ops".parse::<Subject>().unwrap();
    let event = match words {
        ["rollout", agent, what] => Event::RolloutRequested {
            request: world.next_request(),
            agent: agent.parse().unwrap(),
            what: match *what {
                "pauses" => RolloutRequest::Pause,
                "resumes" => RolloutRequest::Resume,
                "aborts" => RolloutRequest::Abort,
                "retries" => RolloutRequest::Retry,
                other => panic!("a rollout does not {other}"),
            },
            by: operator(),
        },
        ["send", message, "to", session, rest @ ..] => {
            let submission = submission(world, message, session, rest);
            Event::MessageSubmitted { request: world.next_request(), submission }
        }
        ["redrive", message, "as", new] => Event::RedriveRequested {
            request: world.next_request(),
            dead: world.store.dead_letter(words::message(message)).expect("it is dead"),
            new_id: words::message(new),
            by: operator(),
        },
        ["put", path, "into", session] => put(world, path, session, true),
        ["delete", path, "of", session] => put(world, path, session, false),
        ["restore", session, "to", checkpoint] => Event::RestoreRequested {
            request: world.next_request(),
            session: session.parse().unwrap(),
            checkpoint: number(checkpoint),
            by: operator(),
        },
        ["drop", message] => {
            let message = words::message(message);
            Event::DropRequested {
                request: world.next_request(),
                session: world.store.messages[&message].record.session.clone(),
                message,
                is_dead: world.store.is_dead(message),
                by: operator(),
            }
        }
        [verb @ ("wake" | "stop" | "restart"), session] => Event::SessionRequested {
            request: world.next_request(),
            session: session.parse().unwrap(),
            what: match *verb {
                "wake" => SessionRequest::Wake,
                "stop" => SessionRequest::Stop,
                _restart => SessionRequest::Restart,
            },
            by: operator(),
        },
        _other => return false,
    };
    if let Some(session) = event.session() {
        world.focus_on(session);
    }
    world.handle(event);
    true
}

fn put(world: &mut World, path: &str, session: &str, is_there: bool) -> Event {
    let content = ContentId::Sha256(Sha256Hash::of(b"1,2"));
    let upload = UploadSubmission {
        session: session.parse().unwrap(),
        subject: "tom".parse().unwrap(),
        is_operator: false,
        path: path.parse().unwrap(),
        file: is_there.then_some(FileKind::File { bytes: 3, content, is_executable: false }),
    };
    Event::UploadSubmitted { request: world.next_request(), upload }
}

fn submission(world: &World, message: &str, session: &str, rest: &[&str]) -> Submission {
    let session: SessionId = session.parse().unwrap();
    let mut new = Submission {
        id: words::message(message),
        session: session.clone(),
        subject: "tom".parse().unwrap(),
        is_operator: false,
        text: "hello".to_owned(),
        attachments: Vec::new(),
        idempotency: None,
        prior: None,
    };
    let mut key = None;
    for option in rest.chunks(2) {
        match option {
            ["by", subject] => new.subject = subject.parse().unwrap(),
            ["as", "operator"] => new.is_operator = true,
            ["with", path] => {
                let (path, file) = (path.parse().unwrap(), FileKind::Folder);
                new.attachments.push(Attachment { path, file });
            }
            ["saying", text] => new.text = (*text).to_owned(),
            ["key", known] => key = Some((*known).to_owned()),
            _other => panic!("a message is not sent with {option:?}"),
        }
    }
    if let Some(key) = key {
        new.prior = world.store.prior(&new.subject, &key);
        new.idempotency = Some(Idempotency { key, digest: format!("{session} {}", new.text) });
    }
    new
}

type OfInstance = fn(&mut World, &[&str], InstanceId) -> Option<Event>;

/// The newest instance of the session in question, or the one that is named at the end.
fn with_instance(world: &mut World, words: &[&str], verbs: OfInstance) -> bool {
    let (words, named) = match words {
        [words @ .., "from", name] => (words, Some(*name)),
        _other => (words, None),
    };
    let (session, generation) = match named.map(|name| name.split_once('#').unwrap_or((name, ""))) {
        Some((session, generation)) => (Some(session.parse().unwrap()), generation),
        None => (session_of_message(world, words), ""),
    };
    if let Some(session) = session {
        world.focus_on(&session);
    }
    let mut instance = world.instance();
    if !generation.is_empty() {
        instance.generation.0 = number(generation);
    }
    let Some(event) = verbs(world, words, instance) else { return false };
    world.handle(event);
    true
}

fn session_of_message(world: &World, words: &[&str]) -> Option<SessionId> {
    let name = match words {
        ["agent", "answers" | "fails", name, ..] | ["agent", "says", _, "of", name, ..] => name,
        _other => return None,
    };
    let kept = world.store.messages.get(&turn_of(world, name).message)?;
    Some(kept.record.session.clone())
}

/// `m1` is its newest attempt, `m1.2` a certain one.
fn turn_of(world: &World, name: &str) -> TurnId {
    if name.contains('.') {
        return words::turn(name);
    }
    let message = words::message(name);
    let attempt = world.store.messages.get(&message).map_or(1, |kept| kept.attempts);
    TurnId { message, attempt }
}

/// What the driver, the bridge and its connection do.
fn outside(_world: &mut World, words: &[&str], instance: InstanceId) -> Option<Event> {
    Some(match words {
        ["driver", "starts"] => Event::InstanceStarted { instance },
        ["driver", "cannot", "start", why] => {
            Event::InstanceStartFailed { instance, error: (*why).to_owned() }
        }
        ["bridge", "attaches", rest @ ..] => attached(instance, rest),
        ["bridge", "detaches"] => Event::BridgeDetached { instance, boot: BootId(1) },
        ["bridge", "detaches", "boot", boot] => {
            Event::BridgeDetached { instance, boot: BootId(number(boot)) }
        }
        ["ready"] => Event::InstanceReady { instance },
        _other => return None,
    })
}

fn attached(instance: InstanceId, words: &[&str]) -> Event {
    let (mut boot, mut agent, mut held) = (BootId(1), AgentState::NotLaunched, Vec::new());
    let mut rest = words;
    while !rest.is_empty() {
        rest = match rest {
            ["ready", rest @ ..] => {
                agent = AgentState::Ready;
                rest
            }
            ["starting", rest @ ..] => {
                agent = AgentState::Starting;
                rest
            }
            ["boot", number, rest @ ..] => {
                boot = BootId(words::number(number));
                rest
            }
            ["holding", turn, rest @ ..] => {
                held.push(words::turn(turn));
                rest
            }
            _other => panic!("a bridge does not attach with {rest:?}"),
        };
    }
    Event::BridgeAttached { instance, boot, agent, held }
}

/// What is said of its files, by the daemon and by its bridge.
fn files(world: &mut World, words: &[&str], instance: InstanceId) -> Option<Event> {
    let problem = |cause, why: &str, retryable| {
        Err(FilesProblem { cause, message: why.to_owned(), retryable })
    };
    let version = words::version;
    Some(match words {
        ["inputs", "are", name, rest @ ..] => {
            let look = if let ["look", look] = rest { number(look) } else { world.look };
            Event::InputsListed { instance, look, outcome: Ok(words::inputs(name)) }
        }
        ["inputs", "lack", what] => {
            let outcome = problem(Cause::InputMissing, what, false);
            Event::InputsListed { instance, look: world.look, outcome }
        }
        ["inputs", "cannot", "be", "listed", why] => {
            let outcome = problem(Cause::SyncFailed, why, true);
            Event::InputsListed { instance, look: world.look, outcome }
        }
        ["files", "come", done, "of", files] => {
            let (done_files, files) = (number(done), number(files));
            let progress = FilesProgress { done_files, files, done_bytes: 0, bytes: 0 };
            Event::FilesProgressed { instance, progress }
        }
        ["files", "synced", name] => Event::FilesSynced { instance, version: version(name) },
        ["sync", name, "fails", why, rest @ ..] => {
            let retryable = rest == ["retryable"];
            let problem = problem(Cause::SyncFailed, why, retryable).unwrap_err();
            Event::FilesSyncFailed { instance, version: version(name), problem }
        }
        ["checkpoint", "offered", "lineage", lineage, "uploads", uploads] => {
            let offer = CheckpointOffer {
                lineage: number(lineage),
                uploads: number(uploads),
                manifest: words::inputs("nothing"),
                files: 2,
                bytes: 10,
                turn: None,
            };
            Event::CheckpointOffered { request: world.next_request(), instance, offer }
        }
        _other => return None,
    })
}

/// What the agent says.
fn turn(world: &mut World, words: &[&str], instance: InstanceId) -> Option<Event> {
    Some(match words {
        ["agent", "says", text, "of", name, rest @ ..] => {
            let at = match rest {
                [] => None,
                ["at", at] => Some(number(at)),
                _other => panic!("a piece is not said {rest:?}"),
            };
            let turn = turn_of(world, name);
            let offset = world.say(turn, at, text);
            Event::TurnProgressed { instance, turn, offset, text: (*text).to_owned() }
        }
        ["agent", "answers", name, text, rest @ ..] => {
            let exit_code = match rest {
                [] => None,
                ["exit", "code", code] => Some(number(code)),
                _other => panic!("nothing is answered {rest:?}"),
            };
            let outcome = TurnOutcome::Answered { text: (*text).to_owned(), exit_code };
            Event::TurnEnded { instance, turn: turn_of(world, name), outcome }
        }
        ["agent", "fails", name, why, rest @ ..] => {
            let cause = match rest {
                ["for", "memory"] => Cause::OomLimit,
                ["for", "a", "child's", "memory"] => Cause::OomChild,
                ["for", "the", "machine's", "memory"] => Cause::OomHost,
                [] | ["retryable"] => Cause::AgentError,
                _other => panic!("no turn fails {rest:?}"),
            };
            let outcome = TurnOutcome::Failed {
                cause,
                message: (*why).to_owned(),
                retryable: !rest.is_empty(),
                exit_code: None,
            };
            Event::TurnEnded { instance, turn: turn_of(world, name), outcome }
        }
        ["agent", "holds", name, "for", long] => {
            let for_ms = millis(span(long));
            Event::HoldTaken { instance, name: (*name).to_owned(), for_ms }
        }
        _other => return None,
    })
}

/// How the instance ended.
fn exit(_world: &mut World, words: &[&str], instance: InstanceId) -> Option<Event> {
    let (end, rest) = match words {
        ["agent", "exits", "with", code, rest @ ..] => (End::Exited { code: number(code) }, rest),
        ["agent", "dies", "of", "signal", signal, rest @ ..] => {
            (End::Signaled { signal: number(signal) }, rest)
        }
        ["agent", "cannot", "be", "executed", error, rest @ ..] => {
            (End::LaunchFailed { error: (*error).to_owned() }, rest)
        }
        ["never", "launched", rest @ ..] => (End::NeverLaunched, rest),
        ["bridge", "is", "lost", rest @ ..] => (End::BridgeLost, rest),
        _other => return None,
    };
    Some(Event::InstanceExited { instance, evidence: evidence(end, rest) })
}

fn evidence(end: End, words: &[&str]) -> Evidence {
    let mut evidence = Evidence::bare(end);
    let mut rest = words;
    while !rest.is_empty() {
        rest = match rest {
            ["oom", kills, rest @ ..] => {
                evidence.oom_kills = Some(number(kills));
                evidence.oom_victim = (evidence.oom_kills > Some(0)).then_some(OomVictim::Main);
                rest
            }
            ["somebody", "oom", kills, rest @ ..] => {
                evidence.oom_kills = Some(number(kills));
                rest
            }
            ["child", "oom", kills, rest @ ..] => {
                evidence.oom_kills = Some(number(kills));
                evidence.oom_victim = Some(OomVictim::Child);
                rest
            }
            ["asked", "by", who, rest @ ..] => {
                evidence.asked_by = Some(match *who {
                    "daemon" => AskedBy::Daemon,
                    "driver" => AskedBy::Driver,
                    "signal" => AskedBy::Signal,
                    "orphan-limit" => AskedBy::OrphanLimit,
                    _other => panic!("nobody is called {who:?}"),
                });
                rest
            }
            ["grace", "ran", "out", rest @ ..] => {
                evidence.grace_ran_out = true;
                rest
            }
            ["after", uptime, rest @ ..] => {
                evidence.uptime_ms = Some(millis(span(uptime)));
                rest
            }
            _other => panic!("an exit does not show {rest:?}"),
        };
    }
    evidence
}
