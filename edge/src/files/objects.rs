//! Objects in a bucket of S3, or of something that speaks like it.
//!
//! ```text
//!  ObjectServer (where, as whom, how patiently) ─▶ bucket(name) ─▶ list_page · get · head
//!                                                                   put · begin_upload · remove
//! ```
//!
//! Owner: `blobs` and `sources`. Invariants: every request is signed and tried again while that can
//! help, within a deadline; an object is read in one version or not at all; an error names the key
//! and what to do, and never holds what a server wrote but its error code; credentials are shown
//! nowhere. Absent: which keys there are, and folders: a key is a text.

mod error;
mod page;
mod place;
mod read;
mod request;
#[cfg(test)]
mod tests;
mod upload;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{HttpClient, HttpConnector, ReqwestConnector};
use object_store::{Certificate, ClientOptions};

pub use error::ObjectError;
use place::is_bucket_name;
pub use place::{ObjectPlace, PlaceError};
pub use read::OpenObject;

/// Connections that are kept for the next request.
const IDLE_CONNECTIONS_MAX: usize = 64;
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// As whom. Resolved by the daemon, shown nowhere.
#[derive(Clone)]
pub struct ObjectCredentials {
    pub access_key_id: String,
    pub secret_access_key: String,
    pub session_token: Option<String>,
}

impl fmt::Debug for ObjectCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ObjectCredentials(not shown)")
    }
}

/// How long, and how often, something is tried before it is told.
#[derive(Debug, Clone)]
pub struct Patience {
    pub tries: u32,
    /// From the first try to the last one's begin; a body that goes on is not cut.
    pub deadline: Duration,
    /// Doubled for each further try.
    pub first_pause: Duration,
    pub longest_pause: Duration,
    /// A server that says nothing for so long is not heard any more.
    pub silence: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            tries: 10,
            deadline: Duration::from_secs(60),
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(8),
            silence: Duration::from_secs(30),
        }
    }
}

/// Where buckets are.
#[derive(Debug, Clone)]
pub struct ObjectServer {
    /// `None`: Amazon's own, in `region`.
    pub endpoint: Option<String>,
    pub region: String,
    /// `None`: requests are not signed, as for public buckets.
    pub credentials: Option<ObjectCredentials>,
    /// Unencrypted beyond this machine. Towards this machine it always may be.
    pub allow_http: bool,
    /// Trusted besides those of this machine.
    pub certificates_pem: Option<Vec<u8>>,
    pub patience: Patience,
}

/// What is wrong with what was configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    #[error("{0:?} is no address of an object store: it begins with https:// or http://")]
    Endpoint(String),
    #[error("http:// to {0} would show everything to everybody on the way: use https://")]
    Unencrypted(String),
    #[error("{0:?} is no name of a bucket")]
    BucketName(String),
    #[error("the region, or a credential, has characters that none has")]
    Character,
    #[error("the certificates are no PEM")]
    Certificates,
    #[error("no client could be made: {0}")]
    Client(String),
}

/// One bucket. Clones share its connections.
#[derive(Clone)]
pub struct Bucket(Arc<Shared>);

struct Shared {
    name: String,
    /// Without a slash at its end.
    url: String,
    region: String,
    http: HttpClient,
    /// `None`: requests are not signed.
    signer: Option<AmazonS3>,
    patience: Patience,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bucket({})", self.0.url)
    }
}

/// What a listing says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub key: String,
    pub bytes: u64,
    /// As it was sent; some servers leave it out.
    pub etag: Option<String>,
    pub modified: Option<SystemTime>,
}

