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
use dormouse_core::id::{AgentName, InstanceId, SessionId};
use dormouse_core::manifest::FilePath;
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
use listing::Listed;

/// Why the store of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("the store of files could not be opened")]
    Blobs(#[from] BlobError),
    #[error("[s3] cannot be used: {0}")]
    Server(#[from] ServerError),
}

/// Where one of an agent's inputs comes from, ready to be asked.
#[derive(Debug)]
struct InputSource {
    path: Option<FilePath>,
    /// `None`: the session's own files.
    source: Option<Arc<Source>>,
    required: Vec<String>,
    has_opaque_etags: bool,
}

pub(crate) struct Files {
    fetcher: Fetcher,
    inputs: BTreeMap<AgentName, Vec<InputSource>>,
    readers: Readers,
    config: Arc<Config>,
    /// What each living session's inputs were when they were listed last.
    listed: Mutex<BTreeMap<SessionId, Arc<Listed>>>,
    /// How far the syncs are that are under way; for whoever looks, not for decisions.
    syncing: Mutex<BTreeMap<SessionId, FilesProgress>>,
}

impl Files {
    pub(crate) async fn open(
        config: &Arc<Config>,
        agents: &Agents,
        readers: Readers,
        data: &Path,
    ) -> Result<Self, OpenError> {
        let server = object_server(&config.s3, agents);
        let blobs = match &config.files.store {
            None => BlobStore::in_folder(&data.join("blobs")).await?,
            Some(FilesPlace::Folder(folder)) => BlobStore::in_folder(folder).await?,
            Some(FilesPlace::Objects(ObjectPlace { bucket, prefix })) => {
                let bucket = server.bucket(bucket)?;
                let prefix = prefix.trim_end_matches('/');
                BlobStore::in_bucket(bucket, prefix, &data.join("spool")).await?
            }
        };
        let mut inputs = BTreeMap::new();
        for (name, agent) in &config.agents {
            let mut sources = Vec::new();
            for input in &agent.inputs {
                let source = match &input.from {
                    None => None,
                    Some(FilesPlace::Folder(folder)) => Some(Source::Folder(folder.clone())),
                    Some(FilesPlace::Objects(place)) => {
                        let bucket = server.bucket(&place.bucket)?;
                        Some(Source::Objects { bucket, prefix: place.prefix.clone() })
                    }
                };
                sources.push(InputSource {
                    path: input.path.clone(),
                    source: source.map(Arc::new),
                    required: input.required.clone(),
                    has_opaque_etags: input.has_opaque_etags,
                });
            }
            inputs.insert(name.clone(), sources);
        }
        let fetcher = Fetcher { blobs, sources: Arc::new(Sources::new()) };
        let (config, listed, syncing) = (Arc::clone(config), Mutex::default(), Mutex::default());
        Ok(Self { fetcher, inputs, readers, config, listed, syncing })
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

fn object_server(setting: &S3Setting, agents: &Agents) -> ObjectServer {
    let secret = |name: &str| agents.secret(name).ok();
    let credentials = secret(&setting.access_key_id).zip(secret(&setting.secret_access_key));
    ObjectServer {
        endpoint: setting.endpoint.clone(),
        region: setting.region.clone(),
        credentials: credentials.map(|(access_key_id, secret_access_key)| ObjectCredentials {
            access_key_id,
            secret_access_key,
            session_token: secret(&setting.session_token),
        }),
        allow_http: setting.allow_http,
        certificates_pem: None,
        patience: Patience::default(),
    }
}
