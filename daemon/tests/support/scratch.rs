//! A folder for one test, on the disk that the project is built on: a real one, where a sync is a
//! sync.
//!
//! Owner: `Setup`. Invariant: it is removed when the test passed, and kept and named when it
//! failed.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short: the socket for bridges lies in here, and a socket's path has 107 bytes.
        let name = format!("t-{}-{count}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if path.exists() {
            fs::remove_dir_all(&path).expect("left by a process of the same number, long ago");
        }
        fs::create_dir_all(&path).expect("the target folder can be written");
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file in the folder and gives its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, text).expect("the folder can be written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if thread::panicking() {
            say(&format!("what the test left is in {}", self.path.display()));
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            say(&format!("{} stays: {error}", self.path.display()));
        }
    }
}

/// To the output of the test, which is shown when it fails.
pub(crate) fn say(text: &str) {
    // Nobody to tell if even this cannot be written.
    drop(writeln!(std::io::stderr(), "{text}"));
}
