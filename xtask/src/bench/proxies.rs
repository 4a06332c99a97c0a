//! HAProxy and nginx in front of a backend of ours, to be reloaded under the same clients.
//!
//! Owner: `handover`. Invariants: both listen on loopback and are ended by their process number;
//! one that is not installed is left out, and the report says so. Absent: clients.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::daemon::{free_address, signal};
use super::error::BenchError;

const UP_WITHIN: Duration = Duration::from_secs(10);
/// Between two numbers of a stream.
const NUMBER_EVERY: Duration = Duration::from_millis(20);

/// Answers `/stream` with numbers without end, and everything else with a word.
pub(super) fn start_backend() -> Result<SocketAddr, BenchError> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(BenchError::http("listen"))?;
    let address = listener.local_addr().map_err(BenchError::http("listen"))?;
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            // A peer that goes away is what ends a conversation.
            thread::spawn(move || drop(converse(socket)));
        }
    });
    Ok(address)
}

fn converse(socket: TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let mut reader = BufReader::new(socket);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut field = String::new();
            if reader.read_line(&mut field)? == 0 {
                return Ok(());
            }
            if field.trim().is_empty() {
                break;
            }
        }
        if first.contains(" /stream") {
            return stream(reader.get_mut());
        }
        reader.get_mut().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok\n")?;
    }
}

fn stream(socket: &mut TcpStream) -> io::Result<()> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
    socket.write_all(head.as_bytes())?;
    for number in 0_u64.. {
        write!(socket, "data: {number}\n\n")?;
        thread::sleep(NUMBER_EVERY);
    }
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    HaProxy,
    Nginx,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::HaProxy => "haproxy",
            Kind::Nginx => "nginx",
        }
    }

    fn reload(self) -> Signal {
        match self {
            Kind::HaProxy => Signal::USR2,
            Kind::Nginx => Signal::HUP,
        }
    }

    /// `None`: it is not installed.
    fn program(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin".into()]);
        folders.map(|folder| folder.join(self.name())).find(|program| program.is_file())
    }

    fn config(self, folder: &Path, listen: SocketAddr, backend: SocketAddr) -> String {
        match self {
            Kind::HaProxy => format!(
                "global\n  nbthread 2\ndefaults\n  mode http\n  timeout connect 5s\n  \
                 timeout client 60s\n  timeout server 60s\nfrontend in\n  bind {listen}\n  \
                 default_backend out\nbackend out\n  server one {backend}\n"
            ),
            Kind::Nginx => format!(
                "worker_processes 2;\npid {0}/pid;\nerror_log {0}/error.log;\n\
                 events {{ worker_connections 1024; }}\nhttp {{\n  access_log off;\n  \
                 client_body_temp_path {0}/body;\n  proxy_temp_path {0}/proxy;\n  \
                 fastcgi_temp_path {0}/fastcgi;\n  \
                 uwsgi_temp_path {0}/uwsgi;\n  \
                 scgi_temp_path {0}/scgi;\n  server {{\n    listen {listen};\n    \
                 location / {{\n      proxy_pass http://{backend};\n      \
                 proxy_http_version 1.1;\n      proxy_buffering off;\n    }}\n  }}\n}}\n",
                folder.display()
            ),
        }
    }

    fn command(self, program: &Path, config: &Path) -> Command {
        let mut command = Command::new(program);
        match self {
            Kind::HaProxy => command.args(["-W", "-f"]).arg(config),
            Kind::Nginx => command.arg("-c").arg(config).args(["-g", "daemon off;"]),
        };
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// One at work; ended with this value.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    kind: Kind,
    master: Child,
}

impl Proxy {
    /// `None`: it is not installed.
    pub(super) fn start(
        kind: Kind,
        folder: &Path,
        backend: SocketAddr,
    ) -> Result<Option<Proxy>, BenchError> {
        let Some(program) = kind.program() else { return Ok(None) };
        fs::create_dir_all(folder).map_err(BenchError::file("make", folder))?;
        let address = free_address()?;
        let config = folder.join("config");
        let text = kind.config(folder, address, backend);
        fs::write(&config, text).map_err(BenchError::file("write", &config))?;
        let master = kind.command(&program, &config).spawn();
        let master = master.map_err(BenchError::file("start", &program))?;
        let proxy = Proxy { address, kind, master };
        let begun_at = Instant::now();
        while TcpStream::connect(address).is_err() {
            if begun_at.elapsed() > UP_WITHIN {
                let what = format!("{}'s start", kind.name());
                return Err(BenchError::TooSlow { what, seconds: UP_WITHIN.as_secs() });
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(Some(proxy))
    }

    pub(super) fn reload(&self) -> Result<(), BenchError> {
        signal(self.master.id(), self.kind.reload())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Its workers go with it: both end at once at this signal.
        let _ended = signal(self.master.id(), Signal::TERM);
        let _status = self.master.wait();
    }
}
