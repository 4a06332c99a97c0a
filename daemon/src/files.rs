//! What files sessions have, and whoever may read and write them.
//!
//! ```text
//!  core: ListInputs ─▶ listing ─▶ digest of what is to be there ─▶ InputsListed ─▶ core
//!  bridge ─▶ bridges (its own socket) ─┬▶ plan, fetch, missing, blobs
//!                                      └▶ checkpoint ─▶ Gateway ─▶ core ─▶ committed
//!  sender ─▶ api::files ─▶ blobs, then Gateway ─▶ core ─▶ committed
//! ```
//!
//! Owner: one per daemon. Invariants: bytes are durable before the row that names them; a bridge
//! reads what its own session has, and nothing else; what is required and missing is found before
//! any agent is asked. Absent: decisions (`core`), bytes (`edge::files`), workspaces (the bridge).

pub(crate) mod bridges;
pub(crate) mod garbage;
mod incoming;
pub(crate) mod listing;
pub(crate) mod tree;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dormouse_core::event::{Event, FilesProgress};
use dormouse_core::id::{InstanceId, SessionId};
use dormouse_edge::files::blobs::{BlobError, BlobStore};
use dormouse_edge::files::fetch::Fetcher;
use dormouse_edge::files::objects::{
    ObjectCredentials, ObjectPlace, ObjectServer, Patience, ServerError,
};
use dormouse_edge::files::sources::{Source, Sources};

use crate::agents::Agents;
use crate::api::Readers;
use crate::config::Config;
use crate::config::files::{FilesPlace, S3Setting};
use crate::in_force::InForce;
use crate::secrets::Secrets;
use listing::Listed;

/// Why the store of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("the store of files could not be opened")]
    Blobs(#[from] BlobError),
    #[error("[s3] cannot be used: {0}")]
    Server(#[from] ServerError),
}

pub(crate) struct Files {
    fetcher: Fetcher,
    server: ObjectServer,
    /// Where inputs come from, as far as it has been asked.
    sources: Mutex<BTreeMap<FilesPlace, Arc<Source>>>,
    readers: Readers,
    in_force: InForce,
    /// What each living session's inputs were when they were listed last.
    listed: Mutex<BTreeMap<SessionId, Arc<Listed>>>,
    /// How far the syncs are that are under way; for whoever looks, not for decisions.
    syncing: Mutex<BTreeMap<SessionId, FilesProgress>>,
}

impl Files {
    pub(crate) async fn open(
        in_force: &InForce,
        agents: &Agents,
        readers: Readers,
        data: &Path,
    ) -> Result<Self, OpenError> {
        let current = in_force.now();
        let config = current.config();
        let server = object_server(&config.s3, agents.secrets()).await;
        let blobs = match &config.files.store {
            None => BlobStore::in_folder(&data.join("blobs")).await?,
            Some(FilesPlace::Folder(folder)) => BlobStore::in_folder(folder).await?,
            Some(FilesPlace::Objects(ObjectPlace { bucket, prefix })) => {
                let bucket = server.bucket(bucket)?;
                let prefix = prefix.trim_end_matches('/');
                BlobStore::in_bucket(bucket, prefix, &data.join("spool")).await?
            }
        };
        let fetcher = Fetcher { blobs, sources: Arc::new(Sources::new()) };
        let (sources, listed, syncing) = (Mutex::default(), Mutex::default(), Mutex::default());
        let in_force = in_force.clone();
        let files = Self { fetcher, server, sources, readers, in_force, listed, syncing };
        files.check_sources(config)?;
        Ok(files)
    }

    /// Whether all that the config names can be asked for inputs.
    pub(crate) fn check_sources(&self, config: &Config) -> Result<(), OpenError> {
        let inputs = config.agents.values().flat_map(|agent| &agent.inputs);
        let places = inputs.filter_map(|input| input.from.as_ref());
        Ok(places.map(|place| self.source(place)).try_for_each(|source| source.map(drop))?)
    }

    fn source(&self, place: &FilesPlace) -> Result<Arc<Source>, ServerError> {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(source) = sources.get(place) {
            return Ok(Arc::clone(source));
        }
        let source = match place {
            FilesPlace::Folder(folder) => Source::Folder(folder.clone()),
            FilesPlace::Objects(ObjectPlace { bucket, prefix }) => {
                Source::Objects { bucket: self.server.bucket(bucket)?, prefix: prefix.clone() }
            }
        };
        let source = Arc::new(source);
        sources.insert(place.clone(), Arc::clone(&source));
        Ok(source)
    }

    pub(crate) fn blobs(&self) -> &BlobStore {
        &self.fetcher.blobs
    }

    /// The life is over; the next one is listed for anew.
    pub(crate) fn forget(&self, instance: &InstanceId) {
        self.listed().remove(&instance.session);
    }

    /// What a bridge has said of its sync.
    pub(crate) fn hear(&self, event: &Event) {
        match event {
            Event::FilesProgressed { instance, progress } => {
                self.syncing().insert(instance.session.clone(), *progress);
            }
            Event::FilesSynced { instance, .. }
            | Event::FilesSyncFailed { instance, .. }
            | Event::InstanceExited { instance, .. } => {
                self.syncing().remove(&instance.session);
            }
            _says_nothing_of_files => {}
        }
    }

    pub(crate) fn progress_of(&self, session: &SessionId) -> Option<FilesProgress> {
        self.syncing().get(session).copied()
    }

    fn syncing(&self) -> MutexGuard<'_, BTreeMap<SessionId, FilesProgress>> {
        self.syncing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listed(&self) -> MutexGuard<'_, BTreeMap<SessionId, Arc<Listed>>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn object_server(setting: &S3Setting, secrets: &Secrets) -> ObjectServer {
    let secret = async |name: &str| secrets.get(name).await.ok();
    let access_key_id = secret(&setting.access_key_id).await;
    let credentials = access_key_id.zip(secret(&setting.secret_access_key).await);
    let session_token = secret(&setting.session_token).await;
    ObjectServer {
        endpoint: setting.endpoint.clone(),
        region: setting.region.clone(),
        credentials: credentials.map(|(access_key_id, secret_access_key)| ObjectCredentials {
            access_key_id,
            secret_access_key,
            session_token,
        }),
        allow_http: setting.allow_http,
        certificates_pem: None,
        patience: Patience::default(),
    }
}
