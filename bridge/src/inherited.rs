//! Descriptors that came with the process: the lock at its fixed number, and whatever a careless
//! parent left open.
//!
//! Owner: `run` and `rundir` call this before the bridge opens anything of its own. Invariant:
//! from then on nothing inherited passes on to an agent. Absent: everything opened here.

use std::fs;
use std::os::fd::{BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::io::FdFlags;

const STANDARD_ERROR: RawFd = 2;

/// Keeps every descriptor beyond the standard three from programs that are executed later.
pub(crate) fn close_all_on_exec() {
    let listed = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<RawFd> =
        listed.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > STANDARD_ERROR) {
        #[expect(unsafe_code, reason = "an inherited descriptor has no owner to borrow it from")]
        // SAFETY: the number is not -1, and is used for this one call, which at worst fails: the
        // one that listed the folder is closed by now.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        let _closed_meanwhile = rustix::io::fcntl_setfd(descriptor, FdFlags::CLOEXEC);
    }
}

/// The descriptor at `number`, if it is an open file at `path`.
pub(crate) fn take_descriptor(number: RawFd, path: &Path) -> Option<OwnedFd> {
    let held = fs::metadata(format!("/proc/self/fd/{number}")).ok()?;
    let named = fs::metadata(path).ok()?;
    if (held.dev(), held.ino()) != (named.dev(), named.ino()) {
        return None;
    }
    #[expect(unsafe_code, reason = "an inherited descriptor has no owner until one is made")]
    // SAFETY: the descriptor is open (the look above went through it), nothing in this process
    // owns it (it came from the parent, for this purpose), and this is called once.
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}
