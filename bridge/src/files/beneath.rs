//! Files and folders below one root, reached through its handle alone.
//!
//! Owner: whoever works on a workspace goes through here. Invariants: no link is ever followed, so
//! that nothing outside of the root is read, written or removed, even while an agent swaps folders
//! for links; modes are 0644 and 0755; a file that is replaced is replaced by a rename, so that
//! other names of it keep their bytes. Absent: what is to be there, and hashes.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, StatxFlags, mkdirat, openat, openat2,
    readlinkat, renameat, statx, symlinkat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

const FILE_MODE: Mode = Mode::from_raw_mode(0o644);
const EXECUTABLE_MODE: Mode = Mode::from_raw_mode(0o755);
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);
/// Against an agent that puts back what was just removed, for as long as it can.
const TRIES_MAX: usize = 64;
/// Folders that are open at a time while a tree is removed.
const DEPTH_MAX: usize = 32;
const LIST_BYTES: usize = 32 << 10;
/// What is too deep to be removed in its place is moved up to a name like this first.
const MOVED_UP: &str = ".dormouse-old";

/// The kernel, or what filters its calls, has no openat2.
static IS_WITHOUT_OPENAT2: AtomicBool = AtomicBool::new(false);

/// A folder that is held open: the root, or one below it.
#[derive(Debug)]
pub(crate) struct Folder(OwnedFd);

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Folder,
    Link,
    /// A socket, a pipe, a device.
    Other,
}

/// By what a file that was not touched is known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) bytes: u64,
    pub(crate) mtime_ns: i64,
    pub(crate) ctime_ns: i64,
    pub(crate) inode: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) kind: Kind,
    pub(crate) stamp: Stamp,
    pub(crate) is_executable: bool,
    /// Exactly one of the two modes that files have here.
    has_plain_mode: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: CString,
    pub(crate) kind: Option<Kind>,
}

/// By what a folder that was made anew under the same name is told from the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    inode: u64,
    /// 0 where the file system does not know.
    born_ns: i64,
}

impl Folder {
    pub(crate) fn identity(&self) -> Result<Identity, Errno> {
        let wanted = StatxFlags::INO | StatxFlags::BTIME;
        let stat = statx(&self.0, c"", AtFlags::EMPTY_PATH, wanted)?;
        let knows_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        let born_ns = if knows_birth { ns_of(stat.stx_btime) } else { 0 };
        Ok(Identity { inode: stat.stx_ino, born_ns })
    }

