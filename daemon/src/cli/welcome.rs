//! What `up` says when it is ready: where it answers, what it runs, and what to try.
//!
//! Absent: the log of the daemon, which goes to standard error.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::scrub;
use super::table::aligned;
use super::target::reachable;
use super::terminal::{OutputError, Terminal, Tone};

#[derive(Debug)]
pub(crate) struct Welcome {
    pub(crate) address: SocketAddr,
    pub(crate) data: PathBuf,
    /// `None`: the built-in config.
    pub(crate) config: Option<PathBuf>,
    /// The agents by name, and what each lacks on this machine.
    pub(crate) agents: Vec<(String, Vec<String>)>,
    /// How this program was called: what is shown must be what can be typed.
    pub(crate) program: String,
}

/// Agents that come with a page in examples/, the program that each needs, and how to get that.
const OFFERS: [(&str, &str, &str); 2] = [
    ("openclaw", "openclaw", "npm install -g openclaw"),
    ("claude-code", "claude", "npm install -g @anthropic-ai/claude-code"),
];

pub(crate) fn print(welcome: &Welcome) {
    let default_data = crate::run::data_folder(None).ok();
    let is_default_data = default_data.is_some_and(|folder| folder == welcome.data);
    let mut terminal = Terminal::of_this_process();
    let toned = |tone, text: &str| terminal.toned(tone, text);
    let is_there = |program: &str| crate::agents::find_program(program).is_some();
    let text = render(welcome, is_default_data, &is_there, &toned);
    // A daemon without a reader goes on.
    let _: Result<(), OutputError> = terminal.line(&text);
}

/// A line to whoever sits at the terminal.
pub(crate) fn say(text: &str) {
    Terminal::of_this_process().status(text);
}

fn render(
    welcome: &Welcome,
    is_default_data: bool,
    is_there: &dyn Fn(&str) -> bool,
    toned: &dyn Fn(Tone, &str) -> String,
) -> String {
    let url = format!("http://{}", reachable(welcome.address));
    let data = welcome.data.display().to_string();
    let config = match &welcome.config {
        Some(path) => path.display().to_string(),
        None => "built in; a dormouse.toml in this folder replaces it".to_owned(),
    };
    let key = "in operator.key of the data folder; commands on this machine find it there";
    let rows = [("data", data), ("config", config), ("key", key.to_owned())];
    let mut facts: Vec<[String; 2]> =
        rows.into_iter().map(|(name, value)| [name.to_owned(), value]).collect();
    for (name, lacks) in &welcome.agents {
        let state = if lacks.is_empty() { "can run".to_owned() } else { lacks.join("; ") };
        facts.push(["agent".to_owned(), format!("{name}: {state}")]);
    }
    for (name, program, way) in OFFERS {
        if welcome.agents.iter().any(|(agent, _)| name.starts_with(agent.as_str())) {
            continue;
        }
        let page = format!("see examples/{name}/README.md");
        let state = match is_there(program) {
            true => format!("{name}: {program} is installed; {page}"),
            false => format!("{name}: {way}; {page}"),
        };
        facts.push(["offer".to_owned(), state]);
    }
    let head = format!("dormouse answers at {url}");
    let mut lines = vec![toned(Tone::Bold, &head)];
    lines.extend(aligned(&facts).into_iter().map(|line| format!("  {line}")));
    let able = welcome.agents.iter().find(|(_, lacks)| lacks.is_empty());
    if let Some((agent, _)) = able {
        // Another data folder has to be named, for there are the key and the address.
        let data = if is_default_data {
            String::new()
        } else {
            format!(" --data {}", scrub::line(&welcome.data.display().to_string()))
        };
        let text = if agent == "python" { "\"print(6*7)\"" } else { "\"hello\"" };
        let program = scrub::line(&welcome.program);
        lines.push(format!("\nTry, in another terminal:\n  {program} send{data} {agent} {text}"));
    } else {
        lines.push("\nNo agent can run yet. `dormouse doctor` says what is missing.".to_owned());
    }
    let last = "Ctrl-C ends it; agents that run go on, and the next start finds them.";
    lines.push(last.to_owned());
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(welcome: &Welcome, is_default_data: bool, expected: Expect) {
        let is_there = |program: &str| program == "claude";
        let text = render(welcome, is_default_data, &is_there, &|_, text| text.to_owned());
        expected.assert_eq(&format!("{text}\n"));
    }

    #[test]
    fn a_first_start_says_what_to_try() {
        let welcome = Welcome {
            address: "127.0.0.1:7766".parse().unwrap(),
            data: "/home/ann/.local/share/dormouse".into(),
            config: None,
            agents: vec![
                ("openclaw".to_owned(), vec!["the program 'node' is not installed".to_owned()]),
                ("python".to_owned(), vec![]),
            ],
            program: "target/release/dormouse".to_owned(),
        };
        check(
            &welcome,
            true,
            expect![[r#"
                dormouse answers at http://127.0.0.1:7766
                  data    /home/ann/.local/share/dormouse
                  config  built in; a dormouse.toml in this folder replaces it
                  key     in operator.key of the data folder; commands on this machine find it there
                  agent   openclaw: the program 'node' is not installed
                  agent   python: can run
                  offer   claude-code: claude is installed; see examples/claude-code/README.md

                Try, in another terminal:
                  target/release/dormouse send python "print(6*7)"
                Ctrl-C ends it; agents that run go on, and the next start finds them.
            "#]],
        );
    }

    #[test]
    fn another_data_folder_is_part_of_the_example() {
        let welcome = Welcome {
            address: "0.0.0.0:7000".parse().unwrap(),
            data: "/srv/d".into(),
            config: Some("dormouse.toml".into()),
            agents: vec![("bot".to_owned(), vec![])],
            program: "dormouse".to_owned(),
        };
        check(
            &welcome,
            false,
            expect![[r#"
                dormouse answers at http://127.0.0.1:7000
                  data    /srv/d
                  config  dormouse.toml
                  key     in operator.key of the data folder; commands on this machine find it there
                  agent   bot: can run
                  offer   openclaw: npm install -g openclaw; see examples/openclaw/README.md
                  offer   claude-code: claude is installed; see examples/claude-code/README.md

                Try, in another terminal:
                  dormouse send --data /srv/d bot "hello"
                Ctrl-C ends it; agents that run go on, and the next start finds them.
            "#]],
        );
    }
}
