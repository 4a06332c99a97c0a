//! The command line as types: what clap parses, and from which help and completions are made.
//!
//! Invariants: every command takes `--json`, `--url`, `--key`, `--data` and `--config`; names are
//! checked here, so that the rest sees only well-formed ones. Absent: what the commands do.

mod config;
mod foreign;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use dormouse_core::id::{AgentName, Generation, IdError, MessageId, SessionId, Subject};
use dormouse_core::session::phase::Phase;

use crate::config::units::parse_span;
pub(crate) use config::ConfigCommand;
pub(crate) use foreign::{Evidence, WhyForeign};

const KEY_DEFAULT: &str = "main";

const TOP_EXAMPLES: &str = "\
Examples:
  dormouse up                                     start everything
  dormouse send python \"print(6*7)\"               write to an agent, see its reply
  dormouse chat python                            talk to it, line by line
  dormouse ps                                     which agents are awake
  dormouse why python/main                        why it is awake, or died, or waits

Exit codes: dormouse help exit-codes";

/// Dormouse keeps AI agents answering: a message wakes its agent, waits on disk until it is
/// answered, and lets the agent sleep again. When an agent dies, Dormouse says why.
#[derive(Debug, Parser)]
#[command(name = "dormouse", version, after_help = TOP_EXAMPLES, arg_required_else_help = true)]
#[command(disable_help_subcommand = false, propagate_version = false)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) common: Common,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub(crate) struct Common {
    /// Print JSON, for programs.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The config file [default: dormouse.toml beside you, else the built-in one]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The data folder [default: $XDG_DATA_HOME/dormouse]
    #[arg(long, global = true, value_name = "FOLDER")]
    pub(crate) data: Option<PathBuf>,
    /// Where the daemon answers [default: where the one of the data folder said that it listens,
    /// else http://127.0.0.1:7766]
    #[arg(long, global = true, value_name = "URL", env = "DORMOUSE_URL")]
    pub(crate) url: Option<String>,
    /// The API key. Better in DORMOUSE_KEY, since others can see command lines
    /// [default: the file operator.key in the data folder, for a daemon on this machine]
    #[arg(long, global = true, value_name = "KEY", env = "DORMOUSE_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
}

impl Common {
    pub(crate) fn options(&self) -> crate::run::Options {
        crate::run::Options { config: self.config.clone(), data: self.data.clone() }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start everything, with sensible defaults and a first API key.
    ///
    /// Runs until Ctrl-C. Agents outlive it, and are taken up again at the next start.
    Up,
    /// Run the daemon under a service manager: nothing is made up at a first start.
    Serve,
    Send(Send),
    Chat(Chat),
    Ps(Ps),
    Logs(Logs),
    Why(WhyAnything),
    /// Start a session's agent although no message waits.
    ///
    /// Example: dormouse wake python/main
    Wake(OneSession),
    /// Stop a session's agent, after the turn that runs.
    ///
    /// Messages that wait stay, and wake it again. Example: dormouse stop python/main
    Stop(OneSession),
    /// Stop a session's agent, after the turn that runs, and start it anew.
    ///
    /// Example: dormouse restart python/main
    Restart(OneSession),
    /// Messages that wait, and dead letters.
    #[command(subcommand)]
    Queue(Queue),
    /// A session's files: put, get, list, and go back to a checkpoint.
    #[command(subcommand)]
    Files(Files),
    /// API keys.
    #[command(subcommand)]
    Keys(Keys),
    /// The config file: check it, see what it would change, list what can be set.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Let another program take over from the daemon, while clients and agents go on.
    Upgrade(Upgrade),
    /// The agents in the config, their revisions, and what they lack on this machine.
    Agents,
    /// Steer how a new revision of an agent comes into use.
    Rollout(Rollout),
    /// What this machine can and cannot enforce, and how to fix it. Needs no daemon.
    Doctor,
    /// Print the completions of a shell.
    ///
    /// Example: dormouse completions bash > ~/.local/share/bash-completion/completions/dormouse
    Completions {
        shell: clap_complete::Shell,
    },
    /// The exit codes, and what a script may conclude from them.
    #[command(long_about = exit_codes_help())]
    ExitCodes,
    /// Run beside an agent. Started by the daemon, not by people.
    #[command(hide = true)]
    Bridge {
        run_folder: PathBuf,
    },
}

fn exit_codes_help() -> String {
    format!("The exit codes of every command:\n\n{}", super::exit::Exit::listed())
}

/// Send a message to an agent and print its reply.
///
/// The message is on disk before the daemon says so, and is kept until it is answered: neither
/// Ctrl-C nor a restart of the daemon loses it. On a terminal the reply appears as it is written;
/// into a pipe or file only the finished reply goes, unless --stream is given. What happens
/// meanwhile is told on standard error.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse send python \"print(6*7)\"
  dormouse send python/tom \"x = 1\"                another session of the same agent
  cat script.py | dormouse send python -           the text from standard input
  ID=$(dormouse send --no-wait python \"print(1)\")  do not wait; later: dormouse why $ID")]
