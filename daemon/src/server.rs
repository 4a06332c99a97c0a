//! Accepting connections: bounds per connection, the peer's address, and an orderly end.
//!
//! Owner: `run`. Invariants: a header block is read within 10 s and is at most 16 KiB and 100
//! headers; a body of which nothing comes for 30 s is given up; connections beyond the limit wait
//! in the listener's backlog; at the end no new request is taken and running ones get a while.
//! Absent: routes, TLS (a proxy in front brings it).

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::{Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep};

const HEADER_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 100;
const HEADER_WITHIN: Duration = Duration::from_secs(10);
const BODY_SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long running requests may take when the daemon ends; streams are resumable, so they are cut
/// then.
const FINISH_WITHIN: Duration = Duration::from_secs(2);
/// After a failed accept (no file descriptor free, for example), so that it is not tried in a hot
/// loop.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Serves until `ended` says so.
pub(crate) async fn serve(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    mut ended: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(connections_max));
    let connections = GracefulShutdown::new();
    loop {
        let place = tokio::select! {
            place = Arc::clone(&places).acquire_owned() => place.expect("never closed"),
            _ = ended.wait_for(|ended| *ended) => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = ended.wait_for(|ended| *ended) => break,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            }
        };
        // Small answers go out at once; a failure only makes them later.
        drop(socket.set_nodelay(true));
        let router = router.clone();
        let service = TowerToHyperService::new(WithPeer { router, peer });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_WITHIN)
            .max_buf_size(HEADER_BYTES_MAX)
            .max_headers(HEADERS_MAX)
            .serve_connection(TokioIo::new(socket), service);
        let connection = connections.watch(connection);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%peer, %error, "a connection ended early");
            }
            drop(place);
        });
    }
    drop(listener);
    if tokio::time::timeout(FINISH_WITHIN, connections.shutdown()).await.is_err() {
        tracing::info!("open streams were cut; their clients can resume");
    }
}

/// Notes the peer's address in each request, and watches over its body.
#[derive(Clone)]
struct WithPeer {
    router: Router,
    peer: SocketAddr,
}

impl tower_service::Service<hyper::Request<Incoming>> for WithPeer {
    type Response = <Router as tower_service::Service<hyper::Request<Body>>>::Response;
    type Error = <Router as tower_service::Service<hyper::Request<Body>>>::Error;
    type Future = <Router as tower_service::Service<hyper::Request<Body>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower_service::Service::<hyper::Request<Body>>::poll_ready(&mut self.router, context)
    }

    fn call(&mut self, mut request: hyper::Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(ConnectInfo(self.peer));
        self.router.call(request.map(|body| Body::new(Watched::new(body, BODY_SILENCE_MAX))))
    }
}

/// A body that ends with an error when nothing of it comes for too long while it is waited for.
struct Watched<B> {
    body: B,
    silence_max: Duration,
    /// There from the first time that it had to be waited for.
    given_up_at: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug, thiserror::Error)]
enum BodyError<E> {
    #[error("the body could not be read")]
    Read(#[source] E),
    #[error("nothing more of the body came")]
    Silent,
}

impl<B> Watched<B> {
    fn new(body: B, silence_max: Duration) -> Self {
        Self { body, silence_max, given_up_at: None }
    }
}

impl<B> hyper::body::Body for Watched<B>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error + 'static,
{
    type Data = Bytes;
    type Error = BodyError<B::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            if let Some(timer) = &mut this.given_up_at {
                timer.as_mut().reset(Instant::now() + this.silence_max);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Read)));
        }
        let silence_max = this.silence_max;
        let timer =
            this.given_up_at.get_or_insert_with(|| Box::pin(tokio::time::sleep(silence_max)));
        timer.as_mut().poll(context).map(|()| Some(Err(BodyError::Silent)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream::unfold;
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    /// A piece after each of these pauses.
    async fn read(pauses_ms: &[u64], silence_max_ms: u64) -> Result<usize, String> {
        let pieces = unfold(pauses_ms.iter(), |mut pauses| async move {
            tokio::time::sleep(Duration::from_millis(*pauses.next()?)).await;
            Some((Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x"))), pauses))
        });
        let body = StreamBody::new(Box::pin(pieces));
        let watched = Watched::new(body, Duration::from_millis(silence_max_ms));
        let collected = watched.collect().await.map_err(|error| error.to_string())?;
        Ok(collected.to_bytes().len())
    }

    #[tokio::test]
    async fn a_slow_body_is_read_to_its_end_and_a_silent_one_is_given_up() {
        assert_eq!(read(&[0, 0, 0], 60_000).await, Ok(3));
        assert_eq!(read(&[30, 30, 30, 30], 90).await, Ok(4), "each piece starts the clock anew");
        let silent = Err("nothing more of the body came".to_owned());
        assert_eq!(read(&[0, 60_000], 20).await, silent);
    }
}
