//! Readers of the store for the handlers: a few connections, each used by one handler at a time,
//! off the async threads.
//!
//! Owner: `Api`. Invariants: a handler never waits for the engine to read; what is read was
//! committed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use dormouse_store::{ReadError, Reader};

use crate::api::problem::Problem;

/// Idle connections that are kept; more are opened when needed and closed after.
const IDLE_MAX: usize = 4;

#[derive(Clone)]
pub(crate) struct Readers {
    folder: Arc<PathBuf>,
    idle: Arc<Mutex<Vec<Reader>>>,
}

impl Readers {
    pub(crate) fn of(folder: PathBuf) -> Self {
        Self { folder: Arc::new(folder), idle: Arc::default() }
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&mut Reader) -> Result<T, ReadError> + Send + 'static,
    ) -> Result<T, Problem> {
        let readers = self.clone();
        let done = tokio::task::spawn_blocking(move || readers.read_here(read)).await;
        done.unwrap_or_else(|error| {
            tracing::error!(%error, "a reader panicked");
            Err(Problem::internal())
        })
    }

    fn read_here<T>(
        &self,
        read: impl FnOnce(&mut Reader) -> Result<T, ReadError>,
    ) -> Result<T, Problem> {
        let failed = |error: &dyn std::error::Error| {
            tracing::error!(error = %crate::report::chain(error), "the store could not be read");
            Problem::internal()
        };
        let idle = self.lock().pop();
        let mut reader = match idle {
            Some(reader) => reader,
            None => Reader::open(&self.folder).map_err(|error| failed(&error))?,
        };
        let result = read(&mut reader).map_err(|error| match error {
            ReadError::NotACursor => Problem::bad_request(
                "before is not the `next` of a page",
                "leave it out for the first page",
            ),
            error => failed(&error),
        })?;
        let mut idle = self.lock();
        if idle.len() < IDLE_MAX {
            idle.push(reader);
        }
        Ok(result)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Reader>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
