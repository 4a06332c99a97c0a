//! A turn's whole output as a file of its workspace, for a reply that holds only a part of it.
//!
//! Owner: `reply`, which makes one for a turn whose output is more than a reply holds. Invariants:
//! it is a new file in the workspace's root, of a name that no other turn has: nothing that was
//! there is touched and no link is followed; it has at most [`BYTES_MAX`]; whatever goes wrong is
//! kept as words, and none of it stops the turn. Absent: waiting for the disk, which has the bytes
//! when it has them, as it has what the agent itself writes; what of the output is in the reply.

use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};

use dormouse_core::id::TurnId;
use rustix::fs::{AtFlags, unlinkat};

use crate::adapter::excerpt;
use crate::files::beneath::Folder;

/// What a runaway loop may take of a disk: a tenth of what one workspace may hold.
const BYTES_MAX: u64 = 1 << 30;
/// Words of the system in a reply are cut at this.
const TROUBLE_BYTES_MAX: usize = 200;

/// Where one turn's file is going to be, if there is to be one.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    workspace: PathBuf,
    name: String,
}

impl Place {
    pub(crate) fn of(workspace: &Path, turn: TurnId) -> Self {
        Self { workspace: workspace.to_path_buf(), name: format!("output-{turn}.txt") }
    }
}

#[derive(Debug)]
pub(crate) struct OutputFile {
    name: String,
    bytes_max: u64,
    /// All that was to be kept.
    offered_bytes: u64,
    kept: Result<Kept, String>,
}

#[derive(Debug)]
struct Kept {
    folder: Folder,
    file: File,
    bytes: u64,
}

impl OutputFile {
    pub(crate) fn create(place: &Place) -> Self {
        Self::bounded(place, BYTES_MAX)
    }

    fn bounded(place: &Place, bytes_max: u64) -> Self {
        let created = Folder::root(&place.workspace).and_then(|folder| {
            let file = folder.create_file(&place.name, false)?.into();
            Ok(Kept { folder, file, bytes: 0 })
        });
        let kept = created.map_err(|errno| trouble(&errno.into()));
        Self { name: place.name.clone(), bytes_max, offered_bytes: 0, kept }
    }

    /// Takes these bytes; what is beyond the bound, or after a failure, is counted only.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.offered_bytes += bytes.len() as u64;
        let Ok(kept) = &mut self.kept else { return };
        let room = usize::try_from(self.bytes_max - kept.bytes).unwrap_or(usize::MAX);
        let bytes = &bytes[..bytes.len().min(room)];
        match kept.file.write_all(bytes) {
            Ok(()) => kept.bytes += bytes.len() as u64,
            Err(error) => {
                kept.give_room_back(&self.name);
                self.kept = Err(trouble(&error));
            }
        }
    }

    /// Begins again with nothing in it.
    pub(crate) fn empty(&mut self) {
        self.offered_bytes = 0;
        let Ok(kept) = &mut self.kept else { return };
        match kept.file.set_len(0).and_then(|()| kept.file.rewind()) {
            Ok(()) => kept.bytes = 0,
            Err(error) => self.kept = Err(trouble(&error)),
        }
    }

    /// How much there is in all, and where it is.
    pub(crate) fn words(&self) -> String {
        let Self { name, offered_bytes, .. } = self;
        match &self.kept {
            Ok(kept) if kept.bytes == *offered_bytes => {
                format!("{offered_bytes} bytes in all, the whole is in {name}")
            }
            Ok(kept) => {
                format!("{offered_bytes} bytes in all, the first {} are in {name}", kept.bytes)
            }
            Err(trouble) => {
                format!("{offered_bytes} bytes in all, which {name} could not keep: {trouble}")
            }
        }
    }
}

impl Kept {
    /// A disk that is full is full for everybody; a part that nobody asked for is not worth that.
    fn give_room_back(&self, name: &str) {
        // The file is not called kept in either case.
        let _emptied = self.file.set_len(0);
        let _removed = unlinkat(&self.folder, name, AtFlags::empty());
    }
}

fn trouble(error: &std::io::Error) -> String {
    excerpt(&error.to_string(), TROUBLE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use dormouse_core::id::MessageId;

    use super::*;
    use crate::testing::Scratch;

    fn turn() -> TurnId {
        TurnId { message: MessageId(7), attempt: 2 }
    }

    const NAME: &str = "output-msg_00000000000000000000000000000007.2.txt";

    #[test]
    fn it_has_what_came_under_the_turn_s_name() {
        let scratch = Scratch::new();
        let mut output = OutputFile::create(&Place::of(scratch.path(), turn()));
        output.write(b"one \xff");
        output.write(b"two");
        assert_eq!(fs::read(scratch.path().join(NAME)).unwrap(), b"one \xfftwo");
        assert_eq!(output.words(), format!("8 bytes in all, the whole is in {NAME}"));
        output.empty();
        output.write(b"3");
        assert_eq!(fs::read(scratch.path().join(NAME)).unwrap(), b"3");
        assert_eq!(output.words(), format!("1 bytes in all, the whole is in {NAME}"));
    }

    #[test]
    fn it_ends_at_its_bound_and_counts_on() {
        let scratch = Scratch::new();
        let place = Place::of(scratch.path(), turn());
        for (bound, words) in [(5, "the first 5 are"), (6, "the whole is")] {
            let mut output = OutputFile::bounded(&place, bound);
            output.write(b"1234");
            output.write(b"56");
            assert_eq!(output.words(), format!("6 bytes in all, {words} in {NAME}"));
            let kept = fs::read(scratch.path().join(NAME)).unwrap();
            assert_eq!(kept, &b"123456"[..usize::try_from(bound).unwrap()]);
            fs::remove_file(scratch.path().join(NAME)).unwrap();
        }
    }

    #[test]
    fn what_lies_in_its_place_is_left_alone_and_no_link_is_followed() {
        let scratch = Scratch::new();
        let workspace = scratch.path().join("workspace");
        fs::create_dir(&workspace).unwrap();
        fs::write(scratch.path().join("outside"), "as it was").unwrap();
        symlink("../outside", workspace.join(NAME)).unwrap();
        let mut output = OutputFile::create(&Place::of(&workspace, turn()));
        output.write(b"new");
        let words = output.words();
        assert!(words.starts_with("3 bytes in all, which output-msg_"), "{words}");
        assert!(words.contains("could not keep: File exists"), "{words}");
        assert_eq!(fs::read_to_string(scratch.path().join("outside")).unwrap(), "as it was");
        assert!(workspace.join(NAME).is_symlink());
        let mut nowhere = OutputFile::create(&Place::of(&scratch.path().join("gone"), turn()));
        nowhere.write(b"x");
        assert!(nowhere.words().contains("No such file or directory"), "{}", nowhere.words());
    }

    #[test]
    fn a_file_that_cannot_grow_is_removed_and_counts_on() {
        let scratch = Scratch::new();
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut output = OutputFile::create(&Place::of(scratch.path(), turn()));
        output.write(b"some");
        let kept = output.kept.as_mut().unwrap();
        kept.file = full;
        output.write(b"more");
        output.write(b"and more");
        let words = output.words();
        assert!(words.starts_with("16 bytes in all") && words.contains("No space left"), "{words}");
        assert!(!scratch.path().join(NAME).exists());
    }
}
