//! The side that takes over.
//!
//! Owner: `run`, before it opens anything. Invariants: nothing of the data folder is touched before
//! `yours`; nothing is served before `go`, or before the old process is gone. Absent: the store,
//! serving.

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;

use super::{FromNew, FromOld, Line, LineError, PROTOCOL, TAKES_OVER, decoded};
use crate::server::Idle;

/// Connections that one process can hand over; more than any limit of connections that is sensible.
const CONNECTIONS_MAX: usize = 1 << 16;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TakeError {
    #[error("the line to the process to take over from cannot be used")]
    Stdin(#[source] io::Error),
    #[error("the process to take over from did not hand over")]
    Line(#[from] LineError),
    #[error("the process to take over from handed over something else than was agreed on")]
    Order,
}

/// A process that takes over, and has not been given anything yet.
#[derive(Debug)]
pub(crate) struct Taking(Line);

/// What it was given.
#[derive(Debug)]
pub(crate) struct Taken {
    line: Line,
    pub(crate) listener: TcpListener,
    pub(crate) idle: Vec<Idle>,
}

impl Taking {
    /// `None`: this process was started by somebody else.
    pub(crate) fn of_this_process() -> Result<Option<Self>, TakeError> {
        if std::env::var_os(TAKES_OVER).is_none() {
            return Ok(None);
        }
        let socket = io::stdin().as_fd().try_clone_to_owned().map_err(TakeError::Stdin)?;
        Ok(Some(Self(Line::of(socket))))
    }

    /// Another end, for what is to be said when it did not work out.
    pub(crate) fn line(&self) -> Result<Self, TakeError> {
        let socket = self.0.as_fd().try_clone_to_owned().map_err(TakeError::Stdin)?;
        Ok(Self(Line::of(socket)))
    }

    /// Tells the old process why it must go on.
    pub(crate) fn failed(&self, why: &str) {
        // If nobody hears it, nobody waits for it.
        drop(self.0.say(&FromNew::Failed { why: why.to_owned() }, None));
    }

    /// Says that everything which needs no store is done, and waits for the rest.
    pub(crate) fn take(self) -> Result<Taken, TakeError> {
        let line = self.0;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let schema = dormouse_store::SCHEMA_VERSION;
        line.say(&FromNew::Prepared { protocol: PROTOCOL, version, schema }, None)?;
        let mut listener = None;
        let mut idle = Vec::new();
        loop {
            match line.hear(None)? {
                (FromOld::Listener {}, Some(socket)) => {
                    listener = Some(TcpListener::from(socket));
                }
                (FromOld::Connection { peer, read }, Some(socket))
                    if idle.len() < CONNECTIONS_MAX =>
                {
                    let read = decoded(&read).ok_or(TakeError::Order)?;
                    idle.push(Idle { socket: socket.into(), peer, read });
                }
                (FromOld::Yours {}, None) => break,
                _other => return Err(TakeError::Order),
            }
        }
        let listener = listener.ok_or(TakeError::Order)?;
        Ok(Taken { line, listener, idle })
    }
}

impl Taken {
    /// Says that this process can serve, and waits until it is to. What the old process does now,
    /// it does after `go`; if it is gone, nobody else serves.
    pub(crate) fn is_healthy(&self) -> Result<(), TakeError> {
        match self.line.say(&FromNew::Healthy {}, None) {
            Ok(()) => {}
            Err(LineError::Gone) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        match self.line.hear(None) {
            Ok((FromOld::Go {}, None)) | Err(LineError::Gone) => Ok(()),
            Ok(_) => Err(TakeError::Order),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::thread;

    use hyper::body::Bytes;

    use super::*;
    use crate::handover::encoded;

    /// A process that takes over, and the other end of its line.
    fn taking() -> (Taking, Line) {
        let (old, there) = Line::pair().unwrap();
        (Taking(Line::of(there)), old)
    }

    fn is_prepared(old: &Line) -> bool {
        matches!(old.hear(None), Ok((FromNew::Prepared { protocol: PROTOCOL, .. }, None)))
    }

    #[test]
    fn what_is_given_arrives_with_its_sockets() {
        let (taking, old) = taking();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (connection, peer) = listener.accept().unwrap();
        let new = thread::spawn(|| {
            let taken = taking.take().unwrap();
            taken.is_healthy().unwrap();
            taken
        });
        assert!(is_prepared(&old));
        old.say(&FromOld::Listener {}, Some(listener.as_fd())).unwrap();
        let read = encoded(&Bytes::from_static(b"GET /"));
        old.say(&FromOld::Connection { peer, read }, Some(connection.as_fd())).unwrap();
        old.say(&FromOld::Yours {}, None).unwrap();
        assert!(matches!(old.hear(None), Ok((FromNew::Healthy {}, None))));
        assert!(!new.is_finished(), "nothing is served before the old one says so");
        old.say(&FromOld::Go {}, None).unwrap();
        let taken = new.join().unwrap();
        assert_eq!(taken.listener.local_addr().unwrap(), listener.local_addr().unwrap());
        let [idle] = &taken.idle[..] else { panic!("{taken:?}") };
        assert_eq!((idle.peer, &idle.read[..]), (client.local_addr().unwrap(), &b"GET /"[..]));
    }

    #[test]
    fn an_old_one_that_dies_before_it_gave_ends_the_new_one() {
        let (taking, old) = taking();
        drop(old);
        assert!(matches!(taking.take(), Err(TakeError::Line(LineError::Gone))));
        let (taking, old) = self::taking();
        let new = thread::spawn(|| taking.take());
        assert!(is_prepared(&old));
        drop(old);
        assert!(matches!(new.join().unwrap(), Err(TakeError::Line(LineError::Gone))));
    }

    #[test]
    fn an_old_one_that_dies_after_it_gave_leaves_the_new_one_to_serve() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        for dies_before_healthy in [true, false] {
            let (taking, old) = taking();
            old.say(&FromOld::Listener {}, Some(listener.as_fd())).unwrap();
            old.say(&FromOld::Yours {}, None).unwrap();
            let taken = taking.take().unwrap();
            if dies_before_healthy {
                drop(old);
                taken.is_healthy().unwrap();
            } else {
                let new = thread::spawn(move || taken.is_healthy());
                assert!(is_prepared(&old));
                assert!(matches!(old.hear(None), Ok((FromNew::Healthy {}, None))));
                drop(old);
                new.join().unwrap().unwrap();
            }
        }
    }

    #[test]
    fn what_was_not_agreed_on_is_refused() {
        let (taking, old) = taking();
        old.say(&FromOld::Yours {}, None).unwrap();
        assert!(matches!(taking.take(), Err(TakeError::Order)), "no listener came");
    }
}
