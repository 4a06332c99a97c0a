//! The line between two processes: whole messages, one JSON document each, with at most one socket.
//!
//! Owner: `old` and `new`. Invariants: a message is bounded; a process that is gone is told apart
//! from one that is silent. Absent: what is said.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The parser's largest buffer in base64, and what is around it.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error("the other process is gone")]
    Gone,
    #[error("the other process said nothing in time")]
    Silent,
    #[error("the other process said what is not understood")]
    Garbage,
    #[error("the line to the other process broke")]
    Broken(#[source] io::Error),
}

#[derive(Debug)]
pub(crate) struct Line(OwnedFd);

impl Line {
    /// Both ends.
    pub(super) fn pair() -> io::Result<(Line, OwnedFd)> {
        // Each message is one packet, so that a socket stays with its words.
        let kind = SocketType::SEQPACKET;
        let (here, there) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok((Line(here), there))
    }

    pub(super) fn of(socket: OwnedFd) -> Self {
        Self(socket)
    }

    pub(super) fn say(
        &self,
        message: &impl Serialize,
        socket: Option<BorrowedFd<'_>>,
    ) -> Result<(), LineError> {
        let text = serde_json::to_vec(message).expect("the messages are plain data");
        let sockets: Vec<BorrowedFd<'_>> = socket.into_iter().collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() {
            let has_room = beside.push(SendAncillaryMessage::ScmRights(&sockets));
            assert!(has_room, "the space is for one");
        }
        let sent = sendmsg(&self.0, &[IoSlice::new(&text)], &mut beside, SendFlags::NOSIGNAL);
        match sent {
            Ok(_) => Ok(()),
            Err(error) => Err(broken(error)),
        }
    }

    /// Blocks for the next message, without a limit where none is given.
    pub(super) fn hear<T: DeserializeOwned>(
        &self,
        within: Option<Duration>,
    ) -> Result<(T, Option<OwnedFd>), LineError> {
        set_socket_timeout(&self.0, Timeout::Recv, within).map_err(broken)?;
        let mut bytes = vec![0; MESSAGE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut beside = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let received = loop {
            match recvmsg(&self.0, &mut slices, &mut beside, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(broken)?,
            }
        };
        let mut socket = None;
        for message in beside.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                socket = sockets.into_iter().next().or(socket);
            }
        }
        if received.bytes == 0 {
            return Err(LineError::Gone);
        }
        let message = serde_json::from_slice(&bytes[..received.bytes]);
        Ok((message.map_err(|_| LineError::Garbage)?, socket))
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn broken(error: rustix::io::Errno) -> LineError {
    use rustix::io::Errno;
    match error {
        Errno::PIPE | Errno::CONNRESET => LineError::Gone,
        Errno::AGAIN => LineError::Silent,
        other => LineError::Broken(other.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn lines() -> (Line, Line) {
        let (here, there) = Line::pair().unwrap();
        (here, Line::of(there))
    }

    #[test]
    fn messages_stay_apart_and_sockets_with_their_words() {
        let (here, there) = lines();
        let (mut near, far) = UnixStream::pair().unwrap();
        here.say(&"first", None).unwrap();
        here.say(&"second", Some(far.as_fd())).unwrap();
        drop(far);
        let (text, socket) = there.hear::<String>(None).unwrap();
        assert_eq!((text.as_str(), socket.is_some()), ("first", false));
        let (text, socket) = there.hear::<String>(None).unwrap();
        assert_eq!(text, "second");
        near.write_all(b"x").unwrap();
        let mut byte = [0];
        UnixStream::from(socket.unwrap()).read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn gone_silent_and_garbage_are_told_apart() {
        let (here, there) = lines();
        let within = Some(Duration::from_millis(20));
        assert!(matches!(there.hear::<String>(within), Err(LineError::Silent)));
        here.say(&7, None).unwrap();
        assert!(matches!(there.hear::<String>(within), Err(LineError::Garbage)));
        drop(here);
        assert!(matches!(there.hear::<String>(None), Err(LineError::Gone)));
        assert!(matches!(there.say(&1, None), Err(LineError::Gone)));
    }
}
