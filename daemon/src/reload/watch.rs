//! Looks whether the config file has changed, and puts what interrupts nobody into force.
//!
//! ```text
//!  look ── as before ─▶ look again later
//!    └─── changed ─▶ look again soon, until it is still ─▶ apply ─▶ said
//! ```
//!
//! Looking is a call to stat: it sees every way of saving (in place, by renaming, by a link that is
//! turned, on a network's file system), which notifications of the kernel do not. Owner: a task of
//! the node. Invariants: a file that is being written is left alone until it has been still for
//! `STILL_FOR`; what is wrong is said once; a file that is gone changes nothing. Absent: what a
//! change comes to.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::{OnRestart, Reload, Terms, Wanted, log};
use crate::config;
use crate::in_force::Current;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Editors and scripts write in pieces; a second look after this must see the same.
const STILL_FOR: Duration = Duration::from_millis(300);

/// A file at one moment: which it is, its length, when it was written last.
type Look = (PathBuf, u64, u64, u64, i128);

/// The config, and the templates that stand beside it. `None`: there is no config.
type Seen = Option<Vec<Look>>;

/// For as long as the node is open.
pub(crate) async fn watch(reload: Arc<Reload>) {
    // What changed before the first look was read at the start, or differs from it.
    let mut heeded = None;
    loop {
        let seen = settled(&reload).await;
        let is_heeded = match (&seen, &heeded) {
            (seen, Some(heeded)) if seen == heeded => true,
            (None, None) => true,
            (None, Some(_)) => {
                tracing::warn!("the config file is gone; what was in it stays in force");
                true
            }
            (Some(_), _) => heed(&reload).await,
        };
        if is_heeded {
            heeded = Some(seen);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// `false`: it is worth another try.
async fn heed(reload: &Reload) -> bool {
    let by = "the file changed".to_owned();
    let terms = Terms { by, base: None, on_restart: OnRestart::Hold };
    let result = reload.apply(Wanted::File, terms).await;
    log(&result);
    !result.is_err_and(|error| error.is_passing())
}

/// Of a file that is still.
async fn settled(reload: &Reload) -> Seen {
    let look = || {
        let current = reload.parts.in_force.now();
        // A file system that hangs holds up nobody else.
        let looked = spawn_blocking(move || look_at_all(&current));
        async { looked.await.ok().flatten() }
    };
    let mut seen = look().await;
    while is_fresh(&seen) {
        tokio::time::sleep(STILL_FOR).await;
        let again = look().await;
        if again == seen {
            break;
        }
        seen = again;
    }
    seen
}

fn look_at_all(current: &Current) -> Seen {
    let path = current.loaded.path.clone().or_else(|| config::path_of(None));
    let config = look(&path?)?;
    let templates = current.loaded.templates.iter().filter_map(|path| look(path));
    Some(std::iter::once(config).chain(templates).collect())
}

fn look(path: &Path) -> Option<Look> {
    let there = std::fs::metadata(path).ok().filter(|there| there.is_file())?;
    let changed_at_ns = i128::from(there.ctime()) * 1_000_000_000 + i128::from(there.ctime_nsec());
    Some((path.to_owned(), there.dev(), there.ino(), there.size(), changed_at_ns))
}

/// Written so lately that more may follow, or has followed within one tick of the clock.
fn is_fresh(seen: &Seen) -> bool {
    let newest = seen.iter().flatten().map(|(.., changed_at_ns)| *changed_at_ns).max();
    let Some(changed_at_ns) = newest else { return false };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now_ns = now.map_or(0, |now| i128::try_from(now.as_nanos()).unwrap_or(i128::MAX));
    let age_ns = now_ns - changed_at_ns;
    // A clock that was set back must not make a file fresh for ever: then one look more is enough.
    (0..i128::try_from(STILL_FOR.as_nanos()).unwrap_or(i128::MAX)).contains(&age_ns)
}
