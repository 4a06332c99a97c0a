//! Files that Dormouse writes into an agent's workspace: its config, with secrets in it.
//!
//! Owner: `launch`, before the agent is executed. Invariants: a file is there whole or as it was;
//! nothing is written through a link that the agent left; nobody but the owner reads it before it
//! has its mode. Absent: fields (`template`), checkpoints, which leave these files out (`desk`).

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use dormouse_core::manifest::FilePath;
use rustix::fs::{Mode, fchmod};
use rustix::io::Errno;

use crate::files::beneath::Folder;
use crate::frames::RenderedFile;

/// What a file is called while it is written.
const UNFINISHED: &str = ".dormouse-render";

#[derive(Debug, thiserror::Error)]
pub(crate) enum RenderError {
    #[error("the workspace cannot be opened: {0}")]
    Workspace(Errno),
    #[error("its file {path} cannot be written: {source}")]
    File { path: FilePath, source: io::Error },
}

pub(crate) fn render(workspace: &Path, files: &[RenderedFile]) -> Result<(), RenderError> {
    if files.is_empty() {
        return Ok(());
    }
    let root = Folder::root(workspace).map_err(RenderError::Workspace)?;
    files.iter().try_for_each(|file| {
        write(&root, file).map_err(|source| RenderError::File { path: file.path.clone(), source })
    })
}

fn write(root: &Folder, file: &RenderedFile) -> io::Result<()> {
    let path = file.path.as_str();
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let folder = match folder {
        "" => root.folder("")?,
        folder => root.make_folders(folder)?,
    };
    // Of a bridge that was killed here, or of an agent that would be in the way.
    folder.remove(UNFINISHED)?;
    let mut unfinished = File::from(folder.create_file(UNFINISHED, false)?);
    fchmod(&unfinished, Mode::RUSR | Mode::WUSR)?;
    unfinished.write_all(file.text.0.as_bytes())?;
    fchmod(&unfinished, Mode::from_raw_mode(file.mode))?;
    folder.move_to(UNFINISHED, &folder, name)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::frames::Secret;
    use crate::testing::Scratch;

    fn file(path: &str, text: &str, mode: u32) -> RenderedFile {
        RenderedFile { path: path.parse().unwrap(), text: Secret(text.into()), mode }
    }

    #[test]
    fn files_are_written_anew_with_their_mode_and_never_through_a_link() {
        let scratch = Scratch::new();
        let (outside, work) = (scratch.path().join("outside"), scratch.path().join("work"));
        fs::create_dir_all(&outside).unwrap();
        fs::create_dir_all(&work).unwrap();
        fs::write(outside.join("victim"), "mine").unwrap();
        symlink(&outside, work.join("linked")).unwrap();
        symlink(outside.join("victim"), work.join("plain")).unwrap();
        let files = [
            file("linked/victim", "one", 0o600),
            file("plain", "two", 0o640),
            file("deep/er/c.json", "three", 0o400),
        ];
        for _ in 0..2 {
            render(&work, &files).unwrap();
        }
        assert_eq!(fs::read_to_string(outside.join("victim")).unwrap(), "mine");
        let there = |path: &str| {
            let path = work.join(path);
            let mode = fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777;
            (fs::read_to_string(path).unwrap(), mode)
        };
        assert_eq!(there("linked/victim"), ("one".to_owned(), 0o600));
        assert_eq!(there("plain"), ("two".to_owned(), 0o640));
        assert_eq!(there("deep/er/c.json"), ("three".to_owned(), 0o400));
        assert_eq!(fs::read_dir(&work).unwrap().count(), 3, "nothing unfinished is left");
    }

    #[test]
    fn a_folder_in_the_place_of_a_file_makes_way() {
        let scratch = Scratch::new();
        fs::create_dir_all(scratch.path().join("a.conf/full")).unwrap();
        render(scratch.path(), &[file("a.conf", "x", 0o600)]).unwrap();
        assert_eq!(fs::read_to_string(scratch.path().join("a.conf")).unwrap(), "x");
    }

    #[test]
    fn what_cannot_be_written_is_named() {
        let error = render(Path::new("/no/such"), &[file("a", "x", 0o600)]).unwrap_err();
        assert!(error.to_string().contains("workspace"), "{error}");
    }
}