pub(crate) struct Send {
    /// The agent, and after a slash which session of it [KEY default: main]
    #[arg(value_name = "AGENT[/KEY]")]
    pub(crate) session: SessionArgument,
    /// The message; `-` reads standard input. Several words are joined by spaces.
    #[arg(value_name = "TEXT", required = true)]
    pub(crate) text: Vec<String>,
    /// Put a file into the session's workspace first, under its own name.
    #[arg(long, value_name = "PATH")]
    pub(crate) file: Vec<PathBuf>,
    /// Print the message's id as soon as it is accepted, and do not wait for the reply.
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// Print the reply as it is written, even into a pipe. If the agent fails on the way and is
    /// tried again, the reply starts again after a line of its own. With --json: one event per
    /// line.
    #[arg(long, conflicts_with = "no_wait")]
    pub(crate) stream: bool,
    /// The same key with the same text is one message, however often it is sent (for a day at
    /// least).
    #[arg(long, value_name = "TEXT", value_parser = idempotency_key)]
    pub(crate) idempotency_key: Option<String>,
}

/// Talk to an agent, line by line.
///
/// Ctrl-C stops waiting for a reply (the message stays in line), Ctrl-D ends the conversation.
#[derive(Debug, Args)]
#[command(after_help = "Example: dormouse chat python/tom")]
pub(crate) struct Chat {
    /// The agent, and after a slash which session of it [KEY default: main]
    #[arg(value_name = "AGENT[/KEY]")]
    pub(crate) session: SessionArgument,
}

/// List the sessions whose agents are not asleep.
#[derive(Debug, Args)]
#[command(after_help = "Example: dormouse ps --all --agent python")]
pub(crate) struct Ps {
    /// Those that are asleep too.
    #[arg(long, short, conflicts_with = "phase")]
    pub(crate) all: bool,
    /// Only those of one agent.
    #[arg(long, value_name = "AGENT")]
    pub(crate) agent: Option<AgentName>,
    /// Only those in one phase: asleep, starting, awake, draining, stopping, backoff or
    /// tripped.
    #[arg(long)]
    pub(crate) phase: Option<Phase>,
    /// At most so many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
}

/// Show what a session's agent printed.
#[derive(Debug, Args)]
#[command(after_help = "Example: dormouse logs python/main -f")]
pub(crate) struct Logs {
    /// The session.
    #[arg(value_name = "AGENT[/KEY]")]
    pub(crate) session: SessionArgument,
    /// Go on, with what it prints from now on.
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// At most so many of the newest lines.
    #[arg(long, short = 'n', default_value_t = 200, value_name = "N")]
    pub(crate) lines: u32,
}

/// Say why: why it is awake, why it died, why a message waits or failed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse why python                             a session (python/main)
  dormouse why python/tom#3                       its third life
  dormouse why msg_0192f0c4a7b87c3d9e1f2a3b4c5d6e7f  a message
  dormouse why python --markdown > report.md      for a report
  dormouse why docker web                         what Dormouse does not run; also ecs, k8s")]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct WhyAnything {
    #[command(flatten)]
    pub(crate) own: Option<Why>,
    #[command(subcommand)]
    pub(crate) foreign: Option<WhyForeign>,
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    /// A session, one of its lives, or a message.
    #[arg(value_name = "SESSION|SESSION#N|MESSAGE")]
    pub(crate) subject: WhySubject,
    /// As Markdown, for a report.
    #[arg(long)]
    pub(crate) markdown: bool,
}

#[derive(Debug, Args)]
pub(crate) struct OneSession {
    /// The session.
    #[arg(value_name = "AGENT[/KEY]")]
    pub(crate) session: SessionArgument,
}

/// Let another program take over from the daemon of the data folder, on this machine.
///
/// The new program is started beside the daemon, with the daemon's own arguments. It gets the
/// listening socket and the open connections, so that no request fails; turns go on under their
/// bridges. If it does not come up healthy on the same data, the daemon goes on as if nothing had
/// been.
#[derive(Debug, Args)]
#[command(after_help = "Example: dormouse upgrade --exec /opt/dormouse-1.2/dormouse")]
pub(crate) struct Upgrade {
    /// The program that is to take over [default: the one that you are calling]
    #[arg(long, value_name = "PATH")]
    pub(crate) exec: Option<PathBuf>,
    /// Go on even where the new program changes the store, after which the old one cannot read it.
    #[arg(long)]
    pub(crate) migrate: bool,
    /// How long the new program may take until it has read its config, and again until it is
    /// healthy on the data.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = parse_span)]
    pub(crate) within: Duration,
}

