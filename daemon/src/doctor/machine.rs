//! The machine: kernel, control groups, port, open files, user.
//!
//! Absent: what a daemon that already runs somewhere else on this machine could enforce.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use dormouse_edge::driver::Enforcement;
use dormouse_edge::driver::process::facts_here;
use rustix::process::{PidfdFlags, Resource, geteuid, getpid, getrlimit, pidfd_open};

use super::Check;
use crate::cli::reachable;

/// A bridge, its socket, a log and a connection or two for each agent that is awake.
const OPEN_FILES_COMFORTABLE: u64 = 4096;
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const ANSWER_BYTES_MAX: u64 = 4096;

/// What keeps an agent within its memory and its number of processes.
pub(super) fn limits(is_refused_without: bool) -> Vec<Check> {
    let facts = facts_here();
    vec![
        limit("memory limits", &facts.memory, is_refused_without),
        limit("process limits", &facts.pids, is_refused_without),
    ]
}

fn limit(name: &str, enforcement: &Enforcement, is_refused_without: bool) -> Check {
    match enforcement {
        Enforcement::Enforced { by, but: None, .. } => {
            Check::ok(name, format!("enforced by {by}, for a daemon that is started from here"))
        }
        Enforcement::Enforced { by, but: Some(but), .. } => {
            let fix = "until then an agent can go past its limit by swapping";
            Check::warn(name, format!("enforced by {by}, but {but}"), fix)
        }
        Enforcement::NotEnforced { why, fix } if is_refused_without => {
            let fix = format!("{fix} Or set when_no_cgroup = \"go_on\" in the config");
            Check::fail(name, format!("not enforced: {why}"), fix)
        }
        Enforcement::NotEnforced { why, fix } => {
            Check::warn(name, format!("not enforced: {why}"), fix.as_str())
        }
    }
}

/// Without pidfds a process that ended could be taken for another one with its number.
pub(super) fn kernel() -> Check {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match pidfd_open(getpid(), PidfdFlags::empty()) {
        Ok(_) => Check::ok("kernel", format!("Linux {release}, with pidfd")),
        Err(error) => {
            let fact = format!("Linux {release} does not give pidfds: {error}");
            Check::fail("kernel", fact, "use Linux 5.3 or newer; a sandbox may forbid pidfd_open")
        }
    }
}

pub(super) fn open_files() -> Check {
    judge_open_files(getrlimit(Resource::Nofile).maximum)
}

/// `None`: no limit.
fn judge_open_files(most: Option<u64>) -> Check {
    let name = "open files";
    match most {
        None => Check::ok(name, "as many as are wanted"),
        Some(most) if most >= OPEN_FILES_COMFORTABLE => Check::ok(name, format!("up to {most}")),
        Some(most) => {
            let fact = format!("up to {most}, for a few dozen agents awake at a time");
            Check::warn(name, fact, "raise the hard limit (ulimit -Hn, or LimitNOFILE= in systemd)")
        }
    }
}

pub(super) fn user() -> Check {
    if geteuid().is_root() {
        let fact = "root; agents run as the same user and could read the data folder";
        let fix = "run it as a user of its own, who owns nothing but the data folder";
        return Check::warn("user", fact, fix);
    }
    let fact = format!(
        "user {}; agents run as the same user and could read the data folder",
        geteuid().as_raw()
    );
    let fix = "run only agents that you would trust with this user's files";
    Check::warn("user", fact, fix)
}

/// Free, taken by a dormouse that runs already, or taken by something else.
pub(super) fn port(listen: SocketAddr) -> Check {
    let name = "port";
    match TcpListener::bind(listen) {
        Ok(_) => Check::ok(name, format!("{listen} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if a_dormouse_answers(reachable(listen)) {
                return Check::ok(name, format!("a dormouse answers at {listen} already"));
            }
            let fix = "end what listens there (ss -ltnp), or set DORMOUSE_LISTEN=127.0.0.1:PORT";
            Check::fail(name, format!("something else listens at {listen}"), fix)
        }
        Err(error) => {
            let fact = format!("{listen} cannot be listened at: {error}");
            Check::fail(name, fact, "set another address in [server] listen, or DORMOUSE_LISTEN")
        }
    }
}

/// Every answer of a dormouse to a request without a key is JSON with an `error` object.
fn a_dormouse_answers(address: SocketAddr) -> bool {
    let ask = || -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.set_write_timeout(Some(ANSWER_WITHIN))?;
        let request =
            format!("GET /v1/agents HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = Vec::new();
        stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    ask().is_ok_and(|answer| {
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        serde_json::from_str::<crate::api::shape::ErrorBody>(body).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::State;
    use super::*;

    fn not_enforced() -> Enforcement {
        Enforcement::NotEnforced { why: "no cgroups".to_owned(), fix: "Be root.".to_owned() }
    }

    #[test]
    fn a_limit_that_does_not_hold_prevents_up_only_where_the_config_says_so() {
        assert_eq!(limit("memory limits", &not_enforced(), false).state, State::Warn);
        assert_eq!(limit("memory limits", &not_enforced(), true).state, State::Fail);
        let enforced = |but: Option<&str>| Enforcement::Enforced {
            by: "cgroup v2".to_owned(),
            at: PathBuf::from("/sys/fs/cgroup/x"),
            but: but.map(str::to_owned),
        };
        assert_eq!(limit("memory limits", &enforced(None), true).state, State::Ok);
        assert_eq!(limit("memory limits", &enforced(Some("no swap")), true).state, State::Warn);
    }

    #[test]
    fn open_files_are_judged_at_their_bound() {
        assert_eq!(judge_open_files(None).state, State::Ok);
        assert_eq!(judge_open_files(Some(OPEN_FILES_COMFORTABLE)).state, State::Ok);
        assert_eq!(judge_open_files(Some(OPEN_FILES_COMFORTABLE - 1)).state, State::Warn);
    }

    /// Answers one connection on a port of its own.
    fn listening(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            assert!(stream.read(&mut request).unwrap() > 0);
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn a_dormouse_is_told_from_others_at_its_port() {
        let own = listening(
            "HTTP/1.1 401 Unauthorized\r\n\r\n\
             {\"error\": {\"code\": \"key_needed\", \"message\": \"m\", \"hint\": \"h\"}}",
        );
        assert_eq!(port(own).state, State::Ok);
        let other = listening("HTTP/1.1 200 OK\r\n\r\n<html>");
        assert_eq!(port(other).state, State::Fail);
    }

    #[test]
    fn a_free_port_and_an_address_of_another_machine_are_told_apart() {
        assert_eq!(port("127.0.0.1:0".parse().unwrap()).state, State::Ok);
        let elsewhere = port("192.0.2.1:7766".parse().unwrap());
        assert_eq!(elsewhere.state, State::Fail);
        assert!(elsewhere.fact.contains("cannot be listened at"), "{}", elsewhere.fact);
    }
}
