//! `cargo xtask bench`: figures of the real program on this machine, beside what the machine can do
//! at best.
//!
//! ```text
//!  build ─▶ agents ─▶ each benchmark: settle ─▶ floor and ours in turn ─▶ table, NAME.json
//! ```
//!
//! Owner: the table `BENCHES`; each file below is one of them or a part that several use.
//! Invariants: floor and ours are measured in the same minute, in pairs; a run that does not hold
//! what it must is void, not slow; raw samples are kept; everything runs on loopback, in folders of
//! its own, and is ended by its process number. Absent: verdicts; docs/bench.md gives those.

mod accept;
mod agents;
mod bucket;
mod build;
mod crash;
mod daemon;
mod error;
mod files;
mod floor;
mod footprint;
mod handover;
mod http;
mod load;
mod machine;
mod memory;
mod proxies;
mod recovery;
mod relay;
mod report;
mod sleepers;
mod statistics;
mod traffic;
mod wake;

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use agents::AgentProgram;
use daemon::Setup;
use error::BenchError;
use machine::{Machine, Placement};
use report::Report;

use crate::toolchain::{cargo, target_folder};
use crate::{CommandResult, UsageError, root, static_bridge, terminal};

struct Bench {
    name: &'static str,
    question: &'static str,
    run: fn(&Context) -> Result<Report, BenchError>,
}

const BENCHES: &[Bench] = &[
    Bench { name: "accept", question: "durable accepts a second", run: accept::run },
    Bench { name: "wake", question: "a wake beyond the agent's own start", run: wake::run },
    Bench { name: "relay", question: "a message to an agent that is awake", run: relay::run },
    Bench { name: "memory", question: "the daemon's memory", run: memory::run },
    Bench { name: "crash", question: "from an agent's death to the next one", run: crash::run },
    Bench {
        name: "recovery",
        question: "from kill -9 to the first acceptance",
        run: recovery::run,
    },
    Bench { name: "files", question: "inputs and checkpoints, against rclone", run: files::run },
    Bench {
        name: "handover",
        question: "reloads and hand-overs under traffic, beside HAProxy and nginx",
        run: handover::run,
    },
    Bench {
        name: "bridge",
        question: "memory of a bridge, sizes of programs",
        run: footprint::run,
    },
];

/// Takes minutes, so it is asked for with `--build`.
const BUILD: Bench = Bench { name: "build", question: "a clean release build", run: build::run };

/// Folders of runs, with the number of their process.
const RUN_PREFIX: &str = "run-";
const BUILD_LIMIT: Duration = Duration::from_secs(1_800);
/// How long a sample waits for the machine to be quiet, unless told otherwise.
const PATIENCE: Duration = Duration::from_secs(10);

/// What every benchmark works with.
struct Context {
    size: Size,
    binary: PathBuf,
    static_bridge: Option<PathBuf>,
    scratch: PathBuf,
    folders: Cell<u32>,
    machine: Machine,
    patience: Duration,
    /// For `accept`; empty means the usual ones.
    clients: Vec<usize>,
    /// The first is the static one.
    agents: Vec<AgentProgram>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Full,
    /// Shows that the benchmarks work; its figures mean nothing.
    Short,
}

impl Context {
    fn is_short(&self) -> bool {
        self.size == Size::Short
    }

    fn pick<T>(&self, full: T, short: T) -> T {
        if self.is_short() { short } else { full }
    }

    /// One line while it goes on.
    fn progress(&self, line: &str) {
        if !self.is_short() {
            terminal::say(&format!("   … {line}"));
        }
    }

    /// A path on the data's file system where nothing is yet.
    fn new_folder(&self) -> PathBuf {
        let number = self.folders.get();
        self.folders.set(number + 1);
        self.scratch.join(number.to_string())
    }

    fn setup(&self, agents: &str, starts_at_once: usize) -> Setup {
        Setup {
            binary: self.binary.clone(),
            folder: self.new_folder(),
            agents: agents.to_string(),
            starts_at_once,
            placement: Placement::Free,
            bridge: None,
            count_syncs: None,
            environment: Vec::new(),
        }
    }

