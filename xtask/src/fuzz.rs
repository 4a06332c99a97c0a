//! `cargo xtask fuzz`: coverage-guided fuzzing on the stable toolchain, without cargo-fuzz.
//!
//! Owner: this file and fuzz/Cargo.toml. A target is fuzz/fuzz_targets/NAME.rs with its [[bin]].
//! Invariants: a tree without targets is an error; a target whose code carries no coverage
//! counters is an error, for it would only throw dice. Inputs that found something new stay in
//! fuzz/corpus/NAME, findings in fuzz/artifacts/NAME, hand-made first inputs in fuzz/seeds/NAME.
//! Absent: leak detection; what a process keeps to its end is no finding here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::process::{CommandLine, RunError};
use crate::toolchain::{ToolchainError, cargo, host_triple, is_there};
use crate::{CommandResult, UsageError, root, terminal};

const SECONDS_DEFAULT: u64 = 60;
const BUILD_LIMIT: Duration = Duration::from_secs(1_200);
/// libFuzzer ends by itself; this is for the case that it does not.
const OVERTIME: Duration = Duration::from_secs(120);

/// What cargo-fuzz passes: edges into inline counters with a table of their places, comparisons,
/// and the address sanitizer, through which the engine also sees what memory is compared with:
/// without it, words of nine letters and more are never guessed.
const COVERAGE_FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Zsanitizer=address",
];

/// Lets a stable compiler take the one unstable flag above; the sanitizer comes with it.
const UNSTABLE_FLAGS: (&str, &str) = ("RUSTC_BOOTSTRAP", "1");

/// Codegen may put one static into several objects, which is no violation in Rust.
const SANITIZER_OPTIONS: (&str, &str) = ("ASAN_OPTIONS", "detect_odr_violation=0:detect_leaks=0");

