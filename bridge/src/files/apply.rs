//! A workspace is brought to a version: compared, fetched, and changed in one go.
//!
//! ```text
//!  plan ─▶ compare with what is there ─▶ fetch what is missing ─▶ on disk ─▶ rename ─▶ mark
//! ```
//!
//! Owner: the desk, one at a time. Invariants: nothing in the workspace is changed before all that
//! is missing is here and proved; renames come after the bytes are on disk, and the marker after
//! the names are; a restore is marked before it begins and after it is whole. What is there is
//! believed only by the stat cache or by its bytes. Absent: when, and what is to be there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dormouse_core::manifest::{ContentId, FileKind, FilePath, FilesVersion};
use rustix::io::Errno;
use tokio::time::Instant;

use crate::files::beneath::{Folder, Kind, Seen, Stamp};
use crate::files::digest::Digester;
use crate::files::fetch::{Fetch, Item, Progress};
use crate::files::marker::{CLOCK_TICK, LastCheckpoint, Marker, StatCache, now_ns};
use crate::files::server::{Server, ServerError};
use crate::files::target::Target;
use crate::files::wire::{PLAN_PATH, SyncPlan, SyncProblem};
use crate::files::workspace::{FolderCache, STAGING, Workspace, WorkspaceError, read_content};

/// So few files are put on disk one by one; for more, all that the file system has waiting is.
const SYNCED_ONE_BY_ONE_MAX: usize = 16;
const FOLDERS_SYNCED_ONE_BY_ONE_MAX: usize = 16;
/// For a daemon that does not answer at all.
const PLAN_WITHIN: Duration = Duration::from_secs(5 * 60);
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// What there is to do.
#[derive(Debug)]
struct Work {
    plan: SyncPlan,
    target: Target,
    items: Arc<Vec<Item>>,
    is_staged: Vec<bool>,
    staging: Arc<Folder>,
    /// Files whose bytes are right and whose mode is not.
    modes: Vec<(FilePath, bool)>,
    /// What was read because the cache did not know it.
    read: Vec<(FilePath, Stamp, ContentId)>,
}

/// Brings the workspace to this version; gives the plan that it followed.
pub(crate) async fn sync(
    workspace: Arc<Workspace>,
    server: Server,
    version: FilesVersion,
    progress: Arc<Progress>,
) -> Result<SyncPlan, SyncProblem> {
    let plan = plan(&server, version).await?;
    let work = in_thread(&workspace, move |workspace| prepare(workspace, plan)).await?;
    let missing = || work.items.iter().zip(&work.is_staged).filter(|(_, is_staged)| !**is_staged);
    progress.files.store(missing().count() as u64, Ordering::Relaxed);
    progress.bytes.store(missing().map(|(item, _)| item.bytes).sum(), Ordering::Relaxed);
    let fetch = Fetch {
        workspace: workspace.clone(),
        server,
        staging: work.staging.clone(),
        items: work.items.clone(),
        progress,
    };
    fetch.run(&work.is_staged).await?;
    in_thread(&workspace, move |workspace| commit(workspace, work)).await
}

/// Runs a step in a thread that may wait for the disk, with the workspace to itself.
pub(crate) async fn in_thread<T: Send + 'static>(
    workspace: &Arc<Workspace>,
    step: impl FnOnce(&Workspace) -> Result<T, WorkspaceError> + Send + 'static,
) -> Result<T, SyncProblem> {
    let workspace = workspace.clone();
    let done = tokio::task::spawn_blocking(move || {
        let _alone = workspace.own();
        step(&workspace)
    });
    let done = done.await.expect("a step does not panic, and is not aborted");
    done.map_err(|error| SyncProblem::about(crate::words(&error), true, error.paths()))
}

