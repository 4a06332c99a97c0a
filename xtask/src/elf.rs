//! Reads an ELF file as far as needed to say whether it runs without a loader or libraries.
//!
//! Owner: `static_bridge`. Invariants: every offset is checked against the file; a file that is
//! not understood is an error and never "static". Absent: 32-bit and big-endian files.

use std::ops::Range;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Linkage {
    /// The program asks the kernel for a loader.
    pub(crate) has_interpreter: bool,
    /// How many shared libraries it needs.
    pub(crate) libraries_needed: usize,
}

impl Linkage {
    pub(crate) fn is_static(&self) -> bool {
        !self.has_interpreter && self.libraries_needed == 0
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ElfError {
    #[error("not an ELF file")]
    NotElf,
    #[error("not a 64-bit little-endian ELF file")]
    OtherLayout,
    #[error("the file ends before byte {end}")]
    Short { end: usize },
}

// Offsets and constants from the System V ABI, chapters "Object Files" and "Program Loading".
const CLASS_64: u8 = 2;
const DATA_LITTLE_ENDIAN: u8 = 1;
const HEADER_PROGRAM_OFFSET: usize = 0x20;
const HEADER_ENTRY_SIZE: usize = 0x36;
const HEADER_ENTRY_COUNT: usize = 0x38;
const SEGMENT_DYNAMIC: u64 = 2;
const SEGMENT_INTERPRETER: u64 = 3;
const SEGMENT_OFFSET: usize = 0x08;
const SEGMENT_FILE_SIZE: usize = 0x20;
const DYNAMIC_ENTRY_SIZE: usize = 16;
const DYNAMIC_END: u64 = 0;
const DYNAMIC_NEEDED: u64 = 1;

pub(crate) fn linkage(file: &[u8]) -> Result<Linkage, ElfError> {
    if !file.starts_with(b"\x7fELF") {
        return Err(ElfError::NotElf);
    }
    if number(file, 4, 1)? != u64::from(CLASS_64)
        || number(file, 5, 1)? != u64::from(DATA_LITTLE_ENDIAN)
    {
        return Err(ElfError::OtherLayout);
    }
    let table = offset(file, HEADER_PROGRAM_OFFSET)?;
    let entry_size = to_usize(number(file, HEADER_ENTRY_SIZE, 2)?);
    let entry_count = to_usize(number(file, HEADER_ENTRY_COUNT, 2)?);
    let mut linkage = Linkage { has_interpreter: false, libraries_needed: 0 };
    for index in 0..entry_count {
        let entry = table.saturating_add(index * entry_size);
        match number(file, entry, 4)? {
            SEGMENT_INTERPRETER => linkage.has_interpreter = true,
            SEGMENT_DYNAMIC => {
                let start = offset(file, entry.saturating_add(SEGMENT_OFFSET))?;
                let size = offset(file, entry.saturating_add(SEGMENT_FILE_SIZE))?;
                linkage.libraries_needed += needed(file, start..start.saturating_add(size))?;
            }
            _ => {}
        }
    }
    Ok(linkage)
}

fn needed(file: &[u8], section: Range<usize>) -> Result<usize, ElfError> {
    let mut count = 0;
    for entry in section.step_by(DYNAMIC_ENTRY_SIZE) {
        match number(file, entry, 8)? {
            DYNAMIC_END => break,
            DYNAMIC_NEEDED => count += 1,
            _ => {}
        }
    }
    Ok(count)
}

fn offset(file: &[u8], at: usize) -> Result<usize, ElfError> {
    number(file, at, 8).map(to_usize)
}

/// Past any file on a machine that cannot count so far, hence refused as short.
fn to_usize(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// A little-endian number of at most 8 bytes.
fn number(file: &[u8], at: usize, len: usize) -> Result<u64, ElfError> {
    let end = at.saturating_add(len);
    let bytes = file.get(at..end).ok_or(ElfError::Short { end })?;
    Ok(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header, one program header per kind, and a dynamic section with these tags.
    fn elf(kinds: &[u32], tags: &[u64]) -> Vec<u8> {
        const TABLE: usize = 64;
        const ENTRY: usize = 56;
        let dynamic = TABLE + kinds.len() * ENTRY;
        let mut file = vec![0; dynamic];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x20..0x28].copy_from_slice(&(TABLE as u64).to_le_bytes());
        file[0x36..0x38].copy_from_slice(&(ENTRY as u16).to_le_bytes());
        file[0x38..0x3a].copy_from_slice(&(kinds.len() as u16).to_le_bytes());
        for (index, kind) in kinds.iter().enumerate() {
            let entry = TABLE + index * ENTRY;
            file[entry..entry + 4].copy_from_slice(&kind.to_le_bytes());
            file[entry + 8..entry + 16].copy_from_slice(&(dynamic as u64).to_le_bytes());
            let size = tags.len() as u64 * 16;
            file[entry + 32..entry + 40].copy_from_slice(&size.to_le_bytes());
        }
        for tag in tags {
            file.extend(tag.to_le_bytes());
            file.extend(0u64.to_le_bytes());
        }
        file
    }

    #[test]
    fn a_program_without_loader_and_libraries_is_static() {
        let static_pie = elf(&[1, 2, 6], &[5, 6, 0, 1]);
        let expected = Linkage { has_interpreter: false, libraries_needed: 0 };
        assert_eq!(linkage(&static_pie), Ok(expected), "tags after the end do not count");
        assert!(linkage(&static_pie).is_ok_and(|linkage| linkage.is_static()));
    }

    #[test]
    fn a_loader_or_a_library_makes_it_dynamic() {
        assert!(linkage(&elf(&[1, 3], &[])).is_ok_and(|linkage| !linkage.is_static()));
        let library = linkage(&elf(&[2], &[1, 5, 1, 0])).expect("it is whole");
        assert_eq!(library, Linkage { has_interpreter: false, libraries_needed: 2 });
        assert!(!library.is_static());
    }

    #[test]
    fn this_very_test_binary_is_dynamic() {
        let path = std::env::current_exe().expect("a running test has a file");
        let file = std::fs::read(path).expect("a running test can be read");
        let linkage = linkage(&file).expect("it runs, so it is ELF");
        assert!(linkage.has_interpreter && linkage.libraries_needed > 0, "{linkage:?}");
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert_eq!(linkage(b"#!/bin/sh\n"), Err(ElfError::NotElf));
        assert_eq!(linkage(b"\x7fELF\x01\x01"), Err(ElfError::OtherLayout));
        assert_eq!(linkage(b"\x7fELF\x02\x01"), Err(ElfError::Short { end: 0x28 }));
        let whole = elf(&[2], &[1, 0]);
        for len in 6..whole.len() - 8 {
            assert!(matches!(linkage(&whole[..len]), Err(ElfError::Short { .. })), "{len}");
        }
        let mut far = elf(&[2], &[0]);
        far[0x20..0x28].fill(0xff);
        assert!(matches!(linkage(&far), Err(ElfError::Short { .. })));
    }
}