#[derive(Debug, thiserror::Error)]
pub(crate) enum FuzzError {
    #[error("cannot list {}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("no fuzz targets: fuzz/fuzz_targets has no NAME.rs")]
    NoTargets,
    #[error("there is no fuzz target {name:?}, only {known:?}")]
    UnknownTarget { name: String, known: Vec<String> },
    #[error("no C++ compiler: the engine is C++; `apt-get install g++`, or set CXX")]
    NoCompiler,
    #[error("cannot find out what to build for")]
    Host(#[source] ToolchainError),
    #[error("cannot build the fuzz targets")]
    Build(#[source] RunError),
    #[error("the fuzz targets do not build: see the compiler's words above")]
    BuildFailed,
    #[error("cannot make {}", path.display())]
    MakeFolder { path: PathBuf, source: io::Error },
    #[error("cannot run fuzz target {target}: does fuzz/Cargo.toml have its [[bin]]?")]
    Run { target: String, source: RunError },
    #[error("fuzz target {target} carries no coverage counters: look at COVERAGE_FLAGS")]
    NoCoverage { target: String },
    #[error("fuzz target {target} failed; replay: cargo xtask fuzz {target} {input}")]
    Finding { target: String, input: String },
}

#[derive(Debug, PartialEq, Eq)]
struct Request {
    seconds: u64,
    target: Option<String>,
    inputs: Vec<String>,
}

pub(crate) fn command(arguments: &[String]) -> CommandResult {
    let request = parse(arguments)?;
    let known = targets()?;
    if let Some(name) = request.target.as_ref().filter(|name| !known.contains(name)) {
        return Err(FuzzError::UnknownTarget { name: name.clone(), known }.into());
    }
    let fuzzer = Fuzzer::build()?;
    let chosen = request.target.as_ref().map_or(&fuzzer.targets[..], std::slice::from_ref);
    for target in chosen {
        if request.inputs.is_empty() {
            fuzzer.fuzz(target, request.seconds)?;
        } else {
            fuzzer.replay(target, &request.inputs)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(arguments: &[String]) -> Result<Request, UsageError> {
    let usage = |problem: String| UsageError::new("fuzz", problem);
    let mut request = Request { seconds: SECONDS_DEFAULT, target: None, inputs: Vec::new() };
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--seconds" {
            let value = arguments.next().ok_or_else(|| usage("--seconds needs a number".into()))?;
            let seconds = value.parse().ok().filter(|seconds| *seconds > 0);
            // To libFuzzer, 0 means "for ever".
            request.seconds =
                seconds.ok_or_else(|| usage(format!("--seconds: {value:?} is not 1 or more")))?;
        } else if argument.starts_with('-') {
            return Err(usage(format!("there is no option {argument:?}")));
        } else if request.target.is_none() {
            request.target = Some(argument.clone());
        } else {
            request.inputs.push(argument.clone());
        }
    }
    Ok(request)
}

/// Built targets.
#[derive(Debug)]
pub(crate) struct Fuzzer {
    pub(crate) targets: Vec<String>,
    folder: PathBuf,
    binaries: PathBuf,
}

impl Fuzzer {
    pub(crate) fn build() -> Result<Fuzzer, FuzzError> {
        let folder = root().join("fuzz");
        let targets = targets()?;
        if targets.is_empty() {
            return Err(FuzzError::NoTargets);
        }
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_string());
        if !is_there(&compiler, &["--version"]) {
            return Err(FuzzError::NoCompiler);
        }
        let host = host_triple().map_err(FuzzError::Host)?;
        let target_folder = folder.join("target");
        let manifest = folder.join("Cargo.toml");
        let (target_dir, manifest) = (target_folder.to_string_lossy(), manifest.to_string_lossy());
        let arguments = ["build", "--release", "--locked", "--bins", "--manifest-path", &manifest];
        // With a target named, the flags do not reach build scripts, which lack the engine.
        let target = ["--target", &host, "--target-dir", &target_dir];
        let build = cargo(&[&arguments[..], &target[..]].concat())
            .env("CARGO_ENCODED_RUSTFLAGS", &COVERAGE_FLAGS.join("\u{1f}"))
            .env(UNSTABLE_FLAGS.0, UNSTABLE_FLAGS.1)
            .limit(BUILD_LIMIT);
        let status = build.run(&mut |_| ()).map_err(FuzzError::Build)?;
        if !status.success() {
            return Err(FuzzError::BuildFailed);
        }
        let binaries = target_folder.join(&host).join("release");
        Ok(Fuzzer { targets, folder, binaries })
    }

    /// Fuzzes one target; a finding is an error.
    pub(crate) fn fuzz(&self, target: &str, seconds: u64) -> Result<(), FuzzError> {
        let corpus = self.make_folder("corpus", target)?;
        let artifacts = self.make_folder("artifacts", target)?;
        let seeds = self.folder.join("seeds").join(target);
        let mut arguments = vec![
            format!("-max_total_time={seconds}"),
            "-timeout=10".to_string(),
            "-rss_limit_mb=1024".to_string(),
            "-malloc_limit_mb=128".to_string(),
            "-print_final_stats=1".to_string(),
            format!("-artifact_prefix={artifacts}/"),
            corpus,
        ];
        if seeds.is_dir() {
            arguments.push(seeds.to_string_lossy().into_owned());
        }
        let limit = Duration::from_secs(seconds).saturating_add(OVERTIME);
        let mut seen = Seen::default();
        let succeeded = self.start(target, &arguments, limit, &mut seen)?;
        if seen.counters == 0 {
            return Err(FuzzError::NoCoverage { target: target.to_string() });
        }
        if !succeeded {
            let input = seen.finding.unwrap_or_else(|| "fuzz/artifacts/…".to_string());
            return Err(FuzzError::Finding { target: target.to_string(), input });
        }
        let (inputs, counters) = (seen.inputs_run, seen.counters);
        terminal::say(&format!("fuzz {target}: {inputs} inputs over {counters} counters"));
        Ok(())
    }

    /// Runs one target on given inputs, once each.
    fn replay(&self, target: &str, inputs: &[String]) -> Result<(), FuzzError> {
        let succeeded = self.start(target, inputs, OVERTIME, &mut Seen::default())?;
        if succeeded {
            return Ok(());
        }
        Err(FuzzError::Finding { target: target.to_string(), input: inputs.join(" ") })
    }

    fn start(
        &self,
        target: &str,
        arguments: &[String],
        limit: Duration,
        seen: &mut Seen,
    ) -> Result<bool, FuzzError> {
        let program = self.binaries.join(target);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let command = CommandLine::new(&program.to_string_lossy(), &arguments, root()).limit(limit);
        let command = command.env(SANITIZER_OPTIONS.0, SANITIZER_OPTIONS.1);
        let status = command.run(&mut |line| seen.line(line));
        let run_error = |source| FuzzError::Run { target: target.to_string(), source };
        Ok(status.map_err(run_error)?.success())
    }

    /// Relative to the root, where the targets run, so that a finding is printed short.
    fn make_folder(&self, kind: &str, target: &str) -> Result<String, FuzzError> {
        let path = self.folder.join(kind).join(target);
        match fs::create_dir_all(&path) {
            Ok(()) => Ok(format!("fuzz/{kind}/{target}")),
            Err(source) => Err(FuzzError::MakeFolder { path, source }),
        }
    }
}

/// What libFuzzer said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    counters: u64,
    inputs_run: u64,
    finding: Option<String>,
}

impl Seen {
    fn line(&mut self, line: &str) {
        let number = |text: &str| text.trim().parse().unwrap_or(0);
        if let Some(count) = line.split_once(" inline 8-bit counters)") {
            self.counters = count.0.rsplit('(').next().map_or(0, number);
        } else if let Some(count) = line.strip_prefix("stat::number_of_executed_units:") {
            self.inputs_run = number(count);
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            self.finding = Some(path.trim().to_string());
        }
    }
}

/// Names of the targets, in order.
pub(crate) fn targets() -> Result<Vec<String>, FuzzError> {
    targets_in(&root().join("fuzz/fuzz_targets"))
}

/// A folder that is not there has none.
fn targets_in(folder: &Path) -> Result<Vec<String>, FuzzError> {
    let listed = |source| FuzzError::List { path: folder.to_path_buf(), source };
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(listed)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(listed)?.file_name().to_string_lossy().into_owned();
        names.extend(name.strip_suffix(".rs").map(str::to_string));
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Request, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_string).collect();
        parse(&words).map_err(|error| error.to_string())
    }

    #[test]
    fn without_arguments_every_target_gets_the_default_time() {
        let expected = Request { seconds: SECONDS_DEFAULT, target: None, inputs: Vec::new() };
        assert_eq!(parsed(""), Ok(expected));
    }

    #[test]
    fn a_target_may_be_followed_by_inputs_to_replay() {
        let expected = Request {
            seconds: 5,
            target: Some("frames".to_string()),
            inputs: vec!["a".to_string(), "b".to_string()],
        };
        assert_eq!(parsed("frames --seconds 5 a b"), Ok(expected));
    }

    #[test]
    fn wrong_options_are_refused_with_the_usage() {
        for line in ["--seconds", "--seconds x", "--seconds 0", "--second 5", "-x"] {
            let error = parsed(line).expect_err(line);
            assert!(error.contains("usage: cargo xtask fuzz"), "{error}");
        }
    }

    #[test]
    fn the_words_of_the_engine_are_understood() {
        let mut seen = Seen::default();
        seen.line("INFO: Loaded 1 modules   (1234 inline 8-bit counters): 1234 [0x55, 0x56), ");
        seen.line("stat::number_of_executed_units: 501150");
        seen.line("artifact_prefix='./'; Test unit written to fuzz/artifacts/x/crash-38c0");
        let finding = Some("fuzz/artifacts/x/crash-38c0".to_string());
        assert_eq!(seen, Seen { counters: 1234, inputs_run: 501_150, finding });
    }

    #[test]
    fn a_folder_without_targets_has_none() {
        assert_eq!(targets_in(Path::new("no/such/folder")).expect("none is no error"), [""; 0]);
    }
}
