//! The command line. Read `arguments` (what there is), `follow` (how a message is followed to its
//! end), `error` and `exit` (what failure looks like); the rest is one file per group of commands.
//!
//! ```text
//!  arguments ─▶ command ─▶ client ─▶ HTTP ─▶ shape ─▶ rendered text ─▶ terminal
//! ```
//!
//! Owner: `main`. Invariants: it speaks to the daemon over HTTP only, like every other client, but
//! for `upgrade`, and in `why_foreign` to other platforms' tools; output goes through `terminal`
//! alone. Absent: the daemon (`run`), decisions, the store.

mod agents;
mod arguments;
mod chat;
mod client;
mod config;
mod error;
mod exit;
mod files;
mod follow;
mod keys;
mod logs;
mod pages;
mod queue;
mod scrub;
mod send;
mod sessions;
mod sse;
mod table;
mod target;
mod terminal;
#[cfg(test)]
mod testing;
mod upgrade;
pub(crate) mod welcome;
mod when;
mod why;
mod why_foreign;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use serde_json::{Value, json};

use crate::run::{Ended, RunError};
use arguments::{Arguments, Command, Common, Keys, WhyAnything};
use client::Client;
use error::CommandError;
use exit::Exit;
pub(crate) use scrub::line as escaped_line;
pub(crate) use target::reachable;
use target::{Target, authorization, url_of};
use terminal::Terminal;
pub(crate) use terminal::Tone;
use when::Moment;
pub(crate) use why::size as human_size;

/// What a command works with.
#[derive(Debug)]
struct Context<'t> {
    terminal: &'t mut Terminal,
    client: Client,
    moment: Moment,
    as_json: bool,
}

impl Context<'_> {
    /// The whole answer for programs, or else what `render` makes of it for people.
    fn show(
        &mut self,
        value: &Value,
        render: impl FnOnce(&mut Self) -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        if self.as_json {
            self.terminal.json(value)?;
            return Ok(());
        }
        render(self)
    }
}

pub(crate) fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return wrong_usage(&error).into(),
    };
    let as_json = arguments.common.json;
    let mut terminal = Terminal::of_this_process();
    let result = run(arguments, &mut terminal);
    let Err(error) = result else { return Exit::Done.into() };
    if let Some(report) = error.report() {
        report.print(&mut terminal, as_json);
    }
    error.exit().into()
}

/// Help and the version are asked for; the rest is wrong.
fn wrong_usage(error: &clap::Error) -> Exit {
    if error.kind() == ErrorKind::InvalidUtf8 {
        let mut terminal = Terminal::of_this_process();
        terminal.note(Tone::Red, "error: an argument is not UTF-8 text; write it anew, as UTF-8");
        return Exit::Usage;
    }
    // Where the terminal is gone, nobody reads the help.
    let _: Result<(), std::io::Error> = error.print();
    if error.exit_code() == 0 { Exit::Done } else { Exit::Usage }
}

fn run(arguments: Arguments, terminal: &mut Terminal) -> Result<(), CommandError> {
    let Arguments { common, command } = arguments;
    let options = common.options();
    match command {
        Command::Up => daemon_ended(crate::run::up(&options)),
        Command::Serve => daemon_ended(crate::run::serve(&options)),
        Command::Upgrade(arguments) => {
            let data = crate::run::data_folder(common.data.as_deref());
            let data = data.map_err(|error| daemon_failed(error.into()))?;
            upgrade::upgrade(arguments, &data, common.json, terminal)
        }
        Command::Doctor => doctor(&common, terminal),
        Command::Completions { shell } => completions(shell, terminal),
        Command::ExitCodes => exit_codes(&common, terminal),
        Command::Config(command) if !command.needs_daemon() => {
            config::config(command, common.config.clone(), common.json, terminal)
        }
        Command::Bridge { .. } => unreachable!("main starts the bridge before this is parsed"),
        Command::Keys(Keys::Create { name, subject, operator, offline: true }) => {
            keys::create_offline(&options, name, subject, operator, common.json, terminal)
        }
        Command::Why(WhyAnything { foreign: Some(foreign), .. }) => {
            why_foreign::why(foreign, &options, common.json, terminal)
        }
        command => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.map_err(CommandError::Runtime)?;
            let mut context = context(&common, terminal)?;
            let result = runtime.block_on(client_command(command, &common, &mut context));
            // A thread may still wait for standard input or for a name server.
            runtime.shutdown_background();
            result
        }
    }
}

