//! A folder of its own for each unit test.
//!
//! Owner: the tests. Invariant: nothing of it is left behind when the test ends well.
//! Absent: everything that runs in production.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

static SCRATCHES_MADE: AtomicU32 = AtomicU32::new(0);

#[derive(Debug)]
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let number = SCRATCHES_MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("dormouse-bridge-unit-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the folder for temporary files is writable");
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            std::fs::remove_dir_all(&self.path).expect("what the test made can be removed");
        }
    }
}