    /// The root itself; what leads to it is its owner's business.
    pub(crate) fn root(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::empty()).map(Self)
    }

    /// The folder at `path` below this one, which is relative and has no `..`; empty is this one.
    pub(crate) fn folder(&self, path: &str) -> Result<Self, Errno> {
        if path.is_empty() {
            return self.open(".", OFlags::DIRECTORY | OFlags::RDONLY).map(Self);
        }
        if !IS_WITHOUT_OPENAT2.load(Ordering::Relaxed) {
            match self.folder_at_once(path) {
                Err(Errno::NOSYS | Errno::PERM) => {
                    IS_WITHOUT_OPENAT2.store(true, Ordering::Relaxed);
                }
                opened => return opened,
            }
        }
        self.folder_by_steps(path)
    }

    fn folder_at_once(&self, path: &str) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..TRIES_MAX {
            match openat2(&self.0, path, flags, Mode::empty(), resolve) {
                // Something was renamed meanwhile, and the kernel is not sure.
                Err(Errno::AGAIN) => {}
                opened => return opened.map(Self),
            }
        }
        Err(Errno::AGAIN)
    }

    fn folder_by_steps(&self, path: &str) -> Result<Self, Errno> {
        let mut folder = self.folder("")?;
        for name in path.split('/') {
            folder = folder.child(name)?;
        }
        Ok(folder)
    }

    fn child(&self, name: impl rustix::path::Arg) -> Result<Self, Errno> {
        self.open(name, OFlags::DIRECTORY | OFlags::RDONLY).map(Self)
    }

    fn open(&self, name: impl rustix::path::Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
        openat(&self.0, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }

    /// The folder at `path`, made where it is missing. Whatever else lies in its way is removed.
    pub(crate) fn make_folders(&self, path: &str) -> Result<Self, Errno> {
        match self.folder(path) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
            opened => return opened,
        }
        let mut folder = self.folder("")?;
        for name in path.split('/') {
            folder = folder.make_child(name)?;
        }
        Ok(folder)
    }

    fn make_child(&self, name: &str) -> Result<Self, Errno> {
        for _ in 0..TRIES_MAX {
            match self.child(name) {
                Err(Errno::NOENT) => match mkdirat(&self.0, name, FOLDER_MODE) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                },
                Err(Errno::NOTDIR | Errno::LOOP) => self.remove_plain(name)?,
                opened => return opened,
            }
        }
        Err(Errno::BUSY)
    }

    /// `None`: nothing is there.
    pub(crate) fn look(&self, name: impl rustix::path::Arg) -> Result<Option<Seen>, Errno> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match statx(&self.0, name, flags, StatxFlags::BASIC_STATS) {
            Ok(stat) => Ok(Some(Seen::of(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// To be read; nothing that is no regular file is opened, and no pipe waited for.
    pub(crate) fn open_file(&self, name: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = self.open(name, flags)?;
        match seen_of(&file)?.kind {
            Kind::File => Ok(file),
            Kind::Folder => Err(Errno::ISDIR),
            Kind::Link | Kind::Other => Err(Errno::INVAL),
        }
    }

    /// To be written; there must be nothing yet.
    pub(crate) fn create_file(&self, name: &str, is_executable: bool) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = openat(&self.0, name, flags | OFlags::CLOEXEC, FILE_MODE)?;
        set_mode(&file, is_executable)?;
        Ok(file)
    }

    /// To be written on at its end.
    pub(crate) fn append_to(&self, name: &str) -> Result<OwnedFd, Errno> {
        self.open(name, OFlags::WRONLY | OFlags::APPEND)
    }

    /// Moves `from` here to `name` in `folder`, in place of whatever is there.
    pub(crate) fn move_to(&self, from: &str, folder: &Folder, name: &str) -> Result<(), Errno> {
        for _ in 0..TRIES_MAX {
            match renameat(&self.0, from, &folder.0, name) {
                Err(Errno::ISDIR | Errno::NOTEMPTY | Errno::EXIST) => folder.remove(name)?,
                moved => return moved,
            }
        }
        Err(Errno::BUSY)
    }

    pub(crate) fn make_link(&self, name: &str, target: &str) -> Result<(), Errno> {
        for _ in 0..TRIES_MAX {
            match symlinkat(target, &self.0, name) {
                Err(Errno::EXIST) => self.remove(name)?,
                made => return made,
            }
        }
        Err(Errno::BUSY)
    }

    pub(crate) fn link_target(&self, name: impl rustix::path::Arg) -> Result<CString, Errno> {
        readlinkat(&self.0, name, Vec::new())
    }

    /// Sets the mode of a regular file here.
    pub(crate) fn set_file_mode(&self, name: &str, is_executable: bool) -> Result<(), Errno> {
        set_mode(&self.open_file(name)?, is_executable)
    }

    /// In the order in which the file system gives them.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, Errno> {
        let listed = self.open(".", OFlags::DIRECTORY | OFlags::RDONLY)?;
        let mut buffer = Vec::with_capacity(LIST_BYTES);
        let mut list = RawDir::new(listed, buffer.spare_capacity_mut());
        let mut entries = Vec::new();
        while let Some(entry) = list.next() {
            let entry = entry?;
            if entry.file_name() == c"." || entry.file_name() == c".." {
                continue;
            }
            let kind = kind_of(entry.file_type());
            entries.push(Entry { name: entry.file_name().to_owned(), kind });
        }
        Ok(entries)
    }

    /// Removes an empty folder; `false` if it is not one.
    pub(crate) fn remove_empty_folder(&self, name: &str) -> Result<bool, Errno> {
        match unlinkat(&self.0, name, AtFlags::REMOVEDIR) {
            Ok(()) => Ok(true),
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Removes anything but a folder, of which it makes nothing.
    fn remove_plain(&self, name: impl rustix::path::Arg) -> Result<(), Errno> {
        match unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// Removes whatever is there, a folder with all that is in it. Links are removed, not followed.
    pub(crate) fn remove(&self, name: impl rustix::path::Arg) -> Result<(), Errno> {
        let name = name.into_c_str()?.into_owned();
        let mut waiting = vec![name];
        let mut moved = 0;
        while let Some(name) = waiting.pop() {
            for tried in 0.. {
                match self.remove_here(&name, self, &mut waiting, &mut moved, DEPTH_MAX) {
                    Err(Errno::NOTEMPTY | Errno::EXIST) if tried < TRIES_MAX => {}
                    Err(errno) => return Err(errno),
                    Ok(()) => break,
                }
            }
        }
        Ok(())
    }

    fn remove_here(
        &self,
        name: &CStr,
        top: &Folder,
        waiting: &mut Vec<CString>,
        moved: &mut u64,
        depth_left: usize,
    ) -> Result<(), Errno> {
        match unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
        if depth_left == 0 {
            let up = format!("{MOVED_UP}-{}-{moved}", rustix::process::getpid());
            *moved += 1;
            renameat(&self.0, name, &top.0, &up)?;
            waiting.push(CString::new(up).map_err(|_| Errno::INVAL)?);
            return Ok(());
        }
        let folder = match self.child(name) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(Errno::NOTEMPTY),
            opened => opened?,
        };
        for entry in folder.entries()? {
            folder.remove_here(&entry.name, top, waiting, moved, depth_left - 1)?;
        }
        unlinkat(&self.0, name, AtFlags::REMOVEDIR)
    }

    /// Puts the names in this folder on disk.
    pub(crate) fn sync(&self) -> Result<(), Errno> {
        rustix::fs::fsync(&self.0)
    }

    /// Puts everything on disk that was written to this file system.
    pub(crate) fn sync_file_system(&self) -> Result<(), Errno> {
        rustix::fs::syncfs(&self.0)
    }
}

/// What an open file is now.
pub(crate) fn seen_of(file: &OwnedFd) -> Result<Seen, Errno> {
    statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map(|stat| Seen::of(&stat))
}

fn set_mode(file: &OwnedFd, is_executable: bool) -> Result<(), Errno> {
    rustix::fs::fchmod(file, if is_executable { EXECUTABLE_MODE } else { FILE_MODE })
}

fn kind_of(file_type: FileType) -> Option<Kind> {
    match file_type {
        FileType::RegularFile => Some(Kind::File),
        FileType::Directory => Some(Kind::Folder),
        FileType::Symlink => Some(Kind::Link),
        FileType::Unknown => None,
        _ => Some(Kind::Other),
    }
}

fn ns_of(time: rustix::fs::StatxTimestamp) -> i64 {
    time.tv_sec.saturating_mul(1_000_000_000).saturating_add(i64::from(time.tv_nsec))
}

impl Seen {
    fn of(stat: &rustix::fs::Statx) -> Self {
        let mode = u32::from(stat.stx_mode);
        Self {
            kind: kind_of(FileType::from_raw_mode(mode)).unwrap_or(Kind::Other),
            stamp: Stamp {
                bytes: stat.stx_size,
                mtime_ns: ns_of(stat.stx_mtime),
                ctime_ns: ns_of(stat.stx_ctime),
                inode: stat.stx_ino,
            },
            is_executable: mode & 0o100 != 0,
            has_plain_mode: [0o644, 0o755].contains(&(mode & 0o7777)),
        }
    }

    /// Its mode is the one that a file of ours has.
    pub(crate) fn has_mode(&self, is_executable: bool) -> bool {
        self.has_plain_mode && self.is_executable == is_executable
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::{MetadataExt as _, symlink};
    use std::sync::Arc;

    use super::*;
    use crate::testing::Scratch;

    struct Place {
        scratch: Scratch,
        root: Folder,
    }

    /// A root, and beside it what must not be touched.
    fn place() -> Place {
        let scratch = Scratch::new();
        fs::create_dir(scratch.path().join("root")).unwrap();
        fs::create_dir(scratch.path().join("outside")).unwrap();
        fs::write(scratch.path().join("outside/kept"), "as it was").unwrap();
        let root = Folder::root(&scratch.path().join("root")).unwrap();
        Place { scratch, root }
    }

    impl Place {
        fn inside(&self, path: &str) -> std::path::PathBuf {
            self.scratch.path().join("root").join(path)
        }

        fn write(&self, folder: &str, name: &str, text: &str) -> Result<(), Errno> {
            let file = self.root.create_file(".dormouse-t", false)?;
            fs::File::from(file).write_all(text.as_bytes()).unwrap();
            let moved = self
                .root
                .make_folders(folder)
                .and_then(|folder| self.root.move_to(".dormouse-t", &folder, name));
            if moved.is_err() {
                self.root.remove(".dormouse-t")?;
            }
            moved
        }

        fn assert_outside_is_untouched(&self) {
            let outside = self.scratch.path().join("outside");
            let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|e| e.unwrap()).collect();
            assert_eq!(names.len(), 1, "{names:?}");
            assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "as it was");
        }
    }

    #[test]
    fn links_on_the_way_are_replaced_and_never_followed() {
        let place = place();
        symlink("../outside", place.inside("a")).unwrap();
        assert!(place.root.folder("a").is_err());
        assert!(place.root.folder_by_steps("a").is_err());
        place.write("a/b", "kept", "new").unwrap();
        assert_eq!(fs::read_to_string(place.inside("a/b/kept")).unwrap(), "new");
        symlink("../../outside/kept", place.inside("a/link")).unwrap();
        assert!(place.root.folder("a").unwrap().open_file("link").is_err());
        place.write("a", "link", "new").unwrap();
        assert!(!place.inside("a/link").is_symlink());
        symlink("../outside", place.inside("gone")).unwrap();
        place.root.remove("gone").unwrap();
        fs::create_dir(place.inside("tree")).unwrap();
        symlink("../../outside", place.inside("tree/link")).unwrap();
        place.root.remove("tree").unwrap();
        assert!(!place.inside("tree").exists());
        place.assert_outside_is_untouched();
    }

    #[test]
    fn a_hard_link_keeps_its_bytes_when_its_other_name_is_replaced() {
        let place = place();
        fs::hard_link(place.scratch.path().join("outside/kept"), place.inside("kept")).unwrap();
        place.write("", "kept", "new").unwrap();
        assert_eq!(fs::read_to_string(place.inside("kept")).unwrap(), "new");
        place.assert_outside_is_untouched();
    }

    #[test]
    fn pipes_sockets_and_devices_are_not_opened_and_can_be_replaced() {
        let place = place();
        let mode = Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(&place.root, "pipe", FileType::Fifo, mode, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(place.inside("socket")).unwrap();
        for name in ["pipe", "socket"] {
            assert_eq!(place.root.look(name).unwrap().unwrap().kind, Kind::Other);
            assert!(place.root.open_file(name).is_err(), "{name}");
            place.write("", name, "new").unwrap();
            assert_eq!(fs::read_to_string(place.inside(name)).unwrap(), "new");
        }
    }

    #[test]
    fn folders_and_files_make_way_for_each_other() {
        let place = place();
        fs::create_dir_all(place.inside("a/b/c")).unwrap();
        fs::write(place.inside("a/b/c/d"), "").unwrap();
        place.write("", "a", "a file").unwrap();
        assert_eq!(fs::read_to_string(place.inside("a")).unwrap(), "a file");
        place.write("a/b", "c", "below").unwrap();
        assert_eq!(fs::read_to_string(place.inside("a/b/c")).unwrap(), "below");
        place.root.make_link("a", "elsewhere").unwrap();
        assert_eq!(fs::read_link(place.inside("a")).unwrap().to_str(), Some("elsewhere"));
    }

    #[test]
    fn modes_are_masked_and_set_again() {
        let place = place();
        drop(place.root.create_file("x", true).unwrap());
        let mode = || fs::metadata(place.inside("x")).unwrap().mode() & 0o7777;
        assert_eq!(mode(), 0o755);
        rustix::fs::chmodat(&place.root, "x", Mode::from_raw_mode(0o4777), AtFlags::empty())
            .unwrap();
        assert!(!place.root.look("x").unwrap().unwrap().has_mode(true));
        place.root.set_file_mode("x", true).unwrap();
        assert_eq!(mode(), 0o755);
        place.root.set_file_mode("x", false).unwrap();
        assert_eq!(mode(), 0o644);
    }

    #[test]
    fn a_tree_deeper_than_any_path_is_removed() {
        let place = place();
        let mut folder = place.root.make_folders("deep").unwrap();
        for _ in 0..1_500 {
            mkdirat(&folder, "d", FOLDER_MODE).unwrap();
            folder = folder.child("d").unwrap();
        }
        drop(folder);
        place.root.remove("deep").unwrap();
        assert!(place.root.entries().unwrap().is_empty());
    }

    /// An agent that swaps a folder for a link to the outside, again and again, while files are
    /// written into it, read from it and removed from it.
    #[test]
    fn nothing_leaves_the_root_while_folders_are_swapped_for_links() {
        let place = place();
        fs::create_dir(place.inside("d")).unwrap();
        symlink("../outside", place.inside("l")).unwrap();
        let is_over = Arc::new(AtomicBool::new(false));
        let swapping = std::thread::spawn({
            let (d, l) = (place.inside("d"), place.inside("l"));
            let is_over = is_over.clone();
            move || {
                let mut swaps = 0u64;
                while !is_over.load(Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    let cwd = rustix::fs::CWD;
                    swaps += u64::from(rustix::fs::renameat_with(cwd, &d, cwd, &l, flags).is_ok());
                    // What was removed as an obstacle comes back.
                    if !l.is_symlink() && !d.is_symlink() {
                        let _there = fs::remove_dir_all(&l);
                        let _there = symlink("../outside", &l);
                    }
                    let _there = fs::create_dir(&d);
                }
                swaps
            }
        });
        let mut written = 0;
        for round in 0..500 {
            written += u32::from(place.write("d", "kept", "from inside").is_ok());
            written += u32::from(place.write("d/sub", "new", "from inside").is_ok());
            let opened = place.root.folder("d").and_then(|folder| folder.open_file("kept"));
            if let Ok(file) = opened {
                let text = std::io::read_to_string(fs::File::from(file)).unwrap();
                assert_eq!(text, "from inside");
            }
            if let Ok(folder) = place.root.folder_by_steps("d") {
                assert_ne!(
                    fs::metadata(place.scratch.path().join("outside")).unwrap().ino(),
                    seen_of(&folder.0).unwrap().stamp.inode,
                );
            }
            if round % 50 == 0 {
                let _raced = place.root.remove("d");
            }
        }
        is_over.store(true, Ordering::Relaxed);
        let swaps = swapping.join().unwrap();
        assert!(swaps > 0 && written > 0, "{swaps} swaps, {written} files");
        place.assert_outside_is_untouched();
    }
}
