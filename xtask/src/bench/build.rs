//! How long a clean release build takes, with what cargo has downloaded already.
//!
//! Owner: `cargo xtask bench --build`. Invariants: a target folder of its own, removed before; the
//! default features and the lock file, as an installation from source has them. Absent: downloads.

use std::fs;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use serde_json::json;

use super::Context;
use super::error::BenchError;
use super::machine::{load_average, settle};
use super::report::Report;
use super::statistics::figure;
use crate::root;
use crate::toolchain::{cargo, target_folder};

const LIMIT: Duration = Duration::from_secs(3_600);

pub(super) fn run(context: &Context) -> Result<Report, BenchError> {
    let headings = ["command", "time, s", "program, MB", "busy before", "load after"];
    let mut report = Report::new("build", &headings);
    let folder = target_folder(&root()).join("bench-clean");
    match fs::remove_dir_all(&folder) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(BenchError::file("remove", &folder)(error)),
    }
    let noise = settle(context.patience)?;
    let name = folder.to_string_lossy().into_owned();
    let arguments = ["build", "--release", "--locked", "--package", "dormouse", "--target-dir"];
    let build = cargo(&[&arguments[..], &[&name]].concat()).limit(LIMIT);
    let begun_at = Instant::now();
    let status = build.run(&mut |_| ())?;
    let took = begun_at.elapsed().as_secs_f64();
    if !status.success() {
        return Err(BenchError::CommandFailed { command: build.to_string() });
    }
    let binary = folder.join("release").join("dormouse");
    let size = fs::metadata(&binary).map_err(BenchError::file("look at", &binary))?.len();
    let load_after = load_average()?;
    report.row([
        "cargo build --release --locked --package dormouse".to_string(),
        figure(took),
        figure(size as f64 / 1e6),
        format!("{:.0} %", 100.0 * noise.busy),
        figure(load_after),
    ]);
    report.raw.push(json!({
        "took_s": took, "program_bytes": size, "noise": noise.json(), "load_after": load_after,
    }));
    fs::remove_dir_all(&folder).map_err(BenchError::file("remove", &folder))?;
    Ok(report)
}
