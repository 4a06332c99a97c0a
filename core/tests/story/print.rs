//! What the machine did, in the words of a story.
//!
//! Owner: `world`. Invariants: everything that goes out is printed; of what is written, the journal
//! is, and the rest shows in the last lines. Absent: internal ids and absolute times.

use dormouse_core::command::{
    Answer, Command, DeniedBecause, Effects, IgnoredBecause, News, Refusal, RequestOutcome, Write,
};
use dormouse_core::id::RevisionNumber;
use dormouse_core::journal::{Decision, human_span};
use dormouse_core::manifest::FilesVersion;
use dormouse_core::record::MessageState;
use dormouse_core::time::Wall;

use crate::model::Store;
use crate::words::{INPUTS, inputs, message_name, span_text, turn_name};

pub(crate) fn effects(effects: &Effects, now: Wall, has_many_sessions: bool) -> String {
    let mut lines = Vec::new();
    for write in &effects.writes {
        if let Write::InsertDecision(decision) = write {
            lines.push(decision_line(decision, has_many_sessions));
        }
    }
    lines.extend(effects.answers.iter().map(|(_, answer)| format!("answer: {}", told(answer))));
    for notice in &effects.notices {
        let message = message_name(notice.message);
        lines.push(format!("{message} hears: {}", heard(&notice.news, now)));
    }
    lines.extend(effects.commands.iter().map(|command| format!("command: {}", order(command))));
    if effects.stale > 0 {
        lines.push(format!("counted as stale: {}", effects.stale));
    }
    lines.join("\n")
}

fn decision_line(decision: &Decision, has_many_sessions: bool) -> String {
    let Decision { session, from, to, because, .. } = decision;
    let because = with_short_ids(&because.to_string());
    let place = if from == to { from.to_string() } else { format!("{from} → {to}") };
    let session = if has_many_sessions { format!("{session} ") } else { String::new() };
    format!("journal: {session}{place}: {because}")
}

/// Most stories have one revision.
fn in_revision(revision: RevisionNumber) -> String {
    match revision {
        RevisionNumber::FIRST => String::new(),
        later => format!(" in revision {later}"),
    }
}

/// `msg_0000…0007` is called m7 in stories.
fn with_short_ids(text: &str) -> String {
    let mut parts = text.split("msg_");
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (digits, rest) = part.split_at(32);
        let number = u128::from_str_radix(digits, 16).expect("an id has 32 digits");
        short.push_str(&format!("m{number}{rest}"));
    }
    short
}

fn told(answer: &Answer) -> String {
    match answer {
        Answer::Accepted { message, position: 0 } => {
            format!("accepted {}, next", message_name(*message))
        }
        Answer::Accepted { message, position } => {
            format!("accepted {}, behind {position}", message_name(*message))
        }
        Answer::Duplicate { message } => {
            format!("was accepted before, as {}", message_name(*message))
        }
        Answer::Uploaded { number } => format!("will be there, upload {number}"),
        Answer::CheckpointMade { number } => format!("is checkpoint {number}"),
        Answer::Configured => "is in force".to_owned(),
        Answer::Requested(outcome) => outcome_words(*outcome),
        Answer::Refused(refusal) => format!("refused, {}", refusal_words(refusal)),
    }
}

fn outcome_words(outcome: RequestOutcome) -> String {
    match outcome {
        RequestOutcome::Accepted { waiting } => format!("accepted, {waiting} waiting"),
        RequestOutcome::Ignored(because) => {
            let because = match because {
                IgnoredBecause::AlreadyAwake => "already awake",
                IgnoredBecause::AlreadyStarting => "already starting",
                IgnoredBecause::AlreadyAsleep => "already asleep",
                IgnoredBecause::AlreadyStopping => "already stopping",
                IgnoredBecause::AlreadyEnded => "the message has already ended",
                IgnoredBecause::AlreadySo => "already so",
            };
            format!("ignored, {because}")
        }
        RequestOutcome::Denied(because) => match because {
            DeniedBecause::MessagesWaiting { waiting } => {
                format!("denied, {waiting} waiting would start it again")
            }
            DeniedBecause::InFlight => "denied, the message is with the agent".to_owned(),
            DeniedBecause::NoSuchCheckpoint => "denied, there is no such checkpoint".to_owned(),
            DeniedBecause::AgentNotConfigured => "denied, its agent is not configured".to_owned(),
        },
    }
}

fn refusal_words(refusal: &Refusal) -> String {
    match refusal {
        Refusal::UnknownAgent => "no such agent".to_owned(),
        Refusal::NotYourSession => "not your session".to_owned(),
        Refusal::IdempotencyConflict { message } => {
            format!("the key stands for {}, which says something else", message_name(*message))
        }
        Refusal::PastLife => "its life is over".to_owned(),
        Refusal::OtherLineage => "the workspace is to be another one".to_owned(),
        Refusal::NotWhole => "the workspace is not known to be whole".to_owned(),
        Refusal::QueueFull { messages, bytes } => {
            format!("the queue is full with {messages} messages of {bytes} bytes")
        }
    }
}

