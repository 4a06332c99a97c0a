//! Uploads and checkpoints: rows that name blobs.
//!
//! Owner: the engine writes through `Batch`, the daemon's files read. Invariants: numbers have no
//! gap; a checkpoint takes the place of the uploads that are in it; what is named here is
//! referenced, and everything else of the blobs may go. Absent: blobs.

use std::collections::BTreeSet;

use dormouse_core::id::SessionId;
use dormouse_core::manifest::{ContentId, FileKind, FilePath, ManifestDigest, Sha256Hash};
use dormouse_core::record::{CheckpointRecord, FilesRecord, UploadRecord};
use rusqlite::params;
use rusqlite::types::ToSql;

use crate::error::{ApplyError, ReadError};
use crate::reader::Reader;
use crate::rows::{Columns, at, integer};
use crate::writer::Batch;

const WRITE_UPLOAD: &str = "InsertUpload";
const WRITE_CHECKPOINT: &str = "InsertCheckpoint";

/// Where the files of a session stand, at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilesView {
    pub record: FilesRecord,
    /// Those that no checkpoint has, by number.
    pub uploads: Vec<UploadRecord>,
    /// The one that a workspace which is not whole is made from.
    pub restore: Option<CheckpointRecord>,
}

/// All that the rows name.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ReferencedBlobs {
    pub uploads: BTreeSet<Sha256Hash>,
    /// What the manifests name in turn is in them.
    pub manifests: BTreeSet<ManifestDigest>,
}

impl Batch<'_> {
    pub(crate) fn insert_upload(&mut self, record: &UploadRecord) -> Result<(), ApplyError> {
        const SQL: &str = "\
            INSERT INTO upload (session, number, path, file, at_ms, by) \
            VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
        let session = record.session.as_str();
        let file = record.file.as_ref().map(serde_json::to_string).transpose();
        let file = file.map_err(|error| ApplyError::Invariant {
            write: WRITE_UPLOAD,
            what: format!("{session} ({error})"),
        })?;
        let row = params![
            session,
            integer(record.number),
            record.path.as_str(),
            file,
            at(record.at),
            record.by.as_str(),
        ];
        self.change_one(WRITE_UPLOAD, session, SQL, row)
    }

    pub(crate) fn insert_checkpoint(
        &mut self,
        record: &CheckpointRecord,
        keep: u64,
    ) -> Result<(), ApplyError> {
        const SQL: &str = "\
            INSERT INTO checkpoint \
            (session, number, manifest, uploads, files, bytes, at_ms, generation, turn) \
            VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)";
        const SQL_ABSORB: &str = "DELETE FROM upload WHERE session = ?1 AND number <= ?2";
        const SQL_TRIM: &str = "DELETE FROM checkpoint WHERE session = ?1 AND number <= ?2";
        let session = record.session.as_str();
        let row = params![
            session,
            integer(record.number),
            record.manifest.to_string(),
            integer(record.uploads),
            integer(record.files),
            integer(record.bytes),
            at(record.at),
            integer(record.generation.0),
            record.turn.map(|turn| turn.to_string()),
        ];
        self.change_one(WRITE_CHECKPOINT, session, SQL, row)?;
        let absorbed = params![session, integer(record.uploads)];
        self.execute_counted(WRITE_CHECKPOINT, session, SQL_ABSORB, absorbed)?;
        let newest_to_go = record.number.saturating_sub(keep.max(1));
        let row = params![session, integer(newest_to_go)];
        self.execute_counted(WRITE_CHECKPOINT, session, SQL_TRIM, row)?;
        Ok(())
    }
}

const UPLOAD_COLUMNS: &str = "session, number, path, file, at_ms, by";
const CHECKPOINT_COLUMNS: &str =
    "session, number, manifest, uploads, files, bytes, at_ms, generation, turn";

fn upload(columns: &Columns<'_>) -> Result<UploadRecord, ReadError> {
    Ok(UploadRecord {
        session: columns.session_id(0)?,
        number: columns.number(1)?,
        path: columns.parsed(2, |text| FilePath::new(text).ok())?,
        file: columns.optional(3, file)?,
        at: columns.wall(4)?,
        by: columns.subject(5)?,
    })
}

fn file(columns: &Columns<'_>, place: usize) -> Result<FileKind, ReadError> {
    columns.parsed(place, |text| serde_json::from_str(text).ok())
}

fn manifest(columns: &Columns<'_>, place: usize) -> Result<ManifestDigest, ReadError> {
    columns.parsed(place, |text| text.parse().ok().map(ManifestDigest))
}

fn checkpoint(columns: &Columns<'_>) -> Result<CheckpointRecord, ReadError> {
    Ok(CheckpointRecord {
        session: columns.session_id(0)?,
        number: columns.number(1)?,
        manifest: manifest(columns, 2)?,
        uploads: columns.number(3)?,
        files: columns.number(4)?,
        bytes: columns.number(5)?,
        at: columns.wall(6)?,
        generation: columns.generation(7)?,
        turn: columns
            .optional(8, |columns, place| columns.parsed(place, |text| text.parse().ok()))?,
    })
}

impl Reader {
    /// `None`: there is no such session.
    pub fn files(&self, session: &SessionId) -> Result<Option<FilesView>, ReadError> {
        let Some(view) = self.session(session)? else { return Ok(None) };
        let record = view.record.files;
        let id = session.as_str();
        let (floor, restore) = (integer(record.floor), integer(record.restore));
        let uploads = self.rows(
            &format!(
                "SELECT {UPLOAD_COLUMNS} FROM upload WHERE session = ?1 AND number > ?2 \
                 ORDER BY number"
            ),
            &[&id as &dyn ToSql, &floor],
            "upload",
            upload,
        )?;
        let restore = self.rows(
            &format!(
                "SELECT {CHECKPOINT_COLUMNS} FROM checkpoint WHERE session = ?1 AND number = ?2"
            ),
            &[&id as &dyn ToSql, &restore],
            "checkpoint",
            checkpoint,
        )?;
        Ok(Some(FilesView { record, uploads, restore: restore.into_iter().next() }))
    }

    /// The newest first.
    pub fn checkpoints(&self, session: &SessionId) -> Result<Vec<CheckpointRecord>, ReadError> {
        self.rows(
            &format!(
                "SELECT {CHECKPOINT_COLUMNS} FROM checkpoint WHERE session = ?1 \
                 ORDER BY number DESC"
            ),
            &[&session.as_str() as &dyn ToSql],
            "checkpoint",
            checkpoint,
        )
    }

    /// For whoever removes blobs: what must stay.
    pub fn referenced_blobs(&self) -> Result<ReferencedBlobs, ReadError> {
        self.at_one_moment(|_connection| {
            let files = self.rows(
                "SELECT file FROM upload WHERE file IS NOT NULL",
                &[],
                "upload",
                |columns| file(columns, 0),
            )?;
            let uploads = files.into_iter().filter_map(|kind| match kind {
                FileKind::File { content: ContentId::Sha256(hash), .. } => Some(hash),
                FileKind::File { content: ContentId::Etag(_), .. }
                | FileKind::Link { .. }
                | FileKind::Folder => None,
            });
            let manifests =
                self.rows("SELECT DISTINCT manifest FROM checkpoint", &[], "checkpoint", |row| {
                    manifest(row, 0)
                })?;
            let (uploads, manifests) = (uploads.collect(), manifests.into_iter().collect());
            Ok(ReferencedBlobs { uploads, manifests })
        })
    }
}
