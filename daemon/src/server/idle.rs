//! Connections between two requests, as they pass from one process to the next: the socket, its
//! peer, and what was read of it already.
//!
//! Owner: `server` gives and takes them. Invariant: no byte of a client is lost or repeated.
//! Absent: requests.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// A connection on which no request is in work.
#[derive(Debug)]
pub(crate) struct Idle {
    pub(crate) socket: std::net::TcpStream,
    pub(crate) peer: SocketAddr,
    /// The beginning of the next request, where there is any.
    pub(crate) read: Bytes,
}

impl Idle {
    pub(super) fn of(socket: Prefixed, peer: SocketAddr, read: Bytes) -> io::Result<Self> {
        let Prefixed { before, socket } = socket;
        // Of what an earlier process had read, the parser has the beginning.
        let read = if before.is_empty() { read } else { [read, before].concat().into() };
        Ok(Self { socket: socket.into_std()?, peer, read })
    }

    pub(super) fn into_live(self) -> io::Result<(Prefixed, SocketAddr)> {
        self.socket.set_nonblocking(true)?;
        let socket = TcpStream::from_std(self.socket)?;
        Ok((Prefixed { before: self.read, socket }, self.peer))
    }
}

/// A socket of which something was read before.
#[derive(Debug)]
pub(super) struct Prefixed {
    before: Bytes,
    socket: TcpStream,
}

impl Prefixed {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self { before: Bytes::new(), socket }
    }
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.before.is_empty() {
            return Pin::new(&mut self.socket).poll_read(context, buffer);
        }
        let taken = self.before.len().min(buffer.remaining());
        buffer.put_slice(&self.before.split_to(taken));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_was_read_before_comes_first_and_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, peer) = listener.accept().await.unwrap();
        client.write_all(b"the rest").await.unwrap();
        drop(client);
        let before = Bytes::from_static(b"the beginning and ");
        let idle = Idle::of(Prefixed::new(socket), peer, before).unwrap();
        let (mut live, _) = idle.into_live().unwrap();
        let mut start = [0; 5];
        live.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"the b");
        let mut text = String::new();
        live.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "eginning and the rest");
    }
}