async fn plan(server: &Server, version: FilesVersion) -> Result<SyncPlan, SyncProblem> {
    let path = format!("{PLAN_PATH}?inputs={}&uploads={}", version.inputs, version.uploads);
    let since = Instant::now();
    let mut pause = PAUSE_MIN;
    loop {
        let error = match server.get::<SyncPlan>(&path).await {
            Ok(plan) if plan.version == version => return Ok(plan),
            Ok(_) => {
                let message = "the plan is for another version".to_string();
                return Err(SyncProblem::about(message, true, Vec::new()));
            }
            Err(error) => error,
        };
        if !error.may_pass() || since.elapsed() + pause > PLAN_WITHIN {
            let retryable = error.may_pass() || error.is_outdated();
            return Err(SyncProblem::about(plan_words(&error), retryable, Vec::new()));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

fn plan_words(error: &ServerError) -> String {
    format!("what files there are to be is not known: {}", crate::words(error))
}

// ---- what there is to do ----

fn prepare(workspace: &Workspace, plan: SyncPlan) -> Result<Work, WorkspaceError> {
    let mut known = workspace.known()?;
    let target = Target::of(&plan, known.marker.as_ref());
    if target.is_restore {
        let inputs = known.marker.take().map(|marker| (marker.inputs, marker.cache));
        let (inputs, cache) = inputs.unwrap_or_default();
        let lineage = plan.lineage;
        known.marker = Some(Marker { lineage, inputs, cache, ..Marker::default() });
        workspace.save(&known)?;
    }
    let staging = make_staging(&workspace.root)?;
    let no_cache = StatCache::default();
    let cache = known.marker.as_ref().map_or(&no_cache, |marker| &marker.cache);
    let mut comparison = Comparison::default();
    comparison.compare(&workspace.root, &target, cache)?;
    let Comparison { items, modes, read } = comparison;
    let is_staged = reuse_staged(&staging, &items)?;
    let (items, staging) = (Arc::new(items), Arc::new(staging));
    Ok(Work { plan, target, items, is_staged, staging, modes, read })
}

fn make_staging(root: &Folder) -> Result<Folder, WorkspaceError> {
    root.make_folders(STAGING).map_err(WorkspaceError::at(STAGING))
}

#[derive(Debug, Default)]
struct Comparison {
    items: Vec<Item>,
    modes: Vec<(FilePath, bool)>,
    read: Vec<(FilePath, Stamp, ContentId)>,
}

impl Comparison {
    fn compare(
        &mut self,
        root: &Folder,
        target: &Target,
        cache: &StatCache,
    ) -> Result<(), WorkspaceError> {
        let mut folders = FolderCache::new(root);
        for (path, want) in &target.wants {
            let FileKind::File { bytes, content, is_executable } = &want.kind else { continue };
            let folder = folders.of(path).map_err(WorkspaceError::at(path))?;
            let proved = match folder {
                Some(folder) => self.prove(folder, path, *bytes, content, cache)?,
                None => None,
            };
            match proved {
                Some(seen) if seen.has_mode(*is_executable) => {}
                Some(_) => self.modes.push((path.clone(), *is_executable)),
                None => self.items.push(Item {
                    path: path.clone(),
                    input: want.is_input.then(|| path.clone()),
                    content: content.clone(),
                    bytes: *bytes,
                    is_executable: *is_executable,
                }),
            }
        }
        Ok(())
    }

    /// What lies there, if it is proved to be these bytes.
    fn prove(
        &mut self,
        folder: &Folder,
        path: &FilePath,
        bytes: u64,
        content: &ContentId,
        cache: &StatCache,
    ) -> Result<Option<Seen>, WorkspaceError> {
        let seen = folder.look(path.name()).map_err(WorkspaceError::at(path))?;
        let is_like_it = |seen: &Seen| seen.kind == Kind::File && seen.stamp.bytes == bytes;
        let Some(seen) = seen.filter(is_like_it) else { return Ok(None) };
        if let Some(known) = cache.content(path, &seen.stamp)
            && known == content
        {
            return Ok(Some(seen));
        }
        let digester = Digester::of(content);
        if !digester.proves() {
            return Ok(None);
        }
        match read_content(folder, path.name(), digester) {
            Ok(Some((seen, found))) if is_same(&found, content) => {
                self.read.push((path.clone(), seen.stamp, content.clone()));
                Ok(Some(seen))
            }
            // It will be replaced, which needs no permission to read it.
            Ok(_) | Err(Errno::NOENT | Errno::ACCESS | Errno::PERM | Errno::LOOP) => Ok(None),
            Err(errno) => Err(WorkspaceError::at(path)(errno)),
        }
    }
}

fn is_same(found: &ContentId, content: &ContentId) -> bool {
    match (found, content) {
        (ContentId::Etag(found), ContentId::Etag(etag)) => found.eq_ignore_ascii_case(etag),
        (found, content) => found == content,
    }
}

/// What an earlier sync that did not get to its end has fetched, proved anew. The rest is removed.
fn reuse_staged(staging: &Folder, items: &[Item]) -> Result<Vec<bool>, WorkspaceError> {
    let mut left = BTreeMap::new();
    for entry in staging.entries().map_err(WorkspaceError::at(STAGING))? {
        left.insert(entry.name.to_string_lossy().into_owned(), entry.name);
    }
    let mut is_staged = vec![false; items.len()];
    if left.is_empty() {
        return Ok(is_staged);
    }
    for (item, is_staged) in items.iter().zip(&mut is_staged) {
        let key = item.key();
        let digester = Digester::of(&item.content);
        if !left.contains_key(&key) || !digester.proves() {
            continue;
        }
        if let Ok(Some((seen, found))) = read_content(staging, &key, digester)
            && seen.stamp.bytes == item.bytes
            && is_same(&found, &item.content)
        {
            let set = staging.set_file_mode(&key, item.is_executable);
            set.map_err(WorkspaceError::at(&item.path))?;
            left.remove(&key);
            *is_staged = true;
        }
    }
    for name in left.values() {
        staging.remove(name.as_c_str()).map_err(WorkspaceError::at(STAGING))?;
    }
    Ok(is_staged)
}

// ---- the change ----

fn commit(workspace: &Workspace, work: Work) -> Result<SyncPlan, WorkspaceError> {
    let Work { plan, target, items, staging, modes, read, .. } = work;
    let mut known = workspace.known()?;
    let root = &workspace.root;
    put_on_disk(&staging, &items)?;
    remove_unwanted(root, &target)?;
    let moved = move_in(root, &staging, &items)?;
    make_the_rest(root, &target)?;
    let mut folders = FolderCache::new(root);
    for (path, is_executable) in &modes {
        let folder = folders.make(path).map_err(WorkspaceError::at(path))?;
        let set = folder.set_file_mode(path.name(), *is_executable);
        set.map_err(WorkspaceError::at(path))?;
    }
    root.remove(STAGING).map_err(WorkspaceError::at(STAGING))?;
    sync_names(root, &target, &items)?;

    let mut marker = known.marker.take().unwrap_or_default();
    let is_changed = !moved.is_empty() || !read.is_empty() || !target.vanished.is_empty();
    let was = (marker.lineage, marker.uploads, marker.is_whole);
    marker.lineage = plan.lineage;
    marker.uploads = plan.version.uploads;
    marker.is_whole = true;
    if target.is_restore {
        let entries = plan.restore.iter().flat_map(|manifest| manifest.entries()).cloned();
        let (entries, uploads) = (entries.collect(), plan.restore_uploads);
        marker.last = Some(LastCheckpoint { number: None, uploads, entries });
    }
    let inputs = target.wants.iter().filter(|(_, want)| want.is_input);
    let inputs = inputs.map(|(path, _)| path.clone()).collect();
    let has_other_inputs = marker.inputs != inputs;
    marker.inputs = inputs;
    let gone = target.deletes.iter().chain(&target.vanished);
    gone.for_each(|path| marker.cache.remove(path));
    remember(&mut marker.cache, moved.into_iter().chain(read).collect());
    let is_same = was == (marker.lineage, marker.uploads, marker.is_whole);
    known.marker = Some(marker);
    if is_changed || has_other_inputs || !is_same {
        workspace.save(&known)?;
    }
    Ok(plan)
}

/// The bytes, before anything has their names.
fn put_on_disk(staging: &Folder, items: &[Item]) -> Result<(), WorkspaceError> {
    if items.len() > SYNCED_ONE_BY_ONE_MAX {
        return staging.sync_file_system().map_err(WorkspaceError::at(STAGING));
    }
    items.iter().try_for_each(|item| {
        let file =
            staging.open_file(item.key().as_str()).map_err(WorkspaceError::at(&item.path))?;
        rustix::fs::fdatasync(&file).map_err(WorkspaceError::at(&item.path))
    })
}

fn remove_unwanted(root: &Folder, target: &Target) -> Result<(), WorkspaceError> {
    if target.is_restore {
        return remove_all_but(root, target);
    }
    for path in &target.deletes {
        let mut folders = FolderCache::new(root);
        if let Some(folder) = folders.of(path).map_err(WorkspaceError::at(path))? {
            folder.remove(path.name()).map_err(WorkspaceError::at(path))?;
        }
    }
    for path in &target.vanished {
        remove_vanished(root, path).map_err(WorkspaceError::at(path))?;
    }
    Ok(())
}

/// A file or link, and the folders on its way that are empty then.
fn remove_vanished(root: &Folder, path: &FilePath) -> Result<(), Errno> {
    let mut folders = FolderCache::new(root);
    let Some(folder) = folders.of(path)? else { return Ok(()) };
    if folder.look(path.name())?.is_some_and(|seen| seen.kind != Kind::Folder) {
        folder.remove(path.name())?;
    }
    let mut above = path.folder();
    while let Some(name) = above {
        let (outer, last) = name.rsplit_once('/').unwrap_or(("", name));
        let is_gone = match root.folder(outer) {
            Ok(folder) => folder.remove_empty_folder(last)?,
            Err(_) => false,
        };
        above = (is_gone && !outer.is_empty()).then_some(outer);
    }
    Ok(())
}

/// Folder by folder, so that no more than one is open at a time.
fn remove_all_but(root: &Folder, target: &Target) -> Result<(), WorkspaceError> {
    let wanted = target.folders();
    let mut waiting = vec![String::new()];
    while let Some(at) = waiting.pop() {
        let folder = root.folder(&at).map_err(WorkspaceError::at(&at))?;
        for entry in folder.entries().map_err(WorkspaceError::at(&at))? {
            let name = entry.name.to_str().ok();
            let path = name.map(|name| match at.is_empty() {
                true => name.to_string(),
                false => format!("{at}/{name}"),
            });
            let seen = || folder.look(entry.name.as_c_str());
            let is_folder = entry.kind.map_or_else(
                || seen().ok().flatten().is_some_and(|seen| seen.kind == Kind::Folder),
                |kind| kind == Kind::Folder,
            );
            let is_wanted = match &path {
                Some(path) if at.is_empty() && path == STAGING => true,
                Some(path) if is_folder && wanted.contains(path.as_str()) => {
                    waiting.push(path.clone());
                    true
                }
                Some(path) if !is_folder => {
                    FilePath::new(path).is_ok_and(|path| target.wants.contains_key(&path))
                }
                _ => false,
            };
            if !is_wanted {
                let shown = path.unwrap_or_else(|| entry.name.to_string_lossy().into_owned());
                folder.remove(entry.name.as_c_str()).map_err(WorkspaceError::at(shown))?;
            }
        }
    }
    Ok(())
}

/// What was fetched gets its name. Gives what each of them is there.
fn move_in(
    root: &Folder,
    staging: &Folder,
    items: &[Item],
) -> Result<Vec<(FilePath, Stamp, ContentId)>, WorkspaceError> {
    let mut folders = FolderCache::new(root);
    let mut moved = Vec::with_capacity(items.len());
    for item in items {
        let (key, path) = (item.key(), &item.path);
        let mut move_one = || {
            let before = staging.look(key.as_str())?.ok_or(Errno::NOENT)?;
            let mut tried = 0;
            let folder = loop {
                let folder = folders.make(path)?;
                match staging.move_to(&key, folder, path.name()) {
                    // Its folder was removed after it was opened.
                    Err(Errno::NOENT) if tried < 3 => {
                        tried += 1;
                        folders.forget();
                    }
                    Err(errno) => return Err(errno),
                    Ok(()) => break folders.make(path)?,
                }
            };
            Ok((before, folder.look(path.name())?))
        };
        let (before, after) = move_one().map_err(WorkspaceError::at(path))?;
        // A rename changes one of the times; whatever else changed was not us.
        let is_ours = |after: &Seen| {
            Stamp { ctime_ns: 0, ..after.stamp } == Stamp { ctime_ns: 0, ..before.stamp }
        };
        if let Some(after) = after.filter(is_ours) {
            moved.push((path.clone(), after.stamp, item.content.clone()));
        }
    }
    Ok(moved)
}

fn make_the_rest(root: &Folder, target: &Target) -> Result<(), WorkspaceError> {
    let mut folders = FolderCache::new(root);
    for (path, want) in &target.wants {
        match &want.kind {
            FileKind::File { .. } => {}
            FileKind::Folder => {
                root.make_folders(path.as_str()).map_err(WorkspaceError::at(path))?;
            }
            FileKind::Link { target } => {
                let folder = folders.make(path).map_err(WorkspaceError::at(path))?;
                let is_there = folder
                    .link_target(path.name())
                    .is_ok_and(|found| found.as_bytes() == target.as_bytes());
                if !is_there {
                    let made = folder.make_link(path.name(), target);
                    made.map_err(WorkspaceError::at(path))?;
                }
            }
        }
    }
    Ok(())
}

/// The names, before the marker says that they are there.
fn sync_names(root: &Folder, target: &Target, items: &[Item]) -> Result<(), WorkspaceError> {
    let is_changed = !items.is_empty()
        || !target.deletes.is_empty()
        || !target.vanished.is_empty()
        || target.is_restore
        || target.wants.values().any(|want| !matches!(want.kind, FileKind::File { .. }));
    if !is_changed {
        return Ok(());
    }
    let mut names = BTreeSet::from([""]);
    for item in items {
        let path = item.path.as_str();
        names.extend(path.match_indices('/').map(|(end, _)| &path[..end]));
    }
    if target.is_restore || names.len() > FOLDERS_SYNCED_ONE_BY_ONE_MAX {
        return root.sync_file_system().map_err(WorkspaceError::at(STAGING));
    }
    for name in names {
        let synced = root.folder(name).and_then(|folder| folder.sync());
        synced.map_err(WorkspaceError::at(name))?;
    }
    Ok(())
}

/// Waits, if the newest bytes are so new that the clock could not tell them from newer ones.
pub(crate) fn remember(cache: &mut StatCache, rows: Vec<(FilePath, Stamp, ContentId)>) {
    let newest_ns = rows.iter().map(|(_, stamp, _)| stamp.mtime_ns).max().unwrap_or_default();
    let age_ns = u64::try_from(now_ns().saturating_sub(newest_ns)).unwrap_or_default();
    let missing =
        (CLOCK_TICK + Duration::from_millis(1)).saturating_sub(Duration::from_nanos(age_ns));
    if !missing.is_zero() && newest_ns <= now_ns() {
        std::thread::sleep(missing);
    }
    for (path, stamp, content) in rows {
        cache.insert(path, stamp, content);
    }
}
