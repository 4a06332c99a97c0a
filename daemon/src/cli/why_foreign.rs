//! `why ecs`, `why docker`, `why k8s`: why something ended that Dormouse does not run.
//!
//! ```text
//!  --from FILE … ─▶ files ─┐
//!  nothing       ─▶ live ──┴▶ foreign::examine ─▶ text · markdown · JSON
//!                  (the platform's own command line tool)
//! ```
//!
//! Owner: `cli`. Invariants: no daemon, no API key; a tool is run by its arguments, never through a
//! shell, with a time limit and a cap on its output; what it could not say is named as missing.
//! Absent: conclusions (`foreign`), clients of the platforms' APIs.

mod files;
mod live;
mod page;

use std::io;
use std::path::PathBuf;

use super::arguments::{Evidence, WhyForeign};
use super::error::CommandError;
use super::terminal::Terminal;
use super::when::Moment;
use super::why::paper;
use crate::config::{self, Prices};
use crate::foreign::{DocumentError, Input, Platform, Question, Report, Wanted, examine};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ForeignError {
    #[error("the evidence cannot be used: {0}")]
    Document(#[source] DocumentError),
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("nothing could be learned from {platform}: {}", missing.join("; "))]
    NothingRead { platform: Platform, missing: Vec<String> },
    #[error("the runtime of the program could not be started")]
    Runtime(#[source] io::Error),
}

/// What was gathered.
#[derive(Debug, Default)]
struct Gathered {
    documents: Vec<Input>,
    log: Option<Input>,
    missing: Vec<String>,
}

pub(super) fn why(
    arguments: WhyForeign,
    options: &crate::run::Options,
    as_json: bool,
    terminal: &mut Terminal,
) -> Result<(), CommandError> {
    let (platform, wanted, evidence) = asked(arguments);
    let gathered = match evidence.from.is_empty() {
        true => live(platform, &wanted)?,
        false => files::read(&evidence.from)?,
    };
    let Gathered { documents, log, mut missing } = gathered;
    let log = match &evidence.log {
        Some(path) => Some(files::read_log(path)?),
        None => log,
    };
    if documents.is_empty() {
        return Err(ForeignError::NothingRead { platform, missing }.into());
    }
    let prices = match config::load(options.config.as_deref()) {
        Ok(loaded) => loaded.config.prices,
        // It is no part of the question.
        Err(error) => {
            missing.push(format!("what memory costs: {error}"));
            None
        }
    };
    let question = Question { platform, wanted, documents, log, missing };
    let report = examine(question).map_err(ForeignError::Document)?;
    show(&report, prices.as_ref(), as_json, evidence.markdown, terminal)
}

fn asked(arguments: WhyForeign) -> (Platform, Wanted, Evidence) {
    match arguments {
        WhyForeign::Ecs(ecs) => {
            let wanted = Wanted {
                cluster: ecs.cluster,
                service: ecs.service,
                task: ecs.task,
                ..Wanted::default()
            };
            (Platform::Ecs, wanted, ecs.evidence)
        }
        WhyForeign::Docker(docker) => {
            let wanted = Wanted { container: docker.container, ..Wanted::default() };
            (Platform::Docker, wanted, docker.evidence)
        }
        WhyForeign::K8s(kubernetes) => {
            let (namespace, pod) = match kubernetes.pod {
                Some(pod) => (Some(pod.namespace), Some(pod.name)),
                None => (None, None),
            };
            let wanted = Wanted { namespace, pod, ..Wanted::default() };
            (Platform::Kubernetes, wanted, kubernetes.evidence)
        }
    }
}

fn live(platform: Platform, wanted: &Wanted) -> Result<Gathered, ForeignError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(ForeignError::Runtime)?;
    Ok(runtime.block_on(live::gather(platform, wanted)))
}

fn show(
    report: &Report,
    prices: Option<&Prices>,
    as_json: bool,
    as_markdown: bool,
    terminal: &mut Terminal,
) -> Result<(), CommandError> {
    if as_json {
        let mut value = report.to_json();
        if let Some(cost) = monthly_difference(report, prices) {
            value["remedy"]["monthly_difference"] = cost.into();
        }
        return Ok(terminal.json(&value)?);
    }
    let moment = Moment::now();
    let cost = monthly_difference(report, prices);
    let (title, sections) = (page::title(report), page::sections(report, cost.as_deref(), &moment));
    let shown = match as_markdown {
        true => paper::markdown(&title, &sections),
        false => {
            let toned = |tone, text: &str| terminal.toned(tone, text);
            paper::text(&title, &sections, &toned)
        }
    };
    Ok(terminal.line(&shown)?)
}

/// Of what is recommended.
fn monthly_difference(report: &Report, prices: Option<&Prices>) -> Option<String> {
    let (from, to) = report.remedy.as_ref()?.memory_bytes?;
    prices?.monthly_difference(from, to)
}
