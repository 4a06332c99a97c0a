//! Which dormouse is meant, and with which key: from the options, the environment and the data
//! folder.
//!
//! Invariants: the key in the data folder is shown to this machine only (a loopback address), never
//! to another host; a key never appears in `Debug` or in an error. Absent: connecting (`client`).

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use hyper::Uri;
use hyper::header::HeaderValue;

pub(crate) const URL_DEFAULT: &str = "http://127.0.0.1:7766";
/// What the daemon writes into its data folder for this machine's commands (`run::folder`).
const KEY_FILE: &str = "operator.key";
const ADDRESS_FILE: &str = "address";
const HTTP_PORT: u16 = 80;
const KEY_BYTES_MAX: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    #[error("'{url}' is not an address of a dormouse")]
    Url { url: String },
    #[error("https:// is not supported in this version")]
    Https,
    #[error("the key file {} cannot be read", path.display())]
    KeyFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the key from {origin} is not one: it has characters that no key has")]
    KeyText { origin: String },
}

/// An address of a dormouse. Shown as it was given, less a slash at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    shown: String,
    /// A name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// What comes before `/v1`; empty, or begins with a slash.
    pub(crate) prefix: String,
    /// The `Host` header.
    pub(crate) authority: String,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, TargetError> {
        let wrong = || TargetError::Url { url: url.to_owned() };
        if url.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("https://")) {
            return Err(TargetError::Https);
        }
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let is_plain = uri.scheme_str() == Some("http")
            && uri.query().is_none()
            && !authority.as_str().contains('@')
            && !authority.host().is_empty();
        let has_port = authority.as_str() != authority.host();
        if !is_plain || has_port != authority.port_u16().is_some() {
            return Err(wrong());
        }
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        Ok(Self {
            shown: url.trim_end_matches('/').to_owned(),
            host: host.to_owned(),
            port: authority.port_u16().unwrap_or(HTTP_PORT),
            prefix: uri.path().trim_end_matches('/').to_owned(),
            authority: authority.as_str().to_owned(),
        })
    }

    fn is_this_machine(&self) -> bool {
        let address: Option<IpAddr> = self.host.parse().ok();
        address.map_or(self.host.eq_ignore_ascii_case("localhost"), |ip| ip.is_loopback())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

/// The `Authorization` header, where there is a key.
pub(crate) fn authorization(
    target: &Target,
    given: Option<&str>,
    data_folder: Option<&Path>,
) -> Result<Option<HeaderValue>, TargetError> {
    let (token, origin) = match given {
        Some(token) => (token.to_owned(), "--key or DORMOUSE_KEY".to_owned()),
        None if !target.is_this_machine() => return Ok(None),
        None => {
            let Some(folder) = data_folder else { return Ok(None) };
            let path = folder.join(KEY_FILE);
            match read_short(&path) {
                Ok(token) => (token, path.display().to_string()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(TargetError::KeyFile { path, source }),
            }
        }
    };
    let token = token.trim();
    let is_plain = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic());
    let header = HeaderValue::try_from(format!("Bearer {token}")).ok().filter(|_| is_plain);
    let mut header = header.ok_or(TargetError::KeyText { origin })?;
    header.set_sensitive(true);
    Ok(Some(header))
}

fn read_short(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    io::Read::read_to_string(&mut io::Read::take(file, KEY_BYTES_MAX), &mut text)?;
    Ok(text)
}

/// Where to look for the daemon: as given, else where the daemon of the data folder said that it
/// listens, else where one listens by default.
pub(crate) fn url_of(given: Option<&str>, data_folder: Option<&Path>) -> String {
    if let Some(given) = given {
        return given.to_owned();
    }
    let noted = data_folder.and_then(|folder| read_short(&folder.join(ADDRESS_FILE)).ok());
    match noted.and_then(|text| text.trim().parse::<SocketAddr>().ok()) {
        Some(address) => format!("http://{}", reachable(address)),
        None => URL_DEFAULT.to_owned(),
    }
}

/// A daemon that listens everywhere is reached on loopback.
pub(crate) fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let target = Target::parse("http://127.0.0.1:7766").unwrap();
        assert_eq!((target.host.as_str(), target.port), ("127.0.0.1", 7766));
        let target = Target::parse("http://[::1]:80/behind/proxy/").unwrap();
        assert_eq!((target.host.as_str(), target.prefix.as_str()), ("::1", "/behind/proxy"));
        assert_eq!(target.to_string(), "http://[::1]:80/behind/proxy");
        assert_eq!(Target::parse("http://localhost").unwrap().port, 80);
    }

    #[test]
    fn what_is_no_url_of_a_dormouse_is_refused() {
        for url in [
            "",
            "127.0.0.1:7766",
            "ftp://x",
            "http://",
            "http://u:p@x",
            "http://x:99999",
            "http://x/?a",
        ] {
            assert!(matches!(Target::parse(url), Err(TargetError::Url { .. })), "{url} was taken");
        }
        assert!(matches!(Target::parse("HTTPS://x"), Err(TargetError::Https)));
    }

    #[test]
    fn the_key_in_the_data_folder_is_for_this_machine_only() {
        let folder = tempfile::tempdir().unwrap();
        let at = |url: &str, given: Option<&str>| {
            let header = authorization(&Target::parse(url).unwrap(), given, Some(folder.path()));
            header.unwrap().map(|value| value.to_str().unwrap().to_owned())
        };
        assert_eq!(at(URL_DEFAULT, None), None);
        std::fs::write(folder.path().join(KEY_FILE), "dm_secret\n").unwrap();
        assert_eq!(at(URL_DEFAULT, None).as_deref(), Some("Bearer dm_secret"));
        assert_eq!(at("http://localhost:1", None).as_deref(), Some("Bearer dm_secret"));
        assert_eq!(at("http://[::1]:1", None).as_deref(), Some("Bearer dm_secret"));
        assert_eq!(at("http://127.0.0.1.example:1", None), None);
        assert_eq!(at("http://10.0.0.1:1", Some("other")).as_deref(), Some("Bearer other"));
    }

    #[test]
    fn a_key_that_cannot_be_one_is_refused_without_being_repeated() {
        let target = Target::parse(URL_DEFAULT).unwrap();
        for key in ["", "two words", "line\nbreak", "sécret"] {
            let error = authorization(&target, Some(key), None).unwrap_err();
            assert!(matches!(error, TargetError::KeyText { .. }));
            assert!(key.is_empty() || !format!("{error} {error:?}").contains(key));
        }
    }

    #[test]
    fn the_daemon_is_looked_for_where_it_said_that_it_listens() {
        let folder = tempfile::tempdir().unwrap();
        let at = |given: Option<&str>| url_of(given, Some(folder.path()));
        assert_eq!(at(None), URL_DEFAULT);
        for (noted, url) in [
            ("127.0.0.1:7000", "http://127.0.0.1:7000"),
            ("0.0.0.0:7000\n", "http://127.0.0.1:7000"),
            ("[::]:7000", "http://[::1]:7000"),
            ("no address", URL_DEFAULT),
        ] {
            std::fs::write(folder.path().join(ADDRESS_FILE), noted).unwrap();
            assert_eq!(at(None), url);
        }
        assert_eq!(at(Some("http://x")), "http://x");
        assert_eq!(url_of(None, None), URL_DEFAULT);
    }
}