fn daemon_ended(ended: Result<Ended, RunError>) -> Result<(), CommandError> {
    match ended {
        Ok(Ended::AllFinished) => Ok(()),
        Ok(Ended::LeftRunning) => Err(CommandError::Several { first: Exit::LeftRunning }),
        Err(error) => Err(daemon_failed(error)),
    }
}

fn daemon_failed(error: RunError) -> CommandError {
    CommandError::Run(Box::new(error))
}

fn context<'t>(common: &Common, terminal: &'t mut Terminal) -> Result<Context<'t>, CommandError> {
    // Without a home there is no data folder to look into, and a key has to be given.
    let data = crate::run::data_folder(common.data.as_deref()).ok();
    let url = common.url.as_deref().filter(|url| !url.is_empty());
    let target = Target::parse(&url_of(url, data.as_deref()))?;
    let key = common.key.as_deref().filter(|key| !key.is_empty());
    let key = authorization(&target, key, data.as_deref())?;
    Ok(Context {
        terminal,
        client: Client::new(target, key),
        moment: Moment::now(),
        as_json: common.json,
    })
}

async fn client_command(
    command: Command,
    common: &Common,
    context: &mut Context<'_>,
) -> Result<(), CommandError> {
    match command {
        Command::Send(arguments) => send::send(arguments, context).await,
        Command::Chat(arguments) => chat::chat(arguments, context).await,
        Command::Ps(arguments) => sessions::ps(arguments, context).await,
        Command::Logs(arguments) => logs::logs(arguments, context).await,
        Command::Why(WhyAnything { own: Some(arguments), .. }) => {
            why::why(arguments, context).await
        }
        Command::Why(WhyAnything { own: None, .. }) => {
            unreachable!("of a session and a platform one is required, and `run` has the platforms")
        }
        Command::Wake(one) => sessions::request("wake", one, context).await,
        Command::Stop(one) => sessions::request("stop", one, context).await,
        Command::Restart(one) => sessions::request("restart", one, context).await,
        Command::Queue(command) => queue::queue(command, context).await,
        Command::Files(command) => files::files(command, context).await,
        Command::Keys(command) => keys::keys(command, context).await,
        Command::Agents => agents::agents(context).await,
        Command::Rollout(arguments) => agents::rollout(arguments, context).await,
        Command::Config(command) => {
            let named = common.config.clone();
            config::live::config(command, named, common.data.as_deref(), context).await
        }
        Command::Up
        | Command::Serve
        | Command::Upgrade(_)
        | Command::Doctor
        | Command::Completions { .. }
        | Command::ExitCodes
        | Command::Bridge { .. } => unreachable!("run handles what needs no daemon"),
    }
}

fn doctor(common: &Common, terminal: &mut Terminal) -> Result<(), CommandError> {
    let options = common.options();
    let checks = crate::doctor::examine(&options);
    if common.json {
        terminal.json(&json!({"checks": checks}))?;
    } else {
        let toned = |tone, text: &str| terminal.toned(tone, text);
        let text = crate::doctor::render(&checks, &toned);
        terminal.line(&text)?;
    }
    let prevents_up = checks.iter().any(|check| check.state == crate::doctor::State::Fail);
    if prevents_up { Err(CommandError::Several { first: Exit::Failed }) } else { Ok(()) }
}

fn completions(shell: clap_complete::Shell, terminal: &mut Terminal) -> Result<(), CommandError> {
    let mut script = Vec::new();
    let mut command = Arguments::command();
    clap_complete::generate(shell, &mut command, "dormouse", &mut script);
    let script = String::from_utf8_lossy(&script);
    Ok(terminal.line(script.trim_end())?)
}

fn exit_codes(common: &Common, terminal: &mut Terminal) -> Result<(), CommandError> {
    if common.json {
        let codes = Exit::ALL.map(|exit| json!({"code": exit.code(), "meaning": exit.meaning()}));
        return Ok(terminal.json(&json!(codes))?);
    }
    Ok(terminal.line(Exit::listed().trim_end())?)
}
