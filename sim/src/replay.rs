//! `sim replay`: one world step by step, in words; and the file that a failed seed leaves.
//!
//! Owner: this file alone reads and writes journals. A line is one step: `{"step", "at_ms",
//! "session", "what", "decisions": [rows of the core's journal], "effects": [texts]}`; the last
//! line of a failed run is `{"violation"}`. Invariant: a file replays to the same words as its
//! seed. Absent: running anything from a file; the seed does that.

use std::fs;
use std::io::{self, BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use dormouse_core::id::SessionId;
use dormouse_core::journal::Decision;
use serde_json::{Value, json};

use crate::run::run_seed;
use crate::sabotage::Sabotage;
use crate::terminal;
use crate::trace::{Line, Trace};
use crate::violation::Violation;

pub(crate) fn write_journal(
    seed: u64,
    trace: &Trace,
    violation: &Violation,
) -> io::Result<PathBuf> {
    let folder = Path::new("target").join("sim");
    fs::create_dir_all(&folder)?;
    let path = folder.join(format!("seed-{seed}.jsonl"));
    let mut file = io::BufWriter::new(fs::File::create(&path)?);
    for (step, line) in trace.lines().iter().enumerate() {
        writeln!(file, "{}", to_json(step, line))?;
    }
    writeln!(file, "{}", json!({ "violation": violation.to_string() }))?;
    file.flush()?;
    Ok(path)
}

fn to_json(step: usize, line: &Line) -> Value {
    json!({
        "step": step,
        "at_ms": line.at_ms,
        "session": line.session,
        "what": line.what,
        "decisions": line.decisions,
        "effects": line.effects,
    })
}

/// A line of a file: a step, or the violation at its end.
enum Kept {
    Step(Line),
    Violation(String),
}

fn from_json(text: &str) -> Result<Kept, String> {
    let mut value: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if let Some(violation) = value.get("violation").and_then(Value::as_str) {
        return Ok(Kept::Violation(violation.to_owned()));
    }
    let mut take = |name: &str| value.get_mut(name).map_or(Value::Null, Value::take);
    let wrong = |error: serde_json::Error| error.to_string();
    Ok(Kept::Step(Line {
        at_ms: serde_json::from_value(take("at_ms")).map_err(wrong)?,
        session: serde_json::from_value::<Option<SessionId>>(take("session")).map_err(wrong)?,
        what: serde_json::from_value(take("what")).map_err(wrong)?,
        decisions: serde_json::from_value::<Vec<Decision>>(take("decisions")).map_err(wrong)?,
        effects: serde_json::from_value(take("effects")).map_err(wrong)?,
    }))
}

#[derive(Debug)]
struct Options {
    source: String,
    from: usize,
    to: usize,
    session: Option<SessionId>,
    sabotage: Option<Sabotage>,
}

fn options(arguments: &[String]) -> Result<Options, String> {
    let (source, rest) = arguments.split_first().ok_or("which seed, or which file?")?;
    let source = source.clone();
    let mut options = Options { source, from: 0, to: usize::MAX, session: None, sabotage: None };
    let mut rest = rest.iter();
    while let Some(name) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse().map_err(|_| format!("{name} {value}: not a number"));
        match name.as_str() {
            "--from" => options.from = number()?,
            "--to" => options.to = number()?,
            "--session" => {
                options.session = Some(value.parse().map_err(|error| format!("{error}"))?);
            }
            "--sabotage" => options.sabotage = Some(value.parse()?),
            other => return Err(format!("replay takes no {other:?}")),
        }
    }
    Ok(options)
}

pub(crate) fn command(arguments: &[String]) -> Result<ExitCode, String> {
    let options = options(arguments)?;
    let (lines, end) = match options.source.parse::<u64>() {
        Ok(seed) => {
            let (outcome, trace) = run_seed(seed, Trace::recorded(), options.sabotage);
            let figures = outcome.figures;
            let words = outcome
                .violation
                .map_or_else(|| format!("all is well: {figures:?}"), |broken| broken.to_string());
            (trace.lines().to_vec(), words)
        }
        Err(_) => read_journal(Path::new(&options.source))?,
    };
    for (step, line) in lines.iter().enumerate() {
        let is_asked_for = (options.from..=options.to).contains(&step)
            && options.session.as_ref().is_none_or(|session| concerns(line, session));
        if is_asked_for {
            print_step(step, line);
        }
    }
    terminal::say(&end);
    Ok(ExitCode::SUCCESS)
}

/// What is said of links and bridges by number carries no session, and is always shown.
fn concerns(line: &Line, session: &SessionId) -> bool {
    line.session.as_ref().is_none_or(|of| of == session)
}

fn read_journal(path: &Path) -> Result<(Vec<Line>, String), String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = fs::File::open(path).map_err(|error| wrong(&error))?;
    let (mut lines, mut end) = (Vec::new(), "the file ends here".to_owned());
    for text in BufReader::new(file).lines() {
        let text = text.map_err(|error| wrong(&error))?;
        match from_json(&text).map_err(|error| wrong(&error))? {
            Kept::Step(line) => lines.push(line),
            Kept::Violation(violation) => end = violation,
        }
    }
    Ok((lines, end))
}

fn print_step(step: usize, line: &Line) {
    let ms = line.at_ms;
    let (hours, minutes) = (ms / 3_600_000, ms / 60_000 % 60);
    let seconds = format!("{:02}.{:03}", ms / 1_000 % 60, ms % 1_000);
    terminal::say(&format!("{step:>6}  {hours}:{minutes:02}:{seconds}  {}", line.what));
    for decision in &line.decisions {
        let Decision { session, generation, from, to, because, .. } = decision;
        let change = if from == to { format!("{from}") } else { format!("{from} → {to}") };
        terminal::say(&format!("          {session} #{generation} {change}: {because}"));
    }
    for effect in &line.effects {
        terminal::say(&format!("          {effect}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_as_it_was_written() {
        let trace = run_seed(3, Trace::recorded(), None).1;
        assert!(trace.lines().iter().any(|line| !line.decisions.is_empty()));
        for (step, line) in trace.lines().iter().enumerate() {
            let text = to_json(step, line).to_string();
            let Ok(Kept::Step(back)) = from_json(&text) else { panic!("{text} is no step") };
            assert_eq!(
                (&back.what, back.at_ms, &back.decisions, &back.effects, &back.session),
                (&line.what, line.at_ms, &line.decisions, &line.effects, &line.session)
            );
        }
    }
}