fn heard(news: &News, now: Wall) -> String {
    let pause = |at: &Wall| match now.until(*at) {
        left if left.is_zero() => "now".to_owned(),
        left => format!("in {}", span_text(left)),
    };
    match news {
        News::Queued { ahead } => format!("queued behind {ahead}"),
        News::Waking { estimate: None } => "waking".to_owned(),
        News::Waking { estimate: Some(estimate) } => {
            format!("waking, about {}", human_span(*estimate))
        }
        News::InLine { ahead } => format!("in the line of starts, behind {ahead}"),
        News::Syncing { progress } => {
            format!("its files come, {} of {}", progress.done_files, progress.files)
        }
        News::Delivered { attempt } => format!("delivered, attempt {attempt}"),
        News::Delta { attempt, offset, text } => format!("\"{text}\" at {offset} of {attempt}"),
        News::Slow { silent } => format!("no progress for {}", human_span(*silent)),
        News::Retrying { attempt, at, cause } => {
            format!("{}; attempt {attempt} is due {} [{cause}]", cause.plain_words(), pause(at))
        }
        News::WaitingToRestart { at, cause } => {
            format!("{}; the next start is due {} [{cause}]", cause.plain_words(), pause(at))
        }
        News::DaemonEnding => "the daemon is ending".to_owned(),
        News::Answered { attempt, text, exit_code: None } => {
            format!("the answer of {attempt}, \"{text}\"")
        }
        News::Answered { attempt, text, exit_code: Some(code) } => {
            format!("the answer of {attempt}, \"{text}\", exit code {code}")
        }
        News::Dead { cause, detail } => format!("given up, {detail} [{cause}]"),
        News::Cancelled => "dropped".to_owned(),
    }
}

fn order(command: &Command) -> String {
    match command {
        Command::StartInstance { instance, revision, memory_limit_bytes } => {
            let memory = memory_limit_bytes.map(|bytes| format!(" with {} MiB", bytes >> 20));
            format!("start {instance}{}{}", memory.unwrap_or_default(), in_revision(*revision))
        }
        Command::AdmitBridge { instance, boot, launch } => {
            let launch =
                launch.map(|revision| format!(", execute the agent{}", in_revision(revision)));
            format!("admit {instance}, boot {}{}", boot.0, launch.unwrap_or_default())
        }
        Command::RefuseBridge { instance, boot, why } => {
            format!("refuse {instance}, boot {}, {why}", boot.0)
        }
        Command::ListInputs { instance, look } => format!("list inputs of {instance}, look {look}"),
        Command::SyncFiles { instance, version } => {
            format!("sync {instance} to {}", version_name(*version))
        }
        Command::LaunchAgent { instance, revision } => {
            format!("launch {instance}{}", in_revision(*revision))
        }
        Command::DeliverTurn { instance, turn } => {
            format!("deliver {} to {instance}", turn_name(*turn))
        }
        Command::AcknowledgeTurn { instance, turn } => {
            format!("acknowledge {} to {instance}", turn_name(*turn))
        }
        Command::StopInstance { instance, grace } => {
            format!("stop {instance}, grace {}", human_span(*grace))
        }
        Command::KillInstance { instance } => format!("kill {instance}"),
        Command::ReleaseInstance { instance } => format!("release {instance}"),
    }
}

/// The inputs by the names that stories give them, and the number of the newest upload.
fn version_name(version: FilesVersion) -> String {
    let name = INPUTS.iter().find(|name| inputs(name) == version.inputs);
    let name = name.expect("stories know no other inputs");
    format!("{name}+{}", version.uploads)
}

/// One effect below its step, in lines that fit into a snapshot.
pub(crate) fn wrapped(line: &str) -> String {
    const COLUMNS: usize = 78;
    let mut text = String::new();
    let mut columns = 0;
    for word in line.split(' ') {
        let width = word.chars().count() + 1;
        if columns == 0 {
            text.push_str("    ");
        } else if columns + width > COLUMNS {
            text.push_str("\n        ");
            columns = 4;
        } else {
            text.push(' ');
        }
        text.push_str(word);
        columns += width;
    }
    text.push('\n');
    text
}

/// Where everything stands at the end.
pub(crate) fn stand(store: &Store) -> String {
    let mut text = String::new();
    for (id, record) in &store.sessions {
        let failures = match record.failures {
            0 => String::new(),
            failures => format!(", failures {failures}"),
        };
        text.push_str(&format!(
            "{id} {}, generation {}{failures}\n",
            record.phase, record.generation
        ));
        let of_session = store.messages.values().filter(|kept| kept.record.session == *id);
        for kept in of_session {
            let name = message_name(kept.record.id);
            let attempts = match kept.attempts {
                0 | 1 => String::new(),
                attempts => format!(", attempts {attempts}"),
            };
            let state = match kept.state {
                MessageState::Pending => "pending".to_owned(),
                MessageState::Leased => "with the agent".to_owned(),
                MessageState::Answered => {
                    format!("answered \"{}\"", kept.reply.as_deref().expect("it was answered"))
                }
                MessageState::Dead => format!("dead [{}]", kept.cause.expect("it has a cause")),
                MessageState::Cancelled => "cancelled".to_owned(),
            };
            text.push_str(&format!("  {name} {state}{attempts}\n"));
        }
    }
    text
}
