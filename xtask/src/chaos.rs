//! `cargo xtask chaos`: the chaos test until so many kills have hit, as a proof of its own.
//!
//! Owner: this file names the test; the test is `daemon/tests/chaos_kills.rs`, of which CI runs a
//! short form. Invariant: success means that the checker found no contradiction.

use std::process::ExitCode;
use std::time::Duration;

use crate::process::RunError;
use crate::toolchain::cargo;
use crate::{CommandResult, UsageError};

const KILLS_DEFAULT: u64 = 1_000;
const LIMIT: Duration = Duration::from_secs(4 * 60 * 60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ChaosError {
    #[error("cannot run the chaos test")]
    Run(#[source] RunError),
    #[error("the chaos test failed: its output above has the seed and the contradictions")]
    Failed,
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    kills: u64,
    seed: Option<u64>,
}

pub(crate) fn command(arguments: &[String]) -> CommandResult {
    let request = parse(arguments)?;
    let test = ["test", "--locked", "--package", "dormouse", "--test", "chaos_kills"];
    let mut run = cargo(&[&test[..], &["--", "--nocapture", "--test-threads=1"]].concat())
        .env("DORMOUSE_CHAOS_KILLS", &request.kills.to_string())
        .limit(LIMIT);
    if let Some(seed) = request.seed {
        run = run.env("DORMOUSE_CHAOS_SEED", &seed.to_string());
    }
    let status = run.run(&mut |_line| {}).map_err(ChaosError::Run)?;
    if status.success() { Ok(ExitCode::SUCCESS) } else { Err(ChaosError::Failed.into()) }
}

fn parse(arguments: &[String]) -> Result<Request, UsageError> {
    let usage = |problem: String| UsageError::new("chaos", problem);
    let mut request = Request { kills: KILLS_DEFAULT, seed: None };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<u64>().ok());
        match (argument.as_str(), value) {
            ("--kills", Some(kills @ 1..)) => request.kills = kills,
            ("--seed", Some(seed)) => request.seed = Some(seed),
            ("--kills" | "--seed", _) => {
                return Err(usage(format!("{argument} needs a whole number, 1 or more")));
            }
            _other => return Err(usage(format!("there is no option {argument:?}"))),
        }
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Request, String> {
        let arguments: Vec<String> = arguments.iter().map(|text| (*text).to_owned()).collect();
        parse(&arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn kills_and_seed_are_taken_and_nothing_else() {
        assert_eq!(parsed(&[]), Ok(Request { kills: KILLS_DEFAULT, seed: None }));
        let both = parsed(&["--kills", "5", "--seed", "9"]);
        assert_eq!(both, Ok(Request { kills: 5, seed: Some(9) }));
        assert!(parsed(&["--kills", "0"]).unwrap_err().contains("--kills needs"));
        assert!(parsed(&["--kills"]).unwrap_err().contains("--kills needs"));
        assert!(parsed(&["--fast"]).unwrap_err().contains("no option"));
    }
}
