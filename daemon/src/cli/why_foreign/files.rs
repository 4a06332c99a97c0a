//! Evidence from files and from standard input.
//!
//! Invariant: of no file more than the cap is read into memory. Absent: what is in them.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{ForeignError, Gathered};
use crate::foreign::{DOCUMENT_BYTES_MAX, Input};

/// Of a log, its end is what counts.
const LOG_BYTES_MAX: usize = 1 << 20;

/// `-` is standard input.
pub(super) fn read(paths: &[PathBuf]) -> Result<Gathered, ForeignError> {
    let documents = paths.iter().map(|path| read_one(path)).collect::<Result<_, _>>()?;
    Ok(Gathered { documents, ..Gathered::default() })
}

fn read_one(path: &Path) -> Result<Input, ForeignError> {
    let failed = |source| ForeignError::Read { path: path.to_path_buf(), source };
    let (name, reader): (String, Box<dyn Read>) = match path.as_os_str() == "-" {
        true => ("standard input".to_owned(), Box::new(io::stdin())),
        false => (path.display().to_string(), Box::new(File::open(path).map_err(failed)?)),
    };
    // One byte over the cap shows that it is passed.
    let cap = u64::try_from(DOCUMENT_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    reader.take(cap).read_to_end(&mut bytes).map_err(failed)?;
    Ok(Input { name, bytes })
}

pub(super) fn read_log(path: &Path) -> Result<Input, ForeignError> {
    let mut log = read_one(path)?;
    let too_many = log.bytes.len().saturating_sub(LOG_BYTES_MAX);
    log.bytes.drain(..too_many);
    Ok(log)
}
