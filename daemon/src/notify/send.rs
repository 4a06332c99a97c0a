//! One try to hand a notification over: a POST, or a program with the JSON on its standard input.
//!
//! Owner: `notify`. Invariants: every try ends within `TRY_WITHIN`, and nothing of it lives on;
//! only a status 2xx, or exit code 0, is success. Absent: trying again, TLS, redirects.

use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;

const TRY_WITHIN: Duration = Duration::from_secs(10);
const HTTP_PORT: u16 = 80;
/// Of what a failing command says.
const WORDS_BYTES_MAX: u64 = 1_000;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    Webhook(WebhookAddress),
    /// A program and its arguments; not empty.
    Command(Vec<String>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WebhookAddress {
    host: String,
    port: u16,
    authority: String,
    path_and_query: String,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("it took longer than {} s", TRY_WITHIN.as_secs())]
    TooLong,
    #[error("cannot connect to {authority}")]
    Connect { authority: String, source: io::Error },
    #[error("{authority} broke the connection")]
    Http { authority: String, source: hyper::Error },
    #[error("{authority} answered {status}")]
    Refused { authority: String, status: StatusCode },
    #[error("cannot execute {program}")]
    Execute { program: String, source: io::Error },
    #[error("cannot wait for {program}")]
    Wait { program: String, source: io::Error },
    #[error("{program} ended with {status}: {words}")]
    Failed { program: String, status: ExitStatus, words: String },
}

impl WebhookAddress {
    /// `None`: not of the form `http://HOST[:PORT][/PATH]`.
    pub(crate) fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let authority = uri.authority()?;
        let is_plain = uri.scheme_str() == Some("http")
            && !authority.as_str().contains('@')
            && !authority.host().is_empty();
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        is_plain.then(|| Self {
            host,
            port: authority.port_u16().unwrap_or(HTTP_PORT),
            authority: authority.to_string(),
            path_and_query: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        })
    }
}

impl Target {
    /// For metrics and logs: without the address, in which there may be a token.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Target::Webhook(_) => "webhook",
            Target::Command(_) => "command",
        }
    }

    pub(super) async fn send(&self, json: &str) -> Result<(), SendError> {
        match self {
            Target::Webhook(address) => {
                timeout(TRY_WITHIN, post(address, json)).await.map_err(|_| SendError::TooLong)?
            }
            Target::Command(command) => execute(command, json).await,
        }
    }
}

async fn post(address: &WebhookAddress, json: &str) -> Result<(), SendError> {
    let authority = || address.authority.clone();
    let http = |source| SendError::Http { authority: authority(), source };
    let stream = TcpStream::connect((address.host.as_str(), address.port))
        .await
        .map_err(|source| SendError::Connect { authority: authority(), source })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let request = Request::post(&address.path_and_query)
        .header(header::HOST, &address.authority)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::USER_AGENT, concat!("dormouse/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(Bytes::copy_from_slice(json.as_bytes())))
        .expect("the address was parsed from a URI, and the rest is constant");
    let mut answered = pin!(sender.send_request(request));
    let response = tokio::select! {
        response = &mut answered => response,
        ended = connection => {
            ended.map_err(http)?;
            // What the connection has brought before its end is there now, or never comes.
            answered.await
        }
    };
    let response = response.map_err(http)?;
    match response.status() {
        status if status.is_success() => Ok(()),
        status => Err(SendError::Refused { authority: authority(), status }),
    }
}

/// The command is this operator's own: it has the environment of the daemon.
async fn execute(command: &[String], json: &str) -> Result<(), SendError> {
    let (program, arguments) = command.split_first().expect("the config refuses an empty command");
    let program = || program.clone();
    let mut child = Command::new(program())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| SendError::Execute { program: program(), source })?;
    let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
    let ended = timeout(TRY_WITHIN, feed(&mut child, json, group)).await;
    if ended.is_err() {
        kill(group);
    }
    let (status, words) = ended
        .map_err(|_| SendError::TooLong)?
        .map_err(|source| SendError::Wait { program: program(), source })?;
    match status.success() {
        true => Ok(()),
        false => Err(SendError::Failed { program: program(), status, words }),
    }
}

/// Whatever is left of a group; that nothing is, is no error.
fn kill(group: Option<Pid>) {
    if let Some(group) = group {
        kill_process_group(group, Signal::KILL).ok();
    }
}

async fn feed(
    child: &mut Child,
    json: &str,
    group: Option<Pid>,
) -> io::Result<(ExitStatus, String)> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let written = async {
        if let Some(mut stdin) = stdin {
            // A program that does not care to read may end as it likes.
            drop(stdin.write_all(json.as_bytes()).await);
        }
    };
    let words = async {
        let mut words = Vec::new();
        if let Some(stderr) = stderr {
            let mut first = stderr.take(WORDS_BYTES_MAX);
            first.read_to_end(&mut words).await?;
            tokio::io::copy(&mut first.into_inner(), &mut tokio::io::sink()).await?;
        }
        io::Result::Ok(String::from_utf8_lossy(&words).trim().to_owned())
    };
    let ended = async {
        let status = child.wait().await;
        // What it has started must not outlive it, nor hold its standard error open.
        kill(group);
        status
    };
    let ((), words, status) = tokio::join!(written, words, ended);
    Ok((status?, words?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_plain_http() {
        let address = WebhookAddress::parse("http://[::1]:9000/a/b?c=d").unwrap();
        assert_eq!((address.host.as_str(), address.port), ("::1", 9_000));
        assert_eq!(address.path_and_query, "/a/b?c=d");
        assert_eq!(WebhookAddress::parse("http://example.com").unwrap().port, 80);
        for wrong in ["https://example.com/", "ftp://x/", "http://a:b@c/", "/x", "", "http://"] {
            assert_eq!(WebhookAddress::parse(wrong), None, "{wrong}");
        }
    }

    #[tokio::test]
    async fn a_command_reads_the_json_and_its_exit_code_is_the_answer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("got");
        let shell = |script: String| vec!["sh".to_owned(), "-c".to_owned(), script];
        let takes = Target::Command(shell(format!("cat > {}", path.display())));
        takes.send("{\"a\":1}").await.unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), "{\"a\":1}");
        let refuses = Target::Command(shell("echo no >&2; exit 4".to_owned()));
        let error = refuses.send(&"x".repeat(1 << 20)).await.unwrap_err().to_string();
        assert!(error.contains("exit status: 4: no"), "{error}");
        let missing = Target::Command(vec!["/nowhere/at/all".to_owned()]);
        assert!(matches!(missing.send("{}").await, Err(SendError::Execute { .. })));
    }
}