impl ObjectServer {
    /// Asks nobody yet.
    pub fn bucket(&self, name: &str) -> Result<Bucket, ServerError> {
        if !is_bucket_name(name) {
            return Err(ServerError::BucketName(name.to_owned()));
        }
        self.check_characters()?;
        let endpoint = self.checked_endpoint()?;
        let http = self.client(endpoint.starts_with("http://"))?;
        let signer = match &self.credentials {
            Some(credentials) => Some(self.signer(name, &endpoint, credentials, &http)?),
            None => None,
        };
        let url = format!("{endpoint}/{name}");
        let (name, region) = (name.to_owned(), self.region.clone());
        let patience = self.patience.clone();
        Ok(Bucket(Arc::new(Shared { name, url, region, http, signer, patience })))
    }

    fn check_characters(&self) -> Result<(), ServerError> {
        let credentials = self.credentials.iter().flat_map(|credentials| {
            let token = credentials.session_token.as_deref().unwrap_or("none");
            [&*credentials.access_key_id, &*credentials.secret_access_key, token]
        });
        let is_word =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let all_are = credentials.chain([&*self.region]).all(is_word);
        if all_are { Ok(()) } else { Err(ServerError::Character) }
    }

    fn checked_endpoint(&self) -> Result<String, ServerError> {
        let Some(endpoint) = &self.endpoint else {
            return Ok(format!("https://s3.{}.amazonaws.com", self.region));
        };
        // What is wrong may have a password in it, and is not repeated then.
        let shown = if endpoint.contains('@') { "it" } else { endpoint };
        let wrong = || ServerError::Endpoint(shown.to_owned());
        let uri: http::Uri = endpoint.parse().map_err(|_| wrong())?;
        let host = uri.host().ok_or_else(wrong)?;
        let has_more = uri.query().is_some()
            || uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
        match uri.scheme_str() {
            _ if has_more => return Err(wrong()),
            Some("https") => {}
            Some("http") if self.allow_http || is_this_machine(host) => {}
            Some("http") => return Err(ServerError::Unencrypted(host.to_owned())),
            Some(_) | None => return Err(wrong()),
        }
        Ok(endpoint.trim_end_matches('/').to_owned())
    }

    fn client(&self, allow_http: bool) -> Result<HttpClient, ServerError> {
        let installed = rustls::crypto::ring::default_provider().install_default();
        if installed.is_err() {
            tracing::debug!("this process had its provider of ciphers before");
        }
        let mut options = ClientOptions::new()
            .with_allow_http(allow_http)
            .with_http1_only()
            .with_timeout_disabled()
            .with_connect_timeout(CONNECT_WITHIN)
            .with_read_timeout(self.patience.silence)
            .with_pool_max_idle_per_host(IDLE_CONNECTIONS_MAX);
        if let Some(pem) = &self.certificates_pem {
            let certificates =
                Certificate::from_pem_bundle(pem).map_err(|_| ServerError::Certificates)?;
            for certificate in certificates {
                options = options.with_root_certificate(certificate);
            }
        }
        ReqwestConnector::default().connect(&options).map_err(no_client)
    }

    /// It is asked for credentials before each request, so that others than constant ones can come
    /// to be used.
    fn signer(
        &self,
        bucket: &str,
        endpoint: &str,
        credentials: &ObjectCredentials,
        http: &HttpClient,
    ) -> Result<AmazonS3, ServerError> {
        let mut builder = AmazonS3Builder::new()
            .with_region(&self.region)
            .with_bucket_name(bucket)
            .with_endpoint(endpoint)
            .with_allow_http(true)
            .with_http_connector(Connected(http.clone()))
            .with_access_key_id(&credentials.access_key_id)
            .with_secret_access_key(&credentials.secret_access_key);
        if let Some(token) = &credentials.session_token {
            builder = builder.with_token(token);
        }
        builder.build().map_err(no_client)
    }
}

fn no_client(error: object_store::Error) -> ServerError {
    ServerError::Client(error.to_string())
}

fn is_this_machine(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

/// A client that is there already.
#[derive(Debug)]
struct Connected(HttpClient);

impl HttpConnector for Connected {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

impl Bucket {
    pub fn name(&self) -> &str {
        &self.0.name
    }
}
