//! One S3 server for ours and for rclone, and rclone.
//!
//! Owner: `files`. Invariants: both fetch from the same server, whose objects are in memory; it
//! ends with us, by its standard input; what rclone fetches is checked against the bucket and on
//! disk before its time is over. Absent: what is measured.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::error::BenchError;
use crate::root;
use crate::toolchain::{cargo, target_folder};

/// rclone refuses shorter ones.
const KEY_ID: &str = "AKIDEXAMPLE01";
const SECRET: &str = "secretsecretsecret";
const BUILD_LIMIT: Duration = Duration::from_secs(1_800);

#[derive(Debug)]
pub(super) struct Bucket {
    server: Child,
    pub(super) address: String,
}

impl Bucket {
    /// Serves so many objects of so many bytes below each name.
    pub(super) fn start(
        is_short: bool,
        contents: &[(&str, u64, u64)],
    ) -> Result<Bucket, BenchError> {
        let mut arguments =
            vec!["build", "--locked", "--package", "dormouse-edge", "--example", "bucket_server"];
        if !is_short {
            arguments.push("--release");
        }
        let build = cargo(&arguments).limit(BUILD_LIMIT);
        if !build.run(&mut |_| ())?.success() {
            return Err(BenchError::CommandFailed { command: build.to_string() });
        }
        let profile = if is_short { "debug" } else { "release" };
        let program = target_folder(&root()).join(profile).join("examples/bucket_server");
        let mut server = Command::new(&program)
            .args([KEY_ID, SECRET])
            .args(contents.iter().map(|(name, files, bytes)| format!("{name}={files}x{bytes}")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BenchError::file("start", &program))?;
        let said = server.stdout.take().expect("it was piped");
        let mut bucket = Bucket { server, address: String::new() };
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).map_err(BenchError::file("read", &program))?;
        bucket.address = line.trim().to_string();
        Ok(bucket)
    }

    /// What signs requests to it, for the daemon.
    pub(super) fn credentials(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ACCESS_KEY_ID", KEY_ID.to_string()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_string()),
        ]
    }
}

impl Drop for Bucket {
    fn drop(&mut self) {
        // Its input is closed, at which it ends; this only makes sure.
        let _killed = self.server.kill();
        let _status = self.server.wait();
    }
}

/// The peer, where `cargo xtask provision rclone` has brought it.
#[derive(Debug)]
pub(super) struct Rclone {
    program: PathBuf,
}

impl Rclone {
    pub(super) fn find() -> Option<Rclone> {
        let program = target_folder(&root()).join("provision/rclone/bin/rclone");
        program.exists().then_some(Rclone { program })
    }

    /// Copies what is below `name` into the folder, compares the two, and puts it on disk: what a
    /// script does that wants to be sure.
    pub(super) fn copy_and_check(
        &self,
        bucket: &Bucket,
        name: &str,
        folder: &Path,
        at_once: Option<&str>,
    ) -> Result<Duration, BenchError> {
        let source = format!("bench:bench/{name}");
        let begun_at = Instant::now();
        for doing in ["copy", "check"] {
            let mut command = Command::new(&self.program);
            command.arg(doing).arg(&source).arg(folder).env_clear();
            if let Some(number) = at_once {
                command.args(["--transfers", number, "--checkers", number]);
            }
            for (setting, value) in [
                ("TYPE", "s3"),
                ("PROVIDER", "Other"),
                ("LIST_VERSION", "2"),
                ("FORCE_PATH_STYLE", "true"),
                ("ACCESS_KEY_ID", KEY_ID),
                ("SECRET_ACCESS_KEY", SECRET),
                ("ENDPOINT", &format!("http://{}", bucket.address)),
            ] {
                command.env(format!("RCLONE_CONFIG_BENCH_{setting}"), value);
            }
            // It has a config file of its own otherwise, and caches in the user's folder.
            command.env("RCLONE_CONFIG", "/dev/null").env("HOME", folder.with_extension("home"));
            let output = command.output().map_err(BenchError::file("start", &self.program))?;
            if !output.status.success() {
                let words = String::from_utf8_lossy(&output.stderr);
                return Err(BenchError::void(format!("rclone {doing} failed: {words}")));
            }
        }
        let file = std::fs::File::open(folder).map_err(BenchError::file("open", folder))?;
        rustix::fs::syncfs(&file).map_err(BenchError::system("to sync"))?;
        Ok(begun_at.elapsed())
    }
}