    /// The ways to run a bridge: within the daemon's program, and the small static one.
    fn bridges(&self) -> Vec<(&'static str, Option<PathBuf>)> {
        let mut bridges = vec![("dormouse bridge", None)];
        if let Some(path) = &self.static_bridge {
            bridges.push(("static dormouse-bridge", Some(path.clone())));
        }
        bridges
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Options {
    names: Vec<String>,
    size: Size,
    build: bool,
    /// Measure this program, and build none.
    program: Option<PathBuf>,
    patience: Duration,
    clients: Vec<usize>,
}

pub(crate) fn command(arguments: &[String]) -> CommandResult {
    let options = parse(arguments)?;
    let results = target_folder(&root()).join("bench");
    let scratch = results.join(format!("{RUN_PREFIX}{}", std::process::id()));
    remove_what_a_killed_run_left(&results)?;
    fs::create_dir_all(&scratch).map_err(BenchError::file("make", &scratch))?;
    let context = context(&options, &results, scratch)?;
    terminal::say(&format!("machine: {}", context.machine));
    let outcome = run_all(&options, &context, &results);
    fs::remove_dir_all(&context.scratch).map_err(BenchError::file("remove", &context.scratch))?;
    outcome?;
    Ok(ExitCode::SUCCESS)
}

/// A run that was killed could not end its daemon: its processes name the run's folder.
fn remove_what_a_killed_run_left(results: &Path) -> Result<(), BenchError> {
    if !results.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(results).map_err(BenchError::file("list", results))? {
        let path = entry.map_err(BenchError::file("list", results))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some(process) = name.strip_prefix(RUN_PREFIX) else { continue };
        if Path::new("/proc").join(process).exists() {
            continue;
        }
        for left in machine::processes_with(&format!("{}/", path.display()))? {
            daemon::signal(left, rustix::process::Signal::KILL)?;
        }
        fs::remove_dir_all(&path).map_err(BenchError::file("remove", &path))?;
    }
    Ok(())
}

fn run_all(options: &Options, context: &Context, results: &Path) -> Result<(), BenchError> {
    for bench in chosen(options) {
        terminal::say(&format!("\n## {}: {}", bench.name, bench.question));
        let report = (bench.run)(context)?;
        if context.is_short() {
            terminal::say(&format!("{} rows; a short run shows no figures", report.rows.len()));
            continue;
        }
        let flag = if bench.name == BUILD.name { "--build" } else { bench.name };
        let command = format!("cargo xtask bench {flag}");
        let path = report.write(results, &command, &context.machine)?;
        terminal::say(&format!("{}\n\nsamples: {}", report.markdown(), path.display()));
    }
    Ok(())
}

fn chosen(options: &Options) -> Vec<&'static Bench> {
    let is_named = |bench: &&Bench| options.names.iter().any(|name| name == bench.name);
    let mut chosen: Vec<&Bench> = match (options.names.is_empty(), options.build) {
        (true, true) => Vec::new(),
        (true, false) => BENCHES.iter().collect(),
        (false, _) => BENCHES.iter().filter(is_named).collect(),
    };
    if options.build {
        chosen.push(&BUILD);
    }
    chosen
}

fn parse(arguments: &[String]) -> Result<Options, UsageError> {
    let mut options = Options {
        names: Vec::new(),
        size: Size::Full,
        build: false,
        program: None,
        patience: PATIENCE,
        clients: Vec::new(),
    };
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.as_str() {
            "--short" => options.size = Size::Short,
            "--build" => options.build = true,
            "--program" => {
                let wrong = || UsageError::new("bench", "--program wants a path");
                options.program = Some(rest.next().map(PathBuf::from).ok_or_else(wrong)?);
            }
            "--patience" => {
                let seconds = rest.next().and_then(|seconds| seconds.parse().ok());
                let wrong = || UsageError::new("bench", "--patience wants seconds");
                options.patience = Duration::from_secs(seconds.ok_or_else(wrong)?);
            }
            "--clients" => {
                let clients = rest.next().and_then(|clients| clients.parse().ok());
                let wrong = || UsageError::new("bench", "--clients wants 1 to 1024");
                let clients = clients.filter(|clients| (1..=1024).contains(clients));
                options.clients.push(clients.ok_or_else(wrong)?);
            }
            name if BENCHES.iter().any(|bench| bench.name == name) => {
                options.names.push(name.to_string());
            }
            unknown => {
                let names: Vec<&str> = BENCHES.iter().map(|bench| bench.name).collect();
                let problem = format!("no benchmark {unknown:?}: there are {}", names.join(", "));
                return Err(UsageError::new("bench", problem));
            }
        }
    }
    if options.size == Size::Short {
        options.patience = Duration::ZERO;
    }
    Ok(options)
}

/// Builds what is measured. A short run is content with unoptimised programs.
fn context(options: &Options, results: &Path, scratch: PathBuf) -> Result<Context, BenchError> {
    let is_short = options.size == Size::Short;
    let (binary, static_bridge) = match &options.program {
        Some(program) => {
            let program = fs::canonicalize(program).map_err(BenchError::file("find", program))?;
            (program, Some(static_bridge::path()?).filter(|path| path.exists()))
        }
        None if is_short => (build_daemon(is_short)?, None),
        None => (build_daemon(is_short)?, Some(static_bridge::build()?)),
    };
    Ok(Context {
        size: options.size,
        binary,
        static_bridge,
        machine: Machine::look(&scratch)?,
        scratch,
        folders: Cell::new(0),
        patience: options.patience,
        clients: options.clients.clone(),
        agents: agents::prepare(&results.join("agents"))?,
    })
}

fn build_daemon(is_short: bool) -> Result<PathBuf, BenchError> {
    let mut arguments = vec!["build", "--locked", "--package", "dormouse"];
    if !is_short {
        arguments.push("--release");
    }
    let build = cargo(&arguments).limit(BUILD_LIMIT);
    let profile = if is_short { "debug" } else { "release" };
    match build.run(&mut |_| ())?.success() {
        true => Ok(target_folder(&root()).join(profile).join("dormouse")),
        false => Err(BenchError::CommandFailed { command: build.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Options, String> {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        parse(&arguments).map_err(|error| error.to_string())
    }

    fn names(options: &Options) -> Vec<&'static str> {
        chosen(options).into_iter().map(|bench| bench.name).collect()
    }

    #[test]
    fn without_names_all_run_but_the_build() {
        let all = names(&parsed(&[]).expect("nothing is wrong"));
        assert_eq!(all.len(), BENCHES.len());
        assert!(!all.contains(&"build"));
    }

    #[test]
    fn only_what_is_named_runs() {
        let named = parsed(&["wake", "accept", "--short"]).expect("both exist");
        assert_eq!(names(&named), ["accept", "wake"]);
        assert_eq!((named.size, named.patience), (Size::Short, Duration::ZERO));
        assert_eq!(names(&parsed(&["--build"]).expect("it exists")), ["build"]);
        assert_eq!(names(&parsed(&["relay", "--build"]).expect("both")), ["relay", "build"]);
    }

    #[test]
    fn what_does_not_exist_is_refused_with_what_does() {
        let problem = parsed(&["speed"]).expect_err("there is none");
        assert!(problem.contains("no benchmark \"speed\": there are accept, wake"), "{problem}");
        assert!(parsed(&["--patience", "soon"]).is_err());
    }
}