impl Upgrade {
    /// Which reads the config anew.
    pub(crate) fn to_this_program(within: Duration) -> Self {
        Self { exec: None, migrate: false, within }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Queue {
    /// List the messages that wait, and the dead letters.
    Ls {
        /// Only those of one session.
        #[arg(value_name = "AGENT[/KEY]")]
        session: Option<SessionArgument>,
        /// Only the dead letters.
        #[arg(long)]
        dead: bool,
        /// At most so many of each.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one message: its text, where it stands, and why.
    Show { message: MessageId },
    /// Try dead letters again. Each becomes a new message at the end of its session's line.
    Redrive {
        #[arg(required = true)]
        message: Vec<MessageId>,
    },
    /// Drop messages for good: those that wait, and dead letters. They will never be answered.
    Drop {
        #[arg(required = true)]
        message: Vec<MessageId>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Files {
    /// List what the session has: its newest checkpoint, and what was put since.
    Ls {
        #[arg(value_name = "AGENT[/KEY]")]
        session: SessionArgument,
    },
    /// Put files, or folders with all that is in them, into the session's workspace.
    ///
    /// They are there for the next turn. Example: dormouse files put python sales.csv --to data/
    Put {
        #[arg(value_name = "AGENT[/KEY]")]
        session: SessionArgument,
        #[arg(value_name = "FILE", required = true)]
        local: Vec<PathBuf>,
        /// Where in the workspace; with a slash at its end, the folder for them [default: its root]
        #[arg(long, value_name = "PATH")]
        to: Option<String>,
    },
    /// Get a file as the newest checkpoint has it, or as it was put since.
    ///
    /// Example: dormouse files get python result.csv -o /tmp/result.csv
    Get {
        #[arg(value_name = "AGENT[/KEY]")]
        session: SessionArgument,
        /// In the workspace.
        path: String,
        /// Where to write it; `-` is standard output [default: its name, here]
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Write over a file that is there.
        #[arg(long)]
        force: bool,
    },
    /// Take a file out of the session's workspace, before the next turn.
    Rm {
        #[arg(value_name = "AGENT[/KEY]")]
        session: SessionArgument,
        /// In the workspace.
        path: String,
    },
    /// List the session's checkpoints, the newest first.
    History {
        #[arg(value_name = "AGENT[/KEY]")]
        session: SessionArgument,
    },
    /// Begin the session's next life with a checkpoint. Stops the life that runs, after its turn.
    ///
    /// What was put or made since is not in it. Example: dormouse files restore python 3
    Restore {
        #[arg(value_name = "AGENT[/KEY]")]
        session: SessionArgument,
        /// Its number, as `dormouse files history` shows it.
        checkpoint: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    /// Make a key and print it, this once.
    ///
    /// Without --operator it reaches only the sessions of its own subject.
    /// Example: KEY=$(dormouse keys create bot --subject bot)
    Create {
        /// What you call it.
        name: String,
        /// Who it stands for [default: its name]
        #[arg(long)]
        subject: Option<Subject>,
        /// It may see and do everything.
        #[arg(long)]
        operator: bool,
        /// Write it into the data folder itself, while no daemon runs: the way to the first key
        /// under a service manager.
        #[arg(long)]
        offline: bool,
    },
    /// List the keys, without their secret part.
    Ls,
    /// Refuse a key from now on.
    Revoke {
        /// As `dormouse keys ls` shows it.
        id: String,
    },
}

/// `AGENT` or `AGENT/KEY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionArgument(pub(crate) SessionId);

impl FromStr for SessionArgument {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        let (agent, key) = text.split_once('/').unwrap_or((text, KEY_DEFAULT));
        SessionId::of(&agent.parse()?, key).map(Self)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WhySubject {
    Session(SessionId),
    Instance(SessionId, Generation),
    Message(MessageId),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WhySubjectError {
    #[error(transparent)]
    Id(#[from] IdError),
    #[error("after # stands the number of a start, for example python/main#3")]
    Generation,
}

impl FromStr for WhySubject {
    type Err = WhySubjectError;
    fn from_str(text: &str) -> Result<Self, WhySubjectError> {
        if text.starts_with("msg_") && !text.contains('/') {
            return Ok(Self::Message(text.parse()?));
        }
        let Some((session, number)) = text.split_once('#') else {
            return Ok(Self::Session(text.parse::<SessionArgument>()?.0));
        };
        let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let generation = number.parse().ok().filter(|_| is_number);
        let generation = generation.ok_or(WhySubjectError::Generation)?;
        Ok(Self::Instance(session.parse::<SessionArgument>()?.0, Generation(generation)))
    }
}

fn idempotency_key(text: &str) -> Result<String, String> {
    let longest = dormouse_core::limits::IDEMPOTENCY_KEY_BYTES_MAX;
    let is_plain = text.bytes().all(|byte| byte.is_ascii_graphic());
    if text.is_empty() || text.len() > longest || !is_plain {
        return Err(format!("it has 1 to {longest} ASCII characters without spaces"));
    }
    Ok(text.to_owned())
}

/// Steer how a new revision of an agent comes into use.
///
/// An edit of an agent's command, environment, memory and the like is a revision. The next start
/// tries it, alone; one that does not start, or answers with an error, is not used by anybody.
#[derive(Debug, Args)]
pub(crate) struct Rollout {
    #[arg(value_enum)]
    pub(crate) what: RolloutVerb,
    /// An agent of the config.
    #[arg(value_name = "AGENT")]
    pub(crate) agent: AgentName,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum RolloutVerb {
    /// Nobody new moves to the revision that the config asks for.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Everybody goes back to the revision that was good before.
    Abort,
    /// Try a revision again that was found bad.
    Retry,
}

impl RolloutVerb {
    pub(crate) fn word(self) -> &'static str {
        match self {
            RolloutVerb::Pause => "pause",
            RolloutVerb::Resume => "resume",
            RolloutVerb::Abort => "abort",
            RolloutVerb::Retry => "retry",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("dormouse").chain(line.split(' ')))
    }

    #[test]
    fn the_definition_holds_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_says_what_it_does_and_fits_a_screen() {
        let mut queue = vec![Arguments::command()];
        while let Some(command) = queue.pop() {
            assert!(command.get_about().is_some(), "{} has no help", command.get_name());
            queue.extend(command.get_subcommands().cloned());
        }
    }

    #[test]
    fn a_session_without_a_key_is_main() {
        for (text, session) in [("python", "python/main"), ("python/tom", "python/tom")] {
            assert_eq!(text.parse::<SessionArgument>().unwrap().0.as_str(), session);
        }
        for text in ["", "/", "python/", "Python", "a/b/c", "a b"] {
            assert!(text.parse::<SessionArgument>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn why_takes_sessions_lives_and_messages() {
        let id = "msg_00000000000000000000000000000001";
        assert_eq!(id.parse(), Ok(WhySubject::Message(MessageId(1))));
        let session: SessionId = "python/main".parse().unwrap();
        assert_eq!("python".parse(), Ok(WhySubject::Session(session.clone())));
        let life = WhySubject::Instance(session, Generation(3));
        assert_eq!("python/main#3".parse(), Ok(life.clone()));
        assert_eq!("python#3".parse(), Ok(life));
        for text in ["python#", "python#x", "python#+3", "msg_1", ""] {
            assert!(text.parse::<WhySubject>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn options_of_all_commands_stand_before_or_behind_the_command() {
        for line in ["--json --url http://x ps", "ps --json --url http://x"] {
            let arguments = parsed(line).unwrap();
            assert!(arguments.common.json && arguments.common.url.as_deref() == Some("http://x"));
        }
    }

    #[test]
    fn a_message_is_one_text_however_it_is_quoted() {
        let Command::Send(send) = parsed("send python/tom say hello -- --now").unwrap().command
        else {
            panic!("another command")
        };
        assert_eq!(send.text, ["say", "hello", "--now"]);
    }

    #[test]
    fn wrong_usage_is_refused_by_name() {
        for (line, word) in [
            ("send", "AGENT"),
            ("send python", "TEXT"),
            ("send Python hi", "agent name"),
            ("send python hi --no-wait --stream", "--stream"),
            ("ps --phase sleepy", "no phase is called 'sleepy'"),
            ("ps --limit 0", "0"),
            ("queue drop", "MESSAGE"),
            ("queue show msg_1", "32 hexadecimal digits"),
            ("send python hi --idempotency-key é", "ASCII"),
        ] {
            let error = parsed(line).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn the_exit_codes_stand_in_the_help() {
        let help = parsed("help exit-codes").unwrap_err().to_string();
        assert!(help.contains("No dormouse answers there"), "{help}");
    }
}
